"""Downloads from a server that misbehaves."""

from __future__ import annotations

import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from cifar10_world import serving
from shiftvit import download as downloads
from shiftvit.download import download
from shiftvit.errors import ShiftViTError


@pytest.fixture
def server(monkeypatch: pytest.MonkeyPatch) -> Iterator[tuple[str, dict[str, Any]]]:
    monkeypatch.setenv("no_proxy", "127.0.0.1")
    with serving() as both:
        yield both


@pytest.mark.parametrize("body", [b"", b"x" * 100])
def test_a_silent_server_is_given_up(server: tuple[str, dict[str, Any]], tmp_path: Path, body: bytes) -> None:
    url, answer = server
    answer.update(body=body, length=1000)
    answer["hang"].clear()
    with pytest.raises(ShiftViTError, match=r"no answer for 0\.2 s"):  # the server itself would hang for good
        download(url, tmp_path / "file", limit=2**20, timeout=0.2)


def test_a_server_that_sends_on_is_stopped(
    server: tuple[str, dict[str, Any]], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    url, answer = server
    answer["body"] = b"x" * 100_000
    monkeypatch.setattr(downloads, "_CHUNK", 1000)
    with pytest.raises(ShiftViTError, match="has 100000 bytes and may have 5000"):
        download(url, tmp_path / "file", limit=5000)
    assert not (tmp_path / "file").exists()


def test_a_terminal_gets_a_bar(
    server: tuple[str, dict[str, Any]],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    url, answer = server
    answer["body"] = b"x" * 100_000
    monkeypatch.setenv("TERM", "xterm")
    monkeypatch.setattr(sys.stderr, "isatty", lambda: True)
    download(url, tmp_path / "file", limit=2**20)
    printed = capsys.readouterr()
    assert "100.0/100.0 kB" in printed.err
    assert printed.out == ""
