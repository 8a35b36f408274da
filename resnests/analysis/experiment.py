"""The analysis of a finished run: features in one pass, then solve by solve into analysis.json."""

from __future__ import annotations

import dataclasses
import logging
import math
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import nn
from torch.nn import functional as F

from resnests.analysis.features import Extractor, Family, bytes_needed, extractor
from resnests.analysis.quantities import Problem
from resnests.analysis.rows import Rows
from resnests.analysis.second_order import second_order
from resnests.config.schema import AnalysisOptions, Config
from resnests.data.pipelines import Images
from resnests.errors import Interrupted, UserError
from resnests.models.single_stage import ResNEst, SingleStage
from resnests.models.weights import load_weights
from resnests.runs.analysis import LAST_BLOCK, METHOD, TRAINED, Analysis, SecondOrder, Solve
from resnests.runs.directory import RunDirectory
from resnests.runs.weights import digest as digest_of

log = logging.getLogger(__name__)
Report = Callable[[dict[str, Any]], None]
SPLITS = ("train", "test")
SMALL = 10**6  # values of features


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

    options = config.analysis
    done = directory.read_analysis()
    if done is None or done.weights_sha256 != digest or not done.is_made_with(options):
        done = new_analysis(options, digest)
    work = _Work(config, directory, splits, done, stop, report)
    work.analyse(model, done)
    before = {(kept.epoch, kept.weights_sha256): kept for kept in done.kept}
    done.kept = []
    for epoch, file in kept_weights(directory.analysed.path):
        load_weights(file, model)
        key = (epoch, digest_of(file))
        done.kept.append(before.get(key) or new_analysis(options, key[1], epoch))
        work.analyse(model, done.kept[-1])
    directory.write_analysis(done)
    return done


def new_analysis(options: AnalysisOptions, digest: str, epoch: int | None = None) -> Analysis:
    """Return an analysis of the weights of SHA-256 `digest` in which nothing is solved yet."""
    path = [] if epoch else options.l2_path
    l2, tolerance = options.l2, options.tolerance
    return Analysis(l2, tolerance, digest, method=METHOD, epoch=epoch, l2_path=path)


def kept_weights(run: Path) -> list[tuple[int, Path]]:
    """Return epoch and file of the weights that a run kept on the way, in order."""
    found = ((file.stem.rpartition("_")[2], file) for file in run.glob("model_epoch_*.pt"))
    return sorted((int(epoch), file) for epoch, file in found if epoch.isdecimal())


@dataclass(frozen=True)
class _Work:
    """What the analyses of one run's weights share."""

    config: Config
    directory: RunDirectory
    splits: dict[str, Images]
    whole: Analysis  # which is written, and holds those of kept weights
    stop: Callable[[], None]
    report: Report

    def analyse(self, model: nn.Module, done: Analysis) -> None:
        """Solve what `done`, the analysis of `model`, has not; of an earlier epoch, only what the
        exact features of all blocks allow.
        """
        known = extractor(model)
        if done.epoch is not None:
            exact = {name: f for name, f in known.families.items() if name == "exact"}
            if not exact:
                return
            known = dataclasses.replace(known, families=exact)
        done.train_images, done.test_images = (len(self.splits[name]) for name in SPLITS)
        if "exact" in known.families:
            done.coupled = known.families["exact"].coupled
        if isinstance(model, SingleStage) and isinstance(model.net, ResNEst):
            note_singular_values(done, model.net)
        options = self.config.analysis
        files = plan_memory(known, done, options.memory_gb, self.directory.path)
        rows, losses, done.logits_error = read_features(
            known, self.splits, files, self.stop, self.report
        )
        if "exact" not in known.families and not done.solves:
            done.solves.append(networks_own(known, losses))
        for name, family in known.families.items():
            train, test = (rows[split].pop(name) for split in SPLITS)
            problem = Problem(
                name, family, train, test, self.config.dataset.class_count,
                options.l2, options.tolerance, self.stop, files[name],
            )  # fmt: skip
            with few_threads(train):
                self._solve(problem, done)

    def _solve(self, problem: Problem, done: Analysis) -> None:
        for solve in problem.solves(done, prefixes=done.epoch is None):
            self._note(done, done.solves, solve, f"{solve.quantity} {solve.family} {solve.group}")
        if problem.name == "exact":
            for solve in problem.over_l2(done, done.l2_path):
                what = f"{solve.quantity} with l2={solve.l2:g}"
                self._note(done, done.over_l2, solve, what)
        if problem.family.before is None or done.epoch is not None or done.descents:
            return
        done.points = []
        for found in second_order(problem.last_maps, self.stop):
            if isinstance(found, SecondOrder):
                self._note(done, done.points, found, f"second order, {found.place}")
            else:
                done.descents.append(found)
                self.report({"state": f"descended from {found.start}"})

    def _note(self, done: Analysis, where: list, found: Solve | SecondOrder, what: str) -> None:
        """Append to `where` what was found, and write it."""
        where.append(found)
        self.directory.write_analysis(self.whole)
        epoch = "" if done.epoch is None else f"epoch {done.epoch}: "
        self.report({"state": f"{epoch}solved {what}"})
        log.info("%s%s: %s", epoch, what, describe(found))


@contextmanager
def few_threads(rows: Rows) -> Iterator[None]:
    """Work on one thread where there is little to share: thousands of small products are slower on
    two, and far slower where other processes want the same cores.
    """
    threads = torch.get_num_threads()
    torch.set_num_threads(1 if rows.values.numel() < SMALL else threads)
    try:
        yield
    finally:
        torch.set_num_threads(threads)


def describe(solve: Solve | SecondOrder) -> str:
    """Return what a solve found, in one line."""
    if isinstance(solve, SecondOrder):
        return (
            f"risk {solve.value:.4f}, |gradient| {solve.gradient:.2g}, least eigenvalue "
            f"{solve.least:.3g} of {solve.unknowns}"
        )
    if solve.quantity == LAST_BLOCK:
        return f"squared error {solve.train_squared:.4f}, rank {solve.rank}"
    if solve.value is None:
        return (
            f"no result, {solve.evaluations} evaluations left it up to {solve.gap:.2g} nats above "
            "the least value; a larger analysis.l2 or analysis.tolerance is reached sooner"
        )
    return (
        f"train loss {solve.train_loss:.4f} {solve.train_accuracy:.2f}%, with penalty "
        f"{solve.value:.4f} - {solve.gap:.1g}, test loss {solve.test_loss:.4f} "
        f"{solve.test_accuracy:.2f}%, {solve.features} features, {solve.evaluations} passes"
    )


def plan_memory(
    known: Extractor, done: Analysis, limit: float, folder: Path
) -> dict[str, Path | None]:
    """Return where the features of each family are kept: in memory (None), or in a file beyond
    `limit` GB. Logs it, and raises a UserError where the square matrices alone are beyond it.
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


def note_singular_values(done: Analysis, net: ResNEst) -> None:
    """Note what the paper's width condition asks of a ResNEst: [W_0 .. W_{L-1}]'s full rank."""
    stacked = torch.cat(net.maps()[:-1], 1).detach().double()
    done.width, done.needed_width = stacked.shape
    values = torch.linalg.svdvals(stacked)
    wide = done.width >= done.needed_width
    done.smallest_singular_value = values[-1].item() if wide else 0.0
    last = net.linear.weight.detach().double()
    values = torch.linalg.svdvals(last)
    done.smallest_singular_value_of_the_last = values[-1].item() if len(last) <= done.width else 0.0
