"""What a precision means to PyTorch, and how the record says it."""

import pytest
import torch

from resnests.config.schema import Trainer
from resnests.training.numerics import arithmetic, set_numerics

CUDA, CPU = torch.device("cuda"), torch.device("cpu")


@pytest.mark.parametrize(
    ("precision", "convolutions", "products", "measured"),
    [
        ("fp32", False, False, True),
        ("tf32", True, True, True),
        ("bf16", False, False, True),
        ("official", True, False, False),  # PyTorch's own defaults
    ],
)
def test_a_precision_sets_what_cuda_may_do(precision, convolutions, products, measured):
    cudnn, matmul = torch.backends.cudnn, torch.backends.cuda.matmul
    before = cudnn.allow_tf32, matmul.allow_tf32, cudnn.benchmark
    try:
        set_numerics(Trainer(precision=precision))
        assert cudnn.allow_tf32 is convolutions
        assert matmul.allow_tf32 is products
        assert cudnn.benchmark is measured
    finally:
        cudnn.allow_tf32, matmul.allow_tf32, cudnn.benchmark = before


@pytest.mark.parametrize(
    ("device", "capability", "said"),
    [
        (CPU, None, ["fp32", "fp32", "bf16 by autocast", "fp32"]),
        (CUDA, (7, 5), ["fp32", "fp32", "bf16 by autocast", "fp32"]),
        (CUDA, (9, 0), ["fp32", "tf32", "bf16 by autocast", "tf32 in convolutions"]),
    ],
)
def test_the_record_says_what_was_computed(monkeypatch, device, capability, said):
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda _: capability)
    trainers = [Trainer(precision=name) for name in ("fp32", "tf32", "bf16", "official")]
    assert [arithmetic(trainer, device) for trainer in trainers] == said
