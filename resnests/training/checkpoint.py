"""Checkpoints and weights on disk: written whole or not at all, read only when sound."""

from __future__ import annotations

import io
import logging
import math
import os
import pickle
import time
import zipfile
from pathlib import Path
from typing import Any

import torch

from resnests.errors import UserError
from resnests.runs.directory import RunDirectory, write_atomic

log = logging.getLogger(__name__)


class UnsoundCheckpoint(ValueError):
    """A file that is cut short, corrupt, foreign or of another run."""


class Checkpoints:
    """Writes those of a run, after every `every` epochs; None: as often as SHARE allows."""

    SHARE = 0.02  # of the time, at most

    def __init__(self, directory: RunDirectory, every: int | None) -> None:
        self.directory, self.every = directory, every
        self.took, self.written = 0.0, -math.inf  # seconds

    def is_due(self, epoch: int) -> bool:
        """Whether `epoch`, which has just ended, is to be followed by one."""
        if self.every is not None:
            return epoch % self.every == 0
        return self.took <= self.SHARE * (time.perf_counter() - self.written)

    def save(self, state: dict[str, Any]) -> None:
        started = time.perf_counter()
        save_checkpoint(self.directory, state)
        self.written = time.perf_counter()
        self.took = self.written - started


def save_checkpoint(directory: RunDirectory, state: dict[str, Any]) -> None:
    """Write `state`, and keep the checkpoint before it as a second line of defence."""
    data = _serialise(state)
    current, fresh = directory.checkpoint_file, directory.path / ".checkpoint.tmp"
    write_atomic(fresh, data)
    if current.exists():
        os.replace(current, directory.previous_checkpoint_file)
    os.replace(fresh, current)


def load_checkpoint(directory: RunDirectory, identity: dict[str, Any]) -> dict[str, Any] | None:
    """The latest sound checkpoint of the run `identity`, on the CPU, None where there is none; the
    log names unsound ones.

    load_state_dict moves what belongs on a device. AdamW's count of steps does not: there, every
    step would wait for the device to read it, twice for each parameter.
    """
    for path in (directory.checkpoint_file, directory.previous_checkpoint_file):
        if not path.exists():
            continue
        try:
            state = read_torch(path)
            if not isinstance(state, dict) or state.get("identity") != identity:
                raise UnsoundCheckpoint("it belongs to another run")
            return state
        except UnsoundCheckpoint as error:
            log.warning("%s is not used: %s", path, error)
    return None


def save_weights(path: Path, model: torch.nn.Module) -> None:
    """A plain state dict of CPU tensors under the official names, contiguous whatever the layout
    in training.
    """
    weights = {
        name: value.detach().cpu().contiguous() for name, value in model.state_dict().items()
    }
    write_atomic(path, _serialise(weights))


def load_weights(path: Path, model: torch.nn.Module) -> None:
    """Put the state dict in `path` into `model`; a UserError lists every name and shape that
    does not fit.
    """
    try:
        weights = _read_safetensors(path) if path.suffix == ".safetensors" else read_torch(path)
    except UnsoundCheckpoint as error:
        raise UserError(f"weights={path}: {error}") from error
    if not isinstance(weights, dict) or not all(
        isinstance(value, torch.Tensor) for value in weights.values()
    ):
        raise UserError(f"weights={path}: expected a plain state dict of tensors")
    own = model.state_dict()
    problems = [f"{name} is missing" for name in own if name not in weights]
    problems += [f"{name} is not part of this network" for name in weights if name not in own]
    problems += [
        f"{name} is {tuple(value.shape)} instead of {tuple(own[name].shape)}"
        for name, value in weights.items()
        if name in own and value.shape != own[name].shape
    ]
    if problems:
        expected = "the names and shapes of arch and variant"
        raise UserError(f"weights={path}: expected {expected}, but {'; '.join(problems)}")
    model.load_state_dict(weights)


def read_torch(path: Path) -> Any:
    """The content of a file of torch.save, on the CPU, its checksums verified, nothing but tensors
    and plain values unpickled.
    """
    try:
        with zipfile.ZipFile(path) as archive:
            torn = archive.testzip()
        if torn is not None:
            raise UnsoundCheckpoint(f"it is corrupt at {torn}")
        return torch.load(path, map_location="cpu", weights_only=True)
    except (
        zipfile.BadZipFile,
        EOFError,
        OSError,
        RuntimeError,
        ValueError,
        pickle.UnpicklingError,
    ) as error:
        if isinstance(error, UnsoundCheckpoint):
            raise
        reason = str(error).splitlines()[0] if str(error) else type(error).__name__
        raise UnsoundCheckpoint(f"it is cut short, corrupt or foreign ({reason})") from error


def _read_safetensors(path: Path) -> dict[str, torch.Tensor]:
    try:
        from safetensors import SafetensorError
        from safetensors.torch import load
    except ImportError as error:
        raise UserError(f"weights={path}: needs pip install 'resnests[hub]'") from error
    try:
        return load(path.read_bytes())
    except (SafetensorError, OSError) as error:
        raise UnsoundCheckpoint(f"it is cut short, corrupt or foreign ({error})") from error


def _serialise(value: Any) -> bytes:
    buffer = io.BytesIO()
    torch.save(value, buffer)
    return buffer.getvalue()
