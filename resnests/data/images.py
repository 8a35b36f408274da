"""Hold the images of a split for a network: all on its device, or a batch at a time."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from dataclasses import replace
from typing import Any

import numpy as np
import torch
from torch import Tensor

from resnests.config.parts import Dataset
from resnests.data.ahead import ahead
from resnests.data.arrays import Split
from resnests.data.views import ImageView

Batch = tuple[Tensor, Tensor]  # images float32 (B, 3, H, W) normalised, labels int64 (B,)


def images_of(
    split: Split,
    dataset: Dataset,
    device: torch.device,
    layout: torch.memory_format = torch.channels_last,
    batch_size: int | None = None,
) -> Images:
    """Return `split` for batches of at most `batch_size` images, or of as many as evaluations
    have: all on the device, but for views.
    """
    if isinstance(split.images, ImageView):
        return Streamed(split, dataset, device, layout, batch_size)
    return Images(split, dataset, device, layout)


class Normalise:
    """Scales uint8 (..., 3) to [0, 1], subtracts the mean and divides by the standard deviation:
    float32 (..., 3).
    """

    def __init__(self, dataset: Dataset, device: torch.device) -> None:
        mean, std = (
            torch.tensor(values, dtype=torch.float64) for values in (dataset.mean, dataset.std)
        )
        self.scale = (1 / (255 * std)).float().to(device)
        self.shift = (-mean / std).float().to(device)

    def __call__(self, images: Tensor) -> Tensor:
        return images.float().mul_(self.scale).add_(self.shift)


class Images:
    """Holds a split on the device, and yields its batches in order, not augmented: for
    evaluation.

    Where its batches come from is the same for all that it holds: `filled` has the next batch in
    `images`, and `within` says where in it. Here both are trivial; Streamed makes them work.
    """

    def __init__(
        self,
        split: Split,
        dataset: Dataset,
        device: torch.device,
        layout: torch.memory_format = torch.channels_last,
    ) -> None:
        self.images = torch.from_numpy(np.ascontiguousarray(split.images)).to(device)
        self.labels = torch.from_numpy(split.labels).to(device)
        self.normalise, self.layout = Normalise(dataset, device), layout

    def __len__(self) -> int:
        return len(self.labels)

    @property
    def batch_size(self) -> int:
        """Return how many images make a batch of an evaluation."""
        return evaluation_batch(self.images.shape, self.labels.device)

    def batches(self, batch_size: int | None = None) -> Iterator[Batch]:
        """Yield all images and labels in order; the last batch may be smaller."""
        parts = self.parts(batch_size)
        for part, _ in zip(parts, self.filled(parts), strict=True):
            yield self.as_input(self.images[self.within(part)]), self.labels[part]

    def parts(self, batch_size: int | None = None) -> list[slice]:
        """Return where the batches are among all images."""
        most, count = batch_size or self.batch_size, len(self)
        return [slice(start, min(start + most, count)) for start in range(0, count, most)]

    def filled(self, parts: Iterable[slice | np.ndarray]) -> Iterator[None]:
        """Have in `images`, one after the other, the images at each of `parts`."""
        for _ in parts:
            yield

    def within(self, part: Any) -> Any:
        """Return where in `images` the images at `part`, a slice or a tensor (B,), then are."""
        return part

    def as_input(self, images: Tensor) -> Tensor:
        """Normalise uint8 (B, H, W, 3) to float32 (B, 3, H, W) in the layout of the network."""
        normalised = self.normalise(images).permute(0, 3, 1, 2)
        return normalised.contiguous(memory_format=self.layout)


class Streamed(Images):
    """Holds one batch of a split on the device; a thread reads the next two meanwhile.

    All batches are copied into the same memory, so that a CUDA graph finds them there. On CUDA they
    come from pinned memory, by copies on a stream of their own that overlap with the step before.
    """

    def __init__(
        self,
        split: Split,
        dataset: Dataset,
        device: torch.device,
        layout: torch.memory_format = torch.channels_last,
        batch_size: int | None = None,
    ) -> None:
        assert isinstance(split.images, ImageView)
        self.view, shape = split.images, split.images.shape
        most = min(batch_size or evaluation_batch(shape, device), len(split))
        held = np.zeros((most, *shape[1:]), np.uint8)
        super().__init__(replace(split, images=held), dataset, device, layout)
        self.side = torch.cuda.Stream(device) if device.type == "cuda" else None

    def filled(self, parts: Iterable[slice | np.ndarray]) -> Iterator[None]:
        for images, copied in ahead(self._fetch, parts):
            if copied is not None:
                here = torch.cuda.current_stream(self.labels.device)
                here.wait_event(copied)
                images.record_stream(here)  # its memory is used again after what `here` does now
            self.images[: len(images)].copy_(images)
            yield

    def within(self, part: Any) -> Any:
        if isinstance(part, slice):
            return slice(part.stop - part.start)
        return torch.arange(len(part), device=part.device)

    def _fetch(self, part: slice | np.ndarray) -> tuple[Tensor, Any]:
        """Read a batch (B, H, W, 3), in a thread; on CUDA begin to copy it to the device, and
        return the event by which it is there.
        """
        index = np.arange(part.start, part.stop) if isinstance(part, slice) else part
        shape, pinned = (len(index), *self.view.shape[1:]), self.side is not None
        images = torch.empty(shape, dtype=torch.uint8, pin_memory=pinned)
        self.view.read(index, images.numpy())
        if self.side is None:
            return images, None
        with torch.cuda.stream(self.side):
            # torch keeps the pinned memory until the copy is done
            return images.to(self.labels.device, non_blocking=True), self.side.record_event()


def evaluation_batch(shape: tuple[int, ...], device: torch.device) -> int:
    """Return how many images of `shape` (N, H, W, 3) make a batch of an evaluation.

    On CPUs caches decide: 128 images are evaluated a quarter faster than 500, in half the memory.
    Of images larger than 32x32 as many pixels make a batch.
    """
    usual = 128 if device.type == "cpu" else 1000
    return max(1, usual * 1024 // max(1024, shape[1] * shape[2]))
