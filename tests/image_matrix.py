"""Image files for the tests of the decoder: real ones of every format, and ones that are written byte by byte."""

from __future__ import annotations

import io
import struct
import zlib
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

# What EXIF's orientation means: where the stored picture's first row and first column belong.
SIDES = {
    1: ("top", "left"),
    2: ("top", "right"),
    3: ("bottom", "right"),
    4: ("bottom", "left"),
    5: ("left", "top"),
    6: ("right", "top"),
    7: ("right", "bottom"),
    8: ("left", "bottom"),
}
ADAM7 = [(0, 0, 8, 8), (4, 0, 8, 8), (0, 4, 4, 8), (2, 0, 4, 4), (0, 2, 2, 4), (1, 0, 2, 2), (0, 1, 1, 2)]
CHANNELS = {0: 1, 2: 3, 3: 1, 4: 2, 6: 4}  # of a PNG's colour types


@cache
def sample() -> np.ndarray:
    """A real picture: uint8 (32, 32, 3)."""
    with np.load(Path(__file__).parent / "golden" / "cifar10_sample.npz") as arrays:
        return arrays["x_train"][0]


def encode(image: Image.Image | np.ndarray, form: str, **options: Any) -> bytes:
    picture = Image.fromarray(image) if isinstance(image, np.ndarray) else image.copy()  # saving leaves traces
    stream = io.BytesIO()
    picture.save(stream, form, **options)
    return stream.getvalue()


@cache
def files() -> dict[str, bytes]:
    """The sample in each format and form that Pillow writes."""
    picture = Image.fromarray(sample())

    def sequence() -> dict[str, Any]:
        return {"save_all": True, "append_images": [picture.rotate(90)]}

    tiff = {
        f"{name}.tif": encode(picture, "TIFF", compression=name)
        for name in ("raw", "tiff_lzw", "tiff_adobe_deflate", "packbits", "jpeg")
    }
    return tiff | {
        "baseline.jpg": encode(picture, "JPEG", quality=95, subsampling=0, exif=exif(1)),
        "progressive.jpg": encode(picture, "JPEG", quality=95, subsampling=0, progressive=True),
        "cmyk.jpg": encode(picture.convert("CMYK"), "JPEG", quality=95, subsampling=0),
        "pair.mpo": encode(picture, "MPO", quality=95, subsampling=0, **sequence()),
        "plain.png": encode(picture, "PNG", exif=exif(1)),
        "palette.png": encode(picture.quantize(256), "PNG"),
        "animated.png": encode(picture, "PNG", **sequence()),
        "lossy.webp": encode(picture, "WEBP", quality=95, exif=exif(1)),
        "lossless.webp": encode(picture, "WEBP", lossless=True),
        "animated.webp": encode(picture, "WEBP", lossless=True, **sequence()),
        "animated.gif": encode(picture, "GIF", comment=b"a comment", **sequence()),
        "plain.bmp": encode(picture, "BMP"),
        "palette.bmp": encode(picture.quantize(256), "BMP"),
        "big.tif": encode(picture, "TIFF", big_tiff=True),
        "pages.tif": encode(picture, "TIFF", **sequence()),
        "plain.avif": encode(picture, "AVIF", quality=95, subsampling="4:4:4", exif=exif(1)),
        "alpha.avif": encode(picture.convert("RGBA"), "AVIF", quality=95, subsampling="4:4:4"),
        "animated.avif": encode(picture, "AVIF", quality=95, subsampling="4:4:4", **sequence()),
    }


def exif(orientation: int, order: str = "<") -> bytes:
    entry = struct.pack(order + "HHIHH", 274, 3, 1, orientation, 0)
    start = b"II*\0" if order == "<" else b"MM\0*"
    return b"Exif\0\0" + start + struct.pack(order + "IH", 8, 1) + entry + bytes(4)


def stored(upright: np.ndarray, orientation: int) -> np.ndarray:
    """Returns the picture as a file of that orientation stores it, pixel by pixel from what `SIDES` says."""
    height, width = upright.shape[:2]
    first_row, first_column = SIDES[orientation]
    size = (height, width) if first_row in {"top", "bottom"} else (width, height)
    result = np.empty((*size, 3), np.uint8)
    for row in range(size[0]):
        for column in range(size[1]):
            away = {first_row: row, first_column: column}  # from each of the two sides
            y = away["top"] if "top" in away else height - 1 - away["bottom"]
            x = away["left"] if "left" in away else width - 1 - away["right"]
            result[row, column] = upright[y, x]
    return result


def chunk(kind: bytes, body: bytes) -> bytes:
    return struct.pack(">I", len(body)) + kind + body + struct.pack(">I", zlib.crc32(kind + body))


def png(
    samples: np.ndarray,
    depth: int,
    colour: int,
    *,
    before: bytes = b"",
    interlaced: bool = False,
    size: tuple[int, int] | None = None,
) -> bytes:
    """Writes samples (height, width, channels), each below 2**depth, as a PNG; `before` are chunks before IDAT."""
    height, width = size or samples.shape[:2]
    header = struct.pack(">IIBBBBB", width, height, depth, colour, 0, 0, interlaced)
    passes = [samples[y::dy, x::dx] for x, y, dx, dy in ADAM7] if interlaced else [samples]
    lines = b"".join(b"\0" + _packed(row, depth) for part in passes if part.size for row in part)
    data = chunk(b"IDAT", zlib.compress(lines))
    return b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", header) + before + data + chunk(b"IEND", b"")


def _packed(row: np.ndarray, depth: int) -> bytes:
    if depth >= 8:
        return row.astype(">u2" if depth == 16 else np.uint8).tobytes()
    bits = (row.reshape(-1, 1) >> np.arange(depth - 1, -1, -1)) & 1
    return np.packbits(bits.astype(np.uint8)).tobytes()


def tiff(tags: dict[int, Any], data: bytes = b"", *, order: str = "<", big: bool = False) -> bytes:
    """Writes a TIFF of one directory; a value is an int, a list (LONG), bytes, or (type, list).

    `data` lies at offset 8, or 16 in a BigTIFF.
    """
    word, count = ("Q", "Q") if big else ("I", "H")
    forms = {1: "B", 2: "B", 3: "H", 4: "I", 7: "B", 16: "Q"}
    at = (16 if big else 8) + len(data)
    behind = at + struct.calcsize("<" + count) + len(tags) * (20 if big else 12) + struct.calcsize("<" + word)
    entries, tail = b"", b""
    for tag, value in sorted(tags.items()):
        if not isinstance(value, tuple):
            value = (7, list(value)) if isinstance(value, bytes) else (4, [value] if isinstance(value, int) else value)
        kind, values = value
        raw = struct.pack(f"{order}{len(values)}{forms[kind]}", *values)
        if len(raw) > struct.calcsize("<" + word):
            raw, tail = struct.pack(order + word, behind + len(tail)), tail + raw
        entries += struct.pack(order + "HH" + word, tag, kind, len(values)) + raw.ljust(8 if big else 4, b"\0")
    head = (b"II" if order == "<" else b"MM") + struct.pack(order + "H", 43 if big else 42)
    head += struct.pack(order + "HHQ", 8, 0, at) if big else struct.pack(order + "I", at)
    return head + data + struct.pack(order + count, len(tags)) + entries + bytes(struct.calcsize("<" + word)) + tail


def grey_tiff(width: int, height: int, bits: int, data: bytes, **tags: Any) -> bytes:
    """Writes an uncompressed grey TIFF; `tags` are more tags, or others, by number: t262=0."""
    order, big = tags.pop("order", "<"), tags.pop("big", False)
    known = {256: width, 257: height, 258: (3, [bits]), 259: (3, [1]), 262: (3, [1]), 273: 16 if big else 8}
    known |= {277: (3, [1]), 278: height, 279: len(data)}
    return tiff(known | {int(name[1:]): value for name, value in tags.items()}, data, order=order, big=big)


def rgb_tiff(width: int, height: int, data: bytes, **tags: Any) -> bytes:
    defaults = {"t258": (3, [8, 8, 8]), "t262": (3, [2]), "t277": (3, [3])}
    return grey_tiff(width, height, 8, data, **defaults | tags)


def with_segment(jpeg: bytes, marker: int, body: bytes) -> bytes:
    """Puts a segment right after a JPEG's start."""
    return jpeg[:2] + struct.pack(">BBH", 0xFF, marker, len(body) + 2) + body + jpeg[2:]


def deflated_zeros(count: int) -> bytes:
    packer = zlib.compressobj(9)
    return b"".join(packer.compress(bytes(2**20)) for _ in range(count // 2**20)) + packer.flush()


def on_white(colour: np.ndarray, alpha: np.ndarray) -> np.ndarray:
    """The closed form, on the 0..255 scale, rounded half up (there are no exact halves)."""
    share = alpha.astype(np.float64) / 255
    return np.floor(colour * share + 255 * (1 - share) + 0.5).astype(np.uint8)


def run_length_bmp(width: int, height: int, palette: np.ndarray, codes: bytes) -> bytes:
    head = struct.pack("<IiiHHIIiiII", 40, width, height, 1, 8, 1, len(codes), 0, 0, 256, 0)
    start = 14 + len(head) + palette.size
    return b"BM" + struct.pack("<IHHI", start + len(codes), 0, 0, start) + head + palette.tobytes() + codes


def declared(height: int, width: int) -> dict[str, bytes]:
    """Returns small files that declare height x width pixels, and as far as may be hold the data for them."""
    jpeg = bytearray(files()["baseline.jpg"])
    frame = jpeg.index(b"\xff\xc0")
    jpeg[frame + 5 : frame + 9] = struct.pack(">2H", min(height, 65500), min(width, 65500))
    bmp = bytearray(files()["plain.bmp"])
    bmp[18:26] = struct.pack("<2i", width, height)
    run_length = bytearray(bmp)
    run_length[28:34] = struct.pack("<HI", 8, 1)
    gif = bytearray(files()["animated.gif"])
    gif[6:10] = struct.pack("<2H", min(width, 65535), min(height, 65535))
    image = gif.index(b",\0\0\0\0")
    grown = bytearray(gif)
    grown[6:10] = bytes([1, 0, 1, 0])
    grown[image + 5 : image + 9] = struct.pack("<2H", min(width, 65535), min(height, 65535))
    side = min(height, 16384) - 1
    canvas = b"VP8X" + struct.pack("<I", 10) + bytes(4) + struct.pack("<I", side)[:3] * 2
    webp = b"RIFF" + struct.pack("<I", 0) + b"WEBP" + canvas + files()["lossless.webp"][12:]
    webp = webp[:4] + struct.pack("<I", len(webp) - 8) + webp[8:]
    avif = files()["plain.avif"].replace(struct.pack(">2I", 32, 32), struct.pack(">2I", width, height))
    smaller = files()["plain.avif"].replace(struct.pack(">2I", 32, 32), struct.pack(">2I", 16000, 16000))
    strip = deflated_zeros(2**27)
    pixel = png(np.zeros((1, 1, 1), int), 1, 0, size=(height, width))
    deflate: dict[str, Any] = {"t258": (3, [1]), "t259": (3, [8]), "t262": (3, [1]), "t277": (3, [1])}
    return {
        "jpeg": bytes(jpeg),
        "png": pixel.replace(pixel[33:-12], chunk(b"IDAT", strip)),
        "bmp": bytes(bmp),
        "run length": bytes(run_length),
        "gif": bytes(gif),
        "gif frame": bytes(grown),
        "webp": webp,
        "avif": avif,
        "avif smaller": smaller,
        "tiff": rgb_tiff(width, height, b"abc"),
        "tiff strip": rgb_tiff(width, height, strip, **deflate),
        "tiff tile": rgb_tiff(16, 16, strip, t322=width, t323=height, t324=8, t325=len(strip), **deflate),
    }
