"""Find the devices, and decide how many runs share each. Imports no torch.

A GPU has `devices.runs_per_gpu` slots. A CPU slot is one core: a run of t threads leases t of them,
so that the threads of all runs together never exceed the cores. Slots are named after the physical
device, for all sweeps of the machine share them: see leases.py.
"""

from __future__ import annotations

import os
import platform
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cache
from pathlib import Path

import joblib

from resnests.config.schema import Config
from resnests.errors import require

# How many cores a job has, where no variable of Slurm's says it.
CORES = "RESNESTS_CORES"
SLURM_MEMORY = {  # in MiB, each for so many
    "SLURM_MEM_PER_NODE": None,
    "SLURM_MEM_PER_CPU": "SLURM_CPUS_ON_NODE",
    "SLURM_MEM_PER_GPU": "SLURM_GPUS_ON_NODE",
}


@dataclass(frozen=True)
class Allocation:
    """The devices that the runs of a sweep share: each run takes `take` of the lock names in
    `slots`, and `concurrent` runs are at work at once.
    """

    kind: str  # cuda, mps or cpu
    slots: list[str]
    gpus: list[str]  # for cuda the UUID behind each slot
    take: int
    concurrent: int
    threads: int  # for each run, its data worker included
    memory: float | None = None  # GB for each run, where a batch system gave so much

    def thread_environment(self) -> dict[str, str]:
        """Return the variables that must be set before torch is imported."""
        return {"OMP_NUM_THREADS": str(self.threads), "MKL_NUM_THREADS": str(self.threads)}


def allocate(config: Config, runs: int) -> Allocation:
    """Return how `runs` runs of `config` share this machine; raises
    a UserError.
    """
    kind, gpus = _resolve(config.trainer.device)
    names = gpus or [kind]
    require(
        config.trainer.precision != "tf32" or kind == "cuda",
        "trainer.precision",
        "tf32",
        f"fp32 or bf16 on device {kind}, as only CUDA devices have tf32",
    )
    graph = config.trainer.cuda_graph
    require(
        not graph or kind == "cuda", "trainer.cuda_graph", graph, f"null or false on device {kind}"
    )
    given = _given_cores()
    cores = min(given or joblib.cpu_count(), joblib.cpu_count())
    most = min(runs, config.devices.slots or runs)  # at once, whatever there is
    memory = _given_memory()
    if memory is not None:  # the smallest run takes more than half a GB
        most = min(most, max(1, int(memory)))
    if kind == "cpu":
        concurrent = min(most, config.devices.cpu_slots or cores)
        threads = max(1, cores // concurrent)
        slots, owners, take = _cpu_slots(cores, concurrent, given), [], threads
    else:
        # Every device gets its first run before any gets a second one.
        pairs = [
            (f"{name}-{k}", name) for k in range(config.devices.runs_per_gpu) for name in names
        ]
        slots, owners, take = [slot for slot, _ in pairs], [name for _, name in pairs], 1
        concurrent = min(most, len(slots))
        threads = max(1, cores // concurrent)
    share = None if memory is None else memory / concurrent
    return Allocation(kind, slots, owners if gpus else [], take, concurrent, threads, share)


def _given_cores() -> int | None:
    """Return how many cores a batch system gave this job; nothing need confine it to any."""
    for name in (CORES, "SLURM_CPUS_PER_TASK", "SLURM_CPUS_ON_NODE"):
        if (text := os.environ.get(name, "")).isdigit():
            return max(1, int(text))
    return None


def _given_memory() -> float | None:
    """Return how many GB Slurm gave this job on its node; None where it set no limit."""
    for name, each in SLURM_MEMORY.items():
        amount, times = os.environ.get(name, ""), os.environ.get(each, "") if each else "1"
        if amount.isdigit() and times.isdigit() and int(amount) * int(times) > 0:
            return int(amount) * int(times) * 2**20 / 1e9
    return None


def _cpu_slots(cores: int, concurrent: int, given: int | None) -> list[str]:
    """Slots by the number of the core, as a batch system may give each of its jobs other cores, or
    any of all.

    More runs than cores must have been asked for: they then have a slot each.
    """
    mine: Sequence[int] = range(cores)
    if hasattr(os, "sched_getaffinity"):
        mine = sorted(os.sched_getaffinity(0))[: None if given else cores]
    more = max(cores, concurrent) - len(mine)
    return [f"cpu-{i}" for i in mine] + [f"cpu-extra-{i}" for i in range(more)]


def _resolve(device: str) -> tuple[str, list[str]]:
    """Return (kind, UUIDs of the GPUs to use) of trainer.device; a UserError where there is no such
    device.

    cuda:N is the N-th of the visible GPUs.
    """
    kind, _, index = device.partition(":")
    gpus = visible_gpus() if kind in ("auto", "cuda") else []
    apple = platform.system() == "Darwin" and platform.machine() == "arm64"
    if kind == "auto":
        kind = "cuda" if gpus else "mps" if apple else "cpu"
    if kind == "cuda":
        require(bool(gpus), "trainer.device", device, "auto or cpu, as no NVIDIA GPU is visible")
        if index:
            have = f"cuda:0 to cuda:{len(gpus) - 1}, the visible GPUs"
            require(int(index) < len(gpus), "trainer.device", device, have)
            gpus = [gpus[int(index)]]
    require(
        kind != "mps" or apple, "trainer.device", device, "auto or cpu, as this is no Apple silicon"
    )
    return kind, gpus


def visible_gpus() -> list[str]:
    """UUIDs of the NVIDIA GPUs that CUDA_VISIBLE_DEVICES leaves, in its order, else in that of the
    PCI bus.

    Warns of a GPU that cannot be used, and where there is a driver, or an AMD card, but no GPU.
    """
    import pynvml

    visible = os.environ.get("CUDA_VISIBLE_DEVICES")
    try:
        pynvml.nvmlInit()
    except (pynvml.NVMLError_LibraryNotFound, pynvml.NVMLError_DriverNotLoaded):
        if Path("/dev/kfd").exists():
            _warn("AMD GPUs are not used: only NVIDIA's and Apple's are")
        return []
    except pynvml.NVMLError as error:
        _warn(f"no NVIDIA GPU is used, as its driver does not answer ({error})")
        return []
    try:
        found = _open_gpus()
    finally:
        pynvml.nvmlShutdown()
    chosen = select_visible(found, visible, os.environ.get("CUDA_DEVICE_ORDER"))
    if not chosen and visible not in ("", "-1"):  # which ask for none
        seen = f"{len(found)} usable GPU(s), CUDA_VISIBLE_DEVICES={visible}"
        _warn(f"no NVIDIA GPU is used, although there is a driver ({seen})")
    return chosen


def _open_gpus() -> dict[str, str]:
    """UUID -> model of the GPUs that NVML can open, in the order of the PCI bus."""
    import pynvml

    found = []
    for i in range(pynvml.nvmlDeviceGetCount()):
        try:
            handle = pynvml.nvmlDeviceGetHandleByIndex(i)
            bus = pynvml.nvmlDeviceGetPciInfo(handle).busId
            uuid, model = pynvml.nvmlDeviceGetUUID(handle), pynvml.nvmlDeviceGetName(handle)
        except pynvml.NVMLError as error:  # lost, or not given to this job
            _warn(f"NVIDIA GPU {i} is not used: it cannot be opened ({error})")
        else:
            found.append((bus, uuid, model))
    return {uuid: model for _, uuid, model in sorted(found)}


@cache
def _warn(line: str) -> None:
    """Print a warning once, however often it is seen."""
    print(f"warning: {line}", file=sys.stderr)


def select_visible(models: dict[str, str], visible: str | None, order: str | None) -> list[str]:
    """Return what CUDA makes of CUDA_VISIBLE_DEVICES: indices, UUID prefixes, MIG slices, up to the
    first not there.

    `models` are those of the UUIDs in the order of the PCI bus, `order` is CUDA_DEVICE_ORDER.
    Raises a UserError for indices into different models unless they follow that bus: which one
    CUDA finds fastest only CUDA knows.
    """
    uuids = list(models)
    if visible is None:
        return uuids
    chosen: list[str] = []
    for item in visible.replace(" ", "").split(","):
        matches = []
        if item.isdigit():
            same = order == "PCI_BUS_ID" or len(set(models.values())) < 2
            expected = "UUIDs, or CUDA_DEVICE_ORDER=PCI_BUS_ID beside it, as the GPUs differ"
            require(same, "CUDA_VISIBLE_DEVICES", visible, expected)
            matches = uuids[int(item) :][:1]
        elif item.startswith("MIG-"):  # a slice of a GPU, which NVML lists below its GPU only
            matches = [item]
        elif item:
            matches = [uuid for uuid in uuids if uuid.startswith(item)]
        if len(matches) != 1:
            break
        chosen += matches
    return chosen
