"""Read images without labels, of a folder, as the images that a network was trained on."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import numpy as np

from resnests.data.layout import shown
from resnests.data.listing import ENDINGS, files_below, is_image, not_read, read_bytes
from resnests.data.pictures import decode, fit
from resnests.errors import UserError, require


def read_images(
    folder: str, shape: Sequence[int], size: int | None
) -> tuple[np.ndarray, np.ndarray, str | None]:
    """Return the images (N, H, W, 3) in `folder` and below it in the order of their names, the
    files (N,) that they are of, and a note on what was not read; raise a UserError.

    `shape` is the height and width that the network takes. With a `size` (dataset.size) images are
    scaled and cropped to it, as those were that it was trained on.
    """
    root = Path(folder)
    require(root.is_dir(), "predict.folder", shown(folder), "a folder with images")
    paths = list(files_below(root))
    pictures = [path for path in paths if is_image(path.name)]
    others = [path for path in paths if not is_image(path.name)]
    expected = f"at least one image in it ({', '.join(ENDINGS)})"
    require(bool(pictures), "predict.folder", shown(folder), expected)
    images = np.empty((len(pictures), *shape, 3), np.uint8)
    for place, path in enumerate(pictures):
        images[place] = _image(path, shape, size)
    files = np.array([str(path.relative_to(root)) for path in pictures])
    return images, files, not_read(others) if others else None


def _image(path: Path, shape: Sequence[int], size: int | None) -> np.ndarray:
    """Return the picture of a file, (H, W, 3); raise a UserError that names it."""
    picture = decode(read_bytes(path), path)
    try:
        image = np.asarray(fit(picture, size) if size else picture)
    except UserError as error:
        raise UserError(f"{shown(path)}: {error}") from error
    if image.shape[:2] != tuple(shape):
        found, wanted = (f"{width}x{height}" for height, width in (image.shape[:2], shape))
        expected = f"{wanted} pixels, which the network was trained on, not {found}"
        raise UserError(f"{shown(path)}: expected {expected}; runs with dataset.size take any")
    return image
