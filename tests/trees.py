"""Trees of finished runs as the tests of tables, figures and reports need them, without training
anything.
"""

from __future__ import annotations

import dataclasses
import random
from pathlib import Path
from typing import Any

import torch
from helpers import make_config

from resnests.config.schema import Config, config_from
from resnests.paper import PUBLISHED
from resnests.runs.directory import RunDirectory
from resnests.runs.record import Provenance, Record
from resnests.training.provenance import collect

ARCHS = {
    "wrn16_8": ([2, 2, 2], [128, 256, 512]),
    "wrn40_4": ([6, 6, 6], [64, 128, 256]),
    "resnet110": ([18, 18, 18], [16, 32, 64]),
    "resnet20": ([3, 3, 3], [16, 32, 64]),
    "resnet8": ([1, 1, 1], [16, 32, 64]),
}
VARIANTS = ("standard", "resnest", "bn_resnest", "a_resnest")
MOMENTS = {  # of the paper's data sets; others have round ones here
    "cifar10": ([125.3, 123.0, 113.9], [63.0, 62.1, 66.7]),
    "cifar100": ([129.3, 124.1, 112.4], [68.2, 65.4, 70.4]),
}
SGD = {
    "name": "sgd",
    "momentum": 0.9,
    "nesterov": True,
    "weight_decay": 5e-4,
    "milestones": [0.3, 0.6, 0.8],
}
# What the real collector writes, with what differs from machine to machine made equal.
PROVENANCE = dataclasses.asdict(collect(torch.device("cpu"), make_config())) | {
    "git_commit": "0123456789abcdef0123456789abcdef01234567",
    "git_dirty": False,
    "versions": {"python": "3.11.7", "torch": "2.5.0"},
    "device_name": "CPU",
    "host": "nowhere",
    "pid": 1,
    "process_started": 0.0,
    "threads": 1,
    "started": 1735689600.0,  # 2025-01-01, 0:00 UTC
    "ended": 1735693200.0,
}


def make_config(
    root: Path, dataset="cifar10", arch="resnet20", variant="standard", seed=0, **overrides: Any
) -> Config:
    """Return the configuration of a run below `root`; overrides by dotted key with '__' for '.', as
    trainer__epochs=10.
    """
    mean, std = MOMENTS.get(dataset, ([127.5] * 3, [63.75] * 3))
    tree: dict[str, Any] = {
        "dataset": {
            "name": dataset,
            "source": dataset if dataset != "other" else "digits",
            "num_classes": 100 if dataset == "cifar100" else 10,
            "mean": [value / 255 for value in mean],
            "std": [value / 255 for value in std],
        },
        "arch": {"name": arch, "blocks": ARCHS[arch][0], "widths": ARCHS[arch][1]},
        "variant": {"name": variant, "head": variant if variant in VARIANTS else "standard"},
        "optimizer": SGD | {"lr": 0.01 if variant == "resnest" else 0.1},
        "pipeline": {"name": "tensor"},
        "trainer": {},
        "seed": seed,
        "runs_dir": str(root),
    }
    for key, value in overrides.items():
        section, _, name = key.partition("__")
        if name:
            tree[section][name] = value
        else:
            tree[section] = value
    return config_from(tree)


def history_rows(
    accuracy: float, epochs: int, eval_every: int = 1, val: bool = False
) -> list[dict[str, Any]]:
    """Return a learning curve up to `accuracy` %, with steps where the learning rate falls."""
    rows = []
    for epoch in range(1, epochs + 1):
        phase = sum(epoch > epochs * m for m in (0.3, 0.6, 0.8))
        level = (
            accuracy
            - (12, 6, 2, 0)[phase] * (1 - epoch / epochs)
            - 30 / epoch * (1 - epoch / epochs)
        )
        row = {"epoch": epoch, "lr": 0.1 * 0.2**phase, "seconds": 10.0, "images_per_second": 5000.0}
        row |= {
            "train_loss": 2.0 * (1.01 - epoch / epochs) + 0.01,
            "train_accuracy": min(100.0, level + 4),
        }
        if epoch % eval_every == 0 or epoch == epochs:
            row |= {"test_loss": 2.3 * (1.1 - epoch / epochs), "test_accuracy": level}
            if val:
                row |= {"val_loss": 1.0, "val_accuracy": level + 1}
        rows.append(row)
    return rows


def add_run(
    root: Path,
    accuracy: float = 90.0,
    *,
    status: str = "complete",
    parameters: int = 272_282,
    history: list[dict[str, Any]] | None = None,
    provenance: dict[str, Any] | None = None,
    record: dict[str, Any] | None = None,
    **config: Any,
) -> RunDirectory:
    """Write one run; `record` and `provenance` replace values of those, `config` goes to
    make_config.
    """
    built = make_config(root, **config)
    run = RunDirectory.of(built)
    run.write_config(built)
    made = Record.of(built, Provenance(**(PROVENANCE | (provenance or {}))))
    values = {"status": status, "parameters": parameters}
    if status == "complete":
        epochs = built.trainer.epochs
        values |= {"epochs": epochs, "seconds": 10.0 * epochs, "images_per_second": 5000.0}
        values |= {"train_loss": 0.01, "train_accuracy": min(100.0, accuracy + 4)}
        values |= {"test_loss": 0.3, "test_accuracy": accuracy}
    run.write_record(dataclasses.replace(made, **(values | (record or {}))))
    if history is not None:
        run.write_history(history)
    return run


def add_paper_grid(
    root: Path, seeds: int = 3, epochs: int = 30, datasets=("cifar10", "cifar100")
) -> None:
    """Write the published grid with the published means and a spread over seeds, histories
    included.
    """
    noise = random.Random(0)
    for (dataset, arch, variant), (accuracy, size) in PUBLISHED.items():
        for seed in range(seeds if dataset in datasets else 0):
            value = accuracy + noise.gauss(0, 0.15)
            add_run(
                root,
                value,
                parameters=int(float(size[:-1]) * 1e6),
                history=history_rows(value, epochs),
                dataset=dataset,
                arch=arch,
                variant=variant,
                seed=seed,
                trainer__epochs=epochs,
            )
