"""The report: one self-contained page with the figures of the run, whose texts cannot become HTML."""

from __future__ import annotations

import base64
import json
import os
from html.parser import HTMLParser
from pathlib import Path

import pytest
from PIL import Image

from shiftvit.errors import ShiftViTError
from shiftvit.evaluation.report import write_report

VOID_TAGS = {"meta", "img"}


class Page(HTMLParser):
    def __init__(self, text: str) -> None:
        super().__init__()
        self.open: list[str] = []
        self.images: list[str] = []
        self.links: list[str] = []
        self.tags: set[str] = set()
        self.attributes: set[str] = set()
        self.text = ""
        self.feed(text)
        assert not self.open

    def handle_starttag(self, tag, attrs) -> None:
        self.tags.add(tag)
        if tag not in VOID_TAGS:
            self.open.append(tag)
        values = dict(attrs)
        self.attributes |= values.keys()
        if tag == "img":
            self.images.append(values["src"])
        self.links += [value for key, value in attrs if key in ("href", "src") and not value.startswith("data:")]

    def handle_endtag(self, tag) -> None:
        assert self.open.pop() == tag

    def handle_data(self, data) -> None:
        self.text += data


@pytest.fixture
def run(tmp_path: Path) -> Path:
    run = tmp_path / "run"
    (run / "figures").mkdir(parents=True)
    for name in ("learning_curves", "predictions", "confusion_matrix"):
        Image.new("RGB", (8, 8), "red").save(run / "figures" / f"{name}.png")
    test = {"top1": 0.875, "top5": 0.99, "loss": 0.41, "n": 1200}
    train = {"epochs": 3, "images": 5000, "seconds": 61.0, "images_per_second": 250.0}
    (run / "metrics.json").write_text(json.dumps({"test": test, "val": {**test, "top1": 0.86}, "train": train}))
    (run / "environment.json").write_text(
        json.dumps({"versions": {"keras": "3.15.1"}, "command": ["shiftvit", "train"]})
    )
    (run / "recipe.toml").write_text('name = "<script>alert(1)</script>"\n')
    return run


def write_evaluation(run: Path) -> None:
    (run / "evaluation").mkdir(exist_ok=True)
    Image.new("RGB", (8, 8), "blue").save(run / "evaluation" / "reliability.png")
    row = {"class": "<b>cat & dog</b>", "precision": 0.5, "recall": 0.25, "f1": 1 / 3, "support": 1234}
    found = {
        "intervals": {"top1": [0.85, 0.9]},
        "macro": {"f1": 0.333},
        "calibration": {"ece": 0.021},
        "classes": [row],
    }
    (run / "evaluation" / "evaluation.json").write_text(json.dumps(found))


def test_report_is_self_contained_and_has_the_figures(run: Path) -> None:
    page = Page(write_report(run).read_text("utf-8"))
    assert not page.links
    figures = {base64.b64decode(source.removeprefix("data:image/png;base64,")) for source in page.images}
    assert figures == {path.read_bytes() for path in (run / "figures").iterdir()}
    for text in ("87.50%", "86.00%", "1,200", "3.15.1", "shiftvit train", "<script>alert(1)</script>"):
        assert text in page.text, text  # as text: the parser undoes the escaping
    assert "script" not in page.tags


def test_report_includes_the_evaluation(run: Path, tmp_path: Path) -> None:
    write_evaluation(run)
    path = write_report(run, tmp_path / "page.html")
    assert path == tmp_path / "page.html"
    page = Page(path.read_text("utf-8"))
    for text in ("85.00% to 90.00%", "33.3%", "2.10%", "<b>cat & dog</b>", "1,234"):
        assert text in page.text, text
    assert len(page.images) == 3  # learning curves, reliability, predictions


def test_report_has_the_mean_over_corruptions(run: Path) -> None:
    means = {"top1": 0.5432, "by_family": {"noise": 0.41, "blur": 0.625}, "corruptions": 15, "n": 1000}
    write_evaluation(run)
    write_other_evaluation(run, "zoo", corruption_means={**means, "top1": 0.1234, "n": 77})
    place = run / "evaluation" / "evaluation.json"
    older = json.loads(place.read_text())
    place.write_text(json.dumps({**older, "corruption_means": means}))
    before, after = (
        " ".join(t.split()) for t in Page(write_report(run).read_text("utf-8")).text.split("Other data sets")
    )
    text = "Mean top-1 over the 15 corruptions of the benchmark, each in five severities, on "
    assert f"{text}1,000 images: 54.32% (noise 41.00%, blur 62.50%)." in before
    assert f"{text}77 images: 12.34% (noise" in after
    # Older versions measured corruptions without the mean.
    place.write_text(json.dumps(older))
    assert "54.32%" not in Page(write_report(run).read_text("utf-8")).text


HOSTILE = (
    "<script>alert(1)</script>",
    '"><img src=x onerror=alert(1)>',
    "' onload='alert(1)",
    "</style></pre></dl><iframe>",
    "{{ name }}{% raw %}&amp;",
)


@pytest.mark.parametrize("text", HOSTILE)
def test_no_text_of_a_run_becomes_markup(run: Path, text: str) -> None:
    write_evaluation(run)
    plain = Page(write_report(run).read_text("utf-8"))
    run = run.rename(run.with_name(text.replace("/", "\u2215")))
    found = json.loads((run / "evaluation" / "evaluation.json").read_text())
    found["classes"][0]["class"] = text
    found["corruption_means"] = {"top1": 0.5, "by_family": {text: 0.5}, "corruptions": 15, "n": 4}
    (run / "evaluation" / "evaluation.json").write_text(json.dumps(found))
    (run / "environment.json").write_text(json.dumps({text: text, "command": [text]}))
    (run / "recipe.toml").write_text(text)
    change = {"date": text, "changed": {text: [text, [text]]}}
    (run / "changes.jsonl").write_text(json.dumps(change))
    page = Page(write_report(run).read_text("utf-8"))
    assert page.tags == plain.tags | {"td"}
    assert page.attributes == plain.attributes
    assert page.images == plain.images
    assert page.text.count(run.name) >= 2  # the title and the heading
    assert (
        page.text.count(text) >= 9
    )  # class; family; environment: key, value, command; recipe; change: key, before, date


@pytest.mark.parametrize("missing", ["metrics.json", "recipe.toml"])
def test_unfinished_run_is_refused(run: Path, missing: str) -> None:
    (run / missing).unlink()
    with pytest.raises(ShiftViTError, match=f"{missing}' cannot be read .* finished run"):
        write_report(run)


def test_damaged_metrics_are_refused(run: Path) -> None:
    (run / "metrics.json").write_text("{")
    with pytest.raises(ShiftViTError, match="is not valid JSON"):
        write_report(run)
    assert not (run / "report.html").exists()


@pytest.mark.parametrize(
    ("name", "content"),
    [
        ("metrics.json", "{}"),
        ("metrics.json", "[1]"),
        ("metrics.json", '{"test": {}, "train": {}}'),
        ("environment.json", "3"),
        ("changes.jsonl", "{bad"),
        ("changes.jsonl", '{"date": "2026"}'),
        ("recipe.toml", "\udcff"),
        ("evaluation/evaluation.json", '{"n": 4, "own_test": true}'),
    ],
)
def test_damaged_file_is_named_in_one_line(run: Path, name: str, content: str) -> None:
    (run / name).parent.mkdir(exist_ok=True)
    (run / name).write_text(content, "utf-8", "surrogateescape")
    with pytest.raises(ShiftViTError, match=Path(name).stem if "evaluation" not in name else "evaluation") as caught:
        write_report(run)
    assert "\n" not in str(caught.value)
    assert not (run / "report.html").exists()


def test_name_of_a_run_may_be_no_utf8(run: Path) -> None:
    odd = run.rename(os.fsdecode(os.fsencode(run) + b"\xff"))
    assert "run?" in Page(write_report(odd).read_text("utf-8")).text


def test_invalid_recipe_is_shown(run: Path) -> None:
    (run / "recipe.toml").write_text("model = 3\ndata = []\n")
    assert "model = 3" in Page(write_report(run).read_text("utf-8")).text


def write_other_evaluation(run: Path, folder: str, **changes: object) -> None:
    found = {
        "data": "/photos/zoo",
        "split": "all",
        "own_test": False,
        "n": 77,
        "top1": 0.125,
        "loss": 2.5,
        "intervals": {"top1": [0.0625, 0.25]},
        "macro": {"f1": 0.111},
        "calibration": {"ece": 0.222},
        "classes": [
            {"class": "lynx", "precision": 0.5, "recall": 0.25, "f1": 1 / 3, "support": 77},
            {"class": "yak", "precision": 0.0, "recall": 0.0, "f1": 0.0, "support": 0},
        ],
        "without_images": ["yak"],
        **changes,
    }
    (run / "evaluation" / folder).mkdir(exist_ok=True, parents=True)
    (run / "evaluation" / folder / "evaluation.json").write_text(json.dumps(found))
    Image.new("RGB", (8, 8), "green").save(run / "evaluation" / folder / "reliability.png")


def test_evaluations_of_other_data_are_listed_separately(run: Path) -> None:
    write_other_evaluation(run, "zoo")
    alone = Page(write_report(run).read_text("utf-8")).text
    before, after = alone.split("Other data sets")
    assert "87.50%" in before
    assert "12.50%" not in before
    assert "lynx" not in before
    for text in ("the run's own", "87.50%", "/photos/zoo: all images", "12.50% (6.25% to 25.00%)", "11.10%", "22.20%"):
        assert text in after, text
    assert "There are no images of yak: macro figures are means over the other classes" in after
    write_evaluation(run)
    write_other_evaluation(run, "zoo-2", data="/elsewhere/zoo", trained_on=5)
    page = Page(write_report(run).read_text("utf-8"))
    before, after = page.text.split("Other data sets")
    assert "85.00% to 90.00%" in before
    assert after.count("87.50% (85.00% to 90.00%)") == 1
    assert "The model was trained on 5 of them." in after
    assert len(page.images) == 5  # learning curves, predictions, and three reliability diagrams


def test_old_evaluation_of_other_data_is_listed_separately(run: Path) -> None:
    """Older versions kept the last evaluation in the same place, whatever data it was of."""
    (run / "recipe.toml").write_text('[data]\nname = "/photos/pets"\n')
    (run / "evaluation").mkdir()
    write_other_evaluation(run, ".")
    found = json.loads((run / "evaluation" / "evaluation.json").read_text())
    del found["own_test"], found["without_images"]
    (run / "evaluation" / "evaluation.json").write_text(json.dumps(found))
    before, after = Page(write_report(run).read_text("utf-8")).text.split("Other data sets")
    assert "6.25% to 25.00%" not in before
    assert "6.25% to 25.00%" in after
    (run / "evaluation" / "evaluation.json").write_text(json.dumps({**found, "data": "/photos/pets", "n": 1200}))
    assert "Other data sets" not in Page(write_report(run).read_text("utf-8")).text


def test_top_5_of_few_classes_is_not_shown(run: Path) -> None:
    for count, shown in ((5, False), (6, True)):
        (run / "recipe.toml").write_text(f"[model]\nnum_classes = {count}\n")
        assert ("Test top-5" in Page(write_report(run).read_text("utf-8")).text) == shown


@pytest.mark.parametrize("name", ["recipe.toml", "figures/learning_curves.png"])
def test_links_in_a_run_are_refused(run: Path, tmp_path: Path, name: str) -> None:
    (tmp_path / "private").write_text("secret")
    (run / name).unlink()
    (run / name).symlink_to(tmp_path / "private")
    with pytest.raises(ShiftViTError, match=rf"{name}' cannot be read \(it is a link\); give the folder of a finished"):
        write_report(run)
    assert not (run / "report.html").exists()
