"""`Recipe`: all settings of a training run, stored as TOML. Each run folder has its resolved recipe."""

from __future__ import annotations

import re
import tomllib
from pathlib import Path
from typing import Any, Self, get_args

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

# Settings that `resolve` decides for every run, even if it is a probe.
_DECIDED = {("train", "precision"), ("train", "loop")}


class Recipe(Settings):
    """All settings of a training run."""

    name: str = Field("custom", pattern=r"^[\w-][\w.-]*$", description="letters, digits, '.', '_' and '-'")
    model: ModelConfig = ModelConfig()
    data: DataConfig = DataConfig()
    preprocess: Preprocess = Preprocess()
    augment: Augment = Augment()
    start: StartConfig = StartConfig()
    train: TrainConfig = TrainConfig()
    probe: ProbeConfig | None = None

    @model_validator(mode="after")
    def _check_early_stopping(self) -> Self:
        patience, every = self.train.early_stopping, self.train.validation_every
        if patience is None:
            return self
        if patience < every:
            raise ValueError(f"early_stopping={patience} must be at least validation_every={every}; raise it")
        if not self.data.validation:
            raise ValueError(
                f"early_stopping={patience} needs validation images and data.validation is 0; set data.validation, or "
                "leave out early_stopping"
            )
        return self

    @model_validator(mode="after")
    def _check_probe(self) -> Self:
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
        return self

    @model_validator(mode="after")
    def _check_choice(self) -> Self:
        """Refuses a choice on images that are also the test images, whose figures would be too good."""
        if self.data.test > 0:
            return self
        if self.probe is None and (self.train.select == "best" or self.train.early_stopping):
            mend = "set train.select=last and no train.early_stopping"
        elif self.probe is not None and len(self.probe.strengths) > 1:
            mend = "set one strength, as in probe.strengths=[0.01]"
        else:
            return self
        raise ValueError(
            f"data.test=0 reports the validation images, so nothing may be chosen on them; {mend}, or hold out test "
            "images"
        )

    @classmethod
    def load(cls, source: str | Path, **overrides: Any) -> Self:
        """Reads a recipe by name or from a TOML file and applies overrides.

        Args:
            source: the name of a shipped recipe (see `shiftvit.recipes.list_names`) or the path of a `.toml` file.
            overrides: dotted keys to values, such as `**{"train.epochs": 3}`; a string that is a TOML value is read
                as one, except that text such as `start.source` never becomes a number or a date.

        Raises:
            ShiftViTError: no such recipe or file, no valid TOML, or a wrong key or value: one line that names it
                and the nearest valid name.
        """
        text, origin = recipes.read_text(source)
        try:
            tree = tomllib.loads(text)
        except tomllib.TOMLDecodeError as error:
            raise ShiftViTError(f"{origin} is not valid TOML: {error}") from error
        tree.setdefault("name", re.sub(r"[^\w.-]|^\.", "-", Path(source).stem))
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
            read = tomllib.loads(f"value = {value}")["value"]
            value = read if isinstance(read, str) or not _is_text(key) else value
        except tomllib.TOMLDecodeError:
            if value in ("none", "None", "null"):  # TOML has no null; the default None is what is meant
                value = None
    tree[last] = value


def _is_text(key: str) -> bool:
    """Returns whether any text is valid for a setting, such as the name of a folder."""
    kinds: tuple[Any, ...] = (Recipe,)
    for part in key.split("."):
        field = getattr(kinds[0], "model_fields", {}).get(part)
        if field is None:
            return False
        kinds = get_args(field.annotation) or (field.annotation,)
    return str in kinds
