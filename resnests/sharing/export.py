"""A finished run as a folder for others: weights, configuration, model card.

    python -m resnests.sharing.export < configs.json      # a list of configurations

    <weights>/<DIGITS_AResNEst_ResNet_20_seed=0>/
        model.safetensors, model.onnx or model.torchscript.pt
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
from resnests.errors import UserError, guarded
from resnests.models.resnet import build_network
from resnests.models.weights import load_weights
from resnests.runs.directory import RunDirectory, write_atomic
from resnests.runs.record import Record
from resnests.runs.weights import export_target, finished
from resnests.sharing.card import card

FILES = {
    "safetensors": "model.safetensors",
    "onnx": "model.onnx",
    "torchscript": "model.torchscript.pt",
}
TOLERANCE = 1e-4  # of logits, relative to the largest of them (at least 1)


def export(config: Config) -> Path:
    """Write the folder of a finished run; raises a UserError."""
    directory = finished(config)
    record = directory.read_record()
    assert record is not None
    model = build_network(config.arch, config.variant, config.dataset.num_classes)
    load_weights(directory.weights_file, model)
    model.eval()
    images = _images(config, 2)
    try:
        data = _WRITERS[config.format](model, images)
    except UserError:
        raise
    except Exception as error:  # of the format's own library, which knows not every network
        raise broken(f"format={config.format}: the network cannot be exported", error) from error
    folder = export_target(config).parent
    about = _about(config, record, data)
    try:
        folder.mkdir(parents=True, exist_ok=True)
        write_atomic(folder / FILES[config.format], data)
        write_atomic(folder / "config.json", (json.dumps(about, indent=1) + "\n").encode())
        write_atomic(folder / "README.md", card(directory, record, about).encode())
        for form, name in FILES.items():
            if form != config.format:  # an earlier export, which config.json says nothing of
                (folder / name).unlink(missing_ok=True)
    except OSError as error:
        reason = f"{folder} cannot be written ({error.strerror})"
        raise UserError(f"weights={config.weights}: {reason}") from error
    return folder


def _about(config: Config, record: Record, data: bytes) -> dict[str, Any]:
    """What config.json says."""
    tree = config_dict(config)
    return {
        "format": config.format,
        "file": FILES[config.format],
        "sha256": hashlib.sha256(data).hexdigest(),
        "arch": tree["arch"],
        "variant": tree["variant"],
        "num_classes": config.dataset.num_classes,
        "parameters": record.parameters,
        "mean": record.mean or config.dataset.mean,
        "std": record.std or config.dataset.std,
        "dataset": record.dataset,
        "recipe": record.recipe,
        "seed": record.seed,
        "test_accuracy": record.test_accuracy,
    }


def _safetensors(model: nn.Module, _images: Tensor) -> bytes:
    save = _needs("safetensors.torch", "safetensors", "hub").save
    # The format refuses tensors that share memory, as those of tied layers do.
    return save({name: value.contiguous().clone() for name, value in model.state_dict().items()})


def _torchscript(model: nn.Module, images: Tensor) -> bytes:
    buffer = io.BytesIO()
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # deprecated, and still what C++ programs read
        torch.jit.save(torch.jit.trace(model, images), buffer)
        loaded = torch.jit.load(io.BytesIO(buffer.getvalue()))
    _verify("torchscript", model, loaded, images)
    return buffer.getvalue()


def _onnx(model: nn.Module, images: Tensor) -> bytes:
    """Of any batch size; one file."""
    _needs("onnx", "onnx", "onnx")
    _needs("onnxscript", "onnxscript", "onnx")
    runtime = _needs("onnxruntime", "onnxruntime", "onnx")
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


_WRITERS: dict[str, Callable[[nn.Module, Tensor], bytes]] = {
    "safetensors": _safetensors,
    "onnx": _onnx,
    "torchscript": _torchscript,
}


@torch.no_grad()
def _verify(form: str, model: nn.Module, other: Callable[[Tensor], Tensor], images: Tensor) -> None:
    """Raises a UserError unless `other` gives the logits of `model`, for other batches too."""
    for batch in (images, torch.cat([images.flip(0), images[:1] * 0.5])):
        expected = model(batch)
        worst = (other(batch) - expected).abs().max().item()
        if not worst <= TOLERANCE * max(1.0, expected.abs().max().item()):
            reason = f"its logits are off by {worst:.2g}, so it is not written"
            raise UserError(f"format={form}: {reason}")


def _images(config: Config, count: int) -> Tensor:
    """Noise as large as normalised images, (count, 3, H, W)."""
    from resnests.data.splits import load

    height, width = load(config.dataset).test.images.shape[1:3]
    return torch.randn(count, 3, height, width, generator=torch.Generator().manual_seed(0))


def _needs(module: str, package: str, extra: str) -> Any:
    import importlib

    try:
        return importlib.import_module(module)
    except ImportError as error:
        hint = f"needs {package}: pip install 'resnests[{extra}]'"
        raise UserError(f"format={extra if extra == 'onnx' else package}: {hint}") from error


def main() -> int:
    """Export each, or say why not; 1 where any is missing."""
    missing = 0
    for values in json.load(sys.stdin):
        config = config_from(values)
        try:
            print(f"{RunDirectory.of(config).path}: {export(config)}", flush=True)
        except UserError as error:
            missing += 1
            print(f"not exported: {error}", file=sys.stderr)
    return 1 if missing else 0


if __name__ == "__main__":
    sys.exit(guarded(main))
