"""Evaluation on folders named by ImageNet synsets, for all classes of the model or a few."""

from __future__ import annotations

import dataclasses
from pathlib import Path

import numpy as np
import pytest
from typer.testing import CliRunner

from sample import write_tree
from shiftvit import Bundle, Preprocess, ShiftViT, ShiftViTError, evaluate
from shiftvit.bundle.stored.published import read_imagenet_classes
from shiftvit.cli.main import app
from shiftvit.evaluation.images import read_images
from shiftvit.evaluation.logits import predict_logits
from tensors import set_random_weights

SYNSETS = {"cat": "n02123045", "dog": "n02099601", "ship": "n03095699"}
pytestmark = pytest.mark.usefixtures("plain_figures")


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A model of the 1,000 ImageNet classes, and pictures of three in folders named by synset, by name, or by both."""
    root = tmp_path_factory.mktemp("synsets")
    names, synsets = read_imagenet_classes()
    model = ShiftViT((16, 16, 3), num_classes=1000, patch_size=4, embed_dim=24, depths=(1,))
    set_random_weights(model)
    bundle = Bundle.from_model(model, names, Preprocess(resize=16, crop=16))
    dataclasses.replace(bundle, synsets=synsets).save(root / "model")
    bundle.save(root / "without")
    for kind in ("synsets", "names", "mixed"):
        write_tree(root / kind / "val", per_class=8)
        for number, (name, synset) in enumerate(SYNSETS.items()):
            label = names[synsets.index(synset)]
            folder_name = {"synsets": synset, "names": label, "mixed": synset if number else label}[kind]
            (root / kind / "val" / name).rename(root / kind / "val" / folder_name)
    return root


def test_synset_folders_match_named_folders(folder: Path) -> None:
    found, by_name, mixed = (evaluate(folder / "model", str(folder / kind)) for kind in ("synsets", "names", "mixed"))
    names, synsets = read_imagenet_classes()
    assert len(found["without_images"]) == 997
    assert {row["class"] for row in found["classes"] if row["support"] == 8} == {
        names[synsets.index(synset)] for synset in SYNSETS.values()
    }
    for other in (by_name, mixed):  # their images come in another order
        for key in ("top1", "top5", "n", "split"):
            assert found[key] == other[key]
        assert found["loss"] == pytest.approx(other["loss"])
        assert found["among_others"] == pytest.approx(other["among_others"])


def test_metrics_over_all_classes_and_over_present_classes(folder: Path) -> None:
    from shiftvit.data.find.find import find_data

    bundle = Bundle.load(folder / "model")
    images = read_images(bundle, find_data(folder / "synsets", training=False)).splits["validation"]
    logits = predict_logits(bundle.build(), images.images, images.preprocess)
    present = np.unique(images.labels)
    found = evaluate(folder / "model", str(folder / "synsets"))
    assert found["top1"] == (logits.argmax(axis=1) == images.labels).mean()
    inner = found["among_others"]
    assert inner["classes"] == 3
    assert inner["n"] == found["n"] == 24
    assert inner["top1"] == (present[logits[:, present].argmax(axis=1)] == images.labels).mean()
    assert inner["top1"] >= found["top1"]
    assert inner["top5"] == 1
    output = CliRunner().invoke(app, ["evaluate", str(folder / "model"), "--data", str(folder / "synsets")]).output
    assert "no images of 997 classes" in output
    assert "with answers among these 3 classes only: loss" in output


def test_unknown_synsets_and_models_without_synsets_fail(folder: Path, tmp_path: Path) -> None:
    with pytest.raises(ShiftViTError, match="24 images of 3 others"):
        evaluate(folder / "without", str(folder / "synsets"))
    write_tree(tmp_path / "val", per_class=3)
    (tmp_path / "val" / "cat").rename(tmp_path / "val" / "n00000001")
    with pytest.raises(ShiftViTError, match="'n00000001'"):
        evaluate(folder / "model", str(tmp_path))
