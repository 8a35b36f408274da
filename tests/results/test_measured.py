"""Tables of other metrics and splits, and values that validation chooses."""

from dataclasses import replace

import pytest
import trees

from resnests import aggregate, load_runs
from resnests.commands.runs import print_best, print_run
from resnests.errors import UserError
from resnests.results.cells import drop_copies, label_rows
from resnests.results.frame import read_runs
from resnests.results.measured import choose, measured
from resnests.results.output import Results, _numbers, plan
from resnests.results.plots import drawings
from resnests.results.select import select
from resnests.results.stats import at_best_epoch
from resnests.results.tables import accuracy_tables, axis_table, comparison_table

HELD_OUT = {"dataset__val_fraction": 0.1, "trainer__epochs": 2}
F1 = {"f1": {"_target_": "mine.f1", "unit": "%"}, "ece": {"_target_": "mine.e", "better": "low"}}


def add(root, accuracy, val, seed=0, **config):
    """Write a run with an accuracy on either split, and metrics on record."""
    rows = trees.history_rows(accuracy, 2, val=True)
    rows[-1]["val_accuracy"] = val
    metrics = {"f1": {"test": accuracy - 10, "val": val - 10}, "ece": {"test": 0.125, "val": None}}
    values = HELD_OUT | {"seed": seed, "metrics": F1} | config
    trees.add_run(root, accuracy, history=rows, record={"metrics": metrics}, **values)


def cells(root, name="accuracy", split="test", select=None):
    runs, _ = read_runs(root)
    what = measured(runs, name, split, "last")
    if select:
        runs, what = choose(runs, select, "val_accuracy", what)
    (made,) = accuracy_tables(drop_copies(label_rows(runs))[0], what=what)
    return made, {row[0]: row[1].partition(" (")[0] for row in made.rows}


def test_load_runs_has_metrics_of_both_splits(tmp_path):
    add(tmp_path, 90, 80)
    trees.add_run(tmp_path, 70, arch="resnet8")
    runs = load_runs(tmp_path).set_index("arch")
    row = runs.loc["resnet20"]
    assert (row["test_f1"], row["val_f1"], row["test_ece"]) == (80, 70, 0.125)
    assert (row["val_accuracy"], row["val_loss"]) == (80, 1.0)
    assert runs.loc["resnet8", ["test_f1", "val_accuracy"]].isna().all()


@pytest.mark.slow
@pytest.mark.parametrize(
    ("name", "split", "shown", "words"),
    [
        ("f1", "test", "81.00% ± 1.41", "test f1"),
        ("f1", "val", "70.00% ± 0.00", "validation f1"),
        ("accuracy", "val", "80.00% ± 0.00", "validation accuracy"),
        ("ece", "test", "0.1250 ± 0.0000", "test ece"),
        ("loss", "val", "1.0000 ± 0.0000", "validation loss"),
    ],
)
def test_a_table_of_a_metric_has_its_unit(tmp_path, name, split, shown, words):
    for seed in (0, 1):
        add(tmp_path, 90 + 2 * seed, 80, seed)
    made, found = cells(tmp_path, name, split)
    assert found == {"ResNet-20": shown}
    assert words in made.caption


def test_differences_and_figures_are_of_the_metric(tmp_path):
    for seed, accuracy in enumerate((90, 91, 93)):
        add(tmp_path, accuracy, 80, seed)
        add(tmp_path, accuracy - 5 - seed, 80, seed, variant="bn_resnest")
    runs = drop_copies(label_rows(read_runs(tmp_path)[0]))[0]
    what = measured(runs, "f1", "test", "last")
    (row,) = comparison_table(runs, what).rows
    assert row[3:5] == ["3", "-6.00"]
    labels = {d.figure.axes[0].get_xlabel() for d in drawings(runs, [], what)}
    assert "Test f1 (%)" in labels


def test_validation_chooses_a_value_of_each_cell_and_its_test_is_reported(tmp_path):
    for seed in (0, 1):
        for arch, rates in {"resnet20": (0.1, 0.3), "resnet8": (0.3, 0.1)}.items():
            best, worse = rates
            add(tmp_path, 70, 90, seed, arch=arch, optimizer=trees.SGD | {"lr": best})
            add(tmp_path, 95, 60, seed, arch=arch, optimizer=trees.SGD | {"lr": worse})
    made, found = cells(tmp_path, select="optimizer.lr")
    assert found == {"ResNet-8": "70.00% ± 0.00", "ResNet-20": "70.00% ± 0.00"}
    (note,) = [line for line in made.notes if "chosen by" in line]
    assert note.startswith("optimizer.lr chosen by the mean validation accuracy over seeds: ")
    assert "resnet20 standard: 0.1 (of 2)" in note
    assert "resnet8 standard: 0.3 (of 2)" in note
    add(tmp_path, 70, 90, arch="resnet8", trainer__batch_size=64)
    (note,) = [
        line for line in cells(tmp_path, select="optimizer.lr")[0].notes if "chosen by" in line
    ]
    assert "resnet8 standard, trainer.batch_size=64: 0.1 (of 1)" in note


def test_a_metric_and_a_choice_are_of_the_best_epoch_where_that_is_asked(
    tmp_path, monkeypatch, capsys
):
    """At the last epoch 0.1 is better on held-out images, at the best one 0.3."""
    for rate, val, f1 in ((0.1, (50, 70), (40, 60)), (0.3, (90, 60), (80, 50))):
        rows = trees.history_rows(88, 2, val=True)
        for row, accuracy, value in zip(rows, val, f1, strict=True):
            row |= {"val_accuracy": accuracy, "test_f1": value - 5.0, "val_f1": value}
        metrics = {"f1": {"test": f1[1] - 5.0, "val": f1[1]}}
        options = HELD_OUT | {"metrics": F1, "optimizer": trees.SGD | {"lr": rate}}
        trees.add_run(tmp_path, history=rows, record={"metrics": metrics}, **options)
    words = ["--metric", "f1", "--epoch", "best", "--select", "optimizer.lr", "--by", "val_f1"]
    monkeypatch.setattr("sys.argv", ["aggregate.py", str(tmp_path), *words])
    aggregate.main()
    shown = capsys.readouterr().out
    assert "75.00% (0.27M)" in shown
    assert "mean validation f1 of the best epoch over seeds: resnet20 standard: 0.3 (of 2)" in shown
    assert cells(tmp_path, "f1", select="optimizer.lr")[1] == {"ResNet-20": "55.00%"}
    best = at_best_epoch(read_runs(tmp_path)[0])
    assert sorted(best["test_f1"]) == [55, 75]


def choices(root):
    """Return the notes on what was chosen."""
    made, found = cells(root, select="optimizer.lr")
    return [line for line in made.notes if "chosen by" in line or "Left out" in line], found


def test_all_values_that_were_begun_are_counted_with_unequal_seeds(tmp_path):
    """A rate that diverged was a choice, too; one surviving seed is no mean of three."""
    for seed in range(3):
        add(tmp_path, 90, 80, seed, optimizer=trees.SGD | {"lr": 0.1})
        for rate in (0.3, 1.0):
            options = HELD_OUT | {"optimizer": trees.SGD | {"lr": rate}, "seed": seed}
            trees.add_run(tmp_path, status="diverged", **options)
    add(tmp_path, 92, 85, optimizer=trees.SGD | {"lr": 0.3})
    (note,), found = choices(tmp_path)
    assert "0.3 (of 3; complete seeds 0.1: 3, 0.3: 1, 1.0: 0)" in note
    assert found == {"ResNet-20": "92.00%"}


def test_a_cell_without_a_complete_run_is_named(tmp_path):
    add(tmp_path, 90, 80)
    for rate in (0.1, 0.3):
        options = HELD_OUT | {"optimizer": trees.SGD | {"lr": rate}, "arch": "resnet8"}
        trees.add_run(tmp_path, status="diverged", **options)
    (note, lost), found = choices(tmp_path)
    assert note.endswith("resnet20 standard: 0.1 (of 1).")
    assert lost == "Left out, as no run with val_accuracy is complete: resnet8 standard."
    assert list(found) == ["ResNet-20"]


def test_cells_that_choose_are_told_apart_by_networks_and_data_sets(tmp_path):
    for rate, worse in ((0.1, 0), (0.3, 5)):
        options = {"optimizer": trees.SGD | {"lr": rate}}
        for blocks in ([1, 1, 1], [2, 2, 2]):
            add(tmp_path, 90, 80 - worse, arch__blocks=blocks, **options)
        add(tmp_path, 90, 80 + worse, dataset="svhn", **options)
    runs, _ = read_runs(tmp_path)
    what = measured(runs, "accuracy", "test", "last")
    (note,) = choose(runs, "optimizer.lr", "val_accuracy", what)[1].notes
    assert set(note.partition("over seeds: ")[2].removesuffix(".").split("; ")) == {
        "cifar10 resnet20 standard, arch.blocks=[1,1,1]: 0.1 (of 2)",
        "cifar10 resnet20 standard, arch.blocks=[2,2,2]: 0.1 (of 2)",
        "svhn resnet20 standard: 0.3 (of 2)",
    }


def test_an_axis_is_typed_as_for_compare_and_as_a_word(tmp_path):
    for name, val in (("tensor", 70), ("torchvision", 80)):
        add(tmp_path, 90, val, pipeline={"name": name})
    runs, _ = read_runs(tmp_path)
    what = measured(runs, "accuracy", "test", "last")
    for key in ("pipeline", "pipeline.name"):
        (note,) = choose(runs, key, "val_accuracy", what)[1].notes
        assert note.startswith("pipeline.name chosen by")
        assert note.endswith(": torchvision (of 2).")
    said = "--select optimizer.rl: expected a key that the runs have; did you mean optimizer.lr?"
    with pytest.raises(UserError) as refused:
        choose(runs, "optimizer.rl", "val_accuracy", what)
    assert str(refused.value) == said


def test_a_value_that_is_a_mapping_is_a_choice(tmp_path):
    for mix, val in (("mixup", 80), (None, 70), ({"_target_": "mine.Mix", "alpha": 1}, 90)):
        add(tmp_path, val - 5, val, pipeline__mix=mix)
    made, found = cells(tmp_path, select="pipeline.mix")
    assert found == {"ResNet-20": "85.00%"}
    assert "standard: mine.Mix(alpha=1) (of 3)." in str(made.notes)
    runs = read_runs(tmp_path)[0]
    for word, accuracy in (("null", 65), ("mixup", 75), ("mine.Mix*", 85)):
        assert select(runs, [f"pipeline.mix={word}"])["test_accuracy"].tolist() == [accuracy]


def test_runs_of_before_there_was_a_key_have_its_default(tmp_path):
    for seed in (0, 1):
        add(tmp_path, 80 + seed, 90, seed)
        add(tmp_path, 75, 85, seed, trainer__ema=0.9)
    for file in tmp_path.glob("**/seed=0/record.json"):
        old = file.read_text().replace('"ema": null,', "")
        file.write_text(old)
    assert read_runs(tmp_path)[0]["trainer.ema"].isna().sum() == 1
    made, found = cells(tmp_path, select="trainer.ema")
    assert found == {"ResNet-20": "80.50% ± 0.71"}
    assert "standard: null (of 2)." in str(made.notes)
    runs = drop_copies(label_rows(read_runs(tmp_path)[0]))[0]
    (row,) = axis_table(runs, "trainer.ema", "null").rows
    assert row[3:6] == ["0.9", "2", "-5.50"]


def test_an_axis_that_brings_other_keys_along_is_no_choice(tmp_path):
    for epochs in (2, 4):
        options = {"trainer__epochs": epochs, "history": trees.history_rows(90, epochs, val=True)}
        trees.add_run(tmp_path, 90, **HELD_OUT | options)
    said = r"--select trainer.epochs: no choice, as runs with other values of it differ in optim"
    with pytest.raises(UserError, match=said):
        cells(tmp_path, select="trainer.epochs")


def add_f1(root, seed, digest, **keys):
    """Write a run whose f1 is defined by keys, as `digest` says."""
    f1 = {"test": 80.0 + seed, "val": 70.0, "definition": digest}
    metrics = {"f1": {"_target_": "mine.f1", "unit": "%"} | keys}
    trees.add_run(root, seed=seed, record={"metrics": {"f1": f1}}, metrics=metrics, **HELD_OUT)


def test_a_metric_of_several_definitions_is_marked(tmp_path):
    for seed, (digest, average) in enumerate((("aa", "macro"), ("aa", "macro"), ("bb", "micro"))):
        add_f1(tmp_path, seed, digest, average=average)
    made, found = cells(tmp_path, "f1")
    assert found == {"ResNet-20": "81.00% ± 1.00"}
    assert made.rows[0][1].endswith("‡")
    text = "\n".join(made.notes)
    assert "definitions of f1: aa, average=macro (seeds 0, 1); bb, average=micro (seed 2)." in text
    assert "f1 was measured in several ways" in text
    assert "‡" not in str(cells(tmp_path)[0].rows)
    assert load_runs(tmp_path)["definition.f1"].tolist() == ["aa", "aa", "bb"]


def test_an_edited_metric_is_another_and_what_was_measured_alike_is_one(tmp_path):
    for seed, digest in enumerate(("aa", "cc")):
        add_f1(tmp_path / "edited", seed, digest)
        add_f1(tmp_path / "same", seed, "aa")
    note = "‡ ResNet-20 Standard mixes definitions of f1: aa (seed 0); cc (seed 1)."
    assert note in cells(tmp_path / "edited", "f1")[0].notes
    made, _ = cells(tmp_path / "same", "f1")
    assert "‡" not in str(made.rows)
    assert "ways" not in str(made.notes)


@pytest.mark.parametrize(("key", "other"), [("unit", ""), ("better", "low")])
def test_a_metric_of_two_units_or_directions_is_refused(tmp_path, key, other):
    add_f1(tmp_path, 0, "aa")
    add_f1(tmp_path, 1, "bb", **{key: other})
    with pytest.raises(UserError, match=rf"--metric f1: runs have it with metrics.f1.{key} .* and"):
        cells(tmp_path, "f1")
    cells(tmp_path)  # it is in no other table's way


def test_a_metric_of_no_known_direction_chooses_nothing(tmp_path):
    """Runs that an earlier version measured by another one have its numbers alone."""
    for rate, ece in ((0.1, 0.2), (0.3, 0.1)):
        record = {"metrics": {"ece": {"test": ece, "val": ece, "definition": "aa"}}}
        other = {"brier": {"_target_": "mine.brier", "better": "low"}}
        options = HELD_OUT | {"metrics": other, "optimizer": trees.SGD | {"lr": rate}}
        trees.add_run(tmp_path, record=record, **options)
    runs, _ = read_runs(tmp_path)
    what = measured(runs, "ece", "test", "last")
    said = r"^--select optimizer.lr --by val_ece: no run's configuration says whether .* ece is"
    with pytest.raises(UserError, match=said):
        choose(runs, "optimizer.lr", "val_ece", what)
    with pytest.raises(UserError, match=r"^--best 1 --metric ece: no run's configuration says"):
        print_best(runs, 1, "validation", metric="ece")
    assert cells(tmp_path, "ece")[1]  # tables need no direction


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (
            ["--metric", "f2"],
            "--metric f2 --split test: no complete run has it; expected acc",
        ),
        (["--split", "val", "--metric", "ece"], "--metric ece --split val: no complete run has it"),
        (
            ["--select", "optimizer.lr", "--by", "test_accuracy"],
            "--by test_accuracy: expected va",
        ),
        (["--select", "seed"], "--select seed: expected a setting of which a cell has several"),
        (["--select", "arch"], "--select arch: expected a setting of which a cell has several"),
        (["--select", "test_f1"], "--select test_f1: expected a setting of which a cell has sev"),
        (["--compare", "seed=0"], "--compare seed=0: expected what runs are asked for, such as"),
        (["--compare", "status=complete"], "--compare status=complete: expected what runs are"),
        (["--select", "optimizer.rate"], "--select optimizer.rate: expected a key that the runs"),
        (
            ["--select", "optimizer.lr", "--by", "val_f9", "--epoch", "best"],
            "--select optimizer.lr: no complete run has val_f9; expected acc",
        ),
        ([""], "'': expected a directory of runs"),
        (["--together"], "--together goes with --output DIR"),
        (["--by", "val_f1"], "--by goes with --best or --select"),
        (
            ["--metric", "f1", "--compare", "paper"],
            "--compare paper: the paper has test accura",
        ),
        (
            ["--metric", "f1", "--epoch", "best"],
            "history.csv has no test_f1 of epoch 2, as that was",
        ),
    ],
)
def test_what_does_not_fit_is_one_line(tmp_path, monkeypatch, capsys, words, said):
    add(tmp_path, 90, 80)
    monkeypatch.setattr("sys.argv", ["aggregate.py", str(tmp_path), *words])
    with pytest.raises(SystemExit) as ended:
        aggregate.main()
    assert ended.value.code == 2
    (line,) = capsys.readouterr().err.splitlines()
    assert said in line


def test_without_validation_nothing_is_chosen(tmp_path):
    trees.add_run(tmp_path, 90)
    runs, _ = read_runs(tmp_path)
    with pytest.raises(
        UserError, match=r"^--select optimizer.lr: no complete run has val_acc.*; train"
    ):
        choose(runs, "optimizer.lr", "val_accuracy", measured(runs, "accuracy", "test", "last"))


def test_the_file_beside_the_paper_is_of_test_accuracies_alone(tmp_path):
    add(tmp_path, 90, 80)
    runs = drop_copies(label_rows(read_runs(tmp_path)[0]))[0]
    for name, split, there in (
        ("accuracy", "test", True), ("f1", "test", False), ("accuracy", "val", False)
    ):  # fmt: skip
        what = measured(runs, name, split, "last")
        files = _numbers(Results(runs, [], replace(plan(None, None, None, None), what=what)))
        assert ("paper.csv" in files) == there
        assert "cells.csv" in files


def test_frozen_parameters_are_counted_apart(tmp_path, capsys):
    add(tmp_path, 90, 80)
    values = HELD_OUT | {"arch": "resnet8", "record": {"frozen_parameters": 60_000}}
    trees.add_run(tmp_path, 70, parameters=14_000, **values)
    made, _ = cells(tmp_path)
    assert [row[1] for row in made.rows] == ["90.00% (0.27M)", "70.00% (0.014M + 0.060M frozen)"]
    runs = drop_copies(label_rows(read_runs(tmp_path)[0]))[0]
    labels = {d.figure.axes[0].get_xlabel() for d in drawings(runs, [])}
    assert "Trained parameters (millions)" in labels
    shown = load_runs(tmp_path, query="arch=resnet8")
    assert shown["frozen_parameters"].tolist() == [60_000]
    print_run(shown)
    assert "frozen parameters" in capsys.readouterr().out


def test_networks_of_ones_own_have_one_column(tmp_path):
    add(tmp_path, 90, 80)
    made, _ = cells(tmp_path)
    assert made.header == ["Architecture", "Standard"]


@pytest.mark.slow
def test_curves_of_chosen_cells_stand_in_one_figure(tmp_path):
    for seed in (0, 1):
        for arch in ("resnet20", "resnet8"):
            for variant in ("standard", "bn_resnest"):
                add(tmp_path, 90 - seed, 80, seed, arch=arch, variant=variant)
    runs = drop_copies(label_rows(read_runs(tmp_path)[0]))[0]
    what, problems = measured(runs, "accuracy", "val", "last"), []
    made = {d.key: d for d in drawings(runs, problems, what, together=True)}
    one = made["curves_cifar10_together"]
    assert set(one.data["variant"]) == {
        "ResNet-8 Standard", "ResNet-20 Standard", "ResNet-8 BN-ResNEst", "ResNet-20 BN-ResNEst",
    }  # fmt: skip
    assert one.figure.axes[1].get_ylabel() == "Validation accuracy (%)"
    assert "val_accuracy_mean" in one.data
    assert problems == []
    for count in range(10):
        add(tmp_path, 90, 80, arch="resnet8", trainer__epochs=2, trainer__batch_size=count + 2)
    runs = drop_copies(label_rows(read_runs(tmp_path)[0]))[0]
    with pytest.raises(UserError, match=r"--together=1\d cells of cifar10: expected words that"):
        list(drawings(runs, [], together=True))


def test_runs_that_ended_by_patience_share_the_epochs_of_a_curve(tmp_path):
    for seed, epochs in enumerate((3, 5)):
        rows = trees.history_rows(90, epochs, val=True)
        record = {"epochs": epochs}
        options = HELD_OUT | {"trainer__epochs": 9, "trainer__patience": 2}
        trees.add_run(tmp_path, 90, history=rows, seed=seed, record=record, **options)
    runs, problems = drop_copies(label_rows(read_runs(tmp_path)[0]))[0], []
    (curves,) = (d for d in drawings(runs, problems) if d.key.startswith("curves"))
    assert curves.data["epoch"].tolist() == [1, 2, 3]
    assert problems == []
