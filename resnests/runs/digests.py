"""Digest what runs read from disk, once, when a sweep is planned.

A run's numbers follow from its configuration and from files: the source of brought components,
images without checksums, weights to evaluate. If each process asked the disk for itself, a file
that is edited while runs wait for a device would give one run several identities: it would be
trained in a directory that nobody locked. So `with_digests` reads everything once, what it found
travels with the configuration, and whoever trains asks `require_unchanged`. No torch.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Sequence
from dataclasses import asdict, replace
from functools import cache
from pathlib import Path

from resnests.config.parts import Component
from resnests.config.recipe import CODE, IMAGES, INIT, WEIGHTS, WEIGHTS_OF_SEED
from resnests.config.schema import Config
from resnests.config.targets import code_digest, targets, update_digest
from resnests.errors import UserError
from resnests.runs.directory import RunDirectory
from resnests.runs.weights import init_file, weights_file


def with_digests(configs: Sequence[Config]) -> list[Config]:
    """Return `configs` with the digests of all that they read from disk, each read once; raise a
    UserError where something cannot be read.
    """
    digester = Digester()
    return [digester.with_digests(config) for config in configs]


def require_unchanged(config: Config) -> None:
    """Raise a UserError where source or weights are not what they were when the sweep was planned.

    A worker asks this once it owns its directory and has its device, as the wait for a device may
    have taken hours, and again after it has read the files: only then is it sure which it read.
    Images are compared as they are loaded (data/splits.py).
    """
    now = Digester().digests(config, images=False)
    for key in sorted((now.keys() | config.digests.keys()) - {IMAGES}):
        if now.get(key) != config.digests.get(key):
            raise UserError(f"{_source(config, key)} was changed since the sweep was planned")


class Digester:
    """Reads what configurations name on disk, each file once as long as it lives.

    A search keeps one for all of its trials.
    """

    def __init__(self) -> None:
        self._weights = cache(_file_digest)
        self._known: dict[str, str | None] = {}

    def with_digests(self, config: Config) -> Config:
        """Return `config` with its digests; raise a UserError where something cannot be read."""
        config = _with_recorded_statistics(config)
        found = self.digests(config)
        return config if found == config.digests else replace(config, digests=found)

    def digests(self, config: Config, images: bool = True) -> dict[str, str]:
        """Return the digests of `config` by the keys that they have in a recipe."""
        parts = config.code_parts()
        found = {f"{group}.{CODE}": self._code(group, part) for group, part in parts.items()}
        if config.task != "evaluate" and (start := init_file(config.init)) is not None:
            found[INIT] = self._weights(start)
        found[IMAGES] = self._images(config) if images else None
        if _is_given(config):
            in_folder = Path(str(config.weights)).is_dir()
            file = weights_file(config)
            found[WEIGHTS_OF_SEED if in_folder else WEIGHTS] = self._weights(file)
        return {key: value for key, value in found.items() if value is not None}

    def _code(self, group: str, component: Component) -> str | None:
        if not any(targets(component)):
            return None
        key = json.dumps([group, asdict(component)])
        if key not in self._known:
            try:
                self._known[key] = code_digest(component)
            except OSError as error:
                what = f"{group}._target_={component.target}"
                reason = f"{error.filename} cannot be read ({error.strerror})"
                raise UserError(f"{what}: {reason}") from error
        return self._known[key]

    def _images(self, config: Config) -> str | None:
        from resnests.data.digest import dataset_digest

        key = json.dumps(["images", asdict(config.dataset)])
        if key not in self._known:
            self._known[key] = dataset_digest(config.dataset)
        return self._known[key]


def _is_given(config: Config) -> bool:
    """Return whether the weights of a run are given, not trained."""
    return config.weights is not None and config.task in ("evaluate", "analyze")


def _file_digest(path: Path) -> str:
    """Return sixteen hexadecimal digits of a file's content."""
    digest = hashlib.sha256()
    try:
        update_digest(digest, path)
    except OSError as error:
        raise UserError(f"weights={path}: cannot be read ({error.strerror})") from error
    return digest.hexdigest()[:16]


def _with_recorded_statistics(config: Config) -> Config:
    """Return `config` with the mean and std that given weights were trained with, where a run of
    ours trained them and its data set has none of its own.

    Measured anew they would depend on how many training images this command keeps, and the network
    would see other values than in its training.
    """
    if not _is_given(config) or config.dataset.mean is not None:
        return config
    record = RunDirectory(weights_file(config).parent).record_or_none()
    if record is None or record.mean is None:
        return config
    return replace(config, dataset=replace(config.dataset, mean=record.mean, std=record.std))


def _source(config: Config, key: str) -> str:
    """Return what a user calls the source or the weights of a digest."""
    if key in (WEIGHTS, WEIGHTS_OF_SEED):
        return f"weights={weights_file(config)}"
    if key == INIT:
        return f"init.weights={config.init.weights}"
    group = key.rpartition(".")[0]
    return f"the source of {group}._target_={', '.join(targets(config.code_parts()[group]))}"
