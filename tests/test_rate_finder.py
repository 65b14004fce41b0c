"""The search for a learning rate: suggestions on curves with known answers, and a whole search on real images."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import typer
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image
from typer.testing import CliRunner, Result

from sample import load_sample
from shiftvit import Recipe, ShiftViTError
from shiftvit.cli import rates
from shiftvit.figures.run import draw_rate_search
from shiftvit.training import rate_finder
from shiftvit.training.rate_finder import RateSearch, find_rate, smooth, suggest

RATES = np.geomspace(1e-6, 10, 100)


def make_losses(steepest: float, width: float = 1.0, depth: float = 1.0, worst: float = 3.0) -> np.ndarray:
    """Returns losses that fall as a sigmoid of log(rate), most steeply at `steepest`, and rise above 100 times that."""
    x = np.log(RATES / steepest) / width
    return 2.3 - depth / (1 + np.exp(-x)) + np.maximum(0, np.log(RATES / (100 * steepest))) * worst


@settings(max_examples=50)
@given(
    steepest=st.floats(1e-5, 1e-2),
    width=st.floats(0.3, 1.0),
    depth=st.floats(0.3, 2.0),
    seed=st.integers(0, 100),
)
def test_suggestion_is_at_the_steepest_fall(steepest: float, width: float, depth: float, seed: int) -> None:
    noise = np.random.default_rng(seed).normal(0, 1e-4, len(RATES))
    losses = make_losses(steepest, width, depth) + noise
    found = suggest(RATES, losses)
    assert found is not None
    assert steepest / 1.6 < found < steepest * 1.6  # each rate is 1.18 times the one before
    assert found < RATES[np.argmin(losses)]


@given(scale=st.floats(0.1, 10), offset=st.floats(0, 5))
def test_suggestion_does_not_depend_on_scale_and_offset(scale: float, offset: float) -> None:
    losses = make_losses(1e-3, depth=2.0)
    lowest = losses.min()
    assert suggest(RATES, scale * (losses - lowest) + offset) == suggest(RATES, losses - lowest)


@pytest.mark.parametrize(
    "losses",
    [
        np.full(100, 2.3),
        2.3 + np.log(RATES / 1e-6),
        2.3 - 0.01 * np.linspace(0, 1, 100),  # less than chance causes
        make_losses(1e-3)[:5],
    ],
)
def test_no_suggestion_without_a_fall(losses: np.ndarray) -> None:
    assert suggest(RATES[: len(losses)], losses) is None


def test_smoothing_is_the_bias_corrected_running_mean() -> None:
    losses = np.random.default_rng(0).normal(size=30)
    mean, expected = 0.0, []
    for step, loss in enumerate(losses, 1):
        mean = 0.9 * mean + 0.1 * loss
        expected.append(mean / (1 - 0.9**step))
    np.testing.assert_allclose(smooth(losses), expected)
    np.testing.assert_allclose(smooth(np.full(20, 2.5)), 2.5)


@pytest.mark.parametrize("noise", [0.0, 0.03])
@pytest.mark.parametrize("width", [0.5, 1.0])
@pytest.mark.parametrize(("gap", "worst"), [(100, 3.0), (30, 20.0)])
def test_suggestion_is_not_late(noise: float, width: float, gap: float, worst: float) -> None:
    """The moving average, which looks only backwards, falls most steeply at 1.9 to 2.8 times the rate."""
    found = []
    for seed in range(50):
        generator = np.random.default_rng(seed)
        steepest = 10 ** generator.uniform(-3.5, -2)
        clean = 2.3 - 1.2 / (1 + np.exp(-np.log(RATES / steepest) / width))
        rise = np.maximum(0, np.log(RATES / (gap * steepest))) * worst  # the rates that are too high
        rate = suggest(RATES[20:], (clean + rise + generator.normal(0, noise, 100))[20:])
        assert rate is not None
        found.append(rate / steepest)
    assert 0.9 < np.median(found) < 1.15
    assert min(found) > 0.5
    assert max(found) < 1.7


def make_recipe(**changes: Any) -> Recipe:
    return Recipe.model_validate(
        {
            "name": "small",
            "model": {"embed_dim": 24, "depths": [1, 1], "norm": "layer"},
            "data": {"validation": 50},
            "preprocess": {"mean": 120.0, "std": 64.0},
            "train": {"batch_size": 50, "precision": "float32", **changes},
        }
    )


@pytest.fixture(scope="module")
def search() -> RateSearch:
    rule = {"name": "muon", "learning_rate": 0.02, "adam_learning_rate": 0.01}
    return find_rate(make_recipe(optimizer=rule), load_sample(), low=1e-5, high=30.0, steps=40)


@pytest.mark.slow
def test_search_finds_a_rate_on_real_images(search: RateSearch) -> None:
    assert search.suggestion is not None
    assert 1e-4 < search.suggestion < search.rates[np.argmin(search.smoothed)] <= 30
    np.testing.assert_allclose(search.rates, np.geomspace(1e-5, 30, 40)[: len(search.rates)])
    np.testing.assert_allclose(search.smoothed, smooth(search.losses))
    assert search.losses[0] == pytest.approx(np.log(10), abs=0.4)  # an untrained model
    assert len(search.rates) == len(search.losses) < 40  # it diverged
    assert search.settings == {
        "train.optimizer.learning_rate": search.suggestion,
        "train.optimizer.adam_learning_rate": pytest.approx(search.suggestion / 2, rel=0.05),
    }


@pytest.mark.slow
def test_rates_scale_with_the_batch_size() -> None:
    """Rates for batches of 100 are halved for batches of 50, so twice the rates give the same losses."""
    searches = [
        find_rate(
            make_recipe(optimizer={"base_batch_size": base, "learning_rate": 1e-3}),
            load_sample(),
            low=low,
            high=1e3 * low,
            steps=12,
        )
        for base, low in ((None, 1e-5), (100, 2e-5))
    ]
    assert len(searches[0].losses) == 12
    np.testing.assert_allclose(searches[0].losses, searches[1].losses, rtol=1e-4)
    np.testing.assert_allclose(2 * searches[0].rates, searches[1].rates)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"steps": 9}, "steps=9 is too few"),
        ({"low": 0.0}, "low=0.0 and high=10.0 are not a range"),
        ({"low": 1.0, "high": 0.1}, "low=1.0 and high=0.1 are not a range"),
        ({"high": float("inf")}, "high=inf are not a range of rates; use finite ones"),
    ],
)
def test_invalid_arguments_are_refused(changes: dict[str, Any], message: str) -> None:
    with pytest.raises(ShiftViTError, match=message):
        find_rate(make_recipe(), load_sample(), **changes)


def test_lack_of_memory_suggests_a_setting_and_no_run_to_resume(monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(*_: object) -> None:
        raise MemoryError

    monkeypatch.setattr(rate_finder, "_record_losses", fail)
    with pytest.raises(ShiftViTError, match=r"^out of memory with 50 images .* --set train.auto_batch=true, or"):
        find_rate(make_recipe(), load_sample())


@pytest.mark.slow
def test_figure_shows_the_search(search: RateSearch, tmp_path: Path, figures: list[Any]) -> None:
    for number, suggestion in enumerate((search.suggestion, None)):
        path = tmp_path / f"{number}.png"
        draw_rate_search(search.rates, search.losses, search.smoothed, suggestion, 0.02, path, title="Learning rates")
        with Image.open(path) as image:
            assert image.width > image.height > 300
            assert image.format == "PNG"
        (axes,) = figures[-1].axes
        lines = {line.get_label(): (line.get_xdata(), line.get_ydata()) for line in axes.lines}
        for label, losses in (("each batch", search.losses), ("smoothed", search.smoothed)):
            np.testing.assert_array_equal(lines[label], [search.rates, losses])
        assert list(lines["the recipe's rate, 0.02"][0]) == [0.02, 0.02]
        marked = {label: list(places[0]) for label, places in lines.items() if label.startswith("suggestion")}
        assert marked == ({} if suggestion is None else {f"suggestion, {suggestion:g}": [suggestion] * 2})
        assert axes.get_xscale() == "log"


def run_command(monkeypatch: pytest.MonkeyPatch, search: RateSearch, *arguments: str) -> Result:
    app = typer.Typer()
    app.callback()(lambda: None)  # otherwise typer makes the only command the program itself
    app.add_typer(rates.app)
    monkeypatch.setattr(rate_finder, "find_rate", lambda *_, **__: search)
    return CliRunner().invoke(app, ["find-rate", *arguments])


@pytest.mark.slow
def test_command_prints_the_settings_to_use(
    monkeypatch: pytest.MonkeyPatch, search: RateSearch, tmp_path: Path
) -> None:
    figure = tmp_path / "rates.png"
    answer = run_command(monkeypatch, search, "--figure", str(figure))
    assert answer.exit_code == 0
    words = answer.stdout.split()
    assert words[::2] == ["--set", "--set"]
    assert {key: float(value) for key, value in (word.split("=") for word in words[1::2])} == search.settings
    with Image.open(figure) as image:
        assert image.format == "PNG"


@pytest.mark.slow
def test_command_prints_json(monkeypatch: pytest.MonkeyPatch, search: RateSearch) -> None:
    answer = run_command(monkeypatch, search, "--json")
    assert answer.exit_code == 0
    printed = json.loads(answer.stdout)
    assert printed["settings"] == search.settings
    assert printed["rates"] == pytest.approx(search.rates.tolist())
    assert printed.keys() == {*RateSearch.__dataclass_fields__, "settings"}


def test_command_without_suggestion_prints_one_line_with_status_1(monkeypatch: pytest.MonkeyPatch) -> None:
    flat = np.full(20, 2.3)
    search = RateSearch(RATES[:20], flat, flat, None, 0.02)
    assert search.settings == {}
    answer = run_command(monkeypatch, search)
    assert answer.exit_code == 1
    assert answer.stdout == ""
    assert answer.stderr.count("\n") == 1
    assert "the loss did not fall between the rates 1e-06 and" in answer.stderr


@pytest.mark.parametrize("noise", [0.03, 0.1])
def test_batch_noise_rarely_leads_to_a_low_suggestion(noise: float) -> None:
    """The steepest fall is at 1e-3; the mean of the first few batches falls and rises by chance."""
    rates = np.geomspace(1e-6, 10, 100)
    clean = 2.3 - 1.2 / (1 + np.exp(-2 * np.log(rates / 1e-3))) + np.maximum(0, np.log(rates / 0.3)) * 2
    found = []
    for seed in range(100):
        losses = clean + np.random.default_rng(seed).normal(0, noise, 100)
        found.append(suggest(rates[20:], losses[20:]))
    low = [rate for rate in found if rate is not None and rate < 1e-4]
    assert len(low) <= 2
    assert sum(rate is not None for rate in found) >= 98


def test_loss_that_is_not_finite_at_once_gives_no_suggestion() -> None:
    none = smooth(np.array([]))
    assert none.shape == (0,)
    assert suggest(np.array([]), none) is None
