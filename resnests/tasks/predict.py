"""Do task=predict: write what finished runs predict of test images, or of images without labels.

    python -m resnests.tasks.predict DEVICE THREADS < configs.json      # a list of configurations

A run's predictions.npz and predictions.csv are of its test images; predictions_NAME.npz and .csv
are of the images in a folder NAME (predict.folder).
"""

from __future__ import annotations

import csv
import io
import json
import os
import sys
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch
from filelock import Timeout
from torch import nn

from resnests.config.parts import Dataset
from resnests.config.schema import Config, config_from
from resnests.data.arrays import Split
from resnests.data.images import Images, images_of
from resnests.data.pipelines import memory_format
from resnests.data.splits import Splits, load_for, with_statistics
from resnests.data.torchvision_sets import is_torchvision
from resnests.data.unlabelled import read_images
from resnests.errors import UserError, exit_status_of, print_each, run_command_line
from resnests.models.resnet import initial_model
from resnests.models.weights import load_weights
from resnests.runs.directory import write_atomic
from resnests.runs.weights import finished
from resnests.training import loop
from resnests.training.numerics import move, require_numerics, set_numerics


class NotPredicted(UserError):
    """Says why one run cannot be predicted with, which costs that run only."""


class _Lines(NamedTuple):
    """Stands for a file to a writer of CSV, which writes a line at a time."""

    write: Callable[[str], object]


@dataclass(frozen=True)
class Predictions:
    """Holds the logits (N, K) of images, and what is known of these."""

    logits: np.ndarray
    labels: np.ndarray | None = None
    files: np.ndarray | None = None
    classes: list[str] | None = None
    folder: str | None = None  # of images without labels

    def npz(self) -> bytes:
        """Return the arrays as a compressed .npz file."""
        values = {"prediction": self.logits.argmax(1), "logits": self.logits}
        if self.labels is not None:
            values["label"] = self.labels
        if self.classes:
            values["classes"] = np.array(self.classes, dtype=str)
        if self.files is not None:
            values["path"] = self.files
        if self.folder is not None:
            values["folder"] = np.array(os.path.realpath(self.folder))
        file = io.BytesIO()
        np.savez_compressed(file, **values)
        return file.getvalue()

    def csv(self) -> bytes:
        """Return a line an image: its file or number, the names of its class, where that is known,
        and of the predicted one, and the probability of the latter.
        """
        names = self.classes or list(map(str, range(self.logits.shape[1])))
        scores = self.logits.astype(np.float64)
        shares = np.exp(scores - scores.max(1, keepdims=True))
        best = (shares / shares.sum(1, keepdims=True)).max(1)
        columns: dict[str, list[Any]]
        if self.files is None:
            columns = {"image": list(range(len(scores)))}
        else:
            columns = {"file": self.files.tolist()}
        if self.labels is not None:
            columns["label"] = [names[label] for label in self.labels]
        columns["prediction"] = [names[label] for label in scores.argmax(1)]
        columns["probability"] = [f"{value:.6f}" for value in best]
        lines: list[str] = []
        # What is part of its line ends is what the writer quotes: of a name either of both
        writer = csv.writer(_Lines(lines.append), lineterminator="\r\n")
        writer.writerows([columns, *zip(*columns.values(), strict=True)])
        text = "".join(line.removesuffix("\r\n") + "\n" for line in lines)
        return text.encode(errors="surrogateescape")

    def write(self, file: Path) -> None:
        """Write `file`, which ends in .npz, and the .csv beside it."""
        write_atomic(file, self.npz())
        write_atomic(file.with_suffix(".csv"), self.csv())


def predicted(
    model: nn.Module,
    images: Images,
    precision: str,
    should_stop: Callable[[], bool] = lambda: False,
) -> np.ndarray:
    """Return the logits (N, K) of all images, in their order; raise Interrupted."""
    parts = [logits.cpu() for logits, _ in loop.predict(model, images, precision, should_stop)]
    return torch.cat(parts).numpy()


class Predictor:
    """Predicts with runs, which share what is read."""

    def __init__(self, device: torch.device) -> None:
        self.device = device
        self.data: dict[str, Splits] = {}
        self.folders: dict[str, Split] = {}

    def predict(self, config: Config) -> Path:
        """Write what the finished run of `config` says, and return the CSV file; raise a
        UserError.
        """
        try:
            directory = finished(config, "to predict with")
        except UserError as error:
            raise NotPredicted(str(error)) from error
        record = directory.read_record()
        assert record is not None
        splits = self._splits(config)
        dataset = with_statistics(config.dataset, splits.train)
        split = splits.test
        set_numerics(config.trainer)
        size = split.images.shape[1:3]
        folder, file = config.predict.folder, directory.predictions_file
        if folder is not None:
            split = self._folder(folder, size, dataset, config.pipeline.memory_gb)
            file = directory.predictions_of(folder)
            _require_of(file, folder)
        model = initial_model(config.arch, config.variant, dataset.class_count, config.seed, size)
        try:
            load_weights(directory.weights_file, model)
        except UserError as error:
            raise NotPredicted(str(error)) from error
        move(model, self.device, config.trainer)
        set_numerics(config.trainer)  # which what was imported just now may have changed
        layout = memory_format(config.trainer, self.device)
        images = images_of(split, dataset, self.device, layout)
        logits = predicted(model, images, config.trainer.precision)
        require_numerics(config.trainer)
        labels = split.labels if folder is None else None
        try:
            with directory.lock().acquire(blocking=False):
                Predictions(logits, labels, split.files, record.classes, folder).write(file)
        except Timeout:
            raise NotPredicted(f"{directory.path}: a process works on it") from None
        except OSError as error:
            reason = f"cannot be written ({error.strerror})"
            raise NotPredicted(f"{directory.path}: {reason}") from error
        return file.with_suffix(".csv")

    def _splits(self, config: Config) -> Splits:
        key = repr((config.dataset, config.pipeline.memory_gb))
        if key not in self.data:
            self.data[key] = load_for(config)
        return self.data[key]

    def _folder(
        self, folder: str, shape: tuple[int, ...], dataset: Dataset, memory_gb: float | None
    ) -> Split:
        """Return the images of `folder`, read as those of `dataset`; their labels mean nothing."""
        size = dataset.size
        if dataset.target is not None and is_torchvision(dataset):
            size = dataset.args.get("size")
        key = repr((folder, shape, size, memory_gb))
        if key not in self.folders:
            images, files, note = read_images(folder, shape, size, memory_gb)
            if note:
                print(note, file=sys.stderr)
            self.folders[key] = Split(images, np.zeros(len(images), np.int64), files=files)
        return self.folders[key]


def _require_of(file: Path, folder: str) -> None:
    """Raise NotPredicted where `file` has what is predicted of another folder of that name."""
    mine = of = os.path.realpath(folder)
    # zipfile, zlib and numpy raise whatever damage leads them to: such a file is written again
    with suppress(Exception), np.load(file, allow_pickle=False) as before:
        of = str(before["folder"])
    if of != mine:
        other = f"it has what is predicted of {of}: move it away, or rename {folder}"
        raise NotPredicted(f"{file}: {other}")


def main() -> int:
    """Predict with each run, or print why not; return 1 where any is missing."""
    predictor = Predictor(torch.device(sys.argv[1]))
    torch.set_num_threads(int(sys.argv[2]))
    configs = [config_from(values) for values in json.load(sys.stdin)]
    return print_each(predictor.predict, configs, "not predicted", NotPredicted)


if __name__ == "__main__":
    run_command_line(lambda: sys.exit(exit_status_of(main)))
