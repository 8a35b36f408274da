"""Save and restore the global random generators: what a network, head or optimizer of a
user's may draw from.

An interrupted run must go on with the numbers that it would have drawn. Their states are therefore
part of a checkpoint: those of torch (CPU and device), numpy and Python's random. Derived anew from
(seed, epoch, step) they would need no place there, but every training that draws would get other
numbers than the ones it had so far. A generator of a module's own is not seen here.
"""

from __future__ import annotations

import random
from typing import Any

import numpy as np
import torch

_DEVICES: dict[str, Any] = {"cuda": torch.cuda, "mps": torch.mps}


def generator_states(device: torch.device) -> dict[str, Any]:
    """Return the state of every global generator, as a checkpoint can hold it.

    It takes some 40 microseconds and does not wait for the device.
    """
    version, words, gauss = random.getstate()
    kind, keys, *rest = np.random.get_state()
    states = {
        "python": [version, list(words), gauss],
        "numpy": [kind, torch.from_numpy(np.asarray(keys, dtype=np.int64)), *rest],
        "torch": torch.get_rng_state(),
    }
    if device.type in _DEVICES:
        states[device.type] = _DEVICES[device.type].get_rng_state()
    return states


def restore_generators(states: dict[str, Any], device: torch.device) -> None:
    """Put every generator back to where it was; those that `states` lacks stay as they are."""
    if "python" in states:
        version, words, gauss = states["python"]
        random.setstate((version, tuple(words), gauss))
    if "numpy" in states:
        kind, keys, *rest = states["numpy"]
        np.random.set_state((kind, keys.numpy().astype(np.uint32), *rest))
    if "torch" in states:
        torch.set_rng_state(states["torch"])
    if device.type in states and device.type in _DEVICES:
        _DEVICES[device.type].set_rng_state(states[device.type])


def drawn_on_host(before: dict[str, Any], device: torch.device) -> bool:
    """Return whether anything but the device's own generator was drawn from since `before`."""
    now = generator_states(device)
    mine = {"python", "numpy"} | ({"torch"} if device.type != "cpu" else set())
    return any(not _same(before[name], now[name]) for name in mine)


def _same(one: Any, other: Any) -> bool:
    if isinstance(one, torch.Tensor):
        return torch.equal(one, other)
    if isinstance(one, list):
        return all(map(_same, one, other))
    return bool(one == other)
