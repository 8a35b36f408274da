"""Copy the weights to bf16 all at once: the numbers of autocast in fewer operations."""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.func import functional_call

from resnests.models.resnet import AResNEst, ResNet


class Twins:
    """Calls a network with bf16 copies of the weights that autocast would cast.

    Autocast casts each weight of a convolution or linear map before it is used, and each of their
    gradients back: two small operations for every weight in every step. These are two for all of
    them, where torch has a fused copy for different types, and the bits are the same. It takes a
    network in which no such weight is used outside of autocast, which a user's may do.
    """

    def __init__(self, model: nn.Module) -> None:
        self.model, self.weights = model, dict[str, nn.Parameter]()
        for prefix, module in model.named_modules():
            if isinstance(module, nn.Conv2d | nn.Linear):
                self.weights |= dict(module.named_parameters(prefix, recurse=False))
        self.twins = {
            name: torch.empty_like(weight, dtype=torch.bfloat16, requires_grad=weight.requires_grad)
            for name, weight in self.weights.items()
        }

    @classmethod
    def of(cls, model: nn.Module, precision: str) -> Twins | None:
        """Return those of a network of the paper's in bf16, else None."""
        return cls(model) if precision == "bf16" and type(model) in (ResNet, AResNEst) else None

    def __call__(self, images: Tensor) -> Tensor:
        """Return what the network makes of images (N, 3, H, W), by copies of its weights now."""
        with torch.no_grad():
            torch._foreach_copy_(list(self.twins.values()), list(self.weights.values()))
        for twin in self.twins.values():
            twin.grad = None
        return functional_call(self.model, self.twins, images, tie_weights=False)

    def return_gradients(self) -> None:
        """Add the gradients of the copies to those of the weights, after a backward pass."""
        weights, gradients = [], []
        for weight, twin in zip(self.weights.values(), self.twins.values(), strict=True):
            if twin.grad is not None:
                weights.append(weight)
                # The same memory: autograd sees to that but for dimensions of size 1, whose strides
                # mean nothing. They must agree, too, or each would be copied by itself
                gradients.append(twin.grad.as_strided(weight.size(), weight.stride()))
        with torch.no_grad():
            copies = [torch.empty_like(weight) for weight in weights]
            torch._foreach_copy_(copies, gradients)
            for weight, copied in zip(weights, copies, strict=True):
                weight.grad = copied if weight.grad is None else weight.grad.add_(copied)
