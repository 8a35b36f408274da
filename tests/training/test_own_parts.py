"""Networks, heads and optimizers of a user's own, and images of other sizes, through a training."""

import dataclasses
import io
import itertools
import json
import sys

import numpy as np
import pytest
import torch
from helpers import REPOSITORY, history, tiny
from torch import nn

from resnests.config.schema import config_dict, config_from, part_from
from resnests.data.sources import SOURCES
from resnests.data.splits import load
from resnests.errors import UserError
from resnests.models.resnet import build_network
from resnests.runs.directory import RunDirectory
from resnests.runs.record import Record
from resnests.tasks import preflight
from resnests.tasks.experiment import run_experiment
from resnests.training.optim import build_optimizer

HEADS = """
import torch
from torch import nn

class Head(nn.Module):
    def __init__(self, channels, num_classes, scale):
        super().__init__()
        self.channels, self.scale = channels, scale
        self.linear = nn.Linear(channels[-1], num_classes)

    def forward(self, images, features, last):
        assert [v.shape[1] for v in features] == self.channels
        assert last.shape == features[-1].shape and len(images) == len(last)
        return self.linear(last.mean((2, 3))) * self.scale

class Wrong(Head):
    def forward(self, images, features, last):
        return last

class Raises(Head):
    def forward(self, images, features, last):
        raise IndexError("no such block")

def net(num_classes, width=4):
    return nn.Sequential(nn.Flatten(), nn.Linear(3072, width), nn.Linear(width, num_classes))

def headed(num_classes, head):
    if head != "special":
        raise ValueError(f"head {head} is none of special")
    return net(num_classes)

def no_module(num_classes):
    return 3
"""


@pytest.fixture(autouse=True)
def _module(tmp_path, monkeypatch):
    (tmp_path / "mine.py").write_text(HEADS)
    monkeypatch.syspath_prepend(tmp_path)
    monkeypatch.delitem(sys.modules, "mine", raising=False)


def config(*overrides: str, **parts):
    tree = config_dict(tiny("trainer.epochs=1", *overrides))
    return config_from(tree | {key: {"name": "mine"} | part for key, part in parts.items()})


def check(mine, sizes=preflight.Sizes.ALL):
    preflight.check(mine, load(mine.dataset), torch.device("cpu"), sizes)


HEAD = {"_target_": "mine.Head", "scale": 2}


@pytest.mark.slow
def test_a_head_of_ones_own_reads_the_trunk_and_trains(tmp_path):
    mine = config(f"runs_dir={tmp_path}", variant=HEAD)
    assert run_experiment(mine) == "complete"
    record = RunDirectory.of(mine).read_record()
    standard = build_network(mine.arch, part_from("variant", {"name": "s", "head": "standard"}), 10)
    last_norm = 2 * 8  # the head has no final batch norm
    assert record.parameters == sum(p.numel() for p in standard.parameters()) - last_norm
    assert record.recipe_values["variant._target_"] == "mine.Head"


def test_a_network_of_ones_own_trains_and_runs_again_from_its_configuration(tmp_path):
    mine = config(
        f"runs_dir={tmp_path}", arch={"_target_": "mine.headed"}, variant={"head": "special"}
    )
    assert run_experiment(mine) == "complete"
    directory = RunDirectory.of(mine)
    assert directory.read_config() == mine
    first = history(directory.path)
    directory.clear()
    assert run_experiment(directory.read_config()) == "complete"
    assert history(directory.path) == first


@pytest.mark.parametrize(
    ("parts", "said"),
    [
        ({"arch": {"_target_": "mine.no_module"}}, "expected an nn.Module, not int"),
        (
            {"arch": {"_target_": "mine.net"}, "variant": {"head": "resnest"}},
            "variant.head=resnest: expected standard, as mine.net takes no head",
        ),
        ({"arch": {"_target_": "mine.headed"}}, "ValueError: head standard is none of special"),
        ({"variant": {"_target_": "mine.Head"}}, "TypeError"),
        (
            {"variant": HEAD | {"_target_": "mine.Wrong"}},
            r"variant=mine: a batch .*: expected logits of shape \(32, 10\), not \(32, 8",
        ),
        (
            {"variant": HEAD | {"_target_": "mine.Raises"}},
            r"variant=mine: a batch of 32 images .*: IndexError: no such block \(.*mine.py, l",
        ),
        ({"optimizer": {"_target_": "mine.net", "lr": 0.1}}, "optimizer._target_=mine.net: "),
        (
            {"optimizer": {"_target_": "torch.optim.Adagrad", "lr": 0.1, "momentum": 0.9}},
            "optimizer.momentum=0.9: expected null, as torch.optim.Adagrad does not take it",
        ),
        (
            {"optimizer": {"_target_": "torch.optim.RMSprop", "lr": 0.1, "alfa": 0.9}},
            "TypeError: .*alfa",
        ),
    ],
)
def test_pieces_that_do_not_fit_are_named_before_a_run(parts, said):
    with pytest.raises(UserError, match=said) as caught:
        check(config(**parts))
    assert "\n" not in str(caught.value)


BATCHES = """
import torch
from torch import nn

def normed(num_classes):
    return nn.Sequential(
        nn.Flatten(), nn.Linear(3072, 4), nn.BatchNorm1d(4), nn.Linear(4, num_classes)
    )

def pooled(num_classes):
    return nn.Sequential(nn.AvgPool2d(4), nn.Flatten(), nn.Linear(3, num_classes))

def lazy(num_classes):
    return nn.Sequential(
        nn.Conv2d(3, 2, 3), nn.LazyBatchNorm2d(), nn.Flatten(), nn.LazyLinear(num_classes)
    )

class FixedBatch(nn.Module):
    def __init__(self, num_classes):
        super().__init__()
        self.linear = nn.Linear(3072, num_classes)

    def forward(self, x):
        if self.training:
            return self.linear(x.reshape(32, 3072))
        return self.linear(x.flatten(1))

class Sixteens(FixedBatch):
    def forward(self, x):
        if self.training and len(x) % 16:
            raise ValueError(f"{len(x)} is no multiple of 16")
        return self.linear(x.flatten(1))

class Squeezes(FixedBatch):
    def forward(self, x):
        return self.linear(x.flatten(1)).squeeze()

class SmallTests(Squeezes):
    def forward(self, x):
        if len(x) > 70 and not self.training:
            raise ValueError("too many")
        return self.linear(x.flatten(1))

class EvenTests(Squeezes):
    def forward(self, x):
        if len(x) % 2 and not self.training:
            raise ValueError("odd")
        return self.linear(x.flatten(1))

class HalfOnly(FixedBatch):
    def forward(self, x):
        logits = self.linear(x.flatten(1))
        if logits.dtype == torch.bfloat16:
            raise TypeError("no bf16")
        return logits
"""


@pytest.fixture
def nets(tmp_path, monkeypatch):
    (tmp_path / "nets_of_mine.py").write_text(BATCHES)
    monkeypatch.delitem(sys.modules, "nets_of_mine", raising=False)


def net(name, *overrides):
    return config(*overrides, arch={"_target_": f"nets_of_mine.{name}"})


@pytest.mark.slow
@pytest.mark.parametrize(
    ("name", "overrides", "said"),
    [
        (
            "normed",
            ["dataset.train_limit=65"],
            "trainer.batch_size=32: expected 31 or 33, as 65 training images leave a batch of one: "
            r"arch=mine: a batch of 1 image .* fails: ValueError: Expected more than 1 value",
        ),
        (
            "normed",
            ["trainer.batch_size=1"],
            "trainer.batch_size=1: expected 2, as 96 training images leave a batch of one: ",
        ),
        (
            "FixedBatch",
            ["dataset.train_limit=70"],
            "arch=mine: a batch of 6 images of 32x32 pixels fails: Runtime",
        ),
        (
            "Squeezes",
            ["dataset.test_limit=129"],
            r"arch=mine: an evaluation of 1 image .*: expected logits of shape \(1, 10",
        ),
        (
            "SmallTests",
            ["dataset.test_limit=71"],
            "arch=mine: an evaluation of 71 images of 32x32 pixels fails: ValueError: too many",
        ),
        (
            "SmallTests",
            ["dataset.train_limit=400", "dataset.val_fraction=0.2"],
            r"arch=mine: an evaluation of \d\d images of 32x32 pixels fails: ValueError: too many",
        ),
        (
            "EvenTests",
            ["dataset.test_limit=141"],
            "arch=mine: an evaluation of 13 images of 32x32 pixels fails: ValueError: odd",
        ),
        ("HalfOnly", ["trainer.precision=bf16"], "arch=mine: .* fails: TypeError: no bf16"),
        ("normed", ["pipeline.crop_padding=32"], "pipeline.crop_padding=32: expected 0 to 31"),
    ],
)
def test_the_check_is_the_run_batch_by_batch(nets, name, overrides, said):
    with pytest.raises(UserError, match=said) as caught:
        check(net(name, *overrides))
    assert "\n" not in str(caught.value)


@pytest.mark.slow
@pytest.mark.parametrize(("count", "size"), [(65, 32), (96, 32), (64, 32), (40, 64)])
def test_a_batch_size_that_is_proposed_works(nets, count, size):
    """And where no batch has one image, there is nothing to propose."""
    mine = net("normed", f"dataset.train_limit={count}", f"trainer.batch_size={size}")
    if count % size != 1:
        return check(mine)
    with pytest.raises(UserError, match="expected 31 or 33"):
        check(mine)
    for proposed in (31, 33):
        check(net("normed", f"dataset.train_limit={count}", f"trainer.batch_size={proposed}"))


@pytest.mark.slow
def test_a_network_with_lazy_parameters_passes_the_check_trains_and_is_evaluated(nets, tmp_path):
    mine = net("lazy", f"runs_dir={tmp_path / 'runs'}")
    check(mine)
    assert run_experiment(mine) == "complete"
    directory = RunDirectory.of(mine)
    record = directory.read_record()
    assert record.parameters == 3 * 9 * 2 + 2 + 4 + 30 * 30 * 2 * 10 + 10
    given = dataclasses.replace(mine, task="evaluate", weights=str(directory.weights_file))
    assert run_experiment(given) == "complete"
    again = RunDirectory.of(given).read_record()
    assert (again.test_loss, again.test_accuracy) == (record.test_loss, record.test_accuracy)


def test_the_check_of_many_configurations_is_of_each_network_once_at_its_full_size(
    nets, monkeypatch
):
    seen = []
    monkeypatch.setattr(
        preflight, "check", lambda config, splits, device, sizes: seen.append(sizes.name)
    )
    many = [net("normed", f"optimizer.lr={lr}") for lr in (0.1, 0.2)]
    many += [net("lazy"), net("lazy", "trainer.batch_size=7")]
    text = json.dumps([config_dict(one) for one in many])
    monkeypatch.setattr("sys.stdin", io.StringIO(text))
    threads = torch.get_num_threads()
    assert preflight.main() == 0
    torch.set_num_threads(threads)
    assert seen == ["ALL", "SMALLEST", "ALL", "ALL"]


def test_batches_are_tried_of_no_size_that_no_run_has(nets):
    """A network that takes multiples of 16 alone would be refused."""
    for sizes in preflight.Sizes.ALL, preflight.Sizes.SMALLEST:
        for limit, augment in itertools.product((96, 80), ("none", "cutout")):
            check(net("Sixteens", f"dataset.train_limit={limit}", f"augment={augment}"), sizes)
    with pytest.raises(UserError, match="a batch of 6 images"):
        check(net("Sixteens", "dataset.train_limit=70"), sizes=preflight.Sizes.SMALLEST)


@pytest.mark.parametrize("task", ["evaluate", "train"])
def test_what_a_run_does_not_do_is_not_tried(nets, tmp_path, task, monkeypatch):
    """Given weights are not trained, and a last batch of one image is of those who have one."""
    monkeypatch.chdir(tmp_path)
    check(net("Squeezes", "dataset.test_limit=140"))
    torch.save({f"linear.{k}": v for k, v in nn.Linear(3072, 10).state_dict().items()}, "mine.pt")
    mine = net("FixedBatch", "dataset.train_limit=70")
    mine = dataclasses.replace(mine, task=task, weights="mine.pt" if task == "evaluate" else None)
    if task == "evaluate":
        return check(mine)
    with pytest.raises(UserError, match="a batch of 6 images"):
        check(mine)


def test_images_too_small_for_a_network_are_named_with_their_size(nets, tmp_path):
    pairs = {f"{part}_images": np.ones((4, 3, 2), np.uint8) for part in ("train", "test")}
    pairs |= {f"{part}_labels": np.arange(4) % 2 for part in ("train", "test")}
    np.savez(tmp_path / "mine.npz", **pairs)
    data = {"source": "images", "num_classes": 2, "root": str(tmp_path / "mine.npz")}
    data |= {"mean": [0.5] * 3, "std": [0.5] * 3}
    pooled = {"_target_": "nets_of_mine.pooled"}
    small = config("pipeline.crop_padding=1", dataset=data, arch=pooled)
    with pytest.raises(UserError, match=r"arch=mine: a batch of 4 images of 2x3 pixels fails"):
        check(small)
    small = config("pipeline.crop_padding=2", dataset=data)
    with pytest.raises(UserError, match=r"expected 0 to 1 pixels, .* than the images, 2x3"):
        check(small)


def test_pieces_that_fit_pass():
    check(config(variant=HEAD, optimizer={"_target_": "torch.optim.RMSprop", "lr": 0.1}))


def test_any_optimizer_of_torch_gets_what_its_yaml_says():
    part = {"_target_": "torch.optim.RMSprop", "lr": 0.02, "alpha": 0.9, "weight_decay": 0.1}
    made = build_optimizer(part_from("optimizer", part), [torch.nn.Parameter(torch.ones(1))])
    assert isinstance(made, torch.optim.RMSprop)
    assert {made.defaults[key] for key in ("lr", "alpha", "weight_decay")} == {0.02, 0.9, 0.1}


@pytest.mark.slow
@pytest.mark.parametrize("pipeline", ["tensor", "torchvision"])
def test_images_of_another_size_train_through_every_pipeline(tmp_path, pipeline):
    images = np.random.default_rng(0).integers(0, 256, (40, 20, 12), dtype=np.uint8)
    arrays = {"train_images": images, "train_labels": np.arange(40) % 4}
    arrays |= {"test_images": images[:8], "test_labels": np.arange(8) % 4}
    np.savez(tmp_path / "mine.npz", **arrays)
    dataset = {"source": "images", "num_classes": 4, "root": str(tmp_path / "mine.npz")}
    mine = config(f"runs_dir={tmp_path}", f"pipeline={pipeline}", dataset=dataset)
    assert run_experiment(mine) == "complete"
    record = Record.from_json(RunDirectory.of(mine).record_file.read_bytes())
    assert np.allclose(record.mean, images.mean() / 255)
    assert np.allclose(record.std, images.std() / 255)
    assert "dataset.mean" not in record.recipe_values
    large = config(f"pipeline={pipeline}", "pipeline.crop_padding=12", dataset=dataset)
    with pytest.raises(UserError, match=r"pipeline.crop_padding=12: expected 0 to 11 pixels"):
        run_experiment(large)


def test_every_ready_data_set_has_a_source():
    names = {path.stem for path in (REPOSITORY / "conf" / "dataset").glob("*.yaml")}
    assert names == SOURCES.keys()
