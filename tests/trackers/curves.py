"""Runs that grow epoch by epoch, as trackers see them, without training anything."""

from __future__ import annotations

import time
from pathlib import Path
from typing import Any

import trees

from resnests.runs.directory import RunDirectory
from resnests.trackers.echo import Echo, Tracker

EPOCHS = 4
ROWS = trees.history_rows(90.0, EPOCHS, eval_every=2)


class Training:
    """A run of EPOCHS epochs, one by one; `echo` is one process that follows it."""

    def __init__(self, root: Path, **overrides: Any) -> None:
        self.run: RunDirectory = trees.add_run(
            root, status="running", trainer__epochs=EPOCHS, **overrides
        )
        self.rows = list(ROWS)

    def reach(self, epoch: int, status: str = "running") -> None:
        record = self.run.read_record()
        record.status, record.epochs, record.provenance.ended = status, epoch, time.time()
        if status == "complete":
            record.train_loss, record.train_accuracy = 0.5, 94.0
            record.test_loss, record.test_accuracy = 0.75, 90.0
        self.run.write_history(self.rows[:epoch])
        self.run.write_record(record)

    def echo(self, tracker: Tracker, *epochs: int, end: str | None = None) -> None:
        """Catch up after each of `epochs`; at the last one the run ends, or its process dies."""
        echo = Echo(self.run, tracker)
        for epoch in epochs:
            self.reach(epoch)
            echo.catch_up(self.run.read_record())
        if end:
            self.reach(epochs[-1], end)
            echo.end(self.run.read_record())


def measured(name: str) -> dict[int, float]:
    """What a tracker must show of a column of history.csv: a value for each epoch."""
    return {row["epoch"]: row[name] for row in ROWS if name in row}
