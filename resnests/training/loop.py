"""The training loop: steps, epochs, evaluation, and what can end them early. It knows nothing of
files.
"""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import nn
from torch.nn import functional as F

from resnests.config.schema import Config
from resnests.data.pipelines import Batch, Images, Pipeline
from resnests.training.optim import learning_rate, set_learning_rate
from resnests.training.step import Step, add_totals, autocast, zero_totals

REPORT_EVERY = 1.0  # seconds between two looks at the loss, for which the host waits for the device


class Diverged(ArithmeticError):
    """The loss is no longer finite."""


class Interrupted(Exception):
    """Asked to stop. The state is that of a step boundary, from which training can go on."""


@dataclass
class State:
    """Where a training is: what a checkpoint holds besides weights and optimizer. Random streams
    follow from it.
    """

    epoch: int = 1  # the one in training, from 1
    step: int = 0  # steps of it that are done
    totals: list[float] = field(
        default_factory=lambda: [0.0, 0.0]
    )  # its summed loss and correct predictions
    epoch_seconds: float = 0.0  # its training so far
    train_seconds: float = 0.0  # training of the epochs before it, without evaluation
    history: list[dict[str, Any]] = field(
        default_factory=list
    )  # a row of record.HISTORY for each epoch before it


@dataclass(frozen=True)
class Hooks:
    """What the loop tells and asks its surroundings."""

    report: Callable[[dict[str, Any]], None]  # about once a second
    epoch_done: Callable[[State], None]  # the state is that before the next epoch
    should_stop: Callable[[], bool]  # asked at every step boundary


def train_steps(
    step: Step,
    optimizer: torch.optim.Optimizer,
    batches: Iterable[Batch],
    clip_norm: float | None = None,
) -> Iterator[int]:
    """Train on each batch; yields its size after it. Nothing here waits for the device."""
    step.model.train()
    for images, labels in batches:
        step(images, labels)
        if clip_norm is not None:
            torch.nn.utils.clip_grad_norm_(step.model.parameters(), clip_norm)
        optimizer.step()
        yield len(labels)


@torch.no_grad()
def evaluate(
    model: nn.Module, split: Images, precision: str, should_stop: Callable[[], bool] = lambda: False
) -> tuple[float, float]:
    """Mean cross-entropy and accuracy in percent; raises Interrupted."""
    model.eval()
    device = split.labels.device
    totals = zero_totals(device)
    for images, labels in split.batches():
        if should_stop():
            raise Interrupted
        with autocast(device, precision):
            logits = model(images)
        add_totals(totals, F.cross_entropy(logits.float(), labels, reduction="sum"), logits, labels)
    loss, correct = totals.tolist()
    return loss / len(split), 100 * correct / len(split)


def fit(
    model: nn.Module,
    optimizer: torch.optim.Optimizer,
    pipeline: Pipeline,
    evaluations: dict[str, Images],
    config: Config,
    state: State,
    hooks: Hooks,
) -> None:
    """Train from `state` to the last epoch; raises Diverged, or Interrupted with `state` at a step
    boundary.

    `evaluations` maps a prefix of the history's columns (test, val) to its split.
    """
    step = Step(model, config.trainer)
    progress = _Progress(config.trainer.epochs, pipeline, state, hooks.report)
    while state.epoch <= config.trainer.epochs:
        rate = _train_epoch(step, optimizer, pipeline, config, state, hooks, progress)
        loss, accuracy = state.totals[0] / pipeline.count, 100 * state.totals[1] / pipeline.count
        _require_finite(loss, "train loss", state.epoch)
        row = {"epoch": state.epoch, "lr": rate, "train_loss": loss, "train_accuracy": accuracy}
        started = time.perf_counter()
        if state.epoch % config.trainer.eval_every == 0 or state.epoch == config.trainer.epochs:
            progress.show("evaluating")
            for prefix, split in evaluations.items():
                loss, accuracy = evaluate(model, split, config.trainer.precision, hooks.should_stop)
                _require_finite(loss, f"{prefix} loss", state.epoch)
                row |= {f"{prefix}_loss": loss, f"{prefix}_accuracy": accuracy}
        row["seconds"] = round(state.epoch_seconds + time.perf_counter() - started, 4)
        row["images_per_second"] = round(pipeline.count / state.epoch_seconds, 2)
        state.history.append(row)
        state.train_seconds += state.epoch_seconds
        state.epoch, state.step = state.epoch + 1, 0
        state.totals, state.epoch_seconds = [0.0, 0.0], 0.0
        hooks.epoch_done(state)


def _train_epoch(
    step: Step,
    optimizer: torch.optim.Optimizer,
    pipeline: Pipeline,
    config: Config,
    state: State,
    hooks: Hooks,
    progress: _Progress,
) -> float:
    """Train from state.step to the end of the epoch; the learning rate of its last step."""

    def rate(number: int) -> float:
        place = (state.epoch, config.trainer.epochs, number, pipeline.steps)
        return learning_rate(config.optimizer, *place)

    def batches() -> Iterator[Batch]:
        for batch in pipeline.batches(state.epoch, state.step):
            set_learning_rate(optimizer, rate(state.step))
            yield batch

    step.totals.copy_(torch.tensor(state.totals, dtype=step.totals.dtype))
    started, earlier, stopped = time.perf_counter(), state.epoch_seconds, False
    for _ in train_steps(step, optimizer, batches(), config.optimizer.clip_norm):
        state.step += 1
        if progress.is_due():
            state.totals = step.totals.tolist()
            _require_finite(state.totals[0], "train loss", state.epoch)
            progress.show("training")
        if stopped := hooks.should_stop():
            break
    state.totals = step.totals.tolist()
    state.epoch_seconds = earlier + time.perf_counter() - started
    if stopped:
        raise Interrupted
    return rate(pipeline.steps - 1)


class _Progress:
    """Turns the state into reports: losses, speed and time left."""

    def __init__(
        self,
        epochs: int,
        pipeline: Pipeline,
        state: State,
        report: Callable[[dict[str, Any]], None],
    ) -> None:
        self.epochs, self.pipeline, self.state, self.report = epochs, pipeline, state, report
        self.started = self.last = time.perf_counter()
        self.done_before = self._done()

    def _done(self) -> float:
        """Epochs, with the fraction of the one in training."""
        return self.state.epoch - 1 + self.state.step / self.pipeline.steps

    def is_due(self) -> bool:
        return time.perf_counter() - self.last >= REPORT_EVERY

    def show(self, phase: str) -> None:
        self.last = time.perf_counter()
        seen = min(self.state.step * self.pipeline.batch_size, self.pipeline.count)
        speed = (self._done() - self.done_before) / (
            self.last - self.started
        )  # epochs per second, this process
        self.report(
            {
                "state": phase,
                "epoch": self.state.epoch,
                "epochs": self.epochs,
                "step": self.state.step,
                "steps": self.pipeline.steps,
                "loss": self.state.totals[0] / max(seen, 1),
                "accuracy": 100 * self.state.totals[1] / max(seen, 1),
                "images_per_second": speed * self.pipeline.count,
                "seconds_left": (self.epochs - self._done()) / speed if speed else None,
            }
        )


def _require_finite(loss: float, what: str, epoch: int) -> None:
    if not math.isfinite(loss):
        raise Diverged(f"{what} is {loss} in epoch {epoch}")
