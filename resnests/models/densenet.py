"""Define DenseNet and DenseNEst, the same trunk without the last batch norm and relu, so that the
logits are linear in all features of the last dense block.

The CIFAR form of Huang et al., "Densely Connected Convolutional Networks" (2017): three dense
blocks with 1x1 transitions between them. Parameters are drawn by PyTorch's defaults, as those of
the residual networks here. Shapes: N images, C channels, H x W pixels, K classes.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager, nullcontext
from typing import cast

import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torch.utils.checkpoint import checkpoint

from resnests.errors import require
from resnests.models.norm_relu import norm_relu
from resnests.models.resnet import conv3x3, pool

HEADS = ("standard", "densenest")
STAGES = 3


class DenseLayer(nn.Module):
    """Makes `growth` new channels of those so far, in pieces of C_1 + .. + C_n = C channels."""

    def __init__(self, channels: int, growth: int, bottleneck: bool) -> None:
        super().__init__()
        self.bn1 = nn.BatchNorm2d(channels)
        inner = 4 * growth
        self.conv2: nn.Conv2d | None
        if bottleneck:
            self.conv1 = nn.Conv2d(channels, inner, 1, bias=False)
            self.bn2 = nn.BatchNorm2d(inner)
            self.conv2 = conv3x3(inner, growth)
        else:
            self.conv1, self.conv2 = conv3x3(channels, growth), None

    def forward(self, pieces: Sequence[Tensor]) -> Tensor:
        if self.training and torch.is_grad_enabled():
            # Each layer reads all channels before it, normalised anew: kept for the gradient, these
            # copies would take memory quadratic in the depth. They are made again instead.
            x = checkpoint(
                self._first,
                *pieces,
                use_reentrant=False,
                preserve_rng_state=False,
                context_fn=lambda: (nullcontext(), _frozen(self.bn1)),
            )
        else:
            x = self._first(*pieces)
        return x if self.conv2 is None else self.conv2(norm_relu(x, self.bn2)[0])

    def _first(self, *pieces: Tensor) -> Tensor:
        return self.conv1(norm_relu(torch.cat(pieces, 1), self.bn1)[0])


@contextmanager
def _frozen(bn: nn.BatchNorm2d) -> Iterator[None]:
    """Keep running statistics as they are: a batch that is normalised again counts once."""
    momentum, tracked = bn.momentum, bn.num_batches_tracked
    assert tracked is not None
    bn.momentum, bn.num_batches_tracked = 0.0, tracked.clone()
    try:
        yield
    finally:
        bn.momentum, bn.num_batches_tracked = momentum, tracked


class Transition(nn.Module):
    """Maps (N, C, H, W) to (N, C_out, H/2, W/2): batch norm, relu, 1x1 convolution, 2x2 average."""

    def __init__(self, channels: int, channels_out: int) -> None:
        super().__init__()
        self.bn = nn.BatchNorm2d(channels)
        self.conv = nn.Conv2d(channels, channels_out, 1, bias=False)

    def forward(self, x: Tensor) -> Tensor:
        return F.avg_pool2d(self.conv(norm_relu(x, self.bn)[0]), 2)


class DenseNet(nn.Module):
    """Maps images (N, 3, H, W) to logits (N, K); H and W of at least 4.

    `head` is standard (batch norm, relu, pool, linear) or densenest (pool, linear). `depth` counts
    convolutions and the classifier: 4 + 3n, or 4 + 6n with `bottleneck`. A transition keeps the
    fraction `compression` of its channels.
    """

    def __init__(
        self,
        num_classes: int,
        depth: int,
        growth: int,
        compression: float = 1.0,
        bottleneck: bool = False,
        head: str = "standard",
    ) -> None:
        super().__init__()
        unit = STAGES * (2 if bottleneck else 1)
        right = depth >= 4 + unit and (depth - 4) % unit == 0
        require(right, "arch.depth", depth, f"4 + a multiple of {unit}, such as {4 + 6 * unit}")
        require(growth >= 1, "arch.growth", growth, "at least 1")
        require(0 < compression <= 1, "arch.compression", compression, "above 0, at most 1")
        require(head in HEADS, "variant.head", head, f"{' or '.join(HEADS)} with a DenseNet")
        self.head = head
        layers, channels = (depth - 4) // unit, 2 * growth if bottleneck else 16
        self.stem = conv3x3(3, channels)
        self.stage, self.transition = nn.ModuleList(), nn.ModuleList()
        for index in range(STAGES):
            if index:
                kept = max(1, int(channels * compression))
                self.transition.append(Transition(channels, kept))
                channels = kept
            widths = [channels + growth * layer for layer in range(layers)]
            self.stage.append(
                nn.ModuleList(DenseLayer(width, growth, bottleneck) for width in widths)
            )
            channels += growth * layers
        if head == "standard":
            self.final_bn = nn.BatchNorm2d(channels)
        self.linear = nn.Linear(channels, num_classes)

    def last_features(self, x: Tensor) -> list[Tensor]:
        """Return the input of the last dense block and what each of its layers adds, each (N, C_i,
        H/4, W/4).
        """
        x = self.stem(x)
        for index, stage in enumerate(self.stage):
            pieces = [self.transition[index - 1](x) if index else x]
            for layer in cast(nn.ModuleList, stage):
                pieces.append(layer(pieces))
            x = torch.cat(pieces, 1) if index < STAGES - 1 else x
        return pieces

    def classify(self, pieces: Sequence[Tensor]) -> Tensor:
        """Return the logits of what last_features returns."""
        if self.head == "standard":
            return self.linear(pool(norm_relu(torch.cat(list(pieces), 1), self.final_bn)[0]))
        return self.linear(torch.cat([pool(piece) for piece in pieces], 1))

    def forward(self, x: Tensor) -> Tensor:
        return self.classify(self.last_features(x))
