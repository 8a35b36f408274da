"""The typed configuration: one dataclass tree, checked when it is built.

A field marked `free` decides where, how fast or how verbosely a run happens, never which numbers
come out: it is no part of a run's identity (recipe.py). The defaults here are, so they must never
change.
"""

from __future__ import annotations

import dataclasses
import math
from dataclasses import dataclass, field
from typing import Any

from omegaconf import DictConfig, OmegaConf
from omegaconf.errors import OmegaConfBaseException

from resnests.errors import UserError, require, require_name

SOURCES = ("cifar10", "cifar100", "fashion_mnist", "digits")
HEADS = ("standard", "resnest", "bn_resnest", "a_resnest")
PIPELINES = ("tensor", "torchvision")
OPTIMIZERS = ("sgd", "adamw")
TASKS = ("train", "evaluate", "export")
PRECISIONS = ("fp32", "tf32", "bf16")
MAX_SEED = 2**32 - 1


def free(default: Any) -> Any:
    """A field that does not change the numbers of a run, and so is no part of its identity."""
    return field(default=default, metadata={"free": True})


def _positive(value: float) -> bool:
    return math.isfinite(value) and value > 0


@dataclass
class Dataset:
    name: str
    source: str  # who reads the files: one of SOURCES
    num_classes: int
    mean: list[float]  # per channel, of images scaled to [0, 1]
    std: list[float]
    flip: bool = True  # whether a mirrored image keeps its label
    train_limit: int | None = None  # only the first n images
    test_limit: int | None = None
    val_fraction: float = 0.0  # stratified part of the training images that is held out
    root: str = free("data")
    download: bool = free(True)

    def __post_init__(self) -> None:
        require_name("dataset.name", self.name)
        require(
            self.source in SOURCES, "dataset.source", self.source, f"one of {', '.join(SOURCES)}"
        )
        require(self.num_classes >= 2, "dataset.num_classes", self.num_classes, "at least 2")
        for key, values in (("mean", self.mean), ("std", self.std)):
            require(len(values) == 3, f"dataset.{key}", values, "three numbers, one per channel")
        require(all(_positive(s) for s in self.std), "dataset.std", self.std, "positive numbers")
        require(
            all(math.isfinite(m) for m in self.mean), "dataset.mean", self.mean, "finite numbers"
        )
        for key, limit in (("train_limit", self.train_limit), ("test_limit", self.test_limit)):
            require(
                limit is None or limit >= 1,
                f"dataset.{key}",
                limit,
                "at least 1, or null for all images",
            )
        require(
            0 <= self.val_fraction <= 0.9,
            "dataset.val_fraction",
            self.val_fraction,
            "between 0 and 0.9",
        )


@dataclass
class Arch:
    name: str
    blocks: list[int]  # residual blocks per stage
    widths: list[int]  # channels per stage

    def __post_init__(self) -> None:
        require_name("arch.name", self.name)
        require(len(self.blocks) >= 1, "arch.blocks", self.blocks, "at least one stage")
        require(
            len(self.blocks) == len(self.widths),
            "arch.widths",
            self.widths,
            f"as many stages as arch.blocks={self.blocks}",
        )
        for key, values in (("blocks", self.blocks), ("widths", self.widths)):
            require(all(v >= 1 for v in values), f"arch.{key}", values, "numbers of at least 1")


@dataclass
class Variant:
    name: str
    head: str  # one of HEADS

    def __post_init__(self) -> None:
        require_name("variant.name", self.name)
        require(self.head in HEADS, "variant.head", self.head, f"one of {', '.join(HEADS)}")


@dataclass
class Optimizer:
    """Update rule and learning-rate schedule.

    The rate of epoch e (from 1) is lr * gamma ** (number of milestones passed), and, with `cosine`,
    that times half a cosine from 1 to 0. Milestones are fractions of the epochs, so that a
    shortened run keeps its shape.
    """

    name: str
    lr: float
    weight_decay: float
    momentum: float | None = None  # sgd
    nesterov: bool | None = None  # sgd
    betas: list[float] | None = None  # adamw
    milestones: list[float] = field(default_factory=list)
    gamma: float = 0.2
    cosine: bool = False

    def __post_init__(self) -> None:
        require(
            self.name in OPTIMIZERS, "optimizer.name", self.name, f"one of {', '.join(OPTIMIZERS)}"
        )
        require(_positive(self.lr), "optimizer.lr", self.lr, "a positive number")
        require(
            math.isfinite(self.weight_decay) and self.weight_decay >= 0,
            "optimizer.weight_decay",
            self.weight_decay,
            "0 or more",
        )
        require(_positive(self.gamma), "optimizer.gamma", self.gamma, "a positive number")
        inside = all(0 < m < 1 for m in self.milestones)
        require(
            inside and sorted(self.milestones) == self.milestones,
            "optimizer.milestones",
            self.milestones,
            "ascending fractions of the epochs between 0 and 1, such as [0.3,0.6,0.8]",
        )
        mine = ("momentum", "nesterov") if self.name == "sgd" else ("betas",)
        for key in ("momentum", "nesterov", "betas"):
            value = getattr(self, key)
            if key in mine:
                require(
                    value is not None,
                    f"optimizer.{key}",
                    "null",
                    f"a value, which {self.name} needs",
                )
            else:
                require(
                    value is None, f"optimizer.{key}", value, f"null, as {self.name} has no {key}"
                )
        if self.name == "sgd":
            require(
                0 <= self.momentum < 1,
                "optimizer.momentum",
                self.momentum,
                "at least 0 and below 1",
            )
            require(
                self.momentum > 0 or not self.nesterov,
                "optimizer.nesterov",
                self.nesterov,
                "false without momentum",
            )
        else:
            ok = len(self.betas) == 2 and all(0 <= b < 1 for b in self.betas)
            require(ok, "optimizer.betas", self.betas, "two numbers of at least 0 and below 1")


@dataclass
class Pipeline:
    name: str  # one of PIPELINES
    crop_padding: int = 4  # reflected border, in pixels, of the random crop; 0 crops nothing

    def __post_init__(self) -> None:
        require(
            self.name in PIPELINES, "pipeline.name", self.name, f"one of {', '.join(PIPELINES)}"
        )
        require(
            0 <= self.crop_padding <= 31,
            "pipeline.crop_padding",
            self.crop_padding,
            "0 to 31 pixels",
        )


@dataclass
class Trainer:
    epochs: int = 200
    batch_size: int = 128
    # the paper's; bf16 is faster, to the same accuracy within seeds (benchmarks/RESULTS.md)
    precision: str = "fp32"
    device: str = free("auto")
    channels_last: bool | None = free(
        None
    )  # null: on CPU, where it is 1.2 to 1.3x as fast, and CUDA
    cuda_graph: bool | None = free(
        None
    )  # a step as one CUDA graph; null: on CUDA, or without where it fails
    compile: bool = free(
        False
    )  # torch.compile: on CPUs 0.87 to 0.98x as fast, after 20 s of compiling
    deterministic: bool = free(False)  # only kernels that give the same bits every time
    checkpoint_every: int = free(1)  # epochs
    eval_every: int = free(1)  # epochs; the last one is always evaluated
    overwrite: bool = free(False)

    def __post_init__(self) -> None:
        for key in ("epochs", "batch_size", "checkpoint_every", "eval_every"):
            require(getattr(self, key) >= 1, f"trainer.{key}", getattr(self, key), "at least 1")
        require(
            self.precision in PRECISIONS,
            "trainer.precision",
            self.precision,
            f"one of {', '.join(PRECISIONS)}",
        )
        kind, _, index = self.device.partition(":")
        ok = kind in ("auto", "cpu", "cuda", "mps") and (
            not index or (kind == "cuda" and index.isdigit())
        )
        require(
            ok and not self.device.endswith(":"),
            "trainer.device",
            self.device,
            "auto, cpu, cuda, cuda:N or mps",
        )


@dataclass
class Devices:
    slots: int | None = None  # runs at once; null: as many as the machine has slots
    runs_per_gpu: int = (
        1  # what more of them gain is not measured yet: benchmarks.train_speed --device cuda tells
    )
    cpu_slots: int | None = (
        None  # runs at once where there is no GPU; null: one per core, the fastest for small nets
    )
    wait: bool = True  # false: fail at once where every slot is taken

    def __post_init__(self) -> None:
        for key in ("slots", "cpu_slots"):
            value = getattr(self, key)
            require(value is None or value >= 1, f"devices.{key}", value, "at least 1, or null")
        require(self.runs_per_gpu >= 1, "devices.runs_per_gpu", self.runs_per_gpu, "at least 1")


@dataclass
class Sweep:
    retries: int = 0
    fail_fast: bool = False
    dry_run: bool = False

    def __post_init__(self) -> None:
        require(self.retries >= 0, "sweep.retries", self.retries, "0 or more")


@dataclass
class Config:
    dataset: Dataset
    arch: Arch
    variant: Variant
    optimizer: Optimizer
    pipeline: Pipeline
    seed: int
    trainer: Trainer = field(default_factory=Trainer)
    devices: Devices = field(default_factory=Devices, metadata={"free": True})
    sweep: Sweep = field(default_factory=Sweep, metadata={"free": True})
    runs_dir: str = free("runs")
    task: str = free("train")
    weights: str | None = free(
        None
    )  # to evaluate: a file, or a folder in the official scheme; to export to: a folder

    def __post_init__(self) -> None:
        require(self.task in TASKS, "task", self.task, f"one of {', '.join(TASKS)}")
        require(
            self.weights is None or self.task != "train",
            "weights",
            self.weights,
            "null, as task=train starts from its seed",
        )
        require(0 <= self.seed <= MAX_SEED, "seed", self.seed, f"0 to {MAX_SEED}")


def config_from(node: DictConfig | dict[str, Any]) -> Config:
    """The checked Config of a composed or loaded tree; a UserError names what does not fit."""
    try:
        return OmegaConf.to_object(OmegaConf.merge(OmegaConf.structured(Config), node))
    except OmegaConfBaseException as error:
        raise UserError(f"{error.full_key}: {str(error.msg or error).splitlines()[0]}") from error


def config_dict(config: Config) -> dict[str, Any]:
    """The whole configuration as plain dicts, lists and scalars."""
    return dataclasses.asdict(config)
