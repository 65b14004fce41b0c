"""`Metadata`: the description that an exported graph carries in the metadata of its format."""

from __future__ import annotations

from typing import Any, Literal, Self

from pydantic import Field, ValidationError

from shiftvit.config import Settings, describe_fault
from shiftvit.errors import ShiftViTError
from shiftvit.preprocess import Preprocess

# The entry's name in formats with named entries, and the file's stem in formats that hold files.
KEY = "shiftvit"
FILE = "shiftvit.json"
# The second output of ONNX graphs: the last feature map, float32 (N, h, w, K).
MAP = "map"
# The side in pixels for a graph's first run, if its input size is not fixed.
_ANY = 32
# The most pixels of a batch: 83 images of 224 x 224. They take 1.6 GB in the smallest of the paper's models.
BATCH_PIXELS = 2**22

# The longest side of an image for a graph that takes any size. Its matrices have an element for each pixel of this side
# and each of the model's input: at 224 pixels, 59 MB in float64, several times.
LONGEST_SIDE = 2**15

Precision = Literal["f32", "bf16", "int8"]


class Metadata(Settings):
    """Everything needed to use a graph without this package."""

    format: Literal[1] = Field(1, description="version of this metadata")
    labels: tuple[str, ...] = Field(min_length=1, description="class names, in the order of the probabilities")
    preprocess: Preprocess = Field(
        description="how to prepare an image: resize and crop come before the graph, mean and std are part of it"
    )
    input_shape: tuple[int | None, int | None, int] = Field(
        description="height, width, channels (RGB) of the uint8 input; null: any"
    )
    precision: Precision = Field(
        "f32", description="of the weights and, where the runtime supports it, of the products"
    )
    saturates: bool | None = Field(
        None,
        description="int8: whether sums of products can saturate on processors without VNNI; null: not examined",
    )
    versions: dict[str, str] = Field({}, description="the versions of the libraries that wrote it")

    @classmethod
    def parse(cls, text: str | bytes | None, origin: str) -> Self:
        """Reads the JSON that a graph carries.

        Raises:
            ShiftViTError: the JSON is missing or invalid; the message begins with `origin`.
        """
        if not text:
            raise ShiftViTError(
                f"{origin} has no shiftvit metadata, so its labels and preprocessing are unknown; use a graph that "
                "`shiftvit export` wrote, and copy the file again if it may be cut off"
            )
        try:
            return cls.model_validate_json(text)
        except ValidationError as error:
            raise ShiftViTError(f"{origin} has invalid metadata: {describe_fault(error)}; export it again") from error

    def dump(self) -> str:
        """Returns the JSON to store."""
        # Older versions reject `srgb`.
        return self.model_dump_json(exclude=None if self.preprocess.srgb else {"preprocess": {"srgb"}})

    @property
    def example_shape(self) -> tuple[int, int, int]:
        """The shape of an image that the graph takes."""
        height, width, channels = self.input_shape
        return height or _ANY, width or _ANY, channels

    def check_labels(self, labels: tuple[str, ...], origin: str) -> None:
        """Raises ShiftViTError if the graph of a bundle has other classes than the bundle."""
        if labels != self.labels:
            raise ShiftViTError(
                f"the classes in the graph of {origin} differ from the bundle's; restore the bundle, or write the "
                "graph again with `shiftvit pack --onnx`"
            )

    def check_sides(self, height: int, width: int) -> None:
        """Raises ShiftViTError if an image, before any preprocessing outside the graph, is too elongated for it."""
        if None in self.input_shape and max(height, width) > LONGEST_SIDE:
            raise ShiftViTError(
                f"the image has {height} x {width} pixels, and a model that takes any size takes at most "
                f"{LONGEST_SIDE:,} on a side; crop it first"
            )


def fit_batch(height: int, width: int) -> int:
    """Returns how many images of this size a batch may have so that its memory is bounded; one always may."""
    return max(1, BATCH_PIXELS // (height * width))


def make_metadata(bundle: Any, precision: Precision = "f32") -> Metadata:
    """Returns the metadata of a bundle's graph.

    Raises:
        ShiftViTError: the model accepts any image size or has no classes, or the preprocessing gives another size.
    """
    height, width, channels = bundle.config.image_shape
    if height is None or width is None:
        raise ShiftViTError(
            f"image_shape={bundle.config.image_shape} has no fixed size, which a graph needs; train with a fixed size"
        )
    if not bundle.labels:
        raise ShiftViTError("the model has no classes (num_classes=0), so there is nothing to predict; train a head")
    from shiftvit.environment import list_versions

    return Metadata(
        labels=bundle.labels,
        preprocess=bundle.preprocess.fitted(height, width),
        input_shape=(height, width, channels),
        precision=precision,
        # The gate verifies it for the artifact.
        saturates=False if precision == "int8" else None,
        versions=list_versions(),
    )
