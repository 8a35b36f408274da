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
from resnests.data.splits import is_ready, may_hold_out_none
from resnests.environment import PROGRESS, is_dry_run, python_path
from resnests.errors import UserError
from resnests.sweep.stop import ending_at_once


def prepare(configs: Sequence[Config]) -> None:
    """Do once for all runs what may take torch, before the first starts: each data set is fetched
    and checked, a user's own is read and described, and what users brought is tried: given weights,
    too, and whether so few images are to be held out that there are none.

    A dry run does as much of that as writes nothing: what would be fetched is passed over.
    """
    dry_run = is_dry_run()
    datasets = {_data_of(config): config.dataset for config in configs}
    missing = {data for data, d in datasets.items() if not d.is_own and not is_ready(d)}
    for data, dataset in datasets.items():
        is_read = dataset.is_own or data in missing or may_hold_out_none(dataset)
        if is_read and not (data in missing and dry_run):
            _run_module("resnests.data.splits", *data)
    if configs and (logger := configs[0].logger):
        _warn_of_missing(logger)
    tried = {}
    for config in configs:
        passed_over = dry_run and _data_of(config) in missing
        if _is_own(config) and not passed_over:
            tried[repr(_tried_values(config))] = config_dict(config)
    if tried:
        values = json.dumps(list(tried.values()))
        _run_module("resnests.tasks.preflight", given=values)


def _data_of(config: Config) -> tuple[str, str]:
    """Return the data set of `config` and its bound on memory, as resnests.data.splits takes
    them.
    """
    return json.dumps(asdict(config.dataset)), json.dumps(config.pipeline.memory_gb)


def _is_own(config: Config) -> bool:
    """Return whether a configuration has what only a trial can tell to be sound."""
    own = any(getattr(config, name).target is not None for name in PARTS)
    pipeline, loss = config.pipeline, config.loss
    asked = config.metrics, loss.weight, config.optimizer.groups, pipeline.augment, pipeline.mix
    more = config.optimizer.schedule is not None or config.init != Init()
    return own or any(asked) or more or config.task == "evaluate" or config.dataset.is_own


def _tried_values(config: Config) -> list[Any]:
    """Return all that a trial of `config` depends on."""
    given = config.weights and (config.weights, config.seed)  # whose classes are compared
    parts = [getattr(config, name) for name in PARTS]
    more = [config.trainer, config.pipeline, config.task, config.metrics, config.init, given]
    return parts + more


def _warn_of_missing(logger: dict[str, Any]) -> None:
    """Warn of trackers that cannot work, before hours of training that they would miss."""
    from resnests.trackers.tracker import require_installed

    for name, values in logger.items():
        try:
            require_installed(name, values)
        except UserError as error:
            print(f"warning: {error}", file=sys.stderr)


def _run_module(name: str, *arguments: str, given: str = "") -> None:
    """Run it in a process of its own, and print what it prints; raises a UserError with the line in
    which it complains. Its progress is shown on the standard error of this one.
    """
    terminal = os.dup(2)
    values = {"PYTHONPATH": python_path(), PROGRESS: str(terminal)}
    try:
        with ending_at_once():
            done = subprocess.run(
                [sys.executable, "-m", name, *arguments],
                input=given,
                capture_output=True,
                text=True,
                errors="backslashreplace",
                env=os.environ | values,
                pass_fds=[terminal],
            )
    finally:
        os.close(terminal)
    print(done.stdout, end="", flush=True)  # by us, who know when nobody reads it any more
    if done.returncode:
        said = done.stderr.strip().splitlines() or [f"{name} ended with status {done.returncode}"]
        raise UserError(said[-1].removeprefix("error: "))
