"""Read data sets of torchvision, or of classes like them, as arrays, by their `_target_` alone."""

from __future__ import annotations

import inspect
import os
import sys
from contextlib import AbstractContextManager, nullcontext
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
from filelock import FileLock

from resnests import environment
from resnests.config.parts import Dataset
from resnests.config.targets import build, locate
from resnests.errors import UserError, require


def is_torchvision(dataset: Dataset) -> bool:
    """Return whether `_target_` is a class like those of torchvision.datasets."""
    found = locate("dataset", dataset)
    known: Any = sys.modules.get("torchvision.datasets")  # which such a class has imported
    return known is not None and inspect.isclass(found) and issubclass(found, known.VisionDataset)


def arrays_of(dataset: Dataset) -> dict[str, Any]:
    """Return {"train": (images, labels), "test": ..., "classes": names}; raise a UserError.

    The class is made twice: with train=True and False where it has `train`, or else with split=
    `train_split` and `test_split` of the YAML (train and test). It downloads what is missing where
    dataset.download says so, but for a dry run. Images become RGB, scaled and cropped to `size`
    where that is given.
    """
    args = dict(dataset.args)
    size = args.pop("size", None)
    names = {which: args.pop(f"{which}_split", which) for which in ("train", "test")}
    what = f"dataset._target_={dataset.target}"
    ok = size is None or (isinstance(size, int) and size >= 1)
    if not ok:
        raise UserError(f"dataset.size={size}: expected at least 1 pixel, or null")
    kind: Any = locate("dataset", dataset)
    parameters = _parameters(kind)
    if "train" in parameters:
        for key in ("train_split", "test_split"):
            expected = "none, as the class has a parameter train"
            require(key not in dataset.args, f"dataset.{key}", dataset.args.get(key), expected)
    may_download = dataset.download and not environment.is_dry_run()
    offered = {"root": dataset.root, "download": may_download}
    given = {key: value for key, value in offered.items() if key in parameters}
    found: dict[str, Any] = {}
    for which, name in names.items():
        if "train" in parameters:
            chosen: dict[str, Any] = {"train": which == "train"}
        elif "split" in parameters:
            chosen = {"split": name}
        else:
            raise UserError(f"{what}: expected a class with a parameter train or split")
        part = replace(dataset, args=given | args | chosen)
        with _lock(dataset) if given.get("download") else nullcontext():
            made = build("dataset", part)
        found[which] = _arrays(made, f"{what}: {which}", size)
        if names_of_classes := getattr(made, "classes", None):
            found["classes"] = list(map(str, names_of_classes))
    return found


def _parameters(kind: type) -> set[str]:
    """Return the names that the class takes, those that its **kwargs hand on to its base included,
    as of EMNIST.
    """
    found: set[str] = set()
    for base in kind.__mro__:
        if "__init__" in vars(base):
            parameters = inspect.signature(base).parameters
            found |= parameters.keys()
            if not any(one.kind is one.VAR_KEYWORD for one in parameters.values()):
                break
    return found


def _lock(dataset: Dataset) -> AbstractContextManager[Any]:
    """Return a lock under which one process downloads what the others then find; none where nothing
    can be written.
    """
    root = Path(dataset.root)
    try:
        root.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise UserError(f"dataset.root={root}: cannot be made ({error.strerror})") from error
    if not os.access(root, os.W_OK):
        return nullcontext()
    return FileLock(root / f".{str(dataset.target).rpartition('.')[2]}.lock")


def _arrays(images: Any, what: str, size: int | None) -> tuple[np.ndarray, np.ndarray]:
    """Return all images (N, H, W, 3) and labels (N,) of a data set of PIL images."""
    from PIL import Image

    from resnests.data.pictures import fit

    pictures, labels = [], []
    for picture, label in (images[index] for index in range(len(images))):
        if not isinstance(picture, Image.Image):
            raise UserError(f"{what}: expected PIL images, not {type(picture).__name__}")
        picture = picture.convert("RGB")
        pictures.append(np.asarray(fit(picture, size) if size else picture))
        if pictures[-1].shape != pictures[0].shape:
            raise UserError(f"{what}: images of several sizes; dataset.size=64 makes them alike")
        labels.append(label)
    return np.array(pictures), np.array(labels)
