"""Define what the processes of a sweep tell each other. No torch.

sweep     Hydra's own process: plans, submits jobs until all runs are done, prints the summary
  |       a folder (RESNESTS_SWEEP) with the specs of its jobs, and what jobs answer
job       a process of the launcher or of a queue, maybe on another host: starts a worker, waits
  |       for it, and records how it ended
  |       one line on the worker's standard input, whose end says stop
worker    trains: locks its directory, leases its device, answers with its exit status

    jobs.jsonl       a line for all jobs, then one for each number of a run; the sweep removes the
                     file to stop its jobs, and has a lock on it, so that they end with it (stop.py)
    active-<run>     there while a job trains run number <run>
    ended-<run>      how a job left it: a status of its record, or a word of scheduler.py
"""

from __future__ import annotations

import dataclasses
import json
import os
import sys
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from itertools import islice
from pathlib import Path
from typing import IO, Any

from resnests.config.schema import Config, config_dict, config_from
from resnests.environment import COMMAND, RUN, SWEEP, export_environment
from resnests.errors import USER_ERROR as USER_ERROR  # of a worker, too
from resnests.runs.directory import RunDirectory
from resnests.sweep.devices import Allocation
from resnests.sweep.plan import Run

# Exit statuses of a worker, beside 0 for a final status on record, 1 for a failure and USER_ERROR.
# NO_GRAPH asks for a new process that trains without a CUDA graph, DEVICE for one on another
# device, ELSEWHERE for one on another node of a cluster. UNREADABLE says that this node of a
# cluster cannot read what the run needs.
BUSY, NO_GRAPH, DEVICE, ELSEWHERE, UNREADABLE, INTERRUPTED = 75, 76, 77, 78, 79, 130

_ACTIVE, _ENDED = "active-", "ended-"

# What this process exits with once Hydra is through: it must return for users' callbacks to fire.
exit_status = 0


@dataclass(frozen=True)
class JobSpec:
    """Holds what to train, for one run: the very configuration that the sweep has checked."""

    config: dict[str, Any]
    replaces: str | None  # see sweep/plan.py
    allocation: dict[str, Any] | None  # that of the sweep's host; None where a job has its own
    local: bool  # whether the job runs on the host of the sweep

    def as_run(self, number: int) -> Run:
        """Return the run that this is about, which has this number in the sweep."""
        config = config_from(self.config)
        return Run(config, RunDirectory.of(config), number, replaces=self.replaces)


class SweepFolder:
    """Reads and writes the folder by which a sweep and its jobs, maybe on other hosts, know of each
    other.
    """

    def __init__(self, path: Path) -> None:
        self.path = path
        self.specs = path / "jobs.jsonl"

    @classmethod
    def of_this_job(cls) -> SweepFolder:
        """Return the folder of the sweep that this process works for."""
        return cls(Path(os.environ[SWEEP]))

    def write(self, runs: Sequence[Run], allocation: Allocation | None) -> None:
        """Write the specs of `runs`, for jobs on this host where there is an `allocation`."""
        shared = dataclasses.asdict(allocation) | {"aside": str(self.path)} if allocation else None
        by_number = {run.index: run for run in runs}
        with open(self.specs, "w") as lines:
            print(json.dumps({"local": allocation is not None, "allocation": shared}), file=lines)
            for number in range(max(by_number, default=-1) + 1):
                run = by_number.get(number)
                own = {"config": config_dict(run.config), "replaces": run.replaces} if run else {}
                print(json.dumps(own), file=lines)

    def environment(self) -> dict[str, str]:
        """Return the variables that jobs of this sweep must find."""
        export_environment()
        names = (COMMAND, "PYTHONPATH")
        return {SWEEP: str(self.path)} | {name: os.environ[name] for name in names}

    def read(self, number: int) -> JobSpec | None:
        """Return the spec of run `number`; None where the sweep is over or stops."""
        try:
            with open(self.specs) as lines:  # a job parses its own, as there may be thousands
                common = json.loads(next(lines))
                return JobSpec(**common, **json.loads(next(islice(lines, number, None))))
        except FileNotFoundError:
            return None

    def stop(self) -> None:
        """Have the jobs write their checkpoints and end, and those that wait not begin."""
        self.specs.unlink(missing_ok=True)

    @contextmanager
    def active(self, number: int) -> Iterator[None]:
        """Show that a job trains run `number`, for as long as the `with` block takes."""
        marker = self.path / f"{_ACTIVE}{number}"
        with suppress(OSError):  # the sweep may have ended
            marker.touch()
        try:
            yield
        finally:
            with suppress(OSError):
                marker.unlink()

    def end(self, number: int, outcome: str) -> None:
        """Tell the sweep how run `number` was left."""
        with suppress(OSError):
            (self.path / f"{_ENDED}{number}").write_text(outcome)

    def state(self) -> tuple[set[int], dict[int, str]]:
        """Return the numbers of the active runs, and those that were left with how."""
        names = os.listdir(self.path) if self.path.is_dir() else []
        ended = {}
        for name in names:
            if name.startswith(_ENDED):
                with suppress(OSError):
                    ended[int(name.removeprefix(_ENDED))] = (self.path / name).read_text()
        active = {int(n.removeprefix(_ACTIVE)) for n in names if n.startswith(_ACTIVE)}
        return active, {number: outcome for number, outcome in ended.items() if outcome}

    def outcome(self, number: int) -> str | None:
        """Return how run `number` was left, None where no job told."""
        try:
            return (self.path / f"{_ENDED}{number}").read_text() or None
        except OSError:
            return None

    def ended(self) -> set[int]:
        """Return the numbers of the runs that jobs left, without how."""
        names = os.listdir(self.path) if self.path.is_dir() else []
        return {int(n.removeprefix(_ENDED)) for n in names if n.startswith(_ENDED)}

    def forget(self, number: int) -> None:
        """Forget how run `number` was left, before it is submitted again."""
        (self.path / f"{_ENDED}{number}").unlink(missing_ok=True)


def is_job() -> bool:
    """Return whether this process works for a sweep of ours."""
    return SWEEP in os.environ and RUN in os.environ


def send_job(pipe: IO[bytes], config: Config, allocation: Allocation, replaces: str | None) -> None:
    """Send a worker what it trains, in one line."""
    shared = dataclasses.asdict(allocation)
    job = {"config": config_dict(config), "allocation": shared, "replaces": replaces}
    pipe.write(json.dumps(job).encode() + b"\n")
    pipe.flush()


def receive_job() -> tuple[Config, Allocation, str | None]:
    """Return the job in the first line of standard input; not a byte more is read."""
    line = b""
    while not line.endswith(b"\n"):
        byte = os.read(0, 1)
        if not byte:
            sys.exit("no job on standard input")
        line += byte
    job = json.loads(line)
    return config_from(job["config"]), Allocation(**job["allocation"]), job["replaces"]
