"""Keep on disk how far a training is: record, history, weights of kept epochs, checkpoints."""

from __future__ import annotations

import logging
import time
from collections.abc import Mapping
from dataclasses import asdict
from typing import Any

from resnests.config.recipe import recipe_hash
from resnests.models.weights import save_weights
from resnests.runs.metrics import note_metrics
from resnests.runs.record import METRICS, Record
from resnests.tasks.run import Run
from resnests.text import epoch_line
from resnests.training.checkpoint import Checkpoints, load_checkpoint
from resnests.training.loop import State
from resnests.training.numerics import require_numerics

HISTORY_SECONDS = 1.0  # between two writings of history.csv, unless a checkpoint follows

log = logging.getLogger(__name__)


class Keeper:
    """Keeps a training whose `parts` have a state: network, optimizer, and what else there is."""

    def __init__(self, run: Run, parts: Mapping[str, Any]) -> None:
        self.run, self.config, self.directory = run, run.config, run.directory
        self.parts = {name: part for name, part in parts.items() if part is not None}
        config = run.config
        self.identity = {
            "recipe": recipe_hash(config),
            "seed": config.seed,
            "variant": config.variant.name,
        }
        self.checkpoints = Checkpoints(run.directory, config.trainer.checkpoint_every)
        self.history_written, self.history_rows = 0.0, 0

    def resume(self) -> State:
        """Put the latest sound checkpoint into the parts; return the state to go on from."""
        checkpoint = load_checkpoint(self.directory, self.identity)
        state = State()
        if checkpoint is not None:
            for name, part in self.parts.items():
                part.load_state_dict(checkpoint[name])
            state = State(**checkpoint["state"])
            log.info("resuming in epoch %d after step %d", state.epoch, state.step)
        elif 0 in self.config.trainer.keep_epochs:
            save_weights(self.directory.kept_weights_file(0), self.parts["model"])
        self._warn_of_past_epochs(state)
        note_epochs(self.run.record, state, self.run.definitions)
        self._write_history(state)
        # after it, as its parameters say whose history that is
        self.directory.write_record(self.run.record)
        return state

    def save(self, state: State) -> None:
        """Write a checkpoint."""
        values = {name: part.state_dict() for name, part in self.parts.items()}
        self.checkpoints.save({"identity": self.identity, "state": asdict(state)} | values)

    def epoch_done(self, state: State) -> None:
        """Keep an epoch; `state` is that before the next one."""
        trainer, done = self.config.trainer, state.epoch - 1
        require_numerics(trainer)
        note_epochs(self.run.record, state, self.run.definitions)
        is_due = self.checkpoints.is_due(done) or done == trainer.epochs
        # On a fast GPU each epoch would be too often; but always before a checkpoint
        if is_due or time.perf_counter() - self.history_written > HISTORY_SECONDS:
            self._write_history(state)
        log.info("%s", epoch_line(state.history[-1], trainer.epochs))
        if done in trainer.keep_epochs:  # before the checkpoint: it says that this is done
            save_weights(self.directory.kept_weights_file(done), self.parts["model"])
        if is_due:
            self.save(state)

    def close(self, state: State) -> None:
        """Write the epochs that history.csv lacks."""
        if self.history_rows < len(state.history):
            self._write_history(state)

    def _write_history(self, state: State) -> None:
        self.directory.write_history(state.history)
        self.history_written, self.history_rows = time.perf_counter(), len(state.history)

    def _warn_of_past_epochs(self, state: State) -> None:
        """Log which of trainer.keep_epochs were over before anybody asked for their weights."""
        for epoch in self.config.trainer.keep_epochs:
            if epoch < state.epoch and not self.directory.kept_weights_file(epoch).is_file():
                reason = "it was over when this was asked for; trainer.overwrite=true starts again"
                log.warning("the weights of epoch %d are not kept: %s", epoch, reason)


def note_epochs(record: Record, state: State, definitions: Mapping[str, str]) -> None:
    """Bring the record up to the epochs that are done."""
    record.epochs = state.epoch - 1
    if state.history:
        note_metrics(record, state.history[-1], definitions)
        for name in METRICS:
            setattr(record, name, state.history[-1].get(name))
        record.seconds = round(sum(row["seconds"] for row in state.history), 3)
        # All epochs have as many images: their speed together is the harmonic mean.
        speeds = [row["images_per_second"] for row in state.history]
        record.images_per_second = round(len(speeds) / sum(1 / speed for speed in speeds), 2)
