"""Beginning with a trained model: its configuration, its weights where they fit, and which of them stay as they are."""

from __future__ import annotations

import re
from typing import Any

import numpy as np

from shiftvit.bundle import Bundle
from shiftvit.config import ModelConfig, Recipe
from shiftvit.errors import ShiftViTError, notice

# What a new task may change; all else of the configuration is the trained model's.
_FREE = {"image_shape", "num_classes", "dropout", "drop_path", "preset"}


def started(recipe: Recipe) -> Recipe:
    """Returns the recipe with the model of `start.source`, if that is set, and its mean and std.

    Raises:
        ShiftViTError: no such model, or settings of the recipe that it contradicts.
    """
    if recipe.start.source is None:
        if recipe.start.freeze:
            raise ShiftViTError(
                f"start.freeze={recipe.start.freeze} keeps trained weights and start.source names none; set both"
            )
        return recipe
    bundle = Bundle.load(recipe.start.source)
    own = recipe.model.arguments()
    for key, value in own.items():
        if key not in _FREE and value != getattr(bundle.config, key):
            raise ShiftViTError(
                f"model.{key}={value} is not the {getattr(bundle.config, key)} of {recipe.start.source!r}; leave it out"
            )
    if recipe.start.freeze > len(bundle.config.depths):
        raise ShiftViTError(
            f"start.freeze={recipe.start.freeze} is more than the {len(bundle.config.depths)} stages of "
            f"{recipe.start.source!r}; use 0 to {len(bundle.config.depths)}"
        )
    kept = bundle.config.model_dump(exclude={"preset", "image_shape", "num_classes"})
    chosen = {key: value for key, value in own.items() if key in _FREE - {"preset"}}
    scale = {"mean": bundle.preprocess.mean, "std": bundle.preprocess.std}
    return recipe.model_copy(
        update={
            "model": ModelConfig(**{**kept, **chosen}),
            "preprocess": recipe.preprocess.model_copy(update=scale),
        }
    )


def take_weights(model: Any, recipe: Recipe, labels: tuple[str, ...]) -> None:
    """Puts the weights of `start.source` into a freshly built model and keeps those that `start.freeze` names.

    The head is taken only if the model knows the same classes in the same order.
    """
    if recipe.start.source is None:
        return
    bundle = Bundle.load(recipe.start.source)
    new_head = bundle.labels != labels
    for variable in model.weights:
        if not (new_head and variable.path.startswith("head/")):
            variable.assign(np.asarray(bundle.weights[variable.path], np.float32))
    frozen = 0
    for layer in model.backbone.layers:
        if _stage(layer.name) <= recipe.start.freeze and layer.weights:
            layer.trainable = False
            frozen += sum(int(np.prod(weight.shape)) for weight in layer.weights)
    head = "a new head" if new_head else "its head"
    notice(f"starting from {recipe.start.source} with {head}; {frozen:,} weights stay as they are")


def _stage(layer: str) -> int:
    """Returns the stage that a layer of the backbone belongs to, from 1; the patch embedding to the first."""
    if layer == "patch_embed":
        return 1
    found = re.fullmatch(r"stage(\d+)_(block\d+|merge)", layer)
    if found is None:
        return 10**6
    # A merge is named for the stage that it ends, with its weights on the way to the next one.
    return int(found[1]) + (found[2] == "merge")
