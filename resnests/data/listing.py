"""List the images of a folder with their classes, and decide which are for testing.

Everything is decided from names alone, before a picture is opened: what could be meant in two ways
is a UserError, and what is passed over on purpose is a note for the owner.
"""

from __future__ import annotations

import stat
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from resnests.data.arrays import stratified
from resnests.data.layout import (
    class_folders,
    entries,
    require_classes,
    require_same,
    shown,
    split_folders,
    unreadable,
)
from resnests.errors import UserError

ENDINGS = (
    ".png", ".jpg", ".jpeg", ".jfif", ".bmp", ".gif", ".tif", ".tiff", ".webp",
    ".ppm", ".pgm", ".pbm", ".pnm",
)  # fmt: skip


@dataclass(frozen=True)
class Picture:
    path: Path
    label: int


@dataclass(frozen=True)
class Listing:
    """Lists all images of a folder in the order in which they are loaded."""

    classes: tuple[str, ...]
    train: list[Picture]
    test: list[Picture]
    notes: tuple[str, ...] = ()

    def labels(self) -> tuple[list[int], list[int]]:
        train, test = ([p.label for p in pictures] for pictures in (self.train, self.test))
        return train, test


def list_images(root: Path) -> Listing:
    """List the images below root/train and root/test, or of the classes in root; raises a
    UserError.
    """
    parts, notes = split_folders(root)
    others = _files_in(root) if parts else []
    if not parts:
        require_classes(root)
        classes = class_folders(root)
        everything = _pictures(root, classes, others)
        labels = np.array([picture.label for picture in everything])
        _require_five_each(root, classes, labels)
        for_test = stratified(labels, 0.2)
        train = [p for p, chosen in zip(everything, for_test, strict=True) if not chosen]
        test = [p for p, chosen in zip(everything, for_test, strict=True) if chosen]
        notes.append("every fifth image of a class is for testing, as there is no train/")
    else:
        classes, tested = (class_folders(folder) for folder in parts)
        require_same(parts, classes, tested)
        train, test = (_pictures(folder, classes, others) for folder in parts)
    if others:
        notes.append(not_read(others))
    return Listing(tuple(classes), train, test, tuple(notes))


def not_read(others: list[Path]) -> str:
    """Return a note that counts files by their endings, and names one of them."""
    kinds = Counter(shown(path.suffix.lower()) or "without an ending" for path in others)
    counted = ", ".join(f"{count} {kind}" for kind, count in kinds.most_common())
    files = "file" if len(others) == 1 else "files"
    return f"{len(others)} {files} not read: {counted}, such as {shown(others[0])}"


def read_bytes(path: Path) -> bytes:
    """Return the content of a regular file; raises a UserError. Opening a pipe would wait."""
    try:
        if not stat.S_ISREG(path.stat().st_mode):
            raise UserError(f"{shown(path)}: expected a file")
        return path.read_bytes()
    except OSError as error:
        raise unreadable(path, error) from error


def _require_five_each(root: Path, classes: list[str], labels: np.ndarray) -> None:
    for name, count in zip(classes, np.bincount(labels), strict=True):
        if count < 5:
            expected = f"at least five images in a class, to test with one, but {name} has {count}"
            raise UserError(f"{shown(root)}: expected {expected}")


def _pictures(folder: Path, classes: list[str], others: list[Path]) -> list[Picture]:
    """List the images below folder/CLASS in the order of their names; what is none of them joins
    `others`.
    """
    found = []
    others += _without_class(folder)
    for label, name in enumerate(classes):
        pictures = []
        for path in files_below(folder / name):
            if is_image(path.name):
                pictures.append(Picture(path, label))
            else:
                others.append(path)
        if not pictures:
            expected = f"at least one image ({', '.join(ENDINGS)})"
            raise UserError(f"{shown(folder / name)}: expected {expected}")
        found += pictures
    return found


def _without_class(folder: Path) -> list[Path]:
    """Return the files beside the folders of classes; raises a UserError for images, whose class
    nobody knows.
    """
    files = _files_in(folder)
    for path in files:
        if is_image(path.name):
            expected = "images in the folder of their class, not beside it"
            raise UserError(f"{shown(path)}: expected {expected}")
    return files


def _files_in(folder: Path) -> list[Path]:
    """Return the files in `folder`, without those below."""
    return [Path(entry.path) for entry in entries(folder) if not entry.is_dir()]


def files_below(folder: Path, above: tuple[tuple[int, int], ...] = ()) -> Iterator[Path]:
    """Yield all files below `folder`, also where links lead; a link back up is a UserError."""
    try:
        status = folder.stat()
    except OSError as error:
        raise unreadable(folder, error) from error
    here = (status.st_dev, status.st_ino)
    if here in above:
        raise UserError(f"{shown(folder)}: expected no link to a folder that it is in")
    for entry in entries(folder):
        if entry.is_dir():
            yield from files_below(Path(entry.path), (*above, here))
        else:
            yield Path(entry.path)


def is_image(name: str) -> bool:
    return Path(name).suffix.lower() in ENDINGS
