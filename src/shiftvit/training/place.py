"""The place of this process among those that train together, read from the variables that `torchrun` sets."""

from __future__ import annotations

import contextlib
import os
import socket
from dataclasses import dataclass

from shiftvit.errors import ShiftViTError

# Seconds within which every process must join, and seconds of silence after which a process counts as lost.
JOIN, LOST = 120, 15


@dataclass(frozen=True)
class Place:
    """A process's rank, the number of processes, its rank on its machine, and the address of process 0."""

    rank: int
    count: int
    local_rank: int
    address: str
    port: int


def find_place() -> Place | None:
    """Returns this process's place, or None if it trains alone.

    Raises:
        ShiftViTError: a variable is missing, not a whole number or out of range.
    """
    if "WORLD_SIZE" not in os.environ:
        return None
    count = _read_number("WORLD_SIZE", 1)
    if count == 1:
        return None
    rank = _read_number("RANK", 0)
    if rank >= count:
        raise ShiftViTError(f"RANK={rank} must be below WORLD_SIZE={count}; start the processes with torchrun")
    local_rank = _read_number("LOCAL_RANK", 0, default=rank)
    address = os.environ.get("MASTER_ADDR")
    if not address:
        raise ShiftViTError("MASTER_ADDR is not set; it is the address of process 0, and torchrun sets it")
    return Place(rank, count, local_rank, address, _read_number("MASTER_PORT", 1))


def _read_number(name: str, least: int, default: int | None = None) -> int:
    text = os.environ.get(name)
    if text is None:
        if default is None:
            raise ShiftViTError(f"WORLD_SIZE is set and {name} is not; torchrun sets both")
        return default
    if not text.isascii() or not text.isdigit() or int(text) < least:
        raise ShiftViTError(f"{name}={text!r} must be a whole number of at least {least}; torchrun sets it")
    return int(text)


def find_own_address(address: str) -> str | None:
    """Returns the IPv4 address at which this machine is seen from another one; None if it cannot be found."""
    with contextlib.suppress(OSError), socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as probe:
        probe.connect((address, 9))  # sends nothing
        return str(probe.getsockname()[0])
    return None
