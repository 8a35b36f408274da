"""The rooms of the package use each other in one direction only: see docs/architecture.md."""

import ast
from pathlib import Path

import resnests

ROOT = Path(resnests.__file__).parent


def test_no_room_uses_one_that_uses_it():
    arrows: dict[str, set[str]] = {}
    for file in ROOT.rglob("*.py"):
        here = file.relative_to(ROOT).parts[0]
        used = {_room(node) for node in ast.walk(ast.parse(file.read_text()))}
        arrows.setdefault(here, set()).update(used - {None, here})
    assert len(arrows) > 15
    assert {room for room in arrows if room in _reached(room, arrows)} == set()


def _room(node: ast.AST) -> str | None:
    """Return the room or top-level file that an import names, however deep in a function."""
    if not isinstance(node, ast.ImportFrom) or not (node.module or "").startswith("resnests."):
        return None
    name = node.module.split(".")[1]
    return name if (ROOT / name).is_dir() else f"{name}.py"


def _reached(room: str, arrows: dict[str, set[str]]) -> set[str]:
    found: set[str] = set()
    new = arrows.get(room, set())
    while new:
        found |= new
        new = set().union(*(arrows.get(name, set()) for name in new)) - found
    return found
