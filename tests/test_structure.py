"""The house's rules: imports flow one way, importing costs no framework, nothing unsafe is used."""

from __future__ import annotations

import ast
import subprocess
import sys
from pathlib import Path

import pytest

import shiftvit

SOURCE = Path(shiftvit.__file__).parent

# From the top of the house down: a module imports only what stands above it.
ORDER = [
    "errors",
    "recipes",
    "files",
    "figures.style",
    "figures.run",
    "figures.grid",
    "figures.evaluation",
    "config",
    "presets",
    "backend",
    "environment",
    "preprocess",
    "data.dataset",
    "data.decode.formats",
    "data.decode.parquet",
    "data.decode.rows",
    "data.decode.images",
    "augment.augment",
    "augment.mix",
    "augment.boxes",
    "augment.photometric",
    "augment.randaugment",
    "augment.erasing",
    "augment.changes",
    "recipes.recipe",
    "data.find.listing",
    "data.find.folders",
    "data.find.shards",
    "data.find.tables",
    "data.find.find",
    "data.find.splits",
    "data.check.duplicates",
    "data.check.report",
    "data.check.checks",
    "data.batches.pictures",
    "data.batches.host",
    "data.batches.device",
    "data.cifar10.fetch",
    "data.cifar10.archives",
    "data.cifar10.cache",
    "data.named",
    "data.read",
    "data.load",
    "data.show",
    "model.shift",
    "model.primitives",
    "model.blocks",
    "model.network",
    "model.convert",
    "bundle.markdown",
    "bundle.wording",
    "bundle.card",
    "bundle.container",
    "bundle.bundle",
    "bundle.hub",
    "bundle.metadata",
    "bundle.describe",
    "evaluation.corruptions",
    "evaluation.metrics",
    "evaluation.logits",
    "evaluation.explain",
    "evaluation.evaluate",
    "evaluation.report",
    "inference.runtimes",
    "inference.predict",
    "exports.formats",
    "exports.onnx_graphs",
    "exports.build",
    "exports.saturation",
    "exports.gate",
    "exports.driver",
    "training.schedule",
    "training.loss",
    "training.torch_steps",
    "training.optimizer",
    "training.checkpoint",
    "training.callbacks",
    "training.start",
    "training.parts",
    "training.setup",
    "training.memory",
    "training.device",
    "training.runfolder",
    "training.epoch",
    "training.fit",
    "training.rate_finder",
    "benchmark",
    "cli.tables",
    "cli.settings",
    "cli.rows",
    "cli.train",
    "cli.rates",
    "cli.explain",
    "cli.data",
    "cli.show",
    "cli.predict",
    "cli.export",
    "cli.hub",
    "cli.benchmark",
    "cli.main",
    "__main__",
]
PACKAGES = {
    "",
    "data",
    "data.decode",
    "data.find",
    "data.cifar10",
    "data.check",
    "data.batches",
    "augment",
    "model",
    "bundle",
    "figures",
    "evaluation",
    "training",
    "inference",
    "exports",
    "cli",
}


def modules():
    for path in sorted(SOURCE.rglob("*.py")):
        name = ".".join(path.relative_to(SOURCE).with_suffix("").parts)
        yield name.removesuffix("__init__").removesuffix("."), path


def imports(path):
    """Yields every import of ours in a file, those within functions too."""
    for node in ast.walk(ast.parse(path.read_text("utf-8"))):
        if isinstance(node, ast.ImportFrom) and node.module and node.module.split(".")[0] == "shiftvit":
            inner = node.module.removeprefix("shiftvit").removeprefix(".")
            for alias in node.names:
                full = f"{inner}.{alias.name}".removeprefix(".")
                yield full if full in ORDER else inner
        elif isinstance(node, ast.Import):
            for alias in node.names:
                if alias.name.split(".")[0] == "shiftvit":
                    yield alias.name.removeprefix("shiftvit").removeprefix(".")


def test_every_module_has_its_place():
    assert {name for name, _ in modules()} == set(ORDER) | PACKAGES


def test_imports_flow_one_way():
    for name, path in modules():
        if name in PACKAGES:
            continue
        below = [target for target in imports(path) if target in ORDER and ORDER.index(target) >= ORDER.index(name)]
        assert not below, f"{name} imports {below}, which stands below it"


def test_no_file_outgrows_300_lines():
    long = {name: lines for name, path in modules() if (lines := len(path.read_text("utf-8").splitlines())) > 300}
    assert not long


def test_nothing_that_can_run_code_from_a_file():
    for name, path in modules():
        for node in ast.walk(ast.parse(path.read_text("utf-8"))):
            if isinstance(node, ast.Import | ast.ImportFrom):
                names = {alias.name for alias in node.names} | {getattr(node, "module", None)}
                assert not names & {"pickle", "marshal", "shelve", "dill", "joblib"}, name
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
def test_importing_loads_no_framework(statement):
    heavy = ("keras", "torch", "jax", "tensorflow", "sklearn", "matplotlib")
    program = f"{statement}; import sys; print([name for name in {heavy} if name in sys.modules])"
    answer = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True)
    assert answer.stdout.strip() == "[]"


def test_public_names_are_all_there():
    for name in shiftvit.__all__:
        assert getattr(shiftvit, name) is not None
    with pytest.raises(AttributeError, match="no attribute 'nothing'"):
        _ = shiftvit.nothing


def test_no_module_hides_a_public_function():
    """Importing a submodule binds it in the package, over whatever had its name there."""
    program = (
        "import shiftvit; shiftvit.Run; shiftvit.WarmUpCosine; import shiftvit.training.fit, shiftvit.evaluation;"
        "assert callable(shiftvit.train) and callable(shiftvit.evaluate)"
    )
    subprocess.run([sys.executable, "-c", program], check=True)
    assert not {name.split(".")[0] for name in ORDER} & {*shiftvit.__all__} - {"presets"}
