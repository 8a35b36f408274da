"""Run sweeps as a user does: what one run's misfortune costs, and what the same command makes
of it.
"""

import errno
import os
import random
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from contextlib import suppress
from dataclasses import replace
from itertools import chain, repeat
from pathlib import Path

import psutil
import pytest
from faults import FAULTS, campaign
from filelock import FileLock
from helpers import (
    REPOSITORY,
    TINY,
    hold_all_cores,
    run_command,
    statuses,
    tiny,
    until,
    write_run,
)
from sweeps import Sweep

from resnests.config.parts import Arch
from resnests.config.schema import Config
from resnests.errors import CaptureFailed, Interrupted, UserError
from resnests.runs.digests import with_digests
from resnests.runs.directory import RunDirectory, find_runs
from resnests.runs.lock import flocked
from resnests.runs.record import Provenance, Record, UnreadableRun
from resnests.runs.sweeps import find_asked, read_asked
from resnests.sweep import process, worker
from resnests.sweep.devices import allocate
from resnests.sweep.drive import run_single, run_sweep
from resnests.sweep.executors.local import LauncherExecutor, local_sweep
from resnests.sweep.folders import temporary_folder
from resnests.sweep.job import run_job
from resnests.sweep.leases import lease
from resnests.sweep.plan import Run, print_plan, usable_runs
from resnests.sweep.prepare import prepare
from resnests.sweep.process import run_process
from resnests.sweep.protocol import BUSY, INTERRUPTED, NO_GRAPH, USER_ERROR
from resnests.sweep.scheduler import Scheduler
from resnests.sweep.stop import Stop
from resnests.sweep.summary import print_summary
from resnests.tasks.experiment import run_experiment


def test_a_sweep_trains_its_grid_and_skips_what_is_finished(tmp_path):
    first = run_command("-m", *TINY, "variant=standard,resnest", "seed=0,1", cwd=tmp_path)
    assert first.returncode == 0, first.stderr
    assert statuses(tmp_path) == {
        f"{v} seed={s}": "complete" for v in ("standard", "resnest") for s in (0, 1)
    }
    lines = first.stdout.splitlines()
    assert sum(line.startswith("start ") for line in lines) == 4
    assert any(line.startswith("complete 4/4 ") for line in lines)
    more = run_command("-m", *TINY, "variant=standard,resnest", "seed=range(3)", cwd=tmp_path)
    assert more.returncode == 0
    assert "4 of 6 runs are finished already" in more.stdout
    assert len(statuses(tmp_path)) == 6
    assert sorted(path.name for path in tmp_path.iterdir()) == ["runs"]


@pytest.mark.slow
def test_finished_runs_are_skipped_without_torch_or_children(tmp_path):
    assert run_command("-m", *TINY, "seed=0,1", cwd=tmp_path).returncode == 0
    command = [
        sys.executable,
        "-X",
        "importtime",
        str(REPOSITORY / "run.py"),
        "-m",
        *TINY,
        "seed=0,1",
    ]
    again = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True, check=True)
    assert "nothing to do" in again.stdout
    assert "hydra" in again.stderr
    assert " torch\n" not in again.stderr


@pytest.mark.slow
def test_what_happens_to_one_run_costs_that_run_only(tmp_path):
    """One fails, one diverges, two finish; all are accounted for."""
    grid = ("dataset.num_classes=10,3", "optimizer.lr=0.1,1e30")
    done = run_command("-m", *TINY, *grid, cwd=tmp_path)
    assert done.returncode == 1
    found = [run.read_record() for run in find_runs(tmp_path / "runs")]
    assert sorted(record.status for record in found) == [
        "complete",
        "diverged",
        "failed",
        "failed",
    ]
    assert "3 of 4 runs are not complete" in done.stderr
    assert (
        "failed: digits/tiny/standard seed=0 dataset.num_classes=3 optimizer.lr=0.1" in done.stderr
    )
    assert "dataset.num_classes=3: expected at least 10" in done.stderr
    assert "run.log" in done.stderr
    assert "seed=0 dataset.num_classes=10 optimizer.lr=1e+30: train loss is" in done.stderr
    again = run_command("-m", *TINY, *grid, cwd=tmp_path)
    assert (
        "2 of 4 runs are finished already" in again.stdout
    )  # failed ones are tried again, diverged ones are not


@pytest.mark.slow
def test_fail_fast_stops_at_the_first_failure(tmp_path):
    grid = ("dataset.num_classes=3,10", "seed=range(4)", "devices.slots=1", "sweep.fail_fast=true")
    done = run_command("-m", *TINY, *grid, cwd=tmp_path)
    assert done.returncode == 1
    assert "complete" not in [run.status() for run in find_runs(tmp_path / "runs")]
    assert "8 of 8 runs are not complete" in done.stderr


@pytest.mark.slow
def test_retries_try_failed_runs_again_within_the_sweep(tmp_path):
    done = run_command(
        "-m", *TINY, "dataset.num_classes=3", "seed=0", "sweep.retries=2", cwd=tmp_path
    )
    assert done.returncode == 1
    (run,) = find_runs(tmp_path / "runs")
    assert run.log_file.read_text().count("dataset.num_classes=3: expected") == 3


@pytest.mark.slow
def test_a_killed_training_is_on_record_with_its_signal_and_resumes(tmp_path):
    sweep = Sweep(tmp_path)
    while not any(len(run.history_rows()) > 1 for run in find_runs(tmp_path / "runs")):
        time.sleep(0.05)
    doomed = sweep.children("training")[0]
    doomed.kill()
    assert sweep.wait() == 1
    found = sorted(statuses(tmp_path).values())
    assert found == ["complete", "complete", "complete", "killed"]
    log = (tmp_path / "sweep.log").read_text()
    assert "killed by SIGKILL" in log
    assert "1 of 4 runs are not complete" in log
    assert Sweep(tmp_path).wait() == 0


def is_alive(process: psutil.Process) -> bool:
    """Return whether a process has not ended, whether or not anybody has waited for it."""
    with suppress(psutil.NoSuchProcess):
        return process.status() != psutil.STATUS_ZOMBIE
    return False


@pytest.mark.slow
def test_no_training_outlives_a_killed_sweep(tmp_path):
    sweep = Sweep(tmp_path)
    while len(sweep.children("training")) < 1 or not list(find_runs(tmp_path / "runs")):
        time.sleep(0.05)
    below = psutil.Process(sweep.process.pid).children(recursive=True)
    sweep.process.kill()
    sweep.wait()
    until(lambda: not any(map(is_alive, below)))
    until(lambda: "running" not in statuses(tmp_path).values())  # of what began meanwhile, too


@pytest.mark.slow
def test_the_launchers_lost_worker_does_not_end_the_sweep(tmp_path):
    sweep = Sweep(tmp_path, "devices.cpu_slots=2")  # with one, joblib needs no worker
    while not sweep.children("worker") or not sweep.children("training"):
        time.sleep(0.05)
    sweep.children("worker")[0].kill()
    assert sweep.wait() == 0
    assert "the launcher lost a process" in (tmp_path / "sweep.log").read_text()


@pytest.mark.slow
@pytest.mark.parametrize("launcher", ["basic", "joblib", "submitit_local"])
def test_runs_are_the_same_under_every_launcher(tmp_path, launcher):
    done = run_command("-m", f"hydra/launcher={launcher}", *TINY, "seed=0,1", cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    assert list(statuses(tmp_path).values()) == ["complete", "complete"]


def test_a_run_whose_step_cannot_be_captured_starts_again_without_a_graph(tmp_path, monkeypatch):
    asked = []

    def trained(run, allocation, stop):
        asked.append(run.config.trainer.cuda_graph)
        if len(asked) == 1:
            return NO_GRAPH
        run.directory.path.mkdir(parents=True)
        run.directory.write_record(replace(Record.of(run.config, Provenance()), status="failed"))
        return 1

    monkeypatch.setattr(process, "run_process", trained)
    assert run_single(tiny(f"runs_dir={tmp_path}")) == 1
    assert asked == [None, False]


def test_a_worker_asks_for_another_one_where_capturing_failed(caplog):
    class Failing:
        def work(self):
            raise CaptureFailed("trainer.cuda_graph=false trains without")

        def blames_neighbour(self, error):
            return False

    assert worker.exit_status(Failing()) == NO_GRAPH
    assert "starting again, as trainer.cuda_graph=false trains without" in caplog.text


def test_a_sweep_in_its_own_process_stops_by_its_signal(tmp_path):
    token = tmp_path / "token"
    token.touch()
    with Stop(token, lambda count: token.unlink()) as sweep, Stop.listen(token) as of_job:
        signal.raise_signal(signal.SIGUSR2)
        assert sweep.signals == of_job.signals == 1
        assert of_job.requested()
    assert Stop(token).requested()


def ended(run: Run, status: str) -> str:
    write_run(run.config, status).write_progress({})
    return status


@pytest.fixture
def runs(tmp_path) -> list[Run]:
    configs = [tiny(f"runs_dir={tmp_path / 'runs'}", f"seed={seed}") for seed in range(4)]
    return [Run(config, RunDirectory.of(config), i) for i, config in enumerate(configs)]


def launches(runs, launch) -> list[list[int]]:
    """Return what a launcher was asked for, call by call: `launch` says how the runs were left."""
    asked = []

    def record_and_launch(numbers):
        asked.append(numbers)
        batch = [run for run in runs if run.index in numbers]
        for run, outcome in zip(batch, launch(batch, len(asked)), strict=True):
            folder.end(run.index, outcome)

    with local_sweep(runs, allocate(runs[0].config, 1)) as folder:
        executor = LauncherExecutor(record_and_launch, folder, print)
        list(Scheduler(runs, executor, lambda: False, print).rounds())
    return asked


@pytest.fixture
def undone(monkeypatch):
    """Undo what a sweep sets in the environment."""
    for name in ("RESNESTS_SWEEP", "RESNESTS_COMMAND", "PYTHONPATH"):
        monkeypatch.setenv(name, "")


@pytest.mark.usefixtures("undone")
def test_a_run_that_another_sweep_gives_back_while_ours_goes_on_is_ours(runs):
    runs[0].directory.path.mkdir(parents=True)
    other = FileLock(runs[0].directory.lock_file, thread_local=False)
    other.acquire()

    def launch(batch, count):
        if count == 1:
            other.release()
            ended(runs[0], "interrupted")
        return [ended(run, "complete") for run in batch]

    assert launches(runs, launch) == [[1, 2, 3], [0]]


@pytest.mark.usefixtures("undone")
def test_a_run_that_was_busy_when_its_turn_came_is_tried_again(runs):
    """Another sweep took it, and failed it before our launch returned."""

    def launch(batch, count):
        if count == 1:
            ended(runs[0], "failed")
            return ["busy", *(ended(run, "complete") for run in batch[1:])]
        return [ended(run, "complete") for run in batch]

    assert launches(runs, launch) == [[0, 1, 2, 3], [0]]


@pytest.mark.usefixtures("undone")
def test_a_launcher_that_dies_again_and_again_is_given_up(runs, capsys):
    def launch(batch, count):
        raise RuntimeError("no room in /dev/shm")

    assert launches(runs, launch) == [[0, 1, 2, 3]] * 5
    assert "lost a process 5 times in a row: giving up" in capsys.readouterr().out


@pytest.mark.usefixtures("undone")
def test_whatever_goes_wrong_in_a_job_costs_its_run_alone(tmp_path, runs, monkeypatch):
    def fail(run, *_):
        raise ValueError("something that nobody thought of")

    monkeypatch.setattr("resnests.sweep.process.run_process", fail)
    with local_sweep(runs[:1], allocate(runs[0].config, 1)) as folder:
        assert run_job(0) == "failed"
        assert folder.state() == (set(), {0: "failed"})
    assert "something that nobody thought of" in runs[0].directory.log_file.read_text()


@pytest.mark.slow
@pytest.mark.parametrize(
    ("code", "status", "stops"),
    [
        (0, "complete", False),
        (0, "diverged", True),
        (1, "failed", True),
        (-9, "killed", True),
    ],
)
@pytest.mark.usefixtures("undone")
def test_what_fail_fast_takes_for_a_failure(tmp_path, monkeypatch, code, status, stops):
    monkeypatch.setattr(
        "resnests.sweep.process.run_process", lambda run, *_: ended(run, status) and code
    )
    configs = [
        tiny(f"runs_dir={tmp_path / 'runs'}", "sweep.fail_fast=true", f"seed={seed}")
        for seed in (0, 1)
    ]
    launched = []

    def launch(numbers, allocation, folder):
        for number in numbers:
            launched.append(run_job(number))
            while number == 0 and stops and folder.specs.exists():
                time.sleep(0.01)

    run_sweep(configs, launch)
    assert launched == [status, None if stops else status]


@pytest.mark.long
def test_a_short_campaign_of_faults_loses_nothing(tmp_path):
    random.seed(1)
    faults = ["worker killed", "file damaged", "second sweep"]
    faults += ["another user's sweep"] * ("another user's sweep" in FAULTS)
    lost, doubled, _ = campaign(tmp_path, faults)
    assert not lost
    assert not doubled


@pytest.mark.slow
def test_two_sweeps_over_one_grid_share_it(tmp_path):
    one, other = Sweep(tmp_path), Sweep(tmp_path)
    assert (one.wait(), other.wait()) == (0, 0)
    assert list(statuses(tmp_path).values()) == ["complete"] * 4
    logs = [run.log_file.read_text() for run in find_runs(tmp_path / "runs")]
    assert all(text.count("epoch 40/40") == 1 for text in logs)


@pytest.mark.long
def test_a_full_disk_costs_the_run_but_no_file(tmp_path):
    """The disk is a tmpfs of 96 kB, which takes root to mount."""
    small = tmp_path / "small"
    small.mkdir()
    mounted = subprocess.run(
        ["mount", "-t", "tmpfs", "-o", "size=96k", "tmpfs", small], capture_output=True
    ).returncode
    if mounted != 0:
        pytest.skip("mounting a tmpfs takes root")
    try:
        done = run_command(*TINY, f"runs_dir={small / 'runs'}", "trainer.epochs=30", cwd=tmp_path)
        assert done.returncode == 1
        assert "No space left" in done.stderr
        (run,) = find_runs(small / "runs")
        assert run.status() in ("failed", "running")
        assert not list(run.path.glob(".*.tmp"))
        subprocess.run(["mount", "-o", "remount,size=8m", small], check=True)
        again = run_command(*TINY, f"runs_dir={small / 'runs'}", "trainer.epochs=30", cwd=tmp_path)
        assert again.returncode == 0, again.stderr
    finally:
        subprocess.run(["umount", small], check=True)


def test_a_child_that_dies_before_it_has_a_record_gets_one(tmp_path, monkeypatch):
    monkeypatch.setattr(sys, "executable", "/bin/false")
    run = Run(tiny(f"runs_dir={tmp_path}"), RunDirectory.of(tiny(f"runs_dir={tmp_path}")))
    with Stop() as stop:
        assert run_process(run, allocate(run.config, 1), stop) == 1
    assert run.directory.read_record().status == "failed"


@pytest.mark.parametrize("own", [True, False])
def test_a_run_that_is_asked_to_stop_before_it_can_listen_was_not_started(
    tmp_path, monkeypatch, own
):
    """Its input ends, or a batch system signals all processes of the job."""
    run = Run(tiny(f"runs_dir={tmp_path}"), RunDirectory.of(tiny(f"runs_dir={tmp_path}")))
    if not own:
        young = tmp_path / "young"
        young.write_text("#!/bin/sh\nkill -TERM $$\n")
        young.chmod(0o755)
        monkeypatch.setattr(sys, "executable", str(young))
    with Stop() as stop:
        monkeypatch.setattr(stop, "requested", chain([False], repeat(True)).__next__)
        stop.signals = 1
        assert run_process(run, allocate(run.config, 1), stop) == INTERRUPTED
    assert run.directory.read_record() is None


def test_a_second_signal_kills_a_training_that_does_not_end(tmp_path, monkeypatch):
    deaf = tmp_path / "deaf"
    deaf.write_text("#!/bin/sh\nexec sleep 60\n")
    deaf.chmod(0o755)
    monkeypatch.setattr(sys, "executable", str(deaf))
    run = Run(tiny(f"runs_dir={tmp_path}"), RunDirectory.of(tiny(f"runs_dir={tmp_path}")))
    with Stop() as stop:
        monkeypatch.setattr(stop, "requested", chain([False], repeat(True)).__next__)
        stop.signals = 2
        assert run_process(run, allocate(run.config, 1), stop) == -signal.SIGKILL
    assert run.directory.read_record().error == "killed by SIGKILL"


def test_data_is_prepared_once_for_a_sweep(tmp_path, monkeypatch):
    """Each data set that needs a process has one, however many runs share it."""
    started = []
    monkeypatch.setattr(
        subprocess,
        "run",
        lambda command, **_: (
            started.append(command) or subprocess.CompletedProcess(command, 0, "", "")
        ),
    )
    configs = [
        tiny("dataset.source=cifar10", f"seed={seed}", f"runs_dir={tmp_path}") for seed in range(5)
    ]
    prepare(configs)
    assert len(started) == 1


@pytest.mark.slow
def test_pieces_of_a_users_own_that_fail_stop_a_sweep_before_its_first_run(tmp_path):
    (tmp_path / "mine.py").write_text(
        "import torch\n\ndef net(num_classes):\n    return torch.nn.Conv2d(3, num_classes, 1)\n"
    )
    own = ("~arch.blocks", "~arch.widths", "arch.name=mine", "+arch._target_=mine.net")
    done = run_command(
        "-m", *TINY, *own, "seed=0,1", cwd=tmp_path, environment={"PYTHONPATH": str(tmp_path)}
    )
    assert done.returncode == 2
    batch = "a batch of 32 images of 32x32 pixels"
    assert done.stderr.startswith(f"error: arch=mine: {batch}: expected logits of shape (32, 10), ")
    assert len(done.stderr.splitlines()) == 1
    assert not any(tmp_path.rglob("seed=*"))


@pytest.mark.slow
def test_what_was_interrupted_while_it_waited_for_a_device_was_not_started(tmp_path):
    held = hold_all_cores()
    sweep = Sweep(tmp_path)
    while not list(tmp_path.glob("runs/**/progress.json")):
        time.sleep(0.05)
    sweep.process.send_signal(signal.SIGINT)
    assert sweep.wait() == 130
    held.release()
    log = (tmp_path / "sweep.log").read_text()
    assert "interrupted while it waited for a device" in log
    assert "4 of 4 runs are not complete" in log
    assert "failed" not in log
    assert not list(find_runs(tmp_path / "runs"))


@pytest.mark.slow
def test_a_run_with_a_damaged_record_that_could_not_start_keeps_its_checkpoint(tmp_path):
    directory = RunDirectory.of(tiny(f"runs_dir={tmp_path / 'runs'}"))
    directory.path.mkdir(parents=True)
    for name in ("record.json", "checkpoint.pt"):
        (directory.path / name).write_bytes(b"torn")
    held = hold_all_cores()
    done = run_command(*TINY, "trainer.device=cpu", "devices.wait=false", cwd=tmp_path)
    held.release()
    assert done.returncode == 1
    assert directory.checkpoint_file.exists()


OVER = ("trainer.overwrite=true", "seed=0,1")


def contents(root: Path) -> dict[str, bytes]:
    """Return the files of all runs, but for their logs and locks."""
    return {
        str(path): path.read_bytes()
        for path in sorted(root.glob("runs/**/*"))
        if path.is_file() and path.suffix not in (".log", ".lock")
    }


@pytest.mark.long
def test_what_is_finished_is_there_until_nothing_can_refuse_to_start_it_afresh(tmp_path):
    assert run_command("-m", *TINY, "seed=0,1", cwd=tmp_path).returncode == 0
    before = contents(tmp_path)
    (tmp_path / "ray.py").write_text("raise ImportError('hidden')")
    hidden = {"PYTHONPATH": str(tmp_path)}
    refused = run_command(
        "-m", *TINY, *OVER, "cluster=ray", "cluster.gpus=0", cwd=tmp_path, environment=hidden
    )
    assert refused.returncode == 2, refused.stderr
    assert contents(tmp_path) == before
    held = hold_all_cores()
    taken = run_command("-m", *TINY, *OVER, "devices.wait=false", cwd=tmp_path)
    held.release()
    assert taken.returncode == 1
    kept = {name: data for name, data in contents(tmp_path).items() if ".grid-" not in name}
    assert kept == before, "what was asked for is left, too: nothing of it was done"
    again = run_command("-m", *TINY, *OVER, cwd=tmp_path)
    assert again.returncode == 0
    after = contents(tmp_path)
    assert after.keys() == before.keys()
    models = [name for name in after if name.endswith("model.pt")]
    assert [after[name] for name in models] == [before[name] for name in models]
    records = [name for name in after if name.endswith("record.json")]
    assert all(after[name] != before[name] for name in records)


def test_a_run_that_was_cleared_once_in_a_sweep_resumes_in_its_next_job(runs):
    ended(runs[0], "complete")
    config = replace(runs[0].config, trainer=replace(runs[0].config.trainer, overwrite=True))
    run = Run(config, runs[0].directory).planned()
    one = worker.Worker(config, allocate(config, 1), Stop(), run.replaces)
    assert not one._is_done()
    assert one._starts_afresh()
    ended(run, "interrupted")
    assert not one._starts_afresh()


@pytest.mark.slow
def test_a_process_knows_that_it_starts_afresh_and_whoever_runs_its_configuration_resumes(tmp_path):
    config = tiny(f"runs_dir={tmp_path}")
    assert run_experiment(config) == "complete"
    directory = RunDirectory.of(config)
    directory.weights_file.unlink()
    asked = replace(config, predictions=True)
    run = Run(asked, directory).planned()
    assert run_process(run, allocate(asked, 1), Stop()) == USER_ERROR, "nothing can be measured"
    assert "trainer.overwrite=true trains the run afresh" in directory.log_file.read_text()
    afresh = replace(asked, trainer=replace(asked.trainer, overwrite=True))
    run = Run(afresh, directory).planned()
    assert run_process(run, allocate(afresh, 1), Stop()) == 0
    assert directory.weights_file.exists()
    assert directory.read_record().config["trainer"]["overwrite"] is False
    assert directory.read_config().trainer.overwrite is False
    assert Run(afresh, directory, replaces=run.replaces).status() == "complete"


def test_a_run_that_cannot_be_read_any_more_is_a_line_of_the_summary(runs, monkeypatch, capsys):
    for run in runs:
        ended(run, "complete")
    real = RunDirectory.read_record

    def read(self):
        if self.path == runs[1].directory.path:
            raise UnreadableRun(self.path, OSError(errno.ESTALE, "Stale file handle"))
        return real(self)

    monkeypatch.setattr(RunDirectory, "read_record", read)
    assert print_summary(runs, interrupted=False) == 1
    line, end = capsys.readouterr().err.splitlines()
    assert line.startswith(f"unknown: {runs[1].label}: {runs[1].directory.path}: cannot be read (")
    assert end == "1 of 4 runs are not complete; the same command goes on"


@pytest.mark.parametrize("status", ["diverged", "failed"])
def test_no_command_is_named_that_would_skip_what_is_left(runs, capsys, status):
    for run, how in zip(runs, ["complete", "complete", "diverged", status], strict=True):
        ended(run, how)
    assert print_summary(runs, interrupted=False) == 1
    last = capsys.readouterr().err.splitlines()[-1]
    assert last.startswith("2 of 4 runs are not complete; ")
    assert last.endswith("; the same command goes on") == (status == "failed")


@pytest.mark.parametrize("count", [1, 4], ids=["some", "all"])
def test_runs_that_were_not_started_afresh_yet_are_not_left_to_a_command_that_redoes_the_others(
    runs, capsys, count
):
    trainer = replace(runs[0].config.trainer, overwrite=True)
    afresh = [replace(run, config=replace(run.config, trainer=trainer)) for run in runs]
    for run in runs:
        ended(run, "complete")
    old = [run.planned() for run in afresh[:count]]
    assert print_summary([*old, *afresh[count:]], interrupted=True) == INTERRUPTED
    alone = "for these alone goes on, as they have their earlier results yet"
    what = alone if count == 1 else "goes on"
    said = capsys.readouterr().err
    assert said.endswith(f"{count} of 4 runs are not complete; the same command {what}\n")


@pytest.mark.parametrize("trouble", [MemoryError("no room on the device"), Interrupted()])
def test_a_finished_run_is_cleared_when_its_network_is_built_and_not_before(
    runs, monkeypatch, trouble
):
    config, directory = runs[0].config, runs[0].directory
    assert run_experiment(config) == "complete"
    before = {path: path.read_bytes() for path in directory.path.iterdir()}

    def fail(*_):
        raise trouble

    with monkeypatch.context() as patched:
        patched.setattr("resnests.tasks.train.move", fail)
        if isinstance(trouble, Interrupted):
            assert run_experiment(config, clear=directory.clear) == "interrupted"
        else:
            with pytest.raises(MemoryError):
                run_experiment(config, clear=directory.clear)
    assert {path: path.read_bytes() for path in directory.path.iterdir()} == before
    assert run_experiment(config, clear=directory.clear) == "complete"
    assert directory.record_file.read_bytes() != before[directory.record_file]


def own_source(folder: Path, run: Run, monkeypatch, name: str) -> tuple[Path, Config]:
    """Write a network of a user's; return its file, and the configuration of `run` with it."""
    source = folder / f"{name}.py"
    source.write_text("from resnests import build_model as net\n")
    monkeypatch.syspath_prepend(folder)
    arch = Arch(name="mine", _target_=f"{name}.net", args={"arch": "resnet8"})
    (config,) = with_digests([replace(run.config, arch=arch)])
    return source, config


@pytest.mark.slow
def test_code_that_is_edited_while_a_worker_starts_is_not_trained(tmp_path, runs, monkeypatch):
    source, config = own_source(tmp_path, runs[0], monkeypatch, "edited_at_start")
    source.write_text("from resnests import build_model as net  # and more\n")
    with pytest.raises(UserError, match="was changed since the sweep was planned"):
        run_experiment(config)
    assert RunDirectory.of(config).status() == "failed"


def test_what_somebody_finished_meanwhile_is_not_trained_again(runs, monkeypatch):
    """Somebody did so before the lock was taken, or while the worker waited for its device."""
    directory = runs[0].directory
    directory.path.mkdir(parents=True)
    one = worker.Worker(runs[0].config, allocate(runs[0].config, 1), Stop())
    monkeypatch.setattr(worker, "lease", lambda *_: ended(runs[0], "complete") and lease(*_))
    monkeypatch.setattr("resnests.tasks.experiment.run_experiment", None)
    before = one.work()
    assert (before, directory.status()) == (0, "complete")
    record = directory.record_file.read_bytes()
    one.lock.release()
    one.held.release()
    monkeypatch.setattr(worker, "lease", None)
    other = worker.Worker(runs[0].config, allocate(runs[0].config, 1), Stop())
    assert other.work() == 0
    assert directory.record_file.read_bytes() == record


@pytest.mark.slow
def test_relative_paths_are_those_of_the_folder_of_the_command(tmp_path):
    places = ("hydra.job.chdir=true", "hydra.sweep.dir=out", "hydra.sweep.subdir=${hydra.job.num}")
    done = run_command("-m", *TINY, "seed=0,1", *places, cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    assert list(statuses(tmp_path).values()) == ["complete"] * 2
    done = run_command(*TINY, "seed=2", "hydra.job.chdir=true", "hydra.run.dir=one", cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    assert list(statuses(tmp_path).values()) == ["complete"] * 3


@pytest.mark.slow
def test_an_interrupted_sweep_that_started_afresh_names_the_command_that_goes_on(tmp_path):
    assert Sweep(tmp_path, "trainer.epochs=2").wait() == 0
    sweep = Sweep(tmp_path, "trainer.overwrite=true", "trainer.epochs=2000")
    while not any(len(run.history_rows()) > 2 for run in find_runs(tmp_path / "runs")):
        time.sleep(0.05)
    sweep.process.send_signal(signal.SIGINT)
    assert sweep.wait() == 130
    logs = [run.log_file.read_text() for run in find_runs(tmp_path / "runs")]
    goes_on = "the same command without trainer.overwrite=true goes on"
    assert goes_on in (tmp_path / "sweep.log").read_text()
    assert any(f"{goes_on} from there" in log for log in logs)


def test_code_that_was_edited_while_its_run_waited_is_not_trained(tmp_path, runs, monkeypatch):
    source, config = own_source(tmp_path, runs[0], monkeypatch, "edited_later")
    one = worker.Worker(config, allocate(config, 1), Stop())
    edit = "# another network\n"
    monkeypatch.setattr(worker, "lease", lambda *_: source.write_text(edit) and lease(*_))
    with pytest.raises(UserError, match="was changed since the sweep was planned"):
        one.work()
    one.lock.release()
    one.held.release()
    assert one.directory.read_record() is None


def test_an_analysis_trains_no_run_that_is_complete(tmp_path, monkeypatch):
    config = tiny(f"runs_dir={tmp_path}", "task=analyze", "analysis.train=true")
    write_run(replace(config, task="train"), "complete")
    monkeypatch.setattr("resnests.tasks.experiment.run_experiment", None)
    one = worker.Worker(config, allocate(config, 1), Stop())
    assert one._train_first("cpu") == "complete"


def test_a_directory_that_is_removed_while_its_run_waits_is_not_trained(runs, monkeypatch):
    config = runs[0].config
    one = worker.Worker(config, allocate(config, 1), Stop())
    monkeypatch.setattr(worker, "lease", lambda *_: shutil.rmtree(one.directory.path) or lease(*_))
    with pytest.raises(UserError, match="was removed while this run waited"):
        one.work()
    one.held.release()


def test_a_run_that_was_removed_and_begun_anew_keeps_the_heartbeat_of_who_has_it(runs, monkeypatch):
    config = runs[0].config
    one = worker.Worker(config, allocate(config, 1), Stop())
    others = {"pid": os.getppid(), "state": "waiting"}
    seen, ends = [], []

    def wait(*_):
        shutil.rmtree(one.directory.path)
        other = one.directory.lock().acquire(blocking=False)
        one.directory.write_progress(others)
        one._show_progress()
        seen.append((one.directory.read_progress(), other))
        until(lambda: ends)

    monkeypatch.setattr(worker, "HEARTBEAT", 0.05)
    monkeypatch.setattr(worker, "lease", wait)
    monkeypatch.setattr(worker.os, "_exit", ends.append)
    one.work()
    assert set(ends) == {BUSY}, "it ends before it writes anything over the other's files"
    ((found, other),) = seen
    assert others.items() <= found.items()
    assert one.directory.read_progress() == found
    other.release()


def test_a_file_system_that_is_away_for_a_moment_does_not_end_the_heartbeat(
    runs, monkeypatch, caplog
):
    config = runs[0].config
    one = worker.Worker(config, allocate(config, 1), Stop())
    is_held, away = one.lock.is_held, [False] * 2 + [True] * 3

    def stale():
        if away and away.pop(0):
            raise OSError(errno.ESTALE, os.strerror(errno.ESTALE))
        return is_held()

    def wait(*_):
        until(lambda: not away)
        one.directory.progress_file.unlink(missing_ok=True)
        until(one.directory.progress_file.exists)
        away[:] = [True] * 2  # as the worker ends, too

    one.lock.is_held = stale
    monkeypatch.setattr(worker, "HEARTBEAT", 0.05)
    monkeypatch.setattr(worker, "lease", wait)
    assert one.work() == INTERRUPTED
    assert "no heartbeat" in caplog.text


@pytest.mark.slow
def test_a_second_sweep_that_is_interrupted_leaves_the_first_one_alone(tmp_path):
    """It waits for a device all the while, and has no record yet."""
    held = hold_all_cores()
    first = Sweep(tmp_path, "seed=0", "variant=standard")
    while not list(tmp_path.glob("runs/**/progress.json")):
        time.sleep(0.05)
    second = Sweep(tmp_path, "seed=0", "variant=standard")
    until(lambda: read_asked(*find_asked(tmp_path / "runs")).pid == second.process.pid)
    time.sleep(2)  # all that it may do by now
    second.process.send_signal(signal.SIGINT)
    assert second.wait() == 130
    (directory,) = (RunDirectory(p.parent) for p in tmp_path.glob("runs/**/progress.json"))
    assert directory.is_locked()
    assert directory.log_file.exists()
    held.release()
    assert first.wait() == 0
    assert list(statuses(tmp_path).values()) == ["complete"]


@pytest.mark.slow
def test_runs_of_others_are_passed_over_and_ones_own_go_on(runs, monkeypatch, capsys):
    barred = runs[0].directory.path

    def require_writable(self):
        if self.path == barred:
            raise UserError(f"{self.path}: cannot be written; it belongs to ada")

    monkeypatch.setattr(RunDirectory, "require_writable", require_writable)
    todo, others = usable_runs(runs)
    assert ([run.index for run in todo], [run.index for run in others]) == ([1, 2, 3], [0])
    said = f"passed over: {runs[0].label}: {barred}: cannot be written; it belongs to ada"
    assert said in capsys.readouterr().err
    ended(runs[1], "complete")
    assert print_plan(runs, None) == runs[2:]
    shown = capsys.readouterr()
    assert said in shown.err
    assert "2 to run, 0 to resume, 1 to skip" in shown.out
    barred = runs[1].directory.path  # which may be read, and is complete
    assert print_plan(runs, None) == [runs[0], *runs[2:]]
    assert capsys.readouterr().err == ""


@pytest.mark.usefixtures("undone")
@pytest.mark.parametrize(("kind", "lock"), [("sweep", "jobs.jsonl"), ("notes", "lock")])
def test_folders_that_killed_processes_left_are_removed_and_those_at_work_are_not(
    runs, tmp_path, monkeypatch, kind, lock
):
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path))
    ours = (f"{kind}-killed", f"{kind}-locked", f"{kind}-young")
    names = (*ours, "mps-1", "sync-1", "job-1", "slots-0", "x")
    places = {name: tmp_path / f"resnests-{name}" for name in names}
    for name, place in places.items():
        place.mkdir()
        (place / lock).touch()
        if name != f"{kind}-young":
            os.utime(place, (0, 0))
    sweep = local_sweep(runs, allocate(runs[0].config, 1))
    beside = sweep if kind == "sweep" else temporary_folder()
    with flocked(places[f"{kind}-locked"] / lock), beside:
        assert [name for name in places if not places[name].exists()] == [f"{kind}-killed"]


def test_a_temporary_folder_is_locked_while_it_is_used_and_then_removed(tmp_path, monkeypatch):
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path))
    with temporary_folder() as folder:
        os.utime(folder, (0, 0))
        with temporary_folder():
            assert folder.exists()
    assert not list(tmp_path.iterdir())


def test_what_another_sweep_finishes_while_ours_is_planned_is_not_started_afresh(runs):
    ended(runs[0], "complete")
    assert runs[0].planned().replaces is None
