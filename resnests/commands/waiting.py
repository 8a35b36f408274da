"""Know what sweeps are yet to do: which runs of theirs wait, and how long all of them take."""

from __future__ import annotations

import csv
import os
import shlex
import time
from collections import Counter
from collections.abc import Sequence
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pandas as pd

from resnests.results import notes
from resnests.results.columns import PLANNED
from resnests.runs.directory import RunDirectory
from resnests.runs.files import read_file
from resnests.runs.sweeps import Asked, Kinds, kinds_of, seconds_an_epoch, seconds_left
from resnests.text import duration

MOST_STATES = 5  # of Optuna's trials
MOST = 1e9  # epochs or seconds that anything takes: files may say what they like


@dataclass
class Sweep:
    """Holds a sweep that is not done, and what is left of it."""

    file: Path  # which says what it was asked for
    asked: Asked
    count: int  # of runs or trials that are not at their end
    left: set[str]  # the directories of the runs
    old: set[str]  # those of them that are on record as finished, and are made again
    alive: bool

    def lines(self) -> list[str]:
        """Return what it is, and the command that goes on with it."""
        asked = self.asked
        elsewhere = asked.folder != os.getcwd()
        command = f"cd {shlex.quote(asked.folder)} && " * elsewhere + asked.command
        told = []
        if self.is_copy():
            command += f" {shlex.quote(f'runs_dir={self.file.parent.absolute()}')}"
            told = ["  (as given it was to train elsewhere: these are a copy, or moved)"]
        since = time.strftime("%Y-%m-%d %H:%M", time.localtime(asked.started))
        what = f"{self.count} of {asked.count()} runs" + " to analyse" * (asked.task == "analyze")
        if asked.study is not None:
            what = f"{self.count} of {asked.trials} trials of study-{asked.study}"
            if asked.pace:
                what += f", about {duration(asked.pace * self.count)}"
        forgotten = shlex.quote(str(self.file))
        at_work = f"at work on {asked.host}" if self.alive else "no process of it on this host"
        return [
            f"sweep since {since}: {what} left, {at_work}; this goes on with it:",
            f"  {command}",
            *told,
            *([] if self.alive else [f"  (to forget what it was asked for: rm {forgotten})"]),
        ]

    def is_copy(self) -> bool:
        """Return whether its runs are in another directory than its command names."""
        given = self.asked.config.get("runs_dir")  # which searches once did not tell
        if given is None:
            return False
        named = Path(self.asked.folder, str(given))
        return os.path.realpath(named) != os.path.realpath(self.file.parent)


def study_lines(root: str, sweeps: Sequence[Sweep]) -> list[str]:
    """Return a line for each study in `root` of which nothing is planned: how its trials ended."""
    open_ones = {sweep.file.with_name(f"study-{sweep.asked.study}") for sweep in sweeps}
    lines = []
    for table in sorted(Path(root).glob("study-*/trials.csv")):
        if table.parent not in open_ones:
            with suppress(OSError, ValueError, csv.Error):
                rows = csv.DictReader(read_file(table).decode().splitlines())
                counts = Counter(str(row.get("state")) for row in rows).most_common()
                ended = ", ".join(f"{count} {state}" for state, count in counts[:MOST_STATES])
                lines.append(f"trials of {table.parent.name}: {ended}; see {table}")
    return lines


def with_queue(frame: pd.DataFrame, queue: dict[str, str], sweeps: list[Sweep]) -> pd.DataFrame:
    """Return `frame`, in which runs that wait are queued, and their error says what for; those that
    are made again are planned.

    Those that wait are the runs in the `queue`, and where the process of a sweep knows what its
    runs wait for, those that it has not begun: which ended, if ever, before it started.
    """
    is_old = frame["path"].isin(set().union(*(sweep.old for sweep in sweeps)))
    status = frame["status"].mask(is_old, PLANNED)
    frame = frame.assign(status=status, error=frame["error"].mask(is_old, None))
    times = [pd.to_numeric(frame[f"provenance.{name}"], "coerce") for name in ("ended", "started")]
    last = times[0].fillna(times[1]).fillna(MOST * MOST).where(status != PLANNED, 0.0)
    waits = {
        path: sweep.asked.waits_for
        for sweep in sweeps
        if sweep.alive and sweep.asked.waits_for
        for path in sweep.left.difference(frame.loc[last >= sweep.asked.started, "path"])
    }
    is_open = frame["status"].isin((PLANNED, "interrupted", "killed", "failed"))
    reasons = frame["path"].where(is_open).map(waits | queue)
    status = frame["status"].where(reasons.isna(), notes.QUEUED)
    return frame.assign(status=status, error=frame["error"].where(reasons.isna(), reasons))


def time_left(
    runs: pd.DataFrame, unfinished: Sequence[dict[str, Any]], sweeps: Sequence[Sweep]
) -> float | None:
    """Return how many seconds the runs at work, which are among the `unfinished`, and those that
    sweeps go on with take, as measured; None where nothing is left, or nothing is known.
    """
    rates, running = [], []
    for run in unfinished:
        beat = RunDirectory(run["path"]).shown_progress() if run["status"] == "running" else {}
        if (rate := seconds_an_epoch(beat)) is not None:
            running.append(beat["seconds_left"])
            rates.append((_kinds([run[name] for name in _KIND], True), rate))
    ours: set[str] = set().union(*(sweep.left for sweep in sweeps))
    if not running and not ours:
        return None
    old: set[str] = set().union(*(sweep.old for sweep in sweeps))
    was_complete = runs["path"].isin(old) & (runs["epochs"] > 0)
    complete = runs[(runs["status"] == "complete") | was_complete]
    since = min((sweep.asked.started for sweep in sweeps), default=0.0)
    started = pd.to_numeric(complete["provenance.started"], errors="coerce")
    seconds = complete["seconds"].clip(0, MOST) / complete["epochs"].clip(1, MOST)
    by = [*(complete[name] for name in _KIND), started >= since]
    means = seconds.groupby(by, observed=True).mean()
    rates += [(_kinds(kind, is_fresh), rate) for (*kind, is_fresh), rate in means.items()]
    epochs = _epochs(runs[runs["path"].isin(ours)], sweeps)
    waiting = epochs.groupby(_KIND, observed=True)["epochs"].sum()
    total = {_kinds(kind, True): count for kind, count in waiting.items()}
    return seconds_left(rates, running, total)


def _epochs(runs: pd.DataFrame, sweeps: Sequence[Sweep]) -> pd.DataFrame:
    """Return how many epochs each of `runs`, which `sweeps` are to do, takes that does not run."""
    waiting = runs[runs["status"].isin((notes.QUEUED, PLANNED, "interrupted", "killed"))]
    afresh = set().union(*(sweep.old for sweep in sweeps if sweep.asked.overwrite))
    again = set().union(*(sweep.old for sweep in sweeps)) - afresh  # measured or evaluated
    asked = waiting.reindex(columns=["trainer.epochs"])["trainer.epochs"]
    done = waiting["epochs"].mask(waiting["path"].isin(afresh), 0)
    epochs = (pd.to_numeric(asked, errors="coerce").fillna(0) - done).clip(0, MOST)
    one = waiting["given"] | waiting["path"].isin(again)
    return waiting[_KIND].assign(epochs=epochs.mask(one, 1))


_KIND = ["given", "dataset", "arch", "recipe"]


def _kinds(kind: Sequence[Any], is_fresh: bool) -> Kinds:
    given, dataset, arch, recipe = kind
    return kinds_of("evaluate" if given else "train", dataset, arch, recipe, is_fresh)
