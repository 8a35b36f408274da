"""Read a user's own images: a folder with a sub-folder a class, or arrays in an .npz file."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np

from resnests.config.parts import Dataset
from resnests.data import cache
from resnests.data.arrays import Loaded
from resnests.data.decoding import decode_all, digest_of_files, shape_of
from resnests.data.listing import Listing, list_images
from resnests.data.npz import read_npz
from resnests.data.stored import read_stored
from resnests.data.views import exceeds
from resnests.errors import require


class Folder:
    """Reads dataset.root, which is an .npz file, a folder with train/CLASS/* and test/CLASS/*, or
    one with CLASS/*, of which then every fifth image of a class is for testing.
    """

    def is_ready(self, dataset: Dataset) -> bool:
        root = Path(dataset.root)
        return root.is_dir() or (root.suffix == ".npz" and root.is_file())

    def prepare(self, dataset: Dataset) -> None:
        expected = "a folder with a sub-folder for each class, or an .npz file"
        place = Path(dataset.root).absolute()
        found = "that is a file" if place.exists() else f"there is nothing at {place}"
        require(self.is_ready(dataset), "dataset.root", dataset.root, f"{expected}, but {found}")

    def read(self, dataset: Dataset, memory_gb: float | None = None) -> Loaded:
        root = Path(dataset.root)
        if root.is_file():
            return read_npz(root)
        listing = list_images(root)
        known = self._read(listing, dataset.size, memory_gb)
        files = np.array([str(picture.path.relative_to(root)) for picture in listing.test])
        notes = (*listing.notes, *known.notes)
        return replace(known, test=replace(known.test, files=files), notes=notes)

    def _read(self, listing: Listing, size: int | None, memory_gb: float | None) -> Loaded:
        """Return all images: in memory, scaled ones as the cache has them, or else in a file."""
        if memory_gb is not None:
            shape = shape_of(listing, size)
            if exceeds(shape, memory_gb):
                return read_stored(listing, size, shape)
        if size is None:
            return decode_all(listing, size)
        known = cache.read(digest_of_files(listing), size, listing)
        if known is None:
            known = decode_all(listing, size)
            cache.write(known, size)
        return known

    def digest(self, dataset: Dataset) -> str | None:
        """Return the digest that read() would, without decoding a picture."""
        self.prepare(dataset)
        root = Path(dataset.root)
        return read_npz(root).digest if root.is_file() else digest_of_files(list_images(root))
