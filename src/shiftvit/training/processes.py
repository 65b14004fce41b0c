"""Several processes that train one model, on one machine or on several.

Each process holds the whole model and computes its share of every batch. Gradients are averaged before each step, so
the weights stay equal. Process 0 decides, prints and writes; the others follow. `ALONE` stands for a single process,
for which all of this does nothing.

The processes stay in step: before any exchange they meet and share what the exchange is for and whether their memory
ran out. So a fault in one process ends or repeats the step in all of them, and none waits for ever. The memory for an
exchange is allocated before its last meeting, as a process that fails after it would leave the others waiting.
"""

from __future__ import annotations

import json
import time
from collections.abc import Callable, Sequence
from typing import Any, TypeVar

import numpy as np
from numpy.typing import NDArray

from shiftvit.errors import Elsewhere, Interrupted, ShiftViTError

T = TypeVar("T")
# The purposes of a meeting; processes that meet for different purposes are out of step.
_STEP, _REDUCE, _TEXT, _ROWS = range(4)
_VALUES = 4
# Texts are padded to multiples of it, because jax compiles an exchange for each length.
_BLOCK = 1024


class Group:
    """The connection of the processes, by `torch.distributed` or `jax.distributed`."""

    rank: int
    count: int
    # An error about a lost connection has one of these words.
    words: tuple[str, ...]
    # Whether gradients are averaged within a compiled step, which cannot be interrupted.
    compiled = False

    def gather(self, values: NDArray[Any], into: NDArray[Any]) -> None:
        """Writes the arrays of all processes, of equal shape and dtype, into an array (count, *shape)."""
        raise NotImplementedError

    def average(self, gradients: Sequence[Any], meet: Callable[[], Any]) -> list[Any]:
        """Returns the gradients averaged over all processes. Calls `meet` when the memory for it is allocated."""
        raise NotImplementedError

    def local(self, model: Any) -> Any:
        """Returns an object that predicts with a model's weights in this process alone."""
        return model

    def stop_watching(self) -> None:
        """Stops treating the end of another process as a fault."""

    def leave(self, *, agreed: bool) -> None:
        """Closes the connection. `agreed`: all processes do so now, so jax may wait for them."""
        raise NotImplementedError


class Processes:
    """A single process: nothing is shared, and there is nothing to wait for.

    Attributes:
        rank: the number of this process, from 0.
        count: the number of processes.
    """

    rank = 0
    count = 1

    def share(self, total: int) -> slice:
        """Returns this process's share of `total` images."""
        return slice(self.rank * total // self.count, (self.rank + 1) * total // self.count)

    def meet(self, *values: float) -> NDArray[np.float64]:
        """Returns the values of every process, at most 4 each: float64 (count, V)."""
        return np.array([values], np.float64)

    def first(self, work: Callable[[], T]) -> T:
        """Calls `work` in process 0 only, and returns its result, of JSON types, in all processes, which wait for it.

        Raises:
            ShiftViTError: process 0 raised it; the others raise `Elsewhere`.
        """
        return work()

    def together(self, work: Callable[[], T]) -> T:
        """Calls `work` in every process and returns this one's result. If one process fails, all do.

        Raises:
            ShiftViTError: a process raised it; the others raise `Elsewhere`.
        """
        return work()

    def check_same(self, what: str, value: str) -> None:
        """Raises ShiftViTError if the processes have different values; the message begins with `what`."""

    def average(self, gradients: Sequence[Any]) -> Any:
        """Returns the gradients averaged over all processes."""
        return gradients

    def gather(self, rows: NDArray[Any]) -> NDArray[Any]:
        """Returns the rows of all processes, in the order of their ranks."""
        return rows

    def local(self, model: Any) -> Any:
        """Returns an object that predicts with a model's weights in this process alone."""
        return model

    def report_memory_fault(self, error: BaseException) -> None:
        """Reports to the others that memory ran out here; they raise `MemoryError` at their next meeting."""

    def take_cost(self) -> dict[str, Any]:
        """Returns the cost of the exchanges since the last call, for the log."""
        return {}


ALONE = Processes()


class _OutOfMemoryElsewhere(MemoryError):
    """Memory ran out in another process."""


class Several(Processes):
    """Several processes, connected by a group."""

    def __init__(self, group: Group) -> None:
        self.group, self.rank, self.count = group, group.rank, group.count
        self._steps, self._bytes, self._seconds = 0, 0, 0.0
        # The fault that this process told the others, so that all of them end.
        self._told: ShiftViTError | None = None

    def meet(self, *values: float) -> NDArray[np.float64]:
        return self._meet(_STEP, *values)[:, : len(values)]

    def first(self, work: Callable[[], T]) -> T:
        result, fault, text = None, None, ""
        if self.rank == 0:
            try:
                result = work()
            except ShiftViTError as error:
                fault = self._told = error
            text = json.dumps({"result": result, "fault": None if fault is None else str(fault)})
        answer = json.loads(self._gather_text(text)[0])
        if fault is not None:
            raise fault
        if answer["fault"] is not None:
            raise Elsewhere(answer["fault"])
        return answer["result"] if self.rank else result  # type: ignore[return-value]

    def together(self, work: Callable[[], T]) -> T:
        result, fault = None, None
        try:
            result = work()
        except ShiftViTError as error:
            fault = self._told = error
        faults = self._gather_text("" if fault is None else str(fault))
        failed = next((rank for rank, text in enumerate(faults) if text), None)
        if failed is None:
            return result  # type: ignore[return-value]
        if failed == self.rank and fault is not None:
            raise fault
        raise Elsewhere(f"process {failed}: {faults[failed]}")

    def check_same(self, what: str, value: str) -> None:
        values = self._gather_text(value)
        other = next((rank for rank, found in enumerate(values) if found != values[0]), None)
        if other is None:
            return
        message = (
            f"{what}: process {other} has {values[other]} and process 0 has {values[0]}; give all processes the same"
        )
        self._told = ShiftViTError(message)
        raise self._told if self.rank == 0 else Elsewhere(message)

    def average(self, gradients: Sequence[Any]) -> Any:
        if self.group.compiled:
            return gradients
        gradients = list(gradients)
        began = time.perf_counter()
        means = self.group.average(gradients, lambda: self._meet(_REDUCE))
        self._seconds += time.perf_counter() - began
        self._bytes += sum(gradient.nbytes for gradient in gradients)
        self._steps += 1
        return means

    def gather(self, rows: NDArray[Any]) -> NDArray[Any]:
        return np.concatenate(self._gather(_ROWS, rows))

    def local(self, model: Any) -> Any:
        return self.group.local(model)

    def report_memory_fault(self, error: BaseException) -> None:
        if self.group.compiled:
            raise ShiftViTError(
                f"out of memory in process {self.rank}; continue in smaller parts with --resume RUN "
                "--set train.accumulate=N"
            ) from error
        if not isinstance(error, _OutOfMemoryElsewhere):
            self._exchange(1.0, _STEP)

    def take_cost(self) -> dict[str, Any]:
        steps, found = max(self._steps, 1), {}
        if self._bytes:
            found = {
                "reduced_bytes_per_step": self._bytes // steps,
                "waited_seconds_per_step": round(self._seconds / steps, 6),
            }
        self._steps, self._bytes, self._seconds = 0, 0, 0.0
        return found

    def wait_for_all(self) -> None:
        """Waits until every process has finished, so that the end of one is no fault to another."""
        self.group.stop_watching()
        self._meet(_STEP)

    def leave(self, error: BaseException | None = None) -> None:
        """Closes the connection. `error`: the fault with which this process ends."""
        self.group.stop_watching()
        agreed = error is None or error is self._told or isinstance(error, Elsewhere | Interrupted)
        self.group.leave(agreed=agreed)

    def _gather_text(self, text: str) -> list[str]:
        """Returns the texts of all processes."""
        rows = self._gather(_TEXT, np.frombuffer(text.encode(), np.uint8), _BLOCK)
        return [row.tobytes().decode() for row in rows]

    def _gather(self, purpose: int, rows: NDArray[Any], multiple: int = 1) -> list[NDArray[Any]]:
        """Returns the rows of each process, which are padded to a larger multiple of a number."""
        counts = self._meet(purpose, len(rows))[:, 0].astype(int)
        padded = np.zeros(((max(counts) // multiple + 1) * multiple, *rows.shape[1:]), rows.dtype)
        padded[: len(rows)] = rows
        found = np.empty((self.count, *padded.shape), rows.dtype)
        self._meet(purpose)
        self.group.gather(padded, found)
        return [part[:count] for part, count in zip(found, counts, strict=True)]

    def _meet(self, purpose: int, *values: float) -> NDArray[np.float64]:
        """Returns the values of every process, once all of them meet for the same purpose.

        Raises:
            MemoryError: memory ran out in another process.
        """
        rows = self._exchange(0.0, purpose, *values)
        short = np.flatnonzero(rows[:, 0])
        if len(short):
            raise _OutOfMemoryElsewhere(f"out of memory in process {short[0]}")
        if (rows[:, 1] != purpose).any():
            raise RuntimeError(f"the processes are out of step: they meet for {rows[:, 1].astype(int).tolist()}")
        return rows[:, 2:]

    def _exchange(self, fault: float, purpose: int, *values: float) -> NDArray[np.float64]:
        row = np.zeros(2 + _VALUES, np.float64)
        row[: 2 + len(values)] = fault, purpose, *values
        rows = np.empty((self.count, len(row)), np.float64)
        self.group.gather(row, rows)
        return rows
