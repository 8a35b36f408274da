"""Note which devices a sweep has set aside because they fail. Imports no torch.

A free device is as a rule the broken one: left alone it would get run after run and fail them all.
So a failure that looks like the device's costs the run nothing. It goes on elsewhere, and where it
goes on tells whose failure it was:

- The device is **broken** where it fails the trial of tryout.py too, or the run comes to its end on
  another one. It gets no run any more.
- The device is **suspected** until then. It gets a run only where all others are broken or
  suspected as well.
- The **run** is at fault where it fails so on three devices, or on all that are left. Its
  suspicions are withdrawn. Where a job of a cluster has one device only, this does not tell: the
  run goes on, on another node if there is one (executors/nodes.py).

The notes are files in the folder of the sweep, one for a device and a run, as its jobs are
processes of their own.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterable, Sequence
from contextlib import suppress
from dataclasses import asdict, dataclass
from pathlib import Path

from resnests.errors import UserError
from resnests.runs.files import write_atomic

_PREFIX = "aside-"


class NoDevice(UserError):
    """Says that every device of a sweep is set aside."""


@dataclass(frozen=True)
class Note:
    """Says what is held against a device: what became of `run` there, "" where none was tried."""

    device: str
    reason: str
    run: str = ""
    is_broken: bool = False


class Aside:
    """Keeps notes in `folder`; "" is a folder that never has any."""

    def __init__(self, folder: str | Path) -> None:
        self.folder = str(folder)

    def notes(self) -> list[Note]:
        """Return what is noted."""
        found = []
        for file in sorted(Path(self.folder).glob(f"{_PREFIX}*")) if self.folder else ():
            with suppress(OSError, ValueError):  # withdrawn just now
                found.append(Note(**json.loads(file.read_text())))
        return found

    def add(self, note: Note) -> bool:
        """Write a note, over one of the same device and run; return whether that was possible."""
        if self.folder:
            with suppress(OSError):  # the sweep is over, or the disk full
                write_atomic(self._file(note.device, note.run), json.dumps(asdict(note)).encode())
                return True
        return False

    def usable(self, devices: Iterable[str], run: str) -> set[str]:
        """Return those of `devices` that `run` may try, suspected ones only where no other is."""
        notes, left = self.notes(), set(devices)
        left -= {note.device for note in notes if note.is_broken or note.run == run}
        return left - {note.device for note in notes} or left

    def broken(self) -> set[str]:
        """Return the devices that get no run any more."""
        return {note.device for note in self.notes() if note.is_broken}

    def suspicions(self, run: str) -> list[Note]:
        """Return what `run` holds against devices that are not broken."""
        return [note for note in self.notes() if note.run == run and not note.is_broken]

    def confirm(self, run: str) -> None:
        """Note that devices are broken on which a run failed that came to its end elsewhere."""
        for note in self.suspicions(run):
            self.add(Note(note.device, note.reason, run, is_broken=True))

    def withdraw(self, run: str) -> None:
        """Remove the suspicions of a run that is at fault itself."""
        for note in self.suspicions(run):
            self._file(note.device, run).unlink(missing_ok=True)

    def summary(self) -> str:
        """Return one line for when no device is left."""
        why = "; ".join(f"{note.device}: {note.reason}" for note in self.notes())
        return f"no device is left ({why})"

    def _file(self, device: str, run: str) -> Path:
        names = "-".join(hashlib.sha256(text.encode()).hexdigest()[:12] for text in (device, run))
        return Path(self.folder) / f"{_PREFIX}{names}"


class News:
    """Reports once what changed in the notes."""

    def __init__(self, aside: Aside, devices: Sequence[str]) -> None:
        self.aside, self.devices = aside, set(devices)
        self.told = self._reasons()

    def lines(self) -> list[str]:
        """Return a line for each device that is set aside, or used again, since the last call."""
        now = self._reasons()
        lines = [
            f"{device} is set aside for the rest of the sweep: {reason}"
            for device, reason in now.items()
            if device not in self.told
        ]
        lines += [
            f"{device} is used again: what failed there fails elsewhere, too"
            for device in self.told
            if device not in now
        ]
        self.told = now
        return lines

    def _reasons(self) -> dict[str, str]:
        return {note.device: note.reason for note in self.aside.notes()}

    def is_nothing_left(self) -> bool:
        """Return whether all devices are broken."""
        return self.devices <= self.aside.broken()
