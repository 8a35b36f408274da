"""Sweeps at sites whose nodes, limits or settings of Slurm are others; each starts its own Slurm.

python -m pytest -m cluster tests/cluster/test_sites.py
"""

import errno
import os
import re
import shutil
import subprocess
import sys
import time

import numpy as np
import pytest
from clusters import (
    GRID,
    LONG,
    SEEN,
    SLURM,
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
from faults import AS_OTHER_USER
from helpers import REPOSITORY, TINY
from slurm import ACCOUNTANTS, MARKS, Slurm, missing

from resnests.runs.sweeps import find_asked

pytestmark = MARKS


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
    assert {line.partition(" has no ")[2] for line in not_started(hidden)} == {
        f"directory {hidden}"
    }
    assert log(seen).count("submitted") == 2
    assert log(hidden).count("submitted") == 1
    assert len(not_started(hidden)) == 2


def test_a_node_that_refuses_what_the_other_trains_is_set_aside(tmp_path):
    setup = """cluster.setup=['test "$SLURMD_NODENAME" = n1']"""
    with Slurm(hosts=True):
        assert sweep(tmp_path, *SLURM, setup, "seed=range(3)", "trainer.epochs=30") == 0
    assert statuses(tmp_path) == ["complete"] * 3
    assert {run.read_record().provenance.host for run in runs(tmp_path).values()} == {"n1"}
    assert log(tmp_path).count("node n2 refuses what others train") == 1
    assert not left_over(tmp_path)


def test_a_node_whose_python_does_not_start_is_set_aside(tmp_path):
    """Its loader ends it, as where a node has an older system than the others."""
    broken, python = tmp_path / "broken", tmp_path / "python"
    broken.write_text("n2")
    python.write_text(f"""\
#!/bin/sh
if [ "$SLURMD_NODENAME" ] && grep -q "$SLURMD_NODENAME" {broken}; then
    echo "python: error while loading shared libraries: libx.so.1: cannot open" >&2
    exit 127
fi
exec {sys.executable} "$@"
""")
    python.chmod(0o755)
    (tmp_path / "sitecustomize.py").write_text(f"import sys; sys.executable = {str(python)!r}\n")
    shell = {"PYTHONPATH": str(tmp_path)}
    with Slurm(hosts=True):
        assert sweep(tmp_path, *SLURM, "seed=range(3)", "trainer.epochs=30", **shell) == 0
        assert {run.read_record().provenance.host for run in runs(tmp_path).values()} == {"n1"}
        assert log(tmp_path).count("node n2 refuses what others train") == 1
        broken.write_text("n1 n2")
        before = log(tmp_path).count("submitted")
        assert sweep(tmp_path, *SLURM, "seed=4,5", **shell) == 1
    assert log(tmp_path).count("submitted") == before + 1
    said = f" cannot start {python}: exit status 127 (python: error while loading shared libraries"
    assert [said in line for line in not_started(tmp_path)[-2:]] == [True, True]


@pytest.mark.parametrize("number", [errno.EIO, errno.ENOENT], ids=["broken", "missing"])
def test_a_node_that_cannot_read_the_data_set_is_set_aside(tmp_path, number):
    """Its jobs end within a second or two, and it gets no more of them."""
    images, pixels = tmp_path / "images.npz", np.arange(64 * 8 * 8 * 3).astype(np.uint8)
    pixels, labels = pixels.reshape(64, 8, 8, 3), np.arange(64) % 2
    arrays = {"train_images": pixels, "train_labels": labels}
    np.savez(images, **arrays, test_images=pixels, test_labels=labels)
    (tmp_path / "sitecustomize.py").write_text(f"""\
import builtins, os
opened = builtins.open
def fails(file, *given, **named):
    if str(file) == {str(images)!r}:
        raise OSError({number}, os.strerror({number}), str(file))
    return opened(file, *given, **named)
if os.environ.get("SLURMD_NODENAME") == "n2":
    builtins.open = fails
""")
    own = ("dataset=images", "dataset.name=own", f"dataset.root={images}", "dataset.num_classes=2")
    with Slurm(hosts=True):
        words = (*SLURM, *own, "dataset.train_limit=null", "seed=range(4)", "trainer.epochs=60")
        assert sweep(tmp_path, *words, PYTHONPATH=str(tmp_path)) == 0
    assert statuses(tmp_path) == ["complete"] * 4
    assert {run.read_record().provenance.host for run in runs(tmp_path).values()} == {"n1"}
    assert log(tmp_path).count("node n2 refuses what others train") == 1


@pytest.mark.skipif(shutil.which("cc") is None, reason="needs a C compiler")
def test_a_node_whose_card_torch_cannot_use_is_set_aside(tmp_path):
    """A stand-in for NVML sees a card there, on which torch cannot compute."""
    source, library = REPOSITORY / "tests" / "sweep" / "nvml.c", tmp_path / "libnvidia-ml.so.1"
    subprocess.run(["cc", "-shared", "-fPIC", "-o", library, source], check=True)
    card = f"export CUDA_VISIBLE_DEVICES=0 FAKE_NVML=H100 LD_LIBRARY_PATH={tmp_path}"
    only_n2 = f"""cluster.setup=['test "$SLURMD_NODENAME" = n1 || {card}']"""
    with Slurm(hosts=True):
        assert sweep(tmp_path, *SLURM, only_n2, "seed=range(3)", "trainer.epochs=30") == 0
        assert {run.read_record().provenance.host for run in runs(tmp_path).values()} == {"n1"}
        assert log(tmp_path).count("node n2 has no device that works: it gets no more jobs") == 1
        before = log(tmp_path).count("submitted")
        assert sweep(tmp_path, *SLURM, f"cluster.setup=['{card}']", "seed=4,5") == 1
    assert log(tmp_path).count("submitted") == before + 1
    lines = log(tmp_path).splitlines()[-3:-1]
    assert ["no device is left (GPU-" in line for line in lines] == [True, True]


@pytest.mark.skipif(shutil.which("taskset") is None, reason="needs util-linux")
def test_a_node_whose_only_device_fails_in_trainings_is_set_aside(tmp_path):
    """A core stands for the device: it passes its trial, and every training on n2 fails."""
    (tmp_path / "sitecustomize.py").write_text("""\
import os, sys
if os.environ.get("SLURMD_NODENAME") == "n2" and "resnests.sweep.worker" in sys.orig_argv:
    from resnests.runs.directory import RunDirectory
    def fails(*_):
        raise RuntimeError("CUDA error: unspecified launch failure")
    RunDirectory.write_history = fails
""")
    setup = """cluster.setup=['test "$SLURMD_NODENAME" = n1 || taskset -cp 0 $$']"""
    with Slurm(hosts=True):
        words = (*SLURM, setup, "seed=range(4)", "trainer.epochs=60")
        assert sweep(tmp_path, *words, PYTHONPATH=str(tmp_path)) == 0
    assert statuses(tmp_path) == ["complete"] * 4
    assert {run.read_record().provenance.host for run in runs(tmp_path).values()} == {"n1"}
    assert log(tmp_path).count("node n2 has a device that fails: it gets no more jobs") == 1


def spans(folder) -> list[tuple[float, float]]:
    records = [run.read_record() for run in runs(folder).values()]
    return sorted((r.provenance.started, r.provenance.ended) for r in records)


@pytest.mark.parametrize("most", [0, 1])
def test_a_site_without_arrays_gets_a_job_for_each_run(tmp_path, most):
    with Slurm(more=f"MaxArraySize={most}"):
        assert sweep(tmp_path, *SLURM, "seed=range(3)", SEEN) == 0
        assert sweep(tmp_path, *SLURM, "seed=3,4", "cluster.jobs=1", "cluster.detach=true") == 0
        until(lambda: statuses(tmp_path) == ["complete"] * 5)
    jobs = {run.read_record().provenance.job for run in runs(tmp_path).values()}
    assert len(jobs) == 5
    assert all(("_" in job) == (most == 1) for job in jobs)
    times = spans(tmp_path)
    assert times[1][0] < times[0][1]  # two at once
    assert times[3][1] < times[4][0]  # one at a time, with nobody who submits


def test_a_controller_that_comes_back_without_its_state_costs_time_only(tmp_path, undisturbed):
    """Slurm then ends the jobs that it does not know, and forgets those that waited."""
    with Slurm(min_job_age=15) as slurm:
        process = start(tmp_path, *SLURM, *GRID, LONG)
        until(lambda: any(count > 5 for count in epochs(tmp_path)))
        slurm.lose_state()
        assert process.wait(280) == 0
    assert_same_results(tmp_path, undisturbed)
    assert not left_over(tmp_path)


LIMITED = """\
AccountingStorageEnforce=associations,limits,qos
PriorityType=priority/basic"""


@pytest.mark.skipif(bool(missing(*ACCOUNTANTS)), reason=missing(*ACCOUNTANTS))
def test_where_a_qos_limits_submitted_jobs_the_others_follow(tmp_path):
    with Slurm(accounting=True, more=LIMITED) as slurm:
        for words in (
            "add qos small MaxSubmitJobsPerUser=2",
            "add account lab",
            "add user root account=lab qos=normal,small",
            "modify user root set qos=normal,small",
        ):
            slurm.ask("sacctmgr", "-i", *words.split())
        own = (*SLURM, "cluster.qos=small", "cluster.options='--account=lab'")
        assert sweep(tmp_path, *own, "seed=range(5)") == 0
        assert statuses(tmp_path) == ["complete"] * 5
        until(lambda: slurm.accounted("Account,QOS") == {"lab|small"})
    text = log(tmp_path)
    assert text.count("QOSMaxSubmitJobPerUserLimit") == 1
    assert "cluster.runs_per_job packs more runs into a job" in text


def test_options_and_partitions_as_users_have_them(tmp_path):
    more = "PartitionName=one Nodes=n1\nPartitionName=two Nodes=n2"
    options = "cluster.options='--exclusive --mail-type=END --mail-user=nobody'"
    with Slurm(hosts=True, more=more):
        assert sweep(tmp_path, *SLURM, "cluster.partition='one,two'", options, *GRID) == 0
    assert {run.read_record().provenance.host for run in runs(tmp_path).values()} == {"n1", "n2"}


def test_a_sweep_from_within_an_allocation_submits_jobs_of_its_own(tmp_path):
    command = [sys.executable, str(REPOSITORY / "run.py"), "-m", *TINY, *SLURM, "seed=0,1"]
    with Slurm(nodes=3):
        done = subprocess.run(["salloc", "-n1", *command], cwd=tmp_path, timeout=280)
        assert done.returncode == 0
    assert statuses(tmp_path) == ["complete"] * 2
    assert {run.read_record().provenance.job for run in runs(tmp_path).values()} == {"2_0", "2_1"}


def test_a_maintenance_is_said_to_be_what_jobs_wait_for(tmp_path):
    with Slurm() as slurm:
        when = ("starttime=now+20minutes", "duration=60")
        where = ("flags=maint", "nodes=ALL", "user=root")
        slurm.ask("scontrol", "create", "reservation=care", *when, *where)
        process = start(tmp_path, *SLURM, "cluster.time=1h", "seed=0,1")
        until(lambda: "jobs that wait: 2 (ReqNodeNotAvail, Reserved for maint" in log(tmp_path))
        slurm.ask("scontrol", "delete", "reservation=care")
        assert process.wait(280) == 0
    assert statuses(tmp_path) == ["complete"] * 2


def test_what_sbatch_refuses_clears_nothing_that_was_to_start_afresh(tmp_path):
    with Slurm(nodes=1):
        assert sweep(tmp_path, *SLURM, "seed=0,1") == 0
        before = {run.path: run.record_file.read_bytes() for run in runs(tmp_path).values()}
        again = ("seed=0,1", "trainer.overwrite=true", "cluster.partition=none")
        assert sweep(tmp_path, *SLURM, *again) == 2
        assert before == {run.path: run.record_file.read_bytes() for run in runs(tmp_path).values()}
        assert all(run.weights_file.exists() for run in runs(tmp_path).values())
        assert not left_over(tmp_path)
        assert not find_asked(tmp_path / "runs")


PREEMPTING = """\
PreemptType=preempt/partition_prio
PreemptMode=REQUEUE
PartitionName=low Nodes=ALL PriorityTier=1
PartitionName=high Nodes=ALL PriorityTier=9 Hidden=YES"""


def test_a_preempted_job_goes_on_where_it_was(tmp_path, undisturbed):
    with Slurm(more=PREEMPTING) as slurm:
        process = start(tmp_path, *SLURM, "cluster.partition=low", *GRID, LONG)
        until(lambda: len(epochs(tmp_path)) == 2 and min(epochs(tmp_path)) > 5)
        slurm.ask("sbatch", "--partition=high", "--wrap=sleep 3", "--chdir=/", "--output=/dev/null")
        until(lambda: any(line.endswith("PENDING") for line in slurm.queue()))
        while process.poll() is None:
            for line in slurm.ask("squeue", "-h", "-a", "--array", "-o", "%F_%K %r").splitlines():
                if line.endswith("BeginTime"):  # two minutes, which Slurm waits after a requeue
                    slurm.ask("scontrol", "update", f"jobid={line.split()[0]}", "starttime=now")
            time.sleep(1)
        assert process.returncode == 0
        assert re.search("Restarts=[1-9]", slurm.ask("scontrol", "show", "jobs"))
    assert_same_results(tmp_path, undisturbed)
    assert log(tmp_path).count("submitted") == 1


def test_a_user_who_is_not_root_is_shown_what_a_hidden_partition_has(tmp_path):
    program = "from resnests.sweep.executors.slurm_commands import query_queue as ask"
    program += "; print([seen.state.value for seen in ask(['mine'])['mine'].values()])"
    with Slurm(nodes=1, more="PartitionName=hid Nodes=ALL Hidden=YES") as slurm:
        shell = os.environ | {"SQUEUE_PARTITION": "main", "SQUEUE_USERS": "nobody"}
        where = ("--partition=hid", "--hold", "--job-name=mine", "--array=0-1", "--chdir=/")
        slurm.ask("sbatch", *where, "--wrap=true")
        slurm.ask("sbatch", "--hold", "--job-name=mine", "--chdir=/", "--wrap=true")
        plain = slurm.ask(*AS_OTHER_USER, "squeue", "--noheader", "--format=%P", "--name=mine")
        command = [*AS_OTHER_USER, sys.executable, "-c", program]
        done = subprocess.run(command, cwd=REPOSITORY, env=shell, capture_output=True, text=True)
    assert plain == "main"  # by itself squeue is silent on the others
    assert done.stdout == "['queued', 'queued', 'queued']\n", done.stderr
