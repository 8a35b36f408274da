"""Decode one picture, from the bytes of its file to 8-bit RGB as its owner sees it.

What is right without a doubt is converted: grey, palettes, 16 bits a channel (the upper eight are
kept), CMYK, the orientation that a camera noted, transparency (shown on white). What has more than
one meaning is refused: floating-point and 32-bit values, and files with several frames.
"""

from __future__ import annotations

import io
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import numpy as np
from PIL import Image, ImageOps, UnidentifiedImageError
from PIL.TiffImagePlugin import PHOTOMETRIC_INTERPRETATION

from resnests.data.layout import shown
from resnests.errors import UserError

# Others, such as EPS, have decoders that start programs or fetch files.
LARGEST = "largest of 16 bits"
FORMATS = ("PNG", "JPEG", "BMP", "GIF", "TIFF", "WEBP", "PPM")
EIGHT_BITS = ("1", "L", "LA", "P", "PA", "RGB", "RGBA", "RGBX", "CMYK", "YCbCr")


@contextmanager
def strictly() -> Iterator[None]:
    """Have Pillow refuse pictures that are far too large, and warn of nothing else.

    The rules of warnings are those of the whole process: threads that decode share one such block.
    """
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        warnings.simplefilter("error", Image.DecompressionBombWarning)
        yield


def decode(data: bytes, path: Path) -> Image.Image:
    """Return the picture in `data` as RGB; raises a UserError that names `path`. It is called
    within strictly().

    Where it has 16 bits a channel, info[LARGEST] is its largest value.
    """
    try:
        return _decoded(data)
    except UserError as error:
        raise UserError(f"{shown(path)}: {error}") from error
    except Exception as error:  # decoders raise whatever hostile bytes lead them to
        reason = str(error) or type(error).__name__
        if isinstance(error, UnidentifiedImageError):  # which names an object of ours
            reason = f"it is none of {', '.join(FORMATS)}"
        raise UserError(f"{shown(path)} is cut short, corrupt or no image ({reason})") from error


def fit(picture: Image.Image, size: int) -> Image.Image:
    """Return the centre of the picture, size x size, after its shorter side was scaled to `size`.

    This is what torchvision's Resize and CenterCrop do, with antialiasing.
    """
    from torchvision.transforms import functional

    short, long = sorted(picture.size)
    if short and long * size * size > short * (Image.MAX_IMAGE_PIXELS or 0):
        raise UserError(
            f"{picture.size[0]}x{picture.size[1]} is too narrow for dataset.size={size}"
        )
    return functional.center_crop(functional.resize(picture, [size], antialias=True), [size, size])


def _decoded(data: bytes) -> Image.Image:
    with Image.open(io.BytesIO(data), formats=FORMATS) as picture:
        if picture.format == "PNG":  # loading alone passes over wrong checksums
            with Image.open(io.BytesIO(data), formats=FORMATS) as other:
                other.verify()
        # A phone's JPEG may be an MPO: its picture, and others that go with it.
        if picture.format != "MPO" and getattr(picture, "is_animated", False):
            raise UserError(f"expected one picture, not {getattr(picture, 'n_frames', 'several')}")
        has_16_bits = any(";16" in str(tile[3]) for tile in picture.tile)  # which load() forgets
        picture.load()
        if min(picture.size) < 1:
            raise UserError("expected at least one pixel")
        form = picture.format
        is_negative = getattr(picture, "tag_v2", {}).get(PHOTOMETRIC_INTERPRETATION) == 0
        upright = ImageOps.exif_transpose(picture)
    transparent = _is_transparent(upright)
    # Pillow has 16-bit grey of PNG and PGM as 32-bit numbers, too, and scales a PGM to its range.
    if upright.mode.startswith("I;16") or (upright.mode == "I" and form in ("PNG", "PPM")):
        if is_negative:  # which Pillow turns round of 8 bits alone
            raise UserError("expected 16-bit values of which the largest is white, not black")
        levels = np.asarray(upright).astype(np.int64)
        if transparent or levels.min() < 0 or levels.max() > 65535:
            raise UserError("expected 16-bit values without transparency")
        grey = Image.fromarray((levels >> 8).astype(np.uint8)).convert("RGB")
        grey.info[LARGEST] = int(levels.max())
        return grey
    if upright.mode not in EIGHT_BITS:
        raise UserError(f"expected 8 or 16 bits a channel, not what Pillow calls {upright.mode}")
    colours = upright.convert("RGB")
    result = _on_white(upright) if transparent else colours
    if has_16_bits:  # of which Pillow keeps the upper eight
        result.info[LARGEST] = int(np.asarray(colours).max()) * 256 + 255
    return result


def _on_white(picture: Image.Image) -> Image.Image:
    colours = picture.convert("RGBA")
    white = Image.new("RGBA", colours.size, "white")
    return Image.alpha_composite(white, colours).convert("RGB")


def _is_transparent(picture: Image.Image) -> bool:
    palette = getattr(picture.palette, "mode", "")
    return "transparency" in picture.info or "A" in (picture.mode[-1], palette[-1:])
