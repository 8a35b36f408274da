"""An MPS daemon is started for runs that share a card, stopped on every path, and costs no run."""

import os
import signal
import subprocess
import sys
import time
from contextlib import suppress
from dataclasses import replace
from itertools import chain, repeat
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
from helpers import gpu, make_config, tiny, until

from resnests.errors import CaptureFailed, UserError
from resnests.runs.directory import RunDirectory
from resnests.sweep import mps, process
from resnests.sweep.aside import Note
from resnests.sweep.devices import Allocation, allocate
from resnests.sweep.drive import run_sweep
from resnests.sweep.leases import lease
from resnests.sweep.mps import LOGS, NOWHERE, PIPES
from resnests.sweep.mps_sharing import obstacle, sharing
from resnests.sweep.plan import Run
from resnests.sweep.process import run_on_devices, run_on_host
from resnests.sweep.protocol import DEVICE
from resnests.sweep.stop import Stop
from resnests.sweep.worker import Worker, exit_status

pytestmark = pytest.mark.skipif(sys.platform != "linux", reason="NVIDIA's cards need Linux")
SHARED = Allocation("cuda", ["GPU-a-0", "GPU-a-1"], ["GPU-a", "GPU-a"], 1, 2, 1)
LAUNCH = "CUDA error: unspecified launch failure"


class Program:
    """Tells what the stand-in for nvidia-cuda-mps-control was asked, and how it is to answer."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder

    def calls(self) -> list[str]:
        """Return its calls, less those that ask whether a daemon answers."""
        file = self.folder / "calls"
        lines = file.read_text().splitlines() if file.exists() else []
        return [line for line in lines if not line.startswith("get_")]

    def behaves(self, mode: str) -> None:
        (self.folder / "mode").write_text(mode)


@pytest.fixture
def program(tmp_path, monkeypatch, driver) -> Program:
    """Put the program into PATH, beside one card; no daemon runs yet."""
    folder = tmp_path / "mps"
    folder.mkdir()
    monkeypatch.setenv("PATH", f"{Path(__file__).parent}:{os.environ['PATH']}")
    monkeypatch.setenv("FAKE_MPS", str(folder))
    monkeypatch.setenv(PIPES, str(tmp_path / "no-daemon"))
    driver("H100")
    return Program(folder)


def daemon(folder: str) -> int:
    """Return the process of the daemon in a folder."""
    return int((Path(folder) / f"{mps.PROGRAM}.pid").read_text())


def is_gone(pid: int) -> bool:
    """Return whether a process has ended, also where nobody has waited for it."""
    with suppress(FileNotFoundError):
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] == "Z"
    return True


def config(*words: str):
    return make_config("devices.runs_per_gpu=2", *words)


def test_runs_that_share_a_card_are_clients_of_a_daemon_of_their_sweep(program):
    allocation = allocate(config("devices.mps=true"), 4)
    before = dict(os.environ)
    with sharing(True, allocation) as shared:
        folder = shared.mps
        assert program.calls() == [f"-d {folder} {folder} {gpu(0)}"]
        assert os.stat(folder).st_mode & 0o777 == 0o700
        assert len(folder) < 60, "names of sockets in it have at most 107 bytes"
        held = lease(shared, "a run")
        environment = held.environment()
        held.release()
        assert environment[PIPES] == environment[LOGS] == folder
        assert environment["CUDA_VISIBLE_DEVICES"] == gpu(0)
        assert os.environ == before, "only the runs are its clients"
        pid = daemon(folder)
        assert not is_gone(pid)
    assert program.calls()[-1] == "quit"
    assert is_gone(pid)
    assert not Path(folder).exists()


@pytest.mark.parametrize("error", [KeyboardInterrupt, UserError("no device")])
def test_a_daemon_ends_with_its_sweep_whatever_ends_that(program, error):
    pids = []
    with suppress(KeyboardInterrupt, UserError), sharing(None, SHARED) as shared:
        pids.append(daemon(shared.mps))
        raise error
    assert is_gone(*pids)


def test_a_sweep_that_is_killed_leaves_no_daemon_but_one_for_runs_that_write_checkpoints(program):
    script = f"""
import os
from resnests.sweep.devices import Allocation
from resnests.sweep.mps_sharing import sharing
entered = sharing(True, {SHARED!r})
print(entered.__enter__().mps, flush=True)
os.kill(os.getpid(), 9)
"""
    (program.folder / "clients").write_text("77\n")
    command = [sys.executable, "-c", script]
    started = subprocess.run(command, capture_output=True, text=True)
    assert started.returncode == -signal.SIGKILL, started.stderr
    folder = started.stdout.strip()
    pid = daemon(folder)
    time.sleep(0.5)
    assert not is_gone(pid), "a run is still its client"
    (program.folder / "clients").unlink()
    until(lambda: is_gone(pid) and not Path(folder).exists())


@pytest.mark.parametrize("wanted", [True, None, False])
def test_a_daemon_that_runs_is_used_and_left_running(program, monkeypatch, tmp_path, wanted):
    theirs = tmp_path / "theirs"
    theirs.mkdir()
    monkeypatch.setenv(PIPES, str(theirs))
    subprocess.run([mps.PROGRAM, "-d"], check=True)
    pid = daemon(str(theirs))
    with sharing(wanted, SHARED) as shared:
        assert shared.mps == str(theirs)
    assert not is_gone(pid)
    assert len(program.calls()) == 1
    os.kill(pid, signal.SIGKILL)
    until(lambda: is_gone(pid))
    assert mps.running_folder() is None, "its pipes are there, and nobody answers"
    with sharing(False, SHARED) as shared:
        assert shared == SHARED


def test_none_is_started_where_none_is_of_use_or_wanted(program):
    alone = replace(SHARED, concurrent=1)
    on_cpu = replace(SHARED, kind="cpu", gpus=[])
    for wanted, allocation in ((False, SHARED), (True, alone), (None, alone), (None, on_cpu)):
        with sharing(wanted, allocation) as shared:
            assert shared == allocation
    assert program.calls() == []


@pytest.mark.parametrize(
    ("words", "mode", "reason"),
    [
        ("H100", "missing", "there is no nvidia-cuda-mps-control"),
        ("H100:mig2", "", "a GPU is divided (MIG)"),
        ("H100", "fails", "An instance of this daemon is already running"),
    ],
)
def test_what_stands_against_a_daemon_is_one_line(
    program, driver, capsys, monkeypatch, words, mode, reason
):
    driver(words)
    program.behaves(mode)
    if mode == "missing":
        monkeypatch.setenv("PATH", "/nonexistent")
    allocation = allocate(config(), 9)
    with pytest.raises(UserError) as error, sharing(True, allocation):
        pass
    assert str(error.value) == f"devices.mps=True: expected null or false, as {reason}"
    with sharing(None, allocation) as shared:
        assert shared == allocation
    said = "warning: runs on a GPU take turns, as no MPS daemon can be started: "
    assert capsys.readouterr().err == f"{said}{reason}\n"


def test_a_daemon_that_does_not_answer_is_stopped(program, monkeypatch, tmp_path):
    clock = chain([0.0], repeat(mps.ANSWER_SECONDS + 1))  # it has had its time
    monkeypatch.setattr(mps, "time", SimpleNamespace(monotonic=clock.__next__, sleep=time.sleep))
    program.behaves("mute")
    assert mps.start(str(tmp_path), gpu(0)) == "its nvidia-cuda-mps-control does not answer"
    pid = daemon(str(tmp_path))
    mps.stop(str(tmp_path))
    until(lambda: is_gone(pid))


def test_cards_in_exclusive_mode_need_a_daemon_of_the_users(program, driver, capsys, tmp_path):
    driver("H100:excl,H100")
    expected = rf"devices.mps=True: expected null or false, as {gpu(0)} is in exclusive mode"
    with pytest.raises(UserError, match=expected):
        allocate(config("devices.mps=true"), 4)
    allocation = allocate(config(), 4)
    assert allocation.shares_cards
    assert obstacle(None, allocation).startswith(f"{gpu(0)} is in exclusive mode")
    theirs = {PIPES: str(tmp_path)}
    subprocess.run([mps.PROGRAM, "-d"], check=True, env=os.environ | theirs)
    os.environ |= theirs
    with sharing(None, allocation) as shared:
        assert shared.mps == "", "without it a run could not go on there"
    os.kill(daemon(str(tmp_path)), signal.SIGKILL)


@pytest.mark.parametrize(
    ("words", "expected"),
    [
        (["devices.mps=true"], "null or false with devices.runs_per_gpu=1"),
        (["devices.mps=true", "devices.runs_per_gpu=2", "cluster=slurm"], "cluster=slurm"),
        (["devices.mps=true", "devices.runs_per_gpu=2", "cluster=ray"], "cluster=ray"),
    ],
)
def test_where_no_daemon_is_started_it_cannot_be_asked_for(words, expected):
    with pytest.raises(UserError, match=rf"devices.mps=True: expected .*{expected}"):
        make_config(*words)


def test_it_cannot_be_asked_for_without_a_card():
    wanted = config("devices.mps=true", "trainer.device=cpu")
    with pytest.raises(UserError, match=r"devices.mps=True: expected null or false on device cpu"):
        allocate(wanted, 4)


def test_a_dry_run_says_what_a_sweep_would(program, monkeypatch, tmp_path):
    monkeypatch.setenv("PATH", "/nonexistent")
    words = ["devices.runs_per_gpu=2", "devices.mps=true", "sweep.dry_run=true"]
    configs = [tiny(*words, f"runs_dir={tmp_path}", f"seed={seed}") for seed in (0, 1)]
    with pytest.raises(UserError, match=r"devices.mps=True: .* there is no nvidia-cuda-mps-contr"):
        run_sweep(configs, lambda *_: None)


@pytest.fixture
def run(tmp_path) -> Run:
    one = tiny(f"runs_dir={tmp_path / 'runs'}")
    return Run(one, RunDirectory.of(one))


@pytest.mark.slow
@pytest.mark.parametrize(
    ("error", "is_noted"),
    [
        (RuntimeError(LAUNCH), False),
        (RuntimeError("CUDA error: device-side assert triggered"), False),
        (RuntimeError("CUDA error: MPS server is not ready to accept new requests"), False),
        (CaptureFailed("trainer.cuda_graph=false trains"), False),
        (RuntimeError("shapes cannot be multiplied"), None),
    ],
)
def test_a_worker_blames_no_card_for_what_may_be_the_error_of_its_neighbour(
    run, aside, monkeypatch, error, is_noted
):
    def fails(*_):
        raise error from RuntimeError(LAUNCH) if isinstance(error, CaptureFailed) else None

    monkeypatch.setattr(torch, "set_num_threads", lambda _: None)
    monkeypatch.setattr("resnests.tasks.experiment.run_experiment", fails)
    monkeypatch.setattr("resnests.sweep.device_errors.nvml_complaint", lambda uuid: None)
    monkeypatch.setattr("resnests.sweep.worker.emulation", lambda *_: None)
    for name in ("CUDA_VISIBLE_DEVICES", "CUDA_DEVICE_ORDER", LOGS, PIPES):
        monkeypatch.setenv(name, "")  # as before it after the test
    worker = Worker(run.config, replace(SHARED, aside=aside.folder, mps="/tmp/d"), Stop())
    assert exit_status(worker) == (1 if is_noted is None else DEVICE)
    assert os.environ[PIPES] == "/tmp/d"
    assert aside.notes() == []
    worker.held.release()
    worker.lock.release()


@pytest.mark.parametrize("fails_alone", [False, True])
def test_a_run_goes_on_without_mps_where_no_error_is_another_s(
    run, aside, monkeypatch, fails_alone
):
    tried = []

    def train(run, allocation, stop):
        tried.append(allocation.mps)
        if not allocation.is_under_mps and not fails_alone:
            return 0
        if not allocation.is_under_mps:
            aside.add(Note("GPU-a", LAUNCH, str(run.directory.path)))
        return DEVICE

    monkeypatch.setattr(process, "run_with_fallback", train)
    monkeypatch.setattr(process, "start_trials", dict.fromkeys)
    monkeypatch.setattr(process, "verdicts", lambda trials: dict.fromkeys(trials, ""))
    run.directory.path.mkdir(parents=True)
    code = run_on_devices(run, replace(SHARED, aside=aside.folder, mps="/tmp/d"), Stop())
    assert tried == ["/tmp/d", NOWHERE]
    assert code == (1 if fails_alone else 0)
    assert aside.notes() == []
    assert "going on without MPS" in run.directory.log_file.read_text()
    held = lease(replace(SHARED, mps=NOWHERE), "test")
    assert held.environment()[PIPES] == NOWHERE
    held.release()


def test_runs_of_a_job_know_the_daemon_that_the_job_started(run, program, monkeypatch, tmp_path):
    monkeypatch.setenv(PIPES, str(tmp_path))
    subprocess.run([mps.PROGRAM, "-d"], check=True)
    given = []
    monkeypatch.setattr(process, "allocate", lambda *_: SHARED)
    monkeypatch.setattr(
        process,
        "run_on_devices",
        lambda run, allocation, stop, **_: given.append(allocation.mps) or 0,
    )
    run_on_host(run, None, 2, Stop())
    assert given == [str(tmp_path)]
    os.kill(daemon(str(tmp_path)), signal.SIGKILL)
