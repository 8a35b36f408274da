"""Starts the processes of benchmarks.subjects and lets them work in turns."""

from __future__ import annotations

import json
import resource
import statistics
import subprocess
import sys
import time
from dataclasses import asdict
from pathlib import Path

from benchmarks.subjects import Spec

REPOSITORY = Path(__file__).parent.parent


class Process:
    """Runs a subject in a process of its own; `seconds_to_first_step` counts from the start of the
    interpreter.
    """

    def __init__(self, spec: Spec) -> None:
        started = time.perf_counter()
        self.child = subprocess.Popen(
            [sys.executable, "-m", "benchmarks.subjects", json.dumps(asdict(spec))],
            cwd=REPOSITORY,
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
        )
        self.memory = self.device_memory = 0
        self.ask("train 1")
        self.seconds_to_first_step = time.perf_counter() - started

    def start(self, action: str) -> None:
        self.child.stdin.write(f"{action}\n")
        self.child.stdin.flush()

    def finish(self) -> float:
        line = self.child.stdout.readline()
        if not line:
            raise RuntimeError(f"a subject ended with status {self.child.wait()}, see above")
        answer = json.loads(line)
        self.memory, self.device_memory = answer["memory"], answer["device_memory"]
        return answer["rate"]

    def ask(self, action: str) -> float:
        self.start(action)
        return self.finish()

    def close(self) -> None:
        with self.child:  # closes the pipes, which ends it, and waits
            pass


def together(processes: list[Process], action: str) -> float:
    """Return the sum of the rates of processes that work at the same time."""
    for process in processes:
        process.start(action)
    return sum(process.finish() for process in processes)


def interleaved(turns: dict[str, tuple], rounds: int) -> dict[str, list[float]]:
    """Return `rounds` results of each turn (function, arguments), round by round; a first round
    warms up.
    """
    results: dict[str, list[float]] = {name: [] for name in turns}
    for round_ in range(rounds + 1):
        for name, (function, *arguments) in turns.items():
            result = function(*arguments)
            if round_ > 0:
                results[name].append(result)
    return results


def wall_time(command: list[str]) -> float:
    """Return the seconds of a Python command, from its start to its end, in the repository."""
    return times(command)[0]


def times(command: list[str]) -> tuple[float, float]:
    """Return the seconds from start to end of a Python command, in the repository, and seconds of
    processors in it and in all processes below it.
    """
    started, before = time.perf_counter(), resource.getrusage(resource.RUSAGE_CHILDREN)
    subprocess.run([sys.executable, *command], cwd=REPOSITORY, check=True, capture_output=True)
    wall, after = time.perf_counter() - started, resource.getrusage(resource.RUSAGE_CHILDREN)
    return wall, after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime


def ratio(these: list[float], those: list[float]) -> float:
    """Return the median of the ratios round by round: neighbours in time saw the same machine."""
    return statistics.median(a / b for a, b in zip(these, those, strict=True))


def table(header: list[str], rows: list[list[str]]) -> str:
    lines = [header, ["---"] + ["---:"] * (len(header) - 1), *rows]
    return "\n".join(f"| {' | '.join(line)} |" for line in lines)
