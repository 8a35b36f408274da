"""Keep images that were scaled once for the next run.

A file is named after the digest of what it was made of, so that it never is out of date. It is
written whole or not at all, and read only where its own checksum holds; where it cannot be written
or read, the images are scaled anew.
"""

from __future__ import annotations

import contextlib
import hashlib
import json
import os
import tempfile
from pathlib import Path
from typing import Any

import numpy as np

from resnests import environment
from resnests.data.arrays import Loaded, Split
from resnests.data.listing import Listing


def read(digest: str, size: int, listing: Listing) -> Loaded | None:
    """Return the images of `listing`, size x size, None where they are not there or unsound."""
    counts = [len(labels) for labels in listing.labels()]
    try:
        content = np.fromfile(_file(digest, size), np.uint8)
    except (OSError, RuntimeError):
        return None
    checksum, body = content[:32], content[32:]
    length = sum(counts) * size * size * 3
    if body.size <= length:  # earlier versions kept no notes
        return None
    if hashlib.sha256(body.data).digest() != checksum.tobytes():
        return None
    pixels, notes = body[:length], json.loads(body[length:].tobytes())
    images = np.split(pixels.reshape(-1, size, size, 3), counts[:1])
    train, test = (
        Split(part, np.array(labels, dtype=np.int64), listing.classes)
        for part, labels in zip(images, listing.labels(), strict=True)
    )
    return Loaded(train, test, digest, tuple(notes))


def write(loaded: Loaded, size: int) -> None:
    """Keep the images of `loaded`, unless there is no place for them, or nothing may be written."""
    if environment.is_dry_run():
        return
    notes = json.dumps(loaded.notes).encode()
    body: list[Any] = [np.asarray(s.images).data for s in (loaded.train, loaded.test)] + [notes]
    checksum = hashlib.sha256()
    for part in body:
        checksum.update(part)
    with contextlib.suppress(OSError, RuntimeError):  # no home, or no space in it
        target = _file(str(loaded.digest), size)
        target.parent.mkdir(parents=True, exist_ok=True)
        with tempfile.NamedTemporaryFile(dir=target.parent, delete=False) as file:
            try:
                file.write(checksum.digest())
                for part in body:
                    file.write(part)
                file.close()
                os.replace(file.name, target)
            except BaseException:
                os.unlink(file.name)
                raise


def _file(digest: str, size: int) -> Path:
    return folder() / f"images-{digest}-{size}.bin"


def folder() -> Path:
    """Return the folder of all caches; raise a RuntimeError where there is no home directory."""
    place = Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache")
    return place / "resnests"
