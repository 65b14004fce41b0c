"""A bundle is data: what is damaged, foreign or newer is refused in one line, and nothing in it is executed."""

from __future__ import annotations

import json

import numpy as np
import pytest

from shiftvit import Bundle, Preprocess, ShiftViT, ShiftViTError
from shiftvit.bundle import MANIFEST, WEIGHTS


@pytest.fixture
def model():
    return ShiftViT((16, 16, 3), num_classes=3, embed_dim=24, depths=(1, 1), norm="batch")


@pytest.fixture
def folder(model, tmp_path):
    preprocess = Preprocess(resize=20, crop=16, mean=(1.0, 2.0, 3.0), std=(50.0, 60.0, 70.0))
    return Bundle.from_model(model, ("a", "b", "c"), preprocess, {"test": {"top1": 0.5}}).save(tmp_path / "bundle")


def manifest(folder, **changes):
    tree = json.loads((folder / MANIFEST).read_text()) | changes
    (folder / MANIFEST).write_text(json.dumps(tree))


def test_what_is_loaded_is_what_was_saved(model, folder):
    loaded = Bundle.load(folder)
    assert loaded.labels == ("a", "b", "c")
    assert loaded.preprocess.mean == (1.0, 2.0, 3.0)
    assert loaded.metrics == {"test": {"top1": 0.5}}
    assert loaded.config == model.settings
    images = np.random.default_rng(0).normal(size=(2, 16, 16, 3)).astype(np.float32)
    np.testing.assert_array_equal(loaded.build().predict_on_batch(images), model.predict_on_batch(images))
    loaded.save(folder)  # over itself
    assert Bundle.load(folder).labels == loaded.labels
    assert sorted(path.name for path in folder.iterdir()) == sorted([MANIFEST, WEIGHTS])
    assert sorted(path.name for path in folder.parent.iterdir()) == [folder.name]


@pytest.mark.parametrize("size", [0, 7, 100, -1])
def test_a_truncated_weights_file(folder, size):
    path = folder / WEIGHTS
    path.write_bytes(path.read_bytes()[:size])
    with pytest.raises(ShiftViTError, match="is damaged"):
        Bundle.load(folder)


def test_a_flipped_bit(folder):
    content = bytearray((folder / WEIGHTS).read_bytes())
    content[-5] ^= 1
    (folder / WEIGHTS).write_bytes(content)
    with pytest.raises(ShiftViTError, match="is damaged"):
        Bundle.load(folder)


def test_manifests_that_are_none(folder):
    manifest(folder, format=2)
    with pytest.raises(ShiftViTError, match="has format 2 and this shiftvit reads up to 1; update"):
        Bundle.load(folder)
    manifest(folder, format=1, surprise=1)
    with pytest.raises(ShiftViTError, match="surprise"):
        Bundle.load(folder)
    (folder / MANIFEST).write_text("[1, 2]")
    with pytest.raises(ShiftViTError, match="is no valid bundle"):
        Bundle.load(folder)
    (folder / MANIFEST).write_text("{")
    with pytest.raises(ShiftViTError, match="cannot be read"):
        Bundle.load(folder)


def test_weights_of_another_configuration(folder):
    tree = json.loads((folder / MANIFEST).read_text())
    manifest(folder, model={**tree["model"], "embed_dim": 48})
    with pytest.raises(ShiftViTError, match="do not fit its own model configuration"):
        Bundle.load(folder).build()


def test_files_outside_the_bundle_are_never_named(folder):
    manifest(folder, files={"../../etc/passwd": "0" * 64})
    with pytest.raises(ShiftViTError, match="lists the files"):
        Bundle.load(folder)


def test_places_without_a_bundle(tmp_path, folder):
    with pytest.raises(ShiftViTError, match="does not exist"):
        Bundle.load(tmp_path / "nowhere")
    (tmp_path / "empty").mkdir()
    with pytest.raises(ShiftViTError, match="is no bundle and holds none"):
        Bundle.load(tmp_path / "empty")
    bundle = Bundle.load(folder)
    with pytest.raises(ShiftViTError, match="is not replaced"):
        bundle.save(tmp_path / "empty")
    (tmp_path / "file").write_text("x")
    with pytest.raises(ShiftViTError, match=r"cannot write|is not replaced"):
        bundle.save(tmp_path / "file" / "bundle")
