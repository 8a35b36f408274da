"""Define analysis.json as a type: least risks of linear maps of a trained network's features.

It lies beside the record of the analysis, in the folder `analysis` of the run that was analysed
(see directory.py), and grows solve by solve. docs/theory.md defines the quantities.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, field
from typing import Any

from resnests.config.schema import AnalysisOptions, Config
from resnests.runs.record import Document, checked

# Of how an analysis is made: those of an earlier method have other numbers, and are made again.
METHOD = 2
TRAINED, LAST_MAPS, PREFIX, LAST_BLOCK = "trained", "last_maps", "prefix", "last_block"
# The share of images that features may reach in number: beyond it a linear map can fit whatever
# labels there are, so that a bound says nothing of the features.
CROWDED = 0.9


@dataclass
class Solve:
    """Describes a linear map of some features: the network's own, or the best one.

    Losses are mean cross-entropies in nats, accuracies in percent. `value` is the training loss
    plus l2/2 |map|^2 over standardised features, of the smallest map that gives the same logits on
    the training images, and at most `gap` above its least value; value and losses are None where
    the solve did not reach its tolerance. Squared errors are those of the best map for squared
    loss, of one-hot labels, summed over classes.
    """

    # TRAINED: the network itself; LAST_MAPS: (b); PREFIX: (c), (d) and (e); LAST_BLOCK: of the last
    # block's features alone, by squared error only
    quantity: str
    family: str  # exact, or pooled, which only describes
    group: str  # the last group of features that is used
    features: int
    value: float | int | None = None
    gap: float | int | None = None
    evaluations: int = 0  # passes over the images
    train_loss: float | int | None = None
    train_accuracy: float | int | None = None
    test_loss: float | int | None = None
    # how far the test loss may be from the minimiser's; None of prefixes of earlier versions
    test_error: float | int | None = None
    test_accuracy: float | int | None = None
    # of a prefix: by how much its last group certainly lowers the least value, and at most
    drop_at_least: float | int | None = None
    drop_at_most: float | int | None = None
    l2: float | int | None = None  # of the solves in Analysis.over_l2
    train_squared: float | int | None = None
    test_squared: float | int | None = None
    squared_accuracy: float | int | None = None  # of the map for squared loss, on the test set
    rank: int | None = None  # features that are not linear in those before them


@dataclass
class SecondOrder:
    """Holds the penalised risk over (W_L, W_{L+1}) and a bias, around one point.

    x_{L-1} and v_L are centred, in the network's own units. `least` is the least eigenvalue of the
    Hessian, up to `residual` = |Hv - least v|, and never below the true one; `eigenvalues` are all
    of them, in ascending order, where there are few unknowns.
    """

    place: str  # trained; saddle: W_{L+1} = 0; optimum: two maps that make (b)
    unknowns: int
    value: float | int
    gradient: float | int  # its norm
    least: float | int
    largest: float | int
    residual: float | int = 0.0
    eigenvalues: list = field(default_factory=list)
    # the second variation along the direction that the theorem gives, normed; None at the optimum
    along: float | int | None = None


@dataclass
class Descent:
    """Says where L-BFGS over (W_L, W_{L+1}) and a bias came to after some evaluations."""

    start: str  # trained, saddle (and its direction), random
    value: float | int
    evaluations: int


@dataclass
class Analysis(Document):
    """Holds the content of analysis.json."""

    l2: float | int
    tolerance: float | int  # nats
    weights_sha256: str  # of the weights that were analysed
    # whether the W_i of its features also shape the features after them, as in a ResNEst: else the
    # last maps are free, and their best is the bound; None where no features are exact
    coupled: bool | None = None
    train_images: int = 0
    test_images: int = 0
    # the largest difference between the logits that its own maps give of the features and the
    # network's
    logits_error: float | int | None = None
    # of the single-stage ResNEsts: M, N_in + the sum of K_i for i < L, the smallest singular values
    # of [W_0 .. W_{L-1}] (0 where it has fewer rows than columns) and of W_{L+1}
    width: int | None = None
    needed_width: int | None = None
    smallest_singular_value: float | int | None = None
    smallest_singular_value_of_the_last: float | int | None = None
    solves: list = field(default_factory=list)
    method: int = 1  # METHOD of the version that made it
    epoch: int | None = None  # of the training, where these are kept weights of an earlier one
    points: list = field(default_factory=list)  # SecondOrder
    descents: list = field(default_factory=list)
    l2_path: list = field(default_factory=list)  # the penalties of over_l2
    over_l2: list = field(default_factory=list)  # (b) and (c) with other penalties: Solve
    kept: list = field(default_factory=list)  # Analysis of the weights of earlier epochs
    # dataset.train_limit and val_fraction, which of given weights are no part of the recipe; None
    # of earlier versions
    images: list | None = None

    @classmethod
    def of(cls, config: Config, digest: str, epoch: int | None = None) -> Analysis:
        """Return an analysis of the weights of SHA-256 `digest` in which nothing is solved yet."""
        options, data = config.analysis, config.dataset
        images = [data.train_limit, data.val_fraction]
        return cls(options.l2, options.tolerance, digest, method=METHOD, epoch=epoch, images=images)

    def is_made_with(self, config: Config) -> bool:
        """Return whether `config` and this version would give the same numbers; it may still lack
        some of analysis.l2_path, which add to them.
        """
        new = Analysis.of(config, self.weights_sha256)
        same = (self.l2, self.tolerance, self.method) == (new.l2, new.tolerance, METHOD)
        return same and self.images in (None, new.images)

    def is_of(self, digest: str, config: Config) -> bool:
        """Return whether it is one of these weights, made as `config` says."""
        return self.weights_sha256 == digest and self.is_made_with(config)

    def lacking(self, options: AnalysisOptions) -> list[float]:
        """Return the penalties of options.l2_path that were not asked for before."""
        return [l2 for l2 in options.l2_path if l2 not in self.l2_path]

    def find(self, quantity: str, family: str, group: str) -> Solve | None:
        """Return the solve of this name, None where there is none."""
        keys = (quantity, family, group)
        return next((s for s in self.solves if (s.quantity, s.family, s.group) == keys), None)

    def over(self, l2: float) -> tuple[Solve | None, Solve | None]:
        """Return (b) and (c) with the penalty `l2` of l2_path."""
        found = {s.quantity: s for s in self.over_l2 if s.l2 == l2}
        bound = found.get(PREFIX)
        return (bound if self.coupled is False else found.get(LAST_MAPS)), bound

    def _is_crowded(self, solve: Solve | None) -> bool:
        return bool(solve and (solve.rank or 0) >= CROWDED * (self.train_images - 1) > 0)

    def summary(self) -> dict[str, float | None]:
        """Return what tables and figures show. None where there is no such thing, no result, or
        not yet; nor is there a bound where the features are about as many as the images.

        Of training with penalty: trained (a), last_maps (b), bound (c), linear (e), eps =
        (b) - (c), and slack = (a) - (b); eps.train_loss and eps.test_loss without penalty; of
        squared error (b), (c), eps and what _selectivity gives; the losses of (a), (b) and (c) on
        their own, as trained.test_loss; what _second_order gives; and whether features are
        `crowded`. error_column names how far the minimum leaves a number open, to either side.
        """
        own = next((s for s in self.solves if s.quantity == TRAINED), None)
        # Prefixes are solved one by one, and only that of all features is the bound.
        bound = self.find(PREFIX, "exact", own.group) if own else None
        crowded = self._is_crowded(bound)
        linear = next((s for s in self.solves if s.group == "input"), None)
        linear = None if self._is_crowded(linear) else linear
        last = next((s for s in self.solves if s.quantity == LAST_MAPS), None)
        if self.coupled is False:
            last = bound
        bound, last = (None, None) if crowded else (bound, last)
        values = {
            "crowded": crowded,
            "trained": get(own, "value"),
            **compared(last, bound),
            "linear": get(linear, "value"),
            "linear_error": errors_of(linear)["value"],
            "slack": less(own, last, "value"),
            "slack_error": errors_of(last)["value"],
            "squared_last_maps": get(last, "train_squared"),
            "squared_bound": get(bound, "train_squared"),
            "squared_eps": less(last, bound, "train_squared"),
        }
        for name, solve in (("trained", own), ("last_maps", last), ("bound", bound)):
            for metric in ("train_loss", "test_loss", "test_error", "test_accuracy"):
                values[f"{name}.{metric}"] = get(solve, metric)
        return values | self._selectivity(last, bound) | self._second_order(last)

    def _selectivity(self, last: Solve | None, bound: Solve | None) -> dict[str, float | None]:
        """Return how squared eps compares with chance.

        lost, the k dimensions of the features before the last block that x_{L-1} does not pass on;
        random_eps, what r - k random directions of all r of them would miss in the mean; the
        selectivity rho = eps / random_eps (0 perfect, 1 as random); and floor, what k columns that
        have nothing to do with the labels would explain of the rest, R(b) k / (N - 1 - rank (b)):
        k of the directions of images that (b) has not used up.
        """
        values: dict[str, float | None] = dict.fromkeys(("lost", "random_eps", "rho", "floor"))
        alone = next((s for s in self.solves if s.quantity == LAST_BLOCK), None)
        if last is None or bound is None or alone is None or last is bound:
            return values
        lost, r = less(bound, last, "rank") or 0, less(bound, alone, "rank") or 0
        values["lost"] = lost
        free = self.train_images - 1 - (last.rank or 0)
        values["floor"] = (get(last, "train_squared") or 0) * lost / max(1, free)
        random = lost / max(1, r) * (less(alone, bound, "train_squared") or 0)
        if random > 0:
            values |= {
                "random_eps": random,
                "rho": (less(last, bound, "train_squared") or 0) / random,
            }
        return values

    def _second_order(self, last: Solve | None) -> dict[str, float | None]:
        """Return unknowns, gradient, least, negative (a share) at the trained point, and of each
        descent how far above (b) it ended, as above.random.
        """
        point = next((p for p in self.points if p.place == "trained"), None)
        values: dict[str, float | None]
        values = {name: getattr(point, name, None) for name in ("unknowns", "gradient", "least")}
        values["least_error"] = getattr(point, "residual", None)
        known = point.eigenvalues if point else []
        below = sum(value < -1e-9 * known[-1] for value in known)
        values["negative"] = below / len(known) if known else None
        for place in ("saddle", "optimum"):
            found = next((p for p in self.points if p.place == place), None)
            values[f"{place}.least"] = found and found.least
            values[f"{place}.least_error"] = found and found.residual
        best, error = get(last, "value"), errors_of(last)["value"]
        for descent in self.descents:
            values[f"above.{descent.start}_error"] = error
            values[f"above.{descent.start}"] = None if best is None else descent.value - best
        return values

    @classmethod
    def from_json(cls, text: bytes) -> Analysis:
        """Return the analysis in `text`, with its types checked; raise BrokenRecord."""
        return cls._checked(cls.object_of(text))

    @classmethod
    def _checked(cls, raw: Any) -> Analysis:
        analysis = checked(cls, raw)
        analysis.solves = [checked(Solve, solve) for solve in analysis.solves]
        analysis.over_l2 = [checked(Solve, solve) for solve in analysis.over_l2]
        analysis.points = [checked(SecondOrder, point) for point in analysis.points]
        analysis.descents = [checked(Descent, descent) for descent in analysis.descents]
        analysis.kept = [cls._checked(kept) for kept in analysis.kept]
        return analysis


def error_column(column: str) -> str:
    """Return where a summary has the error of a number: eps_error of eps, eps.test_error of
    eps.test_loss.
    """
    return column.removesuffix("_loss") + "_error"


def compared(last: Solve | None, bound: Solve | None) -> dict[str, float | None]:
    """Return (b), (c) and ε = (b) - (c), with ε of the training loss alone and of the test loss,
    each with its error.
    """
    values: dict[str, float | None] = {}
    b, c = errors_of(last), errors_of(bound)
    for name, solve, errors in (("last_maps", last, b), ("bound", bound, c)):
        values |= {name: get(solve, "value"), f"{name}_error": errors["value"]}
    for metric in b:
        column = "eps" if metric == "value" else f"eps.{metric}"
        values[column] = less(last, bound, metric)
        one, other = b[metric], c[metric]
        error = None if one is None or other is None else one + other
        if metric == "value" and error is not None:  # both are above their least value
            error = max(one or 0.0, other or 0.0)
        values[error_column(column)] = 0.0 if last and last is bound else error
    return values


def errors_of(solve: Solve | None) -> dict[str, float | None]:
    """Return how far value and losses of `solve` may be from those of the map of least value.

    That map is within d = |gradient| / l2, as l2 is the least curvature. So the penalty l2/2 |w|^2
    differs by at most |gradient| |w| + l2/2 d^2 = 2 sqrt(gap penalty) + gap, and the training loss
    alone by the gap more.
    """
    errors: dict[str, float | None] = dict.fromkeys(("value", "train_loss", "test_loss"))
    if solve is None or solve.value is None:
        return errors
    gap = solve.gap or 0.0
    errors |= {"value": gap, "test_loss": solve.test_error}
    if solve.train_loss is not None:
        penalty = max(0.0, solve.value - solve.train_loss)
        errors["train_loss"] = 2 * (gap + math.sqrt(gap * penalty))
    return errors


def get(solve: Solve | None, name: str) -> float | None:
    """Return a value of `solve`, None where there is none."""
    return None if solve is None else getattr(solve, name)


def less(one: Solve | None, other: Solve | None, name: str) -> float | None:
    """Return by how much a value of `one` is above that of `other`, None where one is missing."""
    a, b = get(one, name), get(other, name)
    return None if a is None or b is None else a - b
