"""The rules of the code: imports point down, importing loads no framework, nothing unsafe is used."""

from __future__ import annotations

import ast
import re
import subprocess
import sys
from pathlib import Path

import pytest

import shiftvit

SOURCE = Path(shiftvit.__file__).parent

# The layers from the top down, and the files of each in the same order: an import points down, never up. A layer is a
# folder; "" is the folder of the package itself. docs/architecture.md has a row for each line.
LAYERS = [
    ("", "__main__"),
    (
        "cli",
        "main benchmark show data hub demo export explain embed predict rates serve train bulk rows inputs settings "
        "tables stop",
    ),
    ("", "benchmark"),
    ("serve", "server demo app about protocol classify model heat bodies guard measures batching answers limits log"),
    (
        "exports",
        "pull export space images gate saturation build any_size channels_first quantization labels arrays formats",
    ),
    ("inference", "bulk cluster worker folder embed explainer predict blocks storage batches sources runtimes"),
    (
        "training",
        "rate_finder fit probe features epoch results device memory setup parts finetune callbacks "
        "checkpoint runfolder averages optimizer torch_steps loss schedule groups torch_group jax_group place "
        "processes",
    ),
    ("evaluation", "report evaluate robustness images places explain features logits metrics corruptions"),
    ("bundle", "describe session metadata hub official bundle card"),
    ("model", "convert tensors network weights blocks primitives products shift"),
    ("bundle.stored", "digests find published manifest container"),
    ("data", "show evaluated load read named"),
    ("data.cifar10", "cache archives"),
    ("data.batches", "device host pictures"),
    ("data.check", "checks report duplicates"),
    ("data.find", "find kept splits copies arrays shards folders tables dataset listing words"),
    ("data.decode", "images profiles readers rows parquet formats netpbm faults"),
    ("recipes", "recipe"),
    ("augment", "changes erasing randaugment photometric boxes mix augment"),
    ("figures", "evaluation grid run style"),
    ("templates", ""),
    (
        "",
        "preprocess threads environment backend presets stages config replacement download npm files zips telemetry "
        "console errors",
    ),
]
FOLDERS = [layer for layer, _ in LAYERS if layer]
# Each module -> the depth of its layer and its place in it. `PACKAGES` has the depth of each folder's `__init__`.
MODULES = {
    f"{layer}.{name}".removeprefix("."): (depth, place)
    for depth, (layer, names) in enumerate(LAYERS)
    for place, name in enumerate(names.split())
}
PACKAGES = {layer: depth for depth, (layer, _) in enumerate(LAYERS) if layer}


def list_modules():
    for path in sorted(SOURCE.rglob("*.py")):
        name = ".".join(path.relative_to(SOURCE).with_suffix("").parts)
        yield name.removesuffix("__init__").removesuffix("."), path


def find_imports(path):
    """Yields every import of shiftvit in a file, including those within functions."""
    for node in ast.walk(ast.parse(path.read_text("utf-8"))):
        if isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{path} imports by a relative name"
            if node.module.split(".")[0] == "shiftvit":
                inner = node.module.removeprefix("shiftvit").removeprefix(".")
                for alias in node.names:
                    full = f"{inner}.{alias.name}".removeprefix(".")
                    yield full if full in MODULES or full in PACKAGES else inner
        elif isinstance(node, ast.Import):
            for alias in node.names:
                if alias.name.split(".")[0] == "shiftvit":
                    yield alias.name.removeprefix("shiftvit").removeprefix(".")


def may_import(name, target):
    """Returns whether a module, or a folder's `__init__`, may import another one."""
    if name in MODULES and target in MODULES:
        return MODULES[target] > MODULES[name]
    above, below = (PACKAGES[each] if each in PACKAGES else MODULES[each][0] for each in (name, target))
    return below >= above


def test_every_module_has_a_place():
    assert {name for name, _ in list_modules()} == {*MODULES, *PACKAGES, ""}
    assert len(FOLDERS) == len(set(FOLDERS))


def test_imports_point_down():
    for name, path in list_modules():
        if name:  # the package's own `__init__` imports from every layer
            up = [target for target in find_imports(path) if target and not may_import(name, target)]
            assert not up, f"{name} imports {up}, which is not below it"


def test_may_import():
    assert may_import("cli.main", "errors")
    assert may_import("data.load", "data.find.splits")
    assert may_import("training.fit", "training.loss")
    assert may_import("recipes.recipe", "recipes")
    assert not may_import("data.find.splits", "data.load")
    assert not may_import("data.decode.images", "data.find.dataset")
    assert not may_import("figures.style", "evaluation.metrics")
    assert not may_import("model", "training.fit")
    assert not may_import("training.loss", "training.fit")
    assert not may_import("config", "recipes")
    assert not may_import("errors", "errors")


def test_architecture_table_matches_the_layers():
    """Compares the table in docs/architecture.md with `LAYERS`, row by row."""
    text = (Path(__file__).parents[1] / "docs" / "architecture.md").read_text("utf-8")
    table = text.split("\n## Layers\n")[1].split("\n## ")[0]
    rows = [line.split("|")[1:3] for line in table.splitlines() if line.startswith("| ")][1:]
    layers = [layer.strip().strip("`/").replace("/", ".") for layer, _ in rows]
    assert [layer if layer in PACKAGES else "" for layer in layers] == [layer for layer, _ in LAYERS]
    known = {name for _, names in LAYERS for name in names.split()}
    for (layer, listed), (_, names) in zip(rows, LAYERS, strict=True):
        assert {*re.findall(r"`(\w+)`", listed)} & known == {*names.split()}, layer


def test_no_file_exceeds_300_lines():
    long = {name: lines for name, path in list_modules() if (lines := len(path.read_text("utf-8").splitlines())) > 300}
    assert not long


def test_no_pickle_and_no_eval():
    for name, path in list_modules():
        for node in ast.walk(ast.parse(path.read_text("utf-8"))):
            if isinstance(node, ast.Import | ast.ImportFrom):
                names = {alias.name for alias in node.names} | {getattr(node, "module", None)}
                assert not names & {"pickle", "pickletools", "marshal", "shelve", "dill", "joblib"}, name
            if isinstance(node, ast.Call) and isinstance(node.func, ast.Name):
                assert node.func.id not in {"eval", "exec"}, name


@pytest.mark.parametrize(
    "statement",
    [
        "import shiftvit",
        "import shiftvit.cli.main",
        "import shiftvit; shiftvit.Recipe.load('quick')",
        "import shiftvit.bundle.describe",
        "import shiftvit; shiftvit.Predictor.from_pretrained('cifar10')",
    ],
)
def test_import_loads_no_framework(statement):
    heavy = ("keras", "torch", "jax", "tensorflow", "sklearn", "matplotlib", "jinja2")
    program = f"{statement}; import sys; print([name for name in {heavy} if name in sys.modules])"
    answer = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True)
    assert answer.stdout.strip() == "[]"


def test_public_names_exist():
    for name in shiftvit.__all__:
        assert getattr(shiftvit, name) is not None
    assert shiftvit.bundle.Bundle is shiftvit.Bundle  # its import path from when bundle/ was a file
    with pytest.raises(AttributeError, match="no attribute 'nothing'"):
        _ = shiftvit.nothing


@pytest.mark.slow
def test_no_module_hides_a_public_function():
    """Importing a submodule binds it in the package, over any attribute of that name."""
    program = (
        "import shiftvit; shiftvit.Run; shiftvit.WarmUpCosine; import shiftvit.training.fit, shiftvit.evaluation;"
        "assert callable(shiftvit.train) and callable(shiftvit.evaluate)"
    )
    subprocess.run([sys.executable, "-c", program], check=True)
    assert not {name.split(".")[0] for name in [*MODULES, *PACKAGES]} & {*shiftvit.__all__} - {"presets"}
