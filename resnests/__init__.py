"""Train, compare and publish grids of dataset x architecture x variant x seed. Names are
imported when first used.
"""

import importlib
from typing import Any

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
