"""What the processes of a sweep say to each other, in which words. No torch.

sweep     in Hydra's own process: plans, launches until all is done, tells how it went
  |       RESNESTS_SWEEP: a file with the Orders, which is the token as well (stop.py);
  |       RESNESTS_RUN: which of its configurations
job       in a process of the launcher, maybe on another host: starts, watches and concludes
  |       one line on standard input, whose end says stop
worker    a training: owns its directory and its device; answers with its exit status
"""

from __future__ import annotations

import dataclasses
import json
import os
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import IO, Any

from resnests.config.schema import Config, config_dict, config_from
from resnests.errors import USER_ERROR as USER_ERROR  # said by a worker, too
from resnests.sweep.devices import Allocation

# Exit statuses of a worker, beside 0 for a final status on record, 1 for a failure and USER_ERROR.
BUSY, INTERRUPTED = 75, 130

RUN = "RESNESTS_RUN"
_SWEEP, _COMMAND = "RESNESTS_SWEEP", "RESNESTS_COMMAND"

# What this process exits with once Hydra is through: it must return for users' callbacks to fire.
exit_status = 0


@dataclass
class Orders:
    """What a sweep tells its jobs. They train the configurations that it has checked: composed
    anew in the job, an interpolation such as ${now:...} could come out otherwise.
    """

    local: bool  # whether jobs run on the host of the sweep, and by its allocation
    allocation: dict[str, Any] | None
    configs: list[dict[str, Any]]

    @classmethod
    def of(cls, configs: Sequence[Config], allocation: Allocation | None) -> Orders:
        shared = dataclasses.asdict(allocation) if allocation else None
        return cls(allocation is not None, shared, [config_dict(config) for config in configs])

    def announce(self, folder: Path) -> Path:
        """Write the orders into `folder` and set what processes started from now on inherit."""
        file = folder / "orders.json"
        file.write_text(json.dumps(dataclasses.asdict(self)))
        os.environ |= {_SWEEP: str(file), _COMMAND: command_line(), "PYTHONPATH": python_path()}
        return file

    @classmethod
    def receive(cls) -> tuple[Orders, Path] | None:
        """The orders and their file, the token; None where the sweep is over."""
        token = Path(os.environ[_SWEEP])
        try:
            return cls(**json.loads(token.read_text())), token
        except FileNotFoundError:
            return None


def is_ordered() -> bool:
    """Whether this process works for a sweep of ours."""
    return _SWEEP in os.environ and RUN in os.environ


def command_line() -> str:
    """What the user typed."""
    return os.environ.get(_COMMAND, " ".join(sys.argv))


def python_path() -> str:
    """Where other processes find this package."""
    here = str(Path(__file__).parents[2])
    return os.pathsep.join(filter(None, [here, os.environ.get("PYTHONPATH")]))


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
