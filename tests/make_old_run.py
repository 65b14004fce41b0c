"""Makes the archive for `tests/test_old_run.py`: runs of shiftvit 0.1.0 that later versions must evaluate and resume.

    KERAS_BACKEND=torch python tests/make_old_run.py

A very small model is trained on drawn pictures and stopped in the second of its three epochs. A copy of that run is
trained to the end. The archive holds the pictures, both runs without their figures, and the expected results: the
evaluation, the pictures that each step saw, and the logits of the finished model. The version in its name made it.
An archive made by later code would prove nothing.
"""

from __future__ import annotations

import contextlib
import json
import os
import shutil
import signal
import tempfile
import zipfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from shiftvit import Bundle, evaluate, train
from shiftvit.errors import Interrupted
from shiftvit.training.callbacks import Watch

ARCHIVE = Path(__file__).parent / "golden" / "run-0.1.0.zip"
PICTURES, SIDE = 40, 24
SETTINGS = {
    "data.name": "shapes",
    "data.validation": 8,
    "data.test": 8,
    "model.preset": "none",
    "model.embed_dim": 24,
    "model.depths": [1, 1],
    "model.norm": "layer",
    "model.dropout": 0.1,
    "model.drop_path": 0.1,
    "preprocess.resize": [SIDE, SIDE],
    "augment.pad": 2,
    "augment.mixup": 0.2,
    "train.epochs": 3,
    "train.batch_size": 4,
    "train.precision": "float32",
    "train.loop": "fit",
    "train.ema": 0.8,
    # On a processor that rounds differently, another of the three epochs could be the best.
    "train.select": "last",
}
STOP = (1, 2)  # stop before this step: epoch 1, step 2, both counted from 0

Seen = dict[str, list[str]]


def draw_pictures(folder: Path) -> None:
    """Writes red bars, green checks and blue rings on noise as PNG files, one folder per class."""
    rng = np.random.default_rng(0)
    rows, columns = np.mgrid[:SIDE, :SIDE]
    for number in range(PICTURES):
        name = ("bars", "checks", "rings")[number % 3]
        period, (y, x) = rng.integers(4, 8), rng.uniform(0, SIDE, 2)
        shapes = {
            "bars": (rows + int(y)) % period < period / 2,
            "checks": ((rows + int(y)) // 3 + (columns + int(x)) // 3) % 2 == 0,
            "rings": np.hypot(rows - y, columns - x) % period < period / 2,
        }
        colour = np.roll((60, -20, -20), number % 3)
        pixels = rng.uniform(90, 160, 3) + shapes[name][..., None] * colour + rng.normal(0, 6, (SIDE, SIDE, 1))
        (folder / name).mkdir(parents=True, exist_ok=True)
        Image.fromarray(pixels.clip(0, 255).astype(np.uint8)).save(folder / name / f"{number:02}.png", optimize=True)


@contextlib.contextmanager
def watch(stop: tuple[int, int] | None = None) -> Iterator[Seen]:
    """Records the pictures of each step, "epoch/step" -> file names, and stops training before the step `stop`."""
    original, seen = Watch.on_train_batch_begin, {}

    def record_and_stop(self: Any, batch: int, logs: Any = None) -> None:
        place = self.progress.epoch, self.first_step + batch
        if place == stop:
            self.signal = signal.SIGINT
        original(self, batch, logs)
        seen["{}/{}".format(*place)] = [Path(name).name for name in self.images_of(place[1])]

    Watch.on_train_batch_begin = record_and_stop
    try:
        yield seen
    finally:
        Watch.on_train_batch_begin = original


def compute_logits(run: Path, pictures: Path) -> np.ndarray:
    """Returns the logits of a run's model for its test pictures, in the order of `splits.csv`, float32 (N, 3)."""
    bundle = Bundle.load(run)
    table = [line.split(",") for line in (run / "splits.csv").read_text("utf-8").splitlines()]
    images = np.stack([np.asarray(Image.open(pictures / path)) for split, path, _ in table if split == "test"])
    return np.asarray(bundle.build().predict_on_batch(bundle.preprocess(images)))


def main() -> None:
    with tempfile.TemporaryDirectory() as place:
        os.chdir(place)
        draw_pictures(Path("shapes"))
        stopped, finished = Path("runs/stopped"), Path("runs/finished")
        with watch(STOP) as before, contextlib.suppress(Interrupted):
            train("quick", out=stopped, **SETTINGS)
        shutil.copytree(stopped, finished)
        with watch() as after:
            train(resume=finished)
        report = evaluate(finished)
        expected = {
            "seen": {"before": before, "after": after},
            "evaluation": {key: report[key] for key in ("split", "n", "loss", "top1", "top5", "macro", "confusion")},
        }
        Path("expected.json").write_text(json.dumps(expected, indent=1) + "\n", "utf-8")
        np.savez("expected.npz", logits=compute_logits(finished, Path("shapes")))
        for run in (stopped, finished):
            shutil.rmtree(run / "figures")
            (run / ".lock").unlink()
            # A recipe has the absolute path of its pictures. The test replaces this name by its own folder.
            text = (run / "recipe.toml").read_text("utf-8")
            (run / "recipe.toml").write_text(text.replace(str(Path("shapes").resolve()), "shapes"), "utf-8")
        shutil.rmtree(finished / "checkpoints")
        with zipfile.ZipFile(ARCHIVE, "w", zipfile.ZIP_DEFLATED, compresslevel=9) as archive:
            for path in sorted(path for path in Path().rglob("*") if path.is_file()):
                assert place.encode() not in path.read_bytes(), path
                # Without a date, so that equal content gives an equal archive.
                archive.writestr(zipfile.ZipInfo(path.as_posix()), path.read_bytes(), zipfile.ZIP_DEFLATED, 9)


if __name__ == "__main__":
    main()
