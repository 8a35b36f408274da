"""What a user brings by its import path: found, called, and told apart from what it was before.

Errors are one line that names the key and says what is wrong, and where in the user's file.
"""

from __future__ import annotations

import hashlib
import importlib
import importlib.machinery
import importlib.util
import inspect
import os
import sys
import traceback
from collections.abc import Callable, Iterator
from functools import cache
from importlib.machinery import ModuleSpec
from pathlib import Path
from typing import Any

from resnests.config.parts import Part
from resnests.errors import UserError

# Their versions are on record with every run, so that their source is no part of a recipe.
ON_RECORD = ("torch", "torchvision", "numpy", "resnests")


def build(group: str, part: Part, *args: Any, **offered: Any) -> Any:
    """What part._target_ makes of `args`, of part.args, and of those `offered` that it takes.

    Nested `_target_`s among part.args are built before it. Raises a UserError.
    """
    from hydra.errors import InstantiationException
    from hydra.utils import instantiate

    wanted = {key: value for key, value in offered.items() if takes(group, part, key)}
    call = {"_target_": part.target, "_convert_": "all", **part.args}
    try:
        return instantiate(call, *args, **wanted)
    except UserError:
        raise
    except Exception as error:
        cause = error.__cause__ if isinstance(error, InstantiationException) else error
        if isinstance(cause, UserError):
            raise cause from error
        raise broken(f"{group}._target_={part.target}", cause or error) from error


def broken(what: str, error: BaseException) -> UserError:
    """`error` of a user's code as one line that says where in it."""
    reason = f"{type(error).__name__}: {error}".splitlines()[0]
    frames = traceback.extract_tb(error.__traceback__)
    place = f" ({frames[-1].filename}, line {frames[-1].lineno})" if frames else ""
    return UserError(f"{what}: {reason}{place}")


def takes(group: str, part: Part, key: str) -> bool:
    """Whether part._target_ has a parameter `key`, by name or among any others (**kwargs)."""
    found = find(group, part)
    try:
        parameters = inspect.signature(found).parameters
    except ValueError:  # some built-ins have no signature
        return True
    return key in parameters or any(p.kind is p.VAR_KEYWORD for p in parameters.values())


def find(group: str, part: Part) -> Callable[..., Any]:
    """The callable that part._target_ names; raises a UserError."""
    if (here := os.getcwd()) not in sys.path:
        sys.path.append(here)
    what = f"{group}._target_={part.target}"
    module, _, rest = str(part.target).partition(".")
    try:
        found: Any = importlib.import_module(module)
        for name in filter(None, rest.split(".")):
            if not hasattr(found, name) and inspect.ismodule(found):
                importlib.import_module(f"{found.__name__}.{name}")
            found = getattr(found, name)
    except Exception as error:
        raise broken(f"{what}: cannot be imported", error) from error
    if not callable(found):
        raise UserError(f"{what}: expected something to call, not {found!r}")
    return found


def code_digest(part: Part) -> str | None:
    """Eight hexadecimal digits of the source of all that `part` brings, None where that is nothing.

    Reads files, and imports nothing. The source of `package.module.Name` is the file of the module,
    and that of `package.Name` all Python files of the package.
    """
    files = [file for target in sorted(set(_targets(part))) for file in source_files(target)]
    if not files:
        return None
    digest = hashlib.sha256()
    for path in files:
        digest.update(path.read_bytes())
    return digest.hexdigest()[:8]


def _targets(part: Part) -> Iterator[str]:
    pending: list[Any] = [{"_target_": part.target}, part.args]
    while pending:
        value = pending.pop()
        if isinstance(value, dict):
            pending += value.values()
            if isinstance(value.get("_target_"), str):
                yield value["_target_"]
        elif isinstance(value, list):
            pending += value


@cache
def source_files(target: str) -> list[Path]:
    """The Python files that an import path comes from; [] where it cannot be found, or the version
    of its package is on record anyhow.
    """
    names = target.split(".")
    spec = None if names[0] in ON_RECORD else _top_level(names[0])
    for depth in range(2, len(names) + 1):
        if spec is None or spec.submodule_search_locations is None:
            break
        name = ".".join(names[:depth])
        inner = importlib.machinery.PathFinder.find_spec(name, spec.submodule_search_locations)
        if inner is None:
            break
        spec = inner
    if spec is None or not spec.has_location or spec.origin is None:
        return []
    origin = Path(spec.origin)
    if spec.submodule_search_locations is None:
        return [origin]
    return sorted(origin.parent.rglob("*.py"))


def _top_level(name: str) -> ModuleSpec | None:
    try:
        found = importlib.util.find_spec(name)
    except (ImportError, ValueError):
        found = None
    return found or importlib.machinery.PathFinder.find_spec(name, [os.getcwd()])
