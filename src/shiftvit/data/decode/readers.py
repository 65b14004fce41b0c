"""The reader of each format, and what its decoder needs."""

from __future__ import annotations

import contextlib
import ctypes
import io
from functools import cache
from typing import Any

from PIL import ImageFile, _imaging
from PIL.AvifImagePlugin import AvifImageFile
from PIL.BmpImagePlugin import BmpImageFile
from PIL.GifImagePlugin import GifImageFile
from PIL.Jpeg2KImagePlugin import Jpeg2KImageFile
from PIL.JpegImagePlugin import JpegImageFile
from PIL.PngImagePlugin import PngImageFile
from PIL.PpmImagePlugin import PpmImageFile
from PIL.TiffImagePlugin import TiffImageFile
from PIL.WebPImagePlugin import WebPImageFile

from shiftvit.data.decode.faults import Fault
from shiftvit.errors import suggest_install

_SUFFIXES = (
    "jpg jpeg jpe jfif mpo png apng webp gif bmp tif tiff avif heic heif hif jp2 j2k j2c jpx jpf ppm pgm pbm pnm"
)
IMAGE_SUFFIXES = frozenset(f".{ending}" for ending in _SUFFIXES.split(" "))
_READERS: dict[str, type[ImageFile.ImageFile]] = {
    "JPEG": JpegImageFile,
    "PNG": PngImageFile,
    "WebP": WebPImageFile,
    "GIF": GifImageFile,
    "BMP": BmpImageFile,
    "TIFF": TiffImageFile,
    "AVIF": AvifImageFile,
    "JPEG 2000": Jpeg2KImageFile,
    "PPM": PpmImageFile,
}
FORMATS = ("JPEG", "PNG", "WebP", "GIF", "BMP", "TIFF", "AVIF", "HEIC", "JPEG 2000", "PPM")
# How many pixels a pixel counts as in formats whose decoders hold several copies of the picture.
_WEIGHTS = {"WebP": 2, "AVIF": 2, "JPEG 2000": 2}
# Pillow's decoders that are written in Python, and how many pixels a pixel counts as for them.
_SLOW = {"bmp_rle", "ppm", "ppm_plain"}
_SLOW_WEIGHT = 16


def open_reader(kind: str, data: bytes) -> Any:
    """Returns Pillow's reader of a format. It has read the file's header, but not its pixels.

    `Image.open` is not used, because its limit, and the filters of the warnings that it gives first, belong to the
    whole process.

    Raises:
        Fault: a HEIC, and pillow-heif is not installed.
        Exception: nearly anything, if the file is damaged.
    """
    if kind == "TIFF":
        _silence_libtiff()
    if kind != "HEIC":
        return _READERS[kind](io.BytesIO(data))
    try:
        from pillow_heif import HeifImageFile
    except ImportError as error:
        hint = f"{suggest_install('pillow-heif')}, which is the extra [heic]"
        raise Fault(f"is a HEIC, and pillow-heif is not installed; {hint}") from error
    return HeifImageFile(io.BytesIO(data))  # type: ignore[no-untyped-call]


@cache
def _silence_libtiff() -> None:
    """Stops libtiff from printing to standard error. What it reports also arrives as exceptions.

    libtiff has one handler for the whole process, and Pillow sets none. Where Pillow hides the library, as on Windows,
    libtiff goes on printing.
    """
    with contextlib.suppress(OSError, AttributeError):
        library = ctypes.CDLL(_imaging.__file__)
        for name in ("TIFFSetErrorHandler", "TIFFSetWarningHandler"):
            handler = getattr(library, name)
            handler.restype = ctypes.c_void_p
            handler(None)


def weigh_pixel(kind: str, image: Any = None) -> int:
    """Returns how many pixels each pixel of a picture counts as, for the limit."""
    if image is not None and image.tile and image.tile[0].codec_name in _SLOW:
        return _SLOW_WEIGHT
    return _WEIGHTS.get(kind, 1)
