"""Makes training batches of uint8 images, in two ways with one distribution: reflect-pad crop,
flip, normalise.

`TensorPipeline` cuts and augments whole batches on the training device. `TorchvisionPipeline` is
the official way, draw for draw. Both derive every random number from (seed, epoch), so an epoch can
be taken up at any step.
"""

from __future__ import annotations

import hashlib
import math
from collections.abc import Callable, Iterator
from typing import Any

import torch
from torch import Tensor

from resnests.config.parts import Dataset
from resnests.config.schema import Config, Trainer
from resnests.data.arrays import Split
from resnests.data.augment import Augment, build_mix, drawing_from
from resnests.data.images import Batch, Images, images_of
from resnests.errors import UserError, require

Draws = tuple[Tensor, Tensor, Tensor]


def build_pipeline(
    config: Config, dataset: Dataset, train: Split, device: torch.device
) -> Pipeline:
    """Build the pipeline of `config` over `train`; `dataset` has the mean and std to use."""
    padding, (height, width) = config.pipeline.crop_padding, train.images.shape[1:3]
    size = min(height, width)
    borders = f"reflected borders are smaller than the images, {width}x{height}"
    expected = f"0 to {size - 1} pixels, as {borders}"
    require(padding < size, "pipeline.crop_padding", padding, expected)
    values = (train, dataset, padding, config.trainer.batch_size, config.seed, device)
    if config.pipeline.name == "torchvision":
        return TorchvisionPipeline(*values)
    pipeline = TensorPipeline(*values, memory_format(config.trainer, device))
    if config.pipeline.augment:
        pipeline.augment = Augment(config.pipeline, device)
    pipeline.mix = build_mix(config.pipeline, dataset.class_count, device)
    return pipeline


def memory_format(trainer: Trainer, device: torch.device) -> torch.memory_format:
    """Return the layout of images and weights that was asked for, or is fastest on `device`."""
    wanted = device.type != "mps" if trainer.channels_last is None else trainer.channels_last
    return torch.channels_last if wanted else torch.contiguous_format


def stream(seed: int, purpose: str, epoch: int) -> torch.Generator:
    """Return a generator of its own for every (seed, purpose, epoch)."""
    return torch.Generator().manual_seed(stream_seed(seed, purpose, epoch))


def stream_seed(*names: int | str) -> int:
    """Return a number for what `names` tell. They are hashed, as sums of them would coincide."""
    digest = hashlib.sha256("/".join(map(str, names)).encode()).digest()
    return int.from_bytes(digest[:8], "little")


class TensorPipeline:
    """Shuffles, crops, flips and normalises on the device, a batch in a handful of operations.

    On two cores a batch of 128 takes 0.4 ms; slices or unfolded windows of the padded images take
    0.8 to 40 ms.
    """

    def __init__(
        self,
        train: Split,
        dataset: Dataset,
        padding: int,
        batch_size: int,
        seed: int,
        device: torch.device,
        layout: torch.memory_format = torch.channels_last,
    ) -> None:
        self.data: Images = images_of(train, dataset, device, layout, batch_size)
        self.pixels = self.data.images.view(-1, 3)
        self.padding, self.flip, self.batch_size, self.seed = (
            padding,
            dataset.flip,
            batch_size,
            seed,
        )
        self.count, self.steps = len(train), math.ceil(len(train) / batch_size)
        self.drawn: dict[int, Draws] = {}  # of one epoch
        self.augment: Augment | None = None
        self.mix: Callable[[Tensor, Tensor], tuple[Tensor, Tensor]] | None = None

    def batches(self, epoch: int, start: int = 0) -> Iterator[Batch]:
        """Yield the batches of `epoch` (from 1) from step `start` on; the last may be smaller."""
        order, offsets, flips = (drawn.to(self.pixels.device) for drawn in self.draws(epoch))
        for step, _ in enumerate(self.filled(epoch, start), start):
            part = self._part(step)
            index = self.data.within(order[part])
            pixels = self._cut(index, offsets[:, part], flips[part])
            labels = self.data.labels[order[part]]
            if self.is_plain:
                yield self.data.as_input(pixels), labels
            else:
                yield self._varied(pixels, labels, stream_seed(self.seed, "vary", epoch, step))

    def filled(self, epoch: int, start: int = 0) -> Iterator[None]:
        """Have the images of each batch of `epoch` from step `start` on where they are cut from."""
        order = self.draws(epoch)[0].numpy()
        return self.data.filled(order[self._part(step)] for step in range(start, self.steps))

    def _part(self, step: int) -> slice:
        """Return which of the epoch's images are those of a step."""
        return slice(step * self.batch_size, (step + 1) * self.batch_size)

    @property
    def is_plain(self) -> bool:
        """Return whether images are cropped and flipped, and no more."""
        return self.augment is None and self.mix is None

    def draws(self, epoch: int) -> Draws:
        """Return the order (N,) of the images in `epoch`, offsets (2, N, 1) and flips (N, 1), on
        the CPU.
        """
        if epoch not in self.drawn:
            self.draw(epoch)
        return self.drawn[epoch]

    def draw(self, epoch: int) -> None:
        """Draw the numbers of `epoch`, such as while a device is busy with the one before it."""
        order = torch.randperm(self.count, generator=stream(self.seed, "shuffle", epoch))
        draws, most = stream(self.seed, "augment", epoch), self.padding
        offsets = torch.randint(-most, most + 1, (2, self.count, 1), generator=draws)
        flips = torch.rand((self.count, 1), generator=draws).lt(0.5 if self.flip else 0.0)
        self.drawn = {epoch: (order, offsets, flips)}

    def plain_batch(self, index: Tensor, offsets: Tensor, flips: Tensor) -> Batch:
        """Return the images at `index` (B,), cut and flipped as _cut has it, and their labels."""
        images = self.data.as_input(self._cut(self.data.within(index), offsets, flips))
        return images, self.data.labels.index_select(0, index)

    def _varied(self, pixels: Tensor, labels: Tensor, seed: int) -> Batch:
        """Return images of `pixels` uint8 (B, H, W, 3) and labels, augmented and mixed."""
        with drawing_from(seed, pixels.device):
            if self.augment is not None:
                images = self.augment(pixels.permute(0, 3, 1, 2))
                images = images * 255 if images.is_floating_point() else images
                pixels = images.permute(0, 2, 3, 1)
            images = self.data.as_input(pixels)
            return (images, labels) if self.mix is None else self.mix(images, labels)

    def _cut(self, index: Tensor, offsets: Tensor, flips: Tensor) -> Tensor:
        """Cut and flip the images at `index` (B,) of data.images, by offsets (2, B, 1) of row and
        column and flips (B, 1): uint8 (B, H, W, 3).
        """
        height, width = self.data.images.shape[1:3]
        columns = torch.arange(width, device=index.device)
        columns = reflect(torch.where(flips, width - 1 - columns, columns) + offsets[1], width)
        rows = reflect(torch.arange(height, device=index.device) + offsets[0], height)
        places = (index[:, None] * height + rows)[:, :, None] * width + columns[:, None, :]
        return self.pixels.index_select(0, places.flatten()).view(len(index), height, width, 3)


def reflect(position: Tensor, size: int) -> Tensor:
    """Mirror positions beyond an edge at its pixel, as if the image had been reflect-padded."""
    return size - 1 - (size - 1 - position.abs()).abs()


class TorchvisionPipeline:
    """Follows the official procedure: PIL transforms in one worker process, and the global
    generator seeded with seed + epoch.

    One worker always: the draws of a batch depend on their number.
    """

    def __init__(
        self,
        train: Split,
        dataset: Dataset,
        padding: int,
        batch_size: int,
        seed: int,
        device: torch.device,
    ) -> None:
        from torchvision import transforms

        steps = [
            transforms.RandomCrop(train.images.shape[1:3], padding=padding, padding_mode="reflect")
        ]
        steps = (steps if padding else []) + (
            [transforms.RandomHorizontalFlip()] if dataset.flip else []
        )
        steps += [transforms.ToTensor(), transforms.Normalize(dataset.mean, dataset.std)]
        self.loader = torch.utils.data.DataLoader(
            _Transformed(train, transforms.Compose(steps)),
            batch_size,
            shuffle=True,
            num_workers=1,
            pin_memory=device.type == "cuda",
        )
        self.batch_size, self.seed, self.device = batch_size, seed, device
        self.count, self.steps = len(train), len(self.loader)

    def batches(self, epoch: int, start: int = 0) -> Iterator[Batch]:
        """Yield the batches of `epoch` (from 1) from step `start` on; those before it are drawn and
        dropped.
        """
        torch.manual_seed(self.seed + epoch)
        try:
            for step, (images, labels) in enumerate(self.loader):
                if step >= start:
                    yield (
                        images.to(self.device, non_blocking=True),
                        labels.to(self.device, non_blocking=True),
                    )
        except UserError as error:  # of the worker process, with its stack trace as text
            raise UserError(str(error).rpartition("UserError: ")[2]) from error


class _Transformed(torch.utils.data.Dataset):
    """Passes PIL images through `transform`, as torchvision's data sets do."""

    def __init__(self, split: Split, transform: Callable[[Any], Tensor]) -> None:
        self.split, self.transform = split, transform

    def __len__(self) -> int:
        return len(self.split)

    def __getitem__(self, index: int) -> tuple[Tensor, int]:
        from PIL import Image

        image = Image.fromarray(self.split.images[index])
        return self.transform(image), int(self.split.labels[index])


Pipeline = TensorPipeline | TorchvisionPipeline
