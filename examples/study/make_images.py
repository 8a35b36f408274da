"""Write a small folder of images: shapes/{train,test}/{circle,cross,square}/*.png.

python make_images.py
"""

from pathlib import Path

import numpy as np
from PIL import Image

SIZE = 32


def shape(kind: str, rng: np.random.Generator) -> np.ndarray:
    """Return a noisy image (SIZE, SIZE, 3) of one shape, in a colour and at a place of its own."""
    y, x = np.mgrid[:SIZE, :SIZE]
    row, column = rng.integers(8, SIZE - 8, 2)
    far = np.maximum(abs(y - row), abs(x - column))
    inside = {
        "circle": (y - row) ** 2 + (x - column) ** 2 <= 36,
        "square": far <= 6,
        "cross": (far <= 6) & ((abs(y - row) <= 1) | (abs(x - column) <= 1)),
    }[kind]
    image = rng.integers(0, 90, (SIZE, SIZE, 3))
    return np.where(inside[..., None], image + rng.integers(60, 160, 3), image).astype(np.uint8)


def main(folder: str = "shapes", train: int = 100, test: int = 50) -> None:
    rng = np.random.default_rng(0)
    for split, count in (("train", train), ("test", test)):
        for kind in ("circle", "cross", "square"):
            place = Path(folder, split, kind)
            place.mkdir(parents=True, exist_ok=True)
            for number in range(count):
                Image.fromarray(shape(kind, rng)).save(place / f"{number:03}.png")


if __name__ == "__main__":
    main()
