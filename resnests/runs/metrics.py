"""Tell what a run measured beside loss and accuracy, and whether a command asks for that.

Metrics change no number of a training, so they are no part of its recipe. A finished run that lacks
one, or has it by another definition, is measured again with the weights that it has. No torch.
"""

from __future__ import annotations

import hashlib
import json
import math
from collections.abc import Mapping
from dataclasses import asdict
from typing import Any

from resnests.config.schema import Config
from resnests.config.targets import code_digest
from resnests.runs.directory import RunDirectory
from resnests.runs.history import HISTORY
from resnests.runs.record import Record


def definitions(config: Config) -> dict[str, str]:
    """Return what tells how each metric of `config` is measured: its keys and its source."""
    return {
        part.name: hashlib.sha256(
            json.dumps([asdict(part), code_digest(part)]).encode()
        ).hexdigest()[:8]
        for part in config.metric_parts()
    }


def lacks_metrics(record: Record, config: Config) -> bool:
    """Return whether a complete run has not all that `config` asks for, or has it otherwise; or
    has its number alone, as an earlier version forgot the unit when it measured another one.
    """
    asked = definitions(config) if record.status == "complete" else {}
    known = record.config.get("metrics", {})
    return any(
        record.metrics.get(name, {}).get("definition") != definition or name not in known
        for name, definition in asked.items()
    )


def is_unmeasured(directory: RunDirectory, record: Record, config: Config) -> bool:
    """Return whether a complete run lacks metrics or predictions that `config` asks for; other
    tasks than those that measure have neither.
    """
    if config.task not in ("train", "evaluate"):
        return False
    wanted = config.predictions and record.status == "complete"
    lacks_predictions = wanted and not directory.predictions_file.is_file()
    return lacks_predictions or lacks_metrics(record, config)


def note_metrics(record: Record, row: dict[str, Any], definitions: Mapping[str, str]) -> None:
    """Put on record what a row of the history has beside HISTORY's columns; `definitions` are those
    of the source that measured it.

    JSON has no nan: what is none of the numbers, such as an AUROC of one class, is None.
    """
    for column in row.keys() - {*HISTORY}:
        split, _, name = column.partition("_")
        value = row[column] if math.isfinite(row[column]) else None
        entry = record.metrics.setdefault(name, {})
        entry |= {split: value} | ({"definition": definitions[name]} if name in definitions else {})
