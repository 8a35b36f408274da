"""Do task=train: train one network, from its latest checkpoint to its final weights."""

from __future__ import annotations

import logging
import math
from dataclasses import replace

from resnests.data.pipelines import build_pipeline
from resnests.errors import Interrupted
from resnests.models.weights import save_weights
from resnests.tasks.keeper import Keeper
from resnests.tasks.measure import is_only_measured, measure, write_predictions
from resnests.tasks.run import Run
from resnests.text import what_goes_on
from resnests.training.loop import Training, fit
from resnests.training.numerics import move
from resnests.training.objectives import build_loss
from resnests.training.optim import (
    averaged_model,
    build_optimizer,
    build_schedule,
    parameter_groups,
)

log = logging.getLogger(__name__)


def train(run: Run) -> None:
    """Train the run's network to its last epoch, and write its final weights."""
    config, directory, device = run.config, run.directory, run.device
    if is_only_measured(directory, config):
        return measure(run)
    splits, dataset, model = run.prepare()
    move(model, device, config.trainer)
    loss = build_loss(replace(config, dataset=dataset), splits.train.labels, device)
    metrics = run.metrics(dataset)
    optimizer = build_optimizer(config.optimizer, parameter_groups(config.optimizer, model))
    averaged = averaged_model(model, config.trainer.ema)
    steps = math.ceil(len(splits.train) / config.trainer.batch_size)
    schedule = build_schedule(config, optimizer, steps)
    run.set_numerics()
    run.begin()
    parts = {"model": model, "optimizer": optimizer, "averaged": averaged, "schedule": schedule}
    keeper = Keeper(run, parts)
    state = keeper.resume()
    pipeline = build_pipeline(config, dataset, splits.train, device)
    evaluations = run.evaluations(splits, dataset)
    training = Training(
        config, model, optimizer, pipeline, evaluations, run.report, keeper.epoch_done,
        run.should_stop, loss, metrics, averaged, schedule,
    )  # fmt: skip
    try:
        fit(training, state)
    except Interrupted:
        keeper.save(state)
        place = f"in epoch {state.epoch} after step {state.step}"
        log.info("interrupted %s: %s from there", place, what_goes_on(config.trainer.overwrite))
        raise
    finally:
        run.note_memory()
        keeper.close(state)
    save_weights(directory.weights_file, model)
    if config.predictions:
        write_predictions(run, model, evaluations["test"], splits.test)
    if averaged:
        save_weights(directory.averaged_weights_file, averaged.module)
