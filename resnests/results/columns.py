"""Turn the records of many runs into the columns of one frame. Imports no torch.

The seeds of a cell share nearly all of their configuration and of what they were run with. That
part of a record is only compared, byte by byte: it is parsed, checked and flattened once for all
runs that have it. What runs do not share is checked by type while it is parsed.
"""

from __future__ import annotations

import dataclasses
import json
import sys
from collections.abc import Sequence
from typing import Any, NamedTuple, get_type_hints

import msgspec
import pandas as pd

from resnests.runs.record import (
    METRICS,
    SCHEMA,
    BrokenRecord,
    Provenance,
    Record,
    checked,
    require_sound,
)
from resnests.text import as_typed, flat

# What a run is, how it ended, and what it measured: the columns that every frame has, in this
# order.
COLUMNS = (
    "path", "dataset", "arch", "variant", "seed", "recipe", "status", "weights", "weights_sha256",
    "parameters", "epochs", "epoch", *METRICS, "seconds", "images_per_second", "error",
    "recipe_values",
)  # fmt: skip
TIMES = ("provenance.started", "provenance.ended", "provenance.process_started")  # seconds
PLANNED = "planned"  # the status of a run that a sweep was asked for, and that has not begun
# Keys of the configuration that are columns already.
_LABELS = ("dataset.name", "arch.name", "variant.name", "seed", "task", "weights")
_NOT_PLANNED = ("provenance.", "analysis.")  # columns of what runs did
_PROVENANCE = [item.name for item in dataclasses.fields(Provenance)]
_OWN = ("job", "pid", "process_started", "started", "ended")  # of one run's provenance alone
_SHARED = [name for name in _PROVENANCE if name not in _OWN]


def _struct(kind: type, replaced: dict[str, Any]) -> type[msgspec.Struct]:
    """Return the type that parses the dataclass `kind`, with `replaced` types for some fields."""
    fields: list[Any] = []
    hints = get_type_hints(kind) | replaced
    for item in dataclasses.fields(kind):
        name, default = item.name, item.default
        if item.default_factory is not dataclasses.MISSING:
            default = msgspec.field(default_factory=item.default_factory)
        if hints[name] is msgspec.Raw:
            default = msgspec.Raw(b"null")
        required = default is dataclasses.MISSING
        fields.append((name, hints[name]) if required else (name, hints[name], default))
    return msgspec.defstruct(kind.__name__, fields, kw_only=True)


_ProvenanceColumns = _struct(Provenance, dict.fromkeys(_SHARED, msgspec.Raw))
_RecordColumns = msgspec.defstruct(
    "RecordColumns",
    [("schema", int), ("task", str, "train"), ("provenance", _ProvenanceColumns)],  # see Record
    bases=(_struct(Record, {"config": dict[str, msgspec.Raw], "recipe_values": msgspec.Raw}),),
    kw_only=True,
)
_decoder = msgspec.json.Decoder(_RecordColumns)


def is_setting(column: str) -> bool:
    """Return whether a column is of what a run was asked for, not of what it is, did or measured.

    Those that name a run (dataset, arch, variant, seed) are no settings either.
    """
    return "." in column and not column.startswith((*_NOT_PLANNED, "definition."))


class Row(NamedTuple):
    """Holds a run of a frame."""

    own: tuple[Any, ...]  # values of COLUMNS, then of _OWN
    place: int  # among the configurations that runs share
    more: dict[str, Any]  # further columns, which not every run has

    @property
    def status(self) -> str:
        return self.own[COLUMNS.index("status")]


def decode(text: bytes) -> Any:
    """Return the record in `text`, of which what runs share is not parsed yet; raise
    BrokenRecord.
    """
    try:
        record: Any = _decoder.decode(text)
    except (msgspec.MsgspecError, ValueError, RecursionError) as error:
        Record.from_json(text)  # which says it in our words
        raise BrokenRecord(str(error)) from error
    if record.schema != SCHEMA:
        raise BrokenRecord(f"no record of schema {SCHEMA}")
    require_sound(record)
    return record


class Columns:
    """Keeps what the runs of a frame share, each configuration once."""

    def __init__(self) -> None:
        self.places: dict[Any, int] = {}
        self.shared: list[dict[str, Any]] = []
        self.recipes: dict[bytes, str] = {}

    def row(self, record: Any, path: str, status: str, more: dict[str, Any]) -> Row:
        """Return the row of a record that was decoded; raise BrokenRecord."""
        given = {"path": path, "status": status, "epoch": record.epochs}
        given["recipe_values"] = self._recipe(bytes(record.recipe_values))
        if record.task == "evaluate" and not record.weights:
            given["weights"] = "unnamed file"
        own = [given[name] if name in given else getattr(record, name) for name in COLUMNS]
        own = [sys.intern(value) if type(value) is str else value for value in own]
        own += [getattr(record.provenance, name) for name in _OWN]
        if record.frozen_parameters:
            more = more | {"frozen_parameters": record.frozen_parameters}
        return Row(tuple(own), self._place(record), more)

    def planned(self, given: dict[str, Any], config: dict[str, Any]) -> list[Row]:
        """Return the rows of runs that have not begun: `given` has a list of paths and one of
        seeds, and what else is given they share.
        """
        place = len(self.shared)
        known = {k: v for k, v in config.items() if "." in k and not k.startswith(_NOT_PLANNED)}
        self.shared.append({k: v for k, v in known.items() if k not in _LABELS})
        rest = {"status": PLANNED, "epochs": 0, "epoch": 0, "seconds": 0.0} | given
        rows = []
        for path, seed in zip(given["path"], given["seed"], strict=True):
            own = rest | {"path": path, "seed": seed}
            values = [own.get(name) for name in COLUMNS] + [None] * len(_OWN)
            rows.append(Row(tuple(values), place, {}))
        return rows

    def config(self, row: Row) -> dict[str, Any]:
        """Return the configuration of a run and what it shares of its provenance, flattened."""
        return self.shared[row.place]

    def frame(self, rows: Sequence[Row]) -> pd.DataFrame:
        """Return the frame of `rows`."""
        names = [*COLUMNS, *(f"provenance.{name}" for name in _OWN)]
        values = zip(*(row.own for row in rows), strict=True)
        own = pd.DataFrame(dict(zip(names, values, strict=True)))
        # Those of rows alone: others may lack keys, and a whole number beside nothing is a float.
        used = {place: i for i, place in enumerate(dict.fromkeys(row.place for row in rows))}
        shared = pd.DataFrame([self.shared[place] for place in used])
        shared = shared.take([used[row.place] for row in rows])
        more = pd.DataFrame([row.more for row in rows])
        shared = shared.drop(columns=more.columns, errors="ignore")  # as no configuration has them
        frame = pd.concat([own, shared.reset_index(drop=True), more], axis=1)
        config = [name for name in shared if not name.startswith("provenance.")]
        provenance = [name for name in (*shared, *own) if name.startswith("provenance.")]
        provenance.sort(key=lambda name: _PROVENANCE.index(name.split(".")[1]))
        types = {"parameters": "Int64"} | dict.fromkeys(METRICS, float)
        return frame[[*COLUMNS, *config, *provenance, *more]].astype(types)

    def _place(self, record: Any) -> int:
        """Return where the configuration of `record` is among those that runs share."""
        config = {key: bytes(raw) for key, raw in record.config.items() if key not in _LABELS}
        provenance = [bytes(getattr(record.provenance, name)) for name in _SHARED]
        key = (*config.items(), *provenance)
        if key not in self.places:
            row = _flattened(config, dict(zip(_SHARED, provenance, strict=True)))
            self.places[key] = len(self.shared)
            self.shared.append(row)
        return self.places[key]

    def _recipe(self, raw: bytes) -> str:
        """Return the recipe values as JSON in one order of keys; raise BrokenRecord."""
        if raw not in self.recipes:
            values = msgspec.json.decode(raw)
            if not isinstance(values, dict):
                raise BrokenRecord(f"recipe_values is {values!r}, not an object")
            self.recipes[raw] = json.dumps(values, sort_keys=True)
        return self.recipes[raw]


def _flattened(config: dict[str, bytes], provenance: dict[str, bytes]) -> dict[str, Any]:
    """Return the values of both under their dotted keys; raise BrokenRecord."""
    tree = {key: msgspec.json.decode(raw) for key, raw in config.items()}
    taken = {*_LABELS, *COLUMNS}  # the latter are no keys of ours: whoever wrote them does no harm
    row = {
        key: as_typed(value)
        for key, value in flat(tree)
        if key not in taken and not key.startswith("provenance.")
    }
    values = {name: msgspec.json.decode(raw) for name, raw in provenance.items() if raw != b"null"}
    known = dataclasses.asdict(checked(Provenance, values))
    for key, value in flat({name: known[name] for name in _SHARED}):
        row[f"provenance.{key}"] = None if value is None else as_typed(value)
    return row
