"""The README's commands and code run as written, and its figures match the committed results."""

from __future__ import annotations

import itertools
import json
import re
import shlex
import shutil
import subprocess
import sys
import tomllib
from pathlib import Path

import pytest
import torch
from packaging.version import Version
from PIL import Image

import official
import shiftvit
from exported import run_step
from sample import load_sample, write_tree
from shiftvit import Bundle, recipes
from shiftvit.bundle.stored.find import PRETRAINED
from shiftvit.cli import main
from shiftvit.data import named
from shiftvit.exports import export, pull
from shiftvit.exports.formats import FORMATS
from shiftvit.presets import PRESETS, Preset

sys.path.append(str(Path(__file__).parents[1] / "benchmarks"))
import document
import exports
import processors

ROOT = Path(__file__).parents[1]
README = (ROOT / "README.md").read_text("utf-8")

# Arguments that make a training command of the README small enough for a test.
TINY_MODEL = ["--set", "model.depths=[1, 1]", "--set", "model.embed_dim=24"]
SMALL_TRAINING = ["--epochs", "1", "--set", "data.validation=50", "--set", "train.batch_size=50", *TINY_MODEL]

# The same for a training on the user's own images, of which the test has few.
SMALL_OWN_DATA = ["--epochs", "1", "--set", "train.batch_size=16"]

# These commands run in a process of their own; the others run through the entry point in this process.
IN_A_PROCESS = (["predict"], ["info", "runs/mine"])

# A part of what each command prints on standard output. The files it must write are in its arguments.
EXPECTED_OUTPUT = {
    "predict": "label",
    "pull": "bundle: ",
    "embed": "256 features of 1 image",
    "train": "(model in bundle/, figures in figures/)",
    "find-rate": "--set train.optimizer.learning_rate=",
    "evaluate": "top-1 between",
    "explain": "Grad-CAM peak",
    "report": "wrote runs/pets/report.html",
    "export": "-onnx-f32",
    "pack": "bundle: mine.zip",
    "benchmark": "images per second",
    "info": "parameters",
    "recipes": "cifar10_long",
    "data": "pets",
}


def find_code_blocks(kind):
    return re.findall(rf"```{kind}\n(.*?)```", README, flags=re.DOTALL)


def list_commands():
    lines = [line.strip() for line in README.splitlines() if line.startswith("    shiftvit ")]
    # A server does not end by itself, and Ray needs a cluster; test_serve_cli.py and test_bulk.py test these.
    split = [shlex.split(line, comments=True) for line in lines if not re.search("shiftvit serve|--engine ray", line)]
    # Some commands appear twice.
    return [command for place, command in enumerate(split) if command not in split[:place]]


def write_faulty_tree(root):
    """Writes images of a user with typical faults: a damaged file, a copy across splits, a rare class."""
    write_tree(root / "train")
    for number, path in enumerate(sorted((root / "train" / "ship").iterdir())):
        if number > 3:
            path.unlink()
    (root / "train" / "cat" / "broken.jpg").write_bytes((root / "train" / "cat" / "001.jpg").read_bytes()[:300])
    for name in ("cat", "dog", "ship"):
        (root / "test" / name).mkdir(parents=True)
        for number in range(6):
            moved = sorted((root / "train" / name).glob("0*.png"))[-1]
            if name != "ship" or number < 1:
                moved.rename(root / "test" / name / moved.name)
    shutil.copy(root / "train" / "dog" / "000.png", root / "test" / "dog" / "copy.png")


@pytest.fixture
def sample(monkeypatch):
    """The committed sample, which also replaces CIFAR-10."""
    found = load_sample()
    monkeypatch.setitem(named._LOADERS, "cifar10", lambda: found)
    return found


@pytest.fixture
def shared_steps(monkeypatch):
    """Runs the steps of exports in processes that other exports use too; each would import the frameworks."""
    monkeypatch.setattr(export, "_run_step", run_step)


def run_command(arguments, monkeypatch, capfd):
    """Runs a command and returns its exit status, standard output and standard error."""
    capfd.readouterr()
    if arguments in IN_A_PROCESS:
        answer = subprocess.run([sys.executable, "-m", "shiftvit", *arguments], capture_output=True, text=True)
        return answer.returncode, answer.stdout, answer.stderr
    monkeypatch.setattr(sys, "argv", ["shiftvit", *arguments])
    with pytest.raises(SystemExit) as end:
        main.main()
    return end.value.code, *capfd.readouterr()


def shrink_arguments(name, arguments):
    """Returns arguments to add to a command so that it takes little time."""
    if name == "find-rate":
        return [*SMALL_OWN_DATA[2:], *TINY_MODEL, "--steps", "40"]
    if "--resume" in arguments or name not in {"train", "benchmark"}:
        return []
    if name == "benchmark":
        return ["--repeats", "1", "--batch-size", "1"]
    if "probe" in arguments:
        return []
    if "--data" in arguments:
        # Fine-tuning starts from a model whose size is given.
        return SMALL_OWN_DATA if "finetune" in arguments else [*SMALL_OWN_DATA, *TINY_MODEL]
    return SMALL_TRAINING[2:] if "--epochs" in arguments else SMALL_TRAINING


def serve_weights(monkeypatch, folder):
    """Replaces the authors' ImageNet model by a small one with random weights."""
    small = {"image_shape": (32, 32, 3), "embed_dim": 24, "depths": (1, 1, 1, 1), "mlp_ratio": 2.0}
    monkeypatch.setitem(PRESETS, "shiftvit_tiny_r2", Preset(small, (81.7, "ImageNet-1K, 224x224"), "for tests"))
    monkeypatch.setenv("SHIFTVIT_DATA", str(folder / "data"))
    file = folder / "weights.pth"
    torch.save({"model": official.to_tensors(official.make_state_dict("shiftvit_tiny_r2"))}, file)
    monkeypatch.setattr(pull, "download", lambda _, target, limit: shutil.copy(file, target))  # noqa: ARG005


@pytest.mark.slow
@pytest.mark.usefixtures("shared_steps")
def test_commands_run(sample, tmp_path, monkeypatch, capfd, plain_figures):
    del plain_figures
    monkeypatch.chdir(tmp_path)
    Image.fromarray(sample.test.images[0]).save("cat.jpg")
    Path("photos").mkdir()
    Image.fromarray(sample.test.images[1]).save("photos/ship.png")
    write_faulty_tree(Path("pets"))
    serve_weights(monkeypatch, tmp_path)
    seen = set()
    # Others need the pulled model and the runs, so these commands come first.
    for _, *arguments in sorted(list_commands(), key=lambda command: (command[1] != "pull", command[1] != "train")):
        name = arguments[0]
        seen.add(name)
        arguments = [argument.replace("pets/cat", "pets/train/cat") for argument in arguments]
        if arguments[:2] == ["data", "cifar10"]:
            continue  # other files test the download
        if "--resume" in arguments:
            # Now it looks like a run that was killed before its first checkpoint.
            (Path(arguments[-1]) / "metrics.json").unlink()
            for state in (Path(arguments[-1]) / "checkpoints").iterdir():
                state.unlink()
        arguments += shrink_arguments(name, arguments)
        status, output, errors = run_command(arguments, monkeypatch, capfd)
        # The faulty images: `data check` warns of them, and training goes on without them.
        faulty = arguments[:3] == ["data", "check", "pets/"]
        assert status == (3 if faulty else 0), (arguments, errors)
        for option, place in itertools.pairwise(arguments):
            if option in {"--out", "--figure", "--grid"}:
                assert Path(place).exists(), arguments
                output += Path(place).read_text() if place.endswith(".csv") else ""
        assert EXPECTED_OUTPUT[name] in output, (arguments, output)
        if "cat.jpg" in arguments and "shiftvit_tiny_r2" not in arguments:
            assert "cat" in output.split()
        if faulty:
            for word in ("broken.jpg", "copy.png", "imbalance"):
                assert word in output, output
        if "runs/pets" in arguments and name == "train":
            assert "broken.jpg" in errors
    assert seen == EXPECTED_OUTPUT.keys()


@pytest.mark.slow
@pytest.mark.usefixtures("shared_steps")
def test_python_code_runs(sample, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    serve_weights(monkeypatch, tmp_path)
    pull.pull_published("shiftvit_tiny_r2")
    (code,) = find_code_blocks("python")
    small = '"train.epochs": 3'
    assert small in code
    code = code.replace(small, '"train.epochs": 1, "data.validation": 50, "train.batch_size": 50')
    # Lines with a .pth file need the authors' weights, which are not in this repository.
    code = "\n".join(line for line in code.splitlines() if ".pth" not in line)
    names = {"images": sample.test.images[:4]}
    exec(compile(code, "README.md", "exec"), names)
    assert names["probabilities"].shape == (4, 10)
    assert list(names["backbone"].pyramid_outputs) == ["P2", "P3", "P4", "P5"]


def read_result(kind, text):
    """Returns the name and the content of the one result of this kind that a text names."""
    (name,) = set(re.findall(rf"benchmarks/results/({kind}-[\w.-]+\.json)", text))
    return name, json.loads((ROOT / "benchmarks" / "results" / name).read_text("utf-8"))


def test_figures_match_committed_results():
    rows = [line for line in README.splitlines() if line.startswith("| ") and ".json" in line]
    assert rows
    for row in rows:
        _, result = read_result(r"\w+", row)
        assert f"n = {result['n']}" in row, row
        assert f"`{result['command']}`" in row, row
        if "training" in result:  # measured on one trained model
            assert f"{100 * result['test_top1']:.2f}%" in row, row
            assert f"{result['training']['train']['seconds']:.0f} s" in row, row
            continue
        assert f"{100 * result['test_top1_mean']:.2f}%" in row, row
        assert f"{result['train_seconds_mean']:.0f} s" in row, row
        if result["n"] > 1:
            assert f"± {100 * result['test_top1_std']:.2f}" in row, row
        environment = result["environment"]
        used = environment["processor"] if environment["device"] == "cpu" else environment["device"]
        assert re.split(r" 64-Core| \d+GB", used)[0] in README


def test_packaged_model_matches_its_result():
    name, result = read_result("pretrained", README)
    folder = PRETRAINED / "cifar10"
    assert result["bytes"] == {path.name: path.stat().st_size for path in folder.iterdir()}
    assert sum(result["bytes"].values()) <= 8_000_000
    bundle = Bundle.load("cifar10")
    assert bundle.metrics == result["training"]
    assert sum(value.size for value in bundle.weights.values()) == result["parameters"]
    head = recipes.read_head("cifar10_long")
    assert f"{100 * result['test_top1']:.2f}% test top-1, n = {result['n']}" in head
    assert name in head


def test_finetuning_figures_match_the_committed_result():
    head = recipes.read_head("finetune")
    _, result = read_result("finetune", head)
    for way in ("fine-tuned", "from scratch, four times the epochs"):
        found = result["test_top1"][way]
        assert f"{100 * found['mean']:.2f} ± {100 * found['std']:.2f}%" in head
    assert f"n = {result['n']}" in head


def test_figures_of_a_large_folder_match_the_committed_result():
    text = (ROOT / "docs" / "training.md").read_text("utf-8")
    _, result = read_result("streaming", text)
    assert result["files"] == 100_000
    assert f"`{result['command']}`" in text
    for part in ("check", "train", "evaluate"):
        assert f"{result[part]['peak_megabytes']:,.0f} MB" in text
        assert result[part]["peak_megabytes"] < 2000
    for key in ("images_per_second", "input_images_per_second"):
        assert f"{result['epoch'][key]:,.0f} images/s" in text


def test_export_table_matches_the_committed_result():
    text = (ROOT / "docs" / "export.md").read_text("utf-8")
    _, result = read_result("exports", text)
    assert exports.make_table(result) in text
    assert [(row["format"], row["precision"]) for row in result["exports"]] == [
        (name, precision) for name, row in FORMATS.items() for precision in row.precisions
    ]


def test_versions_of_runtimes_are_the_required_and_the_tested_ones():
    text = (ROOT / "docs" / "export.md").read_text("utf-8")
    rows = re.findall(r"^\| `(.*)` \| `(.*)` \| (.*) \| (.*) \|$", text.split("<!-- versions -->")[1], re.MULTILINE)
    assert [name for name, *_ in rows] == [*FORMATS]
    project = tomllib.loads((ROOT / "pyproject.toml").read_text("utf-8"))["project"]
    required = {*project["dependencies"], *itertools.chain(*project["optional-dependencies"].values())}
    tested = (ROOT / "constraints.txt").read_text("utf-8").splitlines()
    for name, package, least, exact in rows:
        assert package.replace("-", "_") in {FORMATS[name].runtime, *FORMATS[name].modules}
        assert [line for line in required if re.split("[^a-z-]", line)[0] == package] == [f"{package}>={least}"]
        assert f"{package}=={exact}" in tested


def test_processor_table_matches_the_committed_result():
    text = (ROOT / "docs" / "export.md").read_text("utf-8")
    name, result = read_result("processors", text)
    assert processors.make_table(result, name) in text
    for row in result["exports"]:
        if row["examined"]:
            assert row["same_class"] >= 0.99
            assert min(row["top1_here"], row["top1_emulated"]) >= result["top1_model"] - 0.005


def test_int8_rates_match_the_committed_result():
    text = (ROOT / "docs" / "export.md").read_text("utf-8")
    name, result = read_result("rates", text)
    table = text.split(name)[1].split("\n## ")[0]
    rows = [line for line in table.splitlines() if line.startswith("| ") and "export" not in line]
    assert len(rows) == len(result["exports"])
    for row in result["exports"]:
        rates = " | ".join(f"{row[f'batch_{size}']['images_per_second']:,.0f}" for size in (1, 64))
        assert any(line.endswith(f"| {rates} |") for line in rows), row


def test_parity_figures_match_the_committed_result():
    backends = read_result("parity", README)[1]["backends"]
    assert [run["backend"] for run in backends] == ["torch", "jax", "tensorflow"]
    for reference in ("official_gn1", "official_bn_relu", "keras_example"):
        figures = [f"{run[reference]['logits']:.0e}".replace("e-0", "e-") for run in backends]
        assert "{}, {} and {} (".format(*figures) in " ".join(README.split()), reference


def test_performance_tables_match_the_committed_results():
    text = document.DOCUMENT.read_text("utf-8")
    assert document.update(text) == text


def test_documents_have_no_placeholders():
    for page in [ROOT / "README.md", *ROOT.glob("docs/*.md")]:
        assert "@@" not in page.read_text("utf-8"), page.name


def test_links_to_own_files_exist():
    for page in [ROOT / "README.md", *ROOT.glob("docs/*.md"), ROOT / "CONTRIBUTING.md"]:
        for target in re.findall(r"\]\((?!https?:)([^)#]+)", page.read_text("utf-8")):
            assert (page.parent / target).exists(), (page.name, target)


def test_version_is_the_same_everywhere():
    version = Version(shiftvit.__version__)
    assert f'version = "{version}"' in (ROOT / "pyproject.toml").read_text("utf-8")
    newest, *older = re.findall(r"^## \[(.*)\]", (ROOT / "CHANGELOG.md").read_text("utf-8"), flags=re.MULTILINE)
    released = older[0] if newest == "Unreleased" else newest
    assert f"\nversion: {released}\n" in (ROOT / "CITATION.cff").read_text("utf-8")
    # A checkout with changes has the version of a development release, so that it can be told from the last release.
    assert version.is_devrelease == (newest == "Unreleased")
    assert (version > Version(released)) if version.is_devrelease else (version == Version(released))
