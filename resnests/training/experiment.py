"""One experiment: from a Config to a finished run directory."""

from __future__ import annotations

import logging
import math
import time
from collections.abc import Callable
from dataclasses import asdict, dataclass, replace
from typing import Any

import torch
from torch import nn

from resnests.config.parts import Dataset
from resnests.config.recipe import recipe_hash
from resnests.config.schema import Config
from resnests.data.arrays import Split
from resnests.data.pipelines import Images, build_pipeline, memory_format
from resnests.data.splits import Splits, load, with_statistics
from resnests.errors import CaptureFailed, UserError
from resnests.models.resnet import count_parameters, initial_model
from resnests.runs.analysis import TRAINED
from resnests.runs.directory import RunDirectory
from resnests.runs.record import METRICS, Record
from resnests.runs.weights import digest, require_analysable, weights_file
from resnests.text import epoch_line
from resnests.training.checkpoint import (
    Checkpoints,
    load_checkpoint,
    load_weights,
    save_weights,
)
from resnests.training.loop import Diverged, Hooks, Interrupted, State, evaluate, fit
from resnests.training.numerics import arithmetic, move, set_numerics
from resnests.training.optim import build_optimizer
from resnests.training.provenance import collect, peak_memory

log = logging.getLogger(__name__)


@dataclass(frozen=True)
class _Run:
    """What the work on one run shares."""

    config: Config
    directory: RunDirectory
    device: torch.device
    record: Record
    should_stop: Callable[[], bool]
    report: Callable[[dict[str, Any]], None]


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
    work = {"train": _train, "evaluate": _evaluate, "analyze": _analyze}[config.task]
    try:
        work(_Run(config, directory, device, record, should_stop, report))
        record.status = "complete"
    except Interrupted:
        record.status = "interrupted"
    except CaptureFailed:
        record.status = "interrupted"
        raise
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


def _train(run: _Run) -> None:
    config, directory, device = run.config, run.directory, run.device
    splits, dataset, model = _prepare(run)
    move(model, device, config.trainer)
    optimizer = build_optimizer(config.optimizer, model.parameters())
    identity = {"recipe": recipe_hash(config), "seed": config.seed, "variant": config.variant.name}
    state = _resume(directory, identity, model, optimizer)
    checkpoints = Checkpoints(directory, config.trainer.checkpoint_every)

    def save(state: State) -> None:
        values = {"model": model.state_dict(), "optimizer": optimizer.state_dict()}
        checkpoints.save({"identity": identity, "state": asdict(state)} | values)

    def epoch_done(state: State) -> None:
        _note(run.record, state)
        directory.write_history(state.history)
        log.info("%s", epoch_line(state.history[-1], config.trainer.epochs))
        done = state.epoch - 1
        if checkpoints.is_due(done) or done == config.trainer.epochs:
            save(state)

    _note(run.record, state)
    directory.write_history(state.history)
    directory.write_record(run.record)  # after it, as its parameters say whose history that is
    pipeline = build_pipeline(config, dataset, splits.train, device)
    held_out = {"val": splits.val, "test": splits.test}
    evaluations = {
        name: _images(run, part, dataset) for name, part in held_out.items() if part is not None
    }
    hooks = Hooks(run.report, epoch_done, run.should_stop)
    try:
        fit(model, optimizer, pipeline, evaluations, config, state, hooks)
    except Interrupted:
        save(state)
        place = f"in epoch {state.epoch} after step {state.step}"
        log.info("interrupted %s: the same command goes on from there", place)
        raise
    finally:
        _note_memory(run.record, device)
    save_weights(directory.weights_file, model)


def _evaluate(run: _Run) -> None:
    """Test accuracy of given weights: ours or official, which have the same names."""
    config, record = run.config, run.record
    path = weights_file(config)
    splits, dataset, model = _prepare(run)
    load_weights(path, model)
    record.weights, record.weights_sha256 = str(path), digest(path)
    move(model, run.device, config.trainer)
    test = _images(run, splits.test, dataset)
    run.report({"state": "evaluating"})
    started = time.perf_counter()
    loss, accuracy = evaluate(model, test, config.trainer.precision, run.should_stop)
    seconds = time.perf_counter() - started
    if not math.isfinite(loss):
        expected = "weights that give finite logits"
        raise UserError(f"weights={path}: their test loss is {loss}, expected {expected}")
    record.test_loss, record.test_accuracy = loss, accuracy
    record.seconds = round(seconds, 3)
    record.images_per_second = round(len(test) / seconds, 2)
    _note_memory(record, run.device)


def _analyze(run: _Run) -> None:
    """Least risks of maps of the features of a finished run (see docs/theory.md)."""
    from resnests.analysis.experiment import analyze

    config, record = run.config, run.record
    require_analysable(config)
    path = weights_file(config)
    splits, dataset, model = _prepare(run)
    load_weights(path, model)
    record.weights, record.weights_sha256 = str(path), digest(path)
    if config.trainer.precision == "bf16":  # of the training: nothing here is by autocast
        record.arithmetic = "fp32"
    trained = run.directory.analysed.sound_record()
    record.epochs = trained.epochs if trained else 0
    move(model, run.device, config.trainer)
    images = {
        name: _images(run, split, dataset)
        for name, split in (("train", splits.train), ("test", splits.test))
    }
    started = time.perf_counter()
    done = analyze(
        replace(config, dataset=dataset),
        run.directory,
        model,
        images,
        record.weights_sha256,
        run.should_stop,
        run.report,
    )
    own = next(solve for solve in done.solves if solve.quantity == TRAINED)
    for name in METRICS:
        setattr(record, name, getattr(own, name))
    record.seconds = round(time.perf_counter() - started, 3)
    _note_memory(record, run.device)


def _prepare(run: _Run) -> tuple[Splits, Dataset, nn.Module]:
    """The images, their data set with the mean and std to normalise with, and the initial
    network.
    """
    run.report({"state": "loading"})
    config, record = run.config, run.record
    set_numerics(config.trainer)
    record.arithmetic = arithmetic(config.trainer, run.device)
    splits = load(config.dataset)
    dataset = with_statistics(config.dataset, splits.train)
    model = initial_model(config.arch, config.variant, dataset.class_count, config.seed)
    record.mean, record.std = dataset.mean, dataset.std
    record.num_classes = dataset.num_classes
    record.parameters = count_parameters(model)
    return splits, dataset, model


def _images(run: _Run, split: Split, dataset: Dataset) -> Images:
    layout = memory_format(run.config.trainer, run.device)
    return Images(split, dataset, run.device, layout)


def _resume(
    directory: RunDirectory,
    identity: dict[str, Any],
    model: nn.Module,
    optimizer: torch.optim.Optimizer,
) -> State:
    """Put the latest sound checkpoint into model and optimizer; the state to go on from."""
    checkpoint = load_checkpoint(directory, identity)
    if checkpoint is None:
        return State()
    model.load_state_dict(checkpoint["model"])
    optimizer.load_state_dict(checkpoint["optimizer"])
    state = State(**checkpoint["state"])
    log.info("resuming in epoch %d after step %d", state.epoch, state.step)
    return state


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
    """The most bytes so far: resident in this process, and reserved on the device, which is what
    another run cannot have. What a CUDA graph works in is not allocated while it is replayed.
    """
    record.peak_memory_bytes = peak_memory()
    if device.type == "cuda":
        record.peak_device_memory_bytes = torch.cuda.max_memory_reserved(device)
