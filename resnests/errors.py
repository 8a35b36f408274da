"""A user's mistake: one line that names the mend, and one exit status wherever it is found."""

from __future__ import annotations

import os
import re
import select
import sys
from collections.abc import Callable
from typing import IO, Any

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


def run_command_line(main: Callable[[], None]) -> None:
    """Run `main`; end quietly with exit status 1 where nobody reads its output any more, as in
    `python run.py --help | head -1`.
    """
    sys.stdout, sys.stderr = _opened(1, sys.stdout), _opened(2, sys.stderr)
    try:
        try:
            main()
        finally:
            sys.stdout.flush()
    except BrokenPipeError:
        if not _is_unread(1):  # a pipe of ours broke, to another process
            raise
        os.dup2(os.open(os.devnull, os.O_WRONLY), 1)  # for Python flushes once more
        sys.exit(1)


def _opened(number: int, stream: IO[str] | None) -> Any:
    """Return `stream`, or where it was closed (`>&-`) one to nowhere.

    Python has None for a closed one, on which whatever prints would fail; and the next file that
    is opened would get its number, and everything that is printed by others.
    """
    if stream is not None:
        return stream
    nowhere = os.open(os.devnull, os.O_WRONLY)
    if nowhere != number:
        os.dup2(nowhere, number)
        os.close(nowhere)
    return open(number, "w", closefd=False)


def _is_unread(number: int) -> bool:
    """Return whether a pipe has lost its reader."""
    watched = select.poll()
    watched.register(number, 0)
    return any(event & (select.POLLERR | select.POLLHUP) for _, event in watched.poll(0))
