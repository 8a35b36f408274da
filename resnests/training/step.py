"""Take one training step up to the gradients: operation by operation, compiled, or as one CUDA
graph.
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Sequence
from contextlib import nullcontext
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from resnests.config.schema import Trainer
from resnests.errors import CaptureFailed, UserError
from resnests.generators import drawn_on_host, generator_states, restore_generators
from resnests.training.compiling import compiling
from resnests.training.objectives import Criterion
from resnests.training.twins import Twins

log = logging.getLogger(__name__)
WARM_UP = 3  # steps before a capture: in them kernels are chosen and workspaces allocated

Network = Callable[[Tensor], Tensor]  # images (B, 3, H, W) -> logits (B, K)


def autocast(device: torch.device, precision: str) -> torch.autocast:
    """Return the context in which a network computes in `precision`."""
    return torch.autocast(device.type, dtype=torch.bfloat16, enabled=precision == "bf16")


def zero_totals(device: torch.device) -> Tensor:
    """Return a summed loss and a number of correct predictions, (2,), both 0."""
    return torch.zeros(
        2, dtype=torch.float32 if device.type == "mps" else torch.float64, device=device
    )


def add_totals(totals: Tensor, loss_sum: Tensor, logits: Tensor, labels: Tensor) -> None:
    """Add a batch's summed loss and correct predictions, without waiting for the device."""
    wanted = labels if labels.ndim == 1 else labels.argmax(1)  # of mixed images the larger share
    totals += torch.stack((loss_sum, (logits.argmax(1) == wanted).sum()))


class Step:
    """Leaves the gradients of a batch in the parameters, and adds its loss and correct predictions
    to `totals` (2,).

    Nothing in it waits for the device. A step of ResNet-20 is some 200 small operations, one of
    ResNet-110 a thousand, which a GPU finishes sooner than Python can start them; so on CUDA the
    full batches, which have one shape, are captured once and replayed as a whole. The gradients
    then live in the graph's memory, and must not be set to None. A smaller last batch takes the
    operations one by one.
    """

    def __init__(
        self, model: nn.Module, trainer: Trainer, loss: Criterion = F.cross_entropy
    ) -> None:
        self.model, self.trainer, self.loss = model, trainer, loss
        self.device = next(model.parameters()).device
        self.totals = zero_totals(self.device)
        self.network: Network = torch.compile(model, dynamic=False) if trainer.compile else model
        self.is_compiled = False
        self.twins = Twins.of(model, trainer.precision)
        self.captures = self.device.type == "cuda" and trainer.cuda_graph is not False
        self.graph: torch.cuda.CUDAGraph | None = None
        self.pool: Any = None  # of memory, for all graphs: no two are replayed at once

    def __call__(self, images: Tensor, labels: Tensor) -> None:
        """Work on images (B, 3, H, W) with labels (B,).

        Raise a UserError where trainer.compile or trainer.cuda_graph fails, and CaptureFailed where
        a graph was no more than tried.
        """
        full = len(labels) == self.trainer.batch_size
        if full and self.captures and self.graph is None:
            self.images, self.labels = images.clone(), labels.clone()
            self.graph = self.capture(lambda: self.compute_gradients(self.images, self.labels))
        if full and self.graph is not None:
            self.images.copy_(images)
            self.labels.copy_(labels)
            self.graph.replay()
            return
        self.model.zero_grad(set_to_none=self.graph is None)
        self.compute_gradients(images, labels)

    def compute_gradients(self, images: Tensor, labels: Tensor) -> None:
        """Add the gradients of a batch to those in the parameters, operation by operation."""
        if len(labels) != self.trainer.batch_size or not self.trainer.compile:
            return self._compute(self.model, images, labels)
        with nullcontext() if self.is_compiled else compiling(self.model, self.trainer):
            self._compute(self.network, images, labels)
        self.is_compiled = True

    def _compute(self, network: Network, images: Tensor, labels: Tensor) -> None:
        try:
            twins = self.twins if network is self.model else None  # a compiler fuses its own casts
            with autocast(self.device, self.trainer.precision):
                logits = (twins or network)(images)
            loss = self.loss(logits.float(), labels)
            loss.backward()
            if twins:
                twins.return_gradients()
        except RuntimeError as error:
            if network is self.model or not isinstance(
                error, torch._dynamo.exc.TorchDynamoException
            ):
                raise
            raise UserError(
                f"trainer.compile=true: expected false, as here {_reason(error)}"
            ) from error
        add_totals(self.totals, loss.detach() * len(labels), logits.detach(), labels)

    def capture(
        self,
        work: Callable[[], None],
        changed: Sequence[Tensor] = (),
        is_possible: Callable[[], bool] = lambda: True,
    ) -> torch.cuda.CUDAGraph | None:
        """Return `work`, which computes gradients, as a graph; raise what __call__ promises where
        that fails.

        `changed` are the tensors in which it leaves anything else but statistics and totals. None
        where the network draws on the host, or `is_possible`, asked after a first try, says no.
        """
        try:
            return self._capture(work, [*self.model.buffers(), self.totals, *changed], is_possible)
        except RuntimeError as error:
            first = _first(error)
            if isinstance(first, torch.cuda.OutOfMemoryError):  # no failure of the graph
                raise first from None
            if self.trainer.cuda_graph:
                raise UserError(
                    f"trainer.cuda_graph=true: expected null, as here {_reason(first)}"
                ) from error
            wanted = "trainer.cuda_graph=false trains without a CUDA graph, and slower"
            raise CaptureFailed(f"{wanted}: {_reason(first)}") from error

    def _capture(
        self, work: Callable[[], None], changed: Sequence[Tensor], is_possible: Callable[[], bool]
    ) -> torch.cuda.CUDAGraph | None:
        """Make the graph; what is `changed` and the random generators are as before after it. Where
        it fails they are lost.

        Each replay draws from the device's default generator, which a capture registers, as the
        operations would. Were the draws of the warm-up not undone, a resumed run, which warms up
        once more, would go on with other numbers than the run that was never interrupted.
        """
        before = [value.detach().clone() for value in changed]
        drawn = generator_states(self.device)
        side, graph, possible = torch.cuda.Stream(), None, True
        side.wait_stream(torch.cuda.current_stream())
        with torch.cuda.stream(side):
            for _ in range(WARM_UP):
                self.model.zero_grad(set_to_none=True)
                work()
                possible = possible and is_possible()
                _restore(changed, before)
                if not possible:
                    break
        torch.cuda.current_stream().wait_stream(side)
        self.model.zero_grad(set_to_none=True)
        if drawn_on_host(drawn, self.device):
            self._refuse_host_draws()
        elif possible:
            graph = torch.cuda.CUDAGraph()
            # thread_local: a data loader's thread may pin memory meanwhile
            with torch.cuda.graph(graph, self.pool, capture_error_mode="thread_local"):
                work()
            self.pool = self.pool or graph.pool()
        _restore(changed, before)
        restore_generators(drawn, self.device)
        return graph

    def _refuse_host_draws(self) -> None:
        """Go on without a graph, which would repeat the numbers that were drawn on the host."""
        reason = "the network draws random numbers on the host, which a graph would repeat"
        if self.trainer.cuda_graph:
            raise UserError(f"trainer.cuda_graph=true: expected null, as {reason}")
        log.info("trains without a CUDA graph: %s", reason)
        self.captures = False


def _restore(values: Sequence[Tensor], before: Sequence[Tensor]) -> None:
    with torch.no_grad():
        for value, old in zip(values, before, strict=True):
            value.copy_(old)


def _first(error: RuntimeError) -> RuntimeError:
    """Return what went wrong first: the end of a capture complains once more of whatever did."""
    while isinstance(error.__context__, RuntimeError):
        error = error.__context__
    return error


def _reason(error: Exception) -> str:
    """Return two lines of the error as one, as the first may only say who raised it."""
    return " ".join(f"{type(error).__name__}: {error}".splitlines()[:2])
