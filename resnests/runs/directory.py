"""The run directory: the one module that knows its place, its files and what they mean. Imports no
torch.

    <runs_dir>/<dataset>/<arch>/<variant>/<recipe>/seed=<n>/
        config.yaml    the resolved configuration: python run.py --config-path=<this directory> --config-name=config
        record.json    status, final metrics, configuration, timings, provenance
        history.csv    one row an epoch
        progress.json  the latest sign of life of a running training, about once a second
        checkpoint.pt  what resuming needs; checkpoint.previous.pt is the one before it
        model.pt       the final weights, a plain state dict under the official names
        run.log        the output of the training process
        run.lock       held by the process that owns the directory

Every file but run.log and run.lock is written to a temporary name, flushed and renamed: whole or
not at all."""

from __future__ import annotations

import csv
import io
import json
import math
import os
import socket
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from filelock import FileLock, Timeout
from omegaconf import OmegaConf

from resnests.config.recipe import recipe_hash, recipe_values
from resnests.config.schema import Config, config_dict, config_from

SCHEMA = 1
# complete and diverged are final: the same command would only compute the same again.
STATUSES = ("running", "complete", "diverged", "failed", "killed", "interrupted")
FINAL = ("complete", "diverged")
METRICS = ("train_loss", "train_accuracy", "test_loss", "test_accuracy")  # accuracies in percent
HISTORY = (
    "epoch", "lr", "train_loss", "train_accuracy", "val_loss", "val_accuracy", "test_loss", "test_accuracy",
    "seconds", "images_per_second",
)  # fmt: skip

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


class BrokenRecord(ValueError):
    """A record.json that is torn, foreign or inconsistent."""


def write_atomic(path: Path, data: bytes) -> None:
    """Write `data` so that `path` holds either what it held before or all of `data`, also after
    a power cut.
    """
    temporary = path.with_name(f".{path.name}.{os.getpid()}.tmp")
    try:
        with open(temporary, "wb") as file:
            file.write(data)
            file.flush()
            os.fsync(file.fileno())
        os.replace(temporary, path)
    except BaseException:
        temporary.unlink(missing_ok=True)
        raise


class RunDirectory:
    """Reads and writes the files of one run."""

    def __init__(self, path: Path | str) -> None:
        self.path = Path(path)

    @classmethod
    def of(cls, config: Config) -> RunDirectory:
        parts = (config.dataset.name, config.arch.name, config.variant.name, recipe_hash(config))
        return cls(Path(config.runs_dir).joinpath(*parts, f"seed={config.seed}"))

    def file(self, name: str) -> Path:
        return self.path / name

    def write_config(self, config: Config) -> None:
        self.path.mkdir(parents=True, exist_ok=True)
        write_atomic(
            self.file("config.yaml"),
            (_RERUN_HEADER + OmegaConf.to_yaml(config_dict(config))).encode(),
        )

    def read_config(self) -> Config:
        tree = OmegaConf.load(self.file("config.yaml"))
        return config_from(
            {key: value for key, value in tree.items() if key not in ("defaults", "hydra")}
        )

    def write_record(self, record: dict[str, Any]) -> None:
        text = json.dumps(record, indent=1, allow_nan=False) + "\n"
        write_atomic(self.file("record.json"), text.encode())

    def read_record(self) -> dict[str, Any] | None:
        """The checked record, None where there is none; raises BrokenRecord."""
        try:
            text = self.file("record.json").read_bytes()
        except FileNotFoundError:
            return None
        return parse_record(text)

    def status(self) -> str | None:
        """The status on record, None where there is no sound record."""
        try:
            record = self.read_record()
        except BrokenRecord:
            return None
        return record["status"] if record else None

    def write_history(self, rows: list[dict[str, Any]]) -> None:
        """Rows of HISTORY's columns; a value that was not measured stays empty."""
        text = io.StringIO()
        writer = csv.DictWriter(text, HISTORY, restval="", lineterminator="\n")
        writer.writeheader()
        writer.writerows(rows)
        write_atomic(self.file("history.csv"), text.getvalue().encode())

    def read_history(self, columns: tuple[str, ...] = HISTORY) -> dict[str, list[float]]:
        """The named columns, a value per epoch, nan where nothing was measured; raises
        BrokenRecord.
        """
        try:
            header, *lines = self.file("history.csv").read_text().splitlines()
            cells = (
                zip(*(line.split(",") for line in lines), strict=True)
                if lines
                else ([] for _ in header.split(","))
            )
            table = dict(zip(header.split(","), cells, strict=True))
            return {
                name: [float(value) if value else math.nan for value in table[name]]
                for name in columns
            }
        except OSError as error:
            raise BrokenRecord(f"history.csv: {error.strerror}") from error
        except (ValueError, KeyError) as error:
            raise BrokenRecord(
                f"history.csv is no table of {', '.join(columns)} ({error})"
            ) from error

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
        write_atomic(
            self.file("progress.json"), json.dumps(progress | {"time": time.time()}).encode()
        )

    def read_progress(self) -> dict[str, Any]:
        """The latest sign of life ({} where there is none): state, device, epoch, loss, ...,
        time (Unix seconds).
        """
        try:
            progress = json.loads(self.file("progress.json").read_bytes())
        except (OSError, ValueError):
            return {}
        return progress if isinstance(progress, dict) else {}

    def owner(self) -> FileLock:
        """The lock that a process holds while the directory is its own."""
        self.path.mkdir(parents=True, exist_ok=True)
        return FileLock(self.file("run.lock"))

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
        names = ("record.json", "history.csv", "progress.json", "model.pt")
        for name in (*names, "checkpoint.pt", "checkpoint.previous.pt"):
            self.file(name).unlink(missing_ok=True)


def new_record(config: Config, provenance: dict[str, Any]) -> dict[str, Any]:
    """The record of a run that starts now."""
    return {
        "schema": SCHEMA,
        "task": config.task,
        "status": "running",
        "dataset": config.dataset.name,
        "arch": config.arch.name,
        "variant": config.variant.name,
        "seed": config.seed,
        "recipe": recipe_hash(config),
        "recipe_values": recipe_values(config),
        "parameters": None,
        "epochs": 0,
        **dict.fromkeys(METRICS),
        "seconds": 0.0,
        "images_per_second": None,
        "error": None,
        "config": config_dict(config),
        "provenance": provenance,
    }


def parse_record(text: bytes) -> dict[str, Any]:
    """The record in `text`, its keys and types checked as far as readers rely on them; raises
    BrokenRecord.
    """
    try:
        record = json.loads(text)
    except ValueError as error:
        raise BrokenRecord(f"no JSON ({error})") from error
    if not isinstance(record, dict) or record.get("schema") != SCHEMA:
        raise BrokenRecord(f"no record of schema {SCHEMA}")
    types = dict.fromkeys(("dataset", "arch", "variant", "recipe", "status"), str)
    types |= {"seed": int, "epochs": int, "config": dict, "recipe_values": dict, "provenance": dict}
    for key, kind in types.items():
        if not isinstance(record.get(key), kind):
            raise BrokenRecord(f"{key} is {record.get(key)!r}, not of type {kind.__name__}")
    if record["status"] not in STATUSES:
        raise BrokenRecord(f"unknown status {record['status']!r}")
    if record["status"] == "complete":
        evaluated = record.get("task") == "evaluate"  # given weights have no training of ours
        for key in (*(METRICS[2:] if evaluated else METRICS), "parameters"):
            value = record.get(key)
            if not isinstance(value, int | float) or not math.isfinite(value):
                raise BrokenRecord(f"{key} of a complete run is {value!r}")
    return record


def find_runs(root: Path | str) -> Iterator[RunDirectory]:
    """Every directory below `root` that holds a record, in the order of its path."""
    for folder, children, files in os.walk(root):
        children.sort()
        if "record.json" in files:
            children.clear()
            yield RunDirectory(folder)


def is_alive(record: dict[str, Any], progress: dict[str, Any], stale: float = 60.0) -> bool:
    """Whether the process that a `running` record names still works.

    Asks the operating system on the host that the run is on, and elsewhere believes signs of life
    younger than `stale` seconds."""
    provenance = record["provenance"]
    if provenance.get("host") != socket.gethostname():
        return time.time() - progress.get("time", 0.0) < stale
    import psutil

    try:
        process = psutil.Process(provenance["pid"])
        return (
            abs(process.create_time() - provenance["process_started"]) < 2
            and process.status() != "zombie"
        )
    except (psutil.Error, KeyError, TypeError):
        return False
