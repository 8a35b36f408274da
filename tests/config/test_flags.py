"""The flags of the command line."""

import os
import re

import pytest
from helpers import run_command
from hydra import compose, initialize_config_dir
from hydra.errors import MissingConfigException
from omegaconf import OmegaConf

from resnests import run
from resnests.config.compose import conf_dir, hydras_own, in_one_line, register
from resnests.config.flags import in_hydras_order
from resnests.errors import UserError


@pytest.mark.parametrize(
    ("words", "said"),
    [
        ("--optimizer.lr=0.1 seed=0", "--optimizer.lr=0.1: .* no dashes .*: optimizer.lr=0.1"),
        ("--seed 3", "--seed: .* no dashes .*: seed=VALUE"),
        ("-m --cfg hydra", "--multirun --cfg: expected one of them"),
        ("-m --cfg job seed=0,1", "--multirun --cfg: expected one of them"),
        ("--info -m", "--multirun --info: expected one of them"),
        ("--cfg jobs", "--cfg.*invalid choice: 'jobs'"),
        ("--config-dir", "--config-dir.*expected one argument"),
        ("--resolve", "--resolve: expected --cfg"),
    ],
)
def test_flags_that_hydra_refuses_in_many_lines_are_refused_in_one(words, said):
    with pytest.raises(UserError, match=said) as caught:
        in_hydras_order(words.split())
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    ("words", "meant"),
    [
        ("a=1 -m b=2", "-m a=1 b=2"),
        ("-m a=1,2 ~b", "-m a=1,2 ~b"),
        ("a=1 --cfg job ++seed=-1", "--cfg job a=1 ++seed=-1"),
        ("--info defaults a=1", "--info defaults a=1"),
        ("", ""),
        (
            "--config-path=x/seed=0 --config-name=config",
            "--config-name=config --config-path=CWD/x/seed=0",
        ),
        (
            "-cp ./x a=1 --config-dir ~/c",
            "--config-path=CWD/x --config-dir=/home/me/c a=1",
        ),
        ("--config-path=pkg://x", "--config-path=pkg://x"),
    ],
)
def test_flags_come_first_and_folders_are_absolute(words, meant, monkeypatch):
    monkeypatch.setenv("HOME", "/home/me")
    assert in_hydras_order(words.split()) == meant.replace("CWD", os.getcwd()).split()


def test_one_choice_of_several_that_is_not_there_is_told_which_are(tmp_path):
    (tmp_path / "metrics").mkdir()
    (tmp_path / "metrics" / "mine.yaml").touch()
    register()
    with initialize_config_dir(str(conf_dir()), version_base="1.3"):
        place = f"hydra.searchpath=[file://{tmp_path}]"
        with pytest.raises(MissingConfigException) as caught:
            compose("config", [place, "metrics=[f1,nosuch]"])
    choices = "auroc, balanced_accuracy, brier, ece, f1, mine, top5"
    said = "In 'config': Could not load 'metrics/nosuch'. Available options in 'metrics': "
    assert in_one_line(caught.value) == said + choices


def test_a_file_that_is_no_yaml_is_named_with_the_line(tmp_path, monkeypatch, capsys):
    (tmp_path / "mine.yaml").write_text("dataset:\n  name: mine\n root: x\n")
    monkeypatch.setattr("sys.argv", ["run.py", "seed=0"])
    monkeypatch.setenv(run.FULL_ERROR, "0")
    monkeypatch.setattr(run, "_compose_and_run", lambda: OmegaConf.load(tmp_path / "mine.yaml"))
    with pytest.raises(SystemExit) as end:
        run._main()
    assert end.value.code == 2
    (line,) = capsys.readouterr().err.splitlines()
    assert line.startswith(f"error: {tmp_path}/mine.yaml, line 3: expected YAML (")


@pytest.mark.parametrize(
    ("content", "said"),
    [
        (b"# caf\xe9\nseed: 1\n", "'utf-8' codec can't decode byte 0xe9"),
        (b'seed: "\x07"\n', "unacceptable character #x0007"),
        (b"defaults: 3\n", "defaults must be a list"),
        (b"defaults: [3]\n", "Unsupported type in defaults : int"),
    ],
)
def test_a_file_that_hydra_cannot_load_is_named(tmp_path, content, said):
    (tmp_path / "experiment").mkdir()
    (tmp_path / "experiment" / "mine.yaml").write_bytes(b"# @package _global_\n" + content)
    register()
    with initialize_config_dir(str(conf_dir()), version_base="1.3"):
        words = [f"hydra.searchpath=[file://{tmp_path}]", "experiment=mine"]
        with pytest.raises(Exception, match=re.escape(said)) as caught:
            compose("config", words)
    line = str(hydras_own(caught.value, []))
    assert line.startswith("experiment/mine: expected YAML in UTF-8 as Hydra reads it (")
    assert said in line


def test_a_misspelt_key_of_a_part_is_told_the_nearest():
    said = in_one_line(Exception("Could not override 'optimizer.lrr'."))
    assert said.endswith("(did you mean optimizer.lr?)")


@pytest.mark.parametrize("key", ["dataset@experiment.dataset", "trainer@experiment.trainer"])
def test_an_experiment_without_its_first_line_is_told_so(key):
    said = in_one_line(Exception(f"In 'experiment/mine': Could not override '{key}'."))
    assert said.endswith("first line of its file, without a byte order mark)")
    composing = "In 'experiment/mine': ConfigKeyError raised while composing config:"
    said = in_one_line(Exception(f"{composing}\nKey 'experiment' not in 'Schema'"))
    assert said.endswith("first line of its file, without a byte order mark)")


def test_a_configuration_in_a_relative_folder_is_found(tmp_path):
    """Although its name is that of the file, too."""
    (tmp_path / "mine").mkdir()
    (tmp_path / "mine" / "mine.yaml").write_text("found: 1")
    where = ("--config-path=mine", "--config-name=mine")
    done = run_command("found=2", *where, "--cfg", "job", cwd=tmp_path)
    assert (done.returncode, done.stdout) == (0, "found: 2\n"), done.stderr


def test_a_key_with_dashes_is_one_line(tmp_path):
    done = run_command("--optimizer.lr=0.1", cwd=tmp_path)
    assert done.returncode == 2
    assert done.stderr == (
        "error: --optimizer.lr=0.1: expected no dashes before a key: optimizer.lr=0.1\n"
    )
