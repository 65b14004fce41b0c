"""Processes under `torch.distributed`."""

from __future__ import annotations

import contextlib
import datetime
import os
import socket
import struct
import sys
import threading
import time
from collections.abc import Callable, Sequence
from typing import Any

from numpy.typing import NDArray

from shiftvit.errors import ShiftViTError, complain, take_first_line
from shiftvit.training.place import JOIN, LOST, Place, find_own_address
from shiftvit.training.processes import Group

# Seconds between heartbeats.
_BEAT = 2.0
# The others may wait long while process 0 evaluates and draws; the heartbeats show whether it is alive.
_PATIENCE = datetime.timedelta(days=7)
_SIOCGIFADDR = 0x8915  # of linux/sockios.h: an interface's address


class TorchGroup(Group):
    """Processes under `torch.distributed`: gloo on processors, NCCL on CUDA."""

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
                    f"LOCAL_RANK={place.local_rank} has no GPU of its own, because this machine has {devices}; start "
                    "at most one process per GPU, or hide the GPUs: CUDA_VISIBLE_DEVICES="
                )
            torch.cuda.set_device(place.local_rank)
            backend = "cpu:gloo,cuda:nccl"
        interface = _find_interface(place.address)
        if interface is not None:
            # Otherwise gloo uses the address of the host's name, which is 127.0.1.1 on a default Debian.
            os.environ.setdefault("GLOO_SOCKET_IFNAME", interface)
        try:
            store, _, _ = next(distributed.rendezvous("env://", timeout=datetime.timedelta(seconds=JOIN)))
            distributed.init_process_group(
                backend, store=store, rank=self.rank, world_size=self.count, timeout=_PATIENCE
            )
            self._pulse = _Pulse(store.clone(), self.rank, self.count)
        except (RuntimeError, ValueError) as error:
            raise ShiftViTError(
                f"the {self.count} processes did not find each other at {place.address}:{place.port} within "
                f"{JOIN} s ({take_first_line(error)}); are all started, and is the port open?"
            ) from error

    def gather(self, values: NDArray[Any], into: NDArray[Any]) -> None:
        self._distributed.all_gather(list(self._torch.from_numpy(into)), self._torch.from_numpy(values))

    def average(self, gradients: Sequence[Any], meet: Callable[[], Any]) -> list[Any]:
        flat = self._torch.cat([gradient.reshape(-1) for gradient in gradients])
        meet()
        self._distributed.all_reduce(flat)
        flat /= self.count
        parts = flat.split([gradient.numel() for gradient in gradients])
        return [part.view_as(gradient) for part, gradient in zip(parts, gradients, strict=True)]

    def stop_watching(self) -> None:
        self._pulse.stop()

    def leave(self, *, agreed: bool) -> None:  # noqa: ARG002  (a closed connection ends the others)
        self._distributed.destroy_process_group()


class _Pulse:
    """Sends heartbeats to the other processes, and ends this one if another is silent for `LOST` seconds.

    A collective operation that waits for a process that hangs, or for one behind a broken network, cannot be
    interrupted. So this ends the process at once. That is safe, because the files of a run are written atomically.
    """

    def __init__(self, store: Any, rank: int, count: int) -> None:
        self._store, self._rank = store, rank
        self._others = [other for other in range(count) if other != rank]
        self._seen: dict[int, bytes] = {}
        # When the last heartbeat of each other process came, and when the store, which process 0 holds, last answered.
        self._shown = dict.fromkeys(self._others, time.monotonic())
        self._answered = time.monotonic()
        self._gone = self._ended = False
        for name, work in (("pulse", self._beat), ("watch", self._watch)):
            threading.Thread(target=work, name=name, daemon=True).start()

    def stop(self) -> None:
        """Stops watching, so that other processes may end."""
        self._ended = True

    def _beat(self) -> None:
        """Exchanges heartbeats; without a network a call never returns."""
        beat = 0
        while not self._ended:
            beat += 1
            try:
                self._store.set(f"shiftvit/{self._rank}", str(beat))
                for other in self._others:
                    name = f"shiftvit/{other}"
                    value = self._store.get(name) if self._store.check([name]) else b""
                    if value != self._seen.get(other, b""):
                        self._seen[other], self._shown[other] = value, time.monotonic()
                self._answered = time.monotonic()
            except RuntimeError:
                self._gone = True
                return
            time.sleep(_BEAT)

    def _watch(self) -> None:
        while not self._ended:
            now = time.monotonic()
            lost = [other for other, shown in self._shown.items() if now - shown > LOST]
            if self._gone or now - self._answered > LOST:
                self._end("process 0, or its launcher, has ended")
            elif lost:
                self._end(f"process {lost[0]} has sent no heartbeat for {LOST} s")
            time.sleep(_BEAT / 4)

    def _end(self, what: str) -> None:
        if not self._ended:
            complain(f"{what}; to continue, start all processes again with --resume RUN")
            os._exit(1)


def _find_interface(address: str) -> str | None:
    """Returns the network interface that leads to an IPv4 address; None if it cannot be found, as on macOS."""
    if sys.platform != "linux":
        return None
    import fcntl

    own = find_own_address(address)
    if own is None:
        return None
    with contextlib.suppress(OSError), socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as probe:
        for _, name in socket.if_nameindex():
            with contextlib.suppress(OSError):
                request = struct.pack("256s", name.encode()[:15])
                if fcntl.ioctl(probe.fileno(), _SIOCGIFADDR, request)[20:24] == socket.inet_aton(own):
                    return name
    return None
