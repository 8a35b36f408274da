"""Make temporary folders, and remove those of processes that were killed. No torch."""

from __future__ import annotations

import os
import shutil
import socket
import stat
import tempfile
import time
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager, suppress
from pathlib import Path

from resnests.errors import UserError
from resnests.runs.lock import flocked, is_flocked

PREFIX = "resnests-notes-"  # of no other temporary folder, as those are not locked so
LOCK = "lock"
YOUNG_SECONDS = 7200.0  # in which a folder that was made is locked, too


@contextmanager
def temporary_folder() -> Iterator[Path]:
    """Make a folder of this host's own; raise a UserError where its disks are full, or closed."""
    remove_abandoned(PREFIX, LOCK)
    with ExitStack() as stack:
        try:
            made = tempfile.TemporaryDirectory(prefix=PREFIX, ignore_cleanup_errors=True)
            folder = Path(stack.enter_context(made))
            (folder / LOCK).touch()
        except OSError as error:
            why = error.strerror or error
            expected = f"a folder for temporary files that can be written ({why})"
            raise UserError(f"TMPDIR on {socket.gethostname()}: expected {expected}") from error
        with suppress(OSError):  # where there are no locks, no folder counts as abandoned
            stack.enter_context(flocked(folder / LOCK))
        yield folder


def remove_abandoned(prefix: str, lock: str) -> None:
    """Remove this user's folders of processes that could not do so: none locks the file `lock`.

    A young folder is left alone, as its process may be about to lock it.
    """
    for path in Path(tempfile.gettempdir()).glob(f"{prefix}*"):
        with suppress(OSError):
            status = path.lstat()
            is_old = time.time() - status.st_mtime > YOUNG_SECONDS
            ours = stat.S_ISDIR(status.st_mode) and status.st_uid == os.getuid()
            if ours and is_old and not is_flocked(path / lock):
                shutil.rmtree(path, ignore_errors=True)
