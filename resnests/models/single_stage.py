"""Define the single-stage, fully connected networks of the paper's theory, on vectors or on small
images.

ResNEst: x_0 = W_0 v_0; v_i = G_i(x_{i-1}); x_i = x_{i-1} + W_i v_i; logits = W_{L+1} x_L + b.
DenseNEst: x_0 = v_0; x_i = [x_{i-1}; Q_i(x_{i-1})]; logits = W x_L + b.
Here G_i(x) = Q_i(x) = relu(U_i x + u_i). N images, N_in inputs, M width, K classes, L blocks.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, cast

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from resnests.errors import require


class ResNEst(nn.Module):
    """Maps (N, N_in) to logits (N, K); block i has `features[i - 1]` features, its K_i."""

    def __init__(self, inputs: int, width: int, features: Sequence[int], num_classes: int) -> None:
        super().__init__()
        self.W_0 = nn.Linear(inputs, width, bias=False)
        self.G = nn.ModuleList(nn.Linear(width, count) for count in features)
        self.W = nn.ModuleList(nn.Linear(count, width, bias=False) for count in features)
        self.linear = nn.Linear(width, num_classes)

    def features(self, x: Tensor) -> list[Tensor]:
        """Return v_0 .. v_L, (N, K_i) each."""
        v, x = [x], self.W_0(x)
        for inner, outer in zip(self.G, self.W, strict=True):
            v.append(F.relu(inner(x)))
            x = x + outer(v[-1])
        return v

    def maps(self) -> list[Tensor]:
        """Return W_0 .. W_L, (M, K_i) each: x_L is the sum of W_i v_i."""
        return [self.W_0.weight, *(cast(nn.Linear, layer).weight for layer in self.W)]

    def forward(self, x: Tensor) -> Tensor:
        v, maps = self.features(x), self.maps()
        return self.linear(sum(F.linear(v_i, W_i) for v_i, W_i in zip(v, maps, strict=True)))


class DenseNEst(nn.Module):
    """Maps (N, N_in) to logits (N, K); block i adds `features[i - 1]` features, its D_i."""

    def __init__(self, inputs: int, features: Sequence[int], num_classes: int) -> None:
        super().__init__()
        self.Q = nn.ModuleList()
        self.sizes = [inputs, *features]
        width = inputs
        for count in features:
            self.Q.append(nn.Linear(width, count))
            width += count
        self.linear = nn.Linear(width, num_classes)

    def features(self, x: Tensor) -> list[Tensor]:
        """Return x, then what each block adds, (N, D_i) each."""
        v: list[Tensor] = [x]
        for layer in self.Q:
            v.append(F.relu(layer(torch.cat(v, 1))))
        return v

    def forward(self, x: Tensor) -> Tensor:
        return self.linear(torch.cat(self.features(x), 1))


@torch.no_grad()
def as_wide_resnest(dense: DenseNEst) -> ResNEst:
    """Return the ResNEst that computes the same function, with M = N_in + sum of D_i.

    W_0 = [I; 0]; W_i puts the D_i values of block i into rows that are still zero; G_i reads what
    Q_i reads, the rows before them.
    """
    (inputs, *features), width = dense.sizes, dense.linear.in_features
    wide = ResNEst(inputs, width, features, dense.linear.out_features)
    wide.to(dense.linear.weight)
    for parameter in wide.parameters():
        parameter.zero_()
    wide.W_0.weight[:inputs] = torch.eye(inputs)
    layers: Any = zip(dense.Q, wide.G, wide.W, strict=True)
    for layer, inner, outer in layers:
        filled = layer.in_features
        inner.weight[:, :filled] = layer.weight
        inner.bias.copy_(layer.bias)
        outer.weight[filled : filled + layer.out_features] = torch.eye(layer.out_features)
    wide.linear.load_state_dict(dense.linear.state_dict())
    return wide


class SingleStage(nn.Module):
    """Maps images (N, C, H, W) to logits (N, K): a ResNEst or DenseNEst on `pixels` x `pixels` grey
    means.

    `width` is M, which a DenseNEst has none of; each of `depth` blocks has `features` features.
    """

    def __init__(
        self,
        num_classes: int,
        pixels: int,
        depth: int,
        features: int,
        width: int | None = None,
        head: str = "resnest",
    ) -> None:
        super().__init__()
        for key, value in (("pixels", pixels), ("depth", depth), ("features", features)):
            require(value >= 1, f"arch.{key}", value, "at least 1")
        require(
            head in ("resnest", "densenest"),
            "variant.head",
            head,
            "resnest or densenest, as a network of a single stage has no other form here",
        )
        self.pixels = pixels
        self.net: ResNEst | DenseNEst
        if head == "densenest":
            require(width is None, "arch.width", width, "null: a DenseNEst has as much as it needs")
            self.net = DenseNEst(pixels**2, [features] * depth, num_classes)
        else:
            require(width is not None and width >= 1, "arch.width", width, "at least 1")
            assert width is not None
            self.net = ResNEst(pixels**2, width, [features] * depth, num_classes)

    def inputs(self, images: Tensor) -> Tensor:
        """Return v_0, (N, pixels^2), of images (N, C, H, W)."""
        return F.adaptive_avg_pool2d(images.mean(1, keepdim=True), self.pixels).flatten(1)

    def forward(self, images: Tensor) -> Tensor:
        return self.net(self.inputs(images))
