"""Hydra's basic sweeper, whose grid is checked as a whole, launched as far as it is not done,
and launched again.
"""

from __future__ import annotations

import re
import sys
from functools import cache
from typing import Any

from hydra._internal.core_plugins.basic_sweeper import BasicSweeper
from hydra.core.override_parser.overrides_parser import OverridesParser
from omegaconf import DictConfig, open_dict

LOCAL = (
    "BasicLauncher",
    "JoblibLauncher",
    "LocalLauncher",
)  # whose jobs run on the host of the sweep


class GridSweeper(BasicSweeper):
    """Ends the process with the sweep's exit status, which Hydra has no other way to give."""

    def __init__(self, params: dict[str, Any]) -> None:
        super().__init__(max_batch_size=None, params=params)

    def sweep(self, arguments: list[str]) -> None:
        from resnests.config.schema import Config, config_from
        from resnests.errors import guarded
        from resnests.sweep.drive import drive

        loader = self.hydra_context.config_loader
        parser = OverridesParser.create(config_loader=loader)
        overrides = parser.parse_overrides([*self._parse_config(), *arguments])
        jobs = self.split_arguments(overrides, max_batch_size=None)[0]

        @cache
        def compose(job: tuple[str, ...]) -> DictConfig:
            tree = loader.load_sweep_config(self.config, list(job))
            with open_dict(tree):
                del tree["hydra"]
            return tree

        def config_of(job: list[str]) -> Config:
            # Hydra takes 80 ms to compose a job: seeds that are plain numbers share what is
            # composed.
            seeds = [word for word in job if re.fullmatch(r"seed=\d+", word)]
            tree = compose(tuple(word for word in job if word not in seeds))
            for word in seeds:
                tree.seed = int(word.removeprefix("seed="))
            return config_from(tree)

        def launch(indices: list[int], allocation) -> None:
            if hasattr(self.launcher, "joblib"):
                # One run a job: joblib would bundle runs where it finds the first ones short.
                self.launcher.joblib |= {"n_jobs": allocation.concurrent, "batch_size": 1}
            for returned in self.launcher.launch([jobs[i] for i in indices], initial_job_idx=0):
                _ = returned.return_value  # raises what a job could not put on record

        remote = type(self.launcher).__name__ not in LOCAL
        sys.exit(guarded(lambda: drive([config_of(job) for job in jobs], launch, remote)))
