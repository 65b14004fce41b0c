"""`shiftvit explain`: the figure, the JSON, the table, and errors in one line."""

from __future__ import annotations

import dataclasses
import json
import shutil

import numpy as np
import pytest
from PIL import Image
from typer.testing import CliRunner

from shiftvit import Bundle, ShiftViTError
from shiftvit.bundle.stored.find import PRETRAINED
from shiftvit.cli import explain as command


def run_command(*arguments):
    return CliRunner().invoke(command.app, [str(argument) for argument in arguments])


SAMPLES = sorted((PRETRAINED / "samples").rglob("*.png"))


@pytest.mark.slow
def test_command_explains_images(tmp_path):
    answer = run_command(*SAMPLES[:2], "--out", tmp_path / "x.png", "--json")
    assert answer.exit_code == 0, answer.output
    first, second = json.loads(answer.stdout)
    assert (first["label"], second["label"]) == (SAMPLES[0].parent.name, SAMPLES[1].parent.name)
    assert first["probability"] == first["confidence"] > 0.5
    assert np.shape(first["grad_cam"]["map"]) == (4, 4)
    assert np.shape(first["occlusion"]["map"]) == (32, 32)
    row, column = first["occlusion"]["peak"]
    heat = np.array(first["occlusion"]["map"])
    assert heat[int(row), int(column)] > 0.9 * heat.max()
    assert all(value == round(value, 4) for value in heat.flat)
    with Image.open(tmp_path / "x.png") as picture:
        assert picture.height > 2 * 192


def test_command_explains_another_class_with_one_method(tmp_path):
    out = tmp_path / "x.png"
    answer = run_command(SAMPLES[0], "--class", "truck", "--method", "grad-cam", "--stage", "P2", "--out", out)
    assert answer.exit_code == 0, answer.output
    assert "truck" in answer.stdout
    assert "occlusion" not in answer.stdout
    with Image.open(out) as picture:
        assert picture.height < 2 * 192  # one row


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--method", "gradcam"], "no method 'gradcam'; did you mean 'grad-cam'"),
        (["--class", "dgo"], "no class 'dgo'; did you mean 'dog'"),
        (["--stage", "P2", "--method", "occlusion"], "--stage P2 needs --method grad-cam or both"),
        (["--patch", "8", "--method", "grad-cam"], "--patch 8 needs --method occlusion or both"),
        (["--model", "nowhere"], "'nowhere' does not exist"),
        (["nowhere.png"], "'nowhere.png' does not exist"),
    ],
)
def test_wrong_options_are_refused(arguments, message, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    answer = run_command(*arguments)
    assert isinstance(answer.exception, ShiftViTError)
    assert message in str(answer.exception)
    assert not list(tmp_path.iterdir())


def test_options_that_a_message_names_exist(tmp_path):
    shutil.copytree(SAMPLES[0].parent, tmp_path / "pets" / "inner")
    arguments = [tmp_path / "pets", "--method", "cam", "--out", tmp_path / "x.png", "--json"]
    answer = run_command(*arguments)
    assert str(answer.exception).endswith(
        "use --recursive to search its subfolders or use --all-files to read every file"
    )
    rows = json.loads(run_command(*arguments, "--recursive", "--all-files").stdout)
    assert {row["path"] for row in rows} == {str(path) for path in (tmp_path / "pets" / "inner").iterdir()}


@pytest.mark.slow
def test_broken_picture_is_reported_and_the_others_are_explained(tmp_path, capfd):
    (tmp_path / "broken.png").write_bytes(SAMPLES[0].read_bytes()[:200])
    names = [tmp_path / "broken.png", SAMPLES[0]]
    answer = run_command(*names, "--method", "grad-cam", "--out", tmp_path / "x.png", "--json")
    assert answer.exit_code == 0, answer.output
    assert [row["path"] for row in json.loads(answer.stdout)] == [str(SAMPLES[0])]
    assert "broken.png" in answer.stderr + capfd.readouterr().err
    answer = run_command(names[0])
    assert isinstance(answer.exception, ShiftViTError)
    assert "broken.png" in str(answer.exception)


def test_elongated_picture_is_reported_by_its_name(tmp_path, capfd):
    Image.new("L", (70_000, 1)).save(tmp_path / "long.png")
    arguments = ["--method", "cam", "--out", tmp_path / "x.png", "--json"]
    answer = run_command(tmp_path / "long.png", SAMPLES[0], *arguments)
    assert [row["path"] for row in json.loads(answer.stdout)] == [str(SAMPLES[0])]
    reason = f"{tmp_path / 'long.png'}: an image of 1 x 70000 pixels is too elongated"
    assert f"skipped: {reason}" in answer.stderr + capfd.readouterr().err
    answer = run_command(tmp_path / "long.png", *arguments)
    assert str(answer.exception).startswith(reason)


def test_nan_output_is_reported_with_the_model_and_the_image(tmp_path):
    bundle = Bundle.load("cifar10")
    for value in bundle.weights.values():
        value[...] = np.nan
    dataclasses.replace(bundle, graph=None).save(tmp_path / "bad")
    answer = run_command(SAMPLES[0], "--model", tmp_path / "bad", "--out", tmp_path / "x.png")
    assert isinstance(answer.exception, ShiftViTError)
    assert f"the model '{tmp_path / 'bad'}' returns NaN or infinity for '{SAMPLES[0]}'" in str(answer.exception)
    assert not (tmp_path / "x.png").exists()
