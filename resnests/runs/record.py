"""Define record.json as a type: how a run stands, what it measured, and where its numbers come
from.
"""

from __future__ import annotations

import dataclasses
import json
import math
import socket
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from functools import cache
from pathlib import Path
from typing import Any, TypeVar, cast, get_args, get_type_hints

import msgspec

from resnests.config.recipe import recipe_hash, recipe_values
from resnests.config.schema import Config, config_dict
from resnests.errors import UserError

SCHEMA = 1
STATUSES = ("running", "complete", "diverged", "failed", "killed", "interrupted")
FINAL = ("complete", "diverged")  # the same command would only compute the same again
LATEST = 253_000_000_000  # Unix seconds, of the year 9987: later times have no date
METRICS = ("train_loss", "train_accuracy", "test_loss", "test_accuracy")  # accuracies in percent

T = TypeVar("T")


class BrokenRecord(ValueError):
    """Says that a record.json is torn, foreign or inconsistent."""


class UnreadableRun(BrokenRecord, UserError):
    """Says that a run is there and cannot be read: another user's, or on a disk that fails."""

    def __init__(self, path: Path, error: OSError) -> None:
        super().__init__(f"{path}: cannot be read ({error.strerror}); it belongs to {owner(path)}")


def owner(path: Path) -> str:
    """Return the name of the user who owns `path`, or the first folder above it that one can ask
    about.
    """
    for place in (path, *path.absolute().parents):
        try:
            return place.owner()
        except KeyError:  # a user without a name
            return f"user {place.stat().st_uid}"
        except OSError:
            continue
    return "nobody"


class Document:
    """Makes a dataclass a JSON file of schema 1."""

    def to_json(self) -> str:
        """Return the text; raise a ValueError for numbers that are not finite, which JSON does not
        have.
        """
        values = {"schema": SCHEMA} | dataclasses.asdict(cast(Any, self))
        return json.dumps(values, indent=1, allow_nan=False) + "\n"

    @classmethod
    def object_of(cls, text: bytes) -> dict[str, Any]:
        """Return the JSON object in `text`; raise BrokenRecord where it is none of our schema."""
        try:
            raw = msgspec.json.decode(text)  # as results/ read it: no NaN, nor a number like 1e400
        except (msgspec.MsgspecError, ValueError, RecursionError) as error:
            raise BrokenRecord(f"no JSON ({error})") from error
        if not isinstance(raw, dict) or raw.get("schema") != SCHEMA:
            raise BrokenRecord(f"no {cls.__name__.lower()} of schema {SCHEMA}")
        return raw


@dataclass
class Provenance:
    """Says where the numbers of a run come from; times are Unix seconds.

    A run that ended before it could say so itself has nothing but the host.
    """

    git_commit: str | None = None  # of the code; None outside a checkout
    git_dirty: bool | None = None  # whether the code was changed since
    versions: dict = field(default_factory=dict)  # package -> version
    # the user's own repositories, each {"repository", "commit", "dirty"}: those of the working
    # directory and of the parts that were brought
    own_code: list = field(default_factory=list)
    device: str | None = None
    device_name: str | None = None
    threads: int | None = None
    host: str | None = None
    platform: str | None = None
    command: str | None = None
    job: str | None = None  # number of a batch system
    pid: int | None = None
    process_started: float | int | None = None
    started: float | int | None = None
    ended: float | int | None = None


@dataclass
class Record(Document):
    """Holds the content of record.json. What was not measured is None."""

    task: str  # train, evaluate or analyze
    status: str  # one of STATUSES
    dataset: str
    arch: str
    variant: str
    seed: int
    recipe: str
    recipe_values: dict  # see config/recipe.py
    parameters: int | None = None  # trainable ones
    frozen_parameters: int | None = None  # that init.freeze keeps as they are
    epochs: int = 0  # that are done
    train_loss: float | int | None = None  # of the last epoch, mean cross-entropy in nats
    train_accuracy: float | int | None = None
    test_loss: float | int | None = None
    test_accuracy: float | int | None = None
    seconds: float | int = 0.0  # of training and evaluation, or of the evaluation of given weights
    images_per_second: float | int | None = None
    error: str | None = None  # why it ended, where it failed
    config: dict = field(default_factory=dict)  # the whole configuration
    provenance: Provenance = field(default_factory=Provenance)
    weights: str | None = None  # the file that was evaluated
    weights_sha256: str | None = None
    mean: list | None = None  # that images were normalised with, of values scaled to [0, 1]
    std: list | None = None
    num_classes: int | None = None  # that were counted, or asked for
    peak_memory_bytes: int | None = None
    peak_device_memory_bytes: int | None = None
    arithmetic: str | None = None  # of convolutions and matrix products on the device, as fp32
    classes: list | None = None  # their names in the order of their labels, where the data has any
    images: dict = field(default_factory=dict)  # split -> number of images of each class
    image_size: list | None = None  # height and width in pixels
    measured: float | int | None = None  # when a finished run was measured again (Unix seconds)
    # name -> {"val": number, "test": number, "definition": what tells how it is measured}
    metrics: dict = field(default_factory=dict)

    @classmethod
    def of(cls, config: Config, provenance: Provenance) -> Record:
        """Return the record of a run that starts now."""
        return cls(
            task=config.task,
            status="running",
            dataset=config.dataset.name,
            arch=config.arch.name,
            variant=config.variant.name,
            seed=config.seed,
            recipe=recipe_hash(config),
            recipe_values=recipe_values(config),
            config=config_dict(config),
            provenance=provenance,
        )

    @classmethod
    def from_json(cls, text: bytes) -> Record:
        """Return the record in `text`, with its types checked; raise BrokenRecord.

        Keys that this version does not know are passed over.
        """
        raw = cls.object_of(text)
        raw.setdefault("task", "train")  # the first records did not say
        raw["provenance"] = checked(Provenance, raw.get("provenance"))
        record = checked(cls, raw)
        require_sound(record)
        return record

    def is_alive(self, progress: dict[str, Any]) -> bool:
        """Return whether the process of a running record still works.

        Asks the operating system on the host that the run is on, and elsewhere believes a
        recent heartbeat.
        """
        if self.provenance.host != socket.gethostname():
            return is_recent(progress)
        return is_process(self.provenance.pid, self.provenance.process_started)


def is_process(pid: int | None, started: float | None) -> bool:
    """Return whether the process of this number, which started then, lives on this host."""
    import psutil

    if pid is None or started is None:
        return False
    try:
        process = psutil.Process(pid)
        same = abs(process.create_time() - started) < 2
        return same and process.status() != psutil.STATUS_ZOMBIE
    except (psutil.Error, ValueError, OverflowError):  # no process can have such a number
        return False


def _require_lists(record: Any) -> None:
    """Raise BrokenRecord where a list holds other things than it should."""
    counts = {f"images.{split}": value for split, value in record.images.items()}
    names = ("mean", "std", "image_size")
    for name, value in (counts | {name: getattr(record, name) for name in names}).items():
        numbers = isinstance(value, list) and all(isinstance(n, int | float) for n in value)
        if not numbers and value is not None:
            raise BrokenRecord(f"{name} is {value!r:.60}, no list of numbers")
    if not all(isinstance(name, str) for name in record.classes or []):
        raise BrokenRecord(f"classes is {record.classes!r:.60}, no list of names")


def require_sound(record: Any) -> None:
    """Raise BrokenRecord unless what has the fields of Record has a known status, times that have a
    date, and, of a complete run, its numbers.
    """
    if record.status not in STATUSES:
        raise BrokenRecord(f"unknown status {record.status!r}")
    _require_lists(record)
    for name in ("process_started", "started", "ended"):
        when = getattr(record.provenance, name)
        if when is not None and not 0 <= when <= LATEST:
            raise BrokenRecord(f"provenance.{name} is {when!r}, no time in Unix seconds")
    if not 0 <= record.seconds <= LATEST:
        raise BrokenRecord(f"seconds is {record.seconds!r}, no duration")
    for name in ("parameters", "frozen_parameters", *METRICS):
        value = getattr(record, name)
        low, high = (-1e300, 1e300) if name in METRICS else (0, 1e15)
        if value is not None and (value < low or value > high):
            raise BrokenRecord(f"{name} is beyond what it can be")
    _require_metrics(record.metrics)
    if record.status == "complete":
        given = record.task == "evaluate"  # given weights have no training of ours
        for name in (*(METRICS[2:] if given else METRICS), "parameters"):
            value = getattr(record, name)
            if value is None or not math.isfinite(value):
                raise BrokenRecord(f"{name} of a complete run is {value!r}")


def _require_metrics(metrics: dict[str, Any]) -> None:
    """Raise BrokenRecord unless what was measured beside loss and accuracy are numbers."""
    for name, found in metrics.items():
        if not isinstance(found, dict) or name in ("loss", "accuracy"):
            raise BrokenRecord(f"metrics.{name} is no metric of a run's own")
        for split in ("val", "test"):
            value = found.get(split)
            ok = value is None or (isinstance(value, int | float) and abs(value) <= 1e300)
            if not ok:
                raise BrokenRecord(f"metrics.{name}.{split} is {value!r:.40}, no number")
        if not isinstance(found.get("definition", ""), str):
            raise BrokenRecord(f"metrics.{name}.definition is no text")


# Finding them takes longer than all else of reading a record.
_hints: Callable[[Any], dict[str, Any]] = cache(get_type_hints)


def is_heartbeat(progress: dict[str, Any]) -> bool:
    """Return whether a heartbeat, which anybody may have written, can be shown: where it has an
    epoch it has all numbers, and they are finite, but for the loss.
    """
    names = ("epoch", "epochs", "step", "steps", "accuracy", "images_per_second")
    values = [progress.get(name) for name in names if "epoch" in progress]
    left = progress.get("seconds_left")
    values += [0 if left is None else left, progress.get("time", 0)]
    numbers = all(isinstance(value, int | float) and abs(value) < 1e15 for value in values)
    texts = [progress.get(name) for name in ("state", "device", "host", "job")]
    if not numbers or not all(text is None or isinstance(text, str) for text in texts):
        return False
    if "epoch" not in progress:
        return True
    return (
        isinstance(progress.get("loss"), float) and min(progress["epochs"], progress["steps"]) >= 1
    )


def is_recent(progress: dict[str, Any], stale: float = 60.0) -> bool:
    """Return whether a heartbeat is at most `stale` seconds away; from far ahead it is no better
    than an old one, as its clock is wrong.
    """
    last = progress.get("time")
    return isinstance(last, int | float) and abs(time.time() - last) < stale


def checked(kind: type[T], raw: Any) -> T:
    """Return the dataclass `kind` of a JSON object; raise BrokenRecord where a type is wrong."""
    if not isinstance(raw, dict):
        raise BrokenRecord(f"{kind.__name__.lower()} is {raw!r}, not an object")
    hints = _hints(kind)
    known = {name: raw[name] for name in hints if name in raw}
    for name, value in known.items():
        types = get_args(hints[name]) or (hints[name],)
        if not isinstance(value, types) or (isinstance(value, bool) and bool not in types):
            raise BrokenRecord(f"{name} is {value!r}, not of type {hints[name]}")
    try:
        return kind(**known)
    except TypeError as error:
        raise BrokenRecord(str(error).partition("() ")[2]) from error
