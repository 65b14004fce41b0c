"""Measures the inference of peers of the same size, each an ONNX graph under the same ONNX Runtime, in turn.

    pip install timm==1.0.31 torchvision==0.28.0
    KERAS_BACKEND=torch python benchmarks/peers.py

ShiftViT-T/R2, Swin-T and ConvNeXt-T at 224x224 have random weights, which cost as much as trained ones. Every graph
takes the same uint8 images and normalises them. The result goes to benchmarks/results/peers-DATE.json.
"""

from __future__ import annotations

import argparse
import json
import os
import statistics
import tempfile
import time
from pathlib import Path
from typing import Any

import numpy as np
import onnxruntime
import timm
import torch

from record import write_record
from shiftvit.bundle.bundle import Bundle
from shiftvit.bundle.stored.published import MEAN, STD
from shiftvit.exports.export import export
from shiftvit.exports.formats import FORMATS
from shiftvit.model.network import ShiftViT
from shiftvit.preprocess import Preprocess

OURS = "shiftvit_tiny_r2"
PEERS = ("swin_tiny_patch4_window7_224", "convnext_tiny")
SIDE = 224
BATCHES = (1, 16)


class Whole(torch.nn.Module):
    """A model with its preprocessing, as our graphs have it: uint8 (B, 224, 224, 3) to logits."""

    def __init__(self, model: torch.nn.Module) -> None:
        super().__init__()
        self.model = model
        self.register_buffer("mean", torch.tensor(MEAN))
        self.register_buffer("std", torch.tensor(STD))

    def forward(self, images: torch.Tensor) -> torch.Tensor:
        return self.model(((images.float() - self.mean) / self.std).permute(0, 3, 1, 2))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--rounds", type=int, default=7)
    parser.add_argument("--images", type=int, default=32, help="a round")
    arguments = parser.parse_args()
    with tempfile.TemporaryDirectory() as place:
        graphs = {OURS: export_ours(Path(place)), **{name: export_peer(name, Path(place)) for name in PEERS}}
        sessions = {name: onnxruntime.InferenceSession(path) for name, path in graphs.items()}
        parameters = {name: path.stat().st_size // 4 for name, path in graphs.items()}
    rates = {size: measure(sessions, size, arguments.rounds, arguments.images) for size in BATCHES}
    result = {
        "n": arguments.rounds,
        "models": [
            {
                "model": name,
                "million_values_in_graph": round(parameters[name] / 1e6, 1),
                **{f"batch_{size}": summarize(rates[size][name], rates[size][OURS]) for size in BATCHES},
            }
            for name in graphs
        ],
        "timm": timm.__version__,
    }
    print(json.dumps(result["models"], indent=1))
    write_record("peers", result)


def export_ours(place: Path) -> Path:
    """Exports our model as users do."""
    model = ShiftViT.from_preset(OURS)
    labels = tuple(f"class {index}" for index in range(1000))
    bundle = Bundle.from_model(model, labels, Preprocess(mean=MEAN, std=STD, resize=(SIDE, SIDE)))
    folder = export(bundle.save(place / "bundle"), "onnx", out=place / OURS)
    return folder / FORMATS["onnx"].artifact


def export_peer(name: str, place: Path) -> Path:
    """Exports one of timm's models with torch's own exporter."""
    model = Whole(timm.create_model(name, pretrained=False)).eval()
    images = torch.zeros(2, SIDE, SIDE, 3, dtype=torch.uint8)
    path = place / f"{name}.onnx"
    torch.onnx.export(
        model,
        (images,),
        path,
        input_names=["images"],
        dynamic_shapes=({0: torch.export.Dim("batch")},),
        dynamo=True,
        external_data=False,
        verbose=False,
    )
    return path


def measure(sessions: dict[str, Any], size: int, rounds: int, count: int) -> dict[str, list[float]]:
    """Returns the images/s of each model in each round; in a round the models take turns."""
    images = np.random.default_rng(0).integers(0, 256, (size, SIDE, SIDE, 3), np.uint8)
    rates: dict[str, list[float]] = {name: [] for name in sessions}
    for round_ in range(rounds + 1):
        for name, session in sessions.items():
            began, done = time.perf_counter(), 0
            while done < count:
                session.run(None, {session.get_inputs()[0].name: images})
                done += size
            if round_:  # the first one warms up
                rates[name].append(done / (time.perf_counter() - began))
    return rates


def summarize(rates: list[float], ours: list[float]) -> dict[str, Any]:
    """Returns median, spread and the median of the rounds' ratios to our model."""
    return {
        "images_per_second": round(statistics.median(rates), 2),
        "spread": [round(min(rates), 2), round(max(rates), 2)],
        "ratio_to_ours": round(statistics.median(a / b for a, b in zip(rates, ours, strict=True)), 3),
    }


if __name__ == "__main__":
    os.environ.setdefault("KERAS_BACKEND", "torch")
    main()
