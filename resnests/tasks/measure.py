"""Measure a finished run by what nobody asked for when it was trained: metrics, predictions."""

from __future__ import annotations

import time

from torch import nn

from resnests.config.schema import Config
from resnests.data.arrays import Split
from resnests.data.images import Images
from resnests.errors import UserError
from resnests.models.weights import load_weights
from resnests.runs.directory import RunDirectory
from resnests.runs.metrics import is_unmeasured, note_metrics
from resnests.tasks.predict import Predictions, predicted
from resnests.tasks.run import Run
from resnests.training import loop
from resnests.training.numerics import move, require_numerics


def is_only_measured(directory: RunDirectory, config: Config) -> bool:
    """Return whether the run is complete but for its metrics; raise a UserError where the weights
    are gone.
    """
    record = directory.record_or_none()
    if config.trainer.overwrite or record is None or not is_unmeasured(directory, record, config):
        return False
    if not directory.weights_file.is_file():
        mend = "expected the weights to measure; trainer.overwrite=true trains the run afresh"
        raise UserError(f"metrics, predictions: {directory.weights_file}: {mend}")
    return True


def measure(run: Run) -> None:
    """Add to a complete run what its final weights give; all else of it stays as it is."""
    directory, config = run.directory, run.config
    record = directory.read_record()
    assert record is not None
    rows = directory.history_rows()
    splits, dataset, model = run.prepare()
    move(model, run.device, config.trainer)
    metrics = run.metrics(dataset)
    run.report({"state": "evaluating"})
    measured: dict[str, float] = {}
    files = {"": directory.weights_file}
    if config.trainer.ema:
        files["ema_"] = directory.averaged_weights_file
    evaluations, precision = run.evaluations(splits, dataset), config.trainer.precision
    for kind, file in files.items():
        load_weights(file, model)
        if kind == "" and config.predictions:
            write_predictions(run, model, evaluations["test"], splits.test)
        for split, images in evaluations.items() if metrics else ():
            found = loop.evaluate(model, images, precision, run.should_stop, metrics)
            measured |= {f"{split}_{kind}{name}": found[name] for name in metrics}
    require_numerics(config.trainer)
    note_metrics(record, measured, run.definitions)
    # What was measured before stays on record, so its unit and direction do, too.
    record.config["metrics"] = record.config.get("metrics", {}) | config.metrics
    record.config["predictions"] = record.config.get("predictions", False) or config.predictions
    record.measured = time.time()
    if rows:
        rows[-1] |= measured
        directory.write_history([_written(row) for row in rows])
    directory.write_record(record)


def write_predictions(run: Run, model: nn.Module, test: Images, split: Split) -> None:
    """Write what the network says of each image of the test `split`, in their order."""
    logits = predicted(model, test, run.config.trainer.precision, run.should_stop)
    found = Predictions(logits, split.labels, split.files, run.record.classes)
    found.write(run.directory.predictions_file)


def _written(row: dict[str, float]) -> dict[str, float | int]:
    """Return a row as it was written: what was not measured is left out."""
    return {k: int(v) if k == "epoch" else v for k, v in row.items() if v == v}
