"""Give views of images in a file or an array, which are read only when they are asked for.

A file is read, not mapped into memory: where it was cut short or cannot be read, that is an error
here, while a mapped one ends the process (SIGBUS); and no part of it counts as memory of ours.
"""

from __future__ import annotations

import math
import os
import weakref
import zlib
from collections.abc import Iterator
from pathlib import Path
from typing import Any, Protocol

import numpy as np

from resnests.errors import UserError

# of each image of a file: CRC-32 of the picture that it was made of, and of its pixels; and 1 more
# than the largest value of a picture of 16 bits, 0 of others
SUMS = np.dtype([("source", "<u4"), ("pixels", "<u4"), ("largest", "<u4")])
CHUNK = 2**22  # bytes
GB = 1e9


def exceeds(shape: tuple[int, ...], memory_gb: float | None) -> bool:
    """Return whether images uint8 of `shape` are larger than pipeline.memory_gb lets be in
    memory.
    """
    return memory_gb is not None and math.prod(shape) > memory_gb * GB


class ImageFile:
    """Holds open a file of images uint8 (N, H, W, 3), and checks each when it is read."""

    def __init__(self, path: Path, number: int, sums: np.ndarray, shape: tuple[int, ...]) -> None:
        self.path, self.number, self.shape = path, number, shape
        self.length = math.prod(shape[1:])
        self.pixels, self.largest = sums["pixels"].copy(), sums["largest"].copy()
        weakref.finalize(self, os.close, number)

    def __reduce__(self) -> Any:
        return open_images, (self.path, self.shape)

    def read(self, places: np.ndarray, out: np.ndarray) -> None:
        """Read the images at `places` (B,) into `out` (B, H, W, 3); raise a UserError."""
        for place, image in zip(places.tolist(), out, strict=True):
            try:
                count = os.preadv(self.number, [image], place * self.length)
            except OSError as error:
                raise UserError(f"{self.path} cannot be read ({error.strerror})") from error
            if count != self.length or zlib.crc32(image) != self.pixels[place]:
                mend = "delete it, and the same command makes it anew"
                raise UserError(f"{self.path} is cut short or corrupt: {mend}")


def open_images(path: Path, shape: tuple[int, ...]) -> ImageFile | None:
    """Return the images in `path`, None where they are not there or not as many; raise an
    OSError.
    """
    try:
        sums = np.fromfile(path.with_suffix(".sums"), SUMS)
        number = os.open(path, os.O_RDONLY | os.O_CLOEXEC)
    except FileNotFoundError:
        return None
    if len(sums) == shape[0] and os.fstat(number).st_size == math.prod(shape):
        return ImageFile(path, number, sums, shape)
    os.close(number)
    return None


class ImageSource(Protocol):
    """Reads images uint8 (N, H, W, 3) where they are asked for, as ImageFile does."""

    shape: tuple[int, ...]

    def read(self, places: np.ndarray, out: np.ndarray) -> None:
        """Read the images at `places` (B,) into `out` (B, H, W, 3); raise a UserError."""
        ...


class ImageView:
    """Stands for images uint8 (N, H, W, 3), those at `places` (N,) of `source`, as an array
    does.
    """

    def __init__(self, source: np.ndarray | ImageSource, places: np.ndarray | None = None) -> None:
        self.source = source
        self.places = np.arange(source.shape[0]) if places is None else places
        self.shape = (len(self.places), *source.shape[1:])

    def __len__(self) -> int:
        return len(self.places)

    def take(self, index: slice | np.ndarray) -> ImageView:
        """Return a view of some of these images."""
        return ImageView(self.source, self.places[index])

    def read(self, index: np.ndarray, out: np.ndarray) -> None:
        """Read the images at `index` (B,) into `out` (B, H, W, 3); raise a UserError."""
        self._read(self.places[index], out)

    def __getitem__(self, key: int | slice) -> np.ndarray:
        places = np.asarray(self.places[key])
        images = np.empty((places.size, *self.shape[1:]), np.uint8)
        self._read(places.reshape(-1), images)
        return images if places.ndim else images[0]

    def __iter__(self) -> Iterator[np.ndarray]:
        return (self[place] for place in range(len(self)))

    def _read(self, places: np.ndarray, out: np.ndarray) -> None:
        if isinstance(self.source, np.ndarray):
            # clip: the places are sound, and to raise for others would take a copy
            np.take(self.source, places, axis=0, out=out, mode="clip")
        else:
            self.source.read(places, out)

    def __array__(self, dtype: Any = None, copy: bool | None = None) -> np.ndarray:
        return self[:] if dtype is None else self[:].astype(dtype, copy=False)


def chunks(images: np.ndarray | ImageView) -> Iterator[np.ndarray]:
    """Yield all images in order, some megabytes at a time."""
    count = max(1, CHUNK // math.prod(images.shape[1:]))
    for start in range(0, len(images), count):
        yield images[start : start + count]
