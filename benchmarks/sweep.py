"""Whether runs side by side are faster than one after the other: python -m benchmarks.sweep

Times a sweep of two runs with its own slots (on a CPU, cores shared out) against the same sweep with devices.slots=1
(one run at a time with all cores), interleaved, start-up and files included.
"""

from __future__ import annotations

import argparse
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path

RUN = Path(__file__).parent.parent / "run.py"
GRID = ("dataset=digits", "arch=resnet20", "seed=0,1", "dataset.test_limit=100")


def seconds(folder: Path, epochs: int, *overrides: str) -> float:
    command = [sys.executable, str(RUN), "-m", *GRID, f"trainer.epochs={epochs}", f"runs_dir={folder}", *overrides]
    started = time.perf_counter()
    subprocess.run(command, check=True, capture_output=True)
    return time.perf_counter() - started


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--epochs", type=int, default=10)
    options = parser.parse_args()
    rows = []
    with tempfile.TemporaryDirectory() as folder:
        for index in range(options.rounds):
            together = seconds(Path(folder, f"together{index}"), options.epochs)
            apart = seconds(Path(folder, f"apart{index}"), options.epochs, "devices.slots=1")
            rows.append((together, apart))
    print("| together, s | one after the other, s | ratio |\n|---:|---:|---:|")
    for together, apart in rows:
        print(f"| {together:.1f} | {apart:.1f} | {apart / together:.2f} |")
    print(f"\nmedian ratio {statistics.median(apart / together for together, apart in rows):.2f}")


if __name__ == "__main__":
    main()
