"""The paper's recipe: its learning rates and settings, and all nine models on a small tree of real pictures."""

from __future__ import annotations

import math
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from sample import load_sample
from shiftvit import Recipe, ShiftViTError, train
from shiftvit.config import ModelConfig
from shiftvit.data.load import load_data
from shiftvit.presets import PRESETS
from shiftvit.training.optimizer import build_optimizer
from shiftvit.training.setup import resolve

PAPER_PRESETS = [name for name in PRESETS if name.startswith(("shiftvit_tiny_", "shiftvit_small_", "shiftvit_base_"))]
CLASSES = {"n02123045": 3, "n02099601": 5, "n03095699": 8}  # a cat, a dog and a ship of ImageNet, and CIFAR-10's number


@pytest.fixture(scope="module")
def tree(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Real pictures in ImageNet's layout and sizes: 12 for training and 4 for validation in each class."""
    root = tmp_path_factory.mktemp("imagenet")
    data = load_sample()
    for name, label in CLASSES.items():
        indices = np.flatnonzero(data.train.labels == label)
        for number, index in enumerate(indices[:16]):
            folder = root / ("train" if number < 12 else "val") / name
            folder.mkdir(parents=True, exist_ok=True)
            image = Image.fromarray(data.train.images[index]).resize((300 + 10 * number, 260), Image.Resampling.BICUBIC)
            image.save(folder / f"{name}_{number}.JPEG", quality=90)
    return root


def make_small_settings(preset: str, tree: Path) -> dict[str, object]:
    """Returns settings with the preset's depths and ratio, but a width and a resolution that are fast."""
    return {
        "model.preset": preset,
        "model.embed_dim": 32 if "base" in preset else 24,
        "data.name": str(tree),
        "preprocess.resize": 73,
        "preprocess.crop": 64,
        "train.epochs": 1,
        "train.batch_size": 12,
        "train.precision": "float32",
    }


def test_learning_rates_are_the_papers() -> None:
    recipe = Recipe.load("imagenet")
    steps = 1_281_167 // 1024
    rate = build_optimizer(recipe.train, 300 * steps)._learning_rate
    found = [float(rate(epoch * steps)) for epoch in (0, 10, 20, 160, 300)]
    halfway = 1e-5 + (1e-3 - 1e-5) * (1 + math.cos(math.pi / 2)) / 2
    np.testing.assert_allclose(found, [1e-6, 5.005e-4, 1e-3, halfway, 1e-5], rtol=2e-4)
    half = build_optimizer(recipe.train.model_copy(update={"batch_size": 512}), 600 * steps)._learning_rate
    assert float(half(40 * steps)) == pytest.approx(5e-4, rel=1e-4)


def test_settings_are_the_papers() -> None:
    recipe = Recipe.load("imagenet")
    augment = recipe.augment
    assert (augment.rand_augment, augment.rand_augment_std, augment.rand_augment_layers) == (9, 0.5, 2)
    assert (augment.mixup, augment.cutmix, augment.mix_switch, augment.mix_probability) == (0.8, 1.0, 0.5, 1.0)
    assert (augment.erasing, augment.resized_crop, augment.repeats) == (0.25, 0.08, 3)
    assert recipe.train.label_smoothing == 0.1
    assert recipe.train.ema == 0.99996
    assert recipe.preprocess.crop / recipe.preprocess.resize == 0.875
    assert recipe.model.drop_path == 0.2  # the field's default; the preset's own value is used
    assert "drop_path" not in recipe.model.model_fields_set


@pytest.mark.parametrize("preset", PAPER_PRESETS)
def test_recipe_makes_each_of_the_nine_models(preset: str, tree: Path) -> None:
    """`test_network.py` compares their numbers of parameters with the published ones."""
    settings = {key: value for key, value in make_small_settings(preset, tree).items() if key != "model.embed_dim"}
    recipe = Recipe.load("imagenet", **settings)
    model = resolve(recipe, load_data(recipe)).model
    official = ModelConfig(**PRESETS[preset].arguments, image_shape=(64, 64, 3), num_classes=3)
    assert model.get_arguments() == ModelConfig.model_validate(official.model_dump(exclude={"preset"})).get_arguments()


@pytest.mark.slow
@pytest.mark.usefixtures("plain_figures")
@pytest.mark.parametrize("preset", ["shiftvit_tiny_light", "shiftvit_base_r4"])  # both widths and both ratios
def test_paper_models_train(preset: str, tree: Path, tmp_path: Path) -> None:
    run = train("imagenet", out=tmp_path / "run", **make_small_settings(preset, tree), **{"data.limit": 24})
    arguments = PRESETS[preset].arguments
    assert run.recipe.model.drop_path == arguments["drop_path"]
    assert run.recipe.model.depths == arguments["depths"]
    assert run.bundle.labels == tuple(sorted(CLASSES))
    assert run.metrics["train"]["images"] == 24  # two steps
    assert run.metrics["test"]["n"] == 12  # the images in val/
    assert math.isfinite(run.metrics["test"]["loss"])
    assert run.bundle.preprocess.interpolation == "bicubic"


@pytest.mark.slow
@pytest.mark.usefixtures("plain_figures")
def test_full_size_model_trains_at_its_resolution(tree: Path, tmp_path: Path) -> None:
    settings = {"model.preset": "shiftvit_tiny_light", "data.name": str(tree), "data.limit": 18}  # two steps
    run = train("imagenet", out=tmp_path / "run", **settings, **{"train.epochs": 1, "train.batch_size": 9})
    assert run.recipe.model.image_shape == (224, 224, 3)
    assert sum(value.size for value in run.bundle.weights.values()) == 19_608_328 - (1000 - 3) * 769
    assert run.metrics["train"]["images"] == 18
    assert run.metrics["test"]["n"] == 12


def test_reported_images_cannot_select_the_best_epoch(tree: Path, tmp_path: Path) -> None:
    with pytest.raises(ShiftViTError, match=r"data\.test=0 reports the validation images") as caught:
        train(
            "imagenet", out=tmp_path / "run", **make_small_settings(PAPER_PRESETS[0], tree), **{"train.select": "best"}
        )
    assert "\n" not in str(caught.value)
