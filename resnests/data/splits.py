"""Load a data set as uint8 arrays: what is trained on, held out and tested. Imports torchvision
only where it must.

python -m resnests.data.splits '{"name": "cifar10", ...}' [pipeline.memory_gb]

prepares it, as a sweep does before its runs.
"""

from __future__ import annotations

import hashlib
import json
import math
import sys
from collections.abc import Iterator
from dataclasses import dataclass, replace
from typing import Any

import numpy as np

from resnests.config.parts import Dataset
from resnests.config.recipe import IMAGES
from resnests.config.schema import Config
from resnests.config.targets import build
from resnests.data.arrays import Loaded, Split, from_arrays, in_turn, stratified
from resnests.data.folder import Folder
from resnests.data.sources import SOURCES
from resnests.data.torchvision_sets import arrays_of, is_torchvision
from resnests.data.views import ImageView, chunks, exceeds
from resnests.errors import UserError, require


@dataclass(frozen=True)
class Splits:
    train: Split
    val: Split | None
    test: Split
    notes: tuple[str, ...] = ()  # what the owner of the images should know of how they were read


def load(dataset: Dataset, digest: str | None = None, memory_gb: float | None = None) -> Splits:
    """Return the splits that `dataset` asks for; raises a UserError that names what is missing or
    unsound, or where the images are not those that had this `digest` when the sweep was planned.

    Where all images together are larger than `memory_gb`, those of the splits are views.
    """
    loaded = read(dataset, memory_gb)
    if digest is not None and loaded.digest != digest:
        now = f"their digest is {loaded.digest}, and was {digest}"
        raise UserError(
            f"dataset={dataset.name}: the images changed since the sweep was planned"
            f" ({now}): the same command trains on those that there are now"
        )
    classes = _checked_classes(dataset, loaded)
    loaded = _within(loaded, dataset.size, memory_gb)
    train, test = (
        replace(_resized(_limited(split, limit, dataset.is_own), dataset.size), classes=classes)
        for split, limit in (
            (loaded.train, dataset.train_limit),
            (loaded.test, dataset.test_limit),
        )
    )
    held_out = stratified(train.labels, dataset.val_fraction)
    val = train.take(held_out) if held_out.any() else None
    if val is None and dataset.val_fraction > 0:
        most = int(np.bincount(train.labels).max())
        least = f"0, or at least {math.ceil(1e4 / most) / 1e4:g}"
        expected = f"{least}, as less of the largest class, of {most} images, is no whole image"
        require(False, "dataset.val_fraction", dataset.val_fraction, expected)
    return Splits(train.take(~held_out) if val else train, val, test, loaded.notes)


def load_for(config: Config) -> Splits:
    """Return the splits that a run of `config` reads: load() with what the configuration says."""
    return load(config.dataset, config.digests.get(IMAGES), config.pipeline.memory_gb)


def with_statistics(dataset: Dataset, train: Split) -> Dataset:
    """Return `dataset` with its classes counted, and mean and std measured on the training images,
    where it does not say them.
    """
    if dataset.num_classes is None:
        assert train.classes is not None
        dataset = replace(dataset, num_classes=len(train.classes))
    if dataset.mean is not None:
        return dataset
    # In the square of integers nothing is lost, so that the order of summation does not matter.
    counts = np.zeros((3, 256), np.int64)
    for images in chunks(train.images):
        pixels = images.reshape(-1, 3)
        counts += [np.bincount(pixels[:, channel], minlength=256) for channel in range(3)]
    levels = np.arange(256) / 255
    mean = [float(count @ levels / count.sum()) for count in counts]
    square = [float(count @ levels**2 / count.sum()) for count in counts]
    std = [max(s - m * m, 0.0) ** 0.5 for s, m in zip(square, mean, strict=True)]
    if min(std) == 0:
        raise UserError(f"dataset={dataset.name}: all its images have one colour in a channel")
    return replace(dataset, mean=mean, std=std)


def prepare(dataset: Dataset) -> None:
    """Download what is missing, once for all processes; raises a UserError."""
    if dataset.target is None:
        SOURCES[dataset.source].prepare(dataset)


def is_ready(dataset: Dataset) -> bool:
    """Tell whether the files are known to be there without a look at their checksums, which takes
    torchvision.
    """
    return dataset.target is not None or SOURCES[dataset.source].is_ready(dataset)


FEWEST = 1000  # training images of any data set that is not a user's own


def may_hold_out_none(dataset: Dataset) -> bool:
    """Return whether val_fraction may be less than an image of the largest class, which has at
    least as many as classes have on average.
    """
    most_at_least = (dataset.train_limit or FEWEST) / (dataset.num_classes or FEWEST)
    return 0 < dataset.val_fraction * most_at_least < 1


def read(dataset: Dataset, memory_gb: float | None = None) -> Loaded:
    """Return all images of `dataset`, those of a folder larger than `memory_gb` as views; raises a
    UserError.
    """
    if dataset.target is None:
        prepare(dataset)
        source = SOURCES[dataset.source]
        if isinstance(source, Folder):
            return source.read(dataset, memory_gb)
        return source.read(dataset)
    parts: Any
    if is_torchvision(dataset):
        parts = arrays_of(dataset)
    else:
        parts = build("dataset", dataset, named={"root": dataset.root})
    what = f"dataset._target_={dataset.target}"
    if not isinstance(parts, dict) or not {"train", "test"} <= parts.keys():
        form = '{"train": (images, labels), "test": (images, labels)}'
        found = type(parts).__name__
        found += f" with the keys {[*parts]}" if isinstance(parts, dict) else ""
        raise UserError(f"{what}: expected it to return {form}, not {found}")
    names, pairs = zip(
        *((f"{what}: {name}", parts[name]) for name in ("train", "test")), strict=True
    )
    other = sorted(map(str, parts.keys() - {"train", "test", "classes"}))
    notes = (f"not read: {', '.join(other)}",) if other else ()
    return from_arrays(names, pairs, parts.get("classes"), notes)


def described(dataset: Dataset, memory_gb: float | None = None) -> Iterator[str]:
    """Yield in lines what a run reads, for its owner to see that it is what was meant."""
    splits = load(dataset, memory_gb=memory_gb)
    try:
        measured = with_statistics(dataset, splits.train)
    except UserError as error:  # for which the notes may have the reason
        raise UserError("; ".join([str(error), *splits.notes])) from error
    parts = {"train": splits.train, "held out": splits.val, "test": splits.test}
    there = {name: split for name, split in parts.items() if split is not None}
    height, width = splits.train.images.shape[1:3]
    counts = ", ".join(f"{len(split)} {name}" for name, split in there.items())
    yield f"dataset={dataset.name}: {counts}; {width}x{height} pixels"
    mean, std = (
        " ".join(f"{value:.3f}" for value in values or [])
        for values in (measured.mean, measured.std)
    )
    yield f"  mean {mean}, std {std}{'' if dataset.mean else ', measured'}"
    names = splits.train.classes or ()
    per_class = zip(
        *(np.bincount(split.labels, minlength=len(names)) for split in there.values()), strict=True
    )
    shown = [f"{name} {'+'.join(map(str, n))}" for name, n in zip(names, per_class, strict=True)]
    more = [f"and {len(shown) - 20} more"] if len(shown) > 20 else []
    yield f"  {len(names)} classes ({' + '.join(there)}): {', '.join(shown[:20] + more)}"
    yield from (f"  {note}" for note in splits.notes)
    if known := _in_both(splits.train, splits.test):
        yield f"  {known} of the {len(splits.test)} test images are training images, too"


def _in_both(train: Split, test: Split) -> int:
    """Return how many test images are the same as a training image, pixel by pixel."""
    seen = {hashlib.blake2b(image.tobytes()).digest() for image in train.images}
    return sum(hashlib.blake2b(image.tobytes()).digest() in seen for image in test.images)


def _limited(split: Split, limit: int | None, in_turns: bool) -> Split:
    """Return the first images, or as many of each class: images of one's own are in the order of
    their classes.
    """
    if limit is None:
        return split
    return split.take(in_turn(split.labels, limit) if in_turns else slice(limit))


def _resized(split: Split, size: int | None) -> Split:
    if size is None or split.images.shape[1:3] == (size, size):
        return split
    from PIL import Image

    from resnests.data.pictures import fit

    images = np.empty((len(split), size, size, 3), np.uint8)
    for place, image in enumerate(split.images):
        images[place] = np.asarray(fit(Image.fromarray(image), size))
    is_view = isinstance(split.images, ImageView)
    return replace(split, images=ImageView(images) if is_view else images)


def _within(loaded: Loaded, size: int | None, memory_gb: float | None) -> Loaded:
    """Return `loaded`, with views of its images where all together are larger than `memory_gb`."""
    height, width = (size, size) if size else loaded.train.images.shape[1:3]
    if not exceeds((len(loaded.train) + len(loaded.test), height, width, 3), memory_gb):
        return loaded
    train, test = (
        replace(split, images=ImageView(split.images))
        if isinstance(split.images, np.ndarray)
        else split
        for split in (loaded.train, loaded.test)
    )
    return replace(loaded, train=train, test=test)


def _checked_classes(dataset: Dataset, loaded: Loaded) -> tuple[str, ...] | None:
    """Return the names of all classes: numbers where a user's own images have none, and None for
    other images. Raises a UserError unless the labels fit dataset.num_classes, and each class of a
    user's own images has some for training and some for testing.
    """
    names, asked = loaded.train.classes, dataset.num_classes
    splits = {"training": loaded.train, "test": loaded.test}
    highest = max(int(split.labels.max()) + 1 for split in splits.values())
    if names is not None:
        found = ", ".join(names[:20]) + (", ..." if len(names) > 20 else "")
        expected = f"{len(names)}, as there are {found}; or null, to count them"
        require(asked in (None, len(names)), "dataset.num_classes", asked, expected)
        ok = highest <= len(names)
        require(ok, f"dataset={dataset.name}: label", highest - 1, f"one of {found}, from 0 up")
    count = asked or len(names or range(highest))
    if dataset.is_own:
        expected = f"{highest}, as the labels go from 0 to {highest - 1}; or null, to count them"
        ok = count == highest or (names is not None and count > highest)
        require(ok, "dataset.num_classes", asked, expected)
        _require_all_classes(dataset, splits, count)
    expected = f"at least {highest}, as labelled"
    require(count >= highest, "dataset.num_classes", count, expected)
    return names or (tuple(map(str, range(count))) if dataset.is_own else None)


def _require_all_classes(dataset: Dataset, splits: dict[str, Split], count: int) -> None:
    """Raise a UserError unless all classes have images for training and for testing, also within
    the limits on both.
    """
    for (what, split), key in zip(splits.items(), ("train_limit", "test_limit"), strict=True):
        present = np.unique(split.labels)
        if len(present) < count:  # of any len + 1 labels one is missing
            missing = np.setdiff1d(np.arange(len(present) + 1), present)[0]
            expected = f"{what} images of each of {count} classes, but label {missing} has none"
            raise UserError(f"dataset={dataset.name}: expected {expected}")
        limit = getattr(dataset, key)
        expected = f"at least {count}, an image of each class, or null for all images"
        require(limit is None or limit >= count, f"dataset.{key}", limit, expected)


def main(text: str, memory_gb: str = "null") -> None:
    """Fetch the data set of `text`, and read it where that may fail; print what a user's own is."""
    dataset = Dataset(**json.loads(text))
    prepare(dataset)
    if dataset.is_own:
        sys.stdout.reconfigure(errors="backslashreplace")  # type: ignore[union-attr]
        print("\n".join(described(dataset, json.loads(memory_gb))))
    elif may_hold_out_none(dataset):
        load(dataset, memory_gb=json.loads(memory_gb))


if __name__ == "__main__":
    try:
        main(*sys.argv[1:])
    except UserError as problem:
        sys.exit(str(problem))
