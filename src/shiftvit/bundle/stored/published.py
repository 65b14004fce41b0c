"""The weights that the paper's authors published: their addresses, and the folders to which they are pulled."""

from __future__ import annotations

import os
from dataclasses import dataclass
from functools import cache
from pathlib import Path

from shiftvit import files
from shiftvit.preprocess import Preprocess
from shiftvit.presets import PRESETS

# The environment variable for a mirror of the authors' releases, for networks that cannot reach them.
MIRROR = "SHIFTVIT_WEIGHTS_URL"
_RELEASES = "https://github.com/microsoft/SPACH/releases/download/v1.0"


@dataclass(frozen=True)
class Published:
    """A row of the table.

    Attributes:
        name: the name of the preset and of its weights.
        license: identifier of the weights' license.
        sha256: the SHA-256 of the file, if known; None: the bundle records that of the first download.
    """

    name: str
    license: str = "mit"
    sha256: str | None = None

    @property
    def url(self) -> str:
        """The address of the file."""
        return f"{(os.environ.get(MIRROR) or _RELEASES).rstrip('/')}/{self.name}.pth"

    @property
    def top1(self) -> tuple[float, str]:
        """Top-1 accuracy in percent that the authors report, and the data."""
        figure = PRESETS[self.name].published
        assert figure is not None
        return figure

    @property
    def place(self) -> Path:
        """The folder of the pulled bundle."""
        return files.find_data_folder("models") / self.name


# The authors publish no checksums.
PUBLISHED = {
    name: Published(name)
    for name in ("shiftvit_tiny_light", "shiftvit_tiny_r2", "shiftvit_small_light", "shiftvit_small_r2")
}

# Mean and standard deviation of ImageNet's training images, from 0 to 255, with which the authors normalise.
MEAN, STD = (123.675, 116.28, 103.53), (58.395, 57.12, 57.375)


def find_evaluation(side: int) -> Preprocess:
    """Returns the authors' preprocessing for evaluation: for 224 pixels, a shorter side of 256 and a centre crop."""
    return Preprocess(
        resize=side * 8 // 7, crop=side, crop_position="center", mean=MEAN, std=STD, interpolation="bicubic"
    )


@cache
def read_imagenet_classes() -> tuple[tuple[str, ...], tuple[str, ...]]:
    """Returns the names of ImageNet-1K's classes and their synsets, in the order of the logits.

    The order is that of the synsets of ILSVRC 2012. A name is its synset's first lemma in WordNet, with a second
    word where two would be equal.
    """
    lines = Path(__file__).with_name("imagenet.tsv").read_text("utf-8").splitlines()
    synsets, names = zip(*(line.split("\t") for line in lines), strict=True)
    return names, synsets
