"""Have threads work ahead of whoever asks for the results."""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import ThreadPoolExecutor
from itertools import islice
from typing import TypeVar

T = TypeVar("T")
R = TypeVar("R")


def ahead(
    work: Callable[[T], R], items: Iterable[T], most: int = 2, threads: int = 1
) -> Iterator[R]:
    """Yield what `work` gives for each of `items`, in their order, while threads do at most `most`
    of the next.

    What `work` raises is raised here, in its place. The threads end with this iterator, also where
    it is left early: closed, dropped, or by a Ctrl-C while it waits.
    """
    rest = iter(items)
    pool = ThreadPoolExecutor(threads, "ahead")
    try:
        waiting = deque(pool.submit(work, item) for item in islice(rest, most))
        while waiting:
            done = waiting.popleft().result()
            waiting.extend(pool.submit(work, item) for item in islice(rest, 1))
            yield done
    finally:
        pool.shutdown(cancel_futures=True)
