"""Tell failures of a device from those of a run, as far as one failure shows it. Imports no torch.

What stays open, such as an illegal memory access, is settled by where else it fails: see aside.py.
"""

from __future__ import annotations

from resnests.sweep.cards import nvml_complaint
from resnests.sweep.leases import Lease, leased_slots
from resnests.training.device_words import FULL, chain, words_of_device

FOREIGN_GB = 2.0  # that other programs hold on a card that is full for a run without them


def device_failure(error: BaseException, lease: Lease, has_begun: bool) -> str | None:
    """Return why `error` may be the fault of the devices in `lease`, None where it is the run's.

    `has_begun` is whether the run made a step already: memory that sufficed for one suffices.
    """
    if reason := words_of_device(error):
        return reason
    is_full = any(mark in str(one).lower() for one in chain(error) for mark in FULL)
    if is_full and not has_begun and (reason := _filled_by_others(lease)):
        return reason
    for uuid in lease.devices if lease.allocation.kind == "cuda" else ():
        if complaint := nvml_complaint(uuid):
            return complaint
    return None


def may_be_anothers(error: BaseException) -> bool:
    """Return whether an error may be that of another process which shares the same MPS daemon.

    All that are on a card get a fatal error of any of them, also that of a failed assertion.
    """
    is_assert = any("device-side assert" in str(one).lower() for one in chain(error))
    return is_assert or words_of_device(error) is not None


def _filled_by_others(lease: Lease) -> str | None:
    """Return how much programs of others hold, where these alone can have filled the card."""
    import torch

    if lease.allocation.kind != "cuda" or leased_slots(lease.devices[0]) - set(lease.names):
        return None  # runs of ours are there as well: it is only full
    try:
        free, total = torch.cuda.mem_get_info()
    except RuntimeError:  # there is not even room to ask
        return "other programs fill it"
    others = (total - free - torch.cuda.memory_reserved()) / 1e9
    if others < FOREIGN_GB:
        return None
    return f"other programs hold {others:.0f} of its {total / 1e9:.0f} GB"
