"""The data sets as uint8 arrays, found, checked or downloaded. Imports torchvision only where it
must.

python -m resnests.data.splits '{"name": "cifar10", ...}'     # prepares that data set, as a sweep does before its runs
"""

from __future__ import annotations

import gzip
import importlib.util
import json
import sys
import zlib
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from filelock import FileLock

from resnests.config.schema import Dataset
from resnests.errors import UserError, require

DEBIAN_FASHION_MNIST = Path("/usr/share/datasets/fashion-mnist")
IDX_FILES = (
    "train-images-idx3-ubyte.gz",
    "train-labels-idx1-ubyte.gz",
    "t10k-images-idx3-ubyte.gz",
    "t10k-labels-idx1-ubyte.gz",
)


@dataclass(frozen=True)
class Split:
    """images uint8 (N, 32, 32, 3); labels int64 (N,)."""

    images: np.ndarray
    labels: np.ndarray

    def __len__(self) -> int:
        return len(self.labels)

    def take(self, index: slice | np.ndarray) -> Split:
        return Split(self.images[index], self.labels[index])


@dataclass(frozen=True)
class Splits:
    train: Split
    val: Split | None
    test: Split


def load(dataset: Dataset) -> Splits:
    """The splits that `dataset` asks for; raises a UserError that names what is missing or
    unsound.
    """
    prepare(dataset)
    readers = {"digits": _read_digits, "fashion_mnist": _read_fashion_mnist}
    train, test = readers.get(dataset.source, _read_cifar)(dataset)
    for split in (train, test):
        top = int(split.labels.max()) + 1
        require(
            top <= dataset.num_classes,
            "dataset.num_classes",
            dataset.num_classes,
            f"at least {top}, as labelled",
        )
    train, test = train.take(slice(dataset.train_limit)), test.take(slice(dataset.test_limit))
    held_out = stratified(train.labels, dataset.val_fraction)
    val = train.take(held_out) if held_out.any() else None
    require(
        val is not None or dataset.val_fraction == 0,
        "dataset.val_fraction",
        dataset.val_fraction,
        "some images",
    )
    return Splits(train.take(~held_out), val, test)


def stratified(labels: np.ndarray, fraction: float) -> np.ndarray:
    """A fixed mask (N,) of `fraction` of each class, spread evenly over the images in their
    order.
    """
    rank = np.empty(len(labels), dtype=np.int64)
    for label in np.unique(labels):
        members = np.flatnonzero(labels == label)
        rank[members] = np.arange(len(members))
    return np.floor((rank + 1) * fraction + 1e-9) > np.floor(rank * fraction + 1e-9)


def is_ready(dataset: Dataset) -> bool:
    """Whether the files are known to be there without a look at their checksums, which takes
    torchvision.
    """
    if dataset.source == "fashion_mnist":
        return _idx_folder(dataset) is not None
    return dataset.source == "digits"


def prepare(dataset: Dataset) -> None:
    """Download what is missing, once for all processes; raises a UserError that names the file
    and its checksum.
    """
    if is_ready(dataset) or (
        dataset.source.startswith("cifar") and not _unsound_cifar_files(dataset)
    ):
        return
    root = Path(dataset.root)
    if not dataset.download:
        raise UserError(
            f"{_what_is_missing(dataset)}, and dataset.download=false. {_what_to_put(dataset)}"
        )
    try:
        root.mkdir(parents=True, exist_ok=True)
        with FileLock(root / f".{dataset.source}.lock"):
            _download(dataset)
    except (OSError, RuntimeError, EOFError, zlib.error) as error:
        reason = f"the download failed ({str(error) or type(error).__name__})"
        raise UserError(
            f"{_what_is_missing(dataset)}, and {reason}. {_what_to_put(dataset)}"
        ) from error


def _torchvision(dataset: Dataset) -> type:
    from torchvision import datasets

    return {
        "cifar10": datasets.CIFAR10,
        "cifar100": datasets.CIFAR100,
        "fashion_mnist": datasets.FashionMNIST,
    }[dataset.source]


def _download(dataset: Dataset) -> None:
    # torchvision leaves a sound archive alone, and fetches and unpacks again what fails its MD5.
    _torchvision(dataset)(dataset.root, train=True, download=True)


def _what_is_missing(dataset: Dataset) -> str:
    unsound = _unsound_cifar_files(dataset) if dataset.source.startswith("cifar") else []
    detail = "; ".join(unsound[:2]) or f"no {', '.join(IDX_FILES)}"
    return f"dataset={dataset.name}: no complete copy in {dataset.root} ({detail})"


def _what_to_put(dataset: Dataset) -> str:
    source = _torchvision(dataset)
    if dataset.source == "fashion_mnist":
        files = ", ".join(f"{name} (MD5 {md5})" for name, md5 in source.resources)
    else:
        files = f"{source.filename} (MD5 {source.tgz_md5})"
    return f"Put {files} into {dataset.root}, or set dataset.root to where it is"


def _unsound_cifar_files(dataset: Dataset) -> list[str]:
    """What is wrong with which of the unpacked files; empty where all are there and have their
    MD5.
    """
    from torchvision.datasets.utils import check_integrity

    source = _torchvision(dataset)
    listed = [*source.train_list, *source.test_list, (source.meta["filename"], source.meta["md5"])]
    problems = []
    for name, md5 in listed:
        path = Path(dataset.root, source.base_folder, name)
        if not path.is_file():
            problems.append(f"{path} is missing")
        elif not check_integrity(str(path), md5):
            problems.append(f"{path} is cut short or corrupt")
    return problems


def _read_cifar(dataset: Dataset) -> tuple[Split, Split]:
    source = _torchvision(dataset)
    parts = (source(dataset.root, train=train, download=False) for train in (True, False))
    train, test = (Split(part.data, np.array(part.targets, dtype=np.int64)) for part in parts)
    return train, test


def _idx_folder(dataset: Dataset) -> Path | None:
    """Where the four files of Fashion-MNIST are, also where torchvision or Debian put them."""
    root = Path(dataset.root)
    for folder in (root, root / "FashionMNIST" / "raw", DEBIAN_FASHION_MNIST):
        if all((folder / name).is_file() for name in IDX_FILES):
            return folder
    return None


def _read_fashion_mnist(dataset: Dataset) -> tuple[Split, Split]:
    folder = _idx_folder(dataset)
    arrays = [_read_idx(folder / name) for name in IDX_FILES]
    for images, labels, name in (
        (arrays[0], arrays[1], IDX_FILES[0]),
        (arrays[2], arrays[3], IDX_FILES[2]),
    ):
        if images.ndim != 3 or images.shape[1:] != (28, 28) or labels.shape != images.shape[:1]:
            raise UserError(f"{folder / name}: expected 28x28 images, as many as there are labels")
    splits = []
    for images, labels in (arrays[:2], arrays[2:]):
        padded = np.pad(images, ((0, 0), (2, 2), (2, 2)))
        splits.append(Split(_grey_to_rgb(padded), labels.astype(np.int64)))
    return splits[0], splits[1]


def _read_idx(path: Path) -> np.ndarray:
    """The uint8 array of a gzipped IDX file, whose CRC and sizes tell when it was cut short."""
    try:
        with gzip.open(path) as file:
            data = file.read()
        if len(data) < 4 or data[:3] != b"\0\0\x08":
            raise ValueError("no IDX file of bytes")
        dimensions = data[3]
        shape = np.frombuffer(data, ">i4", count=dimensions, offset=4)
        return np.frombuffer(data, np.uint8, offset=4 + 4 * dimensions).reshape(shape)
    except (OSError, EOFError, ValueError, zlib.error) as error:
        raise UserError(
            f"{path} is cut short or corrupt ({error}): delete or replace it"
        ) from error


def _read_digits(dataset: Dataset) -> tuple[Split, Split]:
    """8x8 scans with values 0 to 16; every fifth image of a class is for testing."""
    # The file itself: importing sklearn.datasets for it would take longer than everything else at
    # start-up but torch.
    package = Path(importlib.util.find_spec("sklearn").origin).parent
    table = np.loadtxt(
        package / "datasets" / "data" / "digits.csv.gz", delimiter=",", dtype=np.uint8
    )
    grey = np.round(table[:, :64].reshape(-1, 8, 8) * (255 / 16)).astype(np.uint8)
    images = _grey_to_rgb(grey.repeat(4, axis=1).repeat(4, axis=2))
    everything = Split(images, table[:, 64].astype(np.int64))
    test = stratified(everything.labels, 0.2)
    return everything.take(~test), everything.take(test)


def _grey_to_rgb(images: np.ndarray) -> np.ndarray:
    return np.repeat(images[..., None], 3, axis=3)


if __name__ == "__main__":
    try:
        prepare(Dataset(**json.loads(sys.argv[1])))
    except UserError as problem:
        sys.exit(str(problem))
