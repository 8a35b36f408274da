"""The process of one training: owns its directory and its device for as long as it lives.

    python -m resnests.sweep.worker < job.json   # one line, see child.run_child; kept open

It leases before it imports torch, so that torch sees only its device and threads. Its standard
input is its parent's sign of life: when that closes, or on SIGTERM, SIGINT or SIGUSR2, it writes a
checkpoint at the next step and ends.
"""

from __future__ import annotations

import json
import logging
import os
import signal
import sys
import threading
from typing import Any

from filelock import FileLock, Timeout

from resnests.config.schema import Config, config_from
from resnests.errors import UserError
from resnests.runs.directory import RunDirectory
from resnests.runs.record import FINAL
from resnests.sweep.devices import Allocation
from resnests.sweep.leases import Lease, lease

# Exit statuses, beside 0 for a final status on record and 1 for a failure.
USER_ERROR, BUSY, INTERRUPTED = 2, 75, 130
HEARTBEAT = 1.0  # seconds

log = logging.getLogger(__name__)


class Worker:
    def __init__(self) -> None:
        self.stopping, self.over = threading.Event(), threading.Event()
        self.showing = threading.Lock()
        self.owner: FileLock | None = None
        self.held: Lease | None = None
        self.progress: dict[str, Any] = {"state": "waiting", "pid": os.getpid()}

    def stop(self, *_: Any) -> None:
        self.stopping.set()

    def report(self, progress: dict[str, Any]) -> None:
        self.progress = self.progress | progress

    def watch_parent(self) -> None:
        while os.read(0, 4096):
            pass
        self.stop()

    def beat(self, directory: RunDirectory) -> None:
        while not self.over.wait(HEARTBEAT):
            self.show(directory)

    def show(self, directory: RunDirectory) -> None:
        try:
            with self.showing:
                directory.write_progress(self.progress)
        except OSError as error:  # a full disk must not end a training that may still finish
            log.warning("no sign of life written: %s", error)

    def work(self, job: dict[str, Any]) -> int:
        config, allocation = config_from(job["config"]), Allocation(**job["allocation"])
        directory = RunDirectory.of(config)
        self.owner = directory.owner()
        try:
            self.owner.acquire(blocking=False)
        except Timeout:
            return BUSY
        if directory.status() in FINAL:
            return 0
        directory.tidy()
        self.show(directory)
        heart = threading.Thread(target=self.beat, args=(directory,), daemon=True)
        heart.start()
        try:
            self.held = lease(
                allocation, str(directory.path), config.devices.wait, self.stopping.is_set
            )
            if self.held is None:
                print("interrupted while it waited for a device", flush=True)
                return INTERRUPTED
            self.report({"state": "starting", "device": " ".join(self.held.names)})
            self.show(directory)
            os.environ.update(self.held.environment())
            return self._train(config, allocation)
        finally:
            self.over.set()
            heart.join()
            directory.progress_file.unlink(missing_ok=True)  # other hosts would wait for this one

    def _train(self, config: Config, allocation: Allocation) -> int:
        if config.trainer.deterministic:
            os.environ.setdefault("CUBLAS_WORKSPACE_CONFIG", ":4096:8")
        import torch

        from resnests.models.norm_relu import keep_freed_memory
        from resnests.training.experiment import run_experiment

        if allocation.kind == "cpu":
            keep_freed_memory()
        torch.set_num_threads(allocation.threads)
        device = "cuda:0" if allocation.kind == "cuda" else allocation.kind
        status = run_experiment(config, device, self.stopping.is_set, self.report)
        return INTERRUPTED if status == "interrupted" else 0


def main(worker: Worker) -> int:
    logging.basicConfig(level=logging.INFO, format="%(asctime)s %(message)s", stream=sys.stdout)
    for name in ("SIGTERM", "SIGINT", "SIGUSR2"):
        if hasattr(signal, name):
            signal.signal(getattr(signal, name), worker.stop)
    job = json.loads(_read_line())
    threading.Thread(target=worker.watch_parent, daemon=True).start()
    try:
        return worker.work(job)
    except UserError as error:
        print(error, flush=True)
        return USER_ERROR
    except Exception:
        log.exception("the run failed")
        return 1


def _read_line() -> bytes:
    """The first line of standard input, and not a byte more: the rest is the watch's."""
    line = b""
    while not line.endswith(b"\n"):
        byte = os.read(0, 1)
        if not byte:
            sys.exit("no job on standard input")
        line += byte
    return line


if __name__ == "__main__":
    worker = Worker()
    code = main(worker)
    logging.shutdown()
    sys.stdout.flush()
    os._exit(
        code
    )  # An orderly end would release the locks while torch still gives back the device.
