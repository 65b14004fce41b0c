"""Decoded pixels against independent references: constructed arrays, closed forms and the EXIF table."""

from __future__ import annotations

import io
import struct
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image, ImageFile

import image_matrix as matrix
from pace import limit_time
from shiftvit.data.decode.images import decode
from shiftvit.data.decode.readers import IMAGE_SUFFIXES
from shiftvit.errors import ShiftViTError

PALETTED = {"palette.png", "palette.bmp", "animated.gif"}  # reduced to 256 colours; the sample has more
LOSSY = {".heic", ".jpg", ".mpo", ".avif"}


def make_pattern(*shape: int, most: int = 255) -> np.ndarray:
    return np.random.default_rng(len(shape)).integers(0, most + 1, shape)


def make_grey(values: np.ndarray) -> np.ndarray:
    return np.repeat(values.reshape(*values.shape[:2], 1), 3, axis=2).astype(np.uint8)


@pytest.mark.parametrize("name", matrix.make_files())
def test_every_format(name: str) -> None:
    pixels = decode(matrix.make_files()[name])
    assert pixels.dtype == np.uint8
    assert pixels.flags.writeable
    assert pixels.flags.c_contiguous
    assert pixels.shape == (32, 32, 3)
    difference = np.abs(pixels.astype(int) - matrix.load_picture())
    if Path(name).suffix in LOSSY or name in {"jpeg.tif", "lossy.webp"}:
        assert difference.mean() < 6
    elif name in PALETTED:
        colours = Image.fromarray(matrix.load_picture()).quantize(256).convert("RGB")
        assert np.abs(pixels.astype(int) - np.asarray(colours)).mean() < 3
    else:
        assert difference.max() == 0
    assert Path(name).suffix in IMAGE_SUFFIXES


def test_format_is_detected_from_the_content(tmp_path: Path) -> None:
    path = tmp_path / "plain.JPEG"
    path.write_bytes(matrix.make_files()["plain.png"])
    for source in (path, str(path), path.read_bytes(), bytearray(path.read_bytes()), memoryview(path.read_bytes())):
        np.testing.assert_array_equal(decode(source), matrix.load_picture())


@pytest.mark.parametrize("depth", [1, 2, 4, 8])
@pytest.mark.parametrize("interlaced", [False, True])
def test_png_grey_up_to_8_bits(depth: int, interlaced: bool) -> None:
    most = 2**depth - 1
    samples = make_pattern(11, 13, 1, most=most)
    np.testing.assert_array_equal(
        decode(matrix.make_png(samples, depth, 0, interlaced=interlaced)), make_grey(samples * (255 // most))
    )
    hidden = min(2, most)
    expected = np.where(samples == hidden, 255, samples * (255 // most))
    trns = matrix.make_chunk(b"tRNS", struct.pack(">H", hidden))
    np.testing.assert_array_equal(
        decode(matrix.make_png(samples, depth, 0, before=trns, interlaced=interlaced)), make_grey(expected)
    )


@pytest.mark.parametrize("interlaced", [False, True])
def test_png_grey_of_16_bits_is_scaled(interlaced: bool) -> None:
    samples = np.arange(65536).reshape(256, 256, 1)
    expected = np.rint(samples / 257)
    np.testing.assert_array_equal(decode(matrix.make_png(samples, 16, 0, interlaced=interlaced)), make_grey(expected))
    trns = matrix.make_chunk(b"tRNS", struct.pack(">H", 300))
    expected[samples == 300] = 255
    np.testing.assert_array_equal(decode(matrix.make_png(samples, 16, 0, before=trns)), make_grey(expected))


@pytest.mark.parametrize(("order", "big"), [("<", False), ("<", True), (">", False)])
def test_tiff_grey(order: str, big: bool) -> None:
    values = np.array([[0, 1, 128, 129, 40000, 65535]])
    data = values.astype(order + "u2").tobytes()
    expected = make_grey(np.rint(values / 257))
    form: dict[str, Any] = {"order": order, "big": big}
    np.testing.assert_array_equal(decode(matrix.make_grey_tiff(6, 1, 16, data, **form)), expected)
    if order == "<":  # Pillow cannot read the next two in the other byte order
        inverted = matrix.make_grey_tiff(6, 1, 16, data, t262=(3, [0]), **form)
        np.testing.assert_array_equal(decode(inverted), 255 - expected)
        twelve = matrix.make_grey_tiff(2, 1, 12, b"\xff\xf8\x00", **form)
        np.testing.assert_array_equal(decode(twelve), make_grey(np.array([[255, 128]])))
    eight = matrix.make_grey_tiff(3, 1, 8, bytes([0, 7, 255]), **form)
    np.testing.assert_array_equal(decode(eight), make_grey(np.array([[0, 7, 255]])))
    inverted = matrix.make_grey_tiff(3, 1, 8, bytes([0, 7, 255]), t262=(3, [0]), **form)
    np.testing.assert_array_equal(decode(inverted), make_grey(np.array([[255, 248, 0]])))


@pytest.mark.parametrize("depth", [1, 2, 4, 8])
@pytest.mark.parametrize("alphas", [None, [0], [255, 0], [7, 130, 255]])
def test_png_palettes(depth: int, alphas: list[int] | None) -> None:
    count = 2**depth
    palette = make_pattern(count, 3)
    samples = make_pattern(9, 10, 1, most=count - 1)
    before = matrix.make_chunk(b"PLTE", palette.astype(np.uint8).tobytes())
    alpha = np.full(count, 255)
    if alphas:
        alphas = alphas[:count]
        before += matrix.make_chunk(b"tRNS", bytes(alphas))
        alpha[: len(alphas)] = alphas
    expected = matrix.lay_on_white(palette, alpha[:, None])[samples[..., 0]]
    np.testing.assert_array_equal(decode(matrix.make_png(samples, depth, 3, before=before)), expected)


@pytest.mark.parametrize("depth", [8, 16])
def test_png_colour_and_alpha(depth: int) -> None:
    top = 2 ** (depth - 8)  # Pillow keeps the upper eight of sixteen bits of a colour
    rgb = make_pattern(8, 9, 3, most=256 * top - 1)
    np.testing.assert_array_equal(decode(matrix.make_png(rgb, depth, 2)), rgb // top)
    rgb[2:4, 3:5] = hidden = np.array([10, 20, 30]) * top
    expected = (rgb // top).astype(np.uint8)
    expected[2:4, 3:5] = 255
    trns = matrix.make_chunk(b"tRNS", struct.pack(">3H", *hidden))
    np.testing.assert_array_equal(decode(matrix.make_png(rgb, depth, 2, before=trns)), expected)
    for colour, channels in ((4, 2), (6, 4)):
        samples = make_pattern(8, 9, channels, most=256 * top - 1)
        eight = samples // top
        expected = matrix.lay_on_white(eight[..., :-1], eight[..., -1:]) * np.ones(3, np.uint8)
        np.testing.assert_array_equal(decode(matrix.make_png(samples, depth, colour)), expected)


def test_alpha_is_blended_with_white() -> None:
    colour, alpha = np.mgrid[:256, :256]
    rgba = np.stack([colour, colour // 2, 255 - colour, alpha], axis=-1).astype(np.uint8)
    expected = matrix.lay_on_white(rgba[..., :3], rgba[..., 3:])
    for data in (matrix.encode(rgba, "PNG"), matrix.encode(rgba, "TIFF"), Image.fromarray(rgba)):
        np.testing.assert_array_equal(decode(data), expected)
    webp = matrix.encode(rgba, "WEBP", lossless=True, exact=True)
    np.testing.assert_array_equal(decode(webp), expected)
    assert np.abs(decode(matrix.encode(rgba, "AVIF", quality=100)).astype(int) - expected).mean() < 4


@pytest.mark.parametrize("size", [(311, 700), (3, 70_001), (70_001, 3)])
def test_large_pictures_are_converted_completely(size: tuple[int, int]) -> None:
    rgba = make_pattern(*size, 4).astype(np.uint8)
    expected = matrix.lay_on_white(rgba[..., :3], rgba[..., 3:])
    np.testing.assert_array_equal(decode(matrix.encode(rgba, "PNG", compress_level=1)), expected)
    np.testing.assert_array_equal(decode(Image.fromarray(rgba[..., :3])), rgba[..., :3])


@pytest.mark.parametrize("mode", ["La", "RGBa"])
def test_premultiplied_alpha(mode: str) -> None:
    alpha = np.arange(256, dtype=np.uint8)
    ink = (alpha.astype(int) * 100 // 255).astype(np.uint8)
    data = np.stack([*[ink] * (len(mode) - 1), alpha], axis=-1).tobytes()
    expected = make_grey((ink.astype(int) + 255 - alpha)[None])
    np.testing.assert_array_equal(decode(Image.frombytes(mode, (256, 1), data)), expected)


def test_gif_transparency_and_a_frame_beyond_the_canvas() -> None:
    picture = Image.new("P", (4, 2))
    picture.putpalette([0, 0, 0, 200, 10, 20, 30, 40, 50, 9, 9, 9])
    picture.putdata([0, 1, 2, 3, 3, 2, 1, 0])
    plain = np.asarray(picture.convert("RGB"))
    np.testing.assert_array_equal(decode(matrix.encode(picture, "GIF")), plain)
    data = bytearray(matrix.encode(picture, "GIF", transparency=2, disposal=2, comment=b"!,;" * 200))
    hidden = plain.copy()
    hidden[0, 2] = hidden[1, 1] = 255
    np.testing.assert_array_equal(decode(data), hidden)
    data[6:10] = bytes([1, 0, 1, 0])
    np.testing.assert_array_equal(decode(data), hidden)


def test_run_length_bmp() -> None:
    codes = bytes([4, 5, 0, 0, 0, 3, 1, 2, 3, 0, 1, 7, 0, 1])  # 4 times 5; end of line; 1, 2, 3; 7; end
    palette = make_pattern(256, 4).astype(np.uint8)
    data = matrix.make_run_length_bmp(4, 2, palette, codes)
    colours = palette[:, 2::-1]
    np.testing.assert_array_equal(decode(data), colours[[[1, 2, 3, 7], [5, 5, 5, 5]]])
    assert decode(data, max_pixels=128).shape == (2, 4, 3)
    with pytest.raises(ShiftViTError, match=r"has 2 x 4 pixels \(8, times 16 for its format\)"):
        decode(data, max_pixels=127)
    endless = matrix.make_run_length_bmp(4, 2, palette, b"\1\5" * 20_000_000)  # far more runs than pixels
    with limit_time(130), pytest.raises(ShiftViTError, match="is not a readable BMP"):
        decode(endless)


def test_cmyk() -> None:
    inks = make_pattern(3, 4, 4).astype(np.uint8)
    expected = np.rint((255.0 - inks[..., :3]) * (255.0 - inks[..., 3:]) / 255)
    flat = np.tile(np.array([200, 60, 30, 40], np.uint8), (16, 16, 1))
    tinted = (255.0 - flat[..., :3]) * (255.0 - flat[..., 3:]) / 255
    assert np.abs(decode(matrix.encode(Image.fromarray(inks, "CMYK"), "TIFF")) - expected).max() <= 1
    jpeg = matrix.encode(Image.fromarray(flat, "CMYK"), "JPEG", quality=98)
    assert np.abs(decode(jpeg) - tinted).max() <= 3
    # The same bytes read as YCCK: luminance, two colour differences, black; stored inverted, as Adobe does.
    adobe = jpeg.index(b"Adobe")
    y, cb, cr, k = (255 - flat[0, 0].astype(float)) if jpeg[adobe + 11] == 0 else flat[0, 0].astype(float)
    rgb = np.array([y + 1.402 * (cr - 128), y - 0.344136 * (cb - 128) - 0.714136 * (cr - 128), y + 1.772 * (cb - 128)])
    expected = (255 - np.clip(rgb, 0, 255)) * k / 255
    ycck = jpeg[: adobe + 11] + b"\2" + jpeg[adobe + 12 :]
    assert np.abs(decode(ycck) - expected).max() <= 4


@pytest.mark.parametrize("orientation", matrix.SIDES)
def test_orientation(orientation: int, tmp_path: Path) -> None:
    upright = np.kron(make_pattern(3, 5, 3), np.ones((8, 8, 1))).astype(np.uint8)
    laid = matrix.turn_for_storage(upright, orientation)
    for order in "<>":
        block = matrix.make_exif(orientation, order)
        for form, options in (("PNG", {}), ("WEBP", {"lossless": True})):
            np.testing.assert_array_equal(decode(matrix.encode(laid, form, exif=block, **options)), upright)
        height, width = laid.shape[:2]
        tiff = matrix.make_rgb_tiff(width, height, laid.tobytes(), t274=(3, [orientation]), order=order)
        np.testing.assert_array_equal(decode(tiff), upright)
        for form in ("JPEG", "AVIF"):
            data = matrix.encode(laid, form, exif=block, quality=100, subsampling="4:4:4")
            assert np.abs(decode(data).astype(int) - upright).max() <= 4
    path = tmp_path / "picture.jpg"
    path.write_bytes(matrix.encode(laid, "JPEG", exif=matrix.make_exif(orientation), quality=100, subsampling=0))
    with Image.open(path) as picture:
        assert np.abs(decode(picture).astype(int) - upright).max() <= 4
    with Image.open(io.BytesIO(tiff)) as picture:
        np.testing.assert_array_equal(decode(picture), upright)
    half = decode(path, at_least=(12, 20))
    assert half.shape == (12, 20, 3)
    assert np.abs(half.astype(int) - upright[::2, ::2]).max() <= 8


@pytest.mark.parametrize(
    ("at_least", "expected"),
    [(None, (100, 201)), ((101, 10), (100, 201)), ((50, 100), (50, 101)), ((12, 25), (13, 26)), ((1, 1), (13, 26))],
)
def test_jpeg_is_decoded_smaller_with_at_least(at_least: tuple[int, int] | None, expected: tuple[int, int]) -> None:
    ramp = np.linspace(0, 255, 201) * np.ones((100, 1))
    data = matrix.encode(make_grey(ramp), "JPEG", quality=95)
    pixels = decode(data, at_least=at_least)
    assert pixels.shape[:2] == expected
    assert np.abs(pixels[0] - np.linspace(0, 255, expected[1])[:, None]).max() < 16
    png = matrix.encode(make_grey(ramp), "PNG")
    assert decode(png, at_least=at_least).shape == (100, 201, 3)


@pytest.mark.parametrize(
    "mode", ["1", "L", "P", "PA", "LA", "RGB", "RGBA", "RGBX", "CMYK", "YCbCr", "HSV", "LAB", "I;16", "I;16B"]
)
def test_every_mode_of_pil_images(mode: str) -> None:
    sixteen = mode.startswith("I;16")
    picture = Image.new(mode, (3, 2), 65535 if sixteen else 0) if sixteen else Image.new("RGB", (3, 2), "white")
    if not sixteen:
        picture = picture.convert("RGBA" if mode == "PA" else "RGB").convert(mode)
    pixels = decode(picture)
    assert pixels.shape == (2, 3, 3)
    assert pixels.min() >= 253
    assert picture.mode == mode
    picture.load()  # neither closed nor changed


@pytest.mark.parametrize("mode", ["I", "F"])
def test_modes_without_a_defined_white_fail(mode: str) -> None:
    picture = Image.new(mode, (3, 2))
    for source in (picture, matrix.encode(picture, "TIFF")):
        with pytest.raises(ShiftViTError, match=r"holds .*(floats|integers).* save it with 8 or 16 bits"):
            decode(source)


@pytest.mark.parametrize("limit", [None, 100_000])
def test_pillows_pixel_limit_is_ignored(limit: int | None, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", limit)
    picture = Image.new("RGB", (600, 600), "teal")
    for form in ("JPEG", "PNG", "GIF", "BMP", "TIFF", "AVIF"):
        assert decode(matrix.encode(picture, form)).shape == (600, 600, 3)
    assert decode(matrix.encode(picture, "TIFF", compression="tiff_lzw")).shape == (600, 600, 3)
    assert decode(matrix.encode(picture, "GIF", disposal=2)).shape == (600, 600, 3)
    assert limit == Image.MAX_IMAGE_PIXELS


def test_load_truncated_images_of_pillow_is_rejected(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(ImageFile, "LOAD_TRUNCATED_IMAGES", True)
    with pytest.raises(ShiftViTError, match="LOAD_TRUNCATED_IMAGES is true; set it to False"):
        decode(matrix.make_files()["baseline.jpg"])


def test_concurrent_decoding() -> None:
    names = [*matrix.make_files()] * 8
    expected = {name: decode(data) for name, data in matrix.make_files().items()}
    with ThreadPoolExecutor(8) as pool:
        for name, pixels in zip(names, pool.map(lambda name: decode(matrix.make_files()[name]), names), strict=True):
            np.testing.assert_array_equal(pixels, expected[name])


def test_import_loads_only_pillow_and_numpy() -> None:
    program = (
        "import sys, shiftvit.data.decode.images\n"
        "heavy = ('keras', 'torch', 'tensorflow', 'jax', 'pydantic', 'matplotlib')\n"
        "print([name for name in (*heavy, 'PIL.EpsImagePlugin', 'PIL.PdfImagePlugin') if name in sys.modules])"
    )
    answer = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True)
    assert answer.stdout.strip() == "[]"
