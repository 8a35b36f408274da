"""From configurations to finished runs: launched in child processes, again where that helps. No
torch.

The run directories are the only truth: what was done, what failed and why is read from them, so
that any death of any process leaves nothing to repair and the same command goes on.
"""

from __future__ import annotations

import json
import logging
import os
import signal
import subprocess
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

from resnests.config.schema import Config, config_dict
from resnests.errors import UserError, require
from resnests.runs.digests import with_digests
from resnests.runs.files import require_locks
from resnests.runs.record import FINAL
from resnests.runs.weights import export
from resnests.sweep.child import POLL, conclude, job
from resnests.sweep.devices import Allocation, allocate
from resnests.sweep.display import Display
from resnests.sweep.forking import forking
from resnests.sweep.outcome import say_outcome, say_skipped
from resnests.sweep.plan import Run, plan_runs, print_plan
from resnests.sweep.precision import warn_of_emulation
from resnests.sweep.prepare import clear_what_starts_afresh, prepare
from resnests.sweep.protocol import announce, python_path
from resnests.sweep.stop import Stop, hold
from resnests.text import progress

MAX_CRASHES = 5  # of the launcher, one after the other, with no run reaching its end

# Starts a job for each of the configurations and returns what they returned, in that order.
Launch = Callable[[list[int], Allocation | None], Sequence[str | None]]

log = logging.getLogger(__name__)


def run_single(config: Config) -> int:
    """Train one configuration; the exit status."""
    return run_sweep([config], lambda indices, _allocation: [job(index) for index in indices])


def run_sweep(configs: Sequence[Config], launch: Launch) -> int:
    """Bring every one of `configs` to its end; the exit status.

    `launch` returns when its jobs are over; it may raise when a process of the launcher died. It is
    not used where a cluster trains, with a file system in common, each of whose jobs sees for
    itself what its host has.
    """
    options, cluster = configs[0].sweep, configs[0].cluster
    wanted = "-m and what to search, such as python run.py -m experiment=tune"
    require(configs[0].task != "tune", "task", "tune", wanted)
    configs = with_digests(configs)
    runs = plan_runs(configs)
    if configs[0].task == "export":
        wanted = "false, as task=export trains nothing"
        require(not options.dry_run, "sweep.dry_run", True, wanted)
        return _export(runs)
    allocation = None if cluster else allocate(configs[0], len(runs))
    if options.dry_run:
        print_plan(runs, allocation)
        return 0
    todo = [run for run in progress(runs, "comparing") if run.action != "skip"]
    say_skipped(runs, todo)
    if not todo:
        return say_outcome(runs, interrupted=False)
    if allocation:
        warn_of_emulation((run.config for run in todo), allocation)
    prepare(todo)
    for runs_dir in {run.config.runs_dir for run in todo}:
        require_locks(runs_dir)
    clear_what_starts_afresh(todo)
    if cluster:
        from resnests.cluster.sweep import train_in_jobs

        return train_in_jobs(runs, todo)
    with (
        _announced(configs, allocation) as token,
        forking(todo, allocation, token.parent),
        Stop(token, lambda count: token.unlink(missing_ok=True)) as stop,
        Display(runs, todo, token.parent) as display,
    ):
        launch_until_done(
            todo,
            lambda some: launch([run.index for run in some], allocation),
            stop.requested,
            display.say,
        )
    return say_outcome(runs, interrupted=stop.signals > 0)


@contextmanager
def _announced(configs: Sequence[Config], allocation: Allocation | None) -> Iterator[Path]:
    """Tells jobs their orders, in a folder that they reach; the token of the sweep."""
    with tempfile.TemporaryDirectory(prefix="resnests-", ignore_cleanup_errors=True) as folder:
        token = announce(configs, allocation, Path(folder))
        hold(token)
        yield token


def launch_until_done(
    todo: list[Run],
    launch: Callable[[list[Run]], Sequence[str | None]],
    stopping: Callable[[], bool],
    say: Callable[[str], None],
) -> None:
    """Launch what is to do, until nothing is left that another try could finish."""
    failures: Counter[Run] = Counter()
    crashes = 0
    while todo and not stopping():
        # In this order, as an owner lets go after it has put the end on record
        owned = {run for run in todo if run.directory.is_owned()}
        todo = [run for run in todo if run.directory.status() not in FINAL]
        batch = [run for run in todo if run not in owned]
        if not batch and owned:
            time.sleep(POLL)  # for what others train: what they do not finish is ours
            continue
        if not batch:
            return
        outcomes = _launch(batch, launch, say)
        ended = any(run.directory.status() in FINAL for run in batch)
        crashes = 0 if outcomes or ended else crashes + 1
        if crashes == MAX_CRASHES:
            say(f"the launcher lost a process {crashes} times in a row: giving up")
            return
        for run in batch:
            if run.directory.status() == "running" and not run.directory.is_owned():
                conclude(run, -signal.SIGKILL)  # its process went with its job's
        done = {run for run in outcomes if not _is_worth_another(run, outcomes[run], failures)}
        todo = [run for run in todo if run not in done]


def _launch(
    batch: list[Run],
    launch: Callable[[list[Run]], Sequence[str | None]],
    say: Callable[[str], None],
) -> dict[Run, str | None]:
    """What the jobs of `batch` returned; nothing where the launcher lost a process."""
    try:
        return dict(zip(batch, launch(batch), strict=True))
    except Exception as error:  # the launcher's own: a run's are on its record
        reason = f"{type(error).__name__}: {error}".splitlines()[0]
        say(f"the launcher lost a process ({reason}): going on with what is left")
        log.debug("launcher", exc_info=True)
        return {}


def _is_worth_another(run: Run, outcome: str | None, failures: Counter[Run]) -> bool:
    """Whether another try could finish `run`, whose job returned `outcome`."""
    if outcome == "busy" or run.directory.is_owned():
        return True  # another sweep trains it, or did until now
    if run.directory.status() not in ("failed", "killed"):
        return False
    failures[run] += 1
    return failures[run] <= run.config.sweep.retries


def _export(runs: Sequence[Run]) -> int:
    """Copy every run's weights, or say why not; 1 where any is missing."""
    if runs[0].config.format != "official":  # which takes torch, and so a process of its own
        return subprocess.run(
            [sys.executable, "-m", "resnests.sharing.export"],
            input=json.dumps([config_dict(run.config) for run in runs]),
            text=True,
            env=os.environ | {"PYTHONPATH": python_path()},
        ).returncode
    missing = 0
    for run in runs:
        try:
            print(f"{run.label}: {export(run.config)}")
        except UserError as error:
            missing += 1
            print(f"not exported: {error}", file=sys.stderr)
    return 1 if missing else 0
