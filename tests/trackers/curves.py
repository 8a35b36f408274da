"""Runs that grow epoch by epoch, as trackers see them, without training anything."""

from __future__ import annotations

import time
from pathlib import Path
from typing import Any

import trees

from resnests.runs.directory import RunDirectory
from resnests.trackers.run_sync import RunSync

EPOCHS = 4
ROWS = trees.history_rows(90.0, EPOCHS, eval_every=2)


class Training:
    """Trains a run of EPOCHS epochs, one by one, and sends it to `name` by processes."""

    def __init__(self, root: Path, name: str, settings: dict[str, Any], **overrides: Any) -> None:
        self.run: RunDirectory = trees.add_run(
            root,
            status="running",
            trainer__epochs=EPOCHS,
            logger={name: settings},
            **overrides,
        )
        self.name = name
        self.rows = list(ROWS)

    def reach(self, epoch: int, status: str = "running", accuracy: float = 90.0) -> None:
        record = self.run.read_record()
        record.status, record.epochs, record.provenance.ended = status, epoch, time.time()
        if status == "complete":
            record.train_loss, record.train_accuracy = 0.5, 94.0
            record.test_loss, record.test_accuracy = 0.75, accuracy
        self.run.write_history(self.rows[:epoch])
        self.run.write_record(record)

    def sync(self, *epochs: int, end: str | None = None) -> RunSync:
        """Send the run after each of `epochs` as one process does, which dies in the end; the run
        ends before it as `end`.
        """
        sync = RunSync(self.run, self.name)
        for epoch in epochs:
            self.reach(epoch)
            sync.sync()
        if end:
            self.reach(epochs[-1], end)
            sync.sync()
        sync.release()
        assert sync.error is None
        return sync

    def start_afresh(self) -> None:
        """Do what trainer.overwrite=true does, with the times of another training."""
        config = self.run.read_record()
        self.run.clear()
        self.run.write_record(config)
        self.rows = [row | {"seconds": 11.5, "train_loss": 3.5} for row in self.rows]


def measured(name: str) -> dict[int, float]:
    """Return what a tracker must show of a column of history.csv: a value for each epoch."""
    return {row["epoch"]: row[name] for row in ROWS if name in row}
