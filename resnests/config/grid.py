"""Compose the configurations of a grid, each exactly as Hydra does, and what they share only once.

Hydra takes 40 to 80 ms for one: above all for the choices of groups, so that those are kept. Its
own function then sets the values in a copy. Where no value refers to another one, a section
(optimizer, trainer, ...) depends on nothing but the values set in it, and is built and checked once
for all configurations in which they are the same.
"""

from __future__ import annotations

import copy
import re
from collections.abc import Callable, Sequence
from dataclasses import fields
from datetime import datetime
from functools import cache, lru_cache
from typing import Any

from hydra._internal.config_loader_impl import ConfigLoaderImpl
from hydra.core.config_loader import ConfigLoader
from hydra.core.hydra_config import HydraConfig
from hydra.core.override_parser.overrides_parser import OverridesParser
from hydra.errors import HydraException
from omegaconf import DictConfig, OmegaConf, open_dict

from resnests.config.schema import Config, config_from
from resnests.errors import UserError

_SEED = re.compile(r"seed=(\d+)")
_SEED_KEY = re.compile(r"[+~]*seed(=|$)")
_REFERS = re.compile(r"\$\{(?!oc\.env:)")  # to another value; the environment stays what it is


class Grid:
    """Composes `jobs`, lists of overrides, upon the configuration `master` of the sweep.

    Plain seeds are no part of what `${hydra:...}` tells of the overrides: runs that differ in
    nothing else share it.
    """

    def __init__(
        self, loader: ConfigLoader, master: DictConfig, jobs: Sequence[Sequence[str]]
    ) -> None:
        self.loader, self.master = loader, master
        # What all set is no variation; it may be needed to make sense of what varies.
        self.fixed = set(jobs[0]).intersection(*jobs)
        self.parse = cache(OverridesParser.create().parse_override)
        self.is_choice = cache(self._is_choice)
        self.is_group = cache(self._is_group)
        self.compose = lru_cache(maxsize=64)(self._compose)
        self.base = cache(self._base)
        self.section = cache(self._section)
        # ${now:...} means the same in all of them
        OmegaConf.register_new_resolver("now", datetime.now().strftime, replace=True)

    def config(self, job: Sequence[str]) -> Config:
        """Return the checked configuration of one job; raise a UserError, or Hydra's own."""
        seeds = [word for word in job if _SEED.fullmatch(word)]
        words = tuple(word for word in job if word not in seeds)
        if any(_SEED_KEY.match(word) for word in words):  # the last one wins, in their order
            seeds, words = [], tuple(job)
        choices = tuple(filter(self.is_choice, words))
        values = tuple(word for word in words if word not in choices)
        tree, text = self.base(choices)
        text += " ".join(values)
        if "${hydra:" in text:
            tree, HydraConfig.instance().cfg = self.compose(words)
            return self._set(tree, (), seeds)
        if _REFERS.search(text):
            return self._set(tree, values, seeds)
        try:
            return self._assembled(choices, values, seeds)
        except (HydraException, UserError):  # what one section lacks another may bring
            return self._set(tree, values, seeds)

    def _assembled(
        self, choices: tuple[str, ...], values: tuple[str, ...], seeds: list[str]
    ) -> Config:
        fixed = tuple(word for word in values if word in self.fixed)
        sections: dict[str, tuple[str, ...]] = {}
        for word in values:
            if word not in self.fixed:
                name = self.parse(word).key_or_group.partition(".")[0]
                sections[name] = (*sections.get(name, ()), word)
        common = self.section(choices, fixed)
        built = {item.name: getattr(common, item.name) for item in fields(Config)}
        for name, varied in sections.items():
            those = tuple(word for word in values if word in self.fixed or word in varied)
            built[name] = getattr(self.section(choices, those), name)
        for word in seeds:
            built["seed"] = int(word.removeprefix("seed="))
        return Config(**built)

    def _section(self, choices: tuple[str, ...], values: tuple[str, ...]) -> Config:
        return self._set(self.base(choices)[0], values, [])

    def _set(self, tree: DictConfig, values: tuple[str, ...], seeds: list[str]) -> Config:
        """Return the configuration of `tree` with `values` and `seeds`."""
        tree = copy.deepcopy(tree)
        ConfigLoaderImpl._apply_overrides_to_config([self.parse(word) for word in values], tree)
        for word in seeds:
            tree.seed = int(word.removeprefix("seed="))
        return config_from(tree)

    def _base(self, choices: tuple[str, ...]) -> tuple[DictConfig, str]:
        """Return what Hydra composes of `choices` alone, and as text."""
        tree, _ = self.compose(choices)
        return tree, OmegaConf.to_yaml(tree)

    def _compose(self, words: tuple[str, ...]) -> tuple[DictConfig, Any]:
        """Return what Hydra composes, and what ${hydra:...} reads."""
        tree = self.loader.load_sweep_config(self.master, list(words))
        for part in ("launcher", "sweeper"):
            self._require_same(part, tree, words)
        HydraConfig.instance().set_config(tree)
        with open_dict(tree):
            del tree["hydra"]
        return tree, HydraConfig.instance().cfg

    def _require_same(self, part: str, tree: DictConfig, words: tuple[str, ...]) -> None:
        """Raise a UserError where a file that `words` choose brings a launcher or sweeper.

        The one of the command is at work by then, and a file's would be ignored.
        """
        own, given = tree.hydra, self.master.hydra
        key = f"hydra/{part}"
        name, present = (node.runtime.choices[key] for node in (own, given))
        values: list[Any] = [OmegaConf.to_container(node[part]) for node in (own, given)]
        for value in values:
            value.pop("params", None)  # the grid of an experiment
        if name == present and values[0] == values[1]:
            return
        expected = f"{key}={name} and its keys on the command line, where they hold for all runs"
        if name == "submitit_slurm":
            expected += "; or cluster=slurm"
        raise UserError(f"{' '.join(words)}: brings hydra.{part} in its file: expected {expected}")

    def _is_choice(self, word: str) -> bool:
        """Return whether `word` is about the defaults list or Hydra itself, not a value to set."""
        override = self.parse(word)
        if override.is_hydra_override() or override.package is not None:
            return True
        return not isinstance(override.value(), dict) and self.is_group(override.key_or_group)

    def _is_group(self, key: str) -> bool:
        search: Callable[..., list[str]] = self.loader.get_group_options
        given = OmegaConf.to_container(self.master.hydra.overrides.hydra)
        name = self.master.hydra.job.config_name
        return bool(search(key, config_name=name, overrides=given))
