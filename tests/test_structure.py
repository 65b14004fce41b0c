"""The house's rules: imports point down, importing costs no framework, nothing unsafe is used."""

from __future__ import annotations

import ast
import re
import subprocess
import sys
from pathlib import Path

import pytest

import shiftvit

SOURCE = Path(shiftvit.__file__).parent

# The rooms from the top floor down, and the files of each in the same order: an import points down, never up. A room is
# a folder, "" the package's own. There is a line for each in docs/architecture.md.
HOUSE = [
    ("", "__main__"),
    (
        "cli",
        "main benchmark show data hub demo export explain embed predict rates serve train bulk rows inputs settings "
        "tables",
    ),
    ("", "benchmark"),
    ("serve", "server demo app about protocol classify model heat bodies guard measures batching answers limits log"),
    ("exports", "pull driver comparison gate saturation build any_size channels_first onnx_graphs formats"),
    ("inference", "bulk worker embed explainer predict blocks storage sources runtimes"),
    (
        "training",
        "rate_finder fit probe features epoch results runfolder device memory setup parts start callbacks checkpoint "
        "optimizer torch_steps loss schedule groups torch_group jax_group place processes",
    ),
    ("evaluation", "report evaluate images places explain features logits metrics corruptions"),
    ("bundle", "describe metadata hub session official bundle card"),
    ("model", "convert tensors network blocks primitives products shift"),
    ("bundle.stored", "find published manifest container"),
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
    ("", "preprocess threads environment backend presets config replacement download npm files console errors"),
]
ROOMS = [room for room, _ in HOUSE if room]
# Each module -> its floor, counted downward, and its place on it; a room's own `__init__` has the floor alone.
MODULES = {
    f"{room}.{name}".removeprefix("."): (floor, place)
    for floor, (room, names) in enumerate(HOUSE)
    for place, name in enumerate(names.split())
}
FACES = {room: floor for floor, (room, _) in enumerate(HOUSE) if room}


def modules():
    for path in sorted(SOURCE.rglob("*.py")):
        name = ".".join(path.relative_to(SOURCE).with_suffix("").parts)
        yield name.removesuffix("__init__").removesuffix("."), path


def imports(path):
    """Yields every import of ours in a file, those within functions too."""
    for node in ast.walk(ast.parse(path.read_text("utf-8"))):
        if isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{path} imports by a relative name"
            if node.module.split(".")[0] == "shiftvit":
                inner = node.module.removeprefix("shiftvit").removeprefix(".")
                for alias in node.names:
                    full = f"{inner}.{alias.name}".removeprefix(".")
                    yield full if full in MODULES or full in FACES else inner
        elif isinstance(node, ast.Import):
            for alias in node.names:
                if alias.name.split(".")[0] == "shiftvit":
                    yield alias.name.removeprefix("shiftvit").removeprefix(".")


def points_down(name, target):
    """Whether a module, or a room's `__init__`, may import another one."""
    if name in MODULES and target in MODULES:
        return MODULES[target] > MODULES[name]
    above, below = (FACES[each] if each in FACES else MODULES[each][0] for each in (name, target))
    return below >= above


def test_every_module_has_its_place():
    assert {name for name, _ in modules()} == {*MODULES, *FACES, ""}
    assert len(ROOMS) == len(set(ROOMS))


def test_imports_point_down():
    for name, path in modules():
        if name:  # the package's own `__init__` names the public names of every floor
            up = [target for target in imports(path) if target and not points_down(name, target)]
            assert not up, f"{name} imports {up}, which does not stand below it"


def test_what_points_down_and_what_does_not():
    assert points_down("cli.main", "errors")
    assert points_down("data.load", "data.find.splits")
    assert points_down("training.fit", "training.loss")
    assert points_down("recipes.recipe", "recipes")
    assert not points_down("data.find.splits", "data.load")
    assert not points_down("data.decode.images", "data.find.dataset")
    assert not points_down("figures.style", "evaluation.metrics")
    assert not points_down("model", "training.fit")
    assert not points_down("training.loss", "training.fit")
    assert not points_down("config", "recipes")
    assert not points_down("errors", "errors")


def test_the_plan_of_the_house_has_every_room_and_file():
    """The table in docs/architecture.md, row by row."""
    text = (Path(__file__).parents[1] / "docs" / "architecture.md").read_text("utf-8")
    table = text.split("\n## The house\n")[1].split("\n## ")[0]
    rows = [line.split("|")[1:3] for line in table.splitlines() if line.startswith("| ")][1:]
    rooms = [room.strip().strip("`/").replace("/", ".") for room, _ in rows]
    assert [room if room in FACES else "" for room in rooms] == [room for room, _ in HOUSE]
    known = {name for _, names in HOUSE for name in names.split()}
    for (room, told), (_, names) in zip(rows, HOUSE, strict=True):
        assert {*re.findall(r"`(\w+)`", told)} & known == {*names.split()}, room


def test_no_file_outgrows_300_lines():
    long = {name: lines for name, path in modules() if (lines := len(path.read_text("utf-8").splitlines())) > 300}
    assert not long


def test_nothing_that_can_run_code_from_a_file():
    for name, path in modules():
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
def test_importing_loads_no_framework(statement):
    heavy = ("keras", "torch", "jax", "tensorflow", "sklearn", "matplotlib", "jinja2")
    program = f"{statement}; import sys; print([name for name in {heavy} if name in sys.modules])"
    answer = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True)
    assert answer.stdout.strip() == "[]"


def test_public_names_are_all_there():
    for name in shiftvit.__all__:
        assert getattr(shiftvit, name) is not None
    assert shiftvit.bundle.Bundle is shiftvit.Bundle  # where it was when bundle/ was a file
    with pytest.raises(AttributeError, match="no attribute 'nothing'"):
        _ = shiftvit.nothing


@pytest.mark.slow
def test_no_module_hides_a_public_function():
    """Importing a submodule binds it in the package, over whatever had its name there."""
    program = (
        "import shiftvit; shiftvit.Run; shiftvit.WarmUpCosine; import shiftvit.training.fit, shiftvit.evaluation;"
        "assert callable(shiftvit.train) and callable(shiftvit.evaluate)"
    )
    subprocess.run([sys.executable, "-c", program], check=True)
    assert not {name.split(".")[0] for name in [*MODULES, *FACES]} & {*shiftvit.__all__} - {"presets"}
