"""Order arrays of jobs such that no more than a number of jobs can run at once. No torch."""

from __future__ import annotations


class Lanes:
    """Holds the arrays of a sweep in lanes: in each one array runs after the other, and the widths
    of all add up to no more than `room`. None sets no limit.
    """

    def __init__(self, room: int | None) -> None:
        self.room = room
        self.lanes: list[tuple[str, int]] = []  # the last array and the width, the oldest first

    def before(self, size: int) -> list[str]:
        """Return the arrays that must be over before one of `size` jobs may begin."""
        return [array for array, _ in self.lanes[: self._taken(size)]]

    def add(self, array: str, size: int) -> None:
        """Note an array of `size` jobs, which begins after those that `before` names."""
        count = self._taken(size)
        freed = sum(width for _, width in self.lanes[:count])
        # Its own % keeps a wider one from more than `room` jobs at once
        wanted = size if self.room is None else min(size, self.room)
        self.lanes = [*self.lanes[count:], (array, max(freed, wanted))]

    def _taken(self, size: int) -> int:
        """Return how many lanes, of the oldest, the next array takes over; 0 where it has room."""
        if self.room is None:
            return 0
        wanted = min(size, self.room)
        free = self.room - sum(width for _, width in self.lanes)
        if wanted <= free:
            return 0
        for count, (_, width) in enumerate(self.lanes, 1):
            free += width
            if wanted <= free:
                return count
        return len(self.lanes)
