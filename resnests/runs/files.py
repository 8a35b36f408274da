"""Files that appear whole or not at all, on file systems that have locks."""

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
    """Raise a UserError where the file system of `folder` has no locks."""
    import fcntl  # which Windows lacks

    Path(folder).mkdir(parents=True, exist_ok=True)
    try:
        with tempfile.TemporaryFile(dir=folder) as file:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except OSError as error:
        if error.errno not in (errno.ENOSYS, errno.ENOLCK, errno.EOPNOTSUPP):
            raise
        where = f"runs_dir={folder}: expected a file system with locks"
        mend = "NFS 4, NFS 3 with lockd, or Lustre mounted with flock"
        raise UserError(f"{where}, such as {mend} ({error.strerror})") from error
