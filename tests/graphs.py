"""CUDA graphs on the CPU.

What a step computes is recorded as a list of operations on fixed tensors and replayed into the same
tensors, so that a stale buffer or a gradient outside the graph shows here as it would there.
"""

from __future__ import annotations

import pytest
import torch
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

# What makes the host wait for a GPU: item(), float(), indexing with a mask
WAITS = {"aten::_local_scalar_dense", "aten::nonzero", "aten::item"}


def needs_gpu(test):
    """Mark a test for pytest -m gpu, which is skipped without one."""
    missing = pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a GPU")
    # torch says of the mode in which a wait is an error that it is a prototype
    warns = pytest.mark.filterwarnings("ignore:Synchronization debug mode:UserWarning")
    return pytest.mark.gpu(missing(warns(test)))


class Recorder(TorchDispatchMode):
    """Emulates a CUDA graph on the CPU: what runs inside is recorded, and has no effect until it is
    replayed.
    """

    def __init__(self):
        super().__init__()
        self.tape, self.replays = [], 0

    def pool(self):
        return (0, 1)

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        written = [
            value
            for argument, value in zip(func._schema.arguments, args, strict=False)
            if argument.alias_info
            and argument.alias_info.is_write
            and isinstance(value, torch.Tensor)
        ]
        before = [value.clone() for value in written]
        result = func(*args, **(kwargs or {}))
        self.tape.append((func, args, kwargs or {}, result))
        self.undo = [*zip(written, before, strict=True), *self.undo]
        return result

    def __enter__(self):
        self.undo = []
        return super().__enter__()

    def __exit__(self, *error):
        super().__exit__(*error)
        with torch.no_grad():
            for value, before in self.undo:
                value.copy_(before)

    def replay(self):
        self.replays += 1
        with torch.no_grad():
            for func, args, kwargs, result in self.tape:
                for fixed, fresh in zip(
                    tree_leaves(result), tree_leaves(func(*args, **kwargs)), strict=True
                ):
                    if isinstance(fixed, torch.Tensor) and fixed.data_ptr() != fresh.data_ptr():
                        fixed.copy_(fresh)
