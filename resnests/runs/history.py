"""Write and read history.csv: a row an epoch, as text."""

from __future__ import annotations

import csv
import io
import math
from pathlib import Path
from typing import Any

from resnests.runs.files import read_file
from resnests.runs.record import BrokenRecord

HISTORY = (
    "epoch", "lr", "train_loss", "train_accuracy", "val_loss", "val_accuracy", "test_loss",
    "test_accuracy", "seconds", "images_per_second",
)  # fmt: skip


def to_csv(rows: list[dict[str, Any]]) -> bytes:
    """Return the text of the file: the columns of HISTORY, then those of a run's own metrics."""
    text = io.StringIO()
    more = dict.fromkeys(name for row in rows for name in row if name not in HISTORY)
    writer = csv.DictWriter(text, (*HISTORY, *more), restval="", lineterminator="\n")
    writer.writeheader()
    writer.writerows(rows)
    return text.getvalue().encode()


def read(path: Path, columns: tuple[str, ...] | None) -> dict[str, list[float]]:
    """Return the named columns, None for all; nan where a value is empty. Raise BrokenRecord."""
    try:
        header, *rows = csv.reader(io.StringIO(read_file(path).decode(), newline=""))
        cells = zip(*rows, strict=True) if rows else ([] for _ in header)
        table = dict(zip(header, cells, strict=True))
        return {
            name: [float(value) if value else math.nan for value in table[name]]
            for name in columns or dict.fromkeys((*HISTORY, *table))
        }
    except OSError as error:
        raise BrokenRecord(f"history.csv: {error.strerror}") from error
    except (ValueError, KeyError, csv.Error) as error:
        raise BrokenRecord(
            f"history.csv is no table of {', '.join(columns or HISTORY)} ({error})"
        ) from error
