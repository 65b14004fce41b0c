"""A user's image files as one array: decoded once into memory where they fit, or each time that they are wanted."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import numpy as np
from numpy.typing import NDArray

from shiftvit.augment.boxes import Box, cut, find_decoded_size
from shiftvit.data.decode.images import decode
from shiftvit.environment import count_cores
from shiftvit.errors import ShiftViTError
from shiftvit.preprocess import Preprocess

# Bytes that all pictures of a split may take in memory. If they take more, they are decoded anew in each epoch.
BUDGET = 2**29
# Pictures that a thread decodes before it hands them over.
_CHUNK = 16

# Is called now and then with how many more files are done.
Advance = Callable[[int], None]


class Pictures:
    """Image files that index as an array does, uint8 (N, h, w, 3): `pictures[3:10]`, `pictures[[5, 1]]`.

    Each picture is decoded when it is asked for, in several threads, and takes no memory afterwards.

    Args:
        paths: N files, which decode (see `read_pictures`).
        rule: makes one size of all of them; its rounding is used, its mean and std are not.
        workers: threads that decode; None: one for each core, at most 8.

    Raises:
        ShiftViTError: the rule leaves the size open; when indexed, a file that can no longer be decoded.
    """

    dtype = np.dtype(np.uint8)
    ndim = 4

    def __init__(self, paths: Sequence[str], rule: Preprocess, workers: int | None = None) -> None:
        self.paths, self.rule = list(paths), rule
        self.shape = (len(self.paths), *find_size(rule), 3)
        self.workers = workers or _count_workers()

    def __len__(self) -> int:
        return len(self.paths)

    def __getitem__(self, index: slice | NDArray[np.integer[Any]] | Sequence[int]) -> NDArray[np.uint8]:
        wanted = self.paths[index] if isinstance(index, slice) else [self.paths[int(i)] for i in index]
        out = np.empty((len(wanted), *self.shape[1:]), np.uint8)

        def fill(first: int) -> None:
            for place in range(first, min(first + _CHUNK, len(wanted))):
                out[place] = read_picture(wanted[place], self.rule)

        starts = range(0, len(wanted), _CHUNK)
        if len(starts) <= 1:
            fill(0)
            return out
        with ThreadPoolExecutor(self.workers, thread_name_prefix="decode") as pool:
            list(pool.map(fill, starts))
        return out


class Originals(Pictures):
    """Image files of any sizes from which boxes are cut, each decoded anew for each box.

    Indexed, they are the pictures as `rule` makes them, as with `Pictures`.

    Args:
        paths, rule, workers: as for `Pictures`; the rule's interpolation and result's size are those of boxes too.
        sizes: (height, width) of each file's picture, upright, in pixels: int (N, 2).
    """

    def __init__(
        self, paths: Sequence[str], rule: Preprocess, sizes: NDArray[np.integer[Any]], workers: int | None = None
    ) -> None:
        super().__init__(paths, rule, workers)
        self._sizes = sizes

    def size(self, index: int) -> tuple[int, int]:
        """Returns a picture's (height, width) in pixels."""
        height, width = self._sizes[index].tolist()
        return height, width

    def cut(self, index: int, box: Box) -> NDArray[np.uint8]:
        """Returns a box of a picture at the size of the rule's result, uint8 (h, w, 3).

        A JPEG is decoded smaller, as by `read_picture`, where twice the wanted size is left of the box.

        Raises:
            ShiftViTError: a file that can no longer be decoded.
        """
        size = self.shape[1], self.shape[2]
        pixels = decode(self.paths[index], at_least=find_decoded_size(box, size), srgb=self.rule.srgb)
        return cut(pixels, box, size, self.rule.interpolation)


def read_picture(path: str, rule: Preprocess) -> NDArray[np.uint8]:
    """Returns one picture, uint8 (h, w, 3), as `rule` makes it.

    Raises:
        ShiftViTError: a file that cannot be decoded, or is smaller than the crop.
    """
    pixels: NDArray[np.uint8] = rule.pixels(decode(path, **rule.decoding)[None])[0]
    return pixels


def find_size(rule: Preprocess) -> tuple[int, int]:
    """Returns the (height, width) that the rule makes of any picture.

    Raises:
        ShiftViTError: it makes different sizes of different pictures.
    """
    sizes = {rule.output_shape(*shape) for shape in ((4096, 4096), (4096, 8192), (8192, 4096))}
    if len(sizes) > 1 or rule.resize is None:
        side = rule.resize or 64
        raise ShiftViTError(
            f"preprocess.resize={rule.resize} with preprocess.crop={rule.crop} leaves pictures of different shapes; "
            f"set both, as in --set preprocess.resize={side} --set preprocess.crop={side}"
        )
    return sizes.pop()


def read_pictures(
    paths: Sequence[str],
    rule: Preprocess,
    *,
    whole: bool = False,
    budget: int = BUDGET,
    advance: Advance | None = None,
) -> tuple[NDArray[np.uint8] | Pictures, NDArray[np.int64], list[str]]:
    """Decodes every file once, to find those that cannot be used.

    Args:
        paths: N files.
        rule: makes one size of all of them.
        whole: boxes will be cut from the pictures, so that they stay in their files, at their own size.
        budget: bytes that the pictures may take in memory.
        advance: is called now and then with how many more files are done.

    Returns:
        the pictures that can be used, as an array, or as `Pictures` where they take more than the budget, or as
        `Originals` where they stay whole; their indices in `paths`, int64 (M,); and a line for each of the others.

    Raises:
        ShiftViTError: the rule makes different sizes of different pictures.
    """
    decoding = {**rule.decoding, "at_least": None} if whole else rule.decoding
    shape = (len(paths), *find_size(rule), 3)
    sizes = np.zeros((len(paths), 2), np.int64)
    in_memory = np.empty(shape, np.uint8) if not whole and int(np.prod(shape)) <= budget else None

    def read(index: int) -> None:
        image = decode(paths[index], **decoding)
        sizes[index] = image.shape[:2]
        if not whole:
            pixels = rule.pixels(image[None])[0]
            if in_memory is not None:
                in_memory[index] = pixels

    usable, faults = _read_each(len(paths), read, advance)
    if in_memory is not None:
        return (in_memory[usable] if faults else in_memory), usable, faults
    kept = [paths[index] for index in usable]
    return (Originals(kept, rule, sizes[usable]) if whole else Pictures(kept, rule)), usable, faults


def _count_workers() -> int:
    """Returns how many threads decode: one for each core, at most 8."""
    return min(8, count_cores())


def _read_each(count: int, read: Callable[[int], None], advance: Advance | None) -> tuple[NDArray[np.int64], list[str]]:
    """Calls `read` with 0..count-1, in threads. Returns those that it could read, and a line for each of the others."""

    def read_some(first: int) -> tuple[int, list[tuple[int, str]]]:
        chunk = range(first, min(first + _CHUNK, count))
        faults = []
        for index in chunk:
            try:
                read(index)
            except ShiftViTError as error:
                faults.append((index, str(error)))
        return len(chunk), faults

    faults: list[tuple[int, str]] = []
    with ThreadPoolExecutor(_count_workers(), thread_name_prefix="decode") as pool:
        for done, found in pool.map(read_some, range(0, count, _CHUNK)):
            faults += found
            if advance is not None:
                advance(done)
    bad = {index for index, _ in faults}
    return np.array([index for index in range(count) if index not in bad], np.int64), [fault for _, fault in faults]
