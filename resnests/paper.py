"""Hold the paper's tables and names: Chen, Lee, Garudadri, Rao, "ResNEsts and DenseNEsts", NeurIPS
2021.

Published numbers are test accuracies of the last epoch's weights over seeds 0 to 6; whether they
are means or medians is not stated.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Any

from resnests.config.schedule import MOVED
from resnests.text import as_typed

DATASETS = {
    "cifar10": "CIFAR-10",
    "cifar100": "CIFAR-100",
    "fashion_mnist": "Fashion-MNIST",
    "digits": "Digits",
}
ARCHS = {
    "wrn16_8": "WRN-16-8",
    "wrn40_4": "WRN-40-4",
    "resnet110": "ResNet-110",
    "resnet20": "ResNet-20",
}
VARIANTS = {
    "standard": "Standard",
    "resnest": "ResNEst",
    "bn_resnest": "BN-ResNEst",
    "a_resnest": "A-ResNEst",
}

OFFICIAL_VARIANTS = {
    "standard": "Standard",
    "resnest": "ResNEst",
    "bn_resnest": "BNResNEst",
    "a_resnest": "AResNEst",
}

SEEDS = 7  # behind each published number

# dataset -> arch -> test accuracy in % and number of parameters as printed, in the order of
# VARIANTS
_TABLES = {
    "cifar10": {
        "wrn16_8": "95.56 11M, 94.39 11M, 95.48 11M, 95.29 8.7M",
        "wrn40_4": "95.45 9.0M, 94.58 9.0M, 95.61 9.0M, 95.48 8.4M",
        "resnet110": "94.46 1.7M, 92.77 1.7M, 94.52 1.7M, 93.97 1.7M",
        "resnet20": "92.60 0.27M, 91.02 0.27M, 92.56 0.27M, 92.47 0.24M",
    },
    "cifar100": {
        "wrn16_8": "79.14 11M, 75.43 11M, 78.99 11M, 78.74 8.9M",
        "wrn40_4": "79.08 9.0M, 75.16 9.0M, 78.97 9.0M, 78.62 8.7M",
        "resnet110": "74.08 1.7M, 69.08 1.7M, 73.95 1.7M, 72.53 1.9M",
        "resnet20": "68.56 0.28M, 64.73 0.28M, 68.47 0.28M, 68.16 0.27M",
    },
}

# (dataset, arch, variant) -> (test accuracy in %, number of parameters as printed)
PUBLISHED: dict[tuple[str, str, str], tuple[float, str]] = {
    (dataset, arch, variant): (float(cell.split()[0]), cell.split()[1])
    for dataset, table in _TABLES.items()
    for arch, line in table.items()
    for variant, cell in zip(VARIANTS, line.split(", "), strict=True)
}


# What the paper trained: blocks and channels per stage; classes, mean and standard deviation of
# each colour, 0 to 255; and, with every network on all images, how.
_NETWORKS = {
    "wrn16_8": ([2, 2, 2], [128, 256, 512]),
    "wrn40_4": ([6, 6, 6], [64, 128, 256]),
    "resnet110": ([18, 18, 18], [16, 32, 64]),
    "resnet20": ([3, 3, 3], [16, 32, 64]),
}
_IMAGES = {
    "cifar10": (10, (125.3, 123.0, 113.9), (63.0, 62.1, 66.7)),
    "cifar100": (100, (129.3, 124.1, 112.4), (68.2, 65.4, 70.4)),
}
_TRAINING = {
    "optimizer.name": "sgd",
    "optimizer.weight_decay": 5e-4,
    "optimizer.momentum": 0.9,
    "optimizer.nesterov": True,
    "optimizer.milestones": [0.3, 0.6, 0.8],
}
# Either value reproduces the paper: the official pipeline or ours, its arithmetic or a finer one.
_EITHER = {"pipeline.name": ("torchvision", "tensor"), "trainer.precision": ("official", "fp32")}


def recipe(dataset: str, arch: str, variant: str) -> dict[str, Any]:
    """Return the values (config/recipe.py) by which the paper made a cell of PUBLISHED."""
    blocks, widths = _NETWORKS[arch]
    classes, mean, std = _IMAGES[dataset]
    return _TRAINING | {
        "optimizer.lr": learning_rate(variant),
        "dataset.source": dataset,
        "dataset.num_classes": classes,
        "dataset.mean": [value / 255 for value in mean],
        "dataset.std": [value / 255 for value in std],
        "arch.blocks": blocks,
        "arch.widths": widths,
        "variant.head": variant,
    }


def deviations(values: Mapping[str, Any], dataset: str, arch: str, variant: str) -> list[str]:
    """Return in what the recipe `values` are not the paper's, such as "trainer.epochs=2"."""
    paper = recipe(dataset, arch, variant)
    keys = (paper.keys() | values.keys()) - {MOVED}
    found = {key: values.get(key, "default") for key in sorted(keys)}
    return [
        f"{key}={as_typed(value)}"
        for key, value in found.items()
        if value != paper.get(key) and value not in _EITHER.get(key, ())
    ]


def learning_rate(variant: str) -> float:
    """Return the paper's initial learning rate of a variant, with SGD."""
    return 0.01 if variant == "resnest" else 0.1


def dataset_label(name: str) -> str:
    return DATASETS.get(name, name)


def variant_label(name: str) -> str:
    return VARIANTS.get(name, "DenseNEst" if name == "densenest" else name)


def arch_label(name: str) -> str:
    """Return the paper's way to write an architecture, for others of the same families too:
    wrn28_10 is WRN-28-10.
    """
    name = re.sub(r"^wrn(\d+)_(\d+)$", r"WRN-\1-\2", name)
    if match := re.match(r"^dense(nest|net)(\d+)_(\d+)(_bc)?$", name):
        kind = "DenseNEst" if match[1] == "nest" else "DenseNet"
        return f"{kind}{'-BC' * bool(match[4])}-{match[2]}-{match[3]}"
    return re.sub(r"^resnet(\d+)$", r"ResNet-\1", name)


def official_name(dataset: str, arch: str, variant: str, seed: int) -> str:
    """Return the folder that holds a run's weights in the official scheme, such as
    CIFAR10_BNResNEst_ResNet_110_seed=3.
    """
    arch = re.sub(r"^resnet(\d+)$", r"ResNet_\1", re.sub(r"^wrn(\d+)_(\d+)$", r"WRN_\1_\2", arch))
    return f"{dataset.upper()}_{OFFICIAL_VARIANTS.get(variant, variant)}_{arch}_seed={seed}"
