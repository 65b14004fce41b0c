"""The weights of a model by their paths: named, listed, assigned, and the stage of each."""

from __future__ import annotations

import re
from collections.abc import Iterator
from typing import Any

import keras
import numpy as np

from shiftvit.errors import ShiftViTError


def name_weights(model: Any) -> dict[str, Any]:
    """Returns the weights of a `ShiftViT` or `ShiftViTBackbone` by their paths within the model, such as `head/kernel`.

    Keras' own paths also begin with the name scopes and layers in which the model was made.

    Raises:
        ShiftViTError: it is another model.
    """
    paths = [variable.path for variable in getattr(model, "weights", ())]
    first = next((path for path in paths if "patch_embed/" in path), None)
    if first is None:
        raise ShiftViTError(f"the model has the type {type(model).__name__}; give a ShiftViT or ShiftViTBackbone")
    scope = first.partition("patch_embed/")[0]
    return {path.removeprefix(scope): variable for path, variable in zip(paths, model.weights, strict=True)}


def list_values(model: Any) -> dict[str, np.ndarray[Any, Any]]:
    """Returns the weights as `name_weights` names them, float32, and a LoRA added to its kernel, as Keras saves it."""
    found = name_weights(model)
    merged = {id(layer._kernel): layer for _, layer, _ in walk_layers(model) if getattr(layer, "lora_enabled", False)}
    values = {}
    for path, variable in found.items():
        if not path.endswith(("/lora_kernel_a", "/lora_kernel_b")):
            value = merged[id(variable)].kernel if id(variable) in merged else variable
            values[path] = keras.ops.convert_to_numpy(value).astype(np.float32)
    return values


def assign_weights(
    model: Any, weights: dict[str, np.ndarray[Any, Any]], fault: str, mend: str, *, head: bool = True
) -> None:
    """Assigns weights to a model by their paths, all or none; with `head=False` all but those of the head.

    Raises:
        ShiftViTError: a weight is missing, surplus or of another shape; the message is `fault`, its path and `mend`.
    """
    taken = {path: value for path, value in weights.items() if head or not path.startswith("head/")}
    variables = {
        path: variable for path, variable in name_weights(model).items() if head or not path.startswith("head/")
    }
    shapes = {path: tuple(variable.shape) for path, variable in variables.items()}
    unfit = shapes.items() ^ {path: value.shape for path, value in taken.items()}.items()
    if unfit:
        raise ShiftViTError(f"{fault}, beginning with {min(unfit)[0]!r}; {mend}")
    for path, variable in variables.items():
        variable.assign(np.asarray(taken[path], np.float32))


def find_stage(path: str) -> int | None:
    """Returns the stage, from 1, of a layer's name or a weight's path; None for the last norm and the head.

    Freezing and lower learning rates depend on it. The patch embedding belongs to the first stage. A merge is named
    after the stage that it ends, but its weights belong to the next one.
    """
    layer = path.split("/", 1)[0]
    if layer == "patch_embed":
        return 1
    found = re.fullmatch(r"stage(\d+)_(block\d+|merge)", layer)
    if found is None:
        return None
    return int(found[1]) + (found[2] == "merge")


def walk_layers(parent: Any, prefix: str = "") -> Iterator[tuple[str, Any, Any]]:
    """Yields the path of each inner layer, the layer, and the layer around it, from the outside in."""
    for layer in parent._flatten_layers(include_self=False, recursive=False):
        path = f"{prefix}{layer.name}"
        yield path, layer, parent
        yield from walk_layers(layer, f"{path}/")
