"""Draws docs/figures/shift.png: what the shift does to each group of channels.

python docs/make_figures.py
"""

from __future__ import annotations

from pathlib import Path

import numpy as np
from matplotlib.figure import Figure

from shiftvit import Shift

FIGURES = Path(__file__).parent / "figures"
GROUPS = ("moves left", "moves right", "moves up", "moves down", "stays")


def main() -> None:
    side, group = 7, 1
    rows, columns = np.mgrid[:side, :side]
    ring = np.hypot(rows - 3, columns - 3)
    pattern = np.where(np.abs(ring - 2.2) < 0.7, 1.0, 0.35 + 0.05 * (rows + columns) / 2)
    x = np.repeat(pattern[None, :, :, None], 5 * group, axis=-1).astype(np.float32)  # (1, 7, 7, 5)
    y = np.asarray(Shift(shift_channels=group)(x))

    figure = Figure(figsize=(10.5, 4.6), layout="constrained")
    figure.suptitle("The shift: four groups of channels move by one pixel, the rest stay", fontweight="bold")
    grid = figure.subplots(2, 5)
    for index, name in enumerate(GROUPS):
        for line, (values, label) in enumerate(((x, "before"), (y, "after"))):
            axes = grid[line, index]
            picture = values[0, :, :, index]
            axes.imshow(np.ma.masked_equal(picture, 0), cmap="Blues", vmin=0, vmax=1.1)
            axes.set_facecolor("#E69F00")
            axes.set_xticks(np.arange(-0.5, side), labels=[])
            axes.set_yticks(np.arange(-0.5, side), labels=[])
            axes.grid(color="white", linewidth=0.8)
            axes.tick_params(length=0)
            if line == 0:
                axes.set_title(f"group {index + 1}: {name}" if index < 4 else "all others: stay", fontsize=10)
            if index == 0:
                axes.set_ylabel(label, fontsize=11)
    grid[1, 2].set_xlabel("orange: zeros that moved in; what moved out is lost", fontsize=10)
    FIGURES.mkdir(exist_ok=True)
    figure.savefig(FIGURES / "shift.png", dpi=110)


if __name__ == "__main__":
    main()
