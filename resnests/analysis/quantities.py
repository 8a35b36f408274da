"""Compute the quantities (a) to (e) of docs/theory.md for one family of features of one network."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path

import torch
from torch import Tensor

from resnests.analysis.features import Family
from resnests.analysis.risk import FEW, POLISH, Minimum, Risk, cross_entropy, minimise, penalty
from resnests.analysis.rows import Rows
from resnests.analysis.squares import Squares, least_squares, squared_error, triangle_of
from resnests.runs.analysis import LAST_BLOCK, LAST_MAPS, PREFIX, TRAINED, Analysis, Solve


@dataclass
class Problem:
    """Holds standardised rows of one family, and what all its solves share."""

    name: str
    family: Family
    train: Rows
    test: Rows
    classes: int
    l2: float
    tolerance: float
    should_stop: Callable[[], None]  # raises where the work is to end
    file: Path | None = None  # beside which features go that are not kept in memory

    def __post_init__(self) -> None:
        mean, std = self.train.moments()
        self.train.standardise(mean, std)
        self.test.standardise(mean, std)
        self.std = std
        self.own: Tensor | None = None
        if self.family.weight is not None and self.family.bias is not None:
            weight, bias = (x.to(mean) for x in (self.family.weight, self.family.bias))
            self.own = torch.cat(((bias + weight @ mean)[None], (weight * std).T))

    @cached_property
    def r_factor(self) -> Tensor:
        """Return R of a QR of [1, features, labels]."""
        return triangle_of(self.train, self.classes)

    @cached_property
    def squares(self) -> list[Squares]:
        """Return the least squared errors of all prefixes."""
        ends = [1 + end for end in self.family.ends]
        return least_squares(self.r_factor, ends, len(self.train), self.classes)

    @cached_property
    def last_maps(self) -> LastMaps:
        """Return the problem of (b)."""
        return LastMaps(self)

    def smallest(self, weights: Tensor) -> Tensor:
        """Return the smallest weights that give the logits of `weights` on the training images.

        Features that are constant, or linear in others, can be used in many ways that come to the
        same; a penalty must not ask in which.
        """
        null = self.squares[-1].null
        return torch.cat((weights[:1], weights[1:] - null @ (null.T @ weights[1:])))

    def solves(self, done: Analysis, prefixes: bool = True) -> Iterator[Solve]:
        """Yield those that `done` has not, one by one: the network, prefix by prefix (or all
        features alone), the last block, the last maps.
        """
        last = self.family.groups[-1]
        if self.own is not None and done.find(TRAINED, self.name, last) is None:
            yield self._trained(last)
        if prefixes:
            yield from self._prefixes(done)
        elif done.find(PREFIX, self.name, last) is None:
            yield self._bound(last)
        if self.family.before is not None:
            if done.find(LAST_BLOCK, self.name, last) is None:
                yield self._last_block(last)
            if done.find(LAST_MAPS, self.name, last) is None:
                yield self.last_maps.solve(last)

    def over_l2(self, done: Analysis, path: list[float]) -> Iterator[Solve]:
        """Yield (c) and (b) with each other penalty of `path` that `done` has not."""
        last = self.family.groups[-1]
        for l2 in path:
            before, bound = done.over(l2)
            if bound is None:
                yield self._bound(last, l2)
            if before is None and self.family.before is not None:
                yield self.last_maps.solve(last, l2)

    def _trained(self, group: str) -> Solve:
        assert self.own is not None
        solve = Solve(TRAINED, self.name, group, len(self.own) - 1, gap=0.0)
        solve.train_loss, solve.train_accuracy = cross_entropy(self.train, self.own)
        solve.test_loss, solve.test_accuracy = cross_entropy(self.test, self.own)
        solve.value = solve.train_loss + penalty(self.smallest(self.own), self.l2)
        return solve

    def _prefixes(self, done: Analysis) -> Iterator[Solve]:
        """Yield (d), each from the one before. What was done before an interruption left no
        weights, so the one before the first that is wanted is solved again.
        """
        groups = self.family.groups
        wanted = [done.find(PREFIX, self.name, group) is None for group in groups]
        if not any(wanted):
            return
        first = wanted.index(True)
        weights, begin, gap = self.train.values.new_zeros((1, self.classes)), 0, 0.0
        weights = weights.to(self.train.device)
        for i in range(max(0, first - 1), len(groups)):
            end = 1 + self.family.ends[i]
            more = weights.new_zeros((end - len(weights), self.classes))
            found = self.minimum(torch.cat((weights, more)), settles=i == len(groups) - 1)
            if wanted[i]:
                solve = Solve(PREFIX, self.name, groups[i], end - 1)
                self._fill(solve, found, self.train, self.test, self.squares[i])
                if i > 0:
                    self._certify(solve, found, begin, end, gap)
                yield solve
            weights, begin, gap = found.weights, end, found.gap

    def _certify(self, solve: Solve, found: Minimum, begin: int, end: int, gap: float) -> None:
        """Bound by how much the columns V from `begin` on lower the least value, from the gradient
        g along them at the optimum without them, which is within `gap`.

        The Hessian of a softmax is at most 1/2, so that the curvature along V is at most
        C = V'V / 2N + l2, and a step along them gains g'C^-1 g / 2 at least. No step gains more
        than |g|^2 / (2 l2).
        """
        slope, block = found.start.gradient[begin:], self.r_factor[:end, begin:end]
        curvature = block.T @ block / (2 * len(self.train))
        curvature.diagonal().add_(self.l2)
        gain = (slope * torch.linalg.solve(curvature, slope)).sum().item() / 2
        solve.drop_at_least, solve.drop_at_most = max(0.0, gain - gap), found.start.gap

    def _bound(self, group: str, l2: float | None = None) -> Solve:
        """Solve (c) alone, from the network's own map."""
        assert self.own is not None
        found = self.minimum(self.smallest(self.own), l2)
        solve = Solve(PREFIX, self.name, group, len(self.own) - 1, l2=l2)
        return self._fill(solve, found, self.train, self.test, self.squares[-1])

    def _last_block(self, group: str) -> Solve:
        """Solve the least squared error of the last block's features alone."""
        size, d = self.family.sizes[-1], sum(self.family.sizes)
        columns = [0, *range(1 + d - size, 1 + d + self.classes)]
        narrow = torch.linalg.qr(self.r_factor[:, columns], mode="r").R
        (square,) = least_squares(narrow, [1 + size], len(self.train), self.classes)
        solve = Solve(LAST_BLOCK, self.name, group, size, train_squared=square.value)
        solve.rank = square.rank - 1
        return solve

    def minimum(
        self,
        start: Tensor,
        l2: float | None = None,
        rows: tuple[Rows, Rows] | None = None,
        settles: bool = True,
    ) -> Minimum:
        """Minimise the penalised cross-entropy, by default until the test loss has settled too;
        else a few steps are taken for that.
        """
        train, test = rows or (self.train, self.test)
        risk, polish = Risk(train, l2 or self.l2), POLISH if settles else FEW
        return minimise(risk, start, self.tolerance, test, self.should_stop, polish=polish)

    def _fill(
        self, solve: Solve, found: Minimum, train: Rows, test: Rows, square: Squares
    ) -> Solve:
        solve.gap, solve.evaluations, solve.rank = found.gap, found.evaluations, square.rank - 1
        if found.reached:
            solve.value, solve.test_error = found.value, found.error
            solve.train_loss, solve.train_accuracy = cross_entropy(train, found.weights)
            solve.test_loss, solve.test_accuracy = cross_entropy(test, found.weights)
        solve.train_squared = square.value
        solve.test_squared, solve.squared_accuracy = squared_error(test, square.weights)
        return solve


class LastMaps:
    """Holds the problem of (b): loss(A x_{L-1} + B v_L) at its least over A and B.

    x_{L-1} is a matrix T times the standardised features before, up to a constant, so the maps
    that can be reached are the rows of [A T, B]. They are taken in an orthonormal basis of their
    space, less what is 0 on every image: so they are penalised as the maps of (c) are, which keeps
    (c) <= (b) <= (a), and (b) = (c) where they reach all that the features span.
    """

    def __init__(self, problem: Problem) -> None:
        family, std = problem.family, problem.std
        assert family.before is not None
        assert problem.own is not None
        width, split, kept = len(family.before), family.ends[-2], family.sizes[-1]
        both = std.new_zeros((width + kept, len(std)))
        both[:width, :split] = family.before.to(std) * std[:split]
        both[width:, split:] = torch.eye(kept)
        null = problem.squares[-1].null
        both -= (both @ null) @ null.T
        _, singular, basis = torch.linalg.svd(both, full_matrices=False)
        self.problem, self.basis = problem, basis[singular > 1e-10 * singular[0]]
        self.x, self.v = (self.basis @ both.T).split((width, kept), 1)
        self.own = torch.cat((problem.own[:1], self.basis @ problem.own[1:]))
        self.rows = tuple(
            rows.through(self.basis, problem.file and problem.file.with_suffix(f".{name}.tmp"))
            for name, rows in (("maps_train", problem.train), ("maps_test", problem.test))
        )

    @cached_property
    def square(self) -> Squares:
        """Return the least squared error."""
        r_factor, size = self.problem.r_factor, 1 + self.basis.shape[1]
        parts = (r_factor[:, :1], r_factor[:, 1:size] @ self.basis.T, r_factor[:, size:])
        narrow = torch.linalg.qr(torch.cat(parts, 1), mode="r").R
        end, classes = 1 + len(self.basis), self.problem.classes
        return least_squares(narrow, [end], len(self.problem.train), classes)[0]

    @cached_property
    def minimum(self) -> Minimum:
        """Return the least penalised cross-entropy."""
        train, test = self.rows
        return self.problem.minimum(self.own, None, (train, test))

    def solve(self, group: str, l2: float | None = None) -> Solve:
        """Return (b), with the penalty `l2` where that is another one."""
        train, test = self.rows
        found = self.problem.minimum(self.own, l2, (train, test)) if l2 else self.minimum
        solve = Solve(LAST_MAPS, self.problem.name, group, len(self.basis), l2=l2)
        return self.problem._fill(solve, found, train, test, self.square)
