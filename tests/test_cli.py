"""The command line: help, errors, options, and the choice of the backend."""

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
from shiftvit.cli import main
from shiftvit.cli.main import app
from shiftvit.cli.tables import print_json, show, show_pairs
from shiftvit.data import named
from shiftvit.errors import ShiftViTError, suggest, suggest_install
from shiftvit.exports.formats import FORMATS
from shiftvit.inference.runtimes import RUNTIMES

ROOT = Path(__file__).parents[1]


def run_shiftvit(*arguments, alone=False, **environment):
    """Runs the command; with `alone`, in a process of its own and with these environment variables."""
    if alone:
        command = [sys.executable, "-m", "shiftvit", *arguments]
        environment = {**os.environ, **environment}
        return subprocess.run(command, capture_output=True, text=True, env=environment, timeout=120)
    answer = command_line.run(*arguments, cwd=Path.cwd())
    answer.stdout, answer.stderr = answer.stdout.decode(), answer.stderr.decode()
    return answer


@pytest.fixture(scope="module")
def run_folder(tmp_path_factory, plain_figures):  # noqa: ARG001
    settings = {
        "model": {"patch_size": 4, "embed_dim": 24, "depths": [1, 1], "norm": "layer", "drop_path": 0.0},
        "data": {"validation": 50},
        "train": {"epochs": 1, "batch_size": 50},
    }
    return train(Recipe.model_validate(settings), out=tmp_path_factory.mktemp("cli") / "run", data=load_sample()).path


def test_help_is_fast_and_lists_the_commands():
    answer = run_shiftvit("--help", alone=True)
    assert answer.returncode == 0
    for command in ("predict", "train", "evaluate", "export", "pack", "benchmark", "info", "data", "recipes"):
        assert f"  {command} " in answer.stdout
    assert measure_child(lambda: run_shiftvit("--help", alone=True)) < 2 * measure_import(
        "typer", "rich.console", "rich.table"
    )


def walk_commands(group, prefix=()):
    for name, command in group.commands.items():
        yield (*prefix, name), command
        if hasattr(command, "commands"):
            yield from walk_commands(command, (*prefix, name))


def test_help_fits_80_columns_without_truncation(monkeypatch):
    monkeypatch.setenv("COLUMNS", "80")
    whole = typer.main.get_command(app)
    for name, command in [((), whole), *walk_commands(whole)]:
        text = CliRunner().invoke(app, [*name, "--help"]).stdout
        assert max(map(len, text.splitlines())) <= 80, name
        assert "..." not in text.replace("[ARGS]...", "").replace("]...", ""), name
        for line in (command.epilog or "").splitlines()[2:]:
            assert f"  {line}\n" in text, "an example stands on its own line"


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
        (["train", "--set", "train.epoch=3"], "unknown setting 'train.epoch'; did you mean 'train.epochs'?"),
        (["train", "--set", "epochs=3"], "unknown setting 'epochs'; did you mean 'train.epochs'?"),
        (["train", "--set", "train.learning_rate=1"], "did you mean 'train.optimizer.learning_rate'?"),
        (["train", "--set", "train.epochs"], "has no value; write --set KEY=VALUE"),
        (["train", "--epochs", "-1"], "train.epochs = -1"),
        (["train", "--epochs", "many"], "invalid value 'many' for '--epochs': Input should be a valid integer"),
        (["train", "--data", "cifer10", "--out", "unused"], "there is no data set 'cifer10'; did you mean 'cifar10'?"),
        (["train", "--resume", "nowhere", "--recipe", "quick"], "--recipe cannot be given"),
        (["train", "--resume", "nowhere"], "'nowhere' is not a run folder"),
        (["evaluate", "nowhere"], "'nowhere' does not exist"),
        (["evaluate"], "Missing argument"),
        (["info", "shiftvit_tiny_r3"], "is neither a name nor a path; did you mean 'shiftvit_tiny_r"),
        (["data", "cifar10", "--from", "nowhere.tar.gz"], "nowhere.tar.gz"),
    ],
)
def test_mistakes_print_one_line_and_exit_with_status_2(arguments, message, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    answer = run_shiftvit(*arguments)
    assert answer.returncode == 2
    lines = answer.stderr.strip().splitlines()
    assert message in lines[-1]
    assert len(lines) == 1, answer.stderr
    assert not list(tmp_path.iterdir())


def test_debug_shows_the_traceback():
    answer = run_shiftvit("--debug", "info", "nothing")
    assert answer.returncode == 2
    assert "Traceback" in answer.stderr


def test_info_of_a_preset_and_of_a_run(run_folder):
    answer = run_shiftvit("info", "shiftvit_tiny_r2")
    assert "28,566,664" in answer.stdout
    assert "4,581.6 M" in answer.stdout
    found = json.loads(run_shiftvit("info", str(run_folder), "--json").stdout)
    assert [row["resolution"] for row in found["stages"]][:3] == ["8x8", "8x8", "4x4"]
    assert found["notes"]["test"].startswith("top-1 ")
    printed = run_shiftvit("info", str(run_folder)).stdout.splitlines()
    assert printed[0] == f"Model in {run_folder / 'bundle'}"
    assert "preprocessing  (pixels - mean) / std with pixels from 0 to 255, mean 0, std 255" in printed
    assert run_shiftvit("info").stdout.count("shiftvit_") == 12


@pytest.mark.slow
def test_evaluate_prints_the_recorded_metrics(run_folder, monkeypatch):
    monkeypatch.setitem(named._LOADERS, "cifar10", load_sample)
    answer = run_shiftvit("evaluate", str(run_folder), "--json")
    assert answer.returncode == 0, answer.stderr
    found, recorded = json.loads(answer.stdout), json.loads((run_folder / "metrics.json").read_text())["test"]
    assert {key: found[key] for key in recorded} == recorded


def test_recipes_and_version():
    answer = run_shiftvit("recipes")
    assert "shiftvit train --recipe quick" in answer.stdout
    assert run_shiftvit("--version").stdout.startswith("shiftvit 0.")
    assert run_shiftvit("data").returncode == 2


def test_missing_package_is_suggested_in_the_required_version(monkeypatch):
    """The command names the package and not an extra of shiftvit, so it works however shiftvit was installed."""
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


def test_no_text_installs_shiftvit_from_the_index():
    """The index does not have shiftvit before its first release."""
    texts = [
        *ROOT.glob("*.md"),
        *(ROOT / "docs").rglob("*.md"),
        *(ROOT / "src").rglob("*.py"),
        *(ROOT / "src").rglob("*.md"),
    ]
    found = [path for path in texts if re.search(r"pip install[^\n]*\bshiftvit\[", path.read_text("utf-8"))]
    assert not found


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
def test_choice_of_the_backend(environment, installed, configured, expected, monkeypatch, tmp_path):
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


def test_suggestion_lists_only_some_of_many_names() -> None:
    text = suggest("class 12", [f"class {number:04}" for number in range(10_000)])
    assert text.startswith("did you mean 'class ")
    assert text.endswith("class 0039 and 9,960 more.")
    assert suggest("x", ["b", "a"]) == "valid: a, b."


def test_closed_output_is_no_bug(monkeypatch):
    monkeypatch.setattr(sys, "stdout", None)
    show([{"name": "a"}], "Title")
    show_pairs({"name": "a"})
    print_json({"name": "a"})


def test_ctrl_c_at_the_start_is_an_interruption():
    program = (
        "import sys\n"
        "class Stop:\n"
        "    def find_spec(self, name, *_):\n"
        "        if name == 'shiftvit.cli.main':\n"
        "            raise KeyboardInterrupt\n"
        "sys.meta_path.insert(0, Stop())\n"
        "from shiftvit.__main__ import main\n"
        "main()\n"
    )
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, timeout=60)
    assert (done.returncode, done.stdout, done.stderr) == (130, "", "shiftvit: interrupted\n")


def test_ctrl_c_during_an_import_is_an_interruption(monkeypatch, capfd):
    def load(_):
        raise ImportError("initialization failed") from KeyboardInterrupt()  # as pybind11 does

    monkeypatch.setattr(typer.main, "get_command", load)
    assert main._run(["recipes"]) == 130
    assert capfd.readouterr().err == "shiftvit: interrupted\n"
