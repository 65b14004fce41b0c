"""`Bundle`: a trained model as a folder of two files that hold data only.

`model.safetensors` has the weights; `bundle.json` the format's version, the model's configuration, the labels, the
preprocessing, the metrics, library versions and the SHA-256 of the weights. Loading checks all of it and builds the
model from the configuration: nothing in a bundle is ever executed.
"""

from __future__ import annotations

import json
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal, Self

import numpy as np
from pydantic import ValidationError

from shiftvit import files
from shiftvit.config import ModelConfig, Settings
from shiftvit.data.preprocess import Preprocess
from shiftvit.errors import ShiftViTError

FORMAT = 1
WEIGHTS = "model.safetensors"
MANIFEST = "bundle.json"

Weights = dict[str, np.ndarray[Any, Any]]


class _Manifest(Settings):
    """The content of `bundle.json`."""

    format: Literal[1]
    model: ModelConfig
    labels: tuple[str, ...]
    preprocess: Preprocess
    metrics: dict[str, Any]
    versions: dict[str, str]
    files: dict[str, str]


@dataclass(frozen=True)
class Bundle:
    """A trained model with all that is needed to use it.

    Attributes:
        config: the model's constructor arguments.
        labels: the class names, in the order of the logits.
        preprocess: what turns uint8 images into the model's input.
        weights: variable path to float32 array.
        metrics: what was measured, as in a run's `metrics.json`.
        versions: library name to the version that wrote the bundle.
    """

    config: ModelConfig
    labels: tuple[str, ...]
    preprocess: Preprocess
    weights: Weights = field(repr=False)
    metrics: dict[str, Any] = field(default_factory=dict)
    versions: dict[str, str] = field(default_factory=dict)

    @classmethod
    def from_model(
        cls, model: Any, labels: tuple[str, ...], preprocess: Preprocess, metrics: dict[str, Any] | None = None
    ) -> Self:
        """Takes a copy of a `ShiftViT`'s weights and configuration.

        Raises:
            ShiftViTError: another number of labels than of logits.
        """
        from shiftvit.environment import versions

        if len(labels) != model.settings.num_classes:
            raise ShiftViTError(
                f"{len(labels)} labels do not name {model.settings.num_classes} classes; give one for each"
            )
        weights = {variable.path: np.asarray(variable.numpy(), np.float32) for variable in _weights(model)}
        return cls(model.settings, tuple(labels), preprocess, weights, metrics or {}, versions())

    def save(self, path: str | Path) -> Path:
        """Writes the folder `path`, whole or not at all; one that exists is replaced.

        Raises:
            ShiftViTError: no space, no permission, or `path` is something else than a bundle.
        """
        from safetensors.numpy import save

        path = Path(path)
        if path.exists() and not (path / MANIFEST).is_file():
            raise ShiftViTError(f"{str(path)!r} exists and is no bundle, so it is not replaced; name another place")

        def write(folder: Path) -> None:
            (folder / WEIGHTS).write_bytes(save(self.weights))
            manifest = {
                "format": FORMAT,
                "model": self.config.model_dump(mode="json", exclude={"preset"}),
                "labels": list(self.labels),
                "preprocess": self.preprocess.model_dump(mode="json"),
                "metrics": self.metrics,
                "versions": self.versions,
                "files": {WEIGHTS: files.sha256(folder / WEIGHTS)},
            }
            files.write_json(folder / MANIFEST, manifest)

        files.write_folder(path, write)
        return path

    @classmethod
    def load(cls, path: str | Path) -> Self:
        """Reads and checks a bundle.

        Args:
            path: the bundle's folder, or a run folder that holds one as `bundle/`.

        Raises:
            ShiftViTError: no bundle there, a newer format, or a file that is damaged or does not fit.
        """
        from safetensors import SafetensorError
        from safetensors.numpy import load_file

        folder = find_bundle(path)
        try:
            tree = json.loads((folder / MANIFEST).read_text("utf-8"))
        except (OSError, ValueError) as error:
            raise ShiftViTError(f"{str(folder / MANIFEST)!r} cannot be read ({error}); restore the bundle") from error
        version = tree.get("format") if isinstance(tree, dict) else None
        if isinstance(version, int) and version > FORMAT:
            raise ShiftViTError(
                f"{str(folder)!r} has format {version} and this shiftvit reads up to {FORMAT}; update shiftvit"
            )
        try:
            manifest = _Manifest.model_validate(tree)
        except ValidationError as error:
            fault = error.errors(include_url=False)[0]
            where = ".".join(str(part) for part in fault["loc"]) or "its top level"
            raise ShiftViTError(
                f"{str(folder / MANIFEST)!r} is no valid bundle: {where}: {fault['msg']}; restore it"
            ) from error
        if manifest.files.keys() != {WEIGHTS}:
            raise ShiftViTError(
                f"{str(folder)!r} lists the files {sorted(manifest.files)}, not {WEIGHTS!r}; restore it"
            )
        try:
            if files.sha256(folder / WEIGHTS) != manifest.files[WEIGHTS]:
                raise ShiftViTError(
                    f"{str(folder / WEIGHTS)!r} is damaged: its SHA-256 is not the recorded one; restore it"
                )
            weights = load_file(folder / WEIGHTS)
        except (OSError, SafetensorError) as error:
            raise ShiftViTError(f"{str(folder / WEIGHTS)!r} cannot be read ({error}); restore the bundle") from error
        return cls(manifest.model, manifest.labels, manifest.preprocess, weights, manifest.metrics, manifest.versions)

    def build(self) -> Any:
        """Returns the `ShiftViT` with these weights, under the current Keras backend and dtype policy.

        Raises:
            ShiftViTError: weights that do not fit the configuration.
        """
        from shiftvit.model.network import ShiftViT

        model = ShiftViT(**self.config.model_dump(exclude={"preset"}))
        variables = {variable.path: variable for variable in _weights(model)}
        fits = variables.keys() == self.weights.keys() and all(
            tuple(variable.shape) == self.weights[path].shape for path, variable in variables.items()
        )
        if not fits:
            raise ShiftViTError("the bundle's weights do not fit its own model configuration; restore the bundle")
        for path, variable in variables.items():
            variable.assign(self.weights[path])
        return model


def find_bundle(path: str | Path) -> Path:
    """Returns the bundle's folder for `path`: itself, or its subfolder `bundle`.

    Raises:
        ShiftViTError: there is none.
    """
    path = Path(path)
    for folder in (path, path / "bundle"):
        if (folder / MANIFEST).is_file():
            return folder
    if (path / "recipe.toml").is_file():
        raise ShiftViTError(f"the run {str(path)!r} has no model yet; let it finish: shiftvit train --resume {path}")
    there = "is no bundle and holds none" if path.exists() else "does not exist"
    raise ShiftViTError(f"{str(path)!r} {there}; give a run folder or a bundle (a folder with {MANIFEST})")


def _weights(model: Any) -> list[Any]:
    return list(model.weights)
