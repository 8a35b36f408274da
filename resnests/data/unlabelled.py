"""Read images without labels, of a folder, as the images that a network was trained on."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import numpy as np

from resnests.data.decoding import image_of
from resnests.data.layout import shown
from resnests.data.listing import ENDINGS, files_below, is_image, not_read, read_bytes
from resnests.data.pictures import strictly
from resnests.data.views import ImageView, exceeds
from resnests.errors import UserError, require


def read_images(
    folder: str, shape: Sequence[int], size: int | None, memory_gb: float | None = None
) -> tuple[np.ndarray | ImageView, np.ndarray, str | None]:
    """Return the images (N, H, W, 3) in `folder` and below it in the order of their names, the
    files (N,) that they are of, and a note on what was not read; raise a UserError.

    `shape` is the height and width that the network takes. With a `size` (dataset.size) images are
    scaled and cropped to it, as those were that it was trained on. Where all together are larger
    than `memory_gb` they are a view, which decodes them when they are read.
    """
    root = Path(folder)
    require(root.is_dir(), "predict.folder", shown(folder), "a folder with images")
    paths = list(files_below(root))
    pictures = [path for path in paths if is_image(path.name)]
    others = [path for path in paths if not is_image(path.name)]
    expected = f"at least one image in it ({', '.join(ENDINGS)})"
    require(bool(pictures), "predict.folder", shown(folder), expected)
    view = ImageView(Pictures(pictures, shape, size))
    images = view if exceeds(view.shape, memory_gb) else view[:]
    files = np.array([str(path.relative_to(root)) for path in pictures])
    return images, files, not_read(others) if others else None


class Pictures:
    """Stands for the images (N, H, W, 3) of files, which are decoded whenever they are read."""

    def __init__(self, paths: Sequence[Path], shape: Sequence[int], size: int | None) -> None:
        self.paths, self.size, self.shape = paths, size, (len(paths), *shape, 3)

    def read(self, places: np.ndarray, out: np.ndarray) -> None:
        """Read the images at `places` (B,) into `out` (B, H, W, 3); raise a UserError."""
        with strictly():
            for place, image in zip(places.tolist(), out, strict=True):
                image[:] = _image(self.paths[place], self.shape[1:3], self.size)


def _image(path: Path, shape: Sequence[int], size: int | None) -> np.ndarray:
    """Return the picture of a file, (H, W, 3); raise a UserError that names it."""
    image, _ = image_of(read_bytes(path), path, size)
    if image.shape[:2] != tuple(shape):
        found, wanted = (f"{width}x{height}" for height, width in (image.shape[:2], shape))
        expected = f"{wanted} pixels, which the network was trained on, not {found}"
        raise UserError(f"{shown(path)}: expected {expected}; runs with dataset.size take any")
    return image
