"""`Bundle`: a trained model as a folder or a zip archive of files that hold data only.

`model.safetensors` holds the weights. `bundle.json` holds the format version, the model configuration, the labels, the
preprocessing, the metrics, library versions and the SHA-256 of the other files. `model.onnx`, which is optional, is the
same model as a graph that needs no framework. `README.md` is the model card; it is for people and is not verified.
Loading verifies everything else and builds the model from the configuration: nothing in a bundle is ever executed.
"""

from __future__ import annotations

import dataclasses
import json
import re
import shlex
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal, Self

import numpy as np
from pydantic import Field, ValidationError

from shiftvit.bundle.card import write_card
from shiftvit.bundle.container import Container, digest, open_container, write_container
from shiftvit.config import ModelConfig, Settings, first_fault
from shiftvit.errors import ShiftViTError
from shiftvit.preprocess import Preprocess

FORMAT = 1
WEIGHTS = "model.safetensors"
GRAPH = "model.onnx"
MANIFEST = "bundle.json"
CARD = "README.md"
# Bytes; a larger README.md is not kept.
LARGEST_CARD = 2**20
# The trained models that come with the package, one folder each.
PRETRAINED = Path(__file__).parents[1] / "pretrained"

Weights = dict[str, np.ndarray[Any, Any]]


class Manifest(Settings):
    """The content of `bundle.json`."""

    format: Literal[1]
    model: ModelConfig
    labels: tuple[str, ...]
    preprocess: Preprocess
    metrics: dict[str, Any]
    versions: dict[str, str]
    files: dict[str, str]
    temperature: float = Field(1.0, gt=0)


@dataclass(frozen=True)
class Bundle:
    """A trained model with everything needed to use it.

    Attributes:
        config: the model's constructor arguments.
        labels: the class names, in the order of the logits.
        preprocess: what turns uint8 images into the model's input.
        weights: variable path to array, float32 or float16.
        metrics: the measured figures, as in a run's `metrics.json`.
        versions: library name to the version that wrote the bundle.
        graph: the model as an ONNX graph, or None.
        temperature: divides the logits before the softmax, so that confidence matches accuracy (Guo et al., 2017,
            section 4.2); the graph has it built in.
        card: the model card, in Markdown; None: `save` writes one from what the bundle holds.
    """

    config: ModelConfig
    labels: tuple[str, ...]
    preprocess: Preprocess
    weights: Weights = field(repr=False)
    metrics: dict[str, Any] = field(default_factory=dict)
    versions: dict[str, str] = field(default_factory=dict)
    graph: bytes | None = field(default=None, repr=False)
    temperature: float = 1.0
    card: str | None = field(default=None, repr=False)

    @classmethod
    def from_model(
        cls, model: Any, labels: tuple[str, ...], preprocess: Preprocess, metrics: dict[str, Any] | None = None
    ) -> Self:
        """Copies the weights and configuration of a `ShiftViT`.

        Raises:
            ShiftViTError: the labels and the logits differ in number.
        """
        from shiftvit.environment import versions

        if len(labels) != model.settings.num_classes:
            raise ShiftViTError(
                f"{len(labels)} labels do not name {model.settings.num_classes} classes; give one for each"
            )
        weights = {variable.path: np.asarray(variable.numpy(), np.float32) for variable in model.weights}
        return cls(model.settings, tuple(labels), preprocess, weights, metrics or {}, versions())

    def halved(self) -> Self:
        """Returns the bundle with float16 weights, and without its graph, whose weights would differ.

        Raises:
            ShiftViTError: a weight is too large for float16.
        """
        with np.errstate(over="ignore"):
            weights = {path: value.astype(np.float16) for path, value in self.weights.items()}
        for path, value in weights.items():
            if not np.isfinite(value).all():
                raise ShiftViTError(f"{path!r} has values beyond 65504, the largest of float16; keep float32 weights")
        return dataclasses.replace(self, weights=weights, graph=None)

    def save(self, path: str | Path) -> Path:
        """Writes a folder, or a zip archive if `path` ends in ".zip", whole or not at all; replaces a bundle.

        Raises:
            ShiftViTError: no space, no permission, or `path` exists and is not a bundle.
        """
        path = Path(path)
        check_place(path)
        write_container(path, self.files())
        return path

    def files(self) -> dict[str, bytes]:
        """Returns the content of each file that `save` writes, by name; equal bundles give equal bytes."""
        from safetensors.numpy import save

        contents = {WEIGHTS: save(self.weights)}
        if self.graph is not None:
            contents[GRAPH] = self.graph
        manifest = {
            "format": FORMAT,
            "model": self.config.model_dump(mode="json", exclude={"preset"}),
            "labels": list(self.labels),
            "preprocess": self.preprocess.model_dump(mode="json"),
            "metrics": self.metrics,
            "versions": self.versions,
            "temperature": self.temperature,
            "files": {name: digest(content) for name, content in contents.items()},
        }
        text = json.dumps(manifest, indent=2, ensure_ascii=False, allow_nan=False) + "\n"
        card = write_card(self) if self.card is None else self.card
        return {**contents, MANIFEST: text.encode(), CARD: card.encode("utf-8", "replace")}

    @classmethod
    def load(cls, path: str | Path) -> Self:
        """Reads and checks a bundle.

        Args:
            path: the bundle's folder or zip archive, a run folder that holds one as `bundle/`, or the name of a model
                that comes with the package.

        Raises:
            ShiftViTError: there is no bundle, its format is newer, or a file is damaged or does not fit.
        """
        from safetensors import SafetensorError
        from safetensors.numpy import load

        container = find_bundle(path)
        manifest = read_manifest(container)
        try:
            weights = load(read_checked(container, manifest, WEIGHTS))
        except (SafetensorError, KeyError, ValueError) as error:
            if isinstance(error, ShiftViTError):
                raise
            raise ShiftViTError(
                f"{WEIGHTS!r} in {str(container.where)!r} cannot be read ({error}); restore the bundle"
            ) from error
        graph = read_checked(container, manifest, GRAPH) if GRAPH in manifest.files else None
        return cls(
            manifest.model,
            manifest.labels,
            manifest.preprocess,
            weights,
            manifest.metrics,
            manifest.versions,
            graph,
            manifest.temperature,
            read_card(container),
        )

    def build(self, dtype: str | None = None) -> Any:
        """Returns the `ShiftViT` with these weights, under the current Keras backend.

        Args:
            dtype: the Keras dtype policy; None: the global one.

        Raises:
            ShiftViTError: the weights do not fit the configuration.
        """
        from shiftvit.model.network import ShiftViT

        model = ShiftViT(**self.config.model_dump(exclude={"preset"}), dtype=dtype)
        variables = {variable.path: variable for variable in model.weights}
        fits = variables.keys() == self.weights.keys() and all(
            tuple(variable.shape) == self.weights[path].shape for path, variable in variables.items()
        )
        if not fits:
            raise ShiftViTError("the bundle's weights do not fit its own model configuration; restore the bundle")
        for path, variable in variables.items():
            variable.assign(np.asarray(self.weights[path], np.float32))
        return model


def pretrained_names() -> list[str]:
    """Returns the names of the models that come with the package."""
    return sorted(entry.parent.name for entry in PRETRAINED.glob(f"*/{MANIFEST}"))


def check_place(path: Path) -> None:
    """Raises ShiftViTError if something other than a bundle exists at `path`; `save` would not replace it."""
    if path.exists() and open_container(path, MANIFEST) is None:
        raise ShiftViTError(f"{str(path)!r} exists and is not a bundle, so it is not replaced; choose another place")


def find_bundle(path: str | Path) -> Container:
    """Returns the files of the bundle at `path`, in its subfolder `bundle`, or of the packaged model of that name.

    Raises:
        ShiftViTError: there is none.
    """
    given, path = path, Path(path)
    for place in (path, path / "bundle"):
        if (container := open_container(place, MANIFEST)) is not None:
            return container
    if str(given) in pretrained_names() and (named := open_container(PRETRAINED / given, MANIFEST)) is not None:
        return named
    if (path / "recipe.toml").is_file():
        raise ShiftViTError(
            f"the run {str(path)!r} has no model yet; let it finish: shiftvit train --resume {shlex.quote(str(path))}"
        )
    there = "is not a bundle and contains none" if path.exists() else "does not exist"
    far = f"; if it is on the Hugging Face Hub: shiftvit pull {given}" if _is_far(str(given)) else ""
    raise ShiftViTError(
        f"{str(path)!r} {there}; give a run folder, a bundle (a folder or .zip with {MANIFEST}) or one of the names: "
        f"{', '.join(pretrained_names())}{far}"
    )


def _is_far(name: str) -> bool:
    """Returns whether a name can be a repository, OWNER/NAME, and is not likely to be a misspelt path."""
    return re.fullmatch(r"[\w.-]+/[\w.-]+", name) is not None and not Path(name).parent.exists()


def read_manifest(container: Container) -> Manifest:
    """Reads and checks a bundle's JSON.

    Raises:
        ShiftViTError: it is damaged, its format is newer, or it lists files that a bundle does not have.
    """
    where = str(container.where)
    content = container.read(MANIFEST)
    try:
        tree = json.loads(content)
    except (ValueError, RecursionError) as error:
        raise ShiftViTError(f"{MANIFEST!r} in {where!r} cannot be read ({error}); restore the bundle") from error
    version = tree.get("format") if isinstance(tree, dict) else None
    if isinstance(version, int) and version > FORMAT:
        raise ShiftViTError(f"{where!r} has format {version}; this shiftvit reads up to {FORMAT}; update shiftvit")
    try:
        manifest = Manifest.model_validate(tree)
    except ValidationError as error:
        raise ShiftViTError(
            f"{MANIFEST!r} in {where!r} is not a valid bundle: {first_fault(error)}; restore it"
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
    if digest(content) != manifest.files[name]:
        raise ShiftViTError(
            f"{name!r} in {str(container.where)!r} is damaged: its SHA-256 differs from the recorded one; restore it"
        )
    return content


def read_card(container: Container) -> str | None:
    """Returns a bundle's card, or None; a missing or edited card must not make the model unusable."""
    try:
        content = container.read(CARD)
    except ShiftViTError:
        return None
    return content.decode("utf-8", "replace") if len(content) <= LARGEST_CARD else None
