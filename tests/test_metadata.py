"""The metadata of a graph: complete, or rejected in one line."""

from __future__ import annotations

import json

import pytest
from hypothesis import given
from hypothesis import strategies as st

from shiftvit import Bundle, Preprocess, ShiftViTError
from shiftvit.bundle.metadata import Metadata, make_metadata
from shiftvit.config import ModelConfig

CONTENT = {
    "format": 1,
    "labels": ["cat", "dog"],
    "preprocess": {"resize": 36, "crop": [32, 32], "mean": [125.3, 122.9, 113.8], "std": 64.0},
    "input_shape": [32, 32, 3],
    "precision": "int8",
    "versions": {"keras": "3"},
}


def test_dump_and_parse_round_trip():
    metadata = Metadata.parse(json.dumps(CONTENT), "it")
    assert metadata.labels == ("cat", "dog")
    assert metadata.input_shape == (32, 32, 3)
    assert metadata.preprocess == Preprocess(resize=36, crop=(32, 32), mean=(125.3, 122.9, 113.8), std=64.0)
    for text in (metadata.dump(), metadata.dump().encode()):
        assert Metadata.parse(text, "it") == metadata
    # Plain JSON, which other programs can read.
    assert json.loads(metadata.dump())["labels"] == ["cat", "dog"]


@given(
    st.lists(st.text(), min_size=1).map(tuple),
    st.one_of(st.floats(-300, 300), st.tuples(*[st.floats(-300, 300)] * 3)),
    st.dictionaries(st.text(), st.text()),
)
def test_any_labels_and_means_round_trip(labels, mean, versions):
    text = {"labels": labels, "preprocess": Preprocess(mean=mean), "input_shape": (8, 9, 3), "versions": versions}
    metadata = Metadata(**text)
    assert Metadata.parse(metadata.dump(), "it") == metadata


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (None, "has no shiftvit metadata"),
        ("", "has no shiftvit metadata"),
        (b"", "has no shiftvit metadata"),
        ("{", "has invalid metadata: its top level: Invalid JSON"),
        (b"\xff\xfe", "has invalid metadata: its top level: Invalid JSON"),
        ("[]", "has invalid metadata: its top level: "),
        ("{}", "has invalid metadata: labels: Field required"),
        (CONTENT | {"format": 2}, "has invalid metadata: format: "),
        (CONTENT | {"labels": []}, "has invalid metadata: labels: "),
        (CONTENT | {"labels": "cat"}, "has invalid metadata: labels: "),
        (CONTENT | {"precision": "f8"}, "has invalid metadata: precision: "),
        (CONTENT | {"input_shape": [32, 32]}, "has invalid metadata: input_shape.2: "),
        (CONTENT | {"preprocess": {"std": 0}}, "has invalid metadata: preprocess: "),
        (CONTENT | {"preprocess": {"mean": 1e999}}, "has invalid metadata: preprocess.mean.float: "),
        (CONTENT | {"surprise": 1}, "has invalid metadata: surprise: Extra inputs are not permitted"),
    ],
)
def test_invalid_metadata_is_one_line(content, message):
    text = json.dumps(content) if isinstance(content, dict) else content
    with pytest.raises(ShiftViTError) as caught:
        Metadata.parse(text, "'some.onnx'")
    assert str(caught.value).startswith(f"'some.onnx' {message}")
    assert "\n" not in str(caught.value)


def make_bundle(preprocess=None, labels=("a", "b"), **config):
    settings = ModelConfig(**{"image_shape": (24, 32, 3), "num_classes": len(labels), **config})
    return Bundle(settings, labels, preprocess or Preprocess(), {})


def test_metadata_of_a_bundle():
    found = make_metadata(make_bundle(Preprocess(resize=(24, 32), mean=9.0)), "bf16")
    assert (found.labels, found.input_shape, found.precision) == (("a", "b"), (24, 32, 3), "bf16")
    assert found.preprocess == Preprocess(resize=(24, 32), mean=9.0)
    assert found.versions["numpy"]
    # If the bundle has no resizing, the metadata resize every image to the size that the model takes.
    assert make_metadata(make_bundle()).preprocess.output_shape(480, 640) == (24, 32)


@pytest.mark.parametrize(
    ("case", "message"),
    [
        (make_bundle(image_shape=(None, 32, 3)), "has no fixed size"),
        (make_bundle(labels=()), r"has no classes \(num_classes=0\)"),
        (make_bundle(Preprocess(resize=40, crop=36)), "into 36 x 36 pixels, but the model takes 24 x 32"),
    ],
    ids=["open size", "no classes", "another size"],
)
def test_bundles_without_a_possible_graph_fail(case, message):
    with pytest.raises(ShiftViTError, match=message):
        make_metadata(case)
