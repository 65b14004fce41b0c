"""Time limits that hold on every processor: multiples of the time of a fixed piece of work in the same run."""

from __future__ import annotations

import contextlib
import functools
import hashlib
import resource
import subprocess
import sys
import time
import zlib
from collections.abc import Callable, Iterator
from typing import Any


@functools.cache
def measure_unit() -> float:
    """Returns the processor seconds of a fixed piece of work, the minimum of five runs.

    This is about 0.05 s on a recent server.
    """
    block = bytes(range(256)) * 4000

    def work() -> None:
        for _ in range(4):
            hashlib.sha256(zlib.compress(block, 6)).digest()
        sum(index * index for index in range(400_000))

    return min(_measure(work, time.process_time) for _ in range(5))


@contextlib.contextmanager
def limit_time(units: float) -> Iterator[None]:
    """Fails if the body takes more processor time, over all threads, than this number of units."""
    limit = units * measure_unit()
    began = time.process_time()
    yield
    taken = time.process_time() - began
    assert taken < limit, f"{taken:.3f} s of processor time; {units} units are {limit:.3f} s here"


def measure_child(run: Callable[[], Any], repeats: int = 3) -> float:
    """Returns the processor seconds of the processes that `run` starts and waits for, the minimum of all repeats."""

    def read_clock() -> float:
        usage = resource.getrusage(resource.RUSAGE_CHILDREN)
        return usage.ru_utime + usage.ru_stime

    return min(_measure(run, read_clock) for _ in range(repeats))


def measure_import(*modules: str) -> float:
    """Returns the processor seconds of a new interpreter that imports modules."""
    program = f"import {', '.join(modules)}"
    return measure_child(lambda: subprocess.run([sys.executable, "-c", program], check=True))


def _measure(run: Callable[[], Any], clock: Callable[[], float]) -> float:
    began = clock()
    run()
    return clock() - began
