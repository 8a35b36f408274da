"""Sweeps of three users, none of them root, who share a folder and a real Slurm of two nodes.

python -m pytest -m cluster tests/cluster/test_users.py
"""

import grp
import shutil
import signal
import stat
import tempfile
from pathlib import Path

import pytest
from accounts import GROUP, NAMES, Lab, lab
from clusters import LONG, SLURM, epochs, left_over, log, runs, until
from slurm import MARKS, Slurm, missing

pytestmark = [
    *MARKS,
    pytest.mark.skipif(
        bool(missing("useradd", "setpriv")), reason="needs root, Slurm, useradd and setpriv"
    ),
]
ANN, BOB, CY = NAMES


@pytest.fixture(scope="module")
def slurm():
    with Slurm(hosts=True) as slurm:
        yield slurm


@pytest.fixture
def users(slurm):
    """Make three users and their folder, where all may enter: not below that of pytest."""
    folder = Path(tempfile.mkdtemp(prefix="lab-", dir="/tmp"))
    folder.chmod(0o755)
    try:
        with lab(folder) as users:
            yield users
            for name in NAMES:
                slurm.ask("scancel", f"--user={name}")
            until(lambda: not slurm.queue())
    finally:
        shutil.rmtree(folder, ignore_errors=True)


def submitted(users: Lab) -> int:
    """Return how many jobs the users' sweeps submitted: each is in an array of its own runs."""
    lines = [line for name in NAMES if (users.folder / name / "sweep.log").exists()
             for line in log(users.folder / name).splitlines()]  # fmt: skip
    return sum(int(line.split()[-2]) for line in lines if line.startswith("submitted"))


def test_three_users_train_each_run_once_and_may_go_on_with_all(users):
    sweeps = [
        users.start(name, *SLURM, f"seed=0,1,{number}") for number, name in enumerate(NAMES, 10)
    ]
    assert [sweep.wait(280) for sweep in sweeps] == [0, 0, 0]
    found = runs(users.folder)
    assert [run.status() for run in found.values()] == ["complete"] * 5
    assert all(run.log_file.read_text().count("epoch 2/2") == 1 for run in found.values())
    assert submitted(users) == 5
    assert not left_over(users.folder)
    owners = {run.record_file.owner() for run in found.values()}
    assert owners == set(NAMES)
    group = grp.getgrnam(GROUP).gr_gid
    for path in (users.folder / "runs").rglob("*"):
        status = path.stat()
        wanted = stat.S_IRGRP | stat.S_IWGRP
        assert status.st_gid == group, path
        assert status.st_mode & wanted == wanted, path


def test_a_user_who_stops_does_not_stop_another(users):
    ann = users.start(ANN, *SLURM, "seed=0,1", LONG)
    until(lambda: len(epochs(users.folder)) == 2 and min(epochs(users.folder)) > 1)
    bob, cy = (users.start(name, *SLURM, "seed=0,1", LONG) for name in (BOB, CY))
    logs = [users.folder / name for name in (BOB, CY)]
    until(lambda: all("already (2 of other users)" in log(folder) for folder in logs))
    cy.send_signal(signal.SIGINT)
    assert cy.wait(60) == 130
    assert ann.poll() is bob.poll() is None
    before = min(epochs(users.folder))
    until(lambda: min(epochs(users.folder)) > before)
    ann.send_signal(signal.SIGINT)
    assert ann.wait(60) == 130
    assert bob.wait(280) == 0
    found = runs(users.folder).values()
    assert [run.status() for run in found] == ["complete"] * 2
    assert {run.record_file.owner() for run in found} == {BOB}
    assert submitted(users) == 4, "bob goes on with what ann began"
    assert not left_over(users.folder)


def test_a_run_that_another_user_keeps_closed_is_passed_over(users):
    assert users.start(BOB, *SLURM, "seed=0").wait(280) == 0
    users.umask = "022"
    assert users.start(ANN, *SLURM, "seed=1").wait(280) == 0
    users.umask = "002"
    again = users.start(BOB, *SLURM, "seed=1,2", "trainer.overwrite=true")
    assert again.wait(280) == 1
    lines = log(users.folder / BOB).splitlines()
    (line,) = [line for line in lines if line.startswith("passed over: ")]
    assert line.startswith("passed over: digits/tiny/standard seed=1: ")
    assert line.endswith(f"cannot be written; it belongs to {ANN}")
    assert [run.status() for run in runs(users.folder).values()] == ["complete"] * 3
