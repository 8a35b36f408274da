"""A user's own images: a folder with a sub-folder for each class, or arrays in an .npz file."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import numpy as np

from resnests.config.parts import Dataset
from resnests.data import cache
from resnests.data.arrays import ContentDigest, Loaded, Split
from resnests.data.layout import shown
from resnests.data.listing import Listing, Picture, list_images, read_bytes
from resnests.data.npz import read_npz
from resnests.errors import UserError, require


class Folder:
    """dataset.root is an .npz file, a folder with train/CLASS/* and test/CLASS/*, or one with
    CLASS/*, of which then every fifth image of a class is for testing.
    """

    def is_ready(self, dataset: Dataset) -> bool:
        root = Path(dataset.root)
        return root.is_dir() or (root.suffix == ".npz" and root.is_file())

    def prepare(self, dataset: Dataset) -> None:
        expected = "a folder with a sub-folder for each class, or an .npz file"
        place = Path(dataset.root).absolute()
        found = "that is a file" if place.exists() else f"there is nothing at {place}"
        require(self.is_ready(dataset), "dataset.root", dataset.root, f"{expected}, but {found}")

    def read(self, dataset: Dataset) -> Loaded:
        root = Path(dataset.root)
        if root.is_file():
            return read_npz(root)
        listing = list_images(root)
        known = None
        if dataset.size is not None:
            known = cache.read(digest_of_files(listing), dataset.size, listing)
        if known is None:
            known = _decode(listing, dataset.size)
            if dataset.size is not None:
                cache.write(known, dataset.size)
        files = np.array([str(picture.path.relative_to(root)) for picture in listing.test])
        notes = (*listing.notes, *known.notes)
        return replace(known, test=replace(known.test, files=files), notes=notes)

    def digest(self, dataset: Dataset) -> str | None:
        """Return the digest that read() would, without decoding a picture."""
        self.prepare(dataset)
        root = Path(dataset.root)
        return read_npz(root).digest if root.is_file() else digest_of_files(list_images(root))


def digest_of_files(listing: Listing) -> str:
    digest = _digest_of_names(listing)
    for picture in (*listing.train, *listing.test):
        digest.add(read_bytes(picture.path))
    return digest.text()


def _digest_of_names(listing: Listing) -> ContentDigest:
    digest = ContentDigest()
    for names in (listing.classes, *listing.labels()):
        digest.add(list(names))
    return digest


def _decode(listing: Listing, size: int | None) -> Loaded:
    """Read and decode all pictures, and digest the very bytes that were decoded; the notes are of
    what is in them, which the cache keeps, and not of the folder that they were found in.
    """
    digest = _digest_of_names(listing)
    first: tuple[Path, np.ndarray] | None = None
    largest: list[int] = []
    splits = []
    for pictures, labels in zip((listing.train, listing.test), listing.labels(), strict=True):
        images = np.empty(0, np.uint8)
        for place, picture in enumerate(pictures):
            data = read_bytes(picture.path)
            digest.add(data)
            image = _image(data, picture, size, largest)
            first = first or (picture.path, image)
            _require_one_size(first, (picture.path, image))
            if place == 0:
                images = np.empty((len(pictures), *image.shape), np.uint8)
            images[place] = image
        splits.append(Split(images, np.array(labels, dtype=np.int64), listing.classes))
    return Loaded(splits[0], splits[1], digest.text(), tuple(_notes_of_range(largest)))


def _image(data: bytes, picture: Picture, size: int | None, largest: list[int]) -> np.ndarray:
    """Return one picture; the largest value of one with 16 bits a channel joins `largest`."""
    from resnests.data.pictures import LARGEST, decode, fit

    decoded = decode(data, picture.path)
    if LARGEST in decoded.info:
        largest.append(decoded.info[LARGEST])
    try:
        return np.asarray(fit(decoded, size) if size else decoded)
    except UserError as error:
        raise UserError(f"{shown(picture.path)}: {error}") from error


def _notes_of_range(largest: list[int]) -> Iterator[str]:
    """Yield what to note where cameras of 10, 12 or 14 bits filled no more of 16."""
    if largest and max(largest) < 2**15:
        found = f"the largest value of all {len(largest)} images of 16 bits is {max(largest)}"
        dark = "scale their values if that is not what was meant"
        yield f"{found} of 65535, and white is 65535, so that they are dark: {dark}"


def _require_one_size(first: tuple[Path, np.ndarray], this: tuple[Path, np.ndarray]) -> None:
    if first[1].shape != this[1].shape:
        one, other = (
            f"{shown(path)} is {image.shape[1]}x{image.shape[0]}" for path, image in (first, this)
        )
        expected = "expected images of one size, or dataset.size=64 to scale and crop them all"
        raise UserError(f"{other}, but {one}: {expected}")
