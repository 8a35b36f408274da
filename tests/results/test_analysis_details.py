"""Tables and figures of what analyses say in detail, of made-up ones."""

import dataclasses

import pandas as pd
import pytest
import trees

from resnests import load_runs
from resnests.results.analyses import Analyses, interval, read_analyses
from resnests.results.analysis import analysis_tables
from resnests.results.analysis_details import drops
from resnests.results.analysis_lines import _spectrum
from resnests.results.analysis_plots import _filled, drawings
from resnests.results.cells import CELL, Cell, label_rows
from resnests.results.style import VariantStyle, columns_of
from resnests.runs.analysis import (
    LAST_BLOCK,
    LAST_MAPS,
    METHOD,
    PREFIX,
    TRAINED,
    Analysis,
    Descent,
    SecondOrder,
    Solve,
    errors_of,
)
from resnests.text import at_least, at_most, digits_of, fixed


def analysis_of(eps: float, images: int = 1000, method: int = METHOD, epoch=None) -> Analysis:
    """Return an analysis with (b) and (c) of ranks 60 and 100, the last block alone of rank 20, and
    R(1, v_L) = 0.5."""
    more = {"test_loss": 0.4, "test_error": 4e-4, "train_loss": 0.1}
    solves = [
        Solve(TRAINED, "exact", "1.2", 100, 0.5, test_loss=0.6),
        Solve(PREFIX, "exact", "1.1", 90, 0.3, 2e-3, train_squared=0.2, rank=90, **more),
        Solve(PREFIX, "exact", "1.2", 100, 0.2, 1e-4, drop_at_least=1e-5, drop_at_most=3.0,
              train_squared=0.1, rank=100, **more),
        Solve(LAST_BLOCK, "exact", "1.2", 20, train_squared=0.5, rank=20),
        Solve(LAST_MAPS, "exact", "1.2", 60, 0.2 + eps, 1e-4, train_squared=0.1 + eps, rank=60,
              **more),
    ]  # fmt: skip
    return Analysis(5e-4, 5e-4, "0" * 64, True, images, 100, solves=solves, method=method,
                    epoch=epoch)  # fmt: skip


@pytest.fixture
def analyses(tmp_path) -> Analyses:
    for seed in (0, 1):
        run = trees.add_run(tmp_path, variant="resnest", seed=seed, trainer__epochs=3)
        made = analysis_of(0.1 + seed / 100)
        made.points = [
            SecondOrder(
                "trained", 4, 0.5, 1e-2, -0.5, 1.0, 0.0, [-0.5, -0.1 * (1 - seed), 0.0, 1.0]
            ),
            SecondOrder("optimum", 4, 0.2, 1e-9, 2e-3, 1.0, 7e-2),
        ]
        made.descents = [Descent("random", 0.31 + seed / 100, 100)]
        made.kept = [analysis_of(0.2, epoch=1)]
        made.l2_path = [0.01, 0.01]  # as earlier versions kept it where it was given twice
        made.over_l2 = [
            dataclasses.replace(solve, l2=0.01, value=2 * solve.value)
            for solve in (made.solves[2], made.solves[4])
        ]
        run.analysis.path.mkdir()
        run.analysis.write_record(dataclasses.replace(run.read_record(), task="analyze"))
        run.analysis.write_analysis(made)
    return read_analyses(label_rows(load_runs(tmp_path)))


def shown(analyses: Analyses, key: str) -> list[dict[str, str]]:
    (table,) = (t for t in analysis_tables(analyses) if t.key == f"analysis_{key}cifar10")
    return [dict(zip(table.header, row, strict=True)) for row in table.rows]


@pytest.mark.slow
def test_each_detail_has_its_table(analyses):
    (row,) = shown(analyses, "squared_")
    assert row["selectivity"].startswith("0.5250 ["), "0.105 over (40 of 80) of 0.5 - 0.1"
    assert row["ε by chance"].startswith("0.2000")
    assert row["floor of ε"].startswith("0.0087"), "0.205 * 40 / (999 - 60)"
    assert row["k"] == "40"
    (row,) = shown(analyses, "second_")
    assert row["% negative"] == "37.5 [25.0 to 50.0]", "least to largest, as the note says"
    assert row["unknowns"].split()[0] == "4"
    assert row["at the optimum"].split(" [")[0] == "2e-03 ± 7e-02", "its residual is larger"
    assert row["least eigenvalue"] == "-5.0e-01 [-5.0e-01 to -5.0e-01]"
    assert row["random, above (b)"] == "1.0e-02 [1.0e-02 to 1.0e-02]", "(b) is known to 1e-4"
    (row,) = shown(analyses, "blocks_")
    assert (row["Block"], row["at least"], row["at most"]) == ("1.2", "1.0e-05", "3.0e+00")
    assert row["drop"] == "0.10", "known to 2e-3, which two digits carry"
    rows = shown(analyses, "l2_")
    assert [(row["l2"], row["n"], row["ε"].split()[0]) for row in rows] == [
        ("0.0005", "2", "0.1050"),
        ("0.01", "2", "0.2100"),
    ]
    rows = shown(analyses, "epochs_")
    assert [(row["epoch"], row["selectivity"].split()[0]) for row in rows] == [
        ("1", "1.0000"),
        ("3", "0.5250"),
    ]


def test_a_block_after_one_without_result_has_no_drop():
    prefix = {"quantity": PREFIX, "path": "a", "family": "exact", "gap": 0.0}
    values = (0.9, 0.5, None, 0.1)
    solves = [prefix | {"position": i, "value": value} for i, value in enumerate(values)]
    found = drops(pd.DataFrame(solves))
    assert dict(zip(found["position"], found["drop"], strict=True)) == {1: pytest.approx(0.4)}


def test_each_table_says_what_is_theorem_construction_and_measurement(analyses):
    for table in analysis_tables(analyses):
        assert any("Measured: " in note for note in table.notes), table.key
        assert any("By construction: " in note for note in table.notes), table.key
        assert any("A theorem: " in note for note in table.notes), table.key


def test_a_test_loss_has_the_digits_that_its_error_leaves(analyses):
    (row,) = shown(analyses, "test_")
    assert row["(a) loss"].startswith("0.6000")
    assert row["(b) loss"] == "0.400", "its error is 4e-4"
    assert [digits_of(error) for error in (None, 0, 1e-4, 2e-4, 2e-3, 1.0)] == [4, 4, 4, 3, 2, 0]
    assert interval(pd.DataFrame({"bound": [0.12345]}), "bound", 3) == "0.123"


def of_one_run(tmp_path, made: Analysis, **more) -> Analyses:
    run = trees.add_run(tmp_path, variant="resnest", trainer__epochs=3, **more)
    run.analysis.path.mkdir()
    run.analysis.write_record(dataclasses.replace(run.read_record(), task="analyze"))
    run.analysis.write_analysis(made)
    return read_analyses(label_rows(load_runs(tmp_path)))


def test_analyses_over_other_numbers_of_training_images_are_never_averaged(tmp_path):
    of_one_run(tmp_path, analysis_of(0.1, images=1000))
    of_one_run(tmp_path, analysis_of(0.2, images=1000), seed=1)
    runs = of_one_run(tmp_path, analysis_of(0.3, images=300), seed=2).runs
    words = ["1000 training images", "1000 training images", "300 training images"]
    assert sorted(runs["setting"]) == words
    assert set(runs["row"].astype(str)) == set(words)
    alone = of_one_run(tmp_path / "alone", analysis_of(0.1)).runs
    assert list(alone["setting"]) == [""]


def test_rows_of_analyses_lead_to_the_cells_of_their_runs(tmp_path):
    of_one_run(tmp_path, analysis_of(0.1, images=1000))
    both = of_one_run(tmp_path, analysis_of(0.3, images=300), seed=1)
    (cell,) = {Cell(*key) for key in label_rows(load_runs(tmp_path))[CELL].itertuples(index=False)}
    tables = analysis_tables(both)
    assert {table.key.split("_")[1] for table in tables} >= {"test", "squared", "blocks"}
    for table in tables:
        assert table.cells == {(y, 1): cell for y in range(len(table.rows))}


def with_gap(made: Analysis, gap: float) -> Analysis:
    """Return `made` with this gap of (b) and (c), an input, kept weights and another penalty."""
    linear = Solve(PREFIX, "exact", "input", 3, 0.45678, 4.4e-4)
    made.solves = [linear, *(dataclasses.replace(solve, gap=gap) for solve in made.solves)]
    made.kept = [dataclasses.replace(made, epoch=1, kept=[])]
    made.l2_path = [0.01]
    found = [solve for solve in made.solves if solve.group == "1.2" and solve.test_loss == 0.4]
    made.over_l2 = [dataclasses.replace(solve, l2=0.01) for solve in found]
    return made


def test_every_table_of_losses_has_the_digits_that_certificates_leave(tmp_path):
    """Over penalties and epochs all had four; and (e) linear and ε of the loss alone everywhere."""
    analyses = of_one_run(tmp_path, with_gap(analysis_of(0.12345), 4.4e-4))
    (risks,), over_l2, epochs = (shown(analyses, key) for key in ("", "l2_", "epochs_"))
    assert risks["(e) linear"] == "0.457"
    for row in (risks, *over_l2, *epochs):
        assert row["ε"] == "0.123", row
    assert risks["slack"] == epochs[0]["slack"] == "0.177"
    for row in (risks, *over_l2):
        assert row["ε, loss alone"] == "0.0", "2 (gap + sqrt(gap 0.22)) of (b), and (c)'s"
    assert {row["(c)"] for row in (*over_l2, *epochs)} == {"0.200"}
    assert {row["ε, test"] for row in over_l2} == {"0.000"}, "twice 4e-4"
    for key in ("", "l2_", "epochs_"):
        (table,) = (t for t in analysis_tables(analyses) if t.key == f"analysis_{key}cifar10")
        assert "ε: certificates leave each open by at most 0.0005 to either side." in table.notes


def test_a_bound_that_is_also_the_last_maps_keeps_its_gap(tmp_path):
    """ε of an A-ResNEst is 0 exactly, and its (c) is not."""
    analyses = of_one_run(tmp_path, dataclasses.replace(with_gap(analysis_of(0.1), 4.4e-4),
                                                        coupled=False))  # fmt: skip
    (row,) = shown(analyses, "")
    assert (row["(c) bound"], row["(b) best last maps"]) == ("0.200", "0.200")
    assert (row["slack"], row["ε"], row["ε, loss alone"]) == ("0.300", "0.0000", "0.0000")


def test_the_error_of_a_training_loss_covers_where_the_minimiser_is():
    """The objective has one dimension: F(w) = (w - 1)^2 / 2 + l2/2 w^2, of curvature 1 + l2."""
    l2 = 0.1
    least = 1 / (1 + l2)
    for w in (0.5, 0.9, 1.2):
        gap = ((1 + l2) * (w - least)) ** 2 / (2 * l2)
        loss, best = (w - 1) ** 2 / 2, (least - 1) ** 2 / 2
        errors = errors_of(Solve(PREFIX, "exact", "1", 1, loss + l2 / 2 * w * w, gap, 1, loss))
        assert abs(loss - best) <= errors["train_loss"]
        assert errors["value"] == gap


def test_bounds_are_rounded_outward_and_zero_has_no_minus():
    assert at_most(4.4e-4) == 5e-4
    assert at_most(1e-4) == 1e-4
    assert (at_least(1.29e-5, 2), at_most(1.21e-5, 2)) == (1.2e-5, 1.3e-5)
    assert fixed(-1e-9, 4) == "0.0000"


@pytest.mark.slow
def test_figures_over_epochs_penalties_and_of_the_spectrum(analyses):
    found = {drawing.key: drawing for drawing in drawings(analyses)}
    assert {"epochs_cifar10", "l2_cifar10", "hessian_cifar10"} <= set(found)
    assert set(found["epochs_cifar10"].data["epoch"]) == {1, 3}
    assert len(found["hessian_cifar10"].data) == 4, "of the first seed"
    for key in ("epochs_cifar10", "l2_cifar10", "hessian_cifar10"):
        assert found[key].render("png").startswith(b"\x89PNG")


def test_a_figure_over_epochs_has_what_there_is(tmp_path):
    """The limits of a panel without any number were nan, which ended the report."""
    made = analysis_of(0.1)
    made.kept = [analysis_of(0.1, epoch=epoch) for epoch in (1, 2)]
    made.kept[1].solves = []  # it was interrupted there
    for one in (made, *made.kept):
        one.solves = [dataclasses.replace(solve, train_squared=None) for solve in one.solves]
    found = {drawing.key: drawing for drawing in drawings(of_one_run(tmp_path, made))}
    panels = found["epochs_cifar10"].figure.axes
    assert [len(panel.lines) for panel in panels] == [1, 1, 2, 2]
    assert found["epochs_cifar10"].data["epoch"].tolist() == [1, 3]
    assert panels[1].get_ylim() == (0, pytest.approx(1.5e-4))


def test_a_figure_over_epochs_has_room_for_the_untrained_network(analyses):
    frame = analyses.epochs
    frame.loc[frame["epoch"] == 1, "epoch"] = 0
    found = {drawing.key: drawing for drawing in drawings(analyses)}["epochs_cifar10"]
    axes = found.figure.axes[-1]
    assert axes.get_xlim()[0] <= 0
    assert [tick.get_text() for tick in axes.get_xticklabels()] == ["0", "3"]


@pytest.mark.parametrize(("cells", "said"), [(12, True), (9, False)])
def test_a_caption_says_where_lines_are_left_out(cells, said):
    frame = pd.DataFrame(
        {"arch": [f"net{i}" for i in range(cells)], "row": "", "variant": "resnest", "seed": 0}
    ).assign(eigenvalues=[[0.1, 0.2]] * cells)
    drawing = _spectrum(frame, "cifar10")
    assert drawing.data["arch"].nunique() == 9
    assert ("Drawn are 9 of 12 cells" in drawing.title) == said


def test_a_legend_shows_the_hatches_by_which_bars_of_one_colour_differ(analyses):
    (drawing,) = (d for d in drawings(analyses) if d.key.startswith("drops_exact"))
    (handle,) = drawing.figure.legends[0].legend_handles
    bars = [
        p for p in drawing.figure.axes[0].patches if p.get_facecolor() == handle.get_facecolor()
    ]
    assert {p.get_hatch() for p in bars} == {handle.get_hatch()}
    styles = [_filled(VariantStyle(str(i), i)) for i in range(70)]
    assert len({(style["facecolor"], style["hatch"]) for style in styles}) == 70


def test_a_legend_keeps_to_its_figure():
    """Labels such as "[8,16,64], BN-ResNEst" in three columns were cut off on both sides."""
    assert columns_of(["Standard", "ResNEst", "BN-ResNEst", "A-ResNEst"]) == 4
    assert columns_of([f"width={width}" for width in range(10, 18)]) == 3
    assert columns_of(["[8,16,64], BN-ResNEst"] * 6) == 2
    assert columns_of(["blocks=[1,1,2], [8,16,64], BN-ResNEst"] * 6) == 1


def test_as_many_features_as_images_is_a_line_and_no_number(tmp_path):
    run = trees.add_run(tmp_path, variant="resnest")
    run.analysis.path.mkdir()
    run.analysis.write_record(dataclasses.replace(run.read_record(), task="analyze"))
    made = analysis_of(0.1, images=105)
    made.kept = [analysis_of(0.1, images=105, epoch=1)]
    run.analysis.write_analysis(made)
    analyses = read_analyses(label_rows(load_runs(tmp_path)))
    table = analysis_tables(analyses)[0]
    row = dict(zip(table.header, table.rows[0], strict=True))
    assert row["(a) trained"] == "0.5000"
    assert row["(c) bound"] == row["ε"] == "—"
    assert any("can fit whatever labels there are" in note for note in table.notes)
    assert [drawing.key for drawing in drawings(analyses)] == []
    assert not [table for table in analysis_tables(analyses) if "_blocks_" in table.key]


@pytest.mark.parametrize("is_narrow", [True, False])
def test_a_width_below_the_number_of_classes_is_why_last_maps_have_no_number(tmp_path, is_narrow):
    run, made = trees.add_run(tmp_path, variant="resnest"), analysis_of(0.1)
    run.analysis.path.mkdir()
    run.analysis.write_record(dataclasses.replace(run.read_record(), task="analyze"))
    made.solves = made.solves[:-1] if is_narrow else made.solves
    run.analysis.write_analysis(made)
    for table in analysis_tables(read_analyses(label_rows(load_runs(tmp_path))))[:3]:
        said = [note for note in table.notes if "narrower than the number of classes" in note]
        assert len(said) == is_narrow


def test_analyses_of_an_earlier_method_are_not_averaged_with_others(tmp_path):
    for seed, method in enumerate((1, METHOD)):
        run = trees.add_run(tmp_path, variant="resnest", seed=seed)
        run.analysis.path.mkdir()
        run.analysis.write_record(dataclasses.replace(run.read_record(), task="analyze"))
        run.analysis.write_analysis(analysis_of(0.1, method=method))
    rows = analysis_tables(read_analyses(label_rows(load_runs(tmp_path))))[0].rows
    assert [(row[0], row[2]) for row in rows] == [
        ("ResNet-20, analysis.method=1", "1"),
        ("ResNet-20, analysis.method=2", "1"),
    ]


def test_the_figure_over_widths_marks_the_width_that_is_needed(tmp_path):
    for width, eps in ((16, 0.3), (49, 0.1), (64, 0.0)):
        run = trees.add_run(tmp_path, variant="resnest", arch__widths=[width] * 3)
        run.analysis.path.mkdir()
        run.analysis.write_record(dataclasses.replace(run.read_record(), task="analyze"))
        sizes = {"width": width, "needed_width": 50, "smallest_singular_value": 0.1}
        run.analysis.write_analysis(dataclasses.replace(analysis_of(eps), **sizes))
    found = drawings(read_analyses(label_rows(load_runs(tmp_path))))
    (drawing,) = (drawing for drawing in found if drawing.key.startswith("width"))
    assert list(drawing.data.sort_values("width")["eps"]) == pytest.approx([0.3, 0.1, 0.0])
    assert "not 0 left of it" not in drawing.title, "it is 0 there where features are dependent"
    panels = drawing.figure.axes
    assert all([50, 50] in [list(line.get_xdata()) for line in panel.lines] for panel in panels)
    assert [label.get_text() for label in panels[-1].get_xticklabels()] == ["50", "16", "64"]
