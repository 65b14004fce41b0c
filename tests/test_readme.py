"""The README's commands and code run as they stand, and its figures are those of the committed results."""

from __future__ import annotations

import itertools
import json
import re
import shlex
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from PIL import Image

import official
import shiftvit
from sample import load_sample, write_tree
from shiftvit import Bundle, recipes
from shiftvit.bundle.stored.find import PRETRAINED
from shiftvit.cli import main
from shiftvit.data import named
from shiftvit.exports import pull
from shiftvit.exports.formats import FORMATS
from shiftvit.presets import PRESETS, Preset

sys.path.append(str(Path(__file__).parents[1] / "benchmarks"))
import document
import exports
import processors

ROOT = Path(__file__).parents[1]
README = (ROOT / "README.md").read_text("utf-8")

# What makes a command of the README small enough for a test.
TINY = ["--set", "model.depths=[1, 1]", "--set", "model.embed_dim=24"]
SMALL = ["--epochs", "1", "--set", "data.validation=50", "--set", "train.batch_size=50", *TINY]

# And of one on a user's own images, of which the test has few.
OWN = ["--epochs", "1", "--set", "train.batch_size=16"]

# These go through a process of their own, as a user's do; the others through its entry point in this one.
PROCESSES = (["predict"], ["info", "runs/mine"])

# What each command says on standard output; what it is to write stands in its arguments.
SAYS = {
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


def blocks(kind):
    return re.findall(rf"```{kind}\n(.*?)```", README, flags=re.DOTALL)


def commands():
    lines = [line.strip() for line in README.splitlines() if line.startswith("    shiftvit ")]
    # A server does not end by itself, and a cluster must be there; test_serve_cli.py and test_bulk.py have them.
    split = [shlex.split(line, comments=True) for line in lines if not re.search("shiftvit serve|--engine ray", line)]
    return [command for place, command in enumerate(split) if command not in split[:place]]  # some stand there twice


def write_faulty_tree(root):
    """Writes a user's images with all that can be wrong: a damaged file, a copy across splits, a rare class."""
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
    """The committed sample, and also what is got where CIFAR-10 is asked for."""
    found = load_sample()
    monkeypatch.setitem(named._LOADERS, "cifar10", lambda: found)
    return found


def ran(arguments, monkeypatch, capfd):
    """Runs the command line and returns its status, standard output and standard error."""
    capfd.readouterr()
    if arguments in PROCESSES:
        answer = subprocess.run([sys.executable, "-m", "shiftvit", *arguments], capture_output=True, text=True)
        return answer.returncode, answer.stdout, answer.stderr
    monkeypatch.setattr(sys, "argv", ["shiftvit", *arguments])
    with pytest.raises(SystemExit) as end:
        main.main()
    return end.value.code, *capfd.readouterr()


def made_small(name, arguments):
    """What is added to a command so that it takes little."""
    if name == "find-rate":
        return [*OWN[2:], *TINY, "--steps", "40"]
    if "--resume" in arguments or name not in {"train", "benchmark"}:
        return []
    if name == "benchmark":
        return ["--repeats", "1", "--batch-size", "1"]
    if "probe" in arguments:
        return []
    if "--data" in arguments:
        return OWN if "finetune" in arguments else [*OWN, *TINY]  # which begins with a whole model
    return SMALL[2:] if "--epochs" in arguments else SMALL


def serve_weights(monkeypatch, folder):
    """Puts a small model with random values in the place of the authors' ImageNet model."""
    small = {"image_shape": (32, 32, 3), "embed_dim": 24, "depths": (1, 1, 1, 1), "mlp_ratio": 2.0}
    monkeypatch.setitem(PRESETS, "shiftvit_tiny_r2", Preset(small, (81.7, "ImageNet-1K, 224x224"), "for tests"))
    monkeypatch.setenv("SHIFTVIT_DATA", str(folder / "data"))
    file = folder / "weights.pth"
    torch.save({"model": official.to_tensors(official.make_state_dict("shiftvit_tiny_r2"))}, file)
    monkeypatch.setattr(pull, "download", lambda _, target, limit: shutil.copy(file, target))  # noqa: ARG005


@pytest.mark.slow
def test_every_command_runs(sample, tmp_path, monkeypatch, capfd, plain_figures):
    del plain_figures
    monkeypatch.chdir(tmp_path)
    Image.fromarray(sample.test.images[0]).save("cat.jpg")
    Path("photos").mkdir()
    Image.fromarray(sample.test.images[1]).save("photos/ship.png")
    write_faulty_tree(Path("pets"))
    serve_weights(monkeypatch, tmp_path)
    seen = set()
    # First what the others use: the pulled model, then the runs.
    for _, *arguments in sorted(commands(), key=lambda command: (command[1] != "pull", command[1] != "train")):
        name = arguments[0]
        seen.add(name)
        arguments = [argument.replace("pets/cat", "pets/train/cat") for argument in arguments]
        if arguments[:2] == ["data", "cifar10"]:
            continue  # the download has its own tests
        if "--resume" in arguments:
            # Stands for a run that was killed before its first checkpoint.
            (Path(arguments[-1]) / "metrics.json").unlink()
            for state in (Path(arguments[-1]) / "checkpoints").iterdir():
                state.unlink()
        arguments += made_small(name, arguments)
        status, said, errors = ran(arguments, monkeypatch, capfd)
        # The planted faults: a warning for who checks, and no obstacle for who trains.
        faulty = arguments[:3] == ["data", "check", "pets/"]
        assert status == (3 if faulty else 0), (arguments, errors)
        for option, place in itertools.pairwise(arguments):
            if option in {"--out", "--figure", "--grid"}:
                assert Path(place).exists(), arguments
                said += Path(place).read_text() if place.endswith(".csv") else ""
        assert SAYS[name] in said, (arguments, said)
        if "cat.jpg" in arguments and "shiftvit_tiny_r2" not in arguments:
            assert "cat" in said.split()
        if faulty:
            for word in ("broken.jpg", "copy.png", "imbalance"):
                assert word in said, said
        if "runs/pets" in arguments and name == "train":
            assert "broken.jpg" in errors
    assert seen == SAYS.keys()


@pytest.mark.slow
def test_the_python_code_runs(sample, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    serve_weights(monkeypatch, tmp_path)
    pull.pull_published("shiftvit_tiny_r2")
    (code,) = blocks("python")
    small = '"train.epochs": 3'
    assert small in code
    code = code.replace(small, '"train.epochs": 1, "data.validation": 50, "train.batch_size": 50')
    code = "\n".join(line for line in code.splitlines() if ".pth" not in line)  # the authors' file, not ours to ship
    names = {"images": sample.test.images[:4]}
    exec(compile(code, "README.md", "exec"), names)
    assert names["probabilities"].shape == (4, 10)
    assert list(names["backbone"].pyramid_outputs) == ["P2", "P3", "P4", "P5"]


def read_result(kind, text):
    """Returns the name and the content of the only result of a kind that a text names."""
    (name,) = set(re.findall(rf"benchmarks/results/({kind}-[\w.-]+\.json)", text))
    return name, json.loads((ROOT / "benchmarks" / "results" / name).read_text("utf-8"))


def test_every_figure_stands_in_a_committed_result():
    rows = [line for line in README.splitlines() if line.startswith("| ") and ".json" in line]
    assert rows
    for row in rows:
        _, result = read_result(r"\w+", row)
        assert f"n = {result['n']}" in row, row
        assert f"`{result['command']}`" in row, row
        if "training" in result:  # a trained model, measured as it is
            assert f"{100 * result['test_top1']:.2f} %" in row, row
            assert f"{result['training']['train']['seconds']:.0f} s" in row, row
            continue
        assert f"{100 * result['test_top1_mean']:.2f} %" in row, row
        assert f"{result['train_seconds_mean']:.0f} s" in row, row
        if result["n"] > 1:
            assert f"± {100 * result['test_top1_std']:.2f}" in row, row
        environment = result["environment"]
        used = environment["processor"] if environment["device"] == "cpu" else environment["device"]
        assert re.split(r" 64-Core| \d+GB", used)[0] in README


def test_the_packaged_model_is_what_its_result_says():
    name, result = read_result("pretrained", README)
    folder = PRETRAINED / "cifar10"
    assert result["bytes"] == {path.name: path.stat().st_size for path in folder.iterdir()}
    assert sum(result["bytes"].values()) <= 8_000_000
    bundle = Bundle.load("cifar10")
    assert bundle.metrics == result["training"]
    assert sum(value.size for value in bundle.weights.values()) == result["parameters"]
    head = recipes.read_head("cifar10_long")
    assert f"{100 * result['test_top1']:.2f} % test top-1, n = {result['n']}" in head
    assert name in head


def test_what_finetuning_gives_is_the_committed_result():
    head = recipes.read_head("finetune")
    _, result = read_result("finetune", head)
    for way in ("fine-tuned", "from scratch, four times the epochs"):
        found = result["test_top1"][way]
        assert f"{100 * found['mean']:.2f} ± {100 * found['std']:.2f} %" in head
    assert f"n = {result['n']}" in head


def test_what_a_large_folder_takes_is_the_committed_result():
    text = (ROOT / "docs" / "training.md").read_text("utf-8")
    _, result = read_result("streaming", text)
    assert result["files"] == 100_000
    assert f"`{result['command']}`" in text
    for part in ("check", "train", "evaluate"):
        assert f"{result[part]['peak_megabytes']:,.0f} MB" in text
        assert result[part]["peak_megabytes"] < 2000
    for key in ("images_per_second", "input_images_per_second"):
        assert f"{result['epoch'][key]:,.0f} images/s" in text


def test_the_table_of_exports_is_the_committed_result():
    text = (ROOT / "docs" / "export.md").read_text("utf-8")
    _, result = read_result("exports", text)
    assert exports.make_table(result) in text
    assert [(row["format"], row["precision"]) for row in result["exports"]] == [
        (name, precision) for name, row in FORMATS.items() for precision in row.precisions
    ]


def test_the_table_of_processors_is_the_committed_result():
    text = (ROOT / "docs" / "export.md").read_text("utf-8")
    name, result = read_result("processors", text)
    assert processors.make_table(result, name) in text
    for row in result["exports"]:
        if row["examined"]:
            assert row["same_class"] >= 0.99
            assert min(row["top1_here"], row["top1_emulated"]) >= result["top1_model"] - 0.005


def test_the_price_of_safe_int8_is_the_committed_one():
    text = (ROOT / "docs" / "export.md").read_text("utf-8")
    name, result = read_result("rates", text)
    table = text.split(name)[1].split("\n## ")[0]
    rows = [line for line in table.splitlines() if line.startswith("| ") and "export" not in line]
    assert len(rows) == len(result["exports"])
    for row in result["exports"]:
        rates = " | ".join(f"{row[f'batch_{size}']['images_per_second']:,.0f}" for size in (1, 64))
        assert any(line.endswith(f"| {rates} |") for line in rows), row


def test_the_agreement_with_the_published_models_is_the_committed_one():
    backends = read_result("parity", README)[1]["backends"]
    assert [run["backend"] for run in backends] == ["torch", "jax", "tensorflow"]
    for reference in ("official_gn1", "official_bn_relu", "keras_example"):
        figures = [f"{run[reference]['logits']:.0e}".replace("e-0", "e-") for run in backends]
        assert " / ".join(figures) in README, reference


def test_the_tables_of_performance_are_the_committed_results():
    text = document.DOCUMENT.read_text("utf-8")
    assert document.update(text) == text


def test_nothing_in_a_document_waits_to_be_filled_in():
    for page in [ROOT / "README.md", *ROOT.glob("docs/*.md")]:
        assert "@@" not in page.read_text("utf-8"), page.name


def test_links_to_our_own_files_are_whole():
    for page in [ROOT / "README.md", *ROOT.glob("docs/*.md"), ROOT / "CONTRIBUTING.md"]:
        for target in re.findall(r"\]\((?!https?:)([^)#]+)", page.read_text("utf-8")):
            assert (page.parent / target).exists(), (page.name, target)


def test_the_version_is_the_same_everywhere():
    version = shiftvit.__version__
    assert f'version = "{version}"' in (ROOT / "pyproject.toml").read_text("utf-8")
    assert f"version: {version}" in (ROOT / "CITATION.cff").read_text("utf-8")
    assert f"## [{version}]" in (ROOT / "CHANGELOG.md").read_text("utf-8")
