"""What is on disk is a promise: a tree of runs made by commit 6403df8 is read, skipped and resumed.

golden/tables.md is what that commit printed of golden/runs.
"""

import json
import shutil

import pytest
from helpers import REPOSITORY, history, run_command

from resnests.runs.directory import RunDirectory, find_runs

GOLDEN = REPOSITORY / "tests" / "golden"
OVERRIDES = (
    "dataset=digits", "dataset.train_limit=400", "dataset.test_limit=200", "arch=resnet8",
    "arch.name=tiny", "arch.blocks=[1,1]", "arch.widths=[4,8]", "trainer.batch_size=32",
    "optimizer.lr=0.03",
)  # fmt: skip
INTERRUPTED = ("trainer.epochs=10", "variant=bn_resnest", "optimizer=sgd_cosine")


@pytest.fixture
def tree(tmp_path):
    shutil.copytree(GOLDEN / "runs", tmp_path / "runs")
    return tmp_path


@pytest.mark.slow
def test_the_tables_are_the_same_to_the_byte(tree):
    done = run_command(cwd=tree, script="aggregate.py")
    assert done.returncode == 0, done.stderr
    assert done.stdout == (GOLDEN / "tables.md").read_text()


@pytest.mark.slow
def test_finished_runs_are_found_and_skipped(tree):
    before = {run.path: run.record_file.read_bytes() for run in find_runs(tree)}
    grid = ("trainer.epochs=5", "variant=standard,a_resnest", "seed=0,1")
    done = run_command("-m", *OVERRIDES, *grid, cwd=tree)
    assert done.returncode == 0, done.stderr
    assert "4 of 4 runs are finished already" in done.stdout
    assert {run.path: run.record_file.read_bytes() for run in find_runs(tree)} == before


@pytest.mark.slow
def test_what_was_interrupted_goes_on(tree):
    (run,) = [run for run in find_runs(tree) if run.status() == "interrupted"]
    before = history(run.path)
    plan = run_command(*OVERRIDES, *INTERRUPTED, "sweep.dry_run=true", cwd=tree)
    assert plan.stdout.startswith(
        f"resume  digits/tiny/bn_resnest seed=0  {run.path.relative_to(tree)}"
    )
    done = run_command(*OVERRIDES, *INTERRUPTED, cwd=tree)
    assert done.returncode == 0, done.stderr
    assert "resuming in epoch" in run.log_file.read_text()
    assert history(run.path)[: len(before)] == before
    assert len(history(run.path)) == 10


@pytest.mark.parametrize("run", list(find_runs(GOLDEN)), ids=lambda run: run.path.parts[-3])
def test_configurations_and_records_keep_their_identity(run):
    config = run.read_config()
    assert RunDirectory.of(config).path.parts[-4:] == run.path.parts[-4:]
    record = run.read_record()
    assert record.recipe == run.path.parent.name
    raw = json.loads(run.record_file.read_text())
    written = json.loads(record.to_json())
    assert written | raw == written | {"provenance": raw["provenance"]}
    assert written["provenance"] | raw["provenance"] == written["provenance"]
