"""analysis.json as a type: least risks of linear maps of a trained network's features.

It lies beside the record of the analysis, in the folder `analysis` of the run that was analysed
(see directory.py), and grows solve by solve. docs/theory.md defines the quantities.
"""

from __future__ import annotations

import dataclasses
import json
from dataclasses import dataclass, field
from typing import Any

from resnests.config.schema import Analysis as Options
from resnests.runs.record import BrokenRecord, checked

SCHEMA = 1
TRAINED, LAST_MAPS, PREFIX = "trained", "last_maps", "prefix"


@dataclass
class Solve:
    """A linear map of some features: the network's own, or the best one.

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
class Analysis:
    """The content of analysis.json."""

    l2: float | int
    tolerance: float | int  # nats
    weights_sha256: str  # of the weights that were analysed
    train_images: int = 0
    test_images: int = 0
    logits_error: float | int | None = (
        None  # largest difference of logits from features and network
    )
    # of the single-stage ResNEsts: M, N_in + the sum of K_i for i < L, the smallest singular values
    # of [W_0 .. W_{L-1}] (0 where it has fewer rows than columns) and of W_{L+1}
    width: int | None = None
    needed_width: int | None = None
    smallest_singular_value: float | int | None = None
    smallest_singular_value_of_the_last: float | int | None = None
    solves: list = field(default_factory=list)

    def is_made_with(self, options: Options) -> bool:
        return (self.l2, self.tolerance) == (options.l2, options.tolerance)

    def find(self, quantity: str, family: str, group: str) -> Solve | None:
        keys = (quantity, family, group)
        return next((s for s in self.solves if (s.quantity, s.family, s.group) == keys), None)

    def to_json(self) -> str:
        """Raises a ValueError for numbers that are not finite, which JSON does not have."""
        values = {"schema": SCHEMA} | dataclasses.asdict(self)
        return json.dumps(values, indent=1, allow_nan=False) + "\n"

    @classmethod
    def from_json(cls, text: bytes) -> Analysis:
        """The analysis in `text`, with its types checked; raises BrokenRecord."""
        try:
            raw: Any = json.loads(text)
        except ValueError as error:
            raise BrokenRecord(f"no JSON ({error})") from error
        if not isinstance(raw, dict) or raw.get("schema") != SCHEMA:
            raise BrokenRecord(f"no analysis of schema {SCHEMA}")
        analysis = checked(cls, raw)
        analysis.solves = [checked(Solve, solve) for solve in analysis.solves]
        return analysis
