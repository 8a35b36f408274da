"""Where the runs of a sweep are trained, if not on this machine: in jobs of Slurm or Ray."""

from __future__ import annotations

import re
from dataclasses import dataclass, fields

from resnests.errors import require, require_one_of

COMMON = ("name", "cpus", "gpus", "jobs")
SLURM = ("memory", "time", "partition", "account", "qos", "options", "setup")
OWN = {"slurm": (*SLURM, "runs_per_job", "grace", "detach"), "ray": ("address",)}
_ADDRESS = re.compile(r"auto|[\w.-]+:\d+")
_TIME = re.compile(r"(?:(\d+)d)?(?:(\d+)h)?(?:(\d+)m)?")
_SLURMS_TIME = re.compile(r"\d+(:\d+){0,2}|\d+-\d+(:\d+){0,2}")


@dataclass
class Cluster:
    """Holds the values of conf/cluster/slurm.yaml or ray.yaml, which say what they mean; a key of
    the other system is null, and all are where this machine trains.
    """

    name: str | None = None
    cpus: int | None = None
    gpus: float | None = None
    jobs: int | None = None
    memory: str | None = None
    time: str | None = None
    partition: str | None = None
    account: str | None = None
    qos: str | None = None
    options: list[str] | None = None
    setup: list[str] | None = None
    runs_per_job: int | None = None
    grace: int | None = None
    detach: bool | None = None
    address: str | None = None

    def __post_init__(self) -> None:
        if self.name is not None:
            require_one_of("cluster", self.name, tuple(OWN))
        mine = (*COMMON, *OWN[self.name]) if self.name else ()
        has_no = f"as cluster={self.name} has no such key" if self.name else "without a cluster"
        for item in fields(self):
            value = getattr(self, item.name)
            ok = item.name in mine or value is None
            require(ok, f"cluster.{item.name}", value, f"null, {has_no}")
        for key in ("cpus", "jobs", "runs_per_job"):
            value = getattr(self, key)
            require(value is None or value >= 1, f"cluster.{key}", value, "at least 1, or null")
        gpus = self.gpus or 0
        ok = 0 <= gpus <= 1 if self.name == "ray" else gpus >= 0 and gpus == int(gpus)
        expected = "0 to 1, the part of a GPU" if self.name == "ray" else "a number of GPUs"
        require(ok, "cluster.gpus", self.gpus, expected)
        require((self.grace or 0) >= 0, "cluster.grace", self.grace, "0 or more seconds")
        if self.name == "slurm":
            for key in ("runs_per_job", "grace", "detach"):
                require(getattr(self, key) is not None, f"cluster.{key}", "null", "a value")
        ok = self.name != "ray" or _ADDRESS.fullmatch(self.address or "") is not None
        require(ok, "cluster.address", self.address, "auto, or an address such as 10.0.0.1:6379")
        self.slurm_time()

    def slurm_time(self) -> str | None:
        """Return `time` as Slurm has it: minutes, or what was written in its own form."""
        if self.time is None or _SLURMS_TIME.fullmatch(self.time):
            return self.time
        found = _TIME.fullmatch(self.time)
        days, hours, minutes = (int(part or 0) for part in (found.groups() if found else "000"))
        total = (24 * days + hours) * 60 + minutes
        expected = "a time such as 30m, 4h or 1d12h, or in a form of Slurm's own"
        require(total > 0, "cluster.time", self.time, expected)
        return str(total)

    def gpus_of_a_job(self, device: str) -> float:
        """Return cluster.gpus, or where it is null what trainer.device needs."""
        return (0.0 if device == "cpu" else 1.0) if self.gpus is None else self.gpus
