"""Do task=analyze: find the least risks of maps of a run's features (see docs/theory.md)."""

from __future__ import annotations

import logging
import time
from dataclasses import replace

from resnests.analysis import experiment
from resnests.models.weights import load_weights
from resnests.runs.analysis import TRAINED
from resnests.runs.digests import require_unchanged
from resnests.runs.record import METRICS
from resnests.runs.weights import digest, require_analysable, weights_file
from resnests.tasks.classes import require_same_classes
from resnests.tasks.run import Run
from resnests.training.numerics import move, require_numerics

log = logging.getLogger(__name__)


def analyze(run: Run) -> None:
    """Bring the analysis of the run's final weights, or of given ones, to its end."""
    config, record = run.config, run.record
    require_analysable(config)
    path = weights_file(config)
    splits, dataset, model = run.prepare()
    require_same_classes(config, splits.train.classes)
    load_weights(path, model)
    if config.digests:  # the weights, which were read since
        require_unchanged(config)
    record.weights, record.weights_sha256 = str(path), digest(path)
    if config.trainer.precision == "bf16":  # of the training: nothing here is by autocast
        record.arithmetic = "fp32"
    trained = run.directory.analysed.record_or_none()
    record.epochs = trained.epochs if trained else 0
    asked = [] if config.weights else config.trainer.keep_epochs  # of no training on record
    if epochs := run.directory.analysed.epochs_not_kept(asked):
        log.warning("no weights of epochs %s were kept in the training: they are left out", epochs)
    move(model, run.device, config.trainer)
    images = {
        name: run.images(split, dataset)
        for name, split in (("train", splits.train), ("test", splits.test))
    }
    run.begin()
    started = time.perf_counter()
    sha256, should_stop = record.weights_sha256, run.should_stop
    counted = replace(config, dataset=dataset)  # with its number of classes
    done = experiment.analyze(
        counted, run.directory, model, images, sha256, should_stop, run.report
    )
    require_numerics(config.trainer)
    own = next(solve for solve in done.solves if solve.quantity == TRAINED)
    for name in METRICS:
        setattr(record, name, getattr(own, name))
    record.seconds = round(time.perf_counter() - started, 3)
    run.note_memory()
