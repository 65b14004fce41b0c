"""Loads weights from elsewhere: those of the official PyTorch model, and those of the Keras example.

Both loaders first match every tensor by name and shape, and change the model only if all of them fit.
"""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any

import numpy as np

from shiftvit.config import ModelConfig
from shiftvit.errors import ShiftViTError, to_one_line
from shiftvit.model.tensors import Array, read_weights
from shiftvit.model.weights import name_weights
from shiftvit.presets import PRESETS

# The name in the source, and the function that converts its tensor to ours.
Origin = tuple[str, Callable[[Array], Array]]
# The most faults of each kind in a message; the weights of another model would have hundreds.
_FAULTS = 4


def load_official(model: Any, weights: Mapping[str, Any] | str | Path) -> Any:
    """Loads the weights of the paper's official PyTorch model.

    Args:
        model: a `ShiftViT` of the same configuration, or a `ShiftViTBackbone`, which ignores the head's tensors.
        weights: state-dict name to array, or what `shiftvit.model.tensors.read_weights` takes.

    Returns:
        `model`.

    Raises:
        ShiftViTError: the model is neither, the file cannot be read, or tensors are missing, surplus, of another shape,
            or not finite.
    """
    variables = name_weights(model)
    tensors = read_weights(weights)
    tensors = {name: value for name, value in tensors.items() if not name.endswith("num_batches_tracked")}
    if "head/kernel" not in variables:
        tensors = {name: value for name, value in tensors.items() if not name.startswith("head.")}
    return _assign(model, tensors, {path: _find_official_origin(path) for path in variables})


def load_keras_example(model: Any, weights: Mapping[str, Any] | str | Path) -> Any:
    """Loads the weights of the Keras example's model.

    Args:
        model: a `ShiftViT` in the example's configuration (the preset `keras_example`, or its arguments with other
            depths and widths).
        weights: Keras path to array in the order of the example's `model.weights`, or the path of an `.npz` or
            `.safetensors` with such entries. If each name starts with a number and a slash, the numbers give the order.
            Keras numbers layers anew in each process, so tensors are matched by order, last part of the name and shape.

    Returns:
        `model`.

    Raises:
        ShiftViTError: as `load_official`.
    """
    name_weights(model)  # refuses other models
    tensors = read_weights(weights)
    if all(re.match(r"\d+/", name) for name in tensors):
        tensors = dict(sorted(tensors.items(), key=lambda item: int(item[0].split("/", 1)[0])))
    order = list(_list_keras_example(model))
    named: dict[str, Array] = {}
    for position, (name, value) in enumerate(tensors.items()):
        expected = order[position] if position < len(order) else ""
        fits = expected.rsplit("/", 1)[-1] == name.rsplit("/", 1)[-1]
        named[expected if fits else name] = value
    return _assign(model, named, {path: (path, _shape_like_kernel) for path in order})


def match_preset(tensors: Mapping[str, Any]) -> str | None:
    """Returns the name of the paper's model that has tensors of these names and shapes, or None."""
    shapes = {name: np.shape(value) for name, value in tensors.items()}
    embedding, hidden = shapes.get("patch_embed.proj.weight"), shapes.get("layers.0.blocks.0.mlp.fc1.weight")
    if embedding is None or hidden is None or len(embedding) != 4 or len(hidden) < 2 or not hidden[1]:
        return None
    blocks = Counter(
        match[1] for name in shapes if (match := re.match(r"layers\.(\d+)\.blocks\.\d+\.mlp\.fc1\.weight$", name))
    )
    depths = tuple(blocks[str(stage)] for stage in range(len(blocks)))
    found = (embedding[0], embedding[2], depths, hidden[0] / hidden[1])
    for name, preset in PRESETS.items():
        config = ModelConfig(**preset.arguments)
        if (config.embed_dim, config.patch_size, config.depths, config.mlp_ratio) == found and config.norm == "group":
            return name
    return None


def _find_official_origin(path: str) -> Origin:
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
    return f"{module}.{suffix}", _transpose if leaf == "kernel" else np.asarray


def _list_keras_example(model: Any) -> Iterator[str]:
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


def _transpose(tensor: Array) -> Array:
    """PyTorch's (out, in) or (out, in, height, width) to (height * width * in, out)."""
    if tensor.ndim == 4:
        return tensor.transpose(2, 3, 1, 0).reshape(-1, tensor.shape[0])
    return tensor.T


def _shape_like_kernel(tensor: Array) -> Array:
    """Keras' convolution kernel (height, width, in, out) to (height * width * in, out)."""
    return tensor.reshape(-1, tensor.shape[-1]) if tensor.ndim == 4 else tensor


def _assign(model: Any, tensors: dict[str, Array], origins: dict[str, Origin]) -> Any:
    variables = name_weights(model)
    used = {source for source, _ in origins.values()}
    unfit: list[str] = []
    broken: list[str] = []
    missing = [f"{path}: this model has no such tensor" for path in origins if path not in variables]
    missing += [f"{path}: not in the source" for path in variables if path not in origins]
    surplus = [f"{to_one_line(name)[:100]}: surplus" for name in tensors if name not in used]
    ready: list[tuple[Any, Array]] = []
    for path, (source, transform) in origins.items():
        if path not in variables:
            continue
        if source not in tensors:
            missing.append(f"{source}: missing")
            continue
        original, shape = np.asarray(tensors[source]), tuple(variables[path].shape)
        if original.dtype.kind not in "fiu":
            broken.append(f"{source}: {original.dtype}, not real numbers")
            continue
        with np.errstate(over="ignore"):
            value = transform(original.astype("float32"))
        if value.shape != shape:
            unfit.append(f"{source}: shape {original.shape} does not give {shape}")
        elif not np.isfinite(value).all():
            broken.append(f"{source}: not all of its values are finite")
        ready.append((variables[path], value))
    if missing or unfit or surplus:
        preset = match_preset(tensors)
        fitting = f"they are those of {preset}" if preset else "build it with the configuration they come from"
        raise ShiftViTError(
            f"the weights do not fit this model, {len(missing + unfit + surplus)} faults; {fitting}: "
            + "; ".join(filter(None, map(_join_first, (unfit, missing, surplus))))
        )
    if broken:
        raise ShiftViTError(f"the weights are damaged, get them again: {_join_first(broken)}")
    for variable, value in ready:
        variable.assign(value)
    return model


def _join_first(faults: list[str]) -> str:
    more = f" and {len(faults) - _FAULTS} more of them" if len(faults) > _FAULTS else ""
    return "; ".join(faults[:_FAULTS]) + more
