"""Start a Ray cluster of one's own on this machine, for as long as a command or a test takes.

    python tests/cluster/ray_nodes.py ray status     # a command in it

Its nodes, of one core each, are sets of processes: the head runs no tasks, so that any other can
be killed.
"""

from __future__ import annotations

import os
import re
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
import time
from contextlib import suppress

# Ray would run its workers at niceness 15: behind all else on the machine
NICE = {"RAY_worker_niceness": "0"}
START = ("--block", "--disable-usage-stats", "--object-store-memory=80000000")


def missing() -> str:
    return "" if shutil.which("ray") else "needs ray (pip install 'resnests[ray]')"


class RayNodes:
    """Holds such a cluster as a context, in which RAY_ADDRESS is what address=auto means."""

    def __init__(self, nodes: int = 2) -> None:
        self.count = nodes
        self.nodes: list[subprocess.Popen] = []

    def __enter__(self) -> RayNodes:
        self.folder = tempfile.mkdtemp(prefix="ray-", dir="/tmp")
        with socket.socket() as free:
            free.bind(("127.0.0.1", 0))
            self.port = free.getsockname()[1]
        self.address = f"127.0.0.1:{self.port}"
        self.before = os.environ.get("RAY_ADDRESS")
        os.environ["RAY_ADDRESS"] = self.address
        try:
            self._start_all()
        except BaseException:
            self.__exit__()
            raise
        return self

    def _start_all(self) -> None:
        where = (f"--port={self.port}", f"--temp-dir={self.folder}")
        self._start("--head", *where, "--include-dashboard=false", "--num-cpus=0")
        self._until(1)
        for index in range(self.count):  # one by one, or their ports collide
            self.add()
            self._until(2 + index)

    def restart(self) -> None:
        """Start all nodes again, at the same address."""
        self._kill_all()
        self._start_all()

    def add(self, prefix: tuple[str, ...] = ()) -> None:
        self._start(f"--address={self.address}", "--num-cpus=1", prefix=prefix)

    def _start(self, *options: str, prefix: tuple[str, ...] = ()) -> None:
        with open(f"{self.folder}/start.out", "ab") as log:
            command = [*prefix, str(shutil.which("ray")), "start", *START, *options]
            self.nodes.append(
                subprocess.Popen(
                    command, stdout=log, stderr=log, start_new_session=True, env=os.environ | NICE
                )
            )

    def kill_node(self, index: int) -> None:
        """Kill all processes of a node at once (0 is the head)."""
        node = self.nodes.pop(index)
        with suppress(ProcessLookupError):
            os.killpg(node.pid, signal.SIGKILL)
        node.wait()

    def alive(self) -> int:
        program = "import ray; ray.init(logging_level='ERROR', log_to_driver=False)"
        program += "; print(sum(node['Alive'] for node in ray.nodes()))"
        done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True)
        found = re.search(r"^\d+$", done.stdout, re.MULTILINE)  # Ray may print lines of its own
        return int(found[0]) if found else 0

    def _until(self, count: int) -> None:
        end = time.monotonic() + 120
        while self.alive() != count:
            assert time.monotonic() < end, "the nodes of Ray did not come up"

    def _kill_all(self) -> None:
        for index in reversed(range(len(self.nodes))):
            self.kill_node(index)

    def __exit__(self, *_: object) -> None:
        self._kill_all()
        os.environ.pop("RAY_ADDRESS", None)
        os.environ |= {"RAY_ADDRESS": self.before} if self.before else {}
        shutil.rmtree(self.folder, ignore_errors=True)


def main() -> int:
    if reason := missing():
        print(reason, file=sys.stderr)
        return 2
    with RayNodes():
        return subprocess.run(sys.argv[1:] or ["bash"]).returncode


if __name__ == "__main__":
    sys.exit(main())
