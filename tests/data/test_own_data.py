"""Images that a user brings: by a callable, from folders, from an .npz file; and torchvision's."""

import hashlib
import sys

import numpy as np
import pytest
from data_images import images, pictures, write_classes
from helpers import make_config
from PIL import Image

from resnests.config.schema import part_from
from resnests.data.splits import load, prepare, with_statistics
from resnests.errors import UserError


def test_the_pictures_of_a_test_depend_on_no_test_before_it():
    assert np.array_equal(pictures(2, 4, 4), pictures(2, 4, 4))
    assert not np.array_equal(pictures(2, 4, 4), pictures(2, 4, 4, name="another"))


def test_a_folder_with_a_train_and_a_test_part(tmp_path):
    write_classes(tmp_path / "train", 4)
    write_classes(tmp_path / "test", 2)
    (tmp_path / "train" / "ant" / "notes.txt").write_text("no image")
    splits = load(images(tmp_path))
    assert splits.train.images.shape == (12, 10, 12, 3)
    assert splits.train.labels.tolist() == [0] * 4 + [1] * 4 + [2] * 4
    assert splits.test.labels.tolist() == [0, 0, 1, 1, 2, 2]
    with Image.open(tmp_path / "train" / "bee" / "000.png") as picture:
        assert np.array_equal(splits.train.images[4], np.asarray(picture))


def test_a_folder_of_classes_gives_every_fifth_image_to_the_test(tmp_path):
    write_classes(tmp_path, 10)
    splits = load(images(tmp_path))
    assert (len(splits.train), len(splits.test)) == (24, 6)
    assert np.bincount(splits.test.labels).tolist() == [2, 2, 2]


@pytest.mark.parametrize("names", [("train_images", "train_labels"), ("x_train", "y_train")])
def test_an_npz_file_in_either_spelling(tmp_path, names):
    first, second = names
    other = [name.replace("train", "test") for name in names]
    arrays = {first: pictures(6, 8, 8), second: np.arange(6)[:, None] % 3}
    arrays |= {other[0]: pictures(3, 8, 8), other[1]: np.arange(3)}
    np.savez(tmp_path / "mine.npz", **arrays)
    splits = load(images(tmp_path / "mine.npz"))
    assert splits.train.images.shape == (6, 8, 8, 3)
    assert np.array_equal(splits.train.images[..., 2], arrays[first])
    assert splits.test.labels.tolist() == [0, 1, 2]


def spoil(root, how: str):
    if how == "sizes":
        Image.fromarray(pictures(1, 9, 9, 3)[0]).save(root / "cat" / "odd.png")
    elif how == "cut":
        path = root / "ant" / "000.png"
        path.write_bytes(path.read_bytes()[:60])
    elif how == "text":
        (root / "ant" / "000.png").write_text("no image")
    elif how == "classes":
        for folder in ("bee", "cat"):
            for path in (root / folder).iterdir():
                path.unlink()
            (root / folder).rmdir()
    elif how == "few":
        for path in root.glob("*/*"):
            if path.name > "001.png":
                path.unlink()
    return root


@pytest.mark.parametrize(
    ("how", "said"),
    [
        ("sizes", r"odd.png is 9x9, but .*ant/000.png is 12x10: expected .* or dataset.size=64"),
        ("cut", "000.png is cut short, corrupt or no image"),
        ("text", r"000.png is cut short, corrupt or no image \(it is none of PNG, JPEG, BMP"),
        ("classes", "expected a sub-folder for each of at least two classes"),
        ("few", "expected at least five images in a class"),
    ],
)
def test_what_is_wrong_with_a_folder_is_named(tmp_path, how, said):
    write_classes(tmp_path, 6)
    with pytest.raises(UserError, match=said):
        load(images(spoil(tmp_path, how)))


def test_a_place_without_images_is_named(tmp_path):
    with pytest.raises(UserError, match=r"dataset.root=.*nowhere: .*but there is nothing at /.*re"):
        prepare(images(tmp_path / "nowhere"))
    (tmp_path / "data.zip").touch()
    with pytest.raises(UserError, match=r"dataset.root=.*zip: expected a folder .* is a file"):
        prepare(images(tmp_path / "data.zip"))


@pytest.mark.parametrize(
    ("damage", "said"),
    [("cut", "cut short, corrupt"), ("names", "expected arrays train_images"), ("objects", "cut")],
)
def test_what_is_wrong_with_an_npz_is_named(tmp_path, damage, said):
    path = tmp_path / "mine.npz"
    arrays = {name: pictures(4, 8, 8, name=name) for name in ("train_images", "test_images")}
    arrays |= {name: np.arange(4) % 3 for name in ("train_labels", "test_labels")}
    if damage == "names":
        arrays = {"a": np.arange(3)}
    if damage == "objects":  # a pickle, which is never opened
        arrays["train_images"] = np.array([{}, {}, {}, {}], dtype=object)
    np.savez(path, **arrays)
    if damage == "cut":
        path.write_bytes(path.read_bytes()[:200])
    with pytest.raises(UserError, match=said):
        load(images(path))


@pytest.fixture
def module(tmp_path, monkeypatch):
    """Write a module `mydata` with the given return value of its load(root)."""

    def write(returned: str):
        (tmp_path / "mydata.py").write_text(
            f"import numpy as np\ndef load(root, size=6):\n    return {returned}\n"
        )
        monkeypatch.syspath_prepend(tmp_path)
        monkeypatch.delitem(sys.modules, "mydata", raising=False)
        values = {"_target_": "mydata.load", "name": "mine", "num_classes": 3}
        return part_from("dataset", values | {"root": "some/where", "size": 5})

    return write


PAIR = "(np.zeros((4, size, size), 'uint8'), [0, 1, 2, 0])"


def test_a_callable_gives_arrays_and_takes_root_and_its_arguments(module):
    splits = load(module(f"{{'train': {PAIR}, 'test': {PAIR}}} if root == 'some/where' else None"))
    assert splits.train.images.shape == (4, 5, 5, 3)
    assert splits.test.labels.tolist() == [0, 1, 2, 0]


def test_what_a_callable_returns_beside_train_and_test_is_named_as_not_read(module):
    returned = f"{{'train': {PAIR}, 'test': {PAIR}, 'val': {PAIR}, 'classes': list('abc')}}"
    assert load(module(returned)).notes == ("not read: val",)


@pytest.mark.parametrize(
    ("returned", "said"),
    [
        ("[1, 2]", "expected it to return"),
        (f"{{'train': {PAIR}, 'Test': {PAIR}}}", r"not dict with the keys \['train', 'Test'\]"),
        (f"{{'train': 3, 'test': {PAIR}}}", "train: expected a pair of arrays"),
        (
            f"{{'train': {PAIR}, 'test': (np.zeros((4, 5, 5)), [0, 1, 2, 0])}}",
            "test: expected uint8 images of shape .* not float64",
        ),
        (
            f"{{'train': {PAIR}, 'test': (np.zeros((4, 5, 5), 'uint8'), [0, 1])}}",
            r"test: expected integer labels of shape \(4,\)",
        ),
        (
            f"{{'train': {PAIR}, 'test': (np.zeros((1, 4, 4), 'uint8'), [1])}}",
            "images of one size in train and test",
        ),
        (
            f"{{'train': {PAIR}, 'test': (np.zeros((1, 5, 5), 'uint8'), [-1])}}",
            "labels from 0 up, not -1",
        ),
        (
            f"{{'train': {PAIR}, 'test': (np.zeros((1, 5, 5), 'uint8'), [7])}}",
            "dataset.num_classes=3: expected 8, as the labels go from 0 to 7; or null",
        ),
    ],
)
def test_what_a_callable_returns_is_checked(module, returned, said):
    with pytest.raises(UserError, match=said):
        load(module(returned))


def test_mean_and_std_are_measured_where_they_are_not_given(tmp_path):
    write_classes(tmp_path, 10)
    config = images(tmp_path)
    train = load(config).train
    measured = with_statistics(config, train)
    scaled = train.images.astype(np.float64) / 255
    assert np.allclose(measured.mean, scaled.mean((0, 1, 2)), rtol=1e-12)
    assert np.allclose(measured.std, scaled.std((0, 1, 2)), rtol=1e-9)
    given = images(tmp_path, mean=[0.5, 0.5, 0.5], std=[0.2, 0.2, 0.2])
    known = with_statistics(given, train)
    assert (known.mean, known.std, known.num_classes) == (given.mean, given.std, 3)


def test_images_of_one_colour_cannot_be_normalised(module):
    config = module(f"{{'train': {PAIR}, 'test': {PAIR}}}")
    with pytest.raises(UserError, match="one colour"):
        with_statistics(config, load(config).train)


def test_svhn_is_read_from_its_own_format(tmp_path, monkeypatch):
    from scipy.io import savemat
    from torchvision.datasets import SVHN

    listed = {}
    for part, count in (("train", 12), ("test", 5)):
        path = tmp_path / f"{part}_32x32.mat"
        labels = (np.arange(count) % 10 + 1)[:, None]  # 10 stands for the digit 0
        savemat(path, {"X": pictures(32, 32, 3, count), "y": labels})
        listed[part] = ["", path.name, hashlib.md5(path.read_bytes()).hexdigest()]
    monkeypatch.setattr(SVHN, "split_list", listed)
    config = make_config("dataset=svhn", f"dataset.root={tmp_path}").dataset
    splits = load(config)
    assert splits.train.images.shape == (12, 32, 32, 3)
    assert splits.train.labels[:10].tolist() == [1, 2, 3, 4, 5, 6, 7, 8, 9, 0]
    path = tmp_path / "test_32x32.mat"
    path.write_bytes(path.read_bytes()[:-1])
    config = make_config("dataset=svhn", f"dataset.root={tmp_path}", "dataset.download=false")
    with pytest.raises(UserError, match=r"dataset=svhn: no complete copy .*train_32x32.mat \(MD5"):
        load(config.dataset)
