"""Define the settings of a cluster: Slurm or Ray, whose jobs train the runs of a sweep."""

from __future__ import annotations

import re
import shlex
from collections.abc import Sequence
from dataclasses import dataclass, fields
from typing import Any

from resnests.errors import require, require_one_of

COMMON = ("name", "cpus", "gpus", "jobs")
SLURM = ("memory", "time", "partition", "account", "qos", "options", "setup")
OWN = {"slurm": (*SLURM, "runs_per_job", "grace", "detach"), "ray": ("address",)}
_ADDRESS = re.compile(r"auto|[\w.-]+:\d+")
_TIME = re.compile(r"(?:(\d+)d)?(?:(\d+)h)?(?:(\d+)m)?")
_SLURMS_TIME = re.compile(r"\d+(:\d+){0,2}|\d+-\d+(:\d+){0,2}")
# Options of sbatch on which a sweep relies, with their short forms, and what is there instead.
_RESERVED = {
    "job-name": ("J", "the sweep finds its jobs by their name"),
    "array": ("a", "the sweep numbers its jobs; cluster.jobs and cluster.runs_per_job shape them"),
    "nodes": ("N", "a job is on one node; cluster.jobs says how many there are"),
    "ntasks": ("n", "a job is one task; cluster.cpus and cluster.runs_per_job give it more"),
    "output": ("o", "the sweep reads what jobs print"),
    "error": ("e", "the sweep reads what jobs print"),
    "open-mode": ("", "the sweep reads what jobs print"),
    "signal": ("", "cluster.grace says when a job is signalled"),
    "time": ("t", "cluster.time is the limit, of which cluster.grace is a part"),
    "dependency": ("d", "an array depends on others, by which cluster.jobs holds"),
    "parsable": ("", "the sweep sets it"),
    "quiet": ("Q", "the sweep reads the number of its jobs"),
    "wait": ("W", "cluster.detach says whether the sweep waits"),
    "wrap": ("", "cluster.setup has the commands that a job runs first"),
    "test-only": ("", "sweep.dry_run=true shows what would be trained"),
    "no-requeue": ("", "jobs queue again by themselves"),
    "clusters": ("M", "the sweep asks the Slurm of this host"),
}


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
    options: Any = None  # a list of words, or one string as a shell splits it
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
            self.options = _words(self.options)
            _require_unreserved(self.options)
        ok = self.name != "ray" or _ADDRESS.fullmatch(self.address or "") is not None
        require(ok, "cluster.address", self.address, "auto, or an address such as 10.0.0.1:6379")
        seconds = self._seconds()
        ok = seconds is None or (self.grace or 0) < seconds
        less = f"less than cluster.time={self.time}, which is {seconds} seconds"
        require(ok, "cluster.grace", self.grace, less)

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

    def _seconds(self) -> int | None:
        """Return `time` in seconds, None where there is no limit."""
        return slurm_seconds(self.slurm_time() or "")

    def gpus_of_a_job(self, device: str) -> float:
        """Return cluster.gpus, or where it is null what trainer.device needs."""
        return (0.0 if device == "cpu" else 1.0) if self.gpus is None else self.gpus


def slurm_seconds(time: str) -> int | None:
    """Return a time of Slurm's in seconds, None where it is no limit or in none of its forms."""
    if not _SLURMS_TIME.fullmatch(time):
        return None
    days, dash, rest = time.rpartition("-")
    parts = [int(part) for part in rest.split(":")]
    if dash:  # days-hours:minutes:seconds, from the left
        hours, minutes, seconds = (*parts, 0, 0)[:3]
    elif len(parts) < 3:  # minutes:seconds
        hours, (minutes, seconds) = 0, (*parts, 0)[:2]
    else:
        hours, minutes, seconds = parts
    total = ((24 * int(days or 0) + hours) * 60 + minutes) * 60 + seconds
    return total or None  # 0 is what Slurm has for no limit


def _words(options: Any) -> list[str]:
    """Return `options` as words: a string is split as a shell does."""
    expected = 'words such as ["--constraint=a100"], or one string as a shell takes them'
    try:
        words: list[Any] = shlex.split(options) if isinstance(options, str) else options or []
    except ValueError:  # a quotation that is not closed
        words = [None]
    ok = isinstance(words, list) and all(isinstance(word, str) for word in words)
    require(ok, "cluster.options", options, expected)
    return words


def _require_unreserved(options: Sequence[str]) -> None:
    """Refuse the options on which the sweep relies, abbreviated as sbatch takes them too."""
    for word in options:
        name = word[2:].partition("=")[0] if word.startswith("--") else ""
        for reserved, (short, instead) in _RESERVED.items():
            is_short = short and word.startswith(f"-{short}")
            is_long = name and reserved.startswith(name)
            expected = f"no --{reserved}, as {instead}"
            require(not (is_short or is_long), "cluster.options", word, expected)
