"""Connects the processes that train together, by `torch.distributed` or `jax.distributed`."""

from __future__ import annotations

import contextlib
import os
from collections.abc import Iterator

from shiftvit.backend import ensure_backend
from shiftvit.errors import Elsewhere, ShiftViTError, be_quiet, take_first_line
from shiftvit.training.jax_group import JaxGroup
from shiftvit.training.place import find_place
from shiftvit.training.processes import ALONE, Processes, Several
from shiftvit.training.torch_group import TorchGroup


@contextlib.contextmanager
def join_processes() -> Iterator[Processes]:
    """Connects this process with the others that `torchrun` started, or SLURM on jax. Only process 0 prints.

    Raises:
        ShiftViTError: the backend is tensorflow, an environment variable is wrong, a process did not join, or one
            ended early.
    """
    place = find_place()
    backend = ensure_backend()
    if place is None and not (backend == "jax" and _is_step_of_slurm()):
        yield ALONE
        return
    if place is not None:
        be_quiet(place.rank > 0)
    if backend == "tensorflow":
        raise (Elsewhere if place is not None and place.rank > 0 else ShiftViTError)(
            "KERAS_BACKEND=tensorflow cannot train in several processes; set KERAS_BACKEND=torch or jax"
        )
    group = JaxGroup(place) if place is None or backend == "jax" else TorchGroup(place)
    processes = Several(group)
    be_quiet(group.rank > 0)
    try:
        with _report_lost_connection(group.words):
            yield processes
            processes.wait_for_all()
    except BaseException as error:
        processes.leave(error)
        raise
    processes.leave()


def _is_step_of_slurm() -> bool:
    """Returns whether `srun` started this process as one of several; a batch script itself has no list of nodes."""
    return "SLURM_STEP_NODELIST" in os.environ and os.environ.get("SLURM_NTASKS", "1") != "1"


@contextlib.contextmanager
def _report_lost_connection(words: tuple[str, ...]) -> Iterator[None]:
    """Turns an error of torch or jax about a lost connection, known by one of `words`, into a ShiftViTError."""
    try:
        yield
    except (RuntimeError, ValueError) as error:  # jax raises a ValueError for some of them
        if isinstance(error, ShiftViTError) or not any(word in str(error) for word in words):
            raise
        raise ShiftViTError(
            f"another process has ended ({take_first_line(error)}); to continue, start all processes again with "
            "--resume RUN"
        ) from error
