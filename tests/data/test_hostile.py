"""Random damage to folders and files of images: what is loaded is right, or there is one line.

The seed is fixed; RESNESTS_HOSTILE=N repeats everything with N other seeds.
"""

import io
import os
import shutil
import tempfile
import warnings
from contextlib import contextmanager
from pathlib import Path

import numpy as np
import pytest
from data_images import images, pictures, write_npz, write_parts
from PIL import Image, ImageOps

from resnests.data.digest import dataset_digest
from resnests.data.pictures import decode
from resnests.data.splits import load, read
from resnests.errors import UserError

SEEDS = range(1 + int(os.environ.get("RESNESTS_HOSTILE", 0)))
FORMATS = ("PNG", "JPEG", "TIFF", "BMP", "PPM", "GIF", "WEBP")


def damaged(data: bytes, rng: np.random.Generator) -> bytes:
    """Return `data` with one kind of damage in a random place."""
    content = bytearray(data)
    start = int(rng.integers(len(content))) if rng.random() < 0.7 else int(rng.integers(60))
    start = min(start, len(content) - 1)
    length = int(rng.integers(1, 9))
    noise = rng.integers(0, 256, length, dtype=np.uint8).tobytes()
    kind = rng.integers(7)
    if kind == 0:
        return bytes(content[:start])
    if kind == 1:
        content[start] ^= 1 << int(rng.integers(8))
    elif kind == 2:
        content[start : start + length] = noise
    elif kind == 3:
        content[start : start + length] = bytes(length)
    elif kind == 4:
        content[start : start + length] = b""
    elif kind == 5:
        content[start:start] = noise
    else:
        content[start:] = content[start:][::-1]
    return bytes(content)


def independently(data: bytes) -> np.ndarray:
    """Read a picture with Pillow alone, on white."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        picture = ImageOps.exif_transpose(Image.open(io.BytesIO(data)))
        if picture.mode.startswith("I"):
            grey = np.asarray(picture).astype(np.int64) // 256
            return np.repeat(grey[..., None], 3, axis=2)
        rgba = np.asarray(picture.convert("RGBA")).astype(np.float64)
    alpha = rgba[..., 3:] / 255
    return rgba[..., :3] * alpha + 255 * (1 - alpha)


def encoded(form: str, mode: str, **options) -> bytes:
    buffer = io.BytesIO()
    picture = Image.fromarray(pictures(1, 10, 12, 3)[0])
    picture = Image.fromarray(pictures(1, 10, 24)[0].view("<u2")) if mode == "I;16" else picture
    if mode not in ("RGB", "I;16"):
        picture = picture.convert(mode)
    picture.save(buffer, form, **options)
    return buffer.getvalue()


def modes(form: str) -> tuple[str, ...]:
    more = {"PNG": ("RGBA", "LA", "P", "1", "I;16"), "TIFF": ("RGBA", "CMYK", "I;16")}
    more |= {"JPEG": ("L", "CMYK"), "GIF": ("P",), "PPM": ("L",), "BMP": ("P",), "WEBP": ("RGBA",)}
    return ("RGB", *more[form])


def one_line(error: UserError, name: str) -> None:
    assert "\n" not in str(error)
    assert name in str(error)


@pytest.mark.parametrize("seed", SEEDS)
@pytest.mark.parametrize("form", FORMATS)
def test_a_damaged_picture_is_read_as_by_pillow_or_named(form, seed):
    rng = np.random.default_rng([seed, FORMATS.index(form)])
    outcomes = {"read": 0, "refused": 0}
    for mode in modes(form):
        exif = Image.Exif()
        exif[0x0112] = 6
        options = {"exif": exif} if form in ("PNG", "JPEG", "TIFF", "WEBP") else {}
        for sound in (encoded(form, mode), encoded(form, mode, **options)):
            assert np.abs(np.asarray(decode(sound, Path("x"))) - independently(sound)).max() <= 1
            for _ in range(40):
                data = damaged(sound, rng)
                try:
                    got = np.asarray(decode(data, Path("a/odd.png")))
                except UserError as error:
                    one_line(error, "a/odd.png")
                    outcomes["refused"] += 1
                    continue
                assert got.dtype == np.uint8
                assert got.shape[2:] == (3,)
                assert np.abs(got - independently(data)).max() <= 1
                outcomes["read"] += 1
    assert outcomes["refused"] > 10, outcomes


@pytest.mark.slow
@pytest.mark.parametrize("seed", SEEDS)
@pytest.mark.parametrize("save", [np.savez, np.savez_compressed])
def test_a_damaged_npz_is_read_as_it_was_written_or_named(tmp_path, save, seed):
    rng = np.random.default_rng(seed)
    path = write_npz(tmp_path / "odd.npz")
    with np.load(path) as file:
        arrays = dict(file)
    save(path, **arrays)
    sound, expected = path.read_bytes(), load(images(path))
    refused = 0
    for _ in range(150):
        path.write_bytes(damaged(sound, rng))
        try:
            splits = load(images(path))
        except UserError as error:
            one_line(error, "odd.npz")
            refused += 1
        else:
            assert np.array_equal(splits.train.images, expected.train.images)
            assert np.array_equal(splits.train.labels, expected.train.labels)
            assert np.array_equal(splits.test.images, expected.test.images)
    assert refused > 50


@pytest.mark.parametrize("ending", [".npy", ".png", ".txt"])
def test_another_file_named_npz_is_refused(tmp_path, ending):
    path = tmp_path / "odd.npz"
    if ending == ".npy":
        with open(path, "wb") as file:
            np.save(file, pictures(3, 4, 4))
    else:
        path.write_bytes(encoded("PNG", "RGB") if ending == ".png" else b"")
    with pytest.raises(UserError, match=r"odd.npz is cut short, corrupt or no .npz file"):
        load(images(path))


# What is done to a folder of train/CLASS/*.png and test/CLASS/*.png; `at` is a class folder.


def nest(at: Path, rng) -> None:
    (at / "deep" / "er").mkdir(parents=True, exist_ok=True)
    path = pick(at, rng)
    path.rename(at / "deep" / "er" / path.name)


def pick(at: Path, rng) -> Path:
    there = sorted(
        path for path in at.glob("[!._]*.*") if path.is_file() and path.name != "notes.txt"
    )
    return there[int(rng.integers(len(there)))]


def hide(at: Path, rng) -> None:
    for name in (".git", "__MACOSX", ".ipynb_checkpoints"):
        (at / name).mkdir(exist_ok=True)
        (at / name / "0.png").write_bytes(b"hidden")
    (at / "._0.png").write_bytes(b"Mac OS X")


def other_format(at: Path, rng) -> None:
    path = pick(at, rng)  # its name says .png whatever it holds
    with Image.open(path) as picture:
        picture.load()
    picture.save(path, str(rng.choice(["BMP", "TIFF", "PPM", "WEBP"])), lossless=True)


def directory_like_a_file(at: Path, rng) -> None:
    (at / "folder.png").mkdir(exist_ok=True)
    shutil.copy(pick(at, rng), at / "folder.png" / "inside.png")


def link_to_a_file(at: Path, rng) -> None:
    elsewhere = at.parents[1] / f".{rng.integers(1 << 30)}"
    elsewhere.mkdir()
    shutil.copy(pick(at, rng), elsewhere / "0.png")
    (at / f"link{elsewhere.name}.png").symlink_to(elsewhere / "0.png")


def link_to_a_folder(at: Path, rng) -> None:
    elsewhere = at.parents[1] / ".elsewhere"
    elsewhere.mkdir(exist_ok=True)
    shutil.copy(pick(at, rng), elsewhere / "more.png")
    if not (at / "linked").exists():
        (at / "linked").symlink_to(elsewhere)


def strange_name(at: Path, rng) -> None:
    path = pick(at, rng)
    path.rename(at / str(rng.choice(["a b\n.png", "ä.PNG", "%s{}.png", "-rf.png"])))


def bytes_name(at: Path, rng) -> None:
    os.rename(pick(at, rng), os.fsencode(at) + b"/\xff\xfe.png")


def another_file(at: Path, rng) -> None:
    (at / "notes.txt").write_text("no image")
    (at / "empty").mkdir(exist_ok=True)


def damage(at: Path, rng) -> None:
    path = pick(at, rng)
    data = path.read_bytes()
    while (odd := damaged(data, rng)) == data:
        pass
    path.write_bytes(odd)


def empty(at: Path, rng) -> None:
    pick(at, rng).write_bytes(b"")


def text(at: Path, rng) -> None:
    pick(at, rng).write_text("no image")


def other_size(at: Path, rng) -> None:
    Image.new("RGB", (3, 4)).save(pick(at, rng), "PNG")


def float_values(at: Path, rng) -> None:
    Image.fromarray(np.ones((10, 12), np.float32)).save(pick(at, rng), "TIFF")


def dangling(at: Path, rng) -> None:
    (at / "gone.png").symlink_to("nowhere")


def loop(at: Path, rng) -> None:
    (at / "up").symlink_to(at.parent)


def itself(at: Path, rng) -> None:
    (at / "itself.png").symlink_to("itself.png")


def pipe(at: Path, rng) -> None:
    os.mkfifo(at / "pipe.png")


def no_class(at: Path, rng) -> None:
    shutil.rmtree(at)


def no_image(at: Path, rng) -> None:
    shutil.rmtree(at)
    at.mkdir()


def one_class_more(at: Path, rng) -> None:
    shutil.copytree(at, at.parent / "new", symlinks=True)


def beside(at: Path, rng) -> None:
    shutil.copy(pick(at, rng), at.parent / "beside.png")


HARMLESS = (
    nest, hide, other_format, directory_like_a_file, link_to_a_file, link_to_a_folder,
    strange_name, bytes_name, another_file,
)  # fmt: skip
HARMFUL = (
    empty, text, other_size, float_values, dangling, loop, itself, pipe, no_class, no_image,
    one_class_more, beside,
)  # fmt: skip


def walked(folder: Path) -> list[Path]:
    """List what is to be read below a folder, by other means."""
    found = []
    for place, folders, files in os.walk(folder, followlinks=True):
        folders[:] = [name for name in folders if not name.startswith((".", "__"))]
        found += [
            Path(place, name)
            for name in files
            if not name.startswith((".", "__")) and name.lower().endswith(".png")
        ]
    return sorted(found, key=lambda path: path.relative_to(folder).parts)


def is_as_walked(root: Path) -> None:
    """Compare what is loaded with what Pillow reads of the files that are there."""
    splits = load(images(root))
    for part, split in (("train", splits.train), ("test", splits.test)):
        paths = [
            (label, path) for label, name in enumerate("ab") for path in walked(root / part / name)
        ]
        assert split.labels.tolist() == [label for label, _ in paths]
        for (_, path), image in zip(paths, split.images, strict=True):
            assert np.abs(image - independently(path.read_bytes())).max() <= 1


@pytest.fixture(scope="module")
def sound(tmp_path_factory) -> Path:
    return write_parts(tmp_path_factory.mktemp("sound"), 4, 3, names=("a", "b"))


@pytest.mark.slow
@pytest.mark.parametrize("seed", SEEDS)
def test_whatever_is_done_to_a_folder_it_is_read_right_or_refused(tmp_path, sound, seed):
    rng = np.random.default_rng(seed)
    for number in range(200):
        root = tmp_path / str(number)
        shutil.copytree(sound, root)
        kinds = [HARMLESS[i] for i in rng.integers(len(HARMLESS), size=rng.integers(1, 4))]
        last = rng.integers(3)
        if last == 0:
            kinds.append(HARMFUL[int(rng.integers(len(HARMFUL)))])
        elif last == 1:
            kinds.append(damage)
        for kind in kinds:
            kind(root / str(rng.choice(["train", "test"])) / str(rng.choice(["a", "b"])), rng)
        what = [kind.__name__ for kind in kinds]
        try:
            is_as_walked(root)
            assert dataset_digest(images(root)) == read(images(root)).digest
            allowed = (*HARMLESS, damage)
        except UserError as error:
            one_line(error, str(root))
            what.append(str(error))
            allowed = (*HARMFUL, damage)
        assert kinds[-1] in allowed, what
        shutil.rmtree(root)


@pytest.fixture
def folder():
    """Return a folder below which this test is no root, who can read everything."""
    with tempfile.TemporaryDirectory() as path:
        Path(path).chmod(0o755)
        yield Path(path)


@contextmanager
def no_root():
    was = os.geteuid()
    if was == 0:
        os.seteuid(65534)
    try:
        yield
    finally:
        os.seteuid(was)


@pytest.mark.parametrize("place", ["train/a/000.png", "train/a", "train", ""])
def test_what_cannot_be_read_is_named(folder, place):
    write_parts(folder / "data", names=("a", "b"))
    (folder / "data" / place).chmod(0)
    try:
        with no_root(), pytest.raises(UserError, match=r"cannot be read \(Permission denied"):
            load(images(folder / "data"))
    finally:
        (folder / "data" / place).chmod(0o700)
