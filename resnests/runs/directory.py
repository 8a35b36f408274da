"""The run directory: the one module that knows its place, its files and what they mean. Imports no
torch.

    <runs_dir>/<dataset>/<arch>/<variant>/<recipe>/seed=<n>/
        config.yaml    the resolved configuration, which runs again with
                       python run.py --config-path=<this directory> --config-name=config
        record.json    status, final metrics, configuration, timings, provenance
        history.csv    one row an epoch
        progress.json  the latest sign of life of a running training, about once a second
        checkpoint.pt  what resuming needs; checkpoint.previous.pt is the one before it
        model.pt       the final weights, a plain state dict under the official names
        model_epoch_<n>.pt   those after epoch n, of trainer.keep_epochs
        run.log        the output of the training process
        run.lock       held by the process that owns the directory
        unsent.<name>  why a tracker has not all of the run; there only where it has not
        analysis/      of task=analyze: a run directory of its own, with analysis.json besides

Every file but run.log and run.lock is written to a temporary name, flushed and renamed: whole or
not at all.
"""

from __future__ import annotations

import json
import os
import socket
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from filelock import FileLock, Timeout
from omegaconf import OmegaConf

from resnests.config.recipe import recipe_hash
from resnests.config.schema import Config, config_dict, config_from
from resnests.runs import history
from resnests.runs.analysis import Analysis
from resnests.runs.files import write_atomic as write_atomic
from resnests.runs.history import HISTORY
from resnests.runs.record import BrokenRecord, Record, is_recent

ANALYSIS = "analysis"  # the folder of a run's analysis
STUDY = "study.db"  # what a folder holds whose runs are the trials of a search

_RERUN_HEADER = """\
# Run this again as it is: python run.py --config-path="$PWD" --config-name=config, with $PWD this
# directory
defaults:
  - schema
  - override hydra/launcher: joblib
  - override hydra/sweeper: grid
  - override hydra/job_logging: none
  - override hydra/hydra_logging: none
  - _self_
hydra:
  run: {dir: .}
  sweep: {dir: ., subdir: .}
  output_subdir: null
"""


def _file(name: str) -> Any:
    """Return the property of a RunDirectory that is the path of its file `name`."""
    return property(lambda run: run.path / name)


class RunDirectory:
    """Reads and writes the files of one run."""

    def __init__(self, path: Path | str) -> None:
        self.path = Path(path)

    # A tree of runs has many directories, of which few files are asked for.
    config_file = _file("config.yaml")
    record_file = _file("record.json")
    history_file = _file("history.csv")
    progress_file = _file("progress.json")
    checkpoint_file = _file("checkpoint.pt")
    previous_checkpoint_file = _file("checkpoint.previous.pt")
    weights_file = _file("model.pt")
    log_file = _file("run.log")
    lock_file = _file("run.lock")
    analysis_file = _file("analysis.json")

    @classmethod
    def of(cls, config: Config) -> RunDirectory:
        parts = (config.dataset.name, config.arch.name, config.variant.name, recipe_hash(config))
        path = Path(config.runs_dir).joinpath(*parts, f"seed={config.seed}")
        return cls(path / ANALYSIS if config.task == "analyze" else path)

    @property
    def analysed(self) -> RunDirectory:
        """The run that this directory, of task=analyze, is about."""
        return RunDirectory(self.path.parent)

    @property
    def analysis(self) -> RunDirectory:
        """Where this run's analysis is, or would be."""
        return RunDirectory(self.path / ANALYSIS)

    def write_config(self, config: Config) -> None:
        self.path.mkdir(parents=True, exist_ok=True)
        write_atomic(
            self.config_file,
            (_RERUN_HEADER + OmegaConf.to_yaml(config_dict(config))).encode(),
        )

    def read_config(self) -> Config:
        tree = OmegaConf.load(self.config_file)
        return config_from(
            {str(key): value for key, value in tree.items() if key not in ("defaults", "hydra")}
        )

    def write_record(self, record: Record) -> None:
        write_atomic(self.record_file, record.to_json().encode())
        if record.status != "running":
            self.progress_file.unlink(missing_ok=True)

    def read_record(self) -> Record | None:
        """The checked record, None where there is none; raises BrokenRecord."""
        try:
            text = self.record_file.read_bytes()
        except FileNotFoundError:
            return None
        return Record.from_json(text)

    def status(self) -> str | None:
        """The status on record, None where there is no sound record."""
        record = self.sound_record()
        return record.status if record else None

    def sound_record(self) -> Record | None:
        """The record, None where there is none or a broken one."""
        try:
            return self.read_record()
        except BrokenRecord:
            return None

    def write_analysis(self, analysis: Analysis) -> None:
        write_atomic(self.analysis_file, analysis.to_json().encode())

    def read_analysis(self) -> Analysis | None:
        """The analysis so far, None where there is no sound one."""
        try:
            return Analysis.from_json(self.analysis_file.read_bytes())
        except (OSError, BrokenRecord):
            return None

    def write_history(self, rows: list[dict[str, Any]]) -> None:
        """Rows of HISTORY's columns; a value that was not measured stays empty."""
        write_atomic(self.history_file, history.to_csv(rows))

    def read_history(self, columns: tuple[str, ...] = HISTORY) -> dict[str, list[float]]:
        """The named columns, a value per epoch, nan where nothing was measured; raises
        BrokenRecord.
        """
        return history.read(self.history_file, columns)

    def history_rows(self) -> list[dict[str, float]]:
        """The rows of history.csv so far, nan where nothing was measured; [] where there is no
        sound file.
        """
        try:
            table = self.read_history()
        except BrokenRecord:
            return []
        return [
            dict(zip(table, values, strict=True)) for values in zip(*table.values(), strict=True)
        ]

    def write_progress(self, progress: dict[str, Any]) -> None:
        sign = progress | {"time": time.time(), "host": socket.gethostname()}
        write_atomic(self.progress_file, json.dumps(sign).encode())

    def read_progress(self) -> dict[str, Any]:
        """The latest sign of life ({} where there is none): state, device, epoch, loss, ...,
        time (Unix seconds), host.
        """
        try:
            progress = json.loads(self.progress_file.read_bytes())
        except (OSError, ValueError):
            return {}
        return progress if isinstance(progress, dict) else {}

    def kept_weights_file(self, epoch: int) -> Path:
        """Return where the weights after `epoch` are, if trainer.keep_epochs has it."""
        return self.path / f"model_epoch_{epoch}.pt"

    def unsent(self, tracker: str = "*") -> Path:
        """Where it says why `tracker` has not all of the run."""
        return self.path / f"unsent.{tracker}"

    def owner(self) -> FileLock:
        """The lock that a process holds while the directory is its own."""
        self.path.mkdir(parents=True, exist_ok=True)
        return _OwnerLock(self.lock_file)

    def shows_life(self) -> bool:
        """Whether another process works here, as far as its signs of life and its record tell."""
        progress = self.read_progress()
        if progress.get("host", socket.gethostname()) != socket.gethostname():
            return is_recent(progress)
        record = self.sound_record()
        if record is None or record.status != "running" or record.provenance.pid == os.getpid():
            return False
        return record.is_alive(progress)

    def is_owned(self) -> bool:
        """Whether some living process owns the directory."""
        if not self.path.is_dir():
            return False
        try:
            with self.owner().acquire(blocking=False):
                return False
        except Timeout:
            return True

    def tidy(self) -> None:
        """Remove the temporary files of writers that were killed; for the owner alone."""
        for path in self.path.glob(".*.tmp"):
            path.unlink(missing_ok=True)

    def clear(self) -> None:
        """Forget what an earlier attempt left, but for its log and the lock."""
        gone = (self.record_file, self.history_file, self.progress_file, self.weights_file)
        of_these_weights = (self.analysis.record_file, self.analysis.analysis_file)
        unsent = self.path.glob(self.unsent().name)
        kept = self.path.glob("model_epoch_*.pt")
        for path in (*gone, self.analysis_file, *of_these_weights, *unsent, *kept):
            path.unlink(missing_ok=True)
        self.clear_checkpoints()

    def clear_checkpoints(self) -> None:
        self.checkpoint_file.unlink(missing_ok=True)
        self.previous_checkpoint_file.unlink(missing_ok=True)


class _OwnerLock(FileLock):
    """run.lock; a directory that shows life is taken although the lock is free.

    A file system without locks between its hosts (NFS or Lustre mounted with local flock) lets
    each of them have it, and a file that was deleted while it was locked lets anybody.
    """

    def acquire(self, *args: Any, **kwargs: Any) -> Any:
        held = super().acquire(*args, **kwargs)
        if RunDirectory(Path(self.lock_file).parent).shows_life():
            self.release()
            raise Timeout(self.lock_file)
        return held


def study_folder(config: Config) -> Path:
    """Where the study of a search is, and below it the run directories of its trials."""
    return Path(config.runs_dir) / f"study-{config.tune.study}"


def find_runs(root: Path | str, trials: bool = False) -> Iterator[RunDirectory]:
    """Every directory below `root` that holds a record, in the order of its path; those of the
    `trials` of a search only where asked for, or where `root` is inside of their study.
    """
    for folder, children, files in os.walk(root):
        children.sort()
        if STUDY in files and not trials and folder != str(root):
            children.clear()
        elif "record.json" in files and os.path.basename(folder) != ANALYSIS:
            children.clear()
            yield RunDirectory(folder)
