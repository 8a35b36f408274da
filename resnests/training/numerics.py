"""Choose the kernels and layouts that PyTorch uses, for the whole process."""

from __future__ import annotations

import torch

from resnests.config.schema import Trainer
from resnests.data.pipelines import memory_format


def set_numerics(trainer: Trainer) -> None:
    """Set the process to trainer.precision.

    `official` is what PyTorch does by itself, which includes kernels that are chosen by its rules
    instead of by a measurement.
    """
    official = trainer.precision == "official"
    torch.backends.cuda.matmul.allow_tf32 = trainer.precision == "tf32"
    torch.backends.cudnn.allow_tf32 = trainer.precision == "tf32" or official
    torch.backends.cudnn.benchmark = not (trainer.deterministic or official)
    torch.use_deterministic_algorithms(trainer.deterministic)


def arithmetic(trainer: Trainer, device: torch.device) -> str:
    """Return in what convolutions and matrix products are computed on `device`, for the record."""
    if trainer.precision == "bf16":
        return "bf16 by autocast"
    if device.type == "cuda" and torch.cuda.get_device_capability(device) >= (8, 0):
        return {"tf32": "tf32", "official": "tf32 in convolutions"}.get(trainer.precision, "fp32")
    return "fp32"


def move(model: torch.nn.Module, device: torch.device, trainer: Trainer) -> None:
    """Move the network to the device, in the layout of the images there."""
    model.to(device).to(memory_format=memory_format(trainer, device))
