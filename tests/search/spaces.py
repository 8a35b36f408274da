"""Spaces as the command line composes them."""

from __future__ import annotations

from pathlib import Path

from helpers import REPOSITORY, TINY
from hydra import initialize_config_dir
from hydra.core.global_hydra import GlobalHydra
from hydra.core.override_parser.overrides_parser import OverridesParser
from hydra.types import RunMode

from resnests.config.compose import register
from resnests.search.space import Space

LR = "optimizer.lr=tag(log,interval(1e-3,1))"
DECAY = "optimizer.weight_decay=tag(log,interval(1e-5,1e-2))"


def make_space(folder: Path, *overrides: str) -> Space:
    """Return the space of `python run.py -m task=tune <overrides>` for tiny runs below `folder`."""
    words = ["task=tune", "dataset.val_fraction=0.25", *TINY, f"runs_dir={folder}", *overrides]
    register()
    with initialize_config_dir(str(REPOSITORY / "conf"), version_base="1.3"):
        loader = GlobalHydra.instance().config_loader()
        parsed = OverridesParser.create(config_loader=loader).parse_overrides(words)
        given = [*{override.get_key_element(): override for override in parsed}.values()]
        return Space(given, loader, loader.load_configuration("config", words, RunMode.MULTIRUN))
