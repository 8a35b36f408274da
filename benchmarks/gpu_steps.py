"""Times training steps of one network on random images, in a process of its own.

    python -m benchmarks.gpu_steps '{"arch": "resnet20", "precision": "bf16"}'

It prints a line once it is ready, waits for a line, and prints its figures as one line of JSON, so
that several processes can begin at the same instant.
"""

from __future__ import annotations

import json
import os
import statistics
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import nullcontext
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np
import torch
from torch import nn

from benchmarks.subjects import read_conf, train_steps
from resnests.config.parts import Dataset, Optimizer
from resnests.config.schema import Trainer
from resnests.data.arrays import Split
from resnests.data.pipelines import Images, TensorPipeline, memory_format
from resnests.models.resnet import build_model
from resnests.training.evaluation import WholeEvaluation
from resnests.training.loop import evaluate
from resnests.training.numerics import move, set_numerics
from resnests.training.optim import build_optimizer
from resnests.training.step import Step

EVALUATED = (250, 500, 1000, 2000, 4000)  # images in a batch


@dataclass
class Spec:
    """Says what is timed; the defaults are those of a run on a GPU."""

    arch: str
    precision: str = "bf16"
    mode: str = "whole"  # step as a graph; graph: its gradients; plain: operation by operation
    device: str = "cuda"
    channels_last: bool | None = None
    compile: bool = False
    streams: int = 1  # networks in the process, each on a stream
    extras: bool = False  # evaluation, a smaller last batch, kernels
    batch: int = 128
    images: int = 391 * 128  # as many steps an epoch as CIFAR-10 has, all of full batches
    tested: int = 10_000
    steps: int = 100
    rounds: int = 3


@dataclass
class Network:
    """Holds a network, its steps, and the stream that they are on.

    Of several on a device only the speed counts. Their graphs are captured on one stream and may so
    share a workspace of cuBLAS, which graphs that are replayed at once would spoil for each other.
    """

    model: nn.Module
    steps: Iterator[int]
    stream: torch.cuda.Stream | None


class Steps:
    """Holds one network in training, or several that share the process."""

    def __init__(self, spec: Spec) -> None:
        self.spec, self.device = spec, torch.device(spec.device)
        self.trainer = Trainer(
            batch_size=spec.batch,
            precision=spec.precision,
            channels_last=spec.channels_last,
            compile=spec.compile,
            cuda_graph=False if spec.mode == "plain" else None,
        )
        set_numerics(self.trainer)
        rng = np.random.default_rng(0)
        images = rng.integers(0, 256, (spec.images, 32, 32, 3), dtype=np.uint8)
        self.split = Split(images, rng.integers(0, 10, spec.images))
        self.dataset = read_conf("dataset", "cifar10", Dataset)
        layout = memory_format(self.trainer, self.device)
        values = (self.dataset, 4, spec.batch, 0, self.device, layout)
        self.pipeline = TensorPipeline(self.split, *values)
        self.networks = [self._network() for _ in range(spec.streams)]
        self.model = self.networks[0].model
        self.wait()  # other streams do not wait for what is copied on this one

    def _network(self) -> Network:
        """Return a network in training, on a stream of its own where there are several."""
        model, kind = build_model(self.spec.arch), self.device.type
        move(model, self.device, self.trainer)
        optimizer = build_optimizer(read_conf("optimizer", "sgd", Optimizer), model.parameters())
        step = Step(model, self.trainer)
        steps = train_steps(step, optimizer, self.pipeline, self.spec.mode == "whole")
        alone = self.spec.streams == 1 or kind != "cuda"
        return Network(model, steps, None if alone else torch.cuda.Stream())

    def take(self, count: int) -> None:
        """Take so many steps of each network as loop.py does, in turns."""
        for _ in range(count):
            for network in self.networks:
                with torch.cuda.stream(network.stream) if network.stream else nullcontext():
                    next(network.steps)

    def wait(self) -> None:
        """Wait for the device."""
        if self.device.type == "cuda":
            torch.cuda.synchronize()

    def timed(self, work: Callable[[], object]) -> tuple[float, float]:
        """Return the seconds until the host is through with `work`, and until the device is."""
        self.wait()
        started = time.perf_counter()
        work()
        host = time.perf_counter() - started
        self.wait()
        return host, time.perf_counter() - started

    def measure(self) -> dict[str, Any]:
        """Return the figures of the steps."""
        steps = self.spec.steps
        self.take(max(2, steps // 5))
        times = [self.timed(lambda: self.take(steps)) for _ in range(self.spec.rounds)]
        hosts, walls = zip(*times, strict=True)
        wall = statistics.median(walls)
        figures: dict[str, Any] = {
            "ms_step": wall / steps * 1e3,
            "host_ms_step": statistics.median(hosts) / steps * 1e3,
            "images_s": self.spec.streams * self.spec.batch * steps / wall,
            "spread": max(walls) / min(walls),
        }
        if self.device.type == "cuda":
            figures["reserved_GiB"] = torch.cuda.max_memory_reserved() / 2**30
        return figures | (self.extras() if self.spec.extras else {})

    def extras(self) -> dict[str, Any]:
        """Return the seconds of an evaluation, the time of a last batch, and what ran most."""
        step, tested = Step(self.model, self.trainer), self.split.take(slice(self.spec.tested))
        test = Images(tested, self.dataset, self.device)
        one_by_one = self.timed(lambda: evaluate(self.model, test, self.spec.precision))[1]
        of_batches = {size: self.evaluation(step, tested, size) for size in EVALUATED}
        evaluation = self.evaluation(step, tested, test.batch_size)
        self.model.train()
        step.captures = False
        images, labels = next(self.pipeline.batches(1))
        last = images[: self.spec.batch * 5 // 8], labels[: self.spec.batch * 5 // 8]
        seconds = [self.timed(lambda: step(*last))[1] for _ in range(4)]
        found = {"evaluation_s": evaluation, "plain_evaluation_s": one_by_one}
        found |= {"last_batch_ms": seconds[-1] * 1e3, "evaluation_s_of_batches": of_batches}
        return found | (self.kernels() if self.device.type == "cuda" else {})

    def evaluation(self, step: Step, tested: Split, size: int) -> float:
        """Return the seconds of an evaluation in batches of `size`, as graphs where there are."""
        images = type("Sized", (Images,), {"batch_size": size})(tested, self.dataset, self.device)
        if not step.captures:
            return self.timed(lambda: evaluate(self.model, images, self.spec.precision))[1]
        graphs = WholeEvaluation(step, images)
        return [self.timed(lambda: graphs.evaluate(lambda: False))[1] for _ in range(2)][-1]

    def kernels(self, steps: int = 5) -> dict[str, Any]:
        """Return how long kernels take of a step, how many they are, and the costliest."""
        from torch.profiler import ProfilerActivity, profile

        with profile(activities=[ProfilerActivity.CUDA]) as seen:
            self.take(steps)
            self.wait()
        rows = sorted(seen.key_averages(), key=lambda row: -row.self_device_time_total)
        total = sum(row.self_device_time_total for row in rows)
        top = [
            [row.key[:70], round(row.self_device_time_total / total, 3), row.count // steps]
            for row in rows[:14]
        ]
        return {
            "device_ms_step": total / steps / 1e3,
            "kernels_step": sum(row.count for row in rows) / steps,
            "top_kernels": top,
        }


def main() -> None:
    """Time what the command line asks for."""
    started = time.perf_counter()
    spec = Spec(**json.loads(sys.argv[1]))
    if spec.device == "cpu":
        torch.set_num_threads(1)
    steps = Steps(spec)
    steps.take(1)
    steps.wait()
    first = time.perf_counter() - started
    print("ready", flush=True)
    sys.stdin.readline()
    print(json.dumps(asdict(spec) | steps.measure() | {"first_step_s": first}), flush=True)
    os._exit(0)  # an orderly end may wait for the device


if __name__ == "__main__":
    main()
