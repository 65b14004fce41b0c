"""The model card of a bundle: what the model is, what it learned from, how good it is and what it cannot know.

The form is that of the Hugging Face Hub, YAML front matter and Markdown (Mitchell et al., "Model Cards for Model
Reporting", FAT* 2019, is where the sections come from). It is text for people: nothing reads a card to use a model.
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Protocol

import numpy as np

from shiftvit.bundle.markdown import escaped, folded, front_matter, table
from shiftvit.bundle.wording import last_name, model_rows, preprocessing, recipe_rows, settings
from shiftvit.config import ModelConfig
from shiftvit.preprocess import Preprocess
from shiftvit.recipes.recipe import Recipe

# Names of data sets to what people call them, and to what the Hub does.
_DATASETS = {"cifar10": ("CIFAR-10", "uoft-cs/cifar10"), "cifar100": ("CIFAR-100", "uoft-cs/cifar100")}
# What stands in a card for the repository until there is one.
_PLACEHOLDER = "OWNER/NAME"
# Classes that are named in the first lines, and rows of a table that are shown unfolded.
_NAMED, _OPEN_ROWS = 12, 20
# A figure beyond it is none; JSON knows numbers of any length.
_LARGEST = 1e15
_FIGURES = {"top1": "top-1", "top5": "top-5", "macro_f1": "macro F1", "loss": "loss"}
_SPLITS = {"train": "training", "validation": "validation", "test": "test"}


class Trained(Protocol):
    """The parts of a `Bundle` that a card tells about."""

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


@dataclass(frozen=True)
class Facts:
    """What training knows and a bundle does not hold.

    Attributes:
        recipe: the resolved recipe. Of paths in it a card shows the last name only.
        counts: "train", "validation" and "test" to the images of each class, in the order of the labels.
        intervals: 95 % intervals of the test figures, as `metrics.intervals` returns them.
        macro_f1: of the test images, from 0 to 1.
        environment: what the run ran on, as `environment.describe_environment` returns it.
        license: the identifier of the weights' license, such as "apache-2.0"; None: not known, so left out.
    """

    recipe: Recipe
    counts: Mapping[str, Sequence[int]] = field(default_factory=dict)
    intervals: Mapping[str, tuple[float, float]] = field(default_factory=dict)
    macro_f1: float | None = None
    environment: Mapping[str, Any] = field(default_factory=dict)
    license: str | None = None


def write_card(trained: Trained, facts: Facts | None = None) -> str:
    """Returns the text of a bundle's README.md; without `facts` it tells what the bundle itself holds.

    Args:
        trained: the bundle.
        facts: of the training run.
    """
    data = f" for {escaped(_data_name(facts.recipe)[0])}" if facts else f", {len(trained.labels):,} classes"
    parts = [
        front_matter(_metadata(trained, facts)),
        f"# ShiftViT{data}",
        _introduction(trained),
        *_usage(),
        *_model(trained),
        *_results(trained, facts),
        *(_data(trained, facts) if facts else []),
        *(_recipe(trained, facts) if facts else []),
        *_limits(trained, facts),
        *_origin(trained, facts),
    ]
    return "\n\n".join(parts) + "\n"


def addressed(card: str, repository: str) -> str:
    """Returns a card whose command to pull the model names the repository, "OWNER/NAME"."""
    return re.sub(r"(?m)^(shiftvit pull )[\w.-]+/[\w.-]+", lambda found: found[1] + repository, card)


def _metadata(trained: Trained, facts: Facts | None) -> dict[str, Any]:
    """Returns what the Hub reads: https://huggingface.co/docs/hub/model-cards."""
    tree: dict[str, Any] = {"license": facts.license} if facts and facts.license else {}
    tree |= {"library_name": "shiftvit", "pipeline_tag": "image-classification", "tags": ["vision", "shiftvit"]}
    test = _figures(trained.metrics, "test")
    if facts:
        name, identifier = _data_name(facts.recipe)
        if facts.recipe.data.name in _DATASETS:
            tree["datasets"] = [identifier]
        measured = [
            ("accuracy", "Top-1 accuracy", test.get("top1")),
            ("accuracy", "Top-5 accuracy", test.get("top5") if _has_top5(trained) else None),
            ("f1", "Macro F1", facts.macro_f1),
            ("loss", "Cross-entropy", test.get("loss")),
        ]
        found = [
            {"type": kind, "name": title, "value": round(value, 4)}
            for kind, title, value in measured
            if value is not None
        ]
        if found:
            tree["metrics"] = list(dict.fromkeys(row["type"] for row in found if row["type"] != "loss"))
            result = {
                "task": {"type": "image-classification"},
                "dataset": {"type": identifier, "name": name, "split": "test"},
                "metrics": found,
            }
            tree["model-index"] = [{"name": f"shiftvit-{facts.recipe.name}", "results": [result]}]
    return tree


def _introduction(trained: Trained) -> str:
    some = ", ".join(escaped(label) for label in trained.labels[:_NAMED])
    more = f" and {len(trained.labels) - _NAMED:,} more" if len(trained.labels) > _NAMED else ""
    return (
        "An image classifier with the architecture [ShiftViT](https://arxiv.org/abs/2201.10801): a hierarchical vision "
        "transformer in which groups of channels that move by a pixel stand in for attention. "
        f"It knows {len(trained.labels):,} classes: {some}{more}."
    )


def _usage() -> list[str]:
    return [
        "## How to use it",
        "```shell\npip install 'shiftvit[hub,torch]'\n"
        f"shiftvit pull {_PLACEHOLDER} --out model\n"
        "shiftvit predict photo.jpg --model model\n```",
        "Where you have this folder already, it is what `model` stands for. In Python:",
        "```python\nfrom shiftvit import Predictor\n\n"
        'predictor = Predictor.from_pretrained("model")\n'
        'print(predictor("photo.jpg")[0].top)\n```',
        "`shiftvit evaluate model --data photos/` measures it on your own images, and "
        "`shiftvit train --recipe finetune --set start.source=model --data photos/` begins a training with it.",
    ]


def _model(trained: Trained) -> list[str]:
    scale = "" if trained.temperature == 1.0 else f" / {trained.temperature:g}"
    rows = {
        "Parameters": f"{_parameters(trained.weights):,}",
        **model_rows(trained.config),
        "Preprocessing": preprocessing(trained.preprocess),
        "Output": f"{len(trained.labels):,} logits; the confidences are softmax(logits{scale})",
    }
    return ["## The model", table(["trait", "value"], rows.items())]


def _results(trained: Trained, facts: Facts | None) -> list[str]:
    intervals = facts.intervals if facts else {}
    found = {split: _figures(trained.metrics, split) for split in ("val", "test")}
    found = {split: figures for split, figures in found.items() if figures.keys() & _FIGURES.keys()}
    if not found:
        return ["## How good it is", "Not measured."]
    if "test" in found and facts and facts.macro_f1 is not None:
        found["test"]["macro_f1"] = facts.macro_f1
    known = {key for figures in found.values() for key in figures} - (set() if _has_top5(trained) else {"top5"})
    columns = {key: title for key, title in _FIGURES.items() if key in known}
    rows = []
    for split, figures in found.items():
        ranges = intervals if split == "test" else {}
        cells = [_figure(key, figures.get(key), ranges.get(key)) for key in columns]
        number = f"{figures['n']:,.0f} " if "n" in figures else ""
        rows.append([f"{number}{'validation' if split == 'val' else split}", *cells])
    notes = ["The loss is the mean cross-entropy in nats."] if "loss" in columns else []
    if intervals:
        notes.append(
            "In parentheses: 95 % intervals (bootstrap over the test images), which tell what the choice of test "
            "images does to a figure, and not how much another training would change it."
        )
    if trained.temperature != 1.0:
        notes.append(
            f"The logits are divided by the temperature {trained.temperature:g}, which was fitted on the validation "
            "images, so that confidences are as often right as they say ([Guo et al., "
            "2017](https://arxiv.org/abs/1706.04599)); the loss is without it."
        )
    return ["## How good it is", table(["images", *columns.values()], rows), " ".join(notes)]


def _data(trained: Trained, facts: Facts) -> list[str]:
    data, counts = facts.recipe.data, {split: facts.counts[split] for split in _SPLITS if split in facts.counts}
    name = escaped(_data_name(facts.recipe)[0])
    whole = ", ".join(f"{sum(column):,} {_SPLITS[split]}" for split, column in counts.items())
    text = f"{name}: {whole} images. " if whole else f"{name}. "
    if data.validation:
        text += f"Where a split had to be drawn, it was by class, with the seed {data.split_seed}."
        text = text if data.stratify else text.replace("by class", "at random")
    heads = ["class", *(_SPLITS[split] for split in counts)]
    rows = [
        [escaped(label), *(f"{column[index]:,}" for column in counts.values())]
        for index, label in enumerate(trained.labels)
    ]
    shown = table(heads, rows)
    shown = folded("Images of each class", shown) if len(rows) > _OPEN_ROWS else shown
    return ["## What it learned from", text.strip(), *([shown] if counts else [])]


def _recipe(trained: Trained, facts: Facts) -> list[str]:
    rows = recipe_rows(facts.recipe)
    seen = _figures(trained.metrics, "train")
    if seen.get("epochs", facts.recipe.train.epochs) != facts.recipe.train.epochs:
        rows["Epochs"] = f"{seen['epochs']:,.0f} of {rows['Epochs']}"
    if "seconds" in seen:
        rows["Time"] = f"{seen['seconds']:,.0f} s"
    every = folded("Every setting", f"```toml\n{settings(facts.recipe)}```")
    return ["## How it was trained", table(["setting", "value"], rows.items()), every]


def _limits(trained: Trained, facts: Facts | None) -> list[str]:
    alike = f"like those of {escaped(_data_name(facts.recipe)[0])}" if facts else "like those that it learned from"
    lines = [
        f"It names one of its {len(trained.labels):,} classes for every image, whatever the image shows.",
        f"It is for images {alike}; on others, taken or cut in another way, it may do worse.",
        "The test images come from where the training images come from, so the figures tell nothing about others.",
    ]
    if facts:
        lines.append(f"The figures are of one training (n = 1, seed {facts.recipe.train.seed}).")
        if facts.recipe.data.test == 0 and "validation" not in facts.counts:
            lines.append("What is called test images here are those of validation; nothing was chosen on them.")
        if facts.recipe.train.select == "best" and _figures(trained.metrics, "val"):
            lines.append("The epoch was chosen by the validation images, so their figures flatter the model.")
    if trained.temperature == 1.0:
        lines.append("The confidences are not calibrated.")
    lines.append(
        "Not measured: how it does on corrupted or manipulated images, and whether it treats groups of people or "
        "places alike. Measure that before it decides anything that matters."
    )
    return ["## What it cannot do", "\n".join(f"- {line}" for line in lines)]


def _origin(trained: Trained, facts: Facts | None) -> list[str]:
    lines = []
    if facts and facts.environment:
        ran = facts.environment
        machine = [str(ran[key]) for key in ("processor", "device") if ran.get(key) not in (None, "cpu")]
        cores = f"{ran['cores']} core{'s' * (ran['cores'] != 1)}" if "cores" in ran else ""
        backend = f"Keras on {ran['backend']}" if "backend" in ran else ""
        lines.append("Trained on " + escaped(", ".join(part for part in (*machine, cores, backend) if part)) + ".")
    if trained.versions:
        listed = ", ".join(f"{name} {version}" for name, version in trained.versions.items())
        lines.append(f"Versions: {escaped(listed)}.")
    return ["## What made it", "\n\n".join(lines)] if lines else []


def _parameters(weights: Mapping[str, np.ndarray[Any, Any]]) -> int:
    """Returns how many numbers were trained: batch norm's moving averages are not."""
    averages = ("moving_mean", "moving_variance")
    return sum(value.size for path, value in weights.items() if path.rsplit("/", 1)[-1] not in averages)


def _figures(metrics: Mapping[str, Any], split: str) -> dict[str, float]:
    """Returns the numbers of a split; `metrics` may come from a file that anyone wrote."""
    found = metrics.get(split)
    numbers = found.items() if isinstance(found, dict) else []
    return {str(key): value for key, value in numbers if isinstance(value, int | float) and abs(value) < _LARGEST}


def _figure(key: str, value: float | None, interval: tuple[float, float] | None) -> str:
    """Returns a share in percent or a loss, with its interval in parentheses."""
    if value is None:
        return ""
    form, unit = ("{:.4f}", "") if key == "loss" else ("{:.2f}", " %")
    scale = 1 if key == "loss" else 100
    limits = " to ".join(form.format(scale * limit) for limit in interval or ())
    return f"{form.format(scale * value)}{unit}{f' ({limits})' if limits else ''}"


def _has_top5(trained: Trained) -> bool:
    return len(trained.labels) > 5  # of five classes one of the top five is always right


def _data_name(recipe: Recipe) -> tuple[str, str]:
    """Returns what the data is called, for people and for the Hub, where a user's own is an "imagefolder"."""
    return _DATASETS.get(recipe.data.name, (last_name(recipe.data.name), "imagefolder"))
