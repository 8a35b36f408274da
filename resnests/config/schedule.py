"""Decide after which epochs the learning rate falls. No torch: that is part of a run's identity."""

from __future__ import annotations

from collections.abc import Sequence

# The key of recipes that holds moved_milestones. It follows from keys that the user sets.
MOVED = "optimizer.milestone_epochs"


def milestone_epochs(fractions: Sequence[float], epochs: int) -> list[int]:
    """Return the epochs after which the rate falls in a run of `epochs`.

    Milestones are ascending fractions of a run. Each falls with the end of an epoch, so that even a
    run of one or two epochs begins at its full rate, and a later one with the end of a later epoch.
    """
    ends: list[int] = []
    for index, fraction in enumerate(fractions):
        end = max(1, round(fraction * epochs))
        if index and fraction == fractions[index - 1]:
            end = ends[-1]
        elif index:
            end = max(end, ends[-1] + 1)
        ends.append(end)
    return [end for end in ends if end < epochs]


def moved_milestones(fractions: Sequence[float], epochs: int) -> list[int] | None:
    """Return milestone_epochs where earlier versions had others, which were rounded and no more.

    A run with other rates has other numbers, and must have another identity. Others keep theirs.
    """
    rounded = [round(fraction * epochs) for fraction in fractions]
    ends = milestone_epochs(fractions, epochs)
    return ends if ends != [end for end in rounded if end < epochs] else None
