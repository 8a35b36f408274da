"""Drive a sweep from configurations to finished runs. No torch."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import closing, suppress
from pathlib import Path

from resnests.config.schema import Config, config_dict
from resnests.environment import begin_dry_run, python_path
from resnests.errors import USER_ERROR, UserError, require
from resnests.runs.digests import with_digests
from resnests.runs.files import require_locks
from resnests.runs.record import FINAL
from resnests.runs.sweeps import remove_asked, write_asked
from resnests.runs.weights import export_target
from resnests.sweep.aside import Aside, News
from resnests.sweep.devices import Allocation, allocate
from resnests.sweep.display import Display
from resnests.sweep.executors.local import LauncherExecutor, local_sweep
from resnests.sweep.forking import forking
from resnests.sweep.job import run_job
from resnests.sweep.leases import lease
from resnests.sweep.mps_sharing import obstacle, sharing
from resnests.sweep.plan import (
    Run,
    known_memory,
    plan_runs,
    print_plan,
    require_folder,
    require_writable,
    usable_runs,
    warn_of_epochs_not_kept,
)
from resnests.sweep.precision import warn_of_emulation
from resnests.sweep.prepare import prepare
from resnests.sweep.protocol import SweepFolder
from resnests.sweep.scheduler import Executor, Scheduler
from resnests.sweep.stop import Stop, ending_at_once
from resnests.sweep.summary import print_skipped, print_summary
from resnests.sweep.tryout import set_aside, trying
from resnests.trackers.sync import syncing

# Starts a job for each of the runs of these numbers, by an allocation; returns when they are over.
# `SweepFolder` is where the jobs find what they train.
Launch = Callable[[list[int], Allocation, SweepFolder], object]


def run_single(config: Config) -> int:
    """Train one configuration in a job of this very process; return the exit status."""
    return run_sweep([config], lambda numbers, *_: [run_job(number) for number in numbers])


def run_sweep(configs: Sequence[Config], launch: Launch) -> int:
    """Bring every one of `configs` to its end; return the exit status.

    `launch` is not used where a cluster trains, which has jobs of its own.
    """
    options, cluster = configs[0].sweep, configs[0].cluster
    wanted = "-m and what to search, such as python run.py -m experiment=tune"
    require(configs[0].task != "tune", "task", "tune", wanted)
    if options.dry_run:
        begin_dry_run()
    configs = with_digests(configs)
    runs = plan_runs(configs)
    if (task := configs[0].task) in ("export", "predict"):
        wanted = f"false, as task={task} trains nothing"
        require(not options.dry_run, "sweep.dry_run", True, wanted)
        return _export(runs) if task == "export" else _predict(runs)
    warn_of_epochs_not_kept(runs)
    allocation = None if cluster else allocate(configs[0], len(runs), known_memory(runs))
    if options.dry_run:
        todo = print_plan(runs, allocation)
        if allocation and todo:
            obstacle(configs[0].devices.mps, allocation)
        prepare([run.config for run in todo])
        return 0
    for runs_dir in {config.runs_dir for config in configs}:
        require_folder(runs_dir)
    todo, barred = usable_runs(runs)
    barred_numbers = {run.index for run in barred}
    by_number = {run.index: run for run in [*runs, *todo] if run.index not in barred_numbers}
    runs = list(by_number.values())
    print_skipped(runs, todo)
    if not todo:
        _tidy(configs[0])
        remove_asked([run.config for run in runs])
        return print_summary(runs, interrupted=False, barred=len(barred))
    # One run alone tries its device itself
    with trying(allocation.gpus if allocation and len(todo) > 1 else []) as trials:
        _make_ready(todo, allocation)
        if allocation is None:
            return _train_on_cluster(runs, todo, len(barred))
        with (
            sharing(configs[0].devices.mps, allocation) as allocation,
            local_sweep(todo, allocation) as folder,
            forking(todo, allocation, folder.path),
        ):
            set_aside(Aside(folder.path), allocation, trials, configs[0].trainer.device)

            def start(numbers: list[int]) -> None:
                launch(numbers, allocation, folder)

            executor = LauncherExecutor(start, folder, print)
            _note(runs, executor)
            return _train_here(runs, todo, executor, allocation, len(barred))


def _train_here(
    runs: Sequence[Run],
    todo: list[Run],
    executor: LauncherExecutor,
    allocation: Allocation,
    barred: int,
) -> int:
    """Bring `todo`, of a sweep's `runs`, to its end on this machine; return the exit status.

    Where no device is left before any run got an epoch further, or came to its end, that is the one
    of a trial which all devices fail.
    """
    before = _progress(todo)
    news = News(Aside(executor.folder.path), allocation.devices)
    with (
        syncing(todo[0].config, [run.directory for run in todo]),
        Stop() as stop,
        Display(runs, todo) as display,
    ):
        executor.report = display.print
        for _ in _rounds(todo, executor, stop, display):
            for line in news.lines():
                display.print(line)
            if news.is_nothing_left():
                stop.ask()
    status = print_summary(runs, interrupted=stop.signals > 0, barred=barred)
    if status != 1 or not news.is_nothing_left():
        return status
    if _progress(todo) == before:  # which the line of each run says
        return USER_ERROR
    print(news.aside.summary(), file=sys.stderr)
    return status


def _progress(runs: Sequence[Run]) -> list[tuple[int, bool]]:
    """Return how many epochs each run has, and whether it is finished: an evaluation has none."""
    records = [run.directory.record_or_none() for run in runs]
    epochs = [record.epochs if record else 0 for record in records]
    return [(done, run.status() in FINAL) for done, run in zip(epochs, runs, strict=True)]


def _make_ready(todo: list[Run], allocation: Allocation | None) -> None:
    """Do what comes before the first run; raise a UserError for what would let all of them fail."""
    folders = {run.config.runs_dir for run in todo}
    for runs_dir in folders:
        require_writable(runs_dir)
    if allocation:
        warn_of_emulation((run.config for run in todo), allocation)
    prepare([run.config for run in todo])
    for runs_dir in folders:
        require_locks(runs_dir)
    for run in todo:
        reason = "cannot start afresh, as it is being trained right now"
        if run.replaces is not None and run.directory.is_locked():
            raise UserError(f"{run.directory.path}: {reason}")


def _rounds(todo: list[Run], executor: Executor, stop: Stop, display: Display) -> Iterator[None]:
    """Yield after each round of a sweep, until all its runs are at their end."""
    scheduler = Scheduler(todo, executor, stop.requested, display.print)
    with closing(scheduler.rounds()) as rounds:
        for jobs in rounds:
            display.update(jobs)
            yield


def _train_on_cluster(runs: Sequence[Run], todo: list[Run], barred: int) -> int:
    """Bring `todo`, of a sweep's `runs`, to its end in jobs of a queue; return the exit status."""
    config = todo[0].config
    executor = _cluster_executor(config)  # first, as Ray would take the signals from us
    if config.cluster and config.cluster.detach:
        scheduler = Scheduler(todo, executor, lambda: False, print)
        jobs = scheduler.submit()
        _note(runs, executor)
        if left := [run for run in scheduler.idle if not run.directory.is_locked()]:
            print(f"{len(left)} run(s) are in no job; {_what_submits(left)} submits them")
        print(f"{len(jobs)} job(s) go on by themselves", end="; ")
        print(f"python aggregate.py --status {config.runs_dir} tells how far they are")
        for name in config.logger:
            print(f"python aggregate.py --to {name} --watch {config.runs_dir} sends their curves")
        return 0
    with (
        syncing(config, [run.directory for run in todo]),
        Stop(on_signal=_end_at_second_signal) as stop,
        Display(runs, todo) as display,
        suppress(KeyboardInterrupt),
    ):
        executor.report = display.print
        if hasattr(executor, "is_drawn"):  # Slurm's, which says of jobs why they wait
            executor.is_drawn = display.live is not None
        for number, _ in enumerate(_rounds(todo, executor, stop, display)):
            if number == 0:  # the queue took the first jobs: it may refuse all of them
                _note(runs, executor)
    return print_summary(runs, interrupted=stop.signals > 0, barred=barred)


def _what_submits(left: Sequence[Run]) -> str:
    """Return which command submits the runs that got no job.

    With trainer.overwrite=true it would start afresh what the others have done by then, or refuse
    to while they train; without, it would skip a run that has its earlier result yet.
    """
    if not left[0].config.trainer.overwrite:
        return "the same command again"
    if any(run.replaces for run in left):
        return f"the same command for these alone, from {left[0].label} on,"
    return "the same command without trainer.overwrite=true"


def _note(runs: Sequence[Run], executor: Executor) -> None:
    """Leave what the sweep is asked for beside its runs, for those who look."""
    configs, replaces = [run.config for run in runs], [run.replaces for run in runs]
    write_asked(configs, executor.waits_for, replaces)


def _tidy(config: Config) -> None:
    """Remove what jobs that nobody waited for left beside their runs."""
    if config.cluster and config.cluster.name == "slurm":
        with suppress(UserError):  # of no interest where there is nothing to do
            _cluster_executor(config).close([])


def _end_at_second_signal(count: int) -> None:
    """Let jobs write their checkpoints at the first signal, and do not wait at the second."""
    if count > 1:
        raise KeyboardInterrupt


def _cluster_executor(config: Config) -> Executor:
    if config.cluster and config.cluster.name == "ray":
        from resnests.sweep.executors.ray import RayExecutor

        return RayExecutor(config)
    from resnests.sweep.executors.slurm import SlurmExecutor

    return SlurmExecutor(config)


def _predict(runs: Sequence[Run]) -> int:
    """Predict with every run, one after the other on one device; return the exit status."""
    config = runs[0].config
    allocation = allocate(config, 1)
    print(f"predicting with {len(runs)} run(s) on {allocation.kind}, once it is free", flush=True)
    held = lease(allocation, "task=predict", config.devices.wait)
    assert held is not None  # as nothing asks it to stop
    device = "cuda:0" if allocation.kind == "cuda" else allocation.kind
    words = ("resnests.tasks.predict", device, str(allocation.threads))
    return _run_with_torch(words, runs, held.environment())


def _export(runs: Sequence[Run]) -> int:
    """Export every run, or print why not; return 1 where any is missing."""
    targets: dict[Path, Run] = {}
    for run in runs:
        other = targets.setdefault(folder := export_target(run.config).parent, run)
        both = f"{other.directory.path} and {run.directory.path}"
        expected = f"one of {both}, which would be exported to the same {folder}"
        require(other is run, "weights", run.config.weights, expected)
    return _run_with_torch(("resnests.sharing.export",), runs)


def _run_with_torch(
    words: tuple[str, ...], runs: Sequence[Run], environment: Mapping[str, str] | None = None
) -> int:
    """Run a module over the configurations of `runs` in a process of its own, as it takes torch;
    return its exit status. `words` are its name and its arguments.

    In a session of its own it does not see a Ctrl-C, at which this process ends it.
    """
    with ending_at_once():
        return subprocess.run(
            [sys.executable, "-m", *words],
            input=json.dumps([config_dict(run.config) for run in runs]),
            text=True,
            env=os.environ | (environment or {}) | {"PYTHONPATH": python_path()},
            start_new_session=True,
        ).returncode
