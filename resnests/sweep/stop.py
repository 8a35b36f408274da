"""Tell a process that it is to stop. No torch.

In two ways: by signals (Stop), and from the process above it. A sweep removes the specs of its
jobs, a job closes the standard input of its worker. A job ends with its sweep (exit_with), and a
worker sees its standard input close however its job ended, so that nothing outlives who started
it, and a checkpoint is written all the same.
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
    """Tells whether a stop was requested: a signal, an answer of `ask`, or a missing `file`.

    The file gives leave to go on. As a file it also reaches jobs on other hosts, and those that
    still wait in a queue when the sweep ends. `on_signal` is called with the number of signals so
    far.
    """

    SIGNALS = (signal.SIGINT, signal.SIGTERM, signal.SIGUSR2, signal.SIGHUP)
    current: Stop | None = None  # of this process, to which its signal handlers belong

    def __init__(
        self, file: Path | None = None, on_signal: Callable[[int], None] = lambda count: None
    ) -> None:
        self.file, self.on_signal, self.signals = file, on_signal, 0
        self.last: int | None = None  # signal
        self._asked = False
        self._previous: dict[int, Any] = {}

    @classmethod
    def listen(cls, file: Path) -> AbstractContextManager[Stop]:
        """Return the Stop of this process: a job in the very process of its sweep shares it."""
        return nullcontext(cls.current) if cls.current else cls(file)

    def __enter__(self) -> Stop:
        if threading.current_thread() is threading.main_thread():
            for number in self.SIGNALS:
                if number == signal.SIGHUP and signal.getsignal(number) == signal.SIG_IGN:
                    continue  # nohup wants it so
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
        """Have `requested` return True from now on."""
        self._asked = True

    def requested(self) -> bool:
        """Return whether this process is to stop."""
        missing = self.file is not None and not self.file.exists()
        return self._asked or self.signals > 0 or missing


def ending_at_once() -> Stop:
    """Return a Stop at whose first signal a KeyboardInterrupt is raised, by which subprocess.run
    ends the process that it waits for. SIGTERM and SIGHUP alone would leave that behind.
    """
    return Stop(on_signal=_interrupt)


def _interrupt(count: int) -> None:
    raise KeyboardInterrupt


def lock_until_exit(file: Path) -> None:
    """Lock `file` for as long as this process lives; the operating system releases it after."""
    fcntl.flock(os.open(file, os.O_RDONLY), fcntl.LOCK_EX)


@cache
def exit_with(file: Path) -> None:
    """End this process as soon as the one that has locked `file` is gone.

    A launcher's process would wait for its next run, or start it, although its sweep was killed.
    """
    try:
        locked = os.open(file, os.O_RDONLY)
    except FileNotFoundError:
        return  # the sweep is stopping, and takes its launcher's processes with it

    def wait() -> None:
        fcntl.flock(locked, fcntl.LOCK_SH)
        os._exit(1)

    threading.Thread(target=wait, daemon=True).start()
