"""Trainings that a fork server starts are what others are, whoever dies."""

import os
import signal
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from contextlib import suppress
from dataclasses import replace
from pathlib import Path
from tempfile import TemporaryDirectory

import psutil
import pytest
from helpers import REPOSITORY, history, tiny, until

from resnests.errors import USER_ERROR
from resnests.models.weights import read_torch
from resnests.runs.digests import with_digests
from resnests.runs.directory import RunDirectory
from resnests.sweep import forking, process
from resnests.sweep.devices import allocate
from resnests.sweep.forkserver import receive
from resnests.sweep.plan import Run
from resnests.sweep.process import run_process
from resnests.sweep.protocol import INTERRUPTED
from resnests.sweep.stop import Stop

pytestmark = [
    pytest.mark.slow,  # the server imports torch
    pytest.mark.skipif(sys.platform != "linux", reason="forking is for Linux"),
]
IN_ANOTHER_WAY = process._start
LONG = "trainer.epochs=100000"


def run_of(folder: Path, *overrides: str) -> Run:
    config = tiny(f"runs_dir={folder}", "trainer.device=cpu", *overrides)
    return Run(config, RunDirectory.of(config))


def train(run: Run, stop: Stop | None = None, threads: int = 1) -> int:
    return run_process(run, replace(allocate(run.config, 2), threads=threads), stop or Stop())


def short_folder() -> TemporaryDirectory:
    """Return a folder whose sockets have names that are not too long, whatever TMPDIR is."""
    return TemporaryDirectory(prefix="fork-", dir="/tmp")


@pytest.fixture
def short() -> Iterator[Path]:
    with short_folder() as folder:
        yield Path(folder)


@pytest.fixture(scope="module")
def _served() -> Iterator[psutil.Process]:
    with short_folder() as name:
        folder = Path(name)
        runs = [run_of(folder), run_of(folder)]
        with forking.forking(runs, allocate(runs[0].config, 2), folder):
            yield servers()[-1]


@pytest.fixture
def server(_served, monkeypatch) -> psutil.Process:
    """Start the server of all tests that do not kill it; no training may start in another way."""
    monkeypatch.setattr("resnests.sweep.process._start", None)
    return _served


def servers() -> list[psutil.Process]:
    """Return the servers of this process, the latest last."""
    found = []
    for child in psutil.Process().children():
        with suppress(psutil.ZombieProcess):
            if "resnests.sweep.forkserver" in child.cmdline():
                found.append(child)
    return sorted(found, key=psutil.Process.create_time)


class Training(threading.Thread):
    """Trains for long beside this thread, from its first epoch on."""

    def __init__(self, run: Run) -> None:
        super().__init__(daemon=True)
        self.of, self.directory, self.stop, self.code = run, run.directory, Stop(), None
        self.start()
        while not self.directory.checkpoint_file.exists():
            assert self.is_alive()
            time.sleep(0.02)
        self.process = psutil.Process(self.directory.read_record().provenance.pid)

    def run(self) -> None:
        self.code = train(self.of, self.stop)

    def end(self) -> int:
        self.join(60)
        return self.code


def test_a_forked_training_gives_the_bits_of_one_that_imports_torch(server, tmp_path, monkeypatch):
    """Each has two threads, which the libraries make after the fork."""
    forked, plain = run_of(tmp_path / "forked"), run_of(tmp_path / "plain")
    assert train(forked, threads=2) == 0
    monkeypatch.delenv(forking.ADDRESS)
    monkeypatch.setattr("resnests.sweep.process._start", IN_ANOTHER_WAY)
    assert train(plain, threads=2) == 0
    weights = [read_torch(run.directory.path / "model.pt") for run in (forked, plain)]
    assert all(weights[0][name].equal(value) for name, value in weights[1].items())
    assert history(forked.directory.path) == history(plain.directory.path)
    logs = [run.directory.log_file.read_text() for run in (forked, plain)]
    assert [len(text.splitlines()) for text in logs] == [2, 2]
    ours, others = (run.directory.read_record().provenance for run in (forked, plain))
    assert ours.threads == others.threads == 2
    assert ours.versions == others.versions


def test_it_works_in_a_session_of_its_own_with_its_jobs_environment(server, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("OF_THE_JOB", "1")
    training = Training(run_of(tmp_path, LONG))
    process = training.process
    assert process.parent() == server
    assert os.getsid(process.pid) == process.pid
    assert process.cwd() == str(tmp_path)
    files = [file.path for file in process.open_files()]
    assert str(training.directory.lock_file) in files
    assert not [path for path in files if path.endswith(forking.LOG)]
    assert server.num_threads() == 1
    training.stop.ask()
    assert training.end() == INTERRUPTED
    assert training.directory.status() == "interrupted"
    assert server.children() == []


def test_a_training_that_is_killed_costs_its_run_only(server, tmp_path):
    training = Training(run_of(tmp_path, LONG))
    training.process.kill()
    assert training.end() == -signal.SIGKILL
    assert training.directory.read_record().error == "killed by SIGKILL"
    assert train(run_of(tmp_path, "seed=1")) == 0


def test_a_second_signal_kills_it(server, tmp_path):
    training = Training(run_of(tmp_path, LONG))
    training.process.suspend()
    training.stop.signals = 2
    assert training.end() == -signal.SIGKILL
    assert not training.process.is_running()


def test_a_users_mistake_is_said_in_its_log(server, tmp_path):
    run = run_of(tmp_path, "pipeline.crop_padding=40")
    assert train(run) == USER_ERROR
    assert "pipeline.crop_padding=40" in run.directory.log_file.read_text()
    assert run.directory.status() == "failed"


def test_a_job_that_is_killed_takes_its_training_along(server, tmp_path):
    program = f"""
from resnests.sweep.process import run_process
from test_forking import *
train(run_of(Path({str(tmp_path)!r}), LONG))
"""
    path = os.pathsep.join(filter(None, sys.path))
    job = subprocess.Popen(
        [sys.executable, "-c", program], env=os.environ | {"PYTHONPATH": path}, cwd=tmp_path
    )
    directory = run_of(tmp_path, LONG).directory
    while not directory.checkpoint_file.exists():
        assert job.poll() is None
        time.sleep(0.02)
    job.kill()
    job.wait()
    until(lambda: directory.status() == "interrupted" and not server.children())


def test_unseeded_draws_of_two_trainings_differ(server, tmp_path, monkeypatch):
    """They differ as those of processes do that import numpy and random each."""
    (tmp_path / "drawing.py").write_text(
        "import random, numpy, torch\n\n"
        "def net(num_classes):\n"
        "    print(f'drew {random.random()} {numpy.random.rand()}', flush=True)\n"
        "    return torch.nn.Sequential(torch.nn.Flatten(), torch.nn.LazyLinear(num_classes))\n"
    )
    monkeypatch.chdir(tmp_path)  # where such a module is found
    own = ("~arch.blocks", "~arch.widths", "arch.name=mine", "+arch._target_=drawing.net")
    drawn = []
    for seed in (0, 1):
        run = run_of(tmp_path, *own, f"seed={seed}")
        (config,) = with_digests([run.config])
        run = Run(config, RunDirectory.of(config))
        train(run)
        lines = run.directory.log_file.read_text().splitlines()
        drawn += next(line.split()[1:] for line in lines if line.startswith("drew "))
    assert len(set(drawn)) == 4


def test_its_memory_does_not_grow_with_the_number_of_trainings(server):
    """Jobs that die as soon as they have a training do not disturb it, either."""
    files = server.num_fds()

    def start(count: int) -> None:
        for _ in range(count):
            with socket.socket(socket.AF_UNIX) as job, open(os.devnull, "r+b") as null:
                job.connect(os.environ[forking.ADDRESS])
                socket.send_fds(job, [b"\n"], [null.fileno()] * 2)
                assert receive(job)
        until(lambda: not server.children() and server.num_fds() == files)

    start(10)
    before = server.memory_full_info().uss
    start(100)
    assert server.memory_full_info().uss < before + 2**20


def test_trainings_outlive_their_server_and_later_ones_do_without(
    tmp_path, short, capfd, monkeypatch
):
    monkeypatch.delenv(forking.ADDRESS, raising=False)  # of the other tests' server
    runs = [run_of(tmp_path, LONG), run_of(tmp_path, "seed=1")]
    with forking.forking(runs, allocate(runs[0].config, 2), short):
        training = Training(runs[0])
        server = servers()[-1]
        server.kill()
        until(lambda: server.status() == psutil.STATUS_ZOMBIE)
        assert train(runs[1]) == 0
        training.stop.ask()
        training.end()
        assert training.directory.status() == "interrupted"
    assert "warning: no fork server" in capfd.readouterr().err
    assert forking.ADDRESS not in os.environ


@pytest.mark.parametrize(
    ("start", "folder_name", "reason"),
    [
        ("import threading; threading.Timer(60, print).start()", "short", "has 2 threads"),
        ("sys.modules['torch'] = None", "short", "torch"),
        ("", "x" * 100, "too long"),
    ],
)
def test_where_there_can_be_no_server_jobs_do_without_and_it_is_said(
    tmp_path, short, monkeypatch, capfd, start, folder_name, reason
):
    """A library has threads that a fork would lose, another is broken, and a TMPDIR is too long."""
    (tmp_path / "sitecustomize.py").write_text(
        f"import sys\nif 'resnests.sweep.forkserver' in sys.orig_argv:\n    {start or 'pass'}\n"
    )
    monkeypatch.setenv("PYTHONPATH", f"{tmp_path}{os.pathsep}{REPOSITORY}")
    monkeypatch.delenv(forking.ADDRESS, raising=False)  # of the other tests' server
    folder, before = short / folder_name, psutil.Process().children()
    folder.mkdir()
    runs = [run_of(tmp_path), run_of(tmp_path)]
    with forking.forking(runs, allocate(runs[0].config, 2), folder), open(os.devnull, "wb") as log:
        assert forking.fork(log, lambda: False) is None
        new = [child for child in psutil.Process().children() if child not in before]
        until(lambda: all(child.status() == psutil.STATUS_ZOMBIE for child in new))
    (line,) = capfd.readouterr().err.splitlines()
    assert line.startswith("warning: no fork server, so that each run imports torch")
    assert reason in line


@pytest.mark.parametrize(("count", "fork"), [(1, "true"), (2, "false")])
def test_one_run_alone_has_no_server_and_a_sweep_can_do_without(tmp_path, count, fork):
    runs = [run_of(tmp_path, f"devices.fork={fork}")] * count
    with forking.forking(runs, allocate(runs[0].config, 2), tmp_path):
        assert not (tmp_path / forking.LOG).exists()


DIES_IN_FORKING = """
import os, socket, sys
from resnests.sweep import forkserver

fork = os.fork
os.fork = lambda: fork() and os._exit(0) or 0
server = forkserver.Server(socket.socket(fileno=int(sys.argv[1])))
assert server._fork() is not None
"""


def test_a_server_that_dies_in_forking_leaves_no_job_waiting(short):
    """The job waits for the number of its training, which therefore says it by itself."""
    place = str(short / "socket")
    with socket.socket(socket.AF_UNIX) as listener, socket.socket(socket.AF_UNIX) as connection:
        listener.bind(place)
        listener.listen()
        command = [sys.executable, "-c", DIES_IN_FORKING, str(listener.fileno())]
        server = subprocess.Popen(command, pass_fds=[listener.fileno()], cwd=REPOSITORY)
        connection.connect(place)
        with open(os.devnull, "r+") as nothing:
            socket.send_fds(connection, [b"\n"], [nothing.fileno(), nothing.fileno()])
        assert server.wait(30) == 0
        connection.settimeout(10)
        assert receive(connection) not in (None, server.pid)
