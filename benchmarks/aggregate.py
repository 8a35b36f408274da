"""Time and peak memory of aggregate.py on 10,000 runs of 200 epochs:
python -m benchmarks.aggregate [runs] [--tables]

Makes the tree in a temporary directory (about 250 MB at 10,000): two data sets, the paper's four
architectures and four variants, as many seeds as that takes. Prints a line for the tables and one
for the figures and everything else, and for a tenth of the runs too, which shows whether time grows
in step. With --tables there are no histories and no figures, for very many runs.
"""

from __future__ import annotations

import argparse
import os
import subprocess
import sys
import tempfile
import time
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
sys.path[:0] = [str(ROOT), str(ROOT / "tests")]

import trees  # noqa: E402

from resnests.paper import PUBLISHED  # noqa: E402
from resnests.runs.directory import RunDirectory, find_runs  # noqa: E402

EPOCHS = 200


def make_tree(root: Path, runs: int, histories: bool) -> int:
    """Write about `runs` runs below `root` without waiting for the disk; return how many."""
    os.fsync = lambda _: None
    seeds = max(2, round(runs / len(PUBLISHED)))
    trees.add_paper_grid(root, seeds=1, epochs=EPOCHS)
    for first in list(find_runs(root)):
        record, history = first.record_file.read_text(), first.history_file.read_bytes()
        if not histories:
            first.history_file.unlink()
        for seed in range(1, seeds):
            run = RunDirectory(first.path.parent / f"seed={seed}")
            run.path.mkdir()
            run.record_file.write_text(record.replace('"seed": 0', f'"seed": {seed}'))
            if histories:
                run.history_file.write_bytes(history)
    return seeds * len(PUBLISHED)


# Starts a command, waits for it and prints its processor seconds and peak memory. A process counts
# the memory of the one that it was started from as its own, so that this one is small.
_WATCH = """import resource, subprocess, sys
status = subprocess.run(sys.argv[1:], stdout=subprocess.DEVNULL).returncode
usage = resource.getrusage(resource.RUSAGE_CHILDREN)
print(usage.ru_utime + usage.ru_stime, usage.ru_maxrss)
sys.exit(status)
"""


def measure(label: str, *arguments: str) -> None:
    """Run aggregate.py and print its wall and processor time, and its own peak memory."""
    command = [sys.executable, str(ROOT / "aggregate.py"), *arguments]
    start = time.perf_counter()
    done = subprocess.run(
        [sys.executable, "-c", _WATCH, *command], stdout=subprocess.PIPE, text=True, check=True
    )
    wall = time.perf_counter() - start
    processor, memory = map(float, done.stdout.split())
    memory *= 1 if sys.platform == "darwin" else 1024
    print(
        f"  {label:<34} {wall:6.1f} s ({processor:.1f} s of processor) {memory / 1e6:6.0f} MB",
        flush=True,
    )


def main() -> None:
    options = argparse.ArgumentParser(description=__doc__)
    options.add_argument("runs", type=int, nargs="?", default=10_000)
    options.add_argument("--tables", action="store_true", help="no histories and no figures")
    given = options.parse_args()
    for wanted in (given.runs // 10, given.runs):
        with tempfile.TemporaryDirectory() as folder:
            made = make_tree(Path(folder) / "runs", wanted, histories=not given.tables)
            print(f"{made} runs of {EPOCHS} epochs", flush=True)
            runs = f"{folder}/runs"
            both = ("--compare", "standard", "--compare", "paper")
            measure("tables", runs)
            measure("tables, both comparisons", runs, *both)
            if not given.tables:
                measure("everything, with the figures", runs, "--output", f"{folder}/results/")


if __name__ == "__main__":
    main()
