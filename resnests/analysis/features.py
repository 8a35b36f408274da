"""Extract a trained network's features: a vector an image in which its logits are exactly linear.

Pooling over space does not commute with everything, so the features differ by network. conv2 is a
zero-padded 3x3 convolution: its pooled output is linear in the nine *window means* of its input,
the means over what each of the nine taps sees. A relu before the pooling leaves nothing exact.

    a_resnest               colour means, then pooled v_i of every block
    resnest, bn_resnest     window means of v_i of each block of the last stage, after what enters
                            that stage by its projection: the mean of the input at its stride
    densenest               pooled input of the last dense block, then of each layer's channels
    single-stage networks   v_0 .. v_L themselves
    standard, DenseNet      none

Beside them every network of images has `pooled` features, colour means and pooled v_i of all
blocks: the same for all variants, but a description only where the logits are not linear in them.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any, cast

import torch
from torch import Tensor, nn

from resnests.errors import UserError
from resnests.models.densenet import DenseNet
from resnests.models.norm_relu import norm_relu
from resnests.models.resnet import AResNEst, ResNet, flat
from resnests.models.single_stage import DenseNEst, ResNEst, SingleStage


@dataclass(frozen=True)
class Family:
    """Holds features in groups, one a block: what a prefix of blocks knows.

    Where the network's logits are linear in them, weight (K, d) and bias (K,) are its own; and
    where two maps W_L, W_{L+1} are left to choose once the features are fixed, x_{L-1} is
    `before` (M, columns before the last group) times the features, plus a constant. `coupled`
    where the maps of features also shape the features after them.
    """

    groups: list[str]
    sizes: list[int]
    weight: Tensor | None = None
    bias: Tensor | None = None
    before: Tensor | None = None
    block: Tensor | None = None
    readout: Tensor | None = None
    coupled: bool = False

    @property
    def ends(self) -> list[int]:
        """Return the number of features in each prefix of groups."""
        return [sum(self.sizes[: i + 1]) for i in range(len(self.sizes))]


@dataclass(frozen=True)
class Extractor:
    """`read` takes images (N, C, H, W) to the features of each family, (N, d) float64, and the
    network's logits (N, K).
    """

    families: dict[str, Family]  # by name: exact, pooled
    read: Callable[[Tensor], tuple[dict[str, Tensor], Tensor]] = field(repr=False)


def extractor(model: nn.Module) -> Extractor:
    """Return the features of `model`, which is put into evaluation mode; a UserError where it has
    none.
    """
    model.eval()
    if isinstance(model, AResNEst):
        return _a_resnest(model)
    if isinstance(model, ResNet):
        return _resnet(model)
    if isinstance(model, DenseNet):
        return _densenet(model)
    if isinstance(model, SingleStage):
        return _single_stage(model)
    raise UserError(
        f"arch: expected a network whose features are known, not {type(model).__name__}: "
        "a residual network, DenseNet or single-stage network of this package"
    )


def mean(x: Tensor) -> Tensor:
    """Return the means over space of (N, C, H, W), (N, C) in float64."""
    return x.mean((2, 3), dtype=torch.float64)


def window_means(x: Tensor) -> Tensor:
    """Turn (N, C, H, W) into (N, 9C) in float64, in the order of a 3x3 kernel's weights (C, 3, 3).

    For each tap, the sum over the positions that it sees in a zero-padded convolution of stride 1,
    over H * W: mean(conv(x)) = window_means(x) @ weight.flatten(1).T.
    """
    rows = x.sum(2, dtype=torch.float64)  # (N, C, W)
    first, last = x[:, :, 0].double(), x[:, :, -1].double()
    by_row = torch.stack((rows - last, rows, rows - first), 2)  # the tap above misses the last row
    columns = by_row.sum(3)
    windows = torch.stack((columns - by_row[..., -1], columns, columns - by_row[..., 0]), 3)
    return windows.flatten(1) / (x.shape[2] * x.shape[3])


def _depths(model: AResNEst | ResNet) -> list[int]:
    """Return the number of blocks in each stage."""
    return [len(cast(nn.ModuleList, stage)) for stage in model.stage]


def _block_names(model: AResNEst | ResNet) -> list[str]:
    return [f"{s}.{b}" for s, depth in enumerate(_depths(model), 1) for b in range(1, depth + 1)]


def _pooled(model: AResNEst | ResNet) -> tuple[list[str], list[int]]:
    widths = [block.conv1.out_channels for block in flat(model.stage)]
    return ["input", *_block_names(model)], [3, *widths]


def _double(value: Tensor | None) -> Tensor:
    assert value is not None
    return value.detach().double()


def _a_resnest(model: AResNEst) -> Extractor:
    heads = [model.H_0, *flat(model.H_k)]
    weight = _double(torch.cat([head.weight for head in heads], 1))
    bias = _double(torch.stack([head.bias for head in heads])).sum(0)

    def read(images: Tensor) -> tuple[dict[str, Tensor], Tensor]:
        v, x = [mean(images)], model.expansion(images)
        logits = model.H_0(images.mean((2, 3)))
        for head, block in zip(heads[1:], flat(model.stage), strict=True):
            features, shortcut = block.features(x)
            v.append(mean(features))
            logits = logits + head(features.mean((2, 3)))
            if block.conv2 is not None:
                x = block.conv2(features) + shortcut
        return {"exact": torch.cat(v, 1)}, logits

    return Extractor({"exact": Family(*_pooled(model), weight, bias)}, read)


def _resnet(model: ResNet) -> Extractor:
    families = {"pooled": Family(*_pooled(model))}
    if model.head != "standard":
        families = {"exact": _last_stage(model)} | families
    early = sum(_depths(model)[:-1])

    def read(images: Tensor) -> tuple[dict[str, Tensor], Tensor]:
        pooled, exact = [mean(images)], []
        x = model.expansion(images)
        if len(model.stage) == 1:
            exact.append(window_means(images))
        for index, block in enumerate(flat(model.stage)):
            if index == early and index:  # a stage of its own stride enters by a projection
                y = norm_relu(x, block.bn1)[0]
                exact.append(mean(y[:, :, :: block.conv1.stride[0], :: block.conv1.stride[1]]))
            v, shortcut = block.features(x)
            pooled.append(mean(v))
            if index >= early and "exact" in families:
                exact.append(window_means(v))
            x = block.conv2(v) + shortcut
        if model.head != "resnest":
            x = model.final_bn(x)
        logits = model.linear((x.relu() if model.head == "standard" else x).mean((2, 3)))
        both = {"exact": exact, "pooled": pooled}
        return {name: torch.cat(both[name], 1) for name in families}, logits

    return Extractor(families, read)


def _last_stage(model: ResNet) -> Family:
    """Return the exact features of resnest and bn_resnest, and their maps as matrices."""
    stage: list[Any] = list(cast(nn.ModuleList, model.stage[-1]))
    first = stage[0].projection
    enters = model.expansion.weight if first is None else first[0].weight
    maps = [enters, *(block.conv2.weight for block in stage)]
    maps = [_double(weight).flatten(1) for weight in maps]
    scale = torch.ones_like(maps[0][:, 0])
    shift = torch.zeros_like(scale)
    if model.head == "bn_resnest":
        bn = model.final_bn
        scale = _double(bn.weight) / (_double(bn.running_var) + bn.eps).sqrt()
        shift = _double(bn.bias) - _double(bn.running_mean) * scale
    last = _double(model.linear.weight)
    names = ["stem" if first is None else "projection", *_block_names(model)[-len(stage) :]]
    return Family(
        names,
        [weight.shape[1] for weight in maps],
        (last * scale) @ torch.cat(maps, 1),
        _double(model.linear.bias) + last @ shift,
        torch.cat(maps[:-1], 1) if len(last) <= last.shape[1] else None,
        maps[-1],
        last * scale,
        coupled=True,
    )


def _densenet(model: DenseNet) -> Extractor:
    stage: list[Any] = list(cast(nn.ModuleList, model.stage[-1]))
    sizes = [stage[0].bn1.num_features]
    sizes += [(layer.conv2 or layer.conv1).out_channels for layer in stage]
    names = ["transition", *(f"{len(model.stage)}.{i}" for i in range(1, len(sizes)))]
    families = {"pooled": Family(["input", *names], [3, *sizes])}
    if model.head == "densenest":
        exact = Family(names, sizes, _double(model.linear.weight), _double(model.linear.bias))
        families = {"exact": exact, "pooled": Family(["input"], [3])}

    def read(images: Tensor) -> tuple[dict[str, Tensor], Tensor]:
        pieces = model.last_features(images)
        colours, pooled = mean(images), torch.cat([mean(piece) for piece in pieces], 1)
        if model.head == "standard":
            features = {"pooled": torch.cat((colours, pooled), 1)}
        else:
            features = {"exact": pooled, "pooled": colours}
        return features, model.classify(pieces)

    return Extractor(families, read)


def _single_stage(model: SingleStage) -> Extractor:
    net: DenseNEst | ResNEst = model.net
    readout, bias = _double(net.linear.weight), _double(net.linear.bias)
    weight, before, block = readout, None, None
    if isinstance(net, DenseNEst):
        sizes = net.sizes
    else:
        maps = [_double(matrix) for matrix in net.maps()]
        sizes = [matrix.shape[1] for matrix in maps]
        before = torch.cat(maps[:-1], 1) if len(readout) <= readout.shape[1] else None
        block = maps[-1]
        weight = readout @ torch.cat(maps, 1)
    names = ["input", *(f"1.{i}" for i in range(1, len(sizes)))]

    coupled = isinstance(net, ResNEst)
    family = Family(names, sizes, weight, bias, before, block, readout, coupled)

    def read(images: Tensor) -> tuple[dict[str, Tensor], Tensor]:
        inputs = model.inputs(images)
        return {"exact": torch.cat(net.features(inputs), 1).double()}, net(inputs)

    return Extractor({"exact": family}, read)


def bytes_needed(family: Family, images: int) -> int:
    """Return what the features of `images` images take, with their copy in the basis of the last
    maps, and the few square matrices of solving.
    """
    width = 1 + math.fsum(family.sizes)
    copied = 0 if family.before is None else 1 + len(family.before) + family.sizes[-1]
    return int(8 * (images * (width + min(width, copied)) + 5 * width**2))
