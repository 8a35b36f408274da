"""Check and print what a search is to do, before it starts. No torch, and no Optuna yet."""

from __future__ import annotations

import importlib.util

from resnests.environment import export_environment
from resnests.errors import UserError, require
from resnests.runs.directory import STUDY, study_folder
from resnests.search.space import Space, trial_configs
from resnests.sweep.devices import Allocation, allocate
from resnests.sweep.plan import known_memory, plan_runs
from resnests.sweep.prepare import prepare


def run_search(space: Space, words: list[str]) -> int:
    """Search `space`; return the exit status. `words` are those of the command line."""
    config = space.first
    expected = "false: delete the folder of the study, or begin another by tune.study=NAME"
    require(not config.trainer.overwrite, "trainer.overwrite", True, expected)
    runs = plan_runs(trial_configs(config))
    count = config.tune.trials * config.tune.seeds
    allocation = allocate(config, count, known_memory(runs))
    if config.sweep.dry_run:
        _print_plan(space, allocation)
    else:
        _require_optuna()
    prepare(space.ends)
    if config.sweep.dry_run:
        return 0
    from resnests.search.drive import search

    export_environment()
    return search(space, allocation, words)


def _print_plan(space: Space, allocation: Allocation) -> None:
    config, ended = space.first, 0
    if (study_folder(config) / STUDY).exists():
        _require_optuna()
        from resnests.search.study import ended_trials

        ended = ended_trials(space)
    for key, dim in space.dimensions.items():
        print(f"{key}={dim}")
    tune, left = config.tune, max(0, config.tune.trials - ended)
    at_once = f"{allocation.concurrent} runs at once on {allocation.kind}"
    print(
        f"{left} trials of {tune.seeds} seed(s) to run, {ended} have ended, "
        f"in {study_folder(config)}; {at_once}, {allocation.threads} thread(s) each"
    )


def _require_optuna() -> None:
    if importlib.util.find_spec("optuna") is None:
        raise UserError("task=tune: Optuna is not installed: pip install 'resnests[tune]'")
