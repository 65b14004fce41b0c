"""Compares bundles."""

from __future__ import annotations

import dataclasses

import numpy as np

from shiftvit import Bundle


def assert_equal_bundles(found: Bundle, expected: Bundle) -> None:
    """Asserts that two bundles are equal to the last bit."""
    assert dataclasses.replace(found, weights={}) == dataclasses.replace(expected, weights={})
    assert found.weights.keys() == expected.weights.keys()
    for path, value in expected.weights.items():
        assert found.weights[path].dtype == value.dtype
        np.testing.assert_array_equal(found.weights[path], value)
