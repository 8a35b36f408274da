"""Write the model card of an exported network: README.md as model hubs read it."""

from __future__ import annotations

import datetime
import json
import statistics
from typing import Any

from resnests.config.recipe import without_implied
from resnests.paper import arch_label, dataset_label, variant_label
from resnests.runs.directory import RunDirectory
from resnests.runs.record import Record
from resnests.text import as_typed

SHOWN = 100  # names of classes
_BASELINE = "standard"
_USE = {
    "safetensors": """\
import resnests  # pip install resnests safetensors

model = resnests.load_model(".")  # this folder; checked against config.json; in eval mode
logits = model(images)""",
    "onnx": """\
import onnxruntime

session = onnxruntime.InferenceSession("model.onnx")
(logits,) = session.run(["logits"], {"images": images})  # a numpy array of float32""",
    "torchscript": """\
import torch

model = torch.jit.load("model.torchscript.pt")
logits = model(images)""",
}


def card(directory: RunDirectory, record: Record, about: dict[str, Any]) -> str:
    """Return Markdown: what the network is, how good over how many seeds, how it was made, and how
    to load it.
    """
    names = arch_label(record.arch)
    if not _made_by(record) or record.variant != _BASELINE:  # else it is only a label
        names += f" {variant_label(record.variant)}"
    use = "\n```\n\n```python\n".join(_USE[form] for form in about["files"])
    digests = {f"sha256 of {each['file']}": each["sha256"] for each in about["files"].values()}
    return f"""\
---
library_name: resnests
pipeline_tag: image-classification
tags: [resnests, {record.arch}, {record.variant}]
datasets: [{record.dataset}]
metrics: [accuracy]
---

# {names}, {dataset_label(record.dataset)}

{_origin(record)}
All accuracies are of the last epoch.

{_table(_results(record, _accuracies(directory)))}

## Use

```python
{use}
```

{_in_and_out(about)}

## Recipe `{record.recipe}`

{_table(without_implied(record.recipe_values))}

## Provenance

{_table(_provenance(record) | digests)}
"""


def _results(record: Record, accuracies: list[float]) -> dict[str, Any]:
    """Return what was measured, with the mean of the `accuracies` of all seeds."""
    count, mean, frozen = len(accuracies), statistics.mean(accuracies), record.frozen_parameters
    spread = f" ± {statistics.stdev(accuracies):.2f}" if count > 1 else ""
    return {
        "test accuracy": f"{record.test_accuracy:.2f}%",
        "test loss": f"{record.test_loss:.4f}",
        f"test accuracy of the recipe, mean over n = {count} seed(s)": f"{mean:.2f}%{spread}",
        "parameters": (record.parameters or 0) + (frozen or 0),
        **({"frozen parameters among them": frozen} if frozen else {}),
        "epochs": record.epochs,
        "seed": record.seed,
    }


def _origin(record: Record) -> str:
    """Return whose network it is, as far as the configuration tells."""
    paper = """\
*ResNEsts and DenseNEsts: Block-based DNN Models with Improved Representation Guarantees*
(Chen, Lee, Garudadri, Rao; NeurIPS 2021)"""
    if made_by := _made_by(record):
        return f"A network made by {' with '.join(made_by)}, trained by resnests."
    if head := record.config.get("variant", {}).get("_target_"):
        return f"A residual network with a head made by `{head}`, trained by resnests."
    if record.variant == _BASELINE:
        return f"A residual network, built as the baseline of {paper}, trained by resnests."
    return f"A network of {paper}, trained by resnests."


def _made_by(record: Record) -> list[str]:
    """Return what makes the network, and what that is given, of one that is not ours."""
    arch = record.config.get("arch", {})
    given = (value for value in arch.values() if isinstance(value, dict))
    found = [part["_target_"] for part in (arch, *given) if part.get("_target_")]
    return [f"`{target}`" for target in found]


def _in_and_out(about: dict[str, Any]) -> str:
    """Return what the images are that the network takes, and what its logits stand for."""
    height, width = about["image_size"]
    made = f"""\
`images` are RGB, (N, 3, {height}, {width}), values scaled to [0, 1], then less {about["mean"]}
and divided by {about["std"]} per channel."""
    if size := about["size"]:
        made += f"""
Before that, the shorter side was scaled to {size} pixels, antialiased, and the centre cut out."""
    names = about["classes"] or []
    listed = ", ".join(json.dumps(name, ensure_ascii=False) for name in names[:SHOWN])
    listed += f" and {len(names) - SHOWN} more" if len(names) > SHOWN else ""
    known = f", in this order: {listed}. `classes` in config.json has them, too." if names else "."
    return f"{made}\n\n`logits` are (N, {about['num_classes']}), one for each class{known}"


def _accuracies(directory: RunDirectory) -> list[float]:
    """Return the test accuracies of all complete seeds of the recipe, 0% included."""
    records = [RunDirectory(path).record_or_none() for path in directory.path.parent.glob("seed=*")]
    complete = [record for record in records if record and record.status == "complete"]
    return [r.test_accuracy for r in complete if r.test_accuracy is not None]


def _provenance(record: Record) -> dict[str, Any]:
    p = record.provenance
    ended = datetime.datetime.fromtimestamp(p.ended or 0, datetime.timezone.utc)
    return {
        "trained": f"{ended:%Y-%m-%d}, {record.seconds:.0f} s on {p.device_name or p.device}",
        "commit": f"{p.git_commit}{', changed since' if p.git_dirty else ''}",
        "versions": ", ".join(f"{name} {version}" for name, version in p.versions.items()),
    }


def _table(rows: dict[str, Any]) -> str:
    cells = {key: str(as_typed(value)).replace("|", r"\|") for key, value in rows.items()}
    lines = [f"| {key} | {value} |" for key, value in cells.items()]
    return "\n".join(["| | |", "|---|---|", *lines])
