"""Run evaluations as CUDA graphs: each batch is one replay, which finds its place itself."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch.nn import functional as F

from resnests.data.pipelines import Images
from resnests.errors import Interrupted
from resnests.training.step import Step, add_totals, autocast, zero_totals


class WholeEvaluation:
    """Evaluates the network of `step` on a split, with the operations of loop.evaluate.

    The graphs are made between two steps, in the memory of theirs, and take the gradients away: so
    this is for whole steps, which have no gradient outside of a graph (whole.py).
    """

    def __init__(self, step: Step, split: Images) -> None:
        self.step, self.split = step, split
        self.totals = zero_totals(step.device)
        self.position = torch.zeros((), dtype=torch.int64, device=step.device)
        self.graphs: dict[int, torch.cuda.CUDAGraph] = {}  # by the size of the batch

    @torch.no_grad()
    def evaluate(self, should_stop: Callable[[], bool]) -> dict[str, float] | None:
        """Return the mean cross-entropy as `loss` and the accuracy in percent, None where no graph
        can be made; raise Interrupted.
        """
        self.step.model.eval()
        parts, count = self.split.parts(), len(self.split)
        sizes = [part.stop - part.start for part in parts]
        for size in dict.fromkeys(sizes):
            if size not in self.graphs and not self._capture(size):
                return None
        self.totals.zero_()
        self.position.zero_()
        for size, _ in zip(sizes, self.split.filled(parts), strict=True):
            if should_stop():
                raise Interrupted
            self.graphs[size].replay()
        loss, correct = self.totals.tolist()
        return {"loss": loss / count, "accuracy": 100 * correct / count}

    def _capture(self, size: int) -> bool:
        self.position.zero_()
        changed = [self.totals, self.position]
        if self.step.captures:  # which a network that draws on the host has ended
            graph = self.step.capture(lambda: self._add_next(size), changed)
            if graph is not None:
                self.graphs[size] = graph
        return size in self.graphs

    def _add_next(self, size: int) -> None:
        at = self.position + torch.arange(size, device=self.position.device)
        held = self.split.images.index_select(0, self.split.within(at))
        images = self.split.as_input(held)
        labels = self.split.labels.index_select(0, at)
        with autocast(images.device, self.step.trainer.precision):
            logits = self.step.model(images).float()
        add_totals(self.totals, F.cross_entropy(logits, labels, reduction="sum"), logits, labels)
        self.position += size
