"""A data set as uint8 arrays: what is trained on, held out and tested. Imports torchvision only
where it must.

python -m resnests.data.splits '{"name": "cifar10", ...}'     # prepares it, as a sweep does before its runs
"""  # noqa: E501

from __future__ import annotations

import dataclasses
import json
import sys
from dataclasses import dataclass
from typing import Any

import numpy as np

from resnests.config.parts import Dataset
from resnests.config.targets import build
from resnests.data.arrays import Split, checked_split, stratified
from resnests.data.sources import SOURCES
from resnests.errors import UserError, require


@dataclass(frozen=True)
class Splits:
    train: Split
    val: Split | None
    test: Split


def load(dataset: Dataset) -> Splits:
    """The splits that `dataset` asks for; raises a UserError that names what is missing or
    unsound.
    """
    train, test = _read(dataset)
    for split in (train, test):
        expected = f"at least {int(split.labels.max()) + 1}, as labelled"
        ok = split.labels.max() < dataset.num_classes
        require(ok, "dataset.num_classes", dataset.num_classes, expected)
    train, test = train.take(slice(dataset.train_limit)), test.take(slice(dataset.test_limit))
    held_out = stratified(train.labels, dataset.val_fraction)
    val = train.take(held_out) if held_out.any() else None
    ok = val is not None or dataset.val_fraction == 0
    require(ok, "dataset.val_fraction", dataset.val_fraction, "some images")
    return Splits(train.take(~held_out), val, test)


def with_statistics(dataset: Dataset, train: Split) -> Dataset:
    """`dataset` with mean and std measured on the training images, where it has none."""
    if dataset.mean is not None:
        return dataset
    # In the square of integers nothing is lost, so that the order of summation does not matter.
    pixels = train.images.reshape(-1, 3)
    counts = [np.bincount(pixels[:, channel], minlength=256) for channel in range(3)]
    levels = np.arange(256) / 255
    mean = [float(count @ levels / count.sum()) for count in counts]
    square = [float(count @ levels**2 / count.sum()) for count in counts]
    std = [max(s - m * m, 0.0) ** 0.5 for s, m in zip(square, mean, strict=True)]
    if min(std) == 0:
        raise UserError(f"dataset={dataset.name}: all its images have one colour in a channel")
    return dataclasses.replace(dataset, mean=mean, std=std)


def prepare(dataset: Dataset) -> None:
    """Download what is missing, once for all processes; raises a UserError."""
    if dataset.target is None:
        SOURCES[dataset.source].prepare(dataset)


def is_ready(dataset: Dataset) -> bool:
    """Whether the files are known to be there without a look at their checksums, which takes
    torchvision.
    """
    return dataset.target is not None or SOURCES[dataset.source].is_ready(dataset)


def _read(dataset: Dataset) -> tuple[Split, Split]:
    if dataset.target is None:
        prepare(dataset)
        return SOURCES[dataset.source].read(dataset)
    parts: Any = build("dataset", dataset, root=dataset.root)
    what = f"dataset._target_={dataset.target}"
    if not isinstance(parts, dict) or not {"train", "test"} <= parts.keys():
        form = '{"train": (images, labels), "test": (images, labels)}'
        raise UserError(f"{what}: expected it to return {form}, not {type(parts).__name__}")
    train, test = (checked_split(f"{what}: {name}", parts[name]) for name in ("train", "test"))
    if train.images.shape[1:] != test.images.shape[1:]:
        raise UserError(f"{what}: expected images of one size in train and test")
    return train, test


if __name__ == "__main__":
    try:
        prepare(Dataset(**json.loads(sys.argv[1])))
    except UserError as problem:
        sys.exit(str(problem))
