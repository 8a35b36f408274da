"""Export a finished run as a folder for others: weights, configuration, model card.

    python -m resnests.sharing.export < configs.json      # a list of configurations

    <weights>/<DIGITS_AResNEst_ResNet_20_seed=0>/
        model.safetensors, model.onnx, model.torchscript.pt: those that were asked for
        config.json        what load_model needs, and checks
        README.md          the model card

What is exported is verified before it is written: the file that another program reads gives the
logits of the network.
"""

from __future__ import annotations

import hashlib
import io
import json
import sys
import tempfile
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from resnests.config.schema import Config, config_dict, config_from
from resnests.config.targets import broken
from resnests.data.arrays import Split
from resnests.data.splits import load
from resnests.errors import UserError, exit_status_of, print_each, require_extra, run_command_line
from resnests.models.resnet import build_network
from resnests.models.weights import load_weights
from resnests.runs.directory import RunDirectory, write_atomic
from resnests.runs.record import Record
from resnests.runs.weights import digest, export_target, finished
from resnests.sharing.card import card
from resnests.sharing.load import MALFORMED, files_of, own_values

FILES = {
    "safetensors": "model.safetensors",
    "onnx": "model.onnx",
    "torchscript": "model.torchscript.pt",
}
TOLERANCE = 1e-4  # of logits, relative to the largest of them (at least 1)


def export(config: Config) -> Path:
    """Write the folder of a finished run, or its official file; return which; raise a UserError."""
    directory = finished(config)
    record = directory.read_record()
    assert record is not None
    classes = config.dataset.num_classes or record.num_classes or 0
    model = build_network(config.arch, config.variant, classes)
    load_weights(directory.weights_file, model)
    if config.format == "official":
        return _official(config, directory)
    model.eval()
    test = load(config.dataset, memory_gb=config.pipeline.memory_gb).test
    images = _noise(2, test)
    about = _about(config, record, test)
    try:
        data = _WRITERS[config.format](config, model, images, about)
    except UserError:
        raise
    except Exception as error:  # of the format's own library, which knows not every network
        raise broken(f"format={config.format}: the network cannot be exported", error) from error
    folder = export_target(config).parent
    try:
        folder.mkdir(parents=True, exist_ok=True)
        before = _exported(folder)
        write_atomic(folder / FILES[config.format], data)
        about["files"] = _kept(before, about) | {
            config.format: {
                "file": FILES[config.format],
                "sha256": hashlib.sha256(data).hexdigest(),
            }
        }
        write_atomic(folder / "config.json", (json.dumps(about, indent=1) + "\n").encode())
        write_atomic(folder / "README.md", card(directory, record, about).encode())
        for form in before.get("files", {}).keys() - about["files"].keys():
            (folder / FILES[form]).unlink()  # of another network: config.json has it no more
    except OSError as error:
        reason = f"{folder} cannot be written ({error.strerror})"
        raise UserError(f"weights={config.weights}: {reason}") from error
    return folder


def _official(config: Config, directory: RunDirectory) -> Path:
    """Copy weights that were just read to where the official scheme has them."""
    target = export_target(config)
    try:
        target.parent.mkdir(parents=True, exist_ok=True)
        write_atomic(target, directory.weights_file.read_bytes())
    except OSError as error:
        reason = f"{target} cannot be written ({error.strerror})"
        raise UserError(f"weights={config.weights}: {reason}") from error
    return target


def _exported(folder: Path) -> dict[str, Any]:
    """Return what config.json in `folder` says, of files only those that are as it says; nothing
    where it is no export of ours.
    """
    try:
        about = json.loads((folder / "config.json").read_bytes())
        files = {
            form: file
            for form, file in files_of(about).items()
            if (path := folder / FILES[form]).is_file() and digest(path) == file["sha256"]
        }
        return about | {"files": files}
    except (OSError, *MALFORMED):
        return {}


def _kept(before: dict[str, Any], about: dict[str, Any]) -> dict[str, Any]:
    """Return the files in other formats that are of the same network."""
    return before["files"] if before and own_values(before) == own_values(about) else {}


def _about(config: Config, record: Record, test: Split) -> dict[str, Any]:
    """Return what config.json says of the network, whatever the format."""
    tree = config_dict(config)
    return {
        "arch": tree["arch"],
        "variant": tree["variant"],
        "num_classes": config.dataset.num_classes or record.num_classes,
        "classes": list(test.classes) if test.classes else None,
        "image_size": list(test.images.shape[1:3]),
        "size": config.dataset.size,
        "parameters": (record.parameters or 0) + (record.frozen_parameters or 0),
        "mean": record.mean or config.dataset.mean,
        "std": record.std or config.dataset.std,
        "dataset": record.dataset,
        "recipe": record.recipe,
        "seed": record.seed,
        "test_accuracy": record.test_accuracy,
        "trained": record.provenance.ended,
    }


def _safetensors(config: Config, model: nn.Module, images: Tensor, about: dict[str, Any]) -> bytes:
    """Return the weights, with a digest of what config.json says among them."""
    library = require_extra("format=safetensors", "safetensors.torch", "hub")
    # The format refuses tensors that share memory, as those of tied layers do.
    state = {name: value.contiguous().clone() for name, value in model.state_dict().items()}
    data = library.save(state, metadata={"config": own_values(about)})
    again = build_network(config.arch, config.variant, about["num_classes"])
    again.load_state_dict(library.load(data))
    _verify("safetensors", model, again.eval(), images)
    return data


def _torchscript(_config: Config, model: nn.Module, images: Tensor, _about: Any) -> bytes:
    buffer = io.BytesIO()
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # deprecated, and still what C++ programs read
        torch.jit.save(torch.jit.trace(model, images), buffer)
        loaded = torch.jit.load(io.BytesIO(buffer.getvalue()))
    _verify("torchscript", model, loaded, images)
    return buffer.getvalue()


def _onnx(_config: Config, model: nn.Module, images: Tensor, _about: Any) -> bytes:
    """Return the network as one file, which takes batches of any size."""
    for module in ("onnx", "onnxscript", "onnxruntime"):
        runtime = require_extra("format=onnx", module, "onnx")
    batch = torch.export.Dim("batch", min=1, max=2**16)
    with tempfile.TemporaryDirectory() as folder, warnings.catch_warnings():
        warnings.simplefilter("ignore")  # of the exporter's own libraries
        file = Path(folder) / "model.onnx"
        torch.onnx.export(
            model,
            (images,),
            str(file),
            input_names=["images"],
            output_names=["logits"],
            dynamic_shapes=({0: batch},),
            external_data=False,
            dynamo=True,
            verbose=False,
        )
        data = file.read_bytes()
    session = runtime.InferenceSession(data, providers=["CPUExecutionProvider"])

    def run(x: Tensor) -> Tensor:
        return torch.from_numpy(session.run(["logits"], {"images": x.numpy()})[0])

    _verify("onnx", model, run, images)
    return data


_WRITERS: dict[str, Callable[[Config, nn.Module, Tensor, dict[str, Any]], bytes]] = {
    "safetensors": _safetensors,
    "onnx": _onnx,
    "torchscript": _torchscript,
}


@torch.no_grad()
def _verify(form: str, model: nn.Module, other: Callable[[Tensor], Tensor], images: Tensor) -> None:
    """Raise a UserError unless `other` gives the logits of `model`, for other batches too."""
    for batch in (images, torch.cat([images.flip(0), images[:1] * 0.5])):
        expected = model(batch)
        worst = (other(batch) - expected).abs().max().item()
        if not worst <= TOLERANCE * max(1.0, expected.abs().max().item()):
            reason = f"its logits are off by {worst:.2g}, so it is not written"
            raise UserError(f"format={form}: {reason}")


def _noise(count: int, split: Split) -> Tensor:
    """Return noise as large as normalised images of `split`, (count, 3, H, W)."""
    height, width = split.images.shape[1:3]
    return torch.randn(count, 3, height, width, generator=torch.Generator().manual_seed(0))


def main() -> int:
    """Export each, or print why not; return 1 where any is missing."""

    def exported(config: Config) -> str:
        return f"{RunDirectory.of(config).path}: {export(config)}"

    return print_each(exported, map(config_from, json.load(sys.stdin)), "not exported")


if __name__ == "__main__":
    run_command_line(lambda: sys.exit(exit_status_of(main)))
