"""The analysis of a finished run: features in one pass, then solve by solve into analysis.json."""

from __future__ import annotations

import logging
import math
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from torch import nn
from torch.nn import functional as F

from resnests.analysis.features import Extractor, Family, bytes_needed, extractor
from resnests.analysis.quantities import Problem
from resnests.analysis.rows import Rows
from resnests.config.schema import Config
from resnests.data.pipelines import Images
from resnests.errors import Interrupted, UserError
from resnests.models.single_stage import ResNEst, SingleStage
from resnests.runs.analysis import TRAINED, Analysis, Solve
from resnests.runs.directory import RunDirectory

log = logging.getLogger(__name__)
Report = Callable[[dict[str, Any]], None]


def analyze(
    config: Config,
    directory: RunDirectory,
    model: nn.Module,
    splits: dict[str, Images],
    digest: str,
    should_stop: Callable[[], bool],
    report: Report,
) -> Analysis:
    """Bring the analysis of `model`, the weights of SHA-256 `digest`, to its end; goes on where an
    earlier one was interrupted. Raises Interrupted, or a UserError for a network that has no known
    features.
    """

    def stop() -> None:
        if should_stop():
            raise Interrupted

    known = extractor(model)
    options = config.analysis
    done = directory.read_analysis()
    if done is None or done.weights_sha256 != digest or not done.is_made_with(options):
        done = Analysis(options.l2, options.tolerance, digest)
    done.train_images, done.test_images = (len(splits[name]) for name in ("train", "test"))
    if "exact" in known.families:
        done.coupled = known.families["exact"].coupled
    if isinstance(model, SingleStage) and isinstance(model.net, ResNEst):
        note_singular_values(done, model.net)
    files = plan_memory(known, done, options.memory_gb, directory.path)
    rows, losses, done.logits_error = read_features(known, splits, files, stop, report)
    total = sum(len(family.groups) + 2 for family in known.families.values())
    if "exact" not in known.families and not done.solves:
        done.solves.append(networks_own(known, losses))
    for name, family in known.families.items():
        train, test = (rows[split].pop(name) for split in ("train", "test"))
        classes = config.dataset.class_count
        problem = Problem(name, family, train, test, classes, options.l2, options.tolerance, stop)
        for solve in problem.solves(done):
            done.solves.append(solve)
            directory.write_analysis(done)
            what = f"{solve.quantity} {solve.family} {solve.group}"
            report({"state": f"solved {len(done.solves)} of at most {total}: {what}"})
            log.info("%s, %s features: %s", what, solve.features, describe(solve))
    directory.write_analysis(done)
    return done


def describe(solve: Solve) -> str:
    if solve.value is None:
        return (
            f"no result, {solve.evaluations} evaluations left it up to {solve.gap:.2g} nats above "
            "the least value; a larger analysis.l2 or analysis.tolerance is reached sooner"
        )
    return (
        f"train loss {solve.train_loss:.4f} {solve.train_accuracy:.2f}%, with penalty "
        f"{solve.value:.4f} - {solve.gap:.1g}, test loss {solve.test_loss:.4f} "
        f"{solve.test_accuracy:.2f}%, {solve.evaluations} evaluations"
    )


def plan_memory(
    known: Extractor, done: Analysis, limit: float, folder: Path
) -> dict[str, Path | None]:
    """Where the features of each family are kept: in memory (None), or in a file beyond `limit`
    GB. Says so, and raises a UserError where the square matrices alone are beyond it.
    """
    files: dict[str, Path | None] = {}
    for name, family in known.families.items():
        images = done.train_images + done.test_images
        needed, square = bytes_needed(family, images) / 1e9, bytes_needed(family, 0) / 1e9
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
    """The features of each split and family, in one pass over the images; the network's mean
    cross-entropy and accuracy in percent on each; and how far the logits that its own maps give of
    the features are from the network's, None where it has no such maps.
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
            for name, values in features.items():
                rows[name].values[part, 1:] = values.to(rows[name].values)
                rows[name].labels[part] = labels
            logits = logits.double()
            loss += F.cross_entropy(logits, labels, reduction="sum").item()
            correct += int((logits.argmax(1) == labels).sum())
            if "exact" in features:
                error = max(error or 0.0, difference(known.families["exact"], features, logits))
            start = part.stop
            report({"state": f"features of {split}: {start} of {len(images)} images"})
        result[split], losses[split] = rows, (loss / start, 100 * correct / start)
    return result, losses, error


def networks_own(known: Extractor, losses: dict[str, tuple[float, float]]) -> Solve:
    """(a) of a network whose logits are not linear in its features."""
    (family,) = known.families.values()
    own = Solve(TRAINED, "pooled", family.groups[-1], sum(family.sizes))
    own.train_loss, own.train_accuracy = losses["train"]
    own.test_loss, own.test_accuracy = losses["test"]
    return own


def difference(family: Family, features: dict[str, torch.Tensor], logits: torch.Tensor) -> float:
    assert family.weight is not None
    assert family.bias is not None
    again = features["exact"] @ family.weight.T + family.bias
    return (again - logits).abs().max().item()


def note_singular_values(done: Analysis, net: ResNEst) -> None:
    """What statement 3 of the paper's theory asks of a ResNEst."""
    stacked = torch.cat(net.maps()[:-1], 1).detach().double()
    done.width, done.needed_width = stacked.shape
    values = torch.linalg.svdvals(stacked)
    wide = done.width >= done.needed_width
    done.smallest_singular_value = values[-1].item() if wide else 0.0
    last = net.linear.weight.detach().double()
    values = torch.linalg.svdvals(last)
    done.smallest_singular_value_of_the_last = values[-1].item() if len(last) <= done.width else 0.0
