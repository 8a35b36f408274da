"""One run in a process of its own: started, asked to stop, and its end put on record. No torch."""

from __future__ import annotations

import dataclasses
import signal
import socket
import subprocess
import sys
from contextlib import suppress
from typing import IO, Any

from filelock import Timeout

from resnests.config.schema import config_from
from resnests.errors import UserError
from resnests.runs.directory import RunDirectory
from resnests.runs.record import Provenance, Record
from resnests.sweep.devices import Allocation, allocate
from resnests.sweep.forking import fork
from resnests.sweep.plan import Run
from resnests.sweep.protocol import (
    BUSY,
    INTERRUPTED,
    NO_GRAPH,
    USER_ERROR,
    Order,
    at_work,
    send_job,
)
from resnests.sweep.stop import Stop, die_with
from resnests.text import last_words

POLL = 0.2  # seconds


def job(index: int, at_once: int = 1) -> str | None:
    """Train configuration `index` of the sweep, as a launcher starts it in a process of its choice,
    with `at_once` of its runs in what a batch system gave that process.

    Returns the status on record, or "busy" where another process trains it.
    """
    received = Order.receive(index)
    if received is None:  # the sweep ended while this job waited in a queue
        return None
    order, token = received
    config = config_from(order.config)
    run = Run(config, RunDirectory.of(config), index)
    if order.local and Stop.current is None:
        die_with(token)
    with Stop.listen(token) as stop, at_work(token, index):
        code = attempt(run, order.allocation, at_once, stop)
    status = "busy" if code == BUSY else run.directory.status()
    # A status is told by the fork server, which may have died: the record counts
    lost = code not in (0, BUSY, INTERRUPTED) and status != "complete"
    failed = lost or status == "diverged"
    if failed and config.sweep.fail_fast:
        token.unlink(missing_ok=True)
    return status


def attempt(run: Run, shared: dict[str, Any] | None, at_once: int, stop: Stop) -> int:
    """Train `run` by the allocation that the sweep's runs share, or by what this host has."""
    try:
        allocation = Allocation(**shared) if shared else allocate(run.config, at_once)
        return train(run, allocation, stop)
    except UserError as error:  # about this host, which the sweep could not see
        run.directory.path.mkdir(parents=True, exist_ok=True)
        with open(run.directory.log_file, "a") as output:
            print(error, file=output)
        return USER_ERROR


def train(run: Run, allocation: Allocation, stop: Stop) -> int:
    """Train `run`, and where its step makes no CUDA graph again without; the exit status."""
    code = run_child(run, allocation, stop)
    if code != NO_GRAPH:
        return code
    trainer = dataclasses.replace(run.config.trainer, cuda_graph=False)
    plain = dataclasses.replace(run, config=dataclasses.replace(run.config, trainer=trainer))
    return run_child(plain, allocation, stop)


def run_child(run: Run, allocation: Allocation, stop: Stop) -> int:
    """Train `run` in a process of its own and wait for it; its exit status. Its end is on record
    whatever it was.
    """
    if stop.requested():
        return INTERRUPTED
    run.directory.path.mkdir(parents=True, exist_ok=True)
    with open(run.directory.log_file, "ab") as output:
        child = fork(output, stop.requested) or _start(output)
    pipe = child.stdin
    assert pipe is not None
    # What is to start afresh was cleared before: the run itself, and whoever runs its config.yaml
    # again, must resume.
    trainer = dataclasses.replace(run.config.trainer, overwrite=False)
    with suppress(BrokenPipeError):  # it died at once: the exit status tells
        send_job(pipe, dataclasses.replace(run.config, trainer=trainer), allocation)
    while child.poll() is None:
        if stop.requested():
            pipe.close()
        if stop.signals > 1:
            child.kill()
        with suppress(subprocess.TimeoutExpired):
            child.wait(POLL)
    with suppress(BrokenPipeError):
        pipe.close()
    code = child.wait()
    if stop.signals and -code in Stop.SIGNALS:
        # A batch system signals every process of a job; this one was too young to listen.
        code = INTERRUPTED
    conclude(run, code)
    return code


def _start(output: IO[bytes]) -> subprocess.Popen:
    return subprocess.Popen(
        [sys.executable, "-m", "resnests.sweep.worker"],
        stdin=subprocess.PIPE,
        stdout=output,
        stderr=subprocess.STDOUT,
        start_new_session=True,  # Ctrl-C reaches the parent, which asks once for a checkpoint
    )


def conclude(run: Run, code: int) -> None:
    """Put on record how a child ended that could not do so itself.

    One that was interrupted before it trained leaves the record of the attempt before it, or none.
    """
    if code in (0, BUSY, INTERRUPTED, NO_GRAPH):
        return
    directory = run.directory
    with suppress(Timeout, OSError), directory.owner().acquire(blocking=False):
        record = directory.sound_record()
        if record is None:
            if code == USER_ERROR:
                return
            record = Record.of(run.config, Provenance(host=socket.gethostname()))
        if record.status != "running":
            return
        if code < 0:
            record.status, record.error = "killed", f"killed by {signal.Signals(-code).name}"
        else:
            record.status, record.error = "failed", last_line(directory)
        directory.write_record(record)


def conclude_lost(run: Run, job: str | None, reason: str) -> str | None:
    """Put on record, or in the log of a run that never began, how its job ended; the status.

    `job` is its number where no process of it can live on.
    """
    directory = run.directory
    if job and directory.read_progress().get("job") == job:  # the latest sign of life is the last
        directory.progress_file.unlink(missing_ok=True)
    record = directory.sound_record()
    with suppress(Timeout, OSError), directory.owner().acquire(blocking=False):
        if record is not None and record.status == "running":
            record.status, record.error = "killed", reason
            directory.write_record(record)
        elif record is None:
            with open(directory.log_file, "a") as output:
                print(reason, file=output)
    return directory.status()


def last_line(directory: RunDirectory) -> str:
    """The last line of run.log that says something."""
    with suppress(OSError):
        return last_words(directory.log_file) or "no output"
    return "no log"
