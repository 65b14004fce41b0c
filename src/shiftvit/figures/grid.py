"""A grid of predictions: images with label and confidence, correct ones and errors in different colours.

Pillow draws it, because a plotting library would take longer to import than the model takes to predict.
"""

from __future__ import annotations

import importlib.util
from collections.abc import Sequence
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageDraw, ImageFont

from shiftvit import files
from shiftvit.figures.style import GREEN, RED

GRID_ENDINGS = (".png", ".jpg", ".jpeg", ".webp")
# The layout in pixels: side of an image, gap, size of a label's font, height of its line, size of the title's font.
SIDE, GAP, _TEXT, LINE, TITLE = 192, 16, 19, 26, 24
INK = "#1a1a1a"


@dataclass(frozen=True, eq=False)
class Tile:
    """An image uint8 (H, W, 3) of any size, its prediction and, if known, its true class."""

    image: NDArray[np.uint8]
    label: str
    confidence: float
    truth: str | None = None

    @property
    def right(self) -> bool | None:
        return None if self.truth is None else self.truth == self.label


def draw_predictions(tiles: Sequence[Tile], path: Path, title: str, columns: int = 6) -> None:
    """Draws tiles row by row. If the true class is known, correct ones are green, and errors red with the true class.

    Args:
        tiles: the images.
        path: the picture; its suffix, one of `GRID_ENDINGS`, decides the format.
        title: the figure's heading.
        columns: images in a row.

    Raises:
        ShiftViTError: the file cannot be written, or has another suffix.
    """
    files.check_file(path, GRID_ENDINGS)
    columns = max(1, min(columns, len(tiles)))
    rows = -(-len(tiles) // columns)
    captions = 1 + any(tile.right is False for tile in tiles)
    step = SIDE + GAP, SIDE + captions * LINE + GAP
    heading = load_font(TITLE, bold=True)
    width = max(GAP + columns * step[0], 2 * GAP + int(heading.getlength(title)))
    top = 2 * GAP + TITLE
    picture = Image.new("RGB", (width, top + rows * step[1]), "white")
    draw = ImageDraw.Draw(picture)
    draw.text((GAP, GAP), title, INK, heading)
    for index, tile in enumerate(tiles):
        row, column = divmod(index, columns)
        left, upper = GAP + column * step[0], top + row * step[1]
        colour = {None: INK, True: GREEN, False: RED}[tile.right]
        image = scale_image(tile.image)
        picture.paste(image, (left + (SIDE - image.width) // 2, upper + (SIDE - image.height) // 2))
        if tile.right is not None:
            draw.rectangle((left - 3, upper - 3, left + SIDE + 2, upper + SIDE + 2), outline=colour, width=3)
        lines = [(tile.label, f"  {100 * tile.confidence:.0f}%")]
        if tile.right is False:
            lines.append((f"is {tile.truth}", ""))
        for number, (text, tail) in enumerate(lines):
            place = left, upper + SIDE + 4 + number * LINE
            draw.text(place, shorten(text, tail, load_font(_TEXT)), colour, load_font(_TEXT))
    files.write_file(path, lambda temporary: picture.save(temporary))


def scale_image(pixels: NDArray[np.uint8]) -> Image.Image:
    """Returns an image (H, W, 3) with its longer side at a figure's size. The pixels of small images stay visible."""
    image = Image.fromarray(pixels)
    scale = SIDE / max(image.size)
    size = max(1, round(image.width * scale)), max(1, round(image.height * scale))
    return image.resize(size, Image.Resampling.NEAREST if scale > 2 else Image.Resampling.LANCZOS)


def shorten(text: str, tail: str, font: Any) -> str:
    """Returns a text and its tail; cuts the text if both together are wider than a tile."""
    if font.getlength(text + tail) <= SIDE:
        return text + tail
    while text and font.getlength(f"{text}…{tail}") > SIDE:
        text = text[:-1]
    return f"{text}…{tail}"


@lru_cache(maxsize=4)
def load_font(size: int, bold: bool = False) -> Any:
    # matplotlib ships DejaVu, which covers far more scripts than Pillow's own font; locating it imports nothing.
    package = importlib.util.find_spec("matplotlib")
    if package is not None and package.origin is not None:
        name = "DejaVuSans-Bold.ttf" if bold else "DejaVuSans.ttf"
        place = Path(package.origin).parent / "mpl-data" / "fonts" / "ttf" / name
        if place.is_file():
            return ImageFont.truetype(str(place), size)
    return ImageFont.load_default(size)
