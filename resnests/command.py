"""What the command line shares: the schema that Hydra composes against, and one line for a user's mistake."""

from __future__ import annotations

import sys
from collections.abc import Callable

from hydra.core.config_store import ConfigStore

from resnests.config import Config, UserError

SWEEPER = "hydra_plugins.resnests_sweeper.grid_sweeper.GridSweeper"


def register() -> None:
    """Make the schema and the sweeper known to Hydra, whatever directory its configuration comes from."""
    store = ConfigStore.instance()
    store.store(name="schema", node=Config)
    store.store(group="hydra/sweeper", name="grid", node={"_target_": SWEEPER, "params": {}})


def guarded(work: Callable[[], int]) -> int:
    """The exit status of `work`, or 2 and one line on stderr where the user must mend something."""
    try:
        return work()
    except UserError as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
