"""Beginning with a trained model: its configuration, its weights where they fit, and which of them are frozen."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np

from shiftvit.bundle.bundle import Bundle
from shiftvit.bundle.stored.find import find_bundle, is_checkpoint, is_name
from shiftvit.bundle.stored.manifest import read_manifest
from shiftvit.bundle.stored.published import MEAN, STD
from shiftvit.config import ModelConfig
from shiftvit.data.find.words import normal
from shiftvit.errors import ShiftViTError, count_of, notice
from shiftvit.model.convert import load_official
from shiftvit.model.network import stage_of
from shiftvit.model.tensors import read_weights
from shiftvit.presets import find_preset
from shiftvit.recipes.recipe import Recipe

# What a new task may change; all else of the configuration is the trained model's.
_FREE = {"image_shape", "num_classes", "dropout", "drop_path", "preset"}


def apply_start(recipe: Recipe) -> Recipe:
    """Returns the recipe with the model of `start.source`, if that is set, and its mean and std. No weights are read.

    The authors' checkpoints do not say which architecture they are of, so that the recipe names it. Their mean and std
    are ImageNet's unless the recipe sets its own.

    Raises:
        ShiftViTError: no such model, settings of the recipe that it contradicts, or an architecture that is missing.
    """
    if recipe.start.source is None:
        if recipe.start.freeze:
            raise ShiftViTError(
                f"start.freeze={recipe.start.freeze} keeps trained weights and start.source names none; set both"
            )
        return recipe
    if is_checkpoint(recipe.start.source):
        return _apply_checkpoint(recipe)
    trained = read_manifest(find_bundle(recipe.start.source))
    own = recipe.model.arguments()
    for key, value in own.items():
        if key not in _FREE and value != getattr(trained.model, key):
            raise ShiftViTError(
                f"model.{key}={value} is not the {getattr(trained.model, key)} of {recipe.start.source!r}; leave it out"
            )
    _check_freeze(recipe, trained.model.depths)
    kept = trained.model.model_dump(exclude={"preset", "image_shape", "num_classes"})
    chosen = {key: value for key, value in own.items() if key in _FREE - {"preset"}}
    scale = {"mean": trained.preprocess.mean, "std": trained.preprocess.std}
    for key, value in scale.items():
        if key in recipe.preprocess.model_fields_set and getattr(recipe.preprocess, key) != value:
            notice(f"preprocess.{key} is that of {recipe.start.source}: {value}")
    source = recipe.start.source
    return recipe.model_copy(
        update={
            # A path is to be found from everywhere.
            "start": recipe.start.model_copy(
                update={"source": source if is_name(source) else str(Path(source).absolute())}
            ),
            "model": ModelConfig(**{**kept, **chosen}),
            "preprocess": recipe.preprocess.model_copy(update=scale),
        }
    )


def take_weights(model: Any, recipe: Recipe, labels: tuple[str, ...]) -> None:
    """Puts the weights of `start.source` into a freshly built model.

    The head is taken only if the model knows the same classes in the same order; of the authors' checkpoints, which
    name no classes, if there are as many.

    Raises:
        ShiftViTError: weights that cannot be read or do not fit the model.
    """
    source = recipe.start.source
    if source is None:
        return
    head = _take_official(model, source) if is_checkpoint(source) else _take_bundle(model, source, labels)
    notice(f"starting from {source} with {head}")


def freeze_stages(model: Any, count: int) -> None:
    """Keeps the weights of the first `count` stages, and of the patch embedding, as they are; 0: trains all."""
    frozen = 0
    for layer in model.backbone.layers:
        stage = stage_of(layer.name)
        if stage is not None and stage <= count and layer.weights:
            layer.trainable = False
            frozen += sum(int(np.prod(weight.shape)) for weight in layer.weights)
    if frozen:
        notice(f"frozen: {count_of(frozen, 'weight')}")


def _take_bundle(model: Any, source: str, labels: tuple[str, ...]) -> str:
    bundle = Bundle.load(source)
    new_head = (*map(normal, bundle.labels),) != (*map(normal, labels),)
    for variable in model.weights:
        if not (new_head and variable.path.startswith("head/")):
            variable.assign(np.asarray(bundle.weights[variable.path], np.float32))
    return "a new head" if new_head else "its head"


def _take_official(model: Any, source: str) -> str:
    tensors = read_weights(source)
    try:
        load_official(model, tensors)
    except ShiftViTError:  # nothing was changed; if more than the head does not fit, the next line raises
        load_official(model.backbone, tensors)
        return "a new head"
    return f"its head, whose {model.settings.num_classes} classes must be yours in their order"


def _apply_checkpoint(recipe: Recipe) -> Recipe:
    path, model = Path(str(recipe.start.source)), recipe.model
    if not path.is_file():
        raise ShiftViTError(f"start.source={str(path)!r} does not exist; give the path of the authors' checkpoint")
    if model.preset is None and "depths" not in model.model_fields_set:
        raise ShiftViTError(
            f"start.source={str(path)!r} holds weights and does not say of which architecture; set model.preset, as in "
            "model.preset=shiftvit_tiny_r2"
        )
    preset = find_preset(model.preset).arguments if model.preset else {}
    _check_freeze(recipe, model.depths if "depths" in model.model_fields_set else preset.get("depths", model.depths))
    scale = {
        key: value for key, value in {"mean": MEAN, "std": STD}.items() if key not in recipe.preprocess.model_fields_set
    }
    return recipe.model_copy(
        update={
            "start": recipe.start.model_copy(update={"source": str(path.absolute())}),  # to be found from everywhere
            "preprocess": recipe.preprocess.model_copy(update=scale),
        }
    )


def _check_freeze(recipe: Recipe, depths: tuple[int, ...]) -> None:
    if recipe.start.freeze > len(depths):
        raise ShiftViTError(
            f"start.freeze={recipe.start.freeze} is more than the {len(depths)} stages of "
            f"{recipe.start.source!r}; use 0 to {len(depths)}"
        )
