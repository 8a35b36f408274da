"""TensorBoard's event files, read back by its own reader."""

import pytest
from curves import EPOCHS, Training, measured

pytest.importorskip("tensorboard", reason="needs resnests[tensorboard]")

from tensorboard.backend.event_processing.event_accumulator import EventAccumulator
from tensorboard.plugins.hparams.metadata import PLUGIN_NAME, parse_session_start_info_plugin_data

from resnests.commands.track import export

TARGET = "resnests.trackers.tensorboard.TensorBoard"


def make_training(folder) -> Training:
    settings = {"_target_": TARGET, "folder": str(folder / "tb")}
    return Training(folder / "runs", "tensorboard", settings)


def read(folder) -> EventAccumulator:
    (file,) = {path.parent for path in folder.rglob("events.out.tfevents.*")}
    events = EventAccumulator(str(file), size_guidance={"scalars": 0, "images": 0})
    events.Reload()
    return events


def curve(events: EventAccumulator, tag: str) -> list[tuple[int, float]]:
    return [(event.step, event.value) for event in events.Scalars(tag)]


def assert_whole(events: EventAccumulator) -> None:
    for name in ("train_loss", "test_accuracy", "lr", "seconds"):
        steps = curve(events, name)
        assert dict(steps) == pytest.approx(measured(name))
        assert len(steps) == len(measured(name)), "no epoch is doubled"


def test_a_run_has_its_curve_its_metrics_and_its_figure(tmp_path):
    make_training(tmp_path).sync(1, 2, EPOCHS, end="complete")
    events = read(tmp_path / "tb")
    assert_whole(events)
    assert curve(events, "final/test_accuracy") == [(EPOCHS, 90.0)]
    (image,) = events.Images("figures/curves")
    assert image.encoded_image_string.startswith(b"\x89PNG")
    assert (image.width, image.height) == (990, 1170)
    start = events.SummaryMetadata("_hparams_/session_start_info").plugin_data
    assert start.plugin_name == PLUGIN_NAME
    info = parse_session_start_info_plugin_data(start.content)
    assert info.group_name.startswith("cifar10/resnet20/standard/")
    assert info.hparams["optimizer.lr"].number_value == 0.1
    assert info.hparams["variant"].string_value == "standard"
    assert not any(key.startswith(("devices.", "runs_dir", "seed")) for key in info.hparams)


@pytest.mark.parametrize("end", ["interrupted", None])
def test_a_resumed_run_goes_on_with_its_curve(tmp_path, end):
    training = make_training(tmp_path)
    training.sync(1, 2, end=end)
    training.sync(2, 3, EPOCHS, end="complete")
    training.sync(EPOCHS, end="complete")
    events = read(tmp_path / "tb")
    assert_whole(events)
    assert len(events.Scalars("final/test_accuracy")) == 1


def test_the_end_of_a_file_that_was_lost_is_sent_again(tmp_path):
    training = make_training(tmp_path)
    training.sync(1, 2, 3)
    (file,) = (tmp_path / "tb").rglob("events.*")
    file.write_bytes(file.read_bytes()[:-40])
    training.sync(3, EPOCHS, end="complete")
    assert_whole(read(tmp_path / "tb"))


def test_what_starts_afresh_replaces_its_curve(tmp_path):
    training = make_training(tmp_path)
    training.sync(1, 2, 3, end="interrupted")
    training.start_afresh()
    training.sync(1)
    assert curve(read(tmp_path / "tb"), "train_loss") == [(1, 3.5)]


@pytest.mark.slow
def test_figures_that_are_sent_twice_are_there_once(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    training = make_training(tmp_path)
    training.sync(1, EPOCHS, end="complete")
    for _ in range(2):
        export("runs", ["tensorboard"])
    events = EventAccumulator(str(tmp_path / "tb" / "figures"))
    events.Reload()
    tags = events.Tags()["images"]
    assert tags
    assert {tag: len(events.Images(tag)) for tag in tags} == dict.fromkeys(tags, 1)
    training.run.write_history([row | {"train_loss": 0.1} for row in training.rows])
    export("runs", ["tensorboard"])
    events.Reload()
    steps = {tag: [image.step for image in events.Images(tag)] for tag in tags}
    assert steps["figures/curves_cifar10_resnet20"] == [0, 1], "a changed figure is the next one"
    (place,) = (tmp_path / "tb").rglob("seed=0")
    run = EventAccumulator(str(place))
    run.Reload()
    assert len(run.Images("figures/curves")) == 1
