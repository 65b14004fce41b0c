"""Prints, as JSON, how far the model is from each reference on the backend in KERAS_BACKEND.

    KERAS_BACKEND=jax python tests/parity.py

For every reference: the largest absolute difference at each stage and at the logits, float32.
"""

from __future__ import annotations

import ast
import json
from pathlib import Path

import keras
import numpy as np

import shiftvit

GOLDEN = Path(__file__).parent / "golden"


def compare_official(name: str) -> dict[str, float]:
    with np.load(GOLDEN / f"{name}.npz") as reference:
        arrays = dict(reference)
    config = json.loads(str(arrays["config"]))
    images = arrays["x_nhwc"]
    model = shiftvit.ShiftViT(
        images.shape[1:],
        num_classes=config["num_classes"],
        embed_dim=config["embed_dim"],
        depths=config["depths"],
        mlp_ratio=config["mlp_ratio"],
        num_div=config["n_div"],
        norm={"GN1": "group", "BN": "batch"}[config["norm_layer"]],
        activation=config["act_layer"].lower(),
    )
    shiftvit.convert.load_official(model, GOLDEN / f"{name}.npz")
    stages = keras.Model(model.backbone.inputs, list(model.backbone.pyramid_outputs.values()))
    found = {f"stage{i}": value for i, value in enumerate(stages.predict(images, verbose=0), 1)}
    differences = {stage: _measure_difference(value, arrays[f"{stage}_nhwc"]) for stage, value in found.items()}
    return {**differences, "logits": _measure_difference(model.predict(images, verbose=0), arrays["logits"])}


def compare_example(shift_mode: str = "mask") -> dict[str, float]:
    with np.load(GOLDEN / "keras_example.npz") as reference:
        arrays = dict(reference)
    config = ast.literal_eval(str(arrays["config"]))
    model = shiftvit.ShiftViT.from_preset(
        "keras_example",
        embed_dim=config["projected_dim"],
        depths=config["num_shift_blocks_per_stages"],
        mlp_ratio=config["mlp_expand_ratio"],
        num_div=config["num_div"],
        shift_mode=shift_mode,
    )
    shiftvit.convert.load_keras_example(model, GOLDEN / "keras_example.npz")
    preprocessed = shiftvit.Preprocess(resize=52, crop=48, round_pixels=False)(arrays["x"])
    # The example's `call` augments at inference too. The recorded logits belong to the crop that starts in row 2,
    # column 0, with the first image mirrored. No other of the 50 crops and mirrorings gives them.
    images = shiftvit.Preprocess(resize=52, round_pixels=False)(arrays["x"])[:, 2:50, :48]
    images[0] = images[0, :, ::-1]
    return {
        "preprocessed": _measure_difference(preprocessed, arrays["preprocessed"]),
        "logits": _measure_difference(model.predict(images, verbose=0), arrays["logits"]),
    }


def _measure_difference(found: np.ndarray, expected: np.ndarray) -> float:
    assert found.shape == expected.shape, (found.shape, expected.shape)
    return float(np.abs(found - expected).max())


if __name__ == "__main__":
    print(
        json.dumps(
            {
                "backend": keras.config.backend(),
                "official_gn1": compare_official("official_gn1"),
                "official_bn_relu": compare_official("official_bn_relu"),
                "keras_example": compare_example(),
            }
        )
    )
