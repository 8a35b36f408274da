"""Set, verify and describe which arithmetic and kernels PyTorch uses, for the whole process."""

from __future__ import annotations

from typing import Any

import torch

from resnests.config.schema import Trainer
from resnests.data.pipelines import memory_format
from resnests.errors import require

# What has a switch fp32_precision of its own, since torch 2.9 (ieee, tf32 or bf16)
CONVOLUTIONS, PRODUCTS = "cudnn.conv", "cuda.matmul"
OTHERS = ("cudnn.rnn", "mkldnn.conv", "mkldnn.matmul", "mkldnn.rnn")  # the latter on CPUs
# The same two before
OLD_CONVOLUTIONS, OLD_PRODUCTS = "cudnn.allow_tf32", "cuda.matmul.allow_tf32"


def set_numerics(trainer: Trainer) -> None:
    """Set the process to trainer.precision.

    A file of the user's may have set other switches when it was imported, in the old way or the
    new, so both are set. The old ones come first: what they leave open the new ones of a whole
    backend would decide. `official` is what PyTorch does by itself, which includes kernels that
    are chosen by its rules instead of by a measurement.
    """
    torch.use_deterministic_algorithms(trainer.deterministic)
    torch.backends.cudnn.benchmark = _measures_kernels(trainer)
    if _has_new_switches():
        for name in ("", "cudnn", "mkldnn"):
            _backend(name).fp32_precision = "ieee"
    torch.set_float32_matmul_precision("high" if trainer.precision == "tf32" else "highest")
    products, convolutions = _tf32(trainer)
    torch.backends.cuda.matmul.allow_tf32 = products
    torch.backends.cudnn.allow_tf32 = convolutions
    for name, value in _fp32_switches(trainer).items():
        if name.endswith(".fp32_precision"):
            _backend(name.removesuffix(".fp32_precision")).fp32_precision = value


def require_numerics(trainer: Trainer) -> None:
    """Raise a UserError unless the process is still set as trainer.precision has it.

    What computes could change a switch in the middle of a task, whose record would say otherwise.
    """
    wanted: dict[str, Any] = _fp32_switches(trainer)
    if trainer.deterministic:
        wanted |= {"cudnn.benchmark": False}
        is_so = torch.are_deterministic_algorithms_enabled()
        expected = "a process that has them only: something of your own changed it"
        require(is_so, "trainer.deterministic", True, expected)
    for name, value in wanted.items():
        backend, _, switch = name.rpartition(".")
        found = getattr(_backend(backend), switch)
        expected = (
            f"{value}, as trainer.precision={trainer.precision}: something of your own set it"
        )
        require(found == value, f"torch.backends.{name}", found, expected)


def arithmetic(trainer: Trainer, device: torch.device) -> str:
    """Return in what convolutions and matrix products are computed on `device`, for the record: as
    the switches say, where a card has TF32 at all.
    """
    if trainer.precision == "bf16":
        return "bf16 by autocast"
    if device.type != "cuda" or torch.cuda.get_device_capability(device) < (8, 0):
        return "fp32"
    products, convolutions = _found_tf32()
    if products == convolutions:
        return "tf32" if products else "fp32"
    return f"tf32 in {'convolutions' if convolutions else 'matrix products'}"


def move(model: torch.nn.Module, device: torch.device, trainer: Trainer) -> None:
    """Move the network to the device, in the layout of the images there."""
    model.to(device).to(memory_format=memory_format(trainer, device))


def _measures_kernels(trainer: Trainer) -> bool:
    return not (trainer.deterministic or trainer.precision == "official")


def _tf32(trainer: Trainer) -> tuple[bool, bool]:
    """Return whether matrix products and convolutions may be in TF32."""
    return trainer.precision == "tf32", trainer.precision in ("tf32", "official")


def _found_tf32() -> tuple[bool, bool]:
    """Return the same as the switches say it."""
    if _has_new_switches():
        return _is_tf32(PRODUCTS), _is_tf32(CONVOLUTIONS)
    return torch.backends.cuda.matmul.allow_tf32, torch.backends.cudnn.allow_tf32


def _is_tf32(name: str) -> bool:
    return _backend(name).fp32_precision == "tf32"


def _fp32_switches(trainer: Trainer) -> dict[str, Any]:
    """Return the switches of this version of torch that decide how fp32 is computed, and how."""
    products, convolutions = _tf32(trainer)
    if not _has_new_switches():
        return {OLD_PRODUCTS: products, OLD_CONVOLUTIONS: convolutions}
    tf32 = {PRODUCTS: products, CONVOLUTIONS: convolutions, "cudnn.rnn": convolutions}
    names = [name for name in (PRODUCTS, CONVOLUTIONS, *OTHERS) if _backend(name) is not None]
    return {f"{name}.fp32_precision": "tf32" if tf32.get(name) else "ieee" for name in names}


def _has_new_switches() -> bool:
    return hasattr(torch.backends, "fp32_precision")


def _backend(name: str) -> Any:
    """Return torch.backends.<name>, None where this version has none such."""
    place: Any = torch.backends
    for part in name.split(".") if name else ():
        place = getattr(place, part, None)
    return place
