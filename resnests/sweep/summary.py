"""Print how a sweep stands and how it ended, and return its exit status. No torch."""

from __future__ import annotations

import sys
from collections.abc import Sequence

from resnests.runs.record import UnreadableRun
from resnests.runs.sweeps import remove_done
from resnests.sweep.plan import Run
from resnests.sweep.process import last_log_line
from resnests.sweep.protocol import INTERRUPTED
from resnests.text import what_goes_on


def print_skipped(runs: Sequence[Run], todo: Sequence[Run]) -> None:
    """Print how many of `runs` are finished already."""
    skipped = len(runs) - len(todo)
    if len(runs) == 1 and skipped:
        print(f"{runs[0].label}: {runs[0].directory.status()} already, in {runs[0].directory.path}")
    elif skipped:
        print(f"{skipped} of {len(runs)} runs are finished already")
    if skipped and not todo:
        print("nothing to do; trainer.overwrite=true would start afresh")


def print_summary(runs: Sequence[Run], interrupted: bool, barred: int = 0) -> int:
    """Print what is not complete and why; return 0 if all is, 130 after a signal, else 1.

    `barred` is how many more runs this user may not read or write.
    """
    print_unsent(runs)
    for runs_dir in {run.config.runs_dir for run in runs}:
        remove_done(runs_dir)
    incomplete = [run for run in runs if _status(run) != "complete"]
    for run in incomplete:
        print(_failure_line(run), file=sys.stderr)
    if barred:
        what = "1 run is" if barred == 1 else f"{barred} runs are"
        print(f"{what} passed over", file=sys.stderr)
    if not incomplete:
        return 1 if barred else 0
    if len(runs) > 1:
        count = f"{len(incomplete)} of {len(runs)} runs"
        print(f"{count} are not complete; {_what_goes_on(incomplete, len(runs))}", file=sys.stderr)
    return INTERRUPTED if interrupted else 1


def _what_goes_on(incomplete: Sequence[Run], count: int) -> str:
    """Return which command goes on with these of `count` runs, and how many are as they were."""
    if all(_status(run) == "diverged" for run in incomplete):  # the same command skips them
        return "what diverged is not tried again"
    untouched = sum(run.replaces not in (None, "") and _status(run) is None for run in incomplete)
    overwrites = incomplete[0].config.trainer.overwrite and untouched < count
    if overwrites and untouched == len(incomplete):  # it would make the others once more
        return "the same command for these alone goes on, as they have their earlier results yet"
    command = what_goes_on(overwrites)
    if not overwrites:
        return command
    return f"{command}; {untouched} have their earlier results yet" if untouched else command


def print_unsent(runs: Sequence[Run]) -> None:
    """Print which trackers do not have all of the runs, why, and which command sends the rest."""
    for name in runs[0].config.logger if runs else ():
        files = [run.directory.unsent(name) for run in runs]
        reasons = [file.read_text() for file in files if file.exists()]
        if reasons:
            again = f"python aggregate.py --to {name} {runs[0].config.runs_dir}"
            what = f"{name} has not all of {len(reasons)} run(s) ({reasons[0]})"
            print(f"warning: {what}; {again} sends the rest", file=sys.stderr)


def _status(run: Run) -> str | None:
    """Return the status of `run`, unknown where its record cannot be read."""
    try:
        return run.status()
    except UnreadableRun:
        return "unknown"


def _failure_line(run: Run) -> str:
    """Return one line that says how `run` stands, and why."""
    directory = run.directory
    try:
        record = directory.record_or_none() if run.status() else None
    except UnreadableRun as error:
        return f"unknown: {run.label}: {error}"
    if record:
        reason = f": {record.error}" if record.error else ""
        return f"{record.status}: {run.label}{reason}; see {directory.log_file}"
    reason = ""
    if directory.log_file.exists():
        reason = f": {last_log_line(directory)}"
        directory.remove_if_not_begun()
    return f"not started: {run.label}{reason}"
