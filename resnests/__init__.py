"""Train, compare and publish grids of dataset x architecture x variant x seed.

Names are imported when they are first used, so that a command line starts fast.
"""

import importlib
from typing import Any

__version__ = "0.2.0"
_HOMES = {
    "build_model": "resnests.models.resnet",
    "load_model": "resnests.sharing.load",
    "load_runs": "resnests.results.frame",
}
__all__ = sorted(_HOMES)


def __getattr__(name: str) -> Any:
    if name not in _HOMES:
        raise AttributeError(f"module 'resnests' has no attribute {name!r}")
    return getattr(importlib.import_module(_HOMES[name]), name)
