"""Figures of a run: learning curves, confusion matrix, top-1 under corruption, search for a learning rate."""

from __future__ import annotations

from collections.abc import Collection
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from shiftvit.errors import pluralize
from shiftvit.figures.style import BLUE, GREEN, GREY, ORANGE, make_figure, save_figure, set_whole_ticks

# Rows of a confusion matrix; a figure has few more pixels.
_DRAWN = 1000


def draw_learning_curves(
    history: list[dict[str, Any]], rates: NDArray[np.float32], path: Path, *, title: str, steps: int
) -> None:
    """Draws loss, top-1 and learning rate over the epochs.

    Args:
        history: the rows of a run's `log.jsonl`.
        rates: the learning rate at every step of the whole schedule.
        path: the PNG to write.
        title: the figure's heading.
        steps: steps in an epoch.
    """
    epochs = [row["epoch"] for row in history]
    figure = make_figure(11, 3.6)
    figure.suptitle(title, fontweight="bold")
    loss, top1, rate = figure.subplots(1, 3)
    loss.plot(epochs, [row["loss"] for row in history], color=BLUE, marker="o", markersize=3, label="training")
    top1.plot(epochs, [100 * row["top1"] for row in history], color=BLUE, marker="o", markersize=3, label="training")
    validated = [row for row in history if "val_loss" in row]
    if validated:
        at = [row["epoch"] for row in validated]
        style: dict[str, Any] = {"color": ORANGE, "marker": "s", "markersize": 3, "label": "validation"}
        loss.plot(at, [row["val_loss"] for row in validated], **style)
        top1.plot(at, [100 * row["val_top1"] for row in validated], **style)
    rate.plot(np.arange(len(rates)) / steps, rates, color=GREEN)
    rate.axvline(epochs[-1], color=GREY, linewidth=0.8, linestyle=":")
    for axes, name in ((loss, "Loss (nats)"), (top1, "Top-1 (%)"), (rate, "Learning rate (dotted: the run's end)")):
        axes.set_title(name)
        axes.set_xlabel("Epoch")
        set_whole_ticks(axes.xaxis)
        axes.grid(alpha=0.3)
    loss.legend()
    top1.legend()
    rate.ticklabel_format(axis="y", scilimits=(-3, 3))
    save_figure(figure, path)


def draw_confusion_matrix(matrix: Any, labels: tuple[str, ...], path: Path) -> None:
    """Draws a confusion matrix `(C, C)`, whose rows are the true classes, in percent. Names up to 30 classes.

    Args:
        matrix: as `count_confusion` returns it. A sparse one is drawn with neighbouring classes joined.
        labels: the class names.
        path: the file to write.
    """
    images, hits = int(matrix.sum()), int(matrix.trace())
    if not isinstance(matrix, np.ndarray):
        matrix = _join_classes(matrix)
    totals = matrix.sum(axis=1, keepdims=True)
    share = 100.0 * matrix / np.maximum(totals, 1)
    count = len(labels)
    side = min(max(4.5, 1.5 + 0.6 * count), 14)
    figure = make_figure(side + 0.8, side)
    axes = figure.subplots()
    picture = axes.imshow(share, cmap="Blues", vmin=0, vmax=100, extent=(-0.5, count - 0.5, count - 0.5, -0.5))
    accuracy = 100.0 * hits / max(images, 1)
    axes.set_title(f"Confusion on {pluralize(images, 'image')} (top-1 {accuracy:.2f}%)", fontweight="bold")
    axes.set_xlabel("Predicted class")
    axes.set_ylabel("True class")
    if count <= 30:
        axes.set_xticks(range(count), labels, rotation=45, ha="right", rotation_mode="anchor", parse_math=False)
        axes.set_yticks(range(count), labels, parse_math=False)
        for row in np.flatnonzero(totals == 0).tolist():
            axes.text((count - 1) / 2, row, "no images", ha="center", va="center", color=GREY, fontsize=8)
        for row, column in np.ndindex(count, count):
            value = share[row, column]
            if value >= 0.05:
                colour = "white" if value > 55 else "black"
                text = f"{value:.0f}" if value >= 9.95 else f"{value:.1f}"
                axes.text(column, row, text, ha="center", va="center", color=colour, fontsize=8)
    figure.colorbar(picture, ax=axes, label="% of the true class", shrink=0.8)
    save_figure(figure, path)


def _join_classes(matrix: Any) -> NDArray[np.int64]:
    """Returns the counts of a sparse matrix with equally many neighbouring classes in each row and column."""
    step = -(-matrix.shape[0] // _DRAWN)
    size = -(-matrix.shape[0] // step)
    joined = np.zeros((size, size), np.int64)
    np.add.at(joined, (matrix.row // step, matrix.col // step), matrix.data)
    return joined


def draw_corruptions(rows: list[dict[str, Any]], mean: float, extras: Collection[str], path: Path) -> None:
    """Draws top-1 for each corruption and severity as a coloured table.

    Args:
        rows: "corruption", "severity" (0: the original images) and "top1", 0 to 1.
        mean: the mean top-1 of all corruptions but the extra ones.
        extras: the names of the extra ones, which the figure marks.
        path: the PNG to write.

    Raises:
        ShiftViTError: the file cannot be written.
    """
    found = {(row["corruption"], row["severity"]): row["top1"] for row in rows if row["severity"]}
    names = list(dict.fromkeys(name for name, _ in found))
    clean = next(row["top1"] for row in rows if not row["severity"])
    values = np.array([[found[name, level] for level in range(1, 6)] for name in names])
    figure = make_figure(6.4, 1.2 + 0.32 * len(names))
    axes = figure.subplots()
    axes.imshow(values, cmap="Blues", vmin=0, vmax=1, aspect="auto")
    axes.set_xticks(range(5), [str(level) for level in range(1, 6)])
    axes.set_yticks(range(len(names)), [name.replace("_", " ") + " *" * (name in extras) for name in names])
    axes.set_xlabel("Severity (*: not in the mean)")
    axes.set_title(f"Top-1 under corruption: mean {mean:.1%} (without: {clean:.1%})")
    for (row, column), value in np.ndenumerate(values):
        axes.text(column, row, f"{value:.0%}", ha="center", va="center", color="white" if value > 0.6 else "black")
    save_figure(figure, path)


def draw_rate_search(
    rates: NDArray[np.float64],
    losses: NDArray[np.float64],
    smoothed: NDArray[np.float64],
    suggestion: float | None,
    own: float,
    path: Path,
    *,
    title: str,
) -> None:
    """Draws the loss over a rising learning rate.

    Args:
        rates, losses, smoothed: a value for each step.
        suggestion: the suggested rate, if any.
        own: the recipe's peak rate.
        path: the PNG to write.
        title: the figure's heading.

    Raises:
        ShiftViTError: the file cannot be written.
    """
    figure = make_figure(7, 4.2)
    axes = figure.subplots()
    axes.set_title(title, fontweight="bold")
    axes.plot(rates, losses, color=GREY, alpha=0.4, linewidth=0.9, label="each batch")
    axes.plot(rates, smoothed, color=BLUE, label="smoothed")
    axes.axvline(own, color=ORANGE, linestyle="--", label=f"the recipe's rate, {own:g}")
    if suggestion is not None:
        axes.axvline(suggestion, color=GREEN, label=f"suggestion, {suggestion:g}")
    # Losses far above the first ones only show that it diverges.
    bottom, top = float(min(losses.min(), smoothed.min())), float(smoothed[:10].max())
    margin = 0.15 * (top - bottom) + 0.01
    axes.set_ylim(bottom - margin, top + 4 * margin)
    axes.set_xlim(rates[0], max(rates[-1], own))
    axes.set_xscale("log")
    axes.set_xlabel("Peak learning rate (train.optimizer.learning_rate)")
    axes.set_ylabel("Training loss (nats)")
    axes.grid(alpha=0.3)
    axes.legend(loc="lower left")
    save_figure(figure, path)
