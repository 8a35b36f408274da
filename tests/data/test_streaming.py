"""Images that are larger than pipeline.memory_gb are read batch by batch: the same, bit for bit."""

import itertools
import os
import pickle
import shutil
import threading
import tracemalloc
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from data_images import images, pictures, write_classes, write_npz, write_parts
from graphs import needs_gpu
from helpers import history, make_config, tiny
from PIL import Image

from resnests.config.recipe import recipe_hash
from resnests.config.schema import config_dict, config_from, part_from
from resnests.data import ahead as ahead_module
from resnests.data import decoding, stored, views
from resnests.data.ahead import ahead
from resnests.data.arrays import Split
from resnests.data.digest import dataset_digest
from resnests.data.images import Streamed, images_of
from resnests.data.pipelines import build_pipeline
from resnests.data.splits import described, load, with_statistics
from resnests.data.views import ImageView
from resnests.environment import PROGRESS, begin_dry_run
from resnests.errors import UserError
from resnests.models.weights import read_torch
from resnests.runs.directory import RunDirectory
from resnests.tasks.experiment import run_experiment
from resnests.text import progress

CPU = torch.device("cpu")


@pytest.fixture(autouse=True)
def cache(tmp_path_factory, monkeypatch) -> Path:
    place = tmp_path_factory.mktemp("cache")
    monkeypatch.setenv("XDG_CACHE_HOME", str(place))
    return place / "resnests"


@pytest.fixture(autouse=True)
def _no_thread_is_left():
    yield
    assert not [one for one in threading.enumerate() if one.name.startswith("ahead")]


def run_of(runs: Path, memory_gb, *overrides, **dataset):
    """Return a run of the digits, or of the data set that is given."""
    tree = config_dict(tiny(f"runs_dir={runs}", f"pipeline.memory_gb={memory_gb}", *overrides))
    return config_from(tree | {"dataset": tree["dataset"] | dataset} if dataset else tree)


def outcome(config):
    directory = RunDirectory.of(config)
    return history(directory.path), read_torch(directory.weights_file)


def assert_same(one, other):
    assert one[0] == other[0]
    torch.testing.assert_close(one[1], other[1], rtol=0, atol=0)


def trained(config):
    assert run_experiment(config) == "complete"
    return outcome(config)


OWN = {"name": "mine", "source": "images", "num_classes": None, "mean": None, "std": None}
OWN |= {"train_limit": None, "test_limit": None}


@pytest.mark.slow
@pytest.mark.parametrize(
    "overrides",
    [
        (),
        ("dataset.val_fraction=0.2", "trainer.ema=0.9"),
        ("augment=cutout", "pipeline.mix=mixup", "dataset.train_limit=50"),
        ("pipeline=torchvision", "trainer.epochs=1"),
    ],
)
def test_the_digits_train_as_in_memory(tmp_path, overrides):
    one, other = (run_of(tmp_path / m, m, *overrides) for m in ("null", "0"))
    assert recipe_hash(one) == recipe_hash(other)
    assert isinstance(load(other.dataset, None, 0).train.images, ImageView)
    assert_same(trained(one), trained(other))


@pytest.mark.parametrize(
    "values",
    [
        {"size": None},
        {"size": 16, "val_fraction": 0.25, "test_limit": 4},
        {"size": 12, "train_limit": 9},
    ],
)
def test_a_folder_trains_as_in_memory(tmp_path, values, cache):
    root = write_parts(tmp_path / "data", train=8, test=3)
    values = OWN | {"root": str(root)} | values
    one, other = (run_of(tmp_path / m, m, **values) for m in ("null", "0"))
    assert_same(trained(one), trained(other))
    assert len(list(cache.glob("*.uint8"))) == 1
    assert_same(trained(run_of(tmp_path / "c", 0, **values)), outcome(one))  # as it is there
    digest = dataset_digest(one.dataset)
    assert load(one.dataset, digest, 0).notes == load(one.dataset, digest).notes


def test_what_is_within_the_bound_is_in_memory(tmp_path):
    root = write_parts(tmp_path / "data")  # 18 images of 360 bytes
    for data in (images(root), images(root, size=10), make_config("dataset=digits").dataset):
        assert isinstance(load(data, None, 0.1).train.images, np.ndarray)
    assert isinstance(load(images(root), None, 18 * 360e-9).train.images, np.ndarray)
    assert isinstance(load(images(root), None, 17.9 * 360e-9).train.images, ImageView)


def test_arrays_stay_where_they_are_and_are_chosen_from_by_views(tmp_path):
    data = images(write_npz(tmp_path / "a.npz"), val_fraction=0.5, size=4)
    one, other = load(data), load(data, None, 0)
    for name in ("train", "val", "test"):
        view = getattr(other, name).images
        assert np.array_equal(view, getattr(one, name).images)
        assert isinstance(view, ImageView)
        assert np.array_equal(view[1:3], np.stack(list(view))[1:3])
    assert with_statistics(data, one.train) == with_statistics(data, other.train)
    assert list(described(data)) == list(described(data, 0))


def test_mapped_arrays_of_a_target_are_not_copied(tmp_path, monkeypatch):
    code = """
import numpy as np
def maps(file):
    images = np.memmap(file, np.uint8, "r", shape=(9, 4, 4, 3))
    return {"train": (images[:6], np.arange(6) % 2), "test": (images[6:], np.arange(3) % 2)}
"""
    (tmp_path / "mapped.py").write_text(code)
    monkeypatch.syspath_prepend(tmp_path)
    pictures(9, 4, 4, 3).tofile(tmp_path / "images")
    values = {"name": "m", "_target_": "mapped.maps", "file": str(tmp_path / "images")}
    train = load(part_from("dataset", values | {"val_fraction": 0.4}), None, 0).train.images
    assert not train.source.flags.owndata
    assert isinstance(train.source.base, np.memmap)
    expected = np.fromfile(tmp_path / "images", np.uint8).reshape(9, 4, 4, 3)
    assert np.array_equal(train, expected[train.places])


def test_mean_and_std_do_not_depend_on_chunks(tmp_path, monkeypatch):
    data = images(write_npz(tmp_path / "a.npz"))
    loaded = load(data)
    pixels = loaded.train.images.reshape(-1, 3)
    levels = np.arange(256) / 255
    counts = [np.bincount(pixels[:, channel], minlength=256) for channel in range(3)]
    expected = [float(count @ levels / count.sum()) for count in counts]
    for size in (views.CHUNK, 300):
        monkeypatch.setattr(views, "CHUNK", size)
        assert with_statistics(data, loaded.train).mean == expected


def test_an_interrupted_run_goes_on_bit_for_bit(tmp_path):
    more = ("augment=cutout", "dataset.val_fraction=0.2")
    whole = trained(run_of(tmp_path / "a", "null", *more))
    parts = run_of(tmp_path / "b", 0, *more)
    questions = itertools.count(1)
    while run_experiment(parts, should_stop=lambda: next(questions) % 4 == 0) != "complete":
        assert not [one for one in threading.enumerate() if one.name.startswith("ahead")]
    assert next(questions) > 6, "it was interrupted again and again"
    assert_same(outcome(parts), whole)


@pytest.mark.slow
@pytest.mark.parametrize("task", ["evaluate", "analyze"])
def test_other_tasks_read_the_same(tmp_path, task):
    """And predictions.npz is that of images in memory."""
    small = ("variant=a_resnest", "trainer.epochs=1", "predictions=true")
    run = run_of(tmp_path, "null", *small)
    trained(run)
    predictions, found = [], []
    for memory_gb in ("null", "0"):
        given = () if task == "analyze" else (f"weights='{RunDirectory.of(run).weights_file}'",)
        again = run_of(tmp_path, memory_gb, *small, f"task={task}", *given)
        assert run_experiment(again) == "complete"
        directory = RunDirectory.of(again)
        record = directory.read_record()
        found.append((record.test_loss, record.test_accuracy))
        if task == "evaluate":
            with np.load(directory.predictions_file) as file:
                predictions.append(file["logits"])
        shutil.rmtree(directory.path)
    assert found[0] == found[1]
    assert task == "analyze" or np.array_equal(*predictions)


class Killed(BaseException):
    """Stands for a signal that nobody catches."""


@pytest.fixture
def decodes(monkeypatch):
    """Return the names of the pictures that were decoded; the ones in `fatal` end the process."""
    made = decoding.image_of

    def image_of(data, path, size):
        name = str(path.relative_to(path.parents[2]))
        names.append(name)  # several threads do
        if name in names.fatal:
            raise Killed
        return made(data, path, size)

    class Names(list):
        fatal = ()

    names = Names()
    monkeypatch.setattr(decoding, "image_of", image_of)
    return names


def killed_build(tmp_path, decodes):
    data = images(write_parts(tmp_path / "data", train=40))
    expected = load(data)
    decodes.fatal = ["train/cat/030.png"]
    with pytest.raises(Killed):
        load(data, None, 0)
    decodes.fatal = ()
    decodes.clear()
    return data, expected


def assert_loads(data, expected):
    for _ in range(2):  # the second time from the finished file
        found = load(data, None, 0)
        assert np.array_equal(found.train.images, expected.train.images)
        assert np.array_equal(found.test.images, expected.test.images)


def test_a_build_that_was_killed_goes_on(tmp_path, decodes, cache):
    data, expected = killed_build(tmp_path, decodes)
    assert not list(cache.glob("*.uint8")), "no half of a file has the name of a whole"
    assert_loads(data, expected)
    of_test = [f"test/{name}/00{k}.png" for name in ("ant", "bee", "cat") for k in range(2)]
    for_the_size = ["train/ant/000.png"] * 2  # each time
    left = [f"train/cat/{k:03d}.png" for k in range(30, 40)]
    assert sorted(decodes) == sorted(for_the_size + left + of_test), "in no order: several at once"
    assert not list(cache.glob("*.part"))


@pytest.mark.parametrize("damage", ["pixels", "pixels cut", "sums", "sums cut", "no sums", "more"])
def test_what_a_killed_build_left_is_checked(tmp_path, decodes, cache, damage):
    data, expected = killed_build(tmp_path, decodes)
    suffix = ".sums.part" if "sums" in damage else ".uint8.part"
    (part,) = cache.glob(f"*{suffix}")
    content = bytearray(part.read_bytes())
    half = len(content) // 2
    if damage == "no sums":
        part.unlink()
    elif damage.endswith("cut"):
        part.write_bytes(content[:half])
    elif damage == "more":
        part.write_bytes(content + bytes(90_000))
    else:
        content[half] ^= 1
        part.write_bytes(content)
    assert_loads(data, expected)


def test_a_picture_that_changed_since_is_decoded_anew(tmp_path, decodes):
    """Where it was another when a killed build decoded it, and what it was before afterwards."""
    data = images(write_parts(tmp_path / "data", train=40))
    expected = load(data)
    path = tmp_path / "data" / "train" / "ant" / "003.png"
    sound, other = path.read_bytes(), (path.parent / "004.png").read_bytes()
    digest, decodes.fatal = decoding.digest_of_files, ["train/cat/030.png"]

    def digest_then_change(listing):
        found = digest(listing)
        path.write_bytes(other)
        return found

    stored.digest_of_files = digest_then_change
    try:
        with pytest.raises(Killed):
            load(data, None, 0)
        path.write_bytes(sound)
        decodes.fatal = ()
        with pytest.raises(UserError, match="changed while they were read: give the command again"):
            load(data, None, 0)
    finally:
        stored.digest_of_files = digest
    assert not list(tmp_path.rglob("*.part")), "of a digest that may never come again"
    path.write_bytes(sound)
    assert_loads(data, expected)


def test_the_file_follows_the_images(tmp_path, cache):
    root = write_parts(tmp_path)
    digest = dataset_digest(images(root))
    first = load(images(root), digest, 0).train.images[:]
    Image.fromarray(pictures(1, 10, 12, 3)[0]).save(root / "train" / "ant" / "000.png")
    with pytest.raises(UserError, match="the images changed since the sweep was planned"):
        load(images(root), digest, 0)
    second = load(images(root), dataset_digest(images(root)), 0).train.images[:]
    assert np.array_equal(first[1:], second[1:])
    assert not np.array_equal(first[0], second[0])
    assert len(list(cache.glob("*.uint8"))) == 2


def test_images_that_were_scaled_are_not_those_of_pictures_of_one_size(tmp_path):
    """The first picture has the size to which the others were scaled."""
    root = write_parts(tmp_path)
    whole = Image.fromarray(pictures(1, 24, 24, 3)[0])
    for part in ("train", "test"):
        for path in sorted((root / part).rglob("*.png"))[:1]:
            whole.save(path)
    data = images(root)
    assert load(replace(data, size=24), None, 0).train.images.shape[1:] == (24, 24, 3)
    with pytest.raises(UserError, match=r"dataset\.size"):
        load(data, None, 0)


@pytest.mark.parametrize("which", ["uint8", "sums"])
@pytest.mark.parametrize("damage", ["cut", "flip", "gone"])
def test_a_damaged_file_is_never_read_as_sound(tmp_path, cache, which, damage):
    data = images(write_parts(tmp_path))
    expected = load(data)
    load(data, None, 0)
    (file,) = cache.glob(f"*.{which}")
    content = bytearray(file.read_bytes())
    content[-5] ^= 1
    file.write_bytes(content if damage == "flip" else content[:-13])
    if damage == "gone":
        file.unlink()
    found = load(data, None, 0)
    if damage == "flip":
        with pytest.raises(UserError, match=r"images-.* is cut short or corrupt: delete it, and"):
            found.test.images[:]
    else:
        assert np.array_equal(found.test.images, expected.test.images)


@pytest.mark.slow
@pytest.mark.parametrize("damage", ["cut", "flip", "closed", "cut torchvision"])
def test_what_fails_in_the_thread_ends_the_run_with_a_line(tmp_path, cache, damage, monkeypatch):
    root = write_parts(tmp_path / "data", train=20)
    values = OWN | {"root": str(root)}
    damage, _, pipeline = damage.partition(" ")
    more = (f"pipeline={pipeline or 'tensor'}", "trainer.epochs=50", "trainer.batch_size=8")
    run = run_of(tmp_path, 0, *more, **values)
    steps = itertools.count()

    def harm():
        if next(steps) == 20:
            (file,) = cache.glob("*.uint8")
            content = bytearray(file.read_bytes())
            content[: len(content) // 2] = bytes(len(content) // 2)
            if damage == "closed":
                monkeypatch.setattr(os, "preadv", broken)
            else:
                os.truncate(file, 1000) if damage == "cut" else file.write_bytes(content)
        return False

    def broken(*_):
        raise OSError(5, "Input/output error")

    said = "cannot be read .Input/output" if damage == "closed" else "is cut short or corrupt"
    with pytest.raises(UserError, match=rf"^/.*/images-\S*.uint8 {said}") as caught:
        run_experiment(run, should_stop=harm)
    assert "\n" not in str(caught.value)
    assert RunDirectory.of(run).status() == "failed"


def test_a_file_that_vanished_while_it_is_open_is_read_to_the_end(tmp_path, cache):
    data = images(write_parts(tmp_path))
    view = load(data, None, 0).train.images
    for file in cache.glob("*"):
        file.unlink()
    assert np.array_equal(view, load(data).train.images)


def test_memory_does_not_grow_with_the_images(tmp_path, monkeypatch):
    monkeypatch.setattr(views, "CHUNK", 2**18)
    monkeypatch.setattr("joblib.cpu_count", lambda: 2)  # each core has four pictures in memory
    for index in range(60):
        folder = tmp_path / "data" / ("ant" if index % 2 else "bee")
        folder.mkdir(parents=True, exist_ok=True)
        Image.new("RGB", (400, 400), (index, 9 + index, 200 - index)).save(folder / f"{index}.bmp")
    data, size = images(tmp_path / "data", val_fraction=0.3), 60 * 400 * 400 * 3
    load(data)  # imports
    tracemalloc.start()
    try:
        splits = load(data, None, 0)
        dataset = with_statistics(data, splits.train)
        held = images_of(splits.test, dataset, CPU, batch_size=4)
        assert sum(len(labels) for _, labels in held.batches(4)) == 12
        peak = tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()
    assert peak < size / 2
    assert held.images.shape[0] == 4


def test_a_dry_run_leaves_nothing(tmp_path, cache):
    begin_dry_run()
    data = images(write_parts(tmp_path / "data"))
    expected, found = load(data), load(data, None, 0)
    assert np.array_equal(found.train.images, expected.train.images)
    assert not cache.exists()


def test_a_view_of_a_file_travels_to_another_process_by_its_name(tmp_path):
    view = load(images(write_parts(tmp_path)), None, 0).train.images
    sent = pickle.dumps(view)
    assert len(sent) < 1000
    assert np.array_equal(pickle.loads(sent), view)


@pytest.mark.parametrize("value", ["-1", "nan", "inf"])
def test_a_bound_that_is_none_is_refused(value):
    with pytest.raises(UserError, match=r"pipeline.memory_gb=.*: expected (0 or more|a finite)"):
        make_config(f"pipeline.memory_gb={value}")


def test_where_nothing_can_be_kept_a_line_says_so(tmp_path, monkeypatch):
    data = images(write_parts(tmp_path / "data"))
    (tmp_path / "file").write_text("")
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "file"))
    said = r"pipeline.memory_gb: expected a place for 6.48e-06 GB of images \(Not a directory\): "
    with pytest.raises(UserError, match=said):
        load(data, None, 0)
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "full"))
    usage = type("Usage", (), {"free": 100})
    monkeypatch.setattr(stored.shutil, "disk_usage", lambda folder: usage)
    with pytest.raises(UserError, match="No space left on device"):
        load(data, None, 0)


def test_a_picture_that_is_unsound_is_named_as_in_memory(tmp_path):
    root = write_parts(tmp_path)
    for content, where in ((b"no picture", "train/bee/001.png"), (b"", "train/ant/002.png")):
        (root / where).write_bytes(content)
        for memory_gb in (None, 0):
            with pytest.raises(UserError, match=f"{where} is cut short, corrupt or no image"):
                load(images(root), None, memory_gb)
    (root / where).unlink()
    write_classes(tmp_path / "train" / "ant" / "large", 1, size=(5, 5), names=("x",))
    for memory_gb in (None, 0):
        with pytest.raises(UserError, match=r"000.png is 5x5, but .*000.png is 12x10: expected"):
            load(images(root), None, memory_gb)


@pytest.mark.parametrize("size", [(12, 10), (8, 8)])  # as many bytes as the first has, and fewer
def test_a_picture_of_another_size_is_refused_by_the_next_command_too(tmp_path, size):
    write_classes(tmp_path / "train", 4)
    write_classes(tmp_path / "test", 2, size)
    for _ in range(2):  # the second time all pictures of the first's size are known
        with pytest.raises(UserError, match="12x10: expected images of one size"):
            load(images(tmp_path), None, 0)


def test_work_ahead_is_bounded_in_order_and_ends_early():
    begun, pools = [], []
    made = ahead_module.ThreadPoolExecutor

    def work(item):
        begun.append(item)
        if item == 7:
            raise UserError("seven")
        return item * 2

    ahead_module.ThreadPoolExecutor = lambda *a: pools.append(made(*a)) or pools[-1]
    try:
        found = ahead(work, iter(range(1000)), most=3)
        assert [next(found) for _ in range(5)] == [0, 2, 4, 6, 8]
        found.close()
        assert max(begun) <= 8
        with pytest.raises(UserError, match="seven"):
            list(ahead(work, range(10)))
    finally:
        ahead_module.ThreadPoolExecutor = made
    assert not any(thread.is_alive() for pool in pools for thread in pool._threads)


def test_progress_is_shown_on_the_terminal_of_another_process(monkeypatch):
    controller, terminal = os.openpty()
    monkeypatch.setenv(PROGRESS, str(terminal))
    clock = itertools.count(0, 2)
    monkeypatch.setattr("resnests.text.time.monotonic", lambda: next(clock))
    assert list(progress(iter("abc"), "decoding", 3)) == ["a", "b", "c"]
    shown = b""
    while b"decoding" not in shown:  # a terminal gives what there is by now
        shown += os.read(controller, 10_000)
    os.close(controller)
    os.close(terminal)


def test_batches_are_those_in_memory():
    rng = np.random.default_rng(0)
    pixels = rng.integers(0, 256, (50, 8, 8, 3), dtype=np.uint8)
    dataset = make_config().dataset
    whole = images_of(Split(pixels, np.arange(50)), dataset, CPU)
    read = images_of(Split(ImageView(pixels), np.arange(50)), dataset, CPU, batch_size=16)
    assert isinstance(read, Streamed)
    for one, other in zip(whole.batches(16), read.batches(16), strict=True):
        torch.testing.assert_close(one, other, rtol=0, atol=0)


@needs_gpu
def test_on_a_gpu_copies_are_done_before_they_are_read():
    """Also where the device is behind, and memory is used again and again."""
    gpu, rng = torch.device("cuda"), np.random.default_rng(0)
    pixels = rng.integers(0, 256, (3000, 32, 32, 3), dtype=np.uint8)
    split = Split(pixels, np.arange(3000) % 10)
    config = make_config("trainer.batch_size=64")
    views_of_it = replace(split, images=ImageView(pixels))
    whole, read = (build_pipeline(config, config.dataset, one, gpu) for one in (split, views_of_it))
    busy = torch.randn(4096, 4096, device=gpu)
    for epoch in (1, 2):
        for one, other in zip(whole.batches(epoch), read.batches(epoch), strict=True):
            busy = (busy @ busy).tanh()
            torch.testing.assert_close(one, other, rtol=0, atol=0)
