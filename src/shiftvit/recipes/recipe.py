"""`Recipe`: a whole training run, stored as TOML; the resolved one lies in each run folder."""

from __future__ import annotations

import tomllib
from pathlib import Path
from typing import Any, Self

from pydantic import Field, model_validator

from shiftvit import recipes
from shiftvit.augment.augment import Augment
from shiftvit.config import (
    DataConfig,
    ModelConfig,
    ProbeConfig,
    Settings,
    StartConfig,
    TrainConfig,
    validate,
)
from shiftvit.errors import ShiftViTError
from shiftvit.preprocess import Preprocess

# Settings that are decided for every run, whether or not it needs them.
_DECIDED = {("train", "precision"), ("train", "loop")}


class Recipe(Settings):
    """A whole training run."""

    name: str = Field("custom", pattern=r"^[\w-][\w.-]*$", description="letters, digits, '.', '_' and '-'")
    model: ModelConfig = ModelConfig()
    data: DataConfig = DataConfig()
    preprocess: Preprocess = Preprocess()
    augment: Augment = Augment()
    start: StartConfig = StartConfig()
    train: TrainConfig = TrainConfig()
    probe: ProbeConfig | None = None

    @model_validator(mode="after")
    def _patience_outlasts_a_validation(self) -> Self:
        patience, every = self.train.early_stopping, self.train.validation_every
        if patience is not None and patience < every:
            raise ValueError(f"early_stopping={patience} must be at least validation_every={every}; raise it")
        return self

    @model_validator(mode="after")
    def _validation_is_there(self) -> Self:
        if self.train.early_stopping and not self.data.validation:
            raise ValueError(
                f"early_stopping={self.train.early_stopping} needs validation images and data.validation is 0; "
                "set data.validation, or leave out early_stopping"
            )
        return self

    @model_validator(mode="after")
    def _a_probe_trains_nothing_else(self) -> Self:
        if self.probe is None:
            return self
        if self.start.source is None:
            raise ValueError("a probe needs a trained model, but start.source is not set; set start.source=auto")
        for section, plain in (("train", TrainConfig()), ("augment", Augment())):
            for key, value in getattr(self, section):
                if value != getattr(plain, key) and (section, key) not in _DECIDED:
                    raise ValueError(
                        f"{section}.{key}={value} has no effect on a probe, which only fits a head; leave it out, or "
                        "use the recipe finetune"
                    )
        if self.data.test == 0 and len(self.probe.strengths) > 1:
            raise ValueError(
                "data.test=0 reports the validation images, so nothing may be chosen on them; set one strength, as "
                "in probe.strengths=[0.01], or hold out test images"
            )
        return self

    @model_validator(mode="after")
    def _test_images_choose_nothing(self) -> Self:
        if self.probe is not None:
            return self
        if self.data.test == 0 and (self.train.select == "best" or self.train.early_stopping):
            raise ValueError(
                "data.test=0 reports the validation images, so nothing may be chosen on them; set train.select=last "
                "and no train.early_stopping, or hold out test images"
            )
        return self

    @classmethod
    def load(cls, source: str | Path, **overrides: Any) -> Self:
        """Reads a recipe by name or from a TOML file and applies overrides.

        Args:
            source: the name of a shipped recipe (see `shiftvit.recipes.list_names`) or the path of a `.toml` file.
            overrides: dotted keys to values, such as `**{"train.epochs": 3}`; strings are read as TOML values
                where they parse as such.

        Raises:
            ShiftViTError: no such recipe or file, no valid TOML, or a wrong key or value: one line that names it
                and the nearest valid name.
        """
        text, origin = recipes.read_text(source)
        try:
            tree = tomllib.loads(text)
        except tomllib.TOMLDecodeError as error:
            raise ShiftViTError(f"{origin} is not valid TOML: {error}") from error
        tree.setdefault("name", Path(source).stem)
        if overrides.get("model.preset") is not None:
            tree["model"] = {}  # another architecture than the recipe's
        for key, value in overrides.items():
            _set(tree, key, value)
        return validate(cls, tree, origin)


def _set(tree: dict[str, Any], key: str, value: Any) -> None:
    *path, last = key.split(".")
    for part in path:
        tree = tree.setdefault(part, {})
        if not isinstance(tree, dict):
            raise ShiftViTError(
                f"{key!r} is not a setting: {part!r} holds a value, not a section; drop what follows it"
            )
    if isinstance(value, str):
        try:
            value = tomllib.loads(f"value = {value}")["value"]
        except tomllib.TOMLDecodeError:
            if value in ("none", "None", "null"):  # TOML has no null; the default None is what is meant
                value = None
    tree[last] = value
