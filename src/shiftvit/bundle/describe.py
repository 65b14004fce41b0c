"""Computes a model's stages, size and cost from its configuration, without a framework."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from shiftvit.bundle.bundle import Bundle
from shiftvit.bundle.card import describe_figures, describe_origin, describe_preprocessing
from shiftvit.bundle.stored.find import find_bundle, is_name, list_pretrained
from shiftvit.bundle.stored.published import PUBLISHED
from shiftvit.config import ModelConfig
from shiftvit.errors import ShiftViTError, list_some, suggest
from shiftvit.presets import PRESETS

Rows = list[dict[str, Any]]


def list_stages(config: ModelConfig) -> Rows:
    """Returns a row for the patch embedding, each stage (with the merging that leads to it) and the head.

    Each row has `part`, `resolution` (rows x columns of the map), `channels`, `blocks`, `parameters` (trainable) and
    `multiply_adds` of one image in the matrix products; None if the image size is not fixed.
    """
    norm = 2  # a scale and an offset for each channel, in all three kinds
    *sides, colours = config.image_shape  # of the feature map; None: not fixed
    sides = [_divide(side, config.patch_size) for side in sides]
    channels = config.embed_dim
    weights = config.patch_size**2 * colours * channels
    extra = channels * (1 + (norm if config.patch_norm else 0))
    rows = [_make_row("patch embedding", sides, channels, parameters=weights + extra, weights=weights)]
    for stage, depth in enumerate(config.depths, 1):
        weights = parameters = 0
        if stage > 1:
            sides = [_divide(side, 2, round_up=config.merge_padding == "same") for side in sides]
            weights = 4 * channels * 2 * channels
            parameters = weights + norm * channels
            channels *= 2
        hidden = int(channels * config.mlp_ratio)
        block = 2 * channels * hidden
        weights += depth * block
        parameters += depth * (block + hidden + channels + norm * channels)
        rows.append(_make_row(f"stage {stage}", sides, channels, blocks=depth, parameters=parameters, weights=weights))
    weights = channels * config.num_classes
    parameters = weights + config.num_classes + (norm * channels if config.final_norm else 0)
    channels = config.num_classes or channels
    return [*rows, _make_row("norm, pool, head", [1, 1], channels, parameters=parameters, weights=weights)]


def describe(name: str) -> dict[str, Any]:
    """Describes a preset, a run folder or a bundle.

    Returns:
        `{"title", "stages": rows of `list_stages` and a total, "notes": texts by name}`.

    Raises:
        ShiftViTError: `name` is neither a preset nor a model.
    """
    if name in PRESETS:
        preset = PRESETS[name]
        notes = {"description": preset.description}
        if preset.published is not None:
            top1, where = preset.published
            notes["published"] = f"top-1 {top1}% ({where})"
        if name in PUBLISHED:
            pulled = is_name(name)
            notes["weights"] = f"in {PUBLISHED[name].place}" if pulled else f"not on this machine; shiftvit pull {name}"
        return _describe(f"Preset {name}", ModelConfig(**preset.arguments), notes)
    if not Path(name).exists() and name not in list_pretrained():
        valid = [*PRESETS, *list_pretrained()]
        raise ShiftViTError(f"{name!r} is neither a name nor a path; {suggest(name, valid)} Or give a run folder.")
    bundle = Bundle.load(name)
    notes = {
        "classes": list_some(bundle.labels, 12),
        "preprocessing": describe_preprocessing(bundle.preprocess),
    }
    if bundle.provenance is not None:
        notes["weights"] = describe_origin(bundle.provenance)
    for split, title in (("val", "validation"), ("test", "test")):
        if figures := describe_figures(bundle.metrics, split, len(bundle.labels)):
            notes[title] = figures
    return _describe(f"Model in {find_bundle(name).where}", bundle.config, notes)


def list_presets() -> Rows:
    """Returns a row for each preset: name, input size, depths, parameters, multiply-adds, published top-1 (%)."""
    rows = []
    for name, preset in PRESETS.items():
        config = ModelConfig(**preset.arguments)
        total = _sum_rows(list_stages(config))
        rows.append(
            {
                "preset": name,
                "image": f"{config.image_shape[0]}x{config.image_shape[1]}",
                "depths": "-".join(map(str, config.depths)),
                "parameters": total["parameters"],
                "multiply_adds": total["multiply_adds"],
                "top1": None if preset.published is None else preset.published[0],
            }
        )
    return rows


def _divide(side: int | None, by: int, round_up: bool = False) -> int | None:
    return None if side is None else (side + (by - 1 if round_up else 0)) // by


def _make_row(
    part: str, sides: list[int | None], channels: int, *, blocks: int = 0, parameters: int, weights: int
) -> dict[str, Any]:
    """Returns a row of `list_stages`; `weights` is the number of weights of its matrix products."""
    height, width = sides
    return {
        "part": part,
        "resolution": "x".join("?" if side is None else str(side) for side in sides),
        "channels": channels,
        "blocks": blocks,
        "parameters": parameters,
        "multiply_adds": None if height is None or width is None else weights * height * width,
    }


def _sum_rows(rows: Rows) -> dict[str, Any]:
    products = [row["multiply_adds"] for row in rows]
    return {
        "part": "total",
        "resolution": "",
        "channels": "",
        "blocks": sum(row["blocks"] for row in rows),
        "parameters": sum(row["parameters"] for row in rows),
        "multiply_adds": None if None in products else sum(products),
    }


def _describe(title: str, config: ModelConfig, notes: dict[str, str]) -> dict[str, Any]:
    rows = list_stages(config)
    return {"title": title, "stages": [*rows, _sum_rows(rows)], "notes": notes}
