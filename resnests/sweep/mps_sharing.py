"""Have runs share a card by an MPS daemon: one that runs, or the sweep's own. No torch."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import replace

from resnests.environment import python_path
from resnests.errors import require
from resnests.sweep.cards import is_exclusive, warn
from resnests.sweep.devices import EXCLUSIVE, Allocation
from resnests.sweep.mps import PROGRAM, running_folder

STOP_SECONDS = 30.0  # that a sweep waits for its daemon to end


@contextmanager
def sharing(wanted: bool | None, allocation: Allocation) -> Iterator[Allocation]:
    """Yield `allocation` with the daemon that its runs share, if they share cards and there is one.

    A daemon that runs is used, as CUDA would do, and left running. Where none does, one is started
    unless `wanted` (devices.mps) is False; it is stopped at the end of the `with` block. What
    stands against it is a UserError where `wanted` is True, and a warning where it is None.
    """
    folder = running_folder() if allocation.shares_cards else None
    if folder and not _exclusive(allocation):
        yield replace(allocation, mps=folder)
    elif folder or wanted is False or not allocation.shares_cards or obstacle(wanted, allocation):
        yield allocation
    else:
        with _keeping(wanted, allocation) as started:
            yield replace(allocation, mps=started)


@contextmanager
def _keeping(wanted: bool | None, allocation: Allocation) -> Iterator[str]:
    """Yield the folder of a daemon of our own, "" where none can be started."""
    cards = ",".join(dict.fromkeys(allocation.gpus))
    keeper = subprocess.Popen(
        [sys.executable, "-m", "resnests.sweep.mps", cards],
        stdin=subprocess.PIPE,  # it ends with that
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        env=os.environ | {"PYTHONPATH": python_path()},
        start_new_session=True,  # Ctrl-C is the sweep's
    )
    assert keeper.stdin
    assert keeper.stdout
    assert keeper.stderr
    try:
        folder = keeper.stdout.readline().strip()
        if not folder:
            _refuse(wanted, (keeper.stderr.read().strip().splitlines() or ["it ended"])[-1])
        yield folder
    finally:
        keeper.stdin.close()
        with suppress(subprocess.TimeoutExpired):  # it goes on by itself
            keeper.wait(STOP_SECONDS)
        keeper.stdout.close()
        keeper.stderr.close()


def obstacle(wanted: bool | None, allocation: Allocation) -> str | None:
    """Return why no daemon can be started for `allocation`, None where one can or need not be.

    Raise a UserError, or print a warning, where `wanted` asks for one.
    """
    if wanted is False or not allocation.shares_cards or running_folder():
        return None
    reason = None
    if shutil.which(PROGRAM) is None:
        reason = f"there is no {PROGRAM}"
    elif any(gpu.startswith("MIG-") for gpu in allocation.gpus):
        reason = "a GPU is divided (MIG)"
    elif exclusive := _exclusive(allocation):
        reason = f"{exclusive[0]} {EXCLUSIVE}"
    if reason:
        _refuse(wanted, reason)
    return reason


def _exclusive(allocation: Allocation) -> list[str]:
    """Return the cards that one process has alone, so that a run there cannot go on without MPS."""
    return [gpu for gpu in dict.fromkeys(allocation.gpus) if is_exclusive(gpu)]


def _refuse(wanted: bool | None, reason: str) -> None:
    """Raise a UserError where MPS was asked for by name; print a warning otherwise."""
    require(not wanted, "devices.mps", wanted, f"null or false, as {reason}")
    warn(f"runs on a GPU take turns, as no MPS daemon can be started: {reason}")
