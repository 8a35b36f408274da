"""Write values and numbers as people read them, and show the progress of what takes long."""

from __future__ import annotations

import math
import os
import time
from collections.abc import Collection, Iterator
from decimal import ROUND_CEILING, ROUND_FLOOR, Context
from pathlib import Path
from typing import Any, TypeVar

from resnests.environment import PROGRESS

T = TypeVar("T")


def flat(tree: dict[str, Any], prefix: str = "") -> Iterator[tuple[str, Any]]:
    """Yield each value of a nested configuration with its dotted key."""
    for key, value in tree.items():
        if isinstance(value, dict):
            yield from flat(value, f"{prefix}{key}.")
        else:
            yield prefix + key, value


def what_goes_on(overwrites: bool) -> str:
    """Return which command goes on: with trainer.overwrite=true it would start all afresh again."""
    command = "the same command" + (" without trainer.overwrite=true" if overwrites else "")
    return f"{command} goes on"


def as_typed(value: Any) -> Any:
    """Return a configured value as one types it on the command line; numbers stay numbers."""
    if isinstance(value, list):
        return "[" + ",".join(str(as_typed(item)) for item in value) + "]"
    if isinstance(value, dict):
        return "{" + ",".join(f"{key}:{as_typed(item)}" for key, item in value.items()) + "}"
    if value is None or isinstance(value, bool):
        return {None: "null", True: "true", False: "false"}[value]
    return value


def digits_of(error: float | None) -> int:
    """Return how many digits a number of this error has, at most four: the error is at most one
    unit of the last. An unknown error leaves all.
    """
    digits = 4
    while digits > 0 and error and error > 10**-digits:
        digits -= 1
    return digits


def fixed(number: float, digits: int, sign: str = "-") -> str:
    """Return a number with so many digits after the point, and no minus before a zero; with a
    `sign` of "+" also before what is positive.
    """
    return f"{round(number, digits) + 0.0:{sign}.{digits}f}"


def at_most(bound: float, digits: int = 1) -> float:
    """Return a bound from above, rounded up to so many digits: rounded down it need not hold."""
    return float(Context(digits, ROUND_CEILING).create_decimal(str(float(bound))))


def at_least(bound: float, digits: int = 1) -> float:
    """Return a bound from below, rounded down to so many digits."""
    return float(Context(digits, ROUND_FLOOR).create_decimal(str(float(bound))))


def short(value: Any) -> str:
    """Return a value of a table: a number with a point in four digits, all else as it is."""
    return f"{value:.4g}" if isinstance(value, float) else str(value)


def brief(value: Any) -> Any:
    """Return a configured value as labels have it: as typed, but a `_target_` with its arguments as
    a call. The paths of torchvision's transforms and of ours go without saying; any other stays.
    """
    if isinstance(value, list):
        return "[" + ",".join(str(brief(item)) for item in value) + "]"
    if isinstance(value, dict) and isinstance(value.get("_target_"), str):
        name = value["_target_"]
        for known in ("torchvision.transforms.v2.", "resnests.data.augment."):
            name = name.removeprefix(known)
        others = ",".join(f"{k}={brief(v)}" for k, v in value.items() if k != "_target_")
        return f"{name}({others})" if others else name
    return as_typed(value)


def progress(items: Collection[T] | Iterator[T], what: str, total: int = 0) -> Iterator[T]:
    """Yield `items`, with a bar on a terminal once they have taken a second.

    The terminal is that of standard error, or the one whose number another process gave.
    """
    from rich.console import Console
    from rich.progress import Progress

    began = time.monotonic()
    given = os.environ.get(PROGRESS)
    file = os.fdopen(int(given), "w", closefd=False) if given else None
    bar = Progress(console=Console(file=file, stderr=file is None), transient=True)
    task = bar.add_task(what, total=total or len(items))  # type: ignore[arg-type]
    try:
        for count, item in enumerate(items):
            if time.monotonic() - began > 1 and bar.console.is_terminal:
                bar.start()
            yield item
            bar.update(task, completed=count + 1)
    finally:
        if bar.live.is_started:  # else it would print an empty line
            bar.stop()


def last_log_line_of(log: Path) -> str:
    """Return the last line of `log` that says something, "" where none does; raise an OSError."""
    lines = log.read_text(errors="replace").splitlines()
    return next((line for line in reversed(lines) if line.strip()), "")


def accuracy(test: float, validation: float = math.nan) -> str:
    """Return the accuracy that is printed of a run: on the held-out images where there are some.

    They were held out to choose by. Test accuracies beside each other would invite to choose by
    those, which would then flatter what was chosen; the tables have them.
    """
    return f"test {test:.2f}%" if math.isnan(validation) else f"validation {validation:.2f}%"


def epoch_line(row: dict[str, float], epochs: int) -> str:
    """Return an epoch of history.HISTORY as one line, of the images that accuracy() chooses."""
    images = "test" if math.isnan(row.get("val_loss", math.nan)) else "val"
    measured = ""
    if not math.isnan(row.get(f"{images}_loss", math.nan)):
        name = "validation" if images == "val" else "test"
        measured = f", {name} loss {row[f'{images}_loss']:.4f} {row[f'{images}_accuracy']:.2f}%"
    return (
        f"epoch {row['epoch']:.0f}/{epochs}: lr {row['lr']:g}, train loss {row['train_loss']:.4f} "
        f"{row['train_accuracy']:.2f}%{measured}, {row['seconds']:.1f} s, "
        f"{row['images_per_second']:.0f} images/s"
    )


def printable(text: str) -> str:
    """Return `text` without what would tell a terminal more than to show it."""
    return "".join(c if c.isprintable() or c == "\n" else "\N{REPLACEMENT CHARACTER}" for c in text)


def duration(seconds: float) -> str:
    """Return `seconds` as people say them: 1.2 s, 3:05 min or 26:00 h."""
    if seconds < 60:
        return f"{seconds:.1f} s"
    minutes, rest = divmod(round(seconds), 60)
    return f"{minutes}:{rest:02} min" if minutes < 60 else f"{minutes // 60}:{minutes % 60:02} h"
