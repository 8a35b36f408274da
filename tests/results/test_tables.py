"""What a reader finds in the tables: cells, rows, marks and notes."""

import ast
import dataclasses
import json
import math
import os
import socket
from pathlib import Path

import psutil
import pytest
import trees
from helpers import make_config

from resnests import load_runs
from resnests.config.recipe import IMAGES, recipe_values
from resnests.errors import UserError
from resnests.paper import PUBLISHED, deviations
from resnests.results import render
from resnests.results.cells import drop_copies, label_rows
from resnests.results.frame import COLUMNS, read_runs
from resnests.results.measured import Measured
from resnests.results.plots import drawings
from resnests.results.stats import against_paper, millions
from resnests.results.tables import accuracy_tables, comparison_table, paper_table
from resnests.runs.record import BrokenRecord

ROOT = Path(__file__).resolve().parents[2]


def prepared(root):
    return drop_copies(label_rows(read_runs(root)[0]))[0]


def table(root, statistic="mean"):
    (only,) = accuracy_tables(prepared(root), statistic)
    return only


def body(made):
    """Return the table as {row name: {column: cell}}."""
    return {row[0]: dict(zip(made.header[1:], row[1:], strict=True)) for row in made.rows}


def add_seeds(root, accuracies, **run):
    for seed, accuracy in enumerate(accuracies):
        trees.add_run(root, accuracy, seed=seed, **run)


@pytest.mark.parametrize(
    ("count", "shown"),
    [
        (11_091_594, "11M"),
        (8_977_226, "9.0M"),
        (8_744_164, "8.7M"),
        (272_282, "0.27M"),
        (78_042, "0.078M"),
        (0, "0M"),
    ],
)
def test_parameters_have_two_significant_digits_as_in_the_paper(count, shown):
    assert millions(count) == shown


def test_a_cell_shows_mean_sample_deviation_and_parameters(tmp_path):
    add_seeds(tmp_path, [90, 91, 92])
    made = table(tmp_path)
    assert body(made)["ResNet-20"]["Standard"] == "91.00% ± 1.00 (0.27M)"
    assert "mean ± sample standard deviation of 3 seeds" in made.caption


@pytest.mark.parametrize(
    ("statistic", "cell"),
    [("median", "91.00% [90.00 to 94.00] (0.27M)"), ("ci", "91.67% [86.50 to 96.84] (0.27M)")],
)
def test_the_statistic_decides_what_cells_show(tmp_path, statistic, cell):
    add_seeds(tmp_path, [90, 91, 94])
    assert body(table(tmp_path, statistic))["ResNet-20"]["Standard"] == cell


def test_one_seed_has_no_deviation_and_unequal_seeds_are_counted_in_the_cells(tmp_path):
    add_seeds(tmp_path, [90, 91])
    trees.add_run(tmp_path, 89.5, variant="resnest")
    row = body(table(tmp_path))["ResNet-20"]
    assert row["ResNEst"] == "89.50% (0.27M) n=1 [1 missing]"
    assert row["Standard"] == "90.50% ± 0.71 (0.27M) n=2"


def test_rows_and_columns_stand_in_the_papers_order_and_others_follow(tmp_path):
    for arch in ("resnet8", "resnet20", "wrn40_4", "wrn16_8", "resnet110"):
        trees.add_run(tmp_path, arch=arch)
    trees.add_run(tmp_path, variant="my_own")
    assert table(tmp_path).header == ["Architecture", "Standard", "my_own"]
    trees.add_run(tmp_path, variant="bn_resnest")
    made = table(tmp_path)
    assert made.header == [
        "Architecture",
        "Standard",
        "ResNEst",
        "BN-ResNEst",
        "A-ResNEst",
        "my_own",
    ]
    assert list(body(made)) == ["WRN-16-8", "WRN-40-4", "ResNet-110", "ResNet-20", "ResNet-8"]


def test_each_data_set_has_its_own_table(tmp_path):
    for dataset in ("digits", "cifar100", "cifar10"):
        trees.add_run(tmp_path, dataset=dataset)
    titles = [made.title for made in accuracy_tables(prepared(tmp_path))]
    assert titles == ["CIFAR-10", "CIFAR-100", "Digits"]


def test_the_papers_rate_for_resnest_does_not_split_a_row_and_is_noted(tmp_path):
    for variant in trees.VARIANTS:
        trees.add_run(tmp_path, 90, variant=variant)
    made = table(tmp_path)
    assert list(body(made)) == ["ResNet-20"]
    assert "—" not in body(made)["ResNet-20"].values()
    assert any("optimizer.lr=0.1 (0.01 for ResNEst)" in note for note in made.notes)


def test_a_second_rate_of_a_variant_is_a_row_of_its_own(tmp_path):
    for variant in ("standard", "resnest"):
        trees.add_run(tmp_path, 90, variant=variant)
    trees.add_run(tmp_path, 80, optimizer__lr=0.05)
    trees.add_run(tmp_path, 70, variant="resnest", optimizer__lr=0.1)
    rows = body(table(tmp_path))
    assert list(rows) == [
        "ResNet-20",
        "ResNet-20, optimizer.lr=0.05",
        "ResNet-20, optimizer.lr=0.1",
    ]
    assert rows["ResNet-20"]["ResNEst"] == rows["ResNet-20"]["Standard"] == "90.00% (0.27M)"
    assert rows["ResNet-20, optimizer.lr=0.05"]["Standard"] == "80.00% (0.27M)"
    assert rows["ResNet-20, optimizer.lr=0.1"]["ResNEst"] == "70.00% (0.27M)"


@pytest.mark.slow
@pytest.mark.parametrize(
    ("override", "names"),
    [
        ({"trainer__epochs": 10}, ["trainer.epochs=10", "trainer.epochs=200"]),
        ({"trainer__precision": "bf16"}, ["trainer.precision=bf16", "trainer.precision=fp32"]),
        (
            {"pipeline": {"name": "torchvision"}},
            ["pipeline.name=tensor", "pipeline.name=torchvision"],
        ),
        ({"dataset__train_limit": 100}, ["dataset.train_limit=100", "dataset.train_limit=null"]),
        ({"arch__blocks": [4, 4, 4]}, ["arch.blocks=[3,3,3]", "arch.blocks=[4,4,4]"]),
        (
            {
                "optimizer": {
                    "name": "adamw",
                    "lr": 1e-3,
                    "betas": [0.9, 0.99],
                    "weight_decay": 0.05,
                }
            },
            ["optimizer.name=adamw", "optimizer.name=sgd"],
        ),
    ],
)
def test_a_second_recipe_is_its_own_row_named_by_what_differs(tmp_path, override, names):
    trees.add_run(tmp_path, 90)
    trees.add_run(tmp_path, 80, **override)
    rows = body(table(tmp_path))
    assert list(rows) == [f"ResNet-20, {name}" for name in names]
    assert {row["Standard"] for row in rows.values()} == {"90.00% (0.27M)", "80.00% (0.27M)"}


def test_seeds_without_a_result_are_marked_in_the_cell_and_listed_below(tmp_path):
    add_seeds(tmp_path, [90, 90, 90, 90, 90])
    trees.add_run(tmp_path, 89, seed=0, variant="resnest")
    trees.add_run(
        tmp_path, seed=1, variant="resnest", status="diverged", record={"error": "loss is nan"}
    )
    trees.add_run(
        tmp_path,
        seed=2,
        variant="resnest",
        status="failed",
        record={"error": "trace\nValueError: no"},
    )
    trees.add_run(tmp_path, seed=3, variant="resnest", status="interrupted")
    made = table(tmp_path)
    marks = "[1 diverged, 1 failed, 1 interrupted, 1 missing]"
    assert body(made)["ResNet-20"]["ResNEst"] == f"89.00% (0.27M) n=1 {marks}"
    notes = "\n".join(made.notes)
    assert "Missing: seed 4 of ResNet-20 ResNEst." in notes
    assert "Failed: seed 2 of ResNet-20 ResNEst (ValueError: no)." in notes
    assert "Diverged: seed 1 of ResNet-20 ResNEst (loss is nan)." in notes
    assert "never averaged" in notes


def test_a_diverged_run_with_numbers_on_record_is_not_averaged(tmp_path):
    add_seeds(tmp_path, [90, 92])
    trees.add_run(tmp_path, seed=2, status="diverged", record={"test_accuracy": 10.0})
    assert body(table(tmp_path))["ResNet-20"]["Standard"] == "91.00% ± 1.41 (0.27M) [1 diverged]"


def test_running_is_shown_only_while_its_process_lives(tmp_path):
    me = psutil.Process()
    alive = {"host": socket.gethostname(), "pid": os.getpid(), "process_started": me.create_time()}
    trees.add_run(tmp_path, seed=0, status="running", provenance=alive)
    trees.add_run(tmp_path, seed=1, status="running", provenance=alive | {"process_started": 1.0})
    made = table(tmp_path)
    assert body(made)["ResNet-20"]["Standard"] == "— [1 running, 1 killed]"
    assert "no run is complete" in made.caption


def test_given_weights_are_marked_and_never_averaged_with_trained_ones(tmp_path):
    add_seeds(tmp_path, [90, 91])
    given = {"task": "evaluate", "weights": "/w/last_model.pt"}
    for seed in (0, 1):
        record = given | {"weights_sha256": f"{seed}"}
        trees.add_run(tmp_path / "given", 80 + seed, seed=seed, trainer__epochs=7, record=record)
    made = table(tmp_path)
    rows = body(made)
    assert rows["ResNet-20"]["Standard"] == "90.50% ± 0.71 (0.27M)"
    assert rows["ResNet-20, given weights"]["Standard"] == "80.50% ± 0.71 (0.27M)†"
    assert any(note.startswith("† evaluated from given weights") for note in made.notes)


def test_two_folders_of_given_weights_are_two_rows(tmp_path):
    for folder, accuracy in (("/official", 92.0), ("/mine", 90.0)):
        record = {"weights": f"{folder}/CIFAR10_seed=0/last_model.pt", "weights_sha256": folder}
        trees.add_run(tmp_path, accuracy, task="evaluate", weights=folder, record=record)
    rows = body(table(tmp_path))
    assert rows["ResNet-20, given weights, weights=/official"]["Standard"] == "92.00% (0.27M)†"
    assert rows["ResNet-20, given weights, weights=/mine"]["Standard"] == "90.00% (0.27M)†"


def test_two_files_of_given_weights_are_two_rows_not_copies(tmp_path):
    for name, accuracy in (("a", 12.0), ("b", 10.0)):
        weights = f"/w/{name}.pt"
        record = {"weights": weights, "weights_sha256": name}
        trees.add_run(tmp_path, accuracy, task="evaluate", weights=weights, record=record)
    runs, lines = drop_copies(label_rows(read_runs(tmp_path)[0]))
    assert lines == []
    rows = body(accuracy_tables(runs)[0])
    assert rows["ResNet-20, given weights, weights=/w/a.pt"]["Standard"] == "12.00% (0.27M)†"
    assert rows["ResNet-20, given weights, weights=/w/b.pt"]["Standard"] == "10.00% (0.27M)†"


def test_a_file_of_weights_that_was_replaced_is_a_row_for_each_content(tmp_path):
    for digest, accuracy in (("aaaa0000ff", 12.0), ("bbbb1111ff", 10.0)):
        record = {"recipe": digest, "weights": "m.pt", "weights_sha256": digest}
        given = {"task": "evaluate", "weights": "m.pt", "record": record}
        trees.add_run(tmp_path / digest, accuracy, **given)
    trees.add_run(tmp_path / "c", 11.0, task="evaluate", weights="c.pt", record={"weights": "c.pt"})
    runs, lines = drop_copies(label_rows(read_runs(tmp_path)[0]))
    assert lines == []
    rows = body(accuracy_tables(runs)[0])
    assert {name: row["Standard"] for name, row in rows.items()} == {
        "ResNet-20, given weights, weights=c.pt": "11.00% (0.27M)†",
        "ResNet-20, given weights, weights=m.pt (aaaa0000)": "12.00% (0.27M)†",
        "ResNet-20, given weights, weights=m.pt (bbbb1111)": "10.00% (0.27M)†",
    }


def test_given_weights_under_a_head_whose_source_was_edited_are_two_rows(tmp_path):
    same = {"task": "evaluate", "weights": "m.pt", "weights_sha256": "ab"}
    for code, accuracy in (("aaaa0000", 80.0), ("bbbb1111", 90.0)):
        run = trees.add_run(tmp_path / code, accuracy, record=same)
        record = run.read_record()
        values = record.recipe_values | {"variant.code": code}
        run.write_record(dataclasses.replace(record, recipe=code, recipe_values=values))
    runs, lines = drop_copies(label_rows(read_runs(tmp_path)[0]))
    assert (len(runs), lines) == (2, [])


def test_runs_of_other_images_never_share_a_cell_and_those_of_unknown_ones_say_so(tmp_path):
    trees.add_run(tmp_path, 90)
    for digest, accuracy in (("aaaa1111" * 8, 80.0), ("bbbb2222" * 8, 70.0)):
        run = trees.add_run(tmp_path / digest, accuracy)
        record = run.read_record()
        values = record.recipe_values | {IMAGES: digest}
        config = record.config | {"digests": {IMAGES: digest}}
        changes = {"recipe": digest[:8], "recipe_values": values, "config": config}
        run.write_record(dataclasses.replace(record, **changes))
    made = table(tmp_path)
    assert {name: row["Standard"] for name, row in body(made).items()} == {
        "ResNet-20, images aaaa1111": "80.00% (0.27M)",
        "ResNet-20, images bbbb2222": "70.00% (0.27M)",
        "ResNet-20, images not on record": "90.00% (0.27M)",
    }
    assert any(note.startswith("Images not on record: runs of an") for note in made.notes)


def test_a_seed_or_a_file_of_weights_counts_once(tmp_path):
    trees.add_run(tmp_path / "a", 90, provenance={"started": 1735689600.0})
    trees.add_run(tmp_path / "b", 95, provenance={"started": 1735776000.0})
    same = {"task": "evaluate", "weights": "/w/x.pt", "weights_sha256": "ab"}
    for seed in (0, 1):
        trees.add_run(tmp_path / "c", 80, seed=seed, record=same)
    runs, lines = drop_copies(label_rows(read_runs(tmp_path)[0]))
    assert sorted(runs["test_accuracy"]) == [80, 95]
    assert len(lines) == 2
    assert all("left out" in line for line in lines)


def test_mixed_code_is_flagged_with_the_versions_and_seeds(tmp_path):
    add_seeds(tmp_path, [90, 91])
    trees.add_run(tmp_path, 92, seed=2, provenance={"git_commit": "f" * 40, "git_dirty": True})
    made = table(tmp_path)
    assert body(made)["ResNet-20"]["Standard"] == "91.00% ± 1.00 (0.27M)‡"
    (note,) = [note for note in made.notes if note.startswith("‡")]
    assert "git 0123456, torch 2.5.0 (seeds 0, 1)" in note
    assert "git fffffff with uncommitted changes, torch 2.5.0 (seed 2)" in note


def test_mixed_types_of_devices_are_flagged_and_numbers_of_one_type_are_not(tmp_path):
    for seed, device in enumerate(("cuda:0", "cuda:1", "cpu")):
        trees.add_run(tmp_path, 90, seed=seed, provenance={"device": device})
        trees.add_run(
            tmp_path, 90, seed=seed, variant="resnest", provenance={"device": f"cuda:{seed}"}
        )
    made = table(tmp_path)
    assert body(made)["ResNet-20"]["Standard"].endswith("‡")
    assert not body(made)["ResNet-20"]["ResNEst"].endswith("‡")
    notes = [note for note in made.notes if note.startswith("‡")]
    assert notes == ["‡ ResNet-20 Standard mixes devices: cuda (seeds 0, 1); cpu (seed 2)."]


def test_how_often_was_evaluated_matters_to_the_best_epoch_only(tmp_path):
    for seed, every in enumerate((1, 1, 5)):
        trees.add_run(tmp_path, 90, seed=seed, trainer__eval_every=every)
    assert "mixes" not in "".join(table(tmp_path).notes)
    (made,) = accuracy_tables(prepared(tmp_path), what=Measured(epoch="best"))
    (note,) = [note for note in made.notes if note.startswith("‡")]
    assert "every epoch (seeds 0, 1); every 5 epochs (seed 2)" in note
    assert body(made)["ResNet-20"]["Standard"].endswith("‡")


def test_runs_that_patience_ended_by_different_rules_are_no_cell(tmp_path):
    patient = {"trainer__patience": 3, "dataset__val_fraction": 0.1}
    for seed, every in enumerate((1, 5)):
        trees.add_run(tmp_path, 90, seed=seed, trainer__eval_every=every, **patient)
    rows = ["ResNet-20, trainer.eval_every=1", "ResNet-20, trainer.eval_every=5"]
    assert list(body(table(tmp_path))) == rows


def test_intervals_of_accuracies_end_at_100_and_say_what_two_seeds_carry(tmp_path):
    add_seeds(tmp_path, [98.59, 99.15])
    add_seeds(tmp_path, [100.0, 100.0], variant="resnest")
    made = table(tmp_path, "ci")
    row = body(made)["ResNet-20"]
    assert row["Standard"] == "98.87% [95.31 to 100.00] (0.27M)"
    assert row["ResNEst"] == "100.00% [—] (0.27M)"
    assert "cut at 0 and 100%" in made.caption
    assert any("reaches 12.7 standard errors" in note for note in made.notes)
    assert any("all seeds are equal" in note for note in made.notes)


def test_the_published_tables_are_complete_and_the_comparison_uses_them(tmp_path):
    assert len(PUBLISHED) == 32
    assert PUBLISHED["cifar100", "resnet110", "a_resnest"] == (72.53, "1.9M")
    add_seeds(tmp_path, [92.5, 92.6, 92.7])
    add_seeds(tmp_path, [80.0, 80.1], variant="a_resnest")
    add_seeds(tmp_path, [99.0], dataset="digits")
    made = paper_table(prepared(tmp_path))
    ours = {row[2]: dict(zip(made.header, row, strict=True)) for row in made.rows}
    assert set(ours) == {"Standard", "A-ResNEst"}
    assert (ours["Standard"]["Paper"], ours["Standard"]["Difference"]) == ("92.60", "+0.00")
    assert ours["Standard"]["Paper in prediction"] == "inside"
    assert ours["Standard"]["Parameters"] == "0.27M = 0.27M"
    assert ours["A-ResNEst"]["Paper in prediction"] == "outside"
    assert ours["A-ResNEst"]["Parameters"] == "0.27M ≠ 0.24M"
    assert made.notes[0] == "The paper has no table for Digits."
    assert any(note.startswith("An interval from 2 seeds says little") for note in made.notes)


@pytest.mark.slow
def test_the_published_runs_have_the_papers_recipe():
    """Compose them from conf/, and with the official pipeline and arithmetic too."""
    for dataset, arch, variant in PUBLISHED:
        for more in ([], ["pipeline=torchvision", "trainer.precision=official"]):
            config = make_config(f"dataset={dataset}", f"arch={arch}", f"variant={variant}", *more)
            assert deviations(recipe_values(config), dataset, arch, variant) == []


def test_another_recipe_is_no_reproduction_and_says_in_what(tmp_path):
    """2 epochs on 256 images were once "outside"."""
    changed = {
        "trainer__epochs": 2,
        "dataset__train_limit": 256,
        "optimizer": trees.SGD | {"lr": 1},
    }
    del changed["optimizer"]["milestones"]
    add_seeds(tmp_path, [92.5, 92.6, 92.7], variant="resnest")
    add_seeds(tmp_path, [35.0, 36.0], **changed)
    add_seeds(tmp_path, [40.0, 41.0], dataset="cifar100", record={"weights": "/w/x.pt"})
    made = paper_table(runs := prepared(tmp_path))
    ours = [dict(zip(made.header, row, strict=True)) for row in made.rows]
    verdicts = {
        (row["Data set"], row["Variant"]): (row["Difference"], row["Paper in prediction"])
        for row in ours
    }
    assert verdicts == {
        ("CIFAR-10", "ResNEst"): ("+1.58", "outside"),
        ("CIFAR-10", "Standard"): ("-57.10", "no reproduction"),
        ("CIFAR-100", "Standard"): ("-28.06", "no reproduction"),
    }
    different = "dataset.train_limit=256, optimizer.lr=1.0, optimizer.milestones=default, "
    assert f"No reproduction: {different}trainer.epochs=2 (ResNet-20 Standard)." in made.notes
    given = "No reproduction: given weights, of unknown training (ResNet-20 Standard)."
    assert given in made.notes
    beside = against_paper(runs).set_index(["dataset", "variant"])["inside"]
    assert beside.isna().tolist() == [True, False, True]


def test_captions_say_that_an_epoch_was_chosen(tmp_path):
    add_seeds(tmp_path, [90, 91, 92])
    add_seeds(tmp_path, [90, 91, 92], variant="resnest")
    runs, words = prepared(tmp_path), "of the epoch with the best validation accuracy"
    for make in (comparison_table, paper_table):
        assert words in make(runs, Measured(epoch="best")).caption
        assert words not in make(runs).caption
    named = {d.key: d.title for d in drawings(runs, [], Measured(epoch="best"))}
    assert words in named["variants_cifar10"]
    assert words in named["parameters_cifar10"]


def test_the_papers_own_error_counts_and_no_spread_no_verdict(tmp_path):
    """The paper's 92.60 is outside the interval of our mean, 92.23 to 92.57."""
    add_seeds(tmp_path, [92.33, 92.40, 92.47])
    add_seeds(tmp_path, [91.02, 91.02], variant="resnest")
    trees.add_run(tmp_path, 92.5, variant="bn_resnest")
    made = paper_table(prepared(tmp_path))
    ours = {row[2]: dict(zip(made.header, row, strict=True)) for row in made.rows}
    assert ours["Standard"]["95% prediction"] == "92.19 to 92.61"
    assert ours["Standard"]["Paper in prediction"] == "inside"
    assert ours["ResNEst"]["95% prediction"] == "—"
    assert ours["ResNEst"]["Paper in prediction"] == "no spread"
    assert ours["BN-ResNEst"]["Paper in prediction"] == "one seed"


def test_the_differences_say_what_their_seeds_can_show(tmp_path):
    add_seeds(tmp_path, [90, 91, 92])
    add_seeds(tmp_path, [89, 90.5, 91], variant="resnest")
    add_seeds(tmp_path, [95], variant="a_resnest")
    made = comparison_table(prepared(tmp_path))
    rows = {row[2]: dict(zip(made.header, row, strict=True)) for row in made.rows}
    assert (rows["ResNEst"]["Pairs"], rows["ResNEst"]["Δ to Standard"]) == ("3", "-0.83")
    assert (rows["A-ResNEst"]["Pairs"], rows["A-ResNEst"]["p"]) == ("1", "—")
    (note,) = [note for note in made.notes if note.startswith("3 pairs")]
    assert "show a true difference of 0.94 points" in note  # 5.65 standard errors of 0.289 / √3
    assert "with 80% probability" in note
    assert "below 0.25" in note
    assert any(note.startswith("1 pair shows") for note in made.notes)


def test_equal_differences_claim_nothing(tmp_path):
    add_seeds(tmp_path, [98.59, 99.15])
    add_seeds(tmp_path, [98.87, 99.43], variant="resnest")  # both +0.28
    made = comparison_table(prepared(tmp_path))
    (row,) = [dict(zip(made.header, row, strict=True)) for row in made.rows]
    assert (row["Δ to Standard"], row["95% interval"], row["p"]) == ("+0.28", "—", "—")
    assert made.notes == [
        "Where all differences of 2 pairs are equal, nothing tells their spread: no interval, no p."
    ]


def test_load_runs_has_its_columns_and_the_configuration(tmp_path):
    trees.add_run(tmp_path, 90, seed=3)
    frame = load_runs(tmp_path)
    assert tuple(frame.columns[: len(COLUMNS)]) == COLUMNS
    run = frame.iloc[0]
    assert (run["seed"], run["test_accuracy"], run["parameters"]) == (3, 90.0, 272_282)
    assert (run["optimizer.lr"], run["optimizer.milestones"]) == (0.1, "[0.3,0.6,0.8]")
    assert run["provenance.versions.torch"] == "2.5.0"


def test_load_runs_has_the_accuracy_on_held_out_images(tmp_path):
    history = trees.history_rows(90, 4, val=True)
    trees.add_run(tmp_path, 90, dataset__val_fraction=0.1, trainer__epochs=4, history=history)
    trees.add_run(tmp_path, 90, seed=1, dataset__val_fraction=0.1)  # whose history is lost
    known = load_runs(tmp_path).set_index("seed")["val_accuracy"]
    assert known[0] == 91.0
    assert math.isnan(known[1])


def test_load_runs_warns_of_a_broken_record_and_keeps_the_others(tmp_path):
    trees.add_run(tmp_path, 90)
    trees.add_run(tmp_path, 90, seed=1).record_file.write_text("{")
    with pytest.warns(UserWarning, match="seed=1.*record.json: left out"):
        assert list(load_runs(tmp_path)["seed"]) == [0]


def test_a_tree_without_runs_is_an_error_that_names_it(tmp_path):
    with pytest.raises(UserError, match="no run in it"):
        load_runs(tmp_path)
    with pytest.raises(UserError, match="no such directory"):
        load_runs(tmp_path / "none")


def test_a_history_comes_back_with_nan_where_nothing_was_measured(tmp_path):
    run = trees.add_run(tmp_path, history=trees.history_rows(90, 4, eval_every=2))
    history = run.read_history(("epoch", "test_accuracy"))
    assert history["epoch"] == [1, 2, 3, 4]
    assert [value == value for value in history["test_accuracy"]] == [False, True, False, True]
    run.history_file.write_text("epoch,test_accuracy\n1,2\n3")
    with pytest.raises(BrokenRecord, match=r"history\.csv"):
        run.read_history(("epoch", "test_accuracy"))


def test_markdown_survives_pipes_and_latex_its_special_characters(tmp_path):
    trees.add_run(tmp_path, 90)
    trees.add_run(
        tmp_path, seed=1, status="failed", record={"error": "50% of {a_b} | #1 & $x ~^\\ [é"}
    )
    made = table(tmp_path)
    made.rows[0][1] = "a|b"
    lines = [line for line in render.markdown([made]).splitlines() if line.startswith("|")]
    assert len({len(line) for line in lines}) == 1
    assert "a\\|b" in lines[2]
    assert render.tex("50% of {a_b}") == r"50\% of \{a\_b\}"
    assert render.latex([made]).isascii()


def strings_of_ours():
    """Yield every string in the source that can stand in a table."""
    files = [*(ROOT / "resnests/results").glob("*.py"), ROOT / "resnests/search/results.py"]
    for file in (*files, ROOT / "resnests/paper.py"):
        for node in ast.walk(ast.parse(file.read_text())):
            if isinstance(node, ast.Constant) and isinstance(node.value, str):
                yield node.value


def test_latex_keeps_every_character_that_we_write():
    """ε once became "?", and |map|² another formula."""
    strings = list(strings_of_ours())
    assert {"ε", "²", "Δ"} <= set("".join(strings))
    for text in strings:
        written = render.tex(text)
        assert written.isascii()
        assert written.count("?") == text.count("?")
    strange = {c for text in strings for c in text if not c.isascii()}
    assert all(len(render.tex(c)) > 1 for c in strange), "a command, not what is left of it"
    assert render.tex("|map|²") == r"$|$map$|$\textsuperscript{2}"
    assert render.tex("e\u0301é") == "ee"


def table_of_two(root, key: str, values: tuple[str, str]):
    """Return the table of two runs whose recipes differ in one value."""
    for value, accuracy in zip(values, (80.0, 90.0), strict=True):
        run = trees.add_run(root / value, accuracy)
        record = run.read_record()
        recipe = record.recipe_values | {key: value}
        run.write_record(dataclasses.replace(record, recipe=value, recipe_values=recipe))
    return table(root)


def test_a_source_that_was_edited_is_a_row_of_its_own_and_says_so(tmp_path):
    """Tell sources apart, a network's and a head's, which no column of the configuration does."""
    made = table_of_two(tmp_path, "variant.code", ("aaaa0000", "bbbb1111"))
    assert [row[0] for row in made.rows] == [
        "ResNet-20, source of variant changed (aaaa0000)",
        "ResNet-20, source of variant changed (bbbb1111)",
    ]


def test_an_argument_that_is_named_code_is_no_source(tmp_path):
    made = table_of_two(tmp_path, "arch.args.code", ("hamming", "gray"))
    rows = [row[0] for row in made.rows]
    assert rows == ["ResNet-20, arch.args.code=gray", "ResNet-20, arch.args.code=hamming"]


def test_what_follows_from_the_epochs_is_no_key_of_a_table(tmp_path):
    trees.add_run(tmp_path, 80.0, trainer__epochs=1)
    made = table(tmp_path)
    beside = paper_table(prepared(tmp_path))
    trees.add_run(tmp_path, 90.0)
    both = table(tmp_path)
    assert set(body(both)) == {"ResNet-20, trainer.epochs=1", "ResNet-20, trainer.epochs=200"}
    text = render.markdown([made, beside, both])
    assert "trainer.epochs=1" in text
    assert "milestone_epochs" not in text


def test_milestones_of_an_earlier_version_are_a_row_of_their_own(tmp_path):
    run = trees.add_run(tmp_path, 80.0, trainer__epochs=1)
    record = run.read_record()
    values = {key: v for key, v in record.recipe_values.items() if not key.endswith("_epochs")}
    earlier = dataclasses.replace(record, recipe="0" * 8, recipe_values=values)
    trees.add_run(tmp_path / "earlier", trainer__epochs=1).write_record(earlier)
    assert set(body(table(tmp_path))) == {
        "ResNet-20, milestones after epochs []",
        "ResNet-20, milestones of an earlier version",
    }


def test_a_nested_target_is_a_value_like_any_other(tmp_path):
    """docs/own_parts.md allows it; it once ended the tables of the whole folder."""
    for name, accuracy in (("torch.nn.GELU", 80.0), ("torch.nn.ReLU", 90.0)):
        run = trees.add_run(tmp_path / name, accuracy)
        record = run.read_record()
        act = {"_target_": name, "sizes": [1, 2]}
        config = record.config | {"arch": record.config["arch"] | {"act": act}}
        values = record.recipe_values | {"arch.act": act, "optimizer.extra": {"a": None}}
        recipe = f"{accuracy:08.0f}"
        changes = {"recipe": recipe, "recipe_values": values, "config": config}
        run.write_record(dataclasses.replace(record, **changes))
    made = table(tmp_path)
    assert [row[0] for row in made.rows] == [
        "ResNet-20, arch.act=torch.nn.GELU(sizes=[1,2])",
        "ResNet-20, arch.act=torch.nn.ReLU(sizes=[1,2])",
    ]
    assert any("optimizer.extra={a:null}" in note for note in made.notes)
    assert list(read_runs(tmp_path)[0]["arch.act._target_"]) == ["torch.nn.GELU", "torch.nn.ReLU"]


@pytest.mark.parametrize(
    "config",
    [
        {"path": "x", "status": "complete"}, {"provenance.host": "x"}, {"val_accuracy": 99.0},
        {"provenance": {"started": "x"}}, {"row": "x", "given": 1},
        {"optimizer": {"lr": {"a": [1, {}]}}},
    ],
)  # fmt: skip
def test_a_configuration_that_somebody_made_up_hides_no_column(tmp_path, config):
    values = {"dataset__val_fraction": 0.1, "trainer__epochs": 3}
    run = trees.add_run(tmp_path, history=trees.history_rows(90, 3, val=True), **values)
    record = json.loads(run.record_file.read_text())
    record["config"] |= config
    run.record_file.write_text(json.dumps(record))
    runs = label_rows(load_runs(tmp_path))
    assert runs.columns.is_unique
    assert accuracy_tables(runs)[0].rows[0][1].startswith("90.00%")
    assert runs["path"].tolist() == [str(run.path)]
    assert runs["val_accuracy"].tolist() == [91.0]
    assert runs["provenance.host"].tolist() == ["nowhere"]
