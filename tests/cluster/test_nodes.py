"""Which nodes a sweep avoids, where it is known which there are."""

import pytest
from helpers import tiny

from resnests.runs.directory import RunDirectory
from resnests.sweep.executors.nodes import Nodes
from resnests.sweep.plan import Run
from resnests.sweep.scheduler import NO_DEVICE, REFUSED, Job, State


@pytest.fixture
def run(tmp_path) -> Run:
    config = tiny(f"runs_dir={tmp_path}")
    return Run(config, RunDirectory.of(config))


def over(run: Run, node: str, outcome: str) -> Job:
    """Return the job of `run` that ended so on a node."""
    return Job("1", [run], State.OVER, node, outcomes={run: outcome})


def test_a_run_goes_on_where_nothing_was_refused_yet_and_once(run):
    said: list[str] = []
    nodes = Nodes(said.append)
    first, known = over(run, "n2", REFUSED), {"n1", "n2", "n3"}
    assert nodes.judge([first], known)
    assert (first.outcomes, nodes.avoided) == ({}, {"n2"})
    assert said == ["node n2 refuses what others may train: it gets no more jobs"]
    again = over(run, "n1", REFUSED)
    nodes.judge([again], known)
    assert again.outcomes == {run: REFUSED}


@pytest.mark.parametrize("outcome", [REFUSED, NO_DEVICE])
def test_the_last_node_is_never_avoided(run, outcome):
    nodes = Nodes(lambda line: None)
    for node in ("n1", "n2"):
        last = over(run, node, outcome)
        nodes.judge([last], {"n1", "n2"})
    assert nodes.avoided == {"n1"}
    assert last.outcomes == {run: outcome}
    assert last.is_over


def test_a_run_without_a_device_that_works_goes_on_as_often_as_there_are_nodes(run):
    nodes, known = Nodes(lambda line: None), {"n1", "n2", "n3"}
    nodes.judge([over(run, "n1", "complete")], known)
    for node in ("n1", "n2"):
        job = over(run, node, NO_DEVICE)
        nodes.judge([job], known)
        assert job.outcomes == {}
    assert nodes.avoided == {"n1", "n2"}
