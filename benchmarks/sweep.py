"""Whether a sweep with runs side by side is faster than one run after the other with all cores.

    python -m benchmarks.sweep                                                             # the demo, about 10 minutes
    python -m benchmarks.sweep dataset=digits arch=resnet20 seed=0,1 trainer.epochs=6      # another grid

Times whole commands, start-up and files included: `run.py -m` with its own slots (on a CPU, the cores shared out)
against the same with devices.slots=1, in turns.
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


def seconds(folder: Path, *overrides: str) -> float:
    started = time.perf_counter()
    subprocess.run([sys.executable, str(RUN), "-m", *overrides, f"runs_dir={folder}"], check=True, capture_output=True)
    return time.perf_counter() - started


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("grid", nargs="*", default=["experiment=demo"], help="overrides of run.py -m")
    parser.add_argument("--rounds", type=int, default=2)
    options = parser.parse_args()
    rows = []
    with tempfile.TemporaryDirectory() as folder:
        for index in range(options.rounds):
            together = seconds(Path(folder, f"together{index}"), *options.grid)
            apart = seconds(Path(folder, f"apart{index}"), *options.grid, "devices.slots=1")
            rows.append((together, apart))
    print("| together, s | one after the other, s | ratio |\n|---:|---:|---:|")
    for together, apart in rows:
        print(f"| {together:.1f} | {apart:.1f} | {apart / together:.2f} |")
    print(f"\nmedian ratio {statistics.median(apart / together for together, apart in rows):.2f}")


if __name__ == "__main__":
    main()
