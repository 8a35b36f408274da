"""Find which folders hold the images for training and for testing, and which of them are classes.

Everything is decided from names. Where they could be meant in two ways, such as splits under names
that nobody knows, the UserError says what to give instead: a folder of splits that is read as one
of classes trains a network that tells training from test images.
"""

from __future__ import annotations

import os
import re
from pathlib import Path

from resnests.errors import UserError

# What a folder is called, in small letters and without the "set" of train_set: its split.
SPLITS = {
    "train": "train",
    "training": "train",
    "test": "test",
    "testing": "test",
    "val": "val",
    "valid": "val",
    "validation": "val",
}
EXPECTED = "train/ and test/ (or val/), with a sub-folder for each class in both"


def split_folders(root: Path) -> tuple[list[Path], list[str]]:
    """Return the folders of the images for training and for testing, [] where `root` has classes
    instead, and what to note of that; raises a UserError.
    """
    named = _named_folders(root)
    has = ", ".join(f"{shown(path.name)}/" for path in folders(root)[:20])
    both = "train" in named and len(named) > 1
    # A class may be called train: its folder has pictures, not folders of classes
    if not both and not any(folders(path) for paths in named.values() for path in paths):
        return [], []
    second = "test" if "test" in named else "val"
    if not both:
        expected = EXPECTED
        if "train" in named:
            mend = "of which every fifth image of a class would be for testing"
            expected += f"; or dataset.root={shown(named['train'][0])}, {mend};"
        raise UserError(f"{shown(root)}: expected {expected} not {has}")
    for split in ("train", second):
        if len(named[split]) > 1:
            one, other, *_ = (f"{path.name}/" for path in named[split])
            raise UserError(f"{shown(root)}: expected one of {one} and {other}, not {has}")
    used = [named["train"][0], named[second][0]]
    others = [path.name for path in folders(root) if path not in used]
    notes = [f"{used[1].name}/ is for testing, as there is no test/"] if second == "val" else []
    notes += [f"not read: {', '.join(map(shown, others))}"] if others else []
    return [_unpacked(path) for path in used], notes


def class_folders(folder: Path) -> list[str]:
    """Return the names of the folders of classes; raises a UserError where there are fewer than
    two.
    """
    names = [path.name for path in folders(folder)]
    if len(names) < 2:
        expected = "a sub-folder for each of at least two classes"
        raise UserError(f"{shown(folder)}: expected {expected}, but it has {len(names)}")
    for name in names:
        if not name.isprintable():
            raise UserError(f"{shown(folder / name)}: expected a name that can be printed")
    return names


def require_classes(root: Path) -> None:
    """Raise a UserError where the folders in `root` are splits, or the data set is in one of them.

    One folder below each class, such as images/, tells nothing. The same two or more below each
    could be the classes of splits under other names, and are so more often than not.
    """
    there = folders(root)
    inside = {path: sorted(below.name for below in folders(path)) for path in there}
    common = inside[there[0]] if there else []
    if len(there) > 1 and len(common) > 1 and all(names == common for names in inside.values()):
        both = ", ".join(f"{shown(path.name)}/" for path in there[:2])
        each = ", ".join(f"{shown(name)}/" for name in common[:5])
        mend = f"if these are splits, call them train/ and test/; if {each} are, put them on top"
        raise UserError(f"{shown(root)}: {both} ... all have the same folders, {each}: {mend}")
    for path in there:
        if _is_data_set(path, alone=len(there) == 1):
            expected = f"folders of classes, or train/ and test/, as {shown(_innermost(path))} has"
            raise UserError(f"dataset.root={shown(root)}: expected {expected}: give that folder")


def require_same(parts: list[Path], train: list[str], test: list[str]) -> None:
    """Raise a UserError that names the classes that only one of both parts has."""
    differences = []
    for part, names, others in ((parts[0], train, test), (parts[1], test, train)):
        if only := sorted(set(names) - set(others)):
            differences.append(f"only {part.name} has {', '.join(only)}")
    if differences:
        expected = f"the same classes in {parts[0].name} and {parts[1].name}"
        raise UserError(f"{shown(parts[0].parent)}: expected {expected}: {'; '.join(differences)}")


def _named_folders(root: Path) -> dict[str, list[Path]]:
    """Return the folders in `root` that are called like a split, by that split."""
    named: dict[str, list[Path]] = {}
    for path in folders(root):
        if (split := _split(path)) is not None:
            named.setdefault(split, []).append(path)
    return named


def _split(folder: Path) -> str | None:
    """Return the split that a folder is called like."""
    return SPLITS.get(re.sub("[-_ ]?set$", "", folder.name.lower()))


def _unpacked(folder: Path) -> Path:
    """Return the folder of a split, one deeper where it was unpacked into one of its own name, as
    train/train/.
    """
    below = folders(folder)
    return below[0] if len(below) == 1 and _split(below[0]) == _split(folder) else folder


def _is_data_set(folder: Path, alone: bool) -> bool:
    """Return whether a folder has splits; where it is `alone`, also whether it has classes."""
    named = _named_folders(folder)
    if "train" in named and len(named) > 1:
        return True
    below = folders(folder) if alone else []
    return len(below) > 1 or (len(below) == 1 and _is_data_set(below[0], alone=True))


def _innermost(folder: Path) -> Path:
    """Return the first folder, `folder` or below it, that has more than one folder."""
    while len(below := folders(folder)) == 1:
        folder = below[0]
    return folder


def folders(folder: Path) -> list[Path]:
    """Return the folders in `folder` in the order of names."""
    return [Path(entry.path) for entry in entries(folder) if entry.is_dir()]


def entries(folder: Path) -> list[os.DirEntry[str]]:
    """Return what is in `folder` in the order of names, without what begins with a dot or __, as
    editors, systems and version control leave it: .git, .DS_Store, ._0.png, __pycache__, __MACOSX.
    """
    try:
        with os.scandir(folder) as found:
            kept = [entry for entry in found if not entry.name.startswith((".", "__"))]
            for entry in kept:
                entry.is_dir()  # which says what is wrong with a link to itself
    except OSError as error:
        raise unreadable(folder, error) from error
    return sorted(kept, key=lambda entry: entry.name)


def unreadable(path: Path, error: OSError) -> UserError:
    """Return an error that says why `path` cannot be read."""
    return UserError(f"{shown(path)} cannot be read ({error.strerror})")


def shown(path: Path | str) -> str:
    """Return a path as text that stays in one line and can be printed everywhere."""
    return str(path) if str(path).isprintable() else ascii(str(path))
