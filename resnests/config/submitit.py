"""Translate the keys of Hydra's launcher for Slurm, hydra/launcher=submitit_slurm."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from resnests.config.cluster import Cluster
from resnests.errors import require

# Launchers whose jobs run on the host of the sweep, and with those of Slurm, whose keys are known.
LOCAL = ("basic", "joblib", "submitit_local")
LAUNCHERS = (*LOCAL, "submitit_slurm")
# What sbatch calls the same.
SBATCH = ("comment", "constraint", "exclude", "gres", "cpus_per_gpu", "gpus_per_task")
MEMORY = ("mem_per_gpu", "mem_per_cpu")
# A job is ours as a whole, with a name of ours, and queues again while its runs get on.
FIXED = {"nodes": 1, "tasks_per_node": 1, "max_num_timeout": 0, "stderr_to_stdout": False}


def from_submitit(params: Mapping[str, Any]) -> Cluster:
    """Return the Cluster of `hydra.launcher`, whose submitit_folder and name are not used."""
    for key, value in FIXED.items():
        given = params.get(key, value)
        require(given == value, f"hydra.launcher.{key}", given, f"{value}, or cluster=slurm")
    more = {key: params[key] for key in (*SBATCH, *MEMORY) if params.get(key) is not None}
    more |= params.get("additional_parameters") or {}
    words = {f"--{key.replace('_', '-')}": value for key, value in more.items()}
    options = [key if value is True else f"{key}={value}" for key, value in words.items()]
    memory = params.get("mem_gb")
    return Cluster(
        name="slurm",
        cpus=params.get("cpus_per_task"),
        gpus=params.get("gpus_per_node") or 0,
        jobs=params.get("array_parallelism"),
        memory=None if memory is None else f"{memory}G",
        time=str(params["timeout_min"]),
        partition=params.get("partition"),
        account=params.get("account"),
        qos=params.get("qos"),
        options=options,
        setup=list(params.get("setup") or []),
        runs_per_job=1,
        grace=params["signal_delay_s"],
        detach=False,
    )
