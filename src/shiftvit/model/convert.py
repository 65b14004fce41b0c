"""Weights from elsewhere into our models: the official PyTorch ones, and those of the Keras example.

Both readers first match every tensor by name and shape, and change the model only if all of them fit.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any

import numpy as np

from shiftvit.errors import ShiftViTError, install_hint

Array = np.ndarray[Any, Any]
# name in the source, and what turns its tensor into ours
Origin = tuple[str, Callable[[Array], Array]]

READABLE = ".npz, .safetensors, .pth, .pt or .bin"


def load_official(model: Any, weights: Mapping[str, Any] | str | Path) -> Any:
    """Loads the weights of the paper's official PyTorch model.

    Args:
        model: a `ShiftViT`, or a `ShiftViTBackbone`, which leaves the head's tensors out; of the same configuration.
        weights: state-dict name to array, or the path of an `.npz`, a `.safetensors` or a PyTorch checkpoint (a state
            dict, or `{"model": state dict}`; read with `weights_only=True`, which runs no code).

    Returns:
        `model`.

    Raises:
        ShiftViTError: unreadable file, or tensors that are missing, surplus or of another shape: all in one message.
    """
    tensors = read_weights(weights)
    tensors = {name: value for name, value in tensors.items() if not name.endswith("num_batches_tracked")}
    variables = {variable.path: variable for variable in model.weights}
    if "head/kernel" not in variables:
        tensors = {name: value for name, value in tensors.items() if not name.startswith("head.")}
    return _assign(model, tensors, {path: _official_origin(path) for path in variables})


def load_keras_example(model: Any, weights: Mapping[str, Any] | str | Path) -> Any:
    """Loads the weights of the Keras example's model.

    Args:
        model: a `ShiftViT` in the example's configuration (the preset `keras_example`, or its arguments with other
            depths and widths).
        weights: Keras path to array in the order of the example's `model.weights`, or the path of an `.npz` or
            `.safetensors` with such entries; where each name starts with a number and a slash, the numbers order them.
            Keras numbers layers anew in each process, so tensors are matched by order, last part of the name and shape.

    Returns:
        `model`.

    Raises:
        ShiftViTError: as `load_official`.
    """
    tensors = read_weights(weights)
    if all(re.match(r"\d+/", name) for name in tensors):
        tensors = dict(sorted(tensors.items(), key=lambda item: int(item[0].split("/", 1)[0])))
    order = list(_keras_example_order(model))
    named: dict[str, Array] = {}
    for position, (name, value) in enumerate(tensors.items()):
        leaf = name.rsplit("/", 1)[-1]
        expected = order[position] if position < len(order) else None
        known = expected is not None and expected.rsplit("/", 1)[-1] == leaf
        named[expected if known and expected is not None else name] = value
    return _assign(model, named, {path: (path, _like_kernel) for path in order})


def _official_origin(path: str) -> Origin:
    *scope, leaf = path.split("/")
    where = scope[0]
    if match := re.fullmatch(r"stage(\d+)_block(\d+)", where):
        stage, block = int(match[1]) - 1, int(match[2]) - 1
        inner = ["norm2" if part == "norm" else part for part in scope[1:]]
        module = ".".join(["layers", str(stage), "blocks", str(block), *inner])
    elif match := re.fullmatch(r"stage(\d+)_merge", where):
        module = ".".join(["layers", str(int(match[1]) - 1), "downsample", *scope[1:]])
    else:
        module = ".".join("proj" if part == "projection" else part for part in scope)
    suffix = {
        "kernel": "weight",
        "gamma": "weight",
        "bias": "bias",
        "beta": "bias",
        "moving_mean": "running_mean",
        "moving_variance": "running_var",
    }[leaf]
    return f"{module}.{suffix}", _transposed if leaf == "kernel" else _unchanged


def _keras_example_order(model: Any) -> Iterator[str]:
    """Yields our variables' paths in the order in which the example's model creates its own."""
    yield from ("patch_embed/projection/kernel", "patch_embed/projection/bias")
    depths = model.settings.depths
    for stage, depth in enumerate(depths, 1):
        for block in range(1, depth + 1):
            for leaf in ("norm/gamma", "norm/beta", "mlp/fc1/kernel", "mlp/fc1/bias", "mlp/fc2/kernel", "mlp/fc2/bias"):
                yield f"stage{stage}_block{block}/{leaf}"
        if stage < len(depths):
            for leaf in ("reduction/kernel", "norm/gamma", "norm/beta"):
                yield f"stage{stage}_merge/{leaf}"
    yield from ("head/kernel", "head/bias")


def _unchanged(tensor: Array) -> Array:
    return tensor


def _transposed(tensor: Array) -> Array:
    """PyTorch's (out, in) or (out, in, height, width) to (height * width * in, out)."""
    if tensor.ndim == 4:
        return tensor.transpose(2, 3, 1, 0).reshape(-1, tensor.shape[0])
    return tensor.T


def _like_kernel(tensor: Array) -> Array:
    """Keras' convolution kernel (height, width, in, out) to (height * width * in, out)."""
    return tensor.reshape(-1, tensor.shape[-1]) if tensor.ndim == 4 else tensor


def _assign(model: Any, tensors: dict[str, Array], origins: dict[str, Origin]) -> Any:
    variables = {variable.path: variable for variable in model.weights}
    faults = [f"{path}: this model has no such tensor" for path in origins if path not in variables]
    faults += [f"{path}: nothing in the source fills it" for path in variables if path not in origins]
    ready: list[tuple[Any, Array]] = []
    for path, (source, transform) in origins.items():
        if path not in variables:
            continue
        if source not in tensors:
            faults.append(f"{source}: missing")
            continue
        value = transform(np.asarray(tensors[source]).astype("float32"))
        if value.shape != tuple(variables[path].shape):
            shape = tuple(variables[path].shape)
            faults.append(f"{source}: shape {np.shape(tensors[source])} does not give {shape}")
            continue
        ready.append((variables[path], value))
    used = {source for source, _ in origins.values()}
    faults += [f"{name}: surplus" for name in tensors if name not in used]
    if faults:
        raise ShiftViTError(
            f"the weights do not fit this model, {len(faults)} faults; build it with the configuration they come from: "
            + "; ".join(faults)
        )
    for variable, value in ready:
        variable.assign(value)
    return model


def read_weights(weights: Mapping[str, Any] | str | Path) -> dict[str, Array]:
    """Returns the tensors of a file by name, or those that are given, as arrays.

    Raises:
        ShiftViTError: a file that cannot be read, or of another type.
    """
    if isinstance(weights, Mapping):
        return {name: _as_array(value) for name, value in weights.items()}
    path = Path(weights)
    if not path.is_file():
        raise ShiftViTError(f"there is no file {str(path)!r} to read weights from; give a path of {READABLE}")
    try:
        if path.suffix == ".npz":
            # Opened here, as NumPy does not close a file that turns out not to be whole.
            with path.open("rb") as file, np.load(file, allow_pickle=False) as archive:
                names = [name for name in archive.files if name.startswith("w/")] or archive.files
                return {name.removeprefix("w/"): archive[name] for name in names}
        if path.suffix == ".safetensors":
            from safetensors.numpy import load_file

            return dict(load_file(path))
        if path.suffix in (".pth", ".pt", ".bin"):
            return _read_torch(path)
    except (ShiftViTError, MemoryError):
        raise
    except Exception as error:  # each reader has exceptions of its own; all of them mean this
        reason = str(error).strip().split("\n")[0]
        raise ShiftViTError(
            f"cannot read weights from {str(path)!r} ({reason}); is it complete, and really {path.suffix}?"
        ) from error
    raise ShiftViTError(f"cannot read weights from {str(path)!r}: its ending is {path.suffix!r}; give {READABLE}")


def _read_torch(path: Path) -> dict[str, Array]:
    try:
        import torch
    except ImportError as error:
        raise ShiftViTError(
            f"reading {str(path)!r} needs PyTorch; {install_hint('torch')}, or convert it to .safetensors"
        ) from error
    state = torch.load(path, map_location="cpu", weights_only=True)
    state = state.get("model", state) if isinstance(state, dict) else state
    if not isinstance(state, dict) or not all(isinstance(value, torch.Tensor) for value in state.values()):
        raise ShiftViTError(
            f"{str(path)!r} holds no state dict; save model.state_dict(), plain or as {{'model': state_dict}}"
        )
    return {name: _as_array(value) for name, value in state.items()}


def _as_array(value: Any) -> Array:
    if hasattr(value, "detach"):  # a PyTorch tensor; NumPy knows neither bfloat16 nor gradients
        value = value.detach().cpu()
        value = value.float() if value.is_floating_point() else value
    return np.asarray(value)
