"""Write files whole or not at all, on file systems that have locks; open what others wrote."""

from __future__ import annotations

import errno
import os
import stat
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from contextvars import ContextVar
from functools import cache
from pathlib import Path
from typing import BinaryIO

from resnests.errors import UserError

MAX_BYTES = 64_000_000  # of a file that is read whole: more is nobody's record or history
_FENCE: ContextVar[str | None] = ContextVar("_FENCE", default=None)


def write_atomic(path: Path, data: bytes) -> None:
    """Write `data` so that `path` holds either what it held before or all of `data`, also after
    a power cut.
    """
    temporary = path.with_name(f".{path.name}.{os.getpid()}.tmp")
    try:
        with open(temporary, "wb") as file:
            file.write(data)
            file.flush()
            os.fsync(file.fileno())
        os.replace(temporary, path)
    except BaseException:
        temporary.unlink(missing_ok=True)
        raise


@contextmanager
def only_below(root: Path | str) -> Iterator[None]:
    """Have this thread open no file of a run that is not below `root`, whatever links are there."""
    token = _FENCE.set(os.path.join(os.path.realpath(root), ""))
    try:
        yield
    finally:
        _FENCE.reset(token)


def leads_out(path: Path | str) -> bool:
    """Return whether links make `path` a place that only_below excludes."""
    fence = _FENCE.get()
    return fence is not None and not os.path.join(os.path.realpath(path), "").startswith(fence)


def opened(path: Path | str) -> BinaryIO:
    """Open a file of a run for reading; raise an OSError where it is no plain file.

    Whoever wrote the run may have put anything there. To open a FIFO would wait for a writer for
    ever, a device need not end, and a link may lead to what nobody was to see (only_below).
    """
    if leads_out(path):
        raise PermissionError(errno.EACCES, "a link leads out of the folder", str(path))
    descriptor = os.open(path, os.O_RDONLY | os.O_NONBLOCK)
    if not stat.S_ISREG(os.fstat(descriptor).st_mode):
        os.close(descriptor)
        raise OSError(errno.EINVAL, "no plain file", str(path))
    return os.fdopen(descriptor, "rb")


def read_file(path: Path | str, most: int = MAX_BYTES) -> bytes:
    """Return what is in a file of a run; raise an OSError also where it has more than `most`
    bytes.
    """
    with opened(path) as file:
        data = file.read(most + 1)
    if len(data) > most:
        raise OSError(errno.EFBIG, f"larger than {most} bytes", str(path))
    return data


@cache
def require_locks(folder: Path | str) -> None:
    """Raise a UserError where files cannot be made in `folder`, or its file system has no locks."""
    import fcntl  # which Windows lacks

    try:
        Path(folder).mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryFile(dir=folder) as file:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except OSError as error:
        expected = "a directory that can be written"
        if error.errno in (errno.ENOSYS, errno.ENOLCK, errno.EOPNOTSUPP):
            mend = "NFS 4, NFS 3 with lockd, or Lustre mounted with flock"
            expected = f"a file system with locks, such as {mend}"
        raise UserError(f"runs_dir={folder}: expected {expected} ({error.strerror})") from error
