"""Every setting, validated: the parts of a `Recipe`, and one-line errors.

The classes are frozen and reject unknown keys, so a misspelt setting is an error, never a silent default.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Annotated, Any, Literal, Self, TypeVar, get_args

from pydantic import BaseModel, BeforeValidator, ConfigDict, Field, ValidationError, model_validator

from shiftvit.errors import ShiftViTError, pluralize, suggest

Rate = Annotated[float, Field(ge=0.0, lt=1.0)]
Positive = Annotated[int, Field(ge=1, lt=2**31)]
S = TypeVar("S", bound="Settings")


class Settings(BaseModel):
    """The base of all settings: immutable, without unknown keys, NaN or infinity."""

    model_config = ConfigDict(frozen=True, extra="forbid", allow_inf_nan=False, validate_default=True)


class ModelConfig(Settings):
    """The arguments of `shiftvit.ShiftViT`, on top of a preset if one is named.

    Only settings given here are passed on; the rest comes from the preset, then from the constructor's defaults.
    `image_shape` and `num_classes` follow from the data unless they are set.
    """

    preset: str | None = Field(None, description="a name from shiftvit.presets; see `shiftvit info`")
    image_shape: tuple[Positive | None, Positive | None, Positive] = Field(
        (224, 224, 3), description="height, width (pixels; None: any) and channels of the input"
    )
    num_classes: int = Field(1000, ge=0, lt=2**31, description="number of classes; 0: no head")
    patch_size: Positive = Field(4, description="side of a patch in pixels")
    embed_dim: Positive = Field(96, description="channels of the first stage; each later stage doubles them")
    depths: tuple[Positive, ...] = Field((6, 8, 18, 6), min_length=1, max_length=16, description="blocks in each stage")
    mlp_ratio: float = Field(
        2.0, gt=0, lt=2**31, description="hidden channels of an MLP, as a multiple of its input channels"
    )
    num_div: int = Field(12, ge=4, description="number of groups of channels; four of them move")
    shift_pixels: int = Field(1, ge=1, description="how far they move, in pixels of the feature map")
    shift_channels: int | None = Field(
        None, ge=0, description="channels moved in each direction; None: channels // num_div"
    )
    shift_mode: Literal["shift", "mask"] = Field(
        "shift", description="mask: nothing moves; the line that a shift would leave empty is set to zero"
    )
    norm: Literal["group", "layer", "batch"] = Field("group", description="group: one group over H, W and C")
    activation: str = Field("gelu", description="name of a Keras activation; gelu is the exact form")
    patch_norm: bool = Field(True, description="normalise after the patch embedding")
    final_norm: bool = Field(True, description="normalise before the global average")
    merge_padding: Literal["valid", "same"] = Field("valid", description="odd maps: valid drops a line, same pads")
    dropout: Rate = Field(0.0, description="dropout rate in the MLPs")
    drop_path: Rate = Field(0.2, description="rate of stochastic depth at the last block; it rises linearly from 0")
    drop_path_mode: Literal["global", "per_stage"] = Field(
        "global", description="global: the rate rises over all blocks; per_stage: it starts again at 0 in each stage"
    )
    epsilon: float = Field(1e-5, gt=0, description="added to the variance in every norm")

    def get_arguments(self) -> dict[str, Any]:
        """Returns the constructor arguments that are set here, without `preset`."""
        return {name: getattr(self, name) for name in self.model_fields_set if name != "preset"}


class DataConfig(Settings):
    """The images, and how they are split."""

    name: str = Field("cifar10", description="a data set by name, or the path of your own images")
    validation: float = Field(
        5000,
        ge=0,
        description="training images held out for validation: a count (1 or more), a fraction (below 1) or 0",
    )
    validation_from: Literal["random", "end"] = Field(
        "random",
        description="random: drawn at random; end: the last training images in the order of the data, whatever their "
        "classes, as with Keras' `validation_split`",
    )
    test: float = Field(
        0.1,
        ge=0,
        description="images of your own to hold out for testing if they have no test split: a count (1 or more), a "
        "fraction (below 1) or 0",
    )
    stratify: bool = Field(
        True,
        description="for any data: new splits and `limit` keep the proportions of the classes and at least one image "
        "of each; false: images are drawn without regard to their classes",
    )
    split_seed: int = Field(0, ge=0, description="seed of the split, separate from that of training")
    workers: int = Field(1, ge=1, description="threads that prepare batches; their number does not change the batches")
    limit: Positive | None = Field(
        None,
        description="for any data: for a quick trial, train on only this many images, drawn with `split_seed` after "
        "the splits are made",
    )

    @model_validator(mode="after")
    def _check_validation(self) -> Self:
        if self.validation >= 1 and self.validation != int(self.validation):
            raise ValueError(
                f"validation={self.validation} is neither a whole count nor a fraction below 1; "
                f"use {int(self.validation)} or a fraction such as 0.1"
            )
        return self


class OptimizerConfig(Settings):
    """The update rule. With Muon, matrices of blocks and merging use Muon, everything else uses AdamW."""

    name: Literal["adamw", "muon"] = Field("adamw", description="muon: for matrices, and AdamW for everything else")
    learning_rate: float = Field(1e-3, gt=0, description="peak rate; with Muon, that of the matrices")
    weight_decay: float = Field(
        1e-4, ge=0, description="decoupled weight decay, times the learning rate; with Muon, that of the matrices"
    )
    decay_vectors: bool = Field(True, description="also decay biases and norm scales")
    beta_1: Rate = Field(0.9, description="AdamW: decay of the running mean of the gradients")
    beta_2: Rate = Field(0.999, description="AdamW: decay of the running mean of their squares")
    epsilon: float = Field(1e-7, gt=0, description="AdamW: added to the divisor")
    clipnorm: float | None = Field(None, gt=0, description="limit of the global gradient norm")
    momentum: Rate = Field(0.95, description="Muon: momentum")
    newton_schulz_steps: int = Field(5, ge=1, le=10, description="Muon: steps of the orthogonalisation")
    base_batch_size: Positive | None = Field(
        None, description="batch size that the rates are for; another one scales them in proportion; None: no scaling"
    )
    stage_decay: float = Field(
        1.0, gt=0, le=1, description="for fine-tuning: rate of a stage, as a share of the next stage's; 1: equal rates"
    )
    adam_learning_rate: float = Field(3e-3, gt=0, description="with Muon: peak rate of everything else")
    adam_weight_decay: float = Field(
        0.0, ge=0, description="with Muon: weight decay of everything else, times `learning_rate`"
    )


class ScheduleConfig(Settings):
    """The learning rate over the steps, as a share of its peak."""

    shape: Literal["cosine", "linear"] = Field("cosine", description="form of the decay after the warm-up")
    warmup: float = Field(0.15, ge=0, lt=1, description="share of all steps that warm up linearly")
    start: float = Field(0.01, ge=0, le=1, description="rate at step 0 as a share of the peak")
    end: float = Field(0.0, ge=0, le=1, description="rate after the last step as a share of the peak")
    whole_steps: bool = Field(
        True,
        description="false: an epoch's last, smaller batch counts as a fraction of a step, so that the schedule ends "
        "a little before the run",
    )


class TrainConfig(Settings):
    """How the model is fitted."""

    epochs: Positive = Field(10, description="passes over the training images")
    batch_size: Positive = Field(256, description="images per step")
    initial_scale: float = Field(
        1.0,
        gt=0,
        le=1,
        description="progressive resizing: side of the training images in the first epoch, as a share of the whole; it "
        "grows to 1 in the last epoch",
    )
    accumulate: Positive = Field(
        1, description="parts in which a batch is computed, to save memory; batch norm uses the statistics of each part"
    )
    auto_batch: bool = Field(
        False, description="if memory runs out, double `accumulate` and continue, at most three times"
    )
    drop_remainder: bool = Field(True, description="skip the last batch of an epoch if it is smaller")
    seed: int = Field(0, ge=0, lt=2**31, description="seed of initial weights, data order, augmentation and dropout")
    precision: Literal["auto", "float32", "mixed_bfloat16"] = Field(
        "auto",
        description="auto: bfloat16 if the accelerator supports it, or the CPU with torch or tensorflow; else float32",
    )
    loop: Literal["auto", "fit", "device"] = Field(
        "auto",
        description="fit: Keras' fit; device: all images on the accelerator; auto: device on a GPU, where possible",
    )
    jit_compile: bool = Field(
        False, description="device loop on torch: fuse the step's kernels with torch.compile; jax always compiles"
    )
    optimizer: OptimizerConfig = OptimizerConfig()
    schedule: ScheduleConfig = ScheduleConfig()
    label_smoothing: Rate = Field(0.0, description="share of each label that is spread over all classes")
    # `--set train.class_weights=none` passes None.
    class_weights: Annotated[Literal["none", "balanced"], BeforeValidator(lambda value: value or "none")] = Field(
        "none", description="balanced: classes count equally in the loss, whatever their number of images"
    )
    ema: Rate | None = Field(
        None,
        description="momentum of a moving average of the weights and of batch norm's statistics, which becomes the "
        "trained model",
    )
    early_stopping: Positive | None = Field(
        None, description="stop after this many epochs without a better validation top-1"
    )
    select: Literal["best", "last"] = Field(
        "best", description="weights to keep: those with the best validation top-1, or the last"
    )
    validation_every: Positive = Field(1, description="epochs between validations; the last epoch is always validated")
    freeze_epochs: int = Field(
        0,
        ge=0,
        description="first epochs in which only the head learns, when starting from a trained model; at most a third "
        "of all epochs",
    )
    checkpoint_minutes: float = Field(5.0, gt=0, description="minutes between checkpoints within an epoch")


class StartConfig(Settings):
    """A trained model to start from instead of random weights; its head is kept only if the classes are the same."""

    source: str | None = Field(
        None,
        description="a run, a bundle, a model's name, or the paper's .pth of model.preset; auto: the most accurate "
        "ImageNet model that is pulled, else cifar10",
    )
    freeze: int = Field(0, ge=0, description="stages to freeze; 1 freezes the patch embedding and the first stage")
    resolution: Literal["recipe", "source"] = Field(
        "recipe",
        description="source: resize, crop and interpolation are the source's where the recipe sets none; if it sets "
        "one of resize and crop, the other one follows in the source's proportion",
    )


class ProbeConfig(Settings):
    """A linear head on a trained model's features, by logistic regression, in place of training the model."""

    strengths: tuple[Annotated[float, Field(gt=0)], ...] = Field(
        (1e-4, 1e-3, 1e-2, 1e-1, 1.0),
        min_length=1,
        description="values of scikit-learn's C to try (smaller values regularise more); the best one on the "
        "validation images is kept",
    )
    iterations: Positive = Field(1000, description="maximum number of L-BFGS steps for each strength")


def validate(cls: type[S], values: dict[str, Any], origin: str) -> S:
    """Builds settings from a dictionary; the first error becomes one line that begins with `origin`.

    Raises:
        ShiftViTError: a key is unknown, or a value has the wrong type or is out of range.
    """
    try:
        return cls.model_validate(values)
    except ValidationError as error:
        raise ShiftViTError(f"{origin}: {_explain(cls, error)}") from error


def flatten(tree: dict[str, Any], prefix: str = "") -> Iterator[tuple[str, Any]]:
    """Yields the values of nested settings with their dotted keys, such as `train.epochs`."""
    for key, value in tree.items():
        if isinstance(value, dict):
            yield from flatten(value, f"{prefix}{key}.")
        else:
            yield prefix + key, value


def describe_fault(error: ValidationError) -> str:
    """Returns the first error in stored settings: its place and its message."""
    fault = error.errors(include_url=False)[0]
    return f"{'.'.join(str(part) for part in fault['loc']) or 'its top level'}: {fault['msg']}"


def _explain(root: type[BaseModel], error: ValidationError) -> str:
    """Returns the first validation error as one line, with the closest valid key if one is unknown."""
    faults = error.errors(include_url=False)
    fault = faults[0]
    path = [str(part) for part in fault["loc"]]
    if fault["type"] == "extra_forbidden":
        section = root
        for part in path[:-1]:
            annotation = section.model_fields[part].annotation
            annotation = next((kind for kind in get_args(annotation) if kind is not type(None)), annotation)
            assert isinstance(annotation, type)
            assert issubclass(annotation, BaseModel)
            section = annotation
        keys = (key for key, _ in flatten(root.model_construct().model_dump()))
        place = next((key for key in keys if key.endswith(f".{path[-1]}")), None)
        prefix = "".join(f"{part}." for part in path[:-1])
        hint = suggest(path[-1], section.model_fields, prefix) if place is None else f"did you mean {place!r}?"
        return f"unknown setting {'.'.join(path)!r}; {hint}"
    message = fault["msg"].removeprefix("Value error, ")
    if fault["type"] == "value_error":
        return message
    more = len({*map(_name_setting, faults)}) - 1  # a value has a fault for each type that it could have
    return f"{_name_setting(fault)} = {fault['input']!r}: {message}" + (
        f" (and {pluralize(more, 'more fault')})" if more else ""
    )


def _name_setting(fault: Any) -> str:
    """Returns the dotted key of a fault, without the types and places that pydantic adds to it."""
    parts = map(str, fault["loc"])
    return ".".join(part for part in parts if part.isidentifier() and part not in {"int", "float", "tuple"})
