"""A damaged export is recognised by the digests in its report."""

from __future__ import annotations

import hashlib
import json

import pytest

import command_line
from shiftvit import Bundle, ShiftViTError
from shiftvit.bundle.stored import digests
from shiftvit.bundle.stored.digests import check_artifact, check_export, hash_files
from shiftvit.inference.runtimes import load_graph

FILES = {
    "model.onnx": ["model.onnx"],
    "model.xml": ["model.xml", "model.bin"],
    "saved_model": ["saved_model/saved_model.pb", "saved_model/variables/variables.index"],
}


def write_export(folder, names):
    for name in names:
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).write_bytes(name.encode())
    digests = {name: hashlib.sha256(name.encode()).hexdigest() for name in names}
    assert hash_files(folder) == digests
    (folder / "report.json").write_text(json.dumps({"format": "any", "sha256": digests}))


@pytest.mark.parametrize(("artifact", "name"), [(artifact, name) for artifact in FILES for name in FILES[artifact]])
def test_every_file_is_checked(artifact, name, tmp_path):
    write_export(tmp_path, FILES[artifact])
    (tmp_path / "notes.txt").write_text("someone else's")
    check_artifact(tmp_path / artifact)
    assert check_export(tmp_path) == len(FILES[artifact])
    (tmp_path / name).write_bytes(b"damaged")
    for check in (lambda: check_artifact(tmp_path / artifact), lambda: check_export(tmp_path)):
        with pytest.raises(ShiftViTError) as caught:
            check()
        assert str(caught.value) == (
            f"{str(tmp_path / name)!r} is damaged: its SHA-256 differs from the one in 'report.json'; restore it, or "
            "export it again"
        )
    (tmp_path / name).unlink()
    with pytest.raises(ShiftViTError, match="is missing; restore it, or export it again"):
        check_export(tmp_path)


def test_large_files_are_checked_by_info_alone(tmp_path, monkeypatch):
    monkeypatch.setattr(digests, "LARGEST", 9)
    write_export(tmp_path, ["model.onnx"])
    ran = command_line.run("info", tmp_path, cwd=tmp_path)
    assert ran.returncode == 0
    assert b"1 as recorded" in ran.stdout
    (tmp_path / "model.onnx").write_bytes(b"damaged, large")
    check_artifact(tmp_path / "model.onnx")
    ran = command_line.run("info", tmp_path, cwd=tmp_path)
    assert ran.returncode == 2
    assert b"is damaged: its SHA-256 differs" in ran.stderr


@pytest.mark.parametrize("report", [None, "{}", "[]", "{", '{"sha256": null}', '{"sha256": {}}', "[" * 100_000])
def test_export_without_digests_is_accepted(report, tmp_path):
    (tmp_path / "model.onnx").write_bytes(b"graph")
    if report is not None:
        (tmp_path / "report.json").write_text(report)
    check_artifact(tmp_path / "model.onnx")
    assert check_export(tmp_path) == 0


def test_damaged_weights_are_refused(tmp_path):
    """The graph could be loaded, and would give other answers."""
    content = bytearray(Bundle.load("cifar10").graph)
    path = tmp_path / "model.onnx"
    path.write_bytes(content)
    (tmp_path / "report.json").write_text(json.dumps({"sha256": hash_files(tmp_path)}))
    load_graph(tmp_path, "onnxruntime")
    content[len(content) // 2] ^= 1
    path.write_bytes(content)
    for model in (path, tmp_path):
        with pytest.raises(ShiftViTError, match="is damaged: its SHA-256 differs"):
            load_graph(model, "onnxruntime")
    (tmp_path / "report.json").unlink()
    load_graph(tmp_path, "onnxruntime")
