"""Try a device in a process of its own: can torch compute on it, and is it the one NVML means?

    python -m resnests.sweep.tryout GPU-...    # or cpu, mps; a reason on standard error, status 1

Status BUSY says that nothing was tried.

NVML may see a card that torch cannot use: the driver is older than torch's CUDA, torch is the wheel
for CPUs, its CUDA dropped the card. A process of its own it must be, as a device that once failed
under a process fails under it for ever.

A card that one process has alone is tried only while its slot is leased, as a run would have it: a
run of ours that is on it makes the trial fail, and the trial would make that run fail. The process
of the trial leases it, so that others have it as soon as that ends. On other cards our runs may
leave too little memory: that is no verdict on the card.
"""

from __future__ import annotations

import os
import subprocess
import sys
import time
from collections.abc import Iterable, Iterator
from contextlib import contextmanager

from resnests.environment import python_path
from resnests.errors import UserError
from resnests.sweep.aside import Aside, Note
from resnests.sweep.cards import is_exclusive
from resnests.sweep.devices import Allocation
from resnests.sweep.leases import leased_slots, machine_locks
from resnests.sweep.protocol import BUSY
from resnests.training.device_words import FULL

SECONDS = 120.0  # for an import of torch from a slow disk, and the first use of a card

OCCUPIED = ("busy or unavailable", *FULL)  # words of a trial on a card that is in use

Trials = dict[str, subprocess.Popen]  # by device


def start_trials(devices: Iterable[str]) -> Trials:
    """Start to try each of `devices`: UUIDs of GPUs, or what torch calls others."""
    trials: Trials = {}
    for device in dict.fromkeys(devices):
        own = {"CUDA_VISIBLE_DEVICES": device, "CUDA_DEVICE_ORDER": "PCI_BUS_ID"}
        own = own if _is_gpu(device) else {}
        trials[device] = subprocess.Popen(
            [sys.executable, "-m", "resnests.sweep.tryout", device],
            stdin=subprocess.DEVNULL,
            stdout=subprocess.DEVNULL,
            stderr=subprocess.PIPE,
            text=True,
            env=os.environ | own | {"PYTHONPATH": python_path()},
            start_new_session=True,  # Ctrl-C is the sweep's
        )
    return trials


@contextmanager
def trying(devices: Iterable[str]) -> Iterator[Trials]:
    """Try `devices` beside what the `with` block does."""
    trials = start_trials(devices)
    try:
        yield trials
    finally:
        _end(trials)


def verdicts(trials: Trials) -> dict[str, str]:
    """Wait for `trials`; return why each device failed, "" where it did not.

    A card that a run of ours has alone is not among them, as it was not tried.
    """
    found, end = {}, time.monotonic() + SECONDS
    for device, trial in trials.items():
        try:
            said = trial.communicate(timeout=max(0.1, end - time.monotonic()))[1]
        except subprocess.TimeoutExpired:
            said = f"it does not answer within {SECONDS:.0f} s"
        code = trial.returncode
        if code == BUSY:
            continue
        is_occupied = any(mark in said.lower() for mark in OCCUPIED) and leased_slots(device)
        reason = (said.strip().splitlines() or [f"its trial ended with {code}"])[-1]
        found[device] = "" if code == 0 or is_occupied else reason
    _end(trials)
    return found


def set_aside(aside: Aside, allocation: Allocation, trials: Trials, wanted: str) -> None:
    """Note the devices that failed their trial, a line each; raise a UserError where all did.

    `wanted` is what the user gave for trainer.device.
    """
    failed = {device: reason for device, reason in verdicts(trials).items() if reason}
    for device, reason in failed.items():
        what = f"{device} is not used: torch cannot compute on it ({reason})"
        print(f"warning: {what}", file=sys.stderr)
        aside.add(Note(device, reason, is_broken=True))
    if failed and failed.keys() >= set(allocation.devices):
        expected = "auto, cuda or cuda:N with a GPU that torch can use, or cpu"
        raise UserError(f"trainer.device={wanted}: expected {expected}")


def _end(trials: Trials) -> None:
    """Kill the trials that are not over."""
    for trial in trials.values():
        if trial.poll() is None:
            trial.kill()
            trial.communicate()


def _is_gpu(device: str) -> bool:
    return device.startswith(("GPU-", "MIG-"))


def try_device(device: str) -> str | None:
    """Return why torch cannot compute on `device`, the only GPU that this process sees, or None."""
    import torch

    try:
        place = torch.device("cuda:0" if _is_gpu(device) else device.partition("-")[0])
        ones = torch.ones(1000, device=place)
        total = (ones + ones).sum().item()
    except Exception as error:  # such as an AssertionError of the wheel for CPUs
        return f"{type(error).__name__}: {error}".splitlines()[0]
    if total != 2000:
        return f"1000 times 1 + 1 is {total:g} there"
    if not device.startswith("GPU-"):
        return None  # torch has no UUID of a slice in all versions
    uuid = getattr(torch.cuda.get_device_properties(0), "uuid", None)
    if uuid is None or device == f"GPU-{uuid}":
        return None
    return f"NVML calls it {device}, and torch GPU-{uuid}"


def main() -> None:
    """Try the device that the command line names, unless another run has it alone."""
    device = sys.argv[1]
    is_alone = _is_gpu(device) and is_exclusive(device)
    lock = machine_locks().acquire(f"{device}-0") if is_alone else None  # until this process ends
    if is_alone and lock is None:
        os._exit(BUSY)
    reason = try_device(device)
    if reason:
        print(reason, file=sys.stderr, flush=True)
    # At once: there are drivers that hang in an orderly end
    os._exit(1 if reason else 0)


if __name__ == "__main__":
    main()
