"""Which kernels and layouts PyTorch uses, for the whole process."""

from __future__ import annotations

import torch

from resnests.config.schema import Trainer


def set_numerics(trainer: Trainer) -> None:
    tf32 = trainer.precision == "tf32"
    torch.backends.cuda.matmul.allow_tf32 = tf32
    torch.backends.cudnn.allow_tf32 = tf32
    torch.backends.cudnn.benchmark = not trainer.deterministic
    torch.use_deterministic_algorithms(trainer.deterministic)


def move(model: torch.nn.Module, device: torch.device, trainer: Trainer) -> None:
    """To the device, in the layout that is fastest there or that was asked for."""
    wanted = device.type != "mps" if trainer.channels_last is None else trainer.channels_last
    layout = torch.channels_last if wanted else torch.contiguous_format
    model.to(device).to(memory_format=layout)
