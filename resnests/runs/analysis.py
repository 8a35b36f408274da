"""analysis.json as a type: least risks of linear maps of a trained network's features.

It lies beside the record of the analysis, in the folder `analysis` of the run that was analysed
(see directory.py), and grows solve by solve. docs/theory.md defines the quantities.
"""

from __future__ import annotations

from dataclasses import dataclass, field

from resnests.config.schema import AnalysisOptions
from resnests.runs.record import Document, checked

TRAINED, LAST_MAPS, PREFIX = "trained", "last_maps", "prefix"


@dataclass
class Solve:
    """Describes a linear map of some features: the network's own, or the best one.

    Losses are mean cross-entropies in nats, accuracies in percent. `value` is the training loss
    plus l2/2 |map|^2 over standardised features, at most `gap` above its least value; value and
    losses are None where the solve did not reach its tolerance. Squared errors are those of the
    best map for squared loss, of one-hot labels, summed over classes.
    """

    quantity: str  # TRAINED: the network itself; LAST_MAPS: (b); PREFIX: (c), (d) and (e)
    family: str  # exact, or pooled, which only describes
    group: str  # the last group of features that is used
    features: int
    value: float | int | None = None
    gap: float | int | None = None
    evaluations: int = 0
    train_loss: float | int | None = None
    train_accuracy: float | int | None = None
    test_loss: float | int | None = None
    test_accuracy: float | int | None = None
    train_squared: float | int | None = None
    test_squared: float | int | None = None
    squared_accuracy: float | int | None = None  # of the map for squared loss, on the test set
    rank: int | None = None  # features that are not linear in those before them


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

    def is_made_with(self, options: AnalysisOptions) -> bool:
        return (self.l2, self.tolerance) == (options.l2, options.tolerance)

    def find(self, quantity: str, family: str, group: str) -> Solve | None:
        keys = (quantity, family, group)
        return next((s for s in self.solves if (s.quantity, s.family, s.group) == keys), None)

    def summary(self) -> dict[str, float | None]:
        """Return, of training with penalty, trained (a), last_maps (b), bound (c), linear (e), eps
        = (b) - (c) with eps_error, how far certificates leave it open to either side, and slack =
        (a) - (b); of squared error (b), (c) and eps; and the losses of (a), (b) and (c) on their
        own, as trained.test_loss. None where there is no such thing, no result, or not yet.
        """
        own = next((s for s in self.solves if s.quantity == TRAINED), None)
        # Prefixes are solved one by one, and only that of all features is the bound.
        bound = self.find(PREFIX, "exact", own.group) if own else None
        linear = next((s for s in self.solves if s.group == "input"), None)
        last = next((s for s in self.solves if s.quantity == LAST_MAPS), None)
        if self.coupled is False:
            last = bound
        values = {
            "trained": _get(own, "value"),
            "last_maps": _get(last, "value"),
            "bound": _get(bound, "value"),
            "linear": _get(linear, "value"),
            "eps": _less(last, bound, "value"),
            "eps_error": None,
            "slack": _less(own, last, "value"),
            "squared_last_maps": _get(last, "train_squared"),
            "squared_bound": _get(bound, "train_squared"),
            "squared_eps": _less(last, bound, "train_squared"),
        }
        if last is not None and bound is not None and values["eps"] is not None:
            values["eps_error"] = 0.0 if last is bound else max(last.gap or 0, bound.gap or 0)
        for name, solve in (("trained", own), ("last_maps", last), ("bound", bound)):
            for metric in ("train_loss", "test_loss", "test_accuracy"):
                values[f"{name}.{metric}"] = _get(solve, metric)
        return values

    @classmethod
    def from_json(cls, text: bytes) -> Analysis:
        """Return the analysis in `text`, with its types checked; raise BrokenRecord."""
        analysis = checked(cls, cls.object_of(text))
        analysis.solves = [checked(Solve, solve) for solve in analysis.solves]
        return analysis


def _get(solve: Solve | None, name: str) -> float | None:
    return None if solve is None else getattr(solve, name)


def _less(one: Solve | None, other: Solve | None, name: str) -> float | None:
    a, b = _get(one, name), _get(other, name)
    return None if a is None or b is None else a - b
