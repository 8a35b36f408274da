"""Find weights in a folder of the official naming scheme, and where ours go in one.

<folder>/<CIFAR10>_<AResNEst>_<WRN_16_8>_seed=<n>/last_model.pt
"""

from __future__ import annotations

import hashlib
from pathlib import Path

from resnests.config.schema import Config, Init
from resnests.config.targets import update_digest
from resnests.errors import UserError, require
from resnests.paper import official_name
from resnests.runs.directory import RunDirectory


def weights_file(config: Config) -> Path:
    """Return the file that `weights` names, or that the official scheme gives in the folder that it
    names; to analyse without `weights`, the final weights of the run.
    """
    if config.task == "analyze" and config.weights is None:
        return RunDirectory.of(config).analysed.weights_file
    require(
        config.weights is not None,
        "weights",
        "null",
        f"a file or folder, which task={config.task} needs",
    )
    path = Path(str(config.weights))
    if path.is_dir():
        path = path / _official_name(config) / "last_model.pt"
    if not path.is_file():
        raise UserError(f"weights={config.weights}: there is no file {path}")
    return path


def init_file(init: Init) -> Path | None:
    """Return the file that init.weights names, None where it is the name of published weights."""
    path = Path(str(init.weights))
    path = path / "model.pt" if path.is_dir() else path
    return path if init.weights is not None and path.is_file() else None


def require_analysable(config: Config) -> None:
    """Raise a UserError unless the run that `config` analyses is complete."""
    file = weights_file(config)
    run = RunDirectory.of(config).analysed
    status = run.status()
    if status != "complete":
        found = f"its status is {status}" if status else "there is no such run"
        mend = "task=evaluate" if config.weights else "analysis.train=true or task=train"
        raise UserError(
            f"task=analyze: {run.path}: expected a complete run, but {found}; first {mend}"
        )
    if not file.is_file():
        mend = "task=train trainer.overwrite=true trains the run afresh"
        raise UserError(f"task=analyze: {file}: expected the weights of the run; {mend}")


def _official_name(config: Config) -> str:
    return official_name(config.dataset.name, config.arch.name, config.variant.name, config.seed)


def digest(path: Path) -> str:
    """Return the SHA-256 of a file."""
    content = hashlib.sha256()
    update_digest(content, path)
    return content.hexdigest()


def export_target(config: Config) -> Path:
    """Return where the official scheme has the weights of a run, below the folder to export to."""
    require(
        config.weights is not None,
        "weights",
        "null",
        "the folder to export to, which task=export needs",
    )
    return Path(str(config.weights)) / _official_name(config) / "last_model.pt"


def finished(config: Config, purpose: str = "to export") -> RunDirectory:
    """Return the directory of a run that has its final weights; raise a UserError."""
    directory = RunDirectory.of(config)
    if directory.status() != "complete" or not directory.weights_file.is_file():
        raise UserError(f"{directory.path}: no finished run {purpose}")
    return directory
