"""What people read of values and numbers."""

import math

import pytest

from resnests.text import accuracy, as_typed, brief, duration, epoch_line, flat

ROW = {"epoch": 2.0, "lr": 0.1, "seconds": 3.0, "images_per_second": 100.0, "train_loss": 0.5}
ROW |= {"train_accuracy": 80.0, "test_loss": 0.0, "test_accuracy": 0.0}


def test_where_images_were_held_out_their_accuracy_is_printed_not_the_test_sets():
    assert accuracy(91.0) == "test 91.00%"
    assert accuracy(91.0, 92.0) == "validation 92.00%"
    assert accuracy(91.0, 0.0) == "validation 0.00%"


def test_an_epoch_is_a_line_and_zero_is_a_measured_number():
    assert "test loss 0.0000 0.00%, 3.0 s" in epoch_line(ROW, 5)
    line = epoch_line(ROW | {"val_loss": 0.0, "val_accuracy": 0.0}, 5)
    assert "validation loss 0.0000 0.00%, 3.0 s" in line
    assert "test" not in line
    line = epoch_line(ROW | {"test_loss": math.nan, "val_loss": math.nan}, 5)
    assert line == "epoch 2/5: lr 0.1, train loss 0.5000 80.00%, 3.0 s, 100 images/s"


def test_values_are_written_as_one_types_them():
    values = [None, True, 0.1, [1, None], {"a": [False], "b": {"_target_": "x.Y"}}, "word"]
    typed = ["null", "true", 0.1, "[1,null]", "{a:[false],b:{_target_:x.Y}}", "word"]
    assert [as_typed(value) for value in values] == typed
    assert dict(flat({"a": {"b": {"c": 1}, "d": [2]}, "e": None})) == {
        "a.b.c": 1,
        "a.d": [2],
        "e": None,
    }


@pytest.mark.parametrize(
    ("seconds", "text"),
    [(1.24, "1.2 s"), (59.4, "59.4 s"), (90, "1:30 min"), (3600, "1:00 h"), (93_600, "26:00 h")],
)
def test_durations_are_readable(seconds, text):
    assert duration(seconds) == text


def test_labels_have_a_target_as_a_call():
    cutout = {"_target_": "resnests.data.augment.Cutout", "size": 16}
    assert brief([cutout, {"_target_": "mine.Noise"}]) == "[Cutout(size=16),mine.Noise]"
    assert (
        brief({"_target_": "torchvision.transforms.v2.MixUp", "alpha": 0.5}) == "MixUp(alpha=0.5)"
    )
    assert brief([1, None]) == "[1,null]"
