"""Print where runs are, one of them whole, or the best; delete runs."""

from __future__ import annotations

import json
import os
import shutil
import sys
import time
from contextlib import ExitStack, suppress
from pathlib import Path

import pandas as pd
from filelock import Timeout

from resnests.config.recipe import distinguishing_keys, without_implied
from resnests.errors import UserError
from resnests.results.cells import describe
from resnests.results.columns import TIMES
from resnests.results.measured import measured
from resnests.runs.directory import RunDirectory, find_runs
from resnests.runs.files import opened
from resnests.runs.lock import flocked, is_flocked
from resnests.runs.record import METRICS
from resnests.text import as_typed, duration, short

LOG, LOG_BYTES = 10, 20_000  # lines of it that are shown, and where in it they are looked for


def print_paths(runs: pd.DataFrame) -> None:
    """Print the directory of each run, for xargs and the like."""
    for path in runs["path"]:
        print(path)


def print_run(runs: pd.DataFrame) -> None:
    """Print all of the one run among `runs` that is meant; raise a UserError where several are."""
    if len(runs) > 1:
        some = ", ".join(runs["path"].iloc[:3])
        raise UserError(f"--show: expected words that fit one run, not {len(runs)}, as {some}")
    run = runs.iloc[0]
    lines = run_facts(run)
    width = max(map(len, lines))
    for name, value in lines.items():
        print(f"{name:{width}}  {value}")
    log = RunDirectory(run["path"]).log_file
    end = log_end(log)
    if end:
        print(f"\nthe end of {log}:", *end, sep="\n")


def run_facts(run: pd.Series) -> dict[str, object]:
    """Return all that is to say of a run: how it ended, its numbers, what differs, its values."""
    directory = RunDirectory(run["path"])
    recipe = json.loads(run["recipe_values"])
    own = [name for name in run.index if name.startswith(("val_", "test_"))]
    numbers = {name: run[name] for name in dict.fromkeys((*METRICS, *own))}
    # Without an analysis, columns of that name are only its keys in the configuration.
    is_analysed = pd.notna(run.get("analysis.status"))
    analysed = [name for name in run.index if is_analysed and name.startswith("analysis.")]
    frozen = run.get("frozen_parameters")
    lines: dict[str, object] = {
        "directory": run["path"],
        "status": run["status"] if pd.isna(run["error"]) else f"{run['status']}: {run['error']}",
        "epochs": run["epochs"],
        "parameters": run["parameters"],
        **({} if pd.isna(frozen) else {"frozen parameters": int(frozen)}),
        **{name: f"{value:.4f}" for name, value in numbers.items() if pd.notna(value)},
        **{name: short(run[name]) for name in analysed if pd.notna(run[name])},
        "took": duration(run["seconds"]),
        "differs": _differences(directory, recipe) or "in nothing from the recipes beside it",
    }
    lines |= {key: as_typed(value) for key, value in sorted(without_implied(recipe).items())}
    shown = run[[name for name in run.index if name.startswith("provenance.")]].dropna().to_dict()
    for name in shown.keys() & TIMES:
        shown[name] = time.strftime("%Y-%m-%d %H:%M:%S UTC", time.gmtime(shown[name]))
    return lines | {"all values": directory.config_file} | shown


def log_end(log: Path) -> list[str]:
    """Return the last lines of a run's log, [] where there is none; a link is not followed."""
    try:
        if log.is_symlink():
            return []
        with opened(log) as file:
            file.seek(max(0, file.seek(0, os.SEEK_END) - LOG_BYTES))
            return file.read().decode(errors="replace").splitlines()[-LOG:]
    except OSError:
        return []


def print_best(
    runs: pd.DataFrame,
    count: int,
    by: str,
    paths_only: bool = False,
    metric: str = "accuracy",
) -> None:
    """Print the complete runs that are best in `metric`, the best first; raise a UserError.

    With `paths_only` their directories are on standard output and nothing else. What is chosen on
    the test set has a number there that flatters it: that is said.
    """
    if count < 1:
        raise UserError(f"--best {count}: expected at least 1")
    split = "val" if by == "validation" else "test"
    complete = runs[runs["status"] == "complete"]
    if metric == "accuracy" and complete.get(f"{split}_accuracy", complete["error"]).isna().all():
        mend = "train with dataset.val_fraction=0.1, or let the test set decide with --by test"
        raise UserError(f"--best {count}: no complete run has {by} accuracy; {mend}")
    what = measured(runs, metric, split, "last")
    known = complete.dropna(subset=[what.column])
    order = [what.is_low_best(f"--best {count} --metric {metric}"), True]
    best = known.sort_values([what.column, "path"], ascending=order).head(count)
    words = by if metric == "accuracy" else what.words
    for value, path in zip(best[what.column], best["path"], strict=True):
        print(path if paths_only else f"{words} {value:.{what.digits}f}{what.unit}  {path}")
    for note in what.notes:
        print(note, file=sys.stderr)
    if by == "test":
        said = f"chosen on the test set, whose {metric} therefore flatters these runs"
        print(said, file=sys.stderr if paths_only else sys.stdout)


def delete_runs(runs: pd.DataFrame, sure: bool) -> int:
    """Delete the directories of `runs`, or only print them unless `sure`; return 1 where some are
    left, else 0.
    """
    left, done = 0, "deleted" if sure else "would delete"
    for _, run in runs.iterrows():
        path = run["path"]
        reason = _delete(run, sure)
        left += reason is not None
        print(f"left {path}, {reason}" if reason else f"{done} {path}")
    if not sure:
        print(f"{len(runs) - left} of {len(runs)} runs; --yes deletes them")
    return int(sure and left > 0)


def _delete(row: pd.Series, sure: bool) -> str | None:
    """Delete the run of `row` if `sure`; return why it cannot be deleted, None where it can.

    Its locks are held meanwhile, so that nobody works on it and a sweep that waits for it sees that
    it is gone. Only under the lock is it certain that the run is still what the row says: a sweep
    may have tried it again since it was read. First it is moved aside, whole: if this process is
    killed then, nothing is lost. Without its record it is no run any more, whatever of it is still
    to be removed.
    """
    run = RunDirectory(row["path"])
    if run.path.is_symlink():
        return "a link, which rm removes"
    if len(list(find_runs(run.path))) > 1:
        return "which has other runs below it"
    aside = run.path.with_name(f".deleted.{run.path.name}.{os.getpid()}")
    try:
        if not sure:
            held = run.is_locked() or run.analysis.is_locked() or any(map(is_flocked, _syncs(run)))
            return "on which a process works" if held else None
        with ExitStack() as locks:
            for directory in (run, run.analysis):
                if directory.path.is_dir():
                    locks.enter_context(directory.lock().acquire(blocking=False))
            for file in _syncs(run):
                locks.enter_context(flocked(file))
            if not _is_as_read(run, row):
                return "which has changed since it was chosen"
            run.path.rename(aside)
            RunDirectory(aside).record_file.unlink()
            shutil.rmtree(aside)
    except Timeout:
        return "on which a process works"
    except (OSError, UserError) as error:
        if aside.is_dir():
            return f"of which {aside} is left, which cannot be removed ({error})"
        return f"which cannot be removed ({error})"
    with suppress(OSError):  # other runs are in them
        for parent in list(run.path.parents)[:4]:
            parent.rmdir()
    return None


def _syncs(run: RunDirectory) -> list[Path]:
    """Return the files that processes lock which send the run to trackers."""
    return sorted(run.path.glob(run.sync_file().name))


def _is_as_read(run: RunDirectory, row: pd.Series) -> bool:
    """Return whether the record of `run` is still the one that `row` was made of."""
    record = run.record_or_none()
    if record is None:
        return False
    status = "running" if row["status"] == "killed" else row["status"]
    now = [record.provenance.pid, record.provenance.started, record.provenance.ended]
    read = [row[f"provenance.{name}"] for name in ("pid", "started", "ended")]
    same = all(
        new == old or (new is None and pd.isna(old)) for new, old in zip(now, read, strict=True)
    )
    return same and record.status in (status, row["status"])


def _differences(directory: RunDirectory, recipe: dict[str, object]) -> str:
    """Return the values in which a recipe differs from the others of its cell's folder."""
    beside = directory.path.parent.parent.glob("*/seed=*")
    records = {path.parent: RunDirectory(path).record_or_none() for path in sorted(beside)}
    others = [record.recipe_values for record in records.values() if record]
    keys = sorted(distinguishing_keys([recipe, *others]))
    return ", ".join(describe(key, as_typed(recipe.get(key, "default"))) for key in keys)
