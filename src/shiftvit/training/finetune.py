"""Starts from a trained model: takes its configuration and the weights that fit, and freezes stages."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np

from shiftvit.bundle.bundle import Bundle
from shiftvit.bundle.stored.find import find_bundle, is_checkpoint, is_name
from shiftvit.bundle.stored.manifest import check_size, read_manifest, read_tensors
from shiftvit.bundle.stored.published import MEAN, PUBLISHED, STD, find_evaluation
from shiftvit.config import ModelConfig, StartConfig
from shiftvit.data.find.words import normalise_name
from shiftvit.errors import ShiftViTError, notice, pluralize
from shiftvit.model.convert import load_official
from shiftvit.model.tensors import read_weights
from shiftvit.model.weights import assign_weights, find_stage
from shiftvit.preprocess import Preprocess
from shiftvit.presets import find_preset
from shiftvit.recipes.recipe import Recipe

_AUTO, _SUGGESTED = "auto", "shiftvit_tiny_r2"
_SIDE = 224  # pixels of the authors' images
_MARGIN = 9 / 8  # the default ratio of a picture's shorter side to the crop
# Model settings that a recipe may change; the others are those of the trained model.
_FREE = {"image_shape", "num_classes", "dropout", "drop_path", "preset"}


def apply_start(recipe: Recipe) -> Recipe:
    """Returns the recipe with the model and preprocessing of `start.source`, if that is set.

    Mean and std are those of the source; if `start.resolution` is "source", so is the resolution. A checkpoint of the
    authors does not name its architecture, so the recipe must. Its mean and std are ImageNet's, unless the recipe sets
    its own.

    Raises:
        ShiftViTError: the model does not exist, the recipe contradicts it, or the recipe does not name the
            architecture of a checkpoint.
    """
    source = recipe.start.source
    if source is None:
        frozen = {"start.freeze": recipe.start.freeze, "train.freeze_epochs": recipe.train.freeze_epochs}
        for key, value in frozen.items():
            if value:
                raise ShiftViTError(
                    f"{key}={value} needs trained weights, but start.source is not set; set both or neither"
                )
        return recipe
    if source == _AUTO:
        source = _choose_source()
        recipe = recipe.model_copy(update={"start": recipe.start.model_copy(update={"source": source})})
    if is_checkpoint(source):
        return _apply_checkpoint(recipe)
    container = find_bundle(source)
    trained = read_manifest(container)
    check_size(trained.model, read_tensors(container, trained))
    own = recipe.model.get_arguments()
    for key, value in own.items():
        if key not in _FREE and value != getattr(trained.model, key):
            raise ShiftViTError(
                f"model.{key}={value} differs from the {getattr(trained.model, key)} of {recipe.start.source!r}; "
                f"leave out model.{key}"
            )
    _check_freeze(recipe, trained.model.depths)
    kept = trained.model.model_dump(exclude={"preset", "image_shape", "num_classes"})
    chosen = {key: value for key, value in own.items() if key in _FREE - {"preset"}}
    rule = trained.preprocess
    taken: dict[str, Any] = {"mean": rule.mean, "std": rule.std}
    for key, value in taken.items():
        if key in recipe.preprocess.model_fields_set and getattr(recipe.preprocess, key) != value:
            notice(f"preprocess.{key} is set to that of {recipe.start.source}: {value}")
    if recipe.start.resolution == "source":
        taken |= _match_size(recipe.preprocess, rule, trained.model.image_shape[:2])
    return recipe.model_copy(
        update={
            # Absolute, so that it works from any folder.
            "start": _fix_start(recipe, source if is_name(source) else str(Path(source).absolute())),
            "model": ModelConfig(**{**kept, **chosen}),
            "preprocess": recipe.preprocess.model_copy(update=taken),
        }
    )


def _fix_start(recipe: Recipe, source: str) -> StartConfig:
    """Returns the start settings with everything decided, so that a resumed run does not decide again."""
    return recipe.start.model_copy(update={"source": source, "resolution": "recipe"})


def _choose_source() -> str:
    """Returns the most accurate ImageNet model that was pulled, or else the CIFAR-10 model."""
    pulled = [name for name in PUBLISHED if is_name(name)]
    if pulled:
        return max(pulled, key=lambda name: PUBLISHED[name].top1)
    top1, data = PUBLISHED[_SUGGESTED].top1
    notice(
        f"no ImageNet model was pulled, so training starts from the CIFAR-10 model for 32x32 pixels; for photographs, "
        f"first run shiftvit pull {_SUGGESTED}, which was trained on 1.28 million of them ({top1}% top-1 on {data})"
    )
    return "cifar10"


def _match_size(rule: Preprocess, own: Preprocess, shape: tuple[int | None, int | None]) -> dict[str, Any]:
    """Returns settings that resize pictures to the source's size, or to another one in the same proportion.

    Args:
        rule: the recipe's preprocessing; the settings made there stay.
        own: the source's preprocessing.
        shape: (height, width) of the source's images.
    """
    chosen = rule.model_fields_set
    resize, crop = own.resize, own.crop
    if crop is None and None not in shape:  # the source was trained on images of this size
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
    """Copies the weights of `start.source` into a freshly built model.

    The head is copied only if the model has the same classes in the same order. The authors' checkpoints name no
    classes; their head is copied if the number of classes is equal.

    Raises:
        ShiftViTError: the weights cannot be read or do not fit the model.
    """
    source = recipe.start.source
    if source is not None:
        notice(f"starting from {source} with {put_weights(model, source, labels)}")


def put_weights(model: Any, source: str, labels: tuple[str, ...]) -> str:
    """Does the same as `take_weights` without a notice; returns a phrase about the model's head."""
    return _take_official(model, source) if is_checkpoint(source) else _take_bundle(model, source, labels)


def freeze_stages(model: Any, count: int) -> None:
    """Freezes the weights of the patch embedding and the first `count` stages; 0: freezes none."""
    frozen = 0
    for layer in model.backbone.layers:
        stage = find_stage(layer.name)
        if stage is not None and stage <= count and layer.weights:
            layer.trainable = False
            frozen += sum(int(np.prod(weight.shape)) for weight in layer.weights)
    if frozen:
        notice(f"frozen: {pluralize(frozen, 'weight')}")


def _take_bundle(model: Any, source: str, labels: tuple[str, ...]) -> str:
    bundle = Bundle.load(source)
    new_head = (*map(normalise_name, bundle.labels),) != (*map(normalise_name, labels),)
    fault = f"the weights of {source!r} do not fit its own model configuration"
    assign_weights(model, bundle.weights, fault, "restore the bundle", head=not new_head)
    return "a new head" if new_head else "its head"


def _take_official(model: Any, source: str) -> str:
    tensors = read_weights(source)
    try:
        load_official(model, tensors)
    except ShiftViTError:  # the model is unchanged; if more than the head does not fit, the next line raises
        load_official(model.backbone, tensors)
        return "a new head"
    return f"its head; its {model.settings.num_classes} classes must be yours, in the same order"


def _apply_checkpoint(recipe: Recipe) -> Recipe:
    path, model = Path(str(recipe.start.source)), recipe.model
    if not path.is_file():
        raise ShiftViTError(f"start.source={str(path)!r} does not exist; give the path of the authors' checkpoint")
    if model.preset is None and "depths" not in model.model_fields_set:
        raise ShiftViTError(
            f"start.source={str(path)!r} does not name the architecture of its weights; set model.preset, as in "
            "model.preset=shiftvit_tiny_r2"
        )
    preset = find_preset(model.preset).arguments if model.preset else {}
    _check_freeze(recipe, model.depths if "depths" in model.model_fields_set else preset.get("depths", model.depths))
    taken: dict[str, Any] = {"mean": MEAN, "std": STD}
    if recipe.start.resolution == "source":
        taken |= _match_size(recipe.preprocess, find_evaluation(_SIDE), (_SIDE, _SIDE))
    taken = {key: value for key, value in taken.items() if key not in recipe.preprocess.model_fields_set}
    return recipe.model_copy(
        update={
            "start": _fix_start(recipe, str(path.absolute())),  # so that it works from any folder
            "preprocess": recipe.preprocess.model_copy(update=taken),
        }
    )


def _check_freeze(recipe: Recipe, depths: tuple[int, ...]) -> None:
    if recipe.start.freeze > len(depths):
        raise ShiftViTError(
            f"start.freeze={recipe.start.freeze} is more than the {len(depths)} stages of "
            f"{recipe.start.source!r}; use 0 to {len(depths)}"
        )
