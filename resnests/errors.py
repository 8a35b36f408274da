"""A user's mistake: one line that names the mend, and one exit status wherever it is found."""

from __future__ import annotations

import re
import sys
from collections.abc import Callable
from typing import Any

USER_ERROR = 2  # exit status


class UserError(ValueError):
    """Something the user can mend: shown as one line, without a traceback."""


class Interrupted(Exception):
    """Work that was asked to stop. It ended where the same command can go on from."""


class CaptureFailed(RuntimeError):
    """A step that could not become a CUDA graph. The device is in an unknown state afterwards: only
    another process, without a graph, may go on.
    """


def require(condition: bool, key: str, value: Any, expected: str) -> None:
    """Raise a UserError that names key, value and what would be right, unless `condition` holds."""
    if not condition:
        raise UserError(f"{key}={value}: expected {expected}")


def require_one_of(key: str, value: Any, choices: tuple[str, ...]) -> None:
    require(value in choices, key, value, f"one of {', '.join(choices)}")


def require_name(key: str, name: str) -> None:
    """Names become folders of the run directory."""
    require(
        re.fullmatch(r"[A-Za-z0-9][\w.-]*", name) is not None,
        key,
        repr(name),
        "letters, digits, '_', '-' and '.'",
    )


def guarded(work: Callable[[], int]) -> int:
    """The exit status of `work`, or one line on stderr and USER_ERROR where the user must mend."""
    try:
        return work()
    except UserError as error:
        print(f"error: {error}", file=sys.stderr)
        return USER_ERROR
