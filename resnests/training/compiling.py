"""Let one process at a time compile a network: the others then read what it made."""

from __future__ import annotations

import fcntl
import hashlib
import os
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

from torch import nn

from resnests.config.schema import Trainer


@contextmanager
def compiling(model: nn.Module, trainer: Trainer) -> Iterator[None]:
    """Have the `with` block to oneself among this user's processes that compile such a network.

    torch keeps what it compiled in a folder of the user's (TORCHINDUCTOR_CACHE_DIR). So the runs of
    a sweep that start together would all compile the same, each for a minute or two on all cores.
    Where there can be no lock, they do.
    """
    lock = None
    with suppress(OSError):
        lock = os.open(lock_file(model, trainer), os.O_RDWR | os.O_CREAT | os.O_NOFOLLOW, 0o600)
        fcntl.flock(lock, fcntl.LOCK_EX)
    try:
        yield
    finally:
        if lock is not None:
            os.close(lock)


def lock_file(model: nn.Module, trainer: Trainer) -> Path:
    """Return the file that is locked meanwhile: one for each network, batch size and precision."""
    shapes = [(name, tuple(one.shape)) for name, one in model.state_dict().items()]
    told = repr((os.getuid(), shapes, trainer.batch_size, trainer.precision))
    digest = hashlib.sha256(told.encode()).hexdigest()[:16]
    return Path(tempfile.gettempdir()) / f"resnests-compile-{digest}.lock"
