"""Read what networks predict of each test image, and test two of them on the same images."""

from __future__ import annotations

import io
from dataclasses import dataclass, field

import numpy as np

from resnests.errors import UserError
from resnests.runs.directory import RunDirectory
from resnests.runs.files import read_file

MAX_BYTES = 4_000_000_000  # of predictions: a number for each image and class


@dataclass(frozen=True)
class Predictions:
    """Holds the labels (N,) of the test images, the classes predicted (N,), all their names, and
    the files of the images, where there are any.
    """

    labels: np.ndarray
    predicted: np.ndarray
    classes: list[str]
    files: list[str] = field(default_factory=list)

    def is_of_same_images(self, other: Predictions) -> bool:
        """Return whether these are predictions of the same images in the same order."""
        return np.array_equal(self.labels, other.labels) and self.files == other.files


def read_predictions(path: str) -> Predictions | None:
    """Return the predictions of the run in `path`, None where it has none; raise a UserError where
    its file is unsound.
    """
    file = RunDirectory(path).predictions_file
    if not file.is_file():
        return None
    try:
        with np.load(io.BytesIO(read_file(file, MAX_BYTES)), allow_pickle=False) as found:
            labels, predicted, logits = found["label"], found["prediction"], found["logits"]
            count, files = logits.shape[1], found["path"].tolist() if "path" in found else []
            names = found["classes"].tolist() if "classes" in found else range(count)
        for values in (labels, predicted):
            if values.shape != logits.shape[:1] or values.min() < 0 or values.max() >= count:
                raise ValueError(f"no classes of {count}")
    except Exception as error:  # zipfile, zlib and numpy raise whatever damage leads them to
        raise UserError(
            f"{file}: no predictions ({error}); predictions=true writes them"
        ) from error
    return Predictions(labels, predicted, [str(name) for name in names], files)


def mcnemar(one: Predictions, other: Predictions) -> float:
    """Return the exact two-sided p of McNemar's test: whether two networks are right on as many of
    the same images.
    """
    from scipy.special import bdtr

    right = one.predicted == one.labels, other.predicted == other.labels
    only = int((right[0] & ~right[1]).sum()), int((right[1] & ~right[0]).sum())
    return min(1.0, 2 * float(bdtr(min(only), sum(only), 0.5))) if sum(only) else 1.0
