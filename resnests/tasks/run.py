"""Do what every task does first with a run: read its data, build its network, and note both."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field, replace
from typing import Any

import numpy as np
import torch
from torch import nn

from resnests.config.parts import Dataset
from resnests.config.schema import Config
from resnests.data.arrays import Split
from resnests.data.images import Images, images_of
from resnests.data.pipelines import memory_format
from resnests.data.splits import Splits, load_for, with_statistics
from resnests.models.resnet import count_parameters, initial_model
from resnests.runs.digests import require_unchanged
from resnests.runs.directory import RunDirectory
from resnests.runs.metrics import definitions
from resnests.runs.record import Record
from resnests.training.numerics import arithmetic, set_numerics
from resnests.training.objectives import Measure, build_metrics
from resnests.training.provenance import peak_memory
from resnests.training.warm_start import warm_start


@dataclass(frozen=True)
class Run:
    """Holds a run at work: the values that all steps of its task share."""

    config: Config
    directory: RunDirectory
    device: torch.device
    record: Record
    should_stop: Callable[[], bool]
    report: Callable[[dict[str, Any]], None]
    # Clears what the run starts afresh over, and records that it runs. A task calls it when nothing
    # is left that could refuse, just before it writes the first of its own files.
    begin: Callable[[], None]
    # How each metric is measured: what tells the source that was imported for it
    definitions: dict[str, str] = field(default_factory=dict)

    def prepare(self) -> tuple[Splits, Dataset, nn.Module]:
        """Return the images, their data set with the mean and std to normalise with, and the
        initial network.
        """
        self.report({"state": "loading"})
        config, record = self.config, self.record
        set_numerics(config.trainer)
        splits = load_for(config)
        dataset = with_statistics(config.dataset, splits.train)
        size = splits.train.images.shape[1:3]
        model = initial_model(config.arch, config.variant, dataset.class_count, config.seed, size)
        record.mean, record.std = dataset.mean, dataset.std
        record.num_classes = dataset.num_classes
        names = splits.train.classes
        record.classes = list(names) if names else None
        record.image_size = list(size)
        record.images = {
            name: np.bincount(split.labels, minlength=dataset.class_count).tolist()
            for name in ("train", "val", "test")
            if (split := getattr(splits, name)) is not None
        }
        if config.task == "train":
            warm_start(model, config, dataset.class_count)
        record.parameters = count_parameters(model)
        frozen = sum(p.numel() for p in model.parameters() if not p.requires_grad)
        record.frozen_parameters = frozen or None
        if config.digests:  # the source, which was imported since the worker asked
            require_unchanged(config)
        self.set_numerics()
        return splits, dataset, model

    def set_numerics(self) -> None:
        """Set the process to the run's precision, and record it: once more after each import of
        what a user brought, as that may have set another.
        """
        set_numerics(self.config.trainer)
        self.record.arithmetic = arithmetic(self.config.trainer, self.device)

    def images(self, split: Split, dataset: Dataset) -> Images:
        """Return `split` on the device, in the layout that its network has there."""
        layout = memory_format(self.config.trainer, self.device)
        return images_of(split, dataset, self.device, layout)

    def evaluations(self, splits: Splits, dataset: Dataset) -> dict[str, Images]:
        """Return what is evaluated after an epoch: the held-out images, if any, and the test's."""
        parts = {"val": splits.val, "test": splits.test}
        return {name: self.images(part, dataset) for name, part in parts.items() if part}

    def metrics(self, dataset: Dataset) -> dict[str, Measure]:
        """Return what the run measures beside loss and accuracy; raise a UserError.

        How, is asked before the source is imported: it may be edited while the run goes on.
        """
        self.definitions.update(definitions(self.config))
        metrics = build_metrics(replace(self.config, dataset=dataset), self.device)
        self.set_numerics()
        return metrics

    def note_memory(self) -> None:
        """Record the most bytes so far: resident in this process, and reserved on the device.

        Reserved is what another run cannot have. What a CUDA graph works in is not allocated while
        it is replayed.
        """
        self.record.peak_memory_bytes = peak_memory()
        if self.device.type == "cuda":
            self.record.peak_device_memory_bytes = torch.cuda.max_memory_reserved(self.device)
