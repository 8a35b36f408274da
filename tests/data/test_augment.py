"""Augmentations by `_target_`: per image or part of a batch, from a stream of each step's own."""

import numpy as np
import pytest
import torch
from helpers import TINY, history, make_config, tiny

from resnests.config.recipe import recipe_hash, recipe_values
from resnests.config.schema import config_dict, config_from
from resnests.data.augment import Augment, Cutout, drawing_from
from resnests.data.pipelines import build_pipeline
from resnests.data.splits import load, with_statistics
from resnests.errors import UserError
from resnests.runs.digests import with_digests
from resnests.runs.directory import RunDirectory
from resnests.tasks import preflight
from resnests.tasks.experiment import run_experiment

CPU = torch.device("cpu")
PRESETS = ["paper", "none", "cutout", "erasing", "jitter", "trivial", "rand", "mixup", "cutmix"]


def pipeline(config):
    splits = load(config.dataset)
    return build_pipeline(config, with_statistics(config.dataset, splits.train), splits.train, CPU)


def augmented(*transforms, **more):
    tree = config_dict(tiny("trainer.epochs=1"))
    tree["pipeline"] |= {"augment": list(transforms)} | more
    return config_from(tree)


@pytest.mark.slow
@pytest.mark.parametrize("preset", PRESETS)
def test_an_epoch_of_each_preset_can_be_taken_up_at_any_step(preset):
    mine = make_config(*TINY, f"augment={preset}")
    torch.manual_seed(1)
    before = torch.get_rng_state()
    whole = list(pipeline(mine).batches(2))
    torch.rand(5)  # as a network may draw between two steps
    rest = list(pipeline(mine).batches(2, start=1))
    for (images, labels), (again, same) in zip(whole[1:], rest, strict=True):
        assert torch.equal(images, again)
        assert torch.equal(labels, same)
    plain = list(pipeline(tiny("dataset.flip=true")).batches(2))
    same = [torch.equal(a[0], b[0]) for a, b in zip(plain, whole, strict=True)]
    assert all(same) == (preset == "paper" and mine.dataset.flip)
    torch.manual_seed(1)
    list(pipeline(mine).batches(1))
    if preset != "paper":
        assert torch.equal(torch.get_rng_state(), before)


def test_defaults_leave_a_recipe_as_it_was_and_values_change_it():
    assert recipe_hash(make_config(*TINY, "augment=paper")) == recipe_hash(tiny())
    assert not any(
        key.startswith("pipeline.") for key in recipe_values(tiny()) if "name" not in key
    )
    presets = [make_config(*TINY, f"augment={preset}") for preset in PRESETS]
    assert len({recipe_hash(one) for one in presets}) == len(PRESETS)


def test_each_image_has_its_own_draw_or_shares_it_with_a_part_of_the_batch():
    images = torch.full((12, 3, 8, 8), 100, dtype=torch.uint8)
    jitter = {"_target_": "torchvision.transforms.v2.ColorJitter", "brightness": 0.9}

    def kinds(**more):
        with drawing_from(3, CPU):
            varied = Augment(augmented(jitter, **more).pipeline, CPU)(images)
        return [int(image[0, 0, 0]) for image in varied]

    assert len(set(kinds())) > 8
    shared = kinds(draws=3)
    assert len(set(shared)) == 3
    assert shared[:3] == shared[3:6] == shared[9:]


def test_cutout_blackens_a_square_of_each_image():
    images = torch.full((50, 3, 32, 32), 9, dtype=torch.uint8)
    with drawing_from(0, CPU):
        black = (Cutout(16)(images) == 0).flatten(1).sum(1) / 3
    assert black.max() == 256
    assert black.min() >= 64
    assert len(set(black.tolist())) > 10


def test_mixed_labels_are_shares():
    images, labels = next(pipeline(make_config(*TINY, "pipeline.mix=mixup")).batches(1))
    assert labels.shape == (32, 10)
    assert torch.allclose(labels.sum(1), torch.ones(32))
    assert images.shape == (32, 3, *images.shape[2:])


@pytest.mark.slow
@pytest.mark.parametrize("preset", ["mixup", "trivial"])
def test_an_interrupted_training_goes_on_bit_for_bit(tmp_path, preset):
    def trained(name, stop=-1):
        mine = make_config(*TINY, f"augment={preset}", f"runs_dir={tmp_path / name}")
        asked = iter(range(1000))
        status = run_experiment(mine, should_stop=lambda: next(asked) == stop)
        return status, RunDirectory.of(mine)

    assert trained("halted", stop=1)[0] == "interrupted"
    assert history(trained("halted")[1].path) == history(trained("whole")[1].path)


def test_float_images_of_a_transform_are_scaled_back():
    to_float = {"_target_": "torchvision.transforms.v2.ToDtype", "scale": True}
    to_float["dtype"] = {"_target_": "hydra.utils.get_object", "path": "torch.float32"}
    plain, floats = pipeline(tiny()), pipeline(augmented(to_float))
    for (images, _), (same, _) in zip(plain.batches(1), floats.batches(1), strict=True):
        assert torch.allclose(images, same, atol=1e-5)


def test_the_source_of_a_transform_is_identity(tmp_path, monkeypatch):
    file = tmp_path / "a_transform.py"
    file.write_text("def same(image):\n    return image\n")
    monkeypatch.syspath_prepend(tmp_path)
    mine = augmented({"_target_": "a_transform.same"})
    (before,) = with_digests([mine])
    assert "pipeline.code" in before.digests
    file.write_text("def same(image):\n    return image.flip(-1)\n")
    (after,) = with_digests([mine])
    assert recipe_hash(after) != recipe_hash(before) != recipe_hash(mine)


@pytest.mark.parametrize(
    ("values", "said"),
    [
        ({"augment": ["flip"]}, r"pipeline.augment\[0\]=flip: expected a _target_ and what it is"),
        ({"augment": [{"_target_": "torchvision.transforms.v2.No"}]}, "cannot be imported"),
        ({"augment": [{"_target_": "builtins.int"}]}, "expected something to call, not int"),
        ({"augment": [{"_target_": "torch.sum"}]}, r"expected images \(2, 3, H, W\), not \(2"),
        (
            {"augment": [{"_target_": "torch.linalg.inv"}]},
            r"pipeline.augment\[0\]._target_=torch.linalg.inv: RuntimeE",
        ),
        ({"mix": "blend"}, "pipeline.mix=blend: expected one of mixup, cutmix"),
        ({"draws": 2}, "pipeline.draws=2: expected at least 1 beside pipeline.augment"),
        ({"name": "torchvision", "mix": "mixup"}, "pipeline.name=torchvision: expected tensor"),
    ],
)
def test_what_does_not_fit_is_one_line_before_the_first_run(values, said):
    def check():
        tree = config_dict(tiny())
        tree["pipeline"] |= values
        mine = config_from(tree)
        preflight.check(mine, load(mine.dataset), CPU, preflight.Sizes.TWO)

    with pytest.raises(UserError, match=said) as caught:
        check()
    assert "\n" not in str(caught.value)


def test_the_generators_of_numpy_and_python_are_put_back():
    np.random.seed(3)
    expected = np.random.rand(2)
    np.random.seed(3)
    with drawing_from(5, CPU):
        first = np.random.rand()
    with drawing_from(5, CPU):
        assert np.random.rand() == first
    assert (np.random.rand(2) == expected).all()
