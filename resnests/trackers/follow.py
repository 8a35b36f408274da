"""The process that echoes one run to one tracker while it is trained.

    python -m resnests.trackers.follow NAME DIRECTORY PID    # of the training; standard input is
                                                             # open as long as that one may work

It reads the run directory and sends what is new. What fails is tried again at the next epoch, and
at the end for GRACE seconds; then `unsent.<name>` in the run directory says what was the matter.
"""

from __future__ import annotations

import logging
import os
import subprocess
import sys
import threading
import time
from collections.abc import Sequence
from pathlib import Path
from typing import IO, TYPE_CHECKING

from resnests.config.schema import Config
from resnests.runs.directory import RunDirectory, write_atomic
from resnests.runs.record import Record

if TYPE_CHECKING:
    from resnests.trackers.echo import Echo

LOOK = 0.5  # seconds between two looks at the run directory
GRACE = 60.0  # seconds that a tracker has after the end of a run
TRIES = 3  # at sending the end to a tracker that fails; a device waits meanwhile

log = logging.getLogger(__name__)


class Followers:
    """The processes that echo a run, of whom nothing is asked but that they end in time."""

    def __init__(self, config: Config, directory: RunDirectory) -> None:
        self.names = [] if config.task == "analyze" else list(config.logger)
        self.directory = directory
        self.processes: list[subprocess.Popen] = []

    def start(self, training: int) -> None:
        """Once the process `training` works in the directory, which another one might own."""
        if not self.names or self.directory.read_progress().get("pid") != training:
            return
        names, self.names = self.names, []
        try:
            with open(self.directory.log_file, "ab") as output:
                for name in names:
                    write_atomic(self.directory.unsent(name), b"it was given up")
                    self.processes.append(_start(name, self.directory.path, training, output))
        except OSError as error:  # a full disk, say
            log.warning("logger: %s", error)

    def finish(self) -> None:
        """Wait until they have sent the end of the run, for GRACE seconds at most."""
        deadline = time.monotonic() + GRACE
        for process in self.processes:
            assert process.stdin is not None
            process.stdin.close()
        for process in self.processes:
            try:
                process.wait(max(0.0, deadline - time.monotonic()))
            except subprocess.TimeoutExpired:
                process.kill()
                process.wait()


def _start(name: str, path: Path, training: int, output: IO[bytes]) -> subprocess.Popen:
    module = [sys.executable, "-m", "resnests.trackers.follow"]
    return subprocess.Popen(
        [*module, name, str(path), str(training)],
        stdin=subprocess.PIPE,
        stdout=output,
        stderr=subprocess.STDOUT,
        start_new_session=True,  # no Ctrl-C: they end after the training
    )


class Follower:
    """Keeps one tracker at what the run directory has, whatever the tracker does."""

    def __init__(self, name: str, directory: RunDirectory, training: int) -> None:
        self.name, self.directory, self.training = name, directory, training
        self.echo: Echo | None = None
        self.said: set[str] = set()

    def record(self) -> Record | None:
        """The record, once this training has put its history in place of one before it."""
        record = self.directory.sound_record()
        begun = record is not None and record.provenance.pid == self.training
        return record if begun else None

    def try_to(self, work: str, record: Record) -> bool:
        """Whether `work`, a method of Echo, succeeded; a warning says what did not."""
        from resnests.trackers.echo import Echo, build_tracker

        try:
            if self.echo is None:
                values = record.config["logger"][self.name]
                self.echo = Echo(self.directory, build_tracker(self.name, values))
            getattr(self.echo, work)(record)
            return True
        except Exception as error:
            self.echo = None  # begins anew, by what the tracker has
            reason = f"{type(error).__name__}: {error}".splitlines()[0]
            if reason not in self.said:
                log.warning("logger=%s: %s", self.name, reason)
                self.said.add(reason)
            write_atomic(self.directory.unsent(self.name), reason.encode())
            return False

    def follow(self, over: threading.Event) -> None:
        """Until the training is over, catch up with each epoch."""
        seen = -1
        while not over.wait(LOOK):
            record = self.record()
            if record is None or record.parameters is None:
                continue  # the history may be that of an earlier attempt
            epochs = len(self.directory.history_rows())
            if epochs and epochs != seen:
                seen = epochs
                self.try_to("catch_up", record)

    def finish(self) -> None:
        """Echo the end, once it is on record or the training is gone."""
        record = self.record()
        while record and record.status == "running" and record.is_alive({}):
            time.sleep(LOOK)
            record = self.record()
        threading.Timer(GRACE, os._exit, [1]).start()
        for _ in range(TRIES):
            if record is None or self.try_to("end", record):
                self.directory.unsent(self.name).unlink(missing_ok=True)
                break
            time.sleep(2)


def main(arguments: Sequence[str]) -> None:
    logging.basicConfig(level=logging.WARNING, format="%(asctime)s %(message)s", stream=sys.stdout)
    os.nice(5)  # the training comes first
    name, path, training = arguments
    over = threading.Event()

    def wait_for_the_end() -> None:
        while os.read(0, 4096):
            pass
        over.set()

    threading.Thread(target=wait_for_the_end, daemon=True).start()
    follower = Follower(name, RunDirectory(Path(path)), int(training))
    follower.follow(over)
    follower.finish()
    sys.stdout.flush()
    os._exit(0)  # whatever threads a tracker left


if __name__ == "__main__":
    main(sys.argv[1:])
