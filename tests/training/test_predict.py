"""Task predict: images without labels, and test images, into files that users open."""

import csv
import json
import shutil
import sys
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from data_images import images, pictures, write_parts
from helpers import run_command, tiny
from PIL import Image

from resnests.config.schema import Predict, config_dict
from resnests.data.unlabelled import read_images
from resnests.data.views import ImageView
from resnests.errors import UserError
from resnests.runs.digests import with_digests
from resnests.runs.directory import RunDirectory
from resnests.tasks import predict
from resnests.tasks.experiment import run_experiment
from resnests.tasks.predict import NotPredicted, Predictions, Predictor

CPU = torch.device("cpu")


@pytest.fixture(scope="module")
def trained(tmp_path_factory):
    """Return the configuration of a finished run on a folder of images of 12x10 pixels."""
    place = tmp_path_factory.mktemp("predict")
    data = images(write_parts(place / "insects"))
    options = ("trainer.epochs=1", "trainer.batch_size=4", f"runs_dir={place / 'runs'}")
    mine = tiny(*options, "predictions=true")
    (mine,) = with_digests([replace(mine, dataset=data)])
    assert run_experiment(mine) == "complete"
    return mine


@pytest.fixture
def own_cache(tmp_path_factory, monkeypatch):
    """Keep what is decoded or scaled out of the user's cache, and out of tmp_path, too."""
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path_factory.mktemp("cache")))


def write(path, *shape):
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(pictures(1, *shape, name=path.name)[0]).save(path)
    return path


def asked(config, folder=None):
    return replace(config, task="predict", predict=Predict(folder and str(folder)))


def rows(file):
    with open(file, newline="") as lines:
        return list(csv.DictReader(lines))


def test_a_tree_of_images_is_predicted_as_the_runs_own_data(trained, tmp_path):
    folder = tmp_path / "new ones"
    write(folder / "b.png", 10, 12, 3)
    write(folder / "a" / "deep" / "c.png", 10, 12)  # grey becomes RGB, as in training
    shutil.copy(Path(trained.dataset.root, "test/bee/000.png"), folder / "z.png")
    made = Predictor(CPU).predict(asked(trained, folder))
    assert made == RunDirectory.of(trained).path / "predictions_new_ones.csv"
    found = rows(made)
    assert list(found[0]) == ["file", "prediction", "probability"]
    assert [row["file"] for row in found] == ["a/deep/c.png", "b.png", "z.png"]
    assert {row["prediction"] for row in found} <= {"ant", "bee", "cat"}
    with np.load(made.with_suffix(".npz"), allow_pickle=False) as arrays:
        assert sorted(arrays) == ["classes", "folder", "logits", "path", "prediction"]
        logits = arrays["logits"]
    with np.load(RunDirectory.of(trained).predictions_file, allow_pickle=False) as test:
        same = test["path"].tolist().index("test/bee/000.png")
        assert np.allclose(logits[2], test["logits"][same], atol=1e-5)
    shares = torch.from_numpy(logits).softmax(1).max(1).values
    assert [float(row["probability"]) for row in found] == pytest.approx(shares.tolist(), abs=1e-6)


def test_without_a_folder_the_test_images_are_predicted(trained):
    run = RunDirectory.of(trained)
    with np.load(run.predictions_file, allow_pickle=False) as found:
        before = {name: found[name] for name in found}
    lines = rows(run.path / "predictions.csv")
    made = Predictor(CPU).predict(asked(trained))
    assert rows(made) == lines
    with np.load(run.predictions_file, allow_pickle=False) as found:
        assert all((found[name] == values).all() for name, values in before.items())
    assert [row["label"] for row in lines] == ["ant"] * 2 + ["bee"] * 2 + ["cat"] * 2
    assert [row["file"] for row in lines] == before["path"].tolist()
    right = [row["label"] == row["prediction"] for row in lines]
    assert 100 * np.mean(right) == pytest.approx(run.read_record().test_accuracy)


def test_more_images_than_memory_are_predicted_batch_by_batch(trained, own_cache):
    whole = Predictor(CPU).predict(asked(trained)).read_bytes()
    bounded = replace(trained, pipeline=replace(trained.pipeline, memory_gb=0.0))
    predictor = Predictor(CPU)
    assert predictor.predict(asked(bounded)).read_bytes() == whole
    (splits,) = predictor.data.values()
    assert isinstance(splits.test.images, ImageView)


def test_images_without_files_have_numbers_and_classes_without_names_too():
    made = Predictions(np.array([[0.0, 2.0], [1.0, -1.0]]), np.array([1, 1]))
    text = made.csv().decode()
    assert text.splitlines()[0] == "image,label,prediction,probability"
    assert [line.split(",")[:3] for line in text.splitlines()[1:]] == [
        ["0", "1", "1"], ["1", "1", "0"],
    ]  # fmt: skip


@pytest.mark.parametrize("name", ['a,b "c".png', "a\nb.png", "a\rb.png", "a\r\nb.png"])
def test_any_name_of_a_file_stays_in_its_field(tmp_path, name):
    file = tmp_path / "predictions.npz"
    Predictions(np.eye(2), None, np.array([name, "z.png"])).write(file)
    assert [row["file"] for row in rows(file.with_suffix(".csv"))] == [name, "z.png"]
    assert file.with_suffix(".csv").read_bytes().endswith(b"z.png,1,0.731059\n")


def test_folders_of_one_name_do_not_lose_what_was_predicted_of_the_other(trained, tmp_path):
    for place in ("a", "b"):
        write(tmp_path / place / "same" / f"{place}.png", 10, 12, 3)
    first = Predictor(CPU).predict(asked(trained, tmp_path / "a" / "same"))
    with pytest.raises(NotPredicted, match=r"predictions_same.npz: .*/a/same: move it away"):
        Predictor(CPU).predict(asked(trained, tmp_path / "b" / "same"))
    assert [row["file"] for row in rows(first)] == ["a.png"]
    assert Predictor(CPU).predict(asked(trained, tmp_path / "a" / "same")) == first
    first.with_suffix(".npz").write_bytes(b"PK")
    again = Predictor(CPU).predict(asked(trained, tmp_path / "b" / "same"))
    assert [row["file"] for row in rows(again)] == ["b.png"]


def test_more_images_than_memory_are_predicted_in_parts_with_the_same_bits(
    trained, tmp_path, own_cache
):
    for place in range(140):  # more than a batch
        write(tmp_path / f"{place}.png", 10, 12, 3)
    tight = replace(trained, pipeline=replace(trained.pipeline, memory_gb=0))
    for folder in (None, tmp_path):
        found = []
        for config in (trained, tight):
            predictor = Predictor(CPU)
            made = predictor.predict(asked(config, folder)).with_suffix(".npz")
            with np.load(made) as arrays:
                found.append(arrays["logits"])
            (splits,) = predictor.data.values()
            read = [splits.test, *predictor.folders.values()]
            assert all(isinstance(one.images, ImageView) == (config is tight) for one in read)
        assert np.array_equal(*found)


@pytest.mark.filterwarnings("ignore")
def test_a_picture_that_is_far_too_large_is_refused_as_in_training(tmp_path, monkeypatch):
    write(tmp_path / "a.png", 10, 12, 3)
    monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", 100)
    with pytest.raises(UserError, match=r"a.png is .* \(Image size"):
        read_images(str(tmp_path), (10, 12), None)


def test_images_of_any_size_are_scaled_where_those_of_training_were(trained, tmp_path, own_cache):
    write(tmp_path / "large.png", 40, 60, 3)
    (sized,) = with_digests([replace(trained, dataset=replace(trained.dataset, size=8))])
    run_experiment(sized)
    (row,) = rows(Predictor(CPU).predict(asked(sized, tmp_path)))
    assert row["file"] == "large.png"


@pytest.mark.parametrize(
    ("name", "content", "said"),
    [
        ("a.png", b"no image", r"a.png is cut short, corrupt or no image"),
        ("notes.txt", b"x", r"predict.folder=.*: expected at least one image in it \(.png, "),
        ("wide.png", (10, 14, 3), r"wide.png: expected 12x10 pixels, which .*, not 14x10; runs w"),
    ],
)
def test_a_folder_that_does_not_fit_is_one_line(trained, tmp_path, name, content, said):
    if isinstance(content, bytes):
        (tmp_path / name).write_bytes(content)
    else:
        write(tmp_path / name, *content)
    with pytest.raises(UserError, match=said) as caught:
        Predictor(CPU).predict(asked(trained, tmp_path))
    assert "\n" not in str(caught.value)
    assert not RunDirectory.of(trained).predictions_of(str(tmp_path)).exists()


def test_a_folder_that_is_none_is_named(trained, tmp_path):
    with pytest.raises(UserError, match=r"predict.folder=.*/none: expected a folder with images"):
        Predictor(CPU).predict(asked(trained, tmp_path / "none"))


def test_a_process_that_works_on_a_run_is_left_alone(trained):
    with (
        RunDirectory.of(trained).lock().acquire(),
        pytest.raises(UserError, match="a process works on it"),
    ):
        Predictor(CPU).predict(asked(trained))


@pytest.mark.parametrize(
    ("overrides", "said"),
    [
        (["predict.folder=new"], "predict.folder=new: expected null, as task=train reads no such"),
        (["task=predict", "predict.folder=''"], "predict.folder='': expected a folder with images"),
        (["task=predict", "weights=m.pt"], "weights=m.pt: expected null, as task=predict is of fi"),
        (["task=predict", "cluster=slurm"], "cluster=slurm: expected null, as task=predict trains"),
    ],
)
def test_what_does_not_go_together_is_one_line(overrides, said):
    with pytest.raises(UserError, match=said):
        tiny(*overrides)


def test_a_run_that_is_not_finished_costs_that_run_only(trained, monkeypatch, capsys):
    other = replace(asked(trained), seed=5)
    values = json.dumps([config_dict(other), config_dict(asked(trained))])
    monkeypatch.setattr("sys.stdin", type("Lines", (), {"read": lambda: values}))
    monkeypatch.setattr(sys, "argv", ["predict", "cpu", "1"])
    assert predict.main() == 1
    out, err = capsys.readouterr()
    assert out == f"{RunDirectory.of(trained).path / 'predictions.csv'}\n"
    assert "seed=5: no finished run to predict with" in err


def test_weights_that_cannot_be_read_cost_that_run_only(trained, tmp_path, monkeypatch, capsys):
    shutil.copytree(trained.runs_dir, tmp_path / "runs")
    broken = replace(asked(trained), runs_dir=str(tmp_path / "runs"))
    RunDirectory.of(broken).weights_file.write_bytes(b"none")
    values = json.dumps([config_dict(broken), config_dict(asked(trained))])
    monkeypatch.setattr("sys.stdin", type("Lines", (), {"read": lambda: values}))
    monkeypatch.setattr(sys, "argv", ["predict", "cpu", "1"])
    assert predict.main() == 1
    out, err = capsys.readouterr()
    assert out == f"{RunDirectory.of(trained).path / 'predictions.csv'}\n"
    assert err.startswith("not predicted: ")
    assert "model.pt: it is cut short, corrupt or foreign" in err


@pytest.mark.slow
def test_the_command_predicts_with_a_grid(trained, tmp_path):
    write(tmp_path / "new" / "a.png", 10, 12, 3)
    run = RunDirectory.of(trained).path
    words = (f"--config-path={run}", "--config-name=config", "task=predict")
    done = run_command(*words, "predict.folder=new", "-m", "seed=0,1", cwd=tmp_path)
    assert done.returncode == 1
    assert "predicting with 2 run(s) on cpu" in done.stdout
    assert "seed=1: no finished run to predict with" in done.stderr
    assert rows(run / "predictions_new.csv")[0]["file"] == "a.png"
    done = run_command(*words, "predict.folder=none", cwd=tmp_path)
    assert (done.returncode, done.stderr.count("\n")) == (2, 1)
