"""Things shared by the tests are made once, and not again after a failure."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

import shared
from conftest import LONGEST


@pytest.fixture(autouse=True)
def _elsewhere(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv(shared.VARIABLE, str(tmp_path))


def test_it_is_made_once() -> None:
    def make(place: Path) -> None:
        made.append(place)
        (place / "file").write_text("content")

    made: list[Path] = []
    assert [(shared.make_once("it", make) / "file").read_text() for _ in range(3)] == ["content"] * 3
    assert len(made) == 1


def test_what_fails_fails_once_with_its_reason() -> None:
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


def test_processes_wait_for_the_one_that_makes_it(tmp_path: Path) -> None:
    program = (
        "import os, shared, time\n"
        "def make(place):\n"
        "    time.sleep(0.2)\n"
        "    (place / 'maker').write_text(str(os.getpid()))\n"
        "print((shared.make_once('it', make) / 'maker').read_text())\n"
    )
    command = [sys.executable, "-c", program]
    started = [
        subprocess.Popen(command, cwd=Path(__file__).parent, stdout=subprocess.PIPE, text=True) for _ in range(3)
    ]
    said = {process.communicate()[0].strip() for process in started}
    assert said == {(tmp_path / "it" / "maker").read_text()}


def test_the_files_that_begin_are_there() -> None:
    assert [name for name in LONGEST if not Path(__file__).with_name(f"{name}.py").is_file()] == []
