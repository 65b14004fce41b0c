"""Makes folders and archives of pictures, and reads what shiftvit finds in them."""

from __future__ import annotations

import shutil
from pathlib import Path

import numpy as np
import pytest

import shiftvit
from shiftvit import ShiftViTError
from shiftvit.data.find.find import find_data

SAMPLES = Path(shiftvit.__file__).parent / "pretrained" / "samples"
PICTURE = SAMPLES / "cat" / "test_00000.png"


def plant(root, *names):
    """Puts a real picture at each path, or a text file where the suffix is not that of a picture."""
    for name in names:
        path = root / name
        path.parent.mkdir(parents=True, exist_ok=True)
        if path.suffix.lower() in {".png", ".jpg"}:
            shutil.copy(PICTURE, path)
        else:
            path.write_text("text")
    return root


def list_contents(found):
    """Returns split -> [(path relative to the data, class)]."""
    root = found.path if found.path.is_dir() else found.path.parent
    return {
        split: [
            (Path(path).relative_to(root).as_posix(), found.class_names[label])
            for path, label in zip(part.paths, part.labels, strict=True)
        ]
        for split, part in found.splits.items()
    }


def read_fault(path):
    """Returns the message of the error that reading the data must raise, which is one line."""
    with pytest.raises(ShiftViTError) as raised:
        find_data(path)
    message = str(raised.value)
    assert "\n" not in message
    return message


def make_arrays(count=6, classes=2):
    """Returns images (count, 5, 4, 3) and their labels."""
    rng = np.random.default_rng(0)
    return rng.integers(0, 256, (count, 5, 4, 3), np.uint8), np.arange(count) % classes


def save_archive(path, **content):
    np.savez(path, **content)
    return path
