"""Test which nodes a sweep avoids, where it is known which there are."""

import pytest
from helpers import tiny

from resnests.runs.directory import RunDirectory
from resnests.sweep.executors.nodes import TRIES, Nodes
from resnests.sweep.plan import Run
from resnests.sweep.scheduler import (
    AGAIN,
    NO_DEVICE,
    REFUSED,
    SUSPECT,
    UNREADABLE,
    Job,
    Scheduler,
    State,
)


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
    assert (first.outcomes, nodes.avoided) == ({run: AGAIN}, {"n2"})
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
        assert job.outcomes == {run: AGAIN}
    assert nodes.avoided == {"n1", "n2"}


@pytest.mark.parametrize("known", [{"n1", "n2"}, ()])
def test_a_node_that_trained_and_cannot_read_any_more_takes_no_run_with_it(run, known):
    said: list[str] = []
    nodes, other = Nodes(said.append), Run(run.config, run.directory)
    nodes.judge([over(other, "n1", "complete"), over(other, "n2", "complete")])
    first = over(run, "n1", UNREADABLE)
    nodes.judge([first], known)
    assert (first.outcomes, nodes.avoided) == ({run: AGAIN}, {"n1"})
    assert said == ["node n1 refuses what others train: it gets no more jobs"]


@pytest.mark.parametrize("known", [{"n1", "n2"}, ()])
@pytest.mark.parametrize("retries", [0, 2])
def test_what_no_node_can_read_fails_and_is_tried_as_often_as_sweep_retries_says(
    run, known, retries
):
    nodes = Nodes(lambda line: None)
    run.config.sweep.retries = retries
    scheduler = Scheduler([run], None, lambda: False, lambda line: None)
    count, goes_on = 0, True
    while goes_on:
        node = "n2" if "n1" in nodes.avoided else "n1"
        job = over(run, node, UNREADABLE)
        nodes.judge([job], known)
        goes_on = scheduler._deserves_another_job(job, run, "failed")
        count += 1
    assert not nodes.avoided
    assert count == (2 if retries == 0 else 6)


def test_a_node_that_trains_is_avoided_for_good_at_the_second_run_that_it_alone_fails(run):
    """One card of many fails, or one does once: the others go on training."""
    said: list[str] = []
    nodes = Nodes(said.append)
    one, two, three, other = (Run(run.config, run.directory) for _ in range(4))
    well = [over(other, node, "complete") for node in ("n1", "n2")]
    nodes.judge(well)
    for each in (one, two):
        nodes.judge([over(each, "n1", SUSPECT)])
        assert nodes.avoided == {"n1"}
        nodes.judge([over(each, "n2", "complete")])
        assert not nodes.avoided
        assert said.pop() == "node n1 gets jobs again"
        nodes.judge(well)
    nodes.judge([over(one, "n1", SUSPECT), over(two, "n1", SUSPECT), over(three, "n1", SUSPECT)])
    nodes.judge([over(one, "n2", "complete")])
    assert nodes.avoided == {"n1"}, "two others suspect it yet"
    nodes.judge([over(two, "n2", "complete"), over(three, "n2", SUSPECT)])
    assert nodes.avoided == {"n1"}, "nothing ended well there meanwhile"
    nodes.judge(well[:1])
    assert not nodes.avoided


@pytest.mark.parametrize("known", [{"n1", "n2"}, ()])
def test_a_node_whose_device_fails_under_a_run_is_avoided_until_it_fails_on_another_too(run, known):
    said: list[str] = []
    nodes = Nodes(said.append)
    nodes.judge([over(run, "n1", "complete"), over(run, "n2", "complete")])
    first, second = over(run, "n1", SUSPECT), over(run, "n2", SUSPECT)
    nodes.judge([first], known)
    assert (first.outcomes, nodes.avoided) == ({run: AGAIN}, {"n1"})
    assert said == ["node n1 has a device that fails: it gets no more jobs"]
    assert nodes.judge([second], known)
    assert (second.outcomes, nodes.avoided) == ({run: "failed"}, set())


def test_a_node_stays_avoided_where_another_trained_what_its_device_failed(run, tmp_path):
    other = Run(run.config, run.directory)
    nodes, known = Nodes(lambda line: None), {"n1", "n2"}
    nodes.judge([over(run, "n1", SUSPECT), over(other, "n1", SUSPECT)], known)
    nodes.judge([over(other, "n2", "complete")], known)
    nodes.judge([over(run, "n2", SUSPECT)], known)
    assert nodes.avoided == {"n1"}


def test_on_the_only_node_a_run_under_which_a_device_fails_is_tried_once_more(run):
    nodes = Nodes(lambda line: None)
    for outcome in (AGAIN, "failed"):
        job = over(run, "n1", SUSPECT)
        nodes.judge([job], {"n1"})
        assert job.outcomes == {run: outcome}
    assert not nodes.avoided


def test_a_broken_card_of_the_only_node_takes_no_run_that_its_other_cards_could_train(run):
    """The run waits until they are free, and goes on as long as others end well meanwhile."""
    nodes, other = Nodes(lambda line: None), Run(run.config, run.directory)
    busy = Job("2", [other], State.RUNNING, "n1")
    nodes.judge([over(other, "n1", "complete")])
    for _ in range(2):
        for _ in range(TRIES):
            job = over(run, "n1", NO_DEVICE)
            nodes.judge([job, busy])
            assert (job.state, job.outcomes) == (State.ENDING, {run: NO_DEVICE})
            job.state = State.OVER  # as the next poll has it
            nodes.judge([job])
            assert (job.state, job.outcomes) == (State.OVER, {run: AGAIN})
        nodes.judge([over(other, "n1", "complete")])
    for outcome in [AGAIN] * TRIES + [NO_DEVICE]:
        job = over(run, "n1", NO_DEVICE)
        nodes.judge([job])
        assert job.outcomes == {run: outcome}


def test_a_run_whose_node_was_at_fault_goes_on_although_its_record_says_failed(run):
    scheduler = Scheduler([run], None, lambda: False, lambda line: None)
    verdicts = {AGAIN: True, SUSPECT: False, UNREADABLE: False, "failed": False, NO_DEVICE: False}
    for outcome, goes_on in verdicts.items():
        job = over(run, "n1", outcome)
        assert scheduler._deserves_another_job(job, run, "failed") == goes_on
