"""Folders and files of images for the tests of what users bring."""

import zlib
from pathlib import Path

import numpy as np
from PIL import Image

from resnests.config.parts import Dataset
from resnests.config.schema import part_from


def pictures(count: int, *shape: int, name: str = "") -> np.ndarray:
    """Return random pixels: the same for the same arguments, whatever tests ran before."""
    random = np.random.default_rng([zlib.crc32(name.encode()), count, *shape])
    return random.integers(0, 256, (count, *shape), dtype=np.uint8)


def images(root: Path | str, **values) -> Dataset:
    """Return the data set of `python run.py dataset=images dataset.name=mine dataset.root=ROOT`."""
    return part_from("dataset", {"name": "mine", "source": "images", "root": str(root)} | values)


def write_classes(folder: Path, count: int, size=(10, 12), names=("ant", "bee", "cat")) -> None:
    for name in names:
        (folder / name).mkdir(parents=True)
        for index in range(count):
            (picture,) = pictures(1, *size, 3, name=f"{folder.name}/{name}/{index}")
            Image.fromarray(picture).save(folder / name / f"{index:03}.png")


def write_parts(root: Path, train=4, test=2, second="test", names=("ant", "bee", "cat")) -> Path:
    """Write root/train/CLASS/*.png and root/test/CLASS/*.png."""
    write_classes(root / "train", train, names=names)
    write_classes(root / second, test, names=names)
    return root


def write_npz(path: Path, **changed) -> Path:
    """Write a sound .npz file of six and three images in three classes, but for what is changed."""
    arrays = {"train_images": pictures(6, 8, 8), "train_labels": np.arange(6) % 3}
    arrays |= {"test_images": pictures(3, 8, 8), "test_labels": np.arange(3)}
    np.savez(path, **(arrays | changed))
    return path
