"""Reads tensors by name from files of weights, such as PyTorch's checkpoints, without running code."""

from __future__ import annotations

import warnings
import zipfile
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np

from shiftvit.errors import ShiftViTError, suggest_install, take_first_line, to_one_line
from shiftvit.zips import is_bomb, read_array

Array = np.ndarray[Any, Any]

READABLE = ".npz, .safetensors, .pth, .pt or .bin"
_TORCH = (".pth", ".pt", ".bin", ".ckpt", ".tar")
# Where training code keeps the weights, and their moving average.
_MODEL, _EMA = ("model", "state_dict"), ("model_ema", "state_dict_ema")
# The prefix of each name in the weights of a model that was wrapped for several devices.
_WRAPPER = "module."


def read_weights(weights: Mapping[str, Any] | str | Path, ema: bool = False) -> dict[str, Array]:
    """Returns the tensors of a file, or the given ones, by name as arrays.

    Args:
        weights: name to array, or the path of an `.npz`, a `.safetensors` or a PyTorch checkpoint: a state dict, plain
            or under "model" or "state_dict" beside other entries.
        ema: use the moving average of the weights, which a checkpoint keeps as "model_ema" or "state_dict_ema".

    Raises:
        ShiftViTError: the file cannot be read, has another type, or holds more than plain data.
    """
    if isinstance(weights, Mapping):
        return {name: _convert_to_array(value) for name, value in weights.items()}
    path = Path(weights)
    if not path.is_file():
        raise ShiftViTError(f"there is no file {str(path)!r} to read weights from; give a path of {READABLE}")
    suffix = path.suffix.lower()
    if suffix not in (".npz", ".safetensors", *_TORCH):
        raise ShiftViTError(f"cannot read weights from {str(path)!r}: its suffix is {path.suffix!r}; give {READABLE}")
    if ema and suffix not in _TORCH:
        raise ShiftViTError(f"{str(path)!r} holds one set of weights and no moving average; leave out --ema")
    try:
        _check_size(path)
        if suffix == ".npz":
            with zipfile.ZipFile(path) as archive:
                entries = {entry.filename.removesuffix(".npy"): entry for entry in archive.infolist()}
                names = [name for name in entries if name.startswith("w/")] or entries
                return {name.removeprefix("w/"): read_array(archive, entries[name]) for name in names}
        if suffix == ".safetensors":
            from safetensors.numpy import load_file

            return dict(load_file(path))
        return _read_torch(path, ema)
    except (ShiftViTError, MemoryError):
        raise
    except Exception as error:  # the readers' exceptions share no base class
        raise ShiftViTError(
            f"cannot read weights from {str(path)!r} ({take_first_line(error)}); is it complete, and really "
            f"{path.suffix}?"
        ) from error


def _check_size(path: Path) -> None:
    """Raises ShiftViTError if a zip archive would unpack to many times its size."""
    with path.open("rb") as file:
        if file.read(512).lstrip()[:1] == b"<":
            raise ShiftViTError(f"{str(path)!r} is a web page and holds no weights; download it again")
    if zipfile.is_zipfile(path):
        with zipfile.ZipFile(path) as archive:
            size = sum(entry.file_size for entry in archive.infolist())
        _refuse_bomb(path, size)


def _refuse_bomb(path: Path, size: int) -> None:
    packed = path.stat().st_size
    if is_bomb(size, packed):
        raise ShiftViTError(
            f"{str(path)!r} would unpack to {size:,} bytes from {packed:,}, too many for a model; get the file again"
        )


def _read_torch(path: Path, ema: bool) -> dict[str, Array]:
    try:
        import torch
    except ImportError as error:
        raise ShiftViTError(
            f"reading {str(path)!r} needs PyTorch; {suggest_install('torch')}, or convert it to .safetensors"
        ) from error
    state = _choose(path, _load(torch, path), ema)
    if not isinstance(state, dict) or not all(isinstance(value, torch.Tensor) for value in state.values()) or not state:
        raise ShiftViTError(
            f"{str(path)!r} holds no state dict; save model.state_dict(), plain or as {{'model': state_dict}}"
        )
    # A view can have many more elements than the file.
    _refuse_bomb(path, sum(value.numel() * value.element_size() for value in state.values()))
    tensors = {str(name): _convert_to_array(value) for name, value in state.items()}
    wrapped = all(name.startswith(_WRAPPER) for name in tensors)
    return {name.removeprefix(_WRAPPER): value for name, value in tensors.items()} if wrapped else tensors


def _choose(path: Path, state: Any, ema: bool) -> Any:
    """Returns the state dict among the entries of a checkpoint."""
    if not isinstance(state, dict):
        return state
    found = [state[key] for key in (_EMA if ema else _MODEL) if key in state]
    if ema and (not found or found[0] is None):
        raise ShiftViTError(f"{str(path)!r} has no moving average of the weights (model_ema); leave out --ema")
    return found[0] if found else state


class _Ignored:
    """A stand-in for a plain object beside the weights: takes any arguments and stores nothing."""

    def __new__(cls, *_: Any) -> _Ignored:
        return object.__new__(cls)

    def __init__(self, *_: Any) -> None: ...

    def __setstate__(self, _: Any) -> None: ...


# Types that training code saves beside weights: settings, counters, paths. They are not needed, and nothing in these
# modules is called. Any other type that torch does not allow itself is refused.
_PLAIN: dict[str, Any] = {
    "collections.defaultdict": lambda *_: {},
    **dict.fromkeys(
        (
            "argparse.Namespace",
            "types.SimpleNamespace",
            *(f"builtins.{name}" for name in ("dict", "list", "tuple", "frozenset", "int", "float", "str", "bool")),
            *(f"pathlib.{name}" for name in ("PosixPath", "WindowsPath", "PurePosixPath", "PureWindowsPath")),
            *(f"pathlib._local.{name}" for name in ("PosixPath", "WindowsPath", "PurePosixPath", "PureWindowsPath")),
            *(f"numpy.{core}.multiarray.{name}" for core in ("core", "_core") for name in ("scalar", "_reconstruct")),
            "numpy.dtype",
            "numpy.ndarray",
            "torch.torch_version.TorchVersion",
        ),
        _Ignored,
    ),
}


def _load(torch: Any, path: Path) -> Any:
    """Returns what `torch.load` reads without running code."""
    allowed = [(stand_in, name) for name, stand_in in _PLAIN.items()]
    try:
        with warnings.catch_warnings(), torch.serialization.safe_globals(allowed):
            warnings.simplefilter("ignore")
            return torch.load(path, map_location="cpu", weights_only=True)
    except Exception as error:
        # torch's messages are pages long, contain terminal escapes, and advise to allow code.
        text = str(error)
        if "TorchScript" in text:
            raise ShiftViTError(f"{str(path)!r} is a TorchScript program; save model.state_dict() instead") from None
        if (cut := text.find("GLOBAL ")) >= 0:
            name = to_one_line(text[cut + len("GLOBAL ") :].split(" ")[0])[:100]
            raise ShiftViTError(
                f"cannot read weights from {str(path)!r}: it holds {name}, which is not plain data and could run "
                "code; save model.state_dict() alone, or as {'model': state_dict}"
            ) from None
        if "eights only" in text or "nsupported" in text:
            raise ShiftViTError(
                f"cannot read weights from {str(path)!r}: it is damaged, or holds more than plain data; "
                "save model.state_dict() alone, or as {'model': state_dict}"
            ) from None
        raise


def _convert_to_array(value: Any) -> Array:
    if hasattr(value, "detach"):  # a PyTorch tensor; NumPy has no bfloat16 and no gradients
        value = value.detach().cpu()
        value = value.float() if value.is_floating_point() else value
    return np.asarray(value)
