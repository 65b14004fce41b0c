"""`bundle.json`: the validated description of a bundle's model, and the hashes of its other files."""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping, Set
from typing import Any, Literal, Self

from pydantic import Field, ValidationError, model_validator

from shiftvit.bundle.stored.container import Container, hash_content
from shiftvit.config import ModelConfig, Settings, describe_fault
from shiftvit.errors import ShiftViTError
from shiftvit.preprocess import Preprocess
from shiftvit.stages import list_stages

FORMAT = 1
MISFIT = "the bundle's weights do not fit its own model configuration"
WEIGHTS = "model.safetensors"
GRAPH = "model.onnx"
MANIFEST = "bundle.json"
CARD = "README.md"


def check_labels(labels: Any, count: int) -> tuple[str, ...]:
    """Returns the names of `count` classes, in the order of the logits.

    Raises:
        ShiftViTError: they are not a sequence of `count` different strings.
    """
    if isinstance(labels, str | Mapping | Set) or not isinstance(labels, Iterable):
        raise ShiftViTError(f"labels are of the type {type(labels).__name__}; give a list in the order of the logits")
    names = tuple(labels)
    for name in names:
        if not isinstance(name, str) or not name:
            raise ShiftViTError(f"the label {name!r} is not a class name; give strings that are not empty")
        try:
            name.encode()
        except UnicodeEncodeError:
            raise ShiftViTError(f"the label {name!r} is not valid Unicode, so it cannot be saved; rename it") from None
    if len(set(names)) < len(names):
        twice = next(name for name in names if names.count(name) > 1)
        raise ShiftViTError(f"the label {twice!r} names {names.count(twice)} classes; give each class its own name")
    if len(names) != count:
        raise ShiftViTError(f"{len(names)} labels do not name {count} classes; give one for each")
    return tuple(map(str, names))  # NumPy's strings become ordinary ones


def check_size(config: ModelConfig, weights: Mapping[str, Any]) -> None:
    """Raises ShiftViTError if a model has more weights than there are: building it could take any amount of memory."""
    needed = sum(row["parameters"] for row in list_stages(config))
    if sum(config.depths) > len(weights) or needed > sum(value.size for value in weights.values()):
        raise ShiftViTError(f"{MISFIT}; restore the bundle")


class Provenance(Settings):
    """The source of weights that were not trained here."""

    name: str | None = Field(None, description="name of published weights, as for `shiftvit pull`")
    address: str = Field(description="URL of the file, or the name of a local file")
    sha256: str = Field(pattern="^[0-9a-f]{64}$", description="SHA-256 of the file, in hexadecimal")
    date: str = Field(description="date of the conversion, as YYYY-MM-DD")
    license: str | None = Field(None, description="identifier of the weights' license")
    top1: float | None = Field(None, description="published top-1 in percent; not measured here")
    data: str | None = Field(None, description="data on which `top1` was measured")


class Manifest(Settings):
    """The content of `bundle.json`, where settings with a default may be missing."""

    format: Literal[1] = Field(description="version of the format; newer ones are refused")
    model: ModelConfig = Field(description="the constructor arguments of `shiftvit.ShiftViT`")
    labels: tuple[str, ...] = Field(description="class names, in the order of the logits")
    preprocess: Preprocess = Field(description="how to turn an image into the model's input")
    metrics: dict[str, Any] = Field(description="the measured figures, as in a run's `metrics.json`")
    versions: dict[str, str] = Field(description="version of each library that wrote the bundle")
    files: dict[str, str] = Field(description="SHA-256 of each other file, in hexadecimal")
    temperature: float = Field(1.0, gt=0, description="divides the logits before the softmax")
    synsets: tuple[str, ...] = Field((), description="WordNet identifiers of the labels, in their order")
    provenance: Provenance | None = None

    @model_validator(mode="after")
    def _check_classes(self) -> Self:
        check_labels(self.labels, self.model.num_classes)
        if self.synsets and len(self.synsets) != len(self.labels):
            raise ValueError(f"{len(self.synsets)} synsets do not identify {len(self.labels)} labels")
        return self


def read_manifest(container: Container) -> Manifest:
    """Reads and checks a bundle's JSON.

    Raises:
        ShiftViTError: it is damaged, its format is newer, or it lists files that a bundle does not have.
    """
    where = str(container.where)
    content = container.read(MANIFEST)
    try:
        tree = json.loads(content)
        json.dumps(tree, ensure_ascii=False).encode()  # raises for half of a surrogate pair, which cannot be saved
    except (ValueError, RecursionError) as error:
        raise ShiftViTError(f"{MANIFEST!r} in {where!r} cannot be read ({error}); restore the bundle") from error
    version = tree.get("format") if isinstance(tree, dict) else None
    if isinstance(version, int) and version > FORMAT:
        raise ShiftViTError(f"{where!r} has format {version}; this shiftvit reads up to {FORMAT}; update shiftvit")
    try:
        manifest = Manifest.model_validate(tree)
    except ValidationError as error:
        raise ShiftViTError(
            f"{MANIFEST!r} in {where!r} is not a valid bundle: {describe_fault(error)}; restore it"
        ) from error
    if not {WEIGHTS} <= manifest.files.keys() <= {WEIGHTS, GRAPH}:
        raise ShiftViTError(f"{where!r} lists the files {sorted(manifest.files)}, not {WEIGHTS!r}; restore it")
    return manifest


def read_checked(container: Container, manifest: Manifest, name: str) -> bytes:
    """Returns a file's content after verifying its hash.

    Raises:
        ShiftViTError: it is missing or damaged.
    """
    content = container.read(name)
    if hash_content(content) != manifest.files[name]:
        raise ShiftViTError(
            f"{name!r} in {str(container.where)!r} is damaged: its SHA-256 differs from the recorded one; restore it"
        )
    return content


def read_tensors(container: Container, manifest: Manifest) -> dict[str, Any]:
    """Returns a bundle's weights, variable path to array, after verifying their hash.

    Raises:
        ShiftViTError: they are missing or damaged.
    """
    from safetensors import SafetensorError
    from safetensors.numpy import load

    content = read_checked(container, manifest, WEIGHTS)
    try:
        return load(content)
    except (SafetensorError, KeyError, ValueError) as error:
        raise ShiftViTError(
            f"{WEIGHTS!r} in {str(container.where)!r} cannot be read ({error}); restore the bundle"
        ) from error
