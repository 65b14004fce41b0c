"""A linear head on features: it matches scikit-learn, leaves an ordinary run, and computes features only once."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image
from sklearn.linear_model import LogisticRegression

from sample import write_tree
from shiftvit import Bundle, Embedder, Predictor, Preprocess, Recipe, ShiftViT, ShiftViTError, evaluate, train
from shiftvit.config import ProbeConfig
from shiftvit.evaluation.logits import predict_logits
from shiftvit.evaluation.report import write_report
from shiftvit.training import features as feature_files
from shiftvit.training import probe
from shiftvit.training.features import FeatureReader, Store
from shiftvit.training.probe import fit_head
from shiftvit.training.rate_finder import find_rate
from tensors import set_random_weights

pytestmark = pytest.mark.usefixtures("plain_figures")


@pytest.fixture(autouse=True)
def _own_cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("SHIFTVIT_CACHE", str(tmp_path / "cache"))
    monkeypatch.setenv("SHIFTVIT_DATA", str(tmp_path / "data"))


@pytest.fixture
def pets(tmp_path: Path) -> Path:
    return write_tree(tmp_path / "pets")


@pytest.fixture
def source(tmp_path: Path) -> Path:
    model = ShiftViT((20, 20, 3), num_classes=4, patch_size=4, embed_dim=24, depths=(1, 1), norm="layer")
    set_random_weights(model)
    path = tmp_path / "source"
    Bundle.from_model(model, tuple("abcd"), Preprocess(resize=24, crop=20, mean=120.0, std=60.0)).save(path)
    return path


def run_probe(out: Path, pets: Path, **changes: Any) -> Any:
    return train("probe", out=out, **{"data.name": str(pets), "data.validation": 0.2, **changes})


def make_random_features(classes: int, count: int = 120, seed: int = 0) -> tuple[np.ndarray, np.ndarray]:
    """Returns features of very different means and spreads, one of them constant, that depend on the class."""
    generator = np.random.default_rng(seed)
    labels = np.arange(count) % classes
    features = generator.normal(size=(count, 20)) + np.random.default_rng(9).normal(size=(classes, 20))[labels]
    features = features * 10.0 ** np.linspace(-2, 2, 20) + np.linspace(-5, 5, 20)
    features[:, 7] = 3.0
    return features.astype(np.float32), labels


@pytest.mark.parametrize("classes", [2, 3, 7])
def test_head_matches_scikit_learn(classes: int) -> None:
    features, labels = make_random_features(classes)
    found = fit_head(features, labels, ProbeConfig(strengths=(0.1,)), None)
    mean, spread = features.mean(axis=0, dtype=np.float64), features.std(axis=0, dtype=np.float64)
    spread[7] = 1
    scaled = (features - mean) / spread
    expected = LogisticRegression(C=0.1, max_iter=1000).fit(scaled, labels)
    logits = found.compute_logits(features)
    decided = expected.decision_function(scaled)
    if classes == 2:
        np.testing.assert_allclose(logits[:, 1] - logits[:, 0], decided, atol=1e-4)
    else:
        centred = logits - logits.mean(axis=1, keepdims=True)
        np.testing.assert_allclose(centred, decided - decided.mean(axis=1, keepdims=True), atol=1e-4)
    exponents = np.exp(logits - logits.max(axis=1, keepdims=True))
    np.testing.assert_allclose(
        exponents / exponents.sum(axis=1, keepdims=True), expected.predict_proba(scaled), atol=1e-4
    )


def test_strength_is_chosen_on_validation_images() -> None:
    features, labels = make_random_features(3, 60)
    other, truth = make_random_features(3, 300, seed=1)
    strengths = (1e-5, 1e-3, 1e-1, 1e3)
    found = fit_head(features, labels, ProbeConfig(strengths=strengths), (other, truth))
    assert [row["strength"] for row in found.rows] == sorted(strengths)
    best = max(found.rows, key=lambda row: (row["val_top1"], -row["val_loss"]))
    assert found.strength == best["strength"]
    assert (found.compute_logits(other).argmax(axis=1) == truth).mean() == best["val_top1"]
    alone = fit_head(features, labels, ProbeConfig(strengths=(best["strength"],)), None)
    np.testing.assert_allclose(alone.compute_logits(other), found.compute_logits(other), atol=0.05)


@pytest.mark.slow
def test_probe_leaves_an_ordinary_run(
    tmp_path: Path, pets: Path, source: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    (pets / "cat" / "broken.jpg").write_bytes(b"no picture")
    run = run_probe(tmp_path / "run", pets, **{"start.source": str(source)})
    errors = capfd.readouterr().err
    assert "broken.jpg" in errors
    assert "features of 60 images: " in errors
    assert "images/s" in errors
    assert run.recipe.preprocess.crop == 20
    assert Recipe.load(run.path / "recipe.toml") == run.recipe
    bundle = run.bundle
    assert bundle.labels == ("cat", "dog", "ship")
    before = Bundle.load(source).weights
    for path, value in bundle.weights.items():
        if not path.startswith("head/"):
            np.testing.assert_array_equal(value, before[path], err_msg=path)
    rows = [json.loads(line) for line in (run.path / "log.jsonl").read_text("utf-8").splitlines()]
    assert [row["strength"] for row in rows] == list(run.recipe.probe.strengths)
    assert run.metrics["train"]["strength"] in run.recipe.probe.strengths
    found = evaluate(run.path, keep=True)
    for key in ("top1", "loss", "n"):
        assert found[key] == pytest.approx(run.metrics["test"][key], abs=1e-4)
    assert found["own_test"]
    assert "logistic regression" in bundle.card
    assert "Batch size" not in bundle.card
    page = write_report(run.path).read_text("utf-8")
    assert "a head on features of 42 images" in page
    assert Predictor.from_pretrained(run.path)(str(pets / "cat" / "000.png"))[0].label in bundle.labels
    np.testing.assert_allclose(
        Embedder.from_pretrained(run.path)(str(pets / "cat" / "000.png")),
        Embedder.from_pretrained(source)(str(pets / "cat" / "000.png")),
        atol=1e-5,
    )
    with pytest.raises(ShiftViTError, match="is complete"):
        train(resume=run.path)


@pytest.mark.slow
def test_logits_of_the_run_match_its_head_on_features(tmp_path: Path, pets: Path) -> None:
    """The features of the packaged model come from its graph."""
    heads: list[Any] = []
    fit = probe.fit_head

    def record_head(*arguments: Any) -> Any:
        heads.append((arguments[0], fit(*arguments)))
        return heads[-1][1]

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(probe, "fit_head", record_head)
        run = run_probe(tmp_path / "run", pets, **{"start.source": "cifar10"})
    ((features, head),) = heads
    assert features.shape[1] == 256
    rows = (run.path / "splits.csv").read_text("utf-8").splitlines()[1:]
    paths = [str(pets / row.split(",")[1]) for row in rows if row.startswith("train,")]
    model, rule = run.bundle.build("float32"), run.recipe.preprocess
    images = np.stack([rule.pixels(np.asarray(Image.open(path).convert("RGB"))[None])[0] for path in paths])
    uncropped = rule.model_copy(update={"resize": None, "crop": None})
    np.testing.assert_allclose(
        predict_logits(model, images, uncropped), head.compute_logits(features), atol=1e-4, rtol=1e-4
    )


@pytest.mark.slow
def test_second_run_takes_features_from_the_cache(
    tmp_path: Path, pets: Path, source: Path, capfd: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    first = run_probe(tmp_path / "first", pets, **{"start.source": str(source)})
    again = tmp_path / "moved"
    pets.rename(again)  # the cache goes by content
    capfd.readouterr()

    def fail(*_: Any) -> Any:
        raise AssertionError("decoded or computed again")

    with monkeypatch.context() as patch:
        patch.setattr(feature_files, "read_picture", fail)
        patch.setattr(probe, "load_keras_features", fail)
        second = run_probe(tmp_path / "second", again, **{"start.source": str(source)})
    assert "60 from the cache" in capfd.readouterr().err
    assert {**second.metrics, "train": None} == {**first.metrics, "train": None}
    for path, value in second.bundle.weights.items():
        np.testing.assert_array_equal(value, first.bundle.weights[path])
    # The features of another picture, size or model are computed.
    Image.new("RGB", (50, 50), (9, 8, 7)).save(again / "cat" / "new.png")
    run_probe(tmp_path / "third", again, **{"start.source": str(source)})
    assert "61 images (60 from the cache)" in capfd.readouterr().err
    run_probe(tmp_path / "fourth", again, **{"start.source": str(source), "preprocess.crop": 16})
    assert "from the cache" not in capfd.readouterr().err
    bundle = Bundle.load(source)
    bundle.weights["stage1_block1/mlp/fc1/kernel"][0, 0] += 1
    bundle.save(source)
    run_probe(tmp_path / "fifth", again, **{"start.source": str(source)})
    assert "from the cache" not in capfd.readouterr().err


@pytest.mark.slow
def test_interrupted_probe_resumes(
    tmp_path: Path, pets: Path, source: Path, capfd: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    compute, count = feature_files.FeatureReader._compute, 0

    def stop_in_second_batch(self: Any, waiting: Any, rows: Any) -> None:
        nonlocal count
        compute(self, waiting, rows)
        count += 1
        if count == 2:
            raise KeyboardInterrupt

    monkeypatch.setattr(feature_files, "choose_batch_size", lambda *_: 7)
    with monkeypatch.context() as patch:
        patch.setattr(feature_files.FeatureReader, "_compute", stop_in_second_batch)
        with pytest.raises(KeyboardInterrupt):
            run_probe(tmp_path / "run", pets, **{"start.source": str(source)})
    assert not (tmp_path / "run").exists()
    assert "the features of 14 images are cached" in capfd.readouterr().err

    def interrupt(*_: Any) -> Any:
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr(probe, "fit_head", interrupt)
        with pytest.raises(KeyboardInterrupt):
            run_probe(tmp_path / "run", pets, **{"start.source": str(source)})
    assert "14 from the cache" in capfd.readouterr().err
    resumed = train(resume=tmp_path / "run")
    assert "60 from the cache" in capfd.readouterr().err
    whole = run_probe(tmp_path / "whole", pets, **{"start.source": str(source)})
    assert {**resumed.metrics, "train": None} == {**whole.metrics, "train": None}


def test_feature_store_survives_damage(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    store = Store("model")
    digests = [bytes([number]) * 32 for number in range(5)]
    store.add(digests[:3], np.ones((3, 4), np.float32))
    store.save()
    store.add(digests[3:], np.zeros((2, 4), np.float32))
    store.save()
    parts = sorted(store.folder.iterdir())
    assert len(parts) == 2
    assert Store("another").get(digests[0]) is None
    again = Store("model")
    assert [again.get(digest).sum() for digest in digests] == [4, 4, 4, 0, 0]
    content = bytearray(parts[0].read_bytes())
    content[-1] ^= 1
    parts[0].write_bytes(bytes(content))
    parts[1].write_bytes(parts[1].read_bytes()[:-3])
    assert all(Store("model").get(digest) is None for digest in digests)
    assert not list(store.folder.iterdir())
    monkeypatch.setenv("SHIFTVIT_CACHE", str(tmp_path / "file"))
    (tmp_path / "file").write_text("no folder")
    blocked = Store("model")
    blocked.add(digests[:1], np.ones((1, 4), np.float32))
    blocked.save()
    assert blocked.get(digests[0]) is not None


def test_damaged_store_that_cannot_be_changed_is_no_obstacle(monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(*_: Any, **__: Any) -> None:
        raise PermissionError(13, "Permission denied")

    store = Store("model")
    store.add([bytes(32)], np.ones((1, 4), np.float32))
    store.save()
    (part,) = store.folder.iterdir()
    part.write_bytes(part.read_bytes()[:-3])
    monkeypatch.setattr(Path, "unlink", refuse)
    assert Store("model").get(bytes(32)) is None


@pytest.mark.slow
def test_validation_images_that_replace_test_images_count_once(
    tmp_path: Path, pets: Path, source: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(FeatureReader, "seconds", property(lambda _: 2.0, lambda *_: None), raising=False)
    changes = {"start.source": str(source), "data.test": 0, "probe.strengths": "[1.0]"}
    run = run_probe(tmp_path / "run", pets, **changes)
    assert run.metrics["train"]["images_per_second"] == 60 / 2


@pytest.mark.slow
@pytest.mark.parametrize(("step", "missing"), [(2, "class '1'"), (3, "classes '1' and '2'")])
def test_class_without_training_images_is_named(step: int, missing: str, tmp_path: Path, source: Path) -> None:
    images = np.random.default_rng(0).integers(0, 256, (40, 24, 24, 3), np.uint8)
    np.savez(tmp_path / "own.npz", images=images, labels=np.arange(40) % 2 * step)
    with pytest.raises(ShiftViTError, match=f"a probe cannot learn the {missing} without training images; add some"):
        run_probe(tmp_path / "run", tmp_path / "own.npz", **{"start.source": str(source)})
    assert not (tmp_path / "run").exists()


@pytest.mark.slow
def test_probe_on_arrays_with_official_weights(tmp_path: Path) -> None:
    generator = np.random.default_rng(0)
    images = generator.integers(0, 256, (60, 32, 32, 3), np.uint8)
    images[::2, :, :, 0] //= 4
    np.savez(tmp_path / "own.npz", images=images, labels=np.arange(60) % 2)
    golden = Path(__file__).parent / "golden" / "official_gn1.npz"
    with np.load(golden) as reference:
        stored = json.loads(str(reference["config"]))
    fields = {"embed_dim": "embed_dim", "depths": "depths", "mlp_ratio": "mlp_ratio", "num_div": "n_div"}
    settings = {f"model.{ours}": stored[theirs] for ours, theirs in fields.items()}
    settings |= {"model.activation": stored["act_layer"].lower(), "start.source": str(golden), "preprocess.crop": 32}
    run = run_probe(tmp_path / "run", tmp_path / "own.npz", **settings)
    assert run.metrics["test"]["top1"] == 1
    assert evaluate(run.path)["top1"] == 1


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"train.epochs": 3}, "train.epochs=3 has no effect on a probe"),
        ({"augment.pad": 4}, "augment.pad=4 has no effect on a probe"),
        ({"start.source": "none"}, "start.source is not set"),
        ({"data.test": 0}, "set one strength"),
        ({"probe.strengths": "[]"}, "probe.strengths"),
        ({"probe.strengths": "[0.0]"}, "probe.strengths"),
        ({"probe.strenghts": "[1.0]"}, "did you mean 'probe.strengths'"),
    ],
)
def test_unsuitable_settings_are_refused(changes: dict[str, Any], message: str) -> None:
    with pytest.raises(ShiftViTError, match=message) as caught:
        Recipe.load("probe", **changes)
    assert "\n" not in str(caught.value)


def test_finding_a_rate_is_refused() -> None:
    with pytest.raises(ShiftViTError, match="has no learning rate"):
        find_rate(Recipe.load("probe"))


def test_probe_has_no_epochs_for_tensorboard(tmp_path: Path) -> None:
    with pytest.raises(
        ShiftViTError, match="--tensorboard logs the epochs of a run, and the recipe probe has none; leave"
    ):
        train("probe", out=tmp_path / "run", tensorboard=True)
    assert not (tmp_path / "run").exists()


def test_choice_by_training_images_is_reported(
    tmp_path: Path, pets: Path, source: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    settings = {"start.source": str(source), "data.validation": 0}
    run_probe(tmp_path / "several", pets, **settings)
    assert "C (probe.strengths) is chosen on the training images" in capfd.readouterr().err
    run_probe(tmp_path / "one", pets, **settings, **{"probe.strengths": [0.1]})
    assert "chosen on" not in capfd.readouterr().err
