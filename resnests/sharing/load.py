"""Load an exported network from its folder, which may come from anybody."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from omegaconf import OmegaConf
from omegaconf.errors import OmegaConfBaseException
from torch import nn

from resnests.config.compose import conf_dir
from resnests.config.parts import Arch, Component
from resnests.config.schema import part_from
from resnests.config.targets import naming, targets
from resnests.errors import UserError, require_extra
from resnests.models.resnet import build_network, count_parameters
from resnests.runs.files import opened, read_file

FORM = "safetensors"
# What reading JSON of another form than ours ends in.
MALFORMED = (
    ValueError, LookupError, TypeError, AttributeError, OverflowError, RecursionError,
    OmegaConfBaseException,
)  # fmt: skip


def load_model(folder: Path | str, trust: bool = False) -> nn.Module:
    """Return the network in a folder of `task=export format=safetensors`, in eval mode: images
    (N, 3, H, W), normalised as config.json says, to logits (N, num_classes).

    Raise a UserError where the folder is not what it says of itself: the digest of the weights,
    that of the configuration in them, names and shapes, the number of parameters. None of that
    keeps a folder of bad intent from being whole, so code that it names is only run with `trust`:
    without it, config.json can name no more than the networks of this package, and
    those of timm and torchvision as conf/arch has them, with the same arguments.
    """
    from resnests.models.weights import load_weights

    place = Path(folder).expanduser()
    try:
        about = json.loads(read_file(place / "config.json"))
        # As it was read: in the file itself each character may be escaped
        if any("${" in text for text in _strings(about)):
            raise ValueError("a value refers to another one")
        described = files_of(about)
        arch, variant = part_from("arch", about["arch"]), part_from("variant", about["variant"])
        num_classes, parameters = int(about["num_classes"]), int(about["parameters"])
        if FORM not in described:
            expected = f"one of format={FORM}; the model card says how to load it"
            raise UserError(f"{folder}: holds format={', '.join(described)}, expected {expected}")
        weights = place / Path(described[FORM]["file"]).name
        with opened(weights) as file:  # no link to what never ends
            data = file.read()
        if hashlib.sha256(data).hexdigest() != described[FORM]["sha256"]:
            reason = "is not the file that config.json describes (sha256 differs)"
            raise UserError(f"{weights}: {reason}")
    except UserError:
        raise
    except (OSError, *MALFORMED) as error:
        reason = f"{type(error).__name__}: {error}"
        raise UserError(f"{folder}: expected a folder of task=export ({reason})") from error
    _require_own_values(weights, about)
    for component in () if trust else (arch, variant):
        _require_own_code(place, component)
    with naming(f"{folder}: its network cannot be built"):  # as of a negative number of classes
        model = build_network(arch, variant, num_classes)
    load_weights(weights, model)
    if (count := count_parameters(model)) != parameters:
        raise UserError(f"{folder}: {count} parameters, config.json says {parameters}")
    return model.eval()


def files_of(about: dict[str, Any]) -> dict[str, dict[str, str]]:
    """Return the file and its sha256 by format, of what config.json says; earlier versions had one
    format in a folder.
    """
    if "files" in about:
        return dict(about["files"].items())
    return {about["format"]: {"file": about["file"], "sha256": about["sha256"]}}


def _strings(node: Any) -> Iterator[str]:
    """Yield all strings in what JSON holds, the keys included."""
    if isinstance(node, str):
        yield node
    inner = [*node, *node.values()] if isinstance(node, dict) else node
    for value in inner if isinstance(inner, list) else ():
        yield from _strings(value)


def own_values(about: dict[str, Any]) -> str:
    """Return a digest of what config.json says, but for the files."""
    values = {key: value for key, value in about.items() if key != "files"}
    text = json.dumps(values, sort_keys=True, separators=(",", ":"))
    return hashlib.sha256(text.encode()).hexdigest()


def _require_own_values(weights: Path, about: dict[str, Any]) -> None:
    """Raise a UserError where config.json was edited: another head may have the same names and
    shapes. Files of earlier versions do not tell.
    """
    safetensors = require_extra(f"weights={weights}", "safetensors", "hub")
    try:
        with safetensors.safe_open(weights, framework="pt") as file:
            expected = (file.metadata() or {}).get("config")
    except (safetensors.SafetensorError, OSError) as error:
        raise UserError(f"{weights}: is cut short, corrupt or foreign ({error})") from error
    if expected not in (None, own_values(about)):
        raise UserError(f"{weights}: config.json was edited since these weights were exported")


def _require_own_code(place: Path, component: Component) -> None:
    """Raise a UserError where a component names code other than the networks in conf/.

    All of this package would be too much: it has functions that write files. Factories of other
    libraries, which also read files and download, may have no other arguments than in conf/.
    """
    group = "arch" if isinstance(component, Arch) else "variant"
    trees: list[Any] = [
        OmegaConf.to_container(OmegaConf.load(file)) for file in conf_dir().glob(f"{group}/*.yaml")
    ]
    if component in [part_from(group, tree) for tree in trees]:
        return
    known = {tree.get("_target_") for tree in trees}
    for target in targets(component):
        if target not in known or not target.startswith("resnests."):
            mend = "trust=True runs it: do that where you trust who made the folder"
            raise UserError(f"{place}: config.json names code, {target}, which is not run. {mend}")
