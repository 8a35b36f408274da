"""Keep the trackers of a sweep at what its run directories have, in a process beside it.

    python -m resnests.trackers.sync FILE NAME...    # FILE has a run directory in each line, and
                                                     # grows; the trackers have these names

No training waits for it: it reads what is on disk. When its standard input ends, the sweep is over:
it sends the rest, for END_SECONDS at most, and writes unsent.<name> into the directory of each run
that a tracker has not all of. A word on standard input says that no training of the sweep is left;
without it the sweep was killed, and trainings may still write their checkpoints.
"""

from __future__ import annotations

import os
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager, suppress
from pathlib import Path
from tempfile import TemporaryDirectory

from resnests.config.schema import Config
from resnests.runs.directory import RunDirectory
from resnests.text import last_log_line_of
from resnests.trackers.run_sync import RunSync, is_trained

POLL_SECONDS = 0.5  # between two looks at the run directories
BUSY_SHARE = 0.05  # of the time that looking may take, where there are thousands of them
END_SECONDS = 60.0  # that trackers have after the end of a sweep
SILENT_SECONDS = 2.0  # until the user is told that something is waited for
KILL_SECONDS = END_SECONDS + 5  # after which the process hangs, and is killed
TRIES = 3  # at sending the end of a run
RETRY_SECONDS = 2.0

Add = Callable[[Iterable[RunDirectory]], None]


@contextmanager
def syncing(config: Config, runs: Iterable[RunDirectory] = ()) -> Iterator[Add]:
    """Keep the trackers of `config.logger` at what `runs` are until the block ends.

    Yields what adds further runs. Whatever the trackers do, the block is not held up, and its end
    takes KILL_SECONDS at most. What could not be sent has unsent.<name> then.
    """
    names = [] if config.task == "analyze" else list(config.logger)
    if not names:
        yield lambda runs: None
        return
    with TemporaryDirectory(prefix="resnests-sync-", ignore_cleanup_errors=True) as folder:
        try:
            process = _Process(names, Path(folder))
        except OSError as error:  # a full disk, say
            print(f"warning: logger: {error}", file=sys.stderr)
            yield lambda runs: None
            return
        process.add(runs)
        try:
            yield process.add
        finally:
            process.finish()


class _Process:
    """Stands for the process in the sweep. Nothing here raises what is a tracker's matter."""

    def __init__(self, names: Sequence[str], folder: Path) -> None:
        self.names, self.runs = names, list[RunDirectory]()
        self.failure = ""
        self.file, self.log = folder / "runs", folder / "log"
        self.file.touch()
        here = str(Path(__file__).parents[2])
        path = os.pathsep.join(filter(None, [here, os.environ.get("PYTHONPATH")]))
        with open(self.log, "wb") as output:
            self.process = subprocess.Popen(
                [sys.executable, "-m", "resnests.trackers.sync", str(self.file), *names],
                stdin=subprocess.PIPE,
                stdout=output,
                stderr=subprocess.STDOUT,
                env=os.environ | {"PYTHONPATH": path},
                start_new_session=True,  # no Ctrl-C: it ends after the trainings
            )

    def add(self, runs: Iterable[RunDirectory]) -> None:
        """Have further runs sent. A file takes them at once, whatever the process is doing."""
        added = list(runs)
        self.runs += added
        try:
            with open(self.file, "a") as file:
                file.writelines(f"{run.path.absolute()}\n" for run in added)
        except OSError as error:
            self.failure = str(error)

    def finish(self) -> None:
        """Wait until the rest is sent, as long as that may take; Ctrl-C cuts it short."""
        try:
            self._wait()
        except subprocess.TimeoutExpired:
            self.failure = "the trackers hung"
        except KeyboardInterrupt:
            self.failure = "they were not waited for"
        self.process.kill()
        self.process.wait()
        if self.process.returncode and not self.failure:
            self.failure = last_log_line_of(self.log) or "their process was killed"
        for run in self.runs if self.failure else []:
            for name in self.names:
                if not (sync := RunSync(run, name)).was_sent():
                    sync.give_up(self.failure)

    def _wait(self) -> None:
        """Wait for the end of the process; raises TimeoutExpired and KeyboardInterrupt."""
        try:
            self.process.communicate(b"over\n", timeout=SILENT_SECONDS)
        except subprocess.TimeoutExpired:
            most = f"{END_SECONDS:.0f} seconds at most, or until Ctrl-C"
            print(f"waiting for {', '.join(self.names)}: {most}", file=sys.stderr)
            self.process.wait(KILL_SECONDS)


class TrackerThread(threading.Thread):
    """Keeps one tracker at what all runs of the sweep are: no tracker waits for another."""

    def __init__(self, name: str, closing: threading.Event) -> None:
        super().__init__(daemon=True)
        self.tracker, self.closing = name, closing
        self.pending: list[RunSync] = []
        self.warned: set[tuple[Path, str]] = set()

    def add(self, runs: Iterable[RunDirectory]) -> None:
        self.pending += [RunSync(run, self.tracker) for run in runs]

    def run(self) -> None:
        pause = POLL_SECONDS
        while not self.closing.wait(pause):
            started = time.monotonic()
            self._sync_all(closing=False)
            pause = max(POLL_SECONDS, (time.monotonic() - started) / BUSY_SHARE)
        for _ in range(TRIES):
            self._sync_all(closing=True)
            if not any(sync.error for sync in self.pending):
                return
            time.sleep(RETRY_SECONDS)

    def _sync_all(self, closing: bool) -> None:
        for sync in list(self.pending):
            sync.sync(closing)
            if sync.error:
                self._warn(sync.directory, sync.error)
            if sync.is_done:
                self.pending.remove(sync)

    def _warn(self, run: RunDirectory, reason: str) -> None:
        """Log in run.log, once for each reason, what the tracker refused."""
        if (run.path, reason) in self.warned:
            return
        self.warned.add((run.path, reason))
        with suppress(OSError), open(run.log_file, "a") as log:
            print(f"{time.strftime('%F %T')} logger={self.tracker}: {reason}", file=log)

    def give_up(self) -> None:
        """Write down which runs the tracker has not all of. Others that it was sent have
        unsent.<name> since then.
        """
        for sync in list(self.pending):
            if sync.is_running and not sync.is_elsewhere:
                sync.give_up("it is still being trained")
            elif not sync.was_sent():
                sync.give_up("the tracker was too slow")


def main(arguments: Sequence[str]) -> None:
    os.nice(5)  # the trainings come first
    file, *names = arguments
    closing, over, words = threading.Event(), threading.Event(), list[bytes]()

    def wait_for_the_end() -> None:
        words.append(sys.stdin.buffer.read())
        over.set()

    threading.Thread(target=wait_for_the_end, daemon=True).start()
    threads = [TrackerThread(name, closing) for name in names]
    runs: list[RunDirectory] = []
    with open(file) as lines:
        for thread in threads:
            thread.start()
        while True:
            ending = over.wait(POLL_SECONDS)
            added = [RunDirectory(line.rstrip("\n")) for line in lines]
            runs += added
            for thread in threads:
                thread.add(added)
            if ending:
                break
    deadline = time.monotonic() + END_SECONDS
    while not words[0] and time.monotonic() < deadline and _any_trained(runs):
        time.sleep(POLL_SECONDS)
    closing.set()
    for thread in threads:
        thread.join(max(0.0, deadline - time.monotonic()))
    for thread in threads:
        thread.give_up()
    sys.stdout.flush()
    os._exit(0)  # whatever threads a tracker left


def _any_trained(runs: Iterable[RunDirectory]) -> bool:
    return any((record := run.record_or_none()) and is_trained(run, record) for run in runs)


if __name__ == "__main__":
    main(sys.argv[1:])
