"""Suggests a learning rate from one short run: the learning rate range test (Smith, 2017, section 3.3)."""

from __future__ import annotations

import itertools
import math
from collections.abc import Callable
from dataclasses import dataclass

import keras
import numpy as np
from numpy.typing import NDArray
from scipy.ndimage import gaussian_filter1d

from shiftvit.backend import hide_tensorflow
from shiftvit.data.find.dataset import Dataset
from shiftvit.data.load import load_data
from shiftvit.errors import ShiftViTError
from shiftvit.recipes.recipe import Recipe
from shiftvit.training.finetune import apply_start
from shiftvit.training.memory import free_memory, halve_parts, is_out_of_memory
from shiftvit.training.optimizer import compute_batch_scale
from shiftvit.training.setup import build, make_batches, resolve

Floats = NDArray[np.float64]

# The weight of the past in the smoothed loss.
_KEPT = 0.9
# The standard deviation, in steps, of the Gaussian that smooths the losses for the suggestion.
_WIDTH = 5.0
# The search ends where the smoothed loss is this many times its minimum.
_DIVERGED = 4.0
# A smaller fall, as a share of the loss, counts as noise.
_LEAST_FALL = 0.02
_LEAST_STEPS = 8
# The fewest steps of a search.
_FEWEST = 10
# The first steps are skipped, because there the moving average is a mean of only a few batches and mostly noise.
_UNSETTLED = 20


@dataclass(frozen=True)
class RateSearch:
    """The losses at rising rates, and the rate that they suggest.

    Attributes:
        rates: of each step, as `train.optimizer.learning_rate` counts them; float64 (steps,).
        losses: of each step's batch, before its update; float64 (steps,).
        smoothed: their moving average, float64 (steps,); it falls a few steps after they do.
        suggestion: a peak rate; None if the loss did not fall.
        recipe_rate: the recipe's own peak rate.
        adam_ratio: with Muon the recipe's `adam_learning_rate` over its `learning_rate`; else None.
    """

    rates: Floats
    losses: Floats
    smoothed: Floats
    suggestion: float | None
    recipe_rate: float
    adam_ratio: float | None = None

    @property
    def settings(self) -> dict[str, float]:
        """The suggestion as settings by dotted key; empty if there is none."""
        if self.suggestion is None:
            return {}
        rates = {"train.optimizer.learning_rate": self.suggestion}
        if self.adam_ratio is not None:
            rates["train.optimizer.adam_learning_rate"] = _round(self.suggestion * self.adam_ratio)
        return rates


def find_rate(
    recipe: Recipe,
    data: Dataset | None = None,
    *,
    low: float = 1e-6,
    high: float = 10.0,
    steps: int = 100,
    on_step: Callable[[int, float], None] | None = None,
) -> RateSearch:
    """Trains with a rate that grows by the same factor at each step, and records the loss.

    The search ends early if the smoothed loss reaches 4 times its minimum or is not finite. With Muon, the rate of the
    variables that AdamW updates grows in proportion. The search uses the recipe's initial weights, data, augmentation
    and batches, so it takes as long as `steps` training steps. The trained model is discarded. Validation and test
    images are read, as for a run, but not used.

    Args:
        recipe: as for `train`.
        data: images to use instead of the data set that the recipe names.
        low, high: first and last rate, above 0.
        steps: 10 or more.
        on_step: called after each step with the number of finished steps and the smoothed loss.

    Returns:
        the rates, the losses and a suggestion.

    Raises:
        ShiftViTError: settings that `train` rejects too, or an invalid range or number of steps.
    """
    if not 0 < low < high < math.inf:
        raise ShiftViTError(f"low={low} and high={high} are not a range of rates; use finite ones, 0 < low < high")
    if steps < _FEWEST:
        raise ShiftViTError(f"steps={steps} is too few to see the loss fall; use at least {_FEWEST}")
    if recipe.probe is not None:
        raise ShiftViTError(f"the recipe {recipe.name!r} is a probe, which has no learning rate; name another recipe")
    recipe = apply_start(recipe)
    # The rates are for the whole model and image, even if training begins with the head alone or with small images.
    whole = {"freeze_epochs": 0, "initial_scale": 1.0}
    recipe = recipe.model_copy(update={"train": recipe.train.model_copy(update=whole)})
    dataset = load_data(recipe, data)
    recipe = resolve(recipe, dataset)
    rule = recipe.train.optimizer
    rates = np.geomspace(low, high, steps)
    halvings = 0
    while True:
        try:
            losses = _record_losses(recipe, dataset, rates, on_step)
            break
        except Exception as error:
            if not is_out_of_memory(error):
                raise
        # Not in the handler, because its traceback holds the tensors of the failed step.
        recipe = halve_parts(recipe, halvings, how="--set train.auto_batch=true")
        halvings += 1
        free_memory()
    smoothed = smooth(losses)
    rates = rates[: len(losses)]
    settled = min(_UNSETTLED, len(losses) // 5)
    return RateSearch(
        rates=rates,
        losses=losses,
        smoothed=smoothed,
        suggestion=suggest(rates[settled:], losses[settled:]),
        recipe_rate=rule.learning_rate,
        adam_ratio=rule.adam_learning_rate / rule.learning_rate if rule.name == "muon" else None,
    )


def smooth(losses: Floats) -> Floats:
    """Returns the exponential moving average of losses (n,), with bias correction (Kingma and Ba, 2015, section 3)."""
    if not len(losses):  # the first one was not finite
        return losses
    weights = (1 - _KEPT) * _KEPT ** np.arange(len(losses))
    sums = np.convolve(losses, weights)[: len(losses)]
    result: Floats = sums / np.cumsum(weights)
    return result


def suggest(rates: Floats, losses: Floats) -> float | None:
    """Returns the rate at which the loss falls most steeply over the logarithm of the rate.

    It lies before the minimum of the moving average, after which the rate is too high. Up to there a Gaussian smooths
    the losses: it looks to both sides, and the average, which looks only backwards, falls too late. None if the loss
    does not fall.

    Args:
        rates: rising, float64 (n,).
        losses: of the batch at each, float64 (n,).
    """
    if len(rates) < _LEAST_STEPS:
        return None
    end = int(np.argmin(smooth(losses))) + 1
    rates, losses = rates[:end], losses[:end]
    # Near both ends, some of the weights have no step.
    sums, weights = (gaussian_filter1d(part, _WIDTH, mode="constant") for part in (losses, np.ones(end)))
    smoothed = sums / weights
    lowest = int(np.argmin(smoothed))
    if lowest < 2 or smoothed[lowest] > (1 - _LEAST_FALL) * smoothed[:lowest].max():
        return None
    slopes = np.gradient(smoothed, np.log(rates))
    return _round(float(rates[int(np.argmin(slopes[: lowest + 1]))]))


def _record_losses(
    recipe: Recipe, dataset: Dataset, rates: Floats, on_step: Callable[[int, float], None] | None
) -> Floats:
    """Returns the loss of each step until the search ends."""
    with hide_tensorflow():
        keras.utils.set_random_seed(recipe.train.seed)
    model, _ = build(recipe, dataset)
    scale = compute_batch_scale(recipe.train)
    model.optimizer.learning_rate = keras.optimizers.schedules.ExponentialDecay(
        float(rates[0]) * scale, decay_steps=len(rates) - 1, decay_rate=float(rates[-1] / rates[0])
    )
    batches = itertools.chain.from_iterable(make_batches(recipe, dataset, epoch) for epoch in itertools.count())
    losses: list[float] = []
    for images, labels in itertools.islice(batches, len(rates)):
        model.reset_metrics()
        loss = float(model.train_on_batch(images, labels, return_dict=True)["loss"])
        if not np.isfinite(loss):
            break
        losses.append(loss)
        smoothed = smooth(np.array(losses))
        if on_step is not None:
            on_step(len(losses), float(smoothed[-1]))
        if smoothed[-1] > _DIVERGED * smoothed.min():
            break
    return np.array(losses)


def _round(rate: float) -> float:
    """Rounds a rate to two significant digits; the search is not more precise than that."""
    return float(f"{rate:.1e}")
