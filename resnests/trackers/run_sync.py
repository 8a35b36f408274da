"""Send to one tracker what it lacks of one run, again and again, by one process at a time."""

from __future__ import annotations

import errno
import fcntl
import math
import os
import re
import threading
from collections.abc import Iterator
from contextlib import suppress
from typing import Any

from resnests.runs.directory import RunDirectory, write_atomic
from resnests.runs.record import FINAL, Record
from resnests.trackers.tracker import (
    Row,
    Tracker,
    build_tracker,
    describe,
    drawings,
    epoch_times,
    final_metrics,
    first_epoch_id,
)

_DRAWING = threading.Lock()  # matplotlib is not made for several threads


class RunSync:
    """Keeps one tracker at what the directory of one run has, whatever the tracker does.

    A run is sent by one process at a time, which holds a lock on its sync.<name>: two sweeps over
    the same grid, or a sweep and `aggregate.py --to`, would otherwise send each epoch twice.
    What has the lock asks the tracker what it has, and sends the rest. So it does not matter who
    sent what before, or died over it.
    """

    def __init__(
        self, directory: RunDirectory, name: str, settings: dict[str, Any] | None = None
    ) -> None:
        """Take the `settings` of the tracker, for a run that was trained without it."""
        self.directory, self.name, self.settings = directory, name, settings
        self.tracker: Tracker | None = None  # while it has the run open
        self.sent: set[int] = set()  # epochs
        self.is_done = False  # the run is over, and all of it was sent
        self.is_running = False  # somebody trains it
        self.is_elsewhere = False  # another process sends it
        self.error: str | None = None  # why the tracker has not all of it
        self._id = ""
        self._seen: object = None  # the files, when everything in them had been sent
        self._lock: int | None = None

    def sync(self, closing: bool = False) -> None:
        """Send what is new, and note in `error` what went wrong.

        `closing` says that this sweep trains the run no more: whatever it is like now, unless
        somebody else trains it, was its end.
        """
        stamp = (*self._stamp(), closing)
        if stamp == self._seen:
            return
        self._seen, self.error = stamp, None
        try:
            self._send(closing)
        except Exception as error:
            self.release()  # it begins anew, by what the tracker has
            self.error = f"{type(error).__name__}: {error}".splitlines()[0]
            self.give_up(self.error)
        if self.is_elsewhere or (self.error and closing):
            self._seen = None  # to be tried again although no file will change

    def release(self) -> None:
        """Leave the run to whoever sends the rest of it."""
        self.tracker = None
        if self._lock is not None:
            os.close(self._lock)
            self._lock = None

    def was_sent(self) -> bool:
        """Return whether some of the run was sent; then unsent.<name> says if that is not all."""
        return self.directory.sync_file(self.name).exists()

    def give_up(self, reason: str) -> None:
        """Write into the run directory that the tracker has not all of the run, and why."""
        with suppress(OSError):  # a full disk, say
            if self.directory.record_file.exists():
                write_atomic(self.directory.unsent(self.name), reason.encode())

    def _stamp(self) -> Iterator[object]:
        """Yield what changes with the files of the run."""
        for file in (self.directory.record_file, self.directory.history_file):
            try:
                found = file.stat()
                yield (found.st_ino, found.st_mtime_ns, found.st_size)
            except OSError:
                yield None

    def _send(self, closing: bool) -> None:
        record = self.directory.record_or_none()
        if record is None:
            return
        rows = self.directory.history_rows()
        self.is_done = False
        self.is_running = record.status == "running" and (
            not closing or is_trained(self.directory, record)
        )
        if self.is_running and not rows:
            return
        self.is_elsewhere = not self._is_locked()
        if self.is_elsewhere:
            return
        self._open(record, rows)
        assert self.tracker is not None
        for row, when in zip(rows, epoch_times(record, rows), strict=True):
            epoch = int(row["epoch"])
            if epoch not in self.sent:
                measured = {name: value for name, value in row.items() if math.isfinite(value)}
                del measured["epoch"]
                self.tracker.epoch(epoch, measured, when)
                self.sent.add(epoch)
        if not self.is_running:
            self._end(record)
            self.is_done = closing or record.status in FINAL  # else it may be tried again
            self.directory.unsent(self.name).unlink(missing_ok=True)
            self.release()

    def _open(self, record: Record, rows: list[Row]) -> None:
        """Have the run open in the tracker, and know which epochs it has."""
        known = self._read_id()
        id = known or first_epoch_id(record, rows)
        if self.tracker is None or id != self._id:  # another id: the run was started afresh
            if not self.directory.unsent(self.name).exists():
                self.give_up("it was given up")  # true until the end is sent
            if not rows and not known:
                self._keep_id(id)
            settings = self.settings or record.config["logger"][self.name]
            tracker = build_tracker(self.name, settings)
            self.sent = set(tracker.start(describe(self.directory, record, rows, id)))
            self.tracker, self._id = tracker, id

    def _end(self, record: Record) -> None:
        assert self.tracker is not None
        final = record.status in FINAL
        status = "killed" if record.status == "running" else record.status
        metrics = final_metrics(record) if final else {}
        self.tracker.end(status, metrics, self._figures() if final else {})

    def _figures(self) -> dict[str, bytes]:
        """Draw the learning curves of a run that has some."""
        with _DRAWING:
            found = [d for d in drawings(self.directory.path) if d.key.startswith("curves")]
            return {"curves": found[0].render("png")} if found else {}

    def _is_locked(self) -> bool:
        """Lock sync.<name> if it is free; return whether no other process has it."""
        if self._lock is not None:
            return True
        try:
            file = os.open(self.directory.sync_file(self.name), os.O_RDWR | os.O_CREAT, 0o666)
        except OSError as error:
            if error.errno in (errno.EACCES, errno.EPERM, errno.EROFS):
                return True  # runs of somebody else, which `--to` only reads
            raise
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError:
            os.close(file)
            return False
        self._lock = file
        return True

    def _read_id(self) -> str | None:
        if self._lock is None:
            return None
        text = os.pread(self._lock, 16, 0).decode(errors="replace")
        return text if re.fullmatch("[0-9a-f]{16}", text) else None

    def _keep_id(self, id: str) -> None:
        """Keep the id of a run that has no epoch yet: it stays the run's when it has some."""
        if self._lock is not None:
            os.pwrite(self._lock, id.encode(), 0)


def is_trained(directory: RunDirectory, record: Record) -> bool:
    """Return whether a process trains the run at this moment."""
    return record.status == "running" and record.is_alive(directory.read_progress())
