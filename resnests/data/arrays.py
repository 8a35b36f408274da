"""Images with labels as arrays, and how they are checked, made alike and split."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np

from resnests.errors import UserError


@dataclass(frozen=True)
class Split:
    """images uint8 (N, H, W, 3); labels int64 (N,)."""

    images: np.ndarray
    labels: np.ndarray

    def __len__(self) -> int:
        return len(self.labels)

    def take(self, index: slice | np.ndarray) -> Split:
        return Split(self.images[index], self.labels[index])


def checked_split(what: str, pair: Any) -> Split:
    """The Split of a user's (images, labels), grey images as RGB; a UserError that begins with
    `what` where they are none.
    """
    try:
        images, labels = (np.asarray(part) for part in pair)
    except (TypeError, ValueError) as error:
        raise UserError(f"{what}: expected a pair of arrays, images and labels") from error
    if images.ndim == 4 and images.shape[3] == 1:
        images = images[..., 0]
    if images.dtype != np.uint8 or not (images.ndim == 3 or images.shape[3:] == (3,)):
        expected = "uint8 images of shape (N, H, W), (N, H, W, 1) or (N, H, W, 3)"
        raise UserError(f"{what}: expected {expected}, not {images.dtype} {images.shape}")
    if labels.dtype.kind not in "iu" or labels.shape != images.shape[:1] or not len(labels):
        expected = f"integer labels of shape ({len(images)},), of at least one image"
        raise UserError(f"{what}: expected {expected}, not {labels.dtype} {labels.shape}")
    if labels.min() < 0:
        raise UserError(f"{what}: expected labels from 0 up, not {labels.min()}")
    return Split(grey_to_rgb(images) if images.ndim == 3 else images, labels.astype(np.int64))


def grey_to_rgb(images: np.ndarray) -> np.ndarray:
    """(N, H, W) -> (N, H, W, 3)."""
    return np.repeat(images[..., None], 3, axis=3)


def stratified(labels: np.ndarray, fraction: float) -> np.ndarray:
    """A fixed mask (N,) of `fraction` of each class, spread evenly over the images in their
    order.
    """
    rank = np.empty(len(labels), dtype=np.int64)
    for label in np.unique(labels):
        members = np.flatnonzero(labels == label)
        rank[members] = np.arange(len(members))
    return np.floor((rank + 1) * fraction + 1e-9) > np.floor(rank * fraction + 1e-9)
