"""Run one training as a process, which owns its directory and device for as long as it lives.

    python -m resnests.sweep.worker < job     # one line, see protocol.py; kept open by the parent

Or it is forked by a process that has imported torch (forkserver.py). It leases before it imports
torch, or before it uses what was imported, so that torch sees only its device and threads. When its
standard input ends, or on a signal, it writes a checkpoint at the next step and ends.
"""

from __future__ import annotations

import dataclasses
import errno
import logging
import os
import socket
import sys
import threading
from contextlib import suppress
from typing import Any, NoReturn

from filelock import Timeout

from resnests.config.schema import Config
from resnests.environment import JOB
from resnests.errors import CaptureFailed, UserError
from resnests.runs.digests import require_unchanged
from resnests.runs.directory import RunDirectory
from resnests.runs.files import require_locks
from resnests.runs.record import FINAL
from resnests.runs.weights import digest, weights_file
from resnests.sweep.aside import Aside, NoDevice, Note
from resnests.sweep.device_errors import device_failure, may_be_anothers
from resnests.sweep.devices import Allocation
from resnests.sweep.leases import Lease, lease
from resnests.sweep.precision import emulation, used
from resnests.sweep.protocol import (
    BUSY,
    DEVICE,
    INTERRUPTED,
    NO_GRAPH,
    UNREADABLE,
    USER_ERROR,
    receive_job,
)
from resnests.sweep.stop import Stop
from resnests.training.device_words import chain, is_fatal

HEARTBEAT = 1.0  # seconds
BEFORE = ("waiting", "starting", "loading")  # states in which nothing is trained yet
PROCESS_GB = 1.0  # that an analysis takes besides its features, rounded up

log = logging.getLogger(__name__)


class Worker:
    """Trains one configuration, and shows in progress.json that it lives."""

    def __init__(
        self, config: Config, allocation: Allocation, stop: Stop, replaces: str | None = None
    ) -> None:
        self.config, self.allocation, self.stop = config, allocation, stop
        self.replaces = replaces  # the digest of the record to clear, see sweep/plan.py
        self.directory = RunDirectory.of(config)
        self.lock = self.directory.lock()
        self.progress: dict[str, Any] = {"state": "waiting", "pid": os.getpid()}
        self.progress["job"] = os.environ.get(JOB)
        self.held: Lease | None = None
        self._over, self._writing = threading.Event(), threading.Lock()

    def work(self) -> int:
        """Train the run; return the exit status."""
        require_locks(self.config.runs_dir)
        try:
            self.lock.acquire(blocking=False)
        except Timeout:
            return BUSY
        if self._is_done():
            return 0
        self.directory.remove_temporaries()
        self._show_progress()
        heart = threading.Thread(target=self._heartbeat, daemon=True)
        heart.start()
        try:
            return self._train()
        finally:
            self._over.set()
            heart.join()
            with suppress(OSError):
                if self._has_heartbeat():  # other hosts would wait for it
                    self.directory.progress_file.unlink(missing_ok=True)

    def _is_done(self) -> bool:
        """Return whether somebody has finished the run, unless that is what it starts afresh over.

        Asked again after the lease, as waiting for a device may have taken hours.
        """
        final = self.directory.status() in FINAL
        return final and self.directory.record_digest() != self.replaces

    def _starts_afresh(self) -> bool:
        """Return whether the run clears what is there, as soon as nothing can refuse any more.

        Once it is cleared, and trains, its record is another: a job after this one resumes.
        """
        return self.replaces is not None and self.directory.record_digest() == self.replaces

    def report(self, progress: dict[str, Any]) -> None:
        """Take note of how far the training is, for the next heartbeat."""
        self.progress = self.progress | progress

    def blames_neighbour(self, error: BaseException) -> bool:
        """Return whether `error` may be that of another run, which shares an MPS daemon."""
        return self.allocation.is_under_mps and may_be_anothers(error)

    def blames_device(self, error: BaseException) -> bool:
        """Return whether `error` may be the device's fault, and note it so that others avoid it.

        Nothing is noted where it may be the fault of another run.
        """
        if self.blames_neighbour(error):
            return True
        has_begun = "step" in self.progress
        reason = self.held and device_failure(error, self.held, has_begun)
        if self.held is None or not reason or not self.allocation.aside:
            return False
        aside, run = Aside(self.allocation.aside), str(self.directory.path)
        notes = [Note(device, reason, run) for device in self.held.devices]
        # A device that cannot be noted, on a full disk, would be tried again and again
        return all(map(aside.add, notes))

    def blames_node(self, error: Exception) -> bool:
        """Return whether another node of a cluster may have what this one cannot read: its disk is
        broken, or has no such data set.
        """
        if not self.progress["job"]:
            return False
        state = self.progress["state"]
        is_early = isinstance(error, UserError) and state in BEFORE
        is_early |= isinstance(error, OSError) and state == "loading"
        broken = (one for one in chain(error) if isinstance(one, OSError))
        return is_early or any(one.errno == errno.EIO for one in broken)

    def _train(self) -> int:
        config, allocation, place = self.config, self.allocation, str(self.directory.path)
        # Held until the process ends, so the lease is an attribute.
        self.held = lease(allocation, place, config.devices.wait, self.stop.requested)
        if self.held is None:
            print("interrupted while it waited for a device", flush=True)
            return INTERRUPTED
        if not self.lock.is_held():
            raise UserError(
                f"{self.directory.path}: was removed while this run waited for a device"
            )
        if self._is_done():
            return 0
        require_unchanged(config)
        self.report({"state": "starting", "device": " ".join(self.held.names)})
        self._show_progress()
        os.environ.update(self.held.environment())
        if config.task == "analyze" and allocation.memory is not None:
            log.info("the job gave this run %.1f GB of memory", allocation.memory)
            limit = max(0.1, allocation.memory - PROCESS_GB)
            config.analysis.memory_gb = min(config.analysis.memory_gb, limit)
        # The sweep could say it of its own host only
        gpus = [allocation.gpus[i] for i in self.held.indices] if allocation.gpus else []
        if line := emulation(used(config), allocation.kind, gpus):
            log.warning("%s", line)
        if config.trainer.deterministic:
            os.environ.setdefault("CUBLAS_WORKSPACE_CONFIG", ":4096:8")
        try:
            import torch

            from resnests.models.norm_relu import keep_freed_memory
            from resnests.tasks.experiment import run_experiment
        except (ImportError, OSError) as error:  # a library is not there, or another one
            said = f"{type(error).__name__}: {error}"
            raise UserError(f"{sys.executable}: cannot train: {said}") from error

        if allocation.kind == "cpu":
            keep_freed_memory()
        torch.set_num_threads(allocation.threads)
        device = "cuda:0" if allocation.kind == "cuda" else allocation.kind
        if config.task == "analyze" and config.analysis.train:
            trained = self._train_first(device)
            if trained == "interrupted":
                return INTERRUPTED
        clear = self._clear if self._starts_afresh() else None
        status = run_experiment(config, device, self.stop.requested, self.report, clear)
        return INTERRUPTED if status == "interrupted" else 0

    def _train_first(self, device: str) -> str | None:
        """Train the run that is to be analysed, where it is not; return its status."""
        from resnests.tasks.experiment import run_experiment

        config = dataclasses.replace(self.config, task="train")
        directory = RunDirectory.of(config)
        try:
            with directory.lock().acquire(blocking=False):
                if (status := directory.status()) in FINAL:
                    return status
                return run_experiment(config, device, self.stop.requested, self.report)
        except Timeout:
            raise UserError(f"{directory.path}: is being trained by another process") from None

    def _clear(self) -> None:
        """Remove what the run starts afresh over, but for an analysis that is only to go on."""
        config, goes_on = self.config, False
        if config.task == "analyze" and not config.trainer.overwrite:
            done, sha256 = self.directory.read_analysis(), digest(weights_file(config))
            goes_on = done is not None and done.is_of(sha256, config)
        self.directory.clear(but_analysis=goes_on)

    def _heartbeat(self) -> None:
        while not self._over.wait(HEARTBEAT):
            try:
                self._beat()
            except OSError as error:  # of a file system that is away for a moment
                log.warning("no heartbeat: %s", error)

    def _beat(self) -> None:
        """Show that the run lives; end it where its directory is gone, or another process has it.

        Another's is left at once: a checkpoint or a record would be written over what that has.
        """
        self._show_progress()
        if not self._has_heartbeat():
            log.warning("%s was removed and begun anew: this training ends", self.directory.path)
            os._exit(BUSY)
        if not self.directory.path.is_dir():
            log.warning("%s was removed: this training ends", self.directory.path)
            self.stop.ask()

    def _has_heartbeat(self) -> bool:
        """Return whether the heartbeat is this process's: where the directory was removed, another
        process may have begun its run anew. Without the lock file alone, it still keeps others off.
        """
        if self.lock.is_held():
            return True
        own = {"pid": os.getpid(), "host": socket.gethostname()}
        return all(self.directory.read_progress().get(k, v) == v for k, v in own.items())

    def _show_progress(self) -> None:
        try:
            if self._has_heartbeat():
                with self._writing:
                    self.directory.write_progress(self.progress)
        except OSError as error:  # a full disk must not end a training that may still finish
            log.warning("no heartbeat written: %s", error)


def watch_parent(stop: Stop) -> None:
    """Stop when standard input ends: when the parent asks for it, and when it dies."""
    while os.read(0, 4096):
        pass
    stop.ask()


def exit_status(worker: Worker) -> int:
    try:
        return worker.work()
    except NoDevice as error:
        print(error, flush=True)
        return DEVICE
    except UserError as error:
        print(error, flush=True)
        if worker.blames_device(error.__cause__ or error):  # which code of a user's may meet first
            return DEVICE
        return UNREADABLE if worker.blames_node(error) else USER_ERROR
    except CaptureFailed as error:
        log.warning("starting again, as %s", error)
        if worker.blames_neighbour(error):
            return DEVICE
        cause = error.__cause__
        return DEVICE if cause and is_fatal(cause) and worker.blames_device(cause) else NO_GRAPH
    except Exception as error:
        log.exception("the run failed")
        if worker.blames_device(error):
            return DEVICE
        return UNREADABLE if worker.blames_node(error) else 1


def main() -> NoReturn:
    logging.basicConfig(level=logging.INFO, format="%(asctime)s %(message)s", stream=sys.stdout)
    stop = Stop()
    stop.__enter__()  # until the process ends
    config, allocation, replaces = receive_job()
    threading.Thread(target=watch_parent, args=(stop,), daemon=True).start()
    worker = Worker(config, allocation, stop, replaces)
    code = exit_status(worker)
    logging.shutdown()
    sys.stdout.flush()
    # With what the worker holds: an orderly end would release the locks while torch still gives
    # back the device.
    os._exit(code)


if __name__ == "__main__":
    main()
