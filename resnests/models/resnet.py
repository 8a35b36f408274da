"""Define pre-activation residual networks and the four heads of the paper (Section 2 and 3; tables
in its experiments).

Modules carry the names of the official checkpoints (`expansion`, `stage`, `final_bn`, `linear`,
`H_0`, `H_k`), so that a state dict here and there is the same thing. Shapes: N images, C channels,
H x W pixels, K classes.
"""

from __future__ import annotations

import itertools
import random
from collections.abc import Iterator, Sequence
from numbers import Integral
from pathlib import Path
from typing import Any, cast

import numpy as np
import torch
from omegaconf import OmegaConf
from torch import Tensor, nn
from torch.nn.parameter import is_lazy

from resnests.config.compose import conf_dir
from resnests.config.parts import HEADS, Arch, Variant
from resnests.config.schema import part_from
from resnests.config.targets import broken, build, names
from resnests.errors import UserError, require, require_one_of
from resnests.models.norm_relu import norm_relu
from resnests.models.weights import load_weights


def conv3x3(channels_in: int, channels_out: int, stride: int = 1) -> nn.Conv2d:
    return nn.Conv2d(channels_in, channels_out, 3, stride=stride, padding=1, bias=False)


def flat(stages: nn.ModuleList) -> Iterator[Any]:
    """Yield block by block through all stages."""
    for stage in stages:
        yield from cast(nn.ModuleList, stage)


def pool(x: Tensor) -> Tensor:
    """Return the average over space: (N, C, H, W) -> (N, C)."""
    return x.mean((2, 3))


class Block(nn.Module):
    """Maps x, as a basic block, to (features v, residual representation conv2(v) + shortcut).

    The shortcut is x, or a projection of relu(bn1(x)) where the shape changes.
    """

    def __init__(self, channels_in: int, channels_out: int, stride: int) -> None:
        super().__init__()
        self.bn1 = nn.BatchNorm2d(channels_in)
        self.conv1 = conv3x3(channels_in, channels_out, stride)
        self.bn2 = nn.BatchNorm2d(channels_out)
        self.conv2 = conv3x3(channels_out, channels_out)
        self.projection = None
        if stride != 1 or channels_in != channels_out:
            self.projection = nn.Sequential(
                nn.Conv2d(channels_in, channels_out, 1, stride=stride, bias=False)
            )

    def features(self, x: Tensor) -> tuple[Tensor, Tensor]:
        """Return the features v and the shortcut of x (N, C_in, H, W), both (N, C_out, H/stride,
        W/stride).
        """
        y, x = norm_relu(x, self.bn1)
        v, _ = norm_relu(self.conv1(y), self.bn2)
        return v, x if self.projection is None else self.projection(y)

    def forward(self, x: Tensor) -> Tensor:
        v, shortcut = self.features(x)
        return self.conv2(v).add_(shortcut)


class ResNet(nn.Module):
    """Maps images (N, 3, H, W) to logits (N, K) by trunk and classifier: standard, bn_resnest,
    resnest.
    """

    def __init__(
        self, blocks: Sequence[int], widths: Sequence[int], num_classes: int, head: str
    ) -> None:
        super().__init__()
        self.head = head
        self.expansion = conv3x3(3, widths[0])
        self.stage = nn.ModuleList()
        channels = widths[0]
        for index, (depth, width) in enumerate(zip(blocks, widths, strict=True)):
            strides = [1 if index == 0 else 2] + [1] * (depth - 1)
            stage = nn.ModuleList()
            for stride in strides:
                stage.append(Block(channels, width, stride))
                channels = width
            self.stage.append(stage)
        if head != "resnest":
            self.final_bn = nn.BatchNorm2d(channels)
        self.linear = nn.Linear(channels, num_classes)

    def forward(self, x: Tensor) -> Tensor:
        x = self.expansion(x)
        for block in flat(self.stage):
            x = block(x)
        if self.head == "standard":
            x, _ = norm_relu(x, self.final_bn)
        elif self.head == "bn_resnest":
            x = self.final_bn(x)
        return self.linear(pool(x))


class AResNEst(nn.Module):
    """Computes logits without a classifier on the trunk (A-ResNEst): they are H_0(input) + sum of
    H_i(features of block i), all pooled.

    Nothing reads the last block's conv2, and there is no final batch norm.
    """

    def __init__(self, blocks: Sequence[int], widths: Sequence[int], num_classes: int) -> None:
        super().__init__()
        # The official code draws the whole standard network first: conv2 of the last block and the
        # classifier are drawn and dropped, so that H_0, H_1, ... get the official draws.
        trunk = ResNet(blocks, widths, num_classes, "standard")
        self.expansion, self.stage = trunk.expansion, trunk.stage
        *_, last = flat(self.stage)
        last.conv2 = None
        self.H_0 = nn.Linear(3, num_classes)
        self.H_k = nn.ModuleList(
            nn.ModuleList(nn.Linear(width, num_classes) for _ in range(depth))
            for depth, width in zip(blocks, widths, strict=True)
        )

    def forward(self, x: Tensor) -> Tensor:
        logits = self.H_0(pool(x))
        # Autocast gives the logits of each head in bf16. Their sum is in fp32: over up to 55 heads,
        # rounding it every time adds up.
        logits = logits.to(torch.promote_types(logits.dtype, torch.float32))
        x = self.expansion(x)
        for block, head in zip(flat(self.stage), flat(self.H_k), strict=True):
            v, shortcut = block.features(x)
            logits = logits + head(pool(v))
            if block.conv2 is not None:
                x = block.conv2(v).add_(shortcut)
        return logits


class OwnHead(nn.Module):
    """Joins the trunk of a residual network and a head of the user's (see config.parts.Variant)."""

    def __init__(
        self, blocks: Sequence[int], widths: Sequence[int], num_classes: int, variant: Variant
    ) -> None:
        super().__init__()
        trunk = ResNet(blocks, widths, num_classes, "standard")
        self.expansion, self.stage = trunk.expansion, trunk.stage
        channels = [block.conv2.in_channels for block in flat(self.stage)]
        self.head = build("variant", variant, channels=channels, num_classes=num_classes)

    def forward(self, images: Tensor) -> Tensor:
        x, features = self.expansion(images), []
        for block in flat(self.stage):
            v, shortcut = block.features(x)
            features.append(v)
            x = block.conv2(v).add_(shortcut)
        return self.head(images, features, x)


def build_network(arch: Arch, variant: Variant, num_classes: int) -> nn.Module:
    """Return the network of `arch` with the head of `variant`: images (N, 3, H, W) -> logits
    (N, num_classes). Raise a UserError where a piece of the user's fails.

    Right after torch.manual_seed(s) the parameters of the paper's networks are drawn in the
    official order, so seed s gives the official initial network.
    """
    blocks, widths = arch.blocks or [], arch.widths or []
    head = variant.head or "standard"
    if arch.target is not None:
        expected = f"standard, as {arch.target} takes no head"
        require(head == "standard" or names("arch", arch, "head"), "variant.head", head, expected)
        asked = arch.args.get("num_classes", num_classes)
        expected = f"{num_classes}, as the data set has, or no such key"
        require(asked == num_classes, "arch.num_classes", asked, expected)
        network = build("arch", arch, num_classes=num_classes, named={"head": head})
        if not isinstance(network, nn.Module):
            what = f"arch._target_={arch.target}"
            raise UserError(f"{what}: expected an nn.Module, not {type(network).__name__}")
        return network
    if variant.target is not None:
        return OwnHead(blocks, widths, num_classes, variant)
    if head == "a_resnest":
        return AResNEst(blocks, widths, num_classes)
    require_one_of("variant.head", head, HEADS)  # which ResNet would take for one without an end
    return ResNet(blocks, widths, num_classes, head)


def build_model(
    arch: str | Arch | tuple[Sequence[int], Sequence[int]],
    variant: str | Variant = "standard",
    num_classes: int = 10,
    weights: Path | str | None = None,
) -> nn.Module:
    """Return a network; this is build_network for use as a library.

    `arch` is the name of a file in conf/arch, or (blocks per stage, widths per stage); `variant`
    that of a head; `weights` a file, ours, official or .safetensors, whose names and shapes must
    fit.
    """
    ok = isinstance(num_classes, Integral) and num_classes >= 1
    require(ok, "num_classes", num_classes, "a whole number of at least 1")
    if isinstance(arch, str):
        arch = load_arch(arch)
    if not isinstance(arch, Arch):
        arch = _own_arch(arch)
    if not isinstance(variant, Variant):
        if arch.target is None:
            require_one_of("variant", variant, HEADS)
        variant = Variant(name=variant, head=variant)
    network = build_network(arch, variant, num_classes)
    if weights is not None:
        require(isinstance(weights, str | Path), "weights", weights, "the path of a file")
        load_weights(Path(weights).expanduser(), network)
    return network


def _own_arch(arch: Any) -> Arch:
    """Return the architecture of (blocks per stage, widths per stage); raise a UserError."""
    try:
        blocks, widths = map(list, arch)
        ok = all(isinstance(number, Integral) for number in (*blocks, *widths))
    except (TypeError, ValueError):
        ok = False
    expected = "a name in conf/arch, or whole numbers, (blocks per stage, widths per stage)"
    require(ok, "arch", arch, expected)
    return Arch(name="custom", blocks=blocks, widths=widths)


def load_arch(name: str) -> Arch:
    """Return the architecture that conf/arch/<name>.yaml describes."""
    known = {path.stem: path for path in (conf_dir() / "arch").glob("*.yaml")}
    require_one_of("arch", name, tuple(sorted(known)))
    values = cast(dict[str, Any], OmegaConf.to_container(OmegaConf.load(known[name])))
    return part_from("arch", values)


def count_parameters(model: nn.Module) -> int:
    """Return the number of trainable parameters."""
    return sum(parameter.numel() for parameter in model.parameters() if parameter.requires_grad)


def initial_model(
    arch: Arch, variant: Variant, num_classes: int, seed: int, size: Sequence[int]
) -> nn.Module:
    """Return the network of `seed`, drawn on the CPU so that every device starts from the same
    weights.

    Networks of a user's may draw from numpy and Python's random, too.
    """
    torch.manual_seed(seed)
    np.random.seed(seed)
    random.seed(seed)
    network = build_network(arch, variant, num_classes)
    if any(map(is_lazy, itertools.chain(network.parameters(), network.buffers()))):
        _materialise(network, size)
    return network


@torch.no_grad()
def _materialise(network: nn.Module, size: Sequence[int]) -> None:
    """Give the lazy parameters of a user's network their shapes, by images of height and width
    `size`, so that they can be counted, drawn and trained; raise a UserError.
    """
    network.eval()  # in which batch norm keeps its statistics
    try:
        network(torch.zeros(2, 3, *size))
    except Exception as error:
        raise broken(f"arch: a batch of 2x3x{size[0]}x{size[1]} fails", error) from error
    network.train()
