"""Run one experiment, from a Config to a finished run directory, whatever its task."""

from __future__ import annotations

import logging
import time
from collections.abc import Callable
from dataclasses import replace
from typing import Any

import torch

from resnests.config.schema import Config
from resnests.errors import CaptureFailed, Interrupted, UserError
from resnests.runs.directory import RunDirectory
from resnests.runs.record import Record
from resnests.tasks.analyze import analyze
from resnests.tasks.evaluate import evaluate
from resnests.tasks.run import Run
from resnests.tasks.train import train
from resnests.training.loop import Diverged
from resnests.training.provenance import collect

log = logging.getLogger(__name__)
TASKS: dict[str, Callable[[Run], None]] = {
    "train": train,
    "evaluate": evaluate,
    "analyze": analyze,
}


def run_experiment(
    config: Config,
    device: torch.device | str = "cpu",
    should_stop: Callable[[], bool] = lambda: False,
    report: Callable[[dict[str, Any]], None] = lambda progress: None,
    clear: Callable[[], None] | None = None,
) -> str:
    """Bring the run of `config` from its latest checkpoint to its end, into its run directory;
    return the status on record.

    The caller owns the directory. `clear` removes a result that the run starts afresh over: it is
    called when all that can refuse is done (images read, network built and on its device), and
    until then nothing is written. An exception is recorded as failed and raised again.
    """
    device = torch.device(device)
    directory = RunDirectory.of(config)
    # Whoever runs its config.yaml again must resume
    kept = replace(config, trainer=replace(config.trainer, overwrite=False))
    record = Record.of(kept, collect(device, config))
    begun = False

    def begin() -> None:
        nonlocal begun
        if not begun:
            if clear:
                clear()
            directory.write_config(kept)
            directory.write_record(record)
            begun = True

    if clear is None:
        begin()
    try:
        TASKS[config.task](Run(config, directory, device, record, should_stop, report, begin))
        record.status = "complete"
    except BaseException as error:
        record.status, record.error = _outcome(error, config)
        if isinstance(error, Diverged):
            log.warning("diverged: %s", record.error)
            directory.clear_checkpoints()
        elif not isinstance(error, Interrupted):
            raise
    finally:
        record.provenance.ended = time.time()
        if begun:
            directory.write_record(record)
    return record.status


def _outcome(error: BaseException, config: Config) -> tuple[str, str | None]:
    """Return the status of a run that ended with `error`, and what its record says of it."""
    if isinstance(error, (Interrupted, CaptureFailed)):
        return "interrupted", None
    if isinstance(error, Diverged):
        hint = f"a lower optimizer.lr than {config.optimizer.lr:g} may help"
        return "diverged", f"{error}: {hint}"
    kind = "" if isinstance(error, UserError) else f"{type(error).__name__}: "
    return "failed", f"{kind}{error}"
