"""How a process learns that it is to stop. No torch.

In two ways: it listens to signals (Stop), and it is told by the process above it: a job by the
sweep, which takes its token away; a training by its job, which closes its standard input. A job
dies with its sweep (die_with), and a training sees standard input close however its job ended, so
that nothing outlives who started it, and a checkpoint is written all the same.
"""

from __future__ import annotations

import fcntl
import os
import signal
import threading
from collections.abc import Callable
from contextlib import AbstractContextManager, nullcontext
from functools import cache
from pathlib import Path
from typing import Any


class Stop:
    """Whether this process is to stop: because of a signal, of `ask`, or of the missing `token`.

    The token is a file that gives leave to go on. As a file it also reaches jobs on other hosts,
    and those that still wait in a queue when the sweep ends. `on_signal` is called with the number
    of signals so far.
    """

    SIGNALS = (signal.SIGINT, signal.SIGTERM, signal.SIGUSR2)
    current: Stop | None = None  # of this process, to which its signal handlers belong

    def __init__(
        self, token: Path | None = None, on_signal: Callable[[int], None] = lambda count: None
    ) -> None:
        self.token, self.on_signal, self.signals = token, on_signal, 0
        self.last: int | None = None  # signal
        self._asked = False
        self._previous: dict[int, Any] = {}

    @classmethod
    def listen(cls, token: Path) -> AbstractContextManager[Stop]:
        """That of this process: a job in the very process of its sweep shares the sweep's."""
        return nullcontext(cls.current) if cls.current else cls(token)

    def __enter__(self) -> Stop:
        if threading.current_thread() is threading.main_thread():
            for number in self.SIGNALS:
                self._previous[number] = signal.signal(number, self._handle)
        Stop.current = self
        return self

    def __exit__(self, *_: object) -> None:
        Stop.current = None
        for number, handler in self._previous.items():
            signal.signal(number, handler)

    def _handle(self, number: int, _: object) -> None:
        self.signals += 1
        self.last = number
        self.on_signal(self.signals)

    def ask(self) -> None:
        self._asked = True

    def requested(self) -> bool:
        missing = self.token is not None and not self.token.exists()
        return self._asked or self.signals > 0 or missing


def hold(token: Path) -> None:
    """Lock `token` for as long as this process lives; the operating system lets go of it after."""
    fcntl.flock(os.open(token, os.O_RDONLY), fcntl.LOCK_EX)


@cache
def die_with(token: Path) -> None:
    """End this process as soon as the one that holds `token` is gone.

    A launcher's process would wait for its next run, or start it, although its sweep was killed.
    """
    try:
        file = os.open(token, os.O_RDONLY)
    except FileNotFoundError:
        return  # the sweep is stopping, and takes its launcher's processes with it

    def wait() -> None:
        fcntl.flock(file, fcntl.LOCK_SH)
        os._exit(1)

    threading.Thread(target=wait, daemon=True).start()
