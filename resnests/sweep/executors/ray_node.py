"""Train a run in a task of Ray, on whichever node it came to. No torch."""

from __future__ import annotations

import importlib
import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

from resnests.config.schema import config_from
from resnests.environment import JOB
from resnests.runs.directory import RunDirectory
from resnests.sweep.devices import CORES
from resnests.sweep.plan import Run
from resnests.sweep.process import run_on_host
from resnests.sweep.scheduler import REFUSED
from resnests.sweep.stop import Stop


def node_task() -> Callable[..., tuple[str, str, str]]:
    """Return what is done on a node: train a run, and return the node's name, how the run was left,
    and what the node lacks.

    A function within a function goes to the node as it is. Of one of a module Ray would send the
    name, and where the node cannot import it, nobody would learn which node that was.
    """
    refused = REFUSED

    def train(*given: Any) -> tuple[str, str, str]:
        from importlib import import_module
        from socket import gethostname

        try:
            work = import_module("resnests.sweep.executors.ray_node").train_on_node
        except Exception as error:  # of many kinds: an old Python, another version of the package
            said = str(error).partition("\n")[0]
            return gethostname(), refused, f"{type(error).__name__}: {said}"
        return gethostname(), *work(*given)

    return train


def train_on_node(
    given: dict[str, Any], replaces: str | None, folder: str, cores: int, stop_file: str
) -> tuple[str, str]:
    """Train one run in a process of Ray's, in what its task was given; return how it was left, and
    what this node lacks.
    """
    for place in (folder, stop_file):  # of a folder that is not mounted an empty one may be left
        if not os.path.exists(place):
            return REFUSED, f"{place} is not there"
    ray: Any = importlib.import_module("ray")
    os.chdir(folder)
    os.environ |= {JOB: ray.get_runtime_context().get_task_id(), CORES: str(cores)}
    config = config_from(given)
    run = Run(config, RunDirectory.of(config), replaces=replaces)
    with Stop(Path(stop_file)) as stop:
        return run_on_host(run, None, 1, stop), ""
