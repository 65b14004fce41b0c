"""Runs one model from many threads at the same time."""

from __future__ import annotations

import threading
from collections.abc import Callable

import numpy as np

COUNT = 8
ROUNDS = 10
# Batch sizes alternate, because some runtimes set themselves up again for each new size.
SIZES = (1, 3, 2)


def answer_together(run: Callable[[np.ndarray], np.ndarray], images: np.ndarray) -> float:
    """Returns the largest difference between the answers to `COUNT` threads and those to one thread.

    Args:
        run: uint8 (N, H, W, 3) -> (N, C).
        images: at least `COUNT + max(SIZES)`.

    Raises:
        Exception: the first that a thread raised.
    """
    expected = {(first, size): run(images[first : first + size]) for first in range(COUNT) for size in SIZES}
    start = threading.Barrier(COUNT)
    differences: list[float] = []
    exceptions: list[Exception] = []

    def ask(first: int) -> None:
        start.wait()
        for number in range(ROUNDS):
            size = SIZES[(first + number) % len(SIZES)]
            try:
                probabilities = run(images[first : first + size])
                differences.append(float(np.abs(probabilities - expected[first, size]).max()))
            except Exception as exception:
                exceptions.append(exception)

    threads = [threading.Thread(target=ask, args=(first,)) for first in range(COUNT)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    if exceptions:
        raise exceptions[0]
    assert len(differences) == COUNT * ROUNDS
    return max(differences)
