"""Write and read what sweeps were asked for: a file each, beside their runs. Imports no torch.

    <runs_dir>/.grid-<digest>.json    which runs a command was to train, and the command

Run directories know nothing of runs that have not begun. A sweep writes its file before its first
run, or on a cluster once the queue took its first jobs; whole, and removes it when all of its runs
are at their end. Finished runs that it makes again are not, until their record is another one. The
same command writes the same file, so that nothing piles up; another user's is another file. It is a
note for those who look, and decides nothing: the plan of a sweep never reads it, and deleting it
loses nothing but the view.
"""

from __future__ import annotations

import hashlib
import json
import os
import re
import socket
import stat
import sys
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import suppress
from itertools import zip_longest
from pathlib import Path
from typing import Annotated, Any

import msgspec

from resnests.config.recipe import recipe_values
from resnests.config.schema import Config, config_dict
from resnests.environment import shell_line
from resnests.runs.directory import RunDirectory
from resnests.runs.files import write_atomic
from resnests.runs.record import FINAL, LATEST, is_process
from resnests.runs.weights import weights_file
from resnests.text import as_typed, flat

PREFIX = ".grid-"
SCHEMA = 1
MAX_BYTES, MAX_RUNS = 64_000_000, 1_000_000  # more is nobody's sweep
_PLACE = re.compile(r"([A-Za-z0-9][\w.-]*/){3}[0-9a-f]{8}")  # dataset/arch/variant/recipe

Seconds = Annotated[float, msgspec.Meta(ge=0, le=LATEST)]
Count = Annotated[int, msgspec.Meta(ge=0, le=2**63 - 1)]
Value = str | int | float | None

Kind = tuple[str, ...]  # of runs; no text is one, which would be a sequence of letters
Kinds = tuple[Kind, ...]


class Cell(msgspec.Struct):
    """Runs that differ in their seeds alone, and what tells them from the rest of the sweep."""

    place: str
    seeds: list[Annotated[int, msgspec.Meta(ge=-(2**63), le=2**63 - 1)]]
    weights: str | None = None  # the file that is evaluated
    config: dict[str, Value] = {}
    recipe: dict[str, Any] = {}
    # seed -> digest of the record of a finished run that is made again: until it begins
    replaces: dict[int, str] = {}


class Asked(msgspec.Struct):
    """Holds what a sweep was asked for. A search has no cells: which runs it has is open."""

    schema: int
    task: str
    command: str  # as one types it, in `folder`
    folder: str
    host: str
    pid: int
    process_started: Seconds
    started: Seconds  # Unix seconds, as all times
    overwrite: bool = False  # finished runs are made again, which `command` alone would not do
    waits_for: str | None = None  # what its runs wait for, but where a queue tells that
    config: dict[str, Value] = {}  # what all cells share
    recipe: dict[str, Any] = {}
    cells: list[Cell] = []
    study: str | None = None
    trials: Count = 0
    ended: Count = 0  # of the trials
    pace: Seconds | None = None  # seconds a trial, as measured

    def __post_init__(self) -> None:
        if self.schema != SCHEMA:
            raise ValueError(f"of schema {self.schema}, not {SCHEMA}")
        for cell in self.cells:
            if not _PLACE.fullmatch(cell.place):
                raise ValueError(f"{cell.place!r} is no place of runs")
        if self.count() > MAX_RUNS:
            raise ValueError(f"of more than {MAX_RUNS} runs")

    def count(self) -> int:
        """Return the number of runs."""
        return sum(len(cell.seeds) for cell in self.cells)

    def directories(self, runs_dir: str) -> Iterator[tuple[Cell, int, str]]:
        """Yield cell, seed and path of each run; an analysis is in the directory of its run."""
        for cell in self.cells:
            folder = Path(runs_dir, cell.place)  # without the "./" that no path of a run has
            for seed in cell.seeds:
                yield cell, seed, f"{folder}/seed={seed}"

    def is_alive(self) -> bool:
        """Return whether the process that wrote it works yet, as far as this host can tell."""
        here = self.host == socket.gethostname()
        return here and is_process(self.pid, self.process_started)

    def is_done(self, runs_dir: str) -> bool:
        """Return whether all of it is at its end: the same command would have nothing to do."""
        if self.study is not None:
            return self.ended >= self.trials
        for cell, seed, path in self.directories(runs_dir):
            run = self.run(path)
            record = run.record_or_none()
            if record is None or record.status not in FINAL:
                return False
            if seed in cell.replaces and run.record_digest() == cell.replaces[seed]:
                return False
        return True

    def run(self, path: str) -> RunDirectory:
        """Return where the record of the run at `path` is: an analysis has its own."""
        run = RunDirectory(path)
        return run.analysis if self.task == "analyze" else run


def write_asked(
    configs: Sequence[Config], waits_for: str | None = None, replaces: Sequence[str | None] = ()
) -> None:
    """Leave what a sweep of `configs` is asked for beside its runs; `replaces` has the digest of
    the record that each of them starts afresh over.
    """
    given = [*zip_longest(configs, replaces)]
    for runs_dir in {config.runs_dir for config in configs}:
        mine = [pair for pair in given if pair[0].runs_dir == runs_dir]
        cells, first = _cells(mine), mine[0][0]
        identity = _identity(first.task, cells)
        shared, recipe = _shared([c.config for c in cells]), _shared([c.recipe for c in cells])
        more = {"waits_for": waits_for, "overwrite": first.trainer.overwrite}
        asked = _asked(first.task, config=shared, recipe=recipe, cells=cells, **more)
        _write(Path(runs_dir), identity, asked)


def remove_asked(configs: Sequence[Config]) -> None:
    """Remove what an earlier process left that was asked for the same, as nothing of it is to do.

    It may have been asked to make finished runs again, which nobody does any more; but jobs of a
    cluster, or a process of another host, may be about to.
    """
    for runs_dir in {config.runs_dir for config in configs}:
        cells = _cells([(config, None) for config in configs if config.runs_dir == runs_dir])
        file = _file(Path(runs_dir), _identity(configs[0].task, cells))
        with suppress(OSError, ValueError):
            asked = read_asked(file)
            is_elsewhere = asked.host != socket.gethostname() or "cluster.name" in asked.config
            if not asked.is_alive() and not (asked.overwrite and is_elsewhere):
                file.unlink()


def write_search(config: Config, ended: int, pace: float | None) -> None:
    """Leave how far a search is beside its runs; where all trials have ended, nothing, of others
    who worked at the same study, either.
    """
    study, trials = config.tune.study, config.tune.trials
    more = {"study": study, "trials": trials, "ended": ended, "pace": pace}
    asked = _asked(config.task, config={"runs_dir": config.runs_dir}, **more)
    _write(Path(config.runs_dir), ["tune", study], asked)
    for path in find_asked(config.runs_dir):
        with suppress(OSError, ValueError):
            other = read_asked(path)
            if other.study == study and other.trials <= ended:
                path.unlink()


def remove_done(runs_dir: str) -> None:
    """Remove the files of sweeps all of whose runs are at their end.

    One of another living process stays, as it may be about to start its runs afresh.
    """
    for path in find_asked(runs_dir):
        with suppress(OSError, ValueError):
            asked = read_asked(path)
            if (asked.pid == os.getpid() or not asked.is_alive()) and asked.is_done(runs_dir):
                path.unlink()


def find_asked(runs_dir: str) -> list[Path]:
    """Return the files of sweeps in `runs_dir`."""
    return sorted(Path(runs_dir).glob(f"{PREFIX}*.json"))


def read_asked(path: Path) -> Asked:
    """Return what a sweep was asked for; raise an OSError or a ValueError that says why not.

    A file may be anything: what is no file, or too large, is not opened, and a link not followed.
    """
    found = path.lstat()
    if not stat.S_ISREG(found.st_mode) or found.st_size > MAX_BYTES:
        raise ValueError("no file of a sweep's")
    try:
        return msgspec.json.decode(path.read_bytes(), type=Asked)
    except RecursionError as error:
        raise ValueError("nested too deep") from error
    except msgspec.MsgspecError as error:  # no ValueError in earlier versions
        raise ValueError(str(error)) from error


def _asked(task: str, **more: Any) -> Asked:
    import psutil

    overwrite = "trainer.overwrite="
    words = [word for word in sys.argv[1:] if not word.lstrip("+").startswith(overwrite)]
    return Asked(
        schema=SCHEMA,
        task=task,
        command=shell_line(words),
        folder=os.getcwd(),
        host=socket.gethostname(),
        pid=os.getpid(),
        process_started=psutil.Process().create_time(),
        started=time.time(),
        **more,
    )


def _write(runs_dir: Path, identity: list[Any], asked: Asked) -> None:
    """Write the file, or a warning: no run depends on it."""
    try:
        write_atomic(_file(runs_dir, identity), msgspec.json.encode(asked))
    except OSError as error:
        unknown = f"--status does not know what this sweep is to do ({error.strerror})"
        print(f"warning: {runs_dir}: {unknown}", file=sys.stderr)


def _file(runs_dir: Path, identity: list[Any]) -> Path:
    digest = hashlib.sha256(json.dumps([os.getuid(), *identity]).encode()).hexdigest()[:12]
    return runs_dir / f"{PREFIX}{digest}.json"


def _identity(task: str, cells: Sequence[Cell]) -> list[Any]:
    return [task, [(cell.place, sorted(cell.seeds)) for cell in cells]]


def _cells(configs: Sequence[tuple[Config, str | None]]) -> list[Cell]:
    """Return the cells of `configs`, each with the digest of what it replaces."""
    cells: dict[tuple[str, str | None], Cell] = {}
    for config, replaced in configs:
        run = RunDirectory.of(config)
        path = run.analysed.path if config.task == "analyze" else run.path
        weights = str(weights_file(config)) if config.task == "evaluate" else None
        key = str(path.parent.relative_to(config.runs_dir)), weights
        if key not in cells:
            values = {name: as_typed(value) for name, value in flat(config_dict(config))}
            del values["seed"]
            cells[key] = Cell(key[0], [], weights, values, recipe_values(config), {})
        cells[key].seeds.append(config.seed)
        if replaced:
            cells[key].replaces[config.seed] = replaced
    return list(cells.values())


def _shared(dicts: Sequence[dict[str, Any]]) -> dict[str, Any]:
    """Take what all `dicts` share out of them; return it."""
    first, *others = dicts
    shared = {k: v for k, v in first.items() if all(k in d and d[k] == v for d in others)}
    for one in dicts:
        for key in shared:
            del one[key]
    return shared


def epochs_left(progress: Mapping[str, Any]) -> float:
    """Return how many epochs a run takes yet, from a heartbeat that has an epoch."""
    return progress["epochs"] - progress["epoch"] + 1 - progress["step"] / progress["steps"]


def seconds_an_epoch(progress: Mapping[str, Any]) -> float | None:
    """Return how long an epoch of a run takes, None where its heartbeat does not tell."""
    if "epoch" not in progress or progress.get("seconds_left") is None:
        return None
    return progress["seconds_left"] / max(epochs_left(progress), 1e-6)


def kinds_of(task: str, dataset: str, arch: str, recipe: str = "", is_fresh: bool = False) -> Kinds:
    """Return kinds of runs whose epochs take alike, the most telling first. A fresh run began since
    its sweep did, on the devices of that. Another architecture tells nothing.
    """
    fresh = ("on its devices",) if is_fresh else ()
    own: list[Kind] = [(task, dataset, arch, recipe), (task, dataset, arch, "")]
    return tuple(dict.fromkeys([*(kind + fresh for kind in own), *own]))


def seconds_left(
    known: Sequence[tuple[Kinds, float]], running: Sequence[float], waiting: Mapping[Kinds, float]
) -> float | None:
    """Return how long a grid takes yet, from what was measured; None where that says nothing.

    `known` has kinds of runs with seconds an epoch, `running` the seconds that runs at work take
    yet, and `waiting` how many epochs of each kind have not begun. Each run is of several kinds,
    the most telling first: it takes as long as those of the first kind of which any is known.
    """
    by_kind: dict[Kind, list[float]] = {}
    for kinds, seconds in known:
        for kind in kinds:
            by_kind.setdefault(kind, []).append(seconds)
    left = sum(running)
    for kinds, epochs in waiting.items():
        some = next((by_kind[kind] for kind in kinds if kind in by_kind), None)
        if some is None:
            return None
        left += epochs * sum(some) / len(some)
    return left / max(1, len(running))
