"""Sweeps on a real Ray of two nodes: python -m pytest -m cluster tests/cluster/test_ray.py"""

import os
import signal
import socket
import sys
from pathlib import Path

import pytest
from clusters import (
    GRID,
    LONG,
    SEEN,
    assert_refused,
    assert_same_results,
    epochs,
    left_over,
    log,
    runs,
    start,
    statuses,
    sweep,
    until,
)
from helpers import REPOSITORY
from ray_nodes import RayNodes, missing

RAY = ("cluster=ray",)
pytestmark = [
    pytest.mark.cluster,
    pytest.mark.skipif(bool(missing()), reason=missing()),
    pytest.mark.timeout(600),
]


@pytest.fixture(scope="module")
def nodes():
    """Start two nodes of one core each, and a head that runs nothing."""
    with RayNodes() as nodes:
        yield nodes


def test_a_grid_is_trained_by_tasks_with_their_share_at_once(tmp_path, nodes):
    assert sweep(tmp_path, *RAY, *GRID, SEEN) == 0
    records = [run.read_record() for run in runs(tmp_path).values()]
    assert [record.status for record in records] == ["complete"] * 4
    assert {record.provenance.threads for record in records} == {1}
    assert len({record.provenance.job for record in records}) == 4
    spans = sorted((r.provenance.started, r.provenance.ended) for r in records)
    assert spans[1][0] < spans[0][1]
    assert sweep(tmp_path, *RAY, *GRID, SEEN) == 0
    assert "nothing to do" in log(tmp_path)


def test_no_more_runs_at_once_than_are_wanted(tmp_path, nodes):
    assert sweep(tmp_path, *RAY, "seed=0,1", "cluster.jobs=1") == 0
    spans = sorted(
        (r.provenance.started, r.provenance.ended)
        for r in (run.read_record() for run in runs(tmp_path).values())
    )
    assert spans[0][1] < spans[1][0]


def test_the_runs_of_a_node_that_is_lost_go_on_elsewhere(tmp_path, nodes, undisturbed):
    process = start(tmp_path, *RAY, *GRID, LONG)
    until(lambda: len(epochs(tmp_path)) == 2 and min(epochs(tmp_path)) > 5)
    before = nodes.alive()
    nodes.kill_node(1)
    assert process.wait(280) == 0
    assert nodes.alive() == before - 1
    assert_same_results(tmp_path, undisturbed)
    assert " ended (" in log(tmp_path)
    nodes.add()
    until(lambda: nodes.alive() == before)


def test_ctrl_c_lets_tasks_write_their_checkpoints(tmp_path, nodes, undisturbed):
    process = start(tmp_path, *RAY, *GRID, LONG)
    until(lambda: len(epochs(tmp_path)) == 2 and min(epochs(tmp_path)) > 1)
    process.send_signal(signal.SIGINT)
    assert process.wait(60) == 130
    assert statuses(tmp_path) == ["interrupted"] * 2
    assert sweep(tmp_path, *RAY, *GRID, LONG) == 0
    assert_same_results(tmp_path, undisturbed)


def test_a_task_that_a_cancel_does_not_reach_ends_all_the_same(tmp_path, nodes):
    """A task that just begins misses it where Ray ignores SIGINT: its leave to go on is gone."""
    process = start(tmp_path, *RAY, *GRID, LONG)
    until(lambda: len(epochs(tmp_path)) == 2 and min(epochs(tmp_path)) > 1)
    (token,) = (tmp_path / "runs").glob(".sweep-ray-*")
    token.unlink()
    until(lambda: not any(run.is_locked() for run in runs(tmp_path).values()))
    assert "interrupted" in statuses(tmp_path)
    process.send_signal(signal.SIGINT)  # or it would try again and again
    assert process.wait(60) in (1, 130)


def test_tasks_end_with_a_killed_sweep_and_the_same_command_goes_on(tmp_path, nodes, undisturbed):
    process = start(tmp_path, *RAY, *GRID, LONG)
    until(lambda: len(epochs(tmp_path)) == 2 and min(epochs(tmp_path)) > 1)
    process.kill()
    process.wait()
    until(lambda: not any(run.is_locked() for run in runs(tmp_path).values()))
    assert min(epochs(tmp_path)) > 1
    assert sweep(tmp_path, *RAY, *GRID, LONG) == 0
    assert_same_results(tmp_path, undisturbed)
    assert not left_over(tmp_path)


def test_two_sweeps_of_one_grid_share_it(tmp_path, nodes):
    one, other = (start(tmp_path, *RAY, *GRID) for _ in range(2))
    assert (one.wait(280), other.wait(280)) == (0, 0)
    texts = [run.log_file.read_text() for run in runs(tmp_path).values()]
    assert all(text.count("epoch 2/2") == 1 for text in texts)


@pytest.mark.skipif(os.getuid() != 0, reason="needs root")
def test_a_node_that_refuses_what_the_other_trains_is_set_aside(tmp_path):
    """It is a host of another name, on which runs_dir is not mounted."""
    (tmp_path / "runs").mkdir()
    own = f'hostname n2 && mount -t tmpfs none {tmp_path / "runs"} && exec "$0" "$@"'
    with RayNodes(nodes=1) as nodes:
        nodes.add(prefix=("unshare", "--uts", "--mount", "sh", "-c", own))
        until(lambda: nodes.alive() == 3)
        assert sweep(tmp_path, *RAY, "cluster.gpus=0", "seed=range(4)", "trainer.epochs=30") == 0
        nodes.kill_node(1)
        until(lambda: nodes.alive() == 2)
        assert log(tmp_path).count("node n2 refuses what others ") == 1
        hosts = {run.read_record().provenance.host for run in runs(tmp_path).values()}
        assert hosts == {socket.gethostname()}
        assert sweep(tmp_path, *RAY, "cluster.gpus=0", "seed=4,5") == 1
    lines = [line for line in log(tmp_path).splitlines()[-3:] if line.startswith("not started: ")]
    assert ["cluster=ray: its node n2 cannot train: " in line for line in lines] == [True, True]
    assert not left_over(tmp_path)


@pytest.mark.skipif(os.getuid() != 0, reason="needs root")
def test_a_node_without_the_package_is_one_line_of_each_run_and_no_second_task(tmp_path):
    packages = [Path(folder) / "resnests" for folder in (REPOSITORY, *sys.path)]
    hidden = [f"mount -t tmpfs none {path}" for path in {*packages} if path.is_dir()]
    command = " && ".join([*hidden, 'exec "$0" "$@"'])
    with RayNodes(nodes=0) as nodes:
        nodes.add(prefix=("unshare", "--mount", "sh", "-c", command))
        until(lambda: nodes.alive() == 2)
        assert sweep(tmp_path, *RAY, "cluster.gpus=0", "seed=0,1") == 1
    lines = log(tmp_path).splitlines()
    assert len(lines) == 3
    for line in lines[:2]:
        assert line.startswith("not started: digits/tiny/standard seed=")
        assert "cluster=ray: its node " in line
        assert " cannot train: ModuleNotFoundError: No module named" in line


def test_without_its_head_a_sweep_ends_with_its_summary_and_the_same_command_goes_on(
    tmp_path, nodes, undisturbed
):
    process = start(tmp_path, *RAY, *GRID, LONG)
    until(lambda: len(epochs(tmp_path)) == 2 and min(epochs(tmp_path)) > 1)
    nodes.kill_node(0)
    assert process.wait(59) == 1  # Ray would end it after 60 s
    last = log(tmp_path).splitlines()[-1]
    assert last.endswith(" of 4 runs are not complete; the same command goes on")
    assert "running" not in statuses(tmp_path)
    assert not left_over(tmp_path)
    nodes.restart()
    assert sweep(tmp_path, *RAY, *GRID, LONG) == 0
    assert_same_results(tmp_path, undisturbed)


@pytest.mark.parametrize(
    ("override", "said"),
    [
        ("cluster.address=127.0.0.1:1", "cluster.address=127.0.0.1:1: expected a Ray cluster"),
        ("cluster.jobs=0", "cluster.jobs=0: expected at least 1"),
    ],
)
def test_what_cannot_work_is_one_line(tmp_path, nodes, override, said):
    assert_refused(tmp_path, said, *RAY, override)
