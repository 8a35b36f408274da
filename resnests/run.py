"""Train one configuration, or with -m a grid of them: see python run.py --help."""

from __future__ import annotations

import sys

import hydra
from hydra.core.hydra_config import HydraConfig
from hydra.types import RunMode
from omegaconf import DictConfig

from resnests.config.compose import conf_dir, register
from resnests.config.schema import config_from
from resnests.errors import guarded

register()


@hydra.main(version_base="1.3", config_path=str(conf_dir()), config_name="config")
def main(tree: DictConfig) -> str | None:
    from resnests.sweep.drive import job, run_single

    if (
        HydraConfig.get().mode == RunMode.MULTIRUN
    ):  # called by a launcher, the sweeper having checked the grid
        return job(config_from(tree))
    sys.exit(guarded(lambda: run_single(config_from(tree))))


if __name__ == "__main__":
    main()
