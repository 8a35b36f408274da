"""Analyse a finished run: features in one pass, then solve by solve into analysis.json."""

from __future__ import annotations

import dataclasses
import logging
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import nn

from resnests.analysis.features import Family, extractor
from resnests.analysis.quantities import Problem
from resnests.analysis.reading import Report, networks_own, plan_memory, read_features
from resnests.analysis.rows import Rows
from resnests.analysis.second_order import second_order
from resnests.config.schema import Config
from resnests.data.pipelines import Images
from resnests.errors import Interrupted
from resnests.models.single_stage import ResNEst, SingleStage
from resnests.models.weights import load_weights
from resnests.runs.analysis import (
    LAST_BLOCK,
    LAST_MAPS,
    PREFIX,
    TRAINED,
    Analysis,
    SecondOrder,
    Solve,
)
from resnests.runs.directory import RunDirectory
from resnests.runs.weights import digest as digest_of

log = logging.getLogger(__name__)
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
    if done is None or not done.is_of(digest, config):
        done = Analysis.of(config, digest)
    done.l2_path = [*done.l2_path, *done.lacking(options)]
    work = _Work(config, directory, splits, done, stop, report)
    work.analyse(model, done)
    before = {(kept.epoch, kept.weights_sha256): kept for kept in done.kept}
    weights = kept_weights(directory.analysed.path)
    keys = [(epoch, digest_of(file)) for epoch, file in weights]
    # All at once, as each solve writes all: an interruption loses none of what is known of others.
    done.kept = [before.get(key) or Analysis.of(config, key[1], key[0]) for key in keys]
    for kept, (_, file) in zip(done.kept, weights, strict=True):
        load_weights(file, model)
        work.analyse(model, kept)
    directory.write_analysis(done)
    return done


def kept_weights(run: Path) -> list[tuple[int, Path]]:
    """Return epoch and file of the weights that a run kept on the way, in order."""
    found = ((file.stem.rpartition("_")[2], file) for file in run.glob("model_epoch_*.pt"))
    return sorted((int(epoch), file) for epoch, file in found if epoch.isdecimal())


@dataclass(frozen=True)
class _Work:
    """Holds the values that the analyses of one run's weights share."""

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
            if not exact or is_whole(done, exact["exact"]):
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


def is_whole(done: Analysis, family: Family) -> bool:
    """Return whether the analysis of an earlier epoch has all that it is to have."""
    more = () if family.before is None else (LAST_BLOCK, LAST_MAPS)
    return all(done.find(q, "exact", family.groups[-1]) for q in (TRAINED, PREFIX, *more))


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
