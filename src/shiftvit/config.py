"""Every setting of a training run, validated: `Recipe` and its parts.

The classes are frozen and refuse unknown keys, so a misspelt setting is an error and never a silent default. A
recipe is stored as TOML (`shiftvit/recipes/*.toml`); the resolved one lies in each run folder.
"""

from __future__ import annotations

import tomllib
from pathlib import Path
from typing import Annotated, Any, Literal, Self

from pydantic import Field, model_validator

from shiftvit import recipes
from shiftvit.errors import ShiftViTError
from shiftvit.settings import Settings, validated

Rate = Annotated[float, Field(ge=0.0, lt=1.0)]
Positive = Annotated[int, Field(ge=1)]
# A bare number, or one for each of the channels R, G, B.
PerChannel = float | tuple[float, float, float]
# A bare number, or (height, width).
Size = Positive | tuple[Positive, Positive]


class ModelConfig(Settings):
    """The arguments of `shiftvit.ShiftViT`, on top of a preset if one is named.

    Only what is set here is passed on; the rest comes from the preset, then from the constructor's defaults.
    `image_shape` and `num_classes` follow from the data where they are not set.
    """

    preset: str | None = Field(None, description="a name from shiftvit.presets; see `shiftvit info`")
    image_shape: tuple[Positive | None, Positive | None, Positive] = Field(
        (224, 224, 3), description="height, width (pixels; None: any) and channels of the input"
    )
    num_classes: int = Field(1000, ge=0, description="length of the logits; 0: no head")
    patch_size: int = Field(4, ge=1, description="pixels on a side of an embedded patch")
    embed_dim: int = Field(96, ge=1, description="channels of the first stage; each stage doubles them")
    depths: tuple[Positive, ...] = Field((6, 8, 18, 6), min_length=1, description="blocks in each stage")
    mlp_ratio: float = Field(2.0, gt=0, description="hidden channels of an MLP over its input channels")
    num_div: int = Field(12, ge=4, description="divisions of the channels, four of which move")
    shift_pixels: int = Field(1, ge=1, description="how far they move, in pixels of the feature map")
    shift_channels: int | None = Field(
        None, ge=0, description="channels moved in each direction; None: channels // num_div"
    )
    shift_mode: Literal["shift", "mask"] = Field(
        "shift", description="mask: nothing moves, only the line that a shift would vacate is zeroed"
    )
    norm: Literal["group", "layer", "batch"] = Field("group", description="group: one group over H, W and C")
    activation: str = Field("gelu", description="a Keras activation by name; gelu is the exact one")
    patch_norm: bool = Field(True, description="normalise after the patch embedding")
    final_norm: bool = Field(True, description="normalise before the global average")
    merge_padding: Literal["valid", "same"] = Field("valid", description="odd maps: drop the last line, or pad")
    dropout: Rate = Field(0.0, description="dropout in the MLPs")
    drop_path: Rate = Field(0.2, description="stochastic depth at the last block")
    drop_path_mode: Literal["global", "per_stage"] = Field("global", description="where the linear ramp restarts")
    epsilon: float = Field(1e-5, gt=0, description="added to the variance in every norm")

    def arguments(self) -> dict[str, Any]:
        """Returns the constructor arguments that are set here, without `preset`."""
        return {name: getattr(self, name) for name in self.model_fields_set if name != "preset"}


class DataConfig(Settings):
    """Which pictures, and how they are split."""

    name: str = Field("cifar10", description="a data set by name, or the path of your own images")
    validation: float = Field(
        5000,
        ge=0,
        description="taken from the training images for validation: a count (1 or more), a fraction (below 1) or 0",
    )
    test: float = Field(
        0.1, ge=0, description="of your own images without a test split: what is taken for one; 0: those of validation"
    )
    stratify: bool = Field(True, description="keep the class proportions in the validation split")
    split_seed: int = Field(0, ge=0, description="seed of the split; another one than the training's")
    workers: int = Field(1, ge=1, description="threads that prepare batches; the batches do not depend on it")
    limit: Positive | None = Field(
        None, description="use only the first so many training images (after the split); for trials"
    )

    @model_validator(mode="after")
    def _whole_count(self) -> Self:
        if self.validation >= 1 and self.validation != int(self.validation):
            raise ValueError(
                f"validation={self.validation} is neither a whole count nor a fraction below 1; "
                f"use {int(self.validation)} or a fraction such as 0.1"
            )
        return self


class PreprocessConfig(Settings):
    """What turns uint8 RGB images into the model's input, in training, evaluation and inference alike."""

    resize: Size | None = Field(None, description="pixels: the shorter side, or (height, width); None: as it is")
    crop: Size | None = Field(None, description="pixels: crop after resizing; None: none")
    crop_position: Literal["top_left", "center"] = Field(
        "top_left", description="where that crop lies; the Keras example's model took the top left corner"
    )
    mean: PerChannel = Field(0.0, description="subtracted, on the 0..255 scale")
    std: PerChannel = Field(255.0, description="divided by, on the 0..255 scale")
    interpolation: Literal["nearest", "bilinear", "bicubic"] = Field("bilinear", description="how to resize")
    round_pixels: bool = Field(
        True, description="round what was resized to whole pixel values, which are what exported graphs take"
    )

    @model_validator(mode="after")
    def _std_is_positive(self) -> Self:
        values = self.std if isinstance(self.std, tuple) else (self.std,)
        if min(values) <= 0:
            raise ValueError(f"std={self.std} must be above 0 in every channel; 255.0 scales pixels to 0..1")
        return self


class AugmentConfig(Settings):
    """Random changes of each training image, drawn per image, before normalisation."""

    pad: int = Field(0, ge=0, description="pixels added on each side before the random crop")
    pad_mode: Literal["zeros", "reflect"] = Field("zeros", description="what the added pixels hold")
    random_crop: bool = Field(True, description="crop at a random place in training")
    resized_crop: float = Field(
        0.0, ge=0, le=1, description="random resized crop: the least share of the area that is cut out; 0: off"
    )
    flip: bool = Field(True, description="mirror left to right with probability 1/2")
    rand_augment: float = Field(0.0, ge=0, le=10, description="RandAugment's magnitude; 0: off")
    rand_augment_std: float = Field(0.5, ge=0, description="standard deviation of the magnitude, drawn per change")
    rand_augment_layers: Positive = Field(2, description="changes an image")
    color_jitter: float = Field(
        0.0, ge=0, lt=1, description="brightness, contrast and saturation change by up to this share; 0: off"
    )
    erasing: float = Field(0.0, ge=0, le=1, description="random erasing: share of the images with a box of noise")
    repeats: Positive = Field(1, description="copies of an image in a batch; an epoch sees 1 / repeats of them all")
    mixup: float = Field(0.0, ge=0, description="MixUp's alpha; 0: off")
    cutmix: float = Field(0.0, ge=0, description="CutMix' alpha; 0: off")
    mix_probability: float = Field(1.0, ge=0, le=1, description="share of the images that either is applied to")
    mix_switch: float = Field(0.5, ge=0, le=1, description="where both are on: the share of CutMix among them")


class OptimizerConfig(Settings):
    """The update rule. With Muon, matrices of blocks and merging use Muon, everything else AdamW."""

    name: Literal["adamw", "muon"] = "adamw"
    learning_rate: float = Field(1e-3, gt=0, description="peak rate; with Muon that of the matrices")
    weight_decay: float = Field(1e-4, ge=0, description="decoupled, times the learning rate (with Muon: matrices)")
    decay_vectors: bool = Field(True, description="also decay biases and norm scales")
    beta_1: Rate = 0.9
    beta_2: Rate = 0.999
    epsilon: float = Field(1e-7, gt=0)
    clipnorm: float | None = Field(None, gt=0, description="limit of the global gradient norm")
    momentum: Rate = Field(0.95, description="Muon's")
    newton_schulz_steps: int = Field(5, ge=1, le=10, description="Muon's orthogonalisation steps")
    base_batch_size: Positive | None = Field(
        None, description="the rates are for a batch of so many images, others get them in proportion; None: all"
    )
    stage_decay: float = Field(
        1.0, gt=0, le=1, description="each stage's rate as a share of the next one's, for fine-tuning; 1: all alike"
    )
    adam_learning_rate: float = Field(3e-3, gt=0, description="with Muon: peak rate of everything else")
    adam_weight_decay: float = Field(
        0.0, ge=0, description="with Muon: weight decay of everything else, times `learning_rate`"
    )


class ScheduleConfig(Settings):
    """The learning rate over the steps, as a share of its peak."""

    shape: Literal["cosine", "linear"] = Field("cosine", description="the fall after the warm-up")
    warmup: float = Field(0.15, ge=0, lt=1, description="share of all steps that warm up linearly")
    start: float = Field(0.01, ge=0, le=1, description="rate at step 0 as a share of the peak")
    end: float = Field(0.0, ge=0, le=1, description="rate at the last step as a share of the peak")


class TrainConfig(Settings):
    """How the model is fitted."""

    epochs: Positive = 10
    batch_size: Positive = Field(256, description="images a step")
    accumulate: Positive = Field(
        1, description="parts that a batch is computed in, to save memory; batch norm takes its figures from each"
    )
    auto_batch: bool = Field(
        False, description="where memory runs out, double `accumulate` and go on, three times at most"
    )
    drop_remainder: bool = Field(True, description="leave out an epoch's last, smaller batch")
    seed: int = Field(0, ge=0, lt=2**31, description="initial weights, data order, augmentation, dropout")
    precision: Literal["auto", "float32", "mixed_bfloat16"] = Field(
        "auto", description="auto: bfloat16 where the processor computes in it, else float32"
    )
    loop: Literal["auto", "fit", "device"] = Field(
        "auto", description="fit: a batch at a time; device: images on the accelerator; auto: device on a GPU"
    )
    optimizer: OptimizerConfig = OptimizerConfig()
    schedule: ScheduleConfig = ScheduleConfig()
    label_smoothing: Rate = 0.0
    class_weights: Literal["none", "balanced"] = Field(
        "none", description="balanced: classes count alike in the loss, however many images they have"
    )
    ema: Rate | None = Field(None, description="momentum of the weights' moving average, evaluated in their place")
    early_stopping: Positive | None = Field(
        None, description="stop after so many epochs without a better validation top-1"
    )
    select: Literal["best", "last"] = Field(
        "best", description="which weights are kept: of the best validation top-1, or of the end"
    )
    validation_every: Positive = Field(1, description="epochs between two validations; the last always has one")
    checkpoint_minutes: float = Field(5.0, gt=0, description="also save within an epoch that lasts longer")


class StartConfig(Settings):
    """A trained model to begin with, in place of random weights; its head stays only where the classes are the same."""

    source: str | None = Field(
        None, description="a run, a bundle, a model's name, or the authors' .pth of model.preset"
    )
    freeze: int = Field(0, ge=0, description="parts that keep their weights: 1 the patch embedding and the first stage")


class Recipe(Settings):
    """A whole training run."""

    name: str = Field("custom", pattern=r"^[\w-][\w.-]*$", description="letters, digits, '.', '_' and '-'")
    model: ModelConfig = ModelConfig()
    data: DataConfig = DataConfig()
    preprocess: PreprocessConfig = PreprocessConfig()
    augment: AugmentConfig = AugmentConfig()
    start: StartConfig = StartConfig()
    train: TrainConfig = TrainConfig()

    @model_validator(mode="after")
    def _patience_outlasts_a_validation(self) -> Self:
        patience, every = self.train.early_stopping, self.train.validation_every
        if patience is not None and patience < every:
            raise ValueError(f"early_stopping={patience} epochs must be at least validation_every={every}; raise it")
        return self

    @model_validator(mode="after")
    def _validation_is_there(self) -> Self:
        if self.train.early_stopping and not self.data.validation:
            raise ValueError(
                f"early_stopping={self.train.early_stopping} needs validation images and data.validation is 0; "
                "set data.validation, or leave early_stopping out"
            )
        return self

    @model_validator(mode="after")
    def _test_images_choose_nothing(self) -> Self:
        if self.data.test == 0 and (self.train.select == "best" or self.train.early_stopping):
            raise ValueError(
                "data.test=0 reports the validation images, on which nothing may be chosen then; set train.select=last "
                "and no train.early_stopping, or take test images"
            )
        return self

    @classmethod
    def load(cls, source: str | Path, **overrides: Any) -> Self:
        """Reads a recipe by name or from a TOML file and applies overrides.

        Args:
            source: the name of a shipped recipe (see `shiftvit.recipes.names`) or the path of a `.toml` file.
            overrides: dotted keys to values, such as `**{"train.epochs": 3}`; strings are read as TOML values
                where they parse as such.

        Raises:
            ShiftViTError: no such recipe or file, no valid TOML, or a wrong key or value: one line that names it
                and the nearest valid name.
        """
        text, origin = recipes.read(source)
        try:
            tree = tomllib.loads(text)
        except tomllib.TOMLDecodeError as error:
            raise ShiftViTError(f"{origin} is not valid TOML: {error}") from error
        tree.setdefault("name", Path(source).stem)
        if overrides.get("model.preset") is not None:
            tree["model"] = {}  # another architecture than the recipe's
        for key, value in overrides.items():
            _set(tree, key, value)
        return validated(cls, tree, origin)


def _set(tree: dict[str, Any], key: str, value: Any) -> None:
    *path, last = key.split(".")
    for part in path:
        tree = tree.setdefault(part, {})
        if not isinstance(tree, dict):
            raise ShiftViTError(f"{key!r} is no setting: {part!r} holds a value, not a section; drop what follows it")
    if isinstance(value, str):
        try:
            value = tomllib.loads(f"value = {value}")["value"]
        except tomllib.TOMLDecodeError:
            if value in ("none", "None", "null"):  # TOML has no null; the default None is what is meant
                value = None
    tree[last] = value
