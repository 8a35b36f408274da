"""Sweeps on a real Slurm of two nodes: python -m pytest -m cluster tests/cluster/test_slurm.py"""

import os
import re
import signal
import subprocess
import sys
import time

import numpy as np
import pytest
from clusters import (
    EPOCHS,
    GRID,
    LONG,
    SEEN,
    SLURM,
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
from helpers import REPOSITORY, run_command
from slurm import ACCOUNTANTS, MARKS, Slurm, missing

from resnests.runs.sweeps import find_asked

pytestmark = MARKS


@pytest.fixture(scope="module")
def slurm():
    """Start two nodes of one core and a host name of their own each."""
    with Slurm(hosts=True) as slurm:
        yield slurm


@pytest.fixture(autouse=True)
def _idle(slurm):
    yield
    slurm.ask("scancel", "--user=root")
    until(lambda: not slurm.queue())


def _jobs(folder) -> set[str]:
    return {run.read_record().provenance.job for run in runs(folder).values()}


def test_a_grid_is_trained_on_both_nodes_with_what_each_job_was_given(tmp_path, slurm):
    assert sweep(tmp_path, *SLURM, *GRID, SEEN) == 0
    records = [run.read_record() for run in runs(tmp_path).values()]
    assert [record.status for record in records] == ["complete"] * 4
    assert {record.provenance.host for record in records} == {"n1", "n2"}
    assert {record.provenance.threads for record in records} == {1}
    array = min(record.provenance.job.partition("_")[0] for record in records)
    assert {record.provenance.job for record in records} == {f"{array}_{i}" for i in range(4)}
    assert all(run.read_config().cluster is None for run in runs(tmp_path).values())
    lines = log(tmp_path).splitlines()
    assert lines[0] == f"submitted jobs {array}_0 to {array}_3 of Slurm for 4 runs"
    assert any(line.startswith("start ") and " on n1 cpu-" in line for line in lines)
    # Unconfined as they are, both jobs of the machine ran at once, with a core each.
    spans = sorted((r.provenance.started, r.provenance.ended) for r in records)
    assert spans[1][0] < spans[0][1]
    assert not left_over(tmp_path)
    assert sweep(tmp_path, *SLURM, *GRID, SEEN) == 0
    assert "nothing to do" in log(tmp_path)


def test_the_demo(tmp_path, slurm):
    done = run_command(
        "-m", "experiment=demo", "trainer.epochs=1", "dataset.train_limit=96", *SLURM, cwd=tmp_path
    )
    assert done.returncode == 0, done.stderr
    assert statuses(tmp_path) == ["complete"] * 8


def test_small_runs_are_packed_into_jobs_and_arrays_split_where_slurm_wants_it(tmp_path):
    with Slurm(more="MaxArraySize=3"):
        assert sweep(tmp_path, *SLURM, "seed=range(7)", "cluster.runs_per_job=2") == 0
    jobs = [run.read_record().provenance.job for run in runs(tmp_path).values()]
    assert statuses(tmp_path) == ["complete"] * 7
    assert len({job.partition("_")[0] for job in jobs}) == 2
    assert len(set(jobs)) == 4


def test_what_is_finished_is_started_afresh_where_the_command_says_so(tmp_path, slurm):
    assert sweep(tmp_path, *SLURM, "seed=0,1") == 0
    before = _jobs(tmp_path)
    assert sweep(tmp_path, *SLURM, "seed=0,1", "trainer.overwrite=true") == 0
    after = _jobs(tmp_path)
    assert statuses(tmp_path) == ["complete"] * 2
    assert len(before | after) == 4
    assert sweep(tmp_path, *SLURM, "seed=0,1", "metrics=[f1]") == 0
    assert all("f1" in run.read_record().metrics for run in runs(tmp_path).values())
    assert log(tmp_path).count("submitted") == 3


@pytest.mark.skipif(bool(missing(*ACCOUNTANTS)), reason=missing(*ACCOUNTANTS))
def test_accounting_changes_nothing(tmp_path):
    with Slurm(accounting=True) as slurm:
        assert sweep(tmp_path, *SLURM, *GRID) == 0
        jobs = {run.read_record().provenance.job for run in runs(tmp_path).values()}
        until(lambda: {f"{job}|COMPLETED" for job in jobs} <= slurm.accounted("JobID,State"))
    assert "sacct" not in log(tmp_path)
    assert not left_over(tmp_path)


def test_a_job_asks_for_a_gpu_unless_it_trains_on_the_cpu(tmp_path):
    """A device file stands for one: what Slurm gives is in CUDA_VISIBLE_DEVICES."""
    setup = f"cluster.setup=['echo $CUDA_VISIBLE_DEVICES >> {tmp_path}/given']"
    there = ("cluster=slurm", "cluster.cpus=1", setup)
    with Slurm(nodes=1, gpu="/dev/zero"):
        assert sweep(tmp_path, *there, "cluster.gpus=1", "trainer.device=cpu", "seed=0") == 0
        assert sweep(tmp_path, *there, "trainer.device=cpu", "seed=1") == 0
        assert sweep(tmp_path, *there, "seed=2") == 1, "it is no GPU: no run trains on the CPU"
    assert (tmp_path / "given").read_text().split("\n") == ["0", "", "0", ""], "tried once"
    assert statuses(tmp_path) == ["complete"] * 2
    assert "expected a GPU, as CUDA_VISIBLE_DEVICES=0" in log(tmp_path)


def test_hydras_launcher_for_slurm_with_its_own_keys(tmp_path, slurm):
    pytest.importorskip("hydra_plugins.hydra_submitit_launcher")
    keys = ("cpus_per_task=1", "partition=main", "array_parallelism=1", "timeout_min=5")
    own = [f"hydra.launcher.{key}" for key in keys]
    assert sweep(tmp_path, "hydra/launcher=submitit_slurm", *own, "seed=0,1") == 0
    spans = sorted(
        (r.provenance.started, r.provenance.ended)
        for r in (run.read_record() for run in runs(tmp_path).values())
    )
    assert spans[0][1] < spans[1][0]  # one at a time


def test_an_analysis_stays_within_the_memory_of_its_job(tmp_path, slurm):
    analysis = ("task=analyze", "analysis.train=true", "variant=a_resnest", "seed=0")
    assert sweep(tmp_path, *SLURM, "cluster.memory=1200M", *analysis) == 0
    (run,) = runs(tmp_path).values()
    assert "the job gave this run 1.3 GB of memory" in run.analysis.log_file.read_text()


def test_one_jobs_death_costs_that_job_only_and_its_run_goes_on(tmp_path, slurm, undisturbed):
    process = start(tmp_path, *SLURM, *GRID, LONG)
    until(lambda: any(count > 5 for count in epochs(tmp_path)))
    (doomed,) = [run for run in runs(tmp_path).values() if len(run.history_rows()) > 5][:1]
    job = doomed.read_record().provenance.job
    slurm.ask("scancel", "--signal=KILL", "--full", job)
    assert process.wait(280) == 0
    assert_same_results(tmp_path, undisturbed)
    assert doomed.read_record().provenance.job != job
    assert f"job {job} ended" in log(tmp_path)
    others = {run.read_record().provenance.job for run in runs(tmp_path).values()}
    assert len({other.partition("_")[0] for other in others}) == 2  # and no other was resubmitted


def test_a_killed_job_process_is_a_loss_like_any_other(tmp_path, slurm, undisturbed):
    """The OOM killer of a node ends the job and its training at once, without a word."""
    process = start(tmp_path, *SLURM, *GRID, LONG)
    until(lambda: any(count > 5 for count in epochs(tmp_path)))
    (doomed,) = [run for run in runs(tmp_path).values() if len(run.history_rows()) > 5][:1]
    training = doomed.read_record().provenance.pid
    for pid in (_parent(training), training):
        os.kill(pid, signal.SIGKILL)
    assert process.wait(280) == 0
    assert_same_results(tmp_path, undisturbed)
    assert "killed: digits/tiny/" in log(tmp_path)


def _parent(pid: int) -> int:
    with open(f"/proc/{pid}/stat") as file:
        return int(file.read().rpartition(")")[2].split()[1])


def test_a_lost_node_costs_its_jobs_only(tmp_path, slurm, undisturbed):
    """Slurm queues them again by itself once it sees that the node is gone."""
    process = start(tmp_path, *SLURM, *GRID, LONG)
    until(lambda: any(run.status() == "running" for run in runs(tmp_path).values()))
    until(lambda: any(count > 5 for count in epochs(tmp_path)))
    slurm.ask("scontrol", "update", "nodename=n1", "state=down", "reason=lost")
    time.sleep(3)
    slurm.ask("scontrol", "update", "nodename=n1", "state=resume")
    assert process.wait(280) == 0
    assert_same_results(tmp_path, undisturbed)


def test_a_node_that_is_drained_gets_no_more_runs_until_it_is_resumed(tmp_path, slurm):
    slurm.ask("scontrol", "update", "nodename=n2", "state=drain", "reason=test")
    process = start(tmp_path, *SLURM, *GRID)
    until(lambda: len(runs(tmp_path)) == 2)
    assert {run.read_record().provenance.host for run in runs(tmp_path).values()} == {"n1"}
    slurm.ask("scontrol", "update", "nodename=n2", "state=resume")
    assert process.wait(280) == 0
    assert {run.read_record().provenance.host for run in runs(tmp_path).values()} == {"n1", "n2"}


def test_a_time_limit_changes_no_bit(tmp_path, slurm, undisturbed):
    """The limit is a minute: runs that take longer write a checkpoint, and queue once more."""
    seconds = min(run.read_record().seconds for run in runs(undisturbed).values())
    epochs_of_80_seconds = int(EPOCHS * 80 / seconds)
    grid = ("seed=0,1", f"trainer.epochs={epochs_of_80_seconds}")
    (tmp_path / "reference").mkdir()
    assert sweep(tmp_path / "reference", *grid) == 0
    process = start(tmp_path, *SLURM, *grid, "cluster.time=1m", "cluster.grace=5")
    while process.poll() is None:
        for line in slurm.ask("squeue", "-h", "--array", "-o", "%F_%K %r").splitlines():
            if line.endswith("BeginTime"):  # two minutes, which Slurm waits after a requeue
                slurm.ask("scontrol", "update", f"jobid={line.split()[0]}", "starttime=now")
        time.sleep(1)
    assert process.returncode == 0
    assert_same_results(tmp_path, tmp_path / "reference")
    assert "interrupted digits/tiny/standard" in log(tmp_path)
    # Slurm's count of how often a job queued again by itself
    assert re.search("Restarts=[1-9]", slurm.ask("scontrol", "show", "jobs"))


def test_scancel_of_all_jobs_ends_the_sweep(tmp_path, slurm):
    process = start(tmp_path, *SLURM, *GRID, LONG)
    until(lambda: any(count > 1 for count in epochs(tmp_path)))
    slurm.ask("scancel", "--user=root")
    assert process.wait(60) == 1
    assert not slurm.queue()
    assert "4 of 4 runs are not complete" in log(tmp_path)
    assert set(statuses(tmp_path)) == {"interrupted"}
    assert not left_over(tmp_path)


def test_ctrl_c_lets_jobs_write_their_checkpoints_and_empties_the_queue(tmp_path, slurm):
    process = start(tmp_path, *SLURM, *GRID, LONG)
    until(lambda: len(epochs(tmp_path)) == 2 and min(epochs(tmp_path)) > 1)
    process.send_signal(signal.SIGINT)
    assert process.wait(60) == 130
    assert not slurm.queue()
    assert statuses(tmp_path) == ["interrupted"] * 2
    assert all(run.checkpoint_file.exists() for run in runs(tmp_path).values())


def test_a_second_ctrl_c_cancels_and_the_summary_does_not_call_that_running(tmp_path, slurm):
    process = start(tmp_path, *SLURM, *GRID, LONG)
    until(lambda: len(epochs(tmp_path)) == 2 and min(epochs(tmp_path)) > 1)
    process.send_signal(signal.SIGINT)
    time.sleep(0.5)  # or the system makes one signal of two
    process.send_signal(signal.SIGINT)
    assert process.wait(60) == 130
    assert "running: " not in log(tmp_path)
    assert set(statuses(tmp_path)) <= {"killed", "interrupted"}


def test_jobs_outlive_their_sweep_and_the_same_command_finds_them(tmp_path, slurm, undisturbed):
    process = start(tmp_path, *SLURM, *GRID, LONG)
    until(lambda: any(count > 1 for count in epochs(tmp_path)))
    process.kill()
    process.wait()
    before = slurm.queue()
    assert len(before) == 4
    status = run_command("--status", cwd=tmp_path, script="aggregate.py").stdout
    assert "2 queued (" in status
    assert " on n1 cpu-" in status
    assert sweep(tmp_path, *SLURM, *GRID, LONG) == 0
    assert "4 job(s) of these runs are in the queue already" in log(tmp_path)
    assert log(tmp_path).count("submitted") == 1
    assert_same_results(tmp_path, undisturbed)
    assert not left_over(tmp_path)


def test_detached_jobs_need_no_sweep(tmp_path, slurm):
    assert sweep(tmp_path, *SLURM, *GRID, SEEN, "cluster.detach=true") == 0
    assert len(slurm.queue()) == 4
    (command,) = re.findall(r"python (aggregate.py --status .*) tells how far", log(tmp_path))
    script, *words = command.split()
    status = run_command(*words, cwd=tmp_path, script=script)  # before any run is on record
    assert (status.returncode, status.stderr) == (0, "")
    assert "queued: runs/digits/tiny/" in status.stdout
    assert sweep(tmp_path, *SLURM, *GRID, SEEN, "cluster.detach=true") == 0
    assert len(slurm.queue()) <= 4  # none of them twice
    until(lambda: not slurm.queue())
    assert statuses(tmp_path) == ["complete"] * 4
    assert left_over(tmp_path)
    assert sweep(tmp_path, *SLURM, *GRID, SEEN) == 0
    assert "nothing to do" in log(tmp_path)
    assert not left_over(tmp_path)


def test_two_sweeps_of_one_grid_submit_each_run_once(tmp_path, slurm):
    one, other = (start(tmp_path, *SLURM, *GRID) for _ in range(2))
    assert (one.wait(280), other.wait(280)) == (0, 0)
    assert statuses(tmp_path) == ["complete"] * 4
    assert log(tmp_path).count("submitted") == 1
    texts = [run.log_file.read_text() for run in runs(tmp_path).values()]
    assert all(text.count("epoch 2/2") == 1 for text in texts)


def test_a_hidden_partition_and_a_shell_full_of_variables_hide_no_job(tmp_path, slurm):
    slurm.ask("scontrol", "create", "PartitionName=hid", "Nodes=ALL", "Hidden=YES")
    shell = {"SQUEUE_PARTITION": "main", "SQUEUE_USERS": "nobody", "SQUEUE_ACCOUNT": "other"}
    shell |= {"SCANCEL_PARTITION": "main", "SBATCH_WAIT": "1", "SBATCH_ARRAY_INX": "0-9"}
    healthy = start(tmp_path, *SLURM, "seed=0", LONG)
    until(lambda: any(count > 1 for count in epochs(tmp_path)))
    assert sweep(tmp_path, *SLURM, "cluster.partition=hid", "seed=1,2", **shell) == 0
    assert healthy.wait(280) == 0
    assert statuses(tmp_path) == ["complete"] * 3
    assert log(tmp_path).count("submitted") == 2
    assert not left_over(tmp_path)


def test_a_line_of_setup_that_fails_is_named_once_for_each_run(tmp_path, slurm):
    setup = """cluster.setup=["source /etc/profile","echo no such place >&2; exit 3"]"""
    assert sweep(tmp_path, *SLURM, setup, "seed=0,1") == 1
    said = "cluster.setup: echo no such place >&2; exit 3: exit status 3 (no such place)"
    lines = [line for line in log(tmp_path).splitlines() if line.startswith("not started: ")]
    assert len(lines) == 2
    assert all(line.endswith(f": {said}") for line in lines)
    assert log(tmp_path).count("submitted") == 1


@pytest.mark.parametrize(
    ("override", "said"),
    [
        ("cluster.partition=gpu", "sbatch says: invalid partition specified: gpu"),
        ("cluster.gpus=1", "(cluster.gpus=0 asks for no GPU)"),
        ("cluster.options=[--nonsense]", "unrecognized option '--nonsense'"),
    ],
)
def test_what_slurm_refuses_is_one_line_and_leaves_nothing(tmp_path, slurm, override, said):
    assert_refused(tmp_path, said, *SLURM, override)
    assert not left_over(tmp_path)
    assert not find_asked(tmp_path / "runs")


def test_what_a_node_lacks_is_one_line_of_each_run(tmp_path, slurm):
    """The node has another Python than the login node."""
    other = tmp_path / "python"
    other.write_text(f'#!/bin/sh\n[ "$SLURM_JOB_ID" ] && exec /usr/bin/python3 -S "$@"\n'
                     f'exec {sys.executable} "$@"\n')  # fmt: skip
    other.chmod(0o755)
    program = f"import sys; sys.executable = {str(other)!r}; from resnests.run import main; main()"
    environment = os.environ | {"PYTHONPATH": str(REPOSITORY)}
    command = [sys.executable, "-c", program, "-m", *SLURM, "dataset=digits", "seed=0"]
    done = subprocess.run(
        command, cwd=tmp_path, capture_output=True, text=True, timeout=240, env=environment
    )
    assert done.returncode == 1
    said = "not started: digits/resnet20/standard seed=0: cluster=slurm: its node cannot train: "
    assert done.stderr.startswith(said)
    assert "No module named" in done.stderr
    assert len(done.stderr.splitlines()) == 1
    assert done.stdout.count("submitted") == 1


def test_a_node_without_the_data_set_says_so(tmp_path, slurm):
    """It is taken away after the sweep has seen it, as where /data is not the same everywhere."""
    images = tmp_path / "images.npz"
    pixels = np.arange(8 * 8 * 8 * 3).astype(np.uint8).reshape(8, 8, 8, 3)
    labels = np.arange(8) % 2
    arrays = {"train_images": pixels, "train_labels": labels}
    np.savez(images, **arrays, test_images=pixels, test_labels=labels)
    own = ("dataset=images", "dataset.name=own", f"dataset.root={images}", "dataset.num_classes=2")
    setup = f"cluster.setup=['mv {images} {images}.elsewhere || true']"
    command = ("-m", *SLURM, *own, setup, "seed=0", "arch=resnet8", "trainer.epochs=1")
    done = run_command(*command, cwd=tmp_path)
    assert done.returncode == 1
    assert f"dataset.root={images}: expected" in done.stderr
    assert len(done.stderr.splitlines()) == 1
    assert done.stdout.count("submitted") == 2, "once more, on the only node"
