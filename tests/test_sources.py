"""The inputs of `Predictor`: `__call__` and `stream` take the same, and read each image when its turn comes."""

from __future__ import annotations

import io
import queue
import tempfile
import threading
import zipfile

import numpy as np
import pytest
from PIL import Image, ImageSequence

from shiftvit import ShiftViTError
from shiftvit.inference.sources import Failure


@pytest.fixture
def file(images, tmp_path):
    path = tmp_path / "cat.png"
    Image.fromarray(images[0]).save(path)
    return path


def shares(results):
    assert not [result.error for result in results if isinstance(result, Failure)]
    return np.stack([result.probabilities for result in results])


def both(predictor, given):
    """What `__call__` gives and what `stream` gives; `given` makes the argument anew for each."""
    return predictor(given()), list(predictor.stream(given()))


def written(content):
    """A buffer as a program leaves it that has just written an image into it."""
    buffer = io.BytesIO()
    buffer.write(content)
    return buffer


def spooled(content):
    file = tempfile.SpooledTemporaryFile()  # noqa: SIM115  (as web frameworks hand over uploads)
    file.write(content)
    return file


class Pipe(io.RawIOBase):
    """A file that cannot be rewound and gives a few bytes at a time."""

    def __init__(self, content):
        self._parts = io.BytesIO(content)

    def readable(self):
        return True

    def readinto(self, buffer):
        return self._parts.readinto(memoryview(buffer)[:100])


class Frame:
    """An own class of path."""

    def __init__(self, path):
        self._path = path

    def __fspath__(self):
        return self._path


ONE = {
    "path": lambda path: path,
    "str": str,
    "PathLike of bytes": lambda path: Frame(str(path).encode()),
    "bytes": lambda path: path.read_bytes(),
    "bytearray": lambda path: bytearray(path.read_bytes()),
    "memoryview": lambda path: memoryview(path.read_bytes()),
    "BytesIO": lambda path: io.BytesIO(path.read_bytes()),
    "BytesIO just written": lambda path: written(path.read_bytes()),
    "open file": lambda path: path.open("rb"),
    "unbuffered file": lambda path: path.open("rb", buffering=0),
    "pipe": lambda path: Pipe(path.read_bytes()),
    "spooled file": lambda path: spooled(path.read_bytes()),
    "PIL image": Image.open,
    "PIL image in palette": lambda path: Image.open(path).convert("RGBA"),
    "array": lambda path: np.asarray(Image.open(path)),
    "array with alpha": lambda path: np.asarray(Image.open(path).convert("RGBA")),
    "memoryview of an array": lambda path: memoryview(np.asarray(Image.open(path))),
    "mirrored view": lambda path: np.asarray(Image.open(path))[:, ::-1].copy()[:, ::-1],
    "read-only array": lambda path: np.broadcast_to(np.asarray(Image.open(path)), (32, 32, 3)),
}


@pytest.mark.filterwarnings("ignore::ResourceWarning")  # the files are closed where they are no longer used
@pytest.mark.parametrize("kind", ONE)
def test_one_image_of_any_kind(kind, predictor, images, file):
    expected = shares(predictor([images[0]]))
    for given in (lambda: ONE[kind](file), lambda: [ONE[kind](file)], lambda: iter([ONE[kind](file)])):
        for results in both(predictor, given):
            np.testing.assert_allclose(shares(results), expected, atol=1e-6)
            named = kind in ("path", "str", "PathLike of bytes")
            assert [result.path for result in results] == [str(file) if named else "image 1"]


def test_an_open_file_may_be_given_again(predictor, images, file):
    buffer = io.BytesIO(file.read_bytes())
    np.testing.assert_allclose(shares(predictor([buffer, buffer])), shares(predictor(images[[0, 0]])), atol=1e-6)
    with zipfile.ZipFile(file.with_suffix(".zip"), "w") as archive:
        archive.write(file, "cat.png")
    with zipfile.ZipFile(file.with_suffix(".zip")) as archive, archive.open("cat.png") as entry:
        assert len(predictor(entry)) == 1


MANY = {
    "batch": lambda images: images[:5],
    "list of a batch": lambda images: [images[:2], images[2], images[3:5]],
    "list": lambda images: list(images[:5]),
    "tuple": lambda images: tuple(images[:5]),
    "generator": lambda images: (image for image in images[:5]),
    "objects": lambda images: np.array([*map(Image.fromarray, images[:5]), None], object)[:-1],
}


@pytest.mark.parametrize("kind", MANY)
def test_many_images_of_any_kind(kind, predictor, images):
    for results in both(predictor, lambda: MANY[kind](images)):
        assert [result.path for result in results] == [f"image {number}" for number in range(1, 6)]
        np.testing.assert_allclose(shares(results), shares(predictor(images[:5])), atol=1e-6)


@pytest.mark.parametrize("empty", [[], (), iter(()), np.zeros((0, 32, 32, 3), np.uint8)])
def test_no_images(empty, predictor):
    assert both(predictor, lambda: empty) == ([], [])


def test_arrays_are_rgb(predictor, images):
    blue_first = images[..., ::-1]
    assert np.abs(shares(predictor(blue_first)) - shares(predictor(images))).max() > 0.1
    np.testing.assert_array_equal(shares(predictor(blue_first[..., ::-1])), shares(predictor(images)))


class Tensor:
    """As those of torch: it has dimensions, and iterating gives its rows."""

    ndim = 3

    def __iter__(self):
        return iter([np.zeros((32, 3), np.uint8)] * 32)


@pytest.mark.parametrize("given", [None, 7, 1.5, {"cat.png": 1}, object(), Tensor(), Image, np.uint8(7), print])
def test_what_holds_no_images(given, predictor):
    for ask in (predictor, predictor.stream):
        with pytest.raises(ShiftViTError) as caught:
            ask(given)
        message = str(caught.value)
        assert type(given).__name__ in message or type(given) is np.uint8
        assert "give a path, the bytes of an image file, an open binary file, a PIL image or a uint8 array" in message
        assert "\n" not in message


WRONG = {
    "None": (lambda _: None, "image 1 has the type NoneType; give a path"),
    "number": (lambda _: 7, "image 1 has the type int; give a path"),
    "list": (lambda path: [path], "image 1 has the type list; give a path"),
    "text file": (lambda path: path.open(), "image 1 is text, not an image"),
    "StringIO": (lambda _: io.StringIO("cat.png"), "image 1 is text, not an image"),
    "closed file": (lambda _: closed(), "image 1 cannot be read: I/O operation on closed file; give an open"),
    "write-only": (lambda path: path.with_name("new").open("wb"), "image 1 cannot be read: "),
    "floats": (
        lambda _: np.zeros((4, 4, 3), np.float32),
        r"is an array of float32 \(4, 4, 3\); give uint8 \(H, W, 3\)",
    ),
    "flat": (lambda _: np.zeros(9, np.uint8), r"is an array of uint8 \(9,\); .* `array.tobytes\(\)`"),
    "five": (lambda _: np.zeros((1, 1, 4, 4, 3), np.uint8), r"is an array of uint8 \(1, 1, 4, 4, 3\)"),
    "two channels": (lambda _: np.zeros((4, 4, 2), np.uint8), r"is an array of uint8 \(4, 4, 2\)"),
    "nothing": (lambda _: b"", "image 1' is empty"),
    "empty file": (lambda _: io.BytesIO(), "image 1' is empty"),
}


def closed():
    file = io.BytesIO(b"x")
    file.close()
    return file


@pytest.mark.filterwarnings("ignore::ResourceWarning")
@pytest.mark.parametrize("kind", WRONG)
def test_what_is_no_image_is_named_and_the_others_go_on(kind, predictor, images, file):
    make, message = WRONG[kind]
    with pytest.raises(ShiftViTError, match=message):
        predictor([make(file), images[0]])
    first, second = predictor.stream([make(file), images[0]])
    assert isinstance(first, Failure)
    assert "\n" not in first.error
    assert not isinstance(second, Failure)


def test_a_file_without_end_is_not_read_to_its_end(predictor, monkeypatch):
    monkeypatch.setattr("shiftvit.inference.sources.MAX_BYTES", 1000)
    with open("/dev/zero", "rb") as file:  # noqa: PTH123
        (result,) = predictor.stream(file)
    assert isinstance(result, Failure)


def test_frames_of_an_animation(predictor, images, tmp_path):
    frames = [Image.fromarray(image) for image in images[:40]]
    frames[0].save(tmp_path / "frames.webp", save_all=True, append_images=frames[1:], lossless=True)
    with Image.open(tmp_path / "frames.webp") as animation:
        found = list(predictor.stream(ImageSequence.Iterator(animation), threads=4))
    np.testing.assert_allclose(shares(found), shares(predictor(images[:40])), atol=1e-5)


@pytest.mark.parametrize("kind", [np.array, bytearray, io.BytesIO, memoryview])
def test_a_buffer_that_is_reused(kind, predictor, images):
    contents = []
    for image in images[:40]:
        file = io.BytesIO()
        Image.fromarray(image).save(file, "BMP")
        contents.append(file.getvalue())
    array, buffer = images[0].copy(), bytearray(contents[0])
    own = {np.array: array, bytearray: buffer, memoryview: memoryview(buffer), io.BytesIO: io.BytesIO()}[kind]

    def camera():
        for image, content in zip(images[:40], contents, strict=True):
            array[...], buffer[:] = image, content
            if kind is io.BytesIO:
                own.seek(0)
                own.write(content)
            yield own
        array[...], buffer[:] = 0, bytes(len(buffer))

    np.testing.assert_allclose(shares(predictor(camera())), shares(predictor(images[:40])), atol=1e-5)


def test_a_lazily_opened_picture_used_often(predictor, images, tmp_path):
    Image.fromarray(images[0]).resize((600, 600)).save(tmp_path / "large.png")
    for _ in range(5):
        with Image.open(tmp_path / "large.png") as picture:
            found = list(predictor.stream([picture] * 12, threads=4, batch_size=4))
        assert len({row.tobytes() for row in shares(found)}) <= 2
        with Image.open(tmp_path / "large.png") as picture:
            threads = [threading.Thread(target=lambda: found.extend(predictor([picture]))) for _ in range(4)]  # noqa: B023
            for thread in threads:
                thread.start()
            for thread in threads:
                thread.join()
        assert len(found) == 16
        np.testing.assert_allclose(shares(found), shares(found[:1]).repeat(16, axis=0), atol=1e-5)


@pytest.mark.parametrize("batch_size", [1, 3])
def test_a_source_may_wait_for_its_answers(batch_size, predictor, images):
    """Where more than a batch were taken, this would wait until its patience ends."""
    answers = queue.Queue()

    def source():
        for first in range(0, 9, batch_size):
            yield from images[first : first + batch_size]
            for _ in range(batch_size):
                answers.get(timeout=20)

    found = []
    for result in predictor.stream(source(), batch_size=batch_size):
        found.append(result)
        answers.put(result)
    np.testing.assert_allclose(shares(found), shares(predictor(images[:9])), atol=1e-5)


@pytest.mark.parametrize(("batch_size", "ahead"), [(1, None), (1, 0), (4, None), (4, 3), (5, 40)])
def test_no_more_is_taken_than_asked(batch_size, ahead, predictor, images):
    taken, most = 0, 0

    def source():
        nonlocal taken
        for index in range(60):
            taken += 1
            yield images[index] if index % 7 else b"no image"

    for done, _ in enumerate(predictor.stream(source(), batch_size=batch_size, ahead=ahead, threads=3)):
        most = max(most, taken - done)
    assert done == 59
    assert most == batch_size + (ahead or 0)


def test_of_a_list_the_next_batch_is_taken_while_the_model_runs(predictor, images):
    taken = []

    class Listed(list):
        def __iter__(self):
            for image in super().__iter__():
                taken.append(image)
                yield image

    next(predictor.stream(Listed(images[:60]), batch_size=4, threads=1))
    assert len(taken) == 4 + 2 * 4
