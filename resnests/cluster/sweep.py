"""A sweep whose runs are trained in jobs of a cluster: submitted, shown, waited for. No torch."""

from __future__ import annotations

from collections.abc import Sequence
from contextlib import suppress

from resnests.cluster.jobs import Rounds, System
from resnests.config.schema import Config
from resnests.sweep.display import Display
from resnests.sweep.outcome import say_outcome
from resnests.sweep.plan import Run
from resnests.sweep.stop import Stop
from resnests.trackers.sync import syncing


def train_in_jobs(runs: Sequence[Run], todo: Sequence[Run]) -> int:
    """Bring `todo`, of the sweep's `runs`, to its end; the exit status."""
    config = todo[0].config
    if config.cluster and config.cluster.detach:
        jobs = Rounds(todo, _system(config), lambda: False, print, lambda _: None).submit()
        print(f"{len(jobs)} job(s) go on by themselves", end="; ")
        print(f"python aggregate.py --status {config.runs_dir} tells how far they are")
        for name in config.logger:
            print(f"python aggregate.py --to {name} --watch {config.runs_dir} sends their curves")
        return 0
    system = _system(config)  # first, as Ray would take the signals from us
    with (
        syncing(config, [run.directory for run in todo]),
        Stop(on_signal=_on_signal) as stop,
        Display(runs, todo) as display,
        suppress(KeyboardInterrupt),  # see _on_signal
    ):
        system.say = display.say
        Rounds(todo, system, stop.requested, display.say, display.place).until_done()
    return say_outcome(runs, interrupted=stop.signals > 0)


def _on_signal(count: int) -> None:
    """The first signal lets jobs write their checkpoints; the second does not wait for them."""
    if count > 1:
        raise KeyboardInterrupt


def _system(config: Config) -> System:
    if config.cluster and config.cluster.name == "ray":
        from resnests.cluster.ray_tasks import Ray

        return Ray(config)
    from resnests.cluster.slurm import Slurm

    return Slurm(config)
