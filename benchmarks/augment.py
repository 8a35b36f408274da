"""Measure what augmentations and metrics cost beside a training of resnet20 on a CPU.

    python -m benchmarks.augment      # about two minutes; with kornia's, where that is installed

All that is compared works in turns in one process, on batches of 128 images of 32x32 pixels. Times
are of processors, medians over the rounds; shares are medians of ratios within a round. With more
threads than one they count the waiting of threads for each other, where other work runs, too.
"""

from __future__ import annotations

import argparse
import importlib.util
import itertools
import statistics
import time
from collections.abc import Iterator

import numpy as np
import torch
from hydra import compose, initialize_config_dir

from benchmarks.process import interleaved, ratio, table
from benchmarks.train_speed import machine
from resnests.config.compose import conf_dir, register
from resnests.config.schema import Config, config_from
from resnests.data.arrays import Split
from resnests.data.pipelines import Batch, Images, build_pipeline
from resnests.models.norm_relu import keep_freed_memory
from resnests.models.resnet import build_network
from resnests.training.loop import evaluate
from resnests.training.numerics import move, set_numerics
from resnests.training.objectives import build_metrics
from resnests.training.optim import build_optimizer
from resnests.training.step import Step

CPU = torch.device("cpu")
METRICS = ("f1", "balanced_accuracy", "top5", "ece", "brier", "auroc")
ROTATION = "torchvision.transforms.v2.RandomRotation,degrees:10"
AUGMENTS = {
    "cutout": ["augment=cutout"],
    "mixup": ["augment=mixup"],
    "cutmix": ["augment=cutmix"],
    "trivial": ["augment=trivial"],
    "rand": ["augment=rand"],
    "erasing": ["augment=erasing"],
    "jitter": ["augment=jitter"],
    "trivial, an image at a time": ["augment=trivial", "pipeline.draws=null"],
    "rotation": [f"pipeline.augment=[{{_target_:{ROTATION}}}]"],
}
OF_KORNIA = {  # with a draw for each image, as ours of that name
    "erasing": "RandomErasing,p:0.5",
    "jitter": "ColorJitter,brightness:0.2,contrast:0.2,saturation:0.2,p:1.0",
    "rotation": "RandomRotation,degrees:10,p:1.0",
}


def scaled(images: torch.Tensor) -> torch.Tensor:
    """Return images as kornia takes them."""
    return images.float() / 255


scaled.same_on_batch = False


def composed(*words: str) -> Config:
    """Return the configuration of a command line."""
    return config_from(compose("config", ["dataset=cifar10", "arch=resnet20", *words]))


def split(count: int) -> Split:
    """Return noise in ten classes."""
    rng = np.random.default_rng(0)
    return Split(rng.integers(0, 256, (count, 32, 32, 3), np.uint8), np.arange(count) % 10)


def network(config: Config) -> torch.nn.Module:
    """Return the network of `config` as a run has it."""
    set_numerics(config.trainer)
    model = build_network(config.arch, config.variant, config.dataset.class_count)
    move(model, CPU, config.trainer)
    return model


def timed(items: Iterator[object], count: int) -> float:
    """Return the milliseconds of processors that each of the next `count` items takes."""
    started = time.process_time()
    for _ in itertools.islice(items, count):
        pass
    return 1e3 * (time.process_time() - started) / count


def batches(config: Config) -> Iterator[Batch]:
    """Yield batches for ever."""
    pipeline = build_pipeline(config, config.dataset, split(1280), CPU)
    return itertools.chain.from_iterable(pipeline.batches(n) for n in itertools.count(1))


def steps(config: Config) -> Iterator[Batch]:
    """Train on batches for ever; yield each after its step."""
    model = network(config).train()
    optimizer = build_optimizer(config.optimizer, model.parameters())
    step = Step(model, config.trainer)
    for batch in batches(config):
        step(*batch)
        optimizer.step()
        yield batch


def augment_table(rounds: int) -> str:
    """Return what a batch takes beyond the paper's crops and mirrored images."""
    turns: dict[str, tuple] = {"step": (timed, steps(composed()), 4)}
    turns["paper"] = timed, batches(composed()), 20
    for name, words in AUGMENTS.items():
        turns[name] = timed, batches(composed(*words)), 8
        if name in OF_KORNIA and importlib.util.find_spec("kornia"):
            first = "{_target_:benchmarks.augment.scaled}"
            there = f"pipeline.augment=[{first},{{_target_:kornia.augmentation.{OF_KORNIA[name]}}}]"
            turns[f"{name}, kornia"] = timed, batches(composed(there)), 8
    times = interleaved(turns, rounds)
    rows = []
    for name in list(turns)[1:]:
        pairs = zip(times[name], times["paper"], strict=True)
        beyond = [mine - paper for mine, paper in pairs]
        share = "" if name == "paper" else f"{ratio(beyond, times['step']):.1%}"
        rows.append([name, f"{statistics.median(times[name]):.1f}", share])
    step = statistics.median(times["step"])
    return table(["augment", "a batch, ms", f"beyond paper, of a step of {step:.0f} ms"], rows)


def metrics_table(rounds: int) -> str:
    """Return what metrics of 10,000 images take beside the evaluation of their network."""
    plain, count = composed(), 2000
    model, images = network(plain), Images(split(count), plain.dataset, CPU)
    logits, labels = torch.randn(10_000, 10), torch.arange(10_000) % 10
    turns = {"none": (timed, (evaluate(model, images, "fp32") for _ in itertools.count()), 1)}
    for name in METRICS:
        (metric,) = build_metrics(composed(f"metrics={name}"), CPU).values()
        calls = (call(logits, labels) for call in itertools.repeat(metric))
        turns[name] = timed, calls, 3
    times = interleaved(turns, rounds)
    share = count / len(logits)
    rows = [
        [
            name,
            f"{statistics.median(times[name]):.1f}",
            f"{share * ratio(times[name], times['none']):.2%}",
        ]
        for name in METRICS
    ]
    return table(["metric", "10,000 images, ms", "of their evaluation"], rows)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--threads", type=int, default=1)
    options = parser.parse_args()
    torch.set_num_threads(options.threads)
    keep_freed_memory()
    register()
    print(machine("augment"), flush=True)
    with initialize_config_dir(str(conf_dir()), version_base="1.3"):
        for made in (augment_table, metrics_table):
            print(f"\n{made(options.rounds)}", flush=True)


if __name__ == "__main__":
    main()
