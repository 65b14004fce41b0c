"""Which process of how many this is, and where the first one is: what `torchrun` says in the environment."""

from __future__ import annotations

import os
from dataclasses import dataclass

from shiftvit.errors import ShiftViTError

# Seconds until all must have come, and without a sign of life until a process counts as lost.
JOIN, LOST = 120, 15


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


def first_line(error: BaseException) -> str:
    """Returns the first line of what a library says."""
    return str(error).strip().splitlines()[0][:200] if str(error).strip() else type(error).__name__
