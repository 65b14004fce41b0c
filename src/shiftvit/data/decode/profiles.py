"""Embedded colour profiles, and the conversion of colours to sRGB."""

from __future__ import annotations

import io
import zlib
from collections.abc import Callable
from functools import lru_cache
from typing import Any

import numpy as np
from numpy.typing import NDArray

from shiftvit.data.decode.formats import read_tiff_bytes

_LARGEST = 2**22  # bytes of a profile; those of cameras and screens have a few thousand
_MOST_PARTS = 1000  # segments or chunks before the pixels
_ICC = 34675  # the tag of TIFF
_SAME = 2  # levels; a conversion that changes no colour by more is left out


def read_profile(kind: str, data: bytes, image: Any) -> bytes:
    """Returns the ICC profile that a file embeds; empty if it has none, or none that can be read.

    Args:
        kind: the format, as `formats.find_kind` returns it.
        data: the whole file, because `formats.reduce` removes profiles.
        image: Pillow's image of it, which holds the profile of formats other than JPEG, PNG and TIFF.
    """
    try:
        return _READ[kind](data) if kind in _READ else bytes(image.info.get("icc_profile") or b"")
    except Exception:  # of nearly any type, if the file is damaged
        return b""


def convert_to_srgb(pixels: NDArray[np.uint8], profile: bytes) -> NDArray[np.uint8]:
    """Returns pixels (H, W, 3) in sRGB, relative colorimetric. An empty or broken profile changes nothing."""
    transform = _make_transform(profile) if 0 < len(profile) <= _LARGEST else None
    if transform is None:
        return pixels
    from PIL import Image, ImageCms

    image = Image.fromarray(pixels)
    ImageCms.applyTransform(image, transform, inPlace=True)
    return np.array(image)


@lru_cache(maxsize=32)
def _make_transform(profile: bytes) -> Any:
    """Returns Pillow's transform from a profile to sRGB; None if it would change nothing, or cannot be made."""
    from PIL import Image, ImageCms

    try:
        source = ImageCms.ImageCmsProfile(io.BytesIO(profile))
        if source.profile.xcolor_space.strip() != "RGB":
            return None
        transform = ImageCms.buildTransform(
            source,
            ImageCms.createProfile("sRGB"),
            "RGB",
            "RGB",
            ImageCms.Intent.RELATIVE_COLORIMETRIC,
            ImageCms.Flags.NOCACHE,  # so that threads can share it
        )
        levels = np.linspace(0, 255, 6).astype(np.uint8)
        colours = np.stack(np.meshgrid(levels, levels, levels), axis=-1).reshape(1, -1, 3)
        found = np.asarray(ImageCms.applyTransform(Image.fromarray(colours), transform))
    except Exception:  # lcms raises exceptions of its own types
        return None
    return transform if np.abs(found.astype(int) - colours).max() > _SAME else None


def _read_jpeg(data: bytes) -> bytes:
    at, parts = 2, {}
    for _ in range(_MOST_PARTS):
        marker, length = data[at + 1], int.from_bytes(data[at + 2 : at + 4], "big")
        if data[at] != 0xFF or marker == 0xDA or length < 2:
            break
        if marker == 0xE2 and data[at + 4 : at + 16] == b"ICC_PROFILE\0":
            parts[data[at + 16]] = data[at + 18 : at + 2 + length]
        at += 2 + length
    return b"".join(parts[number] for number in sorted(parts))


def _read_png(data: bytes) -> bytes:
    at = 8
    for _ in range(_MOST_PARTS):
        name, length = data[at + 4 : at + 8], int.from_bytes(data[at : at + 4], "big")
        if name == b"iCCP":
            packed = data[at + 8 : at + 8 + length].split(b"\0", 1)[1][1:]
            return zlib.decompressobj().decompress(packed, _LARGEST)
        if name in {b"IDAT", b""}:
            break
        at += 12 + length
    return b""


_READ: dict[str, Callable[[bytes], bytes]] = {
    "JPEG": _read_jpeg,
    "PNG": _read_png,
    "TIFF": lambda data: read_tiff_bytes(data, _ICC),
}
