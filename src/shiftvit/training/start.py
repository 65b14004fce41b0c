"""Beginning with a trained model: its configuration, its weights where they fit, and which of them are frozen."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np

from shiftvit.bundle.bundle import Bundle
from shiftvit.bundle.stored.find import find_bundle, is_checkpoint, is_name
from shiftvit.bundle.stored.manifest import read_manifest
from shiftvit.bundle.stored.published import MEAN, PUBLISHED, STD, find_evaluation
from shiftvit.config import ModelConfig, StartConfig
from shiftvit.data.find.words import normalise_name
from shiftvit.errors import ShiftViTError, count_of, notice
from shiftvit.model.convert import load_official
from shiftvit.model.network import find_stage
from shiftvit.model.tensors import read_weights
from shiftvit.preprocess import Preprocess
from shiftvit.presets import find_preset
from shiftvit.recipes.recipe import Recipe

_AUTO, _SUGGESTED = "auto", "shiftvit_tiny_r2"
_SIDE = 224  # pixels of the authors' images
_MARGIN = 9 / 8  # a picture's shorter side over the crop, where a source says nothing
# What a new task may change; all else of the configuration is the trained model's.
_FREE = {"image_shape", "num_classes", "dropout", "drop_path", "preset"}


def apply_start(recipe: Recipe) -> Recipe:
    """Returns the recipe with the model of `start.source`, if that is set, and its preprocessing. No weights are read.

    Mean and std are the source's, and the resolution if `start.resolution` says so.

    The authors' checkpoints do not say which architecture they are of, so that the recipe names it. Their mean and std
    are ImageNet's unless the recipe sets its own.

    Raises:
        ShiftViTError: no such model, settings of the recipe that it contradicts, or an architecture that is missing.
    """
    source = recipe.start.source
    if source is None:
        frozen = {"start.freeze": recipe.start.freeze, "train.freeze_epochs": recipe.train.freeze_epochs}
        for key, value in frozen.items():
            if value:
                raise ShiftViTError(f"{key}={value} keeps trained weights and start.source names none; set both")
        return recipe
    if source == _AUTO:
        source = _choose_source()
        recipe = recipe.model_copy(update={"start": recipe.start.model_copy(update={"source": source})})
    if is_checkpoint(source):
        return _apply_checkpoint(recipe)
    trained = read_manifest(find_bundle(source))
    own = recipe.model.arguments()
    for key, value in own.items():
        if key not in _FREE and value != getattr(trained.model, key):
            raise ShiftViTError(
                f"model.{key}={value} is not the {getattr(trained.model, key)} of {recipe.start.source!r}; leave it out"
            )
    _check_freeze(recipe, trained.model.depths)
    kept = trained.model.model_dump(exclude={"preset", "image_shape", "num_classes"})
    chosen = {key: value for key, value in own.items() if key in _FREE - {"preset"}}
    rule = trained.preprocess
    taken: dict[str, Any] = {"mean": rule.mean, "std": rule.std}
    for key, value in taken.items():
        if key in recipe.preprocess.model_fields_set and getattr(recipe.preprocess, key) != value:
            notice(f"preprocess.{key} is that of {recipe.start.source}: {value}")
    if recipe.start.resolution == "source":
        taken |= _size_of(recipe.preprocess, rule, trained.model.image_shape[:2])
    return recipe.model_copy(
        update={
            # A path is to be found from everywhere.
            "start": _decided(recipe, source if is_name(source) else str(Path(source).absolute())),
            "model": ModelConfig(**{**kept, **chosen}),
            "preprocess": recipe.preprocess.model_copy(update=taken),
        }
    )


def _decided(recipe: Recipe, source: str) -> StartConfig:
    """Returns where a run starts, with nothing left to decide when it goes on."""
    return recipe.start.model_copy(update={"source": source, "resolution": "recipe"})


def _choose_source() -> str:
    """Returns the most accurate ImageNet model that is pulled, else the CIFAR-10 model."""
    pulled = [name for name in PUBLISHED if is_name(name)]
    if pulled:
        return max(pulled, key=lambda name: PUBLISHED[name].top1)
    top1, data = PUBLISHED[_SUGGESTED].top1
    notice(
        f"no ImageNet model is pulled, so this starts from the CIFAR-10 model, of 32x32 pixels; for photographs run "
        f"shiftvit pull {_SUGGESTED} first: its features come from 1.28 million of them ({top1} % top-1 on {data})"
    )
    return "cifar10"


def _size_of(rule: Preprocess, own: Preprocess, shape: tuple[int | None, int | None]) -> dict[str, Any]:
    """Returns how pictures get the source's size, or another one in the same proportion.

    Args:
        rule: the recipe's, whose own settings stay.
        own: the source's.
        shape: (height, width) of the source's images.
    """
    chosen = rule.model_fields_set
    resize, crop = own.resize, own.crop
    if crop is None and None not in shape:  # it was trained on images of that size
        height, width = (int(side or 0) for side in shape)
        crop = height if height == width else (height, width)
        resize = resize if resize is not None else round(min(height, width) * _MARGIN)
    margin = resize / crop if isinstance(resize, int) and isinstance(crop, int) else _MARGIN
    if "crop" in chosen:
        crop = rule.crop
        resize = None if crop is None else round(np.max(crop) * margin)
    if "resize" in chosen:
        resize = rule.resize
        if "crop" not in chosen:
            crop = max(1, round(resize / margin)) if isinstance(resize, int) else None
    place = "center" if own.crop is None else own.crop_position
    found = {"resize": resize, "crop": crop, "crop_position": place, "interpolation": own.interpolation}
    return {key: value for key, value in found.items() if key not in chosen}


def take_weights(model: Any, recipe: Recipe, labels: tuple[str, ...]) -> None:
    """Puts the weights of `start.source` into a freshly built model.

    The head is taken only if the model knows the same classes in the same order; of the authors' checkpoints, which
    name no classes, if there are as many.

    Raises:
        ShiftViTError: weights that cannot be read or do not fit the model.
    """
    source = recipe.start.source
    if source is not None:
        notice(f"starting from {source} with {put_weights(model, source, labels)}")


def put_weights(model: Any, source: str, labels: tuple[str, ...]) -> str:
    """Does what `take_weights` does without a notice; returns which head the model has, in words."""
    return _take_official(model, source) if is_checkpoint(source) else _take_bundle(model, source, labels)


def freeze_stages(model: Any, count: int) -> None:
    """Keeps the weights of the first `count` stages, and of the patch embedding, as they are; 0: trains all."""
    frozen = 0
    for layer in model.backbone.layers:
        stage = find_stage(layer.name)
        if stage is not None and stage <= count and layer.weights:
            layer.trainable = False
            frozen += sum(int(np.prod(weight.shape)) for weight in layer.weights)
    if frozen:
        notice(f"frozen: {count_of(frozen, 'weight')}")


def _take_bundle(model: Any, source: str, labels: tuple[str, ...]) -> str:
    bundle = Bundle.load(source)
    new_head = (*map(normalise_name, bundle.labels),) != (*map(normalise_name, labels),)
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
    taken: dict[str, Any] = {"mean": MEAN, "std": STD}
    if recipe.start.resolution == "source":
        taken |= _size_of(recipe.preprocess, find_evaluation(_SIDE), (_SIDE, _SIDE))
    taken = {key: value for key, value in taken.items() if key not in recipe.preprocess.model_fields_set}
    return recipe.model_copy(
        update={
            "start": _decided(recipe, str(path.absolute())),  # to be found from everywhere
            "preprocess": recipe.preprocess.model_copy(update=taken),
        }
    )


def _check_freeze(recipe: Recipe, depths: tuple[int, ...]) -> None:
    if recipe.start.freeze > len(depths):
        raise ShiftViTError(
            f"start.freeze={recipe.start.freeze} is more than the {len(depths)} stages of "
            f"{recipe.start.source!r}; use 0 to {len(depths)}"
        )
