import dataclasses
import gzip
import hashlib
import pickle
import shutil

import numpy as np
import pytest
from helpers import make_config

from resnests.config.parts import Dataset
from resnests.data import sources as data
from resnests.data.arrays import stratified
from resnests.data.sources import DEBIAN_FASHION_MNIST, IDX_FILES
from resnests.data.splits import load
from resnests.errors import UserError


def dataset(name: str, *overrides: str) -> Dataset:
    return make_config(f"dataset={name}", *overrides).dataset


def test_digits_are_split_once_and_for_all():
    splits = load(dataset("digits"))
    assert splits.train.images.shape == (1442, 32, 32, 3)
    assert splits.test.images.shape == (355, 32, 32, 3)
    assert splits.train.images.dtype == np.uint8
    assert splits.train.images.max() == 255
    share = np.bincount(splits.test.labels) / (
        np.bincount(splits.train.labels) + np.bincount(splits.test.labels)
    )
    assert np.all(np.abs(share - 0.2) < 0.01)
    digest = hashlib.sha256(
        splits.test.labels.astype("<i8").tobytes() + splits.test.images.tobytes()
    ).hexdigest()
    assert digest[:8] == "fcce090f"


def test_digits_statistics_are_those_configured():
    config = dataset("digits")
    images = load(config).train.images / 255
    assert np.allclose(images.mean((0, 1, 2)), config.mean, atol=2e-3)
    assert np.allclose(images.std((0, 1, 2)), config.std, atol=2e-3)


def test_limits_take_the_first_images():
    everything, few = (
        load(dataset("digits")),
        load(dataset("digits", "dataset.train_limit=50", "dataset.test_limit=7")),
    )
    assert (len(few.train), len(few.test)) == (50, 7)
    assert np.array_equal(few.train.images, everything.train.images[:50])


def test_a_held_out_split_is_stratified_fixed_and_disjoint():
    everything, parts = load(dataset("digits")), load(dataset("digits", "dataset.val_fraction=0.1"))
    assert len(parts.val) + len(parts.train) == len(everything.train)
    share = np.bincount(parts.val.labels) / np.bincount(everything.train.labels)
    assert np.all(np.abs(share - 0.1) < 0.01)
    mask = stratified(everything.train.labels, 0.1)
    assert np.array_equal(parts.val.images, everything.train.images[mask])
    assert np.array_equal(parts.train.images, everything.train.images[~mask])


def test_labels_beyond_num_classes_are_refused():
    with pytest.raises(UserError, match=r"dataset.num_classes=5: expected at least 10"):
        load(dataset("digits", "dataset.num_classes=5"))


def write_idx(path, array: np.ndarray) -> str:
    """Write a gzipped IDX file; return its MD5."""
    header = bytes([0, 0, 8, array.ndim]) + b"".join(int(n).to_bytes(4, "big") for n in array.shape)
    path.write_bytes(gzip.compress(header + array.tobytes()))
    return hashlib.md5(path.read_bytes()).hexdigest()


def write_idx_files(folder, seed=0) -> list[str]:
    """Write small files of the names that MNIST and its relatives share; return their MD5s."""
    rng = np.random.default_rng(seed)
    arrays = []
    for count in (30, 20):
        arrays.append(rng.integers(0, 256, (count, 28, 28), dtype=np.uint8))
        arrays.append(((np.arange(count) + seed) % 10).astype(np.uint8))
    pairs = zip(IDX_FILES, arrays, strict=True)
    return [write_idx(folder / name, array) for name, array in pairs]


@pytest.fixture(params=["fashion_mnist", "kmnist"])
def idx(request, tmp_path, monkeypatch) -> Dataset:
    """Return a relative of MNIST whose published files are small."""
    monkeypatch.setattr(data.SOURCES[request.param], "md5s", write_idx_files(tmp_path))
    return dataset(request.param, f"dataset.root={tmp_path}")


def test_relatives_of_mnist_are_padded_and_grey(idx, tmp_path):
    splits = load(idx)
    assert splits.train.images.shape == (30, 32, 32, 3)
    assert splits.test.labels.tolist() == [n % 10 for n in range(20)]
    with gzip.open(tmp_path / IDX_FILES[0]) as file:
        raw = np.frombuffer(file.read()[16:], np.uint8).reshape(-1, 28, 28)
    assert np.array_equal(splits.train.images[:, 2:30, 2:30, 1], raw)
    assert splits.train.images[:, :2].max() == 0


@pytest.mark.parametrize("damage", ["cut", "flip", "foreign"])
def test_damaged_files_of_them_are_named_and_not_used(idx, tmp_path, damage):
    path = tmp_path / IDX_FILES[0]
    content = bytearray(path.read_bytes())
    if damage == "cut":
        content = content[: len(content) // 2]
    elif damage == "flip":
        content[len(content) // 2] ^= 0xFF
    else:
        content = gzip.compress(b"no images")
    path.write_bytes(bytes(content))
    with pytest.raises(UserError, match=rf"{path.name} is cut short, corrupt or another file"):
        load(idx)


@pytest.mark.parametrize("name", ["fashion_mnist", "kmnist"])
def test_files_of_another_relative_of_mnist_are_refused(tmp_path, name, monkeypatch):
    write_idx_files(tmp_path)
    given = dataset(name, f"dataset.root={tmp_path}", "dataset.download=false")
    if name == "fashion_mnist":
        monkeypatch.setattr("resnests.data.sources.DEBIAN_FASHION_MNIST", tmp_path / "none")
    with pytest.raises(UserError, match=rf"no complete copy in .*{IDX_FILES[-1]} is not its own"):
        load(given)
    source = data.SOURCES[name]
    own = tmp_path / source.class_name / "raw"
    own.mkdir(parents=True)
    monkeypatch.setattr(source, "md5s", write_idx_files(own, seed=1))
    assert load(given).train.images.shape[0] == 30, "its own are found beside another's"


def test_zipped_files_are_fetched_although_unzipped_ones_are_there(tmp_path, monkeypatch):
    from torchvision.datasets import KMNIST, utils

    raw, there = tmp_path / "KMNIST" / "raw", tmp_path / "there"
    for folder in (raw, there):
        folder.mkdir(parents=True)
    for name in IDX_FILES:
        (raw / name.removesuffix(".gz")).write_bytes(b"of whatever set")
    md5s = write_idx_files(there)
    monkeypatch.setattr(data.SOURCES["kmnist"], "md5s", md5s)
    monkeypatch.setattr(KMNIST, "mirrors", [f"{there}/"])

    def fetch(url, folder, name, md5):
        shutil.copyfile(url, f"{folder}/{name}")

    monkeypatch.setattr(utils, "download_url", fetch)
    assert load(dataset("kmnist", f"dataset.root={tmp_path}")).train.images.shape[0] == 30
    for path in raw.glob("*.gz"):
        path.unlink()
    with pytest.raises(UserError, match=r"dataset=kmnist: no complete copy .*MD5"):
        load(dataset("kmnist", f"dataset.root={tmp_path}", "dataset.download=false"))


@pytest.mark.slow
@pytest.mark.skipif(
    not DEBIAN_FASHION_MNIST.is_dir(),
    reason="Debian's package dataset-fashion-mnist is not installed",
)
def test_debians_fashion_mnist_is_found_by_default(tmp_path):
    config = dataset("fashion_mnist", f"dataset.root={tmp_path}")
    splits = load(config)
    assert (len(splits.train), len(splits.test)) == (60_000, 10_000)
    assert np.allclose(splits.train.images.mean() / 255, config.mean[0], atol=1e-3)
    assert np.allclose(splits.train.images.std() / 255, config.std[0], atol=1e-3)


@pytest.fixture
def cifar_root(tmp_path, monkeypatch):
    """Write CIFAR-10's own on-disk format with 10 images a batch, and torchvision's list of
    checksums made to match.
    """
    from torchvision.datasets import CIFAR10

    folder = tmp_path / CIFAR10.base_folder
    folder.mkdir()
    rng = np.random.default_rng(0)
    names = [name for name, _ in (*CIFAR10.train_list, *CIFAR10.test_list)]
    contents = {
        name: {"data": rng.integers(0, 256, (10, 3072), dtype=np.uint8), "labels": list(range(10))}
        for name in names
    }
    contents[CIFAR10.meta["filename"]] = {"label_names": list("abcdefghij")}
    md5 = {}
    for name, content in contents.items():
        (folder / name).write_bytes(pickle.dumps(content))
        md5[name] = hashlib.md5((folder / name).read_bytes()).hexdigest()
    monkeypatch.setattr(
        CIFAR10, "train_list", [[name, md5[name]] for name, _ in CIFAR10.train_list]
    )
    monkeypatch.setattr(CIFAR10, "test_list", [[name, md5[name]] for name, _ in CIFAR10.test_list])
    monkeypatch.setattr(CIFAR10, "meta", CIFAR10.meta | {"md5": md5[CIFAR10.meta["filename"]]})
    return tmp_path, contents


def test_cifar_is_read_from_its_own_format(cifar_root):
    root, contents = cifar_root
    splits = load(dataset("cifar10", f"dataset.root={root}", "dataset.download=false"))
    assert splits.train.images.shape == (50, 32, 32, 3)
    assert splits.test.images.shape == (10, 32, 32, 3)
    first = contents["data_batch_1"]["data"][0].reshape(3, 32, 32).transpose(1, 2, 0)
    assert np.array_equal(splits.train.images[0], first)


def test_a_damaged_cifar_batch_is_named_and_not_used(cifar_root):
    root, _ = cifar_root
    batch = root / "cifar-10-batches-py" / "data_batch_3"
    batch.write_bytes(batch.read_bytes()[:-100])
    config = dataset("cifar10", f"dataset.root={root}", "dataset.download=false")
    with pytest.raises(
        UserError, match=r"data_batch_3 is cut short or corrupt.*cifar-10-python.tar.gz \(MD5 c58f"
    ):
        load(config)


def test_without_files_and_network_the_message_says_what_to_put_where(tmp_path, monkeypatch):
    def no_network(*_args, **_kwargs):
        raise OSError("no route to host")

    monkeypatch.setattr(data.Torchvision, "download", no_network)
    config = dataset("cifar100", f"dataset.root={tmp_path}")
    with pytest.raises(
        UserError, match=r"no route to host.*cifar-100-python.tar.gz \(MD5 eb9058"
    ) as caught:
        load(config)
    assert str(tmp_path) in str(caught.value)
    monkeypatch.setattr(data, "DEBIAN_FASHION_MNIST", tmp_path)
    config = dataclasses.replace(dataset("fashion_mnist"), root=str(tmp_path), download=False)
    with pytest.raises(UserError, match=r"train-images-idx3-ubyte.gz \(MD5 8d4fb7e6"):
        load(config)
