"""What a record has for those who must explain a number later."""

import importlib.metadata
import os
import shutil
import subprocess
import sys

import numpy as np
import pytest
import torch
from helpers import REPOSITORY, tiny

from resnests.config.schema import config_dict, config_from
from resnests.data import splits as data
from resnests.runs.directory import RunDirectory
from resnests.tasks import run as tasks_run
from resnests.tasks.experiment import run_experiment
from resnests.training import provenance
from resnests.training.provenance import brought_versions, collect, own_repositories


@pytest.fixture(autouse=True)
def _plain_git(tmp_path, monkeypatch):
    """Have git as on a machine without any settings, where tmp_path is in no repository: in a hook
    it would otherwise commit to the user's.
    """
    for name in [name for name in os.environ if name.startswith("GIT_")]:
        monkeypatch.delenv(name)
    monkeypatch.setenv("GIT_CONFIG_GLOBAL", os.devnull)
    monkeypatch.setenv("GIT_CONFIG_NOSYSTEM", "1")
    monkeypatch.setenv("GIT_CEILING_DIRECTORIES", str(tmp_path.parent))


def git(folder, *arguments):
    if shutil.which("git") is None:
        pytest.skip("git is not installed")
    who = ("-c", "user.name=me", "-c", "user.email=me@here")
    command = ["git", "-C", str(folder), *who, *arguments]
    return subprocess.run(command, check=True, capture_output=True, text=True).stdout.strip()


@pytest.fixture
def repository(tmp_path, monkeypatch):
    """Make a repository of a user's with a network in it, which is the working directory."""
    folder = tmp_path / "mine"
    folder.mkdir()
    (folder / "net_of_mine.py").write_text("import torch\n\ndef net(num_classes):\n    return 1\n")
    git(folder, "init")
    git(folder, "add", ".")
    git(folder, "commit", "-m", "first")
    monkeypatch.chdir(folder)
    monkeypatch.syspath_prepend(folder)
    monkeypatch.delitem(sys.modules, "net_of_mine", raising=False)
    return folder


TARGETS = ["net_of_mine.net"]


def test_the_users_own_commit_is_on_record(repository):
    head = git(repository, "rev-parse", "HEAD")
    expected = {"repository": str(repository.resolve()), "commit": head, "dirty": False}
    assert own_repositories(TARGETS) == [expected]
    (repository / "runs").mkdir()
    (repository / "runs" / "new").touch()  # results are no change of the code
    assert own_repositories(TARGETS) == [expected]
    (repository / "net_of_mine.py").write_text("def net(num_classes):\n    return 2\n")
    assert own_repositories(TARGETS) == [expected | {"dirty": True}]


def test_a_source_that_git_does_not_know_makes_the_repository_dirty(repository):
    (repository / "fresh_net.py").write_text("def net(num_classes):\n    return 2\n")
    assert [found["dirty"] for found in own_repositories(TARGETS)] == [False]
    assert [found["dirty"] for found in own_repositories(["fresh_net.net"])] == [True]
    git(repository, "config", "status.showUntrackedFiles", "no")
    assert [found["dirty"] for found in own_repositories(["fresh_net.net"])] == [True]


def test_in_a_hook_of_another_repository_the_commit_is_that_of_the_folder(
    repository, tmp_path, monkeypatch
):
    head = git(repository, "rev-parse", "HEAD")
    other = tmp_path / "other"
    git(tmp_path, "init", str(other))
    git(other, "commit", "--allow-empty", "-m", "other")
    monkeypatch.setenv("GIT_DIR", str(other / ".git"))
    assert [found["commit"] for found in own_repositories(TARGETS)] == [head]
    monkeypatch.chdir(tmp_path)
    assert own_repositories([]) == []


def test_a_part_from_another_repository_than_the_working_directory_has_both(
    repository, tmp_path, monkeypatch
):
    other = tmp_path / "other"
    other.mkdir()
    git(other, "init")
    (other / "readme").touch()
    git(other, "add", ".")
    git(other, "commit", "-m", "other")
    monkeypatch.chdir(other)
    names = [found["repository"] for found in own_repositories(TARGETS)]
    assert names == [str(other.resolve()), str(repository.resolve())]


def test_outside_of_repositories_in_an_empty_one_and_in_ours_there_is_nothing(
    tmp_path, monkeypatch
):
    monkeypatch.chdir(tmp_path)
    assert own_repositories([]) == []
    git(tmp_path, "init")
    assert own_repositories([]) == []
    monkeypatch.chdir(REPOSITORY)
    assert own_repositories([]) == []


def test_a_package_that_is_installed_inside_of_a_repository_has_not_its_commit(
    repository, monkeypatch
):
    """A package lies in project/.venv/lib/..., and the project's commit is the user's own."""
    inside = repository / "venv" / "provenance.py"
    inside.parent.mkdir()
    inside.touch()
    monkeypatch.setattr(provenance, "__file__", str(inside))
    assert provenance.code_version.__wrapped__() == (None, None)
    assert [found["repository"] for found in own_repositories([])] == [str(repository.resolve())]


@pytest.mark.slow
def test_the_distributions_of_brought_parts_have_their_versions_on_record():
    installed = importlib.metadata.version("torchvision")
    assert brought_versions(["torchvision.models.resnet18", "resnests.x"]) == {
        "torchvision": installed
    }
    assert brought_versions(["sklearn.svm.SVC"]) == {
        "scikit-learn": importlib.metadata.version("scikit-learn")
    }
    assert brought_versions(["no_distribution_of_mine.net"]) == {}
    tree = config_dict(tiny())
    tree["optimizer"] = {"_target_": "sklearn.svm.SVC", "lr": 1, "nested": {"_target_": "yaml.x"}}
    versions = collect(torch.device("cpu"), config_from(tree)).versions
    assert {"scikit-learn", "PyYAML", "python", "torch"} <= versions.keys()


def test_classes_and_their_images_in_each_split_are_on_record(tmp_path, monkeypatch):
    config = tiny("trainer.epochs=1", "dataset.val_fraction=0.25", f"runs_dir={tmp_path}")
    splits = data.load(config.dataset)
    names = tuple("abcdefghij")

    def load_for(config):
        object.__setattr__(splits.train, "classes", names)
        return splits

    monkeypatch.setattr(tasks_run, "load_for", load_for)
    assert run_experiment(config) == "complete"
    record = RunDirectory.of(config).read_record()
    assert record.classes == list(names)
    assert record.image_size == list(splits.train.images.shape[1:3])
    assert record.images.keys() == {"train", "val", "test"}
    for name, counts in record.images.items():
        labels = getattr(splits, name).labels
        assert counts == [int(np.sum(labels == label)) for label in range(10)]
    assert sum(map(sum, record.images.values())) == 96 + 40
