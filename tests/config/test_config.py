import copy
import dataclasses

import pytest
from helpers import make_config, tiny

from resnests.config.recipe import recipe_hash, recipe_values
from resnests.config.schema import MAX_SEED, config_dict, config_from
from resnests.errors import UserError


def test_defaults_are_the_papers():
    config = make_config()
    assert (config.dataset.name, config.optimizer.name, config.pipeline.name) == (
        "cifar10",
        "sgd",
        "tensor",
    )
    assert (config.optimizer.lr, config.optimizer.momentum, config.optimizer.nesterov) == (
        0.1,
        0.9,
        True,
    )
    assert (config.optimizer.weight_decay, config.optimizer.milestones) == (5e-4, [0.3, 0.6, 0.8])
    assert (config.trainer.epochs, config.trainer.batch_size, config.trainer.precision) == (
        200,
        128,
        "fp32",
    )


@pytest.mark.slow
def test_resnest_brings_its_learning_rate_with_sgd_only():
    assert make_config("variant=resnest").optimizer.lr == 0.01
    assert make_config("variant=resnest", "optimizer=sgd_cosine").optimizer.lr == 0.01
    for optimizer in ("sgd", "sgd_cosine", "sgd_densenet"):
        config = make_config("arch=densenest40_12", "variant=densenest", f"optimizer={optimizer}")
        assert config.optimizer.lr == 0.01
    assert (
        make_config("variant=resnest", "optimizer=adamw").optimizer.lr
        == make_config("optimizer=adamw").optimizer.lr
    )
    assert make_config("variant=resnest", "optimizer.lr=0.05").optimizer.lr == 0.05


@pytest.mark.parametrize(
    "override",
    [
        "optimizer.lr=0.2",
        "optimizer=adamw",
        "trainer.epochs=100",
        "trainer.batch_size=64",
        "trainer.precision=bf16",
        "pipeline=torchvision",
        "pipeline.crop_padding=2",
        "dataset.train_limit=50",
        "dataset.val_fraction=0.1",
        "dataset.mean=[0,0,0]",
        "arch.blocks=[2,2,2]",
        "optimizer.milestones=[]",
    ],
)
def test_what_changes_the_numbers_changes_the_recipe(override):
    assert recipe_hash(make_config(override)) != recipe_hash(make_config())


def test_what_does_not_change_the_numbers_does_not_change_the_recipe():
    overrides = [
        "trainer.device=cpu",
        "trainer.channels_last=false",
        "trainer.checkpoint_every=7",
        "trainer.eval_every=5",
        "trainer.keep_epochs=[0,1,30]",
        "trainer.overwrite=true",
        "dataset.root=/elsewhere",
        "dataset.download=false",
        "devices.runs_per_gpu=4",
        "sweep.retries=3",
        "runs_dir=/elsewhere",
        "logger=tensorboard",
        "seed=3",
        "optimizer.lr=0.10",
    ]
    assert recipe_hash(make_config(*overrides)) == recipe_hash(make_config())


def test_how_often_is_evaluated_is_part_of_the_recipe_where_it_may_end_a_training():
    """Patience sees evaluated epochs only. A run of before with patience and another eval_every has
    the recipe of every epoch: it stays in the tables, and its command trains another.
    """
    patient = ("trainer.patience=2", "dataset.val_fraction=0.1")
    usual, rare = make_config(*patient), make_config(*patient, "trainer.eval_every=5")
    assert "trainer.eval_every" not in recipe_values(usual)
    assert recipe_values(rare) == recipe_values(usual) | {"trainer.eval_every": 5}
    assert recipe_hash(rare) != recipe_hash(usual)


def test_recipe_of_the_paper_stays_what_it_was():
    """Finished runs are found again by these: a change here orphans everybody's results."""
    assert recipe_hash(make_config()) == "5177e433"
    assert recipe_hash(make_config("variant=resnest", "dataset=cifar100")) == "d3af5416"


def test_a_configuration_survives_the_way_through_plain_values():
    config = make_config("variant=a_resnest", "optimizer=adamw", "seed=5")
    assert config_from(config_dict(config)) == config


@pytest.mark.parametrize(
    ("override", "key"),
    [
        ("trainer.epochs=0", "trainer.epochs=0"),
        ("trainer.keep_epochs=[-1,3]", "trainer.keep_epochs=[-1, 3]"),
        ("trainer.keep_epochs=[201]", "trainer.keep_epochs=[201]"),
        ("trainer.batch_size=-1", "trainer.batch_size=-1"),
        ("trainer.precision=fp64", "trainer.precision=fp64"),
        ("trainer.device=tpu", "trainer.device=tpu"),
        ("trainer.device='cuda:x'", "trainer.device=cuda:x"),
        ("optimizer.lr=0", "optimizer.lr=0.0"),
        ("optimizer.lr=nan", "optimizer.lr=nan"),
        ("optimizer.weight_decay=-1", "optimizer.weight_decay=-1.0"),
        ("optimizer.milestones=[0.5,0.2]", "optimizer.milestones=[0.5, 0.2]"),
        ("optimizer.milestones=[60,120]", "optimizer.milestones"),
        ("optimizer.betas=[0.9,0.99]", "optimizer.betas"),
        ("seed=-1", "seed=-1"),
        (f"seed={MAX_SEED + 1}", "seed="),
        ("dataset.train_limit=0", "dataset.train_limit=0"),
        ("dataset.test_limit=-3", "dataset.test_limit=-3"),
        ("dataset.val_fraction=1", "dataset.val_fraction=1.0"),
        ("dataset.std=[1,1,0]", "dataset.std"),
        ("dataset.mean=[1,1]", "dataset.mean"),
        ("arch.widths=[16,32]", "arch.widths"),
        ("arch.blocks=[0,1,1]", "arch.blocks"),
        ("variant.head=foo", "variant.head=foo"),
        ("arch.name='../up'", "arch.name"),
        ("devices.runs_per_gpu=0", "devices.runs_per_gpu=0"),
        ("sweep.retries=-1", "sweep.retries=-1"),
        ("dataset.name=a/b", "dataset.name='a/b'"),
        ("variant.name=a/b", "variant.name='a/b'"),
        ("dataset.num_classes=1", "dataset.num_classes=1"),
        ("dataset.mean=[]", "dataset.mean=[]: expected three numbers"),
        ("loss.weight=[]", "loss.weight=[]: expected balanced"),
        ("dataset.source=mnist", "dataset.source=mnist"),
        ("variant.head=null", "variant.head=None"),
        ("optimizer.name=lion", "optimizer.name=lion"),
        ("optimizer.warmup=1.5", "optimizer.warmup=1.5"),
        ("optimizer.per_step=true", "optimizer.per_step=True"),
        ("optimizer.weight_decay=null", "optimizer.weight_decay=null"),
        ("optimizer.momentum=null", "optimizer.momentum=null"),
        ("optimizer.momentum=1", "optimizer.momentum=1.0"),
        ("optimizer.momentum=0", "optimizer.nesterov=True"),
        ("optimizer.clip_norm=0", "optimizer.clip_norm=0.0"),
        ("pipeline.name=numpy", "pipeline.name=numpy"),
        ("pipeline.crop_padding=-1", "pipeline.crop_padding=-1"),
        ("trainer.checkpoint_every=0", "trainer.checkpoint_every=0"),
        ("trainer.eval_every=0", "trainer.eval_every=0"),
        ("trainer.label_smoothing=1", "trainer.label_smoothing=1.0"),
        ("task=sleep", "task=sleep"),
        ("format=gguf", "format=gguf"),
        ("format=onnx", "format=onnx"),
        ("weights=m.pt", "weights=m.pt"),
        ("devices.slots=0", "devices.slots=0"),
        ("devices.cpu_slots=0", "devices.cpu_slots=0"),
        ("analysis.l2=0", "analysis.l2=0.0"),
        ("analysis.l2_path=[0.02,2e-2]", "analysis.l2_path=[0.02, 0.02]"),
        ("analysis.memory_gb=-1", "analysis.memory_gb=-1.0"),
        ("+logger.mine=5", "logger.mine=5"),
        ("tune.trials=0", "tune.trials=0"),
        ("runs_dir=", "runs_dir=: "),
        ("weights=", "weights=: "),
        ("dataset.root=", "dataset.root=: "),
        ("optimizer.milestones=0.5", "optimizer.milestones: expected a list, in brackets: "),
    ],
)
def test_values_out_of_range_are_named(override, key):
    with pytest.raises(UserError) as caught:
        make_config(override)
    assert key in str(caught.value)
    assert "expected" in str(caught.value)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    ("overrides", "key"),
    [
        (["optimizer=adamw", "optimizer.betas=[0.9]"], "optimizer.betas=[0.9]"),
        (["optimizer=adamw", "optimizer.betas=[0.9,1]"], "optimizer.betas=[0.9, 1.0]"),
        (["optimizer=adamw", "optimizer.betas=null"], "optimizer.betas=null"),
        (["task=analyze", "weights=m.pt", "analysis.train=true"], "analysis.train=True"),
        (["cluster=slurm", "cluster.grace=-1"], "cluster.grace=-1"),
    ],
)
def test_values_that_do_not_go_together_are_named(overrides, key):
    with pytest.raises(UserError) as caught:
        make_config(*overrides)
    assert f"{key}: expected" in str(caught.value)


TARGET = {"_target_": "nets.net", "name": "mine"}


@pytest.mark.parametrize(
    ("components", "key"),
    [
        ({"dataset": TARGET | {"num_classes": 2, "source": "digits"}}, "dataset.source=digits"),
        ({"arch": TARGET | {"blocks": [1]}}, "arch.blocks=[1]"),
        ({"arch": TARGET | {"widths": [1]}}, "arch.widths=[1]"),
        ({"variant": TARGET | {"head": "standard"}}, "variant.head=standard"),
        ({"arch": TARGET, "variant": TARGET}, "variant._target_=nets.net"),
        ({"arch": "resnet8"}, "arch=resnet8"),
        ({"tune": {"sampler": {"_target_": None}}}, "tune.sampler={'_target_': None}"),
        ({"logger": {"a b": {"_target_": "x"}}}, "logger='a b'"),
    ],
)
def test_components_that_contradict_themselves_are_named(components, key):
    with pytest.raises(UserError) as caught:
        config_from(config_dict(tiny()) | components)
    assert f"{key}: expected" in str(caught.value)


def test_momentum_is_not_accepted_where_it_would_be_ignored():
    with pytest.raises(
        UserError, match=r"optimizer.momentum=0.5: expected null, as adamw has no momentum"
    ):
        make_config("optimizer=adamw", "optimizer.momentum=0.5")


def leaves(node, path=(), free=False):
    """Yield (path, whether it is declared free) of every value of a configuration."""
    for item in dataclasses.fields(node):
        value, is_free = getattr(node, item.name), free or bool(item.metadata.get("unhashed"))
        if dataclasses.is_dataclass(value):
            yield from leaves(value, (*path, item.name), is_free)
        else:
            yield (*path, item.name), is_free


LABELS = {("seed",), ("dataset", "name"), ("arch", "name"), ("variant", "name")}


@pytest.mark.parametrize(("path", "free"), list(leaves(tiny())))
def test_every_value_is_part_of_the_recipe_or_declared_free(path, free):
    config = tiny()
    before, node = recipe_hash(config), copy.deepcopy(config)
    changed = node
    for name in path[:-1]:
        node = getattr(node, name)
    given = {"args": {"depth": 3}, "digests": {"arch.code": "0123abcd"}}
    given |= {"milestones": [0.9], "epochs": 9}
    setattr(node, path[-1], given.get(path[-1], "another value"))
    assert (recipe_hash(changed) == before) == (free or path in LABELS)


def test_a_study_file_sets_what_the_command_line_may(tmp_path):
    (tmp_path / "experiment").mkdir()
    (tmp_path / "experiment" / "mine.yaml").write_text(
        "# @package _global_\nseed: 5\nruns_dir: mine\n"
    )
    words = f"hydra.searchpath=[file://{tmp_path}]", "experiment=mine"
    config = make_config(*words)
    assert (config.seed, config.runs_dir) == (5, "mine")
    assert make_config(*words, "seed=7").seed == 7


@pytest.mark.parametrize(
    "words",
    ["runs_dir=", "dataset.root=", "init.weights=", "task=evaluate weights=",
     "task=predict predict.folder="],
)  # fmt: skip
def test_a_path_that_no_file_can_have_is_one_line(words):
    *others, key = words.split()
    for path in ("x" * 256, "ü" * 128, "xx/" * 1400):
        with pytest.raises(UserError, match=f"{key}{path[:40]}.*: expected at most 255 bytes"):
            tiny(*others, f"{key}'{path}'")
    tiny(*others, f"{key}{'x' * 255}/y")


def test_a_tilde_is_the_home_folder_in_every_path(monkeypatch):
    monkeypatch.setenv("HOME", "/home/me")
    config = tiny(
        "runs_dir='~/runs'",
        "dataset.root='~/data'",
        "task=evaluate",
        "weights='~/model.pt'",
        "logger=tensorboard",
        "logger.tensorboard.folder='~/boards'",
    )
    assert (config.runs_dir, config.dataset.root) == ("/home/me/runs", "/home/me/data")
    assert config.weights == "/home/me/model.pt"
    assert config.logger["tensorboard"]["folder"] == "/home/me/boards"
    assert recipe_hash(config) == recipe_hash(
        tiny("task=evaluate", "weights=/home/me/model.pt", "logger=tensorboard")
    )
    config = tiny("task=predict", "predict.folder='~/new'", "init.weights='~/first.pt'")
    assert (config.predict.folder, config.init.weights) == ("/home/me/new", "/home/me/first.pt")
