"""Fork trainings from a process that has imported torch once. Linux; no torch but in main().

    python -m resnests.sweep.forkserver 3 torchvision       # the file descriptor of a
                                              # listening Unix socket, and what to import besides

It starts no thread, touches no device, never imports what users bring, and lives until its standard
input ends. A job that connects (forking.py) hands over the standard input and output of a training,
is told its process, sends the environment, and is told the exit status.
"""

from __future__ import annotations

import gc
import importlib
import json
import os
import select
import signal
import socket
import sys
from collections.abc import Sequence
from contextlib import suppress
from typing import Any


def send(connection: socket.socket, number: int) -> None:
    """Send a number in four bytes."""
    with suppress(OSError):  # the job is gone
        connection.sendall(number.to_bytes(4, "little", signed=True))


def receive(connection: socket.socket) -> int | None:
    """Return the next number, None at the end."""
    with suppress(ConnectionResetError):
        number = connection.recv(4)
        return int.from_bytes(number, "little", signed=True) if number else None
    return None


class Server:
    """Answers jobs with a new process each, and with how it ended."""

    def __init__(self, listener: socket.socket) -> None:
        self.listener = listener
        self.trainings: dict[int, socket.socket] = {}  # process -> its job
        self.wakeups, self.wakes = os.pipe()
        os.set_blocking(self.wakes, False)

    def serve(self) -> socket.socket | None:
        """Returns None at the end of standard input, and in every new process its connection."""
        signal.signal(signal.SIGCHLD, lambda *_: None)  # or it wakes nobody
        signal.set_wakeup_fd(self.wakes, warn_on_full_buffer=False)
        waited_for: list[Any] = [0, self.listener, self.wakeups]
        while True:
            ready = select.select(waited_for, [], [])[0]
            if 0 in ready:
                return None
            if self.wakeups in ready:
                os.read(self.wakeups, 4096)
                self._tell_ends()
            if self.listener in ready and (connection := self._fork()):
                return connection

    def _fork(self) -> socket.socket | None:
        """Fork a training; return its connection in the new process, and None here."""
        connection, _ = self.listener.accept()
        connection.settimeout(1)
        files: list[int] = []
        with suppress(OSError):
            files = socket.recv_fds(connection, 1, 2)[1]
        pid = os.fork() if len(files) == 2 else None  # None: the job died meanwhile
        if pid == 0:
            connection.settimeout(None)
            self._leave(*files)
            # By itself: a server that is killed in this instant would leave the job waiting.
            send(connection, os.getpid())
            return connection
        for file in files:
            os.close(file)
        if pid is None:
            connection.close()
        else:
            self.trainings[pid] = connection
        return None

    def _leave(self, stdin: int, log: int) -> None:
        """Keep nothing of the server's, in a session of its own with these files."""
        os.setsid()
        signal.set_wakeup_fd(-1)
        signal.signal(signal.SIGCHLD, signal.SIG_DFL)
        for other in (self.listener, *self.trainings.values()):
            other.close()
        for file, place in ((stdin, 0), (log, 1), (log, 2)):
            os.dup2(file, place)
        for file in (stdin, log, self.wakeups, self.wakes):
            os.close(file)

    def _tell_ends(self) -> None:
        while self.trainings:
            pid, status = os.waitpid(-1, os.WNOHANG)
            if pid == 0:
                return
            with self.trainings.pop(pid) as connection:
                send(connection, os.waitstatus_to_exitcode(status))


def _require_soundness() -> None:
    """Raises a RuntimeError where what was imported makes threads, which a fork would lose, or has
    touched a device, which a forked process then cannot use. Tried with a process: OpenBLAS has
    threads as soon as it is loaded, which it ends before a fork and makes again when it needs them.
    """
    import torch

    trial = os.fork()
    if trial == 0:
        os._exit(torch.cuda.is_initialized() or torch.cuda._is_in_bad_fork())
    touched, threads = os.waitpid(trial, 0)[1], len(os.listdir("/proc/self/task"))
    if touched or threads > 1:
        what = "touches the GPU" if touched else f"has {threads} threads"
        raise RuntimeError(f"a process that does no more than import torch {what}")


def _import(modules: Sequence[str]) -> None:
    """Import what a training imports; this process can be forked after it."""
    import numpy.ma  # noqa: F401  # which numpy.unique imports
    import torch._dynamo  # noqa: F401  # which optimizers import

    import resnests.tasks.experiment  # noqa: F401
    from resnests.training.provenance import code_version

    for module in modules:
        importlib.import_module(module)
    code_version()  # later it might be another one than was imported
    _require_soundness()


def main() -> None:
    try:
        _import(sys.argv[2:])
    except BaseException as error:
        print(f"{type(error).__name__}: {error}", flush=True)
        os._exit(1)  # at once, whatever threads there are: jobs are waiting
    import numpy

    from resnests.sweep import worker

    listener = socket.socket(fileno=int(sys.argv[1]))
    sys.stdout.flush()
    gc.collect()
    gc.freeze()  # or the collector of every training would copy what it only looks at
    connection = Server(listener).serve()
    if connection is None:
        os._exit(0)
    context = json.loads(connection.makefile().readline() or "null")
    if context is None:  # the job died meanwhile
        os._exit(0)
    if sys.path[0] == os.getcwd():  # as python -m has it
        sys.path[0] = context["folder"]
    os.chdir(context["folder"])
    os.environ.clear()
    os.environ.update(context["environment"])
    numpy.random.seed()  # or all would draw the same; the module random sees to it itself
    worker.main()


if __name__ == "__main__":
    main()
