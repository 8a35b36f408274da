"""Solve least squares of linear maps of features, of every prefix of blocks at once by one QR.

Weights are (1 + d, K), the first row the bias. Everything is in float64.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import torch
from scipy.linalg import qr, solve_triangular
from torch import Tensor

from resnests.analysis.rows import Rows

RANK = 1e-6  # what is left of a standardised feature below it is rounding of float32 networks


def triangle_of(rows: Rows, classes: int) -> Tensor:
    """Return R (1 + d + K, 1 + d + K) of a QR of [1, features, one-hot labels], part by part."""
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
    """Holds the least mean squared error of one-hot labels, |y - map(x)|^2 summed over classes.

    `null` (d, n) has orthonormal columns: maps of the features that are 0 on every image.
    """

    weights: Tensor
    value: float
    rank: int
    null: Tensor


def least_squares(r_factor: Tensor, ends: list[int], images: int, classes: int) -> list[Squares]:
    """Solve for the columns before each of `ends`, by QR in blocks that is pivoted in each.

    A column of which next to nothing is left beside those before it, such as a relu that is always
    off, is left out: kept, its rounding error would pass for a feature.
    """
    r = r_factor.cpu().numpy().copy()
    norms = np.linalg.norm(r[:, :-classes], axis=0)
    kept, results, begin = np.empty(0, dtype=int), [], 0
    for end in ends:
        top = len(kept)
        block = r[top:, begin:end]
        q, upper, order = np.empty((0, 0)), block, np.arange(end - begin)
        if len(block):  # SciPy before 1.14 factors no matrix without rows
            q, upper, order = qr(block, mode="full", pivoting=True)
        left = np.abs(np.diag(upper))
        rank = int((left > RANK * np.maximum(norms[begin:end][order[: len(left)]], 1e-300)).sum())
        r[top:] = q.T @ r[top:]
        kept = np.concatenate((kept, begin + order[:rank]))
        count, begin = len(kept), end
        solved = solve_triangular(r[:count, kept], r[:count, -classes:])
        weights = np.zeros((end, classes))
        weights[kept] = solved
        value = float((r[count:, -classes:] ** 2).sum()) / images
        null = torch.from_numpy(_null_space(r[:count], kept, end)).to(r_factor)
        results.append(Squares(torch.from_numpy(weights).to(r_factor), value, count, null))
    return results


def _null_space(r: np.ndarray, kept: np.ndarray, end: int) -> np.ndarray:
    """Return an orthonormal basis of what the first `end` columns but the constant are 0 in."""
    dropped = np.setdiff1d(np.arange(end), kept)
    relations = np.zeros((end, len(dropped)))
    relations[dropped, np.arange(len(dropped))] = 1
    relations[kept] = -solve_triangular(r[:, kept], r[:, dropped])
    return np.linalg.qr(relations[1:])[0]


def squared_error(rows: Rows, weights: Tensor) -> tuple[float, float]:
    """Return the mean squared error of one-hot labels and the accuracy in percent."""
    loss = correct = 0.0
    for x, labels in rows.parts(len(weights)):
        scores = x @ weights
        y = torch.nn.functional.one_hot(labels, scores.shape[1]).to(scores)
        loss += (scores - y).square().sum().item()
        correct += (scores.argmax(1) == labels).sum().item()
    return loss / len(rows), 100 * correct / len(rows)
