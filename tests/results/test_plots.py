"""The figures: which there are, that they show what their data says, and at what size."""

import io

import numpy as np
import pandas as pd
import pytest
import trees
from matplotlib.figure import Figure
from matplotlib.image import imread

from resnests.results.cells import label_rows
from resnests.results.frame import read_runs
from resnests.results.plots import WIDTH, drawings
from resnests.results.style import (
    VariantStyle,
    legend_entry,
    plain_numbers,
    spread,
    title_and_legend,
    variant_styles,
)


def drawn(root):
    problems = []
    made = {drawing.key: drawing for drawing in drawings(label_rows(read_runs(root)[0]), problems)}
    return made, problems


@pytest.fixture
def tree(tmp_path):
    for variant in ("standard", "resnest"):
        for seed, accuracy in enumerate((88.0, 92.0)):
            history = trees.history_rows(accuracy, 10, eval_every=2)
            trees.add_run(
                tmp_path, accuracy, seed=seed, variant=variant, trainer__epochs=10, history=history
            )
    return tmp_path


def test_there_are_curves_variants_and_parameters_of_each_data_set(tree):
    made, problems = drawn(tree)
    assert set(made) == {"variants_cifar10", "parameters_cifar10", "curves_cifar10_resnet20"}
    assert problems == []


@pytest.mark.slow
def test_a_png_is_as_wide_as_a_column_and_a_pdf_is_one(tree):
    for drawing in drawn(tree)[0].values():
        picture = imread(io.BytesIO(drawing.render("png")))
        assert picture.shape[1] == pytest.approx(WIDTH * 300, abs=1)
        assert np.ptp(picture) > 0.5  # something is drawn
        assert drawing.render("pdf").startswith(b"%PDF")


def test_the_data_of_curves_is_mean_and_deviation_over_seeds_per_epoch(tree):
    data = drawn(tree)[0]["curves_cifar10_resnet20"].data
    last = data[(data["variant"] == "standard") & (data["epoch"] == 10)].iloc[0]
    assert (last["n"], last["test_accuracy_mean"]) == (2, 90.0)
    assert last["test_accuracy_std"] == pytest.approx(np.std([88, 92], ddof=1))
    assert data.loc[data["epoch"] == 3, "test_accuracy_mean"].isna().all()
    assert data.loc[data["epoch"] == 3, "train_loss_mean"].notna().all()


def test_the_variants_keep_colour_and_marker_whichever_others_there_are(tree, tmp_path):
    def look(drawing, label):
        (handle,) = [h for h in drawing.figure.legends[0].legend_handles if h.get_label() == label]
        return handle.get_color(), handle.get_marker()

    both = drawn(tree)[0]["variants_cifar10"]
    trees.add_run(tmp_path / "one", 90, variant="resnest")
    alone = drawn(tmp_path / "one")[0]["variants_cifar10"]
    assert look(both, "ResNEst") == look(alone, "ResNEst")
    assert look(both, "ResNEst")[0] != look(both, "Standard")[0]
    assert look(both, "ResNEst")[1] != look(both, "Standard")[1]


def test_the_papers_points_are_in_the_figure_over_parameters(tmp_path):
    for variant in ("standard", "resnest"):
        trees.add_run(tmp_path, 90, variant=variant)
    drawing = drawn(tmp_path)[0]["parameters_cifar10"]
    assert list(drawing.data.set_index("variant")["published"][["standard", "resnest"]]) == [
        92.60,
        91.02,
    ]
    heights = {float(y) for line in drawing.figure.axes[0].lines for y in line.get_ydata()}
    assert heights == {92.60, 91.02, 90.0}


def test_the_papers_points_are_only_beside_its_own_recipe(tmp_path):
    trees.add_run(tmp_path, 80, trainer__epochs=2)
    drawing = drawn(tmp_path)[0]["parameters_cifar10"]
    assert drawing.data["published"].isna().all()
    assert "paper" not in drawing.title


def test_no_two_variants_are_drawn_alike():
    """Standard and the fourth head of one's own were once drawn alike."""
    variants = pd.Series(pd.Categorical([f"v{i}" for i in range(60)]))
    styles = variant_styles(variants)
    assert len({(s.point["color"], s.point["marker"]) for s in styles}) == 60
    assert len({str(s.line) for s in styles}) == 60
    assert len({s.point["color"] for s in styles[:11]}) == 11


def test_names_of_architectures_of_one_size_do_not_cover_each_other(tmp_path):
    for arch, size in (("resnet8", 100_000), ("resnet20", 101_000), ("resnet110", 102_000)):
        trees.add_run(tmp_path, 90, arch=arch, parameters=size)
    figure = drawn(tmp_path)[0]["parameters_cifar10"].figure
    figure.draw_without_rendering()
    names = sorted(text.get_position() for text in figure.axes[0].texts)
    assert len(names) == 3
    assert np.diff([x for x, _ in names]).min() > 0.05


def test_places_are_spread_as_little_as_their_gap_asks():
    assert spread(np.array([0.1, 0.5, 0.9]), 0.2) == pytest.approx([0.1, 0.5, 0.9])
    assert spread(np.array([0.5, 0.5, 0.5]), 0.1) == pytest.approx([0.4, 0.5, 0.6])


@pytest.mark.parametrize(
    ("low", "high", "labels"),
    [(0.2, 2, ["0.2", "0.5", "1", "2"]), (0.01, 90, 5), (1e-6, 1, 7)],
)
def test_a_logarithmic_axis_has_several_labels_and_not_too_many(low, high, labels):
    axes = Figure().subplots()
    axes.plot([1, 2], [low, high])
    axes.set(yscale="log", ylim=(low, high))
    plain_numbers(axes.yaxis)
    shown = [f"{tick:g}" for tick in axes.get_yticks() if 0.999 * low < tick < 1.001 * high]
    if isinstance(labels, list):
        assert shown == labels
    else:
        assert labels <= len(shown) <= 10


def test_no_bar_passes_100_percent(tmp_path):
    for seed, accuracy in enumerate((98.59, 99.15)):
        trees.add_run(tmp_path, accuracy, seed=seed)
        trees.add_run(tmp_path, 100.0, seed=seed, variant="resnest")
    drawing = drawn(tmp_path)[0]["variants_cifar10"]
    bars = [bar for some in drawing.figure.axes[0].collections for bar in some.get_segments()]
    (bar,) = filter(len, bars)  # where all seeds are equal there is none
    assert list(bar[:, 0]) == [pytest.approx(95.31, abs=0.01), 100.0]
    assert "cut at 0 and 100%; none for one seed). An interval from 2 seeds" in drawing.title
    assert drawing.title.endswith(
        "one from 7 seeds 2.4. Where all seeds are equal, nothing tells their spread: no interval."
    )


def test_one_seed_has_neither_band_nor_interval_and_draws(tmp_path):
    trees.add_run(
        tmp_path, 90, dataset="digits", trainer__epochs=1, history=trees.history_rows(90, 1)
    )
    made, problems = drawn(tmp_path)
    assert all(drawing.render("png") for drawing in made.values())
    assert "one seed" in made["curves_digits_resnet20"].title
    assert problems == []


def test_a_short_history_is_named_and_left_out(tree):
    trees.add_run(tree, 20.0, seed=2, trainer__epochs=10, history=trees.history_rows(20, 4))
    made, problems = drawn(tree)
    data = made["curves_cifar10_resnet20"].data
    assert set(data.loc[data["variant"] == "standard", "n"]) == {2}
    assert len(problems) == 1
    assert "seed=2" in problems[0]
    assert "4 epochs, not 10" in problems[0]


def test_runs_that_did_not_finish_and_given_weights_are_in_no_curve(tree):
    for seed, status in ((2, "diverged"), (3, "failed")):
        trees.add_run(
            tree, seed=seed, status=status, trainer__epochs=10, history=trees.history_rows(5, 3)
        )
    record = {"task": "evaluate", "weights": "/w/x.pt", "weights_sha256": "ab"}
    trees.add_run(tree, 80, seed=4, variant="a_resnest", record=record)
    made, problems = drawn(tree)
    assert set(made["curves_cifar10_resnet20"].data["n"]) == {2}
    assert [key for key in made if key.startswith("curves")] == ["curves_cifar10_resnet20"]
    assert problems == []


def test_a_tree_without_a_complete_run_has_no_figure(tmp_path):
    trees.add_run(tmp_path, status="failed")
    assert drawn(tmp_path) == ({}, [])


def epoch_axes(drawing):
    """Return the panels of loss and accuracy, drawn, and the epochs that are written below them."""
    drawing.figure.draw_without_rendering()
    loss, accuracy = drawing.figure.axes
    low, high = accuracy.get_xlim()
    return loss, accuracy, [tick for tick in accuracy.get_xticks() if low <= tick <= high]


def add_seeds(root, *variants, epochs=1, **more):
    for variant in variants:
        for seed, accuracy in enumerate((90.0, 92.0)):
            history = trees.history_rows(accuracy, epochs, **more)
            values = {"seed": seed, "variant": variant, "trainer__epochs": epochs}
            trees.add_run(root, accuracy, history=history, **values)


def test_one_epoch_is_points_with_bars_above_one_tick(tmp_path):
    """The axis was 0.945 to 1.055, nothing showed the spread, and points hid each other."""
    add_seeds(tmp_path, "standard", "resnest", "own")
    drawing = drawn(tmp_path)[0]["curves_cifar10_resnet20"]
    _, accuracy, ticks = epoch_axes(drawing)
    assert ticks == [1]
    points = [line for line in accuracy.lines if line.get_marker() in ("o", "s", "v")]
    assert len({float(point.get_xdata()[0]) for point in points}) == 3
    assert all(abs(point.get_xdata()[0] - 1) < 0.3 for point in points)
    bars = [bar for some in accuracy.collections for bar in some.get_segments()]
    assert [list(bar[:, 1]) for bar in bars] == [pytest.approx([91 - 2**0.5, 91 + 2**0.5])] * 3
    assert "bar of one sample standard deviation" in drawing.title


def test_a_few_epochs_have_whole_numbers_and_every_line_its_markers(tmp_path):
    add_seeds(tmp_path, "standard", "own1", "own2", epochs=3)
    _, accuracy, ticks = epoch_axes(drawn(tmp_path)[0]["curves_cifar10_resnet20"])
    assert ticks == [1, 2, 3]
    assert all(line.get_markevery()[0] < 1 for line in accuracy.lines)


def test_curves_without_a_test_accuracy_are_drawn_over_all_accuracies(tmp_path):
    history = [
        {key: value for key, value in row.items() if not key.startswith("test")}
        for row in trees.history_rows(90, 4)
    ]
    trees.add_run(tmp_path, 90, trainer__epochs=4, history=history)
    drawing = drawn(tmp_path)[0]["curves_cifar10_resnet20"]
    loss, accuracy, _ = epoch_axes(drawing)
    assert drawing.render("png")
    assert accuracy.get_ylim()[0] <= 0
    assert 100 <= accuracy.get_ylim()[1] < 110
    assert len(loss.lines) == 1


def test_no_band_passes_what_can_be(tmp_path):
    for seed, (loss, accuracy) in enumerate(((0.01, 99.0), (1.0, 100.0))):
        history = trees.history_rows(accuracy, 3)
        for row in history:
            row |= {"train_loss": loss, "test_accuracy": accuracy}
        trees.add_run(tmp_path, accuracy, seed=seed, trainer__epochs=3, history=history)
    loss, accuracy, _ = epoch_axes(drawn(tmp_path)[0]["curves_cifar10_resnet20"])
    (band,) = loss.collections
    assert min(y for _, y in band.get_paths()[0].vertices) == 0
    assert accuracy.get_ylim()[1] < 101


def test_numbers_below_an_axis_do_not_cover_each_other():
    axes = Figure().subplots()
    axes.set(xscale="log", xlim=(3e-4, 6))
    plain_numbers(axes.xaxis)
    shown = [tick for tick in axes.get_xticks() if 3e-4 <= tick <= 6]
    assert shown == pytest.approx([0.001, 0.01, 0.1, 1])


def test_long_names_of_a_legend_stay_in_the_figure():
    figure = Figure(figsize=(WIDTH, 3.9))
    figure.subplots()
    name = "mobilenet_v3_small Standard, pipeline.augment=[Cutout(size=16)], optimizer.lr=0.02"
    handles = [legend_entry(VariantStyle(name, i), VariantStyle(name, i).line) for i in range(3)]
    title_and_legend(figure, "shapes", handles)
    figure.set_dpi(100)
    figure.draw_without_rendering()
    box = figure.legends[0].get_window_extent()
    assert box.x0 >= 0
    assert box.x1 <= 100 * WIDTH


def test_the_name_of_an_architecture_points_at_its_best_point(tmp_path):
    """It pointed above the largest network, where no point was."""
    trees.add_run(tmp_path, 80, dataset="digits", parameters=300_000)
    trees.add_run(tmp_path, 90, dataset="digits", parameters=200_000, variant="a_resnest")
    (name,) = drawn(tmp_path)[0]["parameters_digits"].figure.axes[0].texts
    assert name.xy == (0.2, 90)


def test_equal_points_over_parameters_do_not_hide_each_other(tmp_path):
    for variant in ("standard", "resnest", "bn_resnest"):
        trees.add_run(tmp_path, 80, dataset="digits", variant=variant)
    lines = drawn(tmp_path)[0]["parameters_digits"].figure.axes[0].lines
    sizes = [line.get_markersize() for line in lines if line.get_markerfacecolor() != "none"]
    assert sizes == sorted(set(sizes), reverse=True)
