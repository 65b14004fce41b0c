"""An output path that cannot be written is reported before the work and not after it."""

from __future__ import annotations

from pathlib import Path

import pytest
from typer.testing import CliRunner

from sample import write_tree
from shiftvit import ShiftViTError, files
from shiftvit.cli.main import app
from shiftvit.data.decode import images
from shiftvit.exports import export


@pytest.fixture
def started_work(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """The pictures that were read, and "export" for each export that was started."""
    started: list[str] = []
    original = images._read

    def record_and_read(path: Path, max_bytes: int) -> bytes:
        started.append(str(path))
        return original(path, max_bytes)

    monkeypatch.setattr(images, "_read", record_and_read)
    monkeypatch.setattr(export, "_build_and_verify", lambda *_: started.append("export"))
    return started


@pytest.mark.parametrize(
    "command",
    [
        "train --recipe photos --data {pets} --out",
        "evaluate cifar10 --data {pets} --out",
        "find-rate --recipe photos --data {pets} --figure",
        "data check {pets} --figure",
        "data show {pets} --out",
        "explain {pets}/cat --out",
        "predict {pets}/cat --grid",
        "predict {pets}/cat --out",
        "embed {pets}/cat --out",
        "export cifar10 --format onnx --out",
        "pack cifar10",
    ],
)
def test_unwritable_output_is_reported_before_any_work(command: str, tmp_path: Path, started_work: list[str]) -> None:
    write_tree(tmp_path / "pets", 4)
    (tmp_path / "file").write_text("")
    endings = {
        "--figure": ".png",
        "--grid": ".png",
        "explain": ".png",
        "data": ".png",
        "embed": ".npz",
        "predict": ".csv",
    }
    ending = next((ending for word, ending in endings.items() if word in command.split()), "")
    path = tmp_path / "file" / f"x{ending}"
    answer = CliRunner().invoke(app, [*command.format(pets=tmp_path / "pets").split(), str(path)])
    assert isinstance(answer.exception, ShiftViTError)
    assert f"cannot write '{tmp_path / 'file'}" in str(answer.exception)
    assert not started_work
    assert {path.name for path in tmp_path.iterdir()} == {"pets", "file"}


def test_folder_is_refused_as_a_file(tmp_path: Path) -> None:
    with pytest.raises(ShiftViTError, match="it is a folder; name a file in it"):
        files.check_file(tmp_path, (".png",))
    for path in (tmp_path / "new", tmp_path / "new" / "deeper"):
        files.check_folder(path)
    with pytest.raises(ShiftViTError, match="No such file or directory"):
        files.check_file(tmp_path / "new" / "x.png", (".png",))
    assert not list(tmp_path.iterdir())


def test_missing_folder_is_named(tmp_path: Path) -> None:
    with pytest.raises(ShiftViTError, match=r"no/x.json': No such file or directory; make the folder .*/no', or "):
        files.write_json(tmp_path / "no" / "x.json", {})
