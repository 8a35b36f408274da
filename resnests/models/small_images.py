"""Adapt networks of other libraries, made for images of 224 pixels, to images of 32."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from torch import nn

from resnests.errors import UserError


def small_stem(network: Callable[..., nn.Module], num_classes: int, **args: Any) -> nn.Module:
    """Return network(num_classes=, **args) without the part of its stem that makes large images
    small, as is usual for images of 32 pixels.

    The first convolution with a stride becomes one of 3x3 with stride 1, drawn as He et al. do, and
    a max pooling that follows it in the stem is left out. Anything else stays as it was.
    """
    model = network(num_classes=num_classes, **args)
    layers = dict(model.named_modules())
    convolutions = {n: layer for n, layer in layers.items() if isinstance(layer, nn.Conv2d)}
    first = next((n for n, layer in convolutions.items() if max(layer.stride) > 1), None)
    if first is None:
        what = getattr(network, "func", network)
        raise UserError(f"arch.network={what}: expected a network with a strided convolution")
    old = convolutions[first]
    new = nn.Conv2d(old.in_channels, old.out_channels, 3, padding=1, bias=old.bias is not None)
    nn.init.kaiming_normal_(new.weight, mode="fan_out", nonlinearity="relu")
    if new.bias is not None:
        nn.init.zeros_(new.bias)
    _put(model, first, new)
    for name in _before_second(layers, [*convolutions]):
        if isinstance(layers[name], nn.MaxPool2d):
            _put(model, name, nn.Identity())
    return model


def _before_second(layers: dict[str, nn.Module], convolutions: list[str]) -> list[str]:
    """Return the names of `layers` before the second convolution: those of the stem."""
    names = list(layers)
    return names[: names.index(convolutions[1])] if len(convolutions) > 1 else names


def _put(model: nn.Module, name: str, layer: nn.Module) -> None:
    """Replace a layer by its dotted name (torch 2.4 has no set_submodule)."""
    above, _, last = name.rpartition(".")
    setattr(model.get_submodule(above), last, layer)
