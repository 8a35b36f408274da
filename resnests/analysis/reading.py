"""Read the features of a run's images in one pass, and keep them in memory or on disk."""

from __future__ import annotations

import logging
import math
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from torch.nn import functional as F

from resnests.analysis.features import Extractor, Family, bytes_needed
from resnests.analysis.rows import Rows
from resnests.analysis.second_order import bytes_of_maps
from resnests.data.pipelines import Images
from resnests.errors import UserError
from resnests.runs.analysis import TRAINED, Analysis, Solve

log = logging.getLogger(__name__)
Report = Callable[[dict[str, Any]], None]


def plan_memory(
    known: Extractor, done: Analysis, limit: float, folder: Path
) -> dict[str, Path | None]:
    """Return where the features of each family are kept: in memory (None), or in a file beyond
    `limit` GB. Logs it, and raises a UserError where the square matrices alone are beyond it.
    """
    files: dict[str, Path | None] = {}
    for name, family in known.families.items():
        images = done.train_images + done.test_images
        square = bytes_needed(family, 0) / 1e9
        features = bytes_needed(family, images) / 1e9 - square
        square = max(square, bytes_of_maps(family) / 1e9)  # which follow one another
        needed = features + square
        if square > limit:
            expected = (
                f"at least {math.ceil(square)}, and cluster.memory a GB more, for matrices of "
                f"{sum(family.sizes)} features"
            )
            raise UserError(f"analysis.memory_gb={limit:.3g}: expected {expected}")
        files[name] = None if needed <= limit else folder / f".features.{name}.tmp"
        place = "in memory" if needed <= limit else f"the features in {files[name]}"
        log.info(
            "%s features: %d images x %d in float64 take %.2f GB, %s",
            name, images, sum(family.sizes), needed, place,
        )  # fmt: skip
    return files


@torch.no_grad()
def read_features(
    known: Extractor,
    splits: dict[str, Images],
    files: dict[str, Path | None],
    stop: Callable[[], None],
    report: Report,
) -> tuple[dict[str, dict[str, Rows]], dict[str, tuple[float, float]], float | None]:
    """Return the features of each split and family, in one pass over the images; the network's
    mean cross-entropy and accuracy in percent on each; and how far the logits that its own maps
    give of the features are from the network's, None where it has no such maps.
    """
    device = splits["train"].labels.device
    solver = device if device.type != "mps" else torch.device("cpu")  # which has no float64
    result: dict[str, dict[str, Rows]] = {}
    losses: dict[str, tuple[float, float]] = {}
    error: float | None = None
    for split, images in splits.items():
        rows = {
            name: Rows.empty(
                len(images), sum(family.sizes), solver, file and file.with_suffix(f".{split}.tmp")
            )
            for name, family in known.families.items()
            for file in (files[name],)
        }
        start, loss, correct = 0, 0.0, 0
        for batch, labels in images.batches():
            stop()
            features, logits = known.read(batch)
            part = slice(start, start + len(labels))
            for name in rows:
                values = features[name]
                rows[name].values[part, 1:] = values.to(rows[name].values)
                rows[name].labels[part] = labels
            logits = logits.double()
            loss += F.cross_entropy(logits, labels, reduction="sum").item()
            correct += int((logits.argmax(1) == labels).sum())
            if "exact" in known.families:
                error = max(error or 0.0, difference(known.families["exact"], features, logits))
            start = part.stop
            report({"state": f"features of {split}: {start} of {len(images)} images"})
        result[split], losses[split] = rows, (loss / start, 100 * correct / start)
    return result, losses, error


def networks_own(known: Extractor, losses: dict[str, tuple[float, float]]) -> Solve:
    """Return (a) of a network whose logits are not linear in its features."""
    (family,) = known.families.values()
    own = Solve(TRAINED, "pooled", family.groups[-1], sum(family.sizes))
    own.train_loss, own.train_accuracy = losses["train"]
    own.test_loss, own.test_accuracy = losses["test"]
    return own


def difference(family: Family, features: dict[str, torch.Tensor], logits: torch.Tensor) -> float:
    """Return how far the network's logits are from its own maps of its features."""
    assert family.weight is not None
    assert family.bias is not None
    again = features["exact"] @ family.weight.T + family.bias
    return (again - logits).abs().max().item()
