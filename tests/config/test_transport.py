"""Configuration arrives as it was written, or is refused in one line before anything starts."""

import json
import os
import shlex

import pytest
from helpers import REPOSITORY, TINY, make_config, run_command, tiny
from hydra.core.override_parser.overrides_parser import OverridesParser
from hydra.core.utils import configure_log

from resnests.config.compose import hydras_own, require_used, require_words
from resnests.config.recipe import recipe_hash
from resnests.config.schema import config_dict, config_from, part_from
from resnests.errors import UserError


def own(**values):
    tree = config_dict(tiny())
    return config_from(tree | {"arch": {"name": "mine", "_target_": "nets.net"} | values})


@pytest.mark.parametrize(
    ("values", "said"),
    [
        ({"table": {1: 4}}, r"arch.table.1=4: expected text as a key, such as '1' in quotes"),
        ({"table": {1: 4, "all": 8}}, "arch.table.1=4: expected text as a key"),
        ({"deep": [{"a": {True: 1}}]}, r"arch.deep\[0\].a.True=1: expected text as a key"),
        ({"ceiling": float("inf")}, "arch.ceiling=inf: expected a finite number"),
        ({"list": [1.0, float("nan")]}, r"arch.list\[1\]=nan: expected a finite number"),
        ({"raw": b"x"}, "arch.raw=b'x': expected text, a number"),
        ({"no name": 1}, "arch.no name=1: expected the name of an argument"),
        ({"_partial_": True}, "arch._partial_=True: expected the name of an argument"),
        ({"name": 202401}, "arch.name=202401: expected text, in quotes"),
        ({"name": "n" * 300}, r"arch.name='n{40}\.\.\.': expected at most 200 bytes"),
    ],
)
def test_what_json_does_not_carry_is_refused_with_its_key(values, said):
    with pytest.raises(UserError, match=said) as caught:
        own(**values)
    assert "\n" not in str(caught.value)


def test_what_json_carries_arrives():
    values = {"table": {"1": 4}, "list": [1, 2.5, None, True, "x"], "tiny": 1e-300}
    assert own(**values).arch.args == values
    assert json.loads(json.dumps(config_dict(own(**values))))["arch"]["table"] == {"1": 4}


def test_an_infinity_anywhere_is_refused():
    for word in ("optimizer.lr=inf", "analysis.l2=inf", "+logger.mine.x=inf"):
        with pytest.raises(UserError, match=r"=inf: expected a finite number"):
            make_config(word)


def test_a_whole_number_is_the_same_as_a_float_where_the_key_is_a_float():
    assert recipe_hash(make_config("optimizer.lr=1")) == recipe_hash(
        make_config("optimizer.lr=1.0")
    )
    means = [make_config(f"dataset.mean={mean}") for mean in ("[0,0,1]", "[0.0,0.0,1.0]")]
    assert len(set(map(recipe_hash, means))) == 1
    assert recipe_hash(own(width=16)) != recipe_hash(own(width=16.0)), "range() takes one of them"


def test_a_partial_optimizer_is_what_is_made_of_all():
    values = {"_target_": "torch.optim.RMSprop", "lr": 0.1}
    assert part_from("optimizer", values | {"_partial_": True}) == part_from("optimizer", values)
    schedule = {"_target_": "torch.optim.lr_scheduler.ExponentialLR", "per": "epoch", "gamma": 0.9}
    made = [
        part_from("optimizer", values | {"schedule": schedule | more})
        for more in ({}, {"_partial_": True})
    ]
    assert made[0] == made[1]


@pytest.mark.parametrize(
    ("word", "said"),
    [
        ("arch=null", "arch=null: expected names of files in arch/, in quotes where"),
        ("arch=resnet8,null", "arch=resnet8,null: expected names"),
        ("logger=5", "logger=5: expected names of files in logger/"),
        ("logger=[tensorboard,5]", "logger=.*5.: expected names of files in logger/"),
        ("metrics=[f1],[[ece]]", "expected names of files in metrics/"),
        ("arch=[resnet20,resnet8]", "arch=.resnet20,resnet8.: expected one name; with -m and"),
        ("augment=none,[cutout,jitter]", "augment=none,.*: expected one name"),
        ("arch=1_1_1", "arch=1_1_1: expected names"),
        ("optimizer.clip_norm=choice(null,1.0)", r"expected null outside of choice\(\): optim"),
        ("arch.name=2024_01", "arch.name=2024_01: expected text, which needs quotes"),
        ("arch.name=111,1_1_1", "arch.name=111,1_1_1: expected text"),
        ("tune.study=1e3", "tune.study=1e3: expected text"),
        ("cluster.account=2024_01", "cluster.account=2024_01: expected text, which needs quotes"),
        ("logger.wandb.project=2024_01", "logger.wandb.project=2024_01: expected text"),
        ("hydra.launcher.account=1_1", "hydra.launcher.account=1_1: expected text"),
        ("runs_dir=2024_01", """runs_dir=2024_01: expected .*: 'runs_dir="2024_01"'"""),
        ("runs_dir=~/x", """runs_dir=~/x: expected quotes: 'runs_dir="~/x"'"""),
        (
            "weights=runs/digits/seed=0/model.pt",
            """expected quotes: 'weights="runs/digits/seed=0/model.pt"'""",
        ),
        ("dataset.root=/d/größe", """expected quotes: 'dataset.root="/d/größe"'"""),
        ("dataset.root=/d/a(b)", r"""expected quotes: 'dataset.root="/d/a\(b\)"'"""),
        ("+dataset.path=/d/a&b", r"""expected quotes: '\+dataset.path="/d/a&b"'"""),
        ("hydra/launcher=null", "hydra/launcher=null: expected names of files in hydra/launcher/"),
        ("+hydra/launcher=5", "hydra/launcher=5: expected names"),
        ("hydra/sweeper={a:1}", "hydra/sweeper={a:1}: expected names"),
        ("hydra=null", "hydra=null: expected names of files in hydra/"),
        ("~hydra/launcher", "~hydra/launcher: expected another choice"),
    ],
)
def test_a_word_that_hydra_takes_for_something_else_is_refused(word, said):
    with pytest.raises(UserError, match=said) as caught:
        require_words(["-m", word])
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    "name", ["my leaves", 'größe & "so"', "it's", "a=b", "日本", 'a\\"b', "(1)", "~/ü"]
)
def test_a_value_is_read_as_it_was_typed_once_it_has_the_quotes_that_an_error_names(name):
    parse = OverridesParser.create().parse_override
    try:
        require_words([f"dataset.root={name}"])
        word = f"dataset.root={name}"
    except UserError as error:
        word = shlex.split(str(error).partition("expected quotes: ")[2])[0]
    require_words([word])
    assert parse(word).value() == name


def test_the_paths_in_the_documentation_are_quoted_as_they_must_be():
    for file, typed in (("README.md", "my leaves"), ("docs/own_parts.md", '"schöne Blumen (2)"')):
        lines, expected = (REPOSITORY / file).read_text().splitlines(), typed.strip('"')
        (line,) = [line for line in lines if f"'dataset.root={typed}'" in line]
        words = shlex.split(line, comments=True)
        require_words(words[2:])
        assert make_config(*words[2:]).dataset.root == expected


def test_a_word_that_was_the_end_of_another_is_named_with_the_quotes():
    mend = """leaves: expected KEY=VALUE; .* quotes: 'dataset.root="/data/my leaves"'$"""
    with pytest.raises(UserError, match=mend):
        require_words(["dataset=images", "dataset.root=/data/my", "leaves", "seed=0"])
    require_words(["--config-dir", "leaves", "dataset.root=/data/my", "~logger"])


@pytest.mark.parametrize(
    ("words", "said"),
    [
        ("seed 3", "seed: expected KEY=VALUE$"),
        ("--config-dir=conf seed 3", "seed: expected KEY=VALUE$"),
        ("seed:3", "seed:3: expected KEY=VALUE"),
        ("-m optimizer.lr = 0.1", "optimizer.lr: expected KEY=VALUE"),
        ("-m seed=0, 1 2", "1: expected KEY=VALUE; .* needs quotes: 'seed=0, 1 2'"),
        ("metrics=[f1, ece] seed=0", r"ece\]: expected KEY=VALUE; .*: 'metrics=\[f1, ece\]'"),
        ("-m seed=range(3", r"seed=range\(3: expected a value as Hydra reads it \(no viable"),
    ],
)
def test_words_that_are_no_key_with_a_value_are_named(words, said):
    with pytest.raises(UserError, match=f"^{said}"):
        require_words(words.split())


def test_what_hydra_makes_of_words_of_its_own_is_one_line():
    with pytest.raises(AssertionError) as caught:
        configure_log({}, None)
    line = hydras_own(caught.value, ["seed=0", "hydra.verbose=null"])
    assert str(line).startswith("hydra.verbose=null: refused by Hydra (AssertionError")
    assert hydras_own(caught.value, ["seed=0"]) is None
    with pytest.raises(KeyError) as caught:
        {}["ours"]
    assert hydras_own(caught.value, ["hydra.verbose=null"]) is None


def test_words_that_mean_what_they_say_pass():
    text = "runs_dir=2024", 'weights="runs/seed=0/model.pt"', "arch.name='1_1'", "tune.study=my_1"
    numbers = "trainer.epochs=1_000", "seed=range(3)", "optimizer.clip_norm=null,1.0"
    choices = "arch=resnet8,resnet20", "logger=[tensorboard],[wandb]", "arch=glob(*)"
    words = ["-m", "--cfg=job", "optimizer.lr=tag(log, interval(1e-3, 1))"]
    require_words([*words, *text, *numbers, *choices])


def test_an_option_of_another_task_is_refused_where_it_was_typed():
    require_used(["seed=0", "analysis.l2=1", "+analysis.train=true"], "analyze")
    require_used(["tune.trials=5"], "tune")
    for word in ("tune.trials=5", "+tune.pruner.x=1", "tune={trials:1}", "analysis.l2=1"):
        for task in ("train", "evaluate"):
            with pytest.raises(UserError, match=f": expected task=.*, not task={task}$"):
                require_used(["seed=0", word], task)


@pytest.mark.slow
def test_both_ways_to_start_ask_for_whom_the_options_are(tmp_path):
    """One run and a sweep; what a file brings for another task stays allowed."""
    (tmp_path / "experiment").mkdir()
    own = "# @package _global_\nanalysis: {l2: 0.1}\ntune: {trials: 5}\n"
    (tmp_path / "experiment" / "mine.yaml").write_text(own)
    words = (*TINY, f"--config-dir={tmp_path}", "experiment=mine", "sweep.dry_run=true")
    for mode in ([], ["-m"]):
        done = run_command(*mode, *words, "analysis.l2=1", cwd=tmp_path)
        said = "error: analysis.l2=1: expected task=analyze, whose option it is, not task=train\n"
        assert (done.returncode, done.stderr) == (2, said)
    assert run_command(*words, cwd=tmp_path).returncode == 0


@pytest.mark.parametrize("word", ['runs_dir="r\udce9"', "--config-dir=r\udce9", "r\udce9"])
def test_a_word_that_is_no_text_is_one_line(word):
    """Records, which hold the command, are in UTF-8."""
    with pytest.raises(UserError, match=r"r\\udce9.*: expected text in UTF-8"):
        require_words([word])


def test_a_folder_whose_name_is_no_text_is_one_line(monkeypatch):
    monkeypatch.setattr(os, "getcwd", lambda: "/data/r\udce9")
    with pytest.raises(UserError, match=r"^/data/r\\udce9: expected text in UTF-8"):
        require_words(["seed=0"])


def test_a_folder_that_was_deleted_is_one_line(monkeypatch):
    def gone():
        raise FileNotFoundError

    monkeypatch.setattr(os, "getcwd", gone)
    with pytest.raises(UserError, match="the folder of the command was deleted"):
        require_words(["seed=0"])
