"""Confusion matrices, and McNemar's test, from the predictions of runs."""

import numpy as np
import pytest
import trees

from resnests import aggregate
from resnests.errors import UserError
from resnests.results.cells import drop_copies, label_rows
from resnests.results.frame import read_runs
from resnests.results.paired import Predictions, mcnemar, read_predictions
from resnests.results.predictions import confusion_drawings, confusion_tables

LABELS = np.array([0, 0, 0, 0, 1, 1])


def add(root, predicted, seed=0, labels=LABELS, **config):
    run_config = {"seed": seed} | config
    run = trees.add_run(root, 90, **run_config)
    logits = np.eye(2, dtype=np.float32)[predicted]
    values = {"label": labels, "prediction": np.array(predicted), "logits": logits}
    np.savez(run.predictions_file, classes=np.array(["cat", "dog"]), **values)
    return run


def prepared(root):
    return drop_copies(label_rows(read_runs(root)[0]))[0]


def test_a_confusion_is_the_mean_over_seeds_of_shares_of_each_class(tmp_path):
    add(tmp_path, [0, 0, 0, 1, 1, 1])
    add(tmp_path, [0, 0, 0, 0, 0, 1], seed=1)
    trees.add_run(tmp_path, 90, seed=2)
    (made,) = confusion_tables(prepared(tmp_path))
    assert made.header == ["", "cat", "dog"]
    assert made.rows == [["cat", "87.5", "12.5"], ["dog", "25.0", "75.0"]]
    assert "mean over 2 seed(s)" in made.caption
    (drawing,) = confusion_drawings(prepared(tmp_path))
    assert drawing.data["dog"].tolist() == [12.5, 75.0]
    assert drawing.render("png").startswith(b"\x89PNG")


def test_a_matrix_and_its_names_stay_in_the_figure(tmp_path):
    add(tmp_path, [0, 0, 0, 1, 1, 1], dataset__name="a_data_set_with_quite_a_long_name_to_show")
    (drawing,) = confusion_drawings(prepared(tmp_path))
    figure = drawing.figure
    figure.set_dpi(100)
    figure.draw_without_rendering()
    box = figure.get_tightbbox()
    width, height = figure.get_size_inches()
    assert min(box.x0, box.y0) >= 0
    assert box.x1 <= width
    assert box.y1 <= height


def test_the_exact_test_counts_images_that_only_one_network_has_right():
    def of(wrong):
        predicted = np.zeros(20, int)
        predicted[wrong] = 1
        return Predictions(np.zeros(20, int), predicted, ["a", "b"])

    assert mcnemar(of([0, 1, 2]), of([3])) == pytest.approx(2 * (1 + 4) / 16)
    assert mcnemar(of([]), of(list(range(6)))) == pytest.approx(2 / 64)
    assert mcnemar(of([1]), of([1])) == 1


def test_aggregate_prints_and_writes_matrices(tmp_path, monkeypatch, capsys):
    add(tmp_path / "runs", [0, 0, 0, 1, 1, 1])
    arguments = ["aggregate.py", str(tmp_path / "runs"), "--confusion"]
    monkeypatch.setattr("sys.argv", arguments)
    aggregate.main()
    assert "| cat |" in capsys.readouterr().out
    monkeypatch.setattr("sys.argv", [*arguments, "--output", str(tmp_path / "out")])
    aggregate.main()
    assert {path.suffix for path in (tmp_path / "out" / "figures").glob("confusion*")} == {
        ".png", ".pdf", ".csv",
    }  # fmt: skip


@pytest.mark.parametrize("damage", ["cut", "label", "pickle"])
def test_predictions_that_are_unsound_are_one_line(tmp_path, damage):
    run = add(tmp_path, [0, 0, 0, 1, 1, 1], labels=LABELS + (1 if damage == "label" else 0))
    file = run.predictions_file
    if damage == "cut":
        file.write_bytes(file.read_bytes()[:200])
    if damage == "pickle":
        np.savez(file, label=np.array([{}], object), prediction=LABELS, logits=np.eye(2))
    with pytest.raises(UserError, match=r"predictions.npz: no predictions \(") as caught:
        read_predictions(str(run.path))
    assert "\n" not in str(caught.value)


def test_a_damaged_byte_is_one_line_wherever_it_is(tmp_path):
    run = add(tmp_path, [0, 0, 0, 1, 1, 1])
    values = {"label": LABELS, "prediction": LABELS, "logits": np.eye(2)[LABELS]}
    np.savez_compressed(run.predictions_file, **values)
    sound, said = run.predictions_file.read_bytes(), []
    for place in range(len(sound)):
        damaged = bytearray(sound)
        damaged[place] ^= 0xFF
        run.predictions_file.write_bytes(damaged)
        try:
            read_predictions(str(run.path))
        except UserError as error:
            said.append(str(error))
    assert len(said) > len(sound) / 2
    assert all("predictions.npz: no predictions (" in line for line in said)


def test_without_predictions_the_way_to_them_is_said(tmp_path):
    trees.add_run(tmp_path, 90)
    with pytest.raises(UserError, match=r"no complete run has predictions; the same run.py comm"):
        confusion_tables(prepared(tmp_path))
