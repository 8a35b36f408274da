"""Ask a card all that is open, in one command of under ten minutes a part.

    python -m benchmarks.gpu_session                           # every part
    python -m benchmarks.gpu_session --parts sweep steps       # of these
    python -m benchmarks.gpu_session --smoke                   # on the CPU, tiny: does it run?

What is measured or run is a process of its own with a limit, so that nothing ends the rest. Results
are on disk as they come: results.jsonl, log.txt and in the end report.md, in the folder --output.
With --smoke the exit status is 1 where anything failed.
"""

from __future__ import annotations

import argparse
import json
import os
import shutil
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from threading import Timer
from typing import Any

from benchmarks.gpu_parts import PARTS
from benchmarks.gpu_report import report

REPOSITORY = Path(__file__).parent.parent
ARCHS = ("resnet20", "wrn16_8", "resnet110", "wrn40_4")
TINY = {"images": 256, "tested": 64, "batch": 16, "steps": 2, "rounds": 1}


class Session:
    """Runs commands and measurements, and writes what came of them."""

    def __init__(self, options: argparse.Namespace) -> None:
        self.smoke, self.out = options.smoke, options.output.absolute()
        self.out.mkdir(parents=True, exist_ok=True)
        self.device = "cpu" if options.smoke else "cuda"
        self.archs = ["resnet8"] if options.smoke else list(ARCHS)
        self.started, self.limit = time.monotonic(), options.minutes * 60
        self.rows: list[dict[str, Any]] = []
        self.environment = dict(os.environ)
        self.log_file = self.out / "log.txt"

    def note(self, part: str, **values: Any) -> None:
        """Write a row of results."""
        row = {"part": part, "at_s": round(time.monotonic() - self.started, 1), **values}
        self.rows.append(row)
        with open(self.out / "results.jsonl", "a") as file:
            print(json.dumps(row), file=file)
        print(json.dumps(row)[:300], flush=True)

    def seconds(self, wanted: float) -> float:
        """Return how many of so many seconds are left to this part of the session."""
        return max(1.0, min(wanted, self.started + self.limit - time.monotonic()))

    def command(self, part: str, command: list[str], limit: float = 150) -> bool:
        """Run a command to its end, or limit; return whether it succeeded."""
        started = time.monotonic()
        with open(self.log_file, "a") as log:
            print(f"\n$ {part}: {' '.join(command)}", file=log, flush=True)
            at = os.fstat(log.fileno()).st_size
            child = subprocess.Popen(
                command,
                cwd=REPOSITORY,
                stdout=log,
                stderr=log,
                env=self.environment,
                start_new_session=True,
            )
            with _killed_after([child], self.seconds(limit)):
                code = child.wait()
        tail = self.log_file.read_bytes()[at:].decode(errors="replace").strip().splitlines()[-4:]
        self.note(part, code=code, seconds=round(time.monotonic() - started, 1), tail=tail)
        return code == 0

    def python(self, part: str, *arguments: str, limit: float = 150) -> bool:
        """Run Python to its end, or limit."""
        return self.command(part, [sys.executable, *arguments], limit)

    def measure(self, part: str, count: int = 1, limit: float = 150, **spec: Any) -> None:
        """Time the steps of `count` processes that begin at the same instant."""
        spec |= {"device": self.device} | (TINY if self.smoke else {})
        children = [self._steps(spec) for _ in range(count)]
        with _killed_after(children, self.seconds(limit)):
            for child in children:
                child.stdout.readline()
            for child in children:
                with suppress(BrokenPipeError):  # it is dead, as its status will tell
                    child.stdin.write("go\n")
                    child.stdin.flush()
            answers = [child.communicate()[0] for child in children]
        self.note(part, **(spec | {"count": count} | _summed(children, answers)))

    def _steps(self, spec: dict[str, Any]) -> subprocess.Popen:
        with open(self.log_file, "a") as log:
            return subprocess.Popen(
                [sys.executable, "-m", "benchmarks.gpu_steps", json.dumps(spec)],
                cwd=REPOSITORY,
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                stderr=log,
                text=True,
                env=self.environment,
                start_new_session=True,
            )


def _summed(children: list[subprocess.Popen], answers: list[str]) -> dict[str, Any]:
    """Return the figures of processes as those of one, or how they failed."""
    codes = [child.returncode for child in children]
    if any(codes):
        return {"failed": f"statuses {codes}, see log.txt"}
    figures = [json.loads(answer) for answer in answers]
    together = {"images_s": sum(one["images_s"] for one in figures)}
    return figures[0] | together


@contextmanager
def _killed_after(children: list[subprocess.Popen], seconds: float) -> Iterator[None]:
    """Kill `children`, each with all below it, after so many seconds or at the end of the block."""

    def kill() -> None:
        for child in children:
            with suppress(ProcessLookupError):
                os.killpg(child.pid, 9)

    timer = Timer(seconds, kill)
    timer.start()
    try:
        yield
    finally:
        timer.cancel()
        kill()


def main() -> int:
    """Run the parts that the command line names."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--smoke", action="store_true", help="tiny, on the CPU")
    parser.add_argument("--parts", nargs="+", choices=PARTS, default=list(PARTS))
    parser.add_argument("--minutes", type=float, default=9.5, help="for each part")
    parser.add_argument("--output", type=Path, default=Path("gpu-session"))
    session = Session(parser.parse_args())
    for name in parser.parse_args().parts:
        session.started = time.monotonic()
        PARTS[name](session)
    for folder in ("runs", "bits-whole", "bits-resumed"):
        shutil.rmtree(session.out / folder, ignore_errors=True)
    text = report(session.rows)
    (session.out / "report.md").write_text(text)
    print(text)
    failed = [row for row in session.rows if row.get("code") or "failed" in row]
    return 1 if session.smoke and failed else 0


if __name__ == "__main__":
    sys.exit(main())
