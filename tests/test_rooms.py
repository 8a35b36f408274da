"""The rooms of the package use each other in one direction only: see docs/architecture.md."""

import ast
from pathlib import Path

import resnests

ROOT = Path(resnests.__file__).parent


def test_no_room_uses_one_that_uses_it():
    arrows: dict[str, set[str]] = {}
    for file in ROOT.rglob("*.py"):
        here = file.relative_to(ROOT).parts[0]
        for node in ast.walk(ast.parse(file.read_text())):
            arrows.setdefault(here, set()).update(_rooms(node) - {here})
    assert len(arrows) > 15
    assert {room for room in arrows if room in _reached(room, arrows)} == set()


def _rooms(node: ast.AST) -> set[str]:
    """Return the rooms or top-level files that an import names, however deep in a function."""
    modules: list[str] = []
    if isinstance(node, ast.Import):
        modules = [alias.name for alias in node.names]
    elif isinstance(node, ast.ImportFrom):
        modules = [node.module or ""]
    names = {module.split(".")[1] for module in modules if module.startswith("resnests.")}
    return {name if (ROOT / name).is_dir() else f"{name}.py" for name in names}


def _reached(room: str, arrows: dict[str, set[str]]) -> set[str]:
    found: set[str] = set()
    new = arrows.get(room, set())
    while new:
        found |= new
        new = set().union(*(arrows.get(name, set()) for name in new)) - found
    return found
