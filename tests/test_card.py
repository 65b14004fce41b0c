"""The model card: it states the facts of the bundle and the run, is valid YAML and Markdown, and contains no paths."""

from __future__ import annotations

import dataclasses
import html
import json
import re
import tomllib
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import yaml
from huggingface_hub import EvalResult, ModelCard, ModelCardData
from hypothesis import given
from hypothesis import strategies as st
from markdown_it import MarkdownIt

from shiftvit import Bundle, Preprocess, Recipe, ShiftViT
from shiftvit.bundle.card import (
    Facts,
    address_card,
    describe_preprocessing,
    dump_settings,
    get_last_name,
    write_card,
)
from shiftvit.bundle.describe import describe
from shiftvit.config import ModelConfig
from shiftvit.evaluation.metrics import estimate_intervals, measure, measure_macro

MARKDOWN = MarkdownIt("commonmark", {"html": False}).enable("table")


def make_bundle(labels: tuple[str, ...] = ("cat", "dog", "ship"), **changes: Any) -> Bundle:
    config = ModelConfig(image_shape=(16, 24, 3), num_classes=len(labels), embed_dim=24, depths=(1, 2), norm="layer")
    weights = {"head/kernel": np.zeros((48, len(labels)), np.float32), "norm/moving_mean": np.zeros(48, np.float32)}
    return Bundle(config, labels, Preprocess(resize=24, crop=(16, 24)), weights, **changes)


def make_facts(data: str = "cifar10", **changes: Any) -> Facts:
    resolved = {"start.source": "cifar10", "preprocess.resize": 36, "preprocess.crop": 32}
    return Facts(Recipe.load("finetune", **{"data.name": data, "train.seed": 7, **resolved}), **changes)


def get_body(card: str) -> str:
    return card.split("\n---\n", 1)[1]


def read_tables(text: str) -> dict[str, list[list[str]]]:
    """Returns heading -> rows of the table below it, parsed from the rendered Markdown."""
    page, tables = MARKDOWN.render(text), {}
    for heading, section in re.findall(r"<h2>(.*?)</h2>(.*?)(?=<h2>|\Z)", page, re.DOTALL):
        rows = re.findall(r"<tr>(.*?)</tr>", section, re.DOTALL)
        texts = [re.findall(r"<t[hd][^>]*>(.*?)</t[hd]>", row, re.DOTALL) for row in rows]
        tables[heading] = [[html.unescape(re.sub(r"</?code>", "", cell)) for cell in row] for row in texts]
    return tables


def test_card_shows_the_figures_of_the_run() -> None:
    random = np.random.default_rng(0)
    logits, labels = random.normal(size=(500, 6)).astype(np.float32), random.integers(6, size=500)
    test, low_high = measure(logits, labels), estimate_intervals(logits, labels, repeats=50)
    names = ("airplane", "automobile", "bird", "cat", "deer", "dog")
    counts = {"train": [10, 20, 30, 40, 50, 2000], "validation": [1] * 6, "test": np.bincount(labels).tolist()}
    f1 = measure_macro(logits, labels)["f1"]
    metrics = {
        "train": {"seconds": 61.4, "epochs": 9},
        "val": {"top1": 1 / 3, "top5": 1.0, "loss": 0.5, "n": 1500},
        "test": test,
    }
    run = make_facts(counts=counts, intervals=low_high, macro_f1=f1, environment={"processor": "A_CPU", "cores": 2})
    card = write_card(make_bundle(names, metrics=metrics, temperature=1.25, versions={"keras": "3.15.1"}), run)
    tables = read_tables(get_body(card))

    def percent(value: float, key: str) -> str:
        return f"{100 * value:.2f}% ({100 * low_high[key][0]:.2f}% to {100 * low_high[key][1]:.2f}%)"

    assert tables["Evaluation"] == [
        ["images", "top-1", "top-5", "macro F1", "loss"],
        ["1,500 validation", "33.33%", "100.00%", "", "0.5000"],
        [
            "500 test",
            percent(test["top1"], "top1"),
            percent(test["top5"], "top5"),
            percent(f1, "macro_f1"),
            f"{test['loss']:.4f} ({low_high['loss'][0]:.4f} to {low_high['loss'][1]:.4f})",
        ],
    ]
    assert tables["Training data"][-1] == ["dog", "2,000", "1", str((labels == 5).sum())]
    assert "CIFAR-10: 2,150 training, 6 validation, 500 test images." in card
    rows = dict(tables["Training"])
    assert rows["Recipe"] == "finetune"
    assert rows["Initial weights"] == "cifar10"
    assert rows["Epochs"] == "9 of 15"
    assert rows["Time"] == "61 s"
    assert rows["Augmentation"] == "random crop, horizontal flip"
    assert dict(tables["Model"])["Output"] == "6 logits; the confidences are softmax(logits / 1.25)"
    assert dict(tables["Model"])["Input"] == "16 x 24 px, RGB"
    for sentence in ("temperature 1.25", "n = 1, seed 7", "Trained on A\\_CPU, 2 cores.", "Versions: keras 3.15.1."):
        assert sentence in card
    assert "are not calibrated" not in card


def parse_front_matter(card: str) -> dict[str, Any]:
    head: dict[str, Any] = yaml.safe_load(card.split("---\n")[1])
    return head


@pytest.mark.parametrize(
    ("data", "license"), [("cifar10", "apache-2.0"), ("cifar100", None), ("2026", None), ('a: "b" # ü', None)]
)
def test_front_matter_matches_that_of_huggingface_hub(data: str, license: str | None) -> None:
    metrics = {"test": {"top1": 0.92491, "top5": 0.994, "loss": 0.30356, "n": 10000}}
    recipe = make_facts().recipe
    recipe = recipe.model_copy(update={"data": recipe.data.model_copy(update={"name": data})})
    run = Facts(recipe, macro_f1=0.9, license=license)
    card = write_card(make_bundle(tuple("abcdefghij"), metrics=metrics), run)
    title, identifier = ("CIFAR-10", "uoft-cs/cifar10") if data == "cifar10" else (get_last_name(data), "imagefolder")
    figures = [
        ("accuracy", "Top-1 accuracy", 0.9249),
        ("accuracy", "Top-5 accuracy", 0.994),
        ("f1", "Macro F1", 0.9),
        ("loss", "Cross-entropy", 0.3036),
    ]
    expected = ModelCardData(
        license=license,
        library_name="shiftvit",
        pipeline_tag="image-classification",
        tags=["vision", "shiftvit"],
        datasets=[identifier] if data == "cifar10" else None,
        metrics=["accuracy", "f1"],
        model_name="shiftvit-finetune",
        eval_results=[
            EvalResult("image-classification", identifier, title, kind, value, dataset_split="test", metric_name=name)
            for kind, name, value in figures
        ],
    )
    assert parse_front_matter(card) == expected.to_dict()
    assert ModelCard(card).data.to_dict() == expected.to_dict()


def test_front_matter_omits_what_is_unknown() -> None:
    # With five classes or fewer, top-5 accuracy is always 1, so the card omits it.
    metrics = {"test": {"top1": 0.92491, "top5": 0.994, "loss": 0.30356, "n": 10000}}
    few = ModelCard(write_card(make_bundle(metrics=metrics), make_facts("photos"))).data
    assert [row.metric_name for row in few.eval_results] == ["Top-1 accuracy", "Cross-entropy"]
    alone = parse_front_matter(write_card(make_bundle(metrics=metrics)))
    assert alone == {
        "library_name": "shiftvit",
        "pipeline_tag": "image-classification",
        "tags": ["vision", "shiftvit"],
    }


def test_card_of_a_bundle_without_a_run_is_short() -> None:
    card = write_card(make_bundle(metrics={"test": {"top1": 0.5, "n": 20}}))
    assert "# ShiftViT, 3 classes\n" in card
    assert "It distinguishes 3 classes: cat, dog, ship." in card
    assert read_tables(get_body(card))["Evaluation"] == [["images", "top-1"], ["20 test", "50.00%"]]
    for absent in ("## Training", "n = 1", "model-index", "## Environment"):
        assert absent not in card
    assert "Not measured.\n" in write_card(make_bundle())
    assert ModelCard(card).data.eval_results is None


@pytest.mark.parametrize(
    ("metrics", "notes"),
    [
        ({"test": {"top1": 0.5, "n": 20}}, {"test": "top-1 50.00% (20 images)"}),
        ({"val": {"loss": 0.25}, "test": {"n": 20}}, {"validation": "loss 0.2500"}),
        ({"val": [0.5], "test": {"top1": "high", "loss": 0.3}}, {"test": "loss 0.3000"}),
        ({"test": {"top1": 1.0, "top5": 1.0, "loss": 0.0, "n": 1}}, {"test": "top-1 100.00%, loss 0.0000 (1 image)"}),
        ({}, {}),
    ],
)
def test_info_shows_the_known_figures(metrics: dict[str, Any], notes: dict[str, str], tmp_path: Path) -> None:
    make_bundle(metrics=metrics).save(tmp_path / "b")
    found = describe(str(tmp_path / "b"))["notes"]
    assert {key: found[key] for key in ("validation", "test") if key in found} == notes
    make_bundle(tuple("abcdef"), metrics={"test": {"top5": 0.75}}).save(tmp_path / "b")
    assert describe(str(tmp_path / "b"))["notes"]["test"] == "top-5 75.00%"


def test_info_describes_the_model_in_the_working_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Every other command uses it as well, not the preset of that name."""
    monkeypatch.chdir(tmp_path)
    assert describe("keras_example")["title"] == "Preset keras_example"
    make_bundle().save("keras_example")
    assert describe("keras_example")["title"] == "Model in keras_example"
    assert describe("keras_example")["notes"]["classes"] == "cat, dog and ship"


def test_card_says_how_the_splits_and_the_pixels_were_made() -> None:
    drawn = "plits that the data set does not define were drawn by class, with seed 0.\n"
    last = "Validation images that the data set does not define are its last training images.\nOther s"
    for settings, expected in (
        ({"data.validation_from": "end"}, last + drawn),
        ({"data.validation": 0}, "images.\nS" + drawn),  # then the test images are drawn
        ({}, "images.\nS" + drawn),
    ):
        run = Facts(Recipe.load("cifar10", **settings), {"train": [1, 1, 1]})
        assert expected in write_card(make_bundle(), run)
    bundle = make_bundle()
    card = write_card(dataclasses.replace(bundle, preprocess=bundle.preprocess.model_copy(update={"srgb": True})))
    steps = dict(read_tables(get_body(card))["Model"])["Preprocessing"]
    assert steps == "colours to sRGB where a file embeds a profile; " + describe_preprocessing(bundle.preprocess)


def test_parameter_count_is_that_of_keras() -> None:
    for norm in ("batch", "group"):
        model = ShiftViT((16, 16, 3), num_classes=3, embed_dim=24, depths=(1, 2), norm=norm)
        made = Bundle.from_model(model, ("a", "b", "c"), Preprocess())
        count = sum(int(np.prod(variable.shape)) for variable in model.trainable_variables)
        assert f"| Parameters | {count:,} |" in write_card(made)


def test_card_shows_only_the_last_part_of_a_path() -> None:
    for path in ("/home/ann/secret/pets", r"C:\Users\ann\secret\pets\\", "/home/ann/secret/pets/", "secret/./pets"):
        recipe = Recipe.load("photos", **{"data.name": json.dumps(path)[1:-1]})
        recipe = recipe.model_copy(update={"data": recipe.data.model_copy(update={"name": path})})
        start = recipe.start.model_copy(update={"source": "/home/ann/secret/runs/mine/bundle"})
        card = write_card(make_bundle(), Facts(recipe.model_copy(update={"start": start}), environment={"cores": 1}))
        assert "# ShiftViT for pets\n" in card
        assert "images like those of pets;" in card
        assert "| Initial weights | mine |" in card
        assert not re.search(r"secret|ann\b|Users|home", card)
    assert get_last_name("/") == get_last_name("..") == "images"


def test_card_holds_every_setting_of_the_recipe() -> None:
    recipe = Recipe.load("cifar10_long")
    text = re.search(r"```toml\n(.*?)```", write_card(make_bundle(), Facts(recipe)), re.DOTALL)
    assert text is not None
    assert text[1] == dump_settings(recipe)
    assert Recipe.model_validate(tomllib.loads(text[1])) == recipe


def test_commands_name_the_repository() -> None:
    card = write_card(make_bundle())
    assert card.count("shiftvit pull OWNER/NAME --out model\n") == 1
    placed = address_card(card, "me/my.pets-2")
    assert placed == card.replace("OWNER/NAME", "me/my.pets-2")
    assert address_card(placed, "us/pets") == card.replace("OWNER/NAME", "us/pets")


@pytest.mark.parametrize(
    "metrics",
    [{"test": 5}, {"test": {"top1": "much"}}, {"test": {"top1": None, "n": 10**400}}, {"val": [1]}, {"test": {"n": 5}}],
)
def test_malformed_metrics_are_left_out(metrics: dict[str, Any]) -> None:
    assert "%" not in get_body(write_card(make_bundle(metrics=metrics), make_facts()))


NAMES = st.text(st.characters(codec="utf-8"), min_size=1, max_size=20).filter(
    lambda text: any(letter.isprintable() and letter != " " for letter in text)
)


def clean_name(text: str) -> str:
    """Returns a name as a card shows it: on one line, with spaces for unprintable characters except joiners."""
    shown = (letter if letter.isprintable() or letter in "\u200c\u200d" else " " for letter in text)
    return " ".join("".join(shown).split())


@pytest.mark.slow
@given(labels=st.lists(NAMES, min_size=2, max_size=5, unique=True), folder=NAMES)
def test_names_are_shown_unchanged_and_escaped(labels: list[str], folder: str) -> None:
    recipe = Recipe.load("photos")
    recipe = recipe.model_copy(update={"data": recipe.data.model_copy(update={"name": f"/photos/{folder}"})})
    counts = {"train": list(range(len(labels)))}
    metrics = {"test": {"top1": 0.5}}
    card = write_card(make_bundle(tuple(labels), metrics=metrics), Facts(recipe, counts))
    rows = read_tables(get_body(card))["Training data"]
    assert rows == [["class", "training"], *([clean_name(label), str(n)] for n, label in enumerate(labels))]
    page = MARKDOWN.render(get_body(card))
    assert {"pre", "h1", "h2", "p", "table"} <= set(re.findall(r"<(\w+)", page))
    assert set(re.findall(r"<(\w+)", page)) <= {
        *("h1", "h2", "p", "a", "code", "pre", "ul", "li"),
        *("table", "thead", "tbody", "tr", "th", "td"),
    }
    assert re.findall(r'href="(.*?)"', page) == ["https://arxiv.org/abs/2201.10801"]
    head = parse_front_matter(card)
    assert head["model-index"][0]["results"][0]["dataset"]["name"] == clean_name(get_last_name(f"/photos/{folder}"))


def test_joiners_in_class_names_stay() -> None:
    """Persian words and many emoji are written with them."""
    names = "\u0645\u06cc\u200c\u0628\u06cc\u0646", "\U0001f469\u200d\U0001f4bb"
    assert f"It distinguishes 2 classes: {names[0]}, {names[1]}." in write_card(make_bundle(names))
