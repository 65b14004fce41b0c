"""Hostile image files: each is decoded or rejected in one line that names it, in bounded time and memory."""

from __future__ import annotations

import json
import os
import socket
import stat
import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image
from pillow_heif import HeifImageFile

import image_matrix as matrix
from pace import limit_time, measure_unit
from shiftvit.data.decode.images import MAX_BYTES, decode
from shiftvit.errors import ShiftViTError

NAMES = [*matrix.make_files()]


def read_error(source: Any, **options: Any) -> str:
    """Returns the message with which a source is rejected, and checks that it is one line."""
    with pytest.raises(ShiftViTError) as caught:
        decode(source, **options)
    message = str(caught.value)
    assert message.isprintable()  # which excludes line breaks
    return message


def decode_or_reject(data: bytes) -> np.ndarray | None:
    """Decodes data that may be damaged. Allows only an array or a ShiftViTError, in limited time."""
    pixels, message = None, "'the one' "
    with limit_time(150):
        try:
            pixels = decode(data, name="the one")
        except ShiftViTError as error:
            message = str(error)
    assert message.startswith("'the one' ")
    assert message.isprintable()
    assert pixels is None or (pixels.dtype == np.uint8 and pixels.ndim == 3 and pixels.shape[2] == 3)
    return pixels


# --- Damaged files.


@pytest.mark.slow
@pytest.mark.parametrize("name", NAMES)
@settings(max_examples=70)
@given(data=st.data())
def test_damaged_files(name: str, data: st.DataObject) -> None:
    content = bytearray(matrix.make_files()[name])
    # Most faults are in the first bytes; the rest is pixels.
    places = st.integers(0, len(content) - 1) | st.integers(0, min(200, len(content) - 1))
    place = data.draw(places)
    damage = data.draw(st.sampled_from(["cut", "flip", "replace", "append"]))
    if damage == "cut":
        del content[place:]
    elif damage == "flip":
        for where in data.draw(st.lists(places, min_size=1, max_size=8)):
            content[where] ^= 1 << data.draw(st.integers(0, 7))
    elif damage == "replace":  # by as many bytes, or more, or fewer
        content[place : place + data.draw(st.integers(0, 40))] = data.draw(st.binary(max_size=40))
    else:
        content += data.draw(st.binary(min_size=1, max_size=200))
    decode_or_reject(bytes(content))


@settings(max_examples=200)
@given(
    start=st.sampled_from([content[:length] for content in matrix.make_files().values() for length in (4, 12, 30, 60)]),
    rest=st.binary(max_size=300),
)
def test_random_data_after_a_header(start: bytes, rest: bytes) -> None:
    decode_or_reject(start + rest)


@pytest.mark.parametrize("name", NAMES)
def test_truncated_files(name: str) -> None:
    """A file cut anywhere is rejected unless it has all its pixels. Pillow's `verify` accepts half a JPEG."""
    content = matrix.make_files()[name]
    whole = decode(content)
    for length in range(1, len(content), max(1, len(content) // 60)):
        pixels = decode_or_reject(content[:length])
        assert pixels is None or np.array_equal(pixels, whole)
    if not name.startswith(("animated", "pair", "pages")):  # they may still have their first picture
        assert decode_or_reject(content[: len(content) // 2]) is None


# --- Files that are not images.


@pytest.mark.parametrize(
    ("content", "fault"),
    [
        (b"", "is empty: 0 bytes"),
        (b"BMW, a text that begins as a BMP", "is not an image of a supported format"),
        (b"<svg xmlns='http://www.w3.org/2000/svg'/>", "is not an image of a supported format"),
        (b"\0\0\0\x18ftypqt  \0\0\0\0qt  wide", "is not an image of a supported format"),
        (b"\0\0\0\x18ftypheic\0\0\0\0mif1heic", "is not a readable HEIC file ("),
        (b"P6 3 x", "is not a readable PPM file (its header has no size)"),
        (b"P6 #" + b"#" * 2**20, "is not a readable PPM file (its header has no size)"),
        (b"P5 2 2 0 abcd", "is not a readable PPM file (maxval must be"),
        (b"P5 2 2 255 abc", "is not a readable PPM file ("),
        (b"P5 0 2 255 abc", "is not a readable PPM file ("),
        (matrix.make_files()["plain.jp2"][:40], "is not a readable JPEG 2000 file (it ends too early)"),
        (matrix.make_jpeg2000(tile=(1, 1), size=(65, 64)), "has 4,160 tiles and 3 channels"),
        (matrix.make_jpeg2000(layers=101), "has more layers or precincts"),
        (matrix.make_jpeg2000(precinct=0x33), "has more layers or precincts"),
        (b"\xff\xd8\xff\xe0", "is not a readable JPEG file (it"),
        (b"\x89PNG\r\n\x1a\n", "is not a readable PNG file (it ends too early)"),
        (matrix.make_png(np.zeros((1, 0, 1)), 8, 0), "is not a readable PNG file (it holds no picture)"),
        (matrix.make_rgb_tiff(0, 5, b"abc"), "is not a readable TIFF file (it holds no picture)"),
        (
            matrix.make_rgb_tiff(1, 1, b"abc", t259=(3, [99])),
            "is not a readable TIFF file (it has an unknown code, 99)",
        ),
        (matrix.make_rgb_tiff(1, 1, b"abc", t273=[0] * 100_001), "has more than 100,000 parts"),
        (
            matrix.make_rgb_tiff(1, 3, b"abcdefghi", t273=[8, 11, 14], t278=1)[:-1],
            "is not a readable TIFF file (it ends too early)",
        ),
        (matrix.make_rgb_tiff(1, 1, b"abc", t256=[1, 1]), "is not a readable TIFF file (tag 256 has 2 values)"),
        (matrix.make_files()["lossless.webp"][:-9], "is not a readable WebP file (it ends too early)"),
        (
            matrix.make_rgb_tiff(1, 1, b"abc", t277=(3, [70])),
            "is not a readable TIFF file (more than 6 samples a pixel)",
        ),
        (matrix.make_rgb_tiff(1, 1, b"abc", big=True, order=">"), "is a big-endian BigTIFF"),
        (
            matrix.make_png(np.zeros((1, 1, 1)), 8, 0, before=matrix.make_chunk(b"tEXt", b"") * 100_000),
            "has more than 100,000 parts",
        ),
        (b"GIF89a\1\0\1\0\0\0\0" + b"!\xfe\1a\0" * 100_000, "has more than 100,000 parts"),
        (b"GIF89a\1\0\1\0\0\0\0!\xfe" + b"\1a" * 100_000, "has more than 100,000 parts"),
        (b"GIF89a\1\0\1\0\0\0\0;", "is not a readable GIF file (it holds no picture)"),
        (b"\xff\xd8" + b"\xff\xfe\0\2" * 100_001, "has more than 100,000 parts"),
        (b"\xff\xd8\xff\xc0\0\x11" + bytes(15) + b"\xff\xda\0\2" * 101, "is a JPEG of more than 100 scans"),
    ],
)
def test_invalid_files_are_named(content: bytes, fault: str) -> None:
    with limit_time(150):
        assert read_error(content).startswith(f"<bytes> {fault}")
        assert read_error(content, name="a\nb").startswith(rf"'a\nb' {fault}")


def test_invalid_sources_and_options_are_named() -> None:
    assert read_error(5) == "<int> is a int; give a path, a file's bytes or a PIL image"
    assert "<image> has 0 x 3 pixels, so it is empty" in read_error(Image.new("RGB", (3, 0)))
    assert decode(Image.new("L", (90, 70)), max_pixels=6300).shape == (70, 90, 3)
    assert read_error(Image.new("L", (90, 70)), max_pixels=6299).startswith("<image> has 70 x 90 pixels (6,300)")
    assert "at_least=(0, 5) is not a size" in read_error(b"", at_least=(0, 5))


def test_unreadable_files_are_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    missing = tmp_path / "missing\nfile.jpg"
    assert (
        read_error(missing) == f"{str(missing)!r} cannot be read: No such file or directory; give a readable image file"
    )
    assert f"{str(tmp_path)!r} is a directory" in read_error(tmp_path)
    assert "is not a path: embedded null" in read_error("a\0b")
    assert "File name too long" in read_error("a" * 5000)
    empty = tmp_path / "empty.png"
    empty.touch()
    assert f"{str(empty)!r} is empty: 0 bytes" in read_error(str(empty))
    good = tmp_path / "good.png"
    good.write_bytes(matrix.make_files()["plain.png"])
    assert decode(good).shape == (32, 32, 3)

    def deny(*_: Any) -> int:
        raise PermissionError(13, "Permission denied")

    monkeypatch.setattr(os, "open", deny)  # root may read any file
    assert "cannot be read: Permission denied" in read_error(good)


@pytest.mark.skipif(os.name != "posix", reason="only POSIX has these special files")
def test_special_files_do_not_block(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    pipe = tmp_path / "pipe.jpg"
    os.mkfifo(pipe)
    assert "is a named pipe" in read_error(pipe)
    assert "is a device" in read_error("/dev/zero")
    with socket.socket(socket.AF_UNIX) as server:
        monkeypatch.chdir(tmp_path)  # a socket's path must be short
        server.bind("socket.jpg")
        assert "is a socket" in read_error("socket.jpg")
    # The path is a file at the check and a pipe when it is opened.
    monkeypatch.setattr(Path, "stat", lambda *_, **__: SimpleNamespace(st_mode=stat.S_IFREG))
    assert "is a named pipe" in read_error(pipe)


def test_large_files_are_not_read(tmp_path: Path) -> None:
    path = tmp_path / "large.jpg"
    with path.open("wb") as file:
        file.truncate(5 * 2**30)
    with limit_time(30):
        assert f"has {5 * 2**30:,} bytes, more than max_bytes={MAX_BYTES:,}" in read_error(path)
    assert "has 101 bytes, more than max_bytes=100" in read_error(bytes(101), max_bytes=100)
    assert "is not an image" in read_error(bytes(100), max_bytes=100)


# --- Broken or expensive metadata, which must not lose the picture.


@pytest.mark.parametrize(
    "block",
    [
        b"",
        b"II*\0",
        matrix.make_exif(6)[6:20],  # it ends before the orientation
        b"II*\0\xff\xff\xff\xff",
        b"II*\0" + b"\xff" * 60,
        matrix.make_exif(6)[6:].replace(b"II*", b"XX*"),
    ],
)
def test_broken_exif_does_not_lose_the_picture(block: bytes) -> None:
    jpeg = matrix.encode(matrix.load_picture(), "JPEG", quality=95, subsampling=0)
    broken = matrix.insert_segment(jpeg, 0xE1, b"Exif\0\0" + block)
    np.testing.assert_array_equal(decode(broken), decode(jpeg))
    png = matrix.make_png(matrix.load_picture(), 8, 2, before=matrix.make_chunk(b"eXIf", block))
    np.testing.assert_array_equal(decode(png), matrix.load_picture())
    webp = matrix.encode(matrix.load_picture(), "WEBP", lossless=True, exif=b"Exif\0\0" + block)
    np.testing.assert_array_equal(decode(webp), matrix.load_picture())
    described = Image.Exif()
    described[270] = "a picture" * 9
    avif = matrix.encode(matrix.load_picture(), "AVIF", exif=described)
    start = avif.index(b"MM\0*")  # Pillow writes no broken block, so a valid one is overwritten
    broken = avif[:start] + block.ljust(60, b"\xff")[:60] + avif[start + 60 :]
    np.testing.assert_array_equal(decode(broken), decode(avif))


def test_broken_metadata_does_not_lose_the_picture() -> None:
    whole = matrix.make_files()["baseline.jpg"]
    for marker, body in ((0xE2, b"MPF\0II*\0\xff\xff"), (0xE2, b"ICC_PROFILE\0\7"), (0xED, b"Photoshop 3.0\x008BIM")):
        np.testing.assert_array_equal(decode(matrix.insert_segment(whole, marker, body)), decode(whole))
    for kind, body in ((b"acTL", bytes(8)), (b"fcTL", b"abc"), (b"iCCP", b"icc"), (b"gAMA", b""), (b"zTXt", b"\0")):
        chunk = matrix.make_chunk(kind, body)
        for before in (chunk * 2, chunk[:-4] + b"ABCD"):
            np.testing.assert_array_equal(
                decode(matrix.make_png(matrix.load_picture(), 8, 2, before=before)), matrix.load_picture()
            )
    tiff = matrix.make_rgb_tiff(
        32, 32, matrix.load_picture().tobytes(), t34665=10**9, t700=b"xmp", t34675=b"icc", t274=(3, [77])
    )
    np.testing.assert_array_equal(decode(tiff), matrix.load_picture())


@pytest.mark.slow
def test_metadata_bombs_are_not_expanded() -> None:
    zeros = matrix.deflate_zeros(2**28)
    chunks = [(b"zTXt", b"k\0\0"), (b"iTXt", b"k\0\1\0\0\0"), (b"iCCP", b"k\0\0")]
    for kind, start in chunks:
        bomb = matrix.make_chunk(kind, start + zeros)
        picture = matrix.make_png(matrix.load_picture(), 8, 2, before=bomb * 3)
        with limit_time(30):
            pixels = decode(picture)
        np.testing.assert_array_equal(pixels, matrix.load_picture())


# --- Decompression bombs.


DECODE_SCRIPT = """
import json, sys, time
from pathlib import Path
from shiftvit.data.decode.images import decode
from shiftvit.errors import ShiftViTError
for path in sys.argv[1:]:
    start = time.process_time()
    try:
        outcome = str(decode(path).shape)
    except ShiftViTError as error:
        outcome = str(error)
    status = Path("/proc/self/status").read_text()
    peak = int(status.partition("VmHWM:")[2].split()[0]) * 1024
    print(json.dumps([Path(path).name, outcome, peak, time.process_time() - start]))
"""


def decode_in_a_process(folder: Path, contents: dict[str, bytes]) -> dict[str, str]:
    """Decodes files in one process with limits on memory and time; returns the shape or error of each.

    The peak of memory never falls, so the first file that exceeds the limit is named.
    """
    paths = [folder / name for name in contents]
    for path in paths:
        path.write_bytes(contents[path.name])
    child = subprocess.run([sys.executable, "-c", DECODE_SCRIPT, *paths], capture_output=True, text=True, check=True)
    rows = [json.loads(line) for line in child.stdout.splitlines()]
    for name, _, peak, seconds in rows:
        assert peak < 10**9, name
        assert seconds < 600 * measure_unit(), name
    for path in paths:
        path.unlink()
    return {name: outcome for name, outcome, *_ in rows}


requires_proc = pytest.mark.skipif(
    not Path("/proc/self/status").exists(), reason="the peak of memory is read from /proc"
)


def test_picture_that_turns_out_larger_than_declared_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    def load(self: HeifImageFile) -> None:
        self._size, self.im = (90, 70), Image.new("RGB", (90, 70)).im

    monkeypatch.setattr(HeifImageFile, "load", load)
    assert "has 70 x 90 pixels (6,300), more than max_pixels=2,000" in read_error(
        matrix.make_files()["plain.heic"], max_pixels=2000
    )


@requires_proc
def test_bombs_are_rejected_by_their_declared_size(tmp_path: Path) -> None:
    outcomes = decode_in_a_process(tmp_path, matrix.make_oversized(60_000, 60_000))
    assert "is not a readable AVIF" in outcomes.pop("avif")  # over the limit of libavif
    for name, result in outcomes.items():
        size = {"jpeg": "60000 x 60000", "webp": "16384 x 16384", "avif smaller": "16000 x 16000"}
        assert f"{size.get(name, '60000 x 60000')} pixels" in result
        assert "more than max_pixels=64,000,000" in result


@requires_proc
@pytest.mark.slow
def test_pictures_just_below_the_limit_take_less_than_1_gb(tmp_path: Path) -> None:
    """Two of the costliest: libjpeg holds the coefficients of all scans, libwebp three copies of the picture."""
    ink, glass = Image.new("CMYK", (8000, 8000)), Image.new("RGBA", (5656, 5656), (9, 200, 50, 99))
    contents = {
        "progressive.jpg": matrix.encode(ink, "JPEG", progressive=True),
        "alpha.webp": matrix.encode(glass, "WEBP", method=0),
    }
    expected = {"progressive.jpg": "(8000, 8000, 3)", "alpha.webp": "(5656, 5656, 3)"}
    assert decode_in_a_process(tmp_path, contents) == expected
