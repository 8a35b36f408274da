"""Train one configuration, or with -m a grid of them: see python run.py --help."""

from __future__ import annotations

import os
import platform
import re
import sys
from collections.abc import Mapping
from typing import Any, NoReturn

import hydra
from hydra.core.hydra_config import HydraConfig
from hydra.errors import CompactHydraException
from hydra.types import RunMode
from omegaconf import DictConfig
from yaml import MarkedYAMLError

from resnests import __version__
from resnests.config.compose import (
    conf_dir,
    hydras_own,
    in_one_line,
    register,
    require_used,
    require_words,
)
from resnests.config.flags import in_hydras_order
from resnests.config.schema import config_from
from resnests.config.submitit import LAUNCHERS, LOCAL
from resnests.environment import RUN
from resnests.errors import USER_ERROR, UserError, exit_status_of, is_unread, run_command_line
from resnests.runs.digests import with_digests
from resnests.runs.directory import RunDirectory
from resnests.sweep import protocol

register()
FULL_ERROR = "HYDRA_FULL_ERROR"


@hydra.main(version_base="1.3", config_path=str(conf_dir()), config_name="config")
def app(tree: DictConfig) -> str | None:
    """Train what Hydra composed, or do a job of a sweep; return the status on record.

    Hydra calls users' callbacks when it returns, so that it must not exit.
    """
    from resnests.sweep.drive import run_single
    from resnests.sweep.job import run_job

    if HydraConfig.get().mode == RunMode.MULTIRUN:
        if not protocol.is_job():
            _refuse_sweeper("hydra.sweeper._target_", HydraConfig.get().sweeper["_target_"])
        return run_job(int(os.environ[RUN]))
    launcher = HydraConfig.get().runtime.choices["hydra/launcher"]
    if launcher not in LOCAL:  # a cluster's, under whatever name
        instead = "-m" if launcher in LAUNCHERS else f"one of {', '.join(LOCAL)}"
        expected = f"{instead}, as Hydra trains a single run on this host; or cluster=slurm"
        sys.exit(f"error: hydra/launcher={launcher}: expected {expected}")
    _note_grid(HydraConfig.get().sweeper.get("params") or {})
    os.chdir(HydraConfig.get().runtime.cwd)  # whatever hydra.job.chdir says: see SpecLoader
    status = None

    def train() -> int:
        nonlocal status
        config = config_from(tree)
        require_used(HydraConfig.get().overrides.task, config.task)
        (config,) = with_digests([config])
        code = run_single(config)
        record = RunDirectory.of(config).record_or_none()
        status = record.status if record else None
        return code

    try:
        protocol.exit_status = exit_status_of(train)
    except BrokenPipeError:
        if not is_unread(1):
            raise
        sys.exit(1)  # as Hydra would print that the job failed
    return status


def _note_grid(params: Mapping[str, Any]) -> None:
    """Say that one run is not the grid of an experiment file, for whom forgot -m."""
    if params:
        grid = ", ".join(map(str, params))
        print(f"note: one run, without the grid of {grid}, which -m trains", file=sys.stderr)


def _refuse_sweeper(key: str, value: str) -> NoReturn:
    expected = "grid, which every sweep needs; to search, python run.py -m experiment=tune"
    sys.exit(f"error: {key}={value}: expected {expected}")


def _compose_and_run() -> None:
    """Hand the command line to Hydra; exit with one line for a sweeper that a file chooses and that
    is not there.
    """
    try:
        app()
    except CompactHydraException as error:
        missing = re.search("Could not find 'hydra/sweeper/(.+)'", str(error))
        if missing is None:
            raise
        _refuse_sweeper("hydra/sweeper", missing[1])
    except RuntimeError as error:
        unknown = re.match("Unknown plugin class : '(.+)'", str(error))
        if unknown is None:
            raise
        if "sweeper" in unknown[1].lower():
            _refuse_sweeper("hydra.sweeper._target_", unknown[1])
        raise UserError(f"{unknown[1]}: expected a plugin of Hydra that is installed") from None


def main() -> None:
    """Run the command line of run.py."""
    run_command_line(_main)


def _main() -> None:
    if platform.system() == "Windows":  # it lacks the locks and signals that sweeps rest on
        print("error: resnests trains on Linux and macOS; on Windows under WSL 2", file=sys.stderr)
        sys.exit(USER_ERROR)
    if "--version" in sys.argv[1:]:  # Hydra would print its own
        print(f"resnests {__version__}")
        return
    wants_all = os.environ.get(FULL_ERROR) == "1"
    os.environ[FULL_ERROR] = "1"  # or Hydra would say it itself, in several lines
    try:
        sys.argv[1:] = in_hydras_order(sys.argv[1:])
        for word in sys.argv[1:]:  # before Hydra composes: optuna's schema does not fit ours
            if word.startswith("hydra/sweeper=") and word != "hydra/sweeper=grid":
                _refuse_sweeper("hydra/sweeper", word.partition("=")[2])
        require_words(sys.argv[1:])
        _compose_and_run()
    except KeyboardInterrupt:  # before the sweep listens to signals
        sys.exit(protocol.INTERRUPTED)
    except SystemExit as end:
        if isinstance(end.code, str):  # said by a job, which has nowhere to say it
            print(end.code, file=sys.stderr)
            sys.exit(USER_ERROR)
        raise
    except UserError as error:
        print(f"error: {error}", file=sys.stderr)
        sys.exit(USER_ERROR)
    except (CompactHydraException, MarkedYAMLError) as error:  # no such key or choice, or no YAML
        if wants_all:
            raise
        print(f"error: {in_one_line(error)}", file=sys.stderr)
        sys.exit(USER_ERROR)
    except Exception as error:
        line = None if wants_all else hydras_own(error, sys.argv[1:])
        if line is None:
            raise
        print(f"error: {line}", file=sys.stderr)
        sys.exit(USER_ERROR)
    sys.exit(protocol.exit_status)


if __name__ == "__main__":
    main()
