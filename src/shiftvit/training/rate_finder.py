"""A learning rate from one short rising run: the learning rate range test (Smith, 2017, section 3.3)."""

from __future__ import annotations

import itertools
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any

import keras
import numpy as np
from numpy.typing import NDArray

from shiftvit.backend import hide_tensorflow
from shiftvit.data.find.dataset import Dataset
from shiftvit.data.load import load_data
from shiftvit.errors import ShiftViTError
from shiftvit.recipes.recipe import Recipe
from shiftvit.training.memory import free_memory, halve_parts, is_out_of_memory
from shiftvit.training.optimizer import batch_scale
from shiftvit.training.setup import build, epoch_batches, resolve
from shiftvit.training.start import apply_start

Floats = NDArray[np.float64]

# What the smoothed loss keeps of its past at each step.
_KEPT = 0.9
# The smoothed loss over its minimum at which the rate is too high for anything more to be learnt.
_DIVERGED = 4.0
# A fall by less than this share of the loss is chance.
_LEAST_FALL = 0.02
_LEAST_STEPS = 8
# Steps that can be asked for at least.
_FEWEST = 10
# Steps until the smoothed loss is a mean of more than a few batches; before, it falls from one to the next by chance.
_UNSETTLED = 20


@dataclass(frozen=True)
class RateSearch:
    """What rising rates did to the loss.

    Attributes:
        rates: of each step, as `train.optimizer.learning_rate` counts them; float64 (steps,).
        losses: of each step's batch, before its update; float64 (steps,).
        smoothed: their running mean, float64 (steps,).
        suggestion: a peak rate; None where the loss did not fall.
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
        """The suggestion as settings by dotted key; empty where there is none."""
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
    told: Callable[[int, float], None] | None = None,
) -> RateSearch:
    """Trains with a rate that rises from step to step by the same factor, and watches the loss.

    It ends where the smoothed loss is 4 times its minimum or no longer a number. With Muon the rate of what AdamW
    updates rises along, in the recipe's proportion. Nothing is kept of the model, and no validation or test image is
    looked at. The search takes the first weights, data, augmentation and batches of the recipe, so it costs `steps` of
    its steps.

    Args:
        recipe: as for `train`.
        data: images in place of the data set that the recipe names.
        low, high: first and last rate, above 0.
        steps: 10 or more.
        told: is called after each step with the number of steps done and the smoothed loss.

    Returns:
        the rates, the losses and a suggestion.

    Raises:
        ShiftViTError: settings that `train` refuses too, or a range or a number of steps that cannot be.
    """
    if not 0 < low < high:
        raise ShiftViTError(f"the rates from low={low} to high={high} do not rise from above 0; use 0 < low < high")
    if steps < _FEWEST:
        raise ShiftViTError(f"steps={steps} are too few to see a loss fall; use at least {_FEWEST}")
    if recipe.probe is not None:
        raise ShiftViTError(f"the recipe {recipe.name!r} is a probe, which has no learning rate; name another recipe")
    recipe = apply_start(recipe)
    # The rates are those of the whole model, whether or not its head learns alone at first.
    recipe = recipe.model_copy(update={"train": recipe.train.model_copy(update={"freeze_epochs": 0})})
    dataset = load_data(recipe, data)
    recipe = resolve(recipe, dataset)
    rule = recipe.train.optimizer
    rates = np.geomspace(low, high, steps)
    losses = None
    halvings = 0
    while losses is None:
        try:
            losses = _losses(recipe, dataset, rates, told)
        except Exception as error:
            if not is_out_of_memory(error):
                raise
        if losses is None:  # only here, as the handler's traceback holds the tensors of the failed step
            recipe = halve_parts(recipe, halvings)
            halvings += 1
            free_memory()
    smoothed = smooth(losses)
    rates = rates[: len(losses)]
    ratio = rule.adam_learning_rate / rule.learning_rate if rule.name == "muon" else None
    settled = min(_UNSETTLED, len(losses) // 5)
    suggestion = suggest(rates[settled:], smoothed[settled:])
    return RateSearch(rates, losses, smoothed, suggestion, rule.learning_rate, ratio)


def smooth(losses: Floats) -> Floats:
    """Returns the exponential running mean of losses (n,), its bias towards 0 corrected (Kingma and Ba, section 3)."""
    weights = (1 - _KEPT) * _KEPT ** np.arange(len(losses))
    sums = np.convolve(losses, weights)[: len(losses)]
    result: Floats = sums / np.cumsum(weights)
    return result


def suggest(rates: Floats, smoothed: Floats) -> float | None:
    """Returns the rate at which a smoothed loss falls most steeply against the logarithm of the rate.

    It lies before the minimum, where the rate begins to do harm. None where the loss does not fall.

    Args:
        rates: rising, float64 (n,).
        smoothed: the loss at each, float64 (n,).
    """
    if len(rates) < _LEAST_STEPS:
        return None
    lowest = int(np.argmin(smoothed))
    if lowest < 2 or smoothed[lowest] > (1 - _LEAST_FALL) * smoothed[:lowest].max():
        return None
    slopes = np.gradient(smoothed, np.log(rates))
    return _round(float(rates[int(np.argmin(slopes[: lowest + 1]))]))


def _losses(recipe: Recipe, dataset: Dataset, rates: Floats, told: Callable[[int, float], None] | None) -> Floats:
    """Returns each step's loss, up to where it is 4 times its minimum."""
    with hide_tensorflow():
        keras.utils.set_random_seed(recipe.train.seed)
    model, _ = build(recipe, dataset)
    scale = batch_scale(recipe.train)
    model.optimizer.learning_rate = keras.optimizers.schedules.ExponentialDecay(
        float(rates[0]) * scale, decay_steps=len(rates) - 1, decay_rate=float(rates[-1] / rates[0])
    )
    losses: list[float] = []
    for images, labels in itertools.islice(_batches(recipe, dataset), len(rates)):
        model.reset_metrics()
        loss = float(model.train_on_batch(images, labels, return_dict=True)["loss"])
        if not np.isfinite(loss):
            break
        losses.append(loss)
        smoothed = smooth(np.array(losses))
        if told is not None:
            told(len(losses), float(smoothed[-1]))
        if smoothed[-1] > _DIVERGED * smoothed.min():
            break
    return np.array(losses)


def _batches(recipe: Recipe, dataset: Dataset) -> Iterator[tuple[Any, Any]]:
    for epoch in itertools.count():
        batches = epoch_batches(recipe, dataset, epoch)
        yield from (batches[index] for index in range(len(batches)))


def _round(rate: float) -> float:
    """Returns a rate with two significant digits, which is more than the search knows."""
    return float(f"{rate:.1e}")
