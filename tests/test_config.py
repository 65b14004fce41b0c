"""Settings: every error is one line that names the key, the rule and the remedy."""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from shiftvit import Recipe, ShiftViTError, recipes
from shiftvit.cli.settings import read_overrides


@pytest.mark.parametrize(
    ("overrides", "message"),
    [
        ({"trian.epochs": 1}, r"unknown setting 'trian'; did you mean 'train'\?"),
        (
            {"train.epocs": 1},
            r"unknown setting 'train.epocs'; did you mean 'train.epochs'\? Valid: train.accumulate, train.auto_batch, ",
        ),
        (
            {"train.optimizer.lerning_rate": 1},
            r"unknown setting 'train.optimizer.lerning_rate'; did you mean 'train.optimizer.learning_rate'\? Valid: "
            r"train.optimizer.adam_",
        ),
        ({"train.qqq": 1}, r"unknown setting 'train.qqq'; valid: train.accumulate, train.auto_batch, "),
        ({"train.epochs": 0}, r"train.epochs = 0: .*greater than or equal to 1"),
        ({"train.epochs": "many"}, r"train.epochs = 'many': .*integer"),
        ({"train.epochs.first": 1}, r"'train.epochs.first' is not a setting: 'epochs' holds a value"),
        ({"train.optimizer.name": "sgd"}, r"train.optimizer.name = 'sgd': .*'adamw' or 'muon'"),
        ({"train.optimizer.learning_rate": math.nan}, r"train.optimizer.learning_rate = nan: .*finite"),
        ({"train.label_smoothing": 1.0}, r"train.label_smoothing = 1.0: .*less than 1"),
        ({"data.validation": 2.5}, r"validation=2.5 is neither a whole count nor a fraction below 1"),
        ({"data.validation": 0, "train.early_stopping": 3}, r"early_stopping=3 needs validation images"),
        ({"name": "../x"}, r"name = '../x': "),
        ({"train.early_stopping": 2, "train.validation_every": 3}, "must be at least validation_every=3"),
        ({"preprocess.std": [63.0, 0.0, 66.0]}, r"std=.* must be above 0"),
        ({"model.norm": "instance"}, r"model.norm = 'instance': .*'group', 'layer' or 'batch'"),
        ({"model.depths": []}, r"model.depths = \[\]: .*at least 1 item"),
    ],
)
def test_wrong_settings_raise_one_line_errors(overrides, message):
    with pytest.raises(ShiftViTError, match=message) as caught:
        Recipe.load("quick", **overrides)
    assert "\n" not in str(caught.value)


def test_values_from_the_command_line_are_read_as_toml():
    recipe = Recipe.load(
        "quick",
        **{
            "train.epochs": "7",
            "model.depths": "[1, 1]",
            "train.optimizer.name": "adamw",
            "train.ema": "0.99",
            "augment.flip": "false",
            "preprocess.resize": "none",
        },
    )
    assert recipe.train.epochs == 7
    assert recipe.model.depths == (1, 1)
    assert recipe.train.optimizer.name == "adamw"
    assert recipe.train.ema == 0.99
    assert recipe.augment.flip is False
    assert recipe.preprocess.resize is None


@pytest.mark.parametrize(
    "path",
    [
        *("2026", "2026-11-27", "true", "none", "'x'", '"x"', "C:\\pets", "K\xe4se"),
        *("\U0001f408 pets", "a\nb\tc", "\u2028", "\x01", "\x7f"),
    ],
)
def test_path_of_the_data_stays_as_it_is(path: str) -> None:
    assert Recipe.load("photos", **read_overrides(None, path)).data.name == path


@pytest.mark.parametrize("name", ["2026", "2026-11-27", "1e3", "true", "inf", "[1]", "runs/2026"])
def test_text_does_not_become_another_value(name: str) -> None:
    for key in ("start.source", "data.name"):
        recipe = Recipe.load("finetune", **read_overrides([f"{key}={name}"]))
        section, _, field = key.partition(".")
        assert getattr(getattr(recipe, section), field) == name
    assert Recipe.load("finetune", **{"start.source": '"2026"'}).start.source == "2026"
    assert Recipe.load("quick", name="2026").name == "2026"


@pytest.mark.parametrize(
    ("file", "name"),
    [("my recipe (2).toml", "my-recipe--2-"), (".hidden.toml", "-hidden"), ("K\xe4se-1.0.TOML", "K\xe4se-1.0")],
)
def test_recipe_file_may_have_any_name(file: str, name: str, tmp_path: Path) -> None:
    (tmp_path / file).write_text("[train]\nepochs = 3\n")
    assert Recipe.load(tmp_path / file).name == name


def test_recipe_file_may_begin_with_a_byte_order_mark(tmp_path: Path) -> None:
    (tmp_path / "mine.toml").write_bytes(b"\xef\xbb\xbfname = 'mine'\r\n[train]\r\nepochs = 3\r\n")
    assert Recipe.load(tmp_path / "mine.toml").train.epochs == 3


@pytest.mark.parametrize(
    ("overrides", "more"),
    [
        ({"preprocess.resize": "abc"}, ""),  # neither a number nor a pair
        ({"preprocess.mean": "abc"}, ""),
        ({"preprocess.resize": "abc", "train.epochs": 0}, " (and 1 more fault)"),
        ({"preprocess.resize": "abc", "train.epochs": 0, "train.seed": -1}, " (and 2 more faults)"),
    ],
)
def test_faults_are_counted_by_their_settings(overrides: dict[str, Any], more: str) -> None:
    with pytest.raises(ShiftViTError) as caught:
        Recipe.load("quick", **overrides)
    assert str(caught.value).partition(" (and")[1:] == ((" (and", more.removeprefix(" (and")) if more else ("", ""))


@pytest.mark.parametrize("name", recipes.list_names())
def test_every_recipe_loads_and_its_header_states_the_accuracy(name):
    assert Recipe.load(name).name == name
    head = recipes.read_head(name)
    assert f"shiftvit train --recipe {name}" in head
    assert "top-1" in head
    assert "n = " in head or "not measured" in head


def test_missing_and_invalid_recipes_are_refused(tmp_path):
    with pytest.raises(ShiftViTError, match=r"no recipe 'quik'; did you mean 'quick'\?"):
        Recipe.load("quik")
    with pytest.raises(ShiftViTError, match=r"cannot read the recipe .*No such file"):
        Recipe.load(tmp_path / "missing.toml")
    (tmp_path / "folder.toml").mkdir()
    with pytest.raises(ShiftViTError, match=r"cannot read the recipe .*directory"):
        Recipe.load(tmp_path / "folder.toml")
    broken = tmp_path / "broken.toml"
    broken.write_text("[train\nepochs = 3")
    with pytest.raises(ShiftViTError, match=r"broken\.toml is not valid TOML"):
        Recipe.load(broken)
    broken.write_bytes(b"\xff\xfe\x00")
    with pytest.raises(ShiftViTError, match="not UTF-8"):
        Recipe.load(broken)


def test_settings_are_immutable():
    with pytest.raises(ValueError, match="frozen"):
        Recipe().train.epochs = 3


@pytest.mark.slow
@given(st.dictionaries(st.sampled_from(["train", "model", "data", "x"]), st.recursive(st.integers(), st.lists)))
def test_arbitrary_overrides_load_or_raise_a_one_line_error(tree):
    message = ""
    try:
        Recipe.load("quick", **tree)
    except ShiftViTError as error:
        message = str(error)
    assert "\n" not in message


def test_named_preset_replaces_the_recipes_own_model():
    recipe = Recipe.load("photos", **{"model.preset": "shiftvit_tiny_r2", "model.drop_path": 0.3})
    assert recipe.model.get_arguments() == {"drop_path": 0.3}
    assert recipe.model.preset == "shiftvit_tiny_r2"
    assert Recipe.load("photos").model.depths == (2, 3, 6)
