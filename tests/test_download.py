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
def server(monkeypatch: pytest.MonkeyPatch) -> Iterator[FileServer]:
    """A well-behaved server of a megabyte of noise; retries do not pause."""
    monkeypatch.setenv("no_proxy", "127.0.0.1")
    monkeypatch.setattr(downloads, "_PAUSE", 0.0)
    with file_server.serve_file(random.Random(0).randbytes(1_000_000)) as running:
        yield running


@pytest.mark.parametrize("sent", [0, 100])
def test_silent_server_times_out(server: FileServer, tmp_path: Path, sent: int) -> None:
    server.stop_after, server.etag = sent, None
    server.hold.clear()
    with pytest.raises(ShiftViTError, match=r"no response for 0\.2 s"):  # without a timeout the download would hang
        download(server.url, tmp_path / "file", limit=2**20, timeout=0.2)


def test_files_above_the_limit_fail(server: FileServer, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(downloads, "_CHUNK", 1000)
    with pytest.raises(ShiftViTError, match="has 1000000 bytes, but at most 5000 are allowed"):
        download(server.url, tmp_path / "file", limit=5000)
    assert not (tmp_path / "file").exists()


def test_terminal_shows_a_progress_bar(
    server: FileServer, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("TERM", "xterm")
    monkeypatch.setattr(sys.stderr, "isatty", lambda: True)
    download(server.url, tmp_path / "file", limit=2**20)
    printed = capsys.readouterr()
    assert "1.0/1.0 MB" in printed.err
    assert printed.out == ""


def leave_partial_file(server: FileServer, target: Path, size: int = 300_000) -> None:
    """Leaves a part of the file, as an aborted download does."""
    server.stop_after, ranges, server.ranges = size, server.ranges, False
    with pytest.raises(ShiftViTError, match=f"after {size} of 1000000 bytes"):
        download(server.url, target, limit=2**20)
    server.stop_after, server.ranges = None, ranges
    server.requests.clear()
    assert target.stat().st_size == size


def assert_completes(server: FileServer, target: Path, *ranges: str | None) -> None:
    """Downloads the file with requests for these ranges, and checks that nothing else is left beside it."""
    download(server.url, target, limit=2**20)
    assert target.read_bytes() == server.content
    assert [entry.name for entry in target.parent.iterdir()] == [target.name]
    assert [part for _, part in server.requests] == list(ranges)


@pytest.mark.parametrize("validator", ["etag", "modified"])
def test_partial_file_is_continued(server: FileServer, tmp_path: Path, validator: str) -> None:
    if validator == "modified":
        server.etag, server.modified = None, "Thu, 26 Nov 2026 04:00:00 GMT"
    leave_partial_file(server, tmp_path / "file")
    assert_completes(server, tmp_path / "file", "bytes=299999-")


def test_complete_partial_file_succeeds(server: FileServer, tmp_path: Path) -> None:
    leave_partial_file(server, tmp_path / "file")
    (tmp_path / "file").write_bytes(server.content)  # killed before the server answered that nothing is missing
    assert_completes(server, tmp_path / "file", "bytes=999999-")


def test_server_without_ranges_starts_over(server: FileServer, tmp_path: Path) -> None:
    server.ranges = False
    leave_partial_file(server, tmp_path / "file")
    assert_completes(server, tmp_path / "file", "bytes=299999-")


def test_file_without_a_strong_validator_starts_over(server: FileServer, tmp_path: Path) -> None:
    for tag in (None, 'W/"weak"'):
        server.etag = tag
        leave_partial_file(server, tmp_path / "file")
        assert_completes(server, tmp_path / "file", None)


@pytest.mark.parametrize("checks", [True, False])
def test_changed_file_is_not_appended(server: FileServer, tmp_path: Path, checks: bool) -> None:
    leave_partial_file(server, tmp_path / "file")
    server.content, server.etag, server.checks = random.Random(1).randbytes(900_000), '"two"', checks
    if not checks:  # the server sends ranges of any version
        with pytest.raises(ShiftViTError, match="the server's file has changed while it was downloaded; try again"):
            download(server.url, tmp_path / "file", limit=2**20)
        server.requests.clear()
    assert_completes(server, tmp_path / "file", "bytes=299999-" if checks else None)


def test_partial_file_longer_than_the_file_starts_over(server: FileServer, tmp_path: Path) -> None:
    leave_partial_file(server, tmp_path / "file")
    server.content = server.content[:1000]  # with the same ETag
    with pytest.raises(ShiftViTError, match="the server responded 416"):
        download(server.url, tmp_path / "file", limit=2**20)
    server.requests.clear()
    assert_completes(server, tmp_path / "file", None)


@pytest.mark.parametrize("kept", ["", "[]", "{}", '{"url": 3, "validator": 4}', '{"url": "URL", "validator": "a\\nb"}'])
def test_partial_file_with_damaged_metadata_starts_over(server: FileServer, tmp_path: Path, kept: str) -> None:
    leave_partial_file(server, tmp_path / "file")
    (tmp_path / "file.json").write_text(kept.replace("URL", server.url))
    assert_completes(server, tmp_path / "file", None)


def test_partial_file_of_another_url_starts_over(server: FileServer, tmp_path: Path) -> None:
    leave_partial_file(server, tmp_path / "file")
    server.url += "/other"
    assert_completes(server, tmp_path / "file", None)


def test_content_length_may_be_missing(server: FileServer, tmp_path: Path) -> None:
    server.told = False
    assert_completes(server, tmp_path / "file", None)
    server.content = server.content * 3
    with pytest.raises(ShiftViTError, match="sent more than 1048576 bytes"):
        download(server.url, tmp_path / "file", limit=2**20)


def test_attempts_without_progress_are_limited(server: FileServer, tmp_path: Path) -> None:
    leave_partial_file(server, tmp_path / "file")
    server.stop_after = 0
    with pytest.raises(ShiftViTError, match=r"ended after 29999. of 1000000 bytes"):
        download(server.url, tmp_path / "file", limit=2**20)
    assert len(server.requests) == 3


@pytest.mark.parametrize(("status", "attempts"), [(404, 1), (429, 3), (503, 3)])
def test_only_refusals_that_may_pass_are_tried_again(
    server: FileServer, tmp_path: Path, status: int, attempts: int
) -> None:
    leave_partial_file(server, tmp_path / "file")
    server.status = status
    with pytest.raises(ShiftViTError, match=f"the server responded {status}"):
        download(server.url, tmp_path / "file", limit=2**20)
    assert len(server.requests) == attempts


def test_content_encoding_and_invalid_urls_fail(server: FileServer, tmp_path: Path) -> None:
    server.encoding = "gzip"
    with pytest.raises(ShiftViTError, match="sends the file with a content encoding"):
        download(server.url, tmp_path / "file", limit=2**20)
    for url in ("file:///etc/passwd", "ftp://127.0.0.1/x", "weights.pth", ""):
        with pytest.raises(
            ShiftViTError, match="is not the address of a server; it must begin with https:// or http://"
        ):
            download(url, tmp_path / "file", limit=2**20)
    with pytest.raises(ShiftViTError):
        download("http://127.0.0.1:9 9/\x1b[31m", tmp_path / "file", limit=2**20)
    assert list(tmp_path.iterdir()) == []


def test_redirect_from_https_to_http_fails() -> None:
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


def test_killed_download_is_continued(server: FileServer, tmp_path: Path) -> None:
    server.stop_after = 500_000
    server.hold.clear()
    child = subprocess.Popen([sys.executable, "-c", CHILD, server.url, str(tmp_path / "file")])
    assert server.sent.wait(20)
    for _ in range(200):
        if (tmp_path / "file").is_file() and (tmp_path / "file").stat().st_size > 400_000:
            break
        time.sleep(0.05)
    child.kill()
    child.wait()
    server.hold.set()
    server.stop_after = None
    server.requests.clear()
    size = (tmp_path / "file").stat().st_size
    assert_completes(server, tmp_path / "file", f"bytes={size - 1}-")
