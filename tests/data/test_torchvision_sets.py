"""Data sets of torchvision, and classes like them, by their `_target_` alone."""

import sys

import numpy as np
import pytest

from resnests.config.schema import part_from
from resnests.data.splits import load
from resnests.environment import begin_dry_run
from resnests.errors import UserError

SETS = """
from PIL import Image
from torchvision.datasets import VisionDataset

class Base(VisionDataset):
    classes = ["dark", "light"]

    def __init__(self, root, count, sizes=(8,)):
        super().__init__(root)
        self.count, self.sizes = count, sizes

    def __len__(self):
        return self.count

    def __getitem__(self, index):
        size = self.sizes[index % len(self.sizes)]
        return Image.new("L", (size, size), 10 + index % 2 * 200), index % 2

class Flagged(Base):
    def __init__(self, root, train=True, download=False, **more):
        assert download
        super().__init__(root, 8 if train else 4, **more)

class Named(Base):
    def __init__(self, root, split="train"):
        super().__init__(root, {"train": 6, "valid": 2}[split])

class Both(Flagged):  # as EMNIST
    def __init__(self, root, split, **more):
        assert split == "letters"
        super().__init__(root, **more)

class Neither(Base):
    def __init__(self, root):
        super().__init__(root, 3)

class Text(Flagged):
    def __getitem__(self, index):
        return "a word", 0
"""


@pytest.fixture(autouse=True)
def _module(tmp_path, monkeypatch):
    (tmp_path / "sets.py").write_text(SETS)
    monkeypatch.chdir(tmp_path)  # the place of dataset.root
    monkeypatch.syspath_prepend(tmp_path)
    monkeypatch.delitem(sys.modules, "sets", raising=False)


def dataset(target, **values):
    return part_from("dataset", {"name": "mine", "_target_": f"sets.{target}"} | values)


def test_a_class_with_train_is_read_as_rgb_with_the_names_of_its_classes():
    splits = load(dataset("Flagged"))
    assert splits.train.images.shape == (8, 8, 8, 3)
    assert splits.test.labels.tolist() == [0, 1, 0, 1]
    assert splits.train.classes == ("dark", "light")
    assert np.unique(splits.train.images).tolist() == [10, 210]


def test_splits_have_the_names_that_the_yaml_says():
    assert len(load(dataset("Named", test_split="valid")).test) == 2
    with pytest.raises(UserError, match="KeyError: 'test'"):
        load(dataset("Named"))


def test_what_a_class_hands_on_to_its_base_is_given():
    splits = load(dataset("Both", split="letters"))
    assert (len(splits.train), len(splits.test)) == (8, 4)


def test_a_folder_that_only_reads_needs_no_lock(tmp_path, monkeypatch):
    monkeypatch.setattr("os.access", lambda path, how: False)
    assert len(load(dataset("Flagged", root=str(tmp_path))).train) == 8
    assert list(tmp_path.glob(".*.lock")) == []


def test_a_dry_run_downloads_nothing():
    begin_dry_run()
    with pytest.raises(UserError, match="AssertionError"):
        load(dataset("Flagged"))


def test_images_of_several_sizes_are_scaled_where_a_size_is_given():
    with pytest.raises(UserError, match=r"images of several sizes; dataset.size=64 makes"):
        load(dataset("Flagged", sizes=[8, 12]))
    assert load(dataset("Flagged", sizes=[8, 12], size=6)).train.images.shape == (8, 6, 6, 3)


@pytest.mark.parametrize(
    ("target", "values", "said"),
    [
        ("Neither", {}, "sets.Neither: expected a class with a parameter train or split"),
        ("Text", {}, "sets.Text: train: expected PIL images, not str"),
        ("Both", {"train_split": "letters"}, "dataset.train_split=letters: expected none"),
        ("Flagged", {"size": 0}, "dataset.size=0: expected at least 1 pixel"),
        ("Flagged", {"download": False}, "AssertionError"),
    ],
)
def test_what_does_not_fit_is_one_line(target, values, said):
    with pytest.raises(UserError, match=said) as caught:
        load(dataset(target, **values))
    assert "\n" not in str(caught.value)
