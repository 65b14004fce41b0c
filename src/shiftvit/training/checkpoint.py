"""The whole state of a run in one file: weights, optimizer, random seeds, position and history.

The `.safetensors` file is renamed into place, so it holds either the old state or the new one, never a mixture.
"""

from __future__ import annotations

import json
import shlex
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import keras
import numpy as np

from shiftvit import files
from shiftvit.errors import ShiftViTError, describe_error
from shiftvit.training.processes import Processes
from shiftvit.training.runfolder import BEST, LAST, NEW_BEST

GENERATOR = "generator/"


@dataclass
class Progress:
    """The position of a run.

    Attributes:
        epoch: number of finished epochs.
        step: number of finished steps of the current epoch.
        seconds: training time so far, including validation.
        fit_seconds: the part of it spent in training steps.
        best_top1: best validation top-1 so far, 0 to 1; None before the first validation.
        best_loss: the lowest validation loss of the epochs with that top-1.
        best_epoch: the epoch (from 1) of both.
        history: a row for each epoch, as in `log.jsonl`.
    """

    epoch: int = 0
    step: int = 0
    seconds: float = 0.0
    fit_seconds: float = 0.0
    best_top1: float | None = None
    best_loss: float | None = None
    best_epoch: int | None = None
    history: list[dict[str, Any]] = field(default_factory=list)


def save_checkpoint(path: Path, model: Any, progress: Progress, generators: dict[str, Any] | None = None) -> None:
    """Writes the state to `path`, whole or not at all.

    Args:
        path: the file.
        model: the compiled model.
        progress: the position.
        generators: the states from `collect_generators`; at the start of an epoch none are needed.

    Raises:
        ShiftViTError: the disk is full or the folder is not writable.
    """
    from safetensors.numpy import save

    if hasattr(model, "jax_state_sync"):
        model.jax_state_sync()  # within an epoch, jax keeps the state outside the variables
    tensors = {name: _to_numpy(variable) for name, variable in _collect_state(model).items()}
    if not all(np.isfinite(tensor).all() for tensor in tensors.values()):
        raise make_divergence_error("a weight is not finite", progress, path.parent)
    header = {"progress": json.dumps(asdict(progress), allow_nan=False), "backend": keras.config.backend()}
    # safetensors' own `save_file` hides why it failed, and ignores the folder's permissions.
    content = save(tensors | (generators or {}), metadata=header)
    files.write_file(path, lambda temporary: temporary.write_bytes(content))


def settle_best(folder: Path, progress: Progress) -> None:
    """Makes NEW_BEST the best state if it is of the best epoch of `progress`; deletes it otherwise.

    A run may have stopped between two files. Then it repeats that epoch, perhaps with other settings.
    """
    from safetensors import SafetensorError, safe_open

    path = folder / NEW_BEST
    if not path.is_file():
        return
    try:
        with safe_open(path, framework="numpy") as file:
            epoch = json.loads(file.metadata()["progress"])["best_epoch"]
        if progress.best_epoch is not None and epoch == progress.best_epoch:
            path.replace(folder / BEST)
        else:
            path.unlink()
    except (SafetensorError, KeyError, TypeError, ValueError):
        path.unlink()
    except OSError as error:
        raise files.explain_unwritable(folder, error) from error


def make_divergence_error(what: str, progress: Progress, folder: Path) -> ShiftViTError:
    """Returns the error for a run that diverged; it names the state that can be resumed, if there is one."""
    when = f"in epoch {progress.epoch + 1}, step {progress.step}"
    if progress.epoch and not progress.step:  # `progress` is already at the beginning of the next epoch
        when = f"at the end of epoch {progress.epoch}"
    kept = ""
    if (folder / LAST).exists():
        resume = f"shiftvit train --resume {shlex.quote(str(folder.parent))} --set KEY=VALUE"
        kept = f"; the last good state is in {folder}: {resume}"
    return ShiftViTError(f"{what} {when}; lower train.optimizer.learning_rate or set train.precision=float32{kept}")


def load_checkpoint(path: Path, model: Any) -> Progress:
    """Puts a saved state into a compiled model and returns the position.

    Raises:
        ShiftViTError: the file is missing, damaged or of another model or backend.
    """
    from safetensors import SafetensorError, safe_open

    try:
        with safe_open(path, framework="numpy") as file:
            header = file.metadata()
            progress = Progress(**json.loads(header["progress"]))
            backend = keras.config.backend()
            if header["backend"] != backend:
                raise ShiftViTError(
                    f"the run was trained on {header['backend']}, and the backend is now {backend}; "
                    f"set KERAS_BACKEND={header['backend']} to continue it"
                )
            variables = _collect_state(model)
            late = _find_late_averages(variables, model)
            names = {name for name in file.keys() if not name.startswith(GENERATOR)}  # noqa: SIM118  (no mapping)
            if not late.keys() <= names:  # a version that did not average them made the file
                variables = {name: variable for name, variable in variables.items() if name not in late}
            if names != variables.keys():
                raise ShiftViTError(
                    f"{str(path)!r} belongs to a different model or optimizer: only one of the two has "
                    f"{sorted(names ^ variables.keys())[0]!r}; resume with the run's own recipe"
                )
            for name, variable in variables.items():  # all of them before the first is changed
                shape = tuple(file.get_slice(name).get_shape())
                if shape != tuple(variable.shape):
                    raise ShiftViTError(
                        f"{str(path)!r} belongs to a different model or optimizer: its {name!r} has the shape {shape}, "
                        f"and that of the recipe {tuple(variable.shape)}; resume with the run's own recipe"
                    )
            for name, variable in variables.items():
                variable.assign(file.get_tensor(name))
            for name in late.keys() - names:
                average, statistic = late[name]
                average.assign(keras.ops.copy(statistic.value))
    except ShiftViTError:
        raise
    except (OSError, SafetensorError, KeyError, TypeError, ValueError) as error:
        mend = "start a new run"
        if path.name == BEST:
            resume = f"shiftvit train --resume {shlex.quote(str(path.parents[1]))} --set train.select=last"
            mend = f"keep the weights of the last epoch: {resume}"
        raise ShiftViTError(
            f"cannot read the checkpoint {str(path)!r} ({describe_error(error)}); restore it, or {mend}"
        ) from error
    return progress


def collect_generators(processes: Processes) -> dict[str, Any]:
    """Returns the states of torch's random generators in all processes, by name."""
    found = {}
    for name, state in _read_generators().items():
        for rank, row in enumerate(processes.gather(state[None])):
            found[_name_generator(name, rank)] = row
    return found


def set_generators(seed: int, progress: Progress, path: Path, rank: int = 0) -> None:
    """Sets the state of torch's random generators before the first step of `fit` in an epoch.

    So it does not matter how many numbers Keras and torch draw while `fit` starts. At the start of an epoch the state
    follows from the seed and the epoch, and from the rank of processes above 0; later it is that of the checkpoint at
    `path`. For a device or a process whose state the checkpoint lacks, it follows from the seed, the epoch, the step
    and the rank.
    """
    if keras.config.backend() != "torch":
        return
    import torch
    from safetensors import safe_open

    key = [seed, progress.epoch] if rank == 0 and progress.step == 0 else [seed, progress.epoch, progress.step, rank]
    torch.manual_seed(int(np.random.default_rng(key).integers(2**62)))
    if progress.step == 0:
        return
    restore = {"cpu": torch.set_rng_state, "cuda": torch.cuda.set_rng_state, "mps": torch.mps.set_rng_state}
    with safe_open(path, framework="pt") as file:
        stored = {*file.keys()}
        for name in _read_generators():
            if (own := _name_generator(name, rank)) in stored:
                restore[name.removeprefix(GENERATOR)](file.get_tensor(own))


def _collect_state(model: Any) -> dict[str, Any]:
    """Returns every variable that training changes, under names that are the same in every process."""
    variables = {f"model/{i:04d}": variable for i, variable in enumerate(model.variables)}
    optimizer = {f"optimizer/{i:04d}": variable for i, variable in enumerate(model.optimizer.variables)}
    return variables | optimizer


def _find_late_averages(variables: dict[str, Any], model: Any) -> dict[str, tuple[Any, Any]]:
    """Returns, by name, the averages of batch norm's statistics, which older checkpoints lack, and the statistics."""
    statistics = model.optimizer.list_statistics()
    averages = list(variables.items())[len(variables) - len(statistics) :]  # the optimizer makes them last
    return {name: (average, value) for (name, average), value in zip(averages, statistics, strict=True)}


def _name_generator(name: str, rank: int) -> str:
    return name if rank == 0 else f"{name}/{rank}"


def _read_generators() -> dict[str, Any]:
    """Returns the states of torch's own generators in this process; Keras' dropout uses them, not its own seeds."""
    if keras.config.backend() != "torch":
        return {}
    import torch

    states = {f"{GENERATOR}cpu": torch.get_rng_state().numpy()}
    if torch.cuda.is_available():
        states[f"{GENERATOR}cuda"] = torch.cuda.get_rng_state().numpy()
    elif torch.backends.mps.is_available():
        states[f"{GENERATOR}mps"] = torch.mps.get_rng_state().numpy()
    return states


def _to_numpy(variable: Any) -> Any:
    # `ascontiguousarray` would give a scalar a dimension.
    return np.array(variable.numpy() if hasattr(variable, "numpy") else variable, order="C")
