"""Copies of weights in bf16 give the bits that autocast gives, in fewer operations."""

import copy

import pytest
import torch
from graphs import WAITS
from helpers import make_config
from torch.utils._python_dispatch import TorchDispatchMode

from resnests.config.schema import Trainer
from resnests.models.resnet import build_model
from resnests.training.optim import build_optimizer
from resnests.training.step import Step
from resnests.training.twins import Twins

TINY = ([2, 1, 1], [4, 8, 16])
# What starts no kernel of a GPU
FREE = {"detach", "t", "view", "expand", "unsqueeze", "alias", "as_strided", "empty", "empty_like"}


def make_step(variant, is_by_autocast=False, arch=TINY):
    torch.manual_seed(0)
    model = build_model(arch, variant).to(memory_format=torch.channels_last)
    step = Step(model, Trainer(batch_size=8, precision="bf16"))
    if is_by_autocast:
        step.twins = None
    return step


def batches(sizes):
    generator = torch.Generator().manual_seed(1)
    for size in sizes:
        images = torch.randn(size, 3, 16, 16, generator=generator)
        labels = torch.randint(10, (size,), generator=generator)
        yield images.to(memory_format=torch.channels_last), labels


def trained(step):
    """Return losses and gradients of each step, and the weights after eight steps."""
    optimizer = build_optimizer(make_config().optimizer, step.model.parameters())
    seen = []
    for images, labels in batches((8, 8, 5, 8, 8, 3, 8, 8)):
        step(images, labels)
        gradients = {name: one.grad for name, one in step.model.named_parameters()}
        seen.append((step.totals.clone(), copy.deepcopy(gradients)))
        optimizer.step()
    return seen, step.model.state_dict()


@pytest.mark.slow
@pytest.mark.parametrize("is_frozen", [False, True])
@pytest.mark.parametrize("variant", ["standard", "resnest", "bn_resnest", "a_resnest"])
def test_the_bits_are_those_of_autocast(variant, is_frozen):
    steps = make_step(variant), make_step(variant, is_by_autocast=True)
    for step in steps if is_frozen else ():
        step.model.expansion.requires_grad_(False)
    if is_frozen:
        steps[0].twins = Twins(steps[0].model)
    first, second = map(trained, steps)
    torch.testing.assert_close(first, second, rtol=0, atol=0)
    strides = [one.stride() for one in steps[0].model.parameters()]
    assert strides == [one.stride() for one in steps[1].model.parameters()]


def test_gradients_are_added_to_those_there_are():
    steps = make_step("standard"), make_step("standard", is_by_autocast=True)
    for step in steps:
        for images, labels in batches((8, 8)):
            step.compute_gradients(images, labels)
    first, second = ([one.grad for one in step.model.parameters()] for step in steps)
    torch.testing.assert_close(first, second, rtol=0, atol=0)


class Counter(TorchDispatchMode):
    """Counts the operations that start a kernel, and how many are casts of a single tensor."""

    def __init__(self):
        super().__init__()
        self.operations = self.casts = 0

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        name = str(func).split(".")[1]
        self.operations += name not in FREE
        self.casts += name == "_to_copy"
        assert func._schema.name not in WAITS
        return func(*args, **(kwargs or {}))


@pytest.mark.parametrize(
    ("variant", "before", "after"), [("standard", 49, 3), ("a_resnest", 93, 13)]
)
def test_a_step_of_resnet20_has_few_casts_left(monkeypatch, variant, before, after):
    monkeypatch.setattr("resnests.models.norm_relu.library", lambda: None)  # as on a GPU
    images, labels = next(batches((8,)))
    counted = []
    for is_by_autocast in (True, False):
        step = make_step(variant, is_by_autocast, arch="resnet20")
        with Counter() as counter:
            step(images, labels)
        counted.append((counter.casts, counter.operations))
    (old, all_old), (new, all_new) = counted
    assert (old, new) == (before, after)
    assert all_old - all_new == before - after - 2, "two copies instead"


def test_what_may_use_its_weights_otherwise_is_left_to_autocast():
    class Own(type(build_model(TINY))):
        """Is a network of a user's that is much like ours."""

    torch.manual_seed(0)
    assert Step(Own(*TINY, 10, "standard"), Trainer(precision="bf16")).twins is None
    assert Step(build_model(TINY), Trainer()).twins is None
