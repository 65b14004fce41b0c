"""The named models, with what is published about each."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from shiftvit.errors import ShiftViTError, suggest


@dataclass(frozen=True)
class Preset:
    """A named configuration.

    Attributes:
        arguments: constructor arguments that differ from the defaults of `shiftvit.ShiftViT`.
        published: top-1 accuracy in percent that the authors report, and the data; None: their repository states none.
        description: one line.
    """

    arguments: dict[str, Any]
    published: tuple[float, str] | None
    description: str


def _make_paper(size: str, kind: str, depths: tuple[int, ...], drop_path: float, top1: float | None = None) -> Preset:
    wide = {"embed_dim": 128, "num_div": 16} if size == "base" else {}
    return Preset(
        arguments={"depths": depths, "mlp_ratio": 2.0 if kind == "r2" else 4.0, "drop_path": drop_path, **wide},
        published=None if top1 is None else (top1, "ImageNet-1K, 224x224"),
        description=f"the paper's official {size} model, variant {kind}",
    )


def _make_cifar(depths: tuple[int, ...], description: str, **changes: Any) -> Preset:
    return Preset(
        arguments={
            "image_shape": (32, 32, 3),
            "num_classes": 10,
            "patch_size": 2,
            "embed_dim": 64,
            "depths": depths,
            "norm": "layer",
            "patch_norm": False,
            "drop_path": 0.0,
            **changes,
        },
        published=None,
        description=description,
    )


# Depths, widths and drop paths are those of the official registry. Accuracies: the table of pretrained models in the
# authors' repository, microsoft/SPACH, which has none for the others.
PRESETS: dict[str, Preset] = {
    "shiftvit_tiny_light": _make_paper("tiny", "light", (2, 2, 6, 2), 0.2, 79.4),
    "shiftvit_tiny_r4": _make_paper("tiny", "r4", (2, 2, 12, 3), 0.2),
    "shiftvit_tiny_r2": _make_paper("tiny", "r2", (6, 8, 18, 6), 0.2, 81.7),
    "shiftvit_small_light": _make_paper("small", "light", (2, 2, 18, 2), 0.4, 81.6),
    "shiftvit_small_r4": _make_paper("small", "r4", (2, 6, 24, 4), 0.4),
    "shiftvit_small_r2": _make_paper("small", "r2", (10, 18, 36, 10), 0.4, 82.8),
    "shiftvit_base_light": _make_paper("base", "light", (2, 2, 18, 2), 0.5),
    "shiftvit_base_r4": _make_paper("base", "r4", (4, 6, 22, 4), 0.5),
    "shiftvit_base_r2": _make_paper("base", "r2", (10, 18, 36, 10), 0.6),
    "keras_example": Preset(
        arguments={
            "image_shape": (48, 48, 3),
            "num_classes": 10,
            "depths": (2, 4, 8, 2),
            "shift_channels": 12,
            # The example crops a window and pads it back where it was, so its channels never move.
            "shift_mode": "mask",
            "norm": "layer",
            "patch_norm": False,
            "final_norm": False,
            "merge_padding": "same",
            "dropout": 0.2,
            "drop_path_mode": "per_stage",
        },
        published=(76.38, "CIFAR-10, 50 epochs"),
        description="the model of the Keras example on ShiftViT",
    ),
    "shiftvit_cifar": _make_cifar((2, 3, 6), "for 32x32 images; the recipe cifar10 trains it"),
    "shiftvit_cifar_tiny": _make_cifar(
        (1, 1, 2), "for 32x32 images, small and fast; the recipe quick trains it", activation="relu"
    ),
    "shiftvit_cifar_large": _make_cifar(
        (3, 4, 8), "for 32x32 images on a GPU; the recipe accurate trains it", embed_dim=128
    ),
}


def find_preset(name: str) -> Preset:
    """Returns a preset by name.

    Raises:
        ShiftViTError: there is no preset of that name.
    """
    if not isinstance(name, str) or name not in PRESETS:
        raise ShiftViTError(f"there is no preset {name!r}; {suggest(name, PRESETS)}")
    return PRESETS[name]
