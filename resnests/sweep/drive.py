"""From configurations to finished runs: launched in child processes, again where that helps. No
torch.

The run directories are the only truth: what was done, what failed and why is read from them, so
that any death of any process leaves nothing to repair and the same command goes on.
"""

from __future__ import annotations

import json
import logging
import os
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

from resnests.config.schema import Config, config_dict
from resnests.errors import UserError, require
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


def run_sweep(configs: Sequence[Config], launch: Launch, remote: bool = False) -> int:
    """Bring every one of `configs` to its end; the exit status.

    `launch` returns when its jobs are over; it may raise when a process of the launcher died. Where
    it is `remote`, a batch system with a file system in common, each job sees for itself what its
    host has.
    """
    options = configs[0].sweep
    wanted = "-m and what to search, such as python run.py -m experiment=tune"
    require(configs[0].task != "tune", "task", "tune", wanted)
    runs = plan_runs(configs, remote)
    if configs[0].task == "export":
        wanted = "false, as task=export trains nothing"
        require(not options.dry_run, "sweep.dry_run", True, wanted)
        return _export(runs)
    allocation = None if remote else allocate(configs[0], len(runs))
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
    clear_what_starts_afresh(todo)
    with (
        _announced(configs, allocation) as token,
        forking(todo, allocation, token.parent),
        Stop(token, _on_signal(token, remote)) as stop,
        Display(runs, todo, token.parent) as display,
        suppress(KeyboardInterrupt),  # see _on_signal
    ):
        launch_until_done(
            todo,
            lambda some: launch([run.index for run in some], allocation),
            stop.requested,
            display.say,
            remote,
        )
    return say_outcome(runs, interrupted=stop.signals > 0)


@contextmanager
def _announced(configs: Sequence[Config], allocation: Allocation | None) -> Iterator[Path]:
    """Tells jobs their orders, in a folder that they reach; the token of the sweep."""
    where: dict[str, Any] = {"prefix": "resnests-"}
    if allocation is None:  # on other hosts
        runs_dir = Path(configs[0].runs_dir).resolve()
        runs_dir.mkdir(parents=True, exist_ok=True)
        where = {"prefix": ".sweep-", "dir": runs_dir}
    folder = Path(tempfile.mkdtemp(**where))
    try:
        token = announce(configs, allocation, folder)
        if allocation is not None:  # file systems that hosts share may have no locks
            hold(token)
        yield token
    finally:
        shutil.rmtree(folder, ignore_errors=True)


def _on_signal(token: Path, remote: bool) -> Callable[[int], None]:
    """The first signal tells every job to stop. Where jobs wait in a queue, the second ends the
    waiting for them: they stop when they start and find no token.
    """

    def on_signal(count: int) -> None:
        token.unlink(missing_ok=True)
        if remote and count > 1:
            raise KeyboardInterrupt

    return on_signal


def launch_until_done(
    todo: list[Run],
    launch: Callable[[list[Run]], Sequence[str | None]],
    stopping: Callable[[], bool],
    say: Callable[[str], None],
    remote: bool,
) -> None:
    """Launch what is to do, until nothing is left that another try could finish."""
    tries, crashes = _Tries(remote), 0
    queued: dict[Run, Any] = {}  # whose jobs wait in a queue yet, although their launch broke off
    while todo and not stopping():
        # In this order, as an owner lets go after it has put the end on record
        owned = {run for run in todo if run.directory.is_owned()}
        todo = [run for run in todo if run.directory.status() not in FINAL]
        free = [run for run in todo if run not in owned]
        queued = {run: before for run, before in queued.items() if _traces(run) == before}
        batch = [run for run in free if run not in queued]
        if not batch and owned:
            time.sleep(POLL)  # for what others train: what they do not finish is ours
            continue
        if not batch:  # nothing moves in the queue
            batch, queued = free, {}
        if not batch:
            return
        before = {run: _traces(run) for run in batch}
        outcomes = _launch(batch, launch, say)
        ended = any(run.directory.status() in FINAL for run in batch)
        crashes = 0 if outcomes or ended else crashes + 1
        if crashes == MAX_CRASHES:
            say(f"the launcher lost a process {crashes} times in a row: giving up")
            return
        if remote and not outcomes:
            # A job that began left traces, and is lost if it is gone. The others wait on in the
            # queue of a batch system, which the loss of one does not empty.
            queued |= {run: before[run] for run in batch if _traces(run) == before[run]}
        for run in batch:
            if run.directory.status() == "running" and not run.directory.is_owned():
                conclude(run, -signal.SIGKILL)  # its process went with its job's
        done = {run for run in outcomes if not tries.is_worth_another(run, outcomes[run])}
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


def _traces(run: Run) -> tuple[Any, ...]:
    """What is not the same any more once a job of `run` has begun."""
    return run.directory.read_progress(), run.directory.sound_record()


class _Tries:
    """What was tried before, by which it is seen whether another try could finish a run."""

    def __init__(self, remote: bool) -> None:
        self.remote = remote
        self.attempts: Counter[Run] = Counter()
        self.epochs: Counter[Run] = Counter()  # that were done when its job was interrupted

    def is_worth_another(self, run: Run, outcome: str | None) -> bool:
        if outcome == "busy" or run.directory.is_owned():
            return True  # another sweep trains it, or did until now
        status = run.directory.status()
        if status in ("failed", "killed"):
            self.attempts[run] += 1
            return self.attempts[run] <= run.config.sweep.retries
        return status == "interrupted" and self.remote and self.made_progress(run)

    def made_progress(self, run: Run) -> bool:
        """Whether the time limit of its job, say, came in a later epoch than the one before."""
        record = run.directory.sound_record()
        before, self.epochs[run] = self.epochs[run], record.epochs if record else 0
        return self.epochs[run] > before


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
