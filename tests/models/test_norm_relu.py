"""The fused batch norm + relu against PyTorch's own operations: the same numbers to rounding."""

import copy
import platform
import subprocess
import sys

import pytest
import torch
from torch import nn
from torch.nn import functional as F

from resnests.models import norm_relu as kernels
from resnests.models.norm_relu import norm_relu
from resnests.models.resnet import build_model

TINY = ([2, 1, 1], [16, 32, 64])


@pytest.fixture
def compiled():
    if kernels.library() is None:
        pytest.skip("no C++ compiler")


def plain(monkeypatch):
    monkeypatch.setattr(kernels, "library", lambda: None)


def images(*shape, dtype=torch.float32, seed=0):
    x = torch.randn(*shape, generator=torch.Generator().manual_seed(seed)) * 2 + 1
    return x.to(dtype).contiguous(memory_format=torch.channels_last)


def random_norm(channels):
    bn = nn.BatchNorm2d(channels)
    generator = torch.Generator().manual_seed(1)
    nn.init.uniform_(bn.weight, -1, 1, generator=generator)
    nn.init.uniform_(bn.bias, -1, 1, generator=generator)
    return bn


def relative_error(ours, reference):
    return ((ours.double() - reference.double()).norm() / reference.double().norm()).item()


def outputs(function, x, bn, skip_weight):
    """Return y, the gradients of x, weight and bias, and the running statistics; x is read a second
    time, as a shortcut is.
    """
    x = x.clone(memory_format=torch.preserve_format).requires_grad_()
    y, again = function(x, bn)
    weights = images(*y.shape, seed=2).to(y.dtype)
    ((y * weights).sum() + skip_weight * (again * weights.flip(0)).sum()).backward()
    return [y.detach(), x.grad, bn.weight.grad, bn.bias.grad, bn.running_mean, bn.running_var]


def reference(x, bn):
    return F.relu(bn(x)), x


@pytest.mark.parametrize("skip_weight", [0, 1])
@pytest.mark.parametrize("shape", [(8, 16, 8, 8), (3, 24, 5, 7), (4, 200, 3, 3), (2, 1, 1, 1)])
def test_output_gradients_and_running_statistics_equal_float64(compiled, shape, skip_weight):
    bn = random_norm(shape[1])
    exact = outputs(reference, images(*shape).double(), copy.deepcopy(bn).double(), skip_weight)
    assert kernels._fusible(images(*shape), bn)
    for ours, expected in zip(
        outputs(norm_relu, images(*shape), bn, skip_weight), exact, strict=True
    ):
        torch.testing.assert_close(ours, expected.float(), rtol=2e-5, atol=2e-5)
    assert bn.num_batches_tracked == 1


@pytest.mark.parametrize("shape", [(8, 16, 8, 8), (3, 24, 5, 7)])
def test_bfloat16_is_no_further_from_float64_than_plain_operations(compiled, shape):
    x = images(*shape, dtype=torch.bfloat16)
    exact = outputs(reference, x.double(), random_norm(shape[1]).double(), 1)
    theirs = outputs(reference, x, random_norm(shape[1]), 1)
    ours = outputs(norm_relu, x, random_norm(shape[1]), 1)
    for mine, other, expected in zip(ours, theirs, exact, strict=True):
        assert mine.dtype == other.dtype
        assert relative_error(mine, expected) < 1.2 * relative_error(other, expected) + 1e-5


def test_batches_far_from_zero_keep_their_variance(compiled):
    x = images(8, 16, 8, 8) + 1000
    y, _ = norm_relu(x, nn.BatchNorm2d(16))
    expected = F.relu(nn.BatchNorm2d(16).double()(x.double()))
    assert relative_error(y, expected) < 1e-3


def test_nan_reaches_the_output(compiled):
    x = images(4, 16, 4, 4)
    x[0, 3] = float("nan")
    y, _ = norm_relu(x, nn.BatchNorm2d(16))
    assert y[:, 3].isnan().all()
    assert not y[:, 4].isnan().any()
    bf16, _ = norm_relu(x.bfloat16(), nn.BatchNorm2d(16))
    assert bf16[:, 3].isnan().all()


def test_one_layer_used_twice_gets_the_sum_of_gradients(compiled):
    def twice(function, bn):
        x = images(4, 16, 4, 4).to(bn.weight.dtype).requires_grad_()
        y, _ = function(function(x, bn)[0], bn)
        y.square().sum().backward()
        return x.grad.float(), bn.weight.grad.float()

    ours, exact = twice(norm_relu, random_norm(16)), twice(reference, random_norm(16).double())
    torch.testing.assert_close(ours, exact, rtol=1e-4, atol=1e-4)


def test_an_unread_output_leaves_only_the_shortcuts_gradient(compiled):
    x = images(4, 16, 4, 4).requires_grad_()
    _, again = norm_relu(x, nn.BatchNorm2d(16))
    (3 * again).sum().backward()
    assert (x.grad == 3).all()


def test_evaluation_uses_the_running_statistics_and_leaves_them():
    bn = random_norm(16)
    bn.running_mean.fill_(0.5)
    bn.eval()
    before = copy.deepcopy(bn.state_dict())
    x = images(4, 16, 4, 4)
    torch.testing.assert_close(norm_relu(x, bn)[0], F.relu(bn(x)), rtol=0, atol=0)
    assert all(torch.equal(bn.state_dict()[name], value) for name, value in before.items())


@pytest.mark.parametrize("shape", [(8, 16, 8, 8), (3, 24, 5, 7), (4, 200, 3, 3)])
def test_evaluation_in_bfloat16_is_no_further_from_float64_than_plain_operations(compiled, shape):
    x, bn = images(*shape, dtype=torch.bfloat16), random_norm(shape[1]).eval()
    bn.running_mean.uniform_(-1, 1)
    bn.running_var.uniform_(0.5, 2)
    before = copy.deepcopy(bn.state_dict())
    with torch.no_grad():
        exact = F.relu(copy.deepcopy(bn).double()(x.double()))
        assert kernels._fusible(x, bn)
        (ours, same), theirs = norm_relu(x, bn), F.relu(bn(x))
    assert same is x
    assert ours.dtype == torch.bfloat16
    assert relative_error(ours, exact) < 1.2 * relative_error(theirs, exact)
    assert all(torch.equal(bn.state_dict()[name], value) for name, value in before.items())


@pytest.mark.filterwarnings("ignore:.*torch.jit.*:FutureWarning")
def test_a_trace_computes_what_it_was_made_from(compiled):
    """What PyTorch cannot see must not be part of it."""
    bn = random_norm(16).requires_grad_(False).eval()
    x, other = (images(2, 16, 4, 4, dtype=torch.bfloat16, seed=seed) for seed in (0, 1))
    with torch.no_grad():
        traced = torch.jit.trace(lambda x: norm_relu(x, bn)[0], x)
        torch.testing.assert_close(traced(other), norm_relu(other, bn)[0], rtol=2e-2, atol=2e-2)


def test_float64_and_contiguous_layout_take_the_plain_path_and_pass_gradcheck():
    bn = random_norm(3).double()
    x = torch.randn(2, 3, 4, 4, dtype=torch.float64, requires_grad=True)
    assert not kernels._fusible(x, bn)
    assert not kernels._fusible(images(4, 16, 4, 4).contiguous(), random_norm(16))
    assert torch.autograd.gradcheck(
        lambda *inputs: norm_relu(inputs[0], bn)[0], (x, bn.weight, bn.bias)
    )


def losses(variant, precision, steps=4):
    """Return the losses of the first steps, and the state they leave, from fixed weights and
    batches.
    """
    torch.manual_seed(0)
    model = build_model(TINY, variant).to(memory_format=torch.channels_last)
    optimizer = torch.optim.SGD(
        model.parameters(), lr=0.05, momentum=0.9, nesterov=True, weight_decay=5e-4
    )
    losses = []
    for step in range(steps):
        x, labels = images(32, 3, 16, 16, seed=step), torch.arange(32) % 10
        with torch.autocast("cpu", torch.bfloat16, enabled=precision == "bf16"):
            loss = F.cross_entropy(model(x), labels)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        losses.append(loss.item())
    return losses, model.state_dict()


@pytest.mark.slow
@pytest.mark.parametrize(("precision", "tolerance"), [("fp32", 1e-4), ("bf16", 3e-2)])
@pytest.mark.parametrize("variant", ["standard", "resnest", "bn_resnest", "a_resnest"])
def test_first_steps_have_the_losses_of_the_plain_path(
    compiled, monkeypatch, variant, precision, tolerance
):
    fast, fast_state = losses(variant, precision)
    plain(monkeypatch)
    slow, slow_state = losses(variant, precision)
    assert fast != slow or precision == "bf16", "the fast path was not taken"
    assert fast == pytest.approx(slow, rel=tolerance)
    for name, value in slow_state.items():
        if "running" in name:
            assert relative_error(fast_state[name], value) < 10 * tolerance, name
        if "num_batches" in name:
            assert fast_state[name] == value == 4


def test_the_same_run_twice_gives_the_same_bits(compiled):
    first, second = losses("standard", "fp32"), losses("standard", "fp32")
    assert first[0] == second[0]
    assert all(torch.equal(first[1][name], value) for name, value in second[1].items())


def test_without_a_compiler_training_still_works(monkeypatch, tmp_path):
    monkeypatch.setenv("CXX", "no-such-compiler")
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    kernels.library.cache_clear()
    try:
        assert kernels.library() is None
        assert len(losses("standard", "fp32", steps=1)[0]) == 1
    finally:
        kernels.library.cache_clear()


@pytest.mark.slow
def test_the_library_is_built_once(tmp_path, monkeypatch, compiled):
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    kernels._load()
    (first,) = (tmp_path / "resnests").iterdir()
    monkeypatch.setattr(kernels.subprocess, "run", lambda *a, **k: pytest.fail("compiled again"))
    kernels._load()
    assert list((tmp_path / "resnests").iterdir()) == [first]


@pytest.fixture
def fresh():
    kernels.library.cache_clear()
    yield
    kernels.library.cache_clear()


def no_home():
    raise RuntimeError("Could not determine home directory.")


@pytest.mark.slow
@pytest.mark.parametrize("cache", [None, "/proc/nowhere"])
def test_without_a_usable_cache_a_process_builds_its_own(
    fresh, compiled, monkeypatch, caplog, cache
):
    """No HOME and no account, as in many containers; or a home that cannot be written."""
    if cache is None:
        monkeypatch.delenv("XDG_CACHE_HOME", raising=False)
        monkeypatch.setattr(kernels.Path, "home", no_home)
    else:
        monkeypatch.setenv("XDG_CACHE_HOME", cache)
    kernels.library.cache_clear()
    with caplog.at_level("INFO"):
        assert kernels.library() is not None
    (line,) = caplog.messages
    assert "built for this process alone" in line
    assert len(losses("standard", "fp32", steps=1)[0]) == 1


@pytest.mark.parametrize(
    "script",
    [
        "exit 1",
        "while [ $# -gt 1 ]; do shift; done; echo nonsense > $1",
        # a library that lacks the functions
        'while [ $# -gt 1 ]; do shift; done; echo "int x;" | c++ -shared -fPIC -x c++ - -o $1',
        "echo wrong >&2; kill -9 $$",
    ],
)
def test_a_broken_compiler_fails_no_run(fresh, compiled, monkeypatch, caplog, tmp_path, script):
    compiler = tmp_path / "c++"
    compiler.write_text(f"#!/bin/sh\n{script}\n")
    compiler.chmod(0o755)
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    kernels.library.cache_clear()
    with caplog.at_level("INFO"), monkeypatch.context() as patched:
        patched.setenv("CXX", str(compiler))
        assert kernels.library() is None
    assert "PyTorch's operations" in caplog.messages[-1]
    assert len(losses("standard", "fp32", steps=1)[0]) == 1


PAGE_FAULTS = """
import resource, sys, torch
from resnests.models.norm_relu import keep_freed_memory
if sys.argv[1] == "keep":
    keep_freed_memory()
def faults():
    torch.zeros(50_000_000, dtype=torch.uint8)
    return resource.getrusage(resource.RUSAGE_SELF).ru_minflt
counts = [faults() for _ in range(20)]
# the first holes may be too small
print(min(after - before for before, after in zip(counts, counts[1:])))
"""


@pytest.mark.slow
@pytest.mark.skipif(platform.libc_ver()[0] != "glibc", reason="a setting of glibc")
def test_freed_memory_is_used_again_without_page_faults():
    def page_faults(mode):
        command = [sys.executable, "-c", PAGE_FAULTS, mode]
        return int(subprocess.run(command, check=True, capture_output=True, text=True).stdout)

    assert page_faults("keep") < 20 < page_faults("return")
