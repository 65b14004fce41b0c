"""Work in several threads, in order and in bounded memory."""

from __future__ import annotations

import itertools
import threading
from collections import deque
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from typing import TypeVar

from shiftvit.environment import count_cores

_Item = TypeVar("_Item")
_Result = TypeVar("_Result")

# Items that a thread takes at a time.
_CHUNK = 8


def count_threads() -> int:
    """Returns how many threads decode images: one for each core, at most 8."""
    return min(8, count_cores())


def map_in_threads(function: Callable[[_Item], _Result], items: Iterable[_Item]) -> Iterator[_Result]:
    """Yields `function(item)` for each item, in their order. Raises what the function raises.

    The threads work ahead of the caller, but by no more than two chunks of items each.
    """
    remaining, threads = iter(items), count_threads()
    running: deque[Future[list[_Result]]] = deque()
    pool = ThreadPoolExecutor(threads, thread_name_prefix="shiftvit")
    try:
        while True:
            while len(running) < 2 * threads and (chunk := list(itertools.islice(remaining, _CHUNK))):
                running.append(pool.submit(list, map(function, chunk)))
            if not running:
                return
            yield from running.popleft().result()
    finally:
        pool.shutdown(cancel_futures=True)


def take_turns(run: Callable[[_Item], _Result]) -> Callable[[_Item], _Result]:
    """Returns a function that lets only one thread at a time call `run`."""
    lock = threading.Lock()

    def run_alone(value: _Item) -> _Result:
        with lock:
            return run(value)

    return run_alone
