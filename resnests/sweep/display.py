"""Show runs in progress, read from their directories: a live table, or plain lines."""

from __future__ import annotations

import math
import socket
import sys
import threading
import time
from collections import Counter, deque
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

from rich.cells import cell_len
from rich.console import Console, Group
from rich.live import Live
from rich.progress_bar import ProgressBar
from rich.table import Table
from rich.text import Text

from resnests.runs.analysis import error_column
from resnests.runs.record import FINAL, BrokenRecord, Record
from resnests.runs.sweeps import Kinds, epochs_left, kinds_of, seconds_an_epoch, seconds_left
from resnests.text import accuracy, digits_of, duration, epoch_line, fixed, printable

if TYPE_CHECKING:
    from resnests.sweep.plan import Run
    from resnests.sweep.scheduler import Job

POLL_SECONDS = 0.5  # seconds between two looks at the files
TURNS = 20  # runs for which no job of ours is at work and whose files are looked at nevertheless
PENDING, WAITING, RUNNING = "pending", "waiting", "running"
GOES_ON = ("killed", "interrupted")  # in another job, or by the next command


@dataclass
class View:
    """Shows a run as its files have it."""

    run: Run
    status: str = PENDING  # or waiting (for a device), running, or how it ended
    progress: dict[str, Any] = field(default_factory=dict)
    record: Record | None = None
    shown_epochs: int = 0

    def update(self, since: float) -> None:
        """Read its files; what is older than `since` (Unix seconds) is of an earlier attempt."""
        progress = self.run.directory.shown_progress()
        self.progress = progress if progress.get("time", 0) >= since else {}
        try:
            fresh = self.run.directory.record_file.stat().st_mtime >= since
            self.record = self.run.directory.read_record() if fresh else None
        except (OSError, BrokenRecord):
            self.record = None
        if self.record:
            self.status = self.record.status
        elif self.progress:
            self.status = RUNNING if self.progress.get("device") else WAITING
        else:
            self.status = PENDING

    @property
    def is_over(self) -> bool:
        return self.status not in (PENDING, WAITING, RUNNING)

    def outcome(self) -> str:
        if self.record is None:
            return ""
        if self.status == "complete":
            took = duration(self.record.seconds)
            assert self.record.test_accuracy is not None
            last = [{}, *self.run.directory.history_rows()][-1]
            measured = accuracy(self.record.test_accuracy, last.get("val_accuracy", math.nan))
            return f"{measured} {self._origin(self.record)}, {took}"
        return self.record.error or ""

    def _origin(self, record: Record) -> str:
        """Return what the accuracy is of, and of an analysis what it found."""
        epochs = f"{record.epochs} epoch{'s' * (record.epochs != 1)}"
        given = "of given weights" if record.config["weights"] else f"after {epochs}"
        analysis = (
            self.run.directory.read_analysis() if record.config["task"] == "analyze" else None
        )
        if analysis is None:
            return given
        found = analysis.summary()
        shown = {"training risk": "trained", "bound": "bound", "ε": "eps"}
        known = [
            f"{name} {fixed(value, digits_of(found.get(error_column(column))))}"
            for name, column in shown.items()
            if (value := found[column]) is not None
        ]
        return ", ".join([given, *known])


class Display:
    """Follows the runs of a sweep until the `with` block ends: live on a terminal that can, plain
    lines elsewhere.
    """

    def __init__(self, runs: Sequence[Run], todo: Sequence[Run]) -> None:
        self.jobs: dict[int, Job] = {}  # the open ones, by the number of the run
        self.active = set[int]()  # numbers of the runs that had an active job at the last refresh
        self.total, self.skipped = len(runs), len(runs) - len(todo)
        self.views = [View(run) for run in todo]
        self.by_index = {view.run.index: view for view in self.views}
        self.turns = deque(self.views)
        self.ended = set[int]()  # numbers of the runs that were at an end, some of which try again
        if len(self.views) == 1:
            self.views[0].shown_epochs = len(
                todo[0].directory.history_rows()
            )  # of the attempt that is resumed
        # Labels and error messages are shown as they are: [...] and :...: mean nothing to us
        self.console = Console(highlight=False, soft_wrap=True, markup=False, emoji=False)
        self.started = time.time()
        self.is_unwritable = False
        # A dumb one (TERM=dumb) cannot draw a table over the one before
        can_draw = self.console.is_terminal and not self.console.is_dumb_terminal
        self.live = Live(console=self.console, auto_refresh=False) if can_draw else None
        self.console.soft_wrap = not can_draw  # lines above a table break between words
        self._over = threading.Event()
        self._thread = threading.Thread(target=self._follow, daemon=True)

    def __enter__(self) -> Display:
        if self.live:
            self.live.start()
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._over.set()
        self._thread.join()
        self._refresh(self.views)
        if self.live:
            self.live.stop()

    def print(self, line: str) -> None:
        """Print a line, above the live table where there is one.

        Where it cannot be written, as on a full disk, the runs go on.
        """
        try:
            self.console.print(printable(line))
        except OSError as error:
            if not self.is_unwritable:
                print(f"warning: standard output: {error.strerror}", file=sys.stderr)
            self.is_unwritable = True

    def update(self, jobs: Sequence[Job]) -> None:
        """Take note of the open jobs of the sweep."""
        self.jobs = {run.index: job for job in jobs for run in job.runs}

    def _follow(self) -> None:
        while not self._over.wait(POLL_SECONDS):
            self._refresh(self._due())

    def _due(self) -> list[View]:
        """Return the runs that can have changed.

        Those are the runs whose job is active or was so at the last refresh, and some of the others
        by turns, as another sweep may train them.
        """
        active = {index for index, job in self.jobs.items() if job.is_active}
        due = [self.by_index[index] for index in active | self.active if index in self.by_index]
        self.active = active
        for _ in range(min(TURNS, len(self.turns))):
            view = self.turns.popleft()
            if view.status not in FINAL:
                self.turns.append(view)
                due.append(view)
        return due

    def _refresh(self, views: Sequence[View]) -> None:
        for view in views:
            before = view.status
            if view.status in FINAL:
                continue
            view.update(self.started)
            self._print_change(view, before)
        if self.live:
            self.live.update(self._table(), refresh=True)

    def _print_change(self, view: View, before: str) -> None:
        """Print plain lines: start and end of each run of a sweep, every epoch of a single one."""
        label = view.run.label
        begun = before in (PENDING, WAITING) and view.status not in (PENDING, WAITING)
        again = view.status == RUNNING != before
        if (begun or again) and not self.live:
            device = self._device(view)
            self.print(f"start {label} on {device}" if device else f"start {label}")
        if len(self.views) == 1 and not self.live:
            self._print_epochs(view)
        if view.is_over and view.status != before:
            outcome = f": {text}" if (text := view.outcome()) else ""
            self.print(f"{view.status}{self._count(view)} {label}{outcome}")

    def _count(self, view: View) -> str:
        """Return how many runs are at their end with this one, "" where it is not: the count never
        goes back, also where a run is tried again.
        """
        if view.status in GOES_ON:
            return ""
        self.ended.add(view.run.index)
        return f" {self.skipped + len(self.ended)}/{self.total}"

    def _print_epochs(self, view: View) -> None:
        rows = view.run.directory.history_rows()
        for row in rows[view.shown_epochs :]:
            self.print(epoch_line(row, view.run.config.trainer.epochs))
        view.shown_epochs = max(view.shown_epochs, len(rows))

    def _table(self) -> Group:
        counts = Counter(view.status for view in self.views)
        running = [view for view in self.views if view.status == RUNNING]
        open_jobs = self.jobs.values()
        queued = [job for job in open_jobs if job.name and not job.is_active and not job.is_over]
        reasons = Counter(job.reason or "no reason given yet" for job in queued)
        parts = [
            f"{counts['complete'] + self.skipped} of {self.total} done",
            f"{len(running)} running",
        ]
        parts += [f"{count} queued ({reason})" for reason, count in reasons.most_common()]
        parts += [f"{counts[PENDING] + counts[WAITING] - len(queued)} waiting"]
        parts += [
            f"{counts[status]} {status}"
            for status in ("failed", "killed", "diverged", "interrupted")
        ]
        headline = ", ".join(
            part for part in parts if not part.startswith("0 ") or part.startswith("0 of")
        )
        left = self._seconds_left(running)
        tail = f"; {duration(time.time() - self.started)} so far" + (
            f", about {duration(left)} left" if left else ""
        )
        head = Text(headline + tail)
        room = max(1, self.console.height - 3 - len(head.wrap(self.console, self.console.width)))
        rows = [_cells(view, self._device(view)) for view in running[:room]]
        table = _table(rows, self.console.width)
        more = [Text(f"and {len(running) - room} more")] if len(running) > room else []
        return Group(*([head] if self.total > 1 else []), *([table] if running else []), *more)

    def _device(self, view: View) -> str:
        """Return the device of a run, and where that is elsewhere its host."""
        job, host = self.jobs.get(view.run.index), view.progress.get("host")
        node = job.node if job else ""
        elsewhere = host if host != socket.gethostname() else ""
        return " ".join(filter(None, (node or elsewhere, view.progress.get("device"))))

    def _seconds_left(self, running: list[View]) -> float | None:
        """Return how long the sweep takes yet, as measured; None where nothing was."""
        rates: list[tuple[Kinds, float]] = []
        waiting: Counter[Kinds] = Counter()
        for view in self.views:
            config, trains = view.run.config, view.run.config.task == "train"
            kinds = kinds_of(config.task, config.dataset.name, config.arch.name)
            if view.status == "complete" and view.record:
                rates.append((kinds, view.record.seconds / ((trains and view.record.epochs) or 1)))
            elif view.status == RUNNING and (rate := seconds_an_epoch(view.progress)) is not None:
                rates.append((kinds, rate))
            elif view.status in (PENDING, WAITING):
                waiting[kinds] += config.trainer.epochs if trains else 1
        left = [view.progress.get("seconds_left") or 0.0 for view in running]
        return seconds_left(rates, left, waiting) if rates else None


# Columns of the table, and the order in which a narrow terminal loses them.
_COLUMNS = ("run", "device", "", "epoch", "loss", "accuracy", "images/s", "left")
_LEFT = ("run", "device", "")  # aligned there
_SPARED = ("images/s", "loss", "", "device", "accuracy")
_BAR = 20


def _cells(view: View, device: str) -> dict[str, Any]:
    """Return what the table shows of a running run, by column."""
    p, known = view.progress, {"run": view.run.label, "device": device}
    if "epoch" not in p:
        return dict.fromkeys(_COLUMNS, "") | known | {"epoch": p.get("state") or ""}
    val = p.get("val_accuracy")
    held_out = "" if val is None else f", validation {val:.2f}%"
    return known | {
        "": ProgressBar(total=p["epochs"], completed=p["epochs"] - epochs_left(p), width=_BAR),
        "epoch": f"{p['epoch']}/{p['epochs']}",
        "loss": f"{p['loss']:.4f}",
        "accuracy": f"{p['accuracy']:.2f}%{held_out}",
        "images/s": f"{p['images_per_second']:.0f}",
        "left": duration(p["seconds_left"]) if p["seconds_left"] is not None else "",
    }


def _table(rows: list[dict[str, Any]], width: int) -> Table:
    """Return `rows` as a table with as many columns as fit into `width`.

    Names, epochs and the time left are never cut: where they do not fit either, a name has a line
    of its own.
    """

    def size(cell: Any) -> int:
        return cell_len(cell) if isinstance(cell, str) else _BAR

    sizes = {name: max([len(name), *(size(row[name]) for row in rows)]) for name in _COLUMNS}
    columns = list(_COLUMNS)
    for name in _SPARED:
        if sum(sizes[name] + 2 for name in columns) - 2 > width:
            columns.remove(name)
    wide = sum(sizes[name] + 2 for name in columns) - 2 <= width
    shown = columns if wide else ["run"]
    table = Table(box=None, pad_edge=False, header_style="dim", expand=False, show_header=wide)
    for name in shown:
        table.add_column(name, justify="left" if name in _LEFT else "right", no_wrap=wide)
    for row in rows:
        table.add_row(*(row[name] for name in shown))
        if not wide:
            table.add_row(f"  epoch {row['epoch']}, {row['left'] or '?'} left")
    return table
