"""Define the data sets that are ready to use: one object for each source of files."""

from __future__ import annotations

import gzip
import hashlib
import importlib.util
import zlib
from contextlib import suppress
from pathlib import Path
from typing import Any, Protocol

import numpy as np
from filelock import FileLock

from resnests.config.parts import Dataset
from resnests.data.arrays import Loaded, Split, grey_to_rgb, stratified
from resnests.data.folder import Folder
from resnests.errors import UserError

DEBIAN_FASHION_MNIST = Path("/usr/share/datasets/fashion-mnist")
IDX_FILES = (
    "train-images-idx3-ubyte.gz",
    "train-labels-idx1-ubyte.gz",
    "t10k-images-idx3-ubyte.gz",
    "t10k-labels-idx1-ubyte.gz",
)


class Source(Protocol):
    def is_ready(self, dataset: Dataset) -> bool:
        """Tell whether the files are known to be there without a look that takes torchvision."""
        ...

    def prepare(self, dataset: Dataset) -> None:
        """Download what is missing; raises a UserError that names the files and what to do."""
        ...

    def read(self, dataset: Dataset) -> Loaded:
        """Return what is for training and for testing; raises a UserError where it is unsound."""
        ...


class Digits:
    """Reads scikit-learn's 8x8 scans with values 0 to 16; every fifth of a class is for testing."""

    def is_ready(self, dataset: Dataset) -> bool:
        return True

    def prepare(self, dataset: Dataset) -> None:
        pass

    def read(self, dataset: Dataset) -> Loaded:
        # The file itself: importing sklearn.datasets for it would take longer than everything else
        # at start-up but torch.
        spec = importlib.util.find_spec("sklearn")
        assert spec is not None
        assert spec.origin is not None
        path = Path(spec.origin).parent / "datasets" / "data" / "digits.csv.gz"
        table = np.loadtxt(path, delimiter=",", dtype=np.uint8)
        grey = np.round(table[:, :64].reshape(-1, 8, 8) * (255 / 16)).astype(np.uint8)
        images = grey_to_rgb(grey.repeat(4, axis=1).repeat(4, axis=2))
        everything = Split(images, table[:, 64].astype(np.int64))
        test = stratified(everything.labels, 0.2)
        return Loaded(everything.take(~test), everything.take(test))


class Torchvision:
    """Reads a data set of torchvision, which downloads it and knows its checksums."""

    def __init__(self, class_name: str, *, split: bool = False) -> None:
        self.class_name = class_name
        self.split = split  # whether it takes split="train" instead of train=True

    def _open(self, dataset: Dataset, train: bool, download: bool = False) -> Any:
        which = {"split": "train" if train else "test"} if self.split else {"train": train}
        return self._class()(dataset.root, **which, download=download)

    def _class(self) -> Any:
        from torchvision import datasets

        return getattr(datasets, self.class_name)

    def is_ready(self, dataset: Dataset) -> bool:
        return False

    def prepare(self, dataset: Dataset) -> None:
        problem = self.problem(dataset)
        if problem is None:
            return
        missing = f"dataset={dataset.name}: no complete copy in {dataset.root} ({problem})"
        if not dataset.download:
            raise UserError(f"{missing}, and dataset.download=false. {self._mend(dataset)}")
        try:
            Path(dataset.root).mkdir(parents=True, exist_ok=True)
            with FileLock(Path(dataset.root, f".{dataset.source}.lock")):
                self.download(dataset)
        except (OSError, RuntimeError, EOFError, zlib.error) as error:
            reason = f"the download failed ({str(error) or type(error).__name__})"
            raise UserError(f"{missing}, and {reason}. {self._mend(dataset)}") from error

    def download(self, dataset: Dataset) -> None:
        """Have torchvision fetch what is missing or fails its MD5."""
        for train in (True, False):
            self._open(dataset, train, download=True)

    def problem(self, dataset: Dataset) -> str | None:
        """Return what is wrong with the files, None where they are complete."""
        try:
            for train in (True, False):
                self._open(dataset, train)
        except RuntimeError as error:
            return str(error).splitlines()[0].partition(" You can use")[0].rstrip(".")
        return None

    def _mend(self, dataset: Dataset) -> str:
        return f"Put {self.files()} into {dataset.root}, or set dataset.root to where it is"

    def files(self) -> str:
        """List what torchvision downloads, with checksums."""
        source = self._class()
        if hasattr(source, "tgz_md5"):
            return f"{source.filename} (MD5 {source.tgz_md5})"
        listed = getattr(source, "resources", None)
        if listed is None:
            listed = [(name, md5) for _, name, md5 in map(source.split_list.get, ("train", "test"))]
        return ", ".join(f"{name} (MD5 {md5})" for name, md5 in listed)

    def read(self, dataset: Dataset) -> Loaded:
        train, test = (self._split(self._open(dataset, train)) for train in (True, False))
        return Loaded(train, test)

    def _split(self, opened: Any) -> Split:
        labels, images = opened.labels if self.split else opened.targets, opened.data
        if images.shape[1] == 3:  # channels first
            images = images.transpose(0, 2, 3, 1)
        return Split(np.ascontiguousarray(images), np.array(labels, dtype=np.int64))


class Cifar(Torchvision):
    """Checks every unpacked file, as torchvision says only that something is amiss."""

    def problem(self, dataset: Dataset) -> str | None:
        from torchvision.datasets.utils import check_integrity

        source = self._class()
        meta = (source.meta["filename"], source.meta["md5"])
        problems = []
        for name, md5 in [*source.train_list, *source.test_list, meta]:
            path = Path(dataset.root, source.base_folder, name)
            if not path.is_file():
                problems.append(f"{path} is missing")
            elif not check_integrity(str(path), md5):
                problems.append(f"{path} is cut short or corrupt")
        return "; ".join(problems[:2]) or None


class Idx(Torchvision):
    """Reads the four gzipped IDX files of a relative of MNIST, without torchvision, and compares
    each with its MD5: all relatives name their files alike, and torchvision does not look.
    """

    def __init__(self, class_name: str, md5s: tuple[str, ...], is_debians: bool = False) -> None:
        super().__init__(class_name)
        self.md5s = md5s  # of the files in the order of IDX_FILES, zipped or not
        self.is_debians = is_debians  # whether Debian has a package of it

    def folders(self, dataset: Dataset) -> list[Path]:
        """Return where files of these names are, of this set or another."""
        root = Path(dataset.root)
        debian = [DEBIAN_FASHION_MNIST] if self.is_debians else []
        places = (root, root / self.class_name / "raw", *debian)
        return [place for place in places if all((place / name).is_file() for name in IDX_FILES)]

    def folder(self, dataset: Dataset) -> Path | None:
        """Return the first of these whose smallest file is of this set."""
        for folder in self.folders(dataset):
            with suppress(UserError):
                read_idx(folder / IDX_FILES[-1], self.md5s[-1])
                return folder
        return None

    def is_ready(self, dataset: Dataset) -> bool:
        return self.folder(dataset) is not None

    def problem(self, dataset: Dataset) -> str | None:
        if self.is_ready(dataset):
            return None
        others = [f"{folder / IDX_FILES[-1]} is not its own" for folder in self.folders(dataset)]
        return "; ".join(others) or f"no {', '.join(IDX_FILES)}"

    def download(self, dataset: Dataset) -> None:
        """Fetch the zipped files, which torchvision would not where there are unzipped ones."""
        from torchvision.datasets.utils import download_url

        source = self._class()
        for name, md5 in source.resources:
            folder = Path(dataset.root, self.class_name, "raw")
            download_url(source.mirrors[0] + name, str(folder), name, md5)

    def read(self, dataset: Dataset) -> Loaded:
        folder = self.folder(dataset) or Path(dataset.root)
        files = zip(IDX_FILES, self.md5s, strict=True)
        arrays = [read_idx(folder / name, md5) for name, md5 in files]
        images, labels = map(padded, arrays[::2]), [x.astype(np.int64) for x in arrays[1::2]]
        train, test = map(Split, images, labels)
        return Loaded(train, test)


def padded(images: np.ndarray) -> np.ndarray:
    """Return grey (N, 28, 28) as RGB (N, 32, 32, 3) with a border of zeros."""
    return grey_to_rgb(np.pad(images, ((0, 0), (2, 2), (2, 2))))


def read_idx(path: Path, md5: str) -> np.ndarray:
    """Return the uint8 array of a gzipped IDX file, which has this MD5 as it is or unzipped."""
    try:
        zipped = path.read_bytes()
        data = gzip.decompress(zipped)
        found = [hashlib.md5(d, usedforsecurity=False).hexdigest() for d in (zipped, data)]
        if md5 not in found:
            raise ValueError(f"its MD5 is {found[0]}, unzipped {found[1]}; expected {md5}")
        dimensions = data[3]
        shape = np.frombuffer(data, ">i4", count=dimensions, offset=4)
        return np.frombuffer(data, np.uint8, offset=4 + 4 * dimensions).reshape(shape)
    except (OSError, EOFError, ValueError, zlib.error) as error:
        reason = f"cut short, corrupt or another file ({error}): delete or replace it"
        raise UserError(f"{path} is {reason}") from error


FASHION_MD5S = (  # of the unzipped files, as Debian has zipped them anew
    "f4a8712d7a061bf5bd6d2ca38dc4d50a",
    "9018921c3c673c538a1fc5bad174d6f9",
    "8181f5470baa50b63fa0f6fddb340f0a",
    "15d484375f8d13e6eb1aabb0c3f46965",
)
KMNIST_MD5S = (  # of the zipped files
    "bdb82020997e1d708af4cf47b453dcf7",
    "e144d726b3acfaa3e44228e80efcd344",
    "5c965bf0a639b31b8f53240b1b52f4d7",
    "7320c461ea6c1c855c0b718fb2a4b134",
)
# source -> who prepares and reads it; the keys are those of config.parts.SOURCES
SOURCES: dict[str | None, Source] = {
    "cifar10": Cifar("CIFAR10"),
    "cifar100": Cifar("CIFAR100"),
    "fashion_mnist": Idx("FashionMNIST", FASHION_MD5S, is_debians=True),
    "kmnist": Idx("KMNIST", KMNIST_MD5S),
    "svhn": Torchvision("SVHN", split=True),
    "digits": Digits(),
    "images": Folder(),
}
