"""Computes on one backend, in its own process, the results that the tests compare between backends.

    KERAS_BACKEND=jax python tests/backend_worker.py FOLDER

It writes `jax-<norm>/` (a bundle), `jax-<norm>.keras`, and `jax.json` and `jax.npz` with the results into FOLDER. After
saving, it prints "saved" and waits for a line that names the backends whose files it must load.
"""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Any

import keras
import numpy as np
from matplotlib.figure import Figure
from PIL import Image

import parity
import test_accumulation
import test_explain
from logs import read_log
from sample import load_sample
from shiftvit.backend import hide_tensorflow
from shiftvit.bundle.bundle import Bundle
from shiftvit.inference.runtimes import load_graph
from shiftvit.model.network import ShiftViT
from shiftvit.preprocess import Preprocess
from shiftvit.recipes.recipe import Recipe
from shiftvit.training.fit import train
from tensors import BACKEND, draw_normal, set_random_weights, to_numpy
from threads import answer_together

NORMS = ("group", "layer", "batch")
IMAGES = draw_normal(2, 21, 16, 3)
# Maps with odd sides, a number of channels that num_div does not divide, and both update rules of Muon.
MODEL = {
    "image_shape": (21, 16, 3),
    "num_classes": 5,
    "embed_dim": 26,
    "depths": (1, 1),
    "merge_padding": "same",
}
RECIPE = {
    "model": {"embed_dim": 24, "depths": [1, 1], "norm": "batch", "dropout": 0.1},
    "data": {"validation": 50},
    "train": {
        "epochs": 4,
        "batch_size": 50,
        "precision": "float32",
        "ema": 0.5,
        "optimizer": {"name": "muon", "learning_rate": 3e-3, "adam_learning_rate": 3e-3, "clipnorm": 1.0},
    },
}


# Images that grow, whose sides a graph does not know.
GROWING = {
    "model": {"embed_dim": 24, "depths": [1, 1], "norm": "layer"},
    "data": {"validation": 50},
    "train": {
        "epochs": 3,
        "batch_size": 50,
        "precision": "float32",
        "initial_scale": 0.5,
        "optimizer": {"learning_rate": 3e-3},
    },
}


def save_models(folder: Path) -> dict[str, Any]:
    """Saves a model with each norm as a bundle and as a Keras file, and returns the logits."""
    logits = {}
    for seed, norm in enumerate(NORMS):
        model = ShiftViT(**MODEL, norm=norm)
        set_random_weights(model, seed)
        labels = tuple("abcde")
        Bundle.from_model(model, labels, Preprocess()).save(folder / f"{BACKEND}-{norm}")
        model.save(folder / f"{BACKEND}-{norm}.keras")
        logits[norm] = to_numpy(model(IMAGES)).tolist()
    return logits


def load_models(folder: Path, writers: list[str]) -> dict[str, Any]:
    """Returns the logits of each writer's models, loaded from both formats."""
    logits = {}
    for writer in writers:
        for norm in NORMS:
            loaded = {
                "bundle": Bundle.load(folder / f"{writer}-{norm}").build(),
                "keras": keras.saving.load_model(folder / f"{writer}-{norm}.keras"),
            }
            logits |= {f"{writer}/{form}/{norm}": to_numpy(model(IMAGES)).tolist() for form, model in loaded.items()}
    return logits


def train_model(folder: Path) -> dict[str, Any]:
    """Trains for a few steps on real images."""
    Figure.savefig = lambda _, path, **__: Image.new("RGB", (1, 1)).save(path, "PNG")  # as fast as possible
    run = train(Recipe.model_validate(RECIPE), out=folder / f"{BACKEND}-run", data=load_sample())
    growing = train(Recipe.model_validate(GROWING), out=folder / f"{BACKEND}-growing", data=load_sample())
    return {
        "losses": [row["loss"] for row in read_log(run.path)],
        "test": run.metrics["test"]["loss"],
        "growing": [row["loss"] for row in read_log(growing.path)],
    }


def main(folder: Path) -> None:
    results: dict[str, Any] = {"logits": save_models(folder)}
    names = ("official_gn1", "official_bn_relu")
    results["parity"] = {name: parity.compare_official(name) for name in names} | {
        "keras_example": parity.compare_example()
    }
    results["training"] = train_model(folder)
    # The saved model is small, so that jax and TensorFlow compile three sizes of a batch fast.
    pictures = np.random.default_rng(0).integers(0, 256, (16, *IMAGES.shape[1:]), np.uint8)
    results["threads"] = answer_together(load_graph(folder / f"{BACKEND}-layer", "keras").run, pictures)
    test_accumulation.test_no_part_is_empty()
    np.savez(folder / f"{BACKEND}.npz", **test_explain.compute_explanations())
    print("saved", flush=True)
    results["loaded"] = load_models(folder, sys.stdin.readline().split())
    (folder / f"{BACKEND}.json").write_text(json.dumps(results), "utf-8")


if __name__ == "__main__":
    with hide_tensorflow():  # from the other backends
        main(Path(sys.argv[1]))
