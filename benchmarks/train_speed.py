"""Training speed against the two baselines and against this machine's own convolutions, as Markdown
tables.

    python -m benchmarks.train_speed                                    # CPU: about 15 minutes
    python -m benchmarks.train_speed --arch resnet20 --precision bf16   # about two
    python -m benchmarks.train_speed --device cuda                      # benchmarks.gpu

Every subject is a process of its own. They work in turns, each some steps at a time, so that noise
on the machine hits all of them; figures are medians over the rounds, ratios are medians of ratios
within a round. A whole epoch is what the measured rates give for 50,000 training images and what
each subject evaluates after them: ours and the usual loop the 10,000 test images, the official
procedure the 50,000 augmented training images.
"""

from __future__ import annotations

import argparse
import os
import platform
import statistics
import sys
import tempfile
import time

import torch

from benchmarks import gpu
from benchmarks.process import REPOSITORY, Process, interleaved, ratio, table, together, wall_time
from benchmarks.subjects import CLOCKS, Spec, read_conf
from resnests.config.parts import Optimizer
from resnests.config.schema import Trainer
from resnests.config.training import PRECISIONS
from resnests.cpuinfo import cpu_info
from resnests.models.resnet import build_model, load_arch
from resnests.training.optim import build_optimizer
from resnests.training.step import Step

TRAIN, EVALUATED = 50_000, {"official": 50_000, "usual": 10_000, "ours": 10_000}
TABLES = ("training", "concurrency", "streaming", "host", "start-up")
STEPS = {
    "resnet20": 10,
    "resnet110": 3,
}  # a turn; other networks are so large that one step is enough


def measure(arch: str, options: argparse.Namespace) -> list[str]:
    """Return the tables of one network."""
    steps = options.steps or STEPS.get(arch, 1)
    common = {
        "arch": arch,
        "device": options.device,
        "dataset": options.dataset,
        "root": options.root,
    }
    common |= {"threads": options.threads, "clock": options.clock}
    specs = {name: Spec(name, **common) for name in ("official", "usual")}
    for precision in options.precision:
        specs[f"ours {precision}"] = Spec("ours", precision=precision, **common)
        if options.compile:
            specs[f"ours {precision} compiled"] = Spec(
                "ours", precision=precision, compile=True, **common
            )
        specs[f"convolutions {precision}"] = Spec("convolutions", precision=precision, **common)
    processes = {name: Process(spec) for name, spec in specs.items()}
    try:
        turns = {name: (process.ask, f"train {steps}") for name, process in processes.items()}
        for name, process in processes.items():
            if not name.startswith("convolutions"):
                turns[f"{name}/evaluate"] = (process.ask, f"evaluate {max(1, steps // 3)}")
            if name.startswith("ours"):
                turns[f"{name}/augment"] = (process.ask, "augment 10")
        rates = interleaved(turns, options.rounds)
    finally:
        for process in processes.values():
            process.close()
    return [f"### {arch}", epochs_table(rates, processes), limits_table(rates, options.precision)]


def epoch_seconds(name: str, rates: dict[str, list[float]]) -> list[float]:
    """Return the seconds of a whole epoch, for each round."""
    evaluated = EVALUATED[name.split()[0]]
    pairs = zip(rates[name], rates[f"{name}/evaluate"], strict=True)
    return [TRAIN / train + evaluated / evaluate for train, evaluate in pairs]


def epochs_table(rates: dict[str, list[float]], processes: dict[str, Process]) -> str:
    rows = []
    for name in rates:
        if "/" in name or name.startswith("convolutions"):
            continue
        epoch = epoch_seconds(name, rates)
        rows.append(
            [
                name,
                f"{statistics.median(rates[name]):.0f}",
                f"{statistics.median(rates[f'{name}/evaluate']):.0f}",
                f"{statistics.median(epoch):.0f}",
                *(
                    f"{ratio(epoch_seconds(base, rates), epoch):.2f}x"
                    for base in ("official", "usual")
                ),
                f"{processes[name].memory / 2**30:.2f}",
            ]
        )
    header = [
        "",
        "training images/s",
        "evaluation images/s",
        "epoch, s",
        "to official",
        "to usual",
        "peak RSS, GiB",
    ]
    return table(header, rows)


def limits_table(rates: dict[str, list[float]], precisions: list[str]) -> str:
    """Show how near a step is to its convolutions alone, and what the augmentation takes of it."""
    rows = []
    for precision in precisions:
        ours, alone = rates[f"ours {precision}"], rates[f"convolutions {precision}"]
        augmentation = ratio(ours, rates[f"ours {precision}/augment"])
        rows.append(
            [
                precision,
                f"{statistics.median(alone):.1f}",
                f"{ratio(ours, alone):.0%}",
                f"{augmentation:.2%}",
            ]
        )
    return table(
        ["", "convolutions alone, images/s", "share reached", "augmentation, of a step"], rows
    )


def concurrency_table(options: argparse.Namespace) -> str:
    """Compare, on small networks, one run with all threads to as many runs of one thread."""
    rows = []
    for precision in options.precision:
        common = {
            "precision": precision,
            "device": "cpu",
            "dataset": options.dataset,
            "root": options.root,
        }
        one = Process(Spec("ours", "resnet20", threads=options.threads, **common))
        several = [
            Process(Spec("ours", "resnet20", threads=1, **common)) for _ in range(options.threads)
        ]
        turns = {"one": (one.ask, "train 10"), "several": (together, several, "train 10")}
        rates = interleaved(turns, options.rounds)
        for process in (one, *several):
            process.close()
        medians = [f"{statistics.median(rates[name]):.0f}" for name in turns]
        rows.append([precision, *medians, f"{ratio(rates['several'], rates['one']):.2f}x"])
    header = [
        "resnet20",
        f"1 run, {options.threads} threads",
        f"{options.threads} runs, 1 thread each",
        "ratio",
    ]
    return table(header, rows)


def streaming_table(options: argparse.Namespace) -> str:
    """Compare images that are read from a file batch by batch to images in memory."""
    rows = []
    for precision in options.precision:
        common = {"precision": precision, "dataset": options.dataset, "root": options.root}
        common |= {"threads": options.threads, "clock": options.clock}
        processes = {
            name: Process(Spec("ours", "resnet20", is_streamed=name == "read", **common))
            for name in ("memory", "read")
        }
        steps = options.steps or STEPS["resnet20"]
        turns = {name: (process.ask, f"train {steps}") for name, process in processes.items()}
        turns |= {f"{n}/batches": (process.ask, "augment 50") for n, process in processes.items()}
        rates = interleaved(turns, options.rounds)
        for process in processes.values():
            process.close()
        medians = [f"{statistics.median(rates[name]):.0f}" for name in turns]
        rows.append([precision, *medians, f"{ratio(rates['read'], rates['memory']):.3f}x"])
    header = ["resnet20, images/s", "in memory", "read from a file"]
    return table([*header, "batches alone", "batches alone, read", "ratio"], rows)


def host_table() -> str:
    """Time that one thread takes to issue a step, whatever computes it: networks and images so
    small that it is all.
    """
    torch.set_num_threads(1)
    images, labels = torch.randn(1, 3, 8, 8), torch.zeros(1, dtype=torch.long)
    rows = []
    for arch in ("resnet20", "resnet110"):
        model = build_model((load_arch(arch).blocks, (2, 2, 2)))
        optimizer = build_optimizer(read_conf("optimizer", "sgd", Optimizer), model.parameters())
        optimizer.param_groups[0]["foreach"] = True  # as PyTorch has it on CUDA by default
        step = Step(model, Trainer(batch_size=1))
        times = {step: [], optimizer.step: []}
        for _ in range(100):
            for call, arguments in ((step, (images, labels)), (optimizer.step, ())):
                started = time.perf_counter()
                call(*arguments)
                times[call].append(time.perf_counter() - started)
        rows.append([arch, *(f"{statistics.median(some) * 1e3:.1f}" for some in times.values())])
    return table(["host time of a step, ms", "forward, loss, backward", "optimizer"], rows)


def start_up_table() -> str:
    """Measure the wall time of commands as a user types them; that with one step also evaluates and
    writes its directory.
    """
    with tempfile.TemporaryDirectory() as folder:
        one_step = [
            "dataset=digits",
            "dataset.train_limit=128",
            "dataset.test_limit=10",
            "trainer.epochs=1",
        ]
        commands = {
            "run.py --help": ["run.py", "--help"],
            "run.py, digits, one step": [
                "run.py",
                *one_step,
                f"runs_dir={folder}",
                "trainer.overwrite=true",
            ],
            "aggregate.py": ["aggregate.py", folder],
        }
        rows = []
        for name, (script, *arguments) in commands.items():
            if (REPOSITORY / script).is_file():
                seconds = [wall_time([script, *arguments]) for _ in range(3)]
                rows.append([name, f"{statistics.median(seconds):.2f}"])
    return table(["command", "seconds"], rows)


def machine(module: str = "train_speed") -> str:
    """Return what a table was measured on, when, and by which command."""
    model = cpu_info().get("model name") or platform.processor() or platform.machine()
    return (
        f"{model}, {os.cpu_count()} cores; Python {platform.python_version()}, "
        f"torch {torch.__version__}; "
        f"{time.strftime('%Y-%m-%d')}; `python -m benchmarks.{module} {' '.join(sys.argv[1:])}`"
    )


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--arch", nargs="+", help="default: the paper's; on a CPU without wrn40_4")
    parser.add_argument(
        "--precision",
        nargs="+",
        choices=PRECISIONS,
        help="default: all of the device",
    )
    parser.add_argument("--device", default="cpu", help="cpu or cuda")
    parser.add_argument("--threads", type=int, default=os.cpu_count())
    parser.add_argument(
        "--clock",
        choices=CLOCKS,
        default="wall",
        help="of training on a CPU; processor: its time, of which other work takes little",
    )
    parser.add_argument("--steps", type=int, help="training steps a turn; default by network")
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--dataset", default="fashion_mnist", help="a file of conf/dataset")
    parser.add_argument("--root", default="data", help="where that data set is")
    parser.add_argument(
        "--compile", action="store_true", help="on a CPU: measure trainer.compile=true as well"
    )
    parser.add_argument(
        "--tables", nargs="+", choices=TABLES, default=TABLES, help="on a GPU the first two"
    )
    options = parser.parse_args()
    on_gpu = options.device.startswith("cuda")
    options.arch = options.arch or ["resnet20", "resnet110", "wrn16_8", "wrn40_4"][: 3 + on_gpu]
    options.precision = options.precision or (
        ["fp32", "tf32", "bf16"] if on_gpu else ["fp32", "bf16"]
    )
    print(machine(), flush=True)
    if on_gpu:
        return gpu.report(options)
    if "training" in options.tables:
        for arch in options.arch:
            print("", *measure(arch, options), sep="\n\n", flush=True)
    if "concurrency" in options.tables:
        print(f"\n{concurrency_table(options)}", flush=True)
    if "streaming" in options.tables:
        print(f"\n{streaming_table(options)}", flush=True)
    if "host" in options.tables:
        print(f"\n{host_table()}", flush=True)
    if "start-up" in options.tables:
        print(f"\n{start_up_table()}")


if __name__ == "__main__":
    main()
