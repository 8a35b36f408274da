"""Jobs of Slurm by what its commands answer, with stand-ins on the PATH."""

import os
import re
import resource
import socket
import subprocess
import sys
import tempfile
import threading
import time
from contextlib import suppress
from dataclasses import replace
from itertools import chain

import pytest
from helpers import REPOSITORY, TINY, run_command, tiny, write_run
from queues import StandIn

from resnests.commands.queue import PATIENCE, queue_lines, queued_runs
from resnests.commands.views import InsideReader, View
from resnests.errors import UserError
from resnests.results.output import plan
from resnests.runs.directory import RunDirectory
from resnests.runs.record import METRICS, Provenance, Record
from resnests.runs.sweeps import find_asked
from resnests.sweep.drive import run_sweep
from resnests.sweep.executors import submission
from resnests.sweep.executors.slurm import SLOWEST_SECONDS, SlurmExecutor
from resnests.sweep.executors.slurm_commands import Seen, ask
from resnests.sweep.executors.slurm_lanes import Lanes
from resnests.sweep.executors.slurm_script import LACKS, job_script
from resnests.sweep.executors.slurm_task import UNLISTED, SlurmJob
from resnests.sweep.executors.submission import Submission
from resnests.sweep.plan import Run
from resnests.sweep.process import last_log_line, run_on_host
from resnests.sweep.scheduler import AGAIN, NO_DEVICE, REFUSED, State
from resnests.sweep.stop import Stop

FEW = 150  # jobs of a short queue


@pytest.fixture
def slurm(tmp_path, monkeypatch) -> StandIn:
    slurm = StandIn(tmp_path / "slurm")
    monkeypatch.setenv("PATH", slurm.path)
    for name in ("RESNESTS_SWEEP", "RESNESTS_COMMAND", "PYTHONPATH"):
        monkeypatch.setenv(name, "")  # so that what is set is undone
    return slurm


@pytest.fixture
def runs(tmp_path) -> list[Run]:
    (tmp_path / "runs").mkdir()
    config = tiny(f"runs_dir={tmp_path / 'runs'}", "cluster=slurm")
    configs = [replace(config, seed=seed) for seed in range(6)]
    return [Run(config, RunDirectory.of(config), i) for i, config in enumerate(configs)]


def executor(runs: list[Run]) -> tuple[SlurmExecutor, list[str]]:
    """Return one for these runs, and the lines that it reports."""
    made, said = SlurmExecutor(runs[0].config), []
    made.report = said.append
    return made, said


def test_a_job_that_squeue_does_not_list_is_not_over_before_it_says_so_or_minutes_passed(
    slurm, runs
):
    mine, _ = executor(runs)
    jobs = mine.submit(runs[:2], [], 0)
    folder = jobs[0].submission.folder
    mine.poll(jobs)
    assert [(job.state, job.reason) for job in jobs] == [(State.QUEUED, UNLISTED)] * 2
    jobs[0].submission.specs.end(0, "complete")
    mine.poll(jobs)
    assert [job.is_over for job in jobs] == [True, False]
    assert jobs[0].outcomes == {runs[0]: "complete"}
    slurm.show(f"{folder.name.removeprefix('.sweep-')}|17|1|RUNNING|n1|None")
    mine.poll(jobs)
    assert (jobs[1].state, jobs[1].name) == (State.RUNNING, "17_1")
    slurm.show()  # a controller that lost its state
    mine.poll(jobs)
    assert jobs[1].state is State.RUNNING
    os.utime(folder / "unlisted", (time.time() - 301,) * 2)
    mine.poll(jobs)
    assert jobs[1].state is State.OVER


def test_another_sweep_leaves_alone_what_squeue_does_not_list(slurm, runs):
    mine, _ = executor(runs)
    (job,) = mine.submit(runs[:1], [], 0)
    other, said = executor(runs)
    (new,) = other.submit(runs[1:2], [], 0)
    other.close([new])
    assert job.submission.specs.read(0) is not None
    (adopted,) = other.submit(runs[:1], [], 1)  # not submitted twice either
    assert (adopted.submission, adopted.state) == (job.submission, State.QUEUED)
    assert said[-1].startswith("squeue does not list 1 job(s) of these runs")
    os.utime(job.submission.folder / "unlisted", (time.time() - 301,) * 2)
    other.close([new])
    assert not job.submission.folder.exists()


def test_a_sweep_that_stops_does_not_wait_for_what_is_not_listed_and_never_began(slurm, runs):
    mine, _ = executor(runs)
    jobs = mine.submit(runs[:2], [], 0)
    jobs[0].update({"0": Seen("17_0", State.RUNNING, "n1", "")}, False, ())
    mine.cancel(jobs, kill=False)
    mine.poll(jobs)
    assert [job.state for job in jobs] == [State.RUNNING, State.OVER]


def test_the_users_shell_changes_no_call_but_where_jobs_run(slurm, runs, monkeypatch):
    ours = ("SQUEUE_PARTITION", "SBATCH_WAIT", "SCANCEL_INTERACTIVE", "SINFO_ALL", "SLURM_JOB_ID")
    for name in (*ours, "SBATCH_ACCOUNT", "SLURM_CONF"):
        monkeypatch.setenv(name, "1")
    mine, _ = executor(runs)
    jobs = mine.submit(runs[:1], [], 0)
    mine.poll(jobs)
    mine.cancel(jobs, kill=True)
    for command in ("sbatch", "squeue", "scancel"):
        seen = slurm.environment(command)
        assert not seen.keys() & set(ours), command
        assert seen.keys() >= {"SBATCH_ACCOUNT", "SLURM_CONF"}
    assert "--all" in slurm.words("squeue").split()


def do(runs: list[Run], tmp_path, monkeypatch, *setup: str) -> tuple[int, str]:
    """Return the exit status of a job with this setup, and what it printed."""
    python = tmp_path / "python"
    python.write_text('#!/bin/sh\necho "trained with $FOO"\n')
    python.chmod(0o755)
    monkeypatch.setattr(sys, "executable", str(python))
    submission = Submission.write([runs[:1]])
    log = submission.folder / "0.log"
    with open(log, "w") as output:
        done = subprocess.run(
            ["bash", "-c", 'exec /bin/bash /dev/stdin'], input=job_script(submission, setup),
            text=True, stdout=output, stderr=output,
            env=os.environ | {"SLURM_ARRAY_TASK_ID": "0", "BASH_FUNC_module%%": "() { FOO=$2; }"},
        )  # fmt: skip
    return done.returncode, log.read_text()


def test_setup_is_in_the_users_own_shell(runs, tmp_path, monkeypatch):
    environment = tmp_path / "env.sh"
    environment.write_text("declare -x FOO=bar\n")
    assert do(runs, tmp_path, monkeypatch, f"source {environment}") == (0, "trained with bar\n")
    setup = ("module load cuda", "export FOO", "false | true", "cd /")
    assert do(runs, tmp_path, monkeypatch, *setup) == (0, "trained with cuda\n")


@pytest.mark.slow
@pytest.mark.parametrize(
    ("line", "status", "said"),
    [
        ("echo no such place >&2; false", 1, " (no such place)"),
        ("exit 3", 3, ""),
        ("nonsense", 127, ""),
        ("if", 2, ""),
        ("exit 0", 1, ""),
    ],
)
def test_a_failing_line_of_setup_ends_the_job_and_is_named(
    runs, tmp_path, monkeypatch, line, status, said
):
    code, log = do(runs, tmp_path, monkeypatch, "echo first", line, "echo never")
    last = log.splitlines()[-1]
    shown = 0 if line == "exit 0" else status
    assert last.startswith(f"cluster.setup: {line}: exit status {shown}{said}")
    assert code == status
    assert "never" not in log.replace("echo never", "")
    assert "trained" not in log


def test_a_run_whose_setup_failed_is_not_tried_again_and_says_why(slurm, runs):
    mine, _ = executor(runs)
    (job,) = jobs = mine.submit(runs[:1], [], 0)
    line = "cluster.setup: conda activate x: exit status 1 (no such environment)"
    (job.submission.folder / "0.log").write_text(f"hello\n{line}\n")
    slurm.show(f"{job.submission.name}|17|0|FAILED|n1|None")
    mine.poll(jobs)
    assert job.outcomes == {runs[0]: REFUSED}
    assert runs[0].directory.log_file.read_text() == f"{line}\n"


def test_where_a_site_limits_submitted_jobs_the_others_follow_as_these_end(slurm, runs):
    (slurm.folder / "room").write_text("4")
    mine, said = executor(runs)
    jobs = mine.submit(runs, [], 0)
    assert [job.name for job in jobs] == ["17_0", "17_1", "17_2", "18_0"]
    assert "QOSMaxSubmitJobPerUserLimit (cluster.runs_per_job packs more runs" in said[0]
    calls = slurm.words("sbatch")
    assert mine.submit(runs[4:], [], 4) == []  # and Slurm is not asked again
    assert slurm.words("sbatch") == calls
    (slurm.folder / "room").write_text("1")
    assert [job.name for job in mine.submit(runs[4:], [], 3)] == ["19_0"]
    assert mine.submit(runs[5:], [], 3) == []
    assert sum("QOSMaxSubmit" in line for line in said) == 1
    (slurm.folder / "room").write_text("0")
    with pytest.raises(UserError, match="QOSMaxSubmitJobPerUserLimit"):
        executor(runs)[0].submit(runs[5:], [], 0)


def test_off_a_terminal_it_is_reported_once_why_jobs_wait_and_again_when_that_changes(slurm, runs):
    mine, said = executor(runs)
    jobs = mine.submit(runs[:2], [], 0)
    said.clear()
    name = jobs[0].submission.name
    for reason in ("None", "PartitionTimeLimit", "PartitionTimeLimit", "Resources"):
        slurm.show(*(f"{name}|17|{task}|PENDING||{reason}" for task in (0, 1)))
        mine.poll(jobs)
    assert said == ["jobs that wait: 2 (PartitionTimeLimit)", "jobs that wait: 2 (Resources)"]


def show(slurm, jobs, *states: str) -> None:
    """Have squeue print a state and a node of each job, such as "FAILED n1"."""
    lines = []
    for job, text in zip(jobs, states, strict=True):
        state, _, node = text.partition(" ")
        lines.append(f"{job.submission.name}|{job.name.replace('_', '|')}|{state}|{node}|None")
    slurm.show(*lines)


def refuse(job) -> None:
    said = f"cluster=slurm: its node {job.node} has no /env/bin/python"
    (job.submission.folder / f"{job.task}.log").write_text(f"{said}\n")


def test_a_node_that_refuses_what_others_train_is_avoided_and_its_runs_go_on(slurm, runs):
    runs[0].config.cluster.options = ["-x", "n[7-9]"]  # which stay excluded
    mine, said = executor(runs)
    jobs = mine.submit(runs[:3], [], 0)
    show(slurm, jobs, "RUNNING n1", "FAILED n2", "PENDING")
    refuse(jobs[1])
    mine.poll(jobs)
    assert jobs[1].state is State.ENDING  # nobody knows yet whether n1 does better
    runs[0].directory.path.mkdir(parents=True)
    counts = dict.fromkeys(("epoch", "epochs", "step", "steps"), 1)
    values = dict.fromkeys(("loss", "accuracy", "images_per_second"), 1.0)
    runs[0].directory.write_progress({"job": "17_0"} | counts | values)
    mine.poll(jobs)
    assert (jobs[1].state, jobs[1].outcomes) == (State.OVER, {runs[1]: AGAIN})
    assert said[-1] == "node n2 refuses what others train: it gets no more jobs"
    assert slurm.words("scontrol").splitlines()[-1] == "update jobid=17 excnodelist=n[7-9],n2"
    (again,) = mine.submit(runs[1:2], [], 2)
    assert slurm.words("sbatch").splitlines()[-1].endswith(" -x n[7-9] --exclude=n[7-9],n2")
    waits, jobs = jobs[2], [jobs[0], again]
    show(slurm, [*jobs, waits], "COMPLETED n1", "FAILED n1", "PENDING")
    jobs[0].submission.specs.end(0, "complete")
    refuse(again)
    mine.poll([*jobs, waits])
    assert again.outcomes == {runs[1]: REFUSED}  # so that it was no fault of n2
    assert slurm.words("scontrol").splitlines()[-1] == "update jobid=17 excnodelist=n[7-9]"


def test_a_node_without_a_device_that_works_is_avoided_whatever_it_trained_before(slurm, runs):
    mine, said = executor(runs)
    jobs = mine.submit(runs[:3], [], 0)
    show(slurm, jobs, "COMPLETED n1", "COMPLETED n2", "PENDING")
    for job in jobs[:2]:
        job.submission.specs.end(job.task, "complete")
    mine.poll(jobs)
    (late,) = jobs = jobs[2:]
    late.submission.specs.end(late.task, NO_DEVICE)
    show(slurm, jobs, "FAILED n2")
    mine.poll(jobs)
    assert late.outcomes == {runs[2]: AGAIN}  # it goes on elsewhere
    assert said[-1] == "node n2 has no device that works: it gets no more jobs"
    (again,) = mine.submit(runs[2:3], [], 0)
    assert slurm.words("sbatch").splitlines()[-1].endswith(" --exclude=n2")
    again.submission.specs.end(again.task, NO_DEVICE)
    show(slurm, [again], "FAILED n1")
    mine.poll([again])
    assert again.outcomes == {runs[2]: AGAIN}  # no other is known, but this one has trained


def test_what_no_node_trains_is_refused_at_once(slurm, runs):
    mine, _ = executor(runs)
    jobs = mine.submit(runs[:2], [], 0)
    show(slurm, jobs, "FAILED n1", "FAILED n2")
    refuse(jobs[0])
    mine.poll(jobs)  # the other one has no log: its node does not reach the folder
    assert [job.outcomes for job in jobs] == [{runs[0]: REFUSED}, {runs[1]: REFUSED}]
    assert "which its node must reach" in runs[1].directory.log_file.read_text()


@pytest.mark.parametrize("word", ["QOSMaxWallDurationPerJobLimit", "QOSMinGRES", "AssocMaxCpu"])
def test_a_limit_of_another_kind_is_no_reason_to_submit_fewer_jobs(slurm, runs, word):
    policy = "(job submit limit, user's size and/or time limits)"
    said = f"error: {word}\nsbatch: error: Job violates accounting/QOS policy {policy}"
    sbatch = slurm.folder / "bin" / "sbatch"
    text = f'#!/bin/sh\ncd {slurm.folder}\necho "$@" >> sbatch.words\n'
    sbatch.write_text(text + f'echo "sbatch: {said}" >&2\nexit 1\n')
    with pytest.raises(UserError, match=word) as caught:
        executor(runs)[0].submit(runs, [], 0)
    assert "cluster.runs_per_job" not in str(caught.value)
    assert len(slurm.words("sbatch").splitlines()) == 1
    sbatch.write_text(sbatch.read_text().replace(f"error: {word}", ""))
    with pytest.raises(UserError, match=r"cluster.runs_per_job packs more"):
        executor(runs)[0].submit(runs, [], 0)


def test_as_many_jobs_as_ended_are_tried_first_where_a_site_limits_them(slurm, runs):
    (slurm.folder / "room").write_text("2")
    mine, _ = executor(runs)
    assert len(mine.submit(runs, [], 0)) == 2
    (slurm.folder / "sbatch.words").unlink()
    (slurm.folder / "room").write_text("1")
    assert len(mine.submit(runs[2:], [], 1)) == 1
    assert len(slurm.words("sbatch").splitlines()) == 2  # and one that is refused
    (slurm.folder / "room").write_text("100")
    assert len(mine.submit(runs[3:], [], 1)) == 3


@pytest.mark.parametrize(
    ("sizes", "room", "before"),
    [
        ((4, 2, 2), 32, [[], [], []]),
        ((4, 2, 2), 6, [[], [], ["0"]]),
        ((4, 2, 2, 2), 4, [[], ["0"], ["1"], ["2"]]),
        ((1, 1, 2, 1, 1), 2, [[], [], ["0", "1"], ["2"], ["3"]]),
        ((9, 9), None, [[], []]),
        ((9, 9), 4, [[], ["0"]]),
        ((2, 1, 2), 4, [[], [], ["0"]]),
    ],
)
def test_an_array_waits_only_where_more_jobs_than_there_may_be_would_run(sizes, room, before):
    lanes, found = Lanes(room), []
    for number, size in enumerate(sizes):
        found.append(lanes.before(size))
        lanes.add(str(number), size)
    assert found == before


def test_a_stop_reaches_jobs_of_an_earlier_sweep_that_squeue_does_not_list(slurm, runs):
    executor(runs)[0].submit(runs[:2], [], 0)
    mine, _ = executor(runs)
    jobs = mine.submit(runs[:2], [], 0)
    assert [job.name for job in jobs] == ["", ""]
    mine.cancel(jobs, kill=False)
    assert not jobs[0].submission.specs.specs.exists()  # which also stops what runs
    name = jobs[0].submission.name
    slurm.show(f"{name}|17|0|RUNNING|n1|None", f"{name}|17|1|PENDING||Resources")
    for _ in range(2):
        mine.poll(jobs)
    calls = slurm.words("scancel").splitlines()
    assert "--quiet --batch --signal=TERM 17_1 17_0" in calls  # once there is a name
    assert calls.count("--quiet --state=PENDING 17_1") == 1  # again while it waits


def test_a_stop_leaves_the_other_runs_of_an_array_to_their_sweep(slurm, runs):
    executor(runs)[0].submit(runs[:2], [], 0)
    mine, _ = executor(runs)
    jobs = mine.submit(runs[:1], [], 0)
    mine.cancel(jobs, kill=False)
    assert jobs[0].submission.specs.specs.exists()


@pytest.mark.parametrize("fails", ["record of another sweep's run", "removal of the specs"])
def test_a_stop_cancels_jobs_whatever_file_fails(slurm, runs, fails):
    array = executor(runs)[0].submit(runs[:2], [], 0)[0].submission
    slurm.show(f"{array.name}|17|0|RUNNING|n1|None")
    mine, _ = executor(runs)
    if fails == "removal of the specs":
        jobs = mine.submit(runs[:2], [], 0)[:1]
        array.specs.specs.unlink()
        array.specs.specs.mkdir()  # no file that could be unlinked
    else:
        jobs = mine.submit(runs[:1], [], 0)
        runs[1].directory.record_file.mkdir(parents=True)  # nor one that could be read
    for kill in (False, True):
        mine.cancel(jobs, kill=kill)
    assert slurm.words("scancel").splitlines()[1:] == [
        "--quiet --batch --signal=TERM 17_0", "--quiet 17_0",
    ]  # fmt: skip
    assert array.specs.specs.exists()


def test_a_folder_that_another_host_may_be_writing_is_left_for_minutes(slurm, runs):
    made, _ = executor(runs)
    folder = made.runs_dir / ".sweep-resnests-00000000"
    folder.mkdir()
    made.close([])
    assert folder.is_dir()
    os.utime(folder, (time.time() - 301,) * 2)
    made.close([])
    assert not folder.exists()


def test_the_time_limit_of_the_users_shell_has_room_for_the_grace(slurm, runs, monkeypatch):
    monkeypatch.setenv("SBATCH_TIMELIMIT", "1")
    with pytest.raises(UserError, match=r"SBATCH_TIMELIMIT=1: expected more than cluster.grace=90"):
        executor(runs)
    runs[0].config.cluster.time = "4h"  # which overrides it
    executor(runs)


def test_a_terminal_on_which_no_table_is_drawn_is_told_why_jobs_wait(slurm, runs, monkeypatch):
    monkeypatch.setattr(sys.stdout, "isatty", lambda: True, raising=False)
    mine, said = executor(runs)
    jobs = mine.submit(runs[:1], [], 0)
    slurm.show(f"{jobs[0].submission.name}|17|0|PENDING||PartitionTimeLimit")
    mine.poll(jobs)
    assert said[-1] == "jobs that wait: 1 (PartitionTimeLimit)"
    mine.is_drawn, mine.reasons = True, set()
    mine.poll(jobs)
    assert len([line for line in said if "jobs that wait" in line]) == 1


def test_detached_runs_that_are_in_no_job_are_counted(slurm, runs, capsys):
    (slurm.folder / "room").write_text("4")
    configs = [run.config for run in runs]
    for config in configs:
        config.cluster.detach = True
    assert run_sweep(configs, pytest.fail) == 0
    assert "2 run(s) are in no job; the same command again" in capsys.readouterr().out


@pytest.mark.parametrize("is_old", [True, False], ids=["old", "new"])
def test_a_command_that_starts_afresh_is_not_named_for_what_is_in_no_job(
    slurm, runs, capsys, is_old
):
    (slurm.folder / "room").write_text("4")
    configs = [run.config for run in runs]
    for config in configs:
        config.cluster.detach = config.trainer.overwrite = True
        if is_old:
            write_run(config, "complete")
    assert run_sweep(configs, pytest.fail) == 0
    alone = f"the same command for these alone, from {runs[4].label} on, submits them"
    without = "the same command without trainer.overwrite=true submits them"
    said = capsys.readouterr().out
    assert f"2 run(s) are in no job; {alone if is_old else without}" in said
    if is_old:
        for config in configs:
            config.trainer.overwrite = False
        assert run_sweep(configs, pytest.fail) == 0
        assert "nothing to do" in capsys.readouterr().out
        assert find_asked(configs[0].runs_dir), "what the jobs are to make again is known yet"


@pytest.mark.slow
def test_the_keys_of_a_launcher_in_an_experiments_file_reach_sbatch(slurm, tmp_path):
    pytest.importorskip("hydra_plugins.hydra_submitit_launcher")
    (slurm.folder / "room").write_text("0")  # it ends with what sbatch says
    (tmp_path / "experiment").mkdir()
    launcher = "hydra: {launcher: {partition: gpu, timeout_min: 90}}"
    content = f"defaults: [override /hydra/launcher: submitit_slurm]\n{launcher}\n"
    (tmp_path / "experiment" / "mine.yaml").write_text(f"# @package _global_\n{content}")
    words = (f"--config-dir={tmp_path}", *TINY, "experiment=mine")
    done = run_command("-m", *words, cwd=tmp_path)
    assert (done.returncode, "QOSMaxSubmitJob" in done.stderr) == (2, True), done.stderr
    assert {"--partition=gpu", "--time=90"} <= set(slurm.words("sbatch").split())


@pytest.mark.slow
@pytest.mark.parametrize(
    ("most", "limit", "waits_for"),
    [
        ("0", 2, [None, None, "17", "18", "19", "20"]),  # a site without arrays
        ("1", 2, [None, None, "17", "18", "19", "20"]),
        ("4", 2, [None, "17"]),
        ("3", 7, [None, None]),
        ("1", "null", [None] * 6),
    ],
)
def test_arrays_that_are_smaller_than_the_limit_wait_for_each_other(
    slurm, runs, most, limit, waits_for
):
    text = (slurm.folder / "bin" / "scontrol").read_text()
    (slurm.folder / "bin" / "scontrol").write_text(text.replace("1001", most))
    mine, _ = executor(runs)
    mine.cluster = replace(mine.cluster, jobs=None if limit == "null" else limit)
    jobs = mine.submit(runs, [], 0)
    assert len(jobs) == 6
    calls = slurm.words("sbatch").splitlines()
    found = [re.search("--dependency=afterany:([0-9]+)", call) for call in calls]
    assert [match and match[1] for match in found] == waits_for
    assert all(("--array=" in call) == (most != "0") for call in calls)


def test_a_job_that_is_in_no_array_is_found_by_its_name(slurm, runs):
    mine, _ = executor(runs)
    mine.limits = (0, 300)
    jobs = mine.submit(runs[:2], [], 0)
    names = [job.submission.name for job in jobs]
    slurm.show(f"{names[0]}|17|N/A|RUNNING|n1|None", f"{names[1]}|18|N/A|PENDING||Resources")
    mine.poll(jobs)
    assert [(job.name, job.state) for job in jobs] == [("17", State.RUNNING), ("18", State.QUEUED)]
    found = executor(runs)[0].submit(runs[:2], [], 0)
    assert {job.name for job in found} == {"17", "18"}
    assert "queued: " in queue_lines(queued_runs(runs[0].config.runs_dir))[1]
    mine.cancel(jobs, kill=True)
    assert slurm.words("scancel").split()[-2:] == ["17", "18"]


@pytest.fixture
def others(slurm, runs, monkeypatch) -> SlurmJob:
    """Submit a job of another user for the first run, in the folder that both share."""
    (job,) = executor(runs)[0].submit(runs[:1], [], 0)
    assert isinstance(job, SlurmJob)
    monkeypatch.setattr(os, "geteuid", lambda: job.submission.folder.stat().st_uid + 1)
    return job


def test_a_run_that_another_user_has_in_the_queue_is_waited_for(slurm, runs, others):
    show(slurm, [others], "PENDING")
    mine, said = executor(runs)
    (job,) = jobs = mine.submit(runs[:1], [], 0)
    assert (job.name, job.state) == (others.name, State.QUEUED)
    assert said == ["1 job(s) of these runs are in the queue already (1 of other users)"]
    show(slurm, [others], "CANCELLED")  # by its owner, which ends no sweep but theirs
    mine.poll(jobs)
    assert (job.state, job.outcomes) == (State.OVER, {})
    mine.close(jobs)
    assert others.submission.folder.exists()
    slurm.show()
    (again,) = mine.submit(runs[:1], [], 0)
    assert again.submission.folder != others.submission.folder


def test_what_slurm_hides_of_another_user_is_submitted_and_left_alone(slurm, runs, others):
    mine, said = executor(runs)
    (job,) = mine.submit(runs[:1], [], 0)
    assert job.submission.folder != others.submission.folder
    assert said == ["submitted job 18_0 of Slurm for 1 runs"]
    mine.close([])
    assert others.submission.specs.read(0) is not None


def test_a_sweep_that_stops_cancels_no_job_of_another_user(slurm, runs, others):
    show(slurm, [others], "RUNNING n1")
    mine, _ = executor(runs)
    jobs = mine.submit(runs[:2], [], 0)
    mine.cancel(jobs, kill=False)
    assert [job.state for job in jobs] == [State.OVER, State.QUEUED]
    mine.cancel(jobs, kill=True)
    mine.poll(jobs)
    assert jobs[0].state is State.OVER  # for this sweep
    cancelled = {line.split()[-1] for line in slurm.words("scancel").splitlines()}
    assert cancelled == {jobs[1].name}
    assert others.submission.specs.read(0) is not None


def test_a_lock_of_another_user_is_one_line(slurm, runs, monkeypatch):
    def closed(*_: object) -> int:
        raise PermissionError(13, "Permission denied")

    monkeypatch.setattr(submission.os, "open", closed)
    with pytest.raises(UserError, match=r"\.sweep\.lock: cannot be locked; it belongs to "):
        executor(runs)[0].submit(runs[:1], [], 0)


def test_where_nothing_is_to_do_what_detached_jobs_left_is_removed(slurm, runs, capsys):
    mine, _ = executor(runs)
    jobs = mine.submit(runs[:2], [], 0)
    for run in runs[:2]:
        run.directory.write_config(run.config)
        values = dict.fromkeys(METRICS, 1.0) | {"parameters": 7}
        record = Record.of(run.config, Provenance())
        run.directory.write_record(replace(record, status="complete", **values))
    for state, is_left in (("RUNNING n1", True), ("COMPLETED n1", False)):
        show(slurm, jobs, state, state)
        assert run_sweep([run.config for run in runs[:2]], pytest.fail) == 0
        assert jobs[0].submission.folder.exists() == is_left
    assert capsys.readouterr().out.count("nothing to do") == 2


def processor_time() -> float:
    """Return the seconds that this process and its children took of a core."""
    used = [resource.getrusage(who) for who in (resource.RUSAGE_SELF, resource.RUSAGE_CHILDREN)]
    return sum(one.ru_utime + one.ru_stime for one in used)


def cost_of_a_look(slurm: StandIn, mine: SlurmExecutor, jobs: list, states: list[str]) -> float:
    """Return the least processor time of three polls of a queue whose last state goes on.

    What else the machine does only adds to it. Each of them asks squeue once.
    """
    show(slurm, jobs, *states, *states[-1:] * (len(jobs) - len(states)))
    costs = []
    for _ in range(3):
        (slurm.folder / "squeue.words").unlink(missing_ok=True)
        before = processor_time()
        mine.poll(jobs)
        costs.append(processor_time() - before)
        assert len(slurm.words("squeue").splitlines()) == 1
    return min(costs)


@pytest.mark.slow
def test_a_look_at_a_long_queue_asks_once_and_costs_in_proportion_to_its_jobs(slurm, runs):
    squeue = slurm.folder / "bin" / "squeue"
    squeue.write_text(squeue.read_text().replace("> squeue.words", ">> squeue.words"))
    (slurm.folder / "room").write_text("1000000")
    mine, _ = executor(runs)
    mine.limits = (10001, 300)  # so that all are in one array
    queues = []
    for seeds in (range(FEW), range(FEW, 9 * FEW)):
        configs = (replace(runs[0].config, seed=seed) for seed in seeds)
        jobs = mine.submit([Run(c, RunDirectory.of(c), i) for i, c in enumerate(configs)], [], 0)
        queues.append(jobs)
    for states in (["RUNNING n1"] * 32 + ["PENDING"], ["COMPLETED n1"]):
        for job in chain(*queues) if "COMPLETED n1" in states else ():  # all within one look
            job.submission.specs.end(job.task, "complete")
        few, many = (cost_of_a_look(slurm, mine, jobs, states) for jobs in queues)
        assert many < 2 * 8 * few, "64 times as much is what grows with the square of the jobs"
    assert all(job.outcomes for job in chain(*queues))


def test_a_slow_squeue_is_asked_less_often(slurm, runs):
    mine, _ = executor(runs)
    jobs = mine.submit(runs[:1], [], 0)
    squeue, seconds = slurm.folder / "bin" / "squeue", 0.2
    squeue.write_text(squeue.read_text().replace("cat queue", f"sleep {seconds}; cat queue"))
    assert mine.pause(0) == 1
    mine.poll(jobs)
    assert 20 * seconds <= mine.pause(0) <= 60, "at most a twentieth of the time"
    assert mine.pause(1e6) >= SLOWEST_SECONDS


LIBRARY = "python: error while loading shared libraries: libx.so.1: cannot open"
GLIBC = "python: libc.so.6: version GLIBC_2.38 not found (required by python)"


@pytest.mark.parametrize(
    ("text", "said"),
    [
        (f"#!/bin/sh\necho '{LIBRARY}' >&2; exit 127", f"exit status 127 ({LIBRARY})"),
        (f"#!/bin/sh\necho '{GLIBC}' >&2; exit 1", f"exit status 1 ({GLIBC})"),
        ("#!/bin/sh\nkill -ILL $$", "exit status 132 ("),
        ("\x7fELF of another processor", "exit status 126 ("),
    ],
    ids=["library", "glibc", "instruction", "processor"],
)
def test_a_node_whose_python_does_not_start_says_so(runs, tmp_path, monkeypatch, text, said):
    python = tmp_path / "node's python"
    python.write_text(text)
    python.chmod(0o755)
    monkeypatch.setattr(sys, "executable", str(python))
    monkeypatch.setenv("SLURMD_NODENAME", "n1")
    script = job_script(Submission.write([runs[:1]]), [])
    done = subprocess.run(["bash"], input=script, capture_output=True, text=True)
    assert done.returncode == 1
    assert done.stdout.splitlines()[-1].startswith(f"{LACKS}n1 cannot start {python}: {said}")


def test_a_job_without_room_for_temporary_files_is_refused_in_one_line(runs, tmp_path, monkeypatch):
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path / "full"))
    with Stop() as stop:
        assert run_on_host(runs[0], None, 1, stop) == REFUSED
    said = last_log_line(runs[0].directory)
    assert said.startswith(f"TMPDIR on {socket.gethostname()}: expected a folder for temporary")


@pytest.mark.slow
@pytest.mark.parametrize(
    ("code", "said"),
    [
        ("raise ImportError('libcudart.so.12: no such file')", "ImportError: libcudart.so.12: no"),
        ("import os, signal; os.kill(os.getpid(), signal.SIGILL)", "this processor lacks an instr"),
    ],
    ids=["library", "instruction"],
)
def test_a_node_whose_torch_cannot_be_loaded_refuses(runs, tmp_path, monkeypatch, code, said):
    (tmp_path / "broken" / "torch").mkdir(parents=True)
    (tmp_path / "broken" / "torch" / "__init__.py").write_text(code)
    monkeypatch.setenv("PYTHONPATH", f"{tmp_path / 'broken'}{os.pathsep}{REPOSITORY}")
    with Stop() as stop:
        assert run_on_host(runs[0], None, 1, stop) == REFUSED
    assert said in last_log_line(runs[0].directory)


@pytest.mark.slow
@pytest.mark.parametrize("lacking", ["omegaconf", "torch"])
def test_a_node_whose_python_lacks_a_package_says_so(runs, tmp_path, monkeypatch, lacking):
    folder = tmp_path / "lacking"
    folder.mkdir()
    hide = f"import sys; sys.modules[{lacking!r}] = None\n"
    (folder / "sitecustomize.py").write_text(hide)
    python = tmp_path / "node's python"
    python.write_text(f'#!/bin/sh\nPYTHONPATH={folder} exec {sys.executable} "$@"\n')
    python.chmod(0o755)
    monkeypatch.setattr(sys, "executable", str(python))
    script = job_script(Submission.write([runs[:1]]), [])
    done = subprocess.run(["bash"], input=script, capture_output=True, text=True)
    assert done.returncode == 1
    last = done.stderr.splitlines()[-1]
    assert last.startswith(f"{LACKS}cannot train: ")
    assert lacking in last


def test_the_page_asks_seldom_and_waits_for_no_answer(slurm, runs, monkeypatch):
    executor(runs)[0].submit(runs[:1], [], 0)
    asked, began, answer = [], threading.Event(), threading.Event()

    def hang(names, timeout):
        asked.append(timeout)
        began.set()
        answer.wait(20)
        raise UserError("cluster=slurm: squeue: no answer")

    monkeypatch.setattr("resnests.commands.queue.query_queue", hang)
    reader = InsideReader(runs[0].config.runs_dir)
    view = View(reader, reader.root, [], plan(None, "html", None, None))
    for _ in range(3):
        with pytest.raises(UserError, match="no run in it"):
            view.poll()
    assert began.wait(20)
    assert asked == [PATIENCE]
    answer.set()
    reader.queue.thread.join(20)
    for _ in range(2):
        with suppress(UserError):
            view.poll()
    assert view.status.queue == ["cluster=slurm: squeue: no answer"]
    assert len(asked) == 1
    reader.queue.due = 0.0
    with suppress(UserError):
        view.poll()
    reader.queue.thread.join(20)
    assert len(asked) == 2


def test_a_command_of_slurms_that_hangs_is_given_up(slurm, tmp_path):
    command = tmp_path / "hangs"
    command.write_text("#!/bin/sh\nexec sleep 30\n")
    command.chmod(0o755)
    with pytest.raises(UserError, match="hangs: no answer in 0 s"):
        ask(str(command), timeout=0.1)


@pytest.mark.parametrize("content", ["{}", "3", '{"a": 1}', "[1]", '[["a"], [3]]', "[" * 100_000])
def test_a_made_up_list_of_jobs_has_none(slurm, runs, content):
    (job,) = executor(runs)[0].submit(runs[:1], [], 0)
    (job.submission.folder / "batches.json").write_text(content)
    assert queued_runs(runs[0].config.runs_dir) == {}
