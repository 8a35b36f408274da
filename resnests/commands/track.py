"""Send runs to a tracker from outside their sweep: `aggregate.py --to`.

Nobody has to have thought of a tracker before the runs started, and what a sweep on a cluster
trains by itself has curves too (`--watch`).
"""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, cast

from omegaconf import OmegaConf

from resnests.config.compose import conf_dir
from resnests.errors import UserError
from resnests.results.frame import read_runs
from resnests.results.select import select
from resnests.runs.directory import find_runs
from resnests.runs.record import Record
from resnests.trackers.run_sync import RunSync, is_trained
from resnests.trackers.tracker import (
    TRACKERS,
    build_tracker,
    drawings,
    figures_of,
    require_installed,
)

POLL_SECONDS = 2.0  # between two polls of --watch
BUSY_SHARE = 0.05  # of the time that polling may take


def export(
    root: str,
    names: Sequence[str],
    watch: bool = False,
    is_queued: Callable[[], bool] = lambda: False,
    query: Sequence[str] = (),
) -> None:
    """Send to each tracker what it lacks of the runs below `root` that `query` chooses, then the
    figures over all of these.

    Without `watch` these are the runs that are over. With it those that are trained are sent as
    they go, until all are over and `is_queued` says that no more will start, or until Ctrl-C.
    Raises a UserError where a tracker fails; with `watch` it is asked again.
    """
    exports = [Export(root, name, query) for name in names]
    try:
        while True:
            started = time.monotonic()
            queued = watch and is_queued()  # first: what leaves the queue then is seen as a run
            for one in exports:
                one.sync(watch)
            if not watch or (not queued and all(one.is_done() for one in exports)):
                break
            time.sleep(max(POLL_SECONDS, (time.monotonic() - started) / BUSY_SHARE))
    except KeyboardInterrupt:
        if not watch:
            raise
    for one in exports:
        one.finish()


class Export:
    """Sends to one tracker what it lacks of the runs below a folder."""

    def __init__(self, root: str, name: str, query: Sequence[str] = ()) -> None:
        self.root, self.name, self.default = root, name, _settings(name)
        self.query = query
        self.settings = self.default  # those of the latest run
        self.runs: dict[Path, RunSync] = {}
        self.running = 0
        self.printed = ""

    def sync(self, watch: bool) -> None:
        """Send what is new of the runs that are there by now."""
        self.running = 0
        meant = self._meant(watch)
        for run in find_runs(self.root):
            record = run.record_or_none()
            if record is None or (meant is not None and str(run.path) not in meant):
                continue
            trained = is_trained(run, record)
            self.running += trained
            if trained and not watch:
                continue
            if run.path not in self.runs:
                self.runs[run.path] = RunSync(run, self.name, self._settings_of(record))
            sync = self.runs[run.path]
            sync.sync(closing=True)
            if sync.error and not watch:
                raise UserError(f"--to {self.name}: {sync.error}")
        if not self.runs and not watch:
            raise UserError(f"{self.root}: no run that is over; expected a directory of them")
        if watch:
            self._print_state()

    def _meant(self, watch: bool) -> set[str] | None:
        """Return the paths of the runs that the query chooses, None where that is all of them."""
        if not self.query:
            return None
        try:
            return set(select(read_runs(self.root)[0], self.query)["path"])
        except UserError:
            if watch:  # they may still start
                return set()
            raise

    def is_done(self) -> bool:
        return bool(self.runs) and all(sync.is_done for sync in self.runs.values())

    def finish(self) -> None:
        """Send the figures over all runs that are meant, and print what the tracker has."""
        if errors := [sync.error for sync in self.runs.values() if sync.error]:
            raise UserError(f"--to {self.name}: {errors[0]}")
        if not self.settings:
            return
        try:
            tracker = build_tracker(self.name, self.settings)
            tracker.start(figures_of(Path(self.root), self.query))
            pictures = {d.key: d.render("png") for d in drawings(Path(self.root), self.query)}
            tracker.end("complete", {}, pictures)
        except Exception as error:
            reason = f"{type(error).__name__}: {error}".splitlines()[0]
            raise UserError(f"--to {self.name}: {reason}") from error
        print(f"{self.name} has {self._state()} and {len(pictures)} figures{self._left()}")

    def _settings_of(self, record: Record) -> dict[str, Any]:
        """Return the settings that a run was trained with, or those of conf/logger."""
        values = record.config.get("logger", {}).get(self.name) or self.default
        if not values:
            expected = f"one of {', '.join(TRACKERS)}, or one that the runs were trained with"
            raise UserError(f"--to {self.name}: expected {expected}")
        require_installed(self.name, values)
        self.settings = values
        return values

    def _state(self) -> str:
        return f"{sum(sync.is_done for sync in self.runs.values())} runs"

    def _left(self) -> str:
        """Return words for what the tracker has not, as others are at work on it."""
        elsewhere = sum(sync.is_elsewhere for sync in self.runs.values())
        still = f", {self.running} still run" if self.running else ""
        return still + (f", {elsewhere} are sent by another process" if elsewhere else "")

    def _print_state(self) -> None:
        """Print what the tracker has, where that is not what was printed last."""
        errors = [f" ({sync.error})" for sync in self.runs.values() if sync.error]
        line = f"{self.name} has {self._state()}{self._left()}{errors[0] if errors else ''}"
        if line != self.printed:
            self.printed = line
            print(line, flush=True)


def _settings(name: str) -> dict[str, Any] | None:
    """Return what conf/logger says, None where it does not know the tracker."""
    file = conf_dir() / "logger" / f"{name}.yaml"
    if not file.is_file():
        return None
    return cast(dict[str, Any], OmegaConf.to_container(OmegaConf.load(file), resolve=True))[name]
