"""Import what a user names by its path, call it, and digest its source.

Errors are one line that names the key and says what is wrong, and where in the user's file.
"""

from __future__ import annotations

import difflib
import hashlib
import importlib
import importlib.machinery
import importlib.util
import inspect
import json
import os
import sys
import traceback
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import replace
from functools import cache
from importlib import metadata
from importlib.machinery import ModuleSpec
from pathlib import Path
from types import ModuleType
from typing import Any

from resnests.config.parts import Component
from resnests.errors import UserError, missing_extra

EXTRAS = {"timm": "timm", "torchmetrics": "metrics"}  # package -> the extra of ours that has it
# Their versions are on record with every run, so that their source is no part of a recipe.
ON_RECORD = ("torch", "torchvision", "numpy", "resnests")


def build(
    group: str, part: Component, *args: Any, named: Mapping[str, Any] | None = None, **given: Any
) -> Any:
    """Return what part._target_ makes of `args`, part.args, those `given` that it can take, and
    those `named` that it has a parameter of that name for.

    Nested `_target_`s among part.args are built before it. Raises a UserError.
    """
    from hydra.errors import InstantiationException
    from hydra.utils import instantiate

    locate(group, part)
    wanted = {key: value for key, value in given.items() if accepts(group, part, key)}
    wanted |= {k: value for k, value in (named or {}).items() if names(group, part, k)}
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


def build_callable(
    group: str, part: Component, named: Mapping[str, Any] | None = None, **given: Any
) -> Callable[..., Any]:
    """Return what a class makes, or a function that has its arguments; raise a UserError."""
    if not inspect.isclass(locate(group, part)):
        part = replace(part, args=part.args | {"_partial_": True})
    made = build(group, part, named=named, **given)
    if not callable(made):
        what = f"{group}._target_={part.target}"
        raise UserError(f"{what}: expected something to call, not {type(made).__name__}")
    return made


def broken(what: str, error: BaseException) -> UserError:
    """Return an error of a user's code as one line that says where in it."""
    reason = f"{type(error).__name__}: {error}".splitlines()[0]
    frames = traceback.extract_tb(error.__traceback__)
    place = f" ({frames[-1].filename}, line {frames[-1].lineno})" if frames else ""
    return UserError(f"{what}: {reason}{place}")


@contextmanager
def naming(what: str) -> Iterator[None]:
    """Turn what code of a user's raises into a UserError that says `what`, but for a device whose
    memory runs out.
    """
    try:
        yield
    except UserError:
        raise
    except Exception as error:
        import torch  # whose device that may be: who ran such code has imported it

        if isinstance(error, torch.cuda.OutOfMemoryError):
            raise
        raise broken(what, error) from error


def names(group: str, part: Component, key: str) -> bool:
    """Return whether part._target_ has a parameter of the name `key`.

    A **kwargs is no such name: factories like torchvision's hand it on to classes that refuse what
    they do not know.
    """
    parameters = _parameters(group, part)
    return parameters is None or key in parameters


def accepts(group: str, part: Component, key: str) -> bool:
    """Return whether part._target_ can be called with `key`, by name or by **kwargs."""
    parameters = _parameters(group, part)
    rest = (p for p in (parameters or {}).values() if p.kind is p.VAR_KEYWORD)
    return names(group, part, key) or any(rest)


def _parameters(group: str, part: Component) -> Mapping[str, inspect.Parameter] | None:
    """Return the parameters of part._target_, None for a built-in without a signature."""
    try:
        return inspect.signature(locate(group, part)).parameters
    except ValueError:
        return None


def locate(group: str, part: Component) -> Callable[..., Any]:
    """Return the callable that part._target_ names; raise a UserError."""
    if (here := os.getcwd()) not in sys.path:
        sys.path.append(here)
    what = f"{group}._target_={part.target}"
    module, _, rest = str(part.target).partition(".")
    try:
        found: Any = importlib.import_module(module)
        for name in filter(None, rest.split(".")):
            if not hasattr(found, name) and inspect.ismodule(found):
                _import_below(found, name, what)
            found = getattr(found, name)
    except UserError:
        raise
    except Exception as error:
        package = str(getattr(error, "name", None)).partition(".")[0]
        if isinstance(error, ModuleNotFoundError) and package in EXTRAS:
            raise missing_extra(what, package, EXTRAS[package]) from error
        raise broken(f"{what}: cannot be imported", error) from error
    if not callable(found):
        raise UserError(f"{what}: expected something to call, not {found!r}")
    return found


def _import_below(module: ModuleType, name: str, what: str) -> None:
    """Import the module `name` of a package; raise a UserError where there is none."""
    path = f"{module.__name__}.{name}"
    try:
        importlib.import_module(path)
    except ModuleNotFoundError as error:
        if error.name != path:
            raise
        near = difflib.get_close_matches(name, dir(module), 1)
        meant = f"; did you mean {near[0]}?" if near else ""
        place = getattr(module, "__file__", None) or module.__name__
        raise UserError(f"{what}: cannot be imported: {place} has no {name}{meant}") from error


def code_digest(part: Component) -> str | None:
    """Return what tells the source of all that `part` brings from another one, None where it brings
    nothing.

    This reads files and imports nothing. The source of `package.module.Name` is the file of the
    module, that of `package.Name` all Python files of the package. A file that an argument names,
    such as one of weights to start from, counts as source. What was installed from a package index
    is named with its version, as that tells all of it. The rest is eight hexadecimal digits.
    """
    released: set[str] = set()
    files: dict[str, Path] = {}
    for target in set(targets(part)):
        release = _release(target)
        if release is not None:
            released.add(release)
        else:
            files |= {_name(file): file for file in source_files(target)}
    files |= {str(value): Path(value) for value in _strings(part.args) if _is_file(value)}
    if not files:
        return ", ".join(sorted(released)) or None
    return _digest(sorted(released), files)


def _digest(released: list[str], files: dict[str, Path]) -> str:
    """Return eight hexadecimal digits of `files` and the names of what is installed.

    Names and lengths are digested too, or code that moves from the end of one file to the start of
    the next would keep the digest. One file alone needs neither, as `_target_` names it: so it
    keeps the digest that earlier versions gave it.
    """
    digest = hashlib.sha256()
    if released or len(files) > 1:
        sizes = [[name, path.stat().st_size] for name, path in sorted(files.items())]
        digest.update(json.dumps([released, sizes]).encode())
    for _, path in sorted(files.items()):
        update_digest(digest, path)
    return digest.hexdigest()[:8]


def update_digest(digest: Any, path: Path) -> None:
    """Add the content of a file to a digest of hashlib, piece by piece as it may be large."""
    with open(path, "rb") as file:
        while piece := file.read(2**20):
            digest.update(piece)


def _name(file: Path) -> str:
    """Return the place of a Python file below the folder that it is imported from."""
    top = file.parent
    while (top / "__init__.py").is_file():
        top = top.parent
    return file.relative_to(top).as_posix()


def _is_file(value: str) -> bool:
    try:
        return Path(value).is_file()
    except (OSError, ValueError):  # too long, or with a null character: no name of a file
        return False


def _strings(node: Any) -> Iterator[str]:
    """Yield all strings among the arguments of a component."""
    if isinstance(node, str):
        yield node
    inner = node.values() if isinstance(node, dict) else node if isinstance(node, list) else ()
    for value in inner:
        yield from _strings(value)


def _release(target: str) -> str | None:
    """Return the name and version of the distribution that `target` comes from, None where it was
    not installed from a package index.

    A version that is released never changes. What was installed from a folder or a repository has
    a direct_url.json, and may be edited and installed again under the same version.
    """
    name = target.partition(".")[0]
    spec = None if name in ON_RECORD else _top_level(name)
    if spec is None or spec.origin is None:
        return None
    if not {"site-packages", "dist-packages"} & set(Path(spec.origin).parts):
        return None
    found = _distributions().get(name, [])
    if len(found) != 1:
        return None
    distribution = metadata.distribution(found[0])
    is_there = Path(str(distribution.locate_file(""))) in Path(spec.origin).parents
    if not is_there or distribution.read_text("direct_url.json"):
        return None
    return f"{found[0]} {distribution.version}"


_distributions = cache(metadata.packages_distributions)  # which reads all that is installed


def targets(part: Component) -> Iterator[str]:
    """Yield the import paths of all that `part` brings, those of its arguments included."""
    pending: list[Any] = [{"_target_": part.target}, part.args]
    while pending:
        value = pending.pop()
        if isinstance(value, dict):
            pending += value.values()
            if isinstance(value.get("_target_"), str):
                yield value["_target_"]
        elif isinstance(value, list):
            pending += value


def source_files(target: str) -> list[Path]:
    """Return the Python files that an import path comes from; [] where it cannot be found, is
    Python's own, or the version of its package is on record anyhow.
    """
    names = target.split(".")
    on_record = names[0] in ON_RECORD or names[0] in sys.stdlib_module_names
    spec = None if on_record else _top_level(names[0])
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
