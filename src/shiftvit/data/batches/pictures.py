"""A user's image files as one array: decoded once into memory where they fit, else each time that they are wanted."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import numpy as np
from numpy.typing import NDArray

from shiftvit.augment.boxes import Box, cut, decoded_at_least
from shiftvit.data.decode.images import decode
from shiftvit.environment import cores
from shiftvit.errors import ShiftViTError
from shiftvit.preprocess import Preprocess

# What all pictures of a split may take in memory, in bytes; more are decoded anew in each epoch.
BUDGET = 2**29
# Pictures that a thread decodes before it hands them over.
_CHUNK = 16

Told = Callable[[int], None]


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
        self.shape = (len(self.paths), *one_size(rule), 3)
        self.workers = workers or min(8, cores())

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
        pixels = decode(self.paths[index], at_least=decoded_at_least(box, size))
        return cut(pixels, box, size, self.rule.interpolation)


def read_picture(path: str, rule: Preprocess) -> NDArray[np.uint8]:
    """Returns one picture, uint8 (h, w, 3), as `rule` makes it.

    A JPEG is decoded at a half, a quarter or an eighth where twice the wanted size is left, which is several times
    faster and differs by less than a level on average.

    Raises:
        ShiftViTError: a file that cannot be decoded, or is smaller than the crop.
    """
    height, width = rule.resize if isinstance(rule.resize, tuple) else (rule.resize or 0,) * 2
    image = decode(path, at_least=(2 * height, 2 * width) if height else None)
    pixels: NDArray[np.uint8] = rule.pixels(image[None])[0]
    return pixels


def one_size(rule: Preprocess) -> tuple[int, int]:
    """Returns the (height, width) that the rule makes of any picture.

    Raises:
        ShiftViTError: it makes different sizes of different pictures.
    """
    sizes = {rule.output_shape(*shape) for shape in ((4096, 4096), (4096, 8192), (8192, 4096))}
    if len(sizes) > 1 or rule.resize is None:
        raise ShiftViTError(
            f"preprocess.resize={rule.resize} with preprocess.crop={rule.crop} leaves pictures of different sizes as "
            "they are; set preprocess.resize, in pixels, as in --set preprocess.resize=64"
        )
    return sizes.pop()


def read_pictures(
    paths: Sequence[str], rule: Preprocess, *, budget: int = BUDGET, told: Told | None = None
) -> tuple[NDArray[np.uint8] | Pictures, NDArray[np.int64], list[str]]:
    """Decodes every file once, to find those that cannot be used.

    Args:
        paths: N files.
        rule: makes one size of all of them.
        budget: bytes that the pictures may take in memory.
        told: is called now and then with how many are done.

    Returns:
        The pictures that can be used, as an array or, where they take more than the budget, as `Pictures`; their
        indices in `paths`, int64 (M,); and a line for each of the others.
    """
    lazy = Pictures(paths, rule)
    held = np.empty(lazy.shape, np.uint8) if int(np.prod(lazy.shape)) <= budget else None

    def read(index: int) -> None:
        pixels = read_picture(paths[index], rule)
        if held is not None:
            held[index] = pixels

    kept, faults = _each(len(paths), read, lazy.workers, told)
    pictures = Pictures([paths[index] for index in kept], rule) if held is None else (held[kept] if faults else held)
    return pictures, kept, faults


def read_originals(
    paths: Sequence[str], rule: Preprocess, *, told: Told | None = None
) -> tuple[Originals, NDArray[np.int64], list[str]]:
    """Decodes every file once, to find those that cannot be used and how large the others are.

    Args:
        paths, rule, told: as for `read_pictures`; of the rule it is the result's size that matters.

    Returns:
        The pictures that can be used, their indices in `paths`, int64 (M,), and a line for each of the others.
    """
    lazy = Pictures(paths, rule)
    sizes = np.zeros((len(paths), 2), np.int64)

    def read(index: int) -> None:
        sizes[index] = decode(paths[index]).shape[:2]  # the whole of it: this is the size that boxes are drawn for

    kept, faults = _each(len(paths), read, lazy.workers, told)
    return Originals([paths[index] for index in kept], rule, sizes[kept]), kept, faults


def _each(
    count: int, read: Callable[[int], None], workers: int, told: Told | None
) -> tuple[NDArray[np.int64], list[str]]:
    """Reads each of `count` files in threads; returns which could be read, and a line for each of the others."""

    def read_some(first: int) -> list[tuple[int, str]]:
        faults = []
        for index in range(first, min(first + _CHUNK, count)):
            try:
                read(index)
            except ShiftViTError as error:
                faults.append((index, str(error)))
        return faults

    faults: list[tuple[int, str]] = []
    with ThreadPoolExecutor(workers, thread_name_prefix="decode") as pool:
        for number, found in enumerate(pool.map(read_some, range(0, count, _CHUNK)), start=1):
            faults += found
            if told is not None:
                told(min(number * _CHUNK, count))
    bad = {index for index, _ in faults}
    return np.array([index for index in range(count) if index not in bad], np.int64), [fault for _, fault in faults]
