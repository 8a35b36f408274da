"""Minimise the penalised cross-entropy of linear maps of features, by Newton's method.

Weights are (1 + d, K), the first row the bias. Everything is in float64.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass

import torch
from torch import Tensor
from torch.nn import functional as F

from resnests.analysis.rows import CACHED, Rows

LIMIT = 2000  # passes over the images that a solve may take
SETTLED = 5e-4  # nats that a test loss should be from that of the minimiser at most
COARSE = 1e-1  # nats of a certificate, above which steps are short for other reasons than rounding
POLISH = 20  # Newton steps that are taken for it
FEW = 2  # of them for a prefix, of which there are many: it brings most near 1e-3


@dataclass
class Risk:
    """Holds the mean cross-entropy plus l2/2 |weights|^2, which is strongly convex."""

    rows: Rows
    l2: float

    def parts(self, width: int) -> Iterator[tuple[Tensor, Tensor]]:
        """Yield the first `width` columns part by part, small enough for a CPU's cache."""
        return self.rows.parts(width, CACHED if self.rows.device.type == "cpu" else None)

    def at(self, weights: Tensor) -> Point:
        """Evaluate value and gradient at `weights`, in one pass."""
        value, probabilities = 0.0, []
        maps = weights.T.contiguous()  # (K, 1 + d) times (1 + d, N): twice as fast as x @ weights
        gradient = torch.zeros_like(maps)
        for x, labels in self.parts(len(weights)):
            logs = torch.log_softmax(maps @ x.T, 0)
            own = labels[None]
            value -= logs.gather(0, own).sum().item()
            p = logs.exp_()
            probabilities.append(p)
            error = p.clone()
            error.scatter_add_(0, own, -torch.ones_like(own, dtype=p.dtype))
            gradient.addmm_(error, x)
        n = len(self.rows)
        value = value / n + penalty(weights, self.l2)
        return Point(self, weights, value, gradient.T / n + self.l2 * weights, probabilities)


@dataclass
class Point:
    """Holds the risk around some weights."""

    risk: Risk
    weights: Tensor
    value: float
    gradient: Tensor
    probabilities: list[Tensor]  # (K, images of a part)

    @property
    def gap(self) -> float:
        """Return a bound on value - least value: the certificate of strong convexity."""
        return self.gradient.square().sum().item() / (2 * self.risk.l2)

    def curve(self, direction: Tensor, dtype: torch.dtype = torch.float64) -> Tensor:
        """Return the Hessian times `direction`, in one pass, with the products in `dtype`."""
        maps = direction.T.to(dtype).contiguous()
        product = torch.zeros_like(maps)
        parts = self.risk.parts(len(direction))
        for (x, _), p in zip(parts, self.probabilities, strict=True):
            x, p = x.to(dtype), p.to(dtype)
            change = p * (maps @ x.T)
            change -= p * change.sum(0)
            product.addmm_(change, x)
        return product.T.to(direction) / len(self.risk.rows) + self.risk.l2 * direction

    def metric(self) -> Tensor:
        """Return the Cholesky factor of what the Hessian is for one class about: the Gram matrix
        of images weighted by the mean of p(1 - p), of about four images a feature.

        It only speeds up `step`, so a little is added where features depend on one another.
        """
        width = len(self.weights)
        stride = max(1, len(self.risk.rows) // (4 * width))
        metric, count = self.weights.new_zeros((width, width)), 0
        for (x, _), p in zip(self.risk.parts(width), self.probabilities, strict=True):
            some = x[::stride]
            metric.addmm_((some * (p * (1 - p)).mean(0)[::stride, None]).T, some)
            count += len(some)
        metric /= count
        metric.diagonal().add_(self.risk.l2 + 1e-10 * metric.diagonal().mean())
        return torch.linalg.cholesky(metric)

    def step(
        self, metric: Tensor, dtype: torch.dtype, should_stop: Callable[[], None]
    ) -> tuple[Tensor, int]:
        """Solve Hessian * step = -gradient to a tenth by conjugate gradients in the `metric`, with
        products in `dtype`; the step, and the passes that it took.
        """
        found, left = torch.zeros_like(self.gradient), -centred(self.gradient)
        direction = solved = torch.cholesky_solve(left, metric)
        size = first = (left * solved).sum().item()
        passes = 0
        while passes < 60 and (passes == 0 or size > 0.01 * first):
            should_stop()
            passes += 1
            curved = centred(self.curve(direction, dtype))
            along = size / (direction * curved).sum().item()
            found = found + along * direction
            left = left - along * curved
            solved = torch.cholesky_solve(left, metric)
            before, size = size, (left * solved).sum().item()
            direction = solved + (size / before) * direction
        return found, passes


@dataclass
class Minimum:
    """Holds the least risk that was found, and at most how far it is above the true one. `error` is
    how far a test loss can be from that of the minimiser, None where none was given.
    """

    weights: Tensor
    value: float
    gap: float
    evaluations: int  # passes over the images
    reached: bool  # whether gap is within the tolerance: where it is not, there is no result
    error: float | None
    start: Point


def minimise(
    risk: Risk,
    start: Tensor,
    tolerance: float,
    test: Rows | None = None,
    should_stop: Callable[[], None] = lambda: None,
    limit: int = LIMIT,
    polish: int = POLISH,
) -> Minimum:
    """Find the least risk over maps of the first len(start) columns. `should_stop` raises where
    the work is to end.

    It goes on until the certificate is within `tolerance`, then for at most `polish` steps until
    the loss on `test` is within SETTLED of the minimiser's: a risk near its least can be far from
    its minimiser. That is at most |gradient| / l2 away, so that to first order the loss is |its
    own gradient| times that away.

    The same vector added to the maps of all classes changes the penalty alone, along which the
    Hessian is l2 and the metric far more: conjugate gradients would not get there. So the start
    has none of it, and no step brings any, not even by rounding.

    A step to a tenth needs no float64: products are in float32, which is twice as fast, until one
    near the least value does not halve the certificate. Values and gradients, and so all that is
    reported, are in float64.
    """

    def error_at(point: Point) -> float | None:
        if test is None or point.gap > tolerance:
            return None
        slope = Risk(test, 0).at(point.weights).gradient.norm().item()
        return slope * point.gradient.norm().item() / risk.l2

    point = first = risk.at(centred(start))
    passes, polished, error = 1, 0, error_at(point)
    metric, dtype = None, torch.float32
    while passes < limit and (
        point.gap > tolerance or ((error or 0) > SETTLED and polished < polish)
    ):
        polished += point.gap <= tolerance
        metric = point.metric() if metric is None else metric  # near enough for all steps
        step, used = point.step(metric, dtype, should_stop)
        slope, scale = (point.gradient * step).sum().item(), 1.0
        there = risk.at(point.weights + step)
        passes += used + 1
        while there.value > point.value + 1e-4 * scale * slope and -scale * slope > 1e-13:
            scale /= 2
            there = risk.at(point.weights + scale * step)
            passes += 1
        if there.gap > point.gap / 2 and point.gap < COARSE:
            dtype = torch.float64
        point = there
        error = error_at(point)
    reached = point.gap <= tolerance
    return Minimum(point.weights, point.value, point.gap, passes, reached, error, first)


def centred(maps: Tensor) -> Tensor:
    """Return maps without what all classes share, to which a softmax is blind."""
    return maps - maps.mean(1, keepdim=True)


def cross_entropy(rows: Rows, weights: Tensor) -> tuple[float, float]:
    """Return the mean cross-entropy in nats and the accuracy in percent."""
    loss = correct = 0.0
    for x, labels in rows.parts(len(weights)):
        logits = x @ weights
        loss += F.cross_entropy(logits, labels, reduction="sum").item()
        correct += (logits.argmax(1) == labels).sum().item()
    return loss / len(rows), 100 * correct / len(rows)


def penalty(weights: Tensor, l2: float) -> float:
    """Return l2/2 times the squared norm of `weights`."""
    return 0.5 * l2 * weights.square().sum().item()
