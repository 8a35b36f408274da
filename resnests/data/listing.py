"""List the images of a folder with their classes, and decide which are for testing.

Everything is decided from names alone, before a picture is opened: what could be meant in two ways
is a UserError, and what is passed over on purpose is a note for the owner.
"""

from __future__ import annotations

import os
import stat
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from resnests.data.arrays import stratified
from resnests.errors import UserError

ENDINGS = (
    ".png", ".jpg", ".jpeg", ".jfif", ".bmp", ".gif", ".tif", ".tiff", ".webp",
    ".ppm", ".pgm", ".pbm", ".pnm",
)  # fmt: skip
TESTS = ("test", "val", "valid", "validation")  # which folder is for testing: the first there is


@dataclass(frozen=True)
class Picture:
    path: Path
    label: int


@dataclass(frozen=True)
class Listing:
    """All images of a folder in the order in which they are loaded."""

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
    parts, notes = _parts(root)
    others: list[Path] = []
    if not parts:
        classes = _class_folders(root)
        everything = _pictures(root, classes, others)
        labels = np.array([picture.label for picture in everything])
        _require_five_each(root, classes, labels)
        for_test = stratified(labels, 0.2)
        train = [p for p, chosen in zip(everything, for_test, strict=True) if not chosen]
        test = [p for p, chosen in zip(everything, for_test, strict=True) if chosen]
        notes.append("every fifth image of a class is for testing, as there is no train/")
    else:
        classes, tested = (_class_folders(folder) for folder in parts)
        _require_same(parts, classes, tested)
        train, test = (_pictures(folder, classes, others) for folder in parts)
    if others:
        notes.append(f"{len(others)} other file(s) not read, such as {shown(others[0])}")
    return Listing(tuple(classes), train, test, tuple(notes))


def read_bytes(path: Path) -> bytes:
    """Return the content of a regular file; raises a UserError. Opening a pipe would wait."""
    try:
        if not stat.S_ISREG(path.stat().st_mode):
            raise UserError(f"{shown(path)}: expected a file")
        return path.read_bytes()
    except OSError as error:
        raise _unreadable(path, error) from error


def _parts(root: Path) -> tuple[list[Path], list[str]]:
    """Return the folders of the images for training and for testing, [] where `root` has classes
    instead, and what to note of that.
    """
    named: dict[str, Path] = {}
    for entry in _folders(root):
        name = entry.name.lower()
        if name in named:
            raise UserError(f"{shown(root)}: expected one of {named[name].name}/ and {entry.name}/")
        if name in ("train", *TESTS):
            named[name] = Path(entry.path)
    tests = [name for name in TESTS if name in named]
    both = "train" in named and bool(tests)
    # A class may be called train: its folder has pictures, not folders of classes
    if not both and not any(_folders(path) for path in named.values()):
        return [], []
    if not both or (tests[0] != "test" and len(tests) > 1):
        expected = "train/ and test/ (or val/ or valid/), with a sub-folder for each class in both"
        has = ", ".join(f"{path.name}/" for path in named.values())
        raise UserError(f"{shown(root)}: expected {expected}, not {has}")
    used = [named["train"], named[tests[0]]]
    others = [entry.name for entry in _folders(root) if Path(entry.path) not in used]
    notes = [f"{used[1].name}/ is for testing, as there is no test/"] if tests[0] != "test" else []
    notes += [f"not read: {', '.join(map(shown, others))}"] if others else []
    return used, notes


def _class_folders(folder: Path) -> list[str]:
    """Return the names of the folders of classes; raises a UserError where there are fewer than
    two, or images beside them, whose class nobody knows.
    """
    names = [entry.name for entry in _folders(folder)]
    if len(names) < 2:
        expected = "a sub-folder for each of at least two classes"
        raise UserError(f"{shown(folder)}: expected {expected}, but it has {len(names)}")
    for name in names:
        if not name.isprintable():
            raise UserError(f"{shown(folder / name)}: expected a name that can be printed")
    for entry in _entries(folder):
        if _is_image(entry.name) and not entry.is_dir():
            path = shown(Path(entry.path))
            raise UserError(f"{path}: expected images in the folder of their class, not beside it")
    return names


def _require_same(parts: list[Path], train: list[str], test: list[str]) -> None:
    differences = []
    for part, names, others in ((parts[0], train, test), (parts[1], test, train)):
        if only := sorted(set(names) - set(others)):
            differences.append(f"only {part.name} has {', '.join(only)}")
    if differences:
        expected = f"the same classes in {parts[0].name} and {parts[1].name}"
        raise UserError(f"{shown(parts[0].parent)}: expected {expected}: {'; '.join(differences)}")


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
    for label, name in enumerate(classes):
        pictures = []
        for path in _files_below(folder / name, ()):
            if _is_image(path.name):
                pictures.append(Picture(path, label))
            else:
                others.append(path)
        if not pictures:
            expected = f"at least one image ({', '.join(ENDINGS)})"
            raise UserError(f"{shown(folder / name)}: expected {expected}")
        found += pictures
    return found


def _files_below(folder: Path, above: tuple[tuple[int, int], ...]) -> Iterator[Path]:
    """Yield all files below `folder`, also where links lead; a link back up is a UserError."""
    try:
        status = folder.stat()
    except OSError as error:
        raise _unreadable(folder, error) from error
    here = (status.st_dev, status.st_ino)
    if here in above:
        raise UserError(f"{shown(folder)}: expected no link to a folder that it is in")
    for entry in _entries(folder):
        if entry.is_dir():
            yield from _files_below(Path(entry.path), (*above, here))
        else:
            yield Path(entry.path)


def _folders(folder: Path) -> list[os.DirEntry[str]]:
    return [entry for entry in _entries(folder) if entry.is_dir()]


def _entries(folder: Path) -> list[os.DirEntry[str]]:
    """Return what is in `folder` in the order of names, without what begins with a dot or __, as
    editors, systems and version control leave it: .git, .DS_Store, ._0.png, __pycache__, __MACOSX.
    """
    try:
        with os.scandir(folder) as entries:
            kept = [entry for entry in entries if not entry.name.startswith((".", "__"))]
            for entry in kept:
                entry.is_dir()  # which says what is wrong with a link to itself
    except OSError as error:
        raise _unreadable(folder, error) from error
    return sorted(kept, key=lambda entry: entry.name)


def _is_image(name: str) -> bool:
    return Path(name).suffix.lower() in ENDINGS


def _unreadable(path: Path, error: OSError) -> UserError:
    return UserError(f"{shown(path)} cannot be read ({error.strerror})")


def shown(path: Path | str) -> str:
    """Return a path as text that stays in one line and can be printed everywhere."""
    return str(path) if str(path).isprintable() else ascii(str(path))
