"""Differences to any value of any axis, paired by seed."""

import csv

import numpy as np
import pytest
import trees
from scipy import stats

from resnests.errors import UserError
from resnests.results.cells import drop_copies, label_rows
from resnests.results.frame import read_runs
from resnests.results.measured import Measured
from resnests.results.output import Results, _numbers, plan
from resnests.results.select import select
from resnests.results.tables import MCNEMAR, axis_table, comparison_table

ADAMW = {
    "name": "adamw",
    "lr": 0.001,
    "weight_decay": 0.01,
    "betas": [0.9, 0.99],
    "momentum": None,
    "nesterov": None,
}


def table(root, key, value):
    return axis_table(drop_copies(label_rows(read_runs(root)[0]))[0], key, value)


def add(root, accuracies, **config):
    return [trees.add_run(root, a, seed=seed, **config) for seed, a in enumerate(accuracies)]


def test_architectures_are_compared_seed_by_seed_within_the_same_recipe(tmp_path):
    base, mine = [90.0, 91.0, 93.0], [92.0, 92.0, 96.0]
    add(tmp_path, base)
    add(tmp_path, mine, arch="resnet8")
    add(tmp_path, [50, 51], arch="resnet8", trainer__epochs=7)
    made = table(tmp_path, "arch", "resnet20")
    (row,) = made.rows
    assert row[1] == "ResNet-8" or row[1].startswith("ResNet-8,")
    assert row[3:6] == ["resnet8", "3", "+2.00"]
    (cell,) = made.cells.values()
    assert (*made.cells, cell.arch, cell.variant) == ((0, 2), "resnet8", "standard")
    p = stats.ttest_rel(mine, base).pvalue
    assert row[7:9] == [f"{p:.3f}", f"{p:.3f}"]


def test_no_difference_of_zero_has_a_minus(tmp_path):
    add(tmp_path, [90.0, 90.0])
    add(tmp_path, [89.999, 89.998], arch="resnet8")
    (row,) = table(tmp_path, "arch", "resnet20").rows
    assert row[5].startswith("+0.00")
    assert "-0.00 " not in row[6]
    assert not row[6].endswith("-0.00")


def test_an_axis_brings_its_keys_along(tmp_path):
    add(tmp_path, [90, 91])
    add(tmp_path, [80, 83], optimizer=ADAMW)
    (row,) = table(tmp_path, "optimizer", "sgd").rows
    assert row[3:6] == ["adamw", "2", "-9.00"]
    (row,) = table(tmp_path, "optimizer", "adamw").rows
    assert row[3:6] == ["sgd", "2", "+9.00"]


def test_a_value_of_a_key_and_holm_over_what_is_shown(tmp_path):
    for rate, accuracies in ((0.1, [90, 91, 92]), (0.2, [91, 93, 93]), (0.3, [80, 82, 81])):
        add(tmp_path, accuracies, optimizer=trees.SGD | {"lr": rate})
    made = table(tmp_path, "optimizer.lr", "0.1")
    assert [row[3] for row in made.rows] == ["0.2", "0.3"]
    plain, corrected = zip(*((row[7], row[8]) for row in made.rows), strict=True)
    assert float(corrected[0]) == float(plain[0])  # the larger p
    assert "2 tests here" in made.caption


def predict(run, wrong, **more):
    """Write predictions of ten images, of which some are wrong."""
    predicted = (np.arange(10) < wrong).astype(int)
    arrays = {"label": np.zeros(10, int), "prediction": predicted, "logits": np.eye(2)[predicted]}
    np.savez(run.predictions_file, **arrays, **more)


def test_each_pair_with_predictions_has_an_exact_test_beside_its_seed(tmp_path):
    mine = {"arch": "resnet8"}, {"variant": "bn_resnest"}
    for wrong, other in ((0, {}), *((6, one) for one in mine)):
        for run in add(tmp_path, [90, 91, 93], **other)[::2]:
            predict(run, wrong)
    p = f"{2 / 64:.3f}"
    assert table(tmp_path, "arch", "resnet20").rows[0][9] == f"0: {p}, 2: {p}"
    runs = drop_copies(label_rows(read_runs(tmp_path)[0]))[0]
    made = comparison_table(runs, by_image=True)
    assert [row[-1] for row in made.rows] == [f"0: {p}, 2: {p}"]
    assert made.header[-1] == MCNEMAR
    assert MCNEMAR not in comparison_table(runs).header
    others = (Measured(epoch="best"), Measured(split="val"), Measured("f1"))
    runs = runs.assign(val_accuracy=90.0, test_f1=90.0)
    for what in others:  # of which the predictions of the last epoch tell nothing
        for made in (
            comparison_table(runs, what, by_image=True),
            axis_table(runs, "arch", "resnet20", what),
        ):
            assert MCNEMAR not in made.header
            assert "McNemar" not in made.caption
            assert {len(row) for row in made.rows} == {len(made.header)}


@pytest.mark.parametrize(("other", "tested"), [("a", "0: 0.031"), ("b", "—")])
def test_other_images_with_the_same_labels_are_not_tested_as_the_same(tmp_path, other, tested):
    for dataset, wrong, letter in (("cifar10", 0, "a"), ("other", 6, other)):
        for run in add(tmp_path, [90, 91], dataset=dataset)[:1]:
            predict(run, wrong, path=np.array([f"{letter}{i}.png" for i in range(10)]))
    (row,) = table(tmp_path, "dataset", "cifar10").rows
    assert row[-1] == tested


def test_differences_of_an_axis_are_written_as_numbers(tmp_path):
    add(tmp_path, [90, 91, 93])
    add(tmp_path, [92, 92, 96], arch="resnet8")
    runs = drop_copies(label_rows(read_runs(tmp_path)[0]))[0]
    asked = plan("there/", None, None, ["arch=resnet20", "standard"])
    files = _numbers(Results(runs, [], asked))
    (row,) = csv.DictReader(files["differences_arch_resnet20.csv"].decode().splitlines())
    assert (row["arch"], row["value"], row["baseline"]) == ("resnet8", "resnet8", "resnet20")
    assert (row["n"], row["delta"], row["epoch"]) == ("3", "2.0", "last")
    assert not any("path" in name or "pairs" in name for name in row)


@pytest.mark.parametrize(
    ("key", "value", "said"),
    [
        (
            "arch",
            "resnet99",
            "--compare arch=resnet99: no complete run has it; expected one of",
        ),
        ("colour", "red", "--compare colour=red: expected a key that the runs have"),
    ],
)
def test_what_no_run_has_is_one_line(tmp_path, key, value, said):
    add(tmp_path, [90])
    with pytest.raises(UserError, match=said):
        table(tmp_path, key, value)


def test_a_run_that_fits_several_of_a_value_is_refused(tmp_path):
    """Each pair counted once for every rate of the baseline: p and interval were too small."""
    for optimizer in (trees.SGD, ADAMW):
        for rate in (0.02, 0.1):
            add(tmp_path, [90, 91, 93], optimizer=optimizer | {"lr": rate})
    said = r"^--compare optimizer=sgd: 2 runs with it fit .*seed=0, and differ in optimizer.lr; exp"
    with pytest.raises(UserError, match=said):
        table(tmp_path, "optimizer", "sgd")
    runs = select(read_runs(tmp_path)[0], ["optimizer.lr=0.1"])
    (row,) = axis_table(drop_copies(label_rows(runs))[0], "optimizer", "sgd").rows
    assert row[3:5] == ["adamw", "3"]


def test_a_name_is_its_group(tmp_path):
    add(tmp_path, [90, 91])
    add(tmp_path, [80, 83], optimizer=ADAMW)
    add(tmp_path, [70, 71], arch="resnet8")
    (row,) = table(tmp_path, "optimizer.name", "adamw").rows
    assert row[3:6] == ["sgd", "2", "+9.00"]
    (row,) = table(tmp_path, "arch.name", "resnet20").rows
    assert row[3:6] == ["resnet8", "2", "-20.00"]


def test_augmentations_are_compared_with_how_often_they_draw(tmp_path):
    add(tmp_path, [90, 91])
    transform = {"_target_": "torchvision.transforms.v2.RandAugment"}
    rand = {"name": "tensor", "augment": [transform], "draws": 16}
    add(tmp_path, [92, 94], pipeline=rand)
    add(tmp_path, [95, 96], pipeline={"name": "tensor", "mix": "mixup"}, trainer__epochs=7)
    (row,) = table(tmp_path, "pipeline.augment", "[]").rows
    assert row[3:6] == ["[RandAugment]", "2", "+2.50"]
    (row,) = table(tmp_path, "pipeline.augment", "[RandAugment]").rows
    assert row[3:6] == ["[]", "2", "-2.50"]
    said = r"--compare augment=rand: .* 'pipeline.augment=\[RandAugment\]', 'pipeline.mix=mixup'"
    with pytest.raises(UserError, match=said) as caught:
        table(tmp_path, "augment", "rand")
    assert str(caught.value).count("such as") == 1


def test_epochs_are_compared_although_milestones_move_along(tmp_path):
    add(tmp_path, [90, 91])
    add(tmp_path, [80, 82], trainer__epochs=1)
    (row,) = table(tmp_path, "trainer.epochs", "200").rows
    assert row[3:6] == ["1", "2", "-9.50"]


def test_cells_without_a_pair_are_named_with_what_differs(tmp_path):
    add(tmp_path, [90, 91])
    add(tmp_path, [80, 83], variant="bn_resnest")
    add(tmp_path, [70, 71], variant="resnest")
    trees.add_run(tmp_path, 60, variant="a_resnest", seed=9)
    trees.add_run(tmp_path, 60, variant="a_resnest", arch="resnet8")
    made = table(tmp_path, "variant", "standard")
    assert [row[3] for row in made.rows] == ["bn_resnest"]
    (note,) = [note for note in made.notes if note.startswith("Without a pair")]
    assert "ResNet-20 ResNEst (optimizer.lr=0.01 against optimizer.lr=0.1)" in note
    assert "ResNet-20 A-ResNEst (other seeds)" in note
    assert "ResNet-8 A-ResNEst (no run with it of this dataset and arch)" in note
    add(tmp_path, [60], variant="densenest", trainer__batch_size=7)
    (note,) = table(tmp_path, "trainer.batch_size", "128").notes
    alone = "ResNet-20 DenseNEst, trainer.batch_size=7 (no run with it of this dataset and arch and"
    assert note.startswith(f"Without a pair: {alone}")
    add(tmp_path, [60], arch="resnet8", dataset__size=16)
    (note,) = [n for n in table(tmp_path, "arch", "resnet20").notes if n.startswith("Without")]
    assert "dataset.size=16 against the default" in note
    made = table(tmp_path, "dataset", "cifar10")
    assert (made.rows, made.notes) == ([], ["No complete run has another value of dataset."])


def test_a_comparison_is_a_word_or_a_value():
    with pytest.raises(UserError, match=r"--compare=mean: expected standard, paper, or KEY=VALUE"):
        plan(None, None, None, ["mean"])
