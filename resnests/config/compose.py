"""What Hydra needs to know: the schema it composes against, our sweeper, and where conf/ is; and
what it says of a mistake, in a line.
"""

from __future__ import annotations

import difflib
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from hydra.core.config_store import ConfigStore
from omegaconf import OmegaConf

from resnests.config.schema import hydra_schema

SWEEPER = "hydra_plugins.resnests_sweeper.grid_sweeper.GridSweeper"


def register() -> None:
    """Make the schema and the sweeper known to Hydra, whatever directory its configuration comes
    from.
    """
    store = ConfigStore.instance()
    store.store(name="schema", node=hydra_schema())
    store.store(group="hydra/sweeper", name="grid", node={"_target_": SWEEPER, "params": {}})


def conf_dir() -> Path:
    """conf/ inside an installed package, or beside it in a checkout."""
    package = Path(__file__).parent.parent
    inside = package / "conf"
    return inside if inside.is_dir() else package.parent / "conf"


def in_one_line(error: Exception) -> str:
    """What Hydra says of an override that cannot be, without the structure of our code, and which
    key may have been meant.
    """
    said = [line.strip() for e in (error, error.__cause__) if e for line in str(e).splitlines()]
    skipped = ["full_key:", "reference_type=", "object_type=", "Config search path:", "provider="]
    if any(" not in '" in line for line in said):
        skipped.append("To append")  # to what has no other keys
    kept = [line for line in said if line and not line.startswith(tuple(skipped))]
    unknown = re.match("Could not override '(.+)'", kept[0])
    known = _keys(OmegaConf.to_container(OmegaConf.structured(hydra_schema())))
    close = difflib.get_close_matches(unknown[1], known, 1, 0.8) if unknown else []
    return " ".join([*kept, *(f"(did you mean {key}?)" for key in close)])


def _keys(node: Any, prefix: str = "") -> Iterator[str]:
    for key, value in node.items() if isinstance(node, dict) else ():
        yield prefix + key
        yield from _keys(value, f"{prefix}{key}.")
