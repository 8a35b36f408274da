"""Which devices there are, how many runs share them, and who holds them. Imports no torch.

A run leases its slots with locks that the operating system drops when the holder dies, however it
dies. They are named after the physical device and shared by all sweeps of the machine. A GPU has
`devices.runs_per_gpu` slots. A CPU slot is one core: a run of t threads leases t of them, so that
the threads of all runs together never exceed the cores.
"""

from __future__ import annotations

import os
import platform
import random
import socket
import tempfile
import time
from collections.abc import Callable
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path

import joblib
from filelock import FileLock, Timeout

from resnests.config.schema import Config
from resnests.errors import UserError, require

POLL = 0.2  # seconds between two tries for a slot


@dataclass(frozen=True)
class Allocation:
    """What the runs of a sweep share: `take` of the lock names in `slots` for each, `concurrent`
    runs at once.
    """

    kind: str  # cuda, mps or cpu
    slots: list[str]
    gpus: list[str]  # for cuda the UUID behind each slot
    take: int
    concurrent: int
    threads: int  # for each run, its data worker included


def allocate(config: Config, runs: int) -> Allocation:
    """How `runs` runs of `config.devices` and `config.trainer.device` share this machine; raises
    a UserError.
    """
    kind, gpus = _resolve(config.trainer.device)
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
    cores, wanted = joblib.cpu_count(), config.devices.slots
    if kind == "cpu":
        available = wanted or config.devices.cpu_slots or cores
        concurrent = min(available, runs)
        threads = max(1, cores // concurrent)
        # By number, as a batch system may give each of its jobs other cores. More runs than cores
        # must have been asked for: they then have a lock each.
        mine = (
            sorted(os.sched_getaffinity(0))[:cores]
            if hasattr(os, "sched_getaffinity")
            else range(cores)
        )
        more = max(cores, concurrent) - len(mine)
        names = [f"cpu-{i}" for i in mine] + [f"cpu-extra-{i}" for i in range(more)]
        return Allocation(kind, names, [], threads, concurrent, threads)
    names = gpus or [kind]
    per_device = -(-wanted // len(names)) if wanted else config.devices.runs_per_gpu
    pairs = [(f"{name}-{k}", name) for k in range(per_device) for name in names][: wanted or None]
    concurrent = min(len(pairs), runs)
    slots, owners = [slot for slot, _ in pairs], [name for _, name in pairs]
    return Allocation(
        kind, slots, owners if gpus else [], 1, concurrent, max(1, cores // concurrent)
    )


def _resolve(device: str) -> tuple[str, list[str]]:
    """(kind, UUIDs of the GPUs to use) of trainer.device; a UserError where there is no such
    device.
    """
    kind, _, index = device.partition(":")
    gpus = visible_gpus() if kind in ("auto", "cuda") else []
    apple = platform.system() == "Darwin" and platform.machine() == "arm64"
    if kind == "auto":
        kind = "cuda" if gpus else "mps" if apple else "cpu"
    if kind == "cuda":
        require(bool(gpus), "trainer.device", device, "auto or cpu, as no GPU is visible")
        if index:
            have = f"cuda:0 to cuda:{len(gpus) - 1}, the visible GPUs"
            require(int(index) < len(gpus), "trainer.device", device, have)
            gpus = [gpus[int(index)]]
    require(
        kind != "mps" or apple, "trainer.device", device, "auto or cpu, as this is no Apple silicon"
    )
    return kind, gpus


def visible_gpus() -> list[str]:
    """UUIDs of the NVIDIA GPUs that CUDA_VISIBLE_DEVICES leaves, in its order."""
    import pynvml

    try:
        pynvml.nvmlInit()
        handles = [pynvml.nvmlDeviceGetHandleByIndex(i) for i in range(pynvml.nvmlDeviceGetCount())]
        uuids = [str(pynvml.nvmlDeviceGetUUID(handle)) for handle in handles]
        pynvml.nvmlShutdown()
    except pynvml.NVMLError:
        return []
    return select_visible(uuids, os.environ.get("CUDA_VISIBLE_DEVICES"))


def select_visible(uuids: list[str], visible: str | None) -> list[str]:
    """What CUDA makes of CUDA_VISIBLE_DEVICES: indices, UUID prefixes, MIG slices, up to the
    first not there.
    """
    if visible is None:
        return uuids
    chosen = []
    for item in visible.replace(" ", "").split(","):
        matches = [uuids[int(item)]] if item.isdigit() and int(item) < len(uuids) else []
        if item.startswith("MIG-"):  # a slice of a GPU, which NVML lists below its GPU only
            matches = [item]
        elif not item.isdigit() and item:
            matches = [uuid for uuid in uuids if uuid.startswith(item)]
        if len(matches) != 1:
            break
        chosen += matches
    return chosen


class Lease:
    """Slots of an Allocation, held by this process until it ends or releases them."""

    def __init__(self, allocation: Allocation, indices: list[int], locks: ExitStack) -> None:
        self.allocation, self.indices, self._locks = allocation, indices, locks

    @property
    def names(self) -> list[str]:
        return [self.allocation.slots[i] for i in self.indices]

    def environment(self) -> dict[str, str]:
        """What must be set before torch is imported."""
        threads = str(self.allocation.threads)
        environment = {"OMP_NUM_THREADS": threads, "MKL_NUM_THREADS": threads}
        if self.allocation.kind == "cuda":
            environment["CUDA_VISIBLE_DEVICES"] = self.allocation.gpus[self.indices[0]]
        return environment

    def release(self) -> None:
        self._locks.close()


def lease(
    allocation: Allocation,
    holder: str,
    wait: bool = True,
    should_stop: Callable[[], bool] = lambda: False,
) -> Lease | None:
    """Lease `take` slots, all or none; None when asked to stop while waiting.

    Without `wait`, a UserError names who holds them. `holder` describes this run to others.
    """
    while not should_stop():
        held = _try_lease(allocation, holder)
        if held is not None:
            return held
        if not wait:
            holders = "; ".join(f"{name} by {_holder(name)}" for name in allocation.slots)
            raise UserError(
                f"devices.wait=false: {allocation.take} free slot(s) needed, but taken are {holders}"
            )
        time.sleep(POLL * random.uniform(0.5, 1.5))
    return None


def _try_lease(allocation: Allocation, holder: str) -> Lease | None:
    folder, indices = _lock_folder(), []
    with ExitStack() as locks:
        for index, name in enumerate(allocation.slots):
            lock = FileLock(folder / f"{name}.lock", mode=0o666)
            try:
                lock.acquire(blocking=False)
            except Timeout:
                continue
            locks.callback(lock.release)
            indices.append(index)
            if len(indices) == allocation.take:
                for taken in indices:
                    _write_holder(allocation.slots[taken], holder)
                return Lease(allocation, indices, locks.pop_all())
    return None


def _lock_folder() -> Path:
    """One folder for everybody on the machine: whatever TMPDIR says, a device is the same
    device.
    """
    base = Path("/tmp") if os.name == "posix" else Path(tempfile.gettempdir())
    folder = Path(os.environ.get("RESNESTS_LOCK_DIR", base / "resnests-slots"))
    if not folder.is_dir():
        folder.mkdir(parents=True, exist_ok=True)
        folder.chmod(0o1777)
    return folder


def _write_holder(name: str, holder: str) -> None:
    path = _lock_folder() / f"{name}.holder"
    try:
        path.write_text(f"process {os.getpid()} on {socket.gethostname()} ({holder})")
        path.chmod(0o666)
    except OSError:
        pass  # another user's file: the lock counts, the name is a courtesy


def _holder(name: str) -> str:
    try:
        return (_lock_folder() / f"{name}.holder").read_text()
    except OSError:
        return "an unknown process"
