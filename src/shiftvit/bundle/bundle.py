"""`Bundle`: a trained model as a folder or a zip archive of files that hold data only.

`model.safetensors` holds the weights. `bundle.json` holds the format version, the model configuration, the labels, the
preprocessing, the metrics, library versions and the SHA-256 of the other files. `model.onnx`, which is optional, is the
same model as a graph that needs no framework. `README.md` is the model card; it is for people and is not verified.
Loading verifies everything else and builds the model from the configuration: nothing in a bundle is ever executed.
"""

from __future__ import annotations

import dataclasses
import json
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Self

import numpy as np
from numpy.typing import NDArray

from shiftvit import files
from shiftvit.bundle.stored.container import Archive, Container, hash_content, open_container, write_container
from shiftvit.bundle.stored.find import find_bundle
from shiftvit.bundle.stored.manifest import (
    CARD,
    FORMAT,
    GRAPH,
    MANIFEST,
    MISFIT,
    WEIGHTS,
    Provenance,
    check_labels,
    check_size,
    read_checked,
    read_manifest,
    read_tensors,
)
from shiftvit.config import ModelConfig
from shiftvit.errors import ShiftViTError
from shiftvit.preprocess import Preprocess

_NAMES = {WEIGHTS, GRAPH, MANIFEST, CARD}
# The keys that distinguish a bundle's manifest from other JSON files of that name.
_KEYS = {"format", "model", "labels", "files"}
# Bytes; a larger README.md is not kept.
LARGEST_CARD = 2**20

Weights = dict[str, np.ndarray[Any, Any]]


@dataclass(frozen=True)
class Bundle:
    """A trained model with everything needed to use it.

    Attributes:
        config: the model's constructor arguments.
        labels: the class names, in the order of the logits.
        preprocess: what turns uint8 images into the model's input; `prepare` applies it as predictions do.
        weights: variable path to array, float32 or float16.
        metrics: the measured figures, as in a run's `metrics.json`.
        versions: library name to the version that wrote the bundle.
        graph: the model as an ONNX graph, or None.
        temperature: divides the logits before the softmax, so that confidence matches accuracy (Guo et al., 2017,
            section 4.2); the graph has it built in, and `probabilities` applies it.
        card: the model card, in Markdown; None: `save` writes one from what the bundle holds.
        synsets: the WordNet identifiers of the labels, in their order; empty: none are known.
        provenance: where the weights come from, if they were not trained here.
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
    synsets: tuple[str, ...] = field(default=(), repr=False)
    provenance: Provenance | None = None

    @classmethod
    def from_model(
        cls, model: Any, labels: tuple[str, ...], preprocess: Preprocess, metrics: dict[str, Any] | None = None
    ) -> Self:
        """Copies the weights and configuration of a `ShiftViT`.

        Args:
            model: a `ShiftViT`.
            labels: the class names, all different, in the order of the logits.
            preprocess: what turns uint8 images into the model's input.
            metrics: measured figures, which can be written as JSON.

        Raises:
            ShiftViTError: `model` is not a `ShiftViT` of RGB images, `preprocess` is not a `Preprocess`, or the labels
                are not a sequence of different strings, one for each logit.
        """
        from shiftvit.environment import list_versions
        from shiftvit.model.network import ShiftViT
        from shiftvit.model.weights import list_values

        for name, value, kind in (("model", model, ShiftViT), ("preprocess", preprocess, Preprocess)):
            if not isinstance(value, kind):
                raise ShiftViTError(f"{name} has the type {type(value).__name__}; a bundle holds a {kind.__name__}")
        labels = check_labels(labels, model.settings.num_classes)
        channels = model.settings.image_shape[2]
        if channels != 3:
            raise ShiftViTError(f"image_shape={model.settings.image_shape} is not of RGB images, as a bundle's are")
        weights = list_values(model)
        return cls(model.settings, labels, preprocess, weights, metrics=metrics or {}, versions=list_versions())

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
        """Writes a folder, or a zip archive if `path` ends in ".zip", atomically. An earlier bundle is replaced.

        Other files in the folder of an earlier bundle stay.

        Raises:
            ShiftViTError: the disk is full, `path` is not writable, or it exists and is not a bundle.
        """
        path = Path(path)
        write_container(path, self.files(), gone=_NAMES, keep=check_place(path))
        return path

    def files(self) -> dict[str, bytes]:
        """Returns the content of each file that `save` writes, by name; equal bundles give equal bytes.

        Raises:
            ShiftViTError: the labels do not name the classes, or the metrics cannot be written as JSON.
        """
        check_labels(self.labels, self.config.num_classes)
        contents = {WEIGHTS: pack_weights(self.weights)}
        if self.graph is not None:
            contents[GRAPH] = self.graph
        manifest = {
            "format": FORMAT,
            "model": self.config.model_dump(mode="json", exclude={"preset"}),
            "labels": list(self.labels),
            # Older versions reject `srgb`.
            "preprocess": self.preprocess.model_dump(mode="json", exclude=None if self.preprocess.srgb else {"srgb"}),
            "metrics": self.metrics,
            "versions": self.versions,
            "temperature": self.temperature,
            # Only if there are any, so that an older shiftvit can read all other bundles.
            **({"synsets": list(self.synsets)} if self.synsets else {}),
            **({"provenance": self.provenance.model_dump(mode="json")} if self.provenance else {}),
            "files": {name: hash_content(content) for name, content in contents.items()},
        }
        try:
            text = json.dumps(manifest, indent=2, ensure_ascii=False, allow_nan=False) + "\n"
        except (TypeError, ValueError) as error:
            raise ShiftViTError(
                f"the metrics cannot be written as JSON: {error}; give finite numbers and text"
            ) from error
        card = self.card
        if card is None:
            from shiftvit.bundle.card import write_card  # only here: it imports the recipes

            card = write_card(self)
        return {**contents, MANIFEST: text.encode(), CARD: card.encode("utf-8", "replace")}

    @classmethod
    def load(cls, path: str | Path) -> Self:
        """Reads and checks a bundle.

        Args:
            path: the bundle's folder or zip archive, a run folder that holds one as `bundle/`, or the name of a model
                that was pulled or comes with the package.

        Raises:
            ShiftViTError: there is no bundle, its format is newer, or a file is damaged or does not fit.
        """
        container = find_bundle(path)
        manifest = read_manifest(container)
        return cls(
            config=manifest.model,
            labels=manifest.labels,
            preprocess=manifest.preprocess,
            weights=read_tensors(container, manifest),
            metrics=manifest.metrics,
            versions=manifest.versions,
            graph=read_checked(container, manifest, GRAPH) if GRAPH in manifest.files else None,
            temperature=manifest.temperature,
            card=read_card(container),
            synsets=manifest.synsets,
            provenance=manifest.provenance,
        )

    def prepare(self, images: NDArray[np.uint8]) -> NDArray[np.float32]:
        """Turns images into the input of `build`'s model, exactly as `Predictor` does for every runtime.

        In addition to `preprocess`, images are fitted to the model's size, as in `Preprocess.fitted`, and rounded.

        Args:
            images: uint8 (N, H, W, 3), RGB.

        Returns:
            float32 (N, h, w, 3).

        Raises:
            ShiftViTError: the images have another dtype or shape, or are smaller than the crop.
        """
        height, width = self.config.image_shape[:2]
        rule = self.preprocess if height is None or width is None else self.preprocess.fitted(height, width)
        return rule.normalised(rule.pixels(images))

    def probabilities(self, logits: NDArray[np.float32]) -> NDArray[np.float32]:
        """Returns the probabilities of logits (N, C), as `Predictor` does: softmax(logits / temperature), float32."""
        from scipy.special import softmax

        result: NDArray[np.float32] = softmax(np.asarray(logits, np.float32) / np.float32(self.temperature), axis=-1)
        return result

    def build(self, dtype: str | None = None) -> Any:
        """Returns the `ShiftViT` with these weights, under the current Keras backend.

            logits = bundle.build().predict(bundle.prepare(images))
            probabilities = bundle.probabilities(logits)  # those of `Predictor`

        Args:
            dtype: the Keras dtype policy; None: the global one.

        Raises:
            ShiftViTError: the weights do not fit the configuration.
        """
        check_size(self.config, self.weights)
        from shiftvit.model.network import ShiftViT
        from shiftvit.model.weights import assign_weights

        model = ShiftViT(**self.config.model_dump(exclude={"preset"}), dtype=dtype)
        assign_weights(model, self.weights, MISFIT, "restore the bundle")
        return model


def pack_weights(weights: Weights) -> bytes:
    """Returns the content of a bundle's `model.safetensors`; equal weights give equal bytes."""
    from safetensors.numpy import save

    return save({path: np.ascontiguousarray(value) for path, value in weights.items()})


def check_place(path: Path) -> set[str]:
    """Checks that `save` may write to `path`: it does not exist, or is a bundle, even a damaged one.

    Returns:
        the names of a bundle's files that belong to someone else in that folder.

    Raises:
        ShiftViTError: `path` is something else, or the folder is not writable.
    """
    files.check_folder(path if path.is_dir() else path.parent)
    if not path.exists() or (path.is_dir() and not any(path.iterdir())):
        return set()
    container = open_container(path, MANIFEST)
    manifest = None if container is None else _read_unchecked_manifest(container)
    if container is None or not isinstance(manifest, dict) or not manifest.keys() >= _KEYS:
        raise ShiftViTError(f"{str(path)!r} exists and is not a bundle, so it is not replaced; choose another place")
    if isinstance(container, Archive):
        if others := sorted({*container.list_names()} - _NAMES):
            raise ShiftViTError(
                f"{str(path)!r} exists and holds more than a bundle ({others[0]!r}), so it is not replaced; choose "
                "another place"
            )
        return set()
    return set() if GRAPH in (manifest["files"] or ()) else {GRAPH}


def _read_unchecked_manifest(container: Container) -> Any:
    """Returns the JSON of a manifest; of a damaged bundle, which may be replaced, that of one with all files."""
    try:
        return json.loads(container.read(MANIFEST))
    except (ShiftViTError, ValueError, RecursionError):
        return {**dict.fromkeys(_KEYS), "files": {GRAPH: ""}}


def read_card(container: Container) -> str | None:
    """Returns a bundle's card, or None: a missing or edited card must not make the model unusable."""
    try:
        content = container.read(CARD)
    except ShiftViTError:
        return None
    return content.decode("utf-8", "replace") if len(content) <= LARGEST_CARD else None
