"""The file of `evaluate --logits`: what it holds, and the comparison of two models in docs/training.md."""

from __future__ import annotations

import dataclasses
import json
import re
from math import comb
from pathlib import Path

import numpy as np
import pytest
from scipy.special import softmax

from sample import load_sample, write_tree
from shiftvit import Bundle, Predictor, ShiftViTError, evaluate
from shiftvit.data import named
from shiftvit.evaluation.logits import write_logits

pytestmark = pytest.mark.usefixtures("plain_figures")

DOCUMENT = Path(__file__).parents[1] / "docs" / "training.md"


@pytest.fixture(scope="module")
def tree(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """36 pictures, one of which cannot be decoded."""
    root = write_tree(tmp_path_factory.mktemp("data") / "pets", 12)
    (root / "dog" / "001.jpg").write_bytes(b"no picture")
    return root


def read(path: Path) -> dict[str, np.ndarray]:
    with np.load(path, allow_pickle=False) as arrays:
        return dict(arrays)


@pytest.mark.slow
def test_file_of_a_folder_has_paths_in_order_and_the_predictors_answers(tree: Path, tmp_path: Path) -> None:
    out, file = tmp_path / "out", tmp_path / "x.NPZ"
    file.write_bytes(b"earlier")
    evaluate("cifar10", str(tree), out=out, logits=str(file))
    found, report = read(file), json.loads((out / "evaluation.json").read_text("utf-8"))
    assert {key: (value.dtype.kind, value.shape) for key, value in found.items()} == {
        "logits": ("f", (35, 10)),
        "labels": ("i", (35,)),
        "classes": ("U", (10,)),
        "paths": ("U", (35,)),
    }
    assert (found["logits"].dtype, found["labels"].dtype) == (np.float32, np.int64)
    paths = found["paths"].tolist()
    assert paths == [str(path) for path in sorted(tree.rglob("*.*")) if path.read_bytes() != b"no picture"]
    assert [Path(path).parent.name for path in paths] == found["classes"][found["labels"]].tolist()
    assert np.mean(found["logits"].argmax(axis=1) == found["labels"]) == report["top1"]
    expected = np.stack([answer.probabilities for answer in Predictor.from_pretrained("cifar10")(paths)])
    np.testing.assert_allclose(softmax(found["logits"] / report["temperature"], axis=1), expected, atol=1e-4)
    assert sorted(entry.name for entry in tmp_path.iterdir()) == ["out", "x.NPZ"]


@pytest.mark.slow
def test_images_without_paths_have_an_index(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    sample = load_sample()
    monkeypatch.setitem(named._LOADERS, "cifar10", lambda: sample)
    report = evaluate("cifar10", logits=tmp_path / "x.npz")
    found = read(tmp_path / "x.npz")
    assert found.keys() == {"logits", "labels", "classes", "index"}
    np.testing.assert_array_equal(found["index"], np.arange(len(sample.test)))
    np.testing.assert_array_equal(found["labels"], sample.test.labels)
    assert found["classes"].tolist() == list(sample.class_names)
    assert np.mean(found["logits"].argmax(axis=1) == found["labels"]) == report["top1"]


def test_failed_write_leaves_the_earlier_file(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    def fill(file: object, **_: object) -> None:
        file.write(b"half")  # type: ignore[attr-defined]
        raise OSError(28, "No space left on device")

    (tmp_path / "x.npz").write_bytes(b"earlier")
    monkeypatch.setattr(np, "savez", fill)
    test = load_sample().test
    with pytest.raises(ShiftViTError, match=r"cannot write '.*x\.npz': No space left on device; free space"):
        write_logits(tmp_path / "x.npz", np.zeros((len(test), 10), np.float32), test, list("abcdefghij"))
    assert (tmp_path / "x.npz").read_bytes() == b"earlier"
    assert [entry.name for entry in tmp_path.iterdir()] == ["x.npz"]


def test_the_data_are_not_overwritten(tmp_path: Path) -> None:
    sample = load_sample()
    file = tmp_path / "pets.npz"
    names = np.array(sample.class_names)
    np.savez(file, images=sample.test.images[:20], labels=sample.test.labels[:20], class_names=names)
    before = file.read_bytes()
    with pytest.raises(ShiftViTError, match="is also read here, and would be overwritten; name another file"):
        evaluate("cifar10", str(file), logits=file)
    assert file.read_bytes() == before


@pytest.fixture(scope="module")
def noisy(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The packaged model with noise on its weights, which makes it less accurate."""
    bundle, rng = Bundle.load("cifar10"), np.random.default_rng(0)
    weights = {name: value + rng.normal(0, 0.3 * value.std(), value.shape) for name, value in bundle.weights.items()}
    weights = {name: value.astype(np.float32) for name, value in weights.items()}
    return dataclasses.replace(bundle, weights=weights, graph=None).save(tmp_path_factory.mktemp("noisy") / "model")


@pytest.mark.slow
@pytest.mark.parametrize("kind", ["folder", "arrays"])
def test_documented_comparison_of_two_models(kind, tree, noisy, monkeypatch, tmp_path) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setitem(named._LOADERS, "cifar10", load_sample)
    section = DOCUMENT.read_text("utf-8").split("\n### Comparing two models\n")[1].split("\n## ")[0]
    (code,) = re.findall(r"```python\n(.*?)```", section, flags=re.DOTALL)
    data = str(tree) if kind == "folder" else "cifar10"
    tops = [evaluate(model, data, logits=f"{name}.npz")["top1"] for model, name in (("cifar10", "one"), (noisy, "two"))]
    names: dict[str, object] = {}
    exec(compile(code, DOCUMENT.name, "exec"), names)
    assert names["difference"] == pytest.approx(tops[0] - tops[1])
    one, two = (read(tmp_path / f"{name}.npz") for name in ("one", "two"))
    hits = [found["logits"].argmax(axis=1) == found["labels"] for found in (one, two)]
    b, c = (int(np.sum(hits[first] & ~hits[1 - first])) for first in (0, 1))
    assert b + c > 4
    tail = sum(comb(b + c, k) for k in range(min(b, c) + 1)) / 2 ** (b + c)
    assert names["p"] == pytest.approx(min(1, 2 * tail))
    # A model that is compared with itself.
    (tmp_path / "two.npz").write_bytes((tmp_path / "one.npz").read_bytes())
    exec(compile(code, DOCUMENT.name, "exec"), names)
    assert (names["difference"], names["p"]) == (0, 1)
    # Other images, or others' labels.
    key = "paths" if kind == "folder" else "index"
    for changed, message in ((key, "not the same images"), ("labels", "not the same labels")):
        np.savez(tmp_path / "two.npz", **{**one, changed: one[changed][::-1]})
        with pytest.raises(AssertionError, match=message):
            exec(compile(code, DOCUMENT.name, "exec"), names)
