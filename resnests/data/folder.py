"""A user's own images: a folder with a sub-folder for each class, or arrays in an .npz file."""

from __future__ import annotations

import zipfile
from pathlib import Path

import numpy as np

from resnests.config.parts import Dataset
from resnests.data.arrays import Split, checked_split, stratified
from resnests.errors import UserError, require

# The names of the four arrays in an .npz, in either of two usual spellings.
NAMES = (
    ("train_images", "train_labels", "test_images", "test_labels"),
    ("x_train", "y_train", "x_test", "y_test"),
)
ENDINGS = (".png", ".jpg", ".jpeg", ".bmp", ".gif", ".tif", ".tiff", ".webp", ".ppm", ".pgm")


class Folder:
    """dataset.root is an .npz file, a folder with train/CLASS/* and test/CLASS/*, or one with
    CLASS/*, of which then every fifth image of a class is for testing.
    """

    def is_ready(self, dataset: Dataset) -> bool:
        root = Path(dataset.root)
        return root.is_dir() or (root.suffix == ".npz" and root.is_file())

    def prepare(self, dataset: Dataset) -> None:
        expected = "a folder with a sub-folder for each class, or an .npz file"
        require(self.is_ready(dataset), "dataset.root", dataset.root, expected)

    def read(self, dataset: Dataset) -> tuple[Split, Split]:
        root = Path(dataset.root)
        if root.is_file():
            return _read_npz(root)
        if (root / "train").is_dir() and (root / "test").is_dir():
            classes = _sub_folders(root / "train")
            train, test = (_read_classes(root / part, classes) for part in ("train", "test"))
            if train.images.shape[1:] != test.images.shape[1:]:
                raise UserError(f"{root}: expected images of one size in train and test")
            return train, test
        everything = _read_classes(root, _sub_folders(root))
        for_test = stratified(everything.labels, 0.2)
        if not for_test.any():
            raise UserError(f"{root}: expected at least five images in a class, to test with one")
        return everything.take(~for_test), everything.take(for_test)


def _read_npz(path: Path) -> tuple[Split, Split]:
    try:
        with open(path, "rb") as raw, np.load(raw, allow_pickle=False) as file:
            found = [names for names in NAMES if set(names) <= set(file.files)]
            if not found:
                spellings = " or ".join(", ".join(names) for names in NAMES)
                has = ", ".join(file.files)
                raise UserError(f"{path}: expected arrays {spellings}, but it has {has}")
            arrays = [file[name] for name in found[0]]
    except (OSError, ValueError, EOFError, zipfile.BadZipFile, zipfile.LargeZipFile) as error:
        if isinstance(error, UserError):
            raise
        raise UserError(f"{path} is cut short, corrupt or no .npz file ({error})") from error
    arrays[1::2] = [labels.reshape(-1) for labels in arrays[1::2]]  # Keras has (N, 1)
    train, test = (
        checked_split(f"{path}: {name}", pair)
        for name, pair in (("training images", arrays[:2]), ("test images", arrays[2:]))
    )
    if train.images.shape[1:] != test.images.shape[1:]:
        raise UserError(f"{path}: expected images of one size in train and test")
    return train, test


def _sub_folders(folder: Path) -> list[str]:
    names = sorted(path.name for path in folder.iterdir() if path.is_dir())
    if len(names) < 2:
        raise UserError(f"{folder}: expected a sub-folder for each of at least two classes")
    return names


def _read_classes(folder: Path, classes: list[str]) -> Split:
    """All images below folder/CLASS, in the order of their names; labels count the classes."""
    from PIL import Image, UnidentifiedImageError

    images, labels = [], []
    for label, name in enumerate(classes):
        for path in sorted((folder / name).glob("*")):
            if path.suffix.lower() not in ENDINGS:
                continue
            try:
                with Image.open(path) as picture:
                    images.append(np.asarray(picture.convert("RGB")))
            except (OSError, UnidentifiedImageError, Image.DecompressionBombError) as error:
                raise UserError(f"{path} is cut short, corrupt or no image ({error})") from error
            labels.append(label)
            if images[-1].shape != images[0].shape:
                sizes = [f"{image.shape[1]}x{image.shape[0]}" for image in (images[0], images[-1])]
                raise UserError(f"{path}: expected {sizes[0]} like the first image, not {sizes[1]}")
    if not images:
        raise UserError(f"{folder}: expected images ({', '.join(ENDINGS)}) in its sub-folders")
    return Split(np.stack(images), np.array(labels, dtype=np.int64))
