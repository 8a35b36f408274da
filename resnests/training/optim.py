"""Update rule and learning-rate schedule, from their piece of the configuration."""

from __future__ import annotations

import math
from collections.abc import Iterable

import torch
from torch.nn import Parameter

from resnests.config.schema import Optimizer


def build_optimizer(optimizer: Optimizer, parameters: Iterable[Parameter]) -> torch.optim.Optimizer:
    """Weight decay applies to every parameter, as in the official recipe."""
    if optimizer.name == "sgd":
        return torch.optim.SGD(
            parameters,
            lr=optimizer.lr,
            momentum=optimizer.momentum,
            nesterov=optimizer.nesterov,
            weight_decay=optimizer.weight_decay,
        )
    return torch.optim.AdamW(
        parameters,
        lr=optimizer.lr,
        betas=tuple(optimizer.betas),
        weight_decay=optimizer.weight_decay,
    )


def learning_rate(optimizer: Optimizer, epoch: int, epochs: int) -> float:
    """The rate of `epoch` (from 1) of `epochs`; a function of the epoch alone, so that resuming
    needs no state.
    """
    passed = sum(epoch > round(milestone * epochs) for milestone in optimizer.milestones)
    rate = optimizer.lr * optimizer.gamma**passed
    return rate * (1 + math.cos(math.pi * (epoch - 1) / epochs)) / 2 if optimizer.cosine else rate


def set_learning_rate(optimizer: torch.optim.Optimizer, rate: float) -> None:
    for group in optimizer.param_groups:
        group["lr"] = rate
