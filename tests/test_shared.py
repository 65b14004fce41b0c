"""What tests share is made once, and not tried again after a failure."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

import shared
from conftest import LONGEST


@pytest.fixture(autouse=True)
def _use_tmp_path(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv(shared.VARIABLE, str(tmp_path))


def test_folder_is_made_once() -> None:
    def make(place: Path) -> None:
        made.append(place)
        (place / "file").write_text("content")

    made: list[Path] = []
    assert [(shared.make_once("it", make) / "file").read_text() for _ in range(3)] == ["content"] * 3
    assert len(made) == 1


def test_failure_is_not_repeated_and_keeps_its_reason() -> None:
    def make(place: Path) -> None:
        made.append(place)
        (place / "half").write_text("")
        raise ValueError("the reason")

    made: list[Path] = []
    for _ in range(3):
        with pytest.raises(AssertionError, match=r"it could not be made:(.|\n)*ValueError: the reason"):
            shared.make_once("it", make)
    assert len(made) == 1
    assert not (shared.find_folder() / "it").exists()


def test_processes_wait_for_the_one_that_makes_the_folder(tmp_path: Path) -> None:
    program = (
        "import os, shared, time\n"
        "def make(place):\n"
        "    time.sleep(0.2)\n"
        "    (place / 'maker').write_text(str(os.getpid()))\n"
        "print((shared.make_once('it', make) / 'maker').read_text())\n"
    )
    command = [sys.executable, "-c", program]
    processes = [
        subprocess.Popen(command, cwd=Path(__file__).parent, stdout=subprocess.PIPE, text=True) for _ in range(3)
    ]
    output = {process.communicate()[0].strip() for process in processes}
    assert output == {(tmp_path / "it" / "maker").read_text()}


def test_files_that_start_first_exist() -> None:
    assert [name for name in LONGEST if not Path(__file__).with_name(f"{name}.py").is_file()] == []
