"""Write weights as plain state dicts, whole or not at all, and read them only when sound."""

from __future__ import annotations

import io
import pickle
import zipfile
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from torch.nn.parameter import is_lazy

from resnests.errors import UserError
from resnests.runs.files import write_atomic


class UnsoundFile(ValueError):
    """Reports a file that is cut short, corrupt, foreign or of another run."""


def save_weights(path: Path, model: torch.nn.Module) -> None:
    """Write a plain state dict of CPU tensors under the official names, contiguous whatever the
    layout in training.
    """
    weights = {
        name: value.detach().cpu().contiguous() for name, value in model.state_dict().items()
    }
    write_atomic(path, serialise(weights))


def load_weights(path: Path, model: torch.nn.Module) -> None:
    """Put the state dict in `path` into `model`; a UserError lists every name and shape that
    does not fit.
    """
    weights = read_weights(path)
    if problems := _misfits(weights, model.state_dict()):
        expected = "the names and shapes of arch and variant"
        raise UserError(f"weights={path}: expected {expected}, but {'; '.join(problems)}")
    model.load_state_dict(weights)


def read_weights(path: Path, key: str = "weights") -> dict[str, Tensor]:
    """Return the state dict in `path`, the value of `key`; raise a UserError."""
    try:
        weights = _read_safetensors(path) if path.suffix == ".safetensors" else read_torch(path)
    except UnsoundFile as error:
        raise UserError(f"{key}={path}: {error}") from error
    if not isinstance(weights, dict) or not all(
        isinstance(value, Tensor) for value in weights.values()
    ):
        raise UserError(f"{key}={path}: expected a plain state dict of tensors")
    return weights


def _misfits(weights: dict[str, Tensor], own: dict[str, Tensor]) -> list[str]:
    """Return what keeps `weights` from being those of a network that has `own`."""
    problems = [f"{name} is missing" for name in own if name not in weights]
    problems += [f"{name} is not part of this network" for name in weights if name not in own]
    for name, value in weights.items():
        if name in own and not is_lazy(own[name]) and value.shape != own[name].shape:
            problems.append(f"{name} is {tuple(value.shape)} instead of {tuple(own[name].shape)}")
    return problems


def read_torch(path: Path) -> Any:
    """Return the content of a file of torch.save, on the CPU, its checksums verified, nothing but
    tensors and plain values unpickled; raise UnsoundFile.
    """
    try:
        with zipfile.ZipFile(path) as archive:
            torn = archive.testzip()
        if torn is not None:
            raise UnsoundFile(f"it is corrupt at {torn}")
        return torch.load(path, map_location="cpu", weights_only=True)
    except (
        zipfile.BadZipFile,
        EOFError,
        OSError,
        RuntimeError,
        ValueError,
        pickle.UnpicklingError,
    ) as error:
        if isinstance(error, UnsoundFile):
            raise
        reason = str(error).splitlines()[0] if str(error) else type(error).__name__
        raise UnsoundFile(f"it is cut short, corrupt or foreign ({reason})") from error


def serialise(value: Any) -> bytes:
    """Return the bytes of the file that torch.save makes of `value`."""
    buffer = io.BytesIO()
    torch.save(value, buffer)
    return buffer.getvalue()


def _read_safetensors(path: Path) -> dict[str, Tensor]:
    try:
        from safetensors import SafetensorError
        from safetensors.torch import load
    except ImportError as error:
        raise UserError(f"weights={path}: needs pip install 'resnests[hub]'") from error
    try:
        return load(path.read_bytes())
    except (SafetensorError, OSError) as error:
        raise UnsoundFile(f"it is cut short, corrupt or foreign ({error})") from error
