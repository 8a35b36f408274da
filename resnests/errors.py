"""Report a user's mistake in one line that names the mend, with one exit status wherever it is
found.
"""

from __future__ import annotations

import importlib
import logging
import os
import re
import select
import sys
from collections.abc import Callable, Iterable
from typing import IO, Any, TypeVar

T = TypeVar("T")

USER_ERROR = 2  # exit status
_ADDRESS = re.compile(r" at 0x[0-9a-fA-F]+(?=>)")
MAX_NAME = 200  # bytes: file systems take 255, and an export has more than one name in a folder's
MAX_FILE_NAME, MAX_PATH = 255, 4096  # bytes, which Linux takes


class UserError(ValueError):
    """Says what the user can mend: one line, shown without a traceback.

    What others wrote is part of many: libraries, and files that may be hostile. So line breaks
    become spaces, what cannot be printed is escaped, and addresses in memory are left out.
    """

    def __init__(self, text: str) -> None:
        lines = _ADDRESS.sub("", text).splitlines()
        words = " ".join(filter(None, map(str.strip, lines)))
        super().__init__("".join(c if c.isprintable() else ascii(c)[1:-1] for c in words))


class Interrupted(Exception):
    """Work that was asked to stop. It ended where the same command can go on from."""


class CaptureFailed(RuntimeError):
    """Says that a step could not become a CUDA graph. The device is in an unknown state afterwards:
    only another process, without a graph, may go on.
    """


def require(condition: bool, key: str, value: Any, expected: str) -> None:
    """Raise a UserError that names key, value and what would be right, unless `condition` holds."""
    if not condition:
        raise UserError(f"{key}={value}: expected {expected}")


def require_one_of(key: str, value: Any, choices: tuple[str, ...]) -> None:
    """Raise a UserError unless `value` is one of `choices`."""
    require(value in choices, key, value, f"one of {', '.join(choices)}")


def require_name(key: str, name: str) -> None:
    """Raise a UserError unless `name` can be a folder of the run directory."""
    ok = re.fullmatch(r"[A-Za-z0-9][\w.-]*", name) is not None
    require(ok, key, repr(name), "letters, digits, '_', '-' and '.'")
    short = name if len(name) < 40 else f"{name[:40]}..."
    require(len(name.encode()) <= MAX_NAME, key, repr(short), f"at most {MAX_NAME} bytes")


def expanded(key: str, path: str) -> str:
    """Return `path` with ~ as the home folder; raise a UserError where no file can be there."""
    longest = max(map(len, os.fsencode(path).split(b"/")))
    ok = longest <= MAX_FILE_NAME and len(os.fsencode(path)) < MAX_PATH
    expected = f"at most {MAX_FILE_NAME} bytes a name, and {MAX_PATH} in all"
    require(ok, key, f"{path[:40]}...", expected)
    return os.path.expanduser(path)


def require_extra(what: str, module: str, extra: str) -> Any:
    """Return an optional module; raise a UserError that says how to install it where it is
    missing.
    """
    try:
        return importlib.import_module(module)
    except ImportError as error:
        raise missing_extra(what, module, extra) from error


def missing_extra(what: str, module: str, extra: str) -> UserError:
    """Return the error that says how to install the package of an optional module."""
    package = module.partition(".")[0]
    return UserError(f"{what}: needs {package}: pip install 'resnests[{extra}]'")


def exit_status_of(work: Callable[[], int]) -> int:
    """Return the exit status of `work`; print one line and return USER_ERROR where it raises a
    UserError.
    """
    try:
        return work()
    except UserError as error:
        print(f"error: {error}", file=sys.stderr)
        return USER_ERROR


def print_each(
    work: Callable[[T], object], items: Iterable[T], failed: str, error: type[UserError] = UserError
) -> int:
    """Print what `work` gives for each of `items`, or `failed` and why where it raises `error`;
    return exit status 1 where any failed.
    """
    missing = 0
    for item in items:
        try:
            print(work(item), flush=True)
        except error as problem:
            missing += 1
            print(f"{failed}: {problem}", file=sys.stderr)
    return 1 if missing else 0


def run_command_line(main: Callable[[], None]) -> None:
    """Run `main`; end quietly with exit status 1 where nobody reads its output any more, as in
    `python run.py --help | head -1`, and with a line where it cannot be written, as on a full disk.

    Hydra logs what --info shows. Python's logging would print a traceback for each line that
    cannot be written.
    """
    logging.raiseExceptions = False
    sys.stdout, sys.stderr = _opened(1, sys.stdout), _opened(2, sys.stderr)
    try:
        try:
            main()
        finally:
            sys.stdout.flush()
    except BrokenPipeError:
        if not is_unread(1):  # a pipe of ours broke, to another process
            raise
        _forget_output()
        sys.exit(1)
    except OSError as error:
        if not _is_unwritable(1):
            raise
        _forget_output()
        sys.exit(f"error: standard output: {error.strerror}")


def _is_unwritable(number: int) -> bool:
    """Return whether a write fails, as on a full disk: it tries one."""
    try:
        os.write(number, b"\n")
    except OSError:
        return True
    return False


def _forget_output() -> None:
    """Send what is still to be printed nowhere, as Python flushes once more at its end."""
    os.dup2(os.open(os.devnull, os.O_WRONLY), 1)


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


def is_unread(number: int) -> bool:
    """Return whether a pipe has lost its reader."""
    watched = select.poll()
    watched.register(number, 0)
    return any(event & (select.POLLERR | select.POLLHUP) for _, event in watched.poll(0))
