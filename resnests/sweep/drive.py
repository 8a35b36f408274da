"""From checked configurations to finished runs: what to do, in child processes, again where that
helps. No torch.

The run directories are the only truth: what was done, what failed and why is read from them, so
that any death of any process leaves nothing to repair and the same command goes on.
"""

from __future__ import annotations

import json
import logging
import os
import shutil
import signal
import socket
import sys
import tempfile
import time
from collections import Counter, defaultdict
from collections.abc import Callable, Sequence
from contextlib import suppress
from dataclasses import asdict, replace
from operator import attrgetter
from pathlib import Path

from filelock import Timeout

from resnests.config.recipe import recipe_values, telling_keys
from resnests.config.schema import Config
from resnests.errors import UserError, require
from resnests.runs.directory import RunDirectory
from resnests.runs.record import FINAL
from resnests.runs.weights import export, weights_file
from resnests.sweep.child import (
    POLL,
    Run,
    Stop,
    command_line,
    conclude,
    last_line,
    prepare_data,
    python_path,
    run_child,
)
from resnests.sweep.devices import Allocation, allocate
from resnests.sweep.display import Display
from resnests.sweep.worker import BUSY, USER_ERROR

MAX_CRASHES = 5  # of the launcher, one after the other, with no run reaching its end

log = logging.getLogger(__name__)


def check(configs: Sequence[Config], remote: bool = False) -> list[Run]:
    """The runs of `configs`; raises a UserError where they cannot work, before anything is written.

    Whether there are such devices is seen here, unless other hosts train (`remote`).
    """
    runs = [Run(config, RunDirectory.of(config), index) for index, config in enumerate(configs)]
    first = configs[0]
    for config in configs:
        for key, value, shared in (
            ("task", config.task, first.task),
            ("trainer.device", config.trainer.device, first.trainer.device),
            ("devices", config.devices, first.devices),
            ("sweep", config.sweep, first.sweep),
        ):
            require(value == shared, key, value, f"one value for the whole sweep, such as {shared}")
        if config.task == "evaluate":
            weights_file(config)
    demands = {(c.trainer.precision, c.trainer.cuda_graph): c for c in configs}
    for config in () if remote else demands.values():
        allocate(config, 1)
    for root in {Path(c.runs_dir) for c in configs}:
        try:
            root.mkdir(parents=True, exist_ok=True)
            tempfile.TemporaryFile(dir=root).close()
        except OSError as error:
            raise UserError(
                f"runs_dir={root}: expected a directory that can be written ({error.strerror})"
            ) from error
    unique = list({run.directory.path: run for run in reversed(runs)}.values())[::-1]
    return _told_apart(unique)


def _told_apart(runs: list[Run]) -> list[Run]:
    """`runs`, in whose labels stand the values in which those of the same names and seed differ."""
    groups: dict[str, list[dict]] = defaultdict(list)
    for run in runs:
        groups[run.label].append(recipe_values(run.config))
    told = []
    for run in runs:
        keys = telling_keys(groups[run.label])
        differs = " ".join(f"{key}={attrgetter(key)(run.config)}" for key in sorted(keys))
        told.append(replace(run, differs=differs))
    return told


def drive(
    configs: Sequence[Config], launch: Callable[[list[int], Allocation | None], None], remote=False
) -> int:
    """Bring every one of `configs` to its end with `launch(indices into configs, allocation)`; the
    exit status.

    `launch` returns when the runs that it was given have ended; it may raise when a process of the
    launcher died. Where it is `remote`, a batch system with a file system in common, each job sees
    for itself what its host has.
    """
    runs = check(configs, remote)
    if configs[0].task == "export":
        require(
            not configs[0].sweep.dry_run,
            "sweep.dry_run",
            True,
            "false, as task=export trains nothing",
        )
        return _export(runs)
    allocation = None if remote else allocate(configs[0], len(runs))
    if configs[0].sweep.dry_run:
        _print_plan(runs, allocation)
        return 0
    todo = [run for run in runs if run.action != "skip"]
    _say_skipped(runs, todo)
    if not todo:
        return _exit_status(runs, interrupted=False)
    prepare_data(todo)
    _overwrite(todo)
    shared = (
        {"prefix": ".sweep-", "dir": Path(configs[0].runs_dir).resolve()}
        if remote
        else {"prefix": "resnests-"}
    )
    folder = Path(tempfile.mkdtemp(**shared))
    try:
        with Stop(folder / "stop", queue=remote) as stop, Display(runs, todo) as display:
            os.environ["RESNESTS_SWEEP"] = json.dumps(
                {
                    "host": socket.gethostname(),
                    "pid": os.getpid(),
                    "stop": str(stop.file),
                    "allocation": allocation and asdict(allocation),
                }
            )
            os.environ |= {"RESNESTS_COMMAND": command_line(), "PYTHONPATH": python_path()}
            with suppress(KeyboardInterrupt):  # the second signal, where jobs wait in a queue
                _rounds(
                    todo,
                    lambda some: launch([run.index for run in some], allocation),
                    stop,
                    display,
                    remote,
                )
            interrupted = stop.signals > 0
    finally:
        shutil.rmtree(folder, ignore_errors=True)
    return _exit_status(runs, interrupted)


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


def _rounds(
    todo: list[Run], launch: Callable[[list[Run]], None], stop: Stop, display: Display, remote: bool
) -> None:
    """Launch what is to do, until nothing is left that another try could finish."""
    attempts: Counter[Path] = Counter()
    epochs: Counter[Path] = Counter()  # that were done when its host interrupted a run
    crashes = 0
    while todo and not stop.requested():
        try:
            launch(todo)
            crashed = False
        except Exception as error:  # the launcher's own: a run's are on its record
            reason = f"{type(error).__name__}: {error}".splitlines()[0]
            display.say(f"the launcher lost a process ({reason}): going on with what is left")
            log.debug("launcher", exc_info=True)
            crashed = True
        ended = [run for run in todo if run.directory.status() in FINAL]
        crashes = crashes + 1 if crashed and not ended else 0
        if crashes == MAX_CRASHES:
            display.say(f"the launcher lost a process {crashes} times in a row: giving up")
            return
        todo = [
            run
            for run in todo
            if _is_worth_another(run, attempts, crashed) or (remote and _got_on(run, epochs))
        ]
        while todo and all(run.directory.is_owned() for run in todo) and not stop.requested():
            time.sleep(POLL)  # another sweep trains them: what it does not finish is ours


def _is_worth_another(run: Run, attempts: Counter[Path], crashed: bool) -> bool:
    if run.directory.is_owned():
        return True
    status, options = run.directory.status(), run.config.sweep
    if status in FINAL:
        return False
    if status == "running":  # nobody owns it: its process went with the launcher's
        conclude(run, -signal.SIGKILL)
    if crashed:
        return True
    attempts[run.directory.path] += 1
    return status in ("failed", "killed") and attempts[run.directory.path] <= options.retries


def _got_on(run: Run, epochs: Counter[Path]) -> bool:
    """Whether `run` was interrupted, by the time limit of its job say, in a later epoch than
    before.
    """
    record, path = run.directory.sound_record(), run.directory.path
    if record is None or record.status != "interrupted":
        return False
    before, epochs[path] = epochs[path], record.epochs
    return epochs[path] > before


def run_single(config: Config) -> int:
    """Train one configuration; the exit status."""
    return drive([config], lambda _indices, _allocation: job(config))


def job(config: Config) -> str | None:
    """One run, as a launcher starts it in a process of its choice; returns the status on record."""
    run, sweep = (
        Run(config, RunDirectory.of(config)),
        json.loads(os.environ.get("RESNESTS_SWEEP", "{}")),
    )
    here = sweep.get("host") == socket.gethostname()
    file = Path(sweep["stop"]) if sweep else None
    with Stop(file, sweep["pid"] if here else None, own=not here) as stop:
        try:
            allocation = (
                Allocation(**sweep["allocation"])
                if here and sweep["allocation"]
                else allocate(config, 1)
            )
            code = run_child(run, allocation, stop)
        except UserError as error:  # about this host, which the sweep could not see
            run.directory.path.mkdir(parents=True, exist_ok=True)
            with open(run.directory.log_file, "a") as output:
                print(error, file=output)
            code = USER_ERROR
        if stop.orphaned:
            os._exit(1)  # the launcher's process would wait for its next run forever
        if code not in (0, BUSY) and config.sweep.fail_fast:
            stop.set()
    return run.directory.status()


def _overwrite(runs: Sequence[Run]) -> None:
    """Clear what is to start afresh although it was finished, or at the user's wish."""
    for run in runs:
        redo = run.config.trainer.overwrite or run.directory.status() in FINAL
        if redo and run.directory.path.is_dir():
            try:
                with run.directory.owner().acquire(blocking=False):
                    run.directory.clear()
            except Timeout:
                raise UserError(
                    f"{run.directory.path}: cannot start afresh, as it is being trained right now"
                ) from None


def _say_skipped(runs: Sequence[Run], todo: Sequence[Run]) -> None:
    skipped = len(runs) - len(todo)
    if len(runs) == 1 and skipped:
        print(f"{runs[0].label}: {runs[0].directory.status()} already, in {runs[0].directory.path}")
    elif skipped:
        print(f"{skipped} of {len(runs)} runs are finished already")
    if skipped and not todo:
        print("nothing to do; trainer.overwrite=true would start afresh")


def _print_plan(runs: Sequence[Run], allocation: Allocation | None) -> None:
    actions = [run.action for run in runs]
    for action, run in zip(actions, runs, strict=True):
        print(f"{action:7} {run.label}  {run.directory.path}")
    count = Counter(actions)
    slots = "a job each"
    if allocation:
        slots = f"{allocation.concurrent} at once on {allocation.kind}, {allocation.threads} thread(s) each"
    print(f"{count['run']} to run, {count['resume']} to resume, {count['skip']} to skip; {slots}")


def _exit_status(runs: Sequence[Run], interrupted: bool) -> int:
    """Say what is not complete and why; 0 where everything is, 130 after a signal, else 1."""
    open_runs = [run for run in runs if run.directory.status() != "complete"]
    for run in open_runs:
        directory = run.directory
        record = directory.sound_record()
        status, reason = (record.status, record.error) if record else (None, None)
        if status is None and directory.log_file.exists():
            status, reason = "not started", last_line(directory)
            _discard(directory)
        tail = "" if status in (None, "not started") else f"; see {directory.log_file}"
        print(
            f"{status or 'not started'}: {run.label}{f': {reason}' if reason else ''}{tail}",
            file=sys.stderr,
        )
    if not open_runs:
        return 0
    if len(runs) > 1:
        print(
            f"{len(open_runs)} of {len(runs)} runs are not complete; the same command goes on",
            file=sys.stderr,
        )
    return 130 if interrupted else 1


def _discard(directory: RunDirectory) -> None:
    """Remove what a run left that never began."""
    began = (
        directory.record_file,
        directory.checkpoint_file,
        directory.previous_checkpoint_file,
    )
    if any(path.exists() for path in began):
        return  # it did begin, and its record was damaged since
    with suppress(OSError):
        for path in directory.path.iterdir():
            path.unlink()
        directory.path.rmdir()
        for parent in list(directory.path.parents)[:4]:
            parent.rmdir()
