"""Losses and metrics of one's own: through a training, on record, and refused in one line."""

import sys
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from data_images import write_classes
from helpers import TINY, history, make_config, tiny
from torch.nn import functional as F

from resnests.config.recipe import recipe_hash, recipe_values
from resnests.config.schema import config_dict, config_from
from resnests.data.arrays import in_turn
from resnests.data.splits import load
from resnests.errors import UserError
from resnests.runs.directory import RunDirectory
from resnests.runs.metrics import definitions, is_unmeasured, lacks_metrics
from resnests.sweep.plan import Run
from resnests.tasks import preflight
from resnests.tasks.experiment import run_experiment
from resnests.training.objectives import brier, build_loss, build_metrics, focal

MINE = """
import torch
from torch import nn

def zeros(logits, labels, scale=1.0):
    return scale * (labels == 0).float().mean()

def words(logits, labels):
    return "no number"

def vector(logits, labels):
    return logits.sum(1)

class Plain:
    def __call__(self, logits, labels):
        if len(labels.unique()) < 2:
            raise ValueError("one class alone")
        return 0.5

class OfSizes:
    def __init__(self, sizes):
        self.sizes = sizes

    def __call__(self, logits, labels):
        if len(labels) not in self.sizes or len(logits) != len(labels):
            raise ValueError(f"of {len(labels)} images")
        return 0.5

class Learned(nn.Linear):
    def __init__(self):
        super().__init__(2, 2)
"""
CPU = torch.device("cpu")


@pytest.fixture(autouse=True)
def mine(tmp_path, monkeypatch):
    (tmp_path / "mine.py").write_text(MINE)
    monkeypatch.syspath_prepend(tmp_path)
    monkeypatch.delitem(sys.modules, "mine", raising=False)
    return tmp_path / "mine.py"


def config(*overrides, **groups):
    return config_from(config_dict(tiny("trainer.epochs=1", *overrides)) | groups)


def test_the_default_loss_and_metrics_leave_a_recipe_as_it_was():
    plain = tiny()
    assert not any(key.startswith(("loss", "metrics")) for key in recipe_values(plain))
    measured = config(metrics={"zeros": {"_target_": "mine.zeros"}})
    assert recipe_hash(measured) == recipe_hash(config())
    assert recipe_values(config("loss.weight=balanced"))["loss.weight"] == "balanced"


def test_losses():
    logits, labels = torch.randn(6, 3), torch.tensor([0, 0, 0, 1, 1, 2])
    three = config("dataset.num_classes=3", "loss.weight=balanced")
    weighed = build_loss(three, labels.numpy(), CPU)
    weight = torch.tensor([6 / 9, 6 / 6, 6 / 3])
    assert torch.equal(weighed(logits, labels), F.cross_entropy(logits, labels, weight))
    given = config("dataset.num_classes=3", "loss.weight=[1,2,0]")
    assert build_loss(given, labels.numpy(), CPU)(logits, labels) != weighed(logits, labels)
    torchs = {"_target_": "torch.nn.CrossEntropyLoss", "label_smoothing": 0.1, "weight": [1, 1, 1]}
    made = build_loss(config("dataset.num_classes=3", loss=torchs), labels.numpy(), CPU)
    assert torch.equal(made(logits, labels), F.cross_entropy(logits, labels, label_smoothing=0.1))
    p = torch.sigmoid(logits)
    y = F.one_hot(labels, 3)
    right = torch.where(y == 1, p, 1 - p)
    alpha = torch.where(y == 1, 0.25, 0.75)
    expected = (-alpha * (1 - right) ** 2 * right.log()).sum(1).mean()
    assert focal(logits, labels, 0.25, 2.0) == pytest.approx(expected.item(), rel=1e-5)
    assert brier(torch.tensor([[0.0, 0.0]]), torch.tensor([1])).item() == 0.5


@pytest.mark.parametrize(
    ("groups", "said"),
    [
        ({"loss": {"weight": "even"}}, "loss.weight=even: expected balanced, null, or a number"),
        (
            {"loss": {"weight": [1, 2]}},
            "loss.weight=.*: expected balanced, or a number for each of",
        ),
        ({"loss": {"name": "hinge"}}, "loss.name=hinge: expected cross_entropy, or a _target_"),
        (
            {"loss": {"_target_": "mine.zeros", "weight": "balanced"}},
            "loss.weight=balanced: expected null, as mine.zeros takes none",
        ),
        ({"loss": {"_target_": "mine.Learned"}}, "expected a loss without parameters"),
        ({"loss": {"_target_": "mine.vector"}}, "loss=vector: a step fails: RuntimeError"),
        ({"loss": {"_target_": "mine.no"}}, "loss._target_=mine.no: cannot be imported"),
        ({"metrics": {"F 1": {"_target_": "mine.zeros"}}}, "metrics=F 1: expected small letters"),
        ({"metrics": {"loss": {"_target_": "mine.zeros"}}}, "metrics=loss: expected another name"),
        ({"metrics": {"w": {"unit": "%"}}}, "metrics.w._target_=null: expected an import path"),
        ({"metrics": {"w": {"_target_": "mine.words"}}}, "metrics.w._target_=mine.words: ValueErr"),
        (
            {"metrics": {"w": {"_target_": "mine.vector"}}},
            r"metrics.w._target_=mine.vector: expected a number, not values of shape \(40,\)",
        ),
        ({"metrics": {"w": 3}}, "metrics.w=3: expected a _target_"),
        (
            {"metrics": {"w": {"_target_": "a.b", "better": "up"}}},
            "metrics.w.better=up: expected",
        ),
    ],
)
def test_what_does_not_fit_is_one_line_before_the_first_run(groups, said):
    def check():
        broken = config(**groups)
        preflight.check(broken, load(broken.dataset), CPU, preflight.Sizes.TWO)

    with pytest.raises(UserError, match=said) as caught:
        check()
    assert "\n" not in str(caught.value)


def test_a_metric_without_arguments_is_tried_on_images_of_several_classes():
    """The first images of a sorted folder are of one class."""
    mine = config(metrics={"plain": {"_target_": "mine.Plain"}})
    splits = load(mine.dataset)
    sorted_test = splits.test.take(np.argsort(splits.test.labels, kind="stable"))
    few = sorted_test.take(in_turn(sorted_test.labels, 40))
    many = few.take(np.concatenate([np.repeat(0, 40), np.arange(len(few))]))
    preflight.check(mine, replace(splits, test=many), CPU, preflight.Sizes.TWO)


def test_metrics_are_tried_with_as_many_images_as_a_run_has():
    """Some need every class, or have no memory for all images: a run failed after its training."""
    held_out = "dataset.train_limit=200", "dataset.val_fraction=0.25", "dataset.test_limit=100"
    splits = load(config(*held_out).dataset)
    sizes = [len(splits.val), len(splits.test)]
    assert min(sizes) > 32

    def check(sizes):
        metrics = {"sized": {"_target_": "mine.OfSizes", "sizes": sizes}}
        preflight.check(config(*held_out, metrics=metrics), splits, CPU, preflight.Sizes.TWO)

    check(sizes)
    for lacking in sizes:
        said = f"metrics.sized._target_=mine.OfSizes: ValueError: of {lacking} images"
        with pytest.raises(UserError, match=said):
            check([size for size in [*sizes, 32] if size != lacking])


def test_a_metric_of_a_package_that_is_missing_names_what_to_install(monkeypatch):
    monkeypatch.setitem(sys.modules, "torchmetrics", None)
    missing = config(metrics={"f1": {"_target_": "torchmetrics.classification.MulticlassF1Score"}})
    said = r"needs torchmetrics: pip install 'resnests\[metrics\]'$"
    with pytest.raises(UserError, match=said):
        build_metrics(missing, CPU)


def test_balanced_weights_need_an_image_of_each_class():
    with pytest.raises(UserError, match="expected null, as a class has no training image"):
        build_loss(config("loss.weight=balanced"), np.zeros(5, int), CPU)


@pytest.mark.slow
def test_a_metric_is_in_the_history_and_on_record(tmp_path):
    metrics = {"zeros": {"_target_": "mine.zeros", "scale": 0.5, "unit": "%", "better": "low"}}
    mine = config(f"runs_dir={tmp_path}", "dataset.val_fraction=0.2", metrics=metrics)
    assert run_experiment(mine) == "complete"
    directory = RunDirectory.of(mine)
    (row,) = history(directory.path)
    labels = load(mine.dataset).test.labels
    assert float(row["test_zeros"]) == pytest.approx(50 * (labels == 0).mean())
    found = directory.read_record().metrics["zeros"]
    assert found["test"] == float(row["test_zeros"])
    assert found["val"] == float(row["val_zeros"])
    plain = config(f"runs_dir={tmp_path / 'plain'}", "dataset.val_fraction=0.2")
    run_experiment(plain)
    (other,) = history(RunDirectory.of(plain).path)
    assert other == {key: value for key, value in row.items() if not key.endswith("_zeros")}


@pytest.mark.slow
def test_a_finished_run_is_measured_by_what_it_lacks_and_not_trained_again(tmp_path, mine):
    plain = config(f"runs_dir={tmp_path}")
    run_experiment(plain)
    directory = RunDirectory.of(plain)
    before, weights = directory.read_record(), directory.weights_file.read_bytes()
    asked = config(f"runs_dir={tmp_path}", metrics={"zeros": {"_target_": "mine.zeros"}})
    run = Run(asked, directory)
    assert (Run(plain, directory).action(), run.action()) == ("skip", "resume")
    assert run.planned().replaces == directory.record_digest()
    assert run_experiment(asked, clear=lambda: pytest.fail("cleared")) == "complete"
    after = directory.read_record()
    assert after.metrics["zeros"]["test"] == float(history(directory.path)[-1]["test_zeros"])
    assert (after.test_loss, after.provenance) == (before.test_loss, before.provenance)
    assert directory.weights_file.read_bytes() == weights
    assert run.action() == "skip"
    low = {"plain": {"_target_": "mine.Plain", "better": "low"}}
    more = config(f"runs_dir={tmp_path}", metrics=low)
    assert run_experiment(more, clear=lambda: pytest.fail("cleared")) == "complete"
    after = directory.read_record()
    assert after.config["metrics"] == asked.metrics | low, "each keeps its unit and direction"
    assert run.action() == "skip"
    after.config["metrics"] = low  # as an earlier version left it
    assert lacks_metrics(after, asked)
    after = directory.read_record()
    mine.write_text(MINE + "# edited\n")
    assert lacks_metrics(after, asked)
    directory.weights_file.unlink()
    with pytest.raises(UserError, match=r"model.pt: expected the weights to measure"):
        run_experiment(asked, clear=lambda: None)


@pytest.mark.slow
def test_a_metric_that_is_edited_while_it_measures_is_on_record_as_it_was(tmp_path, mine):
    asked = config(f"runs_dir={tmp_path}", metrics={"zeros": {"_target_": "mine.zeros"}})
    before = definitions(asked)
    assert run_experiment(asked, clear=lambda: mine.write_text(MINE + "# edited\n")) == "complete"
    record = RunDirectory.of(asked).read_record()
    assert record.metrics["zeros"]["definition"] == before["zeros"]
    assert lacks_metrics(record, asked), "the same command measures it again"


def test_ready_metrics_are_those_of_torchmetrics():
    pytest.importorskip("torchmetrics")
    names = ("f1", "balanced_accuracy", "top5", "ece", "auroc", "brier")
    asked = make_config(*TINY, f"metrics=[{','.join(names)}]", "metrics.f1.average=micro")
    torch.manual_seed(0)
    logits, labels = torch.randn(200, 10), torch.arange(200) % 10
    measures = build_metrics(asked, CPU)
    first = {name: measure(logits, labels) for name, measure in measures.items()}
    assert first["f1"] == pytest.approx(100 * (logits.argmax(1) == labels).float().mean())
    top5 = (logits.topk(5).indices == labels[:, None]).any(1).float().mean()
    assert first["top5"] == pytest.approx(100 * top5)
    assert {name: measure(logits, labels) for name, measure in measures.items()} == first
    assert set(first) == {*names}


def test_predictions_are_written_at_the_end_of_a_run_and_for_a_finished_one(tmp_path):
    plain = config(f"runs_dir={tmp_path}")
    run_experiment(plain)
    directory = RunDirectory.of(plain)
    asked = config(f"runs_dir={tmp_path}", "predictions=true")
    assert Run(asked, directory).action() == "resume"
    assert run_experiment(asked, clear=lambda: pytest.fail("cleared")) == "complete"
    assert Run(asked, directory).action() == "skip"
    more = config(f"runs_dir={tmp_path}", metrics={"zeros": {"_target_": "mine.zeros"}})
    assert run_experiment(more, clear=lambda: pytest.fail("cleared")) == "complete"
    record = directory.read_record()
    assert record.config["predictions"], "it has them still"
    with np.load(directory.predictions_file, allow_pickle=False) as found:
        assert (found["prediction"] == found["logits"].argmax(1)).all()
        right = 100 * (found["prediction"] == found["label"]).mean()
        first = found["logits"]
    assert right == pytest.approx(record.test_accuracy)
    fresh = config(f"runs_dir={tmp_path / 'fresh'}", "predictions=true")
    run_experiment(fresh)
    with np.load(RunDirectory.of(fresh).predictions_file) as found:
        assert (found["logits"] == first).all()
    assert directory.predictions_file.with_suffix(".csv").exists()
    directory.clear()
    assert not list(directory.path.glob("predictions*"))


def test_other_tasks_of_the_same_experiment_measure_nothing(tmp_path):
    metrics = {"zeros": {"_target_": "mine.zeros"}}
    plain = config(f"runs_dir={tmp_path}")
    run_experiment(plain)
    directory = RunDirectory.of(plain)
    for task in ("export", "analyze"):
        weights = ("weights=shared",) if task == "export" else ()
        words = (f"runs_dir={tmp_path}", f"task={task}", "predictions=true", *weights)
        assert not is_unmeasured(
            directory, directory.read_record(), config(*words, metrics=metrics)
        )


def test_predictions_of_a_folder_name_its_files(tmp_path):
    write_classes(tmp_path / "leaves", 5)
    folder = {"name": "leaves", "source": "images", "root": str(tmp_path / "leaves")}
    options = (f"runs_dir={tmp_path / 'runs'}", "predictions=true", "trainer.batch_size=4")
    mine = config(*options, dataset=folder)
    run_experiment(mine)
    with np.load(RunDirectory.of(mine).predictions_file, allow_pickle=False) as found:
        files, classes, labels = found["path"], found["classes"], found["label"]
    assert len(files) == len(labels) > 0
    for file, label in zip(files, labels, strict=True):
        assert (tmp_path / "leaves" / file).is_file()
        assert classes[label] in Path(file).parts
