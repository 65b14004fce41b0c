"""Output files: the suffix decides the format, inputs are never overwritten, and faults are reported first."""

from __future__ import annotations

import errno
import json
import os
import re
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from shiftvit import ShiftViTError, evaluate, files
from shiftvit.cli.main import _run
from shiftvit.cli.tables import print_json, show, show_pairs
from shiftvit.figures.grid import Tile, draw_predictions
from shiftvit.figures.run import draw_confusion_matrix
from shiftvit.figures.style import ENDINGS
from trees import plant


def test_suffix_must_be_supported(tmp_path):
    for name in ("x.png", "X.PNG"):
        files.check_file(tmp_path / name, (".png", ""))
    files.check_file(tmp_path / "x", (".png", ""))
    files.check_file(Path("/dev/full"), (".png", ""))
    for name in ("x.txt", "x.png.txt"):
        with pytest.raises(ShiftViTError, match=r"one of: \.png, none$"):
            files.check_file(tmp_path / name, (".png", ""))
    assert not list(tmp_path.iterdir())


def test_unwritable_places_are_refused(tmp_path):
    (tmp_path / "folder.png").mkdir()
    (tmp_path / "file").touch()
    for name, fault in (
        ("folder.png", "it is a folder; name a file in it"),
        (
            "missing/x.png",
            f"No such file or directory; make the folder '{tmp_path / 'missing'}', or choose another place",
        ),
        ("file/x.png", "Not a directory; choose another place"),
    ):
        with pytest.raises(ShiftViTError, match=re.escape(f"cannot write '{tmp_path / name}': {fault}")):
            files.check_file(tmp_path / name, (".png",))


@pytest.mark.parametrize(
    ("number", "mend"),
    [
        (errno.ENOSPC, "free space, or choose another place"),
        (errno.EDQUOT, "free space, or choose another place"),
        (errno.EROFS, "choose another place"),
        (errno.EACCES, "choose another place"),
    ],
)
def test_only_full_disks_ask_for_space(number, mend):
    reason = os.strerror(number)
    error = files.explain_unwritable(Path("x.png"), OSError(number, reason))
    assert str(error) == f"cannot write 'x.png': {reason}; {mend}"


def test_file_is_replaced_only_where_its_folder_is_writable(tmp_path, monkeypatch):
    def refuse(**_):
        raise PermissionError(13, "Permission denied")

    (tmp_path / "x.npz").touch()
    files.check_file(tmp_path / "x.npz", (".npz",))
    monkeypatch.setattr("tempfile.TemporaryFile", refuse)
    files.check_file(tmp_path / "x.npz", (".npz",), in_place=True)
    with pytest.raises(ShiftViTError, match=r"cannot write '.*x\.npz': Permission denied"):
        files.check_file(tmp_path / "x.npz", (".npz",))


def test_inputs_are_not_overwritten(tmp_path):
    (tmp_path / "x.png").touch()
    (tmp_path / "link.png").symlink_to("x.png")
    for name in ("x.png", "link.png"):
        with pytest.raises(ShiftViTError, match="is also read here, and would be overwritten; name another file"):
            files.check_file(tmp_path / name, (".png",), ["gone.png", "n" * 5000, str(tmp_path / "x.png")])
    files.check_file(tmp_path / "x.png", (".png",), ["gone.png"])


@pytest.mark.parametrize("name", ["model.onnx", "run.ZIP", "e.json", "x.tar", "x.tar.gz", "model.pt2", "x.png"])
def test_new_folder_named_like_a_file_is_refused(name, tmp_path):
    with pytest.raises(ShiftViTError, match=r"is named like a file, but the output is a folder; leave out .*$"):
        files.check_folder_name(tmp_path / name)
    (tmp_path / name).mkdir()
    files.check_folder_name(tmp_path / name)
    for good in ("deployed", "v1.2", "mine.v3", ".hidden"):
        files.check_folder_name(tmp_path / good)


@pytest.mark.slow
def test_figures_have_the_format_of_their_suffix(tmp_path):
    signatures = {".png": b"\x89PNG", ".pdf": b"%PDF", ".svg": b"<?xml", ".jpg": b"\xff\xd8", ".jpeg": b"\xff\xd8"}
    for ending in ENDINGS:
        draw_confusion_matrix(np.eye(2, dtype=int), ("a", "b"), tmp_path / f"x{ending}")
        assert (tmp_path / f"x{ending}").read_bytes().startswith(signatures.get(ending, b"RIFF"))
    with pytest.raises(ShiftViTError, match="has no known suffix"):
        draw_confusion_matrix(np.eye(2, dtype=int), ("a", "b"), tmp_path / "x.txt")
    with pytest.raises(ShiftViTError, match="has no known suffix"):
        draw_predictions([Tile(np.zeros((4, 4, 3), np.uint8), "a", 0.5)], tmp_path / "x.svg", "A title")


@pytest.mark.parametrize(
    ("arguments", "fault"),
    [
        (["explain", "cat.png", "--out", "x.txt"], "'x.txt' has no known suffix"),
        (["explain", "cat.png", "--out", "cat.png"], "'cat.png' is also read here"),
        (["explain", "cat.png", "--out", "no/x.png"], "cannot write 'no/x.png'"),
        (["data", "check", ".", "--figure", "x.csv"], "'x.csv' has no known suffix"),
        (["data", "check", ".", "--figure", "no/x.png"], "cannot write 'no/x.png'"),
        (["data", "show", "--out", "x"], "'x' has no known suffix"),
        (["find-rate", "--figure", "x.json"], "'x.json' has no known suffix"),
        (["report", ".", "--out", "cat.png"], "'cat.png' has no known suffix"),
        (["embed", "cat.png", "--out", "cat.png"], "'cat.png' has no known suffix"),
        (["embed", "cat.png", "--out", "x.npz", "--max-pixels", "0"], "max_pixels=0 must be at least 1"),
        (["embed", "cat.png", "--out", "x.npz", "--threads", "0"], "threads=0 must be at least 1"),
        (["evaluate", "cifar10", "--out", "x.json"], "'x.json' is named like a file"),
        (["evaluate", "cifar10", "--logits", "x.txt"], "'x.txt' has no known suffix; use one of: .npz"),
        (["evaluate", "cifar10", "--logits", "no/x.npz"], "cannot write 'no/x.npz'"),
        (["export", "cifar10", "--out", "model.onnx"], "'model.onnx' is named like a file"),
        (["pack", "cifar10", "model.tar.gz"], "'model.tar.gz' is named like a file"),
        (["pull", "me/pets", "--out", "pets.tgz"], "'pets.tgz' is named like a file"),
    ],
    ids=lambda value: " ".join(value[:2]) if isinstance(value, list) else "",
)
def test_commands_refuse_outputs_before_any_work(arguments, fault, tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    Image.new("RGB", (32, 32)).save("cat.png")
    before = (tmp_path / "cat.png").read_bytes()
    assert _run(arguments) == 2
    (line,) = capsys.readouterr().err.splitlines()
    assert fault in line
    assert "--out" not in line
    assert [path.name for path in tmp_path.iterdir()] == ["cat.png"]
    assert (tmp_path / "cat.png").read_bytes() == before


def test_names_in_tables_are_text(capsys):
    """rich would read them as markup: `[copy]` would vanish, `[/old]` would be an error, `:cat:` would be a picture."""
    joined = "\u0645\u06cc\u200c\u0628\u06cc\u0646\u3000x"  # a Persian word with its joiner, and a wide space
    names = ["[copy] of [b]cat[/b]", "cat [/old]", ":cat:", joined, "a\nb\x1b[31mc"]
    show([{"image": name, "class": "x"} for name in names], "[red] :dog: \x1b[2J")
    title, *lines = capsys.readouterr().out.splitlines()
    assert title == r"[red] :dog: \x1b[2J"
    shown = [line.strip().rsplit(maxsplit=1)[0] for line in lines if line.strip().endswith(" x")]
    assert shown == ["[copy] of [b]cat[/b]", "cat [/old]", ":cat:", joined, r"a\nb\x1b[31mc"]
    show_pairs({"classes": "a\x1b[31mb"})
    assert capsys.readouterr().out == "classes  a\\x1b[31mb\n"


def test_json_files_hold_any_path(tmp_path):
    """A path may hold bytes that are not UTF-8, as Python's lone surrogates."""
    files.write_json(tmp_path / "x.json", {"path": "b\udcff.png", "name": "K\xe4se"})
    text = (tmp_path / "x.json").read_text("utf-8")
    assert json.loads(text) == {"path": "b\udcff.png", "name": "K\xe4se"}
    assert "K\xe4se" in text


def test_json_is_ascii_without_nan(capsys):
    print_json({"K\xe4se": [1, float("nan"), (float("-inf"), "\udcff")], "none": None})
    text = capsys.readouterr().out
    assert text.isascii()
    assert "NaN" not in text
    assert json.loads(text) == {"K\xe4se": [1, None, [None, "\udcff"]], "none": None}


@pytest.mark.parametrize(
    "command",
    [
        ["data", "check", "{data}", "--figure"],
        ["data", "show", "{data}", "--out"],
        ["find-rate", "--data", "{data}", "--figure"],
    ],
)
@pytest.mark.parametrize("kind", ["folder", "table"])
def test_figure_does_not_overwrite_an_image_of_the_data(command, kind, tmp_path, capfd):
    data = plant(tmp_path / "pets", *(f"{label}/{number}.png" for label in "ab" for number in range(4)))
    if kind == "table":
        lines = [f"pets/{label}/{number}.png,{label}" for label in "ab" for number in range(4)]
        data = tmp_path / "t.csv"
        data.write_text("\n".join(["path,label", *lines]))
    picture = tmp_path / "pets" / "a" / "1.png"
    before = picture.read_bytes()
    assert _run([*(part.format(data=data) for part in command), str(picture)]) == 2
    assert "is also read here, and would be overwritten; name another file" in capfd.readouterr().err
    assert picture.read_bytes() == before


def test_evaluation_is_not_written_among_its_images(tmp_path):
    """The folder would then count as an evaluation and no longer as data."""
    data = plant(tmp_path / "pets", "cat/1.png", "dog/1.png")
    with pytest.raises(ShiftViTError, match=r"holds the images, not evaluations; name another folder"):
        evaluate("cifar10", str(data), out=f"{data}/")
    assert sorted(entry.name for entry in data.iterdir()) == ["cat", "dog"]
