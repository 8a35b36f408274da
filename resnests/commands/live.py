"""Make the live page: the runs below a folder as they are now, chosen, sorted and opened as the
address of a request asks.
"""

from __future__ import annotations

import hashlib
import json
import threading
from typing import Any
from urllib.parse import urlencode

import pandas as pd

from resnests.commands.runs import log_end, run_facts
from resnests.commands.status import Status
from resnests.commands.status_lines import run_label, run_progress
from resnests.commands.views import InsideReader, View
from resnests.config.recipe import distinguishing_keys
from resnests.errors import UserError
from resnests.results import notes
from resnests.results.cells import names
from resnests.results.columns import PLANNED
from resnests.results.curves import Line, chart
from resnests.results.output import Plan
from resnests.results.report import cell_of, render, title
from resnests.runs.directory import RunDirectory
from resnests.runs.files import only_below
from resnests.runs.sweeps import epochs_left
from resnests.text import as_typed, printable

VIEWS = 8  # choices of runs that are remembered
MOST_RUNNING, MOST_FAILED, MOST_CELLS, MOST_CURVES, ROWS = 12, 20, 300, 8, 50
MOST_LETTERS = 2000  # of words that choose runs
COLUMNS = {
    "Data set": "dataset", "Architecture": "arch", "Variant": "variant", "Recipe": "row",
    "Seed": "seed", "Status": "status", "Validation, %": "val_accuracy",
    "Test, %": "test_accuracy", "Train loss": "train_loss", "Epochs": "epochs",
    "Seconds": "seconds", "Device": "provenance.device", "Host": "provenance.host",
}  # fmt: skip


class Live:
    """Makes the page again and again."""

    def __init__(self, root: str, plan: Plan) -> None:
        self.root, self.plan = root, plan
        self.reader = InsideReader(root)
        self.views: dict[tuple[str, ...], View] = {}
        self.lock, self.ready = threading.Lock(), False

    def warm_up(self) -> None:
        """Read the runs once before anybody asks."""
        self.page({}, "")

    def page(self, query: dict[str, list[str]], tag: str) -> tuple[str | None, str]:
        """Return the page that `query` asks for, None where it is the one of `tag`; and its tag."""
        # The first poll of many runs takes seconds: meanwhile the page says so.
        if not self.lock.acquire(timeout=60 if self.ready else 0.3):
            return render(**self._empty("reading the runs ...")), ""
        try:
            with only_below(self.root):
                return self._page(Address(query), tag)
        finally:
            self.ready = True
            self.lock.release()

    def _page(self, address: Address, tag: str) -> tuple[str | None, str]:
        if (letters := sum(map(len, address.words))) > MOST_LETTERS:
            line = f"expected at most {MOST_LETTERS} letters that choose runs, not {letters}"
            return render(**self._empty(line)), f'"{letters}"'
        view = self._view(address.words)
        try:
            view.poll()
        except UserError as error:  # no run yet: sweeps and the queue may be there all the same
            waiting = _waiting(view.status)
            text = printable(str(error))
            shown = json.dumps([text, waiting, address.query])
            now = f'"{hashlib.sha256(shown.encode()).hexdigest()[:20]}"'
            if tag == now:
                return None, now
            return render(**self._empty(text, address, waiting)), now
        running = [run for run in view.status.unfinished if run["status"] == "running"]
        progress = [run_progress(run) for run in running[:MOST_RUNNING]]
        sweeps = [sweep.lines() for sweep in view.status.sweeps]
        state = [view.version, view.status.headline(), progress, sweeps, view.status.warnings]
        state += [view.status.queue, address.query]
        now = f'"{hashlib.sha256(json.dumps(state, default=str).encode()).hexdigest()[:20]}"'
        if tag == now:
            return None, now
        return render(**self._parts(view, address)), now

    def _view(self, words: list[str]) -> View:
        key = tuple(words)
        view = self.views.pop(key, None) or View(self.reader, self.root, words, self.plan)
        self.views[key] = view  # the latest is the last to go
        while len(self.views) > VIEWS:
            del self.views[next(iter(self.views))]
        return view

    def _empty(
        self, line: str, address: Address | None = None, waiting: dict[str, Any] | None = None
    ) -> dict[str, Any]:
        address = address or Address({})
        live = {
            "axes": {},
            "columns": {},
            "words": address.words,
            "free": address.words,
            "sort": "",
            **(waiting or {}),
        }
        return {"live": live, "here": address.link, "summary": line, "tables": [], "cells": []}

    def _parts(self, view: View, address: Address) -> dict[str, Any]:
        """Return what the template shows."""
        status = view.status
        runs = status.runs
        axes = _axes(self.views.get((), view).status.runs)
        known = {f"{axis}={value}" for axis, values in axes.items() for value in values}
        opened = runs[runs["path"] == address.run]
        unfinished = [run for run in status.unfinished if run["status"] != "running"]
        rows, columns, more = _rows(runs, address)
        live = {
            "axes": axes,
            "words": address.words,
            "free": [word for word in address.words if word not in known],
            "sort": address.sort,
            "total": len(runs),
            "done": int((runs["status"] == "complete").sum()),
            **_waiting(status),
            "running": [
                self._running(run) for run in status.unfinished if run["status"] == "running"
            ][:MOST_RUNNING],
            "run": self._run(opened.iloc[0]) if len(opened) else None,
            "failed": [self._failed(run) for run in unfinished[:MOST_FAILED]],
            "failed_more": max(0, len(unfinished) - MOST_FAILED),
            "columns": columns,
            "rows": rows,
            "more": more,
            "cells_more": max(0, len(view.cells) - MOST_CELLS),
        }
        warnings = [*status.warnings, *status.copies, *view.problems]
        return {
            "live": live,
            "here": address.link,
            "summary": status.headline(),
            "tables": view.tables,
            "warnings": [*map(printable, warnings[:50])],
            "cells": self._cells(view, address),
        }

    def _cells(self, view: View, address: Address) -> list[dict[str, Any]]:
        """Return the cells, of which the one that is open has its runs."""
        shown = []
        for key, (cell, runs) in view.cells.items():
            if key == address.cell:
                some = runs[runs["status"] != PLANNED].sort_values("seed").head(MOST_CURVES)
                named = [*zip("seed " + some["seed"].astype(str), some["path"], strict=True)]
                shown.append(cell_of(cell, runs) | {"charts": self._charts(named)})
            elif len(shown) < MOST_CELLS:
                shown.append({"id": key, "name": title(cell), "count": len(runs)})
        return shown

    def _running(self, run: dict[str, Any]) -> dict[str, Any]:
        beat = RunDirectory(run["path"]).shown_progress()
        fraction = None
        if "epoch" in beat:
            fraction = 1 - epochs_left(beat) / beat["epochs"]
        charts = self._charts([("", run["path"])])
        text = printable(", ".join(run_progress(run)))
        return _named(run) | {
            "text": text,
            "fraction": fraction,
            "chart": charts[-1] if charts else "",
        }

    def _failed(self, run: dict[str, Any]) -> dict[str, Any]:
        reason = "" if pd.isna(run["error"]) else str(run["error"]).strip().splitlines()[-1:]
        return _named(run) | {"reason": printable("".join(reason)), "log": self._log(run["path"])}

    def _run(self, run: pd.Series) -> dict[str, Any]:
        """Return all of the run that is open."""
        if run["status"] == PLANNED:
            return _named(run.to_dict()) | {"lines": {"status": run["status"]}, "charts": []}
        lines = {key: printable(str(value)) for key, value in run_facts(run).items()}
        charts = self._charts([("", run["path"])])
        return _named(run.to_dict()) | {
            "lines": lines,
            "charts": charts,
            "log": self._log(run["path"]),
        }

    def _log(self, path: str) -> list[str]:
        return [*map(printable, log_end(RunDirectory(path).log_file))]

    def _charts(self, runs: list[tuple[str, str]]) -> list[Any]:
        """Return charts of loss and accuracy of named runs."""
        found = []
        for what, metrics, unit in _CHARTS:
            lines = []
            for name, path in runs:
                rows = RunDirectory(path).history_rows()
                for metric, label in metrics.items():
                    values = [row[metric] for row in rows]
                    one = Line(f"{name} {label}".strip(), [row["epoch"] for row in rows], values)
                    lines += [one] if one.points() else []
            if len(runs) > 1:  # one curve a seed: on held-out images where there are some
                preferred = [line for line in lines if line.name.endswith("validation")]
                lines = (
                    preferred
                    or [line for line in lines if not line.name.endswith("train")]
                    or lines
                )
            found.append(chart(what, lines, unit))
        return [one for one in found if one]


_CHARTS = (
    ("Loss", {"train_loss": "train", "val_loss": "validation", "test_loss": "test"}, ""),
    (
        "Accuracy",
        {"train_accuracy": "train", "val_accuracy": "validation", "test_accuracy": "test"},
        "%",
    ),
)


class Address:
    """Holds what an address asks for."""

    def __init__(self, query: dict[str, list[str]]) -> None:
        self.words = " ".join(query.get("w", [])).split()
        self.sort = query.get("sort", [""])[0]
        self.cell = query.get("cell", [""])[0]
        self.run = query.get("run", [""])[0]
        rows = query.get("rows", [""])[0]
        self.rows = min(int(rows), 10_000) if rows.isdecimal() and len(rows) < 9 else ROWS
        self.query = [self.words, self.sort, self.cell, self.run, self.rows]

    def link(self, **changes: Any) -> str:
        """Return the address with `changes`; what is None is left out."""
        now = {"w": " ".join(self.words), "sort": self.sort, "cell": self.cell, "run": self.run}
        now |= {"rows": self.rows if self.rows != ROWS else ""} | changes
        return "?" + urlencode({key: value for key, value in now.items() if value})


def _waiting(status: Status) -> dict[str, Any]:
    """Return of each sweep that is not done what it is, and the command that goes on with it; and
    what is in the queue.
    """
    sweeps = [[printable(line.strip()) for line in one.lines()[:2]] for one in status.sweeps]
    return {"sweeps": sweeps, "queue": [*map(printable, status.queue)]}


def _named(run: dict[str, Any]) -> dict[str, Any]:
    status = "" if run["status"] == "running" else f"{run['status']}: "
    return {"label": status + run_label(run), "path": run["path"]}


def _axes(runs: pd.DataFrame) -> dict[str, list[str]]:
    """Return the values that one may choose among, by key, as they are typed."""
    axes = {name: names(runs[name]) for name in ("dataset", "arch", "variant")}
    present = set(runs["status"])
    axes["status"] = [s for s in ("complete", *notes.UNFINISHED) if s in present]
    recipes = [json.loads(values) for values in runs["recipe_values"].unique()]
    for key in sorted(distinguishing_keys(recipes)):
        if key in runs and not key.startswith(("arch.", "variant.", "dataset.")):
            values = sorted(
                runs[key].dropna().unique(), key=lambda value: (str(type(value)), value)
            )
            axes[key] = [str(as_typed(value)) for value in values]
    return {axis: values for axis, values in axes.items() if 1 < len(values) <= 30}


def _rows(runs: pd.DataFrame, address: Address) -> tuple[list[Any], dict[str, str], int]:
    """Return the first runs in the order that the address asks for, their columns, and how many
    more there are.
    """
    columns = {
        name: c
        for name, c in COLUMNS.items()
        if c in runs and runs[c].replace("", None).notna().any()
    }
    by = address.sort.lstrip("-")
    if by in columns.values():
        rising = not address.sort.startswith("-")
        runs = runs.sort_values(by, ascending=rising, kind="stable", na_position="last")
    some = runs.head(address.rows)
    values = some[[*columns.values()]].astype(object)
    rows = [
        (path, [_shown(value) for value in line])
        for path, line in zip(some["path"], values.itertuples(index=False), strict=True)
    ]
    return rows, columns, len(runs) - len(some)


def _shown(value: Any) -> str:
    if pd.isna(value):
        return ""
    if isinstance(value, float):
        return f"{value:.4g}" if value < 1000 else f"{value:.0f}"
    return printable(str(value))
