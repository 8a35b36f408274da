"""A network that the package resnests knows nothing of."""

from torch import nn


class TinyNet(nn.Sequential):
    """Two convolutions: images (N, 3, H, W) -> logits (N, num_classes)."""

    def __init__(self, num_classes: int, width: int) -> None:
        super().__init__(
            nn.Conv2d(3, width, 3, stride=2, padding=1),
            nn.BatchNorm2d(width),
            nn.ReLU(),
            nn.Conv2d(width, 2 * width, 3, stride=2, padding=1),
            nn.ReLU(),
            nn.AdaptiveAvgPool2d(1),
            nn.Flatten(),
            nn.Linear(2 * width, num_classes),
        )
