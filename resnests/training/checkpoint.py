"""Write checkpoints whole or not at all, and read them only when sound."""

from __future__ import annotations

import logging
import math
import os
import time
from typing import Any

from resnests.models.weights import UnsoundFile, read_torch, serialise
from resnests.runs.directory import RunDirectory, write_atomic

log = logging.getLogger(__name__)


class Checkpoints:
    """Writes checkpoints of a run after every `every` epochs; None: as often as SHARE allows."""

    SHARE = 0.02  # of the time, at most

    def __init__(self, directory: RunDirectory, every: int | None) -> None:
        self.directory, self.every = directory, every
        self.took, self.written = 0.0, -math.inf  # seconds

    def is_due(self, epoch: int) -> bool:
        """Return whether a checkpoint is due after `epoch`, which has just ended."""
        if self.every is not None:
            return epoch % self.every == 0
        return self.took <= self.SHARE * (time.perf_counter() - self.written)

    def save(self, state: dict[str, Any]) -> None:
        """Write `state`, and note how long that took."""
        started = time.perf_counter()
        save_checkpoint(self.directory, state)
        self.written = time.perf_counter()
        self.took = self.written - started


def save_checkpoint(directory: RunDirectory, state: dict[str, Any]) -> None:
    """Write `state`, and keep the checkpoint before it as a second line of defence."""
    data = serialise(state)
    current, fresh = directory.checkpoint_file, directory.path / ".checkpoint.tmp"
    write_atomic(fresh, data)
    if current.exists():
        os.replace(current, directory.previous_checkpoint_file)
    os.replace(fresh, current)


def load_checkpoint(directory: RunDirectory, identity: dict[str, Any]) -> dict[str, Any] | None:
    """Return the latest sound checkpoint of the run `identity`, on the CPU, None where there is
    none; the log names unsound ones.

    load_state_dict moves what belongs on a device. AdamW's count of steps does not: there, every
    step would wait for the device to read it, twice for each parameter.
    """
    for path in (directory.checkpoint_file, directory.previous_checkpoint_file):
        if not path.exists():
            continue
        try:
            state = read_torch(path)
            if not isinstance(state, dict) or state.get("identity") != identity:
                raise UnsoundFile("it belongs to another run")
            return state
        except UnsoundFile as error:
            log.warning("%s is not used: %s", path, error)
    return None
