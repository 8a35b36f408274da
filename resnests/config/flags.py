"""Read the flags of the command line, such as -m and --cfg, which Hydra parses."""

from __future__ import annotations

import os
from collections.abc import Sequence
from typing import NoReturn

from hydra._internal.utils import get_args_parser

from resnests.errors import UserError

MODES = ("run", "multirun", "cfg", "info", "shell_completion")  # of which Hydra takes one
PATHS = ("--config-path", "--config-dir")


def in_hydras_order(words: Sequence[str]) -> list[str]:
    """Return `words` with the flags first, as Hydra wants them, and their folders as absolute
    paths; raise a UserError for flags that do not exist or do not go together.

    Hydra looks for a relative --config-path beside the Python file that declares its main function.
    """
    parser = get_args_parser()

    def refuse(message: str) -> NoReturn:
        raise UserError(f"{message}; python run.py --hydra-help lists the flags")

    parser.error = refuse  # type: ignore[method-assign]
    given, unknown = parser.parse_known_intermixed_args(words)
    for word in unknown:
        key, equals, text = word.lstrip("-").partition("=")
        meant = f"{key}={text}" if equals else f"{key}=VALUE"
        raise UserError(f"{word}: expected no dashes before a key: {meant}")
    modes = [f"--{mode.replace('_', '-')}" for mode in MODES if getattr(given, mode)]
    if len(modes) > 1:
        raise UserError(
            f"{' '.join(modes)}: expected one of them, as --cfg and --info show one run"
        )
    if given.resolve and not (given.cfg or given.help):
        raise UserError("--resolve: expected --cfg or --help beside it")
    flags = _without_paths([word for word in words if word not in given.overrides])
    for flag in PATHS:
        path = getattr(given, flag[2:].replace("-", "_"))
        if path:
            is_url = "://" in path  # as pkg:// is
            place = path if is_url else os.path.abspath(os.path.expanduser(path))
            flags.append(f"{flag}={place}")  # the last holds
    return [*flags, *given.overrides]


def _without_paths(flags: Sequence[str]) -> list[str]:
    """Return `flags` without those of PATHS in their usual forms."""
    apart = (*PATHS, "-cp", "-cd")
    together = tuple(f"{name}=" for name in apart)
    pairs = zip(["", *flags], flags, strict=False)
    return [
        word
        for before, word in pairs
        if before not in apart and word not in apart and not word.startswith(together)
    ]
