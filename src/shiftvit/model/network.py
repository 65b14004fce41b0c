"""`ShiftViTBackbone` and `ShiftViT`.

Their arguments are the fields of `shiftvit.config.ModelConfig`, which also defines their defaults and meanings.
"""

from __future__ import annotations

import inspect
from typing import Any, Literal, Self

import keras
import numpy as np

from shiftvit.bundle.stored.find import read_published
from shiftvit.config import ModelConfig, validate
from shiftvit.errors import ShiftViTError, suggest
from shiftvit.model.blocks import INITIALIZER, PatchEmbed, PatchMerging, ShiftBlock
from shiftvit.model.primitives import Linear, make_norm
from shiftvit.model.shift import compute_group_width
from shiftvit.model.weights import assign_weights, name_weights, walk_layers
from shiftvit.presets import find_preset


class _Configured(keras.Model):
    """A functional Keras model that is rebuilt from its constructor arguments."""

    settings: ModelConfig
    _accepted: frozenset[str]

    @classmethod
    def from_preset(cls, preset: str, /, *, weights: Literal["imagenet"] | None = None, **overrides: Any) -> Self:
        """Builds a named model.

        Args:
            preset: a key of `shiftvit.presets.PRESETS`.
            weights: None: random; "imagenet": the published ones, after `shiftvit pull PRESET`. With another
                `num_classes` the head is random.
            overrides: constructor arguments that replace those of the preset, also `name` and `dtype`.

        Raises:
            ShiftViTError: there is no such preset, the constructor rejects an override, or the weights are missing or
                do not fit.
        """
        arguments = {key: value for key, value in find_preset(preset).arguments.items() if key in cls._accepted}
        if weights not in (None, "imagenet"):
            raise ShiftViTError(f"there are no weights {weights!r}; use 'imagenet', or None for random ones")
        tensors = None if weights is None else read_published(preset)
        model = cls(**{**arguments, **overrides})
        if tensors is not None:
            found = name_weights(model).get("head/kernel")
            head = found is not None and tuple(found.shape) == tensors["head/kernel"].shape
            fault = f"the weights of {preset} do not fit these arguments"
            assign_weights(model, tensors, fault, "do not change the architecture", head=head)
        return model

    def get_config(self) -> dict[str, Any]:
        settings = self.settings.model_dump(include=set(self._accepted))
        # Lists, because JSON has no tuples and a config must be equal after a round trip.
        lists = {key: list(value) if isinstance(value, tuple) else value for key, value in settings.items()}
        policy = keras.dtype_policies.serialize(self.dtype_policy)
        frozen = {
            path: layer.trainable for path, layer, parent in walk_layers(self) if layer.trainable != parent.trainable
        }
        kept = {"trainable_layers": frozen} if frozen else {}
        return {**lists, "name": self.name, "trainable": self.trainable, **kept, "dtype": policy}

    def quantize(self, *arguments: Any, **named: Any) -> None:  # noqa: ARG002
        """Raises ShiftViTError: Keras quantizes no subclasses of its layers, and would leave the model as it is."""
        raise ShiftViTError(
            "Keras cannot quantize this model; export it instead: shiftvit export MODEL --format onnx --precision int8"
        )

    @classmethod
    def from_config(cls, config: dict[str, Any], custom_objects: Any = None) -> Self:  # noqa: ARG003
        config = dict(config)
        layers = config.pop("trainable_layers", {})
        model = cls(**config)
        # From the outside in, because a layer passes its value on to its inner layers.
        for path, layer, _ in walk_layers(model):
            if path in layers:
                layer.trainable = layers[path]
        return model


def _add_signature(cls: type[_Configured]) -> type[_Configured]:
    """Shows `help()` and editors the full list of arguments, which only `ModelConfig` defines."""
    kind = inspect.Parameter.KEYWORD_ONLY
    parameters = [inspect.Parameter("self", inspect.Parameter.POSITIONAL_OR_KEYWORD)]
    for name, field in ModelConfig.model_fields.items():
        if name in cls._accepted:
            place = inspect.Parameter.POSITIONAL_OR_KEYWORD if name == "image_shape" else kind
            parameters.append(inspect.Parameter(name, place, default=field.default, annotation=field.annotation))
    defaults = {"dtype": None, "name": None, "trainable": True}
    parameters += [inspect.Parameter(name, kind, default=value) for name, value in defaults.items()]
    cls.__init__.__signature__ = inspect.Signature(parameters)  # type: ignore[attr-defined]
    return cls


@_add_signature
@keras.saving.register_keras_serializable(package="shiftvit")
class ShiftViTBackbone(_Configured):
    """The features of a ShiftViT, without pooling and head.

    Input: `(B, *image_shape)`. Output: `(B, H / s, W / s, C)`, the last stage's map after the last norm, where
    `s = patch_size * 2 ** (stages - 1)` and `C = embed_dim * 2 ** (stages - 1)`. `dtype`, `name` and `trainable` are
    those of every Keras layer; give each of several models in one network a name.

    Attributes:
        pyramid_outputs: name to symbolic output of each stage before its downsampling. "P2" is the map of stride
            4, "P3" of stride 8 and so on; with a patch size between powers of two the level is rounded down.

    Raises:
        ShiftViTError: an argument is out of range, or the arguments do not fit together.
        TypeError: an argument is unknown.
    """

    _accepted = frozenset(ModelConfig.model_fields) - {"preset", "num_classes"}

    def __init__(
        self,
        image_shape: Any = (224, 224, 3),
        *,
        dtype: Any = None,
        name: str | None = None,
        trainable: bool = True,
        **arguments: Any,
    ) -> None:
        config = _check(self, {"image_shape": image_shape, **arguments})
        policy = keras.dtype_policies.get(dtype) if dtype is not None else keras.config.dtype_policy()
        shared = {"norm": config.norm, "epsilon": config.epsilon, "dtype": policy}
        drop_paths = _compute_drop_path_rates(config)
        level = config.patch_size.bit_length() - 1

        images = keras.Input(config.image_shape, name="images", dtype=policy.compute_dtype)
        embed_norm = config.norm if config.patch_norm else None
        x = PatchEmbed(
            config.embed_dim, config.patch_size, embed_norm, config.epsilon, dtype=policy, name="patch_embed"
        )(images)
        pyramid = {}
        for stage, depth in enumerate(config.depths):
            if stage:
                x = PatchMerging(padding=config.merge_padding, **shared, name=f"stage{stage}_merge")(x)
            for block in range(depth):
                x = ShiftBlock(
                    mlp_ratio=config.mlp_ratio,
                    num_div=config.num_div,
                    shift_pixels=config.shift_pixels,
                    shift_channels=config.shift_channels,
                    shift_mode=config.shift_mode,
                    activation=config.activation,
                    dropout=config.dropout,
                    drop_path=drop_paths[stage][block],
                    **shared,
                    name=f"stage{stage + 1}_block{block + 1}",
                )(x)
            pyramid[f"P{level + stage}"] = x
        if config.final_norm:
            x = make_norm(config.norm, config.epsilon, dtype=policy, name="norm")(x)

        super().__init__(inputs=images, outputs=x, name=name or "shiftvit_backbone")
        self.settings = config
        self.dtype_policy = policy
        self.trainable = trainable
        self._pyramid = tuple(pyramid.items())  # Keras would turn a dict into one that jax cannot return

    @property
    def pyramid_outputs(self) -> dict[str, Any]:
        return dict(self._pyramid)


@_add_signature
@keras.saving.register_keras_serializable(package="shiftvit")
class ShiftViT(_Configured):
    """The classifier: backbone, global average, linear head.

    Input: `(B, *image_shape)`, preprocessed (see `shiftvit.Preprocess`). Output: logits `(B, num_classes)`, float32;
    with `num_classes=0` the pooled features `(B, C)`. `dtype`, `name` and `trainable` are those of every Keras layer;
    give each of several models in one network a name.

    Attributes:
        backbone: the `ShiftViTBackbone` inside, which shares the weights.

    Raises:
        ShiftViTError: an argument is out of range, or the arguments do not fit together.
        TypeError: an argument is unknown.
    """

    _accepted = frozenset(ModelConfig.model_fields) - {"preset"}

    def __init__(
        self,
        image_shape: Any = (224, 224, 3),
        *,
        dtype: Any = None,
        name: str | None = None,
        trainable: bool = True,
        **arguments: Any,
    ) -> None:
        config = _check(self, {"image_shape": image_shape, **arguments})
        inner = {key: getattr(config, key) for key in ShiftViTBackbone._accepted}
        backbone = ShiftViTBackbone(**inner, dtype=dtype, name="backbone")

        policy = backbone.dtype_policy
        images = keras.Input(config.image_shape, name="images", dtype=policy.compute_dtype)
        x = backbone(images)
        # (B, H, W, C) -> (B, C), independent of `image_data_format` in keras.json
        x = keras.layers.GlobalAveragePooling2D("channels_last", dtype=policy, name="pool")(x)
        if config.num_classes:
            x = Linear(config.num_classes, kernel_initializer=INITIALIZER, dtype=policy, name="head")(x)
        logits = keras.layers.Activation("linear", dtype="float32", name="logits")(x)

        super().__init__(inputs=images, outputs=logits, name=name or "shiftvit")
        self.settings = config
        self.dtype_policy = policy
        self.trainable = trainable

    @property
    def backbone(self) -> ShiftViTBackbone:
        return self.get_layer("backbone")  # type: ignore[no-any-return]


def _check(model: _Configured, arguments: dict[str, Any]) -> ModelConfig:
    """Validates each argument, then whether they fit together: channels per stage, size of the maps."""
    unknown = set(arguments) - model._accepted
    if unknown:
        name = sorted(unknown)[0]
        valid = model._accepted | {"dtype", "name", "trainable"}
        raise TypeError(f"{type(model).__name__}() got an unexpected keyword argument {name!r}; {suggest(name, valid)}")
    config: ModelConfig = validate(ModelConfig, arguments, type(model).__name__)
    try:
        keras.activations.get(config.activation)
    except ValueError:
        raise ShiftViTError(
            f"activation={config.activation!r} is not a Keras activation; use gelu, relu, silu ..."
        ) from None
    compute_group_width(config.embed_dim, config.num_div, config.shift_channels)
    for side, extent in zip(("height", "width"), config.image_shape[:2], strict=True):
        if extent is None:
            continue
        remaining = extent // config.patch_size
        for _ in config.depths[1:]:
            remaining = -(-remaining // 2) if config.merge_padding == "same" else remaining // 2
        if remaining < 1:
            least = config.patch_size * (1 if config.merge_padding == "same" else 2 ** (len(config.depths) - 1))
            raise ShiftViTError(
                f"image_shape={config.image_shape}: {extent} pixels of {side} are too few for patch_size="
                f"{config.patch_size} and {len(config.depths)} stages; use at least {least}, or fewer stages"
            )
    return config


def _compute_drop_path_rates(config: ModelConfig) -> list[list[float]]:
    """Returns the rates of each stage's blocks: a linear ramp from 0 to `drop_path` over all blocks or each stage."""
    if config.drop_path_mode == "per_stage":
        return [np.linspace(0.0, config.drop_path, depth).tolist() for depth in config.depths]
    ramp = np.linspace(0.0, config.drop_path, sum(config.depths))
    return [part.tolist() for part in np.split(ramp, np.cumsum(config.depths)[:-1])]
