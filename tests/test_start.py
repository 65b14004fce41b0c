"""Beginning with a trained model: which weights are taken, which stay, and what does not fit."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from sample import load_sample, write_tree
from shiftvit import Bundle, Recipe, ShiftViTError, train
from shiftvit.training.setup import build, load_splits, resolve
from shiftvit.training.start import started

SMALL = {"train.epochs": 1, "train.batch_size": 16, "train.precision": "float32"}


def built(**changes):
    recipe = started(Recipe.load("finetune", **{"data.name": "cifar10", "data.validation": 50, **SMALL, **changes}))
    splits = load_splits(recipe, load_sample())
    recipe = resolve(recipe, splits)
    return recipe, *build(recipe, splits)


def test_the_same_classes_take_every_weight() -> None:
    bundle = Bundle.load("cifar10")
    recipe, model, _ = built(**{"preprocess.resize": "none", "preprocess.crop": "none"})
    assert recipe.preprocess.mean == bundle.preprocess.mean
    for variable in model.weights:
        np.testing.assert_array_equal(variable.numpy(), bundle.weights[variable.path].astype(np.float32))


@pytest.mark.parametrize(("freeze", "frozen"), [(0, set()), (1, {"patch_embed", "stage1"}), (3, {"all but the head"})])
def test_what_is_frozen_stays_and_all_else_learns(tmp_path: Path, freeze: int, frozen: set[str]) -> None:
    tree = write_tree(tmp_path / "pets")
    run = train("finetune", out=tmp_path / "run", **SMALL, **{"data.name": str(tree), "start.freeze": freeze})
    before, after = Bundle.load("cifar10").weights, run.bundle.weights
    assert run.bundle.labels == ("cat", "dog", "ship")
    assert after["head/kernel"].shape == (before["head/kernel"].shape[0], 3)
    for path, value in after.items():
        if path.startswith("head/"):
            continue
        part = path.split("/")[0].split("_block")[0]
        stays = part in frozen or ("all but the head" in frozen and part != "norm")
        same = np.array_equal(value, before[path].astype(np.float32))
        assert same == stays, path


def test_another_resolution_is_another_setting(tmp_path: Path) -> None:
    tree = write_tree(tmp_path / "pets")
    sizes = {"preprocess.resize": 48, "preprocess.crop": 48}
    run = train("finetune", out=tmp_path / "run", **SMALL, **sizes, **{"data.name": str(tree)})
    assert run.recipe.model.image_shape == (48, 48, 3)
    assert run.recipe.model.depths == Bundle.load("cifar10").config.depths


def test_a_stopped_run_goes_on_from_its_own_weights(tmp_path: Path) -> None:
    tree = write_tree(tmp_path / "pets")
    run = train("finetune", out=tmp_path / "run", **SMALL, **{"data.name": str(tree), "start.freeze": 1})
    (run.path / "metrics.json").unlink()  # as if it had been killed after its last epoch
    again = train(resume=run.path)
    for path, value in run.bundle.weights.items():
        np.testing.assert_array_equal(again.bundle.weights[path], value, err_msg=path)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"start.source": "nowhere"}, "'nowhere' does not exist"),
        ({"start.freeze": 4}, "start.freeze=4 is more than the 3 stages"),
        ({"model.embed_dim": 48}, "model.embed_dim=48 is not the 64 of 'cifar10'"),
        ({"start.source": "none", "start.freeze": 1}, "start.source names none"),
    ],
)
def test_what_does_not_fit_is_told(changes: dict, message: str) -> None:
    with pytest.raises(ShiftViTError, match=message):
        started(Recipe.load("finetune", **changes))
