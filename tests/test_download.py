"""Downloads from a server that misbehaves."""

from __future__ import annotations

import random
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

import file_server
from file_server import FileServer
from shiftvit import download as downloads
from shiftvit.download import download
from shiftvit.errors import ShiftViTError


@pytest.fixture
def files(monkeypatch: pytest.MonkeyPatch) -> Iterator[FileServer]:
    """A server that behaves, with a megabyte of noise; pauses between attempts take no time."""
    monkeypatch.setenv("no_proxy", "127.0.0.1")
    monkeypatch.setattr(downloads, "_PAUSE", 0.0)
    with file_server.serve_file(random.Random(0).randbytes(1_000_000)) as running:
        yield running


@pytest.mark.parametrize("sent", [0, 100])
def test_a_silent_server_is_given_up(files: FileServer, tmp_path: Path, sent: int) -> None:
    files.stop_after, files.etag = sent, None
    files.hold.clear()
    with pytest.raises(ShiftViTError, match=r"no response for 0\.2 s"):  # the server itself would hang for good
        download(files.url, tmp_path / "file", limit=2**20, timeout=0.2)


def test_a_server_that_sends_on_is_stopped(files: FileServer, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(downloads, "_CHUNK", 1000)
    with pytest.raises(ShiftViTError, match="has 1000000 bytes, but at most 5000 are allowed"):
        download(files.url, tmp_path / "file", limit=5000)
    assert not (tmp_path / "file").exists()


def test_a_terminal_gets_a_bar(
    files: FileServer, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("TERM", "xterm")
    monkeypatch.setattr(sys.stderr, "isatty", lambda: True)
    download(files.url, tmp_path / "file", limit=2**20)
    printed = capsys.readouterr()
    assert "1.0/1.0 MB" in printed.err
    assert printed.out == ""


def begin(files: FileServer, target: Path, size: int = 300_000) -> None:
    """Leaves a part of the file, as a download that was given up does."""
    files.stop_after, ranges, files.ranges = size, files.ranges, False
    with pytest.raises(ShiftViTError, match=f"after {size} of 1000000 bytes"):
        download(files.url, target, limit=2**20)
    files.stop_after, files.ranges = None, ranges
    files.requests.clear()
    assert target.stat().st_size == size


def same_in_the_end(files: FileServer, target: Path, *asked: str | None) -> None:
    download(files.url, target, limit=2**20)
    assert target.read_bytes() == files.content
    assert [entry.name for entry in target.parent.iterdir()] == [target.name]
    assert [part for _, part in files.requests] == list(asked)


@pytest.mark.parametrize("validator", ["etag", "modified"])
def test_a_part_is_continued(files: FileServer, tmp_path: Path, validator: str) -> None:
    if validator == "modified":
        files.etag, files.modified = None, "Thu, 26 Nov 2026 04:00:00 GMT"
    begin(files, tmp_path / "file")
    same_in_the_end(files, tmp_path / "file", "bytes=299999-")


def test_a_whole_part_is_no_fault(files: FileServer, tmp_path: Path) -> None:
    begin(files, tmp_path / "file")
    (tmp_path / "file").write_bytes(files.content)  # killed before it was told that nothing is missing
    same_in_the_end(files, tmp_path / "file", "bytes=999999-")


def test_a_server_without_parts_begins_anew(files: FileServer, tmp_path: Path) -> None:
    files.ranges = False
    begin(files, tmp_path / "file")
    same_in_the_end(files, tmp_path / "file", "bytes=299999-")


def test_without_a_name_for_its_version_nothing_is_continued(files: FileServer, tmp_path: Path) -> None:
    for tag in (None, 'W/"weak"'):
        files.etag = tag
        begin(files, tmp_path / "file")
        same_in_the_end(files, tmp_path / "file", None)


@pytest.mark.parametrize("checks", [True, False])
def test_another_file_is_not_appended(files: FileServer, tmp_path: Path, checks: bool) -> None:
    begin(files, tmp_path / "file")
    files.content, files.etag, files.checks = random.Random(1).randbytes(900_000), '"two"', checks
    if not checks:  # a server that sends a part of any version
        with pytest.raises(ShiftViTError, match="the server's file has changed while it was downloaded; try again"):
            download(files.url, tmp_path / "file", limit=2**20)
        files.requests.clear()
    same_in_the_end(files, tmp_path / "file", "bytes=299999-" if checks else None)


def test_a_part_longer_than_the_file_begins_anew(files: FileServer, tmp_path: Path) -> None:
    begin(files, tmp_path / "file")
    files.content = files.content[:1000]  # under the same name of its version
    with pytest.raises(ShiftViTError, match="the server responded 416"):
        download(files.url, tmp_path / "file", limit=2**20)
    files.requests.clear()
    same_in_the_end(files, tmp_path / "file", None)


@pytest.mark.parametrize("kept", ["", "[]", "{}", '{"url": 3, "validator": 4}', '{"url": "URL", "validator": "a\\nb"}'])
def test_a_damaged_note_beside_a_part_is_not_trusted(files: FileServer, tmp_path: Path, kept: str) -> None:
    begin(files, tmp_path / "file")
    (tmp_path / "file.json").write_text(kept.replace("URL", files.url))
    same_in_the_end(files, tmp_path / "file", None)


def test_a_part_of_another_address_is_not_continued(files: FileServer, tmp_path: Path) -> None:
    begin(files, tmp_path / "file")
    files.url += "/other"
    same_in_the_end(files, tmp_path / "file", None)


def test_an_unstated_length_is_taken(files: FileServer, tmp_path: Path) -> None:
    files.told = False
    same_in_the_end(files, tmp_path / "file", None)
    files.content = files.content * 3
    with pytest.raises(ShiftViTError, match="sent more than 1048576 bytes"):
        download(files.url, tmp_path / "file", limit=2**20)


def test_attempts_that_bring_nothing_end(files: FileServer, tmp_path: Path) -> None:
    begin(files, tmp_path / "file")
    files.stop_after = 0
    with pytest.raises(ShiftViTError, match=r"ended after 29999. of 1000000 bytes"):
        download(files.url, tmp_path / "file", limit=2**20)
    assert len(files.requests) == 3


def test_a_compressed_answer_and_addresses_that_are_none(files: FileServer, tmp_path: Path) -> None:
    files.encoding = "gzip"
    with pytest.raises(ShiftViTError, match="sends the file with a content encoding"):
        download(files.url, tmp_path / "file", limit=2**20)
    for url in ("file:///etc/passwd", "ftp://127.0.0.1/x", "weights.pth", ""):
        with pytest.raises(
            ShiftViTError, match="is not the address of a server; it must begin with https:// or http://"
        ):
            download(url, tmp_path / "file", limit=2**20)
    with pytest.raises(ShiftViTError):
        download("http://127.0.0.1:9 9/\x1b[31m", tmp_path / "file", limit=2**20)
    assert list(tmp_path.iterdir()) == []


def test_from_https_to_http_is_not_followed() -> None:
    from urllib.request import Request

    handler = downloads.Redirects()
    moved = ("https://here/x", "http://there/x")
    with pytest.raises(downloads.Broken, match="points to http://there/x, which is not https"):
        handler.redirect_request(Request(moved[0]), None, 302, "Found", {}, moved[1])
    assert handler.redirect_request(Request(moved[1]), None, 302, "Found", {}, moved[0]).full_url == moved[0]


CHILD = """
import sys
from pathlib import Path
from shiftvit.download import download
download(sys.argv[1], Path(sys.argv[2]), limit=2**20)
"""


def test_a_killed_download_is_continued(files: FileServer, tmp_path: Path) -> None:
    files.stop_after = 500_000
    files.hold.clear()
    child = subprocess.Popen([sys.executable, "-c", CHILD, files.url, str(tmp_path / "file")])
    assert files.sent.wait(20)
    for _ in range(200):
        if (tmp_path / "file").is_file() and (tmp_path / "file").stat().st_size > 400_000:
            break
        time.sleep(0.05)
    child.kill()
    child.wait()
    files.hold.set()
    files.stop_after = None
    files.requests.clear()
    size = (tmp_path / "file").stat().st_size
    same_in_the_end(files, tmp_path / "file", f"bytes={size - 1}-")
