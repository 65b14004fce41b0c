"""A whole evaluation: metrics against scikit-learn, the files that it writes, and the effect of the temperature."""

from __future__ import annotations

import dataclasses
import hashlib
import json
import re
import zipfile
from pathlib import Path

import keras
import numpy as np
import pytest
import scipy
from matplotlib.figure import Figure
from PIL import Image
from scipy.special import softmax
from sklearn.metrics import f1_score, log_loss

from command_line import run
from sample import replace_splits
from shiftvit import Bundle, Predictor, ShiftViTError, evaluate
from shiftvit.bundle.stored.find import PRETRAINED
from shiftvit.data import named
from shiftvit.evaluation.corruptions import CORRUPTIONS
from shiftvit.evaluation.evaluate import REPORT
from shiftvit.evaluation.explain import predict_probabilities
from shiftvit.evaluation.logits import predict_logits


@pytest.fixture
def sample_as_cifar10(monkeypatch, sample):
    """Makes the sample the data set that "cifar10" names."""
    monkeypatch.setattr(named, "_LOADERS", {"cifar10": lambda: sample})


@pytest.fixture(scope="module")
def logits(sample):
    bundle = Bundle.load("cifar10")
    return predict_logits(bundle.build(), sample.test.images, bundle.preprocess)


@pytest.mark.slow
@pytest.mark.usefixtures("sample_as_cifar10")
def test_report_is_correct_and_saved(sample, logits, tmp_path: Path) -> None:
    bundle = dataclasses.replace(Bundle.load("cifar10"), temperature=0.5)
    found = evaluate(bundle, out=tmp_path / "evaluation")
    truth, predicted = sample.test.labels, logits.argmax(axis=1)
    assert found["n"] == len(truth)
    assert found["top1"] == pytest.approx(np.mean(predicted == truth))
    assert found["macro"]["f1"] == pytest.approx(f1_score(truth, predicted, average="macro"))
    assert found["loss"] == pytest.approx(
        log_loss(truth, softmax(logits.astype(float), axis=1), labels=range(10)), rel=1e-4
    )
    low, high = found["intervals"]["top1"]
    assert low < found["top1"] < high
    assert np.trace(found["confusion"]) == np.sum(predicted == truth)
    assert [row["class"] for row in found["classes"]] == list(bundle.labels)
    assert sum(row["support"] for row in found["classes"]) == len(truth)
    # The temperature is applied to all confidences, also to those of the mistakes.
    confidences = softmax(logits / 0.5, axis=1).max(axis=1)
    mean = sum(row["count"] * (row["confidence"] or 0) for row in found["calibration"]["bins"]) / len(truth)
    assert mean == pytest.approx(confidences.mean(), rel=1e-4)
    wrong = np.flatnonzero(predicted != truth)
    assert found["mistakes"][0]["confidence"] == pytest.approx(confidences[wrong].max(), abs=1e-3)
    listed = [row["confidence"] for row in found["mistakes"]]
    assert listed == sorted(listed, reverse=True)
    saved = json.loads((tmp_path / "evaluation" / REPORT).read_text("utf-8"))
    assert {**saved, "folder": found["folder"]} == json.loads(json.dumps(found))
    for name in ("confusion_matrix", "reliability", "mistakes"):
        with Image.open(tmp_path / "evaluation" / f"{name}.png") as image:
            assert min(image.size) > 300


@pytest.mark.slow
@pytest.mark.usefixtures("sample_as_cifar10")
def test_report_names_the_model_and_the_environment(tmp_path: Path) -> None:
    weights = PRETRAINED / "cifar10" / "model.safetensors"
    digest = hashlib.sha256(weights.read_bytes()).hexdigest()
    found = evaluate("cifar10")
    assert found["model"] == {"path": "cifar10", "sha256": digest}
    assert found["environment"]["backend"] == keras.config.backend()
    assert found["environment"]["versions"]["scipy"] == scipy.__version__
    bundle = Bundle.load("cifar10")
    assert evaluate(bundle)["model"] == {"path": None, "sha256": digest}
    packed = bundle.halved().save(tmp_path / "half.zip")
    with zipfile.ZipFile(packed) as archive:
        digest = hashlib.sha256(archive.read("model.safetensors")).hexdigest()
    assert evaluate(packed)["model"] == {"path": str(packed), "sha256": digest}


@pytest.mark.slow
def test_order_of_the_classes_does_not_matter(sample, monkeypatch, sample_as_cifar10) -> None:  # noqa: ARG001
    expected = evaluate("cifar10")
    reverse = np.arange(10)[::-1]
    permuted = replace_splits(sample, test=dataclasses.replace(sample.test, labels=reverse[sample.test.labels]))
    permuted = dataclasses.replace(permuted, class_names=sample.class_names[::-1])
    monkeypatch.setattr(named, "_LOADERS", {"cifar10": lambda: permuted})
    assert evaluate("cifar10")["confusion"] == expected["confusion"]
    other = dataclasses.replace(sample, class_names=("tree", *sample.class_names[1:]))
    monkeypatch.setattr(named, "_LOADERS", {"cifar10": lambda: other})
    with pytest.raises(ShiftViTError, match=r"1 other \('tree'\)"):
        evaluate("cifar10")


@pytest.mark.slow
@pytest.mark.usefixtures("sample_as_cifar10")
def test_corruptions_are_written_drawn_and_printed(monkeypatch, tmp_path: Path) -> None:
    figures = []

    def savefig(self: Figure, path: Path, **_: object) -> None:  # `test_figures_run.py` draws the figure
        figures.append(self)
        Image.new("RGB", (1, 1)).save(path, "PNG")

    monkeypatch.setattr(Figure, "savefig", savefig)
    monkeypatch.setattr("shiftvit.evaluation.robustness._CORRUPTED", 12)
    answer = run("evaluate", "cifar10", "--corruptions", "--out", "out", cwd=tmp_path)
    assert answer.returncode == 0, answer.stderr
    report = json.loads((tmp_path / "out" / REPORT).read_text("utf-8"))
    found, means = report["corruptions"], report["corruption_means"]
    assert [(row["corruption"], row["severity"]) for row in found] == [
        ("none", 0),
        *((name, level) for name in CORRUPTIONS for level in range(1, 6)),
    ]
    assert all(row["n"] == 12 for row in found)
    noise = [row["top1"] for row in found if row["corruption"] == "gaussian_noise"]
    assert found[0]["top1"] > noise[-1]  # the strongest noise lowers the accuracy
    mean = np.mean([row["top1"] for row in found[1:] if row["corruption"] not in ("speckle_noise", "gaussian_blur")])
    assert means["top1"] == pytest.approx(mean)
    axes = next(figure.axes[0] for figure in figures if "corruption" in figure.axes[0].get_title())
    np.testing.assert_allclose(axes.images[0].get_array()[0], noise)
    assert f"mean {mean:.1%} (without: {found[0]['top1']:.1%})" in axes.get_title()
    marked = [label.get_text() for label in axes.get_yticklabels() if label.get_text().endswith("*")]
    assert marked == ["speckle noise *", "gaussian blur *"]
    rows = answer.stdout.decode().partition("Top-1 under corruption, by severity\n")[2].splitlines()
    place = next(number for number, row in enumerate(rows) if "mean of these 15" in row)
    assert re.findall(r"[\d.]+%", rows[place]) == [f"{share:.1%}" for share in means["by_severity"].values()]
    names = [row.split("%")[0].strip().rpartition(" ")[0].strip() for row in rows[place - 1 : place + 3]]
    assert names == ["jpeg_compression", "mean of these 15", "speckle_noise (extra)", "gaussian_blur (extra)"]
    families = ", ".join(f"{name} {means['by_family'][name]:.2%}" for name in ("noise", "blur", "weather", "digital"))
    assert f"mean top-1 over the 15 benchmark corruptions: {means['top1']:.2%} ({families})" in rows


def test_predictions_apply_the_temperature(sample, logits, tmp_path: Path) -> None:
    bundle = dataclasses.replace(Bundle.load("cifar10"), temperature=0.5, graph=None)
    bundle.save(tmp_path / "cool")
    loaded = Bundle.load(tmp_path / "cool")
    assert loaded.temperature == 0.5
    answers = Predictor.from_pretrained(tmp_path / "cool", runtime="keras")(sample.test.images[:8])
    for answer, row in zip(answers, softmax(logits[:8] / 0.5, axis=1), strict=True):
        np.testing.assert_allclose(answer.probabilities, row, atol=1e-4)


def test_explanations_apply_the_temperature(sample, logits) -> None:
    bundle = Bundle.load("cifar10")
    images = bundle.preprocess(sample.test.images[:4])
    answers = predict_probabilities(bundle.build(), images, temperature=0.5)
    np.testing.assert_allclose(answers, softmax(logits[:4] / 0.5, axis=1), atol=1e-4)


def test_unwritable_output_folder_is_refused(sample_as_cifar10, tmp_path: Path) -> None:  # noqa: ARG001
    (tmp_path / "file").write_text("")
    with pytest.raises(ShiftViTError, match=r"cannot write '.*file/evaluation': Not a directory"):
        evaluate("cifar10", out=tmp_path / "file" / "evaluation")


@pytest.mark.parametrize(("name", "corruptions"), [("mistakes", False), ("mistakes", True), ("corruptions", True)])
@pytest.mark.usefixtures("sample_as_cifar10")
def test_foreign_files_in_the_output_folder_are_reported_first(name, corruptions, tmp_path, monkeypatch) -> None:
    (tmp_path / f"{name}.png").write_bytes(b"mine")
    monkeypatch.setattr("shiftvit.evaluation.evaluate.read_images", lambda *_: pytest.fail("the images were read"))
    with pytest.raises(ShiftViTError, match=rf"{name}\.png' exists and is not shiftvit's, so it is not replaced"):
        evaluate("cifar10", out=tmp_path, corruptions=corruptions)
