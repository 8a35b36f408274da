"""What draws random numbers in a training draws the same ones after an interruption."""

import itertools
import logging
import random
import sys

import numpy as np
import pytest
import torch
from helpers import history, tiny
from test_step import batches, train_steps

from resnests.config.schema import Trainer, config_dict, config_from
from resnests.errors import UserError
from resnests.generators import drawn_on_host, generator_states, restore_generators
from resnests.models.weights import read_torch
from resnests.runs.directory import RunDirectory
from resnests.tasks.experiment import run_experiment
from resnests.training.step import Step

CPU = torch.device("cpu")
MODULE = """
import random
import numpy as np
import torch
from torch import nn

class Noise(nn.Module):
    def forward(self, x):
        x = x + random.gauss(0, 0.1) + float(np.random.normal(0, 0.1))
        return x + 0.1 * torch.rand(())  # in an evaluation too

def net(num_classes, draws):
    drawing = {"dropout": nn.Dropout(0.5), "noise": Noise()}[draws]
    return nn.Sequential(
        nn.AvgPool2d(4), nn.Flatten(), nn.Linear(192, 16), nn.ReLU(), drawing,
        nn.Linear(16, num_classes),
    )

class Langevin(torch.optim.SGD):
    def step(self, closure=None):
        super().step(closure)
        with torch.no_grad():
            for group in self.param_groups:
                for value in group["params"]:
                    value += 1e-3 * torch.randn_like(value)
"""


@pytest.fixture(autouse=True)
def _module(tmp_path, monkeypatch):
    (tmp_path / "draws.py").write_text(MODULE)
    monkeypatch.syspath_prepend(tmp_path)
    monkeypatch.delitem(sys.modules, "draws", raising=False)


def drawing(runs, draws, *overrides):
    tree = config_dict(tiny("trainer.epochs=3", f"runs_dir={runs}", *overrides))
    tree["arch"] = {"_target_": "draws.net", "name": draws, "draws": draws}
    if draws == "optimizer":
        tree["arch"]["draws"] = "dropout"
        tree["optimizer"] = {"_target_": "draws.Langevin", "lr": 0.1}
    return config_from(tree)


@pytest.mark.slow
@pytest.mark.parametrize("pipeline", ["tensor", "torchvision"])
@pytest.mark.parametrize("draws", ["dropout", "noise", "optimizer"])
def test_what_draws_is_the_same_to_the_bit_after_any_interruption(tmp_path, draws, pipeline):
    """It stops at the end of an epoch, in an evaluation, and twice in a row in mid-epoch."""
    whole = drawing(tmp_path / "whole", draws, f"pipeline={pipeline}")
    assert run_experiment(whole) == "complete"
    reference = RunDirectory.of(whole)
    for questions in ((3,), (4,), (5, 2)):
        parts = drawing(tmp_path / "-".join(map(str, questions)), draws, f"pipeline={pipeline}")
        for count in questions:
            counter = itertools.count(1)
            status = run_experiment(parts, should_stop=lambda: next(counter) >= count)  # noqa: B023
            assert status == "interrupted"
            random.seed(7), np.random.seed(7), torch.manual_seed(7)  # another process
        assert run_experiment(parts) == "complete"
        directory = RunDirectory.of(parts)
        assert history(directory.path) == history(reference.path), questions
        one, other = (read_torch(d.weights_file) for d in (reference, directory))
        assert all(torch.equal(one[name], other[name]) for name in one), questions


@pytest.mark.slow
def test_a_killed_run_goes_on_from_the_end_of_an_epoch_with_the_same_draws(tmp_path):
    """What was checkpointed later is lost: the second epoch is trained again from its start."""
    runs = [drawing(tmp_path / name, "noise", "trainer.checkpoint_every=1") for name in ("a", "b")]
    assert run_experiment(runs[0]) == "complete"
    counter = itertools.count(1)
    assert run_experiment(runs[1], should_stop=lambda: next(counter) >= 6) == "interrupted"
    whole, parts = (RunDirectory.of(config) for config in runs)
    parts.checkpoint_file.unlink()
    assert read_torch(parts.previous_checkpoint_file)["state"]["step"] == 0
    random.seed(7), np.random.seed(7), torch.manual_seed(7)  # another process
    assert run_experiment(runs[1]) == "complete"
    assert history(parts.path) == history(whole.path)


@pytest.mark.slow
def test_a_checkpoint_of_before_goes_on_without_the_states_of_generators(tmp_path):
    config = drawing(tmp_path, "dropout")
    counter = itertools.count(1)
    run_experiment(config, should_stop=lambda: next(counter) >= 2)
    directory = RunDirectory.of(config)
    checkpoint = read_torch(directory.checkpoint_file)
    del checkpoint["state"]["generators"]
    torch.save(checkpoint, directory.checkpoint_file)
    assert run_experiment(config) == "complete"


def test_every_global_generator_is_put_back():
    def draw():
        return random.gauss(0, 1), np.random.normal(), np.random.rand(), torch.rand(1).item()

    draw()
    states = generator_states(CPU)
    first = draw()
    assert draw() != first
    restore_generators(states, CPU)
    assert draw() == first


@pytest.mark.parametrize(
    "draw", [random.random, np.random.rand, lambda: np.random.randint(3), lambda: torch.rand(1)]
)
def test_draws_on_the_host_are_noticed(draw):
    gpu = torch.device("meta")  # whose own generator, if any, is not the host's
    before = generator_states(gpu)
    assert not drawn_on_host(before, gpu)
    draw()
    assert drawn_on_host(before, gpu)


def graphed(module, **trainer):
    torch.manual_seed(0)
    model = torch.nn.Sequential(
        torch.nn.AvgPool2d(4), torch.nn.Flatten(), module, torch.nn.Linear(48, 10)
    )
    step = Step(model, Trainer(batch_size=8, **trainer))
    return step, torch.optim.SGD(model.parameters(), 0.1)


def totals(step, optimizer):
    return [step.totals.tolist() for _ in train_steps(step, optimizer, batches())]


def test_a_graph_draws_what_the_operations_draw(emulated_cuda):
    """The warm-up's draws are undone, so that a resumed run, which warms up again, goes on."""
    expected = totals(*graphed(torch.nn.Dropout(0.5)))
    step, optimizer = graphed(torch.nn.Dropout(0.5))
    step.captures = True
    assert totals(step, optimizer) == expected
    assert step.graph is not None


class HostNoise(torch.nn.Module):
    def forward(self, x):
        return x + random.gauss(0, 1)


def test_a_network_that_draws_on_the_host_trains_without_a_graph(emulated_cuda, caplog):
    def run(captures):
        random.seed(1)
        step, optimizer = graphed(HostNoise())
        step.captures = captures
        return totals(step, optimizer), step.graph

    with caplog.at_level(logging.INFO):
        assert run(True) == run(False)
    assert "without a CUDA graph: the network draws random numbers on the host" in caplog.text
    step, optimizer = graphed(HostNoise(), cuda_graph=True)
    step.captures = True
    with pytest.raises(UserError, match=r"trainer.cuda_graph=true: expected null, as the network"):
        totals(step, optimizer)
