"""Hold images with labels as arrays; check, digest, convert and split them."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np

from resnests.data.views import ImageView
from resnests.errors import UserError

MAX_CLASSES = 2**31


@dataclass(frozen=True)
class Split:
    """Holds images uint8 (N, H, W, 3), or a view that stands for them; labels int64 (N,); the names
    of all classes, where they have any.
    """

    images: np.ndarray | ImageView
    labels: np.ndarray
    classes: tuple[str, ...] | None = None
    files: np.ndarray | None = None  # text (N,): which file each image is of, below dataset.root

    def __len__(self) -> int:
        return len(self.labels)

    def take(self, index: slice | np.ndarray) -> Split:
        """Return some of the images: a copy of an array, and of a view another view."""
        all_ = self.images
        images = all_.take(index) if isinstance(all_, ImageView) else all_[index]
        files = None if self.files is None else self.files[index]
        return replace(self, images=images, labels=self.labels[index], files=files)


@dataclass(frozen=True)
class Loaded:
    """Holds all images of a data set, a digest of them (None for those with checksums), and what
    else their owner should know of how they were read.
    """

    train: Split
    test: Split
    digest: str | None = None
    notes: tuple[str, ...] = ()


class ContentDigest:
    """Digests what is loaded: names of classes, labels, and files or arrays, in their order.

    Every piece is preceded by its kind and length, so that nothing can move from the end of one to
    the start of the next unseen. The first piece says by which rules images are read: where those
    change, what is loaded does, and so does its digest.
    """

    RULES = "images 1"

    def __init__(self) -> None:
        self._hash = hashlib.sha256()
        self.add(self.RULES)

    def add(self, piece: bytes | Any) -> None:
        """Add bytes, an array, or what JSON can carry."""
        if isinstance(piece, np.ndarray):
            # Labels are the same numbers whatever their width
            same = piece if piece.dtype == np.uint8 and piece.ndim > 1 else piece.astype("<i8")
            self.add([same.dtype.str, *same.shape])
            self._hash.update(np.ascontiguousarray(same).data)
            return
        data = piece if isinstance(piece, bytes) else json.dumps(piece).encode()
        self._hash.update(f"{type(piece).__name__} {len(data)} ".encode())
        self._hash.update(data)

    def text(self) -> str:
        return self._hash.hexdigest()[:16]


def from_arrays(
    what: Sequence[str], pairs: Sequence[Any], classes: Any = None, notes: tuple[str, ...] = ()
) -> Loaded:
    """Check a user's (images, labels) for training and for testing, and digest them.

    Raises a UserError that begins with what[0] or what[1] where they are unsound.
    """
    names = None if classes is None else tuple(map(str, classes))
    digest = ContentDigest()
    digest.add(list(names or []))
    splits = []
    for name, pair in zip(what, pairs, strict=True):
        images, labels = checked_arrays(name, pair)
        digest.add(images)
        digest.add(labels)
        splits.append(Split(grey_to_rgb(images) if images.ndim == 3 else images, labels, names))
    train, test = splits
    if train.images.shape[1:] != test.images.shape[1:]:
        sizes = [f"{s.images.shape[2]}x{s.images.shape[1]}" for s in splits]
        raise UserError(
            f"{what[1]}: expected images of one size in train and test, not {' and '.join(sizes)}"
        )
    return Loaded(train, test, digest.text(), notes)


def checked_arrays(what: str, pair: Any) -> tuple[np.ndarray, np.ndarray]:
    """Return images uint8 (N, H, W) or (N, H, W, 3), and labels int64 (N,), of a user's pair.

    Raises a UserError that begins with `what` where they are none.
    """
    try:
        images, labels = (np.asarray(part) for part in pair)
    except Exception as error:  # whatever a user's own kind of array raises
        raise UserError(f"{what}: expected a pair of arrays, images and labels") from error
    if images.ndim == 4 and images.shape[3] == 1:
        images = images[..., 0]
    if labels.ndim == 2 and labels.shape[1] == 1:  # as Keras has them
        labels = labels[:, 0]
    if images.dtype != np.uint8 or not (images.ndim == 3 or images.shape[3:] == (3,)):
        expected = "uint8 images of shape (N, H, W), (N, H, W, 1) or (N, H, W, 3)"
        raise UserError(f"{what}: expected {expected}, not {images.dtype} {images.shape}")
    if labels.dtype.kind not in "iu" or labels.shape != images.shape[:1] or not len(labels):
        expected = f"integer labels of shape ({len(images)},), of at least one image"
        raise UserError(f"{what}: expected {expected}, not {labels.dtype} {labels.shape}")
    if images.size == 0:
        raise UserError(f"{what}: expected images of at least one pixel, not {images.shape}")
    for label in (int(labels.min()), int(labels.max())):
        if not 0 <= label < MAX_CLASSES:
            raise UserError(f"{what}: expected labels from 0 up, not {label}")
    return images, labels.astype(np.int64)


def grey_to_rgb(images: np.ndarray) -> np.ndarray:
    """Return (N, H, W) as (N, H, W, 3)."""
    return np.repeat(images[..., None], 3, axis=3)


def stratified(labels: np.ndarray, fraction: float) -> np.ndarray:
    """Return a fixed mask (N,) of `fraction` of each class, spread evenly over the images in their
    order.
    """
    rank = _rank_in_class(labels)
    return np.floor((rank + 1) * fraction + 1e-9) > np.floor(rank * fraction + 1e-9)


def in_turn(labels: np.ndarray, limit: int | None) -> slice | np.ndarray:
    """Return the places of `limit` images, to which the classes gave one each in turn as long as
    they had any, in ascending order; of all images where there is no limit.
    """
    if limit is None or limit >= len(labels):
        return slice(None)
    by_turn = np.lexsort((labels, _rank_in_class(labels)))
    return np.sort(by_turn[:limit])


def _rank_in_class(labels: np.ndarray) -> np.ndarray:
    """Return how many images of the same class come before each image."""
    by_class = np.argsort(labels, kind="stable")
    _, first, inverse = np.unique(labels[by_class], return_index=True, return_inverse=True)
    rank = np.empty(len(labels), dtype=np.int64)
    rank[by_class] = np.arange(len(labels)) - first[inverse.reshape(-1)]
    return rank
