"""What the loop looks at between steps, and what it counts."""

import pytest
import torch
from helpers import tiny
from test_experiment import stop_after

from resnests.data.pipelines import Images
from resnests.data.splits import load
from resnests.errors import Interrupted
from resnests.models.resnet import initial_model
from resnests.models.weights import read_torch
from resnests.runs.directory import RunDirectory
from resnests.tasks.experiment import run_experiment
from resnests.training import loop

SMALL_BATCHES = "trainer.batch_size=8"  # twelve steps an epoch


def test_a_loss_that_is_no_longer_finite_ends_an_epoch_at_the_next_report(tmp_path, monkeypatch):
    monkeypatch.setattr(loop, "REPORT_EVERY", 0.0)
    asked = []
    config = tiny(f"runs_dir={tmp_path}", SMALL_BATCHES, "optimizer.lr=1e30")
    assert run_experiment(config, should_stop=lambda: asked.append(1)) == "diverged"
    assert len(asked) < 12
    assert "train loss is nan in epoch 1" in RunDirectory.of(config).read_record().error


def test_an_evaluation_that_is_not_finite_is_a_divergence(tmp_path, monkeypatch):
    found = {"loss": float("inf"), "accuracy": 10.0}
    monkeypatch.setattr(loop, "evaluate", lambda *_, **__: found)
    config = tiny(f"runs_dir={tmp_path}")
    assert run_experiment(config) == "diverged"
    assert "test loss is inf in epoch 1" in RunDirectory.of(config).read_record().error


def test_an_evaluation_can_be_interrupted_before_each_batch():
    config = tiny()
    images = Images(load(config.dataset).test, config.dataset, torch.device("cpu"))
    model = initial_model(config.arch, config.variant, 10, 0, (32, 32))
    with pytest.raises(Interrupted):
        loop.evaluate(model, images, "fp32", lambda: True)


def test_gradients_are_scaled_down_to_the_norm_that_was_asked_for(tmp_path):
    still = ("optimizer.clip_norm=1e-12", "optimizer.weight_decay=0")
    config = tiny(f"runs_dir={tmp_path}", "trainer.epochs=1", *still)
    assert run_experiment(config) == "complete"
    trained = read_torch(RunDirectory.of(config).weights_file)
    first = initial_model(config.arch, config.variant, 10, config.seed, (32, 32))
    for name, value in first.named_parameters():
        assert torch.allclose(trained[name], value, atol=1e-9), name


def test_reports_say_how_far_the_training_is_and_end_with_nothing_left(tmp_path, monkeypatch):
    monkeypatch.setattr(loop, "REPORT_EVERY", 0.0)
    reports = []
    run_experiment(tiny(f"runs_dir={tmp_path}", SMALL_BATCHES), report=reports.append)
    steps = [r for r in reports if r["state"] == "training"]
    assert [(r["epoch"], r["step"]) for r in steps] == [
        (epoch, step) for epoch in (1, 2) for step in range(1, 13)
    ]
    assert all((r["epochs"], r["steps"]) == (2, 12) for r in steps)
    assert all(0 < r["loss"] < 10 and 0 <= r["accuracy"] <= 100 for r in steps)
    left = [r["seconds_left"] for r in reports if "seconds_left" in r]
    assert left[-1] == 0 < left[0]


def test_the_time_of_an_epoch_counts_what_was_trained_before_an_interruption(tmp_path):
    config = tiny(f"runs_dir={tmp_path}", SMALL_BATCHES)
    seconds = []
    for questions in (11, 1):
        run_experiment(config, should_stop=stop_after(questions))
        state = read_torch(RunDirectory.of(config).checkpoint_file)["state"]
        seconds.append(state["epoch_seconds"])
    assert state["step"] == 12
    assert seconds[1] > seconds[0] > 0
