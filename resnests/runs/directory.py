"""Define where a run directory is, and what its files mean: all that knows this is here. No torch.

    <runs_dir>/<dataset>/<arch>/<variant>/<recipe>/seed=<n>/
        config.yaml    the resolved configuration, which runs again with
                       python run.py --config-path=<this directory> --config-name=config
        record.json    status, final metrics, configuration, timings, provenance
        history.csv    one row an epoch
        progress.json  the latest heartbeat of a running training, about once a second
        checkpoint.pt  what resuming needs; checkpoint.previous.pt is the one before it
        model.pt       the final weights, a plain state dict under the official names
        model_ema.pt   their running mean, of trainer.ema
        predictions.npz      what the network says of each test image, of predictions=true
        predictions.csv      the same as a line an image
        predictions_<name>.npz and .csv      of the images in a folder <name>, of task=predict
        model_epoch_<n>.pt   those after epoch n, of trainer.keep_epochs; 0: before the first step
        run.log        the output of the training process
        run.lock       held by the process that owns the directory
        unsent.<name>  why a tracker has not all of the run; there only where it has not
        sync.<name>    locked by the process that sends the run to a tracker; it holds the run's id
                       there where no epoch was done when it was sent first, or it started afresh
        analysis/      of task=analyze: a run directory of its own, with analysis.json besides

Every file but run.log and run.lock is written to a temporary name, flushed and renamed: whole or
not at all.
"""

from __future__ import annotations

import errno
import hashlib
import json
import logging
import os
import re
import secrets
import socket
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from functools import cache
from pathlib import Path
from typing import Any

from filelock import Timeout
from omegaconf import OmegaConf

from resnests.config.recipe import recipe_hash
from resnests.config.schema import Config, config_dict, config_from
from resnests.errors import UserError
from resnests.runs import history
from resnests.runs.analysis import Analysis
from resnests.runs.files import leads_out, read_file
from resnests.runs.files import write_atomic as write_atomic
from resnests.runs.lock import RunLock, is_flocked
from resnests.runs.record import (
    BrokenRecord,
    Record,
    UnreadableRun,
    is_heartbeat,
    is_recent,
    owner,
)

ANALYSIS = "analysis"  # the folder of a run's analysis
STUDY = "study.db"  # what a folder holds whose runs are the trials of a search

log = logging.getLogger(__name__)

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
    averaged_weights_file = _file("model_ema.pt")
    predictions_file = _file("predictions.npz")
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
        """Return the run that this directory, of task=analyze, is about."""
        return RunDirectory(self.path.parent)

    @property
    def analysis(self) -> RunDirectory:
        """Return where this run's analysis is, or would be."""
        return RunDirectory(self.path / ANALYSIS)

    def write_config(self, config: Config) -> None:
        self.path.mkdir(parents=True, exist_ok=True)
        tree = config_dict(config)
        tree.pop("digests", None)  # which are taken anew when it runs again
        write_atomic(self.config_file, (_RERUN_HEADER + OmegaConf.to_yaml(tree)).encode())

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
        """Return the checked record, None where there is none; raise BrokenRecord, or its
        UnreadableRun.
        """
        try:
            with self._readable():
                text = read_file(self.record_file)
        except FileNotFoundError:
            return None
        return Record.from_json(text)

    def record_digest(self) -> str:
        """Return what tells this record from any other of the run, "" where there is none."""
        try:
            return hashlib.sha256(read_file(self.record_file)).hexdigest()
        except FileNotFoundError:
            return ""

    def status(self) -> str | None:
        """Return the status on record, None where there is no sound record; raise UnreadableRun."""
        try:
            record = self.read_record()
        except UnreadableRun:
            raise
        except BrokenRecord:
            return None
        return record.status if record else None

    def record_or_none(self) -> Record | None:
        """Return the record, None where there is none, or one that is broken or unreadable."""
        try:
            return self.read_record()
        except BrokenRecord:
            return None

    @contextmanager
    def _readable(self) -> Iterator[None]:
        """Turn what the operating system says, but that a file is not there, into UnreadableRun."""
        try:
            yield
        except FileNotFoundError:
            raise
        except OSError as error:
            raise UnreadableRun(self.path, error) from error

    def write_analysis(self, analysis: Analysis) -> None:
        write_atomic(self.analysis_file, analysis.to_json().encode())

    def read_analysis(self) -> Analysis | None:
        """Return the analysis so far, None where there is no sound one."""
        try:
            return Analysis.from_json(read_file(self.analysis_file))
        except (OSError, BrokenRecord):
            return None

    def write_history(self, rows: list[dict[str, Any]]) -> None:
        """Write rows of the columns of history.HISTORY, and of metrics; a value that was not
        measured stays empty.
        """
        write_atomic(self.history_file, history.to_csv(rows))

    def read_history(self, columns: tuple[str, ...] | None = None) -> dict[str, list[float]]:
        """Return the named columns (None: all), a value per epoch, nan where nothing was measured;
        raise BrokenRecord.
        """
        return history.read(self.history_file, columns)

    def history_rows(self) -> list[dict[str, float]]:
        """Return the rows of history.csv so far, nan where nothing was measured; [] where there is
        no sound file.
        """
        try:
            table = self.read_history()
        except BrokenRecord:
            return []
        return [
            dict(zip(table, values, strict=True)) for values in zip(*table.values(), strict=True)
        ]

    def write_progress(self, progress: dict[str, Any]) -> None:
        heartbeat = progress | {"time": time.time(), "host": socket.gethostname()}
        write_atomic(self.progress_file, json.dumps(heartbeat).encode())

    def read_progress(self) -> dict[str, Any]:
        """Return the latest heartbeat ({} where there is none): state, device, epoch, loss, ...,
        time (Unix seconds), host.
        """
        try:
            progress = json.loads(read_file(self.progress_file))
        except (OSError, ValueError, RecursionError):
            return {}
        return progress if isinstance(progress, dict) else {}

    def shown_progress(self) -> dict[str, Any]:
        """Return the latest heartbeat, {} where it is none that can be shown."""
        progress = self.read_progress()
        return progress if is_heartbeat(progress) else {}

    def kept_weights_file(self, epoch: int) -> Path:
        """Return where the weights after `epoch` are, if trainer.keep_epochs has it."""
        return self.path / f"model_epoch_{epoch}.pt"

    def epochs_not_kept(self, epochs: list[int]) -> list[int]:
        """Return those of `epochs` that a complete run was trained for without keeping weights."""
        record = self.record_or_none() if epochs else None
        if record is None or record.status != "complete":
            return []
        past = (epoch for epoch in epochs if epoch <= record.epochs)
        return [epoch for epoch in past if not self.kept_weights_file(epoch).is_file()]

    def unsent(self, tracker: str = "*") -> Path:
        """Return the file that says why `tracker` has not all of the run."""
        return self.path / f"unsent.{tracker}"

    def sync_file(self, tracker: str = "*") -> Path:
        """Return the file that the process locks which sends the run to `tracker`."""
        return self.path / f"sync.{tracker}"

    def predictions_of(self, folder: str) -> Path:
        """Return where the predictions of the images in `folder` are, if they were made."""
        name = re.sub(r"[^\w.-]", "_", os.path.basename(os.path.realpath(folder)))
        return self.path / f"predictions_{name}.npz"

    def lock(self) -> RunLock:
        """Return the lock that a process holds while the directory is its own; not acquired yet."""
        return RunLock(self)

    def has_heartbeat(self) -> bool:
        """Return whether another process works here, as far as its heartbeat and its record tell.

        A file system without locks between its hosts (NFS or Lustre mounted with local flock) lets
        each of them have the lock, and a lock file that was deleted while it was held lets anybody.
        """
        progress = self.read_progress()
        if progress.get("host", socket.gethostname()) != socket.gethostname():
            return is_recent(progress)
        record = self.record_or_none()
        if record is None or record.status != "running" or record.provenance.pid == os.getpid():
            return False
        return record.is_alive(progress)

    def is_locked(self) -> bool:
        """Return whether some living process owns the directory; raise UnreadableRun.

        This creates nothing, so that it works in folders that only others may write to.
        """
        with self._readable():
            return is_flocked(self.lock_file) or self.has_heartbeat()

    def require_writable(self) -> None:
        """Raise a UserError where this process may not write here, as in another user's run."""
        place = self.path
        while not os.path.lexists(place) and place != place.parent:
            place = place.parent
        needed = [(place, os.W_OK | os.X_OK)]
        if os.path.lexists(self.lock_file):
            needed.append((self.lock_file, os.R_OK | os.W_OK))
        # As this process would be asked, with the rights that it has beside its user's
        effective = os.access in os.supports_effective_ids
        for path, rights in needed:
            if not path.is_dir() and path != self.lock_file:
                raise UserError(f"{self.path}: cannot be made, as {path} is no directory")
            if not os.access(path, rights, effective_ids=effective):
                if os.statvfs(path).f_flag & os.ST_RDONLY:
                    reason = os.strerror(errno.EROFS)
                    raise UserError(f"{self.path}: cannot be written ({reason})")
                raise UserError(f"{self.path}: cannot be written; it belongs to {owner(path)}")

    def remove_temporaries(self) -> None:
        """Remove the temporary files of writers that were killed; for the owner alone."""
        for path in self.path.glob(".*.tmp"):
            path.unlink(missing_ok=True)

    def remove_if_not_begun(self) -> bool:
        """Remove the directory of a run that left nothing but a log; return whether it is gone.

        This happens under the lock, or it would take the directory from a process that waits for
        its device and has written nothing yet. Who opened the lock file before it was removed, and
        locks it afterwards, sees that it is no longer the file on disk (RunLock.acquire).
        """
        leftovers = {self.lock_file, self.log_file, self.progress_file, self.config_file}
        if not self.path.is_dir():
            return True
        try:
            with self.lock().acquire(blocking=False):
                found = set(self.path.iterdir())
                if any(path not in leftovers and path.suffix != ".tmp" for path in found):
                    return False
                for path in found:
                    path.unlink()
                self.path.rmdir()
        except (Timeout, OSError):
            return False
        with suppress(OSError):  # other runs are in them
            for parent in list(self.path.parents)[:4]:
                parent.rmdir()
        return True

    def clear(self, but_analysis: bool = False) -> None:
        """Remove what an earlier attempt left, but for its log and the lock, and analysis.json
        where that is to stay.
        """
        gone = (self.record_file, self.history_file, self.progress_file, self.weights_file)
        of_these_weights = (self.analysis.record_file, self.analysis.analysis_file)
        unsent = self.path.glob(self.unsent().name)
        kept = self.path.glob("model_epoch_*.pt")
        more = [self.averaged_weights_file, *self.path.glob("predictions*")]
        more += [] if but_analysis else [self.analysis_file]
        for path in (*gone, *more, *of_these_weights, *unsent, *kept):
            path.unlink(missing_ok=True)
        for path in self.path.glob(self.sync_file().name):
            path.write_text(secrets.token_hex(8))  # another curve; in place, as it may be locked
        self.clear_checkpoints()

    def clear_checkpoints(self) -> None:
        self.checkpoint_file.unlink(missing_ok=True)
        self.previous_checkpoint_file.unlink(missing_ok=True)


def study_folder(config: Config) -> Path:
    """Return where the study of a search is, and below it the run directories of its trials."""
    return Path(config.runs_dir) / f"study-{config.tune.study}"


def find_runs(root: Path | str, trials: bool = False) -> Iterator[RunDirectory]:
    """Yield every directory below `root` that holds a record, in the order of its path; those of
    the `trials` of a search only where asked for, or where `root` is inside of their study.

    Symbolic links are followed where they lead out of `root`, and no folder is visited twice. Where
    they must not be (files.only_below), the link itself is yielded, to be named as left out.
    """
    top, visited = os.path.realpath(root), set()
    for folder, children, files in os.walk(root, onerror=_warn_of_unreadable, followlinks=True):
        place = os.stat(folder)
        if (place.st_dev, place.st_ino) in visited:
            children.clear()
            continue
        visited.add((place.st_dev, place.st_ino))
        children[:] = sorted(name for name in children if not _leads_back(folder, name, top))
        for name in [name for name in children if _is_out(folder, name)]:
            children.remove(name)
            yield RunDirectory(os.path.join(folder, name))
        if STUDY in files and not trials and folder != str(root):
            children.clear()
        elif "record.json" in files and os.path.basename(folder) != ANALYSIS:
            yield RunDirectory(folder)


def _leads_back(folder: str, name: str, top: str) -> bool:
    """Return whether `name` is a link to what is below `top`, which is found there anyway."""
    path = os.path.join(folder, name)
    return os.path.islink(path) and os.path.realpath(path).startswith(top + os.sep)


def _is_out(folder: str, name: str) -> bool:
    """Return whether `name` is a link to where files must not be opened."""
    path = os.path.join(folder, name)
    return os.path.islink(path) and leads_out(path)


def _warn_of_unreadable(error: OSError) -> None:
    if not isinstance(error, FileNotFoundError):  # no such folder, or removed in between
        _warn(str(UnreadableRun(Path(error.filename), error)))


@cache  # once, however often the folder is looked through
def _warn(line: str) -> None:
    log.warning("warning: %s", line)
