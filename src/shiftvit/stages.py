"""Computes a model's stages, size and cost from its configuration, without a framework."""

from __future__ import annotations

from typing import Any

from shiftvit.config import ModelConfig

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
