"""Whether a sweep with runs side by side is faster than one run after the other with all cores.

    python -m benchmarks.sweep                                  # the demo, about 10 minutes
    python -m benchmarks.sweep dataset=digits arch=resnet20 seed=0,1 trainer.epochs=6

Times whole commands, start-up and files included: `run.py -m` with its own slots (on a CPU, the
cores shared out) against the same with devices.slots=1, in turns.
"""

from __future__ import annotations

import argparse
import tempfile
from pathlib import Path

from benchmarks.process import ratio, table, wall_time


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument(
        "grid", nargs="*", default=["experiment=demo"], help="overrides of run.py -m"
    )
    parser.add_argument("--rounds", type=int, default=2)
    options = parser.parse_args()
    together, apart = [], []
    with tempfile.TemporaryDirectory() as folder:
        for index in range(options.rounds):
            for name, seconds, more in (
                ("together", together, []),
                ("apart", apart, ["devices.slots=1"]),
            ):
                runs = f"runs_dir={Path(folder, f'{name}{index}')}"
                seconds.append(wall_time(["run.py", "-m", *options.grid, *more, runs]))
    rows = [[f"{a:.1f}", f"{b:.1f}", f"{b / a:.2f}x"] for a, b in zip(together, apart, strict=True)]
    print(table(["together, s", "one after the other, s", "ratio"], rows))
    print(f"\nmedian ratio {ratio(apart, together):.2f}x")


if __name__ == "__main__":
    main()
