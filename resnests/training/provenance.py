"""Where the numbers of a run come from: code, versions, machine, process."""

from __future__ import annotations

import importlib.metadata
import os
import platform
import resource
import socket
import subprocess
import sys
import time
from functools import cache
from pathlib import Path
from typing import Any

import psutil
import torch

from resnests.cpuinfo import cpu_info
from resnests.environment import JOB, command_line
from resnests.runs.record import Provenance

PACKAGES = ("torch", "torchvision", "numpy", "hydra-core", "omegaconf")


def collect(device: torch.device) -> Provenance:
    """Of this process, which starts to train now."""
    versions: dict[str, Any] = {"python": platform.python_version()}
    versions |= {name: importlib.metadata.version(name) for name in PACKAGES}
    if device.type == "cuda":
        versions |= {"cuda": torch.version.cuda, "cudnn": torch.backends.cudnn.version()}
    commit, dirty = code_version()
    return Provenance(
        git_commit=commit,
        git_dirty=dirty,
        versions=versions,
        device=str(device),
        device_name=_device_name(device),
        threads=torch.get_num_threads(),
        host=socket.gethostname(),
        platform=platform.platform(),
        command=command_line(),
        job=os.environ.get(JOB, os.environ.get("SLURM_JOB_ID")),
        pid=os.getpid(),
        process_started=psutil.Process().create_time(),
        started=time.time(),
    )


def peak_memory() -> int:
    """The most bytes that this process had in memory."""
    unit = 1 if sys.platform == "darwin" else 1024
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * unit


@cache
def code_version() -> tuple[str | None, bool | None]:
    """Commit of the code, and whether it was changed since; None outside a checkout.

    Asked once, when this process, or that which it is a copy of, had just imported the code.
    """

    def git(*arguments: str) -> str:
        command = ["git", "-C", str(Path(__file__).parent), *arguments]
        return subprocess.run(
            command, capture_output=True, text=True, check=True, timeout=10
        ).stdout.strip()

    try:
        return git("rev-parse", "HEAD"), bool(git("status", "--porcelain", "-uno"))
    except (OSError, subprocess.SubprocessError):
        return None, None


def _device_name(device: torch.device) -> str:
    if device.type == "cuda":
        return torch.cuda.get_device_name(device)
    if device.type == "cpu" and (name := cpu_info().get("model name")):
        return name
    return platform.processor() or device.type
