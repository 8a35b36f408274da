"""The complete study of examples/study, as a user runs it: small."""

import shutil
import subprocess
import sys

import pytest
from helpers import REPOSITORY, run_command
from test_readme import LINES, type_line

from resnests import load_runs

SMALL = ("trainer.epochs=1", "trainer.batch_size=24", "trainer.device=cpu")
STUDY = ("--config-dir", "conf", "-m", "experiment=study", *SMALL)
PART = ("augment=cutout", "seed=0")  # of the 36 runs, as each takes a second or two


@pytest.fixture(scope="module")
def trained(tmp_path_factory):
    """Return the folder of the example, with a few images, once its grid is trained."""
    pytest.importorskip("torchmetrics", reason="needs resnests[metrics]")
    place = tmp_path_factory.mktemp("study") / "study"
    shutil.copytree(REPOSITORY / "examples" / "study", place)
    source = (place / "make_images.py").read_text()
    few = source.replace("train: int = 100, test: int = 50", "train: int = 20, test: int = 10")
    assert few != source
    (place / "make_images.py").write_text(few)
    subprocess.run([sys.executable, "make_images.py"], cwd=place, check=True)
    done = run_command(*STUDY, *PART, cwd=place)
    assert done.returncode == 0, done.stdout + done.stderr
    return place


@pytest.fixture
def folder(trained, tmp_path):
    """Return a copy of `trained` that a test may change: tests run in any order."""
    return shutil.copytree(trained, tmp_path / "examples" / "study")


def aggregate(folder, *words):
    done = run_command("runs", *words, cwd=folder, script="aggregate.py")
    assert done.returncode == 0, done.stderr
    return done.stdout


@pytest.mark.slow
def test_a_study_is_one_file_a_network_and_a_command(folder):
    assert len((folder / "conf/experiment/study.yaml").read_text().splitlines()) <= 40
    runs = load_runs(folder / "runs")
    assert len(runs) == 6
    assert (runs["status"] == "complete").all()
    assert runs[["val_accuracy", "test_f1", "val_f1"]].notna().all().all()
    again = run_command(*STUDY, "sweep.dry_run=true", cwd=folder)
    assert "30 to run, 0 to resume, 6 to skip" in again.stdout


@pytest.mark.slow
def test_tables_figures_and_matrices_follow(folder):
    table = aggregate(folder, "--metric", "f1", "--select", "optimizer.lr", "--by", "val_f1")
    assert table.count("tinynet") == 2  # its row, and the note on what was chosen
    assert "tinynet standard: 0." in table
    assert table.count(" (of 2)") == 3
    assert "test f1" in table
    differences = aggregate(folder, "optimizer.lr=0.1", "--compare", "arch=tinynet")
    for arch in ("resnet8", "shufflenet"):
        assert f"| {arch} " in differences
    aggregate(folder, "optimizer.lr=0.1", "--together", "--output", "results/")
    aggregate(folder, "optimizer.lr=0.1", "--confusion", "--output", "matrices/")
    made = {path.name for path in folder.glob("*/figures/*.png")}
    assert "curves_shapes_together.png" in made
    assert sum(name.startswith("confusion") for name in made) == 3
    assert "tabular" in (folder / "results" / "tables.tex").read_text()


@pytest.mark.slow
def test_a_network_of_timm_takes_part(folder):
    pytest.importorskip("timm", reason="needs resnests[timm]")
    done = run_command(*STUDY, *PART, "arch=lcnet", "optimizer.lr=0.1", cwd=folder)
    assert done.returncode == 0, done.stdout + done.stderr
    assert "| lcnet " in aggregate(folder, "optimizer.lr=0.1", "--compare", "arch=tinynet")


@pytest.mark.long
@pytest.mark.timeout(600)
def test_the_whole_study_as_the_readme_has_it(folder):
    """Two augmentations and three seeds of each: means, intervals and p."""
    (line,) = [line for line in LINES if line.startswith("cd examples/study")]
    type_line(f"{line} {' '.join(SMALL)}", cwd=folder.parents[1])
    assert len(load_runs(folder / "runs")) == 36
    lines = [line for line in LINES if "--by val_f1" in line]
    assert len(lines) == 2
    for line in lines:
        type_line(line, cwd=folder)
    assert "±" in (folder / "results" / "tables.md").read_text()
    assert len(list((folder / "matrices").rglob("confusion*.png"))) == 6
    (line,) = [line for line in LINES if "predict.folder" in line]
    assert "predictions" in type_line(line, *SMALL, cwd=folder)
    differences = aggregate(folder, "optimizer.lr=0.1", "--compare", "arch=tinynet")
    assert "| 3 " in differences


@pytest.mark.slow
def test_a_network_of_the_study_is_shared_with_a_card(folder):
    pytest.importorskip("safetensors", reason="needs resnests[hub]")
    one = ("arch=tinynet", "optimizer.lr=0.1", *PART, "task=export")
    words = (*STUDY, *one, "weights=shared", "format=safetensors")
    done = run_command(*words, cwd=folder)
    assert done.returncode == 0, done.stderr
    (card,) = (folder / "shared").glob("*/README.md")
    assert "A network made by `tinynet.TinyNet`" in card.read_text()
