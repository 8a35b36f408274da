"""Build what is minimised, and what is measured beside loss and accuracy."""

from __future__ import annotations

import math
from collections.abc import Callable
from functools import partial
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from resnests.config.parts import Loss, Metric
from resnests.config.schema import Config
from resnests.config.targets import accepts, build_callable, naming
from resnests.errors import UserError, require

Criterion = Callable[[Tensor, Tensor], Tensor]  # logits (B, K), labels (B,) -> mean over the batch
Measure = Callable[[Tensor, Tensor], float]  # logits (N, K), labels (N,) of a whole split


def build_loss(config: Config, labels: np.ndarray, device: torch.device) -> Criterion:
    """Return the loss of `config`, whose classes are weighed by the training `labels`; raise a
    UserError.
    """
    loss, classes = config.loss, config.dataset.class_count
    weight = _class_weights(loss, labels, classes)
    given: dict[str, Any] = {} if weight is None else {"weight": weight.to(device)}
    if loss.target is None:
        return partial(F.cross_entropy, label_smoothing=config.trainer.label_smoothing, **given)
    if given and not accepts("loss", loss, "weight"):
        raise UserError(f"loss.weight={loss.weight}: expected null, as {loss.target} takes none")
    made = build_callable("loss", loss, **given)
    if isinstance(made, nn.Module):
        if any(True for _ in made.parameters()):
            raise UserError(f"loss._target_={loss.target}: expected a loss without parameters")
        made.to(device)
    return made


def build_metrics(config: Config, device: torch.device) -> dict[str, Measure]:
    """Return what `metrics` names, by name; raise a UserError where it cannot be made."""
    made: dict[str, Measure] = {}
    for metric in config.metric_parts():
        named = {"num_classes": config.dataset.class_count}
        one = build_callable(f"metrics.{metric.name}", metric, named)
        if isinstance(one, nn.Module):
            one.to(device)
        made[metric.name] = partial(_measure, metric, one)
    return made


def focal(logits: Tensor, labels: Tensor, alpha: float, gamma: float) -> Tensor:
    """Return torchvision's sigmoid focal loss of each class, summed over classes: mean over the
    batch.
    """
    from torchvision.ops import sigmoid_focal_loss

    if labels.ndim == 1:
        labels = F.one_hot(labels, logits.shape[1])
    return sigmoid_focal_loss(logits, labels.to(logits.dtype), alpha, gamma).sum(1).mean()


def brier(logits: Tensor, labels: Tensor) -> Tensor:
    """Return the mean squared distance of the probabilities from the label, 0 to 2."""
    wanted = F.one_hot(labels, logits.shape[1])
    return (logits.softmax(1) - wanted).square().sum(1).mean()


def _class_weights(loss: Loss, labels: np.ndarray, classes: int) -> Tensor | None:
    if loss.weight is None:
        return None
    if loss.weight == "balanced":
        counts = np.bincount(labels, minlength=classes)
        ok, expected = counts.min() > 0, "null, as a class has no training image"
        require(bool(ok), "loss.weight", loss.weight, expected)
        return torch.from_numpy(len(labels) / (classes * counts)).float()
    expected = f"balanced, or a number for each of {classes} classes"
    require(len(loss.weight) == classes, "loss.weight", loss.weight, expected)
    return torch.tensor(loss.weight, dtype=torch.float32)


def _measure(metric: Metric, call: Callable[..., Any], logits: Tensor, labels: Tensor) -> float:
    """Return the number that `call` gives; raise a UserError where it fails or gives another thing.

    An object of torchmetrics keeps what it has seen, which is dropped.
    """
    what = f"metrics.{metric.name}._target_={metric.target}"
    with naming(what):
        value = call(logits, labels)
        if reset := getattr(call, "reset", None):
            reset()
        shape = tuple(getattr(value, "shape", ()))
        if math.prod(shape) != 1:
            raise UserError(f"{what}: expected a number, not values of shape {shape}")
        number = float(value)
    return number * (100 if metric.unit == "%" else 1)
