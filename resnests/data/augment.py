"""Build augmentations by their `_target_`: transforms of images, and mixes of images with their
labels.

Their random numbers follow from (seed, epoch, step) alone, so that an epoch can be taken up at any
step, and what a network draws from the global generators does not depend on them.
"""

from __future__ import annotations

import random
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from resnests.config.schema import Pipeline
from resnests.config.targets import build_callable, naming
from resnests.errors import UserError
from resnests.generators import generator_states, restore_generators

Transform = Callable[[Tensor], Tensor]


class Augment:
    """Applies the transforms of `pipeline.augment`, one after the other, to a batch."""

    def __init__(self, pipeline: Pipeline, device: torch.device) -> None:
        self.draws = pipeline.draws
        self.transforms: dict[str, Transform] = {
            f"{part.name}._target_={part.target}": _on(device, build_callable(part.name, part))
            for part in pipeline.augment_parts()
        }

    def __call__(self, images: Tensor) -> Tensor:
        """Return uint8 (B, 3, H, W), or float of [0, 1], made of uint8 (B, 3, H, W)."""
        count = len(images)
        for what, transform in self.transforms.items():
            with naming(what):
                images = self._apply(transform, images)
                ok = isinstance(images, Tensor) and images.shape[:2] == (count, 3)
            if not ok:
                found = tuple(images.shape) if isinstance(images, Tensor) else type(images).__name__
                raise UserError(f"{what}: expected images ({count}, 3, H, W), not {found}")
        return images

    def _apply(self, transform: Transform, images: Tensor) -> Tensor:
        """Apply `transform` to each image by itself, or to each of `draws` parts of the batch.

        A transform of torchvision draws once for all that it is given. One that draws for each
        image of a batch says so as those of kornia do, by `same_on_batch = False`.
        """
        if getattr(transform, "same_on_batch", True) is False:
            return transform(images)
        if self.draws is None:
            return torch.stack([transform(image) for image in images])
        parts = min(self.draws, len(images))
        mixed = torch.cat([transform(images[part::parts]) for part in range(parts)])
        places = torch.arange(len(images), device=images.device)
        back = torch.cat([places[part::parts] for part in range(parts)])
        return torch.empty_like(mixed).index_copy_(0, back, mixed)


class Cutout:
    """Blackens a square of `size` pixels around a random pixel of each image (DeVries and Taylor,
    2017).
    """

    same_on_batch = False

    def __init__(self, size: int) -> None:
        self.size = size

    def __call__(self, images: Tensor) -> Tensor:
        height, width = images.shape[-2:]
        inside = []
        for length in (height, width):
            first = torch.randint(length, (len(images), 1)) - self.size // 2
            place = torch.arange(length) - first
            inside.append((place >= 0) & (place < self.size))
        square = inside[0][:, None, :, None] & inside[1][:, None, None, :]
        return images.masked_fill(square.to(images.device), 0)


def build_mix(
    pipeline: Pipeline, num_classes: int, device: torch.device
) -> Callable[[Tensor, Tensor], tuple[Tensor, Tensor]] | None:
    """Return what mixes images (B, 3, H, W) and labels (B,) to shares of classes (B, K), None where
    there is none.
    """
    part = pipeline.mix_part()
    if part is None:
        return None
    return _on(device, build_callable("pipeline.mix", part, named={"num_classes": num_classes}))


def _on(device: torch.device, made: Callable[..., Any]) -> Callable[..., Any]:
    """Return `made`, with its tensors on `device` where it is a module."""
    return made.to(device) if isinstance(made, nn.Module) else made


@contextmanager
def drawing_from(stream: int, device: torch.device) -> Iterator[None]:
    """Let all global generators start from `stream`, and put them back to where they were."""
    before = generator_states(device)
    random.seed(stream)
    np.random.seed(stream % 2**32)
    torch.manual_seed(stream)
    try:
        yield
    finally:
        restore_generators(before, device)
