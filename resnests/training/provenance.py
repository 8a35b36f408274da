"""Collect where the numbers of a run come from: code, versions, machine, process."""

from __future__ import annotations

import importlib.metadata
import os
import platform
import resource
import socket
import subprocess
import sys
import time
from collections.abc import Iterable
from functools import cache
from pathlib import Path
from typing import Any

import psutil
import torch

from resnests.config.schema import Config
from resnests.config.targets import source_files
from resnests.config.targets import targets as targets_of
from resnests.cpuinfo import cpu_info
from resnests.environment import JOB, command_line
from resnests.runs.record import Provenance

PACKAGES = ("torch", "torchvision", "numpy", "hydra-core", "omegaconf")
# What a hook of git's has of its own repository, and git would take for that of any folder.
_OF_A_HOOK = (
    "GIT_DIR", "GIT_WORK_TREE", "GIT_COMMON_DIR", "GIT_INDEX_FILE", "GIT_OBJECT_DIRECTORY",
)  # fmt: skip


def collect(device: torch.device, config: Config) -> Provenance:
    """Return where the numbers of this process, which starts to work on `config` now, come from."""
    versions: dict[str, Any] = {"python": platform.python_version()}
    versions |= {name: importlib.metadata.version(name) for name in PACKAGES}
    if device.type == "cuda":
        versions |= {"cuda": torch.version.cuda, "cudnn": torch.backends.cudnn.version()}
    parts = [*config.code_parts().values(), *config.metric_parts()]
    targets = [target for part in parts for target in targets_of(part)]
    versions |= brought_versions(targets)
    commit, dirty = code_version()
    return Provenance(
        git_commit=commit,
        git_dirty=dirty,
        versions=versions,
        own_code=own_repositories(targets),
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
    """Return the most bytes that this process had in memory."""
    unit = 1 if sys.platform == "darwin" else 1024
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * unit


@cache
def code_version() -> tuple[str | None, bool | None]:
    """Return the commit of our code, and whether it was changed since; None outside a checkout.

    Asked once, when this process, or that which it is a copy of, had just imported the code.
    """
    here = Path(__file__).parent
    if not _is_tracked(Path(__file__)):
        return None, None
    try:
        return _git(here, "rev-parse", "HEAD"), bool(_git(here, "status", "--porcelain", "-uno"))
    except (OSError, subprocess.SubprocessError):
        return None, None


def brought_versions(targets: Iterable[str]) -> dict[str, str]:
    """Return the versions of the distributions that the import paths `targets` come from.

    A module without a distribution, as of a user's own file, has none.
    """
    modules = {target.partition(".")[0] for target in targets} - {"resnests"}
    if not modules:
        return {}  # as listing all distributions takes a tenth of a second
    known = importlib.metadata.packages_distributions()
    names = sorted({name for module in modules for name in known.get(module, ())})
    return {name: importlib.metadata.version(name) for name in names}


def own_repositories(targets: Iterable[str]) -> list[dict[str, Any]]:
    """Return commit and dirty flag of the repositories that the working directory and the sources
    of `targets` are in, but for ours.

    A source that its repository does not know makes it dirty, other unknown files do not.
    """
    sources = [path.resolve() for target in targets for path in source_files(target)]
    folders = dict.fromkeys([Path.cwd(), *(path.parent for path in sources)])
    roots = dict.fromkeys(root for folder in folders if (root := _repository(folder)))
    if _is_tracked(Path(__file__)) and (ours := _repository(Path(__file__).parent)):
        roots.pop(ours, None)
    found = []
    for root in roots:
        inside = [str(path) for path in sources if path.is_relative_to(root)]
        try:
            commit = _git(root, "rev-parse", "HEAD")
            changed = _git(root, "status", "--porcelain", "-uno")
            unknown = ("status", "--porcelain", "-unormal", "--")
            changed += _git(root, *unknown, *inside) if inside else ""
        except (OSError, subprocess.SubprocessError):  # no commit yet, or a broken repository
            continue
        found.append({"repository": str(root), "commit": commit, "dirty": bool(changed)})
    return found


@cache
def _is_tracked(file: Path) -> bool:
    """Return whether a repository has `file`: an environment may lie in somebody else's."""
    try:
        return bool(_git(file.parent, "ls-files", "--error-unmatch", file.name))
    except (OSError, subprocess.SubprocessError):
        return False


def _repository(folder: Path) -> Path | None:
    """Return the root of the git repository that `folder` is in, None where it is in none."""
    try:
        return Path(_git(folder, "rev-parse", "--show-toplevel")).resolve()
    except (OSError, subprocess.SubprocessError):
        return None


def _git(folder: Path, *arguments: str) -> str:
    """Return what git prints; raise an OSError or a SubprocessError."""
    command = ["git", "-C", str(folder), *arguments]
    env = {name: value for name, value in os.environ.items() if name not in _OF_A_HOOK}
    done = subprocess.run(command, capture_output=True, text=True, check=True, timeout=10, env=env)
    return done.stdout.strip()


def _device_name(device: torch.device) -> str:
    if device.type == "cuda":
        return torch.cuda.get_device_name(device)
    if device.type == "cpu" and (name := cpu_info().get("model name")):
        return name
    return platform.processor() or device.type
