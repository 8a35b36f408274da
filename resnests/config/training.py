"""Define how a network is trained, but for its optimizer: images, epochs, and initial weights."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

from resnests.config.parts import Component, unhashed
from resnests.errors import expanded, require, require_one_of

PIPELINES = ("tensor", "torchvision")
PRECISIONS = ("fp32", "tf32", "bf16", "official")
MIXES = {
    "mixup": "torchvision.transforms.v2.MixUp",
    "cutmix": "torchvision.transforms.v2.CutMix",
}


@dataclass
class Pipeline:
    name: str  # one of PIPELINES
    crop_padding: int = 4  # reflected border, in pixels, of the random crop; 0 crops nothing
    # transforms of training images, each a _target_ and its arguments, such as those of
    # torchvision.transforms.v2; see data/augment.py
    augment: list[Any] = field(default_factory=list)
    # how often a transform draws for a batch; null: for each image, which takes longer
    draws: int | None = None
    mix: Any = None  # mixup, cutmix, or a _target_ and its arguments
    # GB of images that may be in memory; a data set of more is read batch by batch; null: no bound
    memory_gb: float | None = unhashed(None)

    def augment_parts(self) -> list[Component]:
        """Return the transforms; raise a UserError for what is none."""
        return [_part(f"pipeline.augment[{i}]", one) for i, one in enumerate(self.augment)]

    def mix_part(self) -> Component | None:
        """Return what mixes images; raise a UserError where it is nothing that can."""
        if self.mix is None:
            return None
        if isinstance(self.mix, str):
            require_one_of("pipeline.mix", self.mix, tuple(MIXES))
            return Component(name=self.mix, _target_=MIXES[self.mix])
        return _part("pipeline.mix", self.mix)

    def __post_init__(self) -> None:
        self.augment_parts()
        self.mix_part()
        ok = self.draws is None or (self.draws >= 1 and bool(self.augment))
        require(ok, "pipeline.draws", self.draws, "at least 1 beside pipeline.augment, or null")
        plain = not self.augment and self.mix is None
        ok, expected = self.name == "tensor" or plain, "tensor beside pipeline.augment and .mix"
        require(ok, "pipeline.name", self.name, expected)
        require_one_of("pipeline.name", self.name, PIPELINES)
        ok = self.memory_gb is None or self.memory_gb >= 0
        require(ok, "pipeline.memory_gb", self.memory_gb, "0 or more GB of images, or null")
        expected = "0 or more pixels, fewer than an image has"
        require(self.crop_padding >= 0, "pipeline.crop_padding", self.crop_padding, expected)


def _part(key: str, values: Any) -> Component:
    """Return what a `_target_` and its arguments describe; raise a UserError."""
    ok = isinstance(values, dict) and isinstance(values.get("_target_"), str)
    require(ok, key, values, "a _target_ and what it is called with")
    args = {name: value for name, value in values.items() if name != "_target_"}
    return Component(name=key, _target_=values["_target_"], args=args)


@dataclass
class Trainer:
    epochs: int = 200
    batch_size: int = 128
    # fp32: IEEE single precision on every device, so that a recipe has one meaning. On CUDA that is
    # more exact than PyTorch's own default, which the official code had, TF32 in convolutions, and
    # slower. `official` is that default, `tf32` has it in matrix products too, and `bf16` is by
    # autocast, the fastest where the hardware has it (docs/speed.md).
    precision: str = "fp32"
    label_smoothing: float = 0.0  # share of the target that is spread over all classes
    # ends after so many epochs without a better accuracy on the held-out images; null: never
    patience: int | None = None
    # decay of a running mean of the weights, which is evaluated beside them, such as 0.999
    ema: float | None = None
    device: str = unhashed("auto")  # or cpu, cuda, cuda:N, or mps, which is Apple's GPU
    # null: on CPU, where it is 1.2 to 1.4x as fast, and CUDA
    channels_last: bool | None = unhashed(None)
    # a step as one CUDA graph; null: on CUDA, or without where it fails
    cuda_graph: bool | None = unhashed(None)
    # torch.compile: on CPUs 0.87 to 0.98x as fast, after 20 s of compiling
    compile: bool = unhashed(False)
    deterministic: bool = unhashed(False)  # only kernels that give the same bits every time
    # epochs; null: after each, unless writing would take more than a fiftieth of the time: that of
    # wrn16_8 takes half a second (benchmarks/RESULTS.md), its epoch on a fast GPU only seconds
    checkpoint_every: int | None = unhashed(None)
    # epochs; the last one is always evaluated; part of the recipe beside patience (recipe.py)
    eval_every: int = unhashed(1)
    # epochs whose weights are kept, as model_epoch_<n>.pt; 0: those before the first step
    keep_epochs: list[int] = field(default_factory=list, metadata={"unhashed": True})
    overwrite: bool = unhashed(False)  # true: start afresh what has begun or is done

    def __post_init__(self) -> None:
        for key in ("epochs", "batch_size", "eval_every"):
            require(getattr(self, key) >= 1, f"trainer.{key}", getattr(self, key), "at least 1")
        ok = self.patience is None or self.patience >= 1
        require(ok, "trainer.patience", self.patience, "at least 1 epoch, or null")
        ok = self.ema is None or 0 < self.ema < 1
        require(ok, "trainer.ema", self.ema, "above 0 and below 1, such as 0.999, or null")
        every, expected = self.checkpoint_every, "at least 1, or null"
        require(every is None or every >= 1, "trainer.checkpoint_every", every, expected)
        ok = all(0 <= epoch <= self.epochs for epoch in self.keep_epochs)
        expected = f"epochs from 0 to trainer.epochs={self.epochs}, such as [1,3]"
        require(ok, "trainer.keep_epochs", self.keep_epochs, expected)
        require_one_of("trainer.precision", self.precision, PRECISIONS)
        inside = 0 <= self.label_smoothing < 1
        require(inside, "trainer.label_smoothing", self.label_smoothing, "at least 0 and below 1")
        kind, colon, index = self.device.partition(":")
        ok = index.isdigit() and kind == "cuda" if colon else kind in ("auto", "cpu", "cuda", "mps")
        require(ok, "trainer.device", self.device, "auto, cpu, cuda, cuda:N or mps")


@dataclass
class Init:
    """Says where a training starts from, other than what its seed draws."""

    # a file, a run's directory, timm/NAME, or one of torchvision's such as
    # ResNet18_Weights.IMAGENET1K_V1; a file is told apart by its content
    weights: str | None = None
    strict: bool = True  # all must fit, but for a head of another number of classes
    freeze: list[str] = field(default_factory=list)  # patterns of parameters that are not trained

    def __post_init__(self) -> None:
        self.weights = self.weights and expanded("init.weights", self.weights)
        ok = self.strict or self.weights is not None
        require(ok, "init.strict", self.strict, "true without init.weights")
