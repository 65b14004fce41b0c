"""Image files for the tests of the decoder: a real picture in every format, and files written byte by byte."""

from __future__ import annotations

import io
import struct
import zlib
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image
from pillow_heif import register_heif_opener

# What EXIF's orientations mean: on which side of the upright picture the first stored row and column lie.
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
register_heif_opener()
ADAM7 = [(0, 0, 8, 8), (4, 0, 8, 8), (0, 4, 4, 8), (2, 0, 4, 4), (0, 2, 2, 4), (1, 0, 2, 2), (0, 1, 1, 2)]


@cache
def load_picture() -> np.ndarray:
    """A real picture: uint8 (32, 32, 3)."""
    with np.load(Path(__file__).parent / "golden" / "cifar10_sample.npz") as arrays:
        image: np.ndarray = arrays["x_train"][0]
        return image


def encode(image: Image.Image | np.ndarray, form: str, **options: Any) -> bytes:
    picture = Image.fromarray(image) if isinstance(image, np.ndarray) else image.copy()  # saving alters it
    stream = io.BytesIO()
    picture.save(stream, form, **options)
    return stream.getvalue()


@cache
def make_files() -> dict[str, bytes]:
    """Returns the picture in each format and variant that Pillow writes."""
    picture = Image.fromarray(load_picture())

    def sequence() -> dict[str, Any]:
        return {"save_all": True, "append_images": [picture.rotate(90)]}

    tiff = {
        f"{name}.tif": encode(picture, "TIFF", compression=name)
        for name in ("raw", "tiff_lzw", "tiff_adobe_deflate", "packbits", "jpeg")
    }
    return tiff | {
        "baseline.jpg": encode(picture, "JPEG", quality=95, subsampling=0, exif=make_exif(1)),
        "progressive.jpg": encode(picture, "JPEG", quality=95, subsampling=0, progressive=True),
        "cmyk.jpg": encode(picture.convert("CMYK"), "JPEG", quality=95, subsampling=0),
        "pair.mpo": encode(picture, "MPO", quality=95, subsampling=0, **sequence()),
        "plain.png": encode(picture, "PNG", exif=make_exif(1)),
        "palette.png": encode(picture.quantize(256), "PNG"),
        "animated.png": encode(picture, "PNG", **sequence()),
        "lossy.webp": encode(picture, "WEBP", quality=95, exif=make_exif(1)),
        "lossless.webp": encode(picture, "WEBP", lossless=True),
        "animated.webp": encode(picture, "WEBP", lossless=True, **sequence()),
        "animated.gif": encode(picture, "GIF", comment=b"a comment", **sequence()),
        "plain.bmp": encode(picture, "BMP"),
        "palette.bmp": encode(picture.quantize(256), "BMP"),
        "big.tif": encode(picture, "TIFF", big_tiff=True),
        "pages.tif": encode(picture, "TIFF", **sequence()),
        "plain.avif": encode(picture, "AVIF", quality=95, subsampling="4:4:4", exif=make_exif(1)),
        "alpha.avif": encode(picture.convert("RGBA"), "AVIF", quality=95, subsampling="4:4:4"),
        "plain.jp2": encode(picture, "JPEG2000", irreversible=False),
        "tiles.j2k": encode(picture, "JPEG2000", no_jp2=True, tile_size=(16, 16)),
        "plain.ppm": encode(picture, "PPM"),
        "text.ppm": b"P3\n# a comment\n32 32\n255\n"
        + b" ".join(b"%d" % value for value in load_picture().flat)
        + b"\n",
        "plain.heic": encode(picture, "HEIF", quality=95, chroma=444, exif=make_exif(1)),
        "alpha.heic": encode(picture.convert("RGBA"), "HEIF", quality=95, chroma=444),
        "pair.heic": encode(picture, "HEIF", quality=95, chroma=444, **sequence()),
        "animated.avif": encode(picture, "AVIF", quality=95, subsampling="4:4:4", **sequence()),
    }


def make_exif(orientation: int, order: str = "<") -> bytes:
    entry = struct.pack(order + "HHIHH", 274, 3, 1, orientation, 0)
    start = b"II*\0" if order == "<" else b"MM\0*"
    return b"Exif\0\0" + start + struct.pack(order + "IH", 8, 1) + entry + bytes(4)


def turn_for_storage(upright: np.ndarray, orientation: int) -> np.ndarray:
    """Returns the pixels that a file with this orientation stores, computed one by one from `SIDES`."""
    height, width = upright.shape[:2]
    first_row, first_column = SIDES[orientation]
    size = (height, width) if first_row in {"top", "bottom"} else (width, height)
    result = np.empty((*size, 3), np.uint8)
    for row in range(size[0]):
        for column in range(size[1]):
            away = {first_row: row, first_column: column}  # the distance from each of the two sides
            y = away["top"] if "top" in away else height - 1 - away["bottom"]
            x = away["left"] if "left" in away else width - 1 - away["right"]
            result[row, column] = upright[y, x]
    return result


def make_chunk(kind: bytes, body: bytes) -> bytes:
    return struct.pack(">I", len(body)) + kind + body + struct.pack(">I", zlib.crc32(kind + body))


def make_png(
    samples: np.ndarray,
    depth: int,
    colour: int,
    *,
    before: bytes = b"",
    interlaced: bool = False,
    size: tuple[int, int] | None = None,
) -> bytes:
    """Returns a PNG of samples (height, width, channels), each below 2**depth; the chunks `before` precede IDAT."""
    height, width = size or samples.shape[:2]
    header = struct.pack(">IIBBBBB", width, height, depth, colour, 0, 0, interlaced)
    passes = [samples[y::dy, x::dx] for x, y, dx, dy in ADAM7] if interlaced else [samples]
    lines = b"".join(b"\0" + _pack(row, depth) for part in passes if part.size for row in part)
    data = make_chunk(b"IDAT", zlib.compress(lines))
    return b"\x89PNG\r\n\x1a\n" + make_chunk(b"IHDR", header) + before + data + make_chunk(b"IEND", b"")


def _pack(row: np.ndarray, depth: int) -> bytes:
    if depth >= 8:
        return row.astype(">u2" if depth == 16 else np.uint8).tobytes()
    bits = (row.reshape(-1, 1) >> np.arange(depth - 1, -1, -1)) & 1
    return np.packbits(bits.astype(np.uint8)).tobytes()


def make_tiff(tags: dict[int, Any], data: bytes = b"", *, order: str = "<", big: bool = False) -> bytes:
    """Returns a TIFF with one directory. A value is an int, a list (LONG), bytes, or (type, list).

    `data` begins at offset 8, or at 16 in a BigTIFF.
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


def make_grey_tiff(width: int, height: int, bits: int, data: bytes, **tags: Any) -> bytes:
    """Returns an uncompressed grey TIFF. `tags` adds or replaces tags by number, such as t262=0."""
    order, big = tags.pop("order", "<"), tags.pop("big", False)
    known = {256: width, 257: height, 258: (3, [bits]), 259: (3, [1]), 262: (3, [1]), 273: 16 if big else 8}
    known |= {277: (3, [1]), 278: height, 279: len(data)}
    return make_tiff(known | {int(name[1:]): value for name, value in tags.items()}, data, order=order, big=big)


def make_rgb_tiff(width: int, height: int, data: bytes, **tags: Any) -> bytes:
    defaults = {"t258": (3, [8, 8, 8]), "t262": (3, [2]), "t277": (3, [3])}
    return make_grey_tiff(width, height, 8, data, **defaults | tags)


def insert_segment(jpeg: bytes, marker: int, body: bytes) -> bytes:
    """Returns the JPEG with a segment right after its start marker."""
    return jpeg[:2] + struct.pack(">BBH", 0xFF, marker, len(body) + 2) + body + jpeg[2:]


def deflate_zeros(count: int) -> bytes:
    packer = zlib.compressobj(9)
    return b"".join(packer.compress(bytes(2**20)) for _ in range(count // 2**20)) + packer.flush()


def lay_on_white(colour: np.ndarray, alpha: np.ndarray) -> np.ndarray:
    """Returns the colours blended with white by the formula, 0..255, rounded half up (exact halves do not occur)."""
    share = alpha.astype(np.float64) / 255
    return np.floor(colour * share + 255 * (1 - share) + 0.5).astype(np.uint8)


def make_run_length_bmp(width: int, height: int, palette: np.ndarray, codes: bytes) -> bytes:
    head = struct.pack("<IiiHHIIiiII", 40, width, height, 1, 8, 1, len(codes), 0, 0, 256, 0)
    start = 14 + len(head) + palette.size
    return b"BM" + struct.pack("<IHHI", start + len(codes), 0, 0, start) + head + palette.tobytes() + codes


def make_oversized(height: int, width: int) -> dict[str, bytes]:
    """Returns small files that declare height x width pixels and, where the format allows it, contain the data."""
    jpeg = bytearray(make_files()["baseline.jpg"])
    frame = jpeg.index(b"\xff\xc0")
    jpeg[frame + 5 : frame + 9] = struct.pack(">2H", min(height, 65500), min(width, 65500))
    bmp = bytearray(make_files()["plain.bmp"])
    bmp[18:26] = struct.pack("<2i", width, height)
    run_length = bytearray(bmp)
    run_length[28:34] = struct.pack("<HI", 8, 1)
    gif = bytearray(make_files()["animated.gif"])
    gif[6:10] = struct.pack("<2H", min(width, 65535), min(height, 65535))
    image = gif.index(b",\0\0\0\0")
    grown = bytearray(gif)
    grown[6:10] = bytes([1, 0, 1, 0])
    grown[image + 5 : image + 9] = struct.pack("<2H", min(width, 65535), min(height, 65535))
    side = min(height, 16384) - 1
    canvas = b"VP8X" + struct.pack("<I", 10) + bytes(4) + struct.pack("<I", side)[:3] * 2
    webp = b"RIFF" + struct.pack("<I", 0) + b"WEBP" + canvas + make_files()["lossless.webp"][12:]
    webp = webp[:4] + struct.pack("<I", len(webp) - 8) + webp[8:]
    avif = make_files()["plain.avif"].replace(struct.pack(">2I", 32, 32), struct.pack(">2I", width, height))
    smaller = make_files()["plain.avif"].replace(struct.pack(">2I", 32, 32), struct.pack(">2I", 16000, 16000))
    strip = deflate_zeros(2**27)
    pixel = make_png(np.zeros((1, 1, 1), int), 1, 0, size=(height, width))
    deflate: dict[str, Any] = {"t258": (3, [1]), "t259": (3, [8]), "t262": (3, [1]), "t277": (3, [1])}
    return {
        "jpeg": bytes(jpeg),
        "png": pixel.replace(pixel[33:-12], make_chunk(b"IDAT", strip)),
        "bmp": bytes(bmp),
        "run length": bytes(run_length),
        "gif": bytes(gif),
        "gif frame": bytes(grown),
        "webp": webp,
        "avif": avif,
        "avif smaller": smaller,
        "tiff": make_rgb_tiff(width, height, b"abc"),
        "tiff strip": make_rgb_tiff(width, height, strip, **deflate),
        "tiff tile": make_rgb_tiff(16, 16, strip, t322=width, t323=height, t324=8, t325=len(strip), **deflate),
    }


def make_jpeg2000(
    size: tuple[int, int] = (32, 32), tile: tuple[int, int] = (32, 32), layers: int = 1, precinct: int = 0xFF
) -> bytes:
    """Returns the headers of a JPEG 2000 codestream, without tiles."""
    channels = b"\7\1\1" * 3
    sizes = struct.pack(">H8IH", 0, *size, 0, 0, *tile, 0, 0, 3) + channels
    coding = struct.pack(">BBHB5B", 1, 0, layers, 1, 0, 4, 4, 0, 1) + bytes([precinct])
    segments = (b"\xff\x51", sizes), (b"\xff\x52", coding)
    return (
        b"\xff\x4f"
        + b"".join(marker + struct.pack(">H", len(body) + 2) + body for marker, body in segments)
        + b"\xff\x90"
    )


# The red, green and blue primaries of three colour spaces, in XYZ under D50.
DISPLAY_P3 = ((0.51512, 0.24120, -0.00105), (0.29198, 0.69225, 0.04189), (0.15710, 0.06657, 0.78407))
ADOBE_RGB = ((0.60974, 0.31111, 0.01947), (0.20528, 0.62567, 0.06087), (0.14919, 0.06322, 0.74457))
SRGB = ((0.43607, 0.22249, 0.01392), (0.38515, 0.71687, 0.09708), (0.14307, 0.06061, 0.71410))
GAMMA = 563 / 256


def make_icc(colours: tuple[tuple[float, ...], ...], space: bytes = b"RGB ") -> bytes:
    """Returns an ICC profile (version 2.1) with these primaries and the gamma above."""

    def xyz(values: tuple[float, ...]) -> bytes:
        return b"XYZ \0\0\0\0" + struct.pack(">3i", *(round(value * 65536) for value in values))

    white = (0.9642, 1.0, 0.8249)
    curve = b"curv\0\0\0\0" + struct.pack(">IH", 1, 563) + b"\0\0"
    named = b"desc\0\0\0\0" + struct.pack(">I", 5) + b"test\0" + bytes(79)
    tags = {b"desc": named, b"cprt": b"text\0\0\0\0none\0\0\0\0", b"wtpt": xyz(white)}
    for letter, colour in zip(b"rgb", colours, strict=True):
        tags |= {bytes([letter]) + b"XYZ": xyz(colour), bytes([letter]) + b"TRC": curve}
    at, table, body = 128 + 4 + 12 * len(tags), struct.pack(">I", len(tags)), b""
    for name, content in tags.items():
        content += bytes(-len(content) % 4)
        table += name + struct.pack(">II", at + len(body), len(content))
        body += content
    head = struct.pack(">I4sI4s4s4s12x4s20x", at + len(body), b"none", 0x02100000, b"mntr", space, b"XYZ ", b"acsp")
    return head + struct.pack(">I", 0) + xyz(white)[8:] + bytes(128 - len(head) - 16) + table + body


def convert_to_srgb(pixels: np.ndarray, colours: tuple[tuple[float, ...], ...]) -> np.ndarray:
    """Returns the pixels in sRGB as its standard defines it (IEC 61966-2-1), not rounded."""
    linear = np.linalg.solve(np.array(SRGB).T, np.array(colours).T) @ ((pixels / 255.0) ** GAMMA)[..., None]
    linear = linear[..., 0].clip(0, 1)
    return 255 * np.where(linear <= 0.0031308, 12.92 * linear, 1.055 * linear ** (1 / 2.4) - 0.055)
