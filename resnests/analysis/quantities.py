"""The quantities (a) to (e) of docs/theory.md for one family of features of one network."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass

import torch
from torch import Tensor

from resnests.analysis.features import Family
from resnests.analysis.rows import Rows
from resnests.analysis.solve import (
    Squares,
    cross_entropy,
    least_squares,
    minimise,
    penalty,
    squared_error,
    triangle_of,
)
from resnests.runs.analysis import LAST_MAPS, PREFIX, TRAINED, Analysis, Solve


@dataclass
class Problem:
    """Standardised rows of one family, and what all its solves share."""

    name: str
    family: Family
    train: Rows
    test: Rows
    classes: int
    l2: float
    tolerance: float
    should_stop: Callable[[], None]  # raises where the work is to end

    def __post_init__(self) -> None:
        mean, std = self.train.moments()
        self.train.standardise(mean, std)
        self.test.standardise(mean, std)
        self.std = std
        self.own: Tensor | None = None
        if self.family.weight is not None and self.family.bias is not None:
            weight, bias = (x.to(mean) for x in (self.family.weight, self.family.bias))
            self.own = torch.cat(((bias + weight @ mean)[None], (weight * std).T))

    def solves(self, done: Analysis) -> Iterator[Solve]:
        """Those that `done` has not, one by one: the network, prefix by prefix, the last maps."""
        last = self.family.groups[-1]
        if self.own is not None and done.find(TRAINED, self.name, last) is None:
            yield self._trained(last)
        wanted = [done.find(PREFIX, self.name, group) is None for group in self.family.groups]
        two = self.family.before is not None and done.find(LAST_MAPS, self.name, last) is None
        if not any(wanted) and not two:
            return
        triangle = triangle_of(self.train, self.classes)
        ends = [1 + end for end in self.family.ends]
        squares = least_squares(triangle, ends, len(self.train), self.classes)
        weights = triangle.new_zeros((1, self.classes))
        for group, end, square, want in zip(self.family.groups, ends, squares, wanted, strict=True):
            if want:  # what was done before an interruption leaves no weights to start from
                weights = torch.cat(
                    (weights, weights.new_zeros((end - len(weights), self.classes)))
                )
                solve = Solve(PREFIX, self.name, group, end - 1)
                weights = self._solve(solve, self.train, self.test, triangle, weights, square)
                yield solve
        if two:
            yield self._last_maps(last, triangle)

    def _trained(self, group: str) -> Solve:
        assert self.own is not None
        solve = Solve(TRAINED, self.name, group, len(self.own) - 1, gap=0.0)
        solve.train_loss, solve.train_accuracy = cross_entropy(self.train, self.own)
        solve.test_loss, solve.test_accuracy = cross_entropy(self.test, self.own)
        solve.value = solve.train_loss + penalty(self.own, self.l2)
        return solve

    def _last_maps(self, group: str, triangle: Tensor) -> Solve:
        """(b): loss(A x_{L-1} + B v_L) at its least over A and B.

        x_{L-1} is a matrix T times the standardised features before, up to a constant. With
        T = C Q and Q of orthonormal rows, A T = (A C) Q has the norm of A C: maps of [Q features,
        v_L] are penalised as those of all features are, which keeps (c) <= (b) <= (a).
        """
        assert self.family.before is not None
        assert self.own is not None
        split = self.family.ends[-2]
        matrix = self.family.before.to(self.std) * self.std[:split]
        _, singular, basis = torch.linalg.svd(matrix, full_matrices=False)
        basis = basis[singular > 1e-10 * singular[0]]
        kept = self.family.sizes[-1]
        train, test = (rows.through(basis, kept) for rows in (self.train, self.test))
        end, width = len(basis), 1 + split
        narrow = triangle.new_zeros((len(triangle), 1 + end + kept + self.classes))
        narrow[:, 0] = triangle[:, 0]
        narrow[:, 1 : 1 + end] = triangle[:, 1:width] @ basis.T
        narrow[:, 1 + end :] = triangle[:, width:]
        narrow = torch.linalg.qr(narrow, mode="r").R
        ends = [1 + end, 1 + end + kept]
        square = least_squares(narrow, ends, len(train), self.classes)[-1]
        start = torch.cat((self.own[:1], basis @ self.own[1:width], self.own[width:]))
        solve = Solve(LAST_MAPS, self.name, group, end + kept)
        self._solve(solve, train, test, narrow, start, square)
        return solve

    def _solve(
        self,
        solve: Solve,
        train: Rows,
        test: Rows,
        triangle: Tensor,
        start: Tensor,
        square: Squares,
    ) -> Tensor:
        """Fill in `solve`; the weights of the cross-entropy."""
        size = len(start)
        least = minimise(
            train, triangle[:size, :size], start, self.l2, self.tolerance, self.should_stop
        )
        solve.gap, solve.evaluations, solve.rank = least.gap, least.evaluations, square.rank - 1
        if least.reached:
            solve.value = least.value
            solve.train_loss, solve.train_accuracy = cross_entropy(train, least.weights)
            solve.test_loss, solve.test_accuracy = cross_entropy(test, least.weights)
        solve.train_squared = square.value
        solve.test_squared, solve.squared_accuracy = squared_error(test, square.weights)
        return least.weights
