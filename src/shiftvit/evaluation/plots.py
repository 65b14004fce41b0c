"""Figures of an evaluation: reliability diagram, worst mistakes, explanations. Written as PNG, whole or not at all."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageDraw

from shiftvit import files
from shiftvit.evaluation.explain import overlay
from shiftvit.evaluation.grid import Tile, font, prediction_grid
from shiftvit.plots import BLUE, GREY, ORANGE

# Mistakes in a figure; one of more is hard to look at.
_SHOWN = 25
# Of a figure of explanations, in pixels.
_SIDE, _GAP, _TEXT, _LINE, _TITLE = 192, 16, 17, 26, 24
_INK = "#1a1a1a"
_TALL = 6  # rows
_BOX: dict[str, Any] = {"bbox": {"facecolor": "white", "edgecolor": GREY, "boxstyle": "round,pad=0.35"}}


def reliability_figure(before: dict[str, Any], path: Path, after: dict[str, Any] | None = None) -> None:
    """Draws accuracy against confidence, and below how many images have that confidence.

    Args:
        before: what `metrics.calibration` returned.
        path: the PNG to write.
        after: the same after temperature scaling, drawn beside it.

    Raises:
        ShiftViTError: the file cannot be written.
    """
    # Without pyplot: no global state, no window, and half of the import time.
    from matplotlib.figure import Figure

    panels = [("Confidence and accuracy", before)]
    if after is not None:
        panels = [("As trained", before), ("After temperature scaling", after)]
    figure = Figure(figsize=(4.9 * len(panels), 5.6), layout="constrained")
    rows = figure.subplots(2, len(panels), sharex="all", sharey="row", squeeze=False, height_ratios=(3.2, 1))
    for column, (name, found) in enumerate(panels):
        _reliability(rows[0, column], found, name)
        _counts(rows[1, column], found)
    rows[0, 0].set_ylabel("Accuracy")
    rows[1, 0].set_ylabel("Images")
    rows[0, 0].legend(loc="upper left", framealpha=1)
    files.write_file(path, lambda temporary: figure.savefig(temporary, dpi=130))


def mistakes_figure(
    images: NDArray[np.uint8],
    labels: NDArray[Any],
    predicted: NDArray[Any],
    confidence: NDArray[Any],
    class_names: Sequence[str],
    path: Path,
) -> None:
    """Draws wrongly classified images in a grid, in the given order, the first 25 of them.

    Args:
        images: uint8 `(N, H, W, 3)`.
        labels: the true classes, `(N,)`.
        predicted: what the model says, `(N,)`.
        confidence: the probability of that, 0 to 1, `(N,)`.
        class_names: in the order of the classes.
        path: the PNG to write.

    Raises:
        ShiftViTError: the file cannot be written.
    """
    tiles = [
        Tile(image, class_names[said], float(share), class_names[label])
        for image, label, said, share in zip(images, labels, predicted, confidence, strict=True)
    ][:_SHOWN]
    prediction_grid(tiles, path, "The most confident mistakes" if tiles else "No mistakes", columns=5)


@dataclass(frozen=True, eq=False)
class Explanation:
    """A row of the figure: an image and what was found about it.

    Attributes:
        image: what the model sees, uint8 (H, W, 3).
        caption: the class and its probability.
        heats: the name of a method to its map (h, w); drawn relative to its largest value, 0 and less is cold.
        notes: the name of a method to a line about its map.
    """

    image: NDArray[np.uint8]
    caption: str
    heats: dict[str, NDArray[np.float32]]
    notes: dict[str, str]


def explain_figure(rows: Sequence[Explanation], path: Path, title: str) -> None:
    """Draws a row for each image: the original, then its maps, enlarged so that small images can be looked at.

    More rows than 6 are laid into two halves, side by side.

    Args:
        rows: at least one, all with the same methods.
        path: the PNG to write.
        title: the figure's heading.

    Raises:
        ShiftViTError: the file cannot be written.
    """
    heads = ["image", *rows[0].heats]
    halves = 1 + (len(rows) > _TALL)
    lines = -(-len(rows) // halves)
    step = _SIDE + _GAP, _SIDE + _LINE + _GAP // 2
    broad = len(heads) * step[0] + 2 * _GAP  # of a half
    heading = font(_TITLE, bold=True)
    top = 2 * _GAP + _TITLE + _LINE
    width = max(halves * broad - _GAP, 2 * _GAP + int(heading.getlength(title)))
    picture = Image.new("RGB", (width, top + lines * step[1]), "white")
    draw = ImageDraw.Draw(picture)
    draw.text((_GAP, _GAP), title, _INK, heading)
    for number, row in enumerate(rows):
        half, line = divmod(number, lines)
        large = enlarged(row.image)
        drawn = [(large, row.caption)]
        for name, heat in row.heats.items():
            relative = np.maximum(heat, 0) / max(float(heat.max()), 1e-12)
            drawn.append((overlay(large, relative), row.notes.get(name, "")))
        for column, (pixels, text) in enumerate(drawn):
            left, upper = _GAP + half * broad + column * step[0], top + line * step[1]
            if not line:
                draw.text((left, top - _LINE), heads[column], _INK, font(_TEXT, bold=True))
            picture.paste(Image.fromarray(pixels), (left, upper))
            draw.text((left, upper + large.shape[0] + 3), text, _INK, font(_TEXT))
    files.write_file(path, lambda temporary: picture.save(temporary, "PNG"))


def enlarged(image: NDArray[np.uint8]) -> NDArray[np.uint8]:
    """Returns an image (H, W, 3) with its longer side at a figure's size; small ones keep their pixels visible."""
    scale = _SIDE / max(image.shape[:2])
    size = max(1, round(image.shape[1] * scale)), max(1, round(image.shape[0] * scale))
    method = Image.Resampling.NEAREST if scale > 2 else Image.Resampling.LANCZOS
    return np.asarray(Image.fromarray(image).resize(size, method))


def _reliability(axes: Any, found: dict[str, Any], name: str) -> None:
    filled = [row for row in found["bins"] if row["count"]]
    lower, width = _places(filled)
    accuracy = np.array([row["accuracy"] for row in filled])
    confidence = np.array([row["confidence"] for row in filled])
    axes.bar(lower, accuracy, width, align="edge", color=BLUE, edgecolor="white", linewidth=0.6, label="accuracy")
    hatched: dict[str, Any] = {"facecolor": "none", "edgecolor": ORANGE, "hatch": "////", "linewidth": 0.8}
    gap, foot = np.abs(confidence - accuracy), np.minimum(confidence, accuracy)
    axes.bar(lower, gap, width, foot, align="edge", label="gap to the confidence", **hatched)
    axes.plot([0, 1], [0, 1], color=GREY, linewidth=1, linestyle="--")
    axes.set(xlim=(0, 1), ylim=(0, 1))
    axes.set_title(name, fontweight="bold")
    axes.text(0.97, 0.04, f"ECE {100 * found['ece']:.2f} %", transform=axes.transAxes, ha="right", **_BOX)
    axes.grid(alpha=0.3)
    axes.set_axisbelow(True)


def _counts(axes: Any, found: dict[str, Any]) -> None:
    filled = [row for row in found["bins"] if row["count"]]
    lower, width = _places(filled)
    axes.bar(lower, [row["count"] for row in filled], width, align="edge", color=GREY, edgecolor="white", linewidth=0.6)
    # Most images of a trained model lie in the last bin; on a linear scale the others would vanish.
    axes.set_yscale("log")
    axes.set_ylim(bottom=0.5)
    axes.yaxis.set_major_formatter("{x:,.0f}")
    axes.set_xlabel("Confidence")
    axes.grid(alpha=0.3)
    axes.set_axisbelow(True)


def _places(rows: list[dict[str, Any]]) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    lower = np.array([row["lower"] for row in rows])
    return lower, np.array([row["upper"] for row in rows]) - lower
