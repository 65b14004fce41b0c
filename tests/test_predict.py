"""`Predictor`: the same results as `evaluate` for every source, runtime and batch size; failures keep their place."""

from __future__ import annotations

import dataclasses
import io
import itertools
import multiprocessing
import re
import threading
from pathlib import Path

import numpy as np
import pytest
from PIL import Image
from scipy.special import softmax

from sample import load_sample
from shiftvit import Bundle, Embedder, Predictor, Preprocess, ShiftViT, ShiftViTError
from shiftvit.data.batches.pictures import read_picture
from shiftvit.data.decode.images import decode
from shiftvit.evaluation.evaluate import evaluate
from shiftvit.evaluation.logits import predict_logits
from shiftvit.evaluation.metrics import measure
from shiftvit.inference.predict import Failure
from threads import answer_together


@pytest.fixture
def files(images, tmp_path):
    paths = []
    for index, image in enumerate(images[:40]):
        paths.append(tmp_path / f"{index:03}.png")
        Image.fromarray(image).save(paths[-1])
    return paths


def stack(predictions):
    """Returns the probabilities of all predictions, (N, C)."""
    return np.stack([prediction.probabilities for prediction in predictions])


@pytest.mark.slow
@pytest.mark.parametrize("runtime", ["onnxruntime", "openvino", "keras"])
def test_every_runtime_predicts_the_same_as_evaluate(runtime, images):
    labels = load_sample().test.labels
    bundle = Bundle.load("cifar10")
    logits = predict_logits(bundle.build(), images, bundle.preprocess)
    predictor = Predictor.from_pretrained("cifar10", runtime=runtime)
    assert predictor.runtime == runtime
    found = predictor(images)
    predicted = np.array([predictor.labels.index(prediction.label) for prediction in found])
    np.testing.assert_array_equal(predicted, logits.argmax(axis=1))
    assert (predicted == labels).mean() == measure(logits, labels)["top1"]
    assert bundle.temperature != 1
    np.testing.assert_allclose(stack(found), softmax(logits / bundle.temperature, axis=1), atol=1e-4)


def test_model_that_resizes_predicts_the_same_as_evaluate(tmp_path):
    preprocess = Preprocess(resize=20, crop=16, crop_position="center", mean=120.0, std=60.0)
    model = ShiftViT((16, 16, 3), num_classes=3, embed_dim=24, depths=(1, 1))
    bundle = Bundle.from_model(model, ("a", "b", "c"), preprocess)
    bundle.save(tmp_path / "bundle")
    pictures = np.random.default_rng(0).integers(0, 256, (9, 33, 47, 3), np.uint8)
    found = Predictor.from_pretrained(tmp_path / "bundle")(pictures)
    np.testing.assert_allclose(stack(found), softmax(predict_logits(model, pictures, preprocess), axis=1), atol=1e-6)


def test_attributes_of_a_prediction(predictor, images):
    (prediction,) = predictor(images[0], top_k=4)
    assert prediction.path == "image 1"
    assert prediction.probabilities.shape == (10,)
    assert prediction.probabilities.sum() == pytest.approx(1, abs=1e-5)
    assert prediction.top[0] == (prediction.label, prediction.confidence)
    ranked = sorted(prediction.probabilities.tolist(), reverse=True)
    assert [share for _, share in prediction.top] == pytest.approx(ranked[:4])
    assert prediction.probabilities[predictor.labels.index(prediction.label)] == prediction.confidence
    assert len(predictor(images[0], top_k=99)[0].top) == 10


def test_of_equal_probabilities_the_first_class_is_first(predictor):
    prediction = predictor._make_prediction("x", np.full(10, 0.1, np.float32), 3)
    assert [label for label, _ in prediction.top] == list(predictor.labels[:3])


def test_every_kind_of_source_gives_the_same_result(predictor, files, images):
    content = files[0].read_bytes()
    with Image.open(io.BytesIO(content)) as opened:
        opaque = np.dstack([images[0], np.full((32, 32), 255, np.uint8)])
        found = predictor([files[0], str(files[0]), content, images[0], opened, opaque])
    assert [prediction.path for prediction in found] == [str(files[0])] * 2 + [f"image {n}" for n in range(3, 7)]
    assert len({prediction.probabilities.tobytes() for prediction in found}) == 1
    for single in (str(files[0]), content, images[0]):
        np.testing.assert_allclose(stack(predictor(single)), stack(found[:1]), atol=1e-6)
    grey = images[0][..., 0]
    np.testing.assert_array_equal(stack(predictor(grey)), stack(predictor(np.dstack([grey] * 3))))
    assert predictor([]) == []


@pytest.mark.parametrize(("batch_size", "threads"), [(1, 1), (7, 2), (64, 4)])
def test_order_and_results_do_not_depend_on_batch_size_and_threads(predictor, files, images, batch_size, threads):
    found = list(predictor.stream(files, batch_size=batch_size, threads=threads))
    assert [prediction.path for prediction in found] == [str(path) for path in files]
    np.testing.assert_allclose(stack(found), stack(predictor(images[:40])), atol=1e-5)


def test_photographs_of_any_size_are_resized_and_cropped(predictor, images):
    """The shorter side becomes 32 pixels, antialiased as Pillow does it, and the centre is cropped."""
    tiles = np.concatenate(images[:12].reshape(3, 4, 32, 32, 3).transpose(0, 2, 1, 3, 4).reshape(3, 32, 128, 3))
    theirs = np.asarray(Image.fromarray(tiles).resize((42, 32), Image.Resampling.BILINEAR))[:, 5:37]
    np.testing.assert_allclose(predictor.metadata.preprocess.pixels(tiles[None])[0], theirs, atol=1)
    np.testing.assert_allclose(stack(predictor(tiles)), stack(predictor(theirs)), atol=0.05)


def test_bad_images_become_failures_at_their_position(predictor, files, tmp_path):
    (tmp_path / "text.jpg").write_text("no image")
    sources = [files[0], tmp_path / "text.jpg", np.zeros((2, 2), np.float32), b"", tmp_path / "gone.png", 7, files[1]]
    found = list(predictor.stream(sources, batch_size=2))
    assert [isinstance(result, Failure) for result in found] == [False, True, True, True, True, True, False]
    for result in found[1:-1]:
        assert result.path in result.error
        assert "\n" not in result.error
    with pytest.raises(ShiftViTError, match=r"text\.jpg"):
        predictor(sources)


def test_stream_of_failures_only_is_lazy(predictor):
    found = list(itertools.islice(predictor.stream(itertools.repeat(b"x"), batch_size=2), 1000))
    assert all(isinstance(result, Failure) for result in found)


def test_sources_are_read_as_needed(predictor, images):
    taken = 0

    def endless():
        nonlocal taken
        while True:
            taken += 1
            yield images[taken % 100]

    stream = predictor.stream(endless(), batch_size=16, threads=2)
    for _ in range(100):
        next(stream)
    assert taken < 400
    stream.close()
    assert not [thread for thread in threading.enumerate() if thread.name.startswith("decode")]


@pytest.mark.parametrize("setting", [{"top_k": 0}, {"batch_size": 0}, {"threads": 0}])
def test_settings_out_of_range_fail(predictor, setting):
    (name,) = setting
    with pytest.raises(ShiftViTError, match=f"{name}=0 must be at least 1"):
        predictor.stream([], **setting)


def test_threads_can_share_a_predictor(predictor, images):
    assert answer_together(lambda part: stack(predictor(part)), images[:16]) < 1e-5


@pytest.mark.slow
def test_predictor_can_be_sent_to_a_worker_process(predictor, files):
    """The predictor is pickled on the way there, the predictions on the way back."""
    with multiprocessing.get_context("spawn").Pool(1) as pool:
        (found,) = pool.map(predictor, [files[:5]])
    assert [prediction.path for prediction in found] == [str(path) for path in files[:5]]
    np.testing.assert_allclose(stack(found), stack(predictor(files[:5])), atol=1e-6)


@pytest.mark.parametrize("kind", [Predictor, Embedder])
def test_nan_in_the_probabilities_fails(kind, tmp_path):
    model = ShiftViT((16, 16, 3), num_classes=3, embed_dim=24, depths=(1, 1))
    bundle = Bundle.from_model(model, ("a", "b", "c"), Preprocess())
    bundle.save(tmp_path / "good")
    for value in bundle.weights.values():
        value[...] = np.nan
    bundle.save(tmp_path / "bad")
    pictures = np.zeros((3, 16, 16, 3), np.uint8)
    assert len(kind.from_pretrained(tmp_path / "good")(pictures)) == 3
    bad = kind.from_pretrained(tmp_path / "bad")
    message = rf"the model '{tmp_path}/bad' returns NaN or infinity for 'image 1'; its weights"
    for ask in (bad, lambda images: next(bad.stream(images))):
        with pytest.raises(ShiftViTError, match=message):
            ask(pictures)


def test_large_photograph_is_decoded_like_for_evaluation(tmp_path: Path) -> None:
    """Both decode it at a quarter of its size, which is several times faster, and see the same pixels."""
    coarse = np.random.default_rng(0).integers(0, 256, (16, 20, 3), np.uint8)
    photo = Image.fromarray(coarse).resize((1600, 1280), Image.Resampling.BICUBIC)
    photo.save(tmp_path / "photo.jpg", quality=90)
    predictor = Predictor.from_pretrained("cifar10")
    rule = predictor.metadata.preprocess
    seen = read_picture(str(tmp_path / "photo.jpg"), rule)
    (found,) = predictor([tmp_path / "photo.jpg"])
    np.testing.assert_array_equal(found.probabilities, predictor([seen])[0].probabilities)
    whole = rule.pixels(decode(tmp_path / "photo.jpg")[None])[0]
    assert 0 < np.abs(whole.astype(float) - seen).mean() < 1


@pytest.mark.parametrize("sizes", [{}, {"resize": 20, "crop": 16, "round_pixels": False}])
def test_model_of_a_bundle_matches_the_predictor(tmp_path, sizes):
    """With a temperature, images of another size than the model takes, and pixels that are not rounded."""
    model = ShiftViT((16, 16, 3), num_classes=3, embed_dim=24, depths=(1, 1))
    bundle = Bundle.from_model(model, ("a", "b", "c"), Preprocess(mean=120.0, std=60.0, **sizes))
    bundle = dataclasses.replace(bundle, temperature=0.25)
    bundle.save(tmp_path / "model")
    images = np.random.default_rng(0).integers(0, 256, (5, 30, 40, 3), np.uint8)
    found = bundle.probabilities(bundle.build().predict_on_batch(bundle.prepare(images)))
    answers = Predictor.from_pretrained(tmp_path / "model", runtime="keras")(images)
    np.testing.assert_allclose(found, [answer.probabilities for answer in answers], atol=1e-6)
    assert found.dtype == np.float32
    np.testing.assert_allclose(found.sum(axis=1), 1, atol=1e-5)


def test_nan_fails_an_evaluation(tmp_path):
    bundle = Bundle.from_model(
        ShiftViT((16, 16, 3), num_classes=2, embed_dim=24, depths=(1, 1)), ("a", "b"), Preprocess()
    )
    for value in bundle.weights.values():
        value[...] = np.nan
    bundle.save(tmp_path / "bad")
    for label in "ab":
        (tmp_path / "data" / label).mkdir(parents=True)
        Image.new("RGB", (16, 16)).save(tmp_path / "data" / label / "x.png")
    message = f"the model '{tmp_path / 'bad'}' returns NaN or infinity for '{tmp_path / 'data' / 'a' / 'x.png'}'"
    with pytest.raises(ShiftViTError, match=re.escape(message)):
        evaluate(tmp_path / "bad", str(tmp_path / "data"), out=tmp_path / "out")
    assert not (tmp_path / "out").exists()
