"""Tables and figures of analyses, of made-up ones."""

import dataclasses
import math

import pandas as pd
import pytest
import trees

from resnests import load_runs
from resnests.results.analyses import Analyses, interval, read_analyses, scientific
from resnests.results.analysis import analysis_tables
from resnests.results.analysis_plots import drawings
from resnests.results.cells import label_rows
from resnests.runs.analysis import LAST_MAPS, PREFIX, TRAINED, Analysis, Solve


def add_analysis(
    root,
    arch: str,
    variant: str,
    seed: int,
    blocks: int,
    eps: float,
    l2=5e-4,
    solved=99,
    tolerance=5e-4,
    **config,
) -> None:
    """Write a run and its analysis, of which the first `solved` solves are done."""
    run = trees.add_run(root, arch=arch, variant=variant, seed=seed, dataset="cifar10", **config)
    more = {"test_loss": 0.4, "train_squared": 0.1}
    groups = [f"3.{i + 1}" for i in range(blocks)]
    solves = [Solve(PREFIX, "exact", group, 576, 0.2, 1e-4, **more) for group in groups]
    solves.insert(0, Solve(TRAINED, "exact", groups[-1], 576, 0.3))
    last = Solve(LAST_MAPS, "exact", groups[-1], 640, 0.2 + eps, 1e-4, train_squared=0.1 + eps)
    solves = [*solves, last]
    status = "complete" if solved >= len(solves) else "interrupted"
    run.analysis.path.mkdir()
    record = dataclasses.replace(run.read_record(), task="analyze", status=status)
    run.analysis.write_record(record)
    run.analysis.write_analysis(Analysis(l2, tolerance, "0" * 64, True, solves=solves[:solved]))


@pytest.fixture
def analyses(tmp_path) -> Analyses:
    for arch, blocks in (("resnet20", 9), ("resnet110", 54), ("wrn16_8", 6)):
        for variant in ("resnest", "bn_resnest"):
            for seed in (0, 1):
                add_analysis(tmp_path, arch, variant, seed, blocks, blocks / 1000 + seed / 100)
    return read_analyses(label_rows(load_runs(tmp_path)))


@pytest.mark.slow
def test_eps_over_depth_takes_architectures_of_the_same_widths(analyses):
    (drawing,) = [d for d in drawings(analyses) if d.key.startswith("depth_cifar10")]
    assert set(drawing.data["arch"]) == {"resnet20", "resnet110"}
    assert set(drawing.data["depth"]) == {9, 54}
    deep = drawing.data[drawing.data["depth"] == 54]
    assert sorted(deep["eps"].round(6)) == [0.054, 0.054, 0.064, 0.064]
    assert drawing.render("png").startswith(b"\x89PNG")


@pytest.mark.slow
def test_eps_over_depth_and_width_of_the_last_stage_of_one_architecture(tmp_path):
    """What experiment=forgetting_conv sweeps differs in arch.widths and arch.blocks."""
    for width in (64, 128):
        for blocks in ([1, 1, 2], [1, 1, 4]):
            for variant in ("resnest", "bn_resnest"):
                shape = {"arch__widths": [16, 32, width], "arch__blocks": blocks}
                add_analysis(tmp_path, "resnet20", variant, 0, blocks[-1], 1 / width, **shape)
    analyses = read_analyses(label_rows(load_runs(tmp_path)))
    found = {drawing.key: drawing.data for drawing in drawings(analyses)}
    wide = [data for key, data in found.items() if key.startswith("last_width_cifar10")]
    deep = [data for key, data in found.items() if key.startswith("depth_cifar10")]
    assert len(wide) == len(deep) == 2
    assert all(set(data["last_width"]) == {64, 128} and len(data) == 4 for data in wide)
    assert all(set(data["depth"]) == {2, 4} and len(data) == 4 for data in deep)


def test_the_caption_over_sizes_names_the_lines_as_they_are_drawn(tmp_path):
    """It said that what chance would lose is dashed, as ResNEst's own ε is."""
    for blocks in ([1, 1, 2], [1, 1, 4]):
        shape = {"arch__widths": [16, 32, 64], "arch__blocks": blocks}
        add_analysis(tmp_path, "resnet20", "resnest", 0, blocks[-1], 0.1, **shape)
    found = drawings(read_analyses(label_rows(load_runs(tmp_path))))
    (drawing,) = [drawing for drawing in found if drawing.key.startswith("depth")]
    thin = [line for line in drawing.figure.axes[1].lines if line.get_linewidth() < 1]
    assert {line.get_linestyle() for line in thin} == {"-", ":"}
    assert "Thin and solid: what as many directions kept by chance" in drawing.title
    assert "ashed" not in drawing.title


@pytest.mark.slow
def test_the_table_has_eps_with_what_certificates_leave_open(analyses):
    table = analysis_tables(analyses)[0]
    (row,) = [r for r in table.rows if r[:2] == ["ResNet-110", "ResNEst"]]
    assert row[2] == "2"
    assert row[table.header.index("ε")].startswith("0.0590 [")
    assert not any("(n=" in cell for row in table.rows for cell in row)
    assert "ε: certificates leave each open by at most 0.0001 to either side." in table.notes


def test_a_seed_whose_analysis_failed_is_named(tmp_path):
    add_analysis(tmp_path, "resnet20", "resnest", 0, 9, 0.01)
    run, _ = (trees.add_run(tmp_path, variant="resnest", seed=seed) for seed in (1, 2))
    run.analysis.path.mkdir()
    more = {"task": "analyze", "status": "failed", "error": "ValueError: too\nlarge"}
    run.analysis.write_record(dataclasses.replace(run.read_record(), **more))
    trees.add_run(tmp_path, variant="standard")  # which nobody asked for
    for table in analysis_tables(read_analyses(label_rows(load_runs(tmp_path))))[:3]:
        found = [note for note in table.notes if note.startswith("Not analysed")]
        failed = "Not analysed (failed: ValueError: too large): seed 1 of ResNet-20 ResNEst."
        assert found == ["Not analysed: seed 2 of ResNet-20 ResNEst.", failed]


def test_an_analysis_that_has_not_come_to_its_end_has_no_bound(tmp_path):
    """Its last prefix so far was once shown as the bound, and averaged with others."""
    add_analysis(tmp_path, "resnet20", "resnest", 0, 9, 0.01)
    add_analysis(tmp_path, "resnet20", "resnest", 1, 9, 0.01, solved=4)
    runs = load_runs(tmp_path)
    assert runs["analysis.bound"].notna().tolist() == [True, False]
    assert runs["analysis.status"].tolist() == ["complete", "interrupted"]
    (row, *_), notes = (
        (made := analysis_tables(read_analyses(label_rows(runs)))[0]).rows,
        made.notes,
    )
    shown = dict(zip(made.header, row, strict=True))
    assert shown["n"] == "2"
    assert shown["(a) trained"] == "0.3000"
    assert shown["(c) bound"] == "0.2000 (n=1)"
    assert "Not analysed to the end (interrupted): seed 1 of ResNet-20 ResNEst." in notes


@pytest.mark.slow
def test_analyses_made_with_other_settings_are_never_averaged(tmp_path):
    for seed, l2 in enumerate((5e-4, 5e-4, 1e-3)):
        add_analysis(tmp_path, "resnet20", "resnest", seed, 9, 0.01 + seed, l2=l2)
        add_analysis(tmp_path, "resnet8", "resnest", seed, 3, 0.02 + seed, l2=l2)
    analyses = read_analyses(label_rows(load_runs(tmp_path)))
    made = analysis_tables(analyses)[0]
    eps = made.header.index("ε")
    assert [(row[0], row[2], row[eps].split()[0]) for row in made.rows] == [
        ("ResNet-20, analysis.l2=0.0005", "2", "0.5100"),
        ("ResNet-20, analysis.l2=0.001", "1", "2.0100"),
        ("ResNet-8, analysis.l2=0.0005", "2", "0.5200"),
        ("ResNet-8, analysis.l2=0.001", "1", "2.0200"),
    ]
    figures = [drawing for drawing in drawings(analyses) if drawing.key.startswith("depth")]
    assert [len(drawing.data) for drawing in figures] == [4, 2]


def test_analyses_of_another_tolerance_are_never_averaged(tmp_path):
    for seed, tolerance in enumerate((5e-4, 5e-4, 1e-5)):
        add_analysis(tmp_path, "resnet8", "resnest", seed, 3, 0.02, tolerance=tolerance)
    rows = analysis_tables(read_analyses(label_rows(load_runs(tmp_path))))[0].rows
    assert [(row[0], row[2]) for row in rows] == [
        ("ResNet-8, analysis.tolerance=0.0005", "2"),
        ("ResNet-8, analysis.tolerance=1e-05", "1"),
    ]


def test_the_note_on_learning_rates_is_of_the_rates_that_were_used(tmp_path):
    for variant in ("standard", "resnest", "bn_resnest"):
        add_analysis(tmp_path / "paper", "resnet20", variant, 0, 9, 0.01)
        adamw = {"name": "adamw", "lr": 1e-3, "betas": [0.9, 0.999], "weight_decay": 0.01}
        add_analysis(tmp_path / "adamw", "resnet20", variant, 0, 9, 0.01, optimizer=adamw)
    notes = {
        name: " ".join(
            analysis_tables(read_analyses(label_rows(load_runs(tmp_path / name))))[0].notes
        )
        for name in ("paper", "adamw")
    }
    assert "Learning rates: 0.01 (ResNEst), 0.1 (Standard, BN-ResNEst);" in notes["paper"]
    assert "earning rate" not in notes["adamw"]


def test_no_interval_of_zeros_has_a_minus():
    cell = pd.DataFrame({"eps.test_loss": [0.0, 0.00001, 0.00002]})
    assert interval(cell, "eps.test_loss") == "0.0000 [0.0000 to 0.0000]"


@pytest.mark.parametrize(
    ("column", "values", "shown"),
    [
        ("trained.test_loss", [0.01, 0.09], "0.0500 [0.0000 to 0.5582]"),
        ("eps", [0.01, 0.09], "0.0500 [0.0000 to 0.5582]"),  # it is never below 0
        ("eps.test_loss", [0.01, 0.09], "0.0500 [-0.4582 to 0.5582]"),  # it may be
        ("bound.test_accuracy", [1.0, 99.0], "50.0000 [0.0000 to 100.0000]"),
    ],
)
def test_an_interval_is_cut_where_no_value_can_be(column, values, shown):
    assert interval(pd.DataFrame({column: values}), column) == shown


def test_an_infinite_value_is_text():
    assert scientific(pd.DataFrame({"least": [1.0, math.inf]}), "least") == "inf [1.0e+00 to inf]"


def test_a_mean_is_within_the_least_and_the_largest_as_they_are_shown():
    """Round all three alike: 1.1e-11 once stood before [1e-11 to 1e-11]."""
    frame = pd.DataFrame({"least": [1.11e-11, 1.13e-11]})
    assert scientific(frame, "least") == "1.1e-11 [1.1e-11 to 1.1e-11]"


@pytest.mark.parametrize(
    ("error", "shown"),
    [(0.0, "-1.9e-03"), (1e-4, "-1.9e-03"), (2e-4, "-2e-03"), (2e-3, "-2e-03 ± 2e-03"),
     (6.2e-2, "-2e-03 ± 7e-02")],
)  # fmt: skip
def test_an_eigenvalue_has_the_digits_that_its_residual_leaves(error, shown):
    assert scientific(pd.DataFrame({"least": [-1.9e-3], "least_error": [error]}), "least") == shown
