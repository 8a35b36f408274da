"""Time and peak memory of aggregate.py on 10,000 runs of 200 epochs: python benchmarks/aggregate.py
[runs]

Makes the tree in a temporary directory (about 250 MB and four minutes at 10,000): two data sets,
the paper's four architectures and four variants, as many seeds as that takes. Prints a line for the
tables and one for the figures and everything else, and for a tenth of the runs too, which shows
whether time grows in step.
"""

from __future__ import annotations

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

EPOCHS = 200


def make_tree(root: Path, runs: int) -> int:
    """Write about `runs` runs below `root` without waiting for the disk; the number written."""
    os.fsync = lambda _: None
    seeds = max(2, round(runs / len(PUBLISHED)))
    trees.add_paper_grid(root, seeds=seeds, epochs=EPOCHS)
    return seeds * len(PUBLISHED)


def measure(label: str, *arguments: str) -> None:
    """Run aggregate.py and print its wall and processor time, and its own peak memory."""
    start = time.perf_counter()
    command = [sys.executable, str(ROOT / "aggregate.py"), *arguments]
    child = subprocess.Popen(command, stdout=subprocess.DEVNULL)
    _, status, usage = os.wait4(child.pid, 0)
    child.returncode = os.waitstatus_to_exitcode(status)
    if child.returncode:
        sys.exit(f"{' '.join(command)}: exit status {child.returncode}")
    unit = 1 if sys.platform == "darwin" else 1024
    wall, processor = time.perf_counter() - start, usage.ru_utime + usage.ru_stime
    memory = usage.ru_maxrss * unit / 1e6
    print(
        f"  {label:<34} {wall:6.1f} s ({processor:.1f} s of processor) {memory:6.0f} MB", flush=True
    )


def main() -> None:
    total = int(sys.argv[1]) if len(sys.argv) > 1 else 10_000
    for wanted in (total // 10, total):
        with tempfile.TemporaryDirectory() as folder:
            made = make_tree(Path(folder) / "runs", wanted)
            print(f"{made} runs of {EPOCHS} epochs", flush=True)
            measure("tables", f"{folder}/runs")
            measure(
                "tables, both comparisons",
                f"{folder}/runs",
                "--compare",
                "standard",
                "--compare",
                "paper",
            )
            measure(
                "everything, with the figures", f"{folder}/runs", "--output", f"{folder}/results/"
            )


if __name__ == "__main__":
    main()
