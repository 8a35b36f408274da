"""Measure a finished run by metrics that nobody asked for when it was trained."""

from __future__ import annotations

from resnests.config.schema import Config
from resnests.errors import UserError
from resnests.models.weights import load_weights
from resnests.runs.directory import RunDirectory
from resnests.runs.metrics import lacks_metrics, note_metrics
from resnests.tasks.run import Run
from resnests.training import loop
from resnests.training.numerics import move


def is_only_measured(directory: RunDirectory, config: Config) -> bool:
    """Return whether the run is complete but for its metrics; raise a UserError where the weights
    are gone.
    """
    record = directory.record_or_none()
    if config.trainer.overwrite or record is None or not lacks_metrics(record, config):
        return False
    if not directory.weights_file.is_file():
        mend = "trainer.overwrite=true trains the run afresh"
        raise UserError(
            f"metrics: {directory.weights_file}: expected the weights to measure; {mend}"
        )
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
        for split, images in evaluations.items():
            found = loop.evaluate(model, images, precision, run.should_stop, metrics)
            measured |= {f"{split}_{kind}{name}": found[name] for name in metrics}
    note_metrics(record, measured, config)
    record.config["metrics"] = config.metrics
    if rows:
        rows[-1] |= measured
        directory.write_history([_written(row) for row in rows])
    directory.write_record(record)


def _written(row: dict[str, float]) -> dict[str, float | int]:
    """Return a row as it was written: what was not measured is left out."""
    return {k: int(v) if k == "epoch" else v for k, v in row.items() if v == v}
