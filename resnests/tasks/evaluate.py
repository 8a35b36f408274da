"""Do task=evaluate: measure the test accuracy of given weights."""

from __future__ import annotations

import math
import time

from resnests.errors import UserError
from resnests.models.weights import load_weights
from resnests.runs.digests import require_unchanged
from resnests.runs.metrics import note_metrics
from resnests.runs.weights import digest, weights_file
from resnests.tasks.classes import require_same_classes
from resnests.tasks.measure import write_predictions
from resnests.tasks.run import Run
from resnests.training import loop
from resnests.training.numerics import move, require_numerics


def evaluate(run: Run) -> None:
    """Measure the weights that the run names: ours or official, which have the same names."""
    config, record = run.config, run.record
    path = weights_file(config)
    record.weights = str(path)  # also of a run that fails
    splits, dataset, model = run.prepare()
    require_same_classes(config, splits.train.classes)
    load_weights(path, model)
    if config.digests:  # the weights, which were read since
        require_unchanged(config)
    record.weights_sha256 = digest(path)
    move(model, run.device, config.trainer)
    test = run.images(splits.test, dataset)
    run.report({"state": "evaluating"})
    metrics = run.metrics(dataset)
    started = time.perf_counter()
    found = loop.evaluate(model, test, config.trainer.precision, run.should_stop, metrics)
    loss, accuracy = found["loss"], found["accuracy"]
    seconds = time.perf_counter() - started
    if not math.isfinite(loss):
        expected = "weights that give finite logits"
        raise UserError(f"weights={path}: their test loss is {loss}, expected {expected}")
    require_numerics(config.trainer)
    run.begin()
    if config.predictions:
        write_predictions(run, model, test, splits.test)
    record.test_loss, record.test_accuracy = loss, accuracy
    note_metrics(record, {f"test_{name}": value for name, value in found.items()}, run.definitions)
    record.seconds = round(seconds, 3)
    record.images_per_second = round(len(test) / seconds, 2)
    run.note_memory()
