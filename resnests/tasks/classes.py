"""Check that given weights were trained on the classes that they are evaluated on."""

from __future__ import annotations

import json
from collections.abc import Sequence
from itertools import zip_longest
from pathlib import Path
from typing import Any

from resnests.config.schema import Config
from resnests.errors import UserError
from resnests.runs.directory import RunDirectory
from resnests.runs.weights import weights_file


def require_same_classes(config: Config, classes: Sequence[str] | None) -> None:
    """Raise a UserError that names the first class of the images, in the order of their labels,
    that is not the one on which given weights were trained.

    As many other classes, or the same in another order, would give a number that means nothing.
    Weights and images whose classes nobody wrote down are not compared.
    """
    if config.weights is None or config.task not in ("evaluate", "analyze") or classes is None:
        return
    trained = _trained_on(weights_file(config).parent)
    if trained is None:
        return
    for label, (was, now) in enumerate(zip_longest(trained, classes, fillvalue="none")):
        if was != now:
            expected = "images of the classes that the network was trained on"
            found = f"but label {label} is {now}, and was {was}"
            raise UserError(f"weights={config.weights}: expected {expected}, {found}")


def _trained_on(folder: Path) -> list[Any] | None:
    """Return the names of classes that a run or an export in `folder` has on record."""
    record = RunDirectory(folder).record_or_none()
    if record is not None:
        return record.classes
    try:
        about = json.loads((folder / "config.json").read_bytes())
    except (OSError, ValueError):
        return None
    classes = about.get("classes") if isinstance(about, dict) else None
    return classes if isinstance(classes, list) else None
