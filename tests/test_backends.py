"""torch, jax and tensorflow compute the same, read each other's files, and train, each in its own process."""

from __future__ import annotations

import numpy as np
import pytest

from backends import read_results
from shiftvit.backend import BACKENDS

# The first test that reads results starts the worker processes.
pytestmark = pytest.mark.slow

NORMS = ("group", "layer", "batch")
every_backend = pytest.mark.parametrize("backend", BACKENDS)


@every_backend
def test_reference_logits_are_reproduced(backend: str) -> None:
    parity = read_results(backend)["parity"]
    assert parity.keys() == {"official_gn1", "official_bn_relu", "keras_example"}
    assert all(difference <= 2e-4 for found in parity.values() for difference in found.values()), parity


@pytest.mark.parametrize("form", ["bundle", "keras"])
@pytest.mark.parametrize("writer", BACKENDS)
@every_backend
def test_saved_models_give_the_same_logits_on_every_backend(backend: str, writer: str, form: str) -> None:
    loaded, written = read_results(backend)["loaded"], read_results(writer)["logits"]
    for norm in NORMS:
        logits = np.array(loaded[f"{writer}/{form}/{norm}"])
        assert np.ptp(logits) > 0.1
        np.testing.assert_allclose(logits, written[norm], rtol=0, atol=1e-4)


@every_backend
def test_training_lowers_the_loss(backend: str) -> None:
    training = read_results(backend)["training"]
    losses = training["losses"]
    assert len(losses) == 4
    assert np.isfinite([*losses, training["test"]]).all()
    assert losses[-1] < losses[0] - 0.05, losses
    assert training["growing"][-1] < training["growing"][0], training


@every_backend
def test_threads_can_share_a_model(backend: str) -> None:
    assert read_results(backend)["threads"] < 1e-5
