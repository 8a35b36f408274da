"""python aggregate.py, as a user runs it."""

import csv
import hashlib
import io
import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
import trees

from resnests.aggregate import _aggregate
from resnests.errors import UserError
from resnests.results import output

ROOT = Path(__file__).resolve().parents[2]


def aggregate(*arguments, cwd=ROOT, status=0):
    command = [sys.executable, "-W", "error", str(ROOT / "aggregate.py"), *map(str, arguments)]
    done = subprocess.run(
        command, cwd=cwd, capture_output=True, text=True, encoding="utf-8", timeout=120
    )
    assert done.returncode == status, done.stderr
    return done


@pytest.fixture(scope="module")
def tree(tmp_path_factory):
    root = tmp_path_factory.mktemp("work") / "runs"
    for variant in trees.VARIANTS:
        for seed, accuracy in enumerate((91.0, 92.0, 93.5)):
            value = accuracy - 0.1 * seed * trees.VARIANTS.index(variant)
            history = trees.history_rows(value, 5)
            trees.add_run(
                root, value, seed=seed, variant=variant, trainer__epochs=5, history=history
            )
    return root


def test_it_prints_the_table_of_runs_below_the_working_directory(tree):
    out = aggregate(cwd=tree.parent).stdout
    assert "## CIFAR-10" in out
    assert "| Architecture | Standard" in out
    assert "92.17% ± 1.26 (0.27M)" in out


def test_it_imports_neither_torch_nor_what_plain_tables_do_not_need(tree):
    code = (
        "import sys, runpy; sys.argv[0] = 'aggregate.py'; "
        "runpy.run_path('aggregate.py', run_name='__main__');"
        "print(sorted({'torch', 'scipy', 'matplotlib', 'jinja2', 'hydra'} & set(sys.modules)))"
    )
    done = subprocess.run(
        [sys.executable, "-c", code, str(tree)],
        cwd=ROOT,
        capture_output=True,
        text=True,
        timeout=60,
    )
    assert done.stdout.splitlines()[-1] == "[]", done.stderr


@pytest.mark.slow
def test_comparisons_are_added_on_request(tree):
    out = aggregate(tree, "--compare", "standard", "--compare", "paper").stdout
    assert "## Differences to Standard" in out
    assert "## Beside the paper" in out
    assert "92.60" in out
    assert "## Differences" not in aggregate(tree).stdout


@pytest.mark.slow
def test_the_statistic_is_shown_and_named(tree):
    out = aggregate(tree, "--statistic", "median").stdout
    assert "92.00% [91.00 to 93.50] (0.27M)" in out
    assert "median [minimum to maximum]" in out


@pytest.mark.slow
def test_csv_has_one_row_a_run_and_everything(tree):
    rows = list(csv.DictReader(io.StringIO(aggregate(tree, "--format", "csv").stdout)))
    assert len(rows) == 12
    assert {row["seed"] for row in rows} == {"0", "1", "2"}
    assert rows[0]["optimizer.weight_decay"] == "0.0005"
    assert rows[0]["provenance.git_commit"].startswith("0123")


@pytest.mark.slow
@pytest.mark.parametrize(
    ("name", "start"),
    [
        ("t.md", "## CIFAR-10"),
        ("t.tex", "\\documentclass"),
        ("t.csv", "path,"),
        ("t.html", "<!DOCTYPE html>"),
    ],
)
def test_the_ending_of_the_file_says_the_format(tree, tmp_path, name, start):
    aggregate(tree, "--output", tmp_path / name)
    assert (tmp_path / name).read_text().startswith(start)
    assert [path.name for path in tmp_path.iterdir()] == [name]  # and no temporary file


@pytest.mark.slow
def test_a_directory_gets_every_format_and_the_figures_with_their_data(tree, tmp_path):
    out = tmp_path / "new" / "results"
    aggregate(tree, "--output", f"{out}/")
    names = {path.name for path in out.iterdir()}
    assert names == {
        "tables.md", "tables.tex", "report.html", "figures",
        "runs.csv", "cells.csv", "differences.csv", "paper.csv", "files.txt",
    }  # fmt: skip
    figures = {path.name for path in (out / "figures").iterdir()}
    keys = ("curves_cifar10_resnet20", "parameters_cifar10", "variants_cifar10")
    assert figures == {f"{key}.{ending}" for key in keys for ending in ("png", "pdf", "csv")}
    assert (out / "report.html").read_text().count("data:image/png") == 3


@pytest.mark.slow
def test_a_folder_that_is_written_again_holds_what_there_is_now(tree, tmp_path):
    runs, out = tmp_path / "runs", tmp_path / "results"
    shutil.copytree(tree, runs)
    history = trees.history_rows(90, 5)
    trees.add_run(runs, 90, arch="resnet8", trainer__epochs=5, history=history)
    aggregate(runs, "--output", f"{out}/")
    stale = out / "figures" / "curves_cifar10_resnet8.png"
    mine = out / "figures" / "curves_of_mine.png"
    mine.write_bytes(b"x")
    assert stale.exists()
    shutil.rmtree(runs / "cifar10" / "resnet8")
    with open(out / "files.txt", "a") as file:
        file.write("../runs\nfigures/../../outside\n/etc/passwd\n.\n")
    (tmp_path / "outside").write_bytes(b"x")
    aggregate(runs, "--output", f"{out}/")
    assert not stale.exists()
    assert mine.exists()
    assert (tmp_path / "outside").exists()
    listed = [line[66:] for line in (out / "files.txt").read_text().splitlines()[1:]]
    found = {path.relative_to(out).as_posix() for path in out.rglob("*") if path.is_file()}
    assert found == {*listed, "files.txt", "figures/curves_of_mine.png"}


@pytest.fixture
def write_all(tmp_path, monkeypatch):
    """Return a function that writes everything of one run into a folder, in process."""
    run = trees.add_run(tmp_path / "runs", 90, history=trees.history_rows(90, 3))

    def write(folder):
        monkeypatch.setattr(sys, "argv", ["aggregate.py", str(run.path), "--output", f"{folder}/"])
        _aggregate()

    return write


@pytest.mark.parametrize("content", [b"1.png\n2.png\ntables.md\n", b"", b"\xff", None])
def test_a_list_of_the_users_own_is_neither_believed_nor_replaced(tmp_path, write_all, content):
    pics = tmp_path / "pics"
    pics.mkdir()
    (pics / "1.png").write_bytes(b"mine")
    if content is None:
        (pics / "files.txt").mkdir()
    else:
        (pics / "files.txt").write_bytes(content)
    with pytest.raises(UserError, match=r"files\.txt is no list that aggregate\.py wrote; move it"):
        write_all(pics)
    assert {path.name for path in pics.iterdir()} == {"1.png", "files.txt"}
    assert content is None or (pics / "files.txt").read_bytes() == content


def test_only_what_is_as_it_was_written_is_removed(tmp_path, write_all):
    out = tmp_path / "out"
    write_all(out)
    listed = (out / "files.txt").read_text()
    sums = {name: hashlib.sha256(name.encode()).hexdigest() for name in ("old.csv", "mine.csv")}
    (out / "old.csv").write_text("old.csv")
    (out / "mine.csv").write_text("edited since")
    more = "".join(f"{digest}  {name}\n" for name, digest in sums.items())
    (out / "files.txt").write_text(listed + more)
    write_all(out)
    assert not (out / "old.csv").exists()
    assert (out / "mine.csv").read_text() == "edited since"
    assert (out / "files.txt").read_text() == listed


def test_a_folder_that_an_earlier_version_wrote_is_written_again(tmp_path, write_all):
    out = tmp_path / "out"
    write_all(out)
    listed = (out / "files.txt").read_text()
    names = [line[66:] for line in listed.splitlines()[1:]]
    (out / "old.csv").write_text("x")
    (out / "files.txt").write_text("\n".join([*names, "old.csv", ""]))
    write_all(out)
    assert (out / "old.csv").exists(), "that list has no digests"
    assert (out / "files.txt").read_text() == listed


@pytest.mark.parametrize(("form", "name"), [("latex", "y.md"), ("csv", "z.html")])
def test_a_format_that_the_ending_contradicts_is_refused(tmp_path, form, name):
    with pytest.raises(UserError, match=rf"--format {form} with --output .*: the ending says "):
        output.plan(str(tmp_path / name), form, None, None)
    assert output.plan(str(tmp_path / "y.txt"), form, None, None).format == form


@pytest.mark.slow
def test_data_sets_that_the_paper_has_not_stand_beside_nothing(tmp_path):
    for seed in (0, 1):
        trees.add_run(tmp_path / "runs", 98 + seed, dataset="digits", seed=seed)
    out = tmp_path / "results"
    assert "nothing to compare" not in aggregate(tmp_path / "runs", "--output", f"{out}/").stderr
    assert not (out / "paper.csv").exists()
    for name in ("tables.md", "tables.tex", "report.html"):
        assert "Beside the paper" not in (out / name).read_text()
    done = aggregate(tmp_path / "runs", "--compare", "paper")
    assert "Beside" not in done.stdout
    assert done.stderr.count("nothing to compare") == len(done.stderr.splitlines()) == 1


@pytest.mark.slow
@pytest.mark.skipif(shutil.which("pdflatex") is None, reason="needs pdflatex")
def test_the_latex_compiles_as_it_is(tree, tmp_path):
    shutil.copytree(tree, tmp_path / "runs")
    error = "50% of {a_b} | #1 & $x ~^\\ [é < >"
    trees.add_run(
        tmp_path / "runs", seed=3, trainer__epochs=5, status="failed", record={"error": error}
    )
    aggregate(
        tmp_path / "runs",
        "--output",
        tmp_path / "t.tex",
        "--compare",
        "standard",
        "--compare",
        "paper",
    )
    command = ["pdflatex", "-interaction=nonstopmode", "-halt-on-error", "t.tex"]
    done = subprocess.run(
        command, cwd=tmp_path, capture_output=True, text=True, errors="replace", timeout=120
    )
    assert done.returncode == 0, done.stdout[-2000:]
    assert "Overfull" not in done.stdout
    assert (tmp_path / "t.pdf").stat().st_size > 10_000


@pytest.mark.slow
def test_a_broken_record_is_named_and_left_out(tree, tmp_path):
    shutil.copytree(tree, tmp_path / "runs")
    broken = next((tmp_path / "runs/cifar10/resnet20/a_resnest").glob("*/seed=2/record.json"))
    broken.write_text('{"schema": 1')
    done = aggregate(tmp_path / "runs")
    assert str(broken) in done.stderr
    assert "left out" in done.stderr
    assert "Missing: seed 2 of ResNet-20 A-ResNEst." in done.stdout


@pytest.mark.slow
@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["none"], "none: no such directory"),
        (["empty"], "empty: no run in it"),
        (["runs", "--output", "t.docx"], "t.docx: no format is known by that ending"),
        (["runs", "--output", "nowhere/t.md"], "there is no directory nowhere"),
        (["runs", "--output", "empty", "--format", "csv"], "a directory gets every format"),
        (["runs", "--format", "csv", "--compare", "paper"], "one row a run"),
        (["runs", "--epoch", "best"], "12 of 12 complete runs have no held-out split"),
    ],
)
def test_what_cannot_be_done_is_one_clear_line(tree, arguments, message):
    (tree.parent / "empty").mkdir(exist_ok=True)
    done = aggregate(*arguments, cwd=tree.parent, status=2)
    assert message in done.stderr
    assert len(done.stderr.splitlines()) == 1
    assert done.stdout == ""


def test_an_unknown_choice_names_the_choices(tree):
    done = aggregate(tree, "--statistic", "mode", status=2)
    assert "median" in done.stderr


@pytest.mark.slow
def test_output_that_is_cut_off_is_no_traceback(tree):
    command = f'"{sys.executable}" aggregate.py "{tree}" --format html | head -c 10'
    done = subprocess.run(
        command, shell=True, cwd=ROOT, capture_output=True, text=True, timeout=120
    )
    assert done.stdout == "<!DOCTYPE "
    assert "Traceback" not in done.stderr


def test_help_lists_every_option():
    text = aggregate("--help").stdout
    assert all(
        option in text
        for option in (
            "--statistic",
            "--compare",
            "--output",
            "--epoch",
            "--status",
            "--list",
            "--best",
        )
    )


def test_results_stand_below_what_trains_and_what_users_command():
    above = ("cluster", "sweep", "search", "trackers", "training", "commands", "sharing")
    for file in (ROOT / "resnests" / "results").glob("*.py"):
        for name in above:
            assert f"resnests.{name}" not in file.read_text(), file


@pytest.mark.slow
def test_a_tilde_is_the_home_folder(tree):
    """Quote a tilde, and write one behind `--output=`: a shell hands on both as they are."""
    place = {"HOME": str(tree.parent)}
    command = [sys.executable, "aggregate.py", f"~/{tree.name}", "--output=~/made.md"]
    subprocess.run(command, cwd=ROOT, check=True, env=os.environ | place)
    assert (tree.parent / "made.md").is_file()
