"""Asks one model from many threads at the same time."""

from __future__ import annotations

import threading
from collections.abc import Callable

import numpy as np

COUNT = 8
ROUNDS = 10
# They alternate, because some runtimes prepare themselves again for another number of images.
SIZES = (1, 3, 2)


def answer_together(run: Callable[[np.ndarray], np.ndarray], images: np.ndarray) -> float:
    """Returns the largest difference between answers to `COUNT` threads and to one; raises what a thread raised.

    Args:
        run: uint8 (N, H, W, 3) -> (N, C).
        images: at least `COUNT + max(SIZES)`.
    """
    expected = {(first, size): run(images[first : first + size]) for first in range(COUNT) for size in SIZES}
    start = threading.Barrier(COUNT)
    differences: list[float] = []
    faults: list[Exception] = []

    def ask(first: int) -> None:
        start.wait()
        for turn in range(ROUNDS):
            size = SIZES[(first + turn) % len(SIZES)]
            try:
                found = run(images[first : first + size])
                differences.append(float(np.abs(found - expected[first, size]).max()))
            except Exception as fault:
                faults.append(fault)

    threads = [threading.Thread(target=ask, args=(first,)) for first in range(COUNT)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    if faults:
        raise faults[0]
    assert len(differences) == COUNT * ROUNDS
    return max(differences)
