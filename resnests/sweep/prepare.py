"""Prepare what all runs of a sweep share, before the first of them starts. No torch in here."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Sequence
from dataclasses import asdict
from typing import Any

from resnests.config.schema import PARTS, Config, Init, config_dict
from resnests.data.splits import is_ready
from resnests.environment import python_path
from resnests.errors import UserError
from resnests.sweep.plan import Run


def prepare(runs: Sequence[Run]) -> None:
    """Do once for all runs what may take torch, before the first starts: each data set is fetched
    and checked, a user's own is read and described, and what users brought is tried.
    """
    datasets = {json.dumps(asdict(run.config.dataset)): run.config.dataset for run in runs}
    for text, dataset in datasets.items():
        if dataset.is_own or not is_ready(dataset):
            _run_module("resnests.data.splits", text)
    if runs and (logger := runs[0].config.logger):
        _warn_of_missing(logger)
    try_parts(runs)


def try_parts(runs: Sequence[Run]) -> None:
    """Try what users brought as the runs would; raise a UserError that names what fails."""
    tried = {}
    for run in runs:
        config = run.config
        parts = [getattr(config, name) for name in PARTS]
        own = any(part.target is not None for part in parts)
        if own or _is_particular(config) or config.dataset.source == "images":
            key = repr(
                [*parts, config.trainer, config.pipeline, config.task, config.metrics, config.init]
            )
            tried[key] = config_dict(config)
    if tried:
        _run_module("resnests.tasks.preflight", given=json.dumps(list(tried.values())))


def _is_particular(config: Config) -> bool:
    """Return whether a configuration without parts of the user's has what only a trial can tell."""
    optimizer = config.optimizer
    return bool(config.metrics or config.loss.weight or config.init != Init() or optimizer.groups)


def _warn_of_missing(logger: dict[str, Any]) -> None:
    """Warn of trackers that cannot work, before hours of training that they would miss."""
    from resnests.trackers.tracker import require_installed

    for name, values in logger.items():
        try:
            require_installed(name, values)
        except UserError as error:
            print(f"warning: {error}", file=sys.stderr)


def _run_module(name: str, *arguments: str, given: str = "") -> None:
    """Run it in a process of its own; raises a UserError with the line in which it complains."""
    done = subprocess.run(
        [sys.executable, "-m", name, *arguments],
        input=given,
        stderr=subprocess.PIPE,
        text=True,
        env=os.environ | {"PYTHONPATH": python_path()},
    )
    if done.returncode:
        said = done.stderr.strip().splitlines() or [f"{name} ended with status {done.returncode}"]
        raise UserError(said[-1].removeprefix("error: "))
