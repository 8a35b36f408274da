"""Write files whole or not at all, on file systems that have locks."""

from __future__ import annotations

import errno
import os
import tempfile
from functools import cache
from pathlib import Path

from resnests.errors import UserError


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
