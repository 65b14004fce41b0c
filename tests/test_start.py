"""Starting from a trained model: which weights are copied and frozen, and which settings are refused."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from safetensors.numpy import save_file

from sample import load_sample, write_tree
from shiftvit import Bundle, Preprocess, Recipe, ShiftViT, ShiftViTError, convert, train
from shiftvit.bundle.stored.published import MEAN, PUBLISHED, STD, find_evaluation
from shiftvit.data.load import load_data
from shiftvit.training import finetune
from shiftvit.training.finetune import apply_start
from shiftvit.training.setup import build, resolve

GOLDEN = Path(__file__).parent / "golden" / "official_gn1.npz"
pytestmark = pytest.mark.usefixtures("plain_figures")

SMALL = {"train.epochs": 1, "train.batch_size": 16, "train.precision": "float32"}


def build_run(**changes):
    recipe = apply_start(Recipe.load("finetune", **{"data.name": "cifar10", "data.validation": 50, **SMALL, **changes}))
    splits = load_data(recipe, load_sample())
    recipe = resolve(recipe, splits)
    return recipe, *build(recipe, splits)


def test_all_weights_are_copied_for_the_same_classes() -> None:
    bundle = Bundle.load("cifar10")
    recipe, model, _ = build_run(**{"preprocess.resize": "none", "preprocess.crop": "none"})
    assert recipe.preprocess.mean == bundle.preprocess.mean
    for variable in model.weights:
        np.testing.assert_array_equal(variable.numpy(), bundle.weights[variable.path].astype(np.float32))


@pytest.mark.slow
@pytest.mark.parametrize(("freeze", "frozen"), [(0, set()), (1, {"patch_embed", "stage1"}), (3, {"all but the head"})])
def test_only_frozen_weights_stay_unchanged(tmp_path: Path, freeze: int, frozen: set[str]) -> None:
    tree, source = write_tree(tmp_path / "pets"), save_source(tmp_path / "source", Preprocess(), 32, (1, 1, 1))
    settings = {**SMALL, "data.name": str(tree), "start.source": source, "start.freeze": freeze}
    run = train("finetune", out=tmp_path / "run", **settings)
    before, after = Bundle.load(source).weights, run.bundle.weights
    assert run.bundle.labels == ("cat", "dog", "ship")
    assert after["head/kernel"].shape == (before["head/kernel"].shape[0], 3)
    for path, value in after.items():
        if path.startswith("head/"):
            continue
        part = path.split("/")[0].split("_block")[0]
        stays = part in frozen or ("all but the head" in frozen and part != "norm")
        same = np.array_equal(value, before[path].astype(np.float32))
        assert same == stays, path


@pytest.mark.slow
def test_source_is_read_once(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    loaded: list[str] = []
    original = Bundle.load

    def count_and_read(path: str | Path) -> Bundle:
        loaded.append(str(path))
        return original(path)

    monkeypatch.setattr(Bundle, "load", count_and_read)
    source = save_source(tmp_path / "source", Preprocess(), 32)
    settings = {**SMALL, "data.name": str(write_tree(tmp_path / "pets")), "start.source": source, "start.freeze": 0}
    train("finetune", out=tmp_path / "run", **settings)
    assert loaded == [source]


@pytest.mark.slow
def test_resolution_can_be_set(tmp_path: Path) -> None:
    tree = write_tree(tmp_path / "pets")
    sizes = {"preprocess.resize": 48, "preprocess.crop": 48}
    run = train("finetune", out=tmp_path / "run", **SMALL, **sizes, **{"data.name": str(tree)})
    assert run.recipe.model.image_shape == (48, 48, 3)
    assert run.recipe.model.depths == Bundle.load("cifar10").config.depths


def save_source(path: Path, rule: Preprocess, side: int | None = 224, depths: tuple[int, ...] = (1,)) -> str:
    model = ShiftViT((side, side, 3), num_classes=2, patch_size=4, embed_dim=24, depths=depths)
    Bundle.from_model(model, ("a", "b"), rule).save(path)
    return str(path)


@pytest.mark.parametrize(
    ("changes", "resize", "crop"),
    [
        ({}, 256, 224),
        ({"preprocess.crop": 160}, 183, 160),
        ({"preprocess.resize": 128}, 128, 112),
        ({"preprocess.resize": 100, "preprocess.crop": 96}, 100, 96),
        ({"preprocess.resize": "[64, 64]"}, (64, 64), None),
        ({"preprocess.crop": "[64, 96]"}, 110, (64, 96)),
        ({"preprocess.resize": "none", "preprocess.crop": "none"}, None, None),
    ],
)
def test_finetune_uses_the_resolution_of_its_source(
    changes: dict[str, Any], resize: Any, crop: Any, tmp_path: Path
) -> None:
    source = save_source(tmp_path / "source", find_evaluation(224))
    found = apply_start(Recipe.load("finetune", **{"start.source": source, **changes}))
    rule = found.preprocess
    assert (rule.resize, rule.crop) == (resize, crop)
    assert (rule.crop_position, rule.interpolation) == ("center", "bicubic")
    assert (rule.mean, rule.std) == (MEAN, STD)
    assert apply_start(found) == found  # as when a run is resumed
    plain = Recipe.load("finetune", **{"start.source": source, "start.resolution": "recipe"})
    assert apply_start(plain).preprocess.resize is None


@pytest.mark.parametrize(
    ("rule", "side", "resize", "crop"),
    [
        (Preprocess(), 32, 36, 32),
        (Preprocess(resize=64), 64, 64, 64),
        (Preprocess(resize=(48, 48)), 48, (48, 48), 48),
        (Preprocess(resize=40, crop=32), None, 40, 32),
        (Preprocess(), None, None, None),
    ],
)
def test_resolution_follows_the_rule_and_size_of_the_source(
    rule: Preprocess, side: int | None, resize: Any, crop: Any, tmp_path: Path
) -> None:
    source = save_source(tmp_path / "source", rule, side)
    found = apply_start(Recipe.load("finetune", **{"start.source": source})).preprocess
    assert (found.resize, found.crop) == (resize, crop)


def test_official_weights_bring_their_resolution(tmp_path: Path) -> None:
    path = tmp_path / "weights.pth"
    path.write_bytes(b"")
    recipe = Recipe.load("finetune", **{"start.source": str(path), "model.preset": "shiftvit_tiny_r2"})
    assert apply_start(recipe).preprocess == find_evaluation(224)


def test_default_source_is_the_best_pulled_model(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("SHIFTVIT_DATA", str(tmp_path))
    assert apply_start(Recipe.load("finetune")).start.source == "cifar10"
    messages = capfd.readouterr().err
    assert messages.count("\n") == 1
    assert "shiftvit pull shiftvit_tiny_r2" in messages
    assert "81.7%" in messages
    for name in ("shiftvit_tiny_light", "shiftvit_small_r2", "shiftvit_tiny_r2"):
        save_source(PUBLISHED[name].place, find_evaluation(224))
    found = apply_start(Recipe.load("finetune"))
    assert found.start.source == "shiftvit_small_r2"
    assert found.preprocess.crop == 224
    assert "pull" not in capfd.readouterr().err


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"start.source": "none", "train.freeze_epochs": 1}, "train.freeze_epochs=1 needs trained weights"),
        ({"start.source": "nowhere"}, "'nowhere' does not exist"),
        ({"start.freeze": 4}, "start.freeze=4 is more than the 3 stages"),
        ({"model.embed_dim": 48}, "model.embed_dim=48 differs from the 64 of 'cifar10'"),
        ({"start.source": "none", "start.freeze": 1}, "start.source is not set"),
    ],
)
def test_unsuitable_settings_are_refused(changes: dict, message: str) -> None:
    with pytest.raises(ShiftViTError, match=message):
        apply_start(Recipe.load("finetune", **changes))


def read_official_settings() -> dict[str, Any]:
    """Returns the settings for the official weights in the golden file."""
    with np.load(GOLDEN) as reference:
        stored = json.loads(str(reference["config"]))
    fields = {"embed_dim": "embed_dim", "depths": "depths", "mlp_ratio": "mlp_ratio", "num_div": "n_div"}
    return {f"model.{ours}": stored[theirs] for ours, theirs in fields.items()} | {
        "model.activation": stored["act_layer"].lower(),
        "start.source": str(GOLDEN),
    }


def make_official_recipe(**changes: Any) -> Recipe:
    sizes = {"preprocess.resize": 64, "preprocess.crop": 64}
    settings = {**SMALL, **sizes, **read_official_settings(), "model.drop_path": 0.0, **changes}
    return Recipe.load("finetune", **{"start.freeze": 0, **settings})


def build_official_model(**changes: Any) -> Any:
    recipe = apply_start(make_official_recipe(**{"data.name": "cifar10", "data.validation": 50, **changes}))
    splits = load_data(recipe, load_sample())
    return build(resolve(recipe, splits), splits)[0]


def load_official_weights() -> dict[str, np.ndarray]:
    """Returns the official weights, named as in our model."""
    names = {key.removeprefix("model."): value for key, value in read_official_settings().items() if "model." in key}
    model = ShiftViT((64, 64, 3), num_classes=10, **names)
    convert.load_official(model, GOLDEN)
    return {variable.path: np.array(variable.numpy()) for variable in model.weights}


@pytest.mark.slow
def test_official_weights_get_a_new_head(
    tmp_path: Path, capfd: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    read: list[Any] = []

    def count_and_read(source: Any) -> Any:
        read.append(source)
        return convert.read_weights(source)

    monkeypatch.setattr(finetune, "read_weights", count_and_read)
    tree = write_tree(tmp_path / "pets")
    rates = {"train.optimizer.learning_rate": 1e-12, "train.optimizer.weight_decay": 0.0}  # so that nothing learns
    rates |= {"train.optimizer.name": "adamw", "train.ema": "none"}
    changes = {**SMALL, **read_official_settings(), **rates, "data.name": str(tree), "model.drop_path": 0.0}
    run = train("finetune", out=tmp_path / "run", **changes, **{"preprocess.resize": 64, "preprocess.crop": 64})
    assert f"starting from {GOLDEN.absolute()} with a new head" in capfd.readouterr().err
    expected = load_official_weights()
    for path, value in run.bundle.weights.items():
        if not path.startswith("head/"):
            np.testing.assert_allclose(value, expected[path], atol=1e-6, err_msg=path)
    assert run.bundle.labels == ("cat", "dog", "ship")
    assert read == [str(GOLDEN.absolute())]  # once, though the head does not fit
    assert run.bundle.preprocess.mean == (123.675, 116.28, 103.53)
    assert run.bundle.preprocess.std == (58.395, 57.12, 57.375)
    (run.path / "metrics.json").unlink()
    assert train(resume=run.path).recipe == run.recipe


def test_official_head_is_kept_for_the_same_number_of_classes(capfd: pytest.CaptureFixture[str]) -> None:
    model = build_official_model()
    expected = load_official_weights()
    for variable in model.weights:
        np.testing.assert_array_equal(variable.numpy(), expected[variable.path])
    assert "with its head; its 10 classes must be yours, in the same order" in capfd.readouterr().err


@pytest.mark.parametrize("ending", ["pth", "safetensors"])
def test_official_weights_are_read_in_every_format(ending: str, tmp_path: Path) -> None:
    path = tmp_path / f"shiftvit.{ending}"
    with np.load(GOLDEN) as arrays:
        tensors = {name.removeprefix("w/"): arrays[name] for name in arrays.files if name.startswith("w/")}
    if ending == "pth":
        torch = pytest.importorskip("torch")
        torch.save({"model": {name: torch.from_numpy(value) for name, value in tensors.items()}}, path)
    else:
        save_file({name: np.ascontiguousarray(value) for name, value in tensors.items()}, path)
    expected = load_official_weights()
    for variable in build_official_model(**{"start.source": str(path)}).weights:
        np.testing.assert_array_equal(variable.numpy(), expected[variable.path])


def test_official_weights_can_be_frozen() -> None:
    paths = [variable.path for variable in build_official_model(**{"start.freeze": 2}).trainable_variables]
    trainable = {path.split("/")[0].split("_block")[0] for path in paths}
    assert trainable == {"stage2_merge", "stage3", "stage3_merge", "stage4", "norm", "head"}


def test_mean_of_the_recipe_overrides_that_of_imagenet() -> None:
    recipe = apply_start(make_official_recipe(**{"preprocess.mean": 100.0}))
    assert recipe.preprocess.mean == 100.0
    assert recipe.preprocess.std == (58.395, 57.12, 57.375)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"start.source": "nowhere.pth"}, r"start\.source='nowhere\.pth' does not exist"),
        ({"start.freeze": 5}, r"start\.freeze=5 is more than the 4 stages"),
        ({"model.embed_dim": 48, "model.num_div": 12}, "the weights do not fit this model"),
    ],
)
def test_settings_that_do_not_fit_official_weights_are_refused(changes: dict[str, Any], message: str) -> None:
    with pytest.raises(ShiftViTError, match=message):
        build_official_model(**changes)


def test_weights_without_an_architecture_are_refused() -> None:
    with pytest.raises(ShiftViTError, match=r"does not name the architecture of its weights; set model\.preset"):
        apply_start(Recipe.load("quick", **{"model": {}, "start.source": str(GOLDEN)}))
    recipe = apply_start(Recipe.load("quick", **{"model": {"preset": "shiftvit_tiny_r2"}, "start.source": str(GOLDEN)}))
    assert recipe.model.preset == "shiftvit_tiny_r2"


def test_source_becomes_an_absolute_path_and_sets_the_scale(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    Bundle.load("cifar10").save(tmp_path / "mine")
    monkeypatch.chdir(tmp_path)
    recipe = apply_start(Recipe.load("finetune", **{"start.source": "mine", "preprocess.mean": 7.0}))
    assert recipe.start.source == str(tmp_path / "mine")
    assert recipe.preprocess.mean == Bundle.load("cifar10").preprocess.mean
    assert "preprocess.mean is set to that of mine" in capfd.readouterr().err
    assert apply_start(Recipe.load("finetune")).start.source == "cifar10"  # a name stays a name


@pytest.mark.slow
@pytest.mark.parametrize("kind", ["bundle", "checkpoint"])
def test_run_resumes_without_its_source(tmp_path: Path, kind: str) -> None:
    tree = write_tree(tmp_path / "pets", 10)
    if kind == "bundle":
        source, settings = tmp_path / "source", {"preprocess.resize": 16, "preprocess.crop": 16, "start.freeze": 1}
        model = ShiftViT((16, 16, 3), num_classes=4, embed_dim=24, depths=(1, 1))
        Bundle.from_model(model, tuple("abcd"), Preprocess()).save(source)
    else:
        source = tmp_path / "source.npz"
        shutil.copy(GOLDEN, source)
        settings = {**read_official_settings(), "preprocess.resize": 64, "preprocess.crop": 64, "start.freeze": 1}
    settings = {**SMALL, **settings, "data.name": str(tree), "start.source": str(source), "train.select": "last"}
    stopped = train("finetune", out=tmp_path / "begun", **settings).path
    (stopped / "metrics.json").unlink()
    other = shutil.copytree(stopped, tmp_path / "other")
    with_source = train(resume=other, **{"train.epochs": 2}).bundle.weights
    source.rename(tmp_path / "gone")
    first = Bundle.load(stopped).weights
    after = train(resume=stopped, **{"train.epochs": 2}).bundle.weights
    for path, value in after.items():
        np.testing.assert_array_equal(value, with_source[path])
        assert np.array_equal(value, first[path]) == path.startswith(("patch_embed", "stage1_block")), path
    # Without a checkpoint, the run needs its source.
    shutil.rmtree(stopped / "checkpoints")
    (stopped / "metrics.json").unlink()
    with pytest.raises(ShiftViTError, match="does not exist"):
        train(resume=stopped)
