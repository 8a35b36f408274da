"""Find which NVIDIA cards this process may use, by NVML. Imports no torch.

Whether torch can use them, too, is another question: see tryout.py.
"""

from __future__ import annotations

import os
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any

from resnests.errors import require
from resnests.sweep.mps import running_folder

DRIVER = Path("/proc/driver/nvidia/version")  # there as soon as the kernel has NVIDIA's module
AMD = Path("/dev/kfd")
VISIBLE = "CUDA_VISIBLE_DEVICES"
GB = 1e9


@dataclass(frozen=True)
class Card:
    """Describes a card, or a MIG slice of one, which is a card of its own to whoever uses it."""

    uuid: str
    model: str
    is_shareable: bool = True  # by several processes
    free_gb: float | None = None  # that other programs leave, None where NVML does not tell


def visible_cards(min_free_gb: float = 0.0) -> list[Card]:
    """Return the cards that CUDA_VISIBLE_DEVICES leaves, in its order, else in that of the PCI bus.

    Warns of each that it passes over, and where there is a driver, or an AMD card, but no card.
    """
    import pynvml

    visible = os.environ.get(VISIBLE)
    try:
        with _nvml():
            found = _found_cards()
            order = os.environ.get("CUDA_DEVICE_ORDER")
            names = {uuid: model for uuid, (model, _) in found.items()}
            chosen = select_visible(names, visible, order)
            cards = [
                _card(part, model, handle)
                for uuid in chosen
                for part, model, handle in _parts(uuid, *found[uuid])
            ]
    except pynvml.NVMLError_LibraryNotFound:
        if DRIVER.exists():
            wanted = "in a container NVIDIA_DRIVER_CAPABILITIES=compute,utility brings it"
            warn(f"no NVIDIA GPU is used, as libnvidia-ml.so.1 is not found ({wanted})")
        _warn_of_amd()
        return []
    except pynvml.NVMLError_DriverNotLoaded:
        _warn_of_amd()
        return []
    except pynvml.NVMLError as error:
        warn(f"no NVIDIA GPU is used, as its driver does not answer ({error})")
        return []
    usable = [card for card in cards if card is not None and _has_room(card, min_free_gb)]
    if not usable and visible not in ("", "-1"):  # which ask for none
        seen = f"{len(found)} GPU(s), {VISIBLE}={visible}"
        warn(f"no NVIDIA GPU is used, although there is a driver ({seen})")
    return usable


@contextmanager
def _nvml() -> Iterator[None]:
    import pynvml

    pynvml.nvmlInit()
    try:
        yield
    finally:
        pynvml.nvmlShutdown()


def _warn_of_amd() -> None:
    if AMD.exists():
        warn("AMD GPUs are not used: only NVIDIA's and Apple's are")


def _found_cards() -> dict[str, tuple[str, Any]]:
    """Return UUID -> (model, handle) of the cards that NVML can open, in the order of the PCI bus;
    after each that is divided its MIG slices.
    """
    import pynvml

    found = []
    for i in range(pynvml.nvmlDeviceGetCount()):
        try:
            handle = pynvml.nvmlDeviceGetHandleByIndex(i)
            bus = pynvml.nvmlDeviceGetPciInfo(handle).busId
            uuid, model = pynvml.nvmlDeviceGetUUID(handle), pynvml.nvmlDeviceGetName(handle)
        except pynvml.NVMLError as error:  # lost, or not given to this job
            warn(f"NVIDIA GPU {i} is not used: it cannot be opened ({error})")
        else:
            found.append((bus, uuid, model, handle))
    cards: dict[str, tuple[str, Any]] = {}
    for _, uuid, model, handle in sorted(found, key=lambda one: one[0]):
        cards[uuid] = (model, handle)
        cards |= {part: (name, one) for part, name, one in _slices(handle)}
    return cards


def _slices(handle: Any) -> list[tuple[str, str, Any]]:
    """Return (UUID, model, handle) of each MIG slice of a card."""
    import pynvml

    found = []
    with suppress(pynvml.NVMLError):  # a card that cannot be divided
        for k in range(pynvml.nvmlDeviceGetMaxMigDeviceCount(handle)):
            with suppress(pynvml.NVMLError):  # no slice of this number
                part = pynvml.nvmlDeviceGetMigDeviceHandleByIndex(handle, k)
                name = pynvml.nvmlDeviceGetName(part)
                found.append((pynvml.nvmlDeviceGetUUID(part), name, part))
    return found


def _parts(uuid: str, model: str, handle: Any) -> list[tuple[str, str, Any]]:
    """Return what of a card runs can have: the card, or each of its slices where it is divided."""
    if not _ask(lambda nvml: nvml.nvmlDeviceGetMigMode(handle)[0], False):
        return [(uuid, model, handle)]
    slices = _slices(handle)
    if not slices:
        warn(f"{uuid} is not used: it is to be divided (MIG), but has no slices")
    return slices


def _card(uuid: str, model: str, handle: Any) -> Card | None:
    """Return the card, None where nobody may compute on it."""
    import pynvml

    mode = _ask(lambda nvml: nvml.nvmlDeviceGetComputeMode(handle), pynvml.NVML_COMPUTEMODE_DEFAULT)
    if mode == pynvml.NVML_COMPUTEMODE_PROHIBITED:
        warn(f"{uuid} is not used: its compute mode is prohibited")
        return None
    shareable = mode == pynvml.NVML_COMPUTEMODE_DEFAULT or running_folder() is not None
    return Card(uuid, model, shareable, _free_gb(uuid, handle))


def _free_gb(uuid: str, handle: Any) -> float | None:
    """Return the GB that other programs leave; what runs of ours hold they give back."""
    from resnests.sweep.leases import leased_slots

    memory = _ask(lambda nvml: nvml.nvmlDeviceGetMemoryInfo(handle), None)
    if memory is None:
        return None
    if not leased_slots(uuid):
        return memory.free / GB
    processes = _ask(lambda nvml: nvml.nvmlDeviceGetComputeRunningProcesses(handle), [])
    others = sum(one.usedGpuMemory or 0 for one in processes if _is_foreign(one.pid))
    return (memory.total - others) / GB


def _is_foreign(pid: int) -> bool:
    """Return whether a process is seen to be no training of ours."""
    import psutil

    with suppress(psutil.Error, ValueError):
        return "resnests.sweep." not in " ".join(psutil.Process(pid).cmdline())
    return False


def _has_room(card: Card, min_free_gb: float) -> bool:
    if card.free_gb is None or card.free_gb >= min_free_gb:
        return True
    wanted = f"devices.min_free_gb={min_free_gb:g}"
    warn(f"{card.uuid} is not used: other programs leave {card.free_gb:.1f} GB of it ({wanted})")
    return False


def _ask(question: Callable[[Any], Any], otherwise: Any) -> Any:
    """Return what NVML answers, or `otherwise` where this card or driver does not know it."""
    import pynvml

    try:
        return question(pynvml)
    except pynvml.NVMLError:
        return otherwise


def nvml_complaint(uuid: str) -> str | None:
    """Return what NVML says against a card that it does not open any more, None where it opens."""
    import pynvml

    try:
        with _nvml():
            pynvml.nvmlDeviceGetHandleByUUID(uuid)
    except pynvml.NVMLError as error:
        return str(error)
    return None


def is_exclusive(uuid: str) -> bool:
    """Return whether only one process at a time can have the card."""
    import pynvml

    with suppress(pynvml.NVMLError), _nvml():
        mode = pynvml.nvmlDeviceGetComputeMode(pynvml.nvmlDeviceGetHandleByUUID(uuid))
        return mode == pynvml.NVML_COMPUTEMODE_EXCLUSIVE_PROCESS
    return False


@cache
def warn(line: str) -> None:
    """Print a warning once, however often it is seen."""
    print(f"warning: {line}", file=sys.stderr)


def select_visible(models: dict[str, str], visible: str | None, order: str | None) -> list[str]:
    """Return what CUDA makes of CUDA_VISIBLE_DEVICES: indices, UUID prefixes, MIG slices, up to the
    first not there.

    `models` are those of the UUIDs in the order of the PCI bus, `order` is CUDA_DEVICE_ORDER.
    Raises a UserError for a card named twice, a slice that is not there, and for indices into
    different models unless they follow that bus: which one CUDA finds fastest only CUDA knows.
    """
    whole = [uuid for uuid in models if not uuid.startswith("MIG-")]
    if visible is None:
        return whole
    chosen: list[str] = []
    for item in visible.replace(" ", "").split(","):
        if item.isdigit():
            same = order == "PCI_BUS_ID" or len({models[uuid] for uuid in whole}) < 2
            expected = "UUIDs, or CUDA_DEVICE_ORDER=PCI_BUS_ID beside it, as the GPUs differ"
            require(same, VISIBLE, visible, expected)
            matches = whole[int(item) :][:1]
        else:
            matches = [uuid for uuid in models if item and uuid.startswith(item)]
        if item.startswith("MIG-"):
            slices = [uuid for uuid in models if uuid.startswith("MIG-")]
            expected = f"one of the MIG slices there are ({', '.join(slices) or 'none'})"
            require(len(matches) == 1, VISIBLE, visible, expected)
        if len(matches) != 1:
            if chosen:
                warn(f"{VISIBLE}={visible}: what follows {chosen[-1]} is not used, as CUDA has it")
            break
        require(matches[0] not in chosen, VISIBLE, visible, "each GPU once")
        chosen += matches
    return chosen
