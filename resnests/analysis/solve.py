"""Least risks of linear maps of features: cross-entropy with a certificate, squared loss exactly.

Weights are (1 + d, K), the first row the bias. Everything is in float64.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
import torch
from scipy.linalg import qr, solve_triangular
from scipy.optimize import fmin_l_bfgs_b
from torch import Tensor

from resnests.analysis.rows import CACHED, Rows

RANK = 1e-6  # what is left of a standardised feature below it is rounding of float32 networks


@dataclass
class Minimum:
    """Of the mean cross-entropy + l2/2 |weights|^2: where, how high, and at most how far above the
    least value.
    """

    weights: Tensor
    value: float
    gap: float
    evaluations: int
    reached: bool  # whether gap is within the tolerance: where it is not, there is no result


def cross_entropy(rows: Rows, weights: Tensor) -> tuple[float, float]:
    """Mean cross-entropy in nats and accuracy in percent."""
    loss = correct = 0.0
    for x, labels in rows.parts(len(weights)):
        logits = x @ weights
        loss += torch.nn.functional.cross_entropy(logits, labels, reduction="sum").item()
        correct += (logits.argmax(1) == labels).sum().item()
    return loss / len(rows), 100 * correct / len(rows)


def penalty(weights: Tensor, l2: float) -> float:
    return 0.5 * l2 * weights.square().sum().item()


def _value_and_gradient(rows: Rows, weights: Tensor, l2: float) -> tuple[float, Tensor, float]:
    """The penalised risk, its gradient, and the mean of p(1 - p), the scale of its curvature."""
    value, curvature, most = 0.0, 0.0, CACHED if rows.device.type == "cpu" else None
    maps = weights.T.contiguous()  # (K, 1 + d) times (1 + d, N): twice as fast as x @ weights
    gradient = torch.zeros_like(maps)
    for x, labels in rows.parts(len(weights), most):
        logs = torch.log_softmax(maps @ x.T, 0)
        own = labels[None]
        value -= logs.gather(0, own).sum().item()
        p = logs.exp_()
        curvature += (p * (1 - p)).sum().item()
        p.scatter_add_(0, own, -torch.ones_like(own, dtype=p.dtype))
        gradient.addmm_(p, x)
    n = len(rows)
    value = value / n + penalty(weights, l2)
    return value, gradient.T / n + l2 * weights, curvature / (n * weights.shape[1])


class _Reached(Exception):
    pass


def minimise(
    rows: Rows,
    triangle: Tensor,
    start: Tensor,
    l2: float,
    tolerance: float,
    should_stop: Callable[[], None] = lambda: None,
    limit: int = 2000,
) -> Minimum:
    """The least penalised cross-entropy over maps of the first len(start) columns, by L-BFGS.
    `should_stop` raises where the work is to end.

    The penalty makes the risk strongly convex, so that value - least <= |gradient|^2 / (2 l2): the
    certificate. `triangle` is R of a QR of those columns; the curvature is about R'R / N times the
    mean of p(1 - p), and in variables in which that is the identity L-BFGS needs few steps. The
    factor falls on the way, so it starts anew with the one where it is.
    """
    best = Minimum(start, math.inf, math.inf, 0, False)
    gram = triangle.T @ triangle / len(rows)
    weights, shape, state = start, start.shape, {}

    def work(u: np.ndarray) -> tuple[float, np.ndarray]:
        should_stop()
        h = back(u)
        value, gradient, state["curvature"] = _value_and_gradient(rows, h, l2)
        best.evaluations += 1
        gap = gradient.square().sum().item() / (2 * l2)
        if gap < best.gap:
            best.weights, best.value, best.gap = h, value, gap
        if gap <= tolerance or best.evaluations >= limit:
            raise _Reached
        g = torch.linalg.solve_triangular(lower, gradient, upper=False)
        return value, g.cpu().numpy().ravel()

    def back(u: np.ndarray) -> Tensor:
        values = torch.from_numpy(u).to(start).view(shape)
        return torch.linalg.solve_triangular(lower.T, values, upper=True)

    _, _, state["curvature"] = _value_and_gradient(rows, start, l2)
    try:
        while True:
            metric = state["curvature"] * gram
            metric.diagonal().add_(l2)
            lower = torch.linalg.cholesky(metric)
            u = (lower.T @ weights).cpu().numpy().ravel()
            u, _, _ = fmin_l_bfgs_b(work, u, m=60, maxiter=1000, pgtol=0, factr=0)
            weights = back(u)
    except _Reached:
        best.reached = best.gap <= tolerance
    return best


def triangle_of(rows: Rows, classes: int) -> Tensor:
    """R (1 + d + K, 1 + d + K) of a QR of [1, features, one-hot labels], part by part."""
    width = rows.values.shape[1] + classes
    r = torch.zeros((0, width), dtype=torch.float64, device=rows.device)
    stack: list[Tensor] = []
    size = 0
    for x, labels in rows.parts():
        y = torch.nn.functional.one_hot(labels, classes).to(x)
        stack.append(torch.cat((x, y), 1))
        size += len(x)
        if size >= 4 * width:  # then what R adds to each decomposition is small
            r, stack, size = torch.linalg.qr(torch.cat([r, *stack]), mode="r").R, [], 0
    return torch.linalg.qr(torch.cat([r, *stack]), mode="r").R if stack else r


@dataclass
class Squares:
    """The least mean squared error of one-hot labels, |y - map(x)|^2 summed over classes."""

    weights: Tensor
    value: float
    rank: int


def least_squares(triangle: Tensor, ends: list[int], images: int, classes: int) -> list[Squares]:
    """For the columns before each of `ends`, all from one triangle_of: QR in blocks, pivoted in
    each.

    A column of which next to nothing is left beside those before it, such as a relu that is always
    off, is left out: kept, its rounding error would pass for a feature.
    """
    r = triangle.cpu().numpy().copy()
    norms = np.linalg.norm(r[:, :-classes], axis=0)
    kept, results, begin = np.empty(0, dtype=int), [], 0
    for end in ends:
        top = len(kept)
        q, upper, order = qr(r[top:, begin:end], mode="full", pivoting=True)
        left = np.abs(np.diag(upper))
        rank = int((left > RANK * np.maximum(norms[begin:end][order[: len(left)]], 1e-300)).sum())
        r[top:] = q.T @ r[top:]
        kept = np.concatenate((kept, begin + order[:rank]))
        count, begin = len(kept), end
        solved = solve_triangular(r[:count, kept], r[:count, -classes:])
        weights = np.zeros((end, classes))
        weights[kept] = solved
        value = float((r[count:, -classes:] ** 2).sum()) / images
        results.append(Squares(torch.from_numpy(weights).to(triangle), value, count))
    return results


def squared_error(rows: Rows, weights: Tensor) -> tuple[float, float]:
    """Mean squared error of one-hot labels and accuracy in percent."""
    loss = correct = 0.0
    for x, labels in rows.parts(len(weights)):
        scores = x @ weights
        y = torch.nn.functional.one_hot(labels, scores.shape[1]).to(scores)
        loss += (scores - y).square().sum().item()
        correct += (scores.argmax(1) == labels).sum().item()
    return loss / len(rows), 100 * correct / len(rows)
