"""Compute batch norm + relu in fewer passes over memory, on CPUs; everywhere else PyTorch's own
operations.

On a CPU the operations between the convolutions are limited by memory traffic. PyTorch reads or
writes an activation five times for batch norm + relu and eight times for their gradient and the
residual gradient added to it; norm_relu.cpp does it in three and six, and in two instead of four in
an evaluation, which gains in bf16 only. benchmarks/RESULTS.md has what it gains.

norm_relu.cpp needs no headers of PyTorch, so the user's C++ compiler builds it in about a second,
once; the library is kept in the user's cache directory. Without a compiler, or with
RESNESTS_KERNELS=0, PyTorch's operations compute the same numbers to rounding.
"""

from __future__ import annotations

import ctypes
import functools
import hashlib
import logging
import os
import platform
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from resnests.cpuinfo import cpu_info

log = logging.getLogger(__name__)
SOURCE = Path(__file__).with_name("norm_relu.cpp")
FLAGS = ["-O3", "-march=native", "-fopenmp", "-shared", "-fPIC"]
if platform.machine() in ("x86_64", "AMD64"):
    FLAGS.append("-mprefer-vector-width=512")  # compilers hold back from AVX-512: 10 to 20% here
# leading pointer arguments of each function in norm_relu.cpp
POINTERS = {"forward": 7, "evaluate": 5, "backward": 9}


def norm_relu(x: Tensor, bn: nn.BatchNorm2d) -> tuple[Tensor, Tensor]:
    """Return relu(bn(x)), and x for whoever else reads it: (N, C, H, W) -> twice (N, C, H, W).

    Use the returned x in place of x: its gradient is then added in the same pass over memory.
    """
    if not _fusible(x, bn):
        # in place: batch norm does not need its own output for its gradient
        return F.relu(bn(x), inplace=True), x
    if not bn.training:
        return _evaluate(x, bn), x
    assert bn.num_batches_tracked is not None
    bn.num_batches_tracked.add_(1)
    values = (bn.weight, bn.bias, bn.running_mean, bn.running_var, bn.eps, bn.momentum)
    return _NormRelu.apply(x, *values)


def _fusible(x: Tensor, bn: nn.BatchNorm2d) -> bool:
    return (
        (bn.training or (x.dtype == torch.bfloat16 and not torch.is_grad_enabled()))
        and not torch.jit.is_tracing()
        and x.device.type == "cpu"
        and x.dtype in (torch.float32, torch.bfloat16)
        and bn.weight.dtype == torch.float32
        and x.is_contiguous(memory_format=torch.channels_last)
        # PyTorch refuses to normalise a single value, with a good message.
        and x.numel() > x.shape[1]
        and not torch.compiler.is_compiling()
        and library() is not None
    )


def _evaluate(x: Tensor, bn: nn.BatchNorm2d) -> Tensor:
    """Return relu(bn(x)) by the running statistics, without a gradient."""
    assert bn.running_mean is not None
    assert bn.running_var is not None
    y = torch.empty_like(x)
    saved = torch.stack((bn.running_mean, (bn.running_var + bn.eps).rsqrt()))
    _call("evaluate", (x, y, bn.weight, bn.bias, saved), x)
    return y


class _NormRelu(torch.autograd.Function):
    @staticmethod
    def forward(  # type: ignore[no-untyped-def]
        ctx, x, weight, bias, running_mean, running_var, eps, momentum
    ):
        y = torch.empty_like(x)
        saved = x.new_empty((2, x.shape[1]), dtype=torch.float32)
        _call("forward", (x, y, weight, bias, running_mean, running_var, saved), x, eps, momentum)
        ctx.save_for_backward(x, weight, bias, saved)
        ctx.set_materialize_grads(False)
        return y, x

    @staticmethod
    @torch.autograd.function.once_differentiable
    def backward(ctx, dy, skip):  # type: ignore[no-untyped-def]
        x, weight, bias, saved = ctx.saved_tensors
        if dy is None:
            return skip, *[None] * 6
        dy = dy.contiguous(memory_format=torch.channels_last)
        if skip is not None:
            skip = skip.contiguous(memory_format=torch.channels_last)
        dx, dweight, dbias = torch.empty_like(x), torch.empty_like(weight), torch.empty_like(bias)
        _call("backward", (dy, x, skip, dx, weight, bias, saved, dweight, dbias), x)
        return dx, dweight, dbias, *[None] * 4


def _call(name: str, tensors: tuple[Tensor | None, ...], x: Tensor, *floats: float) -> None:
    functions = library()
    assert functions is not None
    function = functions[f"{name}_{str(x.dtype).removeprefix('torch.')}"]
    pointers = [None if tensor is None else tensor.data_ptr() for tensor in tensors]
    channels = x.shape[1]
    function(*pointers, x.numel() // channels, channels, *floats, torch.get_num_threads())


@functools.cache
def library() -> Mapping[str, Callable[..., Any]] | None:
    """Return the functions of norm_relu.cpp by name, built at the first call; None where that is
    switched off or fails.
    """
    if os.environ.get("RESNESTS_KERNELS") == "0":
        return None
    try:
        return _functions(_load())
    except Exception as error:  # whatever it is: an acceleration never fails a run
        reason = f"{type(error).__name__}: {error}".splitlines()[0]
        log.info("norm_relu.cpp is not used, but PyTorch's operations, as here %s", reason)
        return None


def _functions(loaded: ctypes.CDLL) -> dict[str, Callable[..., Any]]:
    """Return the functions of the library by name; raise AttributeError where one is missing."""
    functions: dict[str, Callable[..., Any]] = {}
    for name, pointers in POINTERS.items():
        floats = 2 if name == "forward" else 0
        for dtype in ("float32", "bfloat16"):
            function = loaded[f"{name}_{dtype}"]
            function.argtypes = (
                [ctypes.c_void_p] * pointers + [ctypes.c_long] * 2 + [ctypes.c_float] * floats
            )
            function.argtypes += [ctypes.c_int]
            function.restype = None
            functions[f"{name}_{dtype}"] = function
    return functions


def _load() -> ctypes.CDLL:
    """Load norm_relu.cpp as compiled for this processor, from the user's cache or else built anew.

    A container often has no home, or none that can be written. Each process then builds its own.
    """
    compiler = os.environ.get("CXX") or shutil.which("c++") or shutil.which("g++")
    if compiler is None:
        raise FileNotFoundError("no C++ compiler found")
    key = "\n".join([SOURCE.read_text(), compiler, *FLAGS, _processor()])
    name = f"kernels-{hashlib.sha256(key.encode()).hexdigest()[:16]}.so"
    try:
        folder = Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "resnests"
        if not (folder / name).exists():
            folder.mkdir(parents=True, exist_ok=True)
            _compile(compiler, folder, name)
        return ctypes.CDLL(str(folder / name))
    except (OSError, RuntimeError) as error:  # Path.home() raises the latter
        log.info("norm_relu.cpp is built for this process alone, as its cache fails: %s", error)
    with tempfile.TemporaryDirectory() as own:
        _compile(compiler, Path(own), name)
        return ctypes.CDLL(str(Path(own, name)))


def _compile(compiler: str, folder: Path, name: str) -> None:
    """Compile norm_relu.cpp into `folder`; raise a SubprocessError where the compiler fails."""
    with tempfile.TemporaryDirectory(dir=folder) as scratch:
        built = Path(scratch, "kernels.so")
        command = [compiler, *FLAGS, str(SOURCE), "-o", str(built)]
        subprocess.run(command, check=True, capture_output=True, timeout=120)
        # Two runs may start at once: a reader sees a whole library or none.
        os.replace(built, folder / name)


def _processor() -> str:
    """Return what -march=native depends on: different machines may share a home directory."""
    told = cpu_info()
    known = [told[key] for key in ("model name", "flags", "Features") if key in told]
    return "\n".join(known or [platform.machine(), platform.processor(), platform.node()])


def keep_freed_memory() -> None:
    """Let the C library keep what this process frees, rather than return large blocks to the system
    at once.

    Otherwise every activation of every step is mapped, zeroed and faulted in page by page again:
    wrn16_8 then trains at 0.6 to 0.7 times the speed. It can take a third more memory, so it is for
    processes that do nothing but train.
    """
    if sys.platform != "linux":
        return
    mallopt = getattr(ctypes.CDLL(None), "mallopt", None)  # glibc has it, musl has not
    if mallopt is not None:
        mallopt(-4, 0)  # M_MMAP_MAX: large blocks come from the heap as well
        mallopt(-1, -1)  # M_TRIM_THRESHOLD: the heap never shrinks
