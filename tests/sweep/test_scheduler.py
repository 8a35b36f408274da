"""Test what a sweep makes of its jobs, with a queue that a test moves."""

import errno
import signal
import socket
from dataclasses import replace

import pytest
from helpers import run_command, tiny, write_run

from resnests.config.cluster import Cluster
from resnests.config.submitit import from_submitit
from resnests.errors import UserError
from resnests.runs.directory import RunDirectory
from resnests.runs.record import UnreadableRun
from resnests.sweep.executors import slurm_job
from resnests.sweep.executors.submission import Submission, find_submissions, read_submission
from resnests.sweep.plan import Run
from resnests.sweep.protocol import SweepFolder
from resnests.sweep.scheduler import Job, Scheduler, State


def put(run: Run, status: str, epochs: int = 0) -> None:
    write_run(run.config, status, epochs=epochs)


class Queue:
    """Runs one run a job: `move` sets at every poll what became of the jobs by then."""

    def __init__(self, move):
        self.move, self.polls, self.submitted, self.cancels = move, 0, [], []
        self.report = print

    def submit(self, runs, busy, open_jobs):
        self.submitted.append([run.index for run in runs])
        return [Job(f"{len(self.submitted)}_{run.index}", [run]) for run in runs]

    def poll(self, jobs):
        self.polls += 1
        assert self.polls < 50, "without an end"
        for job in jobs:
            self.move(self, job, job.runs[0])

    def last_log_line(self, job):
        return ""

    def cancel(self, jobs, kill):
        self.cancels.append(kill)
        for job in jobs:
            job.state = State.OVER

    def close(self, jobs):
        self.left = list(jobs)

    def pause(self, elapsed):
        return 0


def finish(queue, job, run):
    put(run, "complete")
    job.state, job.started = State.OVER, True


@pytest.fixture
def runs(tmp_path) -> list[Run]:
    configs = [tiny(f"runs_dir={tmp_path / 'runs'}", f"seed={seed}") for seed in range(3)]
    return [Run(config, RunDirectory.of(config), i) for i, config in enumerate(configs)]


def bring_to_end(runs, move, stopping=lambda: False, said=None) -> Queue:
    queue = Queue(move)
    say = (lambda line: None) if said is None else said.append
    list(Scheduler(runs, queue, stopping, say).rounds())
    return queue


def test_one_jobs_death_costs_that_job_only(runs):
    def move(queue, job, run):
        if job.name == "1_1":
            put(run, "running", epochs=3)
            job.state, job.reason = State.OVER, "NODE_FAIL"
        elif run.index == 1 or queue.polls > 3:
            finish(queue, job, run)

    said = []
    queue = bring_to_end(runs, move, said=said)
    assert queue.submitted == [[0, 1, 2], [1]]
    assert said == [f"killed: {runs[1].label}, job 1_1 ended (NODE_FAIL); trying again"]
    assert all(run.directory.status() == "complete" for run in runs)


def test_a_run_is_tried_again_as_long_as_its_epochs_advance_and_three_times_where_not(runs):
    epochs = iter([1, 2, 3, 3, 3])

    def move(queue, job, run):
        put(run, "interrupted", next(epochs, 3))
        job.state = State.OVER

    assert len(bring_to_end(runs[:1], move).submitted) == 6  # three times further, three times not


def test_a_failure_is_tried_again_as_often_as_the_user_wants(runs):
    def move(queue, job, run):
        put(run, "failed")
        job.state = State.OVER

    assert len(bring_to_end(runs[:1], move).submitted) == 1
    sweep = replace(runs[0].config.sweep, retries=2)
    again = replace(runs[0], config=replace(runs[0].config, sweep=sweep))
    assert len(bring_to_end([again], move).submitted) == 3


def test_a_run_that_waited_for_a_device_when_the_sweep_was_stopped_had_no_job(runs):
    def move(queue, job, run):
        job.name, job.started = "", run.index == 0
        if not queue.cancels:
            job.state = State.RUNNING if job.started else State.QUEUED

    asked = iter([False, False])
    bring_to_end(runs, move, stopping=lambda: next(asked, True))
    assert [run.directory.log_file.exists() for run in runs] == [True, False, False]


def test_where_all_jobs_are_cancelled_the_sweep_ends(runs):
    def move(queue, job, run):
        job.state, job.started = State.CANCELLED, run.index == 0
        put(run, "interrupted", epochs=2)

    assert len(bring_to_end(runs, move).submitted) == 1


def test_one_cancelled_job_among_others_is_a_loss_and_a_waiting_one_is_unwanted(runs):
    def move(queue, job, run):
        if queue.polls == 1 and run.index < 2:
            job.state, job.started = State.CANCELLED, run.index == 0
            if job.started:
                put(run, "interrupted", epochs=2)
        elif queue.polls > 3:
            finish(queue, job, run)

    assert bring_to_end(runs, move).submitted == [[0, 1, 2], [0]]
    assert [run.directory.status() for run in runs] == ["complete", None, "complete"]


def test_what_another_sweep_trains_is_waited_for_and_ours_if_it_gives_it_back(runs):
    other = runs[0].directory.lock().acquire()

    def move(queue, job, run):
        if queue.polls == 3:
            other.release()
        if run.index == 0 or queue.polls > 3:
            finish(queue, job, run)

    assert bring_to_end(runs, move).submitted == [[1, 2], [0]]


def test_a_run_whose_job_found_it_taken_is_settled_when_the_other_lets_go(runs):
    other = runs[0].directory.lock()

    def move(queue, job, run):
        if job.name == "1_0":
            other.acquire()
            job.state = State.OVER
        elif run.index == 0 or queue.polls > 3:
            finish(queue, job, run)
        if queue.polls == 2 and other.is_held():
            put(runs[0], "interrupted", epochs=1)
            other.release()

    assert bring_to_end(runs, move).submitted == [[0, 1, 2], [0]]


def test_a_system_that_is_away_for_a_while_is_asked_again(runs):
    def move(queue, job, run):
        if queue.polls < 4:
            raise UserError("squeue says: no")
        finish(queue, job, run)

    said = []
    assert len(bring_to_end(runs, move, said=said).submitted) == 1
    assert said == ["squeue says: no; asking again"]


@pytest.mark.parametrize("looks", [4, 1000])
@pytest.mark.parametrize("when", ["idle", "over"])
def test_a_run_that_cannot_be_read_costs_no_other_and_is_waited_for_a_while(
    runs, monkeypatch, looks, when
):
    real, failing, done = RunDirectory.read_record, {"looks": 0}, []

    def read(self):
        if self.path == runs[1].directory.path and failing["looks"]:
            failing["looks"] -= 1
            raise UnreadableRun(self.path, OSError(errno.ESTALE, "Stale file handle"))
        return real(self)

    def move(queue, job, run):
        if run is runs[1 if when == "over" else 0] and run not in done:
            failing["looks"] = looks
        if when == "idle" and run is runs[1] and run not in done:
            put(run, "interrupted", epochs=1)
            job.state, job.started = State.OVER, True
        else:
            finish(queue, job, run)
        done.append(run)

    monkeypatch.setattr(RunDirectory, "read_record", read)
    said = []
    queue = bring_to_end(runs, move, said=said)
    failing["looks"] = 0
    finished = [run.status() == "complete" for run in runs]
    assert finished == [True, looks == 4 or when == "over", True]
    assert queue.cancels == []
    (line,) = [line for line in said if "cannot be read" in line]
    assert line.endswith("; looking again")


def test_a_system_that_refuses_the_first_jobs_is_an_error(runs, monkeypatch):
    def refuse(self, runs, busy, open_jobs):
        raise UserError("sbatch says: no")

    monkeypatch.setattr(Queue, "submit", refuse)
    with pytest.raises(UserError, match="sbatch says: no"):
        bring_to_end(runs, finish)


def test_who_stops_a_sweep_stops_its_jobs_and_waits_for_them(runs):
    queue = bring_to_end(runs, lambda *_: None, stopping=iter([False] + [True] * 99).__next__)
    assert (queue.cancels, len(queue.submitted)) == ([False], 1)


def test_a_second_signal_kills_them(runs):
    def move(queue, job, run):
        raise KeyboardInterrupt

    queue = Queue(move)
    with pytest.raises(KeyboardInterrupt):
        list(Scheduler(runs, queue, lambda: False, print).rounds())
    assert queue.cancels == [True]


def test_what_a_second_signal_killed_is_not_on_record_as_running(runs, monkeypatch):
    def move(queue, job, run):
        job.state = State.RUNNING
        put(run, "running", epochs=1)
        if run.index == 2:
            raise KeyboardInterrupt

    monkeypatch.setattr(Queue, "cancel", lambda self, jobs, kill: None)
    with pytest.raises(KeyboardInterrupt):
        list(Scheduler(runs, Queue(move), lambda: False, print).rounds())
    records = [run.directory.read_record() for run in runs]
    assert {(record.status, record.error[-17:]) for record in records} == {
        ("killed", "ended (cancelled)")
    }


@pytest.mark.slow
def test_fail_fast_stops_the_jobs_at_the_first_failure(runs):
    sweep = replace(runs[0].config.sweep, fail_fast=True)
    runs = [replace(run, config=replace(run.config, sweep=sweep)) for run in runs]

    def move(queue, job, run):
        if run.index == 1:
            put(run, "failed")
            job.state = State.OVER

    queue = bring_to_end(runs, move)
    assert (queue.cancels, len(queue.submitted)) == ([False], 1)


def test_a_recent_sign_of_life_does_not_hold_up_a_run_whose_job_is_gone(runs):
    """The heartbeat is of another host, from where it would be believed for a minute."""

    def move(queue, job, run):
        if job.name == "1_0":
            put(run, "running", epochs=1)
            run.directory.write_progress({"job": "1_0"})
            text = run.directory.progress_file.read_text()
            text = text.replace(f'"{socket.gethostname()}"', '"elsewhere"')
            run.directory.progress_file.write_text(text)
            assert run.directory.is_locked()
            job.state = State.OVER
        else:
            finish(queue, job, run)

    assert bring_to_end(runs[:1], move).submitted == [[0], [0]]


@pytest.fixture
def submission(runs, monkeypatch) -> Submission:
    """Return a submission of two jobs, for two runs and for one, and what the second finds."""
    for name in ("RESNESTS_SWEEP", "RESNESTS_COMMAND", "PYTHONPATH", "RESNESTS_JOB"):
        monkeypatch.setenv(name, "")  # so that what is set is undone
    (runs[0].directory.path.parents[4]).mkdir(exist_ok=True)
    monkeypatch.setenv("SLURM_ARRAY_JOB_ID", "17")
    monkeypatch.setenv("SLURM_ARRAY_TASK_ID", "1")
    submission = Submission.write([runs[:2], runs[2:]])
    monkeypatch.setenv("RESNESTS_SWEEP", str(submission.folder))
    return submission


def test_a_submission_tells_each_job_its_runs(runs, submission):
    assert [list(submission.numbers(task)) for task in (0, 1)] == [[0, 1], [2]]
    spec = SweepFolder.of_this_job().read(2)
    assert (spec.config["seed"], spec.config["cluster"]) == (2, None)
    (found,) = find_submissions(runs[0].config.runs_dir)
    assert found == submission
    assert found.batches[1] == [str(runs[2].directory.path.relative_to(runs[2].config.runs_dir))]
    submission.remove()
    assert not find_submissions(runs[0].config.runs_dir)
    assert read_submission(submission.folder).batches == []
    assert SweepFolder.of_this_job().read(2) is None


@pytest.mark.slow
@pytest.mark.parametrize(
    ("received", "epochs", "asked"),
    [
        (signal.SIGUSR2, 3, [["scontrol", "requeue", "17_1"]]),
        (signal.SIGUSR2, 0, []),
        (signal.SIGTERM, 3, []),
    ],
)
def test_a_job_queues_again_before_its_time_limit_if_it_got_on(
    runs, submission, monkeypatch, received, epochs, asked
):
    def run_job(index, at_once, aside):
        assert (index, at_once) == (2, 1)
        put(runs[2], "interrupted", epochs)
        signal.raise_signal(received)

    put(runs[2], "interrupted")
    calls = []
    monkeypatch.setattr(slurm_job, "run_job", run_job)
    seen = set[str]()

    def run(words: list[str], env: dict[str, str]) -> None:
        calls.append(words)
        seen.update(env)

    monkeypatch.setattr(slurm_job.subprocess, "run", run)
    monkeypatch.setenv("SCONTROL_ALL", "1")
    assert slurm_job.main() == 1
    assert not any(name.startswith("SCONTROL_") for name in seen)
    assert calls == asked


def test_a_node_without_scontrol_leaves_it_to_the_sweep(runs, submission, monkeypatch):
    def run_job(index, at_once, aside):
        put(runs[2], "interrupted", epochs=3)
        signal.raise_signal(signal.SIGUSR2)

    monkeypatch.setattr(slurm_job, "run_job", run_job)
    monkeypatch.setenv("PATH", "")
    assert slurm_job.main() == 1


def test_a_job_trains_what_is_finished_where_it_is_to_start_afresh(runs, submission, monkeypatch):
    put(runs[2], "complete", epochs=1)
    again = replace(runs[2], replaces=runs[2].directory.record_digest())
    monkeypatch.setenv("RESNESTS_SWEEP", str(Submission.write([runs[:2], [again]]).folder))
    trained = []
    monkeypatch.setattr(slurm_job, "run_job", lambda number, *_: trained.append(number))
    assert slurm_job.main() == 1  # it says so where nothing has come of it
    monkeypatch.setattr(slurm_job, "run_job", lambda *_: put(runs[2], "complete", epochs=2))
    assert slurm_job.main() == 0
    assert trained == [2]


def test_a_job_leaves_alone_what_is_finished(runs, submission, monkeypatch):
    put(runs[2], "complete")
    monkeypatch.setattr(slurm_job, "run_job", lambda *_: pytest.fail("trained again"))
    assert slurm_job.main() == 0


@pytest.mark.parametrize(
    ("values", "said"),
    [
        ({"name": "pbs"}, "cluster=pbs: expected one of slurm, ray"),
        ({"name": "ray", "partition": "gpu"}, "cluster.partition=gpu: expected null, as cluster="),
        ({"name": None, "gpus": 0}, "cluster.gpus=0: expected null, without a cluster"),
        ({"name": None, "time": "4h"}, "cluster.time=4h: expected null, without a cluster"),
        ({"name": "slurm", "address": "auto"}, "cluster.address=auto: expected null, as cluster="),
        ({"name": "slurm", "gpus": 0.5}, "cluster.gpus=0.5: expected a number of GPUs"),
        ({"name": "ray", "gpus": 2}, "cluster.gpus=2: expected 0 to 1"),
        ({"name": "slurm", "time": "soon"}, "cluster.time=soon: expected a time such as 30m"),
        ({"name": "slurm", "time": "0h"}, "cluster.time=0h: expected a time such as 30m"),
        ({"name": "slurm", "runs_per_job": 0}, "cluster.runs_per_job=0: expected at least 1"),
        ({"name": "slurm", "grace": None}, "cluster.grace=null: expected a value"),
        ({"name": "ray", "address": ""}, "cluster.address=: expected auto, or an address"),
        ({"name": "ray", "address": "ray://a:1"}, "cluster.address=ray://a:1: expected auto, or"),
    ],
)
def test_values_that_a_cluster_cannot_have_are_named(values, said):
    required = {"runs_per_job": 1, "grace": 90, "detach": False}
    needed = {"slurm": required, "ray": {"address": "auto"}}.get(values["name"], {})
    with pytest.raises(UserError) as caught:
        Cluster(**needed | values)
    assert str(caught.value).startswith(said)


@pytest.mark.parametrize(
    ("time", "expected"), [("4h", "240"), ("1d12h", "2160"), ("90m", "90"), ("1-12:00", "1-12:00")]
)
def test_times_as_slurm_has_them(time, expected):
    cluster = Cluster(name="slurm", runs_per_job=1, grace=90, detach=False, time=time)
    assert cluster.slurm_time() == expected


def test_the_keys_of_hydras_launcher_mean_what_they_mean_there():
    params = {"timeout_min": 90, "signal_delay_s": 30, "cpus_per_task": 2, "gpus_per_node": 1}
    params |= {"mem_gb": 8, "array_parallelism": 5, "constraint": "a100", "setup": ["true"]}
    params |= {"additional_parameters": {"mail-type": "END", "exclusive": True}, "partition": "gpu"}
    cluster = from_submitit(params)
    assert (cluster.time, cluster.grace, cluster.cpus, cluster.gpus) == ("90", 30, 2, 1)
    assert (cluster.memory, cluster.jobs, cluster.partition) == ("8G", 5, "gpu")
    assert cluster.options == ["--constraint=a100", "--mail-type=END", "--exclusive"]
    with pytest.raises(UserError, match=r"hydra.launcher.nodes=2: expected 1"):
        from_submitit(params | {"nodes": 2})


def test_a_cluster_is_no_part_of_a_runs_identity_and_excludes_what_it_would_ignore():
    there = ("cluster=slurm", "cluster.partition=gpu", "cluster.time=4h")
    assert RunDirectory.of(tiny(*there)).path == RunDirectory.of(tiny()).path
    with pytest.raises(UserError, match=r"devices.slots=2: expected null with cluster=ray"):
        tiny("cluster=ray", "devices.slots=2")
    assert tiny().cluster is None
    with pytest.raises(UserError, match=r"cluster.time=4h: expected null, without a cluster"):
        tiny("cluster.time=4h")
    with pytest.raises(UserError, match=r"cluster=slurm: expected null, as task=export"):
        tiny("cluster=slurm", "task=export", "weights=x")


@pytest.mark.slow
def test_slurm_and_ray_that_are_not_there_are_one_line(tmp_path):
    place = {"PATH": str(tmp_path)}
    command = ("-m", "dataset=digits", "seed=0,1")
    done = run_command(*command, "cluster=slurm", cwd=tmp_path, environment=place)
    assert done.returncode == 2
    said = "cluster=slurm: expected sbatch on the PATH, as on a login node of a Slurm cluster"
    assert done.stderr == f"error: {said}\n"
    hidden = tmp_path / "ray.py"
    hidden.write_text("raise ImportError('hidden')")
    done = run_command(*command, "cluster=ray", cwd=tmp_path, environment={"PYTHONPATH": tmp_path})
    assert done.returncode == 2
    assert done.stderr.startswith("error: cluster=ray: expected the package ray, which pip install")
    assert len(done.stderr.splitlines()) == 1
