"""Define the typed configuration: one dataclass tree, checked when it is built.

A field marked `unhashed` decides where, how fast or how verbosely a run happens, never which
numbers come out: it is no part of a run's identity (recipe.py). The defaults here are, so they must
never change.
"""

from __future__ import annotations

import dataclasses
import math
import os
from dataclasses import dataclass, field
from functools import cache
from typing import Any, cast, get_type_hints

from omegaconf import DictConfig, OmegaConf
from omegaconf.errors import MissingMandatoryValue, OmegaConfBaseException

from resnests.config.cluster import Cluster
from resnests.config.parts import (
    HEADS,
    Arch,
    Component,
    Dataset,
    Loss,
    Metric,
    Optimizer,
    Variant,
    is_positive,
    unhashed,
)
from resnests.config.training import Init, Pipeline, Trainer
from resnests.config.tune import Tune
from resnests.errors import UserError, expanded, require, require_name, require_one_of

PARTS: dict[str, type[Component]] = {
    "dataset": Dataset,
    "arch": Arch,
    "variant": Variant,
    "optimizer": Optimizer,
    "loss": Loss,
}
TASKS = ("train", "evaluate", "export", "analyze", "tune", "predict")
FORMATS = ("official", "safetensors", "onnx", "torchscript")
MAX_SEED = 2**32 - 1


@dataclass
class Devices:
    slots: int | None = None  # at most so many runs at once; null: as many as there are slots
    # what more of them gain is not measured yet: benchmarks.train_speed --device cuda tells
    runs_per_gpu: int = 1
    # runs at once where there is no GPU; null: one per core, the fastest for small nets
    cpu_slots: int | None = None
    # a GPU of which other programs leave less than so many GB is passed over
    min_free_gb: float = 1.0
    # whether a sweep starts an MPS daemon where several runs share a GPU; null: where it can
    mps: bool | None = False
    wait: bool = True  # false: fail at once where every slot is taken
    # Linux: the runs of a sweep start as copies of a process that has imported torch
    fork: bool = True

    def __post_init__(self) -> None:
        for key in ("slots", "cpu_slots"):
            value = getattr(self, key)
            require(value is None or value >= 1, f"devices.{key}", value, "at least 1, or null")
        require(self.runs_per_gpu >= 1, "devices.runs_per_gpu", self.runs_per_gpu, "at least 1")
        require(self.min_free_gb >= 0, "devices.min_free_gb", self.min_free_gb, "0 or more")
        expected = "null or false with devices.runs_per_gpu=1, where no runs share a GPU"
        require(not self.mps or self.runs_per_gpu > 1, "devices.mps", self.mps, expected)


@dataclass
class Sweep:
    retries: int = 0  # how often a run that failed is tried again before the sweep ends
    fail_fast: bool = False  # true: the first run that fails, diverges or is killed ends the sweep
    dry_run: bool = False  # true: try and print what the sweep would do, and write nothing

    def __post_init__(self) -> None:
        require(self.retries >= 0, "sweep.retries", self.retries, "0 or more")


@dataclass
class AnalysisOptions:
    """Holds the options of task=analyze; see docs/theory.md."""

    l2: float = 5e-4  # on the squared norm of a map of standardised features, halved; bias included
    tolerance: float = 5e-4  # nats that a minimum may at most be above the least value
    # other penalties, with which (b) and (c) are solved as well
    l2_path: list[float] = field(default_factory=list)
    memory_gb: float = 4.0  # beyond it features are kept in a file
    train: bool = False  # train first what is not complete

    def __post_init__(self) -> None:
        for key in ("l2", "tolerance", "memory_gb"):
            value = getattr(self, key)
            require(is_positive(value), f"analysis.{key}", value, "a positive number")
        path, expected = self.l2_path, "positive numbers, each once, such as [5e-5,5e-3]"
        ok = all(map(is_positive, path)) and len({*path}) == len(path)
        require(ok, "analysis.l2_path", path, expected)


@dataclass
class Predict:
    """Holds the options of task=predict."""

    folder: str | None = None  # of images without labels; null: the test images of the run

    def __post_init__(self) -> None:
        expected = "a folder with images, or null"  # nothing, as of an empty variable, is none
        require(self.folder != "", "predict.folder", "''", expected)
        self.folder = self.folder and expanded("predict.folder", self.folder)


@dataclass
class Config:
    dataset: Dataset
    arch: Arch
    variant: Variant
    optimizer: Optimizer
    pipeline: Pipeline
    seed: int
    loss: Loss = field(default_factory=Loss)
    init: Init = field(default_factory=Init)
    trainer: Trainer = field(default_factory=Trainer)
    devices: Devices = field(default_factory=Devices, metadata={"unhashed": True})
    sweep: Sweep = field(default_factory=Sweep, metadata={"unhashed": True})
    analysis: AnalysisOptions = field(default_factory=AnalysisOptions, metadata={"unhashed": True})
    tune: Tune = field(default_factory=Tune, metadata={"unhashed": True})
    predict: Predict = field(default_factory=Predict, metadata={"unhashed": True})
    # null: this machine
    cluster: Cluster | None = field(default=None, metadata={"unhashed": True})
    runs_dir: str = unhashed("runs")  # where the run directories go
    task: str = unhashed("train")  # one of TASKS
    # to evaluate, or to analyse once evaluated: a file, or a folder in the official scheme; to
    # export to: a folder
    weights: str | None = unhashed(None)
    format: str = unhashed("official")  # of task=export, one of FORMATS
    # name -> _target_ and its arguments: where runs are copied to (trackers/)
    logger: dict[str, Any] = field(default_factory=dict, metadata={"unhashed": True})
    # name -> _target_ and its arguments: what is measured beside loss and accuracy (config.parts)
    metrics: dict[str, Any] = field(default_factory=dict, metadata={"unhashed": True})
    # whether predictions.npz is written: what the network says of each test image
    predictions: bool = unhashed(False)
    # No key of the user's: what was read from disk and changes the numbers, as runs/digests.py
    # found it when the sweep was planned. It is part of the recipe under keys of its own.
    digests: dict[str, str] = field(default_factory=dict)

    def __post_init__(self) -> None:
        for key in ("runs_dir", "weights"):  # as of a variable of the shell that is not set
            expected = "a path, or no word for it at all; . is the folder of the command"
            require(getattr(self, key) != "", key, "", expected)
        self.runs_dir = expanded("runs_dir", self.runs_dir)
        self.weights = self.weights and expanded("weights", self.weights)
        require_one_of("task", self.task, TASKS)
        require_one_of("format", self.format, FORMATS)
        require(0 <= self.seed <= MAX_SEED, "seed", self.seed, f"0 to {MAX_SEED}")
        self._check_task()
        self._check_cluster()
        self._check_loggers()
        self.metric_parts()
        self._check_training()

    def _check_task(self) -> None:
        """Require that no key is given which the task would ignore."""
        expected = "false with weights, which are not trained here"
        ok = self.weights is None or not self.analysis.train
        require(ok, "analysis.train", self.analysis.train, expected)
        why = "is of finished runs" if self.task == "predict" else "starts from its seed"
        ok = self.weights is None or self.task not in ("train", "tune", "predict")
        require(ok, "weights", self.weights, f"null, as task={self.task} {why}")
        ok = self.predict.folder is None or self.task == "predict"
        expected = f"null, as task={self.task} reads no such folder"
        require(ok, "predict.folder", self.predict.folder, expected)
        ok = self.task == "export" or self.format == "official"
        require(ok, "format", self.format, f"official, as task={self.task} exports nothing")
        given = self.task == "evaluate" or (self.task == "analyze" and self.weights is not None)
        expected = f"none with task={self.task} and weights, which are not trained here"
        ok = not given or self.init == Init()
        require(ok, "init", self.init.weights or self.init.freeze, expected)

    def _check_cluster(self) -> None:
        """Require that a cluster can do the task, and that its own keys say how."""
        name = self.cluster.name if self.cluster else None
        if name is None:
            return
        elsewhere = {
            "export": "trains nothing",
            "predict": "trains nothing",
            "tune": "trains here; jobs of a cluster can share a study",
        }
        expected = f"null, as task={self.task} {elsewhere.get(self.task)}"
        require(self.task not in elsewhere, "cluster", name, expected)
        expected = f"null with cluster={name}, where cluster.jobs is the limit"
        require(self.devices.slots is None, "devices.slots", self.devices.slots, expected)
        expected = f"null or false with cluster={name} (docs/cluster.md says what starts MPS there)"
        require(not self.devices.mps, "devices.mps", self.devices.mps, expected)

    def _check_loggers(self) -> None:
        """Require a `_target_` of each logger, and expand ~ in what it is called with."""
        for name, values in self.logger.items():
            require_name("logger", name)
            ok = isinstance(values, dict) and isinstance(values.get("_target_"), str)
            require(ok, f"logger.{name}", values, "a _target_ and what it is called with")
            self.logger[name] = {
                key: os.path.expanduser(value) if isinstance(value, str) else value
                for key, value in values.items()
            }

    def _check_training(self) -> None:
        """Require that the components fit each other."""
        ok = self.trainer.patience is None or self.dataset.val_fraction > 0
        expected = "null without dataset.val_fraction, as the test set decides nothing"
        require(ok, "trainer.patience", self.trainer.patience, expected)
        ok = self.loss.target is None or self.trainer.label_smoothing == 0
        expected = "0 beside loss._target_, among whose keys it may be"
        require(ok, "trainer.label_smoothing", self.trainer.label_smoothing, expected)
        if self.arch.target is None and self.variant.target is None:
            require_one_of("variant.head", self.variant.head, HEADS)
        if self.arch.target is not None and self.variant.target is not None:
            expected = f"a head by name, as {self.arch.target} builds whole networks"
            require(False, "variant._target_", self.variant.target, expected)

    def code_parts(self) -> dict[str, Component]:
        """Return what may bring source that changes the numbers of a run, by its place."""
        mixed = [part for part in (self.pipeline.mix_part(),) if part]
        brought = [*self.pipeline.augment_parts(), *mixed]
        args = {"brought": [{"_target_": part.target, **part.args} for part in brought]}
        parts = {group: getattr(self, group) for group in PARTS}
        schedule = self.optimizer.schedule_part() or Component(name="schedule")
        augment = Component(name="augment", args=args)
        return parts | {"pipeline": augment, "optimizer.schedule": schedule}

    def metric_parts(self) -> list[Metric]:
        """Return the entries of `metrics`, checked; raise a UserError."""
        return [metric_from(name, values) for name, values in self.metrics.items()]


def metric_from(name: str, values: Any) -> Metric:
    """Return one entry of `metrics`; raise a UserError that names what does not fit."""
    expected = "a _target_ and what it is called with"
    require(isinstance(values, dict), f"metrics.{name}", values, expected)
    own = {key: values[key] for key in ("_target_", "unit", "better") if key in values}
    return Metric(name=name, args={k: v for k, v in values.items() if k not in own}, **own)


def hydra_schema() -> type:
    """Return what Hydra composes against: Config, but with open keys in the components that users
    bring. config_from checks those.
    """
    types = get_type_hints(Config)
    fields: list[tuple] = []
    for item in dataclasses.fields(Config):
        if item.name == "digests":  # which are not the user's to set
            continue
        if item.name == "cluster":  # so that its keys are there to be set, or complained of
            fields.append((item.name, types[item.name], field(default_factory=Cluster)))
        elif item.name in PARTS:
            defaults = _defaults(PARTS[item.name])
            fields.append((item.name, Any, field(default_factory=defaults.copy)))
        elif item.default is dataclasses.MISSING and item.default_factory is dataclasses.MISSING:
            fields.append((item.name, types[item.name]))
        else:
            default: Any = {"default": item.default, "default_factory": item.default_factory}
            fields.append((item.name, types[item.name], field(**default)))
    return dataclasses.make_dataclass("Schema", fields, kw_only=True)


def _defaults(kind: type[Component]) -> dict[str, Any]:
    """Return the values of a component whose YAML says nothing: overrides need them to be there."""
    values = {}
    for item in dataclasses.fields(kind):
        if item.name not in ("_target_", "args"):
            if item.default is not dataclasses.MISSING:
                values[item.name] = item.default
            elif item.default_factory is not dataclasses.MISSING:
                values[item.name] = item.default_factory()
    return values


@cache
def _structured() -> DictConfig:
    return OmegaConf.structured(Config)


def config_from(node: DictConfig | dict[str, Any]) -> Config:
    """Return the checked Config of a composed or loaded tree; raise a UserError that names what
    does not fit.
    """
    try:
        composed = isinstance(node, DictConfig)
        tree: Any = OmegaConf.to_container(
            node if composed else OmegaConf.create(node), resolve=True
        )
        if composed and "digests" in tree:
            raise UserError("digests: expected no such key, as digests are taken of the files")
        require_plain("", tree)
        for group, kind in PARTS.items():
            tree[group] = _with_args(group, kind, tree.get(group) or {})
        if all(value is None for value in (tree.get("cluster") or {}).values()):
            tree["cluster"] = None
        merged = OmegaConf.merge(_structured(), tree)
        return cast(Config, OmegaConf.to_object(merged))
    except MissingMandatoryValue as error:
        mend = f"expected a value, as it has no default: {error.full_key}=..."
        raise UserError(f"{error.full_key}: {mend}") from error
    except OmegaConfBaseException as error:
        said = str(error.msg or error).splitlines()[0]
        if "is not a ListConfig" in said:
            said = f"expected a list, in brackets: {error.full_key}=[...]"
        raise UserError(f"{error.full_key}: {said}") from error


def part_from(group: str, values: dict[str, Any]) -> Any:
    """Return one component from what its YAML file holds; raise a UserError that names what does
    not fit.
    """
    tree = _with_args(group, PARTS[group], values)
    return OmegaConf.to_object(OmegaConf.merge(OmegaConf.structured(PARTS[group]), tree))


def require_plain(key: str, node: Any) -> None:
    """Raise a UserError unless JSON carries `node`, the value of `key`, as it is.

    Configurations travel to workers and onto records as JSON. It has no infinity and no keys but
    text, and would hand a network {"1": 4} where its YAML says {1: 4}.
    """
    if isinstance(node, dict):
        for name, value in node.items():
            inner = f"{key}.{name}" if key else str(name)
            require(
                isinstance(name, str), inner, value, f"text as a key, such as '{name}' in quotes"
            )
            require_plain(inner, value)
    elif isinstance(node, list):
        for index, value in enumerate(node):
            require_plain(f"{key}[{index}]", value)
    elif isinstance(node, float):
        require(math.isfinite(node), key, node, "a finite number")
    else:
        plain = node is None or isinstance(node, str | int)
        require(plain, key, node, "text, a number, true, false, null, a list or a mapping")


def _with_args(group: str, kind: type[Component], values: dict[str, Any]) -> dict[str, Any]:
    """Return `values` as their dataclass has them: keys of its own, and what a `_target_` is
    given.
    """
    expected = f"the keys of a file in {group}/"
    require(isinstance(values, dict), group, values, expected)
    if values.get("_partial_") is True and group == "optimizer":
        # Hydra's word for what happens to an optimizer here: it is called with the parameters later
        values = {key: value for key, value in values.items() if key != "_partial_"}
    own = {item.name for item in dataclasses.fields(kind)} - {"args"}
    args = {key: value for key, value in values.items() if key not in own}
    target = values.get("_target_")
    if group == "dataset" and target is not None:  # it makes its images as large as it likes
        own.remove("size")
        args = {key: value for key, value in values.items() if key not in own}
        if args.get("size", 0) is None:  # as it is where no YAML sets it
            del args["size"]
    for key, value in args.items():
        keys = ", ".join(sorted(own - {"_target_"}))
        expected = f"a key of {group} ({keys}), or a _target_ that takes it"
        require(target is not None, f"{group}.{key}", value, expected)
        ok = key.isidentifier() and key != "_partial_"
        require(ok, f"{group}.{key}", value, "the name of an argument as a key")
    name = values.get("name", "")
    expected = f"text, in quotes where it could be a number: {group}.name='\"2024_01\"'"
    require(isinstance(name, str), f"{group}.name", name, expected)
    known = {key: value for key, value in values.items() if key in own}
    if isinstance(target, str):
        known.setdefault("name", target.rpartition(".")[2])
    return known | {"args": args}


def config_dict(config: Config) -> dict[str, Any]:
    """Return the whole configuration as plain dicts, lists and scalars, as it is in YAML."""
    tree = dataclasses.asdict(config)
    for group in PARTS:
        part = tree[group]
        part |= part.pop("args")
        if part["_target_"] is None:
            del part["_target_"]
    if not tree["digests"]:
        del tree["digests"]
    return tree
