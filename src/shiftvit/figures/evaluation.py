"""Figures of an evaluation: reliability diagram, worst mistakes, explanations."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageDraw

from shiftvit.figures.grid import GAP, INK, LINE, SIDE, TITLE, Tile, draw_predictions, load_font, scale_image, shorten
from shiftvit.figures.style import BLUE, GREY, ORANGE, make_figure, save_figure, save_picture, set_whole_ticks

# The most mistakes in a figure; more would be hard to read.
_SHOWN = 25
_TEXT = 17  # size of the font below an explanation, in pixels
_TALL = 6  # rows
# The histogram of the confidence has a linear scale if all its bins have fewer images.
_FEW = 50
# From no support to the greatest: sRGB colours whose lightness (CIE L*) rises in nearly equal steps.
COLOURS = ((20, 12, 56), (98, 21, 108), (176, 45, 92), (232, 93, 50), (250, 165, 40), (250, 235, 150))
_BOX: dict[str, Any] = {"bbox": {"facecolor": "white", "edgecolor": GREY, "boxstyle": "round,pad=0.35"}}


def draw_reliability(before: dict[str, Any], path: Path, after: dict[str, Any] | None = None) -> None:
    """Draws accuracy against confidence, above a histogram of the confidence.

    Args:
        before: the result of `metrics.measure_calibration`.
        path: the PNG to write.
        after: the same after temperature scaling, drawn beside it.

    Raises:
        ShiftViTError: the file cannot be written.
    """
    panels = [("Confidence and accuracy", before)]
    if after is not None:
        panels = [("As trained", before), ("After temperature scaling", after)]
    figure = make_figure(4.9 * len(panels), 5.6)
    rows = figure.subplots(2, len(panels), sharex="all", sharey="row", squeeze=False, height_ratios=(3.2, 1))
    for column, (name, found) in enumerate(panels):
        _draw_reliability(rows[0, column], found, name)
        _draw_counts(rows[1, column], found)
    rows[0, 0].set_ylabel("Accuracy")
    rows[1, 0].set_ylabel("Images")
    rows[0, 0].legend(loc="upper left", framealpha=1)
    save_figure(figure, path)


def draw_mistakes(
    images: NDArray[np.uint8],
    labels: NDArray[Any],
    predicted: NDArray[Any],
    confidence: NDArray[Any],
    class_names: Sequence[str],
    path: Path,
) -> None:
    """Draws the first 25 wrongly classified images in a grid, in the given order.

    Args:
        images: uint8 `(N, H, W, 3)`.
        labels: the true classes, `(N,)`.
        predicted: the predicted classes, `(N,)`.
        confidence: their probabilities, 0 to 1, `(N,)`.
        class_names: in the order of the classes.
        path: the PNG to write.

    Raises:
        ShiftViTError: the file cannot be written.
    """
    tiles = [
        Tile(image, class_names[said], float(share), class_names[label])
        for image, label, said, share in zip(images, labels, predicted, confidence, strict=True)
    ][:_SHOWN]
    draw_predictions(tiles, path, "The most confident mistakes" if tiles else "No mistakes", columns=5)


@dataclass(frozen=True, eq=False)
class Explanation:
    """A row of the figure: an image and its explanations.

    Attributes:
        image: what the model sees, uint8 (H, W, 3).
        label: the class.
        probability: 0 to 1.
        heats: method to map (h, w); it is drawn relative to its largest value, and 0 or less is cold.
        notes: method to a line about its map.
    """

    image: NDArray[np.uint8]
    label: str
    probability: float
    heats: dict[str, NDArray[np.float32]]
    notes: dict[str, str]


def draw_explanations(rows: Sequence[Explanation], path: Path, title: str) -> None:
    """Draws a row for each image: the original, then its maps, enlarged so that small images are visible.

    More than 6 rows go into two halves, side by side.

    Args:
        rows: at least one, all with the same methods.
        path: the file to write; its suffix, one of `style.ENDINGS`, decides the format.
        title: the figure's heading.

    Raises:
        ShiftViTError: the file cannot be written, or has another suffix.
    """
    heads = ["image", *rows[0].heats]
    halves = 1 + (len(rows) > _TALL)
    lines = -(-len(rows) // halves)
    step = SIDE + GAP, SIDE + LINE + GAP // 2
    broad = len(heads) * step[0] + 2 * GAP  # of a half
    heading = load_font(TITLE, bold=True)
    top = 2 * GAP + TITLE + LINE
    width = max(halves * broad - GAP, 2 * GAP + int(heading.getlength(title)))
    picture = Image.new("RGB", (width, top + lines * step[1]), "white")
    draw = ImageDraw.Draw(picture)
    draw.text((GAP, GAP), title, INK, heading)
    for number, row in enumerate(rows):
        half, line = divmod(number, lines)
        large = np.asarray(scale_image(row.image))
        caption = shorten(row.label, f"  {100 * row.probability:.0f}%", load_font(_TEXT))
        drawn = [(large, caption)]
        for name, heat in row.heats.items():
            relative = np.maximum(heat, 0) / max(float(heat.max()), 1e-12)
            drawn.append((overlay(large, relative), row.notes.get(name, "")))
        for column, (pixels, text) in enumerate(drawn):
            left, upper = GAP + half * broad + column * step[0], top + line * step[1]
            if not line:
                draw.text((left, top - LINE), heads[column], INK, load_font(_TEXT, bold=True))
            picture.paste(Image.fromarray(pixels), (left, upper))
            draw.text((left, upper + large.shape[0] + 3), text, INK, load_font(_TEXT))
    save_picture(picture, path)


def overlay(image: NDArray[np.uint8], heat: NDArray[Any]) -> NDArray[np.uint8]:
    """Lays a heat map over an image: grey and dark where it is cold, bright where it is hot.

    Args:
        image: uint8 `(H, W, 3)`.
        heat: `(h, w)`, 0 to 1 (values outside are clipped), resized bilinearly to the image.

    Returns:
        uint8 `(H, W, 3)`.
    """
    level, colour = _map_colours(heat, *image.shape[:2])
    grey = image @ np.array([0.299, 0.587, 0.114])  # ITU-R BT.601
    share = (0.25 + 0.45 * level)[..., None]
    return np.asarray(np.rint((1 - share) * grey[..., None] + share * colour), np.uint8)


def make_heat_layer(heat: NDArray[Any], height: int, width: int) -> NDArray[np.uint8]:
    """Returns a heat map in the colours of `overlay` to be laid over an image: uint8 `(height, width, 4)`, RGBA.

    It is transparent where nothing supports the class.
    """
    level, colour = _map_colours(heat, height, width)
    return np.asarray(np.rint(np.concatenate([colour, 255 * level[..., None]], axis=-1)), np.uint8)


def _map_colours(heat: NDArray[Any], height: int, width: int) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    """Returns a heat map at another size, (height, width) from 0 to 1, and its colours, (height, width, 3)."""
    cold = Image.fromarray(np.clip(heat, 0, 1).astype(np.float32))
    level = np.asarray(cold.resize((width, height), Image.Resampling.BILINEAR), np.float64)
    anchors = np.array(COLOURS, np.float64)
    places = np.linspace(0, 1, len(anchors))
    return level, np.stack([np.interp(level, places, channel) for channel in anchors.T], axis=-1)


def _draw_reliability(axes: Any, found: dict[str, Any], name: str) -> None:
    filled = [row for row in found["bins"] if row["count"]]
    lower, width = _find_edges(filled)
    accuracy = np.array([row["accuracy"] for row in filled])
    confidence = np.array([row["confidence"] for row in filled])
    axes.bar(lower, accuracy, width, align="edge", color=BLUE, edgecolor="white", linewidth=0.6, label="accuracy")
    hatched: dict[str, Any] = {"facecolor": "none", "edgecolor": ORANGE, "hatch": "////", "linewidth": 0.8}
    gap, foot = np.abs(confidence - accuracy), np.minimum(confidence, accuracy)
    axes.bar(lower, gap, width, foot, align="edge", label="gap to the confidence", **hatched)
    axes.plot([0, 1], [0, 1], color=GREY, linewidth=1, linestyle="--")
    axes.set(xlim=(0, 1), ylim=(0, 1))
    axes.set_title(name, fontweight="bold")
    axes.text(0.97, 0.04, f"ECE {100 * found['ece']:.2f}%", transform=axes.transAxes, ha="right", **_BOX)
    axes.grid(alpha=0.3)
    axes.set_axisbelow(True)


def _draw_counts(axes: Any, found: dict[str, Any]) -> None:
    filled = [row for row in found["bins"] if row["count"]]
    lower, width = _find_edges(filled)
    counts = [row["count"] for row in filled]
    axes.bar(lower, counts, width, align="edge", color=GREY, edgecolor="white", linewidth=0.6)
    if max(counts) < _FEW:
        set_whole_ticks(axes.yaxis)
    else:
        # Most images of a trained model are in the last bin; on a linear scale the others would vanish.
        axes.set_yscale("log")
        axes.set_ylim(bottom=0.5)
        axes.yaxis.set_major_formatter("{x:,.0f}")
        axes.yaxis.set_minor_formatter("")
    axes.set_xlabel("Confidence")
    axes.grid(alpha=0.3)
    axes.set_axisbelow(True)


def _find_edges(rows: list[dict[str, Any]]) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    lower = np.array([row["lower"] for row in rows])
    return lower, np.array([row["upper"] for row in rows]) - lower
