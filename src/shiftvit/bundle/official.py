"""Converts a checkpoint of the authors' code to a bundle, and checks its tensors, values and class names."""

from __future__ import annotations

import dataclasses
import datetime
from pathlib import Path
from typing import Any

import numpy as np

from shiftvit import files
from shiftvit.bundle.bundle import Bundle
from shiftvit.bundle.stored.manifest import Provenance, check_labels
from shiftvit.bundle.stored.published import Published, find_evaluation, read_imagenet_classes
from shiftvit.data.find.words import has_controls
from shiftvit.errors import ShiftViTError, describe_error, notice
from shiftvit.preprocess import Preprocess
from shiftvit.presets import find_preset

# The largest file of class names in bytes; a thousand long names have a tenth of that.
_LARGEST_LABELS = 2**20


def convert_checkpoint(
    path: str | Path,
    preset: str | None = None,
    *,
    labels: str | Path | None = None,
    ema: bool = False,
    published: Published | None = None,
) -> Bundle:
    """Returns a checkpoint of the authors' code as a bundle, without a graph.

    Args:
        path: a PyTorch checkpoint, `.safetensors` or `.npz`; see `shiftvit.model.tensors.read_weights`.
        preset: the paper's model of these weights; None: the one whose tensors have the same names and shapes.
        labels: a text file with a class name on each line, in the order of the logits; None: ImageNet's names for 1,000
            classes, or else numbers.
        ema: use the moving average of the weights in the checkpoint.
        published: the row of the table, if these are published weights.

    Raises:
        ShiftViTError: the file cannot be read, does not fit the preset or holds values that are not finite, or the
            number of labels differs from the number of classes.
    """
    from shiftvit.model.convert import load_official, match_preset
    from shiftvit.model.network import ShiftViT
    from shiftvit.model.tensors import read_weights

    if preset is not None:
        find_preset(preset)
    tensors = read_weights(path, ema)
    found = match_preset(tensors)
    if preset is None:
        if found is None:
            raise ShiftViTError(f"{str(path)!r} fits none of the paper's models; name its architecture with --preset")
        preset = found
        notice(f"{Path(path).name} is a {preset}")
    head = np.shape(tensors.get("head.weight", ()))
    classes = head[0] if head else 0
    names, synsets = _name_classes(classes, labels, Path(path).name)
    model = ShiftViT.from_preset(preset, num_classes=classes, dtype="float32")
    load_official(model, tensors)
    preprocess = find_evaluation(model.settings.image_shape[0] or 224)
    _check_answer(model, preprocess, path)
    count = sum(int(np.prod(variable.shape)) for variable in model.weights)
    notice(f"all {len(model.weights)} tensors fit {preset}; their {count:,} values are finite")
    bundle = Bundle.from_model(model, names, preprocess)
    provenance = Provenance(
        name=published.name if published else None,
        address=published.url if published else Path(path).name,
        sha256=files.hash_file(Path(path)),
        date=datetime.datetime.now(datetime.UTC).date().isoformat(),
        license=published.license if published else None,
        **(dict(zip(("top1", "data"), published.top1, strict=True)) if published else {}),
    )
    return dataclasses.replace(bundle, synsets=synsets, provenance=provenance)


def _check_answer(model: Any, preprocess: Preprocess, path: str | Path) -> None:
    """Raises ShiftViTError unless the model's output for a picture of noise is finite."""
    picture = np.random.default_rng(0).integers(0, 256, (1, *model.settings.image_shape), np.uint8)
    answer = np.asarray(model.predict_on_batch(preprocess.normalised(picture)))
    if not np.isfinite(answer).all():
        raise ShiftViTError(
            f"the model with the weights in {str(path)!r} returns values that are not finite; get another file"
        )


def _name_classes(classes: int, labels: str | Path | None, name: str) -> tuple[tuple[str, ...], tuple[str, ...]]:
    """Returns the names of the classes, and their synsets if they are ImageNet's."""
    if labels is not None:
        return _read_labels(Path(labels), classes), ()
    names, synsets = read_imagenet_classes()
    if classes == len(names):
        return names, synsets
    if classes:
        notice(f"{name} has no names for its {classes} classes, so they are numbered; to name them, use --labels FILE")
    return tuple(f"class {number}" for number in range(classes)), ()


def _read_labels(path: Path, classes: int) -> tuple[str, ...]:
    try:
        if path.stat().st_size > _LARGEST_LABELS:
            raise ShiftViTError(f"{str(path)!r} is too large for class names; give a text file with one name per line")
        lines = path.read_text("utf-8-sig").splitlines()
    except UnicodeDecodeError as error:
        raise ShiftViTError(f"{str(path)!r} is not UTF-8 text; give the class names, one per line, in UTF-8") from error
    except OSError as error:
        raise ShiftViTError(
            f"the labels {str(path)!r} cannot be read: {describe_error(error)}; check the path"
        ) from error
    names = [line.strip() for line in lines if line.strip()]
    for name in names:
        if has_controls(name):
            raise ShiftViTError(f"{str(path)!r} has the class name {name!r}, which cannot be printed; rename it")
    try:
        return check_labels(names, classes)
    except ShiftViTError as error:
        raise ShiftViTError(f"{str(path)!r}: {error}") from error
