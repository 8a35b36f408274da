"""The training step compiled and as a CUDA graph does what it does operation by operation.

Without a GPU the graph is emulated: see graphs.py.
"""

import contextlib
import copy
import itertools
import os
import threading

import numpy as np
import pytest
import torch

# older versions look at torch.cuda when it is first imported, before it is emulated here
import torch._dynamo
from graphs import Recorder, needs_gpu
from helpers import make_config, tiny

from resnests.config.schema import Trainer
from resnests.data.arrays import Split
from resnests.data.pipelines import build_pipeline
from resnests.errors import CaptureFailed, UserError
from resnests.models.resnet import build_model
from resnests.models.weights import read_torch
from resnests.runs.directory import RunDirectory
from resnests.runs.lock import is_flocked
from resnests.tasks.experiment import run_experiment
from resnests.training.checkpoint import load_checkpoint, save_checkpoint
from resnests.training.compiling import compiling, lock_file
from resnests.training.numerics import set_numerics
from resnests.training.optim import build_optimizer
from resnests.training.step import Step

TINY = ([2, 1, 1], [4, 8, 16])
SIZES = (8, 8, 5, 8, 3, 8)  # batches of an epoch and a bit, with smaller ones among them
os.environ.setdefault("CUBLAS_WORKSPACE_CONFIG", ":4096:8")  # for trainer.deterministic


def make_step(variant, device="cpu", emulate=False, **trainer):
    torch.manual_seed(0)
    model = build_model(TINY, variant).to(device, memory_format=torch.channels_last)
    step = Step(model, Trainer(batch_size=8, **trainer))
    step.captures = step.captures or emulate
    return step


def batches(device="cpu", sizes=SIZES):
    generator = torch.Generator().manual_seed(1)
    for size in sizes:
        images = torch.randn(size, 3, 16, 16, generator=generator).contiguous(
            memory_format=torch.channels_last
        )
        yield images.to(device), torch.randint(10, (size,), generator=generator).to(device)


def train_steps(step, optimizer, batches):
    """Train on each batch as loop.py does; yield after it."""
    step.model.train()
    for images, labels in batches:
        step(images, labels)
        optimizer.step()
        yield


def train(step, device="cpu", sizes=SIZES):
    """Return the totals after each step, and the weights and statistics at the end."""
    optimizer = build_optimizer(make_config().optimizer, step.model.parameters())
    totals = [step.totals.tolist() for _ in train_steps(step, optimizer, batches(device, sizes))]
    return totals, copy.deepcopy(step.model.state_dict())


def assert_same(first, second, exactly=True):
    tolerance = {"rtol": 0, "atol": 0} if exactly else {"rtol": 1e-3, "atol": 1e-4}
    torch.testing.assert_close(first, second, check_device=False, **tolerance)


@pytest.mark.parametrize("precision", ["fp32", "bf16"])
@pytest.mark.parametrize("variant", ["standard", "resnest", "bn_resnest", "a_resnest"])
def test_a_graph_trains_bit_for_bit_as_the_operations_do(emulated_cuda, variant, precision):
    expected = train(make_step(variant, precision=precision))
    step = make_step(variant, precision=precision, emulate=True)
    assert_same(train(step), expected)
    assert step.graph.replays == 4  # the full batches, the first among them


def test_a_graph_goes_on_after_an_evaluation_and_new_totals(emulated_cuda):
    steps = make_step("standard"), make_step("standard", emulate=True)
    for step in steps:
        train(step)
        step.model.eval()
        with torch.no_grad():
            step.model(next(batches())[0])
        step.totals.zero_()
    first, second = (train(step) for step in steps)
    assert_same(first, second)


def test_without_a_full_batch_nothing_is_captured(emulated_cuda):
    step = make_step("standard", emulate=True)
    train(step, sizes=(5, 3))
    assert step.graph is None


def failing_graph(*args, **kwargs):
    raise RuntimeError("operation not permitted when stream is capturing\nas it is\nand more")


def test_where_capturing_fails_the_device_is_asked_for_nothing_more(
    emulated_cuda, monkeypatch, tmp_path
):
    """What it would answer is unknown; another process goes on (tests/sweep/test_sweep.py)."""

    def lost(*_, **__):
        raise RuntimeError("CUDA error: an illegal memory access was encountered")

    def fails(*_, **__):
        monkeypatch.setattr(torch.Tensor, "tolist", lost)
        monkeypatch.setattr(torch.Tensor, "copy_", lost)
        failing_graph()

    monkeypatch.setattr(torch.cuda, "graph", fails)
    emulated = Step.__init__

    def captures(self, *arguments):
        emulated(self, *arguments)
        self.captures = True

    monkeypatch.setattr(Step, "__init__", captures)
    config = tiny(f"runs_dir={tmp_path}")
    reason = "RuntimeError: operation not permitted when stream is capturing as it is$"
    with pytest.raises(CaptureFailed, match=f"^trainer.cuda_graph=false trains .*: {reason}"):
        run_experiment(config)
    assert RunDirectory.of(config).status() == "interrupted"


@pytest.mark.parametrize("demanded", [None, True])
def test_out_of_memory_while_capturing_is_just_that(emulated_cuda, monkeypatch, demanded):
    @contextlib.contextmanager
    def full(*_, **__):
        try:
            raise torch.cuda.OutOfMemoryError("CUDA out of memory. Tried to allocate 2.00 GiB")
            yield
        finally:  # as the end of a capture does
            raise RuntimeError("operation failed due to a previous error during capture")

    monkeypatch.setattr(torch.cuda, "graph", full)
    with pytest.raises(torch.cuda.OutOfMemoryError, match="Tried to allocate"):
        train(make_step("standard", emulate=True, cuda_graph=demanded))


def test_where_a_graph_was_demanded_its_failure_is_the_users(emulated_cuda, monkeypatch):
    monkeypatch.setattr(torch.cuda, "graph", failing_graph)
    with pytest.raises(
        UserError,
        match=r"trainer.cuda_graph=true: expected null, as here RuntimeError: operation not",
    ):
        train(make_step("standard", emulate=True, cuda_graph=True))


@needs_gpu
@pytest.mark.parametrize("compiled", [False, True])
@pytest.mark.parametrize("precision", ["fp32", "bf16"])
@pytest.mark.parametrize("variant", ["standard", "a_resnest"])
def test_a_graph_on_the_gpu_trains_as_the_operations_do(variant, precision, compiled):
    step = make_step(variant, "cuda", precision=precision, cuda_graph=True, compile=compiled)
    totals, weights = train(step, "cuda")
    assert step.graph is not None
    expected, expected_weights = train(
        make_step(variant, "cuda", precision=precision, cuda_graph=False), "cuda"
    )
    tolerance = 1e-3 if precision == "fp32" else 5e-2
    torch.testing.assert_close(
        [loss for loss, _ in totals], [loss for loss, _ in expected], rtol=tolerance, atol=0
    )
    torch.testing.assert_close(weights, expected_weights, rtol=tolerance, atol=tolerance)


def steps_of_an_epoch(device):
    """Yield training steps with the pipeline's batches, the last one smaller."""
    step = make_step("a_resnest", device)
    rng = np.random.default_rng(0)
    split = Split(rng.integers(0, 256, (30, 16, 16, 3), dtype=np.uint8), np.arange(30) % 10)
    config = make_config("trainer.batch_size=8")
    optimizer = build_optimizer(config.optimizer, step.model.parameters())
    return train_steps(
        step,
        optimizer,
        build_pipeline(config, config.dataset, split, torch.device(device)).batches(1),
    )


def test_a_step_reads_nothing_back():
    """What would make the host wait for a GPU: item(), float(), indexing with a mask."""
    steps = steps_of_an_epoch("cpu")
    next(steps)
    with Recorder() as recorder:
        assert len(list(steps)) == 3
    names = {func.name() for func, *_ in recorder.tape}
    assert "aten::index_select" in names
    assert not names & {"aten::_local_scalar_dense", "aten::nonzero", "aten::item"}


@needs_gpu
def test_a_step_on_the_gpu_waits_for_nothing():
    steps = steps_of_an_epoch("cuda")
    next(steps)  # the epoch's draws are copied, and the graph is captured
    torch.cuda.set_sync_debug_mode("error")
    try:
        assert len(list(steps)) == 3
    finally:
        torch.cuda.set_sync_debug_mode("default")


@needs_gpu
def test_a_resumed_step_of_adamw_on_the_gpu_waits_for_nothing(tmp_path):
    directory = RunDirectory(tmp_path)
    for resumed in (False, True):
        step = make_step("standard", "cuda")
        optimizer = build_optimizer(
            make_config("optimizer=adamw").optimizer, step.model.parameters()
        )
        if resumed:
            optimizer.load_state_dict(load_checkpoint(directory, {})["optimizer"])
        steps = train_steps(step, optimizer, list(batches("cuda")))
        next(steps)
        torch.cuda.set_sync_debug_mode("error")
        try:
            assert len(list(steps)) == len(SIZES) - 1
        finally:
            torch.cuda.set_sync_debug_mode("default")
        save_checkpoint(directory, {"identity": {}, "optimizer": optimizer.state_dict()})


@needs_gpu
def test_the_memory_on_record_is_that_of_the_graph_too(tmp_path):
    config = tiny(f"runs_dir={tmp_path}")
    run_experiment(config, "cuda")
    on_record = RunDirectory.of(config).read_record().peak_device_memory_bytes
    assert on_record >= torch.cuda.memory_reserved() > 0


@needs_gpu
def test_a_resumed_run_on_the_gpu_has_the_bits_of_an_uninterrupted_one(tmp_path):
    whole, resumed = (
        tiny(f"runs_dir={tmp_path / name}", "trainer.deterministic=true") for name in ("a", "b")
    )
    questions = itertools.count()
    try:
        assert run_experiment(whole, "cuda") == "complete"
        assert run_experiment(resumed, "cuda", lambda: next(questions) == 1) == "interrupted"
        assert run_experiment(resumed, "cuda") == "complete"
    finally:
        set_numerics(Trainer())
    weights = [read_torch(RunDirectory.of(config).weights_file) for config in (whole, resumed)]
    assert_same(*weights)


def test_one_process_at_a_time_compiles_a_network_and_no_other_waits_for_it(monkeypatch, tmp_path):
    monkeypatch.setattr(
        torch, "compile", lambda model, dynamic: lambda images: noted(model, images)
    )
    monkeypatch.setattr("tempfile.tempdir", str(tmp_path))
    held, step = [], make_step("standard", compile=True)
    file = lock_file(step.model, step.trainer)

    def noted(model, images):
        held.append(is_flocked(file))
        return model(images)

    with compiling(make_step("resnest").model, step.trainer):  # another network
        train(step, sizes=(5, 8, 8))
    assert held == [True, False], "at its first full batch"
    slow = make_step("standard", compile=True)
    with compiling(slow.model, slow.trainer):
        waiting = threading.Thread(target=train, args=(slow,), daemon=True)
        waiting.start()
        waiting.join(0.3)
        assert waiting.is_alive()
        assert len(held) == 2
    waiting.join(60)
    assert not waiting.is_alive()
    other = make_step("standard", precision="bf16", compile=True)
    assert lock_file(other.model, other.trainer) != file


@pytest.mark.slow
@pytest.mark.filterwarnings("default")  # torch.compile has advice on Python versions
def test_a_compiled_step_trains_as_the_operations_do():
    expected = train(make_step("standard"))
    assert_same(train(make_step("standard", compile=True)), expected, exactly=False)


@pytest.mark.slow
@pytest.mark.filterwarnings("default")
def test_where_compiling_fails_one_line_says_so(monkeypatch):
    monkeypatch.setattr("torch._inductor.config.cpp.cxx", ("no-such-compiler",))
    torch._dynamo.reset()
    with pytest.raises(
        UserError, match=r"trainer.compile=true: expected false, as here .*no-such-compiler"
    ):
        train(make_step("resnest", compile=True))
