"""ShiftViT: a vision transformer whose attention is replaced by moving a third of the channels by one pixel.

The public names are imported on first use, so `import shiftvit` loads no framework.
"""

from __future__ import annotations

import sys
from importlib import import_module
from typing import TYPE_CHECKING, Any

__version__ = "0.2.0.dev0"

if TYPE_CHECKING:
    from shiftvit.bundle.bundle import Bundle as Bundle
    from shiftvit.data.load import load_data as load_data
    from shiftvit.errors import ShiftViTError as ShiftViTError
    from shiftvit.evaluation.evaluate import evaluate as evaluate
    from shiftvit.exports.export import export as export
    from shiftvit.inference.embed import Embedder as Embedder
    from shiftvit.inference.predict import Prediction as Prediction
    from shiftvit.inference.predict import Predictor as Predictor
    from shiftvit.model.network import ShiftViT as ShiftViT
    from shiftvit.model.network import ShiftViTBackbone as ShiftViTBackbone
    from shiftvit.model.shift import Shift as Shift
    from shiftvit.preprocess import Preprocess as Preprocess
    from shiftvit.recipes.recipe import Recipe as Recipe
    from shiftvit.training.fit import Run as Run
    from shiftvit.training.fit import train as train
    from shiftvit.training.schedule import WarmUpCosine as WarmUpCosine

_HOME = {
    "Bundle": "shiftvit.bundle.bundle",
    "Embedder": "shiftvit.inference.embed",
    "Prediction": "shiftvit.inference.predict",
    "Predictor": "shiftvit.inference.predict",
    "Preprocess": "shiftvit.preprocess",
    "Recipe": "shiftvit.recipes.recipe",
    "Run": "shiftvit.training.fit",
    "Shift": "shiftvit.model.shift",
    "ShiftViT": "shiftvit.model.network",
    "ShiftViTBackbone": "shiftvit.model.network",
    "ShiftViTError": "shiftvit.errors",
    "WarmUpCosine": "shiftvit.training.schedule",
    "evaluate": "shiftvit.evaluation.evaluate",
    "export": "shiftvit.exports.export",
    "load_data": "shiftvit.data.load",
    "train": "shiftvit.training.fit",
}
# Keras finds a class of a saved model only if its module was imported.
_SAVED = {"Shift", "ShiftViT", "ShiftViTBackbone", "WarmUpCosine"}
_MODULES = {"convert": "shiftvit.model.convert", "presets": "shiftvit.presets"}

__all__ = ["__version__", *sorted(_HOME), *sorted(_MODULES)]


def __getattr__(name: str) -> Any:
    if name in _MODULES:
        return import_module(_MODULES[name])
    if name in _SAVED:
        _register()
    if name in _HOME:
        value = getattr(import_module(_HOME[name]), name)
        globals()[name] = value
        return value
    raise AttributeError(f"module 'shiftvit' has no attribute {name!r}")


def __dir__() -> list[str]:
    return __all__


def _register() -> None:
    """Imports all classes that `keras.saving.load_model` may need."""
    for name in sorted(_SAVED):
        import_module(_HOME[name])


if "keras" in sys.modules:
    _register()
