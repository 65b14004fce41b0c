"""The recipe `probe`: a linear head on the features of a trained model, fitted by logistic regression."""

from __future__ import annotations

import dataclasses
import functools
import hashlib
import time
import warnings
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from shiftvit import files
from shiftvit.bundle.bundle import Bundle
from shiftvit.bundle.stored.find import is_checkpoint
from shiftvit.config import ProbeConfig
from shiftvit.console import Bar
from shiftvit.data.find.dataset import Dataset
from shiftvit.data.load import load_data
from shiftvit.environment import count_cores
from shiftvit.errors import ShiftViTError, list_some, notice
from shiftvit.evaluation.features import Extract, load_graph_features, load_keras_features
from shiftvit.evaluation.metrics import measure
from shiftvit.model.network import ShiftViT
from shiftvit.recipes.recipe import Recipe
from shiftvit.training import runfolder
from shiftvit.training.features import FeatureReader
from shiftvit.training.finetune import put_weights, take_weights
from shiftvit.training.results import keep_results
from shiftvit.training.setup import resolve

Floats = NDArray[np.float32]
# A lower limit of the scale, relative to the median spread, so that nearly constant features are not blown up.
_LEAST_SPREAD = 1e-3


@dataclass(frozen=True)
class Head:
    """A linear layer, `logits = features @ kernel + bias`, with the figures of the search for it.

    Attributes:
        kernel, bias: float32 (D, C) and (C,).
        strength: the chosen value of scikit-learn's C.
        rows: for each candidate its strength, and its top-1 and loss on training and validation images.
    """

    kernel: Floats
    bias: Floats
    strength: float
    rows: list[dict[str, Any]]

    def compute_logits(self, features: Floats) -> Floats:
        """Returns float32 (N, C) for features (N, D)."""
        return features @ self.kernel + self.bias


def run_probe(run: Path, recipe: Recipe, data: Dataset | None = None) -> tuple[Recipe, dict[str, Any]]:
    """Fits a head and saves the model in a run folder, which is new or holds an unfinished run.

    Args:
        run: the folder.
        recipe: a recipe with `probe`, after `apply_start`.
        data: images to use instead of those that the recipe names.

    Returns:
        the resolved recipe, and the metrics.

    Raises:
        ShiftViTError: as `train`.
    """
    reader = FeatureReader(functools.partial(_open_model, recipe))
    dataset = load_data(recipe, data, run, read=reader)
    counts = np.bincount(dataset.train.labels, minlength=len(dataset.class_names))
    missing = [repr(name) for name, count in zip(dataset.class_names, counts, strict=True) if not count]
    if missing:
        which = "class" if len(missing) == 1 else "classes"
        raise ShiftViTError(
            f"a probe cannot learn the {which} {list_some(missing)} without training images; add some, or remove the "
            f"{which}"
        )
    if dataset.test_is_validation:
        reader.features["test"] = reader.features["validation"]
    recipe = resolve(recipe, dataset)
    with runfolder.open_run(run, recipe, dataset):
        began, validation = time.perf_counter(), None
        assert recipe.probe is not None
        if dataset.validation is not None and not dataset.test_is_validation:
            validation = reader.features["validation"], dataset.validation.labels
        elif len(recipe.probe.strengths) > 1:
            notice(
                "no validation images: C (probe.strengths) is chosen on the training images, which favours the weakest "
                "regularisation"
            )
        head = fit_head(reader.features["train"], dataset.train.labels, recipe.probe, validation)
        seconds = reader.seconds + time.perf_counter() - began
        runfolder.write_log(run, head.rows)
        notice(f"evaluating on {len(dataset.test):,} test images")
        bundle = _add_head(recipe, dataset, head)
        training = {
            "seconds": round(seconds, 2),
            "images_per_second": round(reader.count / max(reader.seconds, 1e-9), 1),
            "epochs": 1,
            "images": len(dataset.train),
            "best_epoch": None,
            "strength": head.strength,
        }
        logits = {name: head.compute_logits(features) for name, features in reader.features.items()}
        final = bundle.build("float32")
        return recipe, keep_results(run, recipe, dataset, bundle=bundle, final=final, training=training, logits=logits)


def fit_head(
    features: Floats, labels: NDArray[np.int64], probe: ProbeConfig, validation: tuple[Floats, NDArray[np.int64]] | None
) -> Head:
    """Fits a multinomial logistic regression for each strength and keeps the one with the best validation top-1.

    Ties go to the lower loss, then to the stronger regularisation. The features are standardised for the fit; the head
    takes unscaled features.

    Args:
        features, labels: of the training images, float32 (N, D) and int64 (N,) with every class from 0 to C - 1.
        probe: the strengths to try.
        validation: features and labels to choose by; None: the training images.
    """
    from sklearn.exceptions import ConvergenceWarning
    from sklearn.linear_model import LogisticRegression

    mean = features.mean(axis=0, dtype=np.float64)
    spread = features.std(axis=0, dtype=np.float64)
    spread = np.maximum(spread, max(_LEAST_SPREAD * float(np.median(spread)), 1e-12))
    scaled = (features - mean) / spread
    model = LogisticRegression(max_iter=probe.iterations, warm_start=True)
    measured = {"": (features, labels)} | ({} if validation is None else {"val_": validation})
    heads: list[tuple[Floats, Floats]] = []
    rows: list[dict[str, Any]] = []
    with warnings.catch_warnings(), Bar("fitting the head", len(probe.strengths)) as bar:
        warnings.simplefilter("ignore", ConvergenceWarning)  # the last iterate is still a good head
        for strength in sorted(probe.strengths):
            model.set_params(C=strength).fit(scaled, labels)
            heads.append(_make_head(model.coef_ / spread, model.intercept_, mean))
            row = {"strength": strength}
            for prefix, (inputs, truth) in measured.items():
                found = measure(inputs @ heads[-1][0] + heads[-1][1], truth)
                row |= {f"{prefix}{key}": found[key] for key in ("loss", "top1")}
            rows.append(row)
            bar.advance()
    prefix = "" if validation is None else "val_"
    best = min(range(len(rows)), key=lambda place: (-rows[place][f"{prefix}top1"], rows[place][f"{prefix}loss"]))
    return Head(heads[best][0], heads[best][1], rows[best]["strength"], rows)


def _make_head(
    coefficients: NDArray[np.float64], intercept: NDArray[np.float64], mean: NDArray[np.float64]
) -> tuple[Floats, Floats]:
    """Returns kernel (D, C) and bias (C,) from scikit-learn's (C, D) and (C,), which have one row for two classes."""
    bias = intercept - coefficients @ mean
    if len(coefficients) == 1:
        coefficients, bias = np.concatenate([-coefficients, coefficients]) / 2, np.concatenate([-bias, bias]) / 2
    return np.ascontiguousarray(coefficients.T, np.float32), bias.astype(np.float32)


def _add_head(recipe: Recipe, dataset: Dataset, head: Head) -> Bundle:
    model = ShiftViT(**recipe.model.get_arguments(), dtype="float32")
    take_weights(model, recipe, dataset.class_names)
    bundle = Bundle.from_model(model, dataset.class_names, recipe.preprocess)
    return dataclasses.replace(bundle, weights={**bundle.weights, "head/kernel": head.kernel, "head/bias": head.bias})


def _open_model(recipe: Recipe, size: tuple[int, int]) -> tuple[str, Callable[[], Extract]]:
    """Returns a key that identifies the model of `start.source`, and a function that loads its feature extractor."""
    source = str(recipe.start.source)
    rule, shape = recipe.preprocess, (*size, 3)
    if is_checkpoint(source):
        key = files.hash_file(Path(source))
        graph = None
    else:
        bundle = Bundle.load(source)
        digest = hashlib.sha256()
        for path in sorted(path for path in bundle.weights if not path.startswith("head/")):
            digest.update(path.encode() + np.ascontiguousarray(bundle.weights[path]).tobytes())
        key, graph = digest.hexdigest(), bundle.graph

    def load() -> Extract:
        if graph is not None:
            metadata, extract = load_graph_features(graph, count_cores(), repr(source))
            scale = metadata.preprocess.mean, metadata.preprocess.std
            if metadata.input_shape == shape and scale == (rule.mean, rule.std):
                return extract
        model = ShiftViT(**{**recipe.model.get_arguments(), "image_shape": shape, "num_classes": 1}, dtype="float32")
        put_weights(model, source, ("",))
        return load_keras_features(model, rule)

    return f"{key} {recipe.model.model_dump_json(exclude={'image_shape', 'num_classes', 'dropout', 'drop_path'})}", load
