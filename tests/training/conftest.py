import contextlib

import pytest
import torch

# older versions look at torch.cuda when it is first imported, before it is emulated here
import torch._dynamo
from graphs import Recorder

from resnests.models import norm_relu as kernels


@pytest.fixture
def emulated_cuda(monkeypatch):
    class Stream:
        def wait_stream(self, other):
            pass

    monkeypatch.setattr(kernels, "library", lambda: None)  # compiled CPU kernels cannot be recorded
    monkeypatch.setattr(torch.cuda, "CUDAGraph", Recorder)
    monkeypatch.setattr(torch.cuda, "graph", lambda graph, pool, capture_error_mode: graph)
    monkeypatch.setattr(torch.cuda, "Stream", Stream)
    monkeypatch.setattr(torch.cuda, "current_stream", Stream)
    monkeypatch.setattr(torch.cuda, "stream", lambda stream: contextlib.nullcontext())
