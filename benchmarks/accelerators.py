"""Measures training steps on an accelerator: our device loop, and timm's models of the same size, in turn.

    pip install timm
    KERAS_BACKEND=torch python benchmarks/accelerators.py
    KERAS_BACKEND=jax python benchmarks/accelerators.py --no-peers

Every model trains on random images in bfloat16, with AdamW and label smoothing: ShiftViT-T/R2, Swin-T and ConvNeXt-T at
224x224, and our large model for CIFAR-10. Our steps include cropping and mirroring on the device. On torch each step is
one captured CUDA graph, also for timm's models; `--compile` adds timm's models under `torch.compile`. The result goes
to benchmarks/results/accelerators-BACKEND-DATE.json.
"""

from __future__ import annotations

import argparse
import functools
import json
import os
import statistics
import time
from collections.abc import Callable
from typing import Any

import keras
import numpy as np

from record import write_record
from shiftvit.benchmark import measure_peak_gflops
from shiftvit.data.find.dataset import Dataset, Split
from shiftvit.environment import find_device_name
from shiftvit.presets import find_preset
from shiftvit.recipes.recipe import Recipe
from shiftvit.stages import list_stages
from shiftvit.training.device import make_loop
from shiftvit.training.fit import build_model
from shiftvit.training.setup import resolve

PEERS = ("swin_tiny_patch4_window7_224", "convnext_tiny")
# Preset, pixels of a side, batch size.
OURS = (("shiftvit_tiny_r2", 224, 128), ("shiftvit_cifar_large", 32, 500), ("keras_example", 48, 256))

# Makes a number of steps and waits for the last.
Steps = Callable[[int], None]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--seconds", type=float, default=1.0, help="a round, for each model")
    parser.add_argument("--peers", action=argparse.BooleanOptionalAction, default=True)
    parser.add_argument("--compile", action="store_true", help="each model under torch.compile too")
    parser.add_argument("--warm-up", action="store_true", help="only compile, into the caches of torch and jax")
    parser.add_argument("--only", help="a preset")
    parser.add_argument("--scale", type=float, default=1.0, help="of the batches")
    arguments = parser.parse_args()
    peak = measure_peak_gflops("bfloat16")
    print(f"{find_device_name()}: {peak / 1e3:.1f} TFLOP/s in square products", flush=True)
    rows = []
    for preset, side, images in OURS:
        if arguments.only not in (None, preset):
            continue
        batch = max(1, int(images * arguments.scale))
        makers: dict[str, Callable[[], Steps]] = {}
        for name in (preset, *(PEERS if arguments.peers and side == 224 else ())):
            make: Callable[..., Steps] = functools.partial(
                make_our_steps if name == preset else make_peer_steps, name, side, batch
            )
            makers[name] = functools.partial(make, compiled=False)
            if arguments.compile:
                makers[f"{name}, compiled"] = functools.partial(make, compiled=True)
        if arguments.warm_up:
            for make in makers.values():
                make()(1)
            continue
        rates = measure(makers, batch, arguments.rounds, arguments.seconds)
        gflop = 3 * 2 * sum(row["multiply_adds"] for row in list_stages(make_config(preset, side))) / 1e9
        for name, found in rates.items():
            row = {
                "model": name,
                "pixels": side,
                "batch": batch,
                "images_per_second": round(statistics.median(found), 1),
                "spread": [round(min(found), 1), round(max(found), 1)],
                "ratio_to_ours": round(statistics.median(a / b for a, b in zip(found, rates[preset], strict=True)), 3),
            }
            if name.startswith(preset):
                row |= {
                    "training_gflop_per_image": round(gflop, 3),
                    "share_of_peak": round(row["images_per_second"] * gflop / peak, 3),
                }
            print(json.dumps(row), flush=True)
            rows.append(row)
    if arguments.warm_up:
        return
    figures = {"n": arguments.rounds, "peak_gflops": round(peak, 1), "rows": rows}
    write_record(f"accelerators-{keras.config.backend()}", figures)


def make_config(preset: str, side: int) -> Any:
    """Returns a preset's arguments for square images."""
    from shiftvit.config import ModelConfig

    return ModelConfig(**{**find_preset(preset).arguments, "image_shape": (side, side, 3)})


def make_our_steps(preset: str, side: int, batch: int, compiled: bool) -> Steps:
    """Returns the steps of the device loop on random images."""
    generator = np.random.default_rng(0)
    images = generator.integers(0, 256, (4 * batch, side, side, 3), np.uint8)
    classes = find_preset(preset).arguments.get("num_classes", 1000)
    labels = np.arange(len(images), dtype=np.int64) % classes
    split = Split(labels, images=images)
    dataset = Dataset(
        name="random",
        splits={"train": split, "test": split},
        class_names=tuple(f"class {index}" for index in range(classes)),
    )
    recipe = Recipe.model_validate(
        {
            "name": "steps",
            "model": {"preset": preset},
            "augment": {"pad": 4, "flip": True},
            "train": {"batch_size": batch, "loop": "device", "jit_compile": compiled, "epochs": 100_000},
        }
    )
    recipe = resolve(recipe, dataset)
    model, steps = build_model(recipe, dataset, begun=False)
    loop = make_loop(model, recipe, dataset, steps)
    assert loop is not None
    loop.begin(0)

    def run(count: int) -> None:
        for _ in range(count):
            loop.run(0, steps)
        assert np.isfinite(loop.read_figures()["loss"])  # waits for the result

    return lambda count: run(max(1, count // steps))


def make_peer_steps(name: str, side: int, batch: int, compiled: bool) -> Steps:
    """Returns training steps of one of timm's models: autocast to bfloat16, AdamW, one captured graph."""
    import timm
    import torch

    device = keras.src.backend.torch.core.get_device()
    model = timm.create_model(name, pretrained=False).to(device, memory_format=torch.channels_last).train()
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-4, capturable=device != "cpu", fused=device != "cpu")
    images = torch.randn(batch, 3, side, side, device=device).to(memory_format=torch.channels_last)
    labels = torch.arange(batch, device=device) % 1000
    forward = torch.compile(model) if compiled else model
    held = torch.zeros((), device=device)

    def step() -> None:
        with torch.autocast(torch.device(device).type, torch.bfloat16):
            logits = forward(images)
        loss = torch.nn.functional.cross_entropy(logits.float(), labels, label_smoothing=0.1)
        optimizer.zero_grad(set_to_none=True)
        loss.backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0, error_if_nonfinite=False)
        optimizer.step()
        held.copy_(loss.detach())

    if device == "cpu":
        take = step
    else:
        aside = torch.cuda.Stream()
        aside.wait_stream(torch.cuda.current_stream())
        with torch.cuda.stream(aside):
            for _ in range(3):
                step()
        torch.cuda.current_stream().wait_stream(aside)
        graph = torch.cuda.CUDAGraph()
        with torch.cuda.graph(graph):
            step()
        take = graph.replay

    def run(count: int) -> None:
        for _ in range(count):
            take()
        assert np.isfinite(held.item())  # waits for the result

    return run


def measure(makers: dict[str, Callable[[], Steps]], batch: int, rounds: int, seconds: float) -> dict[str, list[float]]:
    """Returns the images/s of each model in each round; in a round the models take turns."""
    steps, counts = {}, {}
    for name, make in makers.items():
        began = time.perf_counter()
        steps[name] = make()
        steps[name](4)
        ready = time.perf_counter()
        steps[name](4)
        counts[name] = max(4, 4 * round(seconds / (time.perf_counter() - ready)))
        print(f"{name}: ready after {ready - began:.1f} s, {counts[name]} steps a round", flush=True)
    rates: dict[str, list[float]] = {name: [] for name in makers}
    for _ in range(rounds):
        for name, run in steps.items():
            began = time.perf_counter()
            run(counts[name])
            rates[name].append(batch * counts[name] / (time.perf_counter() - began))
    return rates


if __name__ == "__main__":
    os.environ.setdefault("KERAS_BACKEND", "torch")
    main()
