"""Fine-tuning beats training from scratch when there are few images."""

from __future__ import annotations

from pathlib import Path

import pytest

from shiftvit import Bundle, train

GOLDEN = Path(__file__).parent / "golden"
# Made by tests/make_finetune.py: a model of CIFAR-10 without cats and dogs, and 500 + 400 images of these.
SOURCE = GOLDEN / "eight_classes.zip"
IMAGES = GOLDEN / "cats_dogs.npz"

# With three seeds, results were within 2 points of their mean, and fine-tuning was 9 to 11 points ahead of scratch.
SETTINGS = {
    "data.name": str(IMAGES),
    "data.validation": 50,
    "data.limit": 250,
    "train.select": "last",
    "train.epochs": 5,
    "train.batch_size": 32,
    "train.precision": "float32",
    "augment.pad": 4,
}


@pytest.mark.slow
@pytest.mark.usefixtures("plain_figures")
def test_fine_tuning_beats_training_from_scratch(tmp_path: Path) -> None:
    source = Bundle.load(SOURCE)
    assert not {"cat", "dog"} & set(source.labels)
    sizes = {"preprocess.resize": "none", "preprocess.crop": "none", "start.source": str(SOURCE)}
    tuned = train("finetune", out=tmp_path / "tuned", **SETTINGS, **sizes)
    # The same architecture from scratch, with three times the epochs and the learning rates that were chosen for it.
    settings = {**SETTINGS, "train.epochs": 15, "model.embed_dim": source.config.embed_dim}
    scratch = train("quick", out=tmp_path / "scratch", **settings)
    top1 = {name: run.metrics["test"]["top1"] for name, run in [("tuned", tuned), ("scratch", scratch)]}
    assert tuned.metrics["test"]["n"] == 400
    assert tuned.bundle.config.model_dump(exclude={"drop_path"}) == scratch.bundle.config.model_dump(
        exclude={"drop_path"}
    )
    assert top1["tuned"] > top1["scratch"] + 0.05, top1
