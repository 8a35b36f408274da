"""Task train: one network, from its latest checkpoint to its final weights."""

from __future__ import annotations

import logging
import math
import time
from collections.abc import Mapping
from dataclasses import asdict, replace
from typing import Any

from resnests.config.recipe import recipe_hash
from resnests.config.schema import Config
from resnests.data.pipelines import build_pipeline
from resnests.errors import Interrupted
from resnests.models.weights import save_weights
from resnests.runs.directory import RunDirectory
from resnests.runs.metrics import note_metrics
from resnests.runs.record import METRICS, Record
from resnests.tasks.measure import is_only_measured, measure, write_predictions
from resnests.tasks.run import Run
from resnests.text import epoch_line
from resnests.training.checkpoint import Checkpoints, load_checkpoint
from resnests.training.loop import State, Training, fit
from resnests.training.numerics import move, require_numerics
from resnests.training.objectives import build_loss
from resnests.training.optim import (
    averaged_model,
    build_optimizer,
    build_schedule,
    parameter_groups,
)

HISTORY_SECONDS = 1.0  # between two writings of history.csv, unless a checkpoint follows

log = logging.getLogger(__name__)


def train(run: Run) -> None:
    """Train the run's network to its last epoch, and write its final weights."""
    config, directory, device = run.config, run.directory, run.device
    if is_only_measured(directory, config):
        return measure(run)
    splits, dataset, model = run.prepare()
    move(model, device, config.trainer)
    loss = build_loss(replace(config, dataset=dataset), splits.train.labels, device)
    metrics = run.metrics(dataset)
    optimizer = build_optimizer(config.optimizer, parameter_groups(config.optimizer, model))
    averaged = averaged_model(model, config.trainer.ema)
    steps = math.ceil(len(splits.train) / config.trainer.batch_size)
    schedule = build_schedule(config, optimizer, steps)
    parts: dict[str, Any] = {
        "model": model,
        "optimizer": optimizer,
        "averaged": averaged,
        "schedule": schedule,
    }
    run.set_numerics()
    run.begin()
    identity = {"recipe": recipe_hash(config), "seed": config.seed, "variant": config.variant.name}
    state = _resume(directory, identity, parts)
    checkpoints = Checkpoints(directory, config.trainer.checkpoint_every)

    def save(state: State) -> None:
        values = {name: part.state_dict() for name, part in parts.items() if part is not None}
        checkpoints.save({"identity": identity, "state": asdict(state)} | values)

    def epoch_done(state: State) -> None:
        require_numerics(config.trainer)
        _note(run.record, state, config)
        done = state.epoch - 1
        is_due = checkpoints.is_due(done) or done == config.trainer.epochs
        if is_due or time.perf_counter() - history.written > HISTORY_SECONDS:
            history.write(state.history)  # before the checkpoint
        log.info("%s", epoch_line(state.history[-1], config.trainer.epochs))
        if done in config.trainer.keep_epochs:  # before the checkpoint: it says that this is done
            save_weights(directory.kept_weights_file(done), model)
        if is_due:
            save(state)

    _warn_of_past_epochs(run, state)
    _note(run.record, state, config)
    history = History(directory)
    history.write(state.history)
    directory.write_record(run.record)  # after it, as its parameters say whose history that is
    pipeline = build_pipeline(config, dataset, splits.train, device)
    evaluations = run.evaluations(splits, dataset)
    training = Training(
        config, model, optimizer, pipeline, evaluations, run.report, epoch_done, run.should_stop,
        loss, metrics, averaged, schedule,
    )  # fmt: skip
    try:
        fit(training, state)
    except Interrupted:
        save(state)
        place = f"in epoch {state.epoch} after step {state.step}"
        log.info("interrupted %s: the same command goes on from there", place)
        raise
    finally:
        run.note_memory()
        if history.rows < len(state.history):
            history.write(state.history)
    save_weights(directory.weights_file, model)
    if config.predictions:
        write_predictions(run, model, evaluations["test"], splits.test)
    if averaged:
        save_weights(directory.averaged_weights_file, averaged.module)


class History:
    """Writes history.csv, and knows when it did: on a fast GPU each epoch would be too often."""

    def __init__(self, directory: RunDirectory) -> None:
        self.directory, self.written, self.rows = directory, -math.inf, 0

    def write(self, rows: list[dict[str, Any]]) -> None:
        """Write all of `rows`."""
        self.directory.write_history(rows)
        self.written, self.rows = time.perf_counter(), len(rows)


def _resume(directory: RunDirectory, identity: dict[str, Any], parts: Mapping[str, Any]) -> State:
    """Put the latest sound checkpoint into `parts`; return the state to go on from."""
    checkpoint = load_checkpoint(directory, identity)
    if checkpoint is None:
        return State()
    for name, part in parts.items():
        if part is not None:
            part.load_state_dict(checkpoint[name])
    state = State(**checkpoint["state"])
    log.info("resuming in epoch %d after step %d", state.epoch, state.step)
    return state


def _warn_of_past_epochs(run: Run, state: State) -> None:
    """Log which of trainer.keep_epochs were over before anybody asked for their weights."""
    for epoch in run.config.trainer.keep_epochs:
        if epoch < state.epoch and not run.directory.kept_weights_file(epoch).is_file():
            reason = "it was over when this was asked for; trainer.overwrite=true starts again"
            log.warning("the weights of epoch %d are not kept: %s", epoch, reason)


def _note(record: Record, state: State, config: Config) -> None:
    """Bring the record up to the epochs that are done."""
    record.epochs = state.epoch - 1
    if state.history:
        note_metrics(record, state.history[-1], config)
        for name in METRICS:
            setattr(record, name, state.history[-1].get(name))
        record.seconds = round(sum(row["seconds"] for row in state.history), 3)
        # All epochs have as many images: their speed together is the harmonic mean.
        speeds = [row["images_per_second"] for row in state.history]
        record.images_per_second = round(len(speeds) / sum(1 / speed for speed in speeds), 2)
