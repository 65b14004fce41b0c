"""Settings in words, as a reader who knows no settings wants them: a model's, a preprocessing's, a recipe's."""

from __future__ import annotations

import re
from collections.abc import Sequence
from typing import Any

import numpy as np
import tomli_w

from shiftvit.bundle.markdown import escaped
from shiftvit.config import ModelConfig
from shiftvit.preprocess import Preprocess
from shiftvit.recipes.recipe import Recipe


def model_rows(config: ModelConfig) -> dict[str, str]:
    """Returns what a model is made of, each trait with its name."""
    moving = f"1/{config.num_div} of the channels" if config.shift_channels is None else f"{config.shift_channels}"
    shift = f"{moving} each way (left, right, up, down) by {config.shift_pixels} px of the feature map"
    if config.shift_mode == "mask":
        shift = f"{moving} each way lose the line that a shift would vacate; nothing moves"
    return {
        "Input": f"{shape(config.image_shape)}, RGB",
        "Patches": f"{config.patch_size} x {config.patch_size} px",
        "Blocks in each stage": ", ".join(map(str, config.depths)),
        "Channels in each stage": ", ".join(str(config.embed_dim * 2**stage) for stage in range(len(config.depths))),
        "Shift": shift,
        "MLP": f"{config.mlp_ratio:g} x the channels, {escaped(config.activation)}",
        "Norm": config.norm,
    }


def preprocessing(rule: Preprocess) -> str:
    """Returns the steps from an image to the model's input."""
    steps = []
    if rule.resize is not None:
        size = f"shorter side {rule.resize} px" if isinstance(rule.resize, int) else shape(rule.resize)
        steps.append(f"resize ({size}, {rule.interpolation})")
    if rule.crop is not None:
        crop = rule.crop if isinstance(rule.crop, tuple) else (rule.crop, rule.crop)
        steps.append(f"crop {shape(crop)} ({rule.crop_position.replace('_', ' ')})")
    mean, std = (", ".join(f"{value:g}" for value in np.ravel(numbers)) for numbers in (rule.mean, rule.std))
    return "; ".join([*steps, f"(pixels - mean) / std with pixels 0 to 255, mean {mean}, std {std}"])


def recipe_rows(recipe: Recipe) -> dict[str, str]:
    """Returns how a model is trained, each trait with its name."""
    train = recipe.train
    optimizer = train.optimizer
    scale = train.batch_size / optimizer.base_batch_size if optimizer.base_batch_size else 1
    others = (
        f", AdamW at {scale * optimizer.adam_learning_rate:g} for all but matrices" if optimizer.name == "muon" else ""
    )
    averaged = f" (a moving average, momentum {train.ema:g})" if train.ema else ""
    kept = "of the last epoch" if train.select == "last" else "of the epoch with the best validation top-1"
    return {
        "Recipe": f"`{recipe.name}`",
        "Started from": escaped(last_name(recipe.start.source)) if recipe.start.source else "random weights",
        "Epochs": f"{train.epochs:,}",
        "Batch": f"{train.batch_size:,} images",
        "Optimizer": f"{optimizer.name}, learning rate {scale * optimizer.learning_rate:g}, weight decay "
        f"{optimizer.weight_decay:g}, {train.schedule.shape} schedule{others}",
        "Augmentation": augmentation(recipe),
        "Label smoothing": f"{train.label_smoothing:g}",
        "Drop path": f"{recipe.model.drop_path:g}",
        "Weights kept": kept + averaged,
        "Seed": str(train.seed),
        "Precision": train.precision,
    }


def augmentation(recipe: Recipe) -> str:
    """Returns the random changes of the training images, or "none"."""
    chosen, parts = recipe.augment, []
    if chosen.random_crop and not chosen.resized_crop and (chosen.pad or recipe.preprocess.crop is not None):
        parts.append(f"random crop{f' with {chosen.pad} px added around' if chosen.pad else ''}")
    parts += ["mirroring"] if chosen.flip else []
    named = {
        "resized_crop": "random resized crop from {:g} of the area",
        "rand_augment": "RandAugment, magnitude {:g}",
        "color_jitter": "colour jitter {:g}",
        "erasing": "random erasing {:g}",
        "mixup": "MixUp {:g}",
        "cutmix": "CutMix {:g}",
    }
    parts += [text.format(value) for key, text in named.items() if (value := getattr(chosen, key))]
    if (chosen.mixup or chosen.cutmix) and chosen.mix_probability < 1:
        parts[-1] += f" ({100 * chosen.mix_probability:g} % of the images are mixed)"
    parts += [f"{chosen.repeats} copies of an image in a batch"] if chosen.repeats > 1 else []
    return ", ".join(parts) or "none"


def settings(recipe: Recipe) -> str:
    """Returns every setting as TOML; of paths only the last name, for where they lie is their owner's affair."""
    tree: dict[str, Any] = recipe.model_dump(mode="json", exclude_none=True)
    tree["data"]["name"] = last_name(recipe.data.name)
    if recipe.start.source:
        tree["start"]["source"] = last_name(recipe.start.source)
    return tomli_w.dumps(tree)


def last_name(path: str) -> str:
    """Returns the last name of a path of any system; of a run's `bundle` folder the run's."""
    names = [name for name in re.split(r"[\\/]", path) if name not in ("", ".", "..", "bundle")]
    return names[-1] if names else "images"


def shape(sides: Sequence[int | None]) -> str:
    """Returns "height x width px", with "any" for a side that is open."""
    height, width = sides[:2]
    return f"{height or 'any'} x {width or 'any'} px"
