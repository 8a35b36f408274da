"""Measure how fast the live page is with very many runs, and what it costs while nothing changes:
python -m benchmarks.page [runs]

Makes the tree of benchmarks.aggregate in a temporary directory, without histories. Prints the time
from starting aggregate.py --serve to the first content and to the whole page, that of a page once
the server is warm, of one with a filter, and the share of a core that the server takes while a
browser asks every two seconds and nothing changes.
"""

from __future__ import annotations

import argparse
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from urllib.request import Request, urlopen

import psutil

from benchmarks.aggregate import ROOT, make_tree

IDLE_SECONDS = 60.0


def get(address: str, tag: str = "") -> tuple[float, str, str]:
    """Return how long a page takes, its text ("" where it has not changed), and its tag."""
    started = time.perf_counter()
    request = Request(address, headers={"If-None-Match": tag} if tag else {})
    try:
        with urlopen(request) as answer:
            text = answer.read().decode()
            return time.perf_counter() - started, text, answer.headers.get("ETag") or ""
    except OSError as error:
        if getattr(error, "code", 0) != 304:
            raise
        return time.perf_counter() - started, "", tag


def measure(address: str, process: psutil.Process, started: float) -> None:
    """Print the figures of a server that has just printed its address."""
    print(f"  address printed after {time.perf_counter() - started:.2f} s")
    print(f"  first content after {get(address)[0]:.2f} s more")
    while "reading the runs" in get(address)[1]:
        time.sleep(0.1)
    print(f"  all of it {time.perf_counter() - started:.1f} s after the start")
    seconds, text, tag = min(get(address) for _ in range(5))
    print(f"  a page when warm: {seconds:.2f} s, {len(text) / 1e3:.0f} kB")
    print(f"  another choice of runs: {get(address + '?w=variant%3Dresnest')[0]:.2f} s")
    before, begun = sum(process.cpu_times()[:2]), time.perf_counter()
    while time.perf_counter() - begun < IDLE_SECONDS:
        tag = get(address, tag)[2]
        time.sleep(2)
    share = (sum(process.cpu_times()[:2]) - before) / (time.perf_counter() - begun)
    print(
        f"  while nothing changes: {share:.1%} of a core, {process.memory_info().rss / 1e6:.0f} MB"
    )


def main() -> None:
    options = argparse.ArgumentParser(description=__doc__)
    options.add_argument("runs", type=int, nargs="?", default=10_000)
    wanted = options.parse_args().runs
    with tempfile.TemporaryDirectory() as folder:
        made = make_tree(Path(folder) / "runs", wanted, histories=False)
        print(f"{made} runs", flush=True)
        command = [sys.executable, str(ROOT / "aggregate.py"), f"{folder}/runs", "--serve", "0"]
        started = time.perf_counter()
        with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as server:
            assert server.stdout is not None
            address = server.stdout.readline().split()[0]
            try:
                measure(address, psutil.Process(server.pid), started)
            finally:
                server.terminate()


if __name__ == "__main__":
    main()
