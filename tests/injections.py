"""Hurt sweeps on a cluster, for tests/faults.py --launcher slurm|ray."""

from __future__ import annotations

import random
import subprocess
import time
from contextlib import AbstractContextManager
from pathlib import Path

from cluster import ray_nodes, slurm

from resnests.runs.directory import find_runs

OVERRIDES = {
    "slurm": ("cluster=slurm", "cluster.cpus=1", "cluster.gpus=0", "cluster.partition=hid"),
    "ray": ("cluster=ray", "cluster.gpus=0"),
}
HIDDEN = "PartitionName=hid Nodes=ALL Hidden=YES"
# What a user's shell may hold: for sweeps, not for what hurts them.
SHELL = {"SQUEUE_PARTITION": "main", "SQUEUE_USERS": "nobody", "SQUEUE_ACCOUNT": "other"}
SHELL |= {"SQUEUE_STATES": "FAILED", "SQUEUE_NAMES": "other", "SQUEUE_SORT": "-i"}
SHELL |= {"SCANCEL_PARTITION": "main", "SBATCH_WAIT": "1", "SBATCH_ARRAY_INX": "0-9"}
RUNNING: list = []  # the cluster


def cluster(launcher: str) -> AbstractContextManager:
    made = slurm.Slurm(more=HIDDEN) if launcher == "slurm" else ray_nodes.RayNodes()
    RUNNING[:] = [made]
    return made


def cancel_job(_sweep, _folder: Path) -> bool:
    """Cancel one of the jobs that run."""
    names = [line.split()[0] for line in RUNNING[0].queue() if line.endswith("RUNNING")]
    if names:
        RUNNING[0].ask("scancel", random.choice(names))
    return bool(names)


def lose_node(_sweep, folder: Path) -> bool:
    """Take a node away for some seconds, with what it trains."""
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


def lose_head(sweep, folder: Path) -> bool:
    """Kill the head of Ray, and start the cluster again once the sweep has ended by itself."""
    if not any(run.status() == "running" for run in find_runs(folder / "runs")):
        return False
    RUNNING[0].kill_node(0)
    sweep.wait(60)
    RUNNING[0].restart()
    return True


def stop_all_jobs() -> None:
    """Cancel all jobs of Slurm; the tasks of Ray end with their sweep."""
    if isinstance(RUNNING[0], slurm.Slurm):
        subprocess.run(["scancel", "--user=root"], check=True)


FAULTS = {"slurm": {"job cancelled": cancel_job, "node lost": lose_node}}
FAULTS["ray"] = {"node lost": lose_node, "head killed": lose_head}
