"""Chooses the Keras backend before Keras is imported.

`KERAS_BACKEND` and Keras' own `keras.json` decide. Without them, shiftvit takes the first installed backend of torch,
jax and tensorflow; Keras alone would insist on tensorflow.
"""

from __future__ import annotations

import contextlib
import importlib.util
import json
import os
import sys
from collections.abc import Iterator
from pathlib import Path

from shiftvit.errors import ShiftViTError, suggest, suggest_install

BACKENDS = ("torch", "jax", "tensorflow")
KERAS_DEFAULTS = {
    "floatx": "float32",
    "epsilon": 1e-07,
    "backend": "tensorflow",
    "image_data_format": "channels_last",
}


def list_installed_backends() -> list[str]:
    """Returns which of torch, jax and tensorflow are installed, in this order, without importing them."""
    return [name for name in BACKENDS if importlib.util.find_spec(name) is not None]


def ensure_backend() -> str:
    """Sets `KERAS_BACKEND` unless Keras is already imported, and returns the backend's name.

    Raises:
        ShiftViTError: no backend is installed, or `KERAS_BACKEND` names one that is not.
    """
    if "keras" in sys.modules:
        import keras

        return str(keras.config.backend())
    installed = list_installed_backends()
    if not installed:
        raise ShiftViTError(
            f"this needs a Keras backend, and none is installed; choose one: {suggest_install('torch')}, or "
            f"{suggest_install('jax')}, or {suggest_install('tensorflow')}"
        )
    wanted = os.environ.get("KERAS_BACKEND")
    if wanted:
        if wanted not in BACKENDS:
            raise ShiftViTError(f"KERAS_BACKEND={wanted!r} is not supported; {suggest(wanted, BACKENDS)}")
        if wanted not in installed:
            raise ShiftViTError(
                f"KERAS_BACKEND={wanted!r} is not installed; {suggest_install(wanted)}, "
                f"or set it to one of: {', '.join(installed)}"
            )
        return wanted
    configured = _read_configuration()
    choice = configured if configured in installed else installed[0]
    os.environ["KERAS_BACKEND"] = choice
    return choice


def limit_threads(threads: int) -> None:
    """Chooses the backend and, on torch, its number of CPU threads. The other backends cannot be limited."""
    if ensure_backend() == "torch":
        import torch

        torch.set_num_threads(threads)


@contextlib.contextmanager
def hide_tensorflow() -> Iterator[None]:
    """Keeps Keras from importing TensorFlow under another backend, as it does to seed it and to save a model.

    That would take seconds and hundreds of megabytes. If TensorFlow is already imported, this does nothing.
    """
    import keras
    from keras.src.utils.module_utils import tensorflow  # there is no public way

    if keras.config.backend() == "tensorflow" or "tensorflow" in sys.modules:
        yield
        return
    available, tensorflow._available = tensorflow._available, False
    try:
        yield
    finally:
        tensorflow._available = available


def _read_configuration() -> str | None:
    home = Path(os.environ.get("KERAS_HOME") or Path("~/.keras").expanduser())
    try:
        settings = json.loads((home / "keras.json").read_text("utf-8"))
    except (OSError, ValueError):
        return None
    # Keras writes exactly this at its first import, whatever the backend: nobody chose it.
    if not isinstance(settings, dict) or settings == KERAS_DEFAULTS:
        return None
    backend = settings.get("backend")
    return backend if isinstance(backend, str) else None
