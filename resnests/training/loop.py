"""Run the training loop: steps, epochs, evaluation, and what ends them early. It knows no files."""

from __future__ import annotations

import itertools
import math
import time
import warnings
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torch.optim.lr_scheduler import LRScheduler
from torch.optim.swa_utils import AveragedModel

from resnests.config.schema import Config, Trainer
from resnests.data.pipelines import Batch, Images, Pipeline
from resnests.errors import Interrupted
from resnests.generators import generator_states, restore_generators
from resnests.training.objectives import Criterion, Measure
from resnests.training.optim import learning_rate, set_learning_rate
from resnests.training.step import Step, add_totals, autocast, zero_totals
from resnests.training.whole import WholeStep

REPORT_EVERY = 1.0  # seconds between two looks at the loss, for which the host waits for the device


class Diverged(ArithmeticError):
    """Says that the loss is no longer finite."""


@dataclass
class State:
    """Holds the state of a training: what a checkpoint holds besides weights and optimizer."""

    epoch: int = 1  # the one in training, from 1
    step: int = 0  # steps of it that are done
    # its summed loss and correct predictions
    totals: list[float] = field(default_factory=lambda: [0.0, 0.0])
    lr: float = 0.0  # of its latest step, of the first group of parameters
    epoch_seconds: float = 0.0  # its training so far
    train_seconds: float = 0.0  # training of the epochs before it, without evaluation
    # a row of history.HISTORY for each epoch before it
    history: list[dict[str, Any]] = field(default_factory=list)
    # of the global random generators, {} where a checkpoint of before has none
    generators: dict[str, Any] = field(default_factory=dict)


@dataclass(frozen=True)
class Training:
    """Holds a training: the network, what trains it, and whom the loop reports to and asks."""

    config: Config
    model: nn.Module
    optimizer: torch.optim.Optimizer
    pipeline: Pipeline
    evaluations: dict[str, Images]  # by the prefix of their columns in the history: val, test
    report: Callable[[dict[str, Any]], None]  # called about once a second
    epoch_done: Callable[[State], None]  # the state is that before the next epoch
    should_stop: Callable[[], bool]  # asked at every step boundary
    loss: Criterion = F.cross_entropy
    metrics: Mapping[str, Measure] = field(default_factory=dict)  # of evaluations
    averaged: AveragedModel | None = None  # of the weights, evaluated beside them
    schedule: LRScheduler | None = None  # of the user's, which sets the rates by itself

    def rate(self, state: State, step: int) -> float:
        """Return the learning rate of `step` in the epoch of `state`."""
        if self.schedule is not None:
            return state.lr
        place = (state.epoch, self.config.trainer.epochs, step, self.pipeline.steps)
        return learning_rate(self.config.optimizer, *place)


def fit(training: Training, state: State) -> None:
    """Train from `state` to the last epoch; raise Diverged, or Interrupted with `state` at a step
    boundary.
    """
    trainer, pipeline = training.config.trainer, training.pipeline
    step = Step(training.model, trainer, training.loss)
    whole = WholeStep.of(training, step)
    progress = _Progress(training, state)
    restore_generators(state.generators, step.device)
    while state.epoch <= trainer.epochs and not is_exhausted(trainer, state):
        _train_epoch(training, step, whole, state, progress)
        row = {
            "epoch": state.epoch,
            "lr": training.rate(state, pipeline.steps - 1),
            "train_loss": state.totals[0] / pipeline.count,
            "train_accuracy": 100 * state.totals[1] / pipeline.count,
        }
        _require_finite(row["train_loss"], "train loss", state.epoch)
        started = time.perf_counter()
        if state.epoch % trainer.eval_every == 0 or state.epoch == trainer.epochs:
            row |= _evaluate_all(training, whole, state, progress)
        _end_epoch(training)
        row["seconds"] = round(state.epoch_seconds + time.perf_counter() - started, 4)
        row["images_per_second"] = round(pipeline.count / state.epoch_seconds, 2)
        state.history.append(row)
        state.train_seconds += state.epoch_seconds
        state.epoch, state.step = state.epoch + 1, 0
        state.totals, state.epoch_seconds = [0.0, 0.0], 0.0
        state.generators = generator_states(step.device)
        training.epoch_done(state)


def _end_epoch(training: Training) -> None:
    """Step a schedule that is one of epochs.

    This follows the evaluation: one that is interrupted leaves the epoch to be ended once more.
    """
    schedule = training.schedule
    if schedule is None or training.config.optimizer.is_per_step:
        return
    with warnings.catch_warnings():  # of no optimizer's step in this process, where it resumed
        warnings.filterwarnings("ignore", "Detected call of")
        schedule.step()


def is_exhausted(trainer: Trainer, state: State) -> bool:
    """Return whether the accuracy on held-out images has not risen for trainer.patience epochs."""
    rows = [row for row in state.history if "val_accuracy" in row]
    if trainer.patience is None or not rows:
        return False
    best = max(rows, key=lambda row: row["val_accuracy"])  # the first of equals
    return rows[-1]["epoch"] - best["epoch"] >= trainer.patience


def _train_epoch(
    training: Training, step: Step, whole: WholeStep | None, state: State, progress: _Progress
) -> None:
    """Train from state.step to the end of the epoch. Between two reports nothing waits for the
    device.
    """
    model, optimizer = training.model, training.optimizer
    started, earlier, stopped = time.perf_counter(), state.epoch_seconds, False
    step.totals.copy_(torch.tensor(state.totals, dtype=step.totals.dtype))
    model.train()
    whole_steps = whole and whole.steps(state.epoch, state.step)
    for take_step in whole_steps or _steps(training, step, state):
        if training.schedule is None:
            set_learning_rate(optimizer, training.rate(state, state.step))
        state.lr = optimizer.param_groups[0]["lr"]
        take_step()
        if training.averaged:
            training.averaged.update_parameters(model)
        if training.schedule and training.config.optimizer.is_per_step:
            training.schedule.step()
        state.step += 1
        if progress.is_due():
            state.totals = step.totals.tolist()
            _require_finite(state.totals[0], "train loss", state.epoch)
            progress.show("training")
        if stopped := training.should_stop():
            break
    if whole and whole_steps and state.epoch < training.config.trainer.epochs:
        whole.pipeline.draw(state.epoch + 1)  # the device is some steps behind, yet
    state.totals = step.totals.tolist()
    state.epoch_seconds = earlier + time.perf_counter() - started
    state.generators = generator_states(step.device)
    if stopped:
        raise Interrupted


def _steps(training: Training, step: Step, state: State) -> Iterator[Callable[[], None]]:
    """Yield what takes each step from state.step on."""
    model, clip_norm = training.model, training.config.optimizer.clip_norm
    for images, labels in _remaining_batches(training.pipeline, state, step.device):

        def take(images: Tensor = images, labels: Tensor = labels) -> None:
            step(images, labels)  # loss.backward()
            if clip_norm is not None:
                nn.utils.clip_grad_norm_(model.parameters(), clip_norm)
            training.optimizer.step()

        yield take


def _remaining_batches(pipeline: Pipeline, state: State, device: torch.device) -> Iterator[Batch]:
    """Yield the batches of the epoch from state.step on, with the generators as they were there.

    The torchvision pipeline seeds the global generator when an epoch begins, and draws from it.
    Begun again in the middle of one, that is undone before the first step.
    """
    batches = pipeline.batches(state.epoch, state.step)
    first = list(itertools.islice(batches, 1))
    if state.step > 0:
        restore_generators(state.generators, device)
    yield from itertools.chain(first, batches)


def _evaluate_all(
    training: Training, whole: WholeStep | None, state: State, progress: _Progress
) -> dict[str, float]:
    """Return the columns that the evaluations add to the history; raise Diverged or Interrupted."""
    columns: dict[str, float] = {}
    progress.show("evaluating")
    networks = {"": training.model}
    if training.averaged:
        networks["ema_"] = training.averaged.module
    precision, measures = training.config.trainer.precision, training.metrics
    for kind, network in networks.items():
        for prefix, split in training.evaluations.items():
            found = None
            if whole and network is training.model and not measures:
                found = whole.evaluate(split, training.should_stop)
            if found is None:
                found = evaluate(network, split, precision, training.should_stop, measures)
            _require_finite(found["loss"], f"{prefix} {kind}loss", state.epoch)
            columns |= {f"{prefix}_{kind}{name}": value for name, value in found.items()}
    return columns


@torch.no_grad()
def predict(
    model: nn.Module,
    split: Images,
    precision: str,
    should_stop: Callable[[], bool] = lambda: False,
) -> Iterator[tuple[Tensor, Tensor]]:
    """Yield logits (B, K) and labels (B,) of `split`, batch by batch; raise Interrupted."""
    model.eval()
    for images, labels in split.batches():
        if should_stop():
            raise Interrupted
        with autocast(split.labels.device, precision):
            logits = model(images)
        yield logits.float(), labels


@torch.no_grad()
def evaluate(
    model: nn.Module,
    split: Images,
    precision: str,
    should_stop: Callable[[], bool] = lambda: False,
    metrics: Mapping[str, Measure] | None = None,
) -> dict[str, float]:
    """Return the mean cross-entropy as `loss`, the accuracy in percent, and what `metrics` give of
    all logits; raise Interrupted.
    """
    totals = zero_totals(split.labels.device)
    kept: list[Tensor] = []
    for logits, labels in predict(model, split, precision, should_stop):
        if metrics:
            kept.append(logits)
        add_totals(totals, F.cross_entropy(logits, labels, reduction="sum"), logits, labels)
    loss, correct = totals.tolist()
    found = {"loss": loss / len(split), "accuracy": 100 * correct / len(split)}
    return found | {
        name: measure(torch.cat(kept), split.labels) for name, measure in (metrics or {}).items()
    }


class _Progress:
    """Turns the state into reports: losses, speed and time left."""

    def __init__(self, training: Training, state: State) -> None:
        self.epochs, self.pipeline = training.config.trainer.epochs, training.pipeline
        self.report, self.state = training.report, state
        self.started = self.last = time.perf_counter()
        self.done_before = self._done()

    def _done(self) -> float:
        """Return the epochs that are done, with the fraction of the one in training."""
        return self.state.epoch - 1 + self.state.step / self.pipeline.steps

    def is_due(self) -> bool:
        """Return whether the last report is long enough ago."""
        return time.perf_counter() - self.last >= REPORT_EVERY

    def show(self, phase: str) -> None:
        """Report where the training is."""
        self.last = time.perf_counter()
        seen = min(self.state.step * self.pipeline.batch_size, self.pipeline.count)
        last = self.state.history[-1] if self.state.history else {}
        # Epochs per second of this process.
        speed = (self._done() - self.done_before) / (self.last - self.started)
        self.report(
            {
                "state": phase,
                "epoch": self.state.epoch,
                "epochs": self.epochs,
                "step": self.state.step,
                "steps": self.pipeline.steps,
                "loss": self.state.totals[0] / max(seen, 1),
                "accuracy": 100 * self.state.totals[1] / max(seen, 1),
                "val_accuracy": last.get("val_accuracy"),  # after the epoch before
                "images_per_second": speed * self.pipeline.count,
                "seconds_left": (self.epochs - self._done()) / speed if speed else None,
            }
        )


def _require_finite(loss: float, what: str, epoch: int) -> None:
    """Raise Diverged unless `loss` is finite."""
    if not math.isfinite(loss):
        raise Diverged(f"{what} is {loss} in epoch {epoch}")
