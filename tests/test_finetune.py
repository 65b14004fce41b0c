"""Fine-tuning does what it is for: with few images it beats training from scratch."""

from __future__ import annotations

from pathlib import Path

import pytest

from shiftvit import Bundle, train

GOLDEN = Path(__file__).parent / "golden"
# Made by tests/make_finetune.py: a model of CIFAR-10 without cats and dogs, and 500 + 400 images of these.
SOURCE = GOLDEN / "eight_classes.zip"
IMAGES = GOLDEN / "cats_dogs.npz"

SETTINGS = {
    "data.name": str(IMAGES),
    "data.validation": 50,
    "train.epochs": 8,
    "train.batch_size": 32,
    "train.precision": "float32",
    "augment.pad": 4,
}


@pytest.mark.slow
def test_it_beats_training_from_scratch(tmp_path: Path) -> None:
    source = Bundle.load(SOURCE)
    assert not {"cat", "dog"} & set(source.labels)
    sizes = {"preprocess.resize": "none", "preprocess.crop": "none", "start.source": str(SOURCE)}
    tuned = train("finetune", out=tmp_path / "tuned", **SETTINGS, **sizes)
    # The same architecture with the rates that were chosen for it.
    scratch = train("quick", out=tmp_path / "scratch", **SETTINGS, **{"model.embed_dim": source.config.embed_dim})
    longer = {**SETTINGS, "train.epochs": 24, "model.embed_dim": source.config.embed_dim}
    more = train("quick", out=tmp_path / "longer", **longer)
    top1 = {name: run.metrics["test"]["top1"] for name, run in [("tuned", tuned), ("scratch", scratch), ("more", more)]}
    assert tuned.metrics["test"]["n"] == 400
    assert tuned.bundle.config.model_dump(exclude={"drop_path"}) == scratch.bundle.config.model_dump(
        exclude={"drop_path"}
    )
    assert top1["tuned"] > top1["scratch"] + 0.03, top1
    assert top1["tuned"] > top1["more"], top1
