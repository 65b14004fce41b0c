"""The inputs of `Predictor`: `__call__` and `stream` accept the same, and read each image when it is needed."""

from __future__ import annotations

import io
import queue
import tempfile
import threading
import time
import zipfile

import numpy as np
import pytest
from PIL import Image, ImageSequence

from shiftvit import Preprocess, ShiftViTError
from shiftvit.bundle.metadata import Metadata
from shiftvit.inference import batches as decoding
from shiftvit.inference.batches import stream_pixels
from shiftvit.inference.sources import Failure, Named


@pytest.fixture
def file(images, tmp_path):
    path = tmp_path / "cat.png"
    Image.fromarray(images[0]).save(path)
    return path


def stack(results):
    """Returns the probabilities of all results, (N, C), none of which may be a failure."""
    assert not [result.error for result in results if isinstance(result, Failure)]
    return np.stack([result.probabilities for result in results])


def predict_both_ways(predictor, given):
    """Returns the results of `__call__` and of `stream`; `given` makes a new argument for each."""
    return predictor(given()), list(predictor.stream(given()))


def write_buffer(content):
    """Returns a buffer whose position is at the end, as after writing an image into it."""
    buffer = io.BytesIO()
    buffer.write(content)
    return buffer


def spool(content):
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
    """A path class of the user."""

    def __init__(self, path):
        self._path = path

    def __fspath__(self):
        return self._path


SINGLE_IMAGES = {
    "path": lambda path: path,
    "str": str,
    "PathLike of bytes": lambda path: Frame(str(path).encode()),
    "bytes": lambda path: path.read_bytes(),
    "bytearray": lambda path: bytearray(path.read_bytes()),
    "memoryview": lambda path: memoryview(path.read_bytes()),
    "BytesIO": lambda path: io.BytesIO(path.read_bytes()),
    "BytesIO just written": lambda path: write_buffer(path.read_bytes()),
    "open file": lambda path: path.open("rb"),
    "unbuffered file": lambda path: path.open("rb", buffering=0),
    "pipe": lambda path: Pipe(path.read_bytes()),
    "spooled file": lambda path: spool(path.read_bytes()),
    "PIL image": Image.open,
    "PIL image in palette": lambda path: Image.open(path).convert("RGBA"),
    "array": lambda path: np.asarray(Image.open(path)),
    "array with alpha": lambda path: np.asarray(Image.open(path).convert("RGBA")),
    "memoryview of an array": lambda path: memoryview(np.asarray(Image.open(path))),
    "mirrored view": lambda path: np.asarray(Image.open(path))[:, ::-1].copy()[:, ::-1],
    "read-only array": lambda path: np.broadcast_to(np.asarray(Image.open(path)), (32, 32, 3)),
}


@pytest.mark.filterwarnings("ignore::ResourceWarning")  # the test leaves the files open
@pytest.mark.parametrize("kind", SINGLE_IMAGES)
def test_single_image_of_any_kind(kind, predictor, images, file):
    expected = stack(predictor([images[0]]))
    for given in (
        lambda: SINGLE_IMAGES[kind](file),
        lambda: [SINGLE_IMAGES[kind](file)],
        lambda: iter([SINGLE_IMAGES[kind](file)]),
    ):
        for results in predict_both_ways(predictor, given):
            np.testing.assert_allclose(stack(results), expected, atol=1e-6)
            named = kind in ("path", "str", "PathLike of bytes")
            assert [result.path for result in results] == [str(file) if named else "image 1"]


def test_open_file_can_be_used_twice(predictor, images, file):
    buffer = io.BytesIO(file.read_bytes())
    np.testing.assert_allclose(stack(predictor([buffer, buffer])), stack(predictor(images[[0, 0]])), atol=1e-6)
    with zipfile.ZipFile(file.with_suffix(".zip"), "w") as archive:
        archive.write(file, "cat.png")
    with zipfile.ZipFile(file.with_suffix(".zip")) as archive, archive.open("cat.png") as entry:
        assert len(predictor(entry)) == 1


MANY_IMAGES = {
    "batch": lambda images: images[:5],
    "list of a batch": lambda images: [images[:2], images[2], images[3:5]],
    "list": lambda images: list(images[:5]),
    "tuple": lambda images: tuple(images[:5]),
    "generator": lambda images: (image for image in images[:5]),
    "objects": lambda images: np.array([*map(Image.fromarray, images[:5]), None], object)[:-1],
}


@pytest.mark.parametrize("kind", MANY_IMAGES)
def test_many_images_of_any_kind(kind, predictor, images):
    for results in predict_both_ways(predictor, lambda: MANY_IMAGES[kind](images)):
        assert [result.path for result in results] == [f"image {number}" for number in range(1, 6)]
        np.testing.assert_allclose(stack(results), stack(predictor(images[:5])), atol=1e-6)


@pytest.mark.parametrize("empty", [[], (), iter(()), np.zeros((0, 32, 32, 3), np.uint8)])
def test_no_images(empty, predictor):
    assert predict_both_ways(predictor, lambda: empty) == ([], [])


def test_arrays_are_rgb(predictor, images):
    blue_first = images[..., ::-1]
    assert np.abs(stack(predictor(blue_first)) - stack(predictor(images))).max() > 0.1
    np.testing.assert_array_equal(stack(predictor(blue_first[..., ::-1])), stack(predictor(images)))


class Tensor:
    """Like a tensor of torch: it has dimensions, and iterating yields its rows."""

    ndim = 3

    def __iter__(self):
        return iter([np.zeros((32, 3), np.uint8)] * 32)


@pytest.mark.parametrize("given", [None, 7, 1.5, {"cat.png": 1}, object(), Tensor(), Image, np.uint8(7), print])
def test_other_objects_fail(given, predictor):
    for ask in (predictor, predictor.stream):
        with pytest.raises(ShiftViTError) as caught:
            ask(given)
        message = str(caught.value)
        assert type(given).__name__ in message or type(given) is np.uint8
        assert "give a path, the bytes of an image file, an open binary file, a PIL image or a uint8 array" in message
        assert "\n" not in message


INVALID_IMAGES = {
    "None": (lambda _: None, "image 1 has the type NoneType; give a path"),
    "number": (lambda _: 7, "image 1 has the type int; give a path"),
    "list": (lambda path: [path], "image 1 has the type list; give a path"),
    "text file": (lambda path: path.open(), "image 1 is text, not an image"),
    "StringIO": (lambda _: io.StringIO("cat.png"), "image 1 is text, not an image"),
    "closed file": (lambda _: make_closed_file(), "image 1 cannot be read: I/O operation on closed file; give an open"),
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


def make_closed_file():
    file = io.BytesIO(b"x")
    file.close()
    return file


@pytest.mark.filterwarnings("ignore::ResourceWarning")
@pytest.mark.parametrize("kind", INVALID_IMAGES)
def test_invalid_images_do_not_affect_the_others(kind, predictor, images, file):
    make, message = INVALID_IMAGES[kind]
    with pytest.raises(ShiftViTError, match=message):
        predictor([make(file), images[0]])
    first, second = predictor.stream([make(file), images[0]])
    assert isinstance(first, Failure)
    assert "\n" not in first.error
    assert not isinstance(second, Failure)


def test_endless_file_is_read_up_to_a_limit(predictor, monkeypatch):
    monkeypatch.setattr("shiftvit.inference.sources.MAX_BYTES", 1000)
    with open("/dev/zero", "rb") as file:  # noqa: PTH123
        (result,) = predictor.stream(file)
    assert isinstance(result, Failure)


def test_frames_of_an_animation(predictor, images, tmp_path):
    frames = [Image.fromarray(image) for image in images[:40]]
    frames[0].save(tmp_path / "frames.webp", save_all=True, append_images=frames[1:], lossless=True)
    with Image.open(tmp_path / "frames.webp") as animation:
        found = list(predictor.stream(ImageSequence.Iterator(animation), threads=4))
    np.testing.assert_allclose(stack(found), stack(predictor(images[:40])), atol=1e-5)


@pytest.mark.parametrize("kind", [np.array, bytearray, io.BytesIO, memoryview])
def test_reused_buffer_is_copied_in_time(kind, predictor, images):
    contents = []
    for image in images[:40]:
        file = io.BytesIO()
        Image.fromarray(image).save(file, "BMP")
        contents.append(file.getvalue())
    array, buffer = images[0].copy(), bytearray(contents[0])
    reused = {np.array: array, bytearray: buffer, memoryview: memoryview(buffer), io.BytesIO: io.BytesIO()}[kind]

    def camera():
        for image, content in zip(images[:40], contents, strict=True):
            array[...], buffer[:] = image, content
            if kind is io.BytesIO:
                reused.seek(0)
                reused.write(content)
            yield reused
        array[...], buffer[:] = 0, bytes(len(buffer))

    np.testing.assert_allclose(stack(predictor(camera())), stack(predictor(images[:40])), atol=1e-5)


def test_lazily_opened_image_can_be_used_many_times(predictor, images, tmp_path):
    Image.fromarray(images[0]).resize((600, 600)).save(tmp_path / "large.png")
    for _ in range(5):
        with Image.open(tmp_path / "large.png") as picture:
            found = list(predictor.stream([picture] * 12, threads=4, batch_size=4))
        assert len({row.tobytes() for row in stack(found)}) <= 2
        with Image.open(tmp_path / "large.png") as picture:
            threads = [threading.Thread(target=lambda: found.extend(predictor([picture]))) for _ in range(4)]  # noqa: B023
            for thread in threads:
                thread.start()
            for thread in threads:
                thread.join()
        assert len(found) == 16
        np.testing.assert_allclose(stack(found), stack(found[:1]).repeat(16, axis=0), atol=1e-5)


@pytest.mark.parametrize("batch_size", [1, 3])
def test_source_may_wait_for_the_results_of_a_batch(batch_size, predictor, images):
    """If more than a batch were read in advance, the source would wait until its timeout."""
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
    np.testing.assert_allclose(stack(found), stack(predictor(images[:9])), atol=1e-5)


@pytest.mark.parametrize(("batch_size", "ahead"), [(1, None), (1, 0), (4, None), (4, 3), (5, 40)])
def test_source_is_read_at_most_as_far_ahead_as_requested(batch_size, ahead, predictor, images):
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


def test_next_batches_of_a_list_are_read_ahead(predictor, images):
    taken = []

    class Listed(list):
        def __iter__(self):
            for image in super().__iter__():
                taken.append(image)
                yield image

    next(predictor.stream(Listed(images[:60]), batch_size=4, threads=1))
    assert len(taken) == 4 + 2 * 4


def watch_batches(sizes, metadata, **options):
    """Streams pictures of these sizes; returns the size of each image in each batch, and the most undelivered pixels.

    A picture counts as undelivered from its decoding to the batch after the one that has it.
    """
    lock, held, most, batches = threading.Lock(), 0, 0, []
    original = decoding.decode

    def decode(*arguments, **named):
        nonlocal held, most
        pixels = original(*arguments, **named)
        with lock:
            held += pixels.size // 3
            most = max(most, held)
        return pixels

    def encode(size):
        file = io.BytesIO()
        Image.new("RGB", size[::-1]).save(file, "BMP")
        return file.getvalue()

    contents = {size: encode(size) for size in {*sizes} - {None}}
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(decoding, "BATCH_PIXELS", 1000)
        patch.setattr(decoding, "decode", decode)
        files = [contents.get(size, b"no image") for size in sizes]
        for batch in stream_pixels(files, metadata, **options):
            with lock:
                held -= sum(item[1].size // 3 for item in batch if not isinstance(item, Failure))
            batches.append([None if isinstance(item, Failure) else item[1].shape[:2] for item in batch])
            time.sleep(0.001)  # lets the threads decode ahead
    return batches, most


def make_metadata(*input_shape):
    return Metadata(labels=("a",), preprocess=Preprocess(), input_shape=input_shape)


@pytest.mark.parametrize("threads", [1, 2, 5])
def test_batches_for_any_size_are_cut_by_pixels(threads):
    """Each has at most 1,000 pixels or one image, and at most these and one image a thread are decoded ahead."""
    sizes = [(10, 10)] * 25 + [(40, 50)] * 30 + [None, (20, 20), None, (30, 20), (1, 1)] + [(40, 50), (1, 1)] * 5
    batches, most = watch_batches(sizes, make_metadata(None, None, 3), batch_size=16, threads=threads)
    assert [size for batch in batches for size in batch] == sizes
    assert [len(batch) for batch in batches] == [10, 10, 5, *[1] * 30, 4, *[1] * 11]
    assert most <= 2 * (1000 + 2000) + threads * 2000


def test_batches_for_one_size_are_cut_by_their_number_alone():
    sizes = [(40, 50), None] * 20
    batches, _ = watch_batches(sizes, make_metadata(40, 50, 3), batch_size=16, threads=2)
    assert [len(batch) for batch in batches] == [31, 9]
    assert [size for batch in batches for size in batch] == sizes


@pytest.mark.parametrize("at_hand", [True, False])
def test_arrays_for_any_size_are_copied_no_further_than_a_batch_needs(at_hand, monkeypatch):
    monkeypatch.setattr(decoding, "BATCH_PIXELS", 1000)
    taken = 0

    class Arrays(list):
        def __iter__(self):
            nonlocal taken
            for array in super().__iter__():
                taken += 1
                yield array

    arrays = Arrays([np.full((20, 20, 3), value, np.uint8) for value in range(30)])
    found = []
    for batch in stream_pixels(arrays if at_hand else iter(arrays), make_metadata(None, None, 3)):
        assert len(batch) == 2
        found += [int(pixels[0, 0, 0]) for _, pixels in batch]
        assert taken <= len(found) + 1 + 3  # one that did not fit, and more than 1,000 pixels
    assert found == [*range(30)]


@pytest.mark.parametrize("kind", [list, iter])
def test_error_of_the_storage_ends_the_stream_for_any_size(kind, monkeypatch):
    monkeypatch.setattr(decoding, "BATCH_PIXELS", 1)

    def fail():
        raise OSError("the network is down")

    named = kind([Named("a.png", lambda: b"no image"), Named("b.png", fail), Named("c.png", fail)])
    with pytest.raises(OSError, match="the network is down"):
        list(stream_pixels(named, make_metadata(None, None, 3), threads=2))


def test_reason_names_a_file_once_and_is_one_line(tmp_path):
    long, broken = (str(tmp_path / f"two\nlines {name}.png") for name in ("long", "broken"))
    Image.new("L", (70_000, 1)).save(long)
    (tmp_path / broken).write_bytes(b"no picture")
    metadata = Metadata(labels=("a",), preprocess=Preprocess(resize=32, crop=32), input_shape=(32, 32, 3))
    (results,) = stream_pixels([long, broken], metadata)
    assert [result.path for result in results] == [long, broken]
    assert results[0].error.startswith(f"{long!r}: an image of 1 x 70000 pixels is too elongated")
    assert results[1].error.startswith(f"{broken!r} is not an image")
