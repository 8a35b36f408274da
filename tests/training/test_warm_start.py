"""Warm start, frozen parameters, groups of parameters, running means, and an end by patience."""

import types

import pytest
import torch
import torchvision
from helpers import history, tiny
from torch import nn

from resnests.config.recipe import recipe_hash, recipe_values
from resnests.data.splits import load
from resnests.environment import begin_dry_run
from resnests.errors import UserError
from resnests.models.weights import read_torch, save_weights
from resnests.runs.digests import with_digests
from resnests.runs.directory import RunDirectory
from resnests.tasks import preflight
from resnests.tasks.experiment import run_experiment
from resnests.training import loop
from resnests.training.loop import State, is_exhausted
from resnests.training.optim import (
    averaged_model,
    build_optimizer,
    parameter_groups,
    set_learning_rate,
)
from resnests.training.warm_start import _print_untried, warm_start

ONE_CYCLE = "{_target_:torch.optim.lr_scheduler.OneCycleLR,per:step,max_lr:0.1}"
EXPONENTIAL = "{_target_:torch.optim.lr_scheduler.ExponentialLR,per:epoch,gamma:0.5}"
WARM = "{_target_:torch.optim.lr_scheduler.LinearLR,_partial_:true,start_factor:0.5,total_iters:1}"
SEQUENCE = (
    "{_target_:torch.optim.lr_scheduler.SequentialLR,per:epoch,_convert_:all,milestones:[1],"
    "schedulers:["
    f"{WARM},{EXPONENTIAL.replace('per:epoch,', '')}]}}"
)
SCHEDULE = (f"optimizer.schedule={EXPONENTIAL}",)
CPU = torch.device("cpu")


@pytest.fixture(scope="module")
def start(tmp_path_factory):
    """Return a finished run of ours on ten classes."""
    config = tiny("trainer.epochs=1", f"runs_dir={tmp_path_factory.mktemp('start')}")
    assert run_experiment(config) == "complete"
    return RunDirectory.of(config).path


def trained(*overrides):
    (config,) = with_digests([tiny("trainer.epochs=1", *overrides)])
    assert run_experiment(config) == "complete"
    return RunDirectory.of(config)


def test_a_training_starts_from_a_run_and_keeps_what_is_frozen(start, tmp_path):
    where = f'init.weights="{start}"'
    run = trained(where, "init.freeze=[expansion.*,stage.*]", f"runs_dir={tmp_path}")
    before, after = read_torch(start / "model.pt"), read_torch(run.weights_file)
    frozen = [name for name in before if name.endswith("conv1.weight")]
    assert frozen
    assert all(torch.equal(before[name], after[name]) for name in frozen)
    assert not all(torch.equal(before[name], after[name]) for name in before)
    record = run.read_record()
    whole = RunDirectory(start).read_record().parameters
    assert record.parameters + record.frozen_parameters == whole
    assert record.frozen_parameters > 0


def test_the_content_of_a_file_is_identity_and_its_place_is_not(start, tmp_path):
    copy = tmp_path / "copy.pt"
    copy.write_bytes((start / "model.pt").read_bytes())
    one, other = with_digests([tiny(f'init.weights="{place}"') for place in (start, copy)])
    assert recipe_hash(one) == recipe_hash(other) != recipe_hash(tiny())
    assert "init.weights" not in recipe_values(one)
    copy.write_bytes((start / "model.pt").read_bytes() + b"x")
    assert recipe_hash(with_digests([other])[0]) != recipe_hash(one)
    named = tiny("init.weights=ResNet18_Weights.IMAGENET1K_V1")
    assert recipe_values(named)["init.weights"] == "ResNet18_Weights.IMAGENET1K_V1"


def test_a_head_of_other_classes_is_drawn_and_the_rest_is_taken(start, tmp_path):
    weights = read_torch(start / "model.pt")
    heads = [name for name, value in weights.items() if value.ndim and len(value) == 10]
    model = torch.nn.Module()
    model.state_dict = lambda: {
        name: value[:7] if name in heads else value for name, value in weights.items()
    }
    save_weights(tmp_path / "seven.pt", model)
    mine = tiny(f'init.weights="{tmp_path / "seven.pt"}"')
    preflight.check(mine, load(mine.dataset), CPU, preflight.Sizes.TWO)
    model.state_dict = lambda: {"other": torch.zeros(2)}
    save_weights(tmp_path / "seven.pt", model)
    with pytest.raises(UserError, match=r"expansion.weight, .* 31 more do not fit by name"):
        preflight.check(mine, load(mine.dataset), CPU, preflight.Sizes.TWO)
    mine.init.strict = False
    with pytest.raises(UserError, match=r"expected weights of which some fit the network"):
        preflight.check(mine, load(mine.dataset), CPU, preflight.Sizes.TWO)


def test_published_weights_by_their_name(monkeypatch):
    network = torchvision.models.resnet18(num_classes=1000)
    published = types.SimpleNamespace(get_state_dict=lambda **_: network.state_dict())
    monkeypatch.setattr(torchvision.models, "get_weight", lambda name: published)
    mine = tiny("init.weights=ResNet18_Weights.IMAGENET1K_V1")
    model = torchvision.models.resnet18(num_classes=7)
    drawn = model.fc.weight.detach().clone()
    warm_start(model, mine, 7)
    assert torch.equal(model.fc.weight, drawn)
    assert torch.equal(model.conv1.weight, network.conv1.weight)


def test_published_weights_of_timm_by_their_name(monkeypatch):
    timm = pytest.importorskip("timm", reason="needs resnests[timm]")
    network, make = timm.create_model("resnet10t", num_classes=1000), timm.create_model
    asked = []

    def create(name, **options):
        asked.append((name, options))
        return network

    monkeypatch.setattr(timm, "create_model", create)
    model = make("resnet10t", num_classes=7)
    warm_start(model, tiny("init.weights=timm/resnet10t.c3_in1k"), 7)
    assert asked == [("resnet10t.c3_in1k", {"pretrained": True})]
    assert torch.equal(model.conv1[0].weight, network.conv1[0].weight)


def test_a_dry_run_fetches_no_published_weights(monkeypatch, capsys):
    monkeypatch.setattr(torchvision.models, "get_weight", lambda name: pytest.fail(name))
    begin_dry_run()
    _print_untried.cache_clear()  # another test may have said it
    model = torchvision.models.resnet18(num_classes=7)
    for lr in (0.1, 0.2):
        words = ("init.weights=ResNet18_Weights.IMAGENET1K_V1", f"optimizer.lr={lr}")
        warm_start(model, tiny(*words), 7)
    assert capsys.readouterr().out.count("not tried, as a dry run downloads nothing") == 1


@pytest.mark.parametrize(
    ("overrides", "said"),
    [
        (
            ["init.weights=nothing.pt"],
            "init.weights=nothing.pt: expected a file, a run, timm/N",
        ),
        (
            ["init.freeze=[bodi.*]"],
            r"init.freeze=bodi.*: expected a pattern that fits a parameter",
        ),
        (["init.freeze=['*']"], "expected patterns that leave a parameter to train"),
        (["init.strict=false"], "init.strict=False: expected true without init.weights"),
        (["task=evaluate", "weights=w.pt", "init.freeze=[a]"], "expected none with task=evaluate"),
        (["task=analyze", "weights=w.pt", "init.freeze=[a]"], "expected none with task=analyze"),
        (
            ["optimizer.groups=[{match:zz,lr:0.1}]"],
            "optimizer.groups=zz: expected a pattern of tr",
        ),
        (["optimizer.groups=[{lr:0.1}]"], "expected {match: pattern, and lr, weight_decay or"),
        (["optimizer.groups=[{match:'*',betas:1}]"], "optimizer.groups.betas=1: expected a key of"),
        (["optimizer.groups=[{match:'*',lr:-1}]"], "optimizer.groups.lr=-1: expected a positive n"),
        (
            ["optimizer.schedule={per:step}"],
            "optimizer.schedule={'per': 'step'}: expected {_target_",
        ),
        (
            [
                "optimizer.milestones=[]",
                f"optimizer.schedule={ONE_CYCLE}",
                'optimizer.groups=[{match:"linear.*",lr:0.01}]',
            ],
            r"optimizer.groups=.*: expected no lr in a group beside .*OneCycleLR, which sets",
        ),
        (
            [
                "optimizer.milestones=[]",
                f"optimizer.schedule={ONE_CYCLE.replace('}', ',total_steps:3}')}",
            ],
            "optimizer.schedule.total_steps=3: expected at least 6, as often as",
        ),
        (
            ["optimizer.groups=[{match:'*',weight_decay:-1}]"],
            "optimizer.groups.weight_decay=-1: expected 0 or more",
        ),
        ([*SCHEDULE], r"optimizer.milestones=.*: expected \[\] beside optimizer.schedule"),
        (
            ["optimizer.milestones=[]", "optimizer.schedule={_target_:torch.nn.ReLU,per:step}"],
            "optimizer.schedule._target_=torch.nn.ReLU: expected a scheduler of torch.optim",
        ),
        (["trainer.patience=2"], "trainer.patience=2: expected null without dataset.val_fraction"),
        (["trainer.ema=1"], "trainer.ema=1.0: expected above 0 and below 1"),
    ],
)
def test_what_does_not_fit_is_one_line_before_the_first_run(overrides, said):
    def check():
        mine = tiny(*overrides)
        preflight.check(mine, load(mine.dataset), CPU, preflight.Sizes.TWO)

    with pytest.raises(UserError, match=said) as caught:
        check()
    assert "\n" not in str(caught.value)


def test_groups_have_rates_in_proportion_and_norms_no_decay():
    model = torch.nn.Sequential(torch.nn.Conv2d(3, 2, 1), torch.nn.BatchNorm2d(2))
    groups = "optimizer.groups=[{match:'0.*',lr:0.01}]"
    mine = tiny("optimizer.lr=0.1", groups, "optimizer.decay_norms=false").optimizer
    built = build_optimizer(mine, parameter_groups(mine, model))
    set_learning_rate(built, 0.05)
    found = {
        name: (group["lr"], group["weight_decay"])
        for name, parameter in model.named_parameters()
        for group in built.param_groups
        if any(parameter is one for one in group["params"])
    }
    decay = mine.weight_decay
    assert found == {
        "0.weight": (pytest.approx(0.005), decay), "0.bias": (pytest.approx(0.005), 0.0),
        "1.weight": (0.05, 0.0), "1.bias": (0.05, 0.0),
    }  # fmt: skip
    plain = tiny().optimizer
    assert parameter_groups(plain, model) == list(model.parameters())


def test_an_average_of_the_weights_is_evaluated_beside_them_and_resumed(tmp_path):
    options = ("trainer.ema=0.9", "trainer.epochs=2", "dataset.val_fraction=0.2")
    options = (*options, "trainer.checkpoint_every=1", "optimizer.decay_norms=false")
    whole = trained(*options, f"runs_dir={tmp_path / 'whole'}")
    record = whole.read_record()
    last = history(whole.path)[-1]
    assert record.metrics["ema_accuracy"]["val"] == float(last["val_ema_accuracy"])
    assert record.metrics["ema_loss"]["test"] == float(last["test_ema_loss"])
    average, final = read_torch(whole.averaged_weights_file), read_torch(whole.weights_file)
    assert not torch.equal(average["expansion.weight"], final["expansion.weight"])
    mine = tiny(*options, f"runs_dir={tmp_path / 'halted'}")
    asked = iter(range(100))
    assert run_experiment(mine, should_stop=lambda: next(asked) == 4) == "interrupted"
    assert run_experiment(mine) == "complete"
    halted = RunDirectory.of(mine)
    assert history(halted.path) == history(whole.path)
    resumed = read_torch(halted.averaged_weights_file)
    assert all(torch.equal(average[name], resumed[name]) for name in average)


def test_an_average_has_the_whole_numbers_of_the_network():
    model = nn.BatchNorm1d(3)
    model.register_buffer("places", torch.arange(20))
    averaged = averaged_model(model, 0.9)
    expected = None
    for step in range(4):
        model.weight.data += step
        model.num_batches_tracked += 1
        averaged.update_parameters(model)
        now = model.weight.detach().clone()
        expected = now if expected is None else 0.9 * expected + 0.1 * now
    assert torch.equal(averaged.module.places, torch.arange(20))
    assert averaged.module.num_batches_tracked == 4
    torch.testing.assert_close(averaged.module.weight.detach(), expected)


def test_patience_ends_a_training(tmp_path):
    trainer = tiny("trainer.patience=2", "dataset.val_fraction=0.2").trainer

    def exhausted(*values):
        rows = [{"epoch": i + 1, "val_accuracy": value} for i, value in enumerate(values)]
        return is_exhausted(trainer, State(history=rows))

    assert [exhausted(), exhausted(1), exhausted(2, 1), exhausted(2, 1, 2)] == [False] * 3 + [True]
    assert not exhausted(1, 2, 3, 2)
    more = ("trainer.patience=1", "dataset.val_fraction=0.2", "trainer.epochs=9")
    run = trained(*more, "optimizer.lr=1e-12", f"runs_dir={tmp_path}")
    assert run.read_record().epochs == len(history(run.path)) == 2
    assert run.weights_file.is_file()


@pytest.mark.slow
@pytest.mark.parametrize("schedule", [ONE_CYCLE, EXPONENTIAL, SEQUENCE])
def test_a_schedule_of_ones_own_is_stepped_saved_and_resumed(tmp_path, schedule):
    options = ("optimizer.milestones=[]", f"optimizer.schedule={schedule}", "optimizer.lr=0.1")
    options = (*options, "trainer.epochs=2")
    whole = trained(*options, f"runs_dir={tmp_path / 'whole'}")
    rates = [float(row["lr"]) for row in history(whole.path)]
    if schedule == EXPONENTIAL:
        assert rates == [0.1, 0.05]
    elif schedule == SEQUENCE:
        assert rates == [0.05, 0.1]
    else:
        assert rates[1] == pytest.approx(0.1 / 25 / 1e4)
    mine = tiny(*options, f"runs_dir={tmp_path / 'halted'}")
    asked = iter(range(100))
    assert run_experiment(mine, should_stop=lambda: next(asked) == 1) == "interrupted"
    assert run_experiment(mine) == "complete"
    assert history(RunDirectory.of(mine).path) == history(whole.path)
    assert recipe_values(mine)["optimizer.schedule"]["per"] in ("step", "epoch")


def test_a_schedule_of_epochs_is_stepped_once_where_an_evaluation_is_interrupted(
    tmp_path, monkeypatch
):
    options = (*SCHEDULE, "optimizer.milestones=[]", "optimizer.lr=0.1", "trainer.epochs=3")
    mine = tiny(*options, f"runs_dir={tmp_path}")

    def interrupt(training, whole, state, progress):
        raise loop.Interrupted

    with monkeypatch.context() as patch:
        patch.setattr(loop, "_evaluate_all", interrupt)
        assert run_experiment(mine) == "interrupted"
    assert run_experiment(mine) == "complete"
    rates = [float(row["lr"]) for row in history(RunDirectory.of(mine).path)]
    assert rates == [0.1, 0.05, 0.025]
