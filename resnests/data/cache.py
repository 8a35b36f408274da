"""Images that were scaled once, kept for the next run.

A file is named after the digest of what it was made of, so that it never is out of date. It is
written whole or not at all, and read only where its own checksum holds; where it cannot be written
or read, the images are scaled anew.
"""

from __future__ import annotations

import contextlib
import hashlib
import os
import tempfile
from pathlib import Path

import numpy as np

from resnests.data.arrays import Loaded, Split
from resnests.data.listing import Listing


def read(digest: str, size: int, listing: Listing) -> Loaded | None:
    """Return the images of `listing`, size x size, None where they are not there or unsound."""
    counts = [len(labels) for labels in listing.labels()]
    try:
        content = np.fromfile(_file(digest, size), np.uint8)
    except (OSError, RuntimeError):
        return None
    checksum, pixels = content[:32], content[32:]
    if pixels.size != sum(counts) * size * size * 3:
        return None
    if hashlib.sha256(pixels.data).digest() != checksum.tobytes():
        return None
    images = np.split(pixels.reshape(-1, size, size, 3), counts[:1])
    train, test = (
        Split(part, np.array(labels, dtype=np.int64), listing.classes)
        for part, labels in zip(images, listing.labels(), strict=True)
    )
    return Loaded(train, test, digest, listing.notes)


def write(loaded: Loaded, size: int) -> None:
    """Keep the images of `loaded`, unless there is no place for them."""
    pixels = [split.images for split in (loaded.train, loaded.test)]
    checksum = hashlib.sha256()
    for part in pixels:
        checksum.update(part.data)
    with contextlib.suppress(OSError, RuntimeError):  # no home, or no space in it
        target = _file(str(loaded.digest), size)
        target.parent.mkdir(parents=True, exist_ok=True)
        with tempfile.NamedTemporaryFile(dir=target.parent, delete=False) as file:
            try:
                file.write(checksum.digest())
                for part in pixels:
                    file.write(part.data)
                file.close()
                os.replace(file.name, target)
            except BaseException:
                os.unlink(file.name)
                raise


def _file(digest: str, size: int) -> Path:
    """Raises a RuntimeError where there is no home directory."""
    folder = Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache")
    return folder / "resnests" / f"images-{digest}-{size}.bin"
