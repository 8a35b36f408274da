"""Build update rule and learning-rate schedule from their piece of the configuration."""

from __future__ import annotations

import math
from collections.abc import Iterable
from fnmatch import fnmatchcase
from typing import Any

import torch
from torch import Tensor, nn
from torch.optim.lr_scheduler import LRScheduler, ReduceLROnPlateau
from torch.optim.swa_utils import AveragedModel, get_ema_multi_avg_fn

from resnests.config.parts import Component, Optimizer, schedule_component
from resnests.config.schedule import milestone_epochs
from resnests.config.schema import Config
from resnests.config.targets import accepts, build, locate, naming
from resnests.errors import UserError, require

_Tensors = tuple[Tensor, ...] | list[Tensor]


def build_optimizer(optimizer: Optimizer, parameters: Iterable[Any]) -> torch.optim.Optimizer:
    """Return the update rule of `parameters`, or of groups of them; raise a UserError.

    Weight decay applies to every parameter, as officially, unless a group says otherwise.
    """
    built = _built(optimizer, parameters)
    for group in optimizer.groups:
        known = sorted({"match", *built.defaults})
        for key in group:
            expected = f"a key of the optimizer ({', '.join(known)})"
            require(key in known, f"optimizer.groups.{key}", group[key], expected)
    return built


def _built(optimizer: Optimizer, parameters: Iterable[Any]) -> torch.optim.Optimizer:
    if optimizer.target is not None:
        return _own(optimizer, parameters)
    values: dict[str, Any] = {"lr": optimizer.lr, "weight_decay": optimizer.weight_decay}
    if optimizer.name == "sgd":
        values |= {"momentum": optimizer.momentum, "nesterov": optimizer.nesterov}
        return torch.optim.SGD(parameters, **values)
    values["betas"] = tuple(optimizer.betas or ())
    return torch.optim.AdamW(parameters, **values)


def parameter_groups(optimizer: Optimizer, model: nn.Module) -> list[Any]:
    """Return what is trained of `model`: its parameters, or where they are not treated alike,
    groups of them as torch.optim takes them; raise a UserError.
    """
    named = {name: p for name, p in model.named_parameters() if p.requires_grad}
    if not optimizer.groups and optimizer.decay_norms:
        return list(named.values())
    found: dict[tuple[int, bool], dict[str, Any]] = {}
    for name, parameter in named.items():
        matches = (i for i, g in enumerate(optimizer.groups) if fnmatchcase(name, g["match"]))
        place = next(matches, -1)
        plain = parameter.ndim <= 1 and not optimizer.decay_norms
        given = dict(optimizer.groups[place]) if place >= 0 else {}
        given.pop("match", None)
        values = ({"weight_decay": 0.0} if plain else {}) | given
        # What the schedule gives is multiplied by it; torch keeps it in its state.
        values["lr_scale"] = values.get("lr", optimizer.lr) / optimizer.lr
        group = found.setdefault((place, plain), values | {"params": []})
        group["params"].append(parameter)
    for place, group in enumerate(optimizer.groups):
        ok = any(place == index for index, _ in found)
        expected = f"a pattern of trained parameters, such as {next(iter(named))}"
        require(ok, "optimizer.groups", group["match"], expected)
    return list(found.values())


def averaged_model(model: nn.Module, decay: float | None) -> AveragedModel | None:
    """Return a copy of `model` that is to be the running mean of its weights and statistics.

    Whole numbers, such as a count or the places in a table, have no mean: they are the model's.
    torch would round theirs down, so that 3 may become 2.
    """
    if decay is None:
        return None
    mean = get_ema_multi_avg_fn(decay)

    def update(averaged: _Tensors, now: _Tensors, count: Tensor | int) -> None:
        if averaged[0].is_floating_point() or averaged[0].is_complex():
            return mean(averaged, now, count)
        for mine, value in zip(averaged, now, strict=True):
            mine.copy_(value)

    return AveragedModel(model, multi_avg_fn=update, use_buffers=True)


def build_schedule(
    config: Config, optimizer: torch.optim.Optimizer, steps: int
) -> LRScheduler | None:
    """Return what sets the rates of an epoch of `steps`, None where learning_rate() does; raise a
    UserError.
    """
    part = config.optimizer.schedule_part()
    if part is None:
        return None
    own = [group["lr"] for group in optimizer.param_groups]
    named = {"epochs": config.trainer.epochs, "steps_per_epoch": steps}
    built = _scheduler(part, optimizer, named)
    now = [group["lr"] for group in optimizer.param_groups]
    # Those that set the rates themselves set all groups' alike
    ok = all(
        before == own[0] or math.isclose(now[0] * before, own[0] * after)
        for before, after in zip(own, now, strict=True)
    )
    expected = f"no lr in a group beside {part.target}, which sets the rates of all groups itself"
    require(ok, "optimizer.groups", config.optimizer.groups, expected)
    needed = config.trainer.epochs * (steps if config.optimizer.is_per_step else 1)
    total = getattr(built, "total_steps", needed)  # after which OneCycleLR raises
    expected = f"at least {needed}, as often as the schedule is stepped"
    require(total >= needed, "optimizer.schedule.total_steps", total, expected)
    return built


def _scheduler(
    part: Component, optimizer: torch.optim.Optimizer, named: dict[str, Any]
) -> LRScheduler:
    """Build a scheduler, and before it those that it is made of, as SequentialLR is; raise a
    UserError.
    """
    parts = part.args.get("schedulers")
    if isinstance(parts, list):
        inner = [_scheduler(schedule_component(one), optimizer, named) for one in parts]
        more = {key: value for key, value in part.args.items() if key != "schedulers"}
        make = locate("optimizer.schedule", part)
        with naming(f"optimizer.schedule._target_={part.target}"):
            built = make(optimizer=optimizer, schedulers=inner, **more)
    else:
        offered = {key: value for key, value in named.items() if key not in part.args}
        built = build("optimizer.schedule", part, optimizer, named=offered)
    ok = isinstance(built, LRScheduler) and not isinstance(built, ReduceLROnPlateau)
    expected = "a scheduler of torch.optim.lr_scheduler that needs no metric"
    require(ok, "optimizer.schedule._target_", part.target, expected)
    return built


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
    """Set the rate of every group of parameters, in proportion to its own."""
    for group in optimizer.param_groups:
        group["lr"] = rate * group.get("lr_scale", 1.0)


def _own(optimizer: Optimizer, parameters: Iterable[Any]) -> torch.optim.Optimizer:
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
