"""Train a run in a process of its own: start it, ask it to stop, record how it ended. No torch."""

from __future__ import annotations

import dataclasses
import signal
import socket
import subprocess
import sys
import time
from contextlib import nullcontext, suppress
from typing import IO, Any

from filelock import Timeout

from resnests.errors import UserError
from resnests.runs.directory import RunDirectory
from resnests.runs.record import Provenance, Record
from resnests.sweep.aside import Aside, Note
from resnests.sweep.cards import nvml_complaint
from resnests.sweep.devices import Allocation, allocate
from resnests.sweep.folders import temporary_folder
from resnests.sweep.forking import fork
from resnests.sweep.leases import leased_slots
from resnests.sweep.mps import NOWHERE
from resnests.sweep.mps_sharing import sharing
from resnests.sweep.plan import Run, known_memory
from resnests.sweep.protocol import (
    BUSY,
    DEVICE,
    ELSEWHERE,
    INTERRUPTED,
    NO_GRAPH,
    UNREADABLE,
    USER_ERROR,
    send_job,
)
from resnests.sweep.stop import Stop
from resnests.sweep.tryout import start_trials, verdicts
from resnests.text import last_log_line_of

POLL_SECONDS = 0.2
CRASHES = (signal.SIGSEGV, signal.SIGABRT, signal.SIGBUS)  # which a card that is lost may cause
DEVICES = 3  # on which a run fails as if they were broken: then it is at fault itself


def run_on_host(
    run: Run, shared: dict[str, Any] | None, at_once: int, stop: Stop, aside: str = ""
) -> str:
    """Train `run` by the allocation that a sweep's runs share, or by what this host has.

    Returns the status on record, "busy" where another process trains it, or "refused" where this
    host or the configuration does not allow it. Where this host is one of a cluster, also "no
    device" where none works, "device failed" where the only one did under the run, and passes its
    trial, and "unreadable" where it cannot read what the run needs. Its log then says why. `aside`
    is the folder in which the runs of its job note that.
    """
    try:
        if shared:
            code = run_on_devices(run, Allocation(**shared), stop)
        else:
            allocation = allocate(run.config, at_once, known_memory([run]))
            with (
                nullcontext(aside) if aside else temporary_folder() as notes,
                # a job of a cluster may have started an MPS daemon, but none is started for it
                sharing(False, dataclasses.replace(allocation, aside=str(notes))) as allocation,
            ):
                code = run_on_devices(run, allocation, stop, is_of_cluster=True)
    except UserError as error:  # about this host, which the sweep could not see
        log_line(run, str(error))
        code = USER_ERROR
    words = {
        BUSY: "busy",
        DEVICE: "refused" if shared else "no device",  # another node may have better ones
        ELSEWHERE: "device failed",
        UNREADABLE: "unreadable",
    }
    if code in words:
        return words[code]
    if code == -signal.SIGILL:
        log_line(run, "this processor lacks an instruction that a library was built for (SIGILL)")
        return "refused"
    status = run.status()
    if code == USER_ERROR and status != "failed":
        return "refused"
    return status or ("interrupted" if code == INTERRUPTED else "failed")


def run_on_devices(
    run: Run, allocation: Allocation, stop: Stop, is_of_cluster: bool = False
) -> int:
    """Train `run`, elsewhere where a device fails under it; return the exit status of a worker.

    That is DEVICE where no device is left. The run is as it was before, and its log says why. A
    host that is one of a cluster may have had one device only: ELSEWHERE is for the run that has
    failed on no other, which another node has to try.

    Under MPS a fatal error ends all runs on the card, and none of them knows whose it was: each
    goes on without MPS, where no error is another's.
    """
    aside, name = Aside(allocation.aside), str(run.directory.path)
    while (code := run_with_fallback(run, allocation, stop)) == DEVICE:
        if allocation.is_under_mps and aside.usable(allocation.devices, name):
            _record_interrupted(run)
            if stop.requested():
                return INTERRUPTED
            log_line(
                run, "going on without MPS, as this may be the error of another run on its GPU"
            )
            allocation = dataclasses.replace(allocation, mps=NOWHERE)
            continue
        if _is_at_fault(aside, name, allocation, stop):
            record_exit(run, 1)
            if is_of_cluster and len(aside.suspicions(name)) == 1:
                return ELSEWHERE
            aside.withdraw(name)  # it fails everywhere, on devices that pass their trials
            return 1
        _record_interrupted(run)
        if stop.requested():
            return INTERRUPTED
        if not aside.usable(allocation.devices, name):
            log_line(run, aside.summary())
            return DEVICE
    if code == 0:
        aside.confirm(name)
    return code


def _is_at_fault(aside: Aside, name: str, allocation: Allocation, stop: Stop) -> bool:
    """Return whether a run failed on enough devices which pass their trials; note those that fail.

    Where only such a trial can tell, a card that another run has alone is waited for: it was not
    tried, and so has passed nothing.
    """
    tried: set[str] = set()
    while True:
        suspects = {note.device for note in aside.suspicions(name)}
        for device, reason in verdicts(start_trials(suspects - tried)).items():
            tried.add(device)
            if reason:
                aside.add(Note(device, reason, name, is_broken=True))
        left = {note.device for note in aside.suspicions(name)}
        is_enough = len(left) >= DEVICES or not aside.usable(allocation.devices, name)
        if not left or not is_enough or left <= tried:
            return bool(left) and is_enough
        while all(map(leased_slots, left - tried)) and not stop.requested():
            time.sleep(POLL_SECONDS)
        if stop.requested():
            return False


def _record_interrupted(run: Run) -> None:
    """Record that `run` did not fail: its device did."""
    with suppress(Timeout, OSError), run.directory.lock().acquire(blocking=False):
        record = run.directory.record_or_none()
        if record is not None and record.status in ("failed", "killed"):
            record.status, record.error = "interrupted", None
            run.directory.write_record(record)


def run_with_fallback(run: Run, allocation: Allocation, stop: Stop) -> int:
    """Train `run`, again without a CUDA graph where its step makes none; return the exit status."""
    code = run_process(run, allocation, stop)
    if code != NO_GRAPH:
        return code
    trainer = dataclasses.replace(run.config.trainer, cuda_graph=False)
    plain = dataclasses.replace(run, config=dataclasses.replace(run.config, trainer=trainer))
    return run_process(plain, allocation, stop)


def run_process(run: Run, allocation: Allocation, stop: Stop) -> int:
    """Start a process for `run`, wait for it and record its end; return its exit status."""
    if stop.requested():
        return INTERRUPTED
    run.directory.path.mkdir(parents=True, exist_ok=True)
    with open(run.directory.log_file, "ab") as output:
        process = fork(output, stop.requested) or _start(output)
    pipe = process.stdin
    assert pipe is not None
    with suppress(BrokenPipeError):  # it died at once: the exit status tells
        send_job(pipe, run.config, allocation, run.replaces)
    while process.poll() is None:
        if stop.requested():
            pipe.close()
        if stop.signals > 1:
            process.kill()
        with suppress(subprocess.TimeoutExpired):
            process.wait(POLL_SECONDS)
    with suppress(BrokenPipeError):
        pipe.close()
    code = process.wait()
    if stop.signals and -code in Stop.SIGNALS:
        # A batch system signals every process of a job; this one was too young to listen.
        code = INTERRUPTED
    is_lost = -code in CRASHES and _note_lost_cards(run, allocation, process.pid)
    record_exit(run, code)
    return DEVICE if is_lost else code


def _note_lost_cards(run: Run, allocation: Allocation, pid: int) -> bool:
    """Note the cards of the process that died which NVML does not open any more; return whether
    there are any.
    """
    progress, aside = run.directory.read_progress(), Aside(allocation.aside)
    slots = str(progress.get("device", "")).split() if progress.get("pid") == pid else []
    held = {
        gpu for slot, gpu in zip(allocation.slots, allocation.gpus, strict=False) if slot in slots
    }
    lost = {gpu: said for gpu in sorted(held) if (said := nvml_complaint(gpu))}
    name = str(run.directory.path)
    return bool(lost) and all(aside.add(Note(gpu, said, name)) for gpu, said in lost.items())


def _start(output: IO[bytes]) -> subprocess.Popen:
    return subprocess.Popen(
        [sys.executable, "-m", "resnests.sweep.worker"],
        stdin=subprocess.PIPE,
        stdout=output,
        stderr=subprocess.STDOUT,
        start_new_session=True,  # Ctrl-C reaches the parent, which asks once for a checkpoint
    )


def record_exit(run: Run, code: int) -> None:
    """Record how a process ended that could not do so itself.

    One that was interrupted before it trained leaves the record of the attempt before it, or none.
    """
    if code in (0, BUSY, INTERRUPTED, NO_GRAPH, DEVICE):
        return
    directory = run.directory
    if not directory.path.is_dir():
        return  # somebody removed it
    with suppress(Timeout, OSError), directory.lock().acquire(blocking=False):
        record = directory.record_or_none()
        if record is None:
            if code in (USER_ERROR, UNREADABLE):
                return
            record = Record.of(run.config, Provenance(host=socket.gethostname()))
        if record.status != "running":
            return
        if code < 0:
            record.status, record.error = "killed", f"killed by {_signal_name(-code)}"
        else:
            record.status, record.error = "failed", last_log_line(directory)
        directory.write_record(record)


def _signal_name(number: int) -> str:
    """Return SIGKILL for 9; the real-time signals have no names."""
    with suppress(ValueError):
        return signal.Signals(number).name
    return f"signal {number}"


def record_lost_job(run: Run, job: str | None, reason: str) -> None:
    """Record how the job of `run` ended where nothing else says it.

    `job` is its name where no process of it can live on: its latest heartbeat is then the last. A
    run that never began gets the reason into its log.
    """
    directory = run.directory
    if job and directory.read_progress().get("job") == job:
        directory.progress_file.unlink(missing_ok=True)
    record = directory.record_or_none()
    with suppress(Timeout, OSError), directory.lock().acquire(blocking=False):
        if record is not None and record.status == "running":
            record.status, record.error = "killed", reason
            directory.write_record(record)
        elif record is None:
            log_line(run, reason)


def log_line(run: Run, line: str) -> None:
    """Append `line` to the log of `run`."""
    run.directory.path.mkdir(parents=True, exist_ok=True)
    with open(run.directory.log_file, "a") as output:
        print(line, file=output)


def last_log_line(directory: RunDirectory) -> str:
    """Return the last line of run.log that says something."""
    with suppress(OSError):
        return last_log_line_of(directory.log_file) or "no output"
    return "no log"
