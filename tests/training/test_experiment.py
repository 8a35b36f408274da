import csv
import itertools
import json
import math

import pytest
import torch
from helpers import history, tiny

from resnests import build_model
from resnests.config.parts import HEADS
from resnests.models.weights import read_torch
from resnests.runs.directory import RunDirectory
from resnests.runs.history import HISTORY
from resnests.runs.record import Provenance, Record
from resnests.tasks import keeper
from resnests.tasks.experiment import run_experiment
from resnests.training.loop import State

SLOW_TORCHVISION = pytest.param("torchvision", marks=pytest.mark.slow)


def same_weights(one, other) -> bool:
    first, second = read_torch(one / "model.pt"), read_torch(other / "model.pt")
    return first.keys() == second.keys() and all(
        torch.equal(first[name], second[name]) for name in first
    )


def stop_after(questions: int):
    """Return a should_stop that says yes at its n-th question, which comes at every step boundary
    and evaluation batch.
    """
    counter = itertools.count(1)
    return lambda: next(counter) >= questions


def test_a_finished_run_leaves_what_the_format_promises(tmp_path):
    config = tiny(
        f"runs_dir={tmp_path}",
        "variant=a_resnest",
        "seed=4",
        "trainer.epochs=3",
        "trainer.eval_every=2",
    )
    assert run_experiment(config) == "complete"
    path = RunDirectory.of(config).path
    assert path.relative_to(tmp_path).parts[:3] == ("digits", "tiny", "a_resnest")
    assert path.name == "seed=4"
    record = Record.from_json((path / "record.json").read_bytes())
    assert record.status == "complete"
    assert (record.dataset, record.arch, record.variant, record.seed) == (
        "digits",
        "tiny",
        "a_resnest",
        4,
    )
    assert record.recipe == path.parent.name
    assert record.epochs == 3
    assert record.parameters == sum(
        p.numel() for p in build_model(((1, 1), (4, 8)), "a_resnest").parameters()
    )
    assert 0 <= record.test_accuracy <= 100
    assert record.seconds > 0
    assert record.images_per_second > 0
    assert record.arithmetic == "fp32"
    assert {"git_commit", "git_dirty", "versions", "device", "host"} <= vars(
        record.provenance
    ).keys()
    with open(path / "history.csv", newline="") as file:
        rows = list(csv.DictReader(file))
    assert list(rows[0]) == list(HISTORY)
    assert [row["epoch"] for row in rows] == ["1", "2", "3"]
    assert [bool(row["test_loss"]) for row in rows] == [False, True, True]
    assert float(rows[-1]["test_accuracy"]) == record.test_accuracy
    weights = torch.load(path / "model.pt", weights_only=True)
    build_model(((1, 1), (4, 8)), "a_resnest").load_state_dict(weights)
    assert RunDirectory(path).read_config() == config
    assert not list(path.glob(".*.tmp"))


@pytest.mark.parametrize("pipeline", ["tensor", SLOW_TORCHVISION])
@pytest.mark.parametrize("variant", HEADS)
def test_resumed_equals_uninterrupted_to_the_bit(tmp_path, variant, pipeline):
    """Interrupted in mid-epoch, in an evaluation and once more: the same weights, the same
    history.
    """
    overrides = (
        f"variant={variant}",
        f"pipeline={pipeline}",
        "trainer.epochs=3",
        "dataset.val_fraction=0.2",
    )
    whole = tiny(*overrides, f"runs_dir={tmp_path / 'whole'}")
    parts = tiny(*overrides, f"runs_dir={tmp_path / 'parts'}")
    assert run_experiment(whole) == "complete"
    for questions in (2, 3, 4):
        assert run_experiment(parts, should_stop=stop_after(questions)) == "interrupted"
    assert run_experiment(parts) == "complete"
    one, other = RunDirectory.of(whole).path, RunDirectory.of(parts).path
    assert same_weights(one, other)
    assert history(one) == history(other)
    records = [json.loads((path / "record.json").read_text()) for path in (one, other)]
    assert records[0]["test_loss"] == records[1]["test_loss"]


def test_an_interrupted_run_says_where_it_is_and_goes_on_from_there(tmp_path, caplog):
    config = tiny(f"runs_dir={tmp_path}")
    with caplog.at_level("INFO"):
        run_experiment(config, should_stop=stop_after(2))
        config.trainer.overwrite = True  # which the command that began the run may say
        run_experiment(config, should_stop=stop_after(1))
    assert "interrupted in epoch 1 after step 2: the same command goes on from" in caplog.text
    assert "resuming in epoch 1 after step 2" in caplog.text
    assert "step 3: the same command without trainer.overwrite=true goes on from" in caplog.text


def test_a_damaged_checkpoint_costs_epochs_but_not_the_result(tmp_path):
    whole, parts = (
        tiny(f"runs_dir={tmp_path / name}", "trainer.epochs=3") for name in ("whole", "parts")
    )
    run_experiment(whole)
    run_experiment(parts, should_stop=stop_after(9))
    directory = RunDirectory.of(parts)
    checkpoint = directory.checkpoint_file
    checkpoint.write_bytes(checkpoint.read_bytes()[:-1000])
    directory.record_file.write_text("{ torn")
    assert run_experiment(parts) == "complete"
    assert same_weights(RunDirectory.of(whole).path, directory.path)
    assert history(RunDirectory.of(whole).path) == history(directory.path)


def test_weights_of_given_epochs_are_kept_also_by_a_run_that_was_interrupted(tmp_path, caplog):
    keep = ("trainer.epochs=4", "trainer.keep_epochs=[1,3,4]", "trainer.checkpoint_every=2")
    whole, parts = (tiny(*keep, f"runs_dir={tmp_path / name}") for name in ("whole", "parts"))
    assert run_experiment(whole) == "complete"
    assert run_experiment(parts, should_stop=stop_after(10)) == "interrupted"  # in epoch 3
    one, other = RunDirectory.of(whole), RunDirectory.of(parts)
    assert other.kept_weights_file(1).exists()
    other.checkpoint_file.unlink()  # of the interruption: back to that of epoch 2
    assert run_experiment(parts) == "complete"
    for directory in (one, other):
        assert sorted(path.name for path in directory.path.glob("model_epoch_*")) == [
            f"model_epoch_{epoch}.pt" for epoch in (1, 3, 4)
        ]
    for epoch in (1, 3, 4):
        kept = [directory.kept_weights_file(epoch).read_bytes() for directory in (one, other)]
        assert kept[0] == kept[1]
    assert one.kept_weights_file(4).read_bytes() == one.weights_file.read_bytes()
    build_model(((1, 1), (4, 8))).load_state_dict(read_torch(one.kept_weights_file(1)))
    assert one.kept_weights_file(1).read_bytes() != one.kept_weights_file(3).read_bytes()
    assert "not kept" not in caplog.text
    one.clear()
    assert not list(one.path.glob("model*"))


def test_epochs_that_were_over_when_their_weights_were_asked_for_are_named(tmp_path, caplog):
    config = tiny("trainer.epochs=3", f"runs_dir={tmp_path}")
    run_experiment(config, should_stop=stop_after(6))  # in epoch 2
    assert (
        run_experiment(
            tiny("trainer.epochs=3", "trainer.keep_epochs=[1,2]", f"runs_dir={tmp_path}")
        )
        == "complete"
    )
    assert "the weights of epoch 1 are not kept" in caplog.text
    assert "of epoch 2" not in caplog.text
    assert RunDirectory.of(config).kept_weights_file(2).exists()


def test_divergence_ends_the_run_with_epoch_and_hint_and_no_weights(tmp_path, caplog):
    config = tiny(f"runs_dir={tmp_path}", "optimizer.lr=1e30", "trainer.epochs=5")
    assert run_experiment(config) == "diverged"
    directory = RunDirectory.of(config)
    record = directory.read_record()
    assert "in epoch 1" in record.error
    assert "optimizer.lr than 1e+30" in record.error
    assert f"diverged: {record.error}" in caplog.text
    assert not directory.weights_file.exists()
    assert not directory.checkpoint_file.exists()


def test_an_exception_is_on_record_and_not_swallowed(tmp_path):
    config = tiny(f"runs_dir={tmp_path}", "dataset.num_classes=3")
    with pytest.raises(ValueError, match="num_classes"):
        run_experiment(config)
    record = RunDirectory.of(config).read_record()
    assert record.status == "failed"
    assert "dataset.num_classes=3" in record.error


def test_a_fixed_seed_gives_the_losses_it_always_gave(tmp_path):
    """Golden figures: whoever changes the computation must mean to."""
    config = tiny(f"runs_dir={tmp_path}", "trainer.epochs=3", "optimizer.lr=0.01")
    run_experiment(config)
    losses = [float(row["train_loss"]) for row in history(RunDirectory.of(config).path)]
    assert losses == pytest.approx([2.3710, 2.3702, 2.3640], abs=2e-3)


@pytest.mark.slow
def test_the_torchvision_pipeline_trains_as_the_official_procedure(tmp_path):
    """Losses of a loop written from the description of the procedure, seed for seed."""
    config = tiny(f"runs_dir={tmp_path}", "pipeline=torchvision", "seed=2", "optimizer.lr=0.05")
    run_experiment(config)
    from resnests.data.pipelines import build_pipeline
    from resnests.data.splits import load

    train = load(config.dataset).train
    torch.manual_seed(2)
    model = build_model(((1, 1), (4, 8)), "standard")
    optimizer = torch.optim.SGD(
        model.parameters(), 0.05, momentum=0.9, nesterov=True, weight_decay=5e-4
    )
    # milestones at 0.3, 0.6 and 0.8 of two epochs: one of them after the first
    schedule = torch.optim.lr_scheduler.MultiStepLR(optimizer, [1, 2, 3], gamma=0.2)
    losses = []
    for epoch in (1, 2):
        total = 0.0
        for x, y in build_pipeline(config, config.dataset, train, torch.device("cpu")).batches(
            epoch
        ):
            loss = torch.nn.functional.cross_entropy(model(x), y)
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
            total += loss.item() * len(y)
        schedule.step()
        losses.append(total / len(train))
    rows = history(RunDirectory.of(config).path)
    assert [float(row["train_loss"]) for row in rows] == pytest.approx(losses, rel=1e-4)
    assert math.isclose(float(rows[1]["lr"]), 0.05 * 0.2, rel_tol=1e-9)


def test_the_speed_on_record_is_that_of_all_epochs_together():
    """One epoch at 100 and one at 300 images/s: 150 over both, not 200."""
    rows = [
        dict.fromkeys(HISTORY, 1.0) | {"images_per_second": speed, "seconds": 1.0}
        for speed in (100.0, 300.0)
    ]
    record = Record.of(tiny(), Provenance())
    keeper.note_epochs(record, State(epoch=3, history=rows), {})
    assert (record.epochs, record.images_per_second, record.seconds) == (2, 150.0, 2.0)


def test_bf16_trains_to_about_the_same_loss(tmp_path):
    losses = []
    for precision in ("fp32", "bf16"):
        config = tiny(f"runs_dir={tmp_path}", f"trainer.precision={precision}", "optimizer.lr=0.01")
        run_experiment(config)
        losses.append(RunDirectory.of(config).read_record().train_loss)
    assert losses[0] != losses[1]
    assert losses[0] == pytest.approx(losses[1], rel=0.03)


@pytest.mark.parametrize(
    ("asked", "layout"), [("null", torch.channels_last), ("false", torch.contiguous_format)]
)
def test_every_convolution_has_the_layout_that_was_asked_for(tmp_path, asked, layout):
    seen = []

    def note(module, inputs):
        if isinstance(module, torch.nn.Conv2d):
            seen.append(inputs[0].is_contiguous(memory_format=layout))

    hook = torch.nn.modules.module.register_module_forward_pre_hook(note)
    try:
        run_experiment(tiny(f"runs_dir={tmp_path}", f"trainer.channels_last={asked}"))
    finally:
        hook.remove()
    assert seen
    assert all(seen)


@pytest.mark.slow
@pytest.mark.parametrize(("seconds", "writings"), [(1000.0, 2), (0.0, 6)])
def test_history_is_written_once_a_second_before_checkpoints_and_at_every_end(
    tmp_path, monkeypatch, seconds, writings
):
    """A fast GPU's epoch takes a third of a second, of which each writing would be a thirtieth."""
    monkeypatch.setattr(keeper, "HISTORY_SECONDS", seconds)
    write, written = RunDirectory.write_history, []
    monkeypatch.setattr(
        RunDirectory, "write_history", lambda *given: (written.append(1), write(*given))
    )
    options = ("trainer.epochs=5", "trainer.checkpoint_every=100")
    config = tiny(f"runs_dir={tmp_path / 'whole'}", *options)
    run_experiment(config)
    assert len(written) == writings
    assert len(history(RunDirectory.of(config).path)) == 5
    stopped, steps = tiny(f"runs_dir={tmp_path / 'stopped'}", *options), itertools.count()
    assert run_experiment(stopped, should_stop=lambda: next(steps) == 11) == "interrupted"
    assert len(history(RunDirectory.of(stopped).path)) == 2, "all that were over"
