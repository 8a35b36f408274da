"""Read images and labels from an .npz file."""

from __future__ import annotations

from pathlib import Path

import numpy as np

from resnests.data.arrays import Loaded, from_arrays
from resnests.errors import UserError

# The names of the four arrays, in either of two usual spellings.
NAMES = (
    ("train_images", "train_labels", "test_images", "test_labels"),
    ("x_train", "y_train", "x_test", "y_test"),
)


def read_npz(path: Path) -> Loaded:
    """Return the images in `path`; raises a UserError. A pickle in it is never opened."""
    arrays, other = _arrays(path)
    notes = (f"not read: {', '.join(other)}",) if other else ()
    what = [f"{path}: {name}" for name in ("training images", "test images")]
    return from_arrays(what, [arrays[:2], arrays[2:]], notes=notes)


def _arrays(path: Path) -> tuple[list[np.ndarray], list[str]]:
    """Return the four arrays of `path`, and the names of all others that it has."""
    try:
        with open(path, "rb") as raw, np.load(raw, allow_pickle=False) as file:
            found = [names for names in NAMES if set(names) <= set(file.files)]
            if len(found) != 1:
                spellings = " or ".join(", ".join(names) for names in NAMES)
                has = ", ".join(map(ascii, file.files))
                raise UserError(f"{path}: expected arrays {spellings}, but it has {has}")
            other = sorted(ascii(name) for name in set(file.files) - set(found[0]))
            return [file[name] for name in found[0]], other
    except UserError:
        raise
    except Exception as error:  # zipfile, zlib and numpy raise whatever hostile bytes lead them to
        reason = str(error) or type(error).__name__
        raise UserError(f"{path} is cut short, corrupt or no .npz file ({reason})") from error
