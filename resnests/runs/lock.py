"""Lock a run directory by its run.lock for the one process that may write into it."""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from types import TracebackType
from typing import Protocol

from filelock import Timeout


class Lockable(Protocol):
    """Describes a run directory as far as a RunLock needs to know it."""

    path: Path
    lock_file: Path

    def has_heartbeat(self) -> bool: ...


class RunLock:
    """Holds a lock of the operating system (flock) on run.lock, which ends with its holder.

    Two things can go wrong with a lock file, and both are seen here. Somebody removes the file: who
    opened it before has a lock on a file that nobody else will ever find, while the next process
    makes and locks a new one. So after locking the file must still be the one on disk, else all
    begins again, and `is_held` tells that it still is. And a file system may have no locks between
    its hosts: so a directory with a heartbeat is taken although its lock is free.
    """

    def __init__(self, directory: Lockable) -> None:
        self.directory = directory
        self.lock_file = str(directory.lock_file)
        self._descriptor: int | None = None

    def acquire(self, blocking: bool = True) -> RunLock:
        """Make the directory and lock it; raise filelock's Timeout where another process has it."""
        while not self.is_held():
            self.release()
            self._lock(blocking)
        if self.directory.has_heartbeat():
            self.release()
            raise Timeout(self.lock_file)
        return self

    def _lock(self, blocking: bool) -> None:
        import fcntl  # which Windows lacks

        self.directory.path.mkdir(parents=True, exist_ok=True)
        try:
            descriptor = os.open(self.lock_file, os.O_RDWR | os.O_CREAT, 0o666)
        except FileNotFoundError:  # the directory was removed just now
            return
        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX | (0 if blocking else fcntl.LOCK_NB))
        except BlockingIOError:
            os.close(descriptor)
            raise Timeout(self.lock_file) from None
        except BaseException:
            os.close(descriptor)
            raise
        self._descriptor = descriptor

    def is_held(self) -> bool:
        """Return whether this process has the lock, and the locked file is still the one on
        disk.
        """
        if self._descriptor is None:
            return False
        try:
            return os.path.samestat(os.fstat(self._descriptor), os.stat(self.lock_file))
        except FileNotFoundError:
            return False

    def release(self) -> None:
        """Let others have the directory; the file stays."""
        if self._descriptor is not None:
            os.close(self._descriptor)
            self._descriptor = None

    def __enter__(self) -> RunLock:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self.release()


def is_flocked(path: Path) -> bool:
    """Return whether a process holds a lock on a file. This creates nothing, and needs no more than
    the right to read the file.
    """
    import fcntl

    try:
        with open(os.open(path, os.O_RDONLY | os.O_NONBLOCK), "rb") as file:
            fcntl.flock(file, fcntl.LOCK_SH | fcntl.LOCK_NB)
    except FileNotFoundError:
        return False
    except BlockingIOError:
        return True
    return False


@contextmanager
def flocked(path: Path) -> Iterator[None]:
    """Hold a lock on a file; raise filelock's Timeout where another process has it."""
    import fcntl

    descriptor = os.open(path, os.O_RDWR | os.O_NONBLOCK)
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        yield
    except BlockingIOError:
        raise Timeout(str(path)) from None
    finally:
        os.close(descriptor)
