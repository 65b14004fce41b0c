"""The command line in a process of its own, as users run it."""

from __future__ import annotations

import json
import os
import re
import shlex
import subprocess
import sys
import tomllib
from importlib import metadata
from pathlib import Path

import pytest
import typer
from typer.testing import CliRunner

import command_line
from pace import measure_child, measure_import
from sample import load_sample
from shiftvit import Recipe, train
from shiftvit.backend import BACKENDS, KERAS_DEFAULTS, ensure_backend
from shiftvit.cli.main import app
from shiftvit.cli.tables import show_pairs
from shiftvit.errors import ShiftViTError, suggest, suggest_install
from shiftvit.exports.formats import FORMATS
from shiftvit.inference.runtimes import RUNTIMES

ROOT = Path(__file__).parents[1]


def shiftvit(*arguments, alone=False, **environment):
    """Runs the command; `alone` as a process of its own, which may have an environment of its own."""
    if alone:
        command = [sys.executable, "-m", "shiftvit", *arguments]
        environment = {**os.environ, **environment}
        return subprocess.run(command, capture_output=True, text=True, env=environment, timeout=120)
    answer = command_line.run(*arguments, cwd=Path.cwd())
    answer.stdout, answer.stderr = answer.stdout.decode(), answer.stderr.decode()
    return answer


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    settings = {
        "model": {"patch_size": 4, "embed_dim": 24, "depths": [1, 1], "norm": "layer", "drop_path": 0.0},
        "data": {"validation": 50},
        "train": {"epochs": 1, "batch_size": 50},
    }
    return train(Recipe.model_validate(settings), out=tmp_path_factory.mktemp("cli") / "run", data=load_sample()).path


def test_help_is_quick_and_shows_the_commands():
    answer = shiftvit("--help", alone=True)
    assert answer.returncode == 0
    for command in ("predict", "train", "evaluate", "export", "pack", "benchmark", "info", "data", "recipes"):
        assert f"  {command} " in answer.stdout
    assert measure_child(lambda: shiftvit("--help", alone=True)) < 2 * measure_import(
        "typer", "rich.console", "rich.table"
    )


def commands(group, prefix=()):
    for name, command in group.commands.items():
        yield (*prefix, name), command
        if hasattr(command, "commands"):
            yield from commands(command, (*prefix, name))


def test_help_fits_80_columns_and_nothing_is_cut(monkeypatch):
    monkeypatch.setenv("COLUMNS", "80")
    whole = typer.main.get_command(app)
    for name, command in [((), whole), *commands(whole)]:
        text = CliRunner().invoke(app, [*name, "--help"]).stdout
        assert max(map(len, text.splitlines())) <= 80, name
        assert "..." not in text.replace("[ARGS]...", "").replace("]...", ""), name
        for line in (command.epilog or "").splitlines()[2:]:
            assert f"  {line}\n" in text, "an example has its own line"


def test_long_values_wrap_between_words(monkeypatch, capsys):
    monkeypatch.setenv("COLUMNS", "40")
    monkeypatch.setattr(sys.stdout, "isatty", lambda: True)
    path = "/a/very/long/path/" + "x" * 60
    show_pairs({"path": path, "classes": "cat, dog, ship, truck, horse, frog"})
    lines = capsys.readouterr().out.splitlines()
    assert lines == [f"path     {path}", "classes  cat, dog, ship, truck, horse,", "         frog"]


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["trian"], "there is no command 'trian'; did you mean 'train'?"),
        (["train", "--recpe", "quick"], "there is no option '--recpe'; did you mean '--recipe'?"),
        (["train", "--recipe", "quik"], "there is no recipe 'quik'; did you mean 'quick'?"),
        (["train", "--recipe", "nowhere.toml"], "cannot read the recipe 'nowhere.toml'"),
        (["train", "--set", "train.epoch=3"], "unknown setting 'train.epoch'; did you mean 'epochs'?"),
        (["train", "--set", "train.epochs"], "has no value; write --set KEY=VALUE"),
        (["train", "--epochs", "-1"], "train.epochs = -1"),
        (["train", "--epochs", "many"], "'--epochs'"),
        (["train", "--data", "cifer10", "--out", "unused"], "there is no data set 'cifer10'; did you mean 'cifar10'?"),
        (["train", "--resume", "nowhere", "--recipe", "quick"], "--recipe cannot be given"),
        (["train", "--resume", "nowhere"], "'nowhere' is not a run folder"),
        (["evaluate", "nowhere"], "'nowhere' does not exist"),
        (["evaluate"], "Missing argument"),
        (["info", "shiftvit_tiny_r3"], "is neither a name nor a path; did you mean 'shiftvit_tiny_r"),
        (["data", "cifar10", "--from", "nowhere.tar.gz"], "nowhere.tar.gz"),
    ],
)
def test_a_mistake_is_one_line_and_status_2(arguments, message, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    answer = shiftvit(*arguments)
    assert answer.returncode == 2
    lines = answer.stderr.strip().splitlines()
    assert message in lines[-1]
    assert len(lines) == 1, answer.stderr
    assert not list(tmp_path.iterdir())


def test_debug_shows_the_traceback():
    answer = shiftvit("--debug", "info", "nothing")
    assert answer.returncode == 2
    assert "Traceback" in answer.stderr


def test_info_of_a_preset_and_of_a_run(run):
    answer = shiftvit("info", "shiftvit_tiny_r2")
    assert "28,566,664" in answer.stdout
    assert "4,581.6 M" in answer.stdout
    found = json.loads(shiftvit("info", str(run), "--json").stdout)
    assert [row["resolution"] for row in found["stages"]][:3] == ["8x8", "8x8", "4x4"]
    assert found["notes"]["test"].startswith("top-1 ")
    printed = shiftvit("info", str(run)).stdout.splitlines()
    assert printed[0] == f"Model in {run / 'bundle'}"
    assert "preprocessing  (pixels - mean) / std with pixels from 0 to 255, mean 0, std 255" in printed
    assert shiftvit("info").stdout.count("shiftvit_") == 12


@pytest.mark.slow
def test_evaluate_prints_what_the_run_recorded(run, tmp_path):
    """The data set is the sample, put where the cache would be looked for by a stand-in module."""
    (tmp_path / "sitecustomize.py").write_text(
        "import sample\nfrom shiftvit.data import named\nnamed._LOADERS = {'cifar10': sample.load_sample}\n"
    )
    tests = str(Path(__file__).parent)
    answer = shiftvit("evaluate", str(run), "--json", alone=True, PYTHONPATH=os.pathsep.join([str(tmp_path), tests]))
    assert answer.returncode == 0, answer.stderr
    found, recorded = json.loads(answer.stdout), json.loads((run / "metrics.json").read_text())["test"]
    assert {key: found[key] for key in recorded} == recorded


def test_recipes_and_version():
    answer = shiftvit("recipes")
    assert "shiftvit train --recipe quick" in answer.stdout
    assert shiftvit("--version").stdout.startswith("shiftvit 0.")
    assert shiftvit("data").returncode == 2


def test_a_missing_package_is_named_in_the_version_that_shiftvit_needs(monkeypatch):
    """Whether shiftvit came from a checkout, a wheel or the index: the command does not look for shiftvit."""
    project = tomllib.loads((ROOT / "pyproject.toml").read_text("utf-8"))["project"]
    needed = {
        *project["dependencies"],
        *(line for extra in project["optional-dependencies"].values() for line in extra),
    }
    for module in (*RUNTIMES, *(name for row in FORMATS.values() for name in row.modules), *BACKENDS):
        module = RUNTIMES[module].module if module in RUNTIMES else module
        (_, _, package) = shlex.split(suggest_install(module))
        assert package in needed, module
    assert suggest_install("pyarrow", "ai_edge_litert") == "pip install 'pyarrow>=18.0' 'ai-edge-litert>=1.4'"
    monkeypatch.setattr(metadata, "requires", lambda name: metadata.metadata(f"no-{name}"))
    assert suggest_install("pyarrow", "ai_edge_litert") == "pip install pyarrow ai_edge_litert"


def test_nothing_tells_to_install_shiftvit_from_the_index():
    """It is not there before the first release."""
    texts = [
        *ROOT.glob("*.md"),
        *(ROOT / "docs").rglob("*.md"),
        *(ROOT / "src").rglob("*.py"),
        *(ROOT / "src").rglob("*.md"),
    ]
    told = [path for path in texts if re.search(r"pip install[^\n]*\bshiftvit\[", path.read_text("utf-8"))]
    assert not told


@pytest.mark.parametrize(
    ("environment", "installed", "configured", "expected"),
    [
        ({}, ["torch", "jax"], None, "torch"),
        ({}, ["jax", "tensorflow"], None, "jax"),
        ({}, ["tensorflow"], None, "tensorflow"),
        ({}, ["torch", "jax"], "jax", "jax"),
        ({}, ["torch"], "tensorflow", "torch"),
        ({}, ["torch", "tensorflow"], "tensorflow", "tensorflow"),
        ({}, ["torch", "tensorflow"], "as Keras writes it", "torch"),
        ({"KERAS_BACKEND": "tensorflow"}, ["torch", "tensorflow"], "jax", "tensorflow"),
        ({"KERAS_BACKEND": "jax"}, ["torch"], None, "'jax' is not installed; pip install 'jax>="),
        ({"KERAS_BACKEND": "torhc"}, ["torch"], None, "did you mean 'torch'"),
        ({}, [], None, "none is installed; choose one: pip install 'torch>=2.8', or pip install 'jax>="),
    ],
)
def test_the_backend_that_is_chosen(environment, installed, configured, expected, monkeypatch, tmp_path):
    monkeypatch.delitem(sys.modules, "keras")
    monkeypatch.delenv("KERAS_BACKEND", raising=False)
    monkeypatch.setenv("KERAS_HOME", str(tmp_path))
    for key, value in environment.items():
        monkeypatch.setenv(key, value)
    if configured:
        settings = {"backend": configured} if configured in BACKENDS else KERAS_DEFAULTS
        (tmp_path / "keras.json").write_text(json.dumps(settings))
    monkeypatch.setattr("shiftvit.backend.list_installed_backends", lambda: installed)
    if expected in ("torch", "jax", "tensorflow"):
        assert ensure_backend() == expected
        assert os.environ["KERAS_BACKEND"] == expected
    else:
        with pytest.raises(ShiftViTError, match=expected):
            ensure_backend()


def test_of_thousands_of_valid_names_a_message_lists_some() -> None:
    text = suggest("class 12", [f"class {number:04}" for number in range(10_000)])
    assert text.startswith("did you mean 'class ")
    assert text.endswith("class 0039 and 9,960 more.")
    assert suggest("x", ["b", "a"]) == "Valid: a, b."
