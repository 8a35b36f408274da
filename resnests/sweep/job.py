"""Do a job of a sweep: train one run, in the process that a launcher or queue chose. No torch."""

from __future__ import annotations

import sys
import traceback

from resnests.runs.sweeps import remove_done
from resnests.sweep.process import log_line, run_on_host
from resnests.sweep.protocol import SweepFolder
from resnests.sweep.stop import Stop, exit_with


def run_job(number: int, at_once: int = 1, aside: str = "") -> str | None:
    """Train run `number` of the sweep, one of `at_once` in what a batch system gave this process,
    which note in the folder `aside` which devices failed.

    Returns, and tells the sweep, how it left the run, as run_on_host does; None where the sweep
    stopped before. Whatever goes wrong costs this run alone: an exception that left this function
    would be taken for the death of the launcher, and abort the other jobs.
    """
    folder = SweepFolder.of_this_job()
    spec = folder.read(number)
    if spec is None:
        return None
    if spec.local and Stop.current is None:
        exit_with(folder.specs)
    run = spec.as_run(number)
    with Stop.listen(folder.specs) as stop, folder.active(number):
        try:
            outcome = run_on_host(run, spec.allocation, at_once, stop, aside)
        except Exception as error:
            outcome = "failed"
            try:
                log_line(run, traceback.format_exc().strip())
            except OSError:  # a folder that nobody may write to any more: the log of the job has it
                reason = f"{type(error).__name__}: {error}"
                print(f"failed: {run.label}: {reason}", file=sys.stderr, flush=True)
        folder.end(number, outcome)
    if not spec.local:  # its sweep may be gone by now
        remove_done(run.config.runs_dir)
    return outcome
