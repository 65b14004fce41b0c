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
# How many pixels each of a picture's pixels counts as, where its decoder holds several copies of it, ...
_WEIGHTS = {"WebP": 2, "AVIF": 2, "JPEG 2000": 2}
# ... and where it is written in Python.
_SLOW = {"bmp_rle", "ppm", "ppm_plain"}
_SLOW_WEIGHT = 16


def open_reader(kind: str, data: bytes) -> Any:
    """Returns Pillow's reader of a format, which has read the header of a file and not its pixels.

    It is the reader itself and not `Image.open`: the limit of that, and the filters of the warnings that it gives
    before it refuses, belong to the whole process.

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
    """Stops libtiff from printing to the process' standard error; what it has to say comes as exceptions, too.

    It has one handler for a process, and Pillow sets none. Where Pillow hides the library, as on Windows, it stays.
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
