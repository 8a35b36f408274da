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
from collections.abc import Callable, Sequence
from contextlib import suppress
from dataclasses import asdict
from pathlib import Path

from filelock import Timeout

from resnests.config.schema import Config
from resnests.data.splits import is_ready
from resnests.errors import UserError, require
from resnests.runs.record import FINAL
from resnests.runs.weights import export
from resnests.sweep.child import POLL, conclude, job
from resnests.sweep.devices import Allocation, allocate
from resnests.sweep.display import Display
from resnests.sweep.outcome import say_outcome, say_skipped
from resnests.sweep.plan import Run, plan_runs, print_plan
from resnests.sweep.protocol import Orders, python_path
from resnests.sweep.stop import Stop, hold

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
    runs = plan_runs(configs, remote)
    if configs[0].task == "export":
        wanted = "false, as task=export trains nothing"
        require(not options.dry_run, "sweep.dry_run", True, wanted)
        return _export(runs)
    allocation = None if remote else allocate(configs[0], len(runs))
    if options.dry_run:
        print_plan(runs, allocation)
        return 0
    todo = [run for run in runs if run.action != "skip"]
    say_skipped(runs, todo)
    if not todo:
        return say_outcome(runs, interrupted=False)
    _prepare_data(todo)
    _clear_what_starts_afresh(todo)
    folder = _make_folder(Path(configs[0].runs_dir), remote)
    try:
        token = Orders.of(configs, allocation).announce(folder)
        if not remote:  # file systems that hosts share may have no locks
            hold(token)
        with (
            Stop(token, _on_signal(token, remote)) as stop,
            Display(runs, todo) as display,
            suppress(KeyboardInterrupt),  # see _on_signal
        ):
            launch_until_done(
                todo,
                lambda some: launch([run.index for run in some], allocation),
                stop.requested,
                display.say,
                remote,
            )
    finally:
        shutil.rmtree(folder, ignore_errors=True)
    return say_outcome(runs, interrupted=stop.signals > 0)


def _make_folder(runs_dir: Path, remote: bool) -> Path:
    """A folder for what this sweep tells its jobs."""
    if not remote:
        return Path(tempfile.mkdtemp(prefix="resnests-"))
    runs_dir.mkdir(parents=True, exist_ok=True)
    return Path(tempfile.mkdtemp(prefix=".sweep-", dir=runs_dir.resolve()))


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
    queued: set[Run] = set()  # whose jobs may wait in a queue yet, although their launch broke off
    while todo := [run for run in todo if run.directory.status() not in FINAL]:
        if stopping():
            return
        free = [run for run in todo if not run.directory.is_owned()]
        batch = [run for run in free if run not in queued]
        if not batch and len(free) < len(todo):
            time.sleep(POLL)  # for what others train: what they do not finish is ours
            continue
        batch = batch or free
        before = {run: run.directory.read_progress() for run in batch}
        outcomes = _launch(batch, launch, say)
        ended = any(run.directory.status() in FINAL for run in batch)
        crashes = 0 if outcomes or ended else crashes + 1
        if crashes == MAX_CRASHES:
            say(f"the launcher lost a process {crashes} times in a row: giving up")
            return
        # A job that began left signs of life, and is lost if it is gone. The others wait on in the
        # queue of a batch system, which the loss of one does not empty.
        left = batch if remote and not outcomes else []
        queued = {run for run in left if run.directory.read_progress() == before[run]}
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


class _Tries:
    """What was tried before, by which it is seen whether another try could finish a run."""

    def __init__(self, remote: bool) -> None:
        self.remote = remote
        self.attempts: Counter[Run] = Counter()
        self.epochs: Counter[Run] = Counter()  # that were done when its job was interrupted

    def is_worth_another(self, run: Run, outcome: str | None) -> bool:
        if outcome == "busy" or run.directory.is_owned():
            return True  # another sweep trains it, or did until now
        if run.directory.status() == "running":  # nobody does: its process went with its job's
            conclude(run, -signal.SIGKILL)
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
    missing = 0
    for run in runs:
        try:
            print(f"{run.label}: {export(run.config)}")
        except UserError as error:
            missing += 1
            print(f"not exported: {error}", file=sys.stderr)
    return 1 if missing else 0


def _prepare_data(runs: Sequence[Run]) -> None:
    """Fetch and check each data set once, before the runs; in a process of its own, as that may
    take torchvision.
    """
    datasets = {json.dumps(asdict(run.config.dataset)): run.config.dataset for run in runs}
    for arguments, dataset in datasets.items():
        if is_ready(dataset):
            continue
        command = [sys.executable, "-m", "resnests.data.splits", arguments]
        environment = os.environ | {"PYTHONPATH": python_path()}
        done = subprocess.run(command, stderr=subprocess.PIPE, text=True, env=environment)
        if done.returncode:
            raise UserError(done.stderr.strip().splitlines()[-1])


def _clear_what_starts_afresh(runs: Sequence[Run]) -> None:
    """Clear what was finished, or is to start again at the user's wish."""
    for run in runs:
        redo = run.config.trainer.overwrite or run.directory.status() in FINAL
        if redo and run.directory.path.is_dir():
            try:
                with run.directory.owner().acquire(blocking=False):
                    run.directory.clear()
            except Timeout:
                reason = "cannot start afresh, as it is being trained right now"
                raise UserError(f"{run.directory.path}: {reason}") from None
