"""Whether the pieces that a user brought fit together, seen before the first run of a sweep.

    python -m resnests.tasks.preflight < configs.json      # a list of configurations

Each data set is read, and each network, head and optimizer built and trained on a batch of two
images. The first that fails is one line on standard error, and exit status 2.
"""

from __future__ import annotations

import json
import sys

import torch
from torch.nn import functional as F

from resnests.analysis.features import extractor
from resnests.config.schema import Config, config_from
from resnests.config.targets import broken
from resnests.data.arrays import Split
from resnests.data.pipelines import Images
from resnests.data.splits import load, with_statistics
from resnests.errors import UserError, guarded
from resnests.models.resnet import initial_model
from resnests.training.optim import build_optimizer


def check(config: Config, train: Split) -> None:
    """Raises a UserError that names the piece that fails, on images of `train`."""
    dataset = with_statistics(config.dataset, train)
    model = initial_model(config.arch, config.variant, dataset.num_classes, config.seed)
    optimizer = build_optimizer(config.optimizer, model.parameters())
    images, labels = next(Images(train, dataset, torch.device("cpu")).batches(2))
    named = config.variant if config.variant.target is not None else config.arch
    what = f"{'variant' if named is config.variant else 'arch'}={named.name}"
    try:
        logits = model(images)
    except Exception as error:
        size = "x".join(map(str, images.shape))
        raise broken(f"{what}: a batch of {size} fails", error) from error
    expected = (len(images), dataset.num_classes)
    shape = tuple(logits.shape) if isinstance(logits, torch.Tensor) else type(logits).__name__
    if shape != expected:
        raise UserError(f"{what}: expected logits of shape {expected}, not {shape}")
    try:
        F.cross_entropy(logits.float(), labels).backward()
        optimizer.step()
    except Exception as error:
        raise broken(f"{what}, optimizer={config.optimizer.name}: a step fails", error) from error
    if config.task == "analyze":
        extractor(model)


def main() -> int:
    torch.set_num_threads(1)
    images: dict[str, Split] = {}
    for values in json.load(sys.stdin):
        config = config_from(values)
        key = repr(config.dataset)
        if key not in images:
            images[key] = load(config.dataset).train
        check(config, images[key])
    return 0


if __name__ == "__main__":
    sys.exit(guarded(main))
