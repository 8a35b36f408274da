"""Speed and memory of dense layers that are recomputed, that are kept, and of torchvision's.

    python -m benchmarks.densenet            # about five minutes on one core

Images per second of processor time (so that other work on the machine matters less) of training
steps of 64 images on one thread, and how far the peak of resident memory rises; each subject in a
process of its own.
"""

from __future__ import annotations

import argparse
import itertools
import statistics
import subprocess
import sys
import time

import torch
from torch import nn
from torch.nn import functional as F

from resnests.models import densenet
from resnests.training.provenance import peak_memory

NETWORKS = {
    "L=40 k=12": {"depth": 40, "growth": 12},
    "BC L=100 k=12": {"depth": 100, "growth": 12, "compression": 0.5, "bottleneck": True},
}
LAYERS = ("recomputed", "kept", "torchvision")
BATCH = 64


def torchvisions(growth: int, compression: float, depth: int, **_: bool) -> nn.Sequential:
    """Return the bottleneck network of torchvision's dense blocks: the same parameters as ours."""
    from torchvision.models.densenet import _DenseBlock, _Transition

    channels, layers = 2 * growth, (depth - 4) // 6
    parts: list[nn.Module] = [nn.Conv2d(3, channels, 3, padding=1, bias=False)]
    for stage in range(3):
        if stage:
            parts.append(_Transition(channels, int(channels * compression)))
            channels = int(channels * compression)
        parts.append(_DenseBlock(layers, channels, 4, growth, 0.0))
        channels += layers * growth
    parts += [nn.BatchNorm2d(channels), nn.ReLU(inplace=True), nn.AdaptiveAvgPool2d(1)]
    return nn.Sequential(*parts, nn.Flatten(), nn.Linear(channels, 10))


def measure(layers: str, network: str, precision: str, steps: int) -> None:
    torch.set_num_threads(1)
    values = NETWORKS[network]
    if layers == "kept":
        densenet.checkpoint = lambda work, *pieces, **_: work(*pieces)
    model = torchvisions(**values) if layers == "torchvision" else densenet.DenseNet(10, **values)
    model = model.to(memory_format=torch.channels_last)
    optimizer = torch.optim.SGD(model.parameters(), 0.1)
    images = torch.randn(BATCH, 3, 32, 32).to(memory_format=torch.channels_last)
    labels, before, seconds = torch.arange(BATCH) % 10, peak_memory(), []
    for _ in range(steps + 1):
        started = time.process_time()
        with torch.autocast("cpu", torch.bfloat16, enabled=precision == "bf16"):
            loss = F.cross_entropy(model(images).float(), labels)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        seconds.append(time.process_time() - started)
    rate, memory = BATCH / statistics.median(seconds[1:]), (peak_memory() - before) / 1e6
    print(f"| {network} | {precision} | {layers} | {rate:.1f} | {memory:.0f} |", flush=True)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--steps", type=int, default=5)
    parser.add_argument("--one", nargs=3, metavar=("LAYERS", "NETWORK", "PRECISION"))
    arguments = parser.parse_args()
    if arguments.one:
        measure(*arguments.one, arguments.steps)
        return
    print("| network | precision | dense layers | images per processor second | MB |")
    print("|---|---|---|---:|---:|")
    for network, precision, layers in itertools.product(NETWORKS, ("fp32", "bf16"), LAYERS):
        if layers != "torchvision" or "bottleneck" in NETWORKS[network]:
            one = [sys.executable, "-m", "benchmarks.densenet", "--steps", str(arguments.steps)]
            subprocess.run([*one, "--one", layers, network, precision], check=True)


if __name__ == "__main__":
    main()
