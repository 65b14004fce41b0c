"""Trains on the committed sample in a process of its own: `train_worker.py RECIPE.json RUN | --resume RUN`."""

from __future__ import annotations

import sys
from pathlib import Path

import keras

from sample import load_sample
from shiftvit import Recipe, train
from shiftvit.training.callbacks import Interrupted


def main(first: str, second: str) -> None:
    if first == "--resume":
        train(resume=second, data=load_sample())
    else:
        train(Recipe.model_validate_json(Path(first).read_text()), out=second, data=load_sample())
    if keras.config.backend() != "tensorflow":
        assert "tensorflow" not in sys.modules, "TensorFlow takes seconds to import, and is not needed"


if __name__ == "__main__":
    try:
        main(*sys.argv[1:])
    except Interrupted as stop:
        print(stop, file=sys.stderr)
        raise SystemExit(stop.status) from None
