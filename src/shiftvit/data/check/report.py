"""The result of a check of a data set: the problems, as a table, as JSON and as a figure."""

from __future__ import annotations

import itertools
from collections import Counter
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

import numpy as np
from numpy.typing import NDArray

from shiftvit.data.check.duplicates import Group, Member
from shiftvit.data.decode.images import decode
from shiftvit.data.find.dataset import Dataset, describe_range
from shiftvit.errors import list_some, pluralize
from shiftvit.figures.style import BLUE, GREEN, ORANGE, make_figure, save_figure, set_whole_ticks

if TYPE_CHECKING:
    from matplotlib.axes import Axes

MOST_IMBALANCE = 100
_STRIP = 6  # pairs that the figure shows
_COLOURS = {"train": BLUE, "validation": ORANGE, "test": GREEN}
_TITLES = {
    "duplicates": "duplicates within a split",
    "leaks": "copies across splits",
    "conflicts": "copies with different labels",
    "formats": "formats",
    "modes": "colour modes",
}


@dataclass(frozen=True, eq=False)
class Report:
    """The result of `check_data`.

    Attributes:
        data: the data set.
        corrupt: the images that cannot be used, with their faults. All other figures are of the other images.
        groups: images that are the same, or nearly.
        counts: the number of images of each class, int64 (C,), by split.
        sizes: (height, width) of each image upright, int64 (N, 2).
        forms, modes: the number of files of each format, and of each stored colour mode, by Pillow's name.
        complete: whether the search for near-duplicates was complete; it stops at a million pairs.
        made: the splits that were taken from the training images, as for training.
        stratify: whether some of each class were taken.
        faults: other problems that would harm training, a line each.
    """

    data: Dataset = field(repr=False)
    corrupt: tuple[tuple[Member, str], ...]
    groups: tuple[Group, ...]
    counts: dict[str, NDArray[np.int64]]
    sizes: NDArray[np.int64]
    forms: dict[str, int]
    modes: dict[str, int]
    complete: bool = True
    made: tuple[str, ...] = ()
    stratify: bool = True
    faults: tuple[str, ...] = ()

    @property
    def duplicates(self) -> list[Group]:
        """The groups that lie within one split."""
        return [group for group in self.groups if len(group.splits) == 1]

    @property
    def leaks(self) -> list[Group]:
        """The groups that lie in several splits."""
        return [group for group in self.groups if len(group.splits) > 1]

    @property
    def conflicts(self) -> list[Group]:
        """The groups that have several labels."""
        return [group for group in self.groups if len(group.labels) > 1]

    @property
    def imbalance(self) -> dict[str, float]:
        """The ratio of the images of the largest class to those of the smallest class that has any, by split."""
        present = {split: counts[counts > 0] for split, counts in self.counts.items()}
        return {split: round(float(part.max() / part.min()), 2) for split, part in present.items() if len(part)}

    @property
    def harmful(self) -> list[str]:
        """The problems that would harm training or its figures, a line each."""
        lines = [*self.faults]
        total = sum(map(len, self.data.splits.values()))
        if self.corrupt:
            lines.append(f"corrupt: {len(self.corrupt):,} of {pluralize(total, 'image')}, such as {self.corrupt[0][1]}")
        for first, second in itertools.combinations(self.counts, 2):
            shared = self._find_shared(first, second)
            if shared:
                count = len({member for _, member in shared})  # an image may be in two groups
                here, there = map(self._find_path, shared[0])
                lines.append(
                    f"leakage: {count:,} of {pluralize(int(self.counts[second].sum()), f'{second} image')} "
                    f"{'is' if count == 1 else 'are'} in {first} too, "
                    f"exactly or nearly, such as {there!r} and {here!r}"
                )
        for kind, form in (("exact", ""), ("near", " in nearly the same form")):
            clashes = [group for group in self.conflicts if group.kind == kind]
            if clashes:
                a, *others = clashes[0].members
                b = next(member for member in others if self._find_label(member) != self._find_label(a))
                occur = "occurs" if len(clashes) == 1 else "occur"
                lines.append(
                    f"labels: {pluralize(len(clashes), 'picture')} {occur}{form} with different labels, such as "
                    f"{self._find_path(a)!r} "
                    f"({self._find_label(a)!r}) and {self._find_path(b)!r} ({self._find_label(b)!r})"
                )
        names, counts = self.data.class_names, self.counts["train"]
        usable = np.sum([self.counts[name] for name in ("train", *self.made)], axis=0)
        small = [f"{names[label]!r} ({usable[label]:,})" for label in np.flatnonzero(usable <= len(self.made))]
        if small and self.made and self.stratify:
            lines.append(
                f"splits: too few images that can be decoded for {len(self.made) + 1} splits: {list_some(small, 10)}"
            )
        bare = [repr(name) for name, count in zip(names, counts, strict=True) if not count]
        if bare:
            lines.append(f"classes: no training images of {list_some(bare, 10)}")
        if self.imbalance.get("train", 0) > MOST_IMBALANCE:
            few, many = np.where(counts > 0, counts, counts.max()).argmin(), counts.argmax()
            lines.append(
                f"imbalance: {names[many]!r} has {counts[many]:,} training images and {names[few]!r} {counts[few]:,}, "
                f"more than {MOST_IMBALANCE} to 1"
            )
        return lines

    def _find_shared(self, first: str, second: str) -> list[tuple[Member, Member]]:
        """Returns pairs of the same picture: an image of the first split, and one of the second."""
        pairs = []
        for group in self.leaks:
            here, there = ([member for member in group.members if member[0] == split] for split in (first, second))
            pairs += [(here[0], member) for member in there if here]
        return pairs

    def _find_path(self, member: Member) -> str:
        split, index = member
        return str(self.data.splits[split].path(index) or f"{split}[{index}]")

    def _find_label(self, member: Member) -> str:
        split, index = member
        return self.data.class_names[int(self.data.splits[split].labels[index])]

    def as_dict(self) -> dict[str, Any]:
        """Returns everything as plain values for JSON."""
        names = self.data.class_names
        height, width = self.sizes.T if len(self.sizes) else (None, None)
        return {
            "path": self.data.name,
            "layout": self.data.layout,
            "ignored": list(self.data.notes),
            "made": list(self.made),
            "splits": {
                split: {
                    "images": int(counts.sum()),
                    "classes": dict(zip(names, counts.tolist(), strict=True)),
                    "imbalance": self.imbalance.get(split),
                }
                for split, counts in self.counts.items()
            },
            "corrupt": [{**self._describe(member), "fault": fault} for member, fault in self.corrupt],
            "duplicates": [self._describe_group(group) for group in self.duplicates],
            "leaks": [self._describe_group(group) for group in self.leaks],
            "conflicts": [self._describe_group(group) for group in self.conflicts],
            "near_duplicates_complete": self.complete,
            "sizes": {
                "distinct": len(np.unique(self.sizes, axis=0)),
                "height": _measure_spread(height),
                "width": _measure_spread(width),
            },
            "aspect_ratio": _measure_spread(None if height is None else width / height),
            "formats": dict(self.forms),
            "modes": dict(self.modes),
            "harmful": self.harmful,
        }

    def _describe(self, member: Member) -> dict[str, str]:
        return {"split": member[0], "path": self._find_path(member), "label": self._find_label(member)}

    def _describe_group(self, group: Group) -> dict[str, Any]:
        return {"kind": group.kind, "images": [self._describe(member) for member in group.members]}

    def make_rows(self) -> list[dict[str, str]]:
        """Returns the rows of a table of names and values."""
        plain = self.as_dict()
        sizes, aspect = plain["sizes"], plain["aspect_ratio"]
        rows = {"layout": plain["layout"], "classes": f"{len(self.data.class_names):,}"}
        for split, part in plain["splits"].items():
            counts = self.counts[split]
            rows[split] = f"{pluralize(part['images'], 'image')}, {describe_range(counts)} per class" + (
                f", imbalance {part['imbalance']:g} to 1" if part["imbalance"] else ""
            )
            rows[split] += " (as training makes it)" if split in self.made else ""
        rows["corrupt"] = f"{len(self.corrupt):,}"
        for name in ("duplicates", "leaks", "conflicts"):
            kinds = Counter(group["kind"] for group in plain[name])
            rows[_TITLES[name]] = f"{kinds['exact']:,} exact, {kinds['near']:,} near" + (
                "" if self.complete else " or more"
            )
        if sizes["height"]:
            low, middle, high = (
                f"{sizes['height'][key]:g} x {sizes['width'][key]:g}" for key in ("min", "median", "max")
            )
            rows["height x width"] = f"{low} to {high}, median {middle}, {sizes['distinct']:,} different"
            rows["width / height"] = f"{aspect['min']:.2f} to {aspect['max']:.2f}, median {aspect['median']:.2f}"
        for name in ("formats", "modes"):
            rows[_TITLES[name]] = ", ".join(f"{key} {count:,}" for key, count in plain[name].items())
        rows["left out"], *others = plain["ignored"] or ["nothing"]
        return [{"what": what, "value": value} for what, value in (*rows.items(), *(("", other) for other in others))]

    def draw(self, path: str | Path) -> None:
        """Draws the images of each class and split, the sizes, and up to 6 pairs of duplicates into one figure.

        Raises:
            ShiftViTError: the file cannot be written.
        """
        groups = sorted(
            self.groups, key=lambda group: (len(group.splits) == 1, len(group.labels) == 1, group.kind == "exact")
        )
        pairs = [group.example for group in groups[:_STRIP]]
        names = len(self.data.class_names)
        tall = min(max(3.2, 0.28 * names), 9.0)
        figure = make_figure(11, tall + (2.9 if pairs else 0))
        top, *strip = figure.subfigures(
            2 if pairs else 1, 1, height_ratios=[tall, 2.9] if pairs else None, squeeze=False
        )[:, 0]
        counts, sizes = top.subplots(1, 2, width_ratios=[3, 2])
        self._draw_counts(counts)
        self._draw_sizes(sizes)
        if strip:
            strip[0].suptitle(
                "Duplicates, one above the other; across splits and with different labels first",
                fontweight="bold",
                fontsize=11,
            )
            columns = strip[0].subplots(2, _STRIP, squeeze=False).T
            for column, pair in itertools.zip_longest(columns, pairs):
                self._draw_pair(column, pair)
        save_figure(figure, Path(path))

    def _draw_counts(self, axes: Axes) -> None:
        names, height = self.data.class_names, 0.8 / len(self.counts)
        for number, (split, counts) in enumerate(self.counts.items()):
            places = np.arange(len(names)) + (number - (len(self.counts) - 1) / 2) * height
            axes.barh(places, counts, height, color=_COLOURS[split], label=f"{split} ({counts.sum():,})")
        shown = range(0, len(names), -(-len(names) // 30))
        axes.set_yticks(shown, [_shorten(names[number], 24) for number in shown], fontsize=8, parse_math=False)
        axes.set_ylim(len(names) - 0.5, -0.5)
        axes.set_xlabel("Images")
        _finish(axes, "Images of each class", "x")

    def _draw_sizes(self, axes: Axes) -> None:
        if len(self.sizes):
            low, high = int(self.sizes.min()), int(self.sizes.max())
            middle = (low + high) / 2
            half = max(high - low, 8) / 2 + 0.5  # so that the bar of a single size does not fill the axes
            edges = np.linspace(middle - half, middle + half, min(25, round(2 * half)) + 1)
            axes.hist(list(self.sizes.T), edges.tolist(), color=[BLUE, ORANGE], label=["height", "width"])
        axes.set_xlabel("Pixels")
        axes.set_ylabel("Images")
        set_whole_ticks(axes.xaxis)
        _finish(axes, "Sizes", "y")

    def _draw_pair(self, column: Any, pair: tuple[Member, Member] | None) -> None:
        for axes, member in itertools.zip_longest(column, pair or ()):
            axes.axis("off")
            if member is not None:
                images = self.data.splits[member[0]].images
                axes.imshow(decode(self._find_path(member)) if images is None else images[member[1]])
                axes.set_title(f"{_shorten(self._find_label(member), 14)}\n{member[0]}", fontsize=8, parse_math=False)


def _finish(axes: Axes, title: str, counted: Literal["x", "y"]) -> None:
    set_whole_ticks(axes.xaxis if counted == "x" else axes.yaxis)
    axes.set_title(title, loc="left", fontweight="bold", fontsize=11)
    axes.grid(axis=counted, alpha=0.3)
    axes.set_axisbelow(True)
    if axes.get_legend_handles_labels()[0]:
        axes.legend(loc="lower right", bbox_to_anchor=(1, 1), ncols=3, frameon=False, fontsize=8, borderaxespad=0.2)


def _measure_spread(values: NDArray[Any] | None) -> dict[str, float] | None:
    if values is None:
        return None
    return {"min": float(values.min()), "median": float(np.median(values)), "max": float(values.max())}


def _shorten(text: str, most: int) -> str:
    return text if len(text) <= most else f"{text[: most - 1]}…"
