"""Run whole training steps as CUDA graphs: batch, gradients, clipping and update, in one replay."""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from functools import partial
from typing import TYPE_CHECKING

import torch
from torch import Tensor, nn

from resnests.data.pipelines import Images, TensorPipeline
from resnests.training.evaluation import WholeEvaluation
from resnests.training.step import Step

if TYPE_CHECKING:
    from resnests.training.loop import Training

log = logging.getLogger(__name__)


class WholeStep:
    """Takes the steps of an epoch, of which nothing is left to the host but to start them.

    A graph repeats the same operations on the same memory. So what differs from step to step is in
    tensors on the device: the draws of the epoch, the place of the batch among them, and the
    learning rates. There is one graph for each size of batch, a full and a last one.

    The update is torch's own SGD, fused, as only that reads its rate from the device; it differs
    from what the optimizer does otherwise by rounding. Its momenta are those of the optimizer,
    whose groups keep their plain rates, so that a checkpoint is what it is without graphs.
    """

    def __init__(
        self,
        step: Step,
        optimizer: torch.optim.SGD,
        pipeline: TensorPipeline,
        clip_norm: float | None = None,
    ) -> None:
        self.step, self.optimizer, self.pipeline = step, optimizer, pipeline
        self.clip_norm, self.parameters = clip_norm, list(step.model.parameters())
        self.position = torch.zeros((), dtype=torch.int64, device=step.device)
        self.groups: list[dict] = optimizer.param_groups
        self.rates = [torch.zeros((), device=step.device) for _ in self.groups]
        self.filled: list[float] = []  # into the rates
        self.draws: list[Tensor] = []  # of the epoch: order, offsets and flips
        self.graphs: dict[int, torch.cuda.CUDAGraph] = {}  # by the size of the batch
        self.evaluations: dict[int, WholeEvaluation] = {}  # by the identity of the split
        self.is_refused = False  # by a network that draws on the host, or layouts that differ

    @classmethod
    def of(cls, training: Training, step: Step) -> WholeStep | None:
        """Return what takes the steps of a training, None where a graph cannot hold them.

        That is so where a user's schedule may change more than the rates, where images are varied
        by more than draws made beforehand, and where an update cannot be fused.
        """
        optimizer, pipeline = training.optimizer, training.pipeline
        if not step.captures or training.schedule is not None:
            return None
        if not isinstance(pipeline, TensorPipeline) or not pipeline.is_plain:
            return None
        if type(optimizer) is not torch.optim.SGD:
            return None
        if any(group["dampening"] or group["differentiable"] for group in optimizer.param_groups):
            return None  # whose first update is another, or which fuses none
        return cls(step, optimizer, pipeline, training.config.optimizer.clip_norm)

    def steps(self, epoch: int, start: int = 0) -> Iterator[Callable[[], None]] | None:
        """Return what takes the steps of `epoch` from step `start` on, each by the rates that the
        optimizer then has; None where no graph can be made.

        Raises what Step does where making one fails.
        """
        if self.is_refused:
            return None
        self._load(epoch)
        full, count = self.pipeline.batch_size, self.pipeline.count
        sizes = [min(full, count - first) for first in range(start * full, count, full)]
        for size in dict.fromkeys(sizes):
            if size not in self.graphs and not self._capture(size):
                self.is_refused = True
                return None
        self.position.fill_(start * full)
        filled = self.pipeline.filled(epoch, start)
        return (partial(self._replay, size) for size, _ in zip(sizes, filled, strict=True))

    def evaluate(self, split: Images, should_stop: Callable[[], bool]) -> dict[str, float] | None:
        """Return loss and accuracy as loop.evaluate does, None where no graph can be made."""
        if self.is_refused:
            return None
        whole = self.evaluations.setdefault(id(split), WholeEvaluation(self.step, split))
        return whole.evaluate(should_stop)

    def _load(self, epoch: int) -> None:
        """Bring the draws of `epoch` where the graphs read them."""
        drawn = self.pipeline.draws(epoch)
        if not self.draws:
            self.draws = [one.to(self.step.device, copy=True) for one in drawn]
        for mine, one in zip(self.draws, drawn, strict=True):
            mine.copy_(one)

    def _replay(self, size: int) -> None:
        if self.filled != (rates := [group["lr"] for group in self.groups]):
            for tensor, rate in zip(self.rates, rates, strict=True):
                tensor.fill_(rate)
            self.filled = rates
        self.graphs[size].replay()

    def _capture(self, size: int) -> bool:
        """Make the graph of such a batch; return whether there is one.

        The warm-up, which trains on the first images of the epoch, leaves no trace.
        """
        for group in self.groups:
            for parameter in group["params"] if group["momentum"] else ():
                state = self.optimizer.state[parameter]
                if state.get("momentum_buffer") is None:  # its first step would do no other
                    state["momentum_buffer"] = torch.zeros_like(parameter)
        self.position.zero_()
        with self._rates_on_device():
            graph = self.step.capture(lambda: self._take(size), self._changed(), self._is_fusable)
        if graph is None:
            if self.step.captures:  # else it has said already that there is no graph at all
                log.info("the update of a step stays outside of its CUDA graph")
            return False
        self.graphs[size] = graph
        return True

    def _take(self, size: int) -> None:
        """Take a step on the next `size` images, operation by operation."""
        order, offsets, flips = self.draws
        at = self.position + torch.arange(size, device=self.position.device)
        index = order.index_select(0, at)
        cuts = offsets.index_select(1, at), flips.index_select(0, at)
        images, labels = self.pipeline.plain_batch(index, *cuts)
        self.step.compute_gradients(images, labels)
        if self.clip_norm is not None:
            nn.utils.clip_grad_norm_(self.parameters, self.clip_norm)
        self.optimizer.step()
        self.position += size

    def _changed(self) -> list[Tensor]:
        """Return the tensors in which a step leaves its results."""
        momenta = [state["momentum_buffer"] for state in self.optimizer.state.values() if state]
        return [*self.parameters, *momenta, self.position]

    def _is_fusable(self) -> bool:
        """Return whether a fused update can be, for which layouts must agree in every number."""
        with_gradient = [one for one in self.parameters if one.grad is not None]
        return all(one.stride() == _gradient(one).stride() for one in with_gradient)

    @contextmanager
    def _rates_on_device(self) -> Iterator[None]:
        """Have the optimizer read its rates from the device, as long as the `with` block takes."""
        before: Sequence[dict] = [dict(group) for group in self.groups]
        for group, rate in zip(self.groups, self.rates, strict=True):
            group |= {"lr": rate, "fused": True, "foreach": False}
        try:
            yield
        finally:
            for group, old in zip(self.groups, before, strict=True):
                group |= {key: old[key] for key in ("lr", "fused", "foreach")}


def _gradient(parameter: nn.Parameter) -> Tensor:
    assert parameter.grad is not None
    return parameter.grad
