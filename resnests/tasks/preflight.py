"""Try the pieces that a user brought as a run would use them, before the first run of a sweep.

    python -m resnests.tasks.preflight < configs.json      # a list of configurations

Each data set is read. Each network, head and optimizer is built, trained and evaluated on a first
and on a last batch of the run's own sizes, in its precision and on a device of its kind. The first
that fails is one line on standard error, and exit status 2.
"""

from __future__ import annotations

import json
import math
import sys
from dataclasses import replace
from enum import Enum

import torch
from torch import Tensor, nn

from resnests.analysis.features import extractor
from resnests.config.schema import Config, config_from
from resnests.config.targets import naming
from resnests.data.arrays import Split, in_turn
from resnests.data.images import Images
from resnests.data.pipelines import build_pipeline, memory_format
from resnests.data.splits import Splits, load_for, with_statistics
from resnests.errors import UserError, exit_status_of
from resnests.models.resnet import count_parameters, initial_model
from resnests.models.weights import load_weights
from resnests.runs.weights import weights_file
from resnests.tasks.classes import require_same_classes
from resnests.training.device_words import words_of_device
from resnests.training.loop import predict
from resnests.training.numerics import move, require_numerics, set_numerics
from resnests.training.objectives import build_loss, build_metrics
from resnests.training.optim import (
    averaged_model,
    build_optimizer,
    build_schedule,
    parameter_groups,
)
from resnests.training.step import autocast
from resnests.training.warm_start import warm_start


class Sizes(Enum):
    """Says of which sizes batches are tried. A network of a user's may take no other than its own,
    as where it needs a multiple of 16.
    """

    ALL = "of a full batch and of the last"
    SMALLEST = "of the smaller of these two"
    TWO = "of two images, as networks of ours take any"


def check(config: Config, splits: Splits, device: torch.device, sizes: Sizes = Sizes.ALL) -> None:
    """Raise a UserError that names the piece that fails, in the order in which a run uses them."""
    set_numerics(config.trainer)
    require_same_classes(config, splits.train.classes)
    dataset = with_statistics(config.dataset, splits.train)
    config = replace(config, dataset=dataset)  # with its number of classes
    size = splits.train.images.shape[1:3]
    model = initial_model(config.arch, config.variant, dataset.class_count, config.seed, size)
    warm_start(model, config, dataset.class_count)
    if config.task == "evaluate":
        load_weights(weights_file(config), model)
    count_parameters(model)
    move(model, device, config.trainer)
    set_numerics(config.trainer)  # which what was imported just now may have changed
    if config.task in ("train", "tune") or config.analysis.train:
        _check_training(config, model, splits.train, device, sizes)
    evaluated = [splits.val, splits.test]
    if config.task == "analyze":
        evaluated.append(splits.train)
    for split in filter(None, evaluated):
        _check_evaluation(config, model, split, device, sizes)
    _check_metrics(config, model, splits, device)
    require_numerics(config.trainer)
    if config.task == "analyze":
        extractor(model)


def _check_training(
    config: Config, model: nn.Module, train: Split, device: torch.device, sizes: Sizes
) -> None:
    """Train on a full batch, and on one of the size of the last, as the pipeline makes them."""
    with naming(f"{_name(config)}, trainer.ema={config.trainer.ema}"):
        averaged_model(model, config.trainer.ema)
    optimizer = build_optimizer(config.optimizer, parameter_groups(config.optimizer, model))
    build_schedule(config, optimizer, math.ceil(len(train) / config.trainer.batch_size))
    loss = build_loss(config, train.labels, device)
    count, batch_size = len(train), config.trainer.batch_size
    for size in _sizes(count, batch_size, sizes):
        trainer = replace(config.trainer, batch_size=size, keep_epochs=[])
        of_size = replace(config, trainer=trainer)
        pipeline = build_pipeline(of_size, config.dataset, train.take(slice(size)), device)
        with naming(f"pipeline of {_name(config)}"):
            images, labels = next(iter(pipeline.batches(1)))
        model.train()
        optimizer.zero_grad()
        try:
            logits = _logits(config, model, images, f"a batch of {_described(images)}")
        except UserError as error:
            if size > 1:
                raise
            raise _of_one_image(error, count, batch_size) from error
        what = _name(config)
        with naming(f"{what}, loss={config.loss.name}: a step fails"):
            loss(logits.float(), labels).backward()
        with naming(f"{what}, optimizer={config.optimizer.name}: a step fails"):
            optimizer.step()


@torch.no_grad()
def _check_evaluation(
    config: Config, model: nn.Module, split: Split, device: torch.device, sizes: Sizes
) -> None:
    """Evaluate a full batch, and one of the size of the last."""
    model.eval()
    full = Images(split.take(slice(1)), config.dataset, device).batch_size
    layout = memory_format(config.trainer, device)
    for size in _sizes(len(split), full, sizes):
        taken = Images(split.take(slice(size)), config.dataset, device, layout)
        images = taken.as_input(taken.images)
        _logits(config, model, images, f"an evaluation of {_described(images)}")


@torch.no_grad()
def _check_metrics(config: Config, model: nn.Module, splits: Splits, device: torch.device) -> None:
    """Call each metric as a run does, with the labels of whole splits: one may fail where a class
    is missing. The logits of a few images stand in for all.
    """
    metrics = build_metrics(config, device)
    if not metrics:
        return
    few = Images(splits.test.take(in_turn(splits.test.labels, 32)), config.dataset, device)
    logits = torch.cat([some for some, _ in predict(model, few, config.trainer.precision)])
    for split in filter(None, (splits.val, splits.test)):
        labels = torch.from_numpy(split.labels).to(device)
        repeated = logits[torch.arange(len(labels), device=device) % len(logits)]
        for measure in metrics.values():
            measure(repeated, labels)


def _sizes(count: int, batch_size: int, sizes: Sizes) -> list[int]:
    """Return of how many images the batches are that are tried, of `count` images divided."""
    last = count % batch_size
    all_sizes = [min(batch_size, count), *([last] if last else [])]
    if sizes == Sizes.SMALLEST:
        return [min(all_sizes)]
    if sizes == Sizes.TWO:
        all_sizes = [min(size, 2) for size in all_sizes]
    return list(dict.fromkeys(all_sizes))


def _described(images: Tensor) -> str:
    count, _, height, width = images.shape
    return f"{count} image{'s' if count > 1 else ''} of {width}x{height} pixels"


def _logits(config: Config, model: nn.Module, images: Tensor, what: str) -> Tensor:
    """Return the logits of the images; raise a UserError that names what fails."""
    with (
        naming(f"{_name(config)}: {what} fails"),
        autocast(images.device, config.trainer.precision),
    ):
        logits = model(images)
    expected = (len(images), config.dataset.class_count)
    shape = tuple(logits.shape) if isinstance(logits, Tensor) else type(logits).__name__
    if shape != expected:
        raise UserError(
            f"{_name(config)}: {what}: expected logits of shape {expected}, not {shape}"
        )
    return logits


def _name(config: Config) -> str:
    """Return how a user calls the network: by its own head, or else by its architecture."""
    if config.variant.target is not None:
        return f"variant={config.variant.name}"
    return f"arch={config.arch.name}"


def _of_one_image(error: UserError, count: int, batch_size: int) -> UserError:
    """Return `error` of a batch of one image with the sizes that leave no such batch."""
    below = next((n for n in range(batch_size - 1, 1, -1) if count % n != 1), None)
    above = next((n for n in range(batch_size + 1, count + 1) if count % n != 1), None)
    sizes = " or ".join(str(n) for n in (below, above) if n is not None)
    if not sizes:
        return error
    leave = f"as {count} training images leave a batch of one: {error}"
    return UserError(f"trainer.batch_size={batch_size}: expected {sizes}, {leave}")


def device_of(config: Config) -> torch.device:
    """Return a device of the kind that the run will have, as far as there is one here."""
    kind = config.trainer.device.partition(":")[0]
    if kind in ("auto", "cuda") and torch.cuda.is_available():
        return torch.device(config.trainer.device if kind == "cuda" else "cuda")
    if kind in ("auto", "mps") and torch.backends.mps.is_available():
        return torch.device("mps")
    return torch.device("cpu")


def _check_on_device(config: Config, splits: Splits, is_tried: bool) -> None:
    """Check on the run's kind of device, or on the CPU where others have taken its memory, or it
    fails: which device is at fault is the sweep's to find out.

    `is_tried`: its network passed the check before, beside another optimizer.
    """
    device, sizes = device_of(config), Sizes.ALL
    if all(part.target is None for part in (config.arch, config.variant, config.loss)):
        sizes = Sizes.TWO
    # Where a CPU stands in for the device of another machine, a full batch might be too much for it
    elif is_tried or (config.cluster is not None and device.type == "cpu"):
        sizes = Sizes.SMALLEST
    try:
        check(config, splits, device, sizes)
    except Exception as error:
        is_full = isinstance(error, torch.cuda.OutOfMemoryError)
        if device.type == "cpu" or not (is_full or words_of_device(error)):
            raise
        smaller = sizes if sizes == Sizes.TWO else Sizes.SMALLEST
        check(config, splits, torch.device("cpu"), smaller)


def main() -> int:
    """Check every configuration on standard input; return the exit status."""
    torch.set_num_threads(1)
    data: dict[str, Splits] = {}
    tried: set[str] = set()
    for values in json.load(sys.stdin):
        config = config_from(values)
        key = repr((config.dataset, config.pipeline.memory_gb))
        if key not in data:
            data[key] = load_for(config)
        network = repr(
            (key, config.arch, config.variant, config.trainer, config.pipeline, config.task)
        )
        _check_on_device(config, data[key], is_tried=network in tried)
        tried.add(network)
    return 0


if __name__ == "__main__":
    sys.exit(exit_status_of(main))
