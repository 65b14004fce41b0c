"""How the processes of a training find each other: `torch.distributed` or `jax.distributed`, as under `torchrun`."""

from __future__ import annotations

import contextlib
import datetime
import os
import socket
import struct
import sys
import threading
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from shiftvit.backend import ensure_backend
from shiftvit.errors import ShiftViTError, be_quiet, complain
from shiftvit.training.processes import ALONE, Processes, Several

# Seconds: between two signs of life, without one until a process counts as lost, and until all must have come.
_BEAT, _LOST, _JOIN = 2.0, 15.0, 120.0
# Process 0 may evaluate and draw for long while the others wait; whether it lives is the signs' affair.
_PATIENCE = datetime.timedelta(days=7)
_SIOCGIFADDR = 0x8915  # of linux/sockios.h: an interface's address


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

    On jax SLURM may have started them too.

    Raises:
        ShiftViTError: tensorflow, wrong variables, processes that do not come, or one that ended early.
    """
    place = find_place()
    backend = ensure_backend()
    if place is None and not (backend == "jax" and _is_step_of_slurm()):
        yield ALONE
        return
    if backend == "tensorflow":
        raise ShiftViTError(
            "KERAS_BACKEND=tensorflow trains in one process and these are several; set KERAS_BACKEND=torch or jax"
        )
    group = JaxGroup(place) if place is None or backend == "jax" else TorchGroup(place)
    processes = Several(group)
    be_quiet(group.rank > 0)
    done = False
    try:
        with _losing(*group.words):
            yield processes
        done = True
    finally:
        processes.leave(done=done)


def _is_step_of_slurm() -> bool:
    """Returns whether `srun` started this process beside others; a batch script itself has no list of nodes."""
    return "SLURM_STEP_NODELIST" in os.environ and os.environ.get("SLURM_NTASKS", "1") != "1"


class TorchGroup:
    """Processes under `torch.distributed`: gloo on processors, NCCL on CUDA."""

    compiled = False
    words = ("gloo", "Gloo", "NCCL", "Connection", "c10d")

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
        interface = _interface_to(place.address)
        if interface is not None:
            # Or gloo takes what the host's name stands for, which Debian's installer makes the machine itself.
            os.environ.setdefault("GLOO_SOCKET_IFNAME", interface)
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
        self._distributed.all_gather(found, tensor)
        return np.stack([each.numpy() for each in found])

    def average(self, gradients: Sequence[Any]) -> list[Any]:
        flat = self._torch.cat([gradient.reshape(-1) for gradient in gradients])
        self._distributed.all_reduce(flat)
        flat /= self.count
        parts = flat.split([gradient.numel() for gradient in gradients])
        return [part.view_as(gradient) for part, gradient in zip(parts, gradients, strict=True)]

    def local(self, model: Any) -> Any:
        return model

    def leave(self) -> None:
        self._pulse.stop()
        self._distributed.destroy_process_group()


class JaxGroup:
    """Processes under `jax.distributed`, each with its slice of a batch that jax takes for one array.

    The gradients are reduced within the compiled step. jax itself ends a process when another one is lost.
    """

    compiled = True
    words = ("gloo", "Gloo", "NCCL", "onnection", "oordination", "eartbeat")

    def __init__(self, place: Place | None) -> None:
        import jax
        from jax.experimental import multihost_utils

        self._jax, self._gather = jax, multihost_utils.process_allgather
        jax.config.update("jax_cpu_collectives_implementation", "gloo")
        named: dict[str, Any] = {}
        if place is not None:
            # torchrun itself listens at MASTER_PORT.
            port = place.port + (os.environ.get("TORCHELASTIC_USE_AGENT_STORE") == "True")
            named = {
                "coordinator_address": f"{place.address}:{port}",
                "num_processes": place.count,
                "process_id": place.rank,
                "local_device_ids": [place.local_rank],
            }
        try:
            jax.distributed.initialize(**named, initialization_timeout=int(_JOIN), heartbeat_timeout_seconds=int(_LOST))
        except (RuntimeError, ValueError) as error:
            raise ShiftViTError(
                f"jax did not connect the processes ({_first_line(error)}); are all started, and is the port open?"
            ) from error
        import keras  # only now, as jax must not have computed anything

        self.rank, self.count = jax.process_index(), jax.process_count()
        devices = [f"{device.platform}:{device.id}" for device in jax.devices()]
        keras.distribution.set_distribution(keras.distribution.DataParallel(devices=devices, auto_shard_dataset=False))
        self._predict: dict[int, Any] = {}

    def gather(self, values: NDArray[Any]) -> NDArray[Any]:
        values = np.ascontiguousarray(values)
        # As bytes: jax would round what has 64 bits.
        found = np.asarray(self._gather(values.reshape(-1).view(np.uint8)))
        return np.frombuffer(found.tobytes(), values.dtype).reshape(self.count, *values.shape)

    def average(self, gradients: Sequence[Any]) -> list[Any]:
        return list(gradients)

    def local(self, model: Any) -> Any:
        if id(model) not in self._predict:
            self._predict[id(model)] = self._jax.jit(
                lambda trainable, fixed, images: model.stateless_call(trainable, fixed, images, training=False)[0]
            )
        return _LocalModel(model, self._predict[id(model)], self._jax.device_put)

    def leave(self) -> None:
        self._jax.distributed.shutdown()


class _LocalModel:
    """Predicts with the weights of a model that is spread over the processes, in this one alone."""

    def __init__(self, model: Any, predict: Any, put: Any) -> None:
        self.output_shape, self._predict = model.output_shape, predict
        weights = (model.trainable_variables, model.non_trainable_variables)
        self._weights = [[put(np.asarray(variable.value)) for variable in group] for group in weights]

    def predict_on_batch(self, images: NDArray[np.float32]) -> NDArray[np.float32]:
        return np.asarray(self._predict(*self._weights, images), np.float32)


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


def _interface_to(address: str) -> str | None:
    """Returns the network interface through which an IPv4 address is reached; None where Linux does not tell."""
    if sys.platform != "linux":
        return None
    import fcntl

    with contextlib.suppress(OSError), socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as probe:
        probe.connect((address, 9))  # sends nothing
        own = socket.inet_aton(probe.getsockname()[0])
        for _, name in socket.if_nameindex():
            with contextlib.suppress(OSError):
                request = struct.pack("256s", name.encode()[:15])
                if fcntl.ioctl(probe.fileno(), _SIOCGIFADDR, request)[20:24] == own:
                    return name
    return None


@contextlib.contextmanager
def _losing(*words: str) -> Iterator[None]:
    """Turns what torch or jax say, in these words, of a lost connection into a line."""
    try:
        yield
    except RuntimeError as error:
        if not any(word in str(error) for word in words):
            raise
        raise ShiftViTError(
            f"another process has ended ({_first_line(error)}); to go on, start the processes again with --resume RUN"
        ) from error


def _first_line(error: BaseException) -> str:
    return str(error).strip().splitlines()[0][:200] if str(error).strip() else type(error).__name__
