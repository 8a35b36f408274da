"""Define the pieces of a configuration that a user may bring: data set, network, head, optimizer.

A piece of one's own names a callable by its import path, `_target_`, as Hydra's users know it; all
keys of its YAML that are not listed here are what the callable is given (`args`).
"""

from __future__ import annotations

import math
import re
from dataclasses import dataclass, field
from typing import Any

from resnests.errors import expanded, require, require_name, require_one_of

SOURCES = ("cifar10", "cifar100", "fashion_mnist", "kmnist", "svhn", "digits", "images")
HEADS = ("standard", "resnest", "bn_resnest", "a_resnest")  # of residual networks
OPTIMIZERS = ("sgd", "adamw")


def unhashed(default: Any) -> Any:
    """Declare a field that does not change the numbers of a run: no part of its identity."""
    return field(default=default, metadata={"unhashed": True})


def is_positive(value: float) -> bool:
    return math.isfinite(value) and value > 0


@dataclass(kw_only=True)
class Component:
    """Holds what all components have. Its own values hold where there is no `_target_`."""

    name: str
    _target_: str | None = None  # import path of a callable
    args: dict[str, Any] = field(default_factory=dict)  # what it is called with

    @property
    def target(self) -> str | None:
        return self._target_


@dataclass(kw_only=True)
class Dataset(Component):
    """Describes a data set: splits of uint8 images with labels.

    `_target_(**args)`, with `root` too where it takes one, returns {"train": (images, labels),
    "test": (images, labels)}: images uint8 (N, H, W, 3), (N, H, W, 1) or (N, H, W), labels (N,).
    It may add "classes": their names. A `size` is an argument of such a callable, as all keys are
    that are not listed here.
    """

    source: str | None = None  # who reads the files: one of SOURCES
    num_classes: int | None = None  # null: counted, of data of one's own
    mean: list[float] | None = None  # per channel, of images scaled to [0, 1]; null: measured
    std: list[float] | None = None
    flip: bool = True  # whether a mirrored image keeps its label
    # only so many images: the first, or as many of each class where the data are one's own
    train_limit: int | None = None
    test_limit: int | None = None
    val_fraction: float = 0.0  # stratified part of the training images that is held out
    # side of the square that images are scaled and cropped to; null: they stay as they are
    size: int | None = None
    root: str = unhashed("data")  # where the files are, or are downloaded to
    download: bool = unhashed(True)  # false: fail where they are missing

    @property
    def is_own(self) -> bool:
        """Return whether the images are a user's, of which nobody has a checksum."""
        return self.target is not None or self.source == "images"

    @property
    def class_count(self) -> int:
        """Return the number of classes, once they are counted."""
        assert self.num_classes is not None
        return self.num_classes

    def __post_init__(self) -> None:
        self.root = expanded("dataset.root", self.root)
        require_name("dataset.name", self.name)
        if self.target is None:
            require_one_of("dataset.source", self.source, SOURCES)
        else:
            require(self.source is None, "dataset.source", self.source, "null beside a _target_")
        ok = self.is_own if self.num_classes is None else self.num_classes >= 2
        expected = "at least 2 (null, to count them, is for images of one's own)"
        require(ok, "dataset.num_classes", self.num_classes, expected)
        ok = self.size is None or self.size >= 1
        require(ok, "dataset.size", self.size, "at least 1 pixel, or null")
        for key, values in (("mean", self.mean), ("std", self.std)):
            expected = "three numbers, one per channel, or null to measure both"
            ok = (self.mean is None) == (self.std is None)
            ok = ok and (values is None or len(values) == 3)
            require(ok, f"dataset.{key}", values, expected)
            ok = all(map(math.isfinite if key == "mean" else is_positive, values or []))
            kind = "finite" if key == "mean" else "positive"
            require(ok, f"dataset.{key}", values, f"{kind} numbers")
        for key, limit in (("train_limit", self.train_limit), ("test_limit", self.test_limit)):
            expected = "at least 1, or null for all images"
            require(limit is None or limit >= 1, f"dataset.{key}", limit, expected)
        expected = "a path; . is the folder of the command"
        require(self.root != "", "dataset.root", self.root, expected)
        inside = 0 <= self.val_fraction <= 0.9
        require(inside, "dataset.val_fraction", self.val_fraction, "between 0 and 0.9")


@dataclass(kw_only=True)
class Arch(Component):
    """Describes a network. `_target_(num_classes=, **args)`, with `head` (variant.head) too where
    it takes one, returns a module from images (N, 3, H, W) to logits (N, num_classes).
    """

    blocks: list[int] | None = None  # residual blocks per stage
    widths: list[int] | None = None  # channels per stage

    def __post_init__(self) -> None:
        require_name("arch.name", self.name)
        for key, values in (("blocks", self.blocks), ("widths", self.widths)):
            if self.target is not None:
                require(values is None, f"arch.{key}", values, "null beside a _target_")
                continue
            ok = bool(values) and all(value >= 1 for value in values or [])
            require(ok, f"arch.{key}", values, "a number of at least 1 for each stage, or _target_")
        expected = f"as many stages as arch.blocks={self.blocks}"
        ok = len(self.blocks or []) == len(self.widths or [])
        require(ok, "arch.widths", self.widths, expected)


@dataclass(kw_only=True)
class Variant(Component):
    """Describes the head of a network.

    `_target_(channels=, num_classes=, **args)` returns a module that is called with the images
    (N, 3, H, W), the features [v_1, ..., v_L] of all blocks (N, channels[i], H_i, W_i), and the
    last residual representation (N, channels[-1], H_L, W_L), and returns logits (N, num_classes).
    """

    head: str | None = None  # one of HEADS, or another that arch._target_ knows

    def __post_init__(self) -> None:
        require_name("variant.name", self.name)
        expected = "a head or a _target_, one of both"
        require((self.head is None) != (self.target is None), "variant.head", self.head, expected)


@dataclass(kw_only=True)
class Optimizer(Component):
    """Describes an update rule and a learning-rate schedule.

    The rate of epoch e (from 1) is lr * gamma ** (number of milestones passed), with `cosine` that
    times half a cosine from 1 to 0, and with `warmup` that times a ramp from 0 to 1, step by step.
    Milestones and warmup are fractions of the epochs, so that a shortened run keeps its shape. The
    first milestone is at the end of the first epoch or later, the next an epoch later or more.
    `_target_(parameters, lr=, **args)` is a class of torch.optim, or one like them; weight_decay,
    momentum, nesterov and betas are among its arguments unless they are null.
    """

    lr: float
    weight_decay: float | None = None
    momentum: float | None = None  # sgd
    nesterov: bool | None = None  # sgd
    betas: list[float] | None = None  # adamw
    milestones: list[float] = field(default_factory=list)
    gamma: float = 0.2
    cosine: bool = False
    per_step: bool = False  # whether the cosine falls with every step, not with every epoch
    warmup: float = 0.0
    clip_norm: float | None = None  # gradients are scaled down to this norm of all together
    # of some parameters: {match: pattern of names, lr: ..., weight_decay: ...}; the first that
    # matches holds
    groups: list[dict[str, Any]] = field(default_factory=list)
    # a scheduler of torch.optim.lr_scheduler, or one like them, instead of the rules above:
    # {_target_: ..., per: epoch or step, and its arguments}
    schedule: dict[str, Any] | None = None
    decay_norms: bool = True  # false: none for biases and norms, which have one dimension

    def __post_init__(self) -> None:
        if self.target is None:
            require_one_of("optimizer.name", self.name, OPTIMIZERS)
            self._check_own_values()
        if self.schedule is not None:
            if self.schedule.get("_partial_") is True:  # Hydra's word for what happens here anyhow
                self.schedule = {k: v for k, v in self.schedule.items() if k != "_partial_"}
            self._check_schedule(self.schedule)
        for group in self.groups:
            expected = "{match: pattern, and lr, weight_decay or another key of the optimizer}"
            ok = isinstance(group.get("match"), str) and len(group) > 1
            require(ok, "optimizer.groups", group, expected)
            lr = group.get("lr", self.lr)
            ok = isinstance(lr, int | float) and is_positive(lr)
            require(ok, "optimizer.groups.lr", lr, "a positive number")
            decay = group.get("weight_decay", 0.0)
            ok = isinstance(decay, int | float) and math.isfinite(decay) and decay >= 0
            require(ok, "optimizer.groups.weight_decay", decay, "0 or more")
        for key in ("lr", "gamma", "clip_norm"):
            value = getattr(self, key)
            ok = (value is None and key == "clip_norm") or is_positive(value)
            require(ok, f"optimizer.{key}", value, "a positive number")
        decay = self.weight_decay
        ok = self.target is not None if decay is None else math.isfinite(decay) and decay >= 0
        require(ok, "optimizer.weight_decay", decay, "0 or more")
        inside = all(0 < m < 1 for m in self.milestones)
        require(
            inside and sorted(self.milestones) == self.milestones,
            "optimizer.milestones",
            self.milestones,
            "ascending fractions of the epochs between 0 and 1, such as [0.3,0.6,0.8]",
        )
        inside = 0 <= self.warmup <= 1
        require(inside, "optimizer.warmup", self.warmup, "a fraction of the epochs, 0 to 1")
        ok = self.cosine or not self.per_step
        require(ok, "optimizer.per_step", self.per_step, "false without optimizer.cosine")

    def _check_schedule(self, schedule: dict[str, Any]) -> None:
        """Require what makes a schedule, and none of the rules that it replaces."""
        ok = isinstance(schedule.get("_target_"), str) and schedule.get("per") in ("epoch", "step")
        expected = "{_target_: import path, per: epoch or step, and its arguments}"
        require(ok, "optimizer.schedule", schedule, expected)
        plain = {"milestones": [], "cosine": False, "warmup": 0.0}
        for key, value in plain.items():
            ok = getattr(self, key) == value
            expected = f"{str(value).lower()} beside optimizer.schedule"
            require(ok, f"optimizer.{key}", getattr(self, key), expected)

    @property
    def is_per_step(self) -> bool:
        """Return whether the schedule goes on with every step, not with every epoch."""
        return self.schedule is not None and self.schedule["per"] == "step"

    def schedule_part(self) -> Component | None:
        """Return the schedule as a component, None where the rules here make it."""
        return None if self.schedule is None else schedule_component(self.schedule)

    def _check_own_values(self) -> None:
        """Require of sgd and adamw what the rule needs, and nothing that it would ignore."""
        mine = ("momentum", "nesterov") if self.name == "sgd" else ("betas",)
        require(self.weight_decay is not None, "optimizer.weight_decay", "null", "0 or more")
        for key in ("momentum", "nesterov", "betas"):
            value = getattr(self, key)
            if key in mine:
                expected = f"a value, which {self.name} needs"
                require(value is not None, f"optimizer.{key}", "null", expected)
            else:
                expected = f"null, as {self.name} has no {key}"
                require(value is None, f"optimizer.{key}", value, expected)
        if self.momentum is not None:
            ok = 0 <= self.momentum < 1
            require(ok, "optimizer.momentum", self.momentum, "at least 0 and below 1")
            ok = self.momentum > 0 or not self.nesterov
            require(ok, "optimizer.nesterov", self.nesterov, "false without momentum")
        if self.betas is not None:
            ok = len(self.betas) == 2 and all(0 <= b < 1 for b in self.betas)
            require(ok, "optimizer.betas", self.betas, "two numbers of at least 0 and below 1")


_SCHEDULES_OWN = ("_target_", "per", "_partial_", "_convert_")  # keys that are no arguments


def schedule_component(values: dict[str, Any]) -> Component:
    """Return a schedule, or one that it is made of, as a component, without Hydra's words for what
    happens anyhow.
    """
    require(isinstance(values, dict), "optimizer.schedule", values, "a _target_ and its arguments")
    args = {key: value for key, value in values.items() if key not in _SCHEDULES_OWN}
    return Component(name="schedule", _target_=str(values.get("_target_")), args=args)


@dataclass(kw_only=True)
class Loss(Component):
    """Describes what is minimised: the cross-entropy, or what `_target_` names.

    A class is made with the YAML's keys, and what it makes is called with logits (B, K) and labels
    (B,), as a function is with the keys too. Both give the mean over the batch.
    """

    name: str = "cross_entropy"
    # of each class: "balanced" (as many images of each as the mean), or a number for each
    weight: Any = None

    def __post_init__(self) -> None:
        weight = self.weight
        listed = weight if isinstance(weight, list) else []
        numbers = bool(listed) and all(isinstance(w, int | float) and w >= 0 for w in listed)
        ok = weight in (None, "balanced") or numbers
        expected = "balanced, null, or a number of at least 0 for each class"
        require(ok, "loss.weight", weight, expected)
        ok = self.target is not None or self.name == "cross_entropy"
        require(ok, "loss.name", self.name, "cross_entropy, or a _target_")


@dataclass(kw_only=True)
class Metric(Component):
    """Describes what is measured beside loss and accuracy. `_target_` is called as that of Loss is,
    once with all logits (N, K) and labels (N,) of a split, and gives a number.
    """

    unit: str = ""  # "%": of a share, which is shown times 100
    better: str = "high"  # or low

    def __post_init__(self) -> None:
        key = f"metrics.{self.name}"
        require(re.fullmatch("[a-z][a-z0-9_]*", self.name) is not None, "metrics", self.name, NAME)
        taken = self.name in ("loss", "accuracy") or self.name.startswith("ema_")
        require(not taken, "metrics", self.name, "another name, as this is measured anyhow")
        require(self.target is not None, f"{key}._target_", "null", "an import path")
        require_one_of(f"{key}.better", self.better, ("high", "low"))


NAME = "small letters, digits and _ as a name, which is a column"
