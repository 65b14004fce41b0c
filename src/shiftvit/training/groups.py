"""How the processes of a training find each other: `torch.distributed`, as under `torchrun`."""

from __future__ import annotations

import contextlib
import datetime
import os
import threading
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from shiftvit.backend import ensure_backend
from shiftvit.errors import Elsewhere, Interrupted, ShiftViTError, be_quiet, complain
from shiftvit.training.processes import ALONE, Processes, Several

# Seconds: between two signs of life, without one until a process counts as lost, and until all must have come.
_BEAT, _LOST, _JOIN = 2.0, 15.0, 120.0
# Process 0 may evaluate and draw for long while the others wait; whether it lives is the signs' affair.
_PATIENCE = datetime.timedelta(days=7)


@dataclass(frozen=True)
class Place:
    """What `torchrun` says in a process's environment: its number, that on its machine, and where process 0 is."""

    rank: int
    count: int
    local_rank: int
    address: str
    port: int


def find_place() -> Place | None:
    """Returns what the environment says, or None where it names no other process.

    Raises:
        ShiftViTError: a variable that is missing, or no number, or out of its range.
    """
    if "WORLD_SIZE" not in os.environ:
        return None
    count = _number("WORLD_SIZE", 1)
    if count == 1:
        return None
    rank = _number("RANK", 0)
    if rank >= count:
        raise ShiftViTError(f"RANK={rank} must be below WORLD_SIZE={count}")
    local_rank = _number("LOCAL_RANK", 0, default=rank)
    address = os.environ.get("MASTER_ADDR")
    if not address:
        raise ShiftViTError("MASTER_ADDR is not set; it is the address of process 0, and torchrun sets it")
    return Place(rank, count, local_rank, address, _number("MASTER_PORT", 1))


def _number(name: str, least: int, default: int | None = None) -> int:
    text = os.environ.get(name)
    if text is None:
        if default is None:
            raise ShiftViTError(f"WORLD_SIZE is set and {name} is not; torchrun sets both")
        return default
    if not text.isascii() or not text.isdigit() or int(text) < least:
        raise ShiftViTError(f"{name}={text!r} must be a whole number of at least {least}; torchrun sets it")
    return int(text)


@contextlib.contextmanager
def join_processes() -> Iterator[Processes]:
    """Connects this process with those that `torchrun` started beside it; all but process 0 then print nothing.

    Raises:
        ShiftViTError: tensorflow, wrong variables, or processes that do not come.
    """
    place = find_place()
    if place is None:
        yield ALONE
        return
    backend = ensure_backend()
    if backend != "torch":
        raise ShiftViTError(
            f"KERAS_BACKEND={backend} cannot train in {place.count} processes; set KERAS_BACKEND=torch or jax"
        )
    processes = Several(TorchGroup(place))
    be_quiet(place.rank > 0)
    done = False
    try:
        yield processes
        done = True
    finally:
        processes.leave(done=done)


class TorchGroup:
    """Processes under `torch.distributed`: gloo on processors, NCCL on CUDA."""

    def __init__(self, place: Place) -> None:
        import torch
        from torch import distributed

        self.rank, self.count = place.rank, place.count
        self._torch, self._distributed = torch, distributed
        backend = "gloo"
        if torch.cuda.is_available():
            devices = torch.cuda.device_count()
            if place.local_rank >= devices:
                raise ShiftViTError(
                    f"LOCAL_RANK={place.local_rank} has no GPU of its own, as this machine has {devices}; start at "
                    "most one process for each, or hide them: CUDA_VISIBLE_DEVICES="
                )
            torch.cuda.set_device(place.local_rank)
            backend = "cpu:gloo,cuda:nccl"
        try:
            store, _, _ = next(distributed.rendezvous("env://", timeout=datetime.timedelta(seconds=_JOIN)))
            distributed.init_process_group(
                backend, store=store, rank=self.rank, world_size=self.count, timeout=_PATIENCE
            )
            self._pulse = _Pulse(store.clone(), self.rank, self.count)
        except RuntimeError as error:
            raise ShiftViTError(
                f"the {self.count} processes did not find each other at {place.address}:{place.port} within "
                f"{_JOIN:.0f} s ({_first_line(error)}); are all started, and is the port open?"
            ) from error

    def gather(self, values: NDArray[Any]) -> NDArray[Any]:
        tensor = self._torch.from_numpy(np.ascontiguousarray(values))
        found = [self._torch.empty_like(tensor) for _ in range(self.count)]
        with _losing():
            self._distributed.all_gather(found, tensor)
        return np.stack([each.numpy() for each in found])

    def average(self, gradients: Sequence[Any]) -> list[Any]:
        flat = self._torch.cat([gradient.reshape(-1) for gradient in gradients])
        with _losing():
            self._distributed.all_reduce(flat)
        flat /= self.count
        parts = flat.split([gradient.numel() for gradient in gradients])
        return [part.view_as(gradient) for part, gradient in zip(parts, gradients, strict=True)]

    def local(self, model: Any) -> Any:
        return model

    def leave(self) -> None:
        self._pulse.stop()
        self._distributed.destroy_process_group()


class _Pulse(threading.Thread):
    """Shows the others that this process lives, and ends it if one of them does not show it for `_LOST` seconds.

    What waits for a process behind a broken network, or for one that stands still, cannot be interrupted: this ends the
    process as it is. The files of a run are written whole or not at all.
    """

    def __init__(self, store: Any, rank: int, count: int) -> None:
        super().__init__(daemon=True, name="pulse")
        store.set_timeout(datetime.timedelta(seconds=_LOST))
        self._store, self._rank, self._count = store, rank, count
        self._ended = threading.Event()
        self.start()

    def stop(self) -> None:
        self._ended.set()

    def run(self) -> None:
        others = [rank for rank in range(self._count) if rank != self._rank]
        seen: dict[int, bytes] = {}
        changed = dict.fromkeys(others, time.monotonic())
        beat = 0
        while not self._ended.wait(_BEAT):
            beat += 1
            try:
                self._store.set(f"shiftvit/{self._rank}", str(beat))
                found = {
                    rank: self._store.get(f"shiftvit/{rank}")
                    for rank in others
                    if self._store.check([f"shiftvit/{rank}"])
                }
            except RuntimeError:
                self._end("process 0, or what started it, is gone")
                return
            now = time.monotonic()
            for rank, value in found.items():
                if value != seen.get(rank):
                    seen[rank], changed[rank] = value, now
            lost = [rank for rank in others if now - changed[rank] > _LOST]
            if lost:
                self._end(f"process {lost[0]} has shown no sign of life for {_LOST:.0f} s")
                return

    def _end(self, what: str) -> None:
        if not self._ended.is_set():
            complain(f"{what}; to go on, start the processes again with --resume RUN")
            os._exit(1)


@contextlib.contextmanager
def _losing() -> Iterator[None]:
    """Turns what torch says of a lost connection into a line."""
    try:
        yield
    except (Elsewhere, Interrupted):
        raise
    except RuntimeError as error:
        if type(error).__name__ == "OutOfMemoryError":
            raise
        raise ShiftViTError(
            f"another process has ended ({_first_line(error)}); to go on, start the processes again with --resume RUN"
        ) from error


def _first_line(error: BaseException) -> str:
    return str(error).strip().splitlines()[0][:200] if str(error).strip() else type(error).__name__
