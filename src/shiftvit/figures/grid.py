"""A grid of predictions: images with label and confidence, correct ones and errors in different colours.

Drawn with Pillow alone: a plotting library would take longer to import than the model takes to predict.
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
# In pixels of the picture.
_SIDE, _GAP, _TEXT, _LINE, _TITLE = 192, 16, 19, 26, 24
_INK = "#1a1a1a"


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
    """Draws tiles row by row. With known truth, correct ones are green, and errors red with the true class.

    Args:
        tiles: the images.
        path: the picture; its ending, one of `GRID_ENDINGS`, decides the format.
        title: stands above.
        columns: images in a row.

    Raises:
        ShiftViTError: the file cannot be written, or has another ending.
    """
    files.check_file(path, GRID_ENDINGS)
    columns = max(1, min(columns, len(tiles)))
    rows = -(-len(tiles) // columns)
    captions = 1 + any(tile.right is False for tile in tiles)
    step = _SIDE + _GAP, _SIDE + captions * _LINE + _GAP
    heading = load_font(_TITLE, bold=True)
    width = max(_GAP + columns * step[0], 2 * _GAP + int(heading.getlength(title)))
    top = 2 * _GAP + _TITLE
    picture = Image.new("RGB", (width, top + rows * step[1]), "white")
    draw = ImageDraw.Draw(picture)
    draw.text((_GAP, _GAP), title, _INK, heading)
    for index, tile in enumerate(tiles):
        row, column = divmod(index, columns)
        left, upper = _GAP + column * step[0], top + row * step[1]
        colour = {None: _INK, True: GREEN, False: RED}[tile.right]
        _paste(picture, tile.image, left, upper)
        if tile.right is not None:
            draw.rectangle((left - 3, upper - 3, left + _SIDE + 2, upper + _SIDE + 2), outline=colour, width=3)
        lines = [(tile.label, f"  {100 * tile.confidence:.0f} %")]
        if tile.right is False:
            lines.append((f"is {tile.truth}", ""))
        for number, (text, tail) in enumerate(lines):
            place = left, upper + _SIDE + 4 + number * _LINE
            draw.text(place, _shorten(text, tail, load_font(_TEXT)), colour, load_font(_TEXT))
    files.write_file(path, lambda temporary: picture.save(temporary))


def _paste(picture: Image.Image, pixels: NDArray[np.uint8], left: int, upper: int) -> None:
    """Centres an image in its square, as large as fits; the pixels of small images stay visible."""
    image = Image.fromarray(pixels)
    scale = _SIDE / max(image.size)
    size = max(1, round(image.width * scale)), max(1, round(image.height * scale))
    image = image.resize(size, Image.Resampling.NEAREST if scale > 2 else Image.Resampling.LANCZOS)
    picture.paste(image, (left + (_SIDE - size[0]) // 2, upper + (_SIDE - size[1]) // 2))


def _shorten(text: str, tail: str, font: Any) -> str:
    if font.getlength(text + tail) <= _SIDE:
        return text + tail
    while text and font.getlength(f"{text}…{tail}") > _SIDE:
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
