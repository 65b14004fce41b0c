"""What all figures share: the colours, and figures that are written as PNG, whole or not at all."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

from shiftvit import files

if TYPE_CHECKING:
    from matplotlib.figure import Figure

# Colour-blind safe (Okabe and Ito).
BLUE, ORANGE, GREEN, RED, GREY = "#0072B2", "#E69F00", "#009E73", "#D55E00", "#666666"


def new_figure(width: float, height: float) -> Figure:
    """Returns an empty figure, of so many inches."""
    # Without pyplot: no global state, no window, and half of the import time.
    from matplotlib.figure import Figure

    return Figure(figsize=(width, height), layout="constrained")


def save_figure(figure: Figure, path: Path) -> None:
    """Writes a figure as PNG.

    Raises:
        ShiftViTError: the file cannot be written.
    """
    files.write_file(path, lambda temporary: figure.savefig(temporary, dpi=130))
