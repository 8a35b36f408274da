"""Define the settings of a search. The space that it searches is Hydra's own sweep syntax."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

from resnests.config.parts import is_positive
from resnests.errors import require, require_name, require_one_of

OBJECTIVES = ("best", "last")


def _target(path: str) -> Callable[[], dict[str, Any]]:
    return lambda: {"_target_": path}


@dataclass
class Tune:
    """Holds the options of task=tune; see docs/search.md."""

    study: str = "tune"  # the folder of the trials is <runs_dir>/study-<name>
    trials: int = 20  # that the study has in the end, whichever processes train them
    seeds: int = 1  # seed, seed + 1, ...: an objective is a mean over them
    objective: str = "best"  # epoch of the validation accuracy, or last
    warmup: float = 0.5  # fraction of the epochs after which a trial may be pruned
    hours: float | None = None  # after which no more trials start
    # import path and arguments, of Optuna or one's own
    sampler: dict[str, Any] = field(default_factory=_target("optuna.samplers.TPESampler"))
    pruner: dict[str, Any] = field(default_factory=_target("optuna.pruners.MedianPruner"))

    def __post_init__(self) -> None:
        require_name("tune.study", self.study)
        for key in ("trials", "seeds"):
            require(getattr(self, key) >= 1, f"tune.{key}", getattr(self, key), "at least 1")
        require_one_of("tune.objective", self.objective, OBJECTIVES)
        inside = 0 <= self.warmup <= 1
        require(inside, "tune.warmup", self.warmup, "a fraction of the epochs, 0 to 1")
        ok = self.hours is None or is_positive(self.hours)
        require(ok, "tune.hours", self.hours, "a positive number of hours, or null")
        for key in ("sampler", "pruner"):
            value = getattr(self, key)
            ok = isinstance(value.get("_target_"), str)
            require(ok, f"tune.{key}", value, "a _target_ and what it is called with")
