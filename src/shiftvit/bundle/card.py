"""Writes the model card of a bundle: the model, its training data, its accuracy and its limits.

The form is that of the Hugging Face Hub, YAML front matter and Markdown; the sections follow Mitchell et al., "Model
Cards for Model Reporting", FAT* 2019. A card is text for people; no program reads it to use a model. The template
writes the front matter itself, because huggingface_hub is optional; a test compares the two.
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Protocol

import numpy as np
import tomli_w

from shiftvit.bundle.stored.manifest import Provenance
from shiftvit.config import ModelConfig
from shiftvit.errors import pluralize
from shiftvit.preprocess import Preprocess
from shiftvit.recipes.recipe import Recipe
from shiftvit.templates import render

# Data sets by name: their title, and their name on the Hub.
_DATASETS = {"cifar10": ("CIFAR-10", "uoft-cs/cifar10")}
# Metrics from a file may hold any numbers; larger ones are ignored.
_LARGEST = 1e15
_FIGURES = {"top1": "top-1", "top5": "top-5", "macro_f1": "macro F1", "loss": "loss"}
# The metrics in the front matter: type and name on the Hub, and our key.
_MEASURED = (
    ("accuracy", "Top-1 accuracy", "top1"),
    ("accuracy", "Top-5 accuracy", "top5"),
    ("f1", "Macro F1", "macro_f1"),
    ("loss", "Cross-entropy", "loss"),
)
_SPLITS = {"train": "training", "validation": "validation", "test": "test"}


class Trained(Protocol):
    """The parts of a `Bundle` that a card describes."""

    @property
    def config(self) -> ModelConfig: ...
    @property
    def labels(self) -> tuple[str, ...]: ...
    @property
    def preprocess(self) -> Preprocess: ...
    @property
    def weights(self) -> dict[str, np.ndarray[Any, Any]]: ...
    @property
    def metrics(self) -> dict[str, Any]: ...
    @property
    def versions(self) -> dict[str, str]: ...
    @property
    def temperature(self) -> float: ...
    @property
    def provenance(self) -> Provenance | None: ...


@dataclass(frozen=True)
class Facts:
    """Facts about a training that a bundle does not hold.

    Attributes:
        recipe: the resolved recipe. A card shows only the last name of each path in it.
        counts: for "train", "validation" and "test", the images of each class, in the order of the labels.
        intervals: 95% intervals of the test figures, as `metrics.estimate_intervals` returns them.
        macro_f1: macro F1 on the test images, from 0 to 1.
        environment: the environment of the run, as `environment.describe_environment` returns it.
        license: the identifier of the weights' license, such as "apache-2.0"; None: not stated.
    """

    recipe: Recipe
    counts: Mapping[str, Sequence[int]] = field(default_factory=dict)
    intervals: Mapping[str, tuple[float, float]] = field(default_factory=dict)
    macro_f1: float | None = None
    environment: Mapping[str, Any] = field(default_factory=dict)
    license: str | None = None


def write_card(trained: Trained, facts: Facts | None = None) -> str:
    """Returns the text of a bundle's README.md.

    Args:
        trained: the bundle.
        facts: about the training run; None: the card describes only the bundle.
    """
    found = {split: _read_figures(trained.metrics, split) for split in ("train", "val", "test")}
    if facts and facts.macro_f1 is not None and found["test"].keys() & _FIGURES.keys():
        found["test"]["macro_f1"] = facts.macro_f1
    if not shows_top5(len(trained.labels)):
        for figures in found.values():
            figures.pop("top5", None)
    name = trained.provenance.name if trained.provenance else None
    columns, results = _tabulate_results(found, facts.intervals if facts else {})
    return render(
        "card.md",
        facts=facts,
        config=trained.config,
        labels=trained.labels,
        count=f"{len(trained.labels):,}",
        parameters=f"{_count_parameters(trained.weights):,}",
        input=format_size(trained.config.image_shape),
        preprocessing=describe_preprocessing(trained.preprocess),
        temperature=trained.temperature,
        columns=columns,
        results=results,
        validated=bool(found["val"]),
        versions=", ".join(f"{name} {version}" for name, version in trained.versions.items()),
        license=(facts.license if facts else None) or (trained.provenance and trained.provenance.license),
        provenance=trained.provenance and describe_origin(trained.provenance),
        model=name or "model",
        pulled=name or "OWNER/NAME --out model",
        published=trained.provenance and _describe_published(trained.provenance),
        machine=_describe_machine(facts.environment) if facts else "",
        **(_describe_training(trained, facts, found) if facts else {}),
    )


def shows_top5(classes: int) -> bool:
    """Returns whether top-5 is informative: with five classes it is always 1."""
    return classes > 5


def address_card(card: str, repository: str) -> str:
    """Returns a card whose command to pull the model names the repository, "OWNER/NAME"."""
    return re.sub(
        r"(?m)^shiftvit pull (\S+)(?: --out (\S+))?$",
        lambda found: f"shiftvit pull {repository} --out {found[2] or found[1]}",
        card,
    )


def dump_settings(recipe: Recipe) -> str:
    """Returns every setting as TOML, with only the last name of each path, because folder names may be private."""
    tree: dict[str, Any] = recipe.model_dump(mode="json", exclude_none=True)
    tree["data"]["name"] = get_last_name(recipe.data.name)
    if recipe.start.source:
        tree["start"]["source"] = get_last_name(recipe.start.source)
    return tomli_w.dumps(tree)


def get_last_name(path: str) -> str:
    """Returns the last name in a path of any system; for a run's `bundle` folder, the run's name."""
    names = [name for name in re.split(r"[\\/]", path) if name not in ("", ".", "..", "bundle")]
    return names[-1] if names else "images"


def format_size(sides: Sequence[int | None]) -> str:
    """Returns "height x width px", with "any" for a side that is not fixed."""
    height, width = sides[:2]
    return f"{height or 'any'} x {width or 'any'} px"


def describe_preprocessing(rule: Preprocess) -> str:
    """Returns the steps from an image to the model's input."""
    steps = ["colours to sRGB where a file embeds a profile"] if rule.srgb else []
    if rule.resize is not None:
        target = f"shorter side {rule.resize} px" if isinstance(rule.resize, int) else format_size(rule.resize)
        steps.append(f"resize ({target}, {rule.interpolation})")
    if rule.crop is not None:
        crop = rule.crop if isinstance(rule.crop, tuple) else (rule.crop, rule.crop)
        steps.append(f"crop {format_size(crop)} ({rule.crop_position.replace('_', ' ')})")
    mean, std = (", ".join(f"{value:g}" for value in np.ravel(numbers)) for numbers in (rule.mean, rule.std))
    return "; ".join([*steps, f"(pixels - mean) / std with pixels from 0 to 255, mean {mean}, std {std}"])


def describe_origin(provenance: Provenance) -> str:
    """Returns the source of weights in words: address, date, license and hash."""
    terms = f", license {provenance.license}" if provenance.license else ""
    return f"{provenance.address}, taken on {provenance.date}{terms}, SHA-256 {provenance.sha256}"


def describe_figures(metrics: Mapping[str, Any], split: str, classes: int) -> str:
    """Returns the known figures of a split, "train", "val" or "test", in words; empty if there are none."""
    found = _read_figures(metrics, split)
    shown = [key for key in _FIGURES if key in found and (key != "top5" or shows_top5(classes))]
    words = ", ".join(f"{_FIGURES[key]} {_format_figure(key, found[key], None)}" for key in shown)
    return words + (f" ({pluralize(int(found['n']), 'image')})" if words and "n" in found else "")


def _describe_published(provenance: Provenance) -> str | None:
    if provenance.top1 is None:
        return None
    return f"Published, not measured here: top-1 {provenance.top1:g}% on {provenance.data}."


def _describe_training(trained: Trained, facts: Facts, found: Mapping[str, dict[str, float]]) -> dict[str, Any]:
    """Returns the values of the template for a training run."""
    recipe, train, base = facts.recipe, facts.recipe.train, facts.recipe.train.optimizer.base_batch_size
    counts = {split: facts.counts[split] for split in _SPLITS if split in facts.counts}
    epochs = found["train"].get("epochs", train.epochs)
    title, dataset = _DATASETS.get(recipe.data.name, (get_last_name(recipe.data.name), None))
    test = found["test"]
    return {
        "recipe": recipe,
        "data": title,
        "dataset": dataset,
        "measured": [(kind, name, round(test[key], 4)) for kind, name, key in _MEASURED if key in test],
        "images": ", ".join(f"{sum(column):,} {_SPLITS[split]}" for split, column in counts.items()),
        "splits": [_SPLITS[split] for split in counts],
        "classes": [
            [label, *(f"{column[index]:,}" for column in counts.values())]
            for index, label in enumerate(trained.labels)
            if counts
        ],
        "source": get_last_name(recipe.start.source) if recipe.start.source else None,
        "strength": found["train"].get("strength"),
        "epochs": f"{epochs:,.0f} of {train.epochs:,}" if epochs != train.epochs else f"{epochs:,}",
        "scale": train.batch_size / base if base else 1,
        "augmentation": recipe.augment.describe(crops=recipe.preprocess.crop is not None),
        "seconds": found["train"].get("seconds"),
        "settings": dump_settings(recipe),
    }


def _describe_machine(environment: Mapping[str, Any]) -> str:
    """Returns the hardware and backend of a run in words; empty if nothing is known."""
    parts = [str(environment[key]) for key in ("processor", "device") if environment.get(key) not in (None, "cpu")]
    if "cores" in environment:
        parts.append(pluralize(environment["cores"], "core"))
    if "backend" in environment:
        parts.append(f"Keras with {environment['backend']}")
    return ", ".join(parts)


def _tabulate_results(
    found: Mapping[str, dict[str, float]], intervals: Mapping[str, tuple[float, float]]
) -> tuple[list[str], list[list[str]]]:
    """Returns the columns of known figures, and a row for each of validation and test that has some."""
    parts = {split: found[split] for split in ("val", "test") if found[split].keys() & _FIGURES.keys()}
    columns = {key: title for key, title in _FIGURES.items() if any(key in figures for figures in parts.values())}
    rows = []
    for split, figures in parts.items():
        ranges = intervals if split == "test" else {}
        number = f"{figures['n']:,.0f} " if "n" in figures else ""
        cells = [_format_figure(key, figures.get(key), ranges.get(key)) for key in columns]
        rows.append([f"{number}{'validation' if split == 'val' else split}", *cells])
    return list(columns.values()), rows


def _format_figure(key: str, value: float | None, interval: tuple[float, float] | None) -> str:
    """Returns a share in percent, or a loss, with its interval in parentheses."""
    if value is None:
        return ""
    form = "{:.4f}" if key == "loss" else "{:.2%}"
    return form.format(value) + (" ({} to {})".format(*map(form.format, interval)) if interval else "")


def _read_figures(metrics: Mapping[str, Any], split: str) -> dict[str, float]:
    """Returns the numbers of a split; `metrics` may come from an untrusted file."""
    found = metrics.get(split)
    numbers = found.items() if isinstance(found, dict) else []
    return {str(key): value for key, value in numbers if isinstance(value, int | float) and abs(value) < _LARGEST}


def _count_parameters(weights: Mapping[str, np.ndarray[Any, Any]]) -> int:
    """Returns the number of trained weights, without the moving averages of batch norm."""
    averages = ("moving_mean", "moving_variance")
    return sum(value.size for path, value in weights.items() if path.rsplit("/", 1)[-1] not in averages)
