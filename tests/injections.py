"""What befalls sweeps on a cluster: for tests/faults.py --launcher slurm|ray."""

from __future__ import annotations

import random
import subprocess
import time
from contextlib import AbstractContextManager
from pathlib import Path

from cluster import ray_nodes, slurm

from resnests.runs.directory import find_runs

OVERRIDES = {
    "slurm": ("cluster=slurm", "cluster.cpus=1", "cluster.gpus=0"),
    "ray": ("cluster=ray", "cluster.gpus=0"),
}
RUNNING: list = []  # the cluster


def cluster(launcher: str) -> AbstractContextManager:
    made = slurm.Slurm() if launcher == "slurm" else ray_nodes.RayNodes()
    RUNNING[:] = [made]
    return made


def cancel_job(_sweep, _folder: Path) -> bool:
    """One of those that run."""
    names = [line.split()[0] for line in RUNNING[0].queue() if line.endswith("RUNNING")]
    if names:
        RUNNING[0].ask("scancel", random.choice(names))
    return bool(names)


def lose_node(_sweep, folder: Path) -> bool:
    """With what it trains, for some seconds."""
    if not any(run.status() == "running" for run in find_runs(folder / "runs")):
        return False
    if isinstance(RUNNING[0], ray_nodes.RayNodes):
        RUNNING[0].kill_node(random.choice((1, 2)))
        RUNNING[0].add()
        return True
    name = random.choice(RUNNING[0].nodes)
    RUNNING[0].ask("scontrol", "update", f"nodename={name}", "state=down", "reason=lost")
    time.sleep(random.uniform(0, 4))
    RUNNING[0].ask("scontrol", "update", f"nodename={name}", "state=resume")
    return True


def stop_all_jobs() -> None:
    """Those of Ray end with their sweep."""
    if isinstance(RUNNING[0], slurm.Slurm):
        subprocess.run(["scancel", "--user=root"], check=True)


FAULTS = {"slurm": {"job cancelled": cancel_job, "node lost": lose_node}}
FAULTS["ray"] = {"node lost": lose_node}
