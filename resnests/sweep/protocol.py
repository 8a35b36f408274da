"""What the processes of a sweep say to each other, in which words. No torch.

sweep     in Hydra's own process: plans, launches until all is done, tells how it went
  |       RESNESTS_SWEEP: a file with the orders, which is the token as well (stop.py);
  |       RESNESTS_RUN: which of its configurations
job       in a process of the launcher, maybe on another host: starts (or has started: forking.py),
  |       watches and concludes
  |       one line on standard input, whose end says stop
worker    a training: owns its directory and its device; answers with its exit status
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
from resnests.environment import COMMAND as COMMAND
from resnests.environment import JOB as JOB
from resnests.environment import RUN as RUN
from resnests.environment import SWEEP
from resnests.environment import command_line as command_line
from resnests.environment import python_path as python_path
from resnests.errors import USER_ERROR as USER_ERROR  # said by a worker, too
from resnests.sweep.devices import Allocation

# Exit statuses of a worker, beside 0 for a final status on record, 1 for a failure and USER_ERROR.
# NO_GRAPH asks for a new process that trains without a CUDA graph.
BUSY, NO_GRAPH, INTERRUPTED = 75, 76, 130

_MARK = "begun-"

# What this process exits with once Hydra is through: it must return for users' callbacks to fire.
exit_status = 0


@dataclass
class Order:
    """What a sweep tells one of its jobs. It trains the configuration that the sweep has checked:
    composed anew in the job, an interpolation such as ${now:...} could come out otherwise.
    """

    local: bool  # whether jobs run on the host of the sweep, and by its allocation
    allocation: dict[str, Any] | None
    config: dict[str, Any]

    @classmethod
    def receive(cls, index: int) -> tuple[Order, Path] | None:
        """The order for configuration `index`, and the file of all, the token; None where the
        sweep is over.
        """
        token = token_path()
        try:
            with open(token) as lines:  # of which a job parses its own, as there may be thousands
                common = json.loads(next(lines))
                return cls(**common, config=json.loads(next(islice(lines, index, None)))), token
        except FileNotFoundError:
            return None


def announce(configs: Sequence[Config], allocation: Allocation | None, folder: Path) -> Path:
    """Write the orders into `folder` and set what processes started from now on inherit."""
    file = folder / "orders.jsonl"
    shared = dataclasses.asdict(allocation) if allocation else None
    with open(file, "w") as lines:
        print(json.dumps({"local": allocation is not None, "allocation": shared}), file=lines)
        for config in configs:
            print(json.dumps(config_dict(config)), file=lines)
    os.environ[SWEEP] = str(file)
    tell_children()
    return file


def tell_children() -> None:
    """Set what processes started from now on put on record, and where they find this package."""
    os.environ |= {COMMAND: command_line(), "PYTHONPATH": python_path()}


def token_path() -> Path:
    """The file with the orders of the sweep that this process works for."""
    return Path(os.environ[SWEEP])


def environment() -> dict[str, str]:
    """What jobs of the sweep that was announced last must find, where they do not inherit it."""
    return {name: os.environ[name] for name in (SWEEP, COMMAND, "PYTHONPATH")}


def begun(folder: Path) -> set[int]:
    """The configurations for which a job is at work, of the sweep with its orders in `folder`."""
    names = os.listdir(folder) if folder.is_dir() else []
    return {int(name.removeprefix(_MARK)) for name in names if name.startswith(_MARK)}


@contextmanager
def at_work(token: Path, index: int) -> Iterator[None]:
    """Shows in the folder of the token that a job is at work; what watches need look there only."""
    mark = token.with_name(f"{_MARK}{index}")
    with suppress(OSError):  # the sweep may have ended
        mark.touch()
    try:
        yield
    finally:
        with suppress(OSError):
            mark.unlink()


def is_ordered() -> bool:
    """Whether this process works for a sweep of ours."""
    return SWEEP in os.environ and RUN in os.environ


def send_job(pipe: IO[bytes], config: Config, allocation: Allocation) -> None:
    job = {"config": config_dict(config), "allocation": dataclasses.asdict(allocation)}
    pipe.write(json.dumps(job).encode() + b"\n")
    pipe.flush()


def receive_job() -> tuple[Config, Allocation]:
    """The job in the first line of standard input; not a byte more is read."""
    line = b""
    while not line.endswith(b"\n"):
        byte = os.read(0, 1)
        if not byte:
            sys.exit("no job on standard input")
        line += byte
    job = json.loads(line)
    return config_from(job["config"]), Allocation(**job["allocation"])
