"""Set where a training starts from, other than its seed's draws, and what of it stays frozen."""

from __future__ import annotations

import logging
from fnmatch import fnmatchcase
from functools import cache

import torch
from torch import Tensor, nn

from resnests.config.schema import Config
from resnests.environment import is_dry_run
from resnests.errors import UserError, require, require_extra
from resnests.models.weights import read_weights
from resnests.runs.weights import init_file

log = logging.getLogger(__name__)


@cache
def _print_untried(name: str) -> None:
    """Say once that a dry run does not fetch the weights of this name."""
    print(f"init.weights={name}: not tried, as a dry run downloads nothing")


def warm_start(model: nn.Module, config: Config, num_classes: int) -> None:
    """Put the weights of `init` into `model`, and freeze what it says; raise a UserError."""
    init = config.init
    if init.weights is not None:
        path = init_file(init)
        if path is None and is_dry_run():
            _print_untried(init.weights)
        else:
            given = read_weights(path, "init.weights") if path else _pretrained(init.weights)
            _load(model, given, init.weights, init.strict, num_classes)
    names = [name for name, _ in model.named_parameters()]
    for pattern in init.freeze:
        such = f"such as {names[0]} or {names[0].partition('.')[0]}.*"
        expected = f"a pattern that fits a parameter, as * ? [ab] in names of files, {such}"
        found = [name for name in names if fnmatchcase(name, pattern)]
        require(bool(found), "init.freeze", pattern, expected)
        for name in found:
            model.get_parameter(name).requires_grad_(False)
    ok = any(parameter.requires_grad for parameter in model.parameters())
    require(ok, "init.freeze", init.freeze, "patterns that leave a parameter to train")


def _load(
    model: nn.Module, given: dict[str, Tensor], what: str, strict: bool, num_classes: int
) -> None:
    """Take the tensors that fit by name and shape.

    With `strict` all must, but those that differ in the number of classes only: such a head is
    left as it was drawn.
    """
    own = model.state_dict()
    fitting = {k: v for k, v in given.items() if k in own and v.shape == own[k].shape}
    heads = {
        name
        for name in own.keys() & given.keys() - fitting.keys()
        if own[name].ndim and len(own[name]) == num_classes
        if own[name].shape[1:] == given[name].shape[1:] and given[name].ndim
    }
    others = sorted((own.keys() | given.keys()) - fitting.keys() - heads)
    if strict and others:
        few = ", ".join(others[:3]) + (f" and {len(others) - 3} more" if len(others) > 3 else "")
        mend = "init.strict=false takes what fits"
        raise UserError(f"init.weights={what}: {few} do not fit by name and shape; {mend}")
    if not any(name in fitting for name, _ in model.named_parameters()):
        raise UserError(f"init.weights={what}: expected weights of which some fit the network")
    model.load_state_dict(fitting, strict=False)
    if left := sorted(own.keys() - fitting.keys()):
        log.info("init.weights=%s: as drawn stay %s", what, ", ".join(left))


def _pretrained(name: str) -> dict[str, Tensor]:
    """Return what torchvision or timm has under `name`, downloaded where it is not in their cache;
    raise a UserError.
    """
    try:
        if name.startswith("timm/"):
            timm = require_extra(f"init.weights={name}", "timm", "timm")
            return timm.create_model(name.removeprefix("timm/"), pretrained=True).state_dict()
        from torchvision.models import get_weight

        return get_weight(name).get_state_dict(progress=False, check_hash=True, map_location="cpu")
    except UserError:
        raise
    except torch.cuda.OutOfMemoryError:
        raise
    except Exception as error:
        reason = f"{type(error).__name__}: {error}".splitlines()[0]
        known = "a file, a run, timm/NAME, or a name of torchvision's"
        expected = f"{known}, such as ResNet18_Weights.IMAGENET1K_V1"
        raise UserError(f"init.weights={name}: expected {expected} ({reason})") from error
