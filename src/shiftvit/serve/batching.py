"""`Batcher`: gathers the images of many requests into batches for one session."""

from __future__ import annotations

import asyncio
import threading
from collections import deque
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from shiftvit.bundle.metadata import fit_batch
from shiftvit.serve.answers import refuse_full

Pixels = NDArray[np.uint8]
Rows = NDArray[np.float32]
Run = Callable[[Pixels], Rows]


@dataclass(eq=False)
class _Job:
    pixels: Pixels
    answer: asyncio.Future[Rows]


class Batcher:
    """Runs a session in its own thread on all waiting images, without a timer.

    A single image runs at once. While a batch runs, more images arrive, so batches grow with the load.

    Args:
        run: the session, from uint8 (N, H, W, 3) to a row for each image; called only in that thread.
        max_batch: the most images in a batch; of large ones at most as many as `fit_batch` returns.
        capacity: the most images that may wait for a result.
        max_bytes: the most bytes of their pixels, unless a single request has more.
        observe: called with the size of each batch, in the session's thread.
    """

    def __init__(self, run: Run, max_batch: int, capacity: int, max_bytes: int, observe: Callable[[int], None]) -> None:
        self._run, self._max_batch, self._observe = run, max_batch, observe
        self._capacity, self._max_bytes = capacity, max_bytes
        self._jobs: deque[_Job] = deque()
        self._changed = threading.Condition()
        self._stopped = False
        self._pending = self._bytes = 0
        self._thread = threading.Thread(target=self._work, name="session", daemon=True)
        self._thread.start()

    @property
    def pending(self) -> int:
        """The number of admitted images without a result."""
        return self._pending

    @contextmanager
    def admit(self, images: int) -> Iterator[None]:
        """Reserves places in the queue for the images of a request. Call it in the event loop's thread.

        Raises:
            Refused: the queue has too few free places.
        """
        if self._pending + images > self._capacity:
            raise refuse_full()
        self._pending += images
        try:
            yield
        finally:
            self._pending -= images

    async def run(self, pixels: Pixels) -> Rows:
        """Returns the session's rows for uint8 (N, H, W, 3), whose N images were admitted.

        Raises:
            Refused: too many bytes wait. Images that were admitted may be of any size.
            Exception: an exception of the session.
        """
        if self._bytes and self._bytes + pixels.nbytes > self._max_bytes:
            raise refuse_full()
        loop, most = asyncio.get_running_loop(), self._count_fitting(pixels)
        jobs = [_Job(pixels[first : first + most], loop.create_future()) for first in range(0, len(pixels), most)]
        self._bytes += pixels.nbytes
        with self._changed:
            self._jobs.extend(jobs)
            self._changed.notify()
        try:
            answers = [await jobs[0].answer] if len(jobs) == 1 else await asyncio.gather(*(job.answer for job in jobs))
        except asyncio.CancelledError:  # the deadline passed, the client left, or the server stops
            with self._changed:
                self._jobs = deque(job for job in self._jobs if job not in jobs)
            raise
        finally:
            self._bytes -= pixels.nbytes
        return answers[0] if len(answers) == 1 else np.concatenate(answers)

    def stop(self) -> None:
        """Ends the thread after the current batch."""
        with self._changed:
            self._stopped = True
            self._changed.notify()
        self._thread.join()

    def _work(self) -> None:
        while jobs := self._take():
            sizes = [len(job.pixels) for job in jobs]
            self._observe(sum(sizes))
            try:
                rows = self._run(np.concatenate([job.pixels for job in jobs]) if len(jobs) > 1 else jobs[0].pixels)
                answers = np.split(rows, np.cumsum(sizes)[:-1])
            except Exception as error:
                self._answer(jobs, error)
            else:
                self._answer(jobs, answers)

    def _take(self) -> list[_Job]:
        """Waits for jobs and returns as many as fit into a batch, or [] if the thread must end."""
        with self._changed:
            self._changed.wait_for(lambda: self._jobs or self._stopped)
            if self._stopped:
                return []
            taken = [self._jobs.popleft()]
            size, most = len(taken[0].pixels), self._count_fitting(taken[0].pixels)
            shape = taken[0].pixels.shape[1:]
            while (
                self._jobs
                and size + len(self._jobs[0].pixels) <= most
                and self._jobs[0].pixels.shape[1:] == shape  # a graph may take images of any size
            ):
                taken.append(self._jobs.popleft())
                size += len(taken[-1].pixels)
        return taken

    def _count_fitting(self, pixels: Pixels) -> int:
        """Returns how many images of this size a batch may have."""
        return min(self._max_batch, fit_batch(*pixels.shape[1:3]))

    @staticmethod
    def _answer(jobs: list[_Job], answers: list[Rows] | Exception) -> None:
        def deliver() -> None:
            for index, job in enumerate(jobs):
                if job.answer.done():
                    continue
                if isinstance(answers, Exception):
                    job.answer.set_exception(answers)
                else:
                    job.answer.set_result(answers[index])

        try:
            jobs[0].answer.get_loop().call_soon_threadsafe(deliver)
        except RuntimeError:  # the loop has been closed: the server ended at its deadline
            return
