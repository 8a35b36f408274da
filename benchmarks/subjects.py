"""Holds what is measured, each in a process of its own that works a turn when it is told to.

    python -m benchmarks.subjects '{"kind": "ours", ...}'     # then lines such as `train 10`

A turn is timed inside the process and answered with one line of JSON; between turns the process is
idle, so that the turns of several subjects can be interleaved and all of them see the same state of
the machine.
"""

from __future__ import annotations

import itertools
import json
import os
import resource
import shutil
import statistics
import sys
import tempfile
import time
import zlib
from collections.abc import Iterator
from dataclasses import dataclass, replace
from multiprocessing import active_children
from pathlib import Path

import numpy as np
import psutil
import torch
from omegaconf import OmegaConf
from torch.nn import functional as F

from resnests.config.parts import Dataset, Optimizer
from resnests.config.schema import Trainer
from resnests.data.arrays import Split
from resnests.data.pipelines import Images, TensorPipeline
from resnests.data.splits import load
from resnests.data.views import SUMS, ImageView, open_images
from resnests.models.norm_relu import keep_freed_memory
from resnests.models.resnet import build_model, conf_dir
from resnests.training.loop import evaluate
from resnests.training.numerics import set_numerics
from resnests.training.optim import build_optimizer
from resnests.training.step import Step
from resnests.training.whole import WholeStep

BATCH = 128


def processor_time() -> float:
    """Return the seconds that this process and its loaders' workers have computed, all threads."""
    ended = resource.getrusage(resource.RUSAGE_CHILDREN)
    workers = (psutil.Process(child.pid).cpu_times() for child in active_children())
    living = sum(times.user + times.system for times in workers)
    return living + ended.ru_utime + ended.ru_stime + time.process_time()


CLOCKS = {"wall": time.perf_counter, "processor": processor_time}


@dataclass
class Spec:
    kind: str  # ours, usual, official or convolutions
    arch: str
    precision: str = "fp32"
    device: str = "cpu"
    threads: int = 1
    compile: bool = False
    cuda_graph: bool | None = None
    dataset: str = "fashion_mnist"
    root: str = "data"
    clock: str = "wall"  # one of CLOCKS
    is_streamed: bool = False  # whether images are read batch by batch, from a file


def read_conf(group: str, name: str, schema: type):
    path = conf_dir() / group / f"{name}.yaml"
    return OmegaConf.to_object(OmegaConf.merge(OmegaConf.structured(schema), OmegaConf.load(path)))


class Subject:
    """Trains a network, in turns that give images per second."""

    def __init__(self, spec: Spec) -> None:
        self.spec, self.device, self.now = spec, torch.device(spec.device), CLOCKS[spec.clock]
        self.dataset = read_conf("dataset", spec.dataset, Dataset)
        self.dataset.root, self.dataset.train_limit = spec.root, 50_000
        torch.manual_seed(0)
        self.model = build_model(spec.arch, "standard", self.dataset.num_classes).to(self.device)

    def timed(self, steps: Iterator[int], count: int) -> float:
        """Return the images per second over the next `count` items of `steps`, which are numbers of
        images.
        """
        started = self.now()
        images = sum(itertools.islice(steps, count))
        if self.device.type == "cuda":
            torch.cuda.synchronize()
        return images / (self.now() - started)

    def train(self, count: int) -> float:
        self.model.train()
        return self.timed(self.training, count)

    def evaluate(self, count: int) -> float:
        self.model.eval()
        with torch.no_grad():
            return self.timed(self.evaluation, count)


class Ours(Subject):
    """Trains as `python run.py` does: tensor pipeline, channels last, this package's loop."""

    def __init__(self, spec: Spec) -> None:
        super().__init__(spec)
        trainer = Trainer(
            precision=spec.precision,
            batch_size=BATCH,
            compile=spec.compile,
            cuda_graph=spec.cuda_graph,
        )
        set_numerics(trainer)
        splits = load(self.dataset)
        if spec.is_streamed:
            splits = replace(splits, train=in_a_file(splits.train))
        self.model.to(memory_format=torch.channels_last)
        optimizer = build_optimizer(
            read_conf("optimizer", "sgd", Optimizer), self.model.parameters()
        )
        self.pipeline = TensorPipeline(splits.train, self.dataset, 4, BATCH, 0, self.device)
        self.test = Images(splits.test, self.dataset, self.device)
        self.part = Images(splits.test.take(slice(2000)), self.dataset, self.device)
        self.batches = itertools.chain.from_iterable(
            self.pipeline.batches(epoch) for epoch in itertools.count(1)
        )
        self.training = train_steps(Step(self.model, trainer), optimizer, self.pipeline)

    def evaluate(self, count: int) -> float:
        started = self.now()
        split = self.test if self.device.type == "cuda" else self.part
        evaluate(self.model, split, self.spec.precision)
        return len(split) / (self.now() - started)

    def augment(self, count: int) -> float:
        return self.timed((len(labels) for _, labels in self.batches), count)


def in_a_file(split: Split) -> Split:
    """Return `split` with its images in a file, as those of a folder above pipeline.memory_gb."""
    path = Path(tempfile.mkdtemp()) / "images.uint8"
    sums = [(0, zlib.crc32(image), 0) for image in split.images]
    path.write_bytes(np.asarray(split.images).tobytes())
    path.with_suffix(".sums").write_bytes(np.array(sums, SUMS).tobytes())
    images = open_images(path, split.images.shape)
    shutil.rmtree(path.parent)  # which the process keeps open
    return replace(split, images=ImageView(images))


def train_steps(
    step: Step, optimizer: torch.optim.Optimizer, pipeline: TensorPipeline, whole: bool = True
) -> Iterator[int]:
    """Train epoch after epoch with the lines of loop.py; yield the images of each step after it.

    Without `whole` the update and the augmentation stay outside of a graph.
    """
    step.model.train()
    sgd = isinstance(optimizer, torch.optim.SGD) and step.captures and whole
    graphs = WholeStep(step, optimizer, pipeline) if sgd else None
    for epoch in itertools.count(1):
        if graphs and (steps := graphs.steps(epoch)):
            for number, take in enumerate(steps):
                take()
                yield min(pipeline.batch_size, pipeline.count - number * pipeline.batch_size)
            continue
        for images, labels in pipeline.batches(epoch):
            step(images, labels)
            optimizer.step()
            yield len(labels)


class Baseline(Subject):
    """Trains with PIL transforms in worker processes, contiguous fp32, .item() every step.

    usual: two workers, the test set evaluated. official: one worker, anomaly detection, and what it
    evaluates is the augmented training set.
    """

    def __init__(self, spec: Spec) -> None:
        super().__init__(spec)
        splits = load(self.dataset)
        official = spec.kind == "official"
        self.workers = 1 if official else 2
        self.optimizer = torch.optim.SGD(
            self.model.parameters(), lr=0.1, momentum=0.9, nesterov=True, weight_decay=5e-4
        )
        self.training = self.train_forever(self.loader(splits.train, augment=True))
        self.evaluation = self.evaluate_forever(
            self.loader(splits.train, augment=True)
            if official
            else self.loader(splits.test, augment=False)
        )
        torch.autograd.set_detect_anomaly(official)

    def loader(self, split: Split, augment: bool) -> torch.utils.data.DataLoader:
        from torchvision import transforms

        steps = [transforms.ToTensor(), transforms.Normalize(self.dataset.mean, self.dataset.std)]
        if augment:
            crop = transforms.RandomCrop(32, padding=4, padding_mode="reflect")
            steps = [crop, transforms.RandomHorizontalFlip(), *steps]
        images = PilImages(split, transforms.Compose(steps))
        return torch.utils.data.DataLoader(
            images,
            BATCH,
            shuffle=augment,
            num_workers=self.workers,
            pin_memory=self.device.type == "cuda",
        )

    def train_forever(self, loader) -> Iterator[int]:
        for images, labels in endless(loader):
            images, labels = images.to(self.device), labels.to(self.device)
            logits = self.model(images)
            loss = F.cross_entropy(logits, labels)
            self.optimizer.zero_grad()
            loss.backward()
            self.optimizer.step()
            loss.item(), (logits.argmax(1) == labels).sum().item()
            yield len(labels)

    def evaluate_forever(self, loader) -> Iterator[int]:
        for images, labels in endless(loader):
            images, labels = images.to(self.device), labels.to(self.device)
            logits = self.model(images)
            F.cross_entropy(logits, labels).item(), (logits.argmax(1) == labels).sum().item()
            yield len(labels)


def endless(loader) -> Iterator:
    while True:
        yield from loader


class PilImages(torch.utils.data.Dataset):
    def __init__(self, split: Split, transform) -> None:
        self.split, self.transform = split, transform

    def __len__(self) -> int:
        return len(self.split)

    def __getitem__(self, index: int):
        from PIL import Image

        return self.transform(Image.fromarray(self.split.images[index])), int(
            self.split.labels[index]
        )


class Convolutions:
    """Computes every convolution of a step alone: forward, backward by data and by weight, channels
    last.
    """

    def __init__(self, spec: Spec) -> None:
        self.device, self.now = torch.device(spec.device), CLOCKS[spec.clock]
        model = build_model(spec.arch).to(self.device)
        self.calls: dict[tuple, int] = {}
        for layer in model.modules():
            if isinstance(layer, torch.nn.Conv2d):
                layer.register_forward_hook(self.note)
        with torch.no_grad():
            model(torch.zeros(1, 3, 32, 32, device=self.device))
        dtype = torch.bfloat16 if spec.precision == "bf16" else torch.float32
        self.layers = [(self.tensors(key, dtype), count) for key, count in self.calls.items()]

    def note(self, layer, inputs, output) -> None:
        first = layer.in_channels == 3  # nobody wants the gradient of the images
        key = (inputs[0].shape[1:], layer.weight.shape, layer.stride, layer.padding, first)
        self.calls[key] = self.calls.get(key, 0) + 1

    def tensors(self, key: tuple, dtype: torch.dtype):
        shape, weight_shape, stride, padding, first = key
        layout = {"memory_format": torch.channels_last}
        x = torch.randn(BATCH, *shape, device=self.device).to(dtype).contiguous(**layout)
        w = (torch.randn(weight_shape, device=self.device) / 10).to(dtype).contiguous(**layout)
        dy = torch.randn_like(F.conv2d(x, w, None, stride, padding))
        return x, w, dy, stride, padding, first

    def train(self, count: int) -> float:
        """Return the images per second of all convolutions of a step together; for each layer the
        median of three times.
        """
        return BATCH / sum(times * self.seconds(*layer) for layer, times in self.layers)

    def seconds(self, x, w, dy, stride, padding, first) -> float:
        def backward(*wanted: bool):
            return torch.ops.aten.convolution_backward(
                dy, x, w, None, stride, padding, [1, 1], False, [0, 0], 1, [*wanted, False]
            )

        parts = [lambda: F.conv2d(x, w, None, stride, padding), lambda: backward(False, True)]
        if not first:
            parts.append(lambda: backward(True, False))
        return sum(statistics.median(self.clock(part) for _ in range(3)) for part in parts)

    def clock(self, function) -> float:
        started = self.now()
        function()
        if self.device.type == "cuda":
            torch.cuda.synchronize()
        return self.now() - started


KINDS = {"ours": Ours, "usual": Baseline, "official": Baseline, "convolutions": Convolutions}


def main() -> None:
    spec = Spec(**json.loads(sys.argv[1]))
    torch.set_num_threads(spec.threads)
    if spec.kind in ("ours", "convolutions") and spec.device == "cpu":
        keep_freed_memory()  # as resnests.sweep.worker does
    subject = KINDS[spec.kind](spec)
    for line in sys.stdin:
        action, count = line.split()
        rate = getattr(subject, action)(int(count))
        memory = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024
        print(
            json.dumps({"rate": rate, "memory": memory, "device_memory": device_memory(spec)}),
            flush=True,
        )
    os._exit(0)  # endless loaders need no orderly end


def device_memory(spec: Spec) -> int:
    return torch.cuda.max_memory_reserved() if spec.device.startswith("cuda") else 0


if __name__ == "__main__":
    main()
