"""Draws the shift in motion, docs/figures/shift*.webp, and one frame of it for those who want no motion, shift*.png.

    python docs/make_shift.py

A sample picture goes through the first two blocks of the packaged model. Of each group of channels one is shown, the
one that looks most like the picture. What is drawn at rest are the model's own arrays.
"""

from __future__ import annotations

from dataclasses import dataclass
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
from matplotlib.axes import Axes
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.colors import LinearSegmentedColormap, to_rgb
from matplotlib.figure import Figure
from matplotlib.patches import Circle, FancyBboxPatch, Rectangle
from numpy.typing import NDArray
from PIL import Image

from shiftvit import Bundle, Shift
from shiftvit.bundle.stored.find import PRETRAINED
from shiftvit.figures.style import BLUE, GREEN, GREY, RED
from shiftvit.model.shift import SOURCES

FIGURES = Path(__file__).parent / "figures"
PICTURE = PRETRAINED / "samples" / "horse" / "test_00013.png"
FOLLOWED = (8, 9)  # the pixel of the map that is followed: row, column

# Pixels of the figure: its size, its left margin, a map's pixel, a map, and from one map to the next.
WIDTH, HEIGHT, LEFT = 1200, 810, 44
CELL = 12
SIZE = 16 * CELL
PITCH = SIZE + 2 * CELL + 40
SLIDE, MIX = 14, 8  # frames
TICK = 60  # milliseconds of a frame
# Seconds of rest before the first move, and after each.
RESTS = (1.6, 2.0, 1.6, 1.6, 3.0)
# Two more of the same set as the package's colours; zeros are yellow, which no map is.
PURPLE, YELLOW = "#CC79A7", "#F0E442"
INK = "#1f2328"
COLOURS = (BLUE, RED, GREEN, PURPLE, GREY)
# Where the groups stand, in columns and rows: each on the side that it moves to.
PLACES = ((0, 1), (2, 1), (1, 0), (1, 2), (1, 1))
LABELS = ("← {} channels", "{} channels →", "↑ {} channels", "↓ {} channels", "{} stay")
STEPS = ("shift", "mix", "shift", "mix")
CAPTIONS = (
    "A picture as a map of\n16 × 16 pixels with\n64 channels.",
    "Four groups of channels\nmove by one pixel. Zeros\nenter, the rest stay.",
    "An MLP mixes the\nchannels of each pixel,\none pixel at a time.",
    "The next block moves\nwhat was mixed by one\npixel more.",
    "After two blocks it has\ngone two pixels far,\nwithout attention.",
)


@dataclass(frozen=True)
class Theme:
    """Colours of what is around the maps."""

    paper: str
    ink: str
    muted: str
    padding: str


# GitHub's own, light and dark.
LIGHT = Theme("#ffffff", INK, "#6e7781", "#e9e4cf")
DARK = Theme("#0d1117", "#f0f6fc", "#8b949e", "#3a3726")


@dataclass(frozen=True)
class State:
    """The maps after a step.

    Attributes:
        maps: (16, 16, 5), a channel of each group.
        zeros: (16, 16, 5), where zeros have entered.
        marks: (16, 16, 5), where something is known of the pixel that is followed.
        span: for each channel, the values that are drawn palest and fullest, (5, 2).
        widths: how many channels each group has.
    """

    maps: NDArray[np.float32]
    zeros: NDArray[np.bool_]
    marks: NDArray[np.bool_]
    span: NDArray[np.float32]
    widths: tuple[int, ...]


def follow(picture: NDArray[np.uint8]) -> list[State]:
    """Returns the states of the first two blocks: before, and after each shift and each MLP.

    Args:
        picture: uint8 (32, 32, 3).
    """
    from keras.ops import convert_to_numpy  # once shiftvit has chosen the backend

    bundle = Bundle.load("cifar10")
    backbone = bundle.build().backbone
    blocks = [backbone.get_layer(f"stage1_block{number}") for number in (1, 2)]
    steps: list[Any] = [backbone.get_layer("patch_embed")(bundle.prepare(picture[None]))]  # (1, 16, 16, 64)
    for block in blocks:
        steps += [block.shift(steps[-1]), block(steps[-1])]
    arrays = [convert_to_numpy(step)[0] for step in steps]
    width = blocks[0].shift.group
    shown = _channels(arrays, picture, width)

    side = arrays[0].shape[0]
    mark = np.zeros((1, side, side, 5), np.float32)
    mark[0, *FOLLOWED] = 1
    move = Shift(shift_channels=1)
    inside = convert_to_numpy(move(np.ones_like(mark)))[0] > 0
    states = []
    for index, array in enumerate(arrays):
        shifted = index % 2 == 1
        if shifted:
            mark = convert_to_numpy(move(mark))
        elif index:  # an MLP gives each channel of a pixel something of all its channels
            mark = np.broadcast_to(mark.max(-1, keepdims=True), mark.shape)
        maps = array[..., shown]
        scale = states[-1].span if shifted else np.percentile(maps, (2, 98), axis=(0, 1)).T
        widths = (width,) * 4 + (array.shape[-1] - 4 * width,)
        states.append(State(maps, ~inside if shifted else np.zeros_like(inside), mark[0] > 0, scale, widths))
    return states


def _channels(arrays: list[NDArray[np.float32]], picture: NDArray[np.uint8], width: int) -> list[int]:
    """Returns the channel of each group that is most like the picture, by its mean correlation with the brightness."""
    side = arrays[0].shape[0]
    light = picture.mean(-1).reshape(side, picture.shape[0] // side, side, -1).mean((1, 3)).ravel()
    likeness = sum(np.abs(np.corrcoef(light, array.reshape(side**2, -1).T)[0, 1:]) for array in arrays[::2])
    borders = [*range(0, 5 * width, width), arrays[0].shape[-1]]
    return [int(first + likeness[first:last].argmax()) for first, last in pairwise(borders)]


def colours(state: State) -> NDArray[np.float64]:
    """Returns the maps as they are drawn, RGB (16, 16, 5, 3) from 0 to 1."""
    low, high = state.span.T
    values = np.clip((state.maps - low) / (high - low), 0, 1)
    ramps = [LinearSegmentedColormap.from_list(colour, ["#ffffff", colour]) for colour in COLOURS]
    drawn = np.stack([ramp(values[..., index])[..., :3] for index, ramp in enumerate(ramps)], axis=2)
    drawn[state.zeros] = to_rgb(YELLOW)
    return drawn


def timeline() -> list[tuple[int, float, int]]:
    """Returns the frames: (step that is done or under way, its progress from 0 to 1, milliseconds)."""
    frames = [(0, 1.0, round(1000 * RESTS[0]))]
    for step in range(1, len(STEPS) + 1):
        count = SLIDE if STEPS[step - 1] == "shift" else MIX
        frames += [(step, ease(part / count), TICK) for part in range(1, count)]
        frames.append((step, 1.0, round(1000 * RESTS[step])))
    return frames


def ease(part: float) -> float:
    """Starts and ends gently: from 0 to 1 as `part` does."""
    return part**2 * (3 - 2 * part)


def draw(states: list[State], picture: NDArray[np.uint8], step: int, progress: float, theme: Theme) -> Image.Image:
    """Draws a frame.

    Args:
        states: as `follow` returns them.
        picture: uint8 (32, 32, 3).
        step: the step that is under way; 0: before the first.
        progress: how far it is, from 0 to 1.
        theme: the colours around the maps.
    """
    figure = Figure(figsize=(WIDTH / 100, HEIGHT / 100), dpi=100, facecolor=theme.paper)
    axes = figure.add_axes((0, 0, 1, 1))
    axes.set(xlim=(0, WIDTH), ylim=(HEIGHT, 0))
    axes.axis("off")
    _draw_story(axes, step, theme)
    _draw_picture(axes, picture, states[step - (progress < 1)].marks.any(-1), theme)
    _draw_legend(axes, theme)
    mixing = step > 0 and STEPS[step - 1] == "mix"
    for group in range(5):
        x, y = origin(group)
        text = LABELS[group].format(states[step].widths[group])
        axes.text(x + SIZE / 2, y - CELL - 8, text, color=theme.ink, fontsize=19, ha="center", fontweight="bold")
        axes.add_patch(Rectangle((x - CELL, y - CELL), SIZE + 2 * CELL, SIZE + 2 * CELL, facecolor=theme.padding))
        before, after = states[max(step - 1, 0)], states[step]
        if progress == 1:
            _draw_map(axes, x, y, colours(after)[:, :, group])
            _draw_marks(axes, x, y, after.marks[..., group])
        elif mixing:
            fading = (1 - progress) * colours(before) + progress * colours(after)
            _draw_map(axes, x, y, fading[:, :, group])
            _draw_marks(axes, x, y, after.marks[..., group], alpha=progress)
            _draw_marks(axes, x, y, before.marks[..., group])
        else:
            _draw_move(axes, x, y, before, group, progress, theme)
        axes.add_patch(Rectangle((x, y), SIZE, SIZE, fill=False, edgecolor=theme.ink, linewidth=1.6, zorder=5))
    if mixing and progress < 1:
        _draw_mixing(axes, float(np.sin(np.pi * progress)), theme)
    canvas = FigureCanvasAgg(figure)
    canvas.draw()
    return Image.fromarray(np.asarray(canvas.buffer_rgba())).convert("RGB")


def origin(group: int) -> tuple[int, int]:
    """Returns the upper left corner of a group's map, (x, y) in pixels of the figure."""
    column, row = PLACES[group]
    return 446 + column * PITCH, 68 + row * PITCH


def _draw_map(axes: Axes, x: float, y: float, pixels: NDArray[Any]) -> Any:
    image = axes.imshow(pixels, extent=(x, x + SIZE, y + SIZE, y), interpolation="nearest", zorder=2)
    axes.set(xlim=(0, WIDTH), ylim=(HEIGHT, 0))  # imshow sets its own
    return image


def _draw_move(axes: Axes, x: float, y: float, before: State, group: int, progress: float, theme: Theme) -> None:
    """Draws a group on its way: zeros come in on one side, and what leaves on the other fades."""
    down, right = (-side for side in SOURCES[group]) if group < 4 else (0, 0)
    at_x, at_y = x + right * CELL * progress, y + down * CELL * progress
    _draw_map(axes, at_x, at_y, colours(before)[:, :, group])
    if group < 4:
        _draw_line(axes, at_x, at_y, (-down, -right), YELLOW, min(1, 3 * progress))
        _draw_line(axes, x, y, (down, right), theme.padding, progress)
    _draw_marks(axes, at_x, at_y, before.marks[..., group])


def _draw_line(axes: Axes, x: float, y: float, side: tuple[int, int], colour: str, alpha: float) -> None:
    """Draws a line of pixels just outside a map: (-1, 0) above it, (0, 1) at its right, and so on."""
    down, right = side
    corner = x + (-CELL, 0, SIZE)[right + 1], y + (-CELL, 0, SIZE)[down + 1]
    width, height = (SIZE, CELL) if down else (CELL, SIZE)
    axes.add_patch(Rectangle(corner, width, height, facecolor=colour, alpha=alpha, linewidth=0, zorder=3))


def _draw_marks(axes: Axes, x: float, y: float, marks: NDArray[np.bool_], cell: float = CELL, alpha: float = 1) -> None:
    for row, column in np.argwhere(marks):
        _draw_square(axes, x + (column + 0.5) * cell, y + (row + 0.5) * cell, cell, INK, alpha)


def _draw_square(axes: Axes, x: float, y: float, side: float, colour: str, alpha: float = 1) -> None:
    """Draws a square around a place, with a white border on whatever is behind it."""
    for width, shade in ((side, "white"), (side - 3, colour)):
        corner = x - width / 2, y - width / 2
        axes.add_patch(Rectangle(corner, width, width, facecolor=shade, alpha=alpha, linewidth=0, zorder=6))


def _draw_mixing(axes: Axes, alpha: float, theme: Theme) -> None:
    """Joins the pixel that is followed in all groups."""
    places = [(x + (FOLLOWED[1] + 0.5) * CELL, y + (FOLLOWED[0] + 0.5) * CELL) for x, y in map(origin, range(5))]
    for place in places[:4]:
        xs, ys = zip(place, places[4], strict=True)
        axes.plot(xs, ys, color=theme.ink, linewidth=3, alpha=alpha, zorder=7)
    for place in places:
        axes.add_patch(Circle(place, 9, facecolor=theme.ink, alpha=alpha, linewidth=0, zorder=8))


def _draw_legend(axes: Axes, theme: Theme) -> None:
    """Says in two free corners what the small squares are."""
    for column, colour, text in ((0, INK, "one pixel's\ninformation"), (2, YELLOW, "zeros of\nthe padding")):
        x, y = 446 + column * PITCH, 68 + 2 * PITCH + SIZE / 2
        _draw_square(axes, x + 13, y, 26, colour)
        axes.text(x + 40, y, text, fontsize=17, color=theme.ink, va="center", linespacing=1.3)


def _draw_story(axes: Axes, step: int, theme: Theme) -> None:
    axes.text(LEFT, 92, "Shift, then mix", fontsize=29, fontweight="bold", color=theme.ink)
    for index, name in enumerate(STEPS):
        active = index + 1 == step
        x = LEFT + 2 + index * 86
        fill, edge, letters = (theme.ink, theme.ink, theme.paper) if active else ("none", theme.muted, theme.muted)
        style = "round,pad=0,rounding_size=10"
        axes.add_patch(FancyBboxPatch((x, 122), 74, 40, style, facecolor=fill, edgecolor=edge, linewidth=1.6))
        weight = "bold" if active else "normal"
        axes.text(x + 37, 142, name, fontsize=17, color=letters, fontweight=weight, ha="center", va="center")
    axes.text(LEFT, 196, CAPTIONS[step], fontsize=19.5, color=theme.ink, va="top", linespacing=1.45)


def _draw_picture(axes: Axes, picture: NDArray[np.uint8], known: NDArray[np.bool_], theme: Theme) -> None:
    """Draws the picture, and where in it something is known of the pixel that is followed."""
    side, top = 272, 400
    axes.imshow(picture, extent=(LEFT, LEFT + side, top + side, top), interpolation="nearest")
    _draw_marks(axes, LEFT, top, known, side / len(known))
    count = int(known.sum())
    text = f"in {count} pixel{'s' if count > 1 else ''}"
    _draw_square(axes, LEFT + 13, top + side + 48, 26, INK)
    axes.text(LEFT + 40, top + side + 57, text, fontsize=24, color=theme.ink, fontweight="bold")


def film(states: list[State], picture: NDArray[np.uint8], theme: Theme, path: Path) -> None:
    """Writes the animation, which begins anew when it ends."""
    frames = timeline()
    first, *others = (draw(states, picture, step, progress, theme) for step, progress, _ in frames)
    times = [time for *_, time in frames]
    first.save(path, save_all=True, append_images=others, duration=times, loop=0, quality=80, method=6)


def main() -> None:
    picture = np.asarray(Image.open(PICTURE))
    states = follow(picture)
    for name, theme in (("shift", LIGHT), ("shift_dark", DARK)):
        film(states, picture, theme, FIGURES / f"{name}.webp")
        draw(states, picture, 1, 1.0, theme).save(FIGURES / f"{name}.png", optimize=True)


if __name__ == "__main__":
    main()
