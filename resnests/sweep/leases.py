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

from filelock import FileLock, Timeout

from resnests.errors import UserError
from resnests.sweep.devices import Allocation

POLL_SECONDS = 0.1  # seconds between two tries
PLACES = 64  # in a queue; more than so many wait in no order for its last place

Release = Callable[[], object]


class SocketLocks:
    """Names of abstract sockets: at most 107 bytes, listed in /proc/net/unix. Linux only.

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

    def read_note(self, name: str) -> str | None:
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
    """The same with locked files in a folder of this user's own."""

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

    def read_note(self, name: str) -> str | None:
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
    return SocketLocks() if platform.system() == "Linux" else FileLocks()


class Lease:
    """Slots of an Allocation, held by this process until it ends or releases them."""

    def __init__(self, allocation: Allocation, indices: list[int], locks: ExitStack) -> None:
        self.allocation, self.indices, self._locks = allocation, indices, locks

    @property
    def names(self) -> list[str]:
        return [self.allocation.slots[i] for i in self.indices]

    def environment(self) -> dict[str, str]:
        """Return what to set before torch is imported, or in a forked process used."""
        environment = self.allocation.thread_environment()
        if self.allocation.kind == "cuda":
            environment["CUDA_DEVICE_ORDER"] = "PCI_BUS_ID"
            environment["CUDA_VISIBLE_DEVICES"] = self.allocation.gpus[self.indices[0]]
        return environment

    def release(self) -> None:
        self._locks.close()


def lease(
    allocation: Allocation,
    holder: str,
    wait: bool = True,
    should_stop: Callable[[], bool] = lambda: False,
) -> Lease | None:
    """Lease `take` slots, all or none; None when asked to stop while waiting.

    Without `wait`, a UserError names who holds them. `holder` describes this run to others.
    """
    locks = machine_locks()
    claim = _Claim(allocation, locks)
    try:
        while not should_stop():
            if claim.is_met(wait):
                return claim.leased(holder)
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
    """A place in the queue and what it has got so far."""

    def __init__(self, allocation: Allocation, locks: Locks) -> None:
        self.allocation, self.locks = allocation, locks
        devices = sorted(set(allocation.gpus or allocation.slots))
        self.queue = f"queue-{_digest(' '.join(devices))}"
        self.place = PLACES  # 0 is the head
        self.held_place: Release | None = None
        self.collector: Release | None = None
        self.slots: dict[int, Release] = {}

    def is_met(self, wait: bool) -> bool:
        """Return whether all slots are held after another try; without `wait` past the queue."""
        if wait and not self._reaches_head():
            return False
        # The head keeps the slots that it has got until it has got them all, or smaller runs would
        # pass it for ever. Only one of a machine may do so, or two queues whose devices overlap
        # could wait for each other.
        if wait and self.allocation.take > 1 and self.collector is None:
            self.collector = self.locks.acquire(f"collector-{self.allocation.kind}")
        for index, name in enumerate(self.allocation.slots):
            if len(self.slots) == self.allocation.take:
                break
            if index not in self.slots and (release := self.locks.acquire(name)):
                self.slots[index] = release
        met = len(self.slots) == self.allocation.take
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

    def leased(self, holder: str) -> Lease:
        indices, locks = sorted(self.slots), ExitStack()
        for release in self.slots.values():
            locks.callback(release)
        # One note for all: each takes a file descriptor.
        locks.callback(self.locks.note(self.allocation.slots[indices[0]], holder))
        self.slots = {}
        return Lease(self.allocation, indices, locks)

    def withdraw(self) -> None:
        self._return_slots()
        for release in (self.collector, self.held_place):
            if release:
                release()

    def _return_slots(self) -> None:
        for release in self.slots.values():
            release()
        self.slots = {}
