"""The GPU part of benchmarks.train_speed: precisions, compilation, several runs on a card, the
share of its peak.

What fails, such as torch.compile without a compiler, is a line in a table and does not end the
rest.
"""

from __future__ import annotations

import argparse
import statistics
import sys
import time

import torch
from torch.utils.flop_counter import FlopCounterMode

from benchmarks.process import Process, interleaved, ratio, table, together
from benchmarks.subjects import Spec
from resnests.config.schema import Trainer
from resnests.models.resnet import build_model
from resnests.training.numerics import set_numerics

MODES = {  # trainer.compile, trainer.cuda_graph
    "operation by operation": (False, False),
    "CUDA graph": (False, True),
    "torch.compile": (True, False),
    "torch.compile and CUDA graph": (True, True),
}
RUNS_A_NETWORK, EPOCHS, TRAIN, TEST = (
    56,
    200,
    50_000,
    10_000,
)  # the grid: 2 data sets, 4 variants, 7 seeds
SHARED = (1, 2, 4, 8)  # runs of resnet20 on the card


def report(options: argparse.Namespace) -> None:
    print(f"\n{torch.cuda.get_device_name(options.device)}", flush=True)
    peaks = {precision: matmul_peak(options.device, precision) for precision in options.precision}
    print(
        "\nLargest matrix product: "
        + ", ".join(f"{p} {flops / 1e12:.0f} TFLOP/s" for p, flops in peaks.items())
    )
    best = {}
    for arch in options.arch if "training" in options.tables else ():
        print(f"\n### {arch}\n\n{arch_table(arch, options, peaks, best)}", flush=True)
    if best:
        print(f"\n### Of the paper's grid, one run at a time\n\n{grid_table(best)}", flush=True)
    if "concurrency" in options.tables:
        print(f"\n### resnet20, several runs on the card\n\n{sharing_table(options)}", flush=True)


def matmul_peak(device: str, precision: str, size: int = 8192) -> float:
    """Return the FLOP/s of one large square matrix product: what the chip gives in practice."""
    set_numerics(Trainer(precision="tf32" if precision == "official" else precision))
    dtype = torch.bfloat16 if precision == "bf16" else torch.float32
    a, b = (torch.randn(size, size, device=device, dtype=dtype) for _ in range(2))
    seconds = []
    for _ in range(10):
        torch.cuda.synchronize()
        started = time.perf_counter()
        a @ b
        torch.cuda.synchronize()
        seconds.append(time.perf_counter() - started)
    return 2 * size**3 / statistics.median(seconds)


def step_flops(arch: str) -> float:
    """Return the floating-point operations of an image in training: forward and backward."""
    model = build_model(arch)
    with FlopCounterMode(display=False) as counter:
        model(torch.randn(2, 3, 32, 32)).sum().backward()
    return counter.get_total_flops() / 2


def attempt(spec: Spec) -> Process | None:
    try:
        return Process(spec)
    except (RuntimeError, BrokenPipeError) as error:
        print(f"{spec}: {error}", file=sys.stderr)
        return None


def arch_table(
    arch: str,
    options: argparse.Namespace,
    peaks: dict[str, float],
    best: dict[str, tuple[float, str]],
) -> str:
    """Return a line for the usual loop and for each precision and mode; fill `best` with the
    fastest by architecture.
    """
    common = {
        "arch": arch,
        "device": options.device,
        "dataset": options.dataset,
        "root": options.root,
    }
    common["threads"] = options.threads
    specs = {"usual loop": Spec("usual", **common)}
    for precision in options.precision:
        for mode, (compiled, graph) in MODES.items():
            specs[f"{precision}, {mode}"] = Spec(
                "ours", precision=precision, compile=compiled, cuda_graph=graph, **common
            )
    steps, flops, rows, usual = options.steps or 100, step_flops(arch), [], None
    for (
        name,
        spec,
    ) in specs.items():  # one at a time: processes that share the card would hold memory and time
        process = attempt(spec)
        if process is None:
            rows.append([name, *["failed"] * 6])
            continue
        rates = interleaved(
            {"train": (process.ask, f"train {steps}"), "evaluate": (process.ask, "evaluate 10")},
            options.rounds,
        )
        process.close()
        train, evaluation = (statistics.median(rates[key]) for key in ("train", "evaluate"))
        usual = usual or rates["train"]
        peak = peaks.get(spec.precision) or peaks[options.precision[0]]
        rows.append(
            [
                name,
                f"{train:.0f}",
                f"{evaluation:.0f}",
                f"{ratio(rates['train'], usual):.1f}x",
                f"{train * flops / peak:.1%}",
                f"{process.device_memory / 2**30:.2f}",
                f"{process.seconds_to_first_step:.1f}",
            ]
        )
        seconds = TRAIN / train + TEST / evaluation
        if spec.kind == "ours" and seconds < best.get(arch, (float("inf"), ""))[0]:
            best[arch] = (seconds, name)
    header = [
        "",
        "training images/s",
        "evaluation images/s",
        "to usual",
        "of the matrix peak",
        "GPU memory, GiB",
    ]
    return table([*header, "start to first step, s"], rows)


def sharing_table(options: argparse.Namespace) -> str:
    rows, alone = [], None
    for count in SHARED:
        spec = Spec("ours", "resnet20", "bf16", options.device, max(1, options.threads // count))
        spec.dataset, spec.root = options.dataset, options.root
        processes = [process for process in (attempt(spec) for _ in range(count)) if process]
        if len(processes) < count:
            rows.append([str(count), "failed", ""])
        else:
            turns = {"together": (together, processes, f"train {options.steps or 200}")}
            rates = interleaved(turns, options.rounds)["together"]
            alone = alone or rates
            rows.append(
                [str(count), f"{statistics.median(rates):.0f}", f"{ratio(rates, alone):.2f}x"]
            )
        for process in processes:
            process.close()
    return table(["runs, bf16", "images/s together", "to one"], rows)


def grid_table(best: dict[str, tuple[float, str]]) -> str:
    """Return the hours of 56 runs of 200 epochs for each architecture, each in its fastest way."""
    hours = {arch: RUNS_A_NETWORK * EPOCHS * seconds / 3600 for arch, (seconds, _) in best.items()}
    rows = [[arch, best[arch][1], f"{best[arch][0]:.2f}", f"{hours[arch]:.1f}"] for arch in best]
    rows.append(["all", "", "", f"{sum(hours.values()):.1f}"])
    return table(["network", "fastest", "epoch, s", "hours"], rows)
