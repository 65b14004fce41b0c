"""The metadata of a graph: complete, or refused in one line."""

from __future__ import annotations

import json

import pytest
from hypothesis import given
from hypothesis import strategies as st

from shiftvit import Bundle, Preprocess, ShiftViTError
from shiftvit.bundle.metadata import Metadata, make_metadata
from shiftvit.config import ModelConfig

TREE = {
    "format": 1,
    "labels": ["cat", "dog"],
    "preprocess": {"resize": 36, "crop": [32, 32], "mean": [125.3, 122.9, 113.8], "std": 64.0},
    "input_shape": [32, 32, 3],
    "precision": "int8",
    "versions": {"keras": "3"},
}


def test_what_is_parsed_is_what_was_dumped():
    metadata = Metadata.parse(json.dumps(TREE), "it")
    assert metadata.labels == ("cat", "dog")
    assert metadata.input_shape == (32, 32, 3)
    assert metadata.preprocess == Preprocess(resize=36, crop=(32, 32), mean=(125.3, 122.9, 113.8), std=64.0)
    for text in (metadata.dump(), metadata.dump().encode()):
        assert Metadata.parse(text, "it") == metadata
    # Plain JSON, for programs that know no shiftvit.
    assert json.loads(metadata.dump())["labels"] == ["cat", "dog"]


@given(
    st.lists(st.text(), min_size=1).map(tuple),
    st.one_of(st.floats(-300, 300), st.tuples(*[st.floats(-300, 300)] * 3)),
    st.dictionaries(st.text(), st.text()),
)
def test_every_label_and_every_mean_survives(labels, mean, versions):
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
        (TREE | {"format": 2}, "has invalid metadata: format: "),
        (TREE | {"labels": []}, "has invalid metadata: labels: "),
        (TREE | {"labels": "cat"}, "has invalid metadata: labels: "),
        (TREE | {"precision": "f8"}, "has invalid metadata: precision: "),
        (TREE | {"input_shape": [32, 32]}, "has invalid metadata: input_shape.2: "),
        (TREE | {"preprocess": {"std": 0}}, "has invalid metadata: preprocess: "),
        (TREE | {"preprocess": {"mean": 1e999}}, "has invalid metadata: preprocess.mean.float: "),
        (TREE | {"surprise": 1}, "has invalid metadata: surprise: Extra inputs are not permitted"),
    ],
)
def test_what_is_no_metadata_is_one_line(content, message):
    text = json.dumps(content) if isinstance(content, dict) else content
    with pytest.raises(ShiftViTError) as caught:
        Metadata.parse(text, "'some.onnx'")
    assert str(caught.value).startswith(f"'some.onnx' {message}")
    assert "\n" not in str(caught.value)


def bundle(preprocess=None, labels=("a", "b"), **config):
    settings = ModelConfig(**{"image_shape": (24, 32, 3), "num_classes": len(labels), **config})
    return Bundle(settings, labels, preprocess or Preprocess(), {})


def test_the_metadata_of_a_bundles_graph():
    found = make_metadata(bundle(Preprocess(resize=(24, 32), mean=9.0)), "bf16")
    assert (found.labels, found.input_shape, found.precision) == (("a", "b"), (24, 32, 3), "bf16")
    assert found.preprocess == Preprocess(resize=(24, 32), mean=9.0)
    assert found.versions["numpy"]
    # A model of images of one size takes any image once the metadata say how.
    assert make_metadata(bundle()).preprocess.output_shape(480, 640) == (24, 32)


@pytest.mark.parametrize(
    ("case", "message"),
    [
        (bundle(image_shape=(None, 32, 3)), "has no fixed size"),
        (bundle(labels=()), r"has no classes \(num_classes=0\)"),
        (bundle(Preprocess(resize=40, crop=36)), "makes 36 x 36 pixels .* the model takes 24 x 32"),
    ],
    ids=["open size", "no classes", "another size"],
)
def test_bundles_that_have_no_graph(case, message):
    with pytest.raises(ShiftViTError, match=message):
        make_metadata(case)
