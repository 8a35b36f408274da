"""Decode the pictures of a folder in their order, on all cores, and digest what was decoded."""

from __future__ import annotations

import zlib
from collections.abc import Generator, Iterator, Sequence
from contextlib import closing
from itertools import islice
from pathlib import Path
from typing import NamedTuple

import numpy as np

from resnests.data.ahead import ahead
from resnests.data.arrays import ContentDigest, Loaded, Split
from resnests.data.layout import shown
from resnests.data.listing import Listing, Picture, read_bytes
from resnests.errors import UserError


class Decoded(NamedTuple):
    """Holds a picture: the bytes of its file, its image, and one more than the largest value of a
    picture of 16 bits, 0 of others. The image is None where it was known.
    """

    data: bytes
    image: np.ndarray | None
    largest: int


def digest_of_files(listing: Listing) -> str:
    """Return the digest of all files of `listing`, without decoding a picture."""
    digest = digest_of_names(listing)
    for picture in (*listing.train, *listing.test):
        digest.add(read_bytes(picture.path))
    return digest.text()


def digest_of_names(listing: Listing) -> ContentDigest:
    """Return a digest of classes and labels, to which the files are to be added in their order."""
    digest = ContentDigest()
    for names in (listing.classes, *listing.labels()):
        digest.add(list(names))
    return digest


def shape_of(listing: Listing, size: int | None) -> tuple[int, ...]:
    """Return the shape of all images together, (N, H, W, 3), as the first picture has it."""
    count = len(listing.train) + len(listing.test)
    if size is not None:
        return count, size, size, 3
    first = next(decoded(listing.train[:1], None)).image
    assert first is not None
    return count, *first.shape


def decode_all(listing: Listing, size: int | None) -> Loaded:
    """Read and decode all pictures, and digest the very bytes that were decoded; the notes are of
    what is in them, which the cache keeps, and not of the folder that they were found in.
    """
    digest = digest_of_names(listing)
    largest, splits = [], []
    with closing(decoded([*listing.train, *listing.test], size)) as found:
        for pictures, labels in zip((listing.train, listing.test), listing.labels(), strict=True):
            images = np.empty(0, np.uint8)
            for place, one in enumerate(islice(found, len(pictures))):
                assert one.image is not None
                digest.add(one.data)
                largest.append(one.largest)
                if place == 0:
                    images = np.empty((len(pictures), *one.image.shape), np.uint8)
                images[place] = one.image
            splits.append(Split(images, np.array(labels, dtype=np.int64), listing.classes))
    notes = tuple(notes_of_range(np.array(largest)))
    return Loaded(splits[0], splits[1], digest.text(), notes)


def decoded(
    pictures: Sequence[Picture],
    size: int | None,
    known: Sequence[int] = (),
    shape: tuple[int, ...] | None = None,
) -> Generator[Decoded, None, None]:
    """Yield all pictures in their order, decoded but where `known` has the CRC-32 of their files;
    raises a UserError where one is unsound, or of another size than the first, whose `shape` must
    be given where it may be known.

    A few for each core are decoded at once, and no more are in memory.
    """
    import joblib

    from resnests.data.pictures import strictly

    def work(place: int) -> Decoded:
        data = read_bytes(pictures[place].path)
        if place < len(known) and known[place] == zlib.crc32(data):
            return Decoded(data, None, 0)
        return Decoded(data, *image_of(data, pictures[place].path, size))

    cores, first = joblib.cpu_count(), shape and (pictures[0].path, shape)
    with strictly():
        for place, one in enumerate(ahead(work, range(len(pictures)), 4 * cores, cores)):
            if one.image is not None:
                this = (pictures[place].path, one.image.shape)
                first = first or this
                _require_one_size(first, this)
            yield one


def image_of(data: bytes, path: Path, size: int | None) -> tuple[np.ndarray, int]:
    """Return the picture in `data`, scaled and cropped to `size` if there is one, and one more than
    its largest value where it has 16 bits a channel, else 0; raise a UserError that names `path`.
    It is called within strictly().
    """
    from resnests.data.pictures import LARGEST, decode, fit

    whole = decode(data, path)
    try:
        return np.asarray(fit(whole, size) if size else whole), whole.info.get(LARGEST, -1) + 1
    except UserError as error:
        raise UserError(f"{shown(path)}: {error}") from error


def notes_of_range(largest: np.ndarray) -> Iterator[str]:
    """Yield what to note where cameras of 10, 12 or 14 bits filled no more of 16; of all pictures
    `largest` has what Decoded has of one.
    """
    of_16_bits = largest[largest > 0]
    if len(of_16_bits) and (highest := int(of_16_bits.max()) - 1) < 2**15:
        found = f"the largest value of all {len(of_16_bits)} images of 16 bits is {highest}"
        dark = "scale their values if that is not what was meant"
        yield f"{found} of 65535, and white is 65535, so that they are dark: {dark}"


def _require_one_size(first: tuple[Path, tuple[int, ...]], this: tuple[Path, tuple]) -> None:
    if first[1] != this[1]:
        one, other = (f"{shown(path)} is {shape[1]}x{shape[0]}" for path, shape in (first, this))
        expected = "expected images of one size, or dataset.size=64 to scale and crop them all"
        raise UserError(f"{other}, but {one}: {expected}")
