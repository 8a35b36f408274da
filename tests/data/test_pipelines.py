import numpy as np
import pytest
import torch
from helpers import make_config
from torchvision import transforms

from resnests.data.arrays import Split
from resnests.data.pipelines import (
    Images,
    TensorPipeline,
    build_pipeline,
    memory_format,
    reflect,
    stream,
)
from resnests.data.splits import load

CPU = torch.device("cpu")


@pytest.fixture(scope="module")
def split() -> Split:
    rng = np.random.default_rng(0)
    return Split(rng.integers(0, 256, (300, 32, 32, 3), dtype=np.uint8), np.arange(300) % 10)


def pipeline(split, *overrides):
    config = make_config("trainer.batch_size=64", *overrides)
    return build_pipeline(config, config.dataset, split, CPU)


def test_torchvision_pipeline_gives_the_official_batches(split):
    """The official procedure, written with torchvision alone, as the global generator is seeded
    with seed + epoch.
    """
    seed, epoch = 3, 2
    config = make_config(f"seed={seed}")

    class Official(torch.utils.data.Dataset):
        steps = transforms.Compose(
            [
                transforms.ToPILImage(),
                transforms.RandomCrop(32, padding=4, padding_mode="reflect"),
                transforms.RandomHorizontalFlip(),
                transforms.ToTensor(),
                transforms.Normalize(config.dataset.mean, config.dataset.std),
            ]
        )

        def __len__(self):
            return len(split)

        def __getitem__(self, index):
            return self.steps(split.images[index]), int(split.labels[index])

    torch.manual_seed(seed + epoch)
    expected = list(torch.utils.data.DataLoader(Official(), 64, shuffle=True, num_workers=1))
    ours = list(pipeline(split, "pipeline=torchvision", f"seed={seed}").batches(epoch))
    assert len(ours) == len(expected) == 5
    for (x, y), (images, labels) in zip(ours, expected, strict=True):
        assert torch.equal(x, images)
        assert torch.equal(y, labels)


@pytest.mark.parametrize("name", ["tensor", "torchvision"])
def test_an_epoch_can_be_taken_up_at_any_step(split, name):
    source = pipeline(split, f"pipeline={name}")
    whole = list(source.batches(4))
    rest = list(source.batches(4, start=3))
    assert len(whole) == source.steps == 5
    assert [len(y) for _, y in whole] == [64, 64, 64, 64, 44]
    assert len(rest) == 2
    assert all(
        torch.equal(a[0], b[0]) and torch.equal(a[1], b[1])
        for a, b in zip(whole[3:], rest, strict=True)
    )


@pytest.mark.slow
def test_no_two_seeds_or_epochs_share_a_shuffle(split):
    """Streams that were seeded with seed + epoch would give seed 0 epoch 2 and seed 1 epoch 1
    the same batches.
    """

    def labels(seed, epoch):
        return next(iter(pipeline(split, f"seed={seed}").batches(epoch)))[0]

    drawn = [labels(seed, epoch) for seed in range(3) for epoch in range(1, 4)]
    for i, one in enumerate(drawn):
        assert all(not torch.equal(one, other) for other in drawn[:i])
    assert torch.equal(drawn[0], labels(0, 1))


def test_an_epoch_holds_every_image_once(split):
    seen = torch.cat([y for _, y in pipeline(split).batches(1)])
    assert torch.equal(torch.sort(seen).values, torch.sort(torch.from_numpy(split.labels)).values)


def test_tensor_crops_are_crops_of_the_reflect_padded_image(split):
    config = make_config()
    source = pipeline(split)
    padded = np.pad(split.images, ((0, 0), (4, 4), (4, 4), (0, 0)), mode="reflect")
    index, rows, columns = torch.arange(20), torch.arange(20) % 9 - 4, torch.arange(20) // 2 % 9 - 4
    flips = torch.arange(20) % 3 == 0
    pixels = source._cut(index, torch.stack((rows, columns))[:, :, None], flips[:, None])
    cut = source.data.as_input(pixels)
    for i in range(20):
        top, left = int(rows[i]) + 4, int(columns[i]) + 4
        image = padded[i, top : top + 32, left : left + 32]
        image = image[:, ::-1] if flips[i] else image
        expected = transforms.Normalize(config.dataset.mean, config.dataset.std)(
            transforms.ToTensor()(image.copy())
        )
        assert torch.allclose(cut[i], expected, atol=1e-5)


def test_reflection_repeats_no_edge():
    assert reflect(torch.arange(-3, 8), 5).tolist() == [3, 2, 1, 0, 1, 2, 3, 4, 3, 2, 1]


@pytest.mark.slow
def test_both_pipelines_draw_from_one_distribution():
    """Mean and spread of every pixel over many epochs agree within five standard errors."""
    digits = load(make_config("dataset=digits").dataset).train.take(slice(40))
    epochs = 40

    def moments(name):
        config = make_config("dataset=digits", "dataset.flip=true", f"pipeline={name}")
        source = build_pipeline(config, config.dataset, digits, CPU)
        images = torch.cat(
            [x for epoch in range(1, epochs + 1) for x, _ in source.batches(epoch)]
        ).double()
        return images.mean(0), images.var(0), len(images)

    (mean, variance, n), (other_mean, other_variance, _) = moments("tensor"), moments("torchvision")
    error = ((variance + other_variance) / n).sqrt() + 1e-3
    assert ((mean - other_mean).abs() / error).max() < 5
    assert torch.allclose(variance.mean(), other_variance.mean(), rtol=0.03)


def test_every_offset_and_both_orientations_come_up_equally_often():
    """A single bright pixel shows where its image was cut: 81 places, twice for the flip."""
    images = np.zeros((1, 32, 32, 3), dtype=np.uint8)
    images[0, 16, 10] = 255
    many = Split(np.repeat(images, 8100, axis=0), np.zeros(8100, dtype=np.int64))
    source = TensorPipeline(many, make_config().dataset, 4, 8100, 0, CPU)
    x, _ = next(source.batches(1))
    places = (x[:, 0] > 0).flatten(1).float().argmax(1)
    counts = torch.bincount(places, minlength=1024)
    assert (counts > 0).sum() == 162
    assert counts[counts > 0].float().std() < 3 * 50**0.5
    columns = torch.arange(1024) % 32
    flipped = int(counts[columns >= 16].sum())  # the pixel was in column 10, or 21
    assert abs(flipped - 4050) < 3 * (8100 / 4) ** 0.5


@pytest.mark.parametrize(("height", "width"), [(5, 9), (12, 7)])
@pytest.mark.parametrize("name", ["tensor", "torchvision"])
def test_images_that_are_not_square_are_cropped_in_both_directions(name, height, width):
    """Every batch is made of crops of the reflect-padded images, which know their place."""
    rng = np.random.default_rng(0)
    shape = (12, height, width)
    grey = Split(rng.integers(0, 256, shape, np.uint8)[..., None].repeat(3, 3), np.arange(12))
    overrides = ("dataset.mean=[0,0,0]", "dataset.std=[1,1,1]", "pipeline.crop_padding=3")
    x, labels = next(pipeline(grey, *overrides, f"pipeline={name}").batches(1))
    assert x.shape == (12, 3, height, width)
    padded = np.pad(grey.images, ((0, 0), (3, 3), (3, 3), (0, 0)), mode="reflect")
    for image, label in zip((x * 255).round().permute(0, 2, 3, 1).numpy(), labels, strict=True):
        crops = [
            padded[int(label), top : top + height, left : left + width]
            for top in range(7)
            for left in range(7)
        ]
        either = [crop for one in crops for crop in (one, one[:, ::-1])]
        assert any(np.array_equal(image, crop) for crop in either)


@pytest.mark.parametrize(("size", "count"), [(8, 128), (32, 128), (64, 32), (512, 1)])
def test_large_images_are_evaluated_in_smaller_batches(size, count):
    images = np.zeros((130, size, size, 3), np.uint8)
    split = Split(images, np.zeros(130, np.int64))
    assert len(next(Images(split, make_config().dataset, CPU).batches())[1]) == count


def test_a_data_set_without_mirror_symmetry_is_never_flipped(split):
    source = pipeline(split, "dataset.flip=false", "pipeline.crop_padding=0")
    images = Images(split, make_config().dataset, CPU)
    whole = next(images.batches(300))[0]
    x, _ = next(source.batches(1))
    assert all(any(torch.equal(one, other) for other in whole) for one in x[:10])


def test_streams_depend_on_every_part_of_their_name():
    names = [(0, "shuffle", 1), (0, "shuffle", 2), (1, "shuffle", 1), (0, "augment", 1)]
    assert len({torch.rand(1, generator=stream(*name)).item() for name in names}) == 4


def test_batches_have_the_layout_that_was_asked_for(split):
    """Convolutions take the layout of their images: contiguous weights alone change nothing."""
    for asked, layout in ((None, torch.channels_last), (False, torch.contiguous_format)):
        config = make_config("trainer.batch_size=64")
        config.trainer.channels_last = asked
        training = build_pipeline(config, config.dataset, split, CPU)
        evaluated = Images(split, config.dataset, CPU, memory_format(config.trainer, CPU))
        for batches in (training.batches(1), evaluated.batches(64)):
            assert next(batches)[0].is_contiguous(memory_format=layout)
