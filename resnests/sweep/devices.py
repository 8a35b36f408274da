"""Find the devices, and decide how many runs share each. Imports no torch.

A GPU has `devices.runs_per_gpu` slots. A CPU slot is one core: a run of t threads leases t of them,
so that the threads of all runs together never exceed the cores. Slots are named after the physical
device, for all sweeps of the machine share them: see leases.py.
"""

from __future__ import annotations

import os
import platform
from collections.abc import Sequence
from dataclasses import dataclass

import joblib

from resnests.config.schema import Config
from resnests.errors import require
from resnests.sweep.cards import VISIBLE, Card, visible_cards, warn
from resnests.sweep.mps import NOWHERE

# How many cores a job has, where no variable of Slurm's says it.
CORES = "RESNESTS_CORES"
SLURM_MEMORY = {  # in MiB, each for so many
    "SLURM_MEM_PER_NODE": None,
    "SLURM_MEM_PER_CPU": "SLURM_CPUS_ON_NODE",
    "SLURM_MEM_PER_GPU": "SLURM_GPUS_ON_NODE",
}
# What says that this process has a GPU, by a user or a batch system, and how it says the contrary.
PROMISES = {
    VISIBLE: ("", "-1", "NoDevFiles"),
    "SLURM_JOB_GPUS": ("",),
    "SLURM_GPUS_ON_NODE": ("", "0"),
}

EXCLUSIVE = "is in exclusive mode, where you must start nvidia-cuda-mps-control yourself"

Slot = tuple[str, str]  # the name of its lock, and the UUID of its card


@dataclass(frozen=True)
class Allocation:
    """Holds the devices that the runs of a sweep share: each run takes `take` of the lock names in
    `slots`, and `concurrent` runs are at work at once.
    """

    kind: str  # cuda, mps or cpu
    slots: list[str]
    gpus: list[str]  # for cuda the UUID behind each slot
    take: int
    concurrent: int
    threads: int  # for each run, its data worker included
    memory: float | None = None  # GB for each run, where a batch system gave so much
    aside: str = ""  # the folder that says which devices failed, see aside.py; "": none is kept
    mps: str = ""  # the folder of the MPS daemon that the runs share, see mps.py; "": none

    @property
    def devices(self) -> list[str]:
        """Return the device behind each slot."""
        return self.gpus or self.slots

    @property
    def shares_cards(self) -> bool:
        """Return whether there are more runs at once than cards."""
        return bool(self.gpus) and self.concurrent > len(set(self.gpus))

    @property
    def is_under_mps(self) -> bool:
        """Return whether the runs are clients of an MPS daemon."""
        return self.mps not in ("", NOWHERE)

    def thread_environment(self) -> dict[str, str]:
        """Return the variables that must be set before torch is imported."""
        return {"OMP_NUM_THREADS": str(self.threads), "MKL_NUM_THREADS": str(self.threads)}


def allocate(config: Config, runs: int, needs_gb: float | None = None) -> Allocation:
    """Return how `runs` runs of `config` share this machine; raise a UserError.

    `needs_gb` is what one of them is known to take on a GPU, None where nothing is known.
    """
    kind, cards = _resolve(config)
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
    wanted = f"null or false on device {kind}"
    require(not config.devices.mps or kind == "cuda", "devices.mps", True, wanted)
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
        per_gpu = config.devices.runs_per_gpu
        alone = [card.uuid for card in cards if not card.is_shareable]
        expected = f"null or false, as {' and '.join(alone)} {EXCLUSIVE}"
        require(not (config.devices.mps and alone and most > 1), "devices.mps", True, expected)
        pairs = _slots_of(cards or [Card(kind, kind)], per_gpu, needs_gb)
        slots, owners, take = [slot for slot, _ in pairs], [name for _, name in pairs], 1
        concurrent = min(most, len(slots))
        threads = max(1, cores // concurrent)
    share = None if memory is None else memory / concurrent
    return Allocation(kind, slots, owners if cards else [], take, concurrent, threads, share)


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
    """Return slots by the number of the core, as a batch system may give each of its jobs other
    cores, or any of all.

    More runs than cores must have been asked for: they then have a slot each.
    """
    mine: Sequence[int] = range(cores)
    if hasattr(os, "sched_getaffinity"):
        mine = sorted(os.sched_getaffinity(0))[: None if given else cores]
    more = max(cores, concurrent) - len(mine)
    return [f"cpu-{i}" for i in mine] + [f"cpu-extra-{i}" for i in range(more)]


def _resolve(config: Config) -> tuple[str, list[Card]]:
    """Return (kind, cards to use) of trainer.device; a UserError where there is no such device.

    cuda:N is the N-th of the visible GPUs. Who was promised a GPU gets one or hears that there is
    none: `auto` is the CPU only where nobody spoke of one.
    """
    device, min_free = config.trainer.device, config.devices.min_free_gb
    kind, _, index = device.partition(":")
    cards = visible_cards(min_free) if kind in ("auto", "cuda") else []
    apple = platform.system() == "Darwin" and platform.machine() == "arm64"
    if kind == "auto":
        told = {name: os.environ.get(name, "").strip() for name in PROMISES}
        promised = [f"{name}={said}" for name, said in told.items() if said not in PROMISES[name]]
        expected = f"a GPU, as {' and '.join(promised)}; trainer.device=cpu trains without one"
        require(bool(cards) or not promised, "trainer.device", device, expected)
        kind = "cuda" if cards else "mps" if apple else "cpu"
    if kind == "cuda":
        require(bool(cards), "trainer.device", device, "auto or cpu, as no NVIDIA GPU is usable")
        if index:
            have = f"cuda:0 to cuda:{len(cards) - 1}, the visible GPUs"
            require(int(index) < len(cards), "trainer.device", device, have)
            cards = [cards[int(index)]]
    require(
        kind != "mps" or apple, "trainer.device", device, "auto or cpu, as this is no Apple silicon"
    )
    return kind, cards


def _slots_of(cards: Sequence[Card], runs_per_gpu: int, needs_gb: float | None) -> list[Slot]:
    """Return the slots of `cards`: `runs_per_gpu` each, but no more than a card has room for.

    Every card gets its first run before any gets a second one.
    """
    room = {card.uuid: _room(card, runs_per_gpu, needs_gb) for card in cards}
    return [
        (f"{card.uuid}-{k}", card.uuid)
        for k in range(runs_per_gpu)
        for card in cards
        if k < room[card.uuid]
    ]


def _room(card: Card, wanted: int, needs_gb: float | None) -> int:
    """Return how many runs a card gets at once, with a warning where those are fewer."""
    if wanted > 1 and not card.is_shareable:
        warn(f"{card.uuid} gets one run at a time: its compute mode is exclusive")
        return 1
    fits = wanted
    if needs_gb and card.free_gb is not None:
        fits = max(1, int(card.free_gb / needs_gb))
    if fits < wanted:
        free = f"{card.free_gb:.0f} GB are free and such a run takes {needs_gb:.1f}"
        warn(f"{card.uuid} gets {fits} run(s) at a time, as {free}")
    return min(fits, wanted)
