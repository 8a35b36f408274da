"""Define the sweeper: Hydra's basic one, whose grid is checked as a whole, launched as far as it is
not done, and launched again; or, for task=tune, the space of a search.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from typing import TYPE_CHECKING, Any

from hydra._internal.core_plugins.basic_sweeper import BasicSweeper
from hydra.core.override_parser.overrides_parser import OverridesParser
from hydra.core.override_parser.types import Override

if TYPE_CHECKING:
    from resnests.config.schema import Config
    from resnests.sweep.devices import Allocation
    from resnests.sweep.protocol import SweepFolder


class GridSweeper(BasicSweeper):
    """Leaves the exit status to resnests.run, as Hydra has no way to give one."""

    def __init__(self, params: dict[str, Any]) -> None:
        super().__init__(max_batch_size=None, params=params)

    def sweep(self, arguments: list[str]) -> None:
        from resnests.errors import exit_status_of
        from resnests.sweep import protocol

        protocol.exit_status = exit_status_of(lambda: self._sweep(arguments))

    def _sweep(self, arguments: list[str]) -> int:
        from resnests.config.compose import require_used
        from resnests.sweep.drive import run_sweep
        from resnests.sweep.executors.launcher import launch_jobs

        assert self.hydra_context is not None
        assert self.config is not None
        launcher: Any = self.launcher
        _require_flat(self.params)
        parser = OverridesParser.create(config_loader=self.hydra_context.config_loader)
        parsed = parser.parse_overrides([*self._parse_config(), *arguments])
        overrides = [*{override.get_key_element(): override for override in parsed}.values()]
        _require_one_experiment(overrides)
        if self.config.task == "tune":
            return self._search(overrides, arguments)
        _require_grid(overrides)
        jobs = self.split_arguments(overrides, max_batch_size=None)[0]

        def launch(numbers: list[int], allocation: Allocation, folder: SweepFolder) -> None:
            launch_jobs(launcher, jobs, numbers, allocation, folder)

        configs = self._configs(jobs)
        require_used(arguments, configs[0].task)
        return run_sweep(_limited(self._on_cluster(configs), launcher), launch)

    def _on_cluster(self, configs: list[Config]) -> list[Config]:
        """Return `configs`, in which a launcher that hands runs to Slurm is a cluster."""
        from resnests.config.submitit import LAUNCHERS, from_submitit
        from resnests.errors import require

        assert self.config is not None
        launcher: Any = self.launcher
        name = self.config.hydra.runtime.choices["hydra/launcher"]
        expected = f"one of {', '.join(LAUNCHERS)}, or cluster=slurm or cluster=ray"
        require(name in LAUNCHERS, "hydra/launcher", name, expected)
        if configs[0].cluster is not None:
            expected = f"none beside cluster={configs[0].cluster.name}"
            require(name == "joblib", "hydra/launcher", name, expected)
        if name != "submitit_slurm":
            return configs
        cluster = from_submitit(launcher.params)
        return [replace(config, cluster=cluster) for config in configs]

    def _search(self, overrides: list[Override], arguments: list[str]) -> int:
        """Search what the overrides leave open. Its trials are no jobs of Hydra's, as it feeds and
        ends them one by one.
        """
        from resnests.config.compose import require_used
        from resnests.environment import begin_dry_run
        from resnests.errors import require
        from resnests.search.plan import run_search
        from resnests.search.space import Space

        assert self.hydra_context is not None
        assert self.config is not None
        require_used(arguments, "tune")
        name = self.config.hydra.runtime.choices["hydra/launcher"]
        expected = "joblib for task=tune, which trains on its own host; the same command on other "
        expected += "hosts shares the study"
        require(name == "joblib", "hydra/launcher", name, expected)
        at_once = self.config.hydra.launcher.n_jobs
        expected = "-1 with task=tune, where devices.slots is the limit"
        require(at_once == -1, "hydra.launcher.n_jobs", at_once, expected)
        if self.config.sweep.dry_run:
            begin_dry_run()
        space = Space(overrides, self.hydra_context.config_loader, self.config)
        return run_search(space, arguments)

    def _configs(self, jobs: list[list[str]]) -> list[Config]:
        from resnests.config.grid import Grid
        from resnests.text import progress

        assert self.hydra_context is not None
        assert self.config is not None
        grid = Grid(self.hydra_context.config_loader, self.config, jobs)
        return [grid.config(job) for job in progress(jobs, "composing")]


def _limited(configs: list[Config], launcher: Any) -> list[Config]:
    """Return `configs` with no more runs at once than the launcher was told."""
    from resnests.errors import require

    options = getattr(launcher, "joblib", {})  # of joblib's launcher alone
    is_basic = type(launcher).__name__ == "BasicLauncher"  # of which Hydra has several copies
    given = 1 if is_basic else options.get("n_jobs", -1)
    expected = "at least 1, or -1 for as many as there are devices for"
    require(given == -1 or given >= 1, "hydra.launcher.n_jobs", given, expected)
    bundle = options.get("batch_size", "auto")
    expected = "auto, as each run is a job of its own"
    require(bundle in ("auto", "1"), "hydra.launcher.batch_size", bundle, expected)
    if given == -1:
        return configs
    expected = "-1 beside a cluster, where cluster.jobs is the limit"
    require(configs[0].cluster is None, "hydra.launcher.n_jobs", given, expected)
    slots = min(given, configs[0].devices.slots or given)
    return [replace(c, devices=replace(c.devices, slots=slots)) for c in configs]


def _require_flat(params: Mapping[str, Any]) -> None:
    from resnests.errors import UserError

    for key, value in params.items():
        for inner in value if isinstance(value, Mapping) else ():
            expected = f"its keys in one line each, such as {key}.{inner}: ..."
            raise UserError(f"hydra.sweeper.params.{key}={value}: expected {expected}")


def _require_one_experiment(overrides: list[Override]) -> None:
    from resnests.errors import UserError

    for override in overrides:
        if override.key_or_group == "experiment" and override.is_sweep_override():
            expected = "one experiment a command, as each brings a grid of its own"
            raise UserError(f"{override.input_line}: expected {expected}")


def _require_grid(overrides: list[Override]) -> None:
    from resnests.errors import UserError

    for override in overrides:
        if override.is_interval_sweep():
            expected = "values to train each of, or task=tune to search the interval"
            raise UserError(f"{override.input_line}: expected {expected}")
        if override.is_sweep_override() and not any(True for _ in override.sweep_string_iterator()):
            raise UserError(f"{override.input_line}: expected at least one value; it has none")
