"""A data set, a network and a head that the package resnests knows nothing of."""

import numpy as np
import torch
from torch import nn


def stripes(size: int, count: int, seed: int = 0) -> dict[str, tuple[np.ndarray, np.ndarray]]:
    """Noisy grey images of stripes that run one of four ways."""
    rng = np.random.default_rng(seed)

    def split(number: int) -> tuple[np.ndarray, np.ndarray]:
        labels = rng.integers(0, 4, number)
        y, x = np.mgrid[:size, :size]
        ways = np.stack([x, y, x + y, x - y])
        phase = rng.integers(0, 6, (number, 1, 1))
        images = 90 * ((ways[labels] + phase) // 3 % 2) + rng.integers(0, 120, (number, size, size))
        return images.astype(np.uint8), labels

    return {"train": split(count), "test": split(count // 4)}


class SmallNet(nn.Sequential):
    """Plain convolutions: images (N, 3, H, W) -> logits (N, num_classes)."""

    def __init__(self, num_classes: int, depth: int, width: int) -> None:
        layers: list[nn.Module] = [nn.Conv2d(3, width, 3, padding=1)]
        for _ in range(depth - 1):
            layers += [nn.BatchNorm2d(width), nn.ReLU(), nn.Conv2d(width, width, 3, padding=1)]
        pooled = [nn.ReLU(), nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(width, num_classes)]
        super().__init__(*layers, *pooled)


class LastFeatures(nn.Module):
    """A head that reads the pooled features of the last `blocks` blocks, and nothing else."""

    def __init__(self, channels: list[int], num_classes: int, blocks: int) -> None:
        super().__init__()
        self.blocks = blocks
        self.linear = nn.Linear(sum(channels[-blocks:]), num_classes)

    def forward(self, images, features, last):  # (N, 3, H, W), [(N, C_i, H_i, W_i)], (N, C, H, W)
        pooled = [v.mean((2, 3)) for v in features[-self.blocks :]]
        return self.linear(torch.cat(pooled, dim=1))
