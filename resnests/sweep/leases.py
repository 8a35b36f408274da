"""Lease the slots of an Allocation to runs, with locks that die with their holder. No torch.

On Linux a lock is a name in the kernel, an abstract Unix socket: one process of whichever user can
bind it, until that process ends however it ends. There is no file, hence none that another user
owns, replaces by a link or deletes, and no folder to trust: who takes names in bad faith can make
others wait, no more. All users of a host share them; a container with a network of its own has
names of its own (and as a rule a /tmp of its own too). Elsewhere, such as on macOS, a lock is a
locked file below the home: users do not see each other's.

Who comes first is served first: those who wait form a queue for each set of devices.
"""

from __future__ import annotations

import errno
import hashlib
import os
import platform
import random
import re
import socket
import tempfile
import time
from collections.abc import Callable
from contextlib import ExitStack
from pathlib import Path
from typing import TYPE_CHECKING

from filelock import FileLock, Timeout

from resnests.errors import UserError
from resnests.runs.lock import is_flocked
from resnests.sweep.aside import Aside, NoDevice
from resnests.sweep.mps import environment as mps_environment

if TYPE_CHECKING:
    from resnests.sweep.devices import Allocation

POLL_SECONDS = 0.1  # seconds between two tries
PLACES = 64  # in a queue; more than so many wait in no order for its last place

Release = Callable[[], object]


class SocketLocks:
    """Binds names of abstract sockets: at most 107 bytes, listed in /proc/net/unix. Linux only.

    RESNESTS_LOCK_DIR stands for another set of names.
    """

    def __init__(self) -> None:
        space = os.environ.get("RESNESTS_LOCK_DIR", "")
        self.prefix = f"resnests{_digest(space) if space else ''}/"

    def acquire(self, name: str) -> Release | None:
        """Return how to release `name`, None where it is taken. Never waits."""
        return self._bind(f"{self.prefix}{name}".encode())

    def note(self, name: str, text: str) -> Release:
        """Tell others who holds `name`, until released."""
        key = f"{self.prefix}note-{_digest(name)}/{os.getpid()} ".encode()
        end = text.encode()[len(key) - 107 :]  # of a path the end says most
        return self._bind(key + end) or (lambda: None)

    def held(self, start: str) -> set[str]:
        """Return the names that begin with `start` and are taken."""
        listed = Path("/proc/net/unix").read_text(errors="replace")
        found = re.findall(rf" @{re.escape(self.prefix + start)}(\S*)$", listed, re.MULTILINE)
        return {start + end for end in found}

    def read_note(self, name: str) -> str | None:
        """Return who holds `name`, None where nobody says it."""
        key = re.escape(f"{self.prefix}note-{_digest(name)}")
        names = Path("/proc/net/unix").read_text(errors="replace")
        found = re.search(rf" @{key}/(\d+) (.*)", names)
        return _describe(*found.groups()) if found else None

    @staticmethod
    def _bind(name: bytes) -> Release | None:
        lock = socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM)
        try:
            lock.bind(b"\0" + name)
        except OSError as error:
            lock.close()
            if error.errno != errno.EADDRINUSE:
                raise
            return None
        return lock.close


class FileLocks:
    """Does the same with locked files in a folder of this user's own."""

    def __init__(self) -> None:
        self.folder = Path(os.environ.get("RESNESTS_LOCK_DIR") or _own_folder())
        self.folder.mkdir(mode=0o700, parents=True, exist_ok=True)

    def acquire(self, name: str) -> Release | None:
        lock = FileLock(self.folder / f"{name}.lock", thread_local=False)
        try:
            lock.acquire(blocking=False)
        except Timeout:
            return None
        return lock.release

    def note(self, name: str, text: str) -> Release:
        file = self.folder / f"{name}.note"
        file.write_text(f"{os.getpid()} {text}")
        return lambda: file.unlink(missing_ok=True)

    def held(self, start: str) -> set[str]:
        """Return the names that begin with `start` and are taken."""
        names = {file.stem for file in self.folder.glob("*.lock") if file.stem.startswith(start)}
        return {name for name in names if is_flocked(self.folder / f"{name}.lock")}

    def read_note(self, name: str) -> str | None:
        """Return who holds `name`, None where nobody says it."""
        try:
            pid, _, text = (self.folder / f"{name}.note").read_text().partition(" ")
        except FileNotFoundError:
            return None
        return _describe(pid, text)


def _own_folder() -> Path:
    """Return the folder for this user's locks; without a home, as in containers, below /tmp."""
    try:
        return Path.home() / ".cache" / "resnests-slots"
    except RuntimeError:
        return Path(tempfile.gettempdir()) / f"resnests-slots-{os.getuid()}"


def _digest(text: str) -> str:
    return hashlib.sha256(text.encode()).hexdigest()[:8]


def _describe(pid: str, text: str) -> str:
    shown = "".join(filter(str.isprintable, text))  # anybody on the machine may have written it
    return f"process {pid} on {socket.gethostname()} ({shown})"


Locks = SocketLocks | FileLocks


def machine_locks() -> Locks:
    """Return the locks of this machine."""
    return SocketLocks() if platform.system() == "Linux" else FileLocks()


def leased_slots(device: str) -> set[str]:
    """Return the slots of a GPU that runs of anybody's hold."""
    return machine_locks().held(f"{device}-")


class Lease:
    """Holds slots of an Allocation, until this process ends or releases them."""

    def __init__(self, allocation: Allocation, indices: list[int], locks: ExitStack) -> None:
        self.allocation, self.indices, self._locks = allocation, indices, locks

    @property
    def names(self) -> list[str]:
        """Return the names of the slots."""
        return [self.allocation.slots[i] for i in self.indices]

    @property
    def devices(self) -> list[str]:
        """Return the devices behind the slots."""
        return list(dict.fromkeys(self.allocation.devices[i] for i in self.indices))

    def environment(self) -> dict[str, str]:
        """Return what to set before torch is imported, or in a forked process used."""
        environment = self.allocation.thread_environment()
        if self.allocation.kind == "cuda":
            environment["CUDA_DEVICE_ORDER"] = "PCI_BUS_ID"
            environment["CUDA_VISIBLE_DEVICES"] = self.allocation.gpus[self.indices[0]]
        if self.allocation.mps:
            environment |= mps_environment(self.allocation.mps)
        return environment

    def release(self) -> None:
        """Let others have the slots."""
        self._locks.close()


def lease(
    allocation: Allocation,
    holder: str,
    wait: bool = True,
    should_stop: Callable[[], bool] = lambda: False,
) -> Lease | None:
    """Lease `take` slots, all or none; None when asked to stop while waiting.

    Without `wait`, a UserError names who holds them; NoDevice says that all are set aside.
    `holder` describes this run to others.
    """
    locks = machine_locks()
    claim = _Claim(allocation, locks, holder)
    try:
        while not should_stop():
            if claim.is_met(wait):
                return claim.leased()
            if not wait:
                notes = {name: locks.read_note(name) for name in allocation.slots}
                holders = "; ".join(f"{name} by {note}" for name, note in notes.items() if note)
                raise UserError(
                    f"devices.wait=false: {allocation.take} free slot(s) needed, but taken are "
                    f"{holders or 'too many by unknown processes'}"
                )
            time.sleep(POLL_SECONDS * random.uniform(0.5, 1.5))
        return None
    finally:
        claim.withdraw()


class _Claim:
    """Holds a place in the queue and what it has got so far."""

    def __init__(self, allocation: Allocation, locks: Locks, holder: str) -> None:
        self.allocation, self.locks, self.holder = allocation, locks, holder
        self.aside = Aside(allocation.aside)
        devices = sorted(set(allocation.gpus or allocation.slots))
        self.queue = f"queue-{_digest(' '.join(devices))}"
        self.place = PLACES  # 0 is the head
        self.held_place: Release | None = None
        self.collector: Release | None = None
        self.slots: dict[int, Release] = {}

    def is_met(self, wait: bool) -> bool:
        """Return whether all slots are held after another try; without `wait` past the queue.

        A device that is set aside while this waits is not taken: who is asked again each time.
        """
        usable = self.aside.usable(self.allocation.devices, self.holder)
        if not usable:
            raise NoDevice(self.aside.summary())
        indices = [i for i, device in enumerate(self.allocation.devices) if device in usable]
        take = min(self.allocation.take, len(indices))
        if wait and not self._reaches_head():
            return False
        # The head keeps the slots that it has got until it has got them all, or smaller runs would
        # pass it for ever. Only one of a machine may do so, or two queues whose devices overlap
        # could wait for each other.
        if wait and take > 1 and self.collector is None:
            self.collector = self.locks.acquire(f"collector-{self.allocation.kind}")
        for index in indices:
            if len(self.slots) == take:
                break
            name = self.allocation.slots[index]
            if index not in self.slots and (release := self.locks.acquire(name)):
                self.slots[index] = release
        met = len(self.slots) == take
        if not met and self.collector is None:
            self._return_slots()
        return met

    def _reaches_head(self) -> bool:
        """Move up as far as the places ahead are free."""
        while self.place > 0:
            ahead = self.locks.acquire(f"{self.queue}-{self.place - 1}")
            if ahead is None:
                return False
            if self.held_place:
                self.held_place()
            self.held_place, self.place = ahead, self.place - 1
        return True

    def leased(self) -> Lease:
        """Return the slots as a Lease."""
        indices, locks = sorted(self.slots), ExitStack()
        for release in self.slots.values():
            locks.callback(release)
        # One note for all: each takes a file descriptor.
        locks.callback(self.locks.note(self.allocation.slots[indices[0]], self.holder))
        self.slots = {}
        return Lease(self.allocation, indices, locks)

    def withdraw(self) -> None:
        """Release the place in the queue, and slots that are no Lease's."""
        self._return_slots()
        for release in (self.collector, self.held_place):
            if release:
                release()

    def _return_slots(self) -> None:
        for release in self.slots.values():
            release()
        self.slots = {}
