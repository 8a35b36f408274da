"""The digest of a user's images: the same at another path, another one for whatever is edited."""

import shutil

import numpy as np
import pytest
from data_images import images, pictures, write_classes, write_npz, write_parts
from helpers import make_config, tiny
from PIL import Image

from resnests.config.schema import part_from
from resnests.data.digest import dataset_digest
from resnests.data.splits import load, read
from resnests.errors import UserError


def rename(root, old, new):
    for part in ("train", "test"):
        (root / part / old).rename(root / part / new)


def swap(one, other):
    content = one.read_bytes()
    one.write_bytes(other.read_bytes())
    other.write_bytes(content)


EDITS = {
    "another picture": lambda root: Image.fromarray(pictures(1, 10, 12, 3)[0]).save(
        root / "train" / "ant" / "000.png"
    ),
    "one more": lambda root: shutil.copy(
        root / "train" / "ant" / "000.png", root / "train" / "ant" / "9.png"
    ),
    "one less": lambda root: (root / "test" / "bee" / "000.png").unlink(),
    "relabelled": lambda root: (root / "train" / "ant" / "000.png").rename(
        root / "train" / "bee" / "000a.png"
    ),
    "exchanged": lambda root: swap(
        root / "train" / "ant" / "000.png", root / "train" / "bee" / "000.png"
    ),
    "from test to train": lambda root: (root / "test" / "ant" / "001.png").rename(
        root / "train" / "ant" / "9.png"
    ),
    "a class renamed": lambda root: rename(root, "ant", "asp"),
    "order": lambda root: swap(
        root / "train" / "cat" / "000.png", root / "train" / "cat" / "001.png"
    ),
}


@pytest.mark.parametrize("edit", EDITS)
def test_every_edit_of_a_folder_is_another_digest(tmp_path, edit):
    write_parts(tmp_path)
    before = dataset_digest(images(tmp_path))
    assert dataset_digest(images(tmp_path)) == before
    EDITS[edit](tmp_path)
    assert dataset_digest(images(tmp_path)) != before
    with pytest.raises(UserError, match=r"dataset=mine: the images changed since the sweep was"):
        load(images(tmp_path), before)


def test_the_place_and_what_is_no_data_are_no_part_of_it(tmp_path):
    write_parts(tmp_path / "one")
    shutil.copytree(tmp_path / "one", tmp_path / "other")
    (tmp_path / "other" / "train" / ".git").mkdir()
    (tmp_path / "other" / "train" / "ant" / "notes.txt").write_text("no image")
    digest = dataset_digest(images(tmp_path / "one"))
    assert digest == dataset_digest(images(tmp_path / "other"))
    assert load(images(tmp_path / "other"), digest)
    few = images(tmp_path / "one", train_limit=3, val_fraction=0.3, num_classes=3)
    assert dataset_digest(few) == digest  # these are part of the recipe by themselves


@pytest.mark.parametrize("size", [None, 8])
def test_a_run_reads_what_the_digest_is_of(tmp_path, size, monkeypatch):
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    write_classes(tmp_path / "data", 6)
    config = images(tmp_path / "data", size=size)
    for _ in range(2):  # the second time from the cache
        assert read(config).digest == dataset_digest(config)


@pytest.mark.parametrize(
    "changed",
    [
        {"train_labels": np.arange(6)[::-1] % 3},
        {"train_images": np.zeros((6, 8, 8), np.uint8)},
        {"test_images": np.zeros((3, 8, 8, 3), np.uint8), "train_images": pictures(6, 8, 8, 3)},
    ],
)
def test_arrays_in_an_npz_are_told_apart(tmp_path, changed):
    sound = {"train_images": pictures(6, 8, 8), "test_images": pictures(3, 8, 8)}
    one = dataset_digest(images(write_npz(tmp_path / "one.npz", **sound)))
    assert one == dataset_digest(images(write_npz(tmp_path / "two.npz", **sound)))
    short = {"train_labels": (np.arange(6) % 3).astype(np.int16)[:, None]}
    assert one == dataset_digest(images(write_npz(tmp_path / "two.npz", **sound, **short)))
    other = write_npz(tmp_path / "other.npz", **(sound | changed))
    assert one != dataset_digest(images(other))
    with pytest.raises(UserError, match="the images changed since"):
        load(images(other), one)


@pytest.mark.slow
def test_what_a_callable_returns_has_a_digest_too(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "digested.py").write_text(
        "import numpy as np\n"
        "print('loading')\n"
        "def load(value):\n"
        "    part = np.full((4, 8, 8), value, 'uint8'), np.arange(4) % 2\n"
        "    return {'train': part, 'test': part, 'classes': ['no', 'yes']}\n"
    )
    values = {"_target_": "digested.load", "name": "mine"}
    one, other = (part_from("dataset", values | {"value": value}) for value in (1, 2))
    assert dataset_digest(one) == read(one).digest != dataset_digest(other)
    assert load(one).train.classes == ("no", "yes")
    (tmp_path / "digested.py").write_text("def load(value):\n    raise KeyError(value)\n")
    with pytest.raises(UserError, match=r"dataset._target_=digested.load: KeyError: 1") as caught:
        dataset_digest(one)
    assert "\n" not in str(caught.value)


def test_data_with_checksums_have_none():
    for name in ("cifar10", "digits", "fashion_mnist", "kmnist", "svhn"):
        assert dataset_digest(make_config(f"dataset={name}").dataset) is None


def test_a_run_that_loads_other_images_than_were_planned_fails(tmp_path):
    from resnests.config.recipe import IMAGES
    from resnests.tasks.experiment import run_experiment

    config = tiny(f"runs_dir={tmp_path / 'runs'}")
    config.dataset = images(write_parts(tmp_path / "data"))
    config.digests = {IMAGES: "0" * 16}
    with pytest.raises(UserError, match="the images changed since the sweep was planned"):
        run_experiment(config)
