"""A folder of images is read as its owner meant it, or refused in one line."""

import io
import struct
import subprocess
import sys
import zlib
from pathlib import Path

import numpy as np
import pytest
from data_images import images, pictures, write_classes, write_npz, write_parts
from helpers import REPOSITORY, make_config, run_command
from PIL import Image

from resnests.data import cache
from resnests.data.pictures import decode, strictly
from resnests.data.splits import described, load, with_statistics
from resnests.errors import UserError
from resnests.sweep.drive import run_sweep


@pytest.fixture(autouse=True)
def _cache(tmp_path_factory, monkeypatch):
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path_factory.mktemp("cache")))


def refused(root, said: str, **values) -> None:
    with pytest.raises(UserError, match=said) as caught:
        load(images(root, **values))
    assert "\n" not in str(caught.value)


def per_class(split) -> list[int]:
    return np.bincount(split.labels).tolist()


def test_images_in_deeper_folders_are_read(tmp_path):
    write_parts(tmp_path)
    deeper = tmp_path / "train" / "cat" / "day1" / "images"
    deeper.mkdir(parents=True)
    for path in list((tmp_path / "train" / "cat").glob("*.png")):
        path.rename(deeper / path.name)
    splits = load(images(tmp_path))
    assert per_class(splits.train) == [4, 4, 4]
    assert splits.train.classes == ("ant", "bee", "cat")


@pytest.mark.parametrize("root", ["", "train", "test", "train/ant"])
def test_what_editors_and_systems_leave_is_no_data(tmp_path, root):
    write_parts(tmp_path)
    expected = load(images(tmp_path))
    for name in (".ipynb_checkpoints", ".git", "__pycache__", "__MACOSX"):
        write_classes(tmp_path / root / name, 2, names=("ant",))
        Image.fromarray(pictures(1, 5, 5, 3)[0]).save(tmp_path / root / name / "0.png")
    (tmp_path / root / "._000.png").write_bytes(b"Mac OS X")
    (tmp_path / root / ".DS_Store").write_bytes(b"Mac OS X")
    found = load(images(tmp_path))
    assert np.array_equal(found.train.images, expected.train.images)
    assert np.array_equal(found.train.labels, expected.train.labels)
    assert found.train.classes == ("ant", "bee", "cat")


@pytest.mark.parametrize(
    ("part", "said"),
    [
        ("test", r"the same classes in train and test: only test has dog"),
        ("train", r"the same classes in train and test: only train has dog"),
    ],
)
def test_a_class_in_one_part_only_is_named(tmp_path, part, said):
    write_parts(tmp_path)
    write_classes(tmp_path / part, 1, names=("dog",))
    refused(tmp_path, said)


@pytest.mark.parametrize("part", ["train", "test"])
def test_a_class_without_an_image_is_named(tmp_path, part):
    write_parts(tmp_path)
    for path in (tmp_path / part / "bee").iterdir():
        path.rename(path.with_suffix(".txt"))
    refused(tmp_path, rf"{part}/bee: expected at least one image")


def test_a_class_too_small_to_test_is_named(tmp_path):
    write_classes(tmp_path, 6)
    write_classes(tmp_path, 4, names=("dog",))
    refused(tmp_path, "at least five images in a class, to test with one, but dog has 4")


@pytest.mark.parametrize("first", ["Train", "training", "TRAINING", "train_set", "Training-Set"])
@pytest.mark.parametrize(
    "second", ["val", "valid", "Validation", "Test", "testing", "TEST", "test_set", "valset"]
)
def test_splits_are_known_by_their_usual_names(tmp_path, first, second):
    """And val/ is for testing where there is no test/."""
    write_classes(tmp_path / first, 3)
    write_classes(tmp_path / second, 2)
    splits = load(images(tmp_path))
    assert splits.train.classes == ("ant", "bee", "cat")
    assert (per_class(splits.train), per_class(splits.test)) == ([3, 3, 3], [2, 2, 2])
    said = f"{second}/ is for testing, as there is no test/"
    assert (said in splits.notes) == second.lower().startswith("val")


@pytest.mark.parametrize("folders", [("Entrenamiento", "Prueba"), ("fold1", "fold2", "fold3")])
def test_splits_under_names_that_nobody_knows_are_no_classes(tmp_path, folders):
    for folder in folders:
        write_classes(tmp_path / folder, 6)
    refused(tmp_path, f"{folders[0]}/, {folders[1]}/ ... all have the same folders, ant/, bee/, ca")


def test_a_split_that_was_unpacked_into_a_folder_of_its_own_name_is_read(tmp_path):
    write_parts(tmp_path / "a")
    for split, deeper in (("train", "training_set/training_set"), ("test", "test_set/Test")):
        (tmp_path / "b" / deeper).parent.mkdir(parents=True)
        (tmp_path / "a" / split).rename(tmp_path / "b" / deeper)
    assert load(images(tmp_path / "b")).train.classes == ("ant", "bee", "cat")


def test_test_images_that_are_training_images_are_counted(tmp_path):
    root = write_parts(tmp_path)
    assert "training images, too" not in "\n".join(described(images(root)))
    for name in ("ant", "bee"):
        (root / "test" / name / "again.png").write_bytes(
            (root / "train" / "cat" / "000.png").read_bytes()
        )
    assert "  2 of the 8 test images are training images, too" in list(described(images(root)))


def test_classes_with_splits_in_them_are_refused(tmp_path):
    for name in ("ant", "bee"):
        write_classes(tmp_path / name, 6, names=("train", "test"))
    refused(tmp_path, "have the same folders, test/, train/: .* if test/, train/ are, put them on")


def test_one_folder_below_each_class_is_no_split(tmp_path):
    for name in ("ant", "bee"):
        write_classes(tmp_path / name, 6, names=("images",))
    assert load(images(tmp_path)).train.classes == ("ant", "bee")


@pytest.mark.parametrize("deeper", ["leaves", "leaves/leaves", "v1/data/leaves"])
@pytest.mark.parametrize("parts", [True, False])
def test_a_data_set_one_folder_deeper_is_named(tmp_path, deeper, parts):
    if parts:
        write_parts(tmp_path / deeper)
    else:
        write_classes(tmp_path / deeper, 6)
    refused(tmp_path, f"expected folders of classes, or train/ and test/, as .*/{deeper} has: give")


def test_a_data_set_beside_other_folders_is_named(tmp_path):
    write_parts(tmp_path / "leaves", train=5)
    write_classes(tmp_path, 5, names=("more",))
    refused(tmp_path, "expected folders of classes, or train/ and test/, as .*/leaves has: give")


def test_test_goes_before_val_which_is_said_not_to_be_read(tmp_path):
    write_parts(tmp_path)
    write_classes(tmp_path / "val", 3)
    splits = load(images(tmp_path))
    assert per_class(splits.test) == [2, 2, 2]
    assert "not read: val" in splits.notes


@pytest.mark.parametrize(
    ("folders", "said"),
    [
        (["train"], "expected train/ and test/ .*; or dataset.root=.*/train, .*; not train/"),
        (["Training"], "expected train/ and test/ .*; or dataset.root=.*/Training, .* not Tr"),
        (["test", "val"], "expected train/ and test/"),
        (["train", "val", "valid"], "expected one of val/ and valid/, not train/, val/, valid/"),
        (["train", "testing", "test_set"], "one of test_set/ and testing/, not test_set/, te"),
        (["train", "Training Set", "test"], "expected one of Training Set/ and train/"),
        (["dev", "train"], "expected train/ and test/ .* not dev/, train/"),
        (["train", "Train", "test"], "expected one of (T|t)rain/ and (T|t)rain/"),
    ],
)
def test_parts_that_could_be_meant_in_two_ways_are_refused(tmp_path, folders, said):
    for folder in folders:
        write_classes(tmp_path / folder, 1)
    refused(tmp_path, said)


def test_pictures_without_classes_in_train_and_test_are_refused(tmp_path):
    write_classes(tmp_path, 6, names=("train", "test"))
    refused(tmp_path, "train: expected a sub-folder for each of at least two classes.* it has 0")


def test_a_class_may_be_called_train(tmp_path):
    write_classes(tmp_path, 5, names=("bus", "train"))
    assert load(images(tmp_path)).train.classes == ("bus", "train")


def test_an_image_beside_the_classes_is_refused(tmp_path):
    write_parts(tmp_path)
    Image.fromarray(pictures(1, 10, 12, 3)[0]).save(tmp_path / "train" / "extra.png")
    refused(tmp_path, "extra.png: expected images in the folder of their class, not beside it")


def test_links_are_followed_and_a_loop_is_named(tmp_path):
    write_parts(tmp_path / "data")
    write_classes(tmp_path, 3, names=("elsewhere",))
    (tmp_path / "data" / "train" / "ant" / "more").symlink_to(tmp_path / "elsewhere")
    assert per_class(load(images(tmp_path / "data")).train) == [7, 4, 4]
    (tmp_path / "data" / "train" / "bee" / "up").symlink_to(tmp_path / "data" / "train")
    refused(tmp_path / "data", "bee/up/bee: expected no link to a folder that it is in")


@pytest.mark.parametrize("kind", ["dangling", "itself", "pipe"])
def test_what_is_no_file_is_named(tmp_path, kind):
    write_parts(tmp_path)
    path = tmp_path / "train" / "bee" / "odd.png"
    if kind == "pipe":
        import os

        os.mkfifo(path)
    else:
        path.symlink_to("nowhere" if kind == "dangling" else "odd.png")
    refused(tmp_path, "bee(/odd.png)?( cannot be read|: expected a file)")


def one_picture(tmp_path, picture, name="one.png", **options) -> np.ndarray:
    """Return what is loaded of `picture`, written to a file among others of its size."""
    width, height = picture.size
    write_parts(tmp_path, names=("a", "b"))
    for path in tmp_path.glob("*/*/*.png"):
        other = pictures(1, height, width, 3, name=path.relative_to(tmp_path).as_posix())[0]
        Image.fromarray(other).save(path)
    picture.save(tmp_path / "train" / "a" / f"0{name}", **options)
    splits = load(images(tmp_path))
    assert per_class(splits.train) == [5, 4]
    place = sorted(p.name for p in (tmp_path / "train" / "a").iterdir()).index(f"0{name}")
    return splits.train.images[place]


@pytest.mark.parametrize("name", ["one.png", "one.tif", "one.pgm"])
def test_16_bits_are_scaled_by_their_range(tmp_path, name):
    levels = np.arange(0, 65536, 16384 // 64, dtype=np.uint16).reshape(16, 16)
    got = one_picture(tmp_path, Image.fromarray(levels), name)
    assert np.array_equal(got[..., 0], levels >> 8)
    assert np.array_equal(got[..., 0], got[..., 2])


def png_of_16_bits(path, levels: np.ndarray) -> None:
    """Write (height, width, channels), which Pillow reads and does not write."""
    height, width, channels = levels.shape
    colour = {1: 0, 3: 2, 2: 4, 4: 6}[channels]
    rows = b"".join(b"\0" + row.astype(">u2").tobytes() for row in levels)
    header = struct.pack(">IIBBBBB", width, height, 16, colour, 0, 0, 0)
    parts = ((b"IHDR", header), (b"IDAT", zlib.compress(rows)), (b"IEND", b""))
    with open(path, "wb") as file:
        file.write(b"\x89PNG\r\n\x1a\n")
        for kind, data in parts:
            checksum = struct.pack(">I", zlib.crc32(kind + data))
            file.write(struct.pack(">I", len(data)) + kind + data + checksum)


@pytest.mark.parametrize("channels", [1, 2, 3, 4])
@pytest.mark.parametrize("size", [None, 8])
def test_12_bits_in_files_of_16_are_noted_with_their_largest_value(tmp_path, channels, size):
    write_parts(tmp_path)
    for number, path in enumerate(sorted(tmp_path.rglob("*.png"))):
        levels = np.linspace(0, 4095 - 8 * number, 120 * channels, dtype=int)
        levels = levels.reshape(10, 12, channels)
        levels[-1] = 4095 - 8 * number
        if channels in (2, 4):
            levels[..., -1] = 65535  # opaque
        png_of_16_bits(path, levels)
    said = "the largest value of all 18 images of 16 bits is 4095 of 65535"
    for _ in range(2):  # the second time from the cache
        (note,) = load(images(tmp_path, size=size)).notes
        assert note.startswith(said)
        assert said in "\n".join(described(images(tmp_path, size=size)))
    png_of_16_bits(path, np.full((10, 12, 1), 40000))
    assert load(images(tmp_path, size=size)).notes == ()


@pytest.mark.parametrize("channels", [1, 2, 3, 4])
def test_the_upper_eight_of_16_bits_are_kept_in_each_channel(tmp_path, channels):
    levels = np.arange(120 * channels).reshape(10, 12, channels) * 65535 // (120 * channels)
    if channels in (2, 4):
        levels[..., -1] = 65535  # opaque
    png_of_16_bits(tmp_path / "one.png", levels)
    with strictly():
        got = np.asarray(decode((tmp_path / "one.png").read_bytes(), Path("one.png")))
    colours = levels[..., : 3 if channels > 2 else 1]
    assert np.array_equal(got, np.broadcast_to(colours >> 8, got.shape))


@pytest.mark.parametrize("kind", ["P5", "P6"])
def test_a_picture_of_12_bits_that_says_so_is_scaled_to_them(kind):
    channels = {"P5": 1, "P6": 3}[kind]
    levels = np.repeat(np.arange(0, 4096, 65), channels)
    data = f"{kind} {len(levels) // channels} 1 4095\n".encode() + levels.astype(">u2").tobytes()
    with strictly():
        got = np.asarray(decode(data, Path("one.ppm"))).astype(int)
    assert np.abs(got.reshape(-1, 3).T - levels[::channels] * 255 / 4095).max() <= 1


@pytest.mark.parametrize("size", ["0 4", "4 0"])
def test_a_picture_without_pixels_is_named(size):
    with strictly(), pytest.raises(UserError, match=r"one\.ppm") as caught:
        decode(f"P6 {size} 255\n".encode(), Path("one.ppm"))
    assert "\n" not in str(caught.value)


def test_images_that_16_bits_make_black_are_refused_with_the_reason(tmp_path):
    write_parts(tmp_path)
    for path in tmp_path.rglob("*.png"):
        png_of_16_bits(path, np.full((10, 12, 3), 200))
    with pytest.raises(UserError, match=r"one colour in a channel; the largest .* is 255 of 65535"):
        list(described(images(tmp_path)))


def test_16_bits_of_which_zero_is_white_are_refused():
    """Pillow reads them as their negative."""
    file = io.BytesIO()
    Image.fromarray(np.full((4, 4), 65535, np.uint16)).save(file, "TIFF")
    one_is_white = struct.pack("<HHIHH", 262, 3, 1, 1, 0)
    assert file.getvalue().count(one_is_white) == 1
    data = file.getvalue().replace(one_is_white, struct.pack("<HHIHH", 262, 3, 1, 0, 0))
    with strictly():
        assert np.asarray(decode(file.getvalue(), Path("a.tif"))).min() == 255
        with pytest.raises(UserError, match=r"a.tif: .* largest is white, not black"):
            decode(data, Path("a.tif"))


@pytest.mark.parametrize("kind", ["float32", "int32"])
def test_values_without_a_known_range_are_refused(tmp_path, kind):
    picture = Image.fromarray(np.ones((10, 12), kind))
    with pytest.raises(UserError, match=r"0one.tif: expected 8 or 16 bits a channel"):
        one_picture(tmp_path, picture, "one.tif")


@pytest.mark.parametrize("name", ["one.jpg", "one.png", "one.tif", "one.webp"])
@pytest.mark.parametrize("orientation", range(1, 9))
def test_the_orientation_that_a_camera_noted_is_applied(tmp_path, name, orientation):
    upright = np.zeros((16, 16, 3), np.uint8)
    upright[:8, :8] = 255  # one quarter is white
    turns = {1: 0, 3: 2, 6: 1, 8: 3, 2: 0, 4: 2, 5: 3, 7: 1}[orientation]
    exif = Image.Exif()
    exif[0x0112] = orientation
    stored = np.rot90(upright, turns)
    if orientation in (2, 4, 5, 7):  # seen in a mirror, too
        stored = np.fliplr(stored)
    stored = Image.fromarray(np.ascontiguousarray(stored))
    got = one_picture(tmp_path, stored, name, exif=exif)
    assert np.abs(got.astype(int) - upright).mean() < 3


@pytest.mark.parametrize("mode", ["RGBA", "LA", "P", "L", "RGB"])
def test_what_is_transparent_is_white(tmp_path, mode):
    alpha = np.full((10, 12), 255, np.uint8)
    alpha[:, :6] = 0
    colours = np.dstack([np.full((10, 12, 3), 40, np.uint8), alpha])
    options = {}
    picture = Image.fromarray(colours, "RGBA")
    if mode == "LA":
        picture = picture.convert("LA")
    elif mode == "P":
        picture = picture.quantize(8)
    elif mode in ("L", "RGB"):  # one colour stands for transparency
        grey = np.where(alpha == 0, 7, 40).astype(np.uint8)
        picture = Image.fromarray(grey).convert(mode)
        options = {"transparency": 7 if mode == "L" else (7, 7, 7)}
    got = one_picture(tmp_path, picture, **options)
    assert (got[:, :6] == 255).all()
    assert (got[:, 6:] == 40).all()


def test_what_is_half_transparent_is_half_white(tmp_path):
    colours = np.full((10, 12, 4), 40, np.uint8)
    colours[..., 3] = 128
    got = one_picture(tmp_path, Image.fromarray(colours, "RGBA"))
    assert np.abs(got.astype(int) - 147).max() <= 1


@pytest.mark.parametrize("mode", ["1", "L", "P", "CMYK"])
def test_other_modes_of_8_bits_are_kept(tmp_path, mode):
    picture = Image.fromarray(pictures(1, 10, 12, 3)[0]).convert(mode)
    got = one_picture(tmp_path, picture, "one.tif" if mode == "CMYK" else "one.png")
    assert np.array_equal(got, np.asarray(picture.convert("RGB")))


@pytest.mark.parametrize("name", ["one.gif", "one.webp", "one.tif", "one.png"])
def test_several_frames_are_refused(tmp_path, name):
    first, second = (Image.fromarray(image) for image in pictures(2, 10, 12, 3))
    with pytest.raises(UserError, match="expected one picture, not 2"):
        one_picture(tmp_path, first, name, save_all=True, append_images=[second])


def test_a_decompression_bomb_is_named(tmp_path, monkeypatch):
    write_parts(tmp_path)
    monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", 100)
    refused(tmp_path, "ant/000.png is cut short, corrupt or no image .*decompression bomb")


def test_limits_take_classes_in_turn(tmp_path):
    write_parts(tmp_path, train=20, test=10)
    splits = load(images(tmp_path, train_limit=10, test_limit=3, val_fraction=0.5))
    assert per_class(splits.test) == [1, 1, 1]
    assert (np.bincount(splits.train.labels) + np.bincount(splits.val.labels)).tolist() == [4, 3, 3]
    everything = load(images(tmp_path))
    assert np.array_equal(splits.test.images, everything.test.images[::10])


def test_limits_give_what_small_classes_lack_to_others(tmp_path):
    write_parts(tmp_path, train=2, test=2)
    write_classes(tmp_path / "more", 6, names=("ant",))
    (tmp_path / "more" / "ant").rename(tmp_path / "train" / "ant" / "more")
    assert per_class(load(images(tmp_path, train_limit=9)).train) == [5, 2, 2]


def test_limits_take_classes_in_turn_of_npz_too(tmp_path):
    labels = np.repeat(np.arange(3), 4)
    path = write_npz(tmp_path / "a.npz", train_images=pictures(12, 8, 8), train_labels=labels)
    assert per_class(load(images(path, train_limit=6)).train) == [2, 2, 2]


@pytest.mark.parametrize("key", ["train_limit", "test_limit"])
def test_a_limit_that_leaves_classes_without_images_is_named(tmp_path, key):
    path = write_npz(tmp_path / "a.npz")
    for root in (write_parts(tmp_path / "parts"), path):
        refused(root, f"dataset.{key}=2: expected at least 3, an image of each", **{key: 2})
        assert load(images(root, **{key: 3})).train.classes is not None


def test_the_least_fraction_that_holds_an_image_out_is_named(tmp_path):
    write_parts(tmp_path, train=12)
    refused(tmp_path, "fraction=0.01: expected 0, or at least 0.0834, as", val_fraction=0.01)
    assert len(load(images(tmp_path, val_fraction=0.0834)).val) == 3
    refused(tmp_path, "fraction=0.1: .* 0.3334, .* of 3 images", val_fraction=0.1, train_limit=7)


def test_classes_are_counted_and_a_wrong_number_is_named(tmp_path):
    write_parts(tmp_path)
    config = images(tmp_path)
    assert config.num_classes is None
    assert with_statistics(config, load(config).train).num_classes == 3
    for wrong in (2, 9):
        refused(
            tmp_path,
            f"num_classes={wrong}: expected 3, as there are ant, bee, cat",
            num_classes=wrong,
        )
    path = write_npz(tmp_path / "a.npz")
    assert with_statistics(images(path), load(images(path)).train).num_classes == 3
    for wrong in (2, 9):
        refused(path, f"num_classes={wrong}: expected 3, as the labels go", num_classes=wrong)


@pytest.mark.parametrize(
    ("changed", "said"),
    [
        ({"train_labels": np.arange(6) % 2 * 2}, "training images of each of 3 .* label 1"),
        ({"test_labels": np.array([0, 1, 1])}, "test images of each of 3 classes, but label 2"),
        ({"train_labels": np.arange(6) - 1}, "training images: expected labels from 0 up, not -1"),
        ({"train_labels": np.full(6, 2**63, np.uint64)}, "from 0 up, not 9223372036854775808"),
        ({"train_labels": np.eye(6, dtype=int)}, r"integer labels of shape \(6,\).* \(6, 6\)"),
        ({"train_labels": np.arange(6) / 2}, "integer labels"),
        ({"train_images": pictures(6, 0, 8)}, "at least one pixel"),
        ({"train_images": pictures(6, 9, 8)}, "of one size in train and test, not 8x9 and 8x8"),
        ({"x_train": 1, "y_train": 1, "x_test": 1, "y_test": 1}, "expected arrays"),
    ],
)  # fmt: skip
def test_arrays_that_do_not_fit_are_named(tmp_path, changed, said):
    refused(write_npz(tmp_path / "a.npz", **changed), said)


def test_other_arrays_of_an_npz_are_noted(tmp_path):
    path = write_npz(tmp_path / "a.npz", val_images=pictures(2, 8, 8))
    assert load(images(path)).notes == ("not read: 'val_images'",)


def test_what_was_read_is_described(tmp_path):
    write_parts(tmp_path, train=4, second="val")
    others = ("train/ant/notes.txt", "train/ant/Thumbs.db", "val/list.TXT", "LICENSE", "a.csv")
    for other in others:
        (tmp_path / other).write_text("no image")
    lines = "\n".join(described(images(tmp_path, val_fraction=0.25)))
    assert "dataset=mine: 9 train, 3 held out, 6 test; 12x10 pixels" in lines
    assert "3 classes (train + held out + test): ant 3+1+2, bee 3+1+2, cat 3+1+2" in lines
    assert "measured" in lines
    assert "val/ is for testing, as there is no test/" in lines
    assert "5 files not read: 2 .txt, 1 without an ending, 1 .csv, 1 .db, such as" in lines


def resized(image: Image.Image, size: int) -> np.ndarray:
    """Scale the shorter side and cut the centre with Pillow alone."""
    width, height = image.size
    scale = size / min(width, height)
    wide, high = (int(size * n / min(width, height)) for n in (width, height))
    assert abs(wide - width * scale) < 1
    scaled = image.resize((wide, high), Image.Resampling.BILINEAR)
    left, top = round((wide - size) / 2), round((high - size) / 2)
    return np.asarray(scaled.crop((left, top, left + size, top + size)))


@pytest.mark.parametrize("size", [8, 16, 64])
def test_images_of_any_size_are_scaled_and_cropped(tmp_path, size):
    write_parts(tmp_path)
    paths = [tmp_path / "train" / "bee" / f"1{n}.png" for n in range(2)]
    for path, shape in zip(paths, ((20, 31), (40, 17)), strict=True):
        Image.fromarray(pictures(1, *shape, 3)[0]).save(path)
    refused(tmp_path, r"bee/10.png is 31x20, but .*ant/000.png is 12x10: .*dataset.size=64")
    for _ in range(2):  # the second time from the cache
        train = load(images(tmp_path, size=size)).train
        assert train.images.shape == (14, size, size, 3)
        for path, image in zip(paths, train.images[8:10], strict=True):
            with Image.open(path) as picture:
                assert np.array_equal(image, resized(picture, size))


@pytest.mark.slow
def test_what_does_not_fit_stops_a_sweep_before_its_first_run(tmp_path):
    root = write_parts(tmp_path / "data")
    Image.new("RGB", (9, 9)).save(root / "test" / "cat" / "odd.png")
    own = ("dataset=images", "dataset.name=mine", f"dataset.root={root}", "arch=resnet8")
    done = run_command("-m", *own, "trainer.epochs=1", "seed=0,1", cwd=tmp_path)
    assert done.returncode == 2
    assert len(done.stderr.splitlines()) == 1
    assert "odd.png is 9x9, but" in done.stderr
    assert not (tmp_path / "runs").exists()


@pytest.mark.slow
def test_a_dry_run_reads_the_images_and_writes_nothing(tmp_path, monkeypatch, capfd):
    root = write_parts(tmp_path / "data")
    Image.new("RGB", (9, 9)).save(root / "test" / "cat" / "odd.png")
    own = ("dataset=images", "dataset.name=mine", f"dataset.root={root}", "arch=resnet8")
    monkeypatch.chdir(tmp_path)

    def dry_run(*more):
        config = make_config(*own, "sweep.dry_run=true", "devices.cpu_slots=1", *more)
        return run_sweep([config], lambda *_: pytest.fail("nothing may start"))

    with pytest.raises(UserError, match=r"odd.png is 9x9, but .*dataset.size=64"):
        dry_run()
    broken = root / "train" / "cat" / "broken.png"
    broken.write_bytes(b"\x89PNG")
    with pytest.raises(UserError, match=r"broken.png is cut short, corrupt or no image"):
        dry_run("dataset.size=8")
    broken.unlink()
    assert dry_run("dataset.size=8") == 0
    out = capfd.readouterr().out
    plan, _, read = out.rpartition("1 to run, 0 to resume, 0 to skip; 1 at once")
    assert plan.count("run     mine/resnet8/standard seed=0") == 3
    assert "12 train, 7 test; 8x8 pixels" in read
    assert not (tmp_path / "runs").exists()
    assert not cached()


@pytest.mark.slow
def test_a_reader_that_leaves_is_no_noise(tmp_path):
    own = f"dataset=images dataset.name=mine dataset.root={write_parts(tmp_path / 'data')}"
    run = f"{sys.executable} {REPOSITORY / 'run.py'} arch=resnet8 sweep.dry_run=true {own}"
    done = subprocess.run(f"{run} | head -1", shell=True, cwd=tmp_path, capture_output=True)
    assert done.stdout.startswith(b"run     mine/resnet8")
    assert done.stderr == b""


def test_a_picture_far_from_square_is_not_scaled_to_gigabytes(tmp_path):
    write_parts(tmp_path)
    Image.new("RGB", (60000, 1)).save(tmp_path / "train" / "ant" / "line.png")
    refused(tmp_path, "line.png: 60000x1 is too narrow for dataset.size=64", size=64)


def test_arrays_are_scaled_too(tmp_path):
    path = write_npz(tmp_path / "a.npz")
    assert load(images(path, size=4)).train.images.shape == (6, 4, 4, 3)


def cached(tmp_path_factory=None):
    import os
    from pathlib import Path

    return list(Path(os.environ["XDG_CACHE_HOME"]).rglob("images-*"))


@pytest.mark.parametrize("damage", ["cut", "flip", "empty"])
def test_scaled_images_are_cached_and_damage_is_seen(tmp_path, damage, monkeypatch):
    write_parts(tmp_path)
    first = load(images(tmp_path, size=8))
    (file,) = cached()
    monkeypatch.setattr("resnests.data.folder.decode_all", None)  # the cache is used
    assert np.array_equal(load(images(tmp_path, size=8)).train.images, first.train.images)
    monkeypatch.undo()
    monkeypatch.setenv("XDG_CACHE_HOME", str(file.parent.parent))
    content = bytearray(file.read_bytes())
    if damage == "flip":
        content[-5] ^= 1
    file.write_bytes({"cut": content[:-1], "empty": b"", "flip": content}[damage])
    again = load(images(tmp_path, size=8))
    assert np.array_equal(again.train.images, first.train.images)
    assert np.array_equal(again.test.labels, first.test.labels)


def test_the_cache_follows_the_images(tmp_path):
    write_parts(tmp_path)
    first = load(images(tmp_path, size=8)).train.images
    Image.fromarray(pictures(1, 10, 12, 3)[0]).save(tmp_path / "train" / "ant" / "000.png")
    second = load(images(tmp_path, size=8)).train.images
    assert not np.array_equal(first[0], second[0])
    assert np.array_equal(first[1:], second[1:])
    assert len(cached()) == 2


def test_without_a_place_for_the_cache_nothing_fails(tmp_path, monkeypatch):
    write_parts(tmp_path)
    (tmp_path / "file").write_text("")
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "file"))
    assert len(load(images(tmp_path, size=8)).train) == 12
    assert not [path for path in tmp_path.rglob("tmp*") if path.is_file()]
    monkeypatch.delenv("XDG_CACHE_HOME")

    def homeless():
        raise RuntimeError("Could not determine home directory.")

    monkeypatch.setattr(cache.Path, "home", homeless)
    assert len(load(images(tmp_path, size=8)).train) == 12
