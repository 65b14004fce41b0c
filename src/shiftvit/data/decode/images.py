"""Decodes image files to uint8 RGB arrays, or reports in one line why it cannot."""

from __future__ import annotations

import contextlib
import os
import stat
import struct
import threading
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageFile
from PIL.AvifImagePlugin import AvifImageFile
from PIL.JpegImagePlugin import JpegImageFile
from PIL.TiffImagePlugin import TiffImageFile
from PIL.WebPImagePlugin import WebPImageFile

from shiftvit.data.decode.faults import Fault
from shiftvit.data.decode.formats import find_kind, read_orientation, read_webp_size, reduce
from shiftvit.data.decode.profiles import convert_to_srgb, read_profile
from shiftvit.data.decode.readers import FORMATS, open_reader, weigh_pixel
from shiftvit.data.decode.rows import find_row, read_row
from shiftvit.errors import ShiftViTError, describe_error

# With these two limits decoding takes less than 1 GB of memory, even if a file was made to take more. The exception is
# an AVIF whose stream has larger pictures than its container declares, up to the 16384 x 16384 that libavif allows.
MAX_PIXELS = 64_000_000
MAX_BYTES = 128 * 2**20

_BYTES = 8  # the least that decoding takes for a pixel
_TILE = 2**16  # pixels that are converted at a time, so that a large picture has no second full-size copy
_SPECIAL = {"d": "directory", "p": "named pipe", "s": "socket", "c": "device", "b": "device"}
_loading = threading.Lock()
_PHOTOMETRIC, _BITS, _TILE_WIDTH, _TILE_LENGTH = 262, 258, 322, 323  # tags of TIFF


def decode(
    source: str | os.PathLike[str] | bytes | bytearray | memoryview | Image.Image,
    *,
    name: str | None = None,
    max_pixels: int = MAX_PIXELS,
    max_bytes: int = MAX_BYTES,
    at_least: tuple[int, int] | None = None,
    srgb: bool = False,
) -> NDArray[np.uint8]:
    """Decodes one picture: JPEG (also MPO), PNG, WebP, GIF, BMP, TIFF, AVIF, HEIC, JPEG 2000 or PPM.

    The content decides on the format, not the suffix. HEIC needs pillow-heif. Of several pictures in a file, it decodes
    the first; of a HEIC, the primary one. It turns the picture as EXIF says, and puts it on white where it is
    transparent. 16 bits of grey become `round(v / 257)`; of 16 bits of colour, it keeps the upper eight. It refuses
    floats and signed or 32-bit integers, which a TIFF or a PIL image may hold, because no value of theirs is agreed to
    be white.

    Many threads may call it at once. It changes nothing global, except that libtiff no longer prints to standard error.
    It neither sets nor obeys `PIL.Image.MAX_IMAGE_PIXELS`, except for a WebP of more than twice that many pixels.

    Args:
        source: a path, a file's bytes, or a PIL image, which is loaded, but neither changed nor closed. A row of a
            Parquet file is also a path: `FILE.parquet#7`.
        name: the name of the source in messages; None: its path or its type.
        max_pixels: the largest height * width, checked before anything is decoded. A pixel of a WebP, an AVIF or a
            JPEG 2000 counts as 2, because their decoders need more memory. A pixel of a run-length BMP, or of a PPM in
            text or not of 8 bits, counts as 16, because decoding it is slow.
        max_bytes: the largest file.
        at_least: (height, width) in pixels. A JPEG may then be decoded at a half, a quarter or an eighth of its
            size, if that leaves at least that many pixels. This is faster. The result differs by a few levels from a
            picture that is decoded whole and then shrunk.
        srgb: convert colours to sRGB where a file embeds an RGB profile, such as Display P3 or Adobe RGB. False:
            profiles are ignored.

    Returns:
        uint8 (H, W, 3), RGB, writable.

    Raises:
        ShiftViTError: the source cannot be read, is damaged, exceeds a limit, or has no supported format.
        MemoryError: there is not enough memory for the picture, which may be a good one.
    """
    if name is not None:
        label = repr(name)  # quoted, because a line break in it must not break the message
    elif isinstance(source, str | os.PathLike):
        label = repr(os.fspath(source))
    else:
        label = "<image>" if isinstance(source, Image.Image) else f"<{type(source).__name__}>"
    if at_least is not None and min(at_least) < 1:
        raise ShiftViTError(f"at_least={at_least} is not a size; give (height, width) in pixels, each 1 or more")
    try:
        if isinstance(source, str | os.PathLike):
            content = _read(Path(source), max_bytes)
            return _decode_bytes(content, max_pixels, at_least, srgb)
        if isinstance(source, bytes | bytearray | memoryview):
            _check_bytes(memoryview(source).nbytes, max_bytes)
            return _decode_bytes(bytes(source), max_pixels, at_least, srgb)
        if isinstance(source, Image.Image):
            return _decode_image(source, max_pixels, srgb)
        raise Fault(f"is a {type(source).__name__}; give a path, a file's bytes or a PIL image")
    except Fault as fault:
        raise ShiftViTError(f"{label} {fault}") from fault.__cause__
    except MemoryError as error:
        raise MemoryError(f"there is not enough memory to decode {label}") from error


def read_bytes(path: str | os.PathLike[str], *, name: str | None = None) -> bytes:
    """Returns the bytes of an image, which is a file, or a row of a Parquet file: `FILE.parquet#7`.

    `name` is its name in messages; None: the path.

    Raises:
        ShiftViTError: the image cannot be read, or has more than `MAX_BYTES`.
    """
    try:
        return _read(Path(path), MAX_BYTES)
    except Fault as fault:
        raise ShiftViTError(f"{name or os.fspath(path)!r} {fault}") from fault.__cause__


def _read(path: Path, max_bytes: int) -> bytes:
    """Returns a file's content. It does not wait for a pipe and does not read from a device."""
    try:
        row = find_row(path)
        if row is not None:
            return read_row(*row, lambda size: _check_bytes(size, max_bytes))
        _check_regular(path.stat())
        # The path may have become a pipe meanwhile. With this flag, opening one does not wait for a writer.
        flags = os.O_RDONLY | getattr(os, "O_NONBLOCK", 0) | getattr(os, "O_BINARY", 0)
        with os.fdopen(os.open(path, flags), "rb") as stream:
            status = os.fstat(stream.fileno())
            _check_regular(status)
            _check_bytes(status.st_size, max_bytes)
            return stream.read(status.st_size)  # no more, as the file may be growing
    except OSError as error:
        raise Fault(f"cannot be read: {describe_error(error)}; give a readable image file") from error
    except ShiftViTError:  # which names the Parquet file
        raise
    except ValueError as error:  # a null character
        raise Fault(f"is not a path: {error}; give an image file") from error


def _check_regular(status: os.stat_result) -> None:
    if not stat.S_ISREG(status.st_mode):
        what = _SPECIAL.get(stat.filemode(status.st_mode)[0], "special file")
        raise Fault(f"is a {what}; give an image file")


def _check_bytes(size: int, limit: int) -> None:
    if size == 0:
        raise Fault("is empty: 0 bytes; get the file again")
    if size > limit:
        raise Fault(f"has {size:,} bytes, more than max_bytes={limit:,}; shrink the picture or raise max_bytes")


def _check_pixels(size: tuple[int, int], limit: int, weight: int = 1, what: str = "") -> None:
    width, height = size
    has = f"has {what}{height} x {width} pixels"
    if min(size) < 1:
        raise Fault(f"{has}, so it is empty; give at least 1 x 1")
    if height * width * weight > limit:
        times = f", times {weight} for its format" if weight > 1 else ""
        raise Fault(
            f"{has} ({height * width:,}{times}), more than max_pixels={limit:,}; shrink the picture or raise max_pixels"
        )


def _decode_image(image: Image.Image, max_pixels: int, srgb: bool) -> NDArray[np.uint8]:
    _check_pixels(image.size, max_pixels)
    try:
        with _loading:  # Pillow reads a picture's file without a lock, and several threads may be given the same one
            image.load()
        pixels = _convert_pixels(image)
    except (Fault, MemoryError):
        raise
    except Exception as error:  # damaged files raise exceptions of nearly any type
        raise _explain_error("image", error, image.size) from error
    if srgb:
        pixels = convert_to_srgb(pixels, read_profile("", b"", image))
    return _turn(pixels, read_orientation(image.info.get("exif", b"")))  # Pillow turns a TIFF when it loads it


def _decode_bytes(data: bytes, max_pixels: int, at_least: tuple[int, int] | None, srgb: bool) -> NDArray[np.uint8]:
    if ImageFile.LOAD_TRUNCATED_IMAGES:
        raise Fault("may be truncated without notice: PIL.ImageFile.LOAD_TRUNCATED_IMAGES is true; set it to False")
    kind = find_kind(data)
    if kind is None:
        known = ", ".join(FORMATS)
        raise Fault(f"is not an image of a supported format ({known}): it begins with {data[:8]!r}")
    size = 0, 0
    try:
        reduced, orientation = reduce(kind, data)
        if kind == "WebP":
            size = read_webp_size(reduced)
            _check_pixels(size, max_pixels, weigh_pixel(kind))  # the reader makes two canvases immediately
        with contextlib.closing(open_reader(kind, reduced)) as image:
            size = image.size
            _check_pixels(size, max_pixels, weigh_pixel(kind, image))
            if isinstance(image, TiffImageFile):
                tile = image.tag_v2.get(_TILE_WIDTH, 1), image.tag_v2.get(_TILE_LENGTH, 1)
                _check_pixels(tile, max_pixels, what="tiles of ")  # each is decoded whole, even of a small picture
                image.im = Image.new(image.mode, image.size).im  # if Pillow made it, it would check its own limit
            if isinstance(image, WebPImageFile | AvifImageFile):
                orientation = read_orientation(image.info.get("exif", b""))
            if isinstance(image, JpegImageFile) and at_least is not None:
                height, width = at_least if orientation < 5 else at_least[::-1]
                image.draft(image.mode, (width, height))
            image.load()
            _check_pixels(image.size, max_pixels, weigh_pixel(kind))  # a HEIC's may differ from what its header says
            # For a PPM of 16 bits, Pillow uses its mode of 32 bits.
            wide = kind == "PPM" and image.mode == "I"
            pixels = _convert_pixels(Image.fromarray(np.asarray(image).astype(np.uint16)) if wide else image)
            if srgb:
                pixels = convert_to_srgb(pixels, read_profile(kind, data, image))
    except (Fault, MemoryError):
        raise
    except Exception as error:  # damaged files raise exceptions of nearly any type
        raise _explain_error(kind, error, size) from error
    return _turn(pixels, orientation)


def _explain_error(kind: str, error: Exception, size: tuple[int, int]) -> Fault | MemoryError:
    """Returns the error to raise for a decoder's exception: a `MemoryError` if memory ran out, else a `Fault`.

    A lack of memory is not a fault of the file: leaving out a good picture would change the data set silently. Some
    decoders do not report it, so this tries to allocate a picture of that size.
    """
    if "out of memory" in str(error).casefold():  # the words of Pillow and of libavif
        return MemoryError(str(error))
    try:
        np.empty((*size, _BYTES), np.uint8)
    except MemoryError:
        return MemoryError(str(error))
    causes = error, error.__cause__
    if any(isinstance(cause, IndexError | EOFError | struct.error) for cause in causes):
        reason = "it ends too early"
    elif any(isinstance(cause, KeyError) and str(cause) == str(error) for cause in causes):
        reason = f"it has an unknown code, {error}"
    elif str(error) == "not identified by this driver":
        reason = "it holds no picture"
    else:
        reason = describe_error(error)
    return Fault(f"is not a readable {kind} file ({reason}); get the file again or save it again")


def _convert_pixels(image: Image.Image) -> NDArray[np.uint8]:
    """Returns a loaded image as uint8 (H, W, 3), a tile at a time."""
    width, height = image.size
    result = np.empty((height, width, 3), np.uint8)
    columns = min(width, _TILE)
    rows = _TILE // columns
    tags: Any = getattr(image, "tag_v2", {})
    if width * height <= _TILE:
        result[...] = _convert_tile(image, tags)
        return result
    for top in range(0, height, rows):
        for left in range(0, width, columns):
            right, bottom = min(left + columns, width), min(top + rows, height)
            result[top:bottom, left:right] = _convert_tile(image.crop((left, top, right, bottom)), tags)
    return result


def _convert_tile(tile: Image.Image, tags: Any) -> NDArray[np.integer[Any]]:
    """Returns a tile's colours on white: (h, w, 3), or (h, w, 1) if they are grey."""
    if tile.mode.startswith("I;16"):
        # Pillow does not scale 12 bits of a TIFF, and does not invert a picture in which 0 is white.
        most = 4095 if tags.get(_BITS) == (12,) else 65535
        grey = np.asarray(tile).astype(np.uint32)
        eight = (np.minimum(grey, most) * 255 + most // 2) // most
        if tags.get(_PHOTOMETRIC) == 0:
            eight = 255 - eight
        eight[grey == tile.info.get("transparency")] = 255
        return eight[..., None]
    if tile.mode in {"I", "F"}:
        what = "floats" if tile.mode == "F" else "signed or 32-bit integers"
        raise Fault(f"holds {what}, which have no standard value for white; save it with 8 or 16 bits")
    if tile.mode in {"La", "RGBa"}:  # the colours are already multiplied by alpha
        mixed = np.asarray(tile).astype(np.uint16)
        laid: NDArray[np.uint16] = np.minimum(mixed[..., :-1] + (255 - mixed[..., -1:]), 255)
        return laid
    if tile.has_transparency_data:
        mixed = np.asarray(tile.convert("RGBA")).astype(np.uint16)
        alpha = mixed[..., 3:]
        return (mixed[..., :3] * alpha + 255 * (255 - alpha) + 127) // 255
    return np.asarray(tile if tile.mode == "RGB" else tile.convert("RGB"))


def _turn(pixels: NDArray[np.uint8], orientation: int) -> NDArray[np.uint8]:
    """Returns pixels (H, W, 3) upright, given their EXIF orientation."""
    if orientation in {5, 6, 7, 8}:
        pixels = pixels.transpose(1, 0, 2)
    if orientation in {3, 4, 7, 8}:
        pixels = pixels[::-1]
    if orientation in {2, 3, 6, 7}:
        pixels = pixels[:, ::-1]
    return np.ascontiguousarray(pixels)
