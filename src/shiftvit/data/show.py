"""Draws what training sees: some pictures as in evaluation, and several augmentations of each."""

from __future__ import annotations

import textwrap
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from shiftvit.data import named
from shiftvit.data.batches.host import EpochBatches, draw_order
from shiftvit.data.find.dataset import Dataset
from shiftvit.data.read import read_dataset
from shiftvit.figures.style import GREY, make_figure, save_figure, silence_missing_glyphs
from shiftvit.recipes.recipe import Recipe

ROWS, DRAWS = 6, 7
# The smallest share of a class that a caption names.
_LEAST = 0.005
# The size of the captions, in points.
_LETTERS = 7
# The longest line below the pictures, in characters.
_LINE = 120
# The width of a picture and the gap between two, in inches.
_SIDE, _GAP = 1.35, 0.09


@dataclass(frozen=True, eq=False)
class Shown:
    """Some pictures and their augmentations.

    Attributes:
        plain: the pictures as evaluation sees them, uint8 (N, h, w, 3).
        drawn: the pictures as training sees them, without the normalisation, uint8 (D, N, h, w, 3).
        shares: the share of each class in a drawn picture's label, float32 (D, N, classes).
        labels: int64 (N,).
        class_names: in the order of the labels.
    """

    plain: NDArray[np.uint8]
    drawn: NDArray[np.uint8]
    shares: NDArray[np.float32]
    labels: NDArray[np.int64]
    class_names: tuple[str, ...]


def draw_training_figure(recipe: Recipe, path: Path) -> int:
    """Draws training pictures of the recipe's data into a figure: a row each, first as in evaluation, then seven draws.

    The draws are a run's batches of these pictures in its first epochs, at their whole size, so a picture is mixed with
    one of another row.

    Returns:
        How many pictures there are.

    Raises:
        ShiftViTError: the data cannot be read, the settings do not fit them, or the file cannot be written.
    """
    shown = draw_training(recipe)
    _draw_figure(shown, recipe, path)
    return len(shown.plain)


def draw_training(recipe: Recipe, count: int = ROWS, draws: int = DRAWS) -> Shown:
    """Takes `count` training pictures, of different classes where there are enough, and draws their changes."""
    data = _read_sample(recipe, count)
    train, rule, classes = data.train, data.train.preprocess, len(data.class_names)
    # Repeats of a picture would take the place of others, and each row has several draws anyway.
    augment = recipe.augment.model_copy(update={"repeats": 1})
    drawn, shares = [], []
    for epoch in range(draws):
        seed, total = recipe.train.seed, len(train)
        batch = EpochBatches(
            train.images,
            train.labels,
            preprocess=rule,
            augment=augment,
            batch_size=total,
            classes=classes,
            seed=seed,
            epoch=epoch,
        )
        values, targets = batch[0]
        if targets.ndim == 1:
            targets = np.eye(classes, dtype=np.float32)[targets]
        order = np.argsort(draw_order(seed, epoch, total))  # back from the epoch's order
        drawn.append(rule.rounded(values[order] * np.asarray(rule.std) + np.asarray(rule.mean)))
        shares.append(targets[order])
    plain = data.test.preprocess.pixels(data.test.images[:])
    return Shown(plain, np.stack(drawn), np.stack(shares), train.labels, data.class_names)


def _read_sample(recipe: Recipe, count: int) -> Dataset:
    """Returns `count` pictures twice: as training takes them in "train", and as evaluation does in "test"."""
    data = named.look_up(recipe.data.name)
    chosen = data.train.take(_choose(data.train.labels, count, recipe.train.seed))
    data = replace(data, splits={"train": chosen, "test": chosen})
    return read_dataset(data, recipe.preprocess, boxes=recipe.augment.resized_crop > 0)


def _choose(labels: NDArray[np.int64], count: int, seed: int) -> NDArray[np.int64]:
    """Returns indices of images at random, but of each class one before any has two."""
    order = np.random.default_rng(seed).permutation(len(labels))
    _, first = np.unique(labels[order], return_index=True)
    others = np.delete(np.arange(len(labels)), first)
    chosen: NDArray[np.int64] = order[np.concatenate([np.sort(first), others])[:count]]
    return chosen


def _draw_figure(shown: Shown, recipe: Recipe, path: Path) -> None:
    draws, rows = shown.drawn.shape[:2]
    height, width = shown.plain.shape[1:3]
    mixed = bool((shown.shares.max(axis=2) < 1).any())
    words = textwrap.wrap(recipe.augment.describe(crops=recipe.preprocess.crop is not None), _LINE)
    tile = _SIDE * min(2.0, max(0.5, height / width))
    caption = 0.4 if mixed else 0.22
    top, bottom = 0.65, 0.15 + 0.17 * len(words)
    wide, high = (draws + 1) * (_SIDE + _GAP) + _GAP, rows * (tile + caption) + top + bottom
    figure = make_figure(wide, high, layout=None)  # matplotlib's own layout would take seconds
    title = f"Training pictures: recipe {recipe.name}, {Path(recipe.data.name).name}, seed {recipe.train.seed}"
    figure.text(0.5, 1 - 0.2 / high, title, ha="center", va="center", fontweight="bold", fontsize=12, parse_math=False)
    figure.text(0.5, 0.1 / high, "\n".join(words), ha="center", va="bottom", fontsize=9)
    places = {
        "left": _GAP / wide,
        "right": 1 - _GAP / wide,
        "top": 1 - top / high,
        "bottom": (bottom + caption) / high,
        "wspace": _GAP / _SIDE,
        "hspace": caption / tile,
    }
    axes = figure.subplots(rows, draws + 1, squeeze=False, gridspec_kw=places)
    with silence_missing_glyphs():
        for row in range(rows):
            _draw_picture(axes[row, 0], shown.plain[row], _shorten(shown.class_names[int(shown.labels[row])]))
            for draw in range(draws):
                text = _write_caption(shown.shares[draw, row], shown.class_names) if mixed else ""
                _draw_picture(axes[row, draw + 1], shown.drawn[draw, row], text)
        for column, heading in enumerate(["in evaluation", *(f"epoch {draw + 1}" for draw in range(draws))]):
            axes[0, column].set_title(heading, fontsize=9)
    save_figure(figure, Path(path))


def _draw_picture(axes: Any, pixels: NDArray[np.uint8], caption: str) -> None:
    axes.imshow(pixels, interpolation="nearest")
    axes.set_xticks([])
    axes.set_yticks([])
    for spine in axes.spines.values():
        spine.set_color(GREY)
        spine.set_linewidth(0.5)
    axes.set_xlabel(caption, fontsize=_LETTERS, labelpad=2, parse_math=False)


def _write_caption(shares: NDArray[np.float32], class_names: tuple[str, ...]) -> str:
    largest = [index for index in np.argsort(-shares, kind="stable") if shares[index] >= _LEAST]
    return "\n".join(_shorten(class_names[index], f" {shares[index]:.0%}") for index in largest[:2])


def _shorten(name: str, tail: str = "") -> str:
    """Returns a name and its tail; cuts the name if both together are wider than a picture."""
    from matplotlib.font_manager import FontProperties
    from matplotlib.textpath import text_to_path

    font, most = FontProperties(size=_LETTERS), 72 * _SIDE
    text, kept = name + tail, min(len(name), 60)
    while kept > 1 and text_to_path.get_text_width_height_descent(text, font, ismath=False)[0] > most:
        kept -= 1
        text = f"{name[:kept]}…{tail}"
    return text
