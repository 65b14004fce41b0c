"""Random state dicts with the names and shapes of the authors' code, and checkpoints as its training saves them."""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import Any

import numpy as np

from shiftvit.config import ModelConfig
from shiftvit.presets import PRESETS

Weights = dict[str, np.ndarray]


def make_state_dict(preset: str, classes: int = 1000, seed: int = 0) -> Weights:
    """Returns random weights, named after the authors' `shiftvit.py` and not after this package's reader."""
    config = ModelConfig(**PRESETS[preset].arguments)
    random = np.random.default_rng(seed)
    weights: Weights = {}

    def add(name: str, *shape: int, bias: bool = True, centre: float = 0.0) -> None:
        values = random.normal(size=shape, scale=1 / np.sqrt(max(1, np.prod(shape[1:])))) + centre
        weights[f"{name}.weight"] = values.astype(np.float32)
        if bias:
            weights[f"{name}.bias"] = random.normal(size=shape[0], scale=0.1).astype(np.float32)

    width, patch = config.embed_dim, config.patch_size
    add("patch_embed.proj", width, 3, patch, patch)
    add("patch_embed.norm", width, centre=1.0)
    for stage, depth in enumerate(config.depths):
        hidden = int(config.mlp_ratio * width)
        for block in range(depth):
            name = f"layers.{stage}.blocks.{block}"
            add(f"{name}.norm2", width, centre=1.0)
            add(f"{name}.mlp.fc1", hidden, width, 1, 1)
            add(f"{name}.mlp.fc2", width, hidden, 1, 1)
        if stage < len(config.depths) - 1:
            add(f"layers.{stage}.downsample.reduction", 2 * width, width, 2, 2, bias=False)
            add(f"layers.{stage}.downsample.norm", width, centre=1.0)
            width *= 2
    add("norm", width, centre=1.0)
    if classes:
        add("head", classes, width)
    return weights


def to_tensors(weights: Weights) -> dict[str, Any]:
    import torch

    return {name: torch.tensor(value) for name, value in weights.items()}


def make_checkpoint(weights: Weights, ema: Weights | None = None, **more: Any) -> dict[str, Any]:
    """Returns what the authors' `main.py` saves at the end of an epoch."""
    import torch

    state = to_tensors(weights)
    parameters = [torch.nn.Parameter(value) for value in list(state.values())[:2]]
    optimizer = torch.optim.AdamW(parameters, lr=1e-3)
    sum(parameter.square().sum() for parameter in parameters).backward()
    optimizer.step()
    schedule = {"base_values": [1e-3], "t_in_epochs": True, "warmup_steps": [5e-5], "metric": None}
    args = argparse.Namespace(
        lr=1e-3, model="shift_vit", output_dir=Path("/runs/one"), device="cuda", repeated_aug=True, betas=(0.9, 0.999)
    )
    return {
        "model": state,
        "optimizer": optimizer.state_dict(),
        "lr_scheduler": schedule,
        "epoch": 299,
        "model_ema": None if ema is None else to_tensors(ema),
        "scaler": {"scale": 65536.0, "growth_factor": 2.0, "_growth_tracker": 7},
        "args": args,
        **more,
    }
