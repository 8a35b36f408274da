"""Update rule and learning-rate schedule, from their piece of the configuration."""

from __future__ import annotations

import math
from collections.abc import Iterable
from typing import Any

import torch
from torch.nn import Parameter

from resnests.config.parts import Optimizer
from resnests.config.schedule import milestone_epochs
from resnests.config.targets import accepts, build
from resnests.errors import UserError


def build_optimizer(optimizer: Optimizer, parameters: Iterable[Parameter]) -> torch.optim.Optimizer:
    """Return the update rule. Weight decay applies to every parameter, as officially."""
    if optimizer.target is not None:
        return _own(optimizer, parameters)
    values: dict[str, Any] = {"lr": optimizer.lr, "weight_decay": optimizer.weight_decay}
    if optimizer.name == "sgd":
        values |= {"momentum": optimizer.momentum, "nesterov": optimizer.nesterov}
        return torch.optim.SGD(parameters, **values)
    values["betas"] = tuple(optimizer.betas or ())
    return torch.optim.AdamW(parameters, **values)


def learning_rate(
    optimizer: Optimizer, epoch: int, epochs: int, step: int = 0, steps: int = 1
) -> float:
    """Return the rate of `epoch` (from 1) of `epochs` in its `step` (from 0) of `steps`.

    It depends on these alone, so that resuming needs no state. The milestones come first, the
    cosine multiplies what they give, and the warm-up what both give.
    """
    passed = sum(epoch > end for end in milestone_epochs(optimizer.milestones, epochs))
    rate = optimizer.lr * optimizer.gamma**passed
    if optimizer.cosine:
        done = epoch - 1 + (step / steps if optimizer.per_step else 0)
        rate = rate * (1 + math.cos(math.pi * done / epochs)) / 2
    if optimizer.warmup:
        rate *= min(1.0, (epoch - 1 + (step + 1) / steps) / (optimizer.warmup * epochs))
    return rate


def set_learning_rate(optimizer: torch.optim.Optimizer, rate: float) -> None:
    """Set the rate of every group of parameters."""
    for group in optimizer.param_groups:
        group["lr"] = rate


def _own(optimizer: Optimizer, parameters: Iterable[Parameter]) -> torch.optim.Optimizer:
    """Return what optimizer._target_ builds, with those of our keys that are set."""
    ours = {
        "weight_decay": optimizer.weight_decay,
        "momentum": optimizer.momentum,
        "nesterov": optimizer.nesterov,
        "betas": optimizer.betas and tuple(optimizer.betas),
    }
    given: dict[str, Any] = {key: value for key, value in ours.items() if value is not None}
    for key, value in given.items():
        if not accepts("optimizer", optimizer, key):
            expected = f"null, as {optimizer.target} does not take it"
            raise UserError(f"optimizer.{key}={value}: expected {expected}")
    built = build("optimizer", optimizer, list(parameters), lr=optimizer.lr, **given)
    if not isinstance(built, torch.optim.Optimizer):
        what = f"optimizer._target_={optimizer.target}"
        raise UserError(f"{what}: expected a torch.optim.Optimizer, not {type(built).__name__}")
    return built
