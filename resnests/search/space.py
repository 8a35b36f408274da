"""Read what is to be searched, as Hydra's users write it, and compose what its values give.

    optimizer.lr=tag(log, interval(1e-3, 1))     any number in between, evenly over its logarithm
    trainer.batch_size=interval(16, 128)         a whole number, as both ends and the value are
    arch.width=range(16, 65, 16)                 every so many
    optimizer=sgd,adamw                          one of them

No torch, and no Optuna yet.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from hydra._internal.core_plugins.basic_sweeper import BasicSweeper
from hydra.core.config_loader import ConfigLoader
from hydra.core.override_parser.types import IntervalSweep, Override, RangeSweep
from hydra.errors import HydraException
from omegaconf import DictConfig, OmegaConf

from resnests.config.grid import Grid
from resnests.config.recipe import recipe_values
from resnests.config.schema import Config
from resnests.errors import UserError, require
from resnests.runs.digests import Digester
from resnests.runs.directory import RunDirectory, study_folder

Value = float | int | str
OF = " of "  # between a digest and the choice that brings it


@dataclass(frozen=True)
class Dimension:
    """Holds the values of one key: from `low` to `high`, or `choices` as they are typed."""

    low: float | int = 0
    high: float | int = 0
    step: int | None = None  # None: of floats, or any whole number
    log: bool = False
    choices: tuple[str, ...] = ()

    @property
    def ends(self) -> tuple[Value, ...]:
        """Return the values that show whether all of it makes sense."""
        return self.choices or (self.low, self.high)

    def __str__(self) -> str:
        if self.choices:
            return ",".join(self.choices)
        inside = f"interval({self.low}, {self.high})"
        if self.step:
            return f"{inside} by {self.step}"
        return f"tag(log, {inside})" if self.log else inside


def dimension(override: Override) -> Dimension:
    """Return the dimension that a sweep override means; raises a UserError."""
    value, line = override.value(), override.input_line

    def check(ok: bool, expected: str) -> None:
        if not ok:
            raise UserError(f"{line}: expected {expected}")

    check(not getattr(value, "shuffle", False), "no shuffle, as a sampler chooses")
    tags: set[str] = getattr(value, "tags", set())
    interval = isinstance(value, IntervalSweep)
    known = tags <= {"log"} if interval else not tags
    check(known, "no tag but log, and that of an interval: tag(log, interval(low, high))")
    if isinstance(value, IntervalSweep):
        low, high = value.start, value.end
        assert low is not None
        assert high is not None
        check(low < high, "interval(low, high) with low below high")
        check(not tags or low > 0, "an interval above 0, of which there are logarithms")
        if float(low).is_integer() and float(high).is_integer():  # Hydra has made floats of them
            low, high = int(low), int(high)
        return Dimension(low, high, log=bool(tags))
    if isinstance(value, RangeSweep) and isinstance(numbers := value.range(), range):
        check(len(numbers) > 0, "a range with something in it")
        first, last = sorted((numbers[0], numbers[-1]))
        return Dimension(first, last, step=abs(numbers.step))
    choices = tuple(dict.fromkeys(override.sweep_string_iterator()))
    check(bool(choices), "something to choose from")
    return Dimension(choices=choices)


def trial_configs(config: Config) -> list[Config]:
    """Return a configuration for each seed of a trial, in the folder of the study."""
    seeds = range(config.seed, config.seed + config.tune.seeds)
    folder = str(study_folder(config))
    return [dataclasses.replace(config, task="train", runs_dir=folder, seed=seed) for seed in seeds]


class Space:
    """Holds the dimensions by their keys, each checked at its ends, and what all trials share."""

    def __init__(
        self, overrides: Sequence[Override], loader: ConfigLoader, master: DictConfig
    ) -> None:
        """Take `overrides`, one for each key; raises a UserError."""
        fixed = [override for override in overrides if not override.is_sweep_override()]
        self.master = master
        self.fixed = BasicSweeper.split_arguments(fixed, None)[0][0]
        self.dimensions = {o.get_key_element(): dimension(o) for o in overrides if o not in fixed}
        if not self.dimensions:
            expected = "something to search, such as 'optimizer.lr=tag(log, interval(1e-3, 1))'"
            raise UserError(f"task=tune: expected {expected}")
        first = {key: dim.ends[0] for key, dim in self.dimensions.items()}
        last = {key: dim.ends[-1] for key, dim in self.dimensions.items()}
        self.digester = Digester()
        self.grid = Grid(loader, master, [self._words(first), self._words(last)])
        self.first = self.config(first)
        # Of each dimension by itself: all of its choices, or its two ends
        self.ends: list[Config] = []
        self.sources: dict[str, str] = {}  # what choices bring, and its digest
        for key in self.dimensions:
            self.dimensions[key] = self._checked(key, first)
        held_out = self.first.dataset.val_fraction
        expected = "a part of the training images, such as 0.1: the test set chooses nothing"
        require(held_out > 0, "dataset.val_fraction", held_out, expected)

    def config(self, params: Mapping[str, Value]) -> Config:
        """Return the configuration at a point.

        Raises a UserError where its values are none, or exclude each other.
        """
        try:
            return self.digester.with_digests(self.grid.config(self._words(params)))
        except HydraException as error:
            told = [str(e).splitlines()[0].rstrip(".") for e in (error, error.__cause__) if e]
            raise UserError(": ".join(told)) from error

    def setting(self) -> dict[str, Any]:
        """Return what two trials must share for their accuracies to be compared."""
        config = self.first
        values = recipe_values(config)
        for group in ("dataset", "arch", "variant"):
            values[group] = getattr(config, group).name
        values |= {"seed": config.seed, "tune.seeds": config.tune.seeds}
        values["tune.objective"] = config.tune.objective
        return values | self.sources | {key: str(dim) for key, dim in self.dimensions.items()}

    def _words(self, params: Mapping[str, Value]) -> list[str]:
        return [*self.fixed, *(f"{key}={value}" for key, value in params.items())]

    def _checked(self, key: str, first: Mapping[str, Value]) -> Dimension:
        """Return the dimension of `key`, with floats where that is what the key has."""
        dim, name = self.dimensions[key], key.lstrip("+")
        require(name != "seed", "seed", dim, "one seed; tune.seeds says how many from it on")
        if name.partition(".")[0] == "dataset" and name != "dataset.flip":
            expected = "one value, as trials are compared on the same images"
            require(False, name, dim, expected)
        ends = [self.config({**first, key: end}) for end in dim.ends]
        self.ends += (trial_configs(config)[0] for config in ends)
        for end, config in zip(dim.ends, ends, strict=True):
            brought = config.digests if dim.choices else {}
            self.sources |= {f"{what}{OF}{key}={end}": sha for what, sha in brought.items()}
        if len({RunDirectory.of(config).path for config in ends}) < len(dim.ends):
            expected = "values that change the numbers of a run, each in another way"
            require(False, name, dim, expected)
        value: Any = ends[0]
        for part in name.split("."):
            value = getattr(value, part, None)
        kinds = (value, OmegaConf.select(self.master, name))  # of what a _target_ takes: the latter
        if float in map(type, kinds) and not dim.choices and not dim.step:
            return dataclasses.replace(dim, low=float(dim.low), high=float(dim.high))
        return dim
