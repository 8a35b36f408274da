"""Start and stop a daemon of NVIDIA's MPS, by which processes on a card compute at once. No torch.

    python -m resnests.sweep.mps GPU-...,GPU-...    # a keeper, started by mps_sharing.py

The keeper starts a daemon in a folder of its own and prints that folder. It stops the daemon when
its standard input ends, which it does however its sweep ends, SIGKILL included. The runs of a
sweep that was killed write a checkpoint first, so it waits for them to leave.
"""

from __future__ import annotations

import os
import shutil
import signal
import subprocess
import sys
import time
from contextlib import suppress
from pathlib import Path
from tempfile import TemporaryDirectory

from resnests.text import last_log_line_of

PROGRAM = "nvidia-cuda-mps-control"
PIPES, LOGS = "CUDA_MPS_PIPE_DIRECTORY", "CUDA_MPS_LOG_DIRECTORY"
DEFAULT = "/tmp/nvidia-mps"  # where a daemon listens, unless PIPES says it
NOWHERE = os.devnull  # no daemon listens there, so that CUDA goes on without one
ANSWER_SECONDS = 10.0
LEAVE_SECONDS = 60.0
POLL_SECONDS = 0.1


def environment(folder: str) -> dict[str, str]:
    """Return the variables by which a process finds the daemon of a folder, or NOWHERE none."""
    return {PIPES: folder, LOGS: folder}


def ask(folder: str, command: str) -> str | None:
    """Return what the daemon of a folder answers to a command, None where it does not."""
    with suppress(OSError, subprocess.TimeoutExpired):
        done = subprocess.run(
            [PROGRAM],
            input=f"{command}\n",
            capture_output=True,
            text=True,
            env=os.environ | environment(folder),
            timeout=ANSWER_SECONDS,
            start_new_session=True,  # Ctrl-C is the sweep's
        )
        return done.stdout if done.returncode == 0 else None
    return None


def running_folder() -> str | None:
    """Return the folder of the daemon that runs without us, None where none does.

    A container may have its pipes without the program: then nobody can ask.
    """
    folder = os.environ.get(PIPES) or DEFAULT
    if not (Path(folder) / "control").exists():
        return None
    is_stale = shutil.which(PROGRAM) and ask(folder, "get_server_list") is None
    return None if is_stale else folder


def start(folder: str, cards: str) -> str | None:
    """Start a daemon in `folder` for cards, whose UUIDs a comma separates; return why there is
    none, or None.
    """
    # Its pipes have commands of version 2, whatever the user's own daemons speak
    own = {"CUDA_VISIBLE_DEVICES": cards, "CUDA_MPS_PROTOCOL_VERSION": "2"}
    log = Path(folder) / "start.log"
    try:
        with open(log, "wb") as output:  # a pipe would stay open in the daemon
            code = subprocess.run(
                [PROGRAM, "-d"],
                stdin=subprocess.DEVNULL,
                stdout=output,
                stderr=output,
                env=os.environ | environment(folder) | own,
                timeout=ANSWER_SECONDS,
                start_new_session=True,
            ).returncode
    except (OSError, subprocess.TimeoutExpired) as error:
        return str(error)
    if code != 0:
        return last_log_line_of(log) or f"{PROGRAM} -d ended with {code}"
    end = time.monotonic() + ANSWER_SECONDS
    while ask(folder, "get_server_list") is None:
        if time.monotonic() > end:
            return f"its {PROGRAM} does not answer"
        time.sleep(POLL_SECONDS)
    return None


def stop(folder: str) -> None:
    """Stop the daemon of `folder`, once its clients have left or had long enough."""
    end = time.monotonic() + LEAVE_SECONDS
    while _has_clients(folder) and time.monotonic() < end:
        time.sleep(POLL_SECONDS)
    if ask(folder, "quit") is None:
        with suppress(OSError, ValueError):  # it is gone
            os.kill(int((Path(folder) / f"{PROGRAM}.pid").read_text()), signal.SIGTERM)


def _has_clients(folder: str) -> bool:
    servers = (ask(folder, "get_server_list") or "").split()
    return any((ask(folder, f"get_client_list {server}") or "").strip() for server in servers)


def main() -> None:
    """Keep a daemon for the cards that the command line names."""
    for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP):
        # It goes with its sweep, not before. Ignored they would be ignored by the daemon, too
        signal.signal(number, lambda *_: None)
    # Not where TMPDIR is, as the names of sockets have at most 107 bytes. Only we can enter it
    with TemporaryDirectory(
        prefix="resnests-mps-", dir="/tmp", ignore_cleanup_errors=True
    ) as folder:
        try:
            if reason := start(folder, sys.argv[1]):
                sys.exit(reason)
            print(folder, flush=True)
            while os.read(0, 4096):
                pass
        finally:
            stop(folder)


if __name__ == "__main__":
    main()
