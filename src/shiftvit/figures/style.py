"""The colours of all figures, and how they are made and saved."""

from __future__ import annotations

import warnings
from base64 import b64encode
from collections.abc import Iterator
from contextlib import contextmanager
from functools import cache
from io import BytesIO
from pathlib import Path
from typing import TYPE_CHECKING, Literal

from shiftvit import files

if TYPE_CHECKING:
    from matplotlib.axis import Axis
    from matplotlib.figure import Figure
    from PIL.Image import Image

# Colour-blind safe (Okabe and Ito).
BLUE, ORANGE, GREEN, RED, GREY = "#0072B2", "#E69F00", "#009E73", "#D55E00", "#666666"

# The suffixes of a figure's file; they decide the format.
ENDINGS = (".png", ".pdf", ".svg", ".jpg", ".jpeg", ".webp")


def make_figure(width: float, height: float, layout: Literal["constrained"] | None = "constrained") -> Figure:
    """Returns an empty figure. A notebook shows it if it is the last value of a cell.

    Args:
        width, height: in inches.
        layout: None: the caller places the parts.
    """
    return _make_figure_class()(figsize=(width, height), layout=layout)


@cache
def _make_figure_class() -> type[Figure]:
    # pyplot would need twice the import time, global state and a window system. So notebooks need this subclass.
    from matplotlib.figure import Figure

    class NotebookFigure(Figure):
        def _repr_png_(self) -> bytes:
            png = BytesIO()
            self.savefig(png, format="png", dpi=110)
            return png.getvalue()

    return NotebookFigure


def set_whole_ticks(axis: Axis) -> None:
    """Marks an axis of counts at whole numbers only, even if it is shorter than 1."""
    from matplotlib.ticker import MaxNLocator

    axis.set_major_locator(MaxNLocator(integer=True, min_n_ticks=1))
    axis.set_major_formatter("{x:,.0f}")


def save_figure(figure: Figure, path: Path) -> None:
    """Writes a figure in the format of the file's suffix, one of `ENDINGS`.

    Raises:
        ShiftViTError: the file cannot be written, or has another suffix.
    """
    files.check_file(path, ENDINGS)
    with silence_missing_glyphs():
        files.write_file(path, lambda temporary: figure.savefig(temporary, dpi=130))


def save_picture(picture: Image, path: Path) -> None:
    """Writes a picture in the format of the file's suffix, one of `ENDINGS`. An SVG holds it as a PNG.

    Raises:
        ShiftViTError: the file cannot be written, or has another suffix.
    """
    files.check_file(path, ENDINGS)
    files.write_file(path, lambda temporary: _write_picture(picture, temporary))


def _write_picture(picture: Image, path: Path) -> None:
    if path.suffix.lower() != ".svg":
        picture.save(path)
        return
    png = BytesIO()
    picture.save(png, "PNG")
    size = f'width="{picture.width}" height="{picture.height}"'
    content = f"data:image/png;base64,{b64encode(png.getvalue()).decode('ascii')}"
    path.write_text(
        '<?xml version="1.0" encoding="utf-8"?>\n<svg xmlns="http://www.w3.org/2000/svg" '
        f'xmlns:xlink="http://www.w3.org/1999/xlink" {size}><image {size} xlink:href="{content}"/></svg>\n',
        "utf-8",
    )


@contextmanager
def silence_missing_glyphs() -> Iterator[None]:
    """Silences the warning about letters that the font lacks. matplotlib draws boxes for them."""
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", "Glyph .* missing from font", UserWarning)
        yield
