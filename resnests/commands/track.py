"""Finished runs into a tracker, so that nobody has to have thought of it before they started."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any, cast

from omegaconf import OmegaConf

from resnests.config.compose import conf_dir
from resnests.errors import UserError
from resnests.results.frame import read_runs
from resnests.results.select import select
from resnests.runs.directory import find_runs
from resnests.trackers.echo import (
    TRACKERS,
    Echo,
    build_tracker,
    drawings,
    figures_of,
    require_installed,
)


def export(root: str, names: Sequence[str], query: Sequence[str] = ()) -> None:
    """Send to each tracker what it lacks of the runs below `root` that `query` chooses and that
    are over, by the settings
    that a run was trained with or those of conf/logger; then the figures over all of them. Raises
    a UserError.
    """
    meant = set(select(read_runs(root)[0], query)["path"]) if query else None
    found = [run for run in find_runs(root) if meant is None or str(run.path) in meant]
    runs = [(run, record) for run in found if (record := run.sound_record())]
    over = [(run, record) for run, record in runs if record.status != "running"]
    if not over:
        raise UserError(f"{root}: no run that is over; expected a directory of them")
    for name in names:
        default = _settings(name)
        trained = [record.config.get("logger", {}).get(name) for _, record in over]
        settings = [known for values in trained if (known := values or default)]
        if len(settings) < len(over):
            expected = f"one of {', '.join(TRACKERS)}, or one that the runs were trained with"
            raise UserError(f"--to {name}: expected {expected}")
        require_installed(name, settings[-1])
        try:
            for (run, record), values in zip(over, settings, strict=True):
                Echo(run, build_tracker(name, values)).end(record)
                run.unsent(name).unlink(missing_ok=True)
            tracker = build_tracker(name, settings[-1])
            tracker.start(figures_of(Path(root)))
            pictures = {drawing.key: drawing.render("png") for drawing in drawings(Path(root))}
            tracker.end("complete", {}, pictures)
        except Exception as error:
            reason = f"{type(error).__name__}: {error}".splitlines()[0]
            raise UserError(f"--to {name}: {reason}") from error
        left = f", {len(runs) - len(over)} still run" if len(over) < len(runs) else ""
        print(f"{name} has {len(over)} runs and {len(pictures)} figures{left}")


def _settings(name: str) -> dict[str, Any] | None:
    """What conf/logger says, None where it does not know the tracker."""
    file = conf_dir() / "logger" / f"{name}.yaml"
    if not file.is_file():
        return None
    return cast(dict[str, Any], OmegaConf.to_container(OmegaConf.load(file), resolve=True))[name]
