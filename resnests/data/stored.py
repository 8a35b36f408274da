"""Decode a folder of images that is larger than memory, once, into a file for all runs.

`images-DIGEST-HxW.uint8` has the pixels of all images, as numpy.memmap(file, "uint8", shape=...)
has them, and `.sums` beside it what each image is checked by when it is read (views.py). Where
dataset.size scaled the images the name ends in `-scaled`. Until the files are whole both have other
names, and a build that was killed goes on from there: every image that it left is compared with its
sum, and its picture with that which it was made of.
"""

from __future__ import annotations

import errno
import os
import shutil
import tempfile
import zlib
from contextlib import closing
from pathlib import Path
from typing import BinaryIO

import numpy as np
from filelock import FileLock

from resnests import environment
from resnests.data import cache
from resnests.data.arrays import Loaded, Split
from resnests.data.decoding import decoded, digest_of_files, digest_of_names, notes_of_range
from resnests.data.listing import Listing
from resnests.data.views import GB, SUMS, ImageFile, ImageView, open_images
from resnests.errors import UserError
from resnests.text import progress


def read_stored(listing: Listing, size: int | None, shape: tuple[int, ...]) -> Loaded:
    """Return the images of `listing`, of `shape` all together, which stay in a file; raise a
    UserError.
    """
    digest = digest_of_files(listing)
    try:
        file = _image_file(listing, size, shape, digest)
    except (OSError, RuntimeError) as error:  # no space, or no home
        reason = getattr(error, "strerror", None) or error
        place = f"a place for {np.prod(shape) / GB:.3g} GB of images ({reason})"
        raise UserError(f"pipeline.memory_gb: expected {place}: set XDG_CACHE_HOME") from error
    images, count = ImageView(file), len(listing.train)
    train, test = (
        Split(images.take(part), np.array(labels, dtype=np.int64), listing.classes)
        for part, labels in zip((slice(count), slice(count, None)), listing.labels(), strict=True)
    )
    return Loaded(train, test, digest, tuple(notes_of_range(file.largest)))


def _image_file(
    listing: Listing, size: int | None, shape: tuple[int, ...], digest: str
) -> ImageFile:
    """Return the file of all images, which is made where there is none. A dry run makes one without
    a name, of which nothing is left.
    """
    folder = cache.folder()
    how = "" if size is None else "-scaled"  # else the pictures themselves are of one size
    path = folder / f"images-{digest}-{shape[1]}x{shape[2]}{how}.uint8"
    if (there := open_images(path, shape)) is not None:
        return there
    if environment.is_dry_run():
        with tempfile.TemporaryFile() as pixels, tempfile.TemporaryFile() as sums:
            made = _fill(pixels, sums, listing, size, shape, digest)
            return ImageFile(path, os.dup(pixels.fileno()), made, shape)
    folder.mkdir(parents=True, exist_ok=True)
    parts = {suffix: path.with_suffix(f"{suffix}.part") for suffix in (".sums", ".uint8")}
    with FileLock(path.with_suffix(".lock")):
        if (there := open_images(path, shape)) is not None:  # another process was first
            return there
        try:
            with _to_change(parts[".uint8"]) as pixels, _to_change(parts[".sums"]) as sums:
                left = os.fstat(pixels.fileno()).st_size
                if shutil.disk_usage(folder).free < np.prod(shape) - left:
                    raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
                _fill(pixels, sums, listing, size, shape, digest)
        except UserError:  # about the pictures: once that is mended they have another digest
            for part in parts.values():
                part.unlink(missing_ok=True)
            raise
        for suffix, part in parts.items():  # the images last, as the sums are looked for with them
            os.replace(part, path.with_suffix(suffix))
    there = open_images(path, shape)
    assert there is not None
    return there


def _to_change(path: Path) -> BinaryIO:
    return open(path, "r+b" if path.exists() else "w+b")


def _fill(
    images: BinaryIO,
    sums: BinaryIO,
    listing: Listing,
    size: int | None,
    shape: tuple[int, ...],
    digest: str,
) -> np.ndarray:
    """Write all images, and their sums, which are returned; raise a UserError where the pictures
    are not those of `digest`.
    """
    pictures, length = [*listing.train, *listing.test], int(np.prod(shape[1:]))
    known = _left(images, sums, length)
    found = digest_of_names(listing)
    with closing(decoded(pictures, size, known["source"].tolist(), shape[1:])) as work:
        for place, one in enumerate(progress(work, "decoding", shape[0])):
            found.add(one.data)
            if one.image is not None:
                of_one = (zlib.crc32(one.data), zlib.crc32(one.image.data), one.largest)
                images.seek(place * length)
                images.write(one.image.data)
                sums.seek(place * SUMS.itemsize)
                sums.write(np.array(of_one, SUMS).tobytes())
    if found.text() != digest:
        raise UserError("the images changed while they were read: give the command again")
    for file in (images, sums):
        file.flush()
        os.fsync(file.fileno())
    sums.seek(0)
    return np.frombuffer(sums.read(), SUMS)


def _left(images: BinaryIO, sums: BinaryIO, length: int) -> np.ndarray:
    """Return the sums of the images that an earlier build left; from the first that is not whole on
    the rest is cut off.
    """
    data = sums.read()
    known = np.frombuffer(data[: len(data) // SUMS.itemsize * SUMS.itemsize], SUMS)
    sound = 0
    while sound < len(known):
        image = images.read(length)
        if len(image) < length or zlib.crc32(image) != known["pixels"][sound]:
            break
        sound += 1
    images.truncate(sound * length)
    sums.truncate(sound * SUMS.itemsize)
    return known[:sound]
