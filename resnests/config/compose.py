"""What Hydra needs to know: the schema it composes against, our sweeper, and where conf/ is."""

from __future__ import annotations

from pathlib import Path

from hydra.core.config_store import ConfigStore

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
