"""Identify a run by a hash of every configured value that changes its numbers, and of none that
does not.

A new field of the configuration joins the recipe by itself, and leaves the recipes of earlier runs
unchanged as long as it keeps its default: only values that differ from the defaults in schema.py
and parts.py are hashed.
"""

from __future__ import annotations

import dataclasses
import hashlib
import json
import os
from collections.abc import Mapping, Sequence
from typing import Any

from resnests.config.schedule import MOVED, moved_milestones
from resnests.config.schema import Config

# What matters to the numbers of given weights; the weights themselves join them.
EVALUATION_KEYS = ("dataset.", "arch.", "variant.", "trainer.precision")
# Of those, what matters to no image of the test set, and what matters only where the mean and
# standard deviation to normalise with are measured on the training images.
TRAINING_KEYS = ("dataset.flip",)
MEASURING_KEYS = ("dataset.train_limit", "dataset.val_fraction")

# Keys of Config.digests, and all but the second of recipes too: of a file of weights; of the file
# that a folder of weights has for the seed of a run; of images that have no checksums; and, after
# the name of a component, of its source.
INIT = "init.sha256"  # of the file that a training starts from, in the place of its name
WEIGHTS, WEIGHTS_OF_SEED, IMAGES = "weights.sha256", "weights.of_seed", "dataset.images.sha256"
CODE = "code"


def recipe_values(config: Config) -> dict[str, Any]:
    """Return every value that changes the numbers of a run, but for its seed, under its dotted key,
    where it is no default.

    This reads no file: what is on disk and changes the numbers is in config.digests, as
    runs/digests.py found it when the sweep was planned. The names of dataset, arch and variant are
    folders of the run directory already, and only labels of their values.
    """
    values = _identifying(config, "")
    for key in ("seed", "dataset.name", "arch.name", "variant.name"):
        del values[key]
    if INIT in values:
        del values["init.weights"]
    moved = moved_milestones(config.optimizer.milestones, config.trainer.epochs)
    if moved is not None:
        values[MOVED] = moved
    if config.trainer.patience is not None and config.trainer.eval_every != 1:
        # Patience sees evaluated epochs only. Runs of every epoch keep the recipe that they had.
        values["trainer.eval_every"] = config.trainer.eval_every
    if config.task == "evaluate" or (config.task == "analyze" and config.weights is not None):
        unused = TRAINING_KEYS if config.dataset.mean is None else TRAINING_KEYS + MEASURING_KEYS
        values = {
            key: value
            for key, value in values.items()
            if key.startswith(EVALUATION_KEYS) and key not in unused
        }
        folder = {"weights": os.path.normpath(str(config.weights))}
        # All seeds of a folder share a recipe, although each has a digest of its own.
        given = {WEIGHTS: config.digests[WEIGHTS]} if WEIGHTS in config.digests else folder
        values |= {"task": "evaluate"} | given
    return values


def recipe_hash(config: Config) -> str:
    """Return eight hexadecimal digits that two configurations share exactly when their numbers may
    be averaged.
    """
    text = json.dumps(recipe_values(config), sort_keys=True, separators=(",", ":"))
    return hashlib.sha256(text.encode()).hexdigest()[:8]


def _identifying(node: Any, prefix: str) -> dict[str, Any]:
    """Return the values of a configuration that are hashed, under their dotted keys."""
    values: dict[str, Any] = {}
    for item in dataclasses.fields(node):
        value = getattr(node, item.name)
        if item.metadata.get("unhashed"):
            continue
        if dataclasses.is_dataclass(value):
            values |= _identifying(value, f"{prefix}{item.name}.")
        elif item.name == "args":
            for key, argument in value.items():
                # An argument of the user's that is named like our digest gets a key of its own.
                values[prefix + ("args.code" if key == CODE else key)] = argument
        elif item.name == "digests":
            values |= value
        elif value != _default(item):
            values[prefix + item.name] = value
    return values


def _default(item: dataclasses.Field) -> Any:
    if item.default_factory is not dataclasses.MISSING:
        return item.default_factory()
    return item.default  # MISSING where there is none, which no value equals


def without_implied(values: Mapping[str, Any]) -> dict[str, Any]:
    """Return the recipe `values` that are keys of the configuration, as people are shown them."""
    return {key: value for key, value in values.items() if key != MOVED}


def distinguishing_keys(values: Sequence[Mapping[str, Any]]) -> set[str]:
    """Return the keys in which not all `values` agree, without those that others imply.

    optimizer.name=adamw says all about an optimizer.betas that all recipes with adamw share, and
    trainer.epochs=1 all about where milestones were moved to, but for runs of earlier versions.
    """

    def count(*keys: str) -> int:
        return len({repr([value.get(key) for key in keys]) for value in values})

    keys = {key for key in set().union(*values) if count(key) > 1}
    if count(*keys - {MOVED}) == count(*keys):
        keys.discard(MOVED)
    for name in sorted(key for key in keys if key.endswith(".name")):
        group = {key for key in keys if key.startswith(name.removesuffix("name")) and key != name}
        keys -= {key for key in group if count(name, key) == count(name)}
    return keys
