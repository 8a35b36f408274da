"""Sweeps at sites whose nodes, limits or settings of Slurm are others; each starts its own Slurm.

python -m pytest -m cluster tests/cluster/test_sites.py
"""

import sys

import pytest
from clusters import SLURM, left_over, log, runs, statuses, sweep
from slurm import Slurm, missing

pytestmark = [
    pytest.mark.cluster,
    pytest.mark.skipif(bool(missing()), reason=missing()),
    pytest.mark.timeout(1000),  # with the machine busy
]


def not_started(folder) -> list[str]:
    return [line for line in log(folder).splitlines() if line.startswith("not started: ")]


def test_what_no_node_has_is_said_once_for_each_run_and_not_submitted_again(tmp_path):
    login, seen = tmp_path / "login", tmp_path / "shared"
    hidden = login / "here"
    for folder in (login, seen, hidden):
        folder.mkdir()
    python = hidden / "python"
    python.write_text(f'#!/bin/sh\nexec {sys.executable} "$@"\n')
    python.chmod(0o755)
    (seen / "sitecustomize.py").write_text("import os, sys\n"
        "sys.executable = os.environ.get('AS_PYTHON', sys.executable)\n")  # fmt: skip
    here = (*SLURM, "seed=0,1")
    with Slurm(hosts=True, login_only=login):
        shell = {"AS_PYTHON": str(python), "PYTHONPATH": str(seen)}
        assert sweep(seen, *here, **shell) == 1
        assert sweep(hidden, *here, f"runs_dir={seen}/other") == 1
        assert sweep(seen, *here, f"runs_dir={hidden}/runs") == 1
    lines = not_started(seen)
    assert len(lines) == 4
    for line in lines[:2]:
        assert line.endswith(f" has no {python}")
    for line in lines[2:]:
        assert "which its node must reach" in line
    assert all(line.endswith(f" has no directory {hidden}") for line in not_started(hidden))
    assert log(seen).count("submitted") == 2
    assert log(hidden).count("submitted") == 1
    assert len(not_started(hidden)) == 2


def test_a_node_that_refuses_what_the_other_trains_is_set_aside(tmp_path):
    setup = """cluster.setup=['test "$SLURMD_NODENAME" = n1']"""
    with Slurm(hosts=True):
        assert sweep(tmp_path, *SLURM, setup, "seed=range(4)", "trainer.epochs=100") == 0
    assert statuses(tmp_path) == ["complete"] * 4
    assert {run.read_record().provenance.host for run in runs(tmp_path).values()} == {"n1"}
    assert log(tmp_path).count("node n2 refuses what others train") == 1
    assert not left_over(tmp_path)
