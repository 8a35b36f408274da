"""Train one configuration, or with -m a grid of them: see python run.py --help."""

import sys

import hydra
from hydra.core.hydra_config import HydraConfig
from hydra.types import RunMode
from omegaconf import DictConfig

from resnests.command import guarded, register
from resnests.config import config_from

register()


@hydra.main(version_base="1.3", config_path="conf", config_name="config")
def main(tree: DictConfig) -> str | None:
    from resnests.sweep import job, run_single

    if HydraConfig.get().mode == RunMode.MULTIRUN:  # called by a launcher, the sweeper having checked the grid
        return job(config_from(tree))
    sys.exit(guarded(lambda: run_single(config_from(tree))))


if __name__ == "__main__":
    main()
