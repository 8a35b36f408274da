"""One experiment: from a Config to a finished run directory."""

from __future__ import annotations

import logging
import math
import resource
import sys
import time
from collections.abc import Callable
from dataclasses import asdict
from typing import Any

import torch

from resnests.config.recipe import recipe_hash
from resnests.config.schema import Config, Trainer
from resnests.data.pipelines import Images, build_pipeline
from resnests.data.splits import load
from resnests.errors import UserError
from resnests.models.resnet import count_parameters, initial_model
from resnests.runs.directory import RunDirectory
from resnests.runs.record import METRICS, Record
from resnests.runs.weights import digest, weights_file
from resnests.text import epoch_line
from resnests.training.checkpoint import (
    load_checkpoint,
    load_weights,
    save_checkpoint,
    save_weights,
)
from resnests.training.loop import Diverged, Hooks, Interrupted, State, evaluate, fit
from resnests.training.optim import build_optimizer
from resnests.training.provenance import collect

log = logging.getLogger(__name__)


def run_experiment(
    config: Config,
    device: torch.device | str = "cpu",
    should_stop: Callable[[], bool] = lambda: False,
    report: Callable[[dict[str, Any]], None] = lambda progress: None,
) -> str:
    """Train `config` from its latest checkpoint to its end, into its run directory; returns the
    status on record.

    The caller owns the directory, and cleared it if trainer.overwrite is set. An exception is
    recorded as failed and raised again.
    """
    device = torch.device(device)
    directory = RunDirectory.of(config)
    directory.write_config(config)
    record = Record.of(config, collect(device))
    directory.write_record(record)
    work = _evaluate if config.task == "evaluate" else _train
    try:
        work(config, directory, device, record, should_stop, report)
        record.status = "complete"
    except Interrupted:
        record.status = "interrupted"
    except Diverged as error:
        hint = f"a lower optimizer.lr than {config.optimizer.lr:g} may help"
        record.status, record.error = "diverged", f"{error}: {hint}"
        directory.clear_checkpoints()
    except BaseException as error:
        kind = "" if isinstance(error, UserError) else f"{type(error).__name__}: "
        record.status, record.error = "failed", f"{kind}{error}"
        raise
    finally:
        record.provenance.ended = time.time()
        directory.write_record(record)
    return record.status


def _train(
    config: Config,
    directory: RunDirectory,
    device: torch.device,
    record: Record,
    should_stop,
    report,
) -> None:
    report({"state": "loading"})
    set_numerics(config.trainer)
    splits = load(config.dataset)
    model = initial_model(config.arch, config.variant.head, config.dataset.num_classes, config.seed)
    record.parameters = count_parameters(model)
    model.to(device, memory_format=_memory_format(config, device))
    optimizer = build_optimizer(config.optimizer, model.parameters())
    identity = {"recipe": recipe_hash(config), "seed": config.seed, "variant": config.variant.name}
    state = _resume(directory, identity, model, optimizer, device)

    def save(state: State) -> None:
        weights, moments = model.state_dict(), optimizer.state_dict()
        save_checkpoint(
            directory,
            {"identity": identity, "state": asdict(state), "model": weights, "optimizer": moments},
        )

    def epoch_done(state: State) -> None:
        _note(record, state)
        directory.write_history(state.history)
        log.info("%s", epoch_line(state.history[-1], config.trainer.epochs))
        if (
            state.epoch - 1
        ) % config.trainer.checkpoint_every == 0 or state.epoch > config.trainer.epochs:
            save(state)

    _note(record, state)
    directory.write_record(record)
    directory.write_history(state.history)
    pipeline = build_pipeline(config, splits.train, device)
    named = {"val": splits.val, "test": splits.test}
    evaluations = {
        name: Images(split, config.dataset, device)
        for name, split in named.items()
        if split is not None
    }
    try:
        fit(
            model,
            optimizer,
            pipeline,
            evaluations,
            config,
            state,
            Hooks(report, epoch_done, should_stop),
        )
    except Interrupted:
        save(state)
        log.info(
            "interrupted in epoch %d after step %d: the same command goes on from there",
            state.epoch,
            state.step,
        )
        raise
    finally:
        _note_memory(record, device)
    save_weights(directory.weights_file, model)


def _evaluate(
    config: Config,
    directory: RunDirectory,
    device: torch.device,
    record: Record,
    should_stop,
    report,
) -> None:
    """Test accuracy of given weights: ours or official, which have the same names."""
    report({"state": "loading"})
    set_numerics(config.trainer)
    path = weights_file(config)
    model = initial_model(config.arch, config.variant.head, config.dataset.num_classes, config.seed)
    load_weights(path, model)
    record.parameters = count_parameters(model)
    record.weights, record.weights_sha256 = str(path), digest(path)
    model.to(device, memory_format=_memory_format(config, device))
    test = Images(load(config.dataset).test, config.dataset, device)
    report({"state": "evaluating"})
    started = time.perf_counter()
    loss, accuracy = evaluate(model, test, config.trainer.precision, should_stop)
    seconds = time.perf_counter() - started
    if not math.isfinite(loss):
        raise UserError(
            f"weights={path}: their test loss is {loss}, expected weights that give finite logits"
        )
    record.test_loss, record.test_accuracy = loss, accuracy
    record.seconds = round(seconds, 3)
    record.images_per_second = round(len(test) / seconds, 2)
    _note_memory(record, device)


def _resume(
    directory: RunDirectory, identity: dict, model, optimizer, device: torch.device
) -> State:
    """Put the latest sound checkpoint into model and optimizer; the state to go on from."""
    checkpoint = load_checkpoint(directory, identity, device)
    if checkpoint is None:
        return State()
    model.load_state_dict(checkpoint["model"])
    optimizer.load_state_dict(checkpoint["optimizer"])
    state = State(**checkpoint["state"])
    log.info("resuming in epoch %d after step %d", state.epoch, state.step)
    return state


def set_numerics(trainer: Trainer) -> None:
    """Which kernels PyTorch may choose, for the whole process."""
    tf32 = trainer.precision == "tf32"
    torch.backends.cuda.matmul.allow_tf32 = tf32
    torch.backends.cudnn.allow_tf32 = tf32
    torch.backends.cudnn.benchmark = not trainer.deterministic
    torch.use_deterministic_algorithms(trainer.deterministic)


def _memory_format(config: Config, device: torch.device) -> torch.memory_format:
    wanted = config.trainer.channels_last
    if wanted is None:
        wanted = device.type != "mps"
    return torch.channels_last if wanted else torch.contiguous_format


def _note(record: Record, state: State) -> None:
    """Bring the record up to the epochs that are done."""
    record.epochs = state.epoch - 1
    if state.history:
        for name in METRICS:
            setattr(record, name, state.history[-1].get(name))
        record.seconds = round(sum(row["seconds"] for row in state.history), 3)
        speeds = [row["images_per_second"] for row in state.history]
        record.images_per_second = round(len(speeds) / sum(1 / speed for speed in speeds), 2)


def _note_memory(record: Record, device: torch.device) -> None:
    """The most bytes so far: resident in this process, and allocated on the device."""
    unit = 1 if sys.platform == "darwin" else 1024
    record.peak_memory_bytes = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * unit
    if device.type == "cuda":
        record.peak_device_memory_bytes = torch.cuda.max_memory_allocated(device)
