"""What messages say of errors from elsewhere."""

from __future__ import annotations

import errno
import gzip
import os
import zlib
from urllib.error import URLError

import pytest

from shiftvit.errors import describe_error, take_first_line


@pytest.mark.parametrize(
    ("error", "said"),
    [
        (OSError(errno.ENOENT, "No such file or directory", "a.png"), "No such file or directory"),
        (OSError("x"), "x"),
        (OSError(), "OSError"),
        (TimeoutError(), "TimeoutError"),
        (gzip.BadGzipFile("Not a gzipped file"), "Not a gzipped file"),
        (zlib.error("Error -3\n while  decompressing"), "Error -3 while decompressing"),
        (URLError("no route").reason, "no route"),
        (ValueError(" \n"), "ValueError"),
        (ValueError("long" * 100), "long" * 50),
    ],
)
def test_error_is_described_in_one_line(error, said):
    assert describe_error(error) == said


def test_reason_of_an_error_of_the_system(tmp_path):
    with pytest.raises(FileNotFoundError) as caught:
        (tmp_path / "missing").read_bytes()
    assert describe_error(caught.value) == os.strerror(errno.ENOENT)


@pytest.mark.parametrize(
    ("error", "said"),
    [
        (RuntimeError(" \n  CUDA error:\tunknown\nCompile with"), "CUDA error: unknown"),
        (RuntimeError(), "RuntimeError"),
        (RuntimeError("\r\n \x1b"), "RuntimeError"),
        (ValueError("long" * 100), "long" * 50),
        ("a server's words\nand more", "a server's words"),
    ],
)
def test_first_line_of_a_long_message(error, said):
    assert take_first_line(error) == said
