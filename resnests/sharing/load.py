"""An exported network back from its folder."""

from __future__ import annotations

import hashlib
import json
from pathlib import Path

from torch import nn

from resnests.config.schema import part_from
from resnests.errors import UserError
from resnests.models.resnet import build_network, count_parameters


def load_model(folder: Path | str) -> nn.Module:
    """The network in a folder of `task=export format=safetensors`, in eval mode: images
    (N, 3, H, W), normalised as config.json says, to logits (N, num_classes).

    Raises a UserError where the folder is not what it says of itself: the digest of the weights,
    names and shapes, the number of parameters.
    """
    from resnests.models.weights import load_weights

    place = Path(folder)
    try:
        about = json.loads((place / "config.json").read_bytes())
        weights = place / about["file"]
        digest = hashlib.sha256(weights.read_bytes()).hexdigest()
        arch, variant = part_from("arch", about["arch"]), part_from("variant", about["variant"])
    except (OSError, ValueError, KeyError) as error:
        reason = f"{type(error).__name__}: {error}"
        raise UserError(f"{folder}: expected a folder of task=export ({reason})") from error
    if about["format"] != "safetensors":
        expected = "one of format=safetensors; the model card says how to load it"
        raise UserError(f"{folder}: holds format={about['format']}, expected {expected}")
    if digest != about["sha256"]:
        raise UserError(f"{weights}: is not the file that config.json describes (sha256 differs)")
    model = build_network(arch, variant, about["num_classes"])
    load_weights(weights, model)
    if (count := count_parameters(model)) != about["parameters"]:
        raise UserError(f"{folder}: {count} parameters, config.json says {about['parameters']}")
    return model.eval()
