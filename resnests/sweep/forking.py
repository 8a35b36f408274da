"""Start trainings as copies of the fork server, a process that has imported torch: that takes
hundredths of a second, where the import takes two to three seconds. Linux; no torch.

Where there is no server, or it died, a job starts `python -m resnests.sweep.worker`, and trainings
outlive a server. A server lives as long as its sweep, so that no code grows old in it.
"""

from __future__ import annotations

import json
import os
import select
import signal
import socket
import subprocess
import sys
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager, suppress
from pathlib import Path
from typing import IO

from resnests.data.splits import is_ready
from resnests.sweep.devices import Allocation
from resnests.sweep.forkserver import receive
from resnests.sweep.plan import Run
from resnests.text import last_log_line_of

ADDRESS = "RESNESTS_FORK_SERVER"  # set for jobs while there is one
LOG = "forkserver.log"  # in its folder, what it says
POLL_SECONDS = 0.2  # seconds


@contextmanager
def forking(runs: Sequence[Run], allocation: Allocation | None, folder: Path) -> Iterator[None]:
    """Run a server in `folder` for the jobs that are started meanwhile, where it is of use."""
    wanted = len(runs) > 1 and runs[0].config.devices.fork and sys.platform == "linux"
    server = _start(folder, allocation, _modules(runs)) if wanted and allocation else None
    try:
        yield
    finally:
        if server:
            _end(server, folder)


def _modules(runs: Sequence[Run]) -> list[str]:
    """Return the modules that some of `runs` import besides torch."""
    configs, modules = [run.config for run in runs], []
    if any(c.pipeline.name == "torchvision" or not is_ready(c.dataset) for c in configs):
        modules.append("torchvision")
    if configs[0].task == "analyze":
        modules.append("resnests.analysis.experiment")
    return modules


def _start(folder: Path, allocation: Allocation, modules: Sequence[str]) -> subprocess.Popen | None:
    address = str(folder / "forkserver")
    try:
        with socket.socket(socket.AF_UNIX) as listener, open(folder / LOG, "wb") as output:
            listener.bind(address)
            listener.listen()
            module = [sys.executable, "-m", "resnests.sweep.forkserver"]
            server = subprocess.Popen(
                [*module, str(listener.fileno()), *modules],
                stdin=subprocess.PIPE,  # it ends with that
                stdout=output,
                stderr=subprocess.STDOUT,
                pass_fds=[listener.fileno()],
                start_new_session=True,
                # Those of its trainings, as libraries make threads as soon as they are loaded
                env=os.environ | allocation.thread_environment(),
            )
    except OSError as error:  # such as a TMPDIR too long for a socket's name
        _warn(str(error))
        return None
    os.environ[ADDRESS] = address
    return server


def _end(server: subprocess.Popen, folder: Path) -> None:
    """End the server: close its standard input, and kill it where it still imports."""
    del os.environ[ADDRESS]
    assert server.stdin is not None
    server.stdin.close()
    with suppress(subprocess.TimeoutExpired):
        if code := server.wait(1):
            _warn(last_log_line_of(folder / LOG) or f"exit status {code}")
    server.kill()
    server.wait()


def _warn(reason: str) -> None:
    print(f"warning: no fork server, so that each run imports torch ({reason})", file=sys.stderr)


class Forked:
    """Stands for a training of the server, with what run_process needs of a subprocess.Popen."""

    def __init__(self, pid: int, stdin: IO[bytes], connection: socket.socket) -> None:
        self.pid, self.stdin, self.connection = pid, stdin, connection
        self.returncode: int | None = None

    def poll(self) -> int | None:
        with suppress(subprocess.TimeoutExpired):
            self.wait(0)
        return self.returncode

    def wait(self, timeout: float | None = None) -> int:
        """Return the exit status; raises a subprocess.TimeoutExpired."""
        if self.returncode is None:
            if not _is_readable(self.connection, timeout):
                raise subprocess.TimeoutExpired("training", timeout or 0)
            # The training has the connection, too: it ends without a word when both are gone
            told = receive(self.connection)
            self.returncode = -signal.SIGKILL if told is None else told
            self.connection.close()
        return self.returncode

    def kill(self) -> None:
        if self.poll() is None:
            with suppress(ProcessLookupError):
                os.kill(self.pid, signal.SIGKILL)


def fork(log: IO[bytes], should_stop: Callable[[], bool]) -> Forked | None:
    """Return a training that writes to `log`, None where no server forks one in time."""
    if ADDRESS not in os.environ:
        return None
    with suppress(OSError), ExitStack() as opened:
        connection = opened.enter_context(socket.socket(socket.AF_UNIX))
        connection.connect(os.environ[ADDRESS])
        ours, pipe = os.pipe()
        stdin = opened.enter_context(open(pipe, "wb"))
        with open(ours, "rb"):
            socket.send_fds(connection, [b"\n"], [ours, log.fileno()])
        while not _is_readable(connection, POLL_SECONDS):  # it imports torch yet
            if should_stop():
                return None
        pid = receive(connection)
        if pid is None or pid <= 1:  # its exit status, as it died before it could say its number
            return None
        context = {"folder": os.getcwd(), "environment": dict(os.environ)}
        connection.sendall(json.dumps(context).encode() + b"\n")
        opened.pop_all()
        return Forked(pid, stdin, connection)
    return None


def _is_readable(connection: socket.socket, timeout: float | None) -> bool:
    return bool(select.select([connection], [], [], timeout)[0])
