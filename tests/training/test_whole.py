"""Whole steps as graphs, emulated (graphs.py), train as the operations do one by one."""

import copy
import itertools
from dataclasses import replace

import numpy as np
import pytest
import torch
from graphs import WAITS, Recorder, needs_gpu
from helpers import TIMES, history, make_config, tiny
from torch import nn
from torch.utils._python_dispatch import TorchDispatchMode

from resnests.data import images as images_module
from resnests.data.arrays import Split
from resnests.data.images import Images, images_of
from resnests.data.pipelines import build_pipeline
from resnests.data.views import ImageView
from resnests.errors import Interrupted
from resnests.models.resnet import build_model
from resnests.models.weights import read_torch
from resnests.runs.directory import RunDirectory
from resnests.tasks.experiment import run_experiment
from resnests.training.loop import State, Training, evaluate, fit
from resnests.training.objectives import build_loss
from resnests.training.optim import (
    averaged_model,
    build_optimizer,
    build_schedule,
    parameter_groups,
    set_learning_rate,
)
from resnests.training.step import Step
from resnests.training.whole import WholeStep

TINY = ([2, 1, 1], [4, 8, 16])
COUNT, BATCH = 30, 8  # three full batches an epoch, and one of six
WARMING = ("optimizer.warmup=0.6", "trainer.epochs=3")  # the rate differs from step to step


class Operations:
    """Stands for a graph: the same work, operation by operation."""

    def __init__(self, model, work):
        self.model, self.work = model, work

    def replay(self):
        self.model.zero_grad(set_to_none=True)
        self.work()


@pytest.fixture
def captures(emulated_cuda, monkeypatch):
    """Let steps make graphs, as they do on CUDA."""
    made = Step.__init__

    def init(self, *arguments, **more):
        made(self, *arguments, **more)
        self.captures = True

    monkeypatch.setattr(Step, "__init__", init)


@pytest.fixture
def one_by_one(captures, monkeypatch):
    """Return what takes a call and makes it with whole steps that are no graphs."""

    take = WholeStep._take

    def take_by_rate(self, size):
        with self._rates_on_device():  # as while a graph is made
            take(self, size)

    def call(function, *arguments):
        with monkeypatch.context() as patch:
            patch.setattr(WholeStep, "_take", take_by_rate)
            patch.setattr(Step, "capture", lambda step, work, *_: Operations(step.model, work))
            return function(*arguments)

    return call


def make_training(*options, variant="standard", model=None, device="cpu", is_streamed=False):
    config = make_config(f"trainer.batch_size={BATCH}", "trainer.epochs=2", *options)
    rng = np.random.default_rng(0)
    split = Split(rng.integers(0, 256, (COUNT, 16, 16, 3), dtype=np.uint8), np.arange(COUNT) % 10)
    if is_streamed:
        split = replace(split, images=ImageView(split.images))
    torch.manual_seed(0)
    model = model or build_model(TINY, variant)
    model.to(device, memory_format=torch.channels_last)
    pipeline = build_pipeline(config, config.dataset, split, torch.device(device))
    optimizer = build_optimizer(config.optimizer, parameter_groups(config.optimizer, model))
    quiet = (lambda _: None, lambda _: None, lambda: False)
    loss = build_loss(config, split.labels, torch.device(device))
    schedule = build_schedule(config, optimizer, pipeline.steps)
    averaged = averaged_model(model, config.trainer.ema)
    return Training(
        config, model, optimizer, pipeline, {}, *quiet, loss, averaged=averaged, schedule=schedule
    )


def whole_of(training):
    """Return what takes its steps, which are about to begin."""
    training.model.train()
    return WholeStep.of(training, Step(training.model, training.config.trainer, training.loss))


def trained(*options, **values):
    """Return losses and accuracies, and what a checkpoint would hold, after a training."""
    training, state = make_training(*options, **values), State()
    fit(training, state)
    losses = [(row["lr"], row["train_loss"], row["train_accuracy"]) for row in state.history]
    return losses, training.model.state_dict(), training.optimizer.state_dict()


def assert_same(first, second, exactly=True):
    tolerance = {"rtol": 0, "atol": 0} if exactly else {"rtol": 1e-4, "atol": 1e-5}
    torch.testing.assert_close(first, second, **tolerance)


@pytest.mark.parametrize("precision", ["fp32", "bf16"])
@pytest.mark.parametrize("variant", ["standard", "resnest", "bn_resnest", "a_resnest"])
def test_graphs_train_bit_for_bit_as_their_operations_do(one_by_one, variant, precision):
    options = (f"trainer.precision={precision}", *WARMING)
    expected = one_by_one(lambda: trained(*options, variant=variant))
    assert_same(trained(*options, variant=variant), expected)


GROUPS = "optimizer.groups=[{match:'expansion*',lr:0.02,weight_decay:0}]"


@pytest.mark.slow
@pytest.mark.parametrize(
    "more",
    [
        (),
        ("optimizer.clip_norm=0.5", "trainer.label_smoothing=0.1"),
        (GROUPS,),
        ("trainer.ema=0.9", "optimizer.momentum=0", "optimizer.nesterov=false"),
    ],
)
def test_graphs_train_as_a_step_without_them_but_for_rounding(captures, monkeypatch, more):
    with_graphs = trained(*WARMING, *more)
    monkeypatch.setattr(WholeStep, "of", classmethod(lambda *_: None))
    with monkeypatch.context() as patch:
        patch.setattr(Step, "capture", lambda *_: None)
        expected = trained(*WARMING, *more)
    assert_same(with_graphs, expected, exactly=False)
    groups = [values[2]["param_groups"] for values in (with_graphs, expected)]
    assert groups[0] == groups[1], "the rate is a plain number, on record as it ever was"


def test_before_the_first_update_all_is_to_the_bit_what_it_was(captures):
    """Augmentation, forward, loss and gradients are the same operations."""
    training = make_training()
    whole = whole_of(training)
    next(whole.steps(2, 3))()  # of the last batch, so that there is one graph
    plain = make_training()
    expected = Step(plain.model, plain.config.trainer)
    expected.captures = False
    plain.model.train()
    expected(*next(plain.pipeline.batches(2, 3)))
    assert_same(whole.step.totals, expected.totals)
    gradients = [[one.grad for one in t.model.parameters()] for t in (training, plain)]
    assert_same(*gradients)
    assert_same(*(dict(t.model.named_buffers()) for t in (training, plain)))


@pytest.mark.slow
@pytest.mark.parametrize("more", [(), ("optimizer=adamw",), ("pipeline.mix=mixup",)])
def test_graphs_find_the_batches_of_what_is_no_more_than_read(captures, monkeypatch, more):
    """Whole steps, gradients alone, and evaluations, with the memory that they were made on."""
    monkeypatch.setattr(images_module, "evaluation_batch", lambda *_: 12)
    results = []
    for is_streamed in (False, True):
        training = make_training(*WARMING, *more, is_streamed=is_streamed)
        config = training.config
        pixels = np.random.default_rng(1).integers(0, 256, (30, 16, 16, 3), dtype=np.uint8)
        other = Split(ImageView(pixels) if is_streamed else pixels, np.arange(30) % 10)
        splits = {"test": other, "val": other.take(np.arange(0, 30, 3))}
        cpu = torch.device("cpu")
        evaluations = {k: images_of(one, config.dataset, cpu) for k, one in splits.items()}
        evaluated, state = replace(training, evaluations=evaluations), State()
        fit(evaluated, state)
        rows = [{k: v for k, v in row.items() if k not in TIMES} for row in state.history]
        results.append((rows, training.model.state_dict()))
    assert "val_loss" in results[0][0][-1]
    assert_same(*results)


def test_making_a_graph_leaves_no_trace(captures):
    training = make_training()
    before = copy.deepcopy(training.model.state_dict())
    whole = whole_of(training)
    whole.steps(1, 3)
    assert list(whole.graphs) == [6], "no full batch is left of the epoch"
    whole.steps(1, 0)
    assert list(whole.graphs) == [6, 8]
    assert_same(training.model.state_dict(), before)
    assert not any(s["momentum_buffer"].any() for s in training.optimizer.state.values())
    assert whole.step.totals.tolist() == [0, 0]
    assert whole.position == 0


class Fails(TorchDispatchMode):
    """Fails at every operation."""

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        raise AssertionError(f"the host runs {func.name()}")


def test_the_host_does_nothing_but_replay_and_the_graphs_read_nothing_back(captures, monkeypatch):
    training = make_training("optimizer.clip_norm=1")
    whole = whole_of(training)
    steps = list(whole.steps(1, 0))
    for graph in whole.graphs.values():
        names = {func.name() for func, *_ in graph.tape}
        assert {"aten::index_select", "aten::_fused_sgd_.tensor_lr"} <= names
        assert not names & WAITS
    steps[0]()
    monkeypatch.setattr(Recorder, "replay", lambda graph: None)
    with Fails():
        for take in steps[1:]:
            take()
    set_learning_rate(training.optimizer, 0.2)
    with pytest.raises(AssertionError, match="the host runs aten::fill_"), Fails():
        steps[0]()


@pytest.mark.parametrize("precision", ["fp32", "bf16"])
def test_an_evaluation_by_graphs_is_that_of_the_operations(captures, monkeypatch, precision):
    training = make_training(f"trainer.precision={precision}")
    fit(training, State())
    monkeypatch.setattr(Images, "batch_size", 12)
    split, whole = training.pipeline.data, whole_of(training)
    expected = evaluate(training.model, split, precision)
    for _ in range(2):
        assert whole.evaluate(split, lambda: False) == expected
    (evaluation,) = whole.evaluations.values()
    assert list(evaluation.graphs) == [12, 6]
    for graph in evaluation.graphs.values():
        assert not {func.name() for func, *_ in graph.tape} & WAITS
    assert whole.step.totals.tolist() == [0, 0]
    with pytest.raises(Interrupted):
        whole.evaluate(split, lambda: True)


def test_a_training_goes_on_as_before_after_an_evaluation_by_graphs(captures, monkeypatch):
    """The graphs of the evaluation are made in mid-training, in the same memory."""
    training, alone = make_training(), make_training()
    split = training.pipeline.data
    evaluated, state = replace(training, evaluations={"test": split}), State()
    fit(evaluated, state)
    fit(alone, State())
    assert_same(training.model.state_dict(), alone.model.state_dict())
    expected = evaluate(training.model, split, "fp32")
    assert {f"test_{name}": value for name, value in expected.items()}.items() <= (
        state.history[-1].items()
    )


def test_the_next_epoch_is_drawn_while_the_device_is_busy(captures):
    training, drawn = make_training("trainer.epochs=3"), []
    draw = training.pipeline.draw
    training.pipeline.draw = lambda epoch: (drawn.append(epoch), draw(epoch))
    fit(training, State())
    assert drawn == [1, 2, 3], "each once"


def tiny_run(tmp_path, name, *options):
    """Return a run with 96 training images in batches of 32."""
    return tiny(f"runs_dir={tmp_path / name}", "trainer.epochs=3", *options)


def outcome(config):
    directory = RunDirectory.of(config)
    return read_torch(directory.weights_file), history(directory.path)


@pytest.mark.slow
@pytest.mark.parametrize("limit", [96, 80])
def test_a_run_that_was_resumed_has_the_bits_of_one_that_was_not(captures, tmp_path, limit):
    whole, resumed = (tiny_run(tmp_path, name, f"dataset.train_limit={limit}") for name in "ab")
    assert run_experiment(whole) == "complete"
    questions = itertools.count()
    while run_experiment(resumed, should_stop=lambda: next(questions) % 3 == 1) != "complete":
        checkpoint = RunDirectory.of(resumed).checkpoint_file
        (group,) = read_torch(checkpoint)["optimizer"]["param_groups"]
        assert type(group["lr"]) is float
        assert not group["fused"]
    assert next(questions) > 9, "it was interrupted again and again"
    (weights, rows), (others, same_rows) = map(outcome, (whole, resumed))
    assert_same(weights, others)
    assert rows == same_rows


@pytest.mark.slow
def test_a_checkpoint_goes_on_with_graphs_and_without(captures, tmp_path, monkeypatch):
    """Such as one that was written by a version that had none."""
    results = []
    for name in ("graphs first", "graphs later"):
        config, stops = tiny_run(tmp_path, name), itertools.count()
        with monkeypatch.context() as patch:
            if name == "graphs later":
                patch.setattr(WholeStep, "of", classmethod(lambda *_: None))
            assert run_experiment(config, should_stop=lambda s=stops: next(s) == 4) == "interrupted"
        with monkeypatch.context() as patch:
            if name == "graphs first":
                patch.setattr(WholeStep, "of", classmethod(lambda *_: None))
            assert run_experiment(config) == "complete"
        results.append(outcome(config)[0])
    assert_same(*results, exactly=False)


class Drawing(nn.Module):
    """Draws random numbers on the host, which a graph would repeat."""

    def __init__(self):
        super().__init__()
        self.layer = nn.Linear(3 * 16 * 16, 10)

    def forward(self, images):
        return self.layer(images.flatten(1)) * float(np.random.random() + 1)


def test_what_no_graph_can_hold_is_trained_without(captures, monkeypatch, caplog):
    caplog.set_level("INFO")
    training = make_training(model=Drawing())
    fit(training, State())
    assert caplog.text.count("trains without a CUDA graph: the network draws random numbers") == 1


def test_layouts_that_a_fused_update_would_refuse_leave_the_update_outside(captures, monkeypatch):
    monkeypatch.setattr(WholeStep, "_is_fusable", lambda self: False)
    graphs = []
    made = Step.capture

    def capture(self, *arguments):
        graphs.append(made(self, *arguments))
        return graphs[-1]

    monkeypatch.setattr(Step, "capture", capture)
    losses, *_ = trained()
    assert [graph is None for graph in graphs] == [True, False], "asked once, then of the gradients"
    assert graphs[1].replays == 6
    assert len(losses) == 2


def test_the_layouts_of_gradients_are_those_of_the_weights(captures):
    """Else a fused update refuses them: also of convolutions of one pixel, whose strides mean
    nothing.
    """
    for variant in ("standard", "a_resnest"):
        training = make_training(model=build_model("resnet8", variant))
        whole = whole_of(training)
        assert whole.steps(1) is not None
        assert not whole.is_refused


SCHEDULE = (
    "optimizer.schedule={_target_:torch.optim.lr_scheduler.ExponentialLR,per:epoch,gamma:0.9}"
)


@pytest.mark.slow
@pytest.mark.parametrize(
    ("option", "is_whole"),
    [
        ("optimizer=sgd", True),
        ("optimizer=sgd_cosine", True),
        ("trainer.ema=0.9", True),
        ("optimizer=adamw", False),
        ("pipeline=torchvision", False),
        ("pipeline.mix=mixup", False),
        (SCHEDULE, False),
    ],
)
def test_whole_steps_are_those_of_the_tensor_pipeline_and_sgd(captures, option, is_whole):
    more = ("optimizer.milestones=[]",) if option == SCHEDULE else ()
    training = make_training(option, *more)
    assert (whole_of(training) is not None) == is_whole
    group = training.optimizer.param_groups[0]
    for key, value in (("dampening", 0.5), ("differentiable", True)):
        group[key], before = value, group.get(key)
        assert whole_of(training) is None
        group[key] = before
    step = Step(training.model, training.config.trainer)
    step.captures = False
    assert WholeStep.of(training, step) is None


@needs_gpu
@pytest.mark.parametrize("precision", ["fp32", "bf16"])
@pytest.mark.parametrize("variant", ["standard", "resnest", "bn_resnest", "a_resnest"])
def test_on_a_gpu_graphs_train_as_a_step_without_them_but_for_rounding(variant, precision):
    options = (f"trainer.precision={precision}", "optimizer.lr=0.01", "optimizer.clip_norm=1")
    losses, weights, _ = trained(*options, variant=variant, device="cuda")
    plain = trained(*options, "trainer.cuda_graph=false", variant=variant, device="cuda")
    tolerance = 1e-3 if precision == "fp32" else 5e-2
    torch.testing.assert_close(losses, plain[0], rtol=tolerance, atol=tolerance)
    torch.testing.assert_close(weights, plain[1], rtol=tolerance, atol=tolerance)


@needs_gpu
def test_on_a_gpu_whole_steps_wait_for_nothing_and_evaluations_are_right():
    training = make_training("optimizer.clip_norm=1", device="cuda")
    whole = whole_of(training)
    steps = list(whole.steps(1))
    assert len(whole.graphs) == 2, "the update is in the graph"
    torch.cuda.set_sync_debug_mode("error")
    try:
        for rate, take in enumerate(steps, 1):
            set_learning_rate(training.optimizer, rate / 100)
            take()
    finally:
        torch.cuda.set_sync_debug_mode("default")
    split = training.pipeline.data
    found = whole.evaluate(split, lambda: False)
    assert found == pytest.approx(evaluate(training.model, split, "fp32"), rel=1e-3)
