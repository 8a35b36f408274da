"""Measure what the start of runs costs: of a sweep that forks them, and of one that imports torch.

    python -m benchmarks.startup                               # 200 runs of one epoch
    python -m benchmarks.startup --rounds 2 experiment=demo

Times whole commands, `run.py -m` with devices.fork=true and false, in turns; seconds on the clock
and seconds of processors. By default a round has 50 runs, of other seeds than the others.
The ratio of processor seconds says more where others use the machine.
"""

from __future__ import annotations

import argparse
import tempfile
from pathlib import Path

from benchmarks.process import ratio, table, times

SHORT = ("dataset=digits", "dataset.train_limit=256", "dataset.test_limit=256", "arch=resnet8")


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("grid", nargs="*", help="overrides of run.py -m")
    parser.add_argument("--rounds", type=int, default=4)
    parser.add_argument("--runs", type=int, default=50, help="in a round, where no grid is given")
    options = parser.parse_args()
    measured: dict[str, list[tuple[float, float]]] = {"true": [], "false": []}
    with tempfile.TemporaryDirectory() as folder:
        for index in range(options.rounds):
            seeds = f"seed=range({options.runs * index},{options.runs * (index + 1)})"
            grid = options.grid or [*SHORT, "trainer.epochs=1", seeds]
            for fork, seconds in measured.items():
                runs_dir = f"runs_dir={Path(folder, fork, str(index))}"
                seconds.append(times(["run.py", "-m", *grid, f"devices.fork={fork}", runs_dir]))
                wall, processors = seconds[-1]
                print(f"devices.fork={fork}: {wall:.1f} s, {processors:.1f} s", flush=True)
    rows = []
    for name, place in (("on the clock", 0), ("of processors", 1)):
        forked, plain = ([pair[place] for pair in measured[fork]] for fork in ("true", "false"))
        total = [f"{sum(forked):.1f}", f"{sum(plain):.1f}", f"{sum(plain) / sum(forked):.2f}x"]
        rows.append([name, *total, f"{ratio(plain, forked):.2f}x"])
    print(table(["seconds", "forked", "each imports torch", "ratio", "median round"], rows))


if __name__ == "__main__":
    main()
