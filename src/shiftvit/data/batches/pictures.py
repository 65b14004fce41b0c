"""Makes an array of a user's image files: in memory if they fit, else decoded whenever they are indexed."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import partial
from typing import Any

import numpy as np
from numpy.typing import NDArray

from shiftvit.augment.boxes import Box, cut, find_decoded_size
from shiftvit.data.decode.images import decode
from shiftvit.errors import ShiftViTError
from shiftvit.preprocess import Preprocess
from shiftvit.threads import map_in_threads

# The most bytes that the pictures of a split may take in memory. If they take more, each epoch decodes them again.
BUDGET = 2**29
# So few pictures are decoded without threads, which would take time to start.
_FEW = 16


class Pictures:
    """Image files that are indexed like an array, uint8 (N, h, w, 3): `pictures[3:10]`, `pictures[[5, 1]]`.

    Indexing decodes the pictures, in several threads, and keeps none of them.

    Args:
        paths: N files that can be decoded (see `read_pictures`).
        rule: resizes and crops them to one size and rounds them; its mean and std are not used.

    Raises:
        ShiftViTError: the rule gives different sizes; when indexed, a file can no longer be decoded.
    """

    dtype = np.dtype(np.uint8)
    ndim = 4

    def __init__(self, paths: Sequence[str], rule: Preprocess) -> None:
        self.paths, self.rule = list(paths), rule
        self.shape = (len(self.paths), *find_size(rule), 3)

    def __len__(self) -> int:
        return len(self.paths)

    def __getitem__(self, index: slice | NDArray[np.integer[Any]] | Sequence[int]) -> NDArray[np.uint8]:
        wanted = self.paths[index] if isinstance(index, slice) else [self.paths[int(i)] for i in index]
        read = partial(read_picture, rule=self.rule)
        pictures = np.empty((len(wanted), *self.shape[1:]), np.uint8)
        decoded = map(read, wanted) if len(wanted) <= _FEW else map_in_threads(read, wanted)
        for place, picture in enumerate(decoded):
            pictures[place] = picture
        return pictures


class Originals(Pictures):
    """Image files of any sizes from which boxes are cut; a file is decoded again for each box.

    Indexing works as for `Pictures`.

    Args:
        paths, rule: as for `Pictures`. Boxes get the rule's interpolation and the size of its result.
        sizes: (height, width) of each file's picture, upright, in pixels: int (N, 2).
    """

    def __init__(self, paths: Sequence[str], rule: Preprocess, sizes: NDArray[np.integer[Any]]) -> None:
        super().__init__(paths, rule)
        self._sizes = sizes

    def find_size(self, index: int) -> tuple[int, int]:
        """Returns a picture's (height, width) in pixels."""
        height, width = self._sizes[index].tolist()
        return height, width

    def cut(self, index: int, box: Box) -> NDArray[np.uint8]:
        """Returns a box of a picture at the size of the rule's result, uint8 (h, w, 3).

        A JPEG is decoded at a smaller size, as by `read_picture`, if the box keeps twice the wanted size.

        Raises:
            ShiftViTError: the file can no longer be decoded.
        """
        size = self.shape[1], self.shape[2]
        pixels = decode(self.paths[index], at_least=find_decoded_size(box, size), srgb=self.rule.srgb)
        return cut(pixels, box, size, self.rule.interpolation)


def read_picture(source: str | bytes, rule: Preprocess, *, name: str | None = None) -> NDArray[np.uint8]:
    """Returns one picture, uint8 (h, w, 3), as `rule` makes it.

    Args:
        source: a path, or a file's bytes.
        rule: resizes and crops the picture and rounds it; its mean and std are not used.
        name: the name of bytes in messages.

    Raises:
        ShiftViTError: the file cannot be decoded, or the picture is too elongated, or smaller than the crop. The
            message names the file.
    """
    image = decode(source, name=name, **rule.decoding)
    try:
        pixels: NDArray[np.uint8] = rule.pixels(image[None])[0]
    except ShiftViTError as error:
        raise ShiftViTError(f"{name or source!r}: {error}") from error
    return pixels


def find_size(rule: Preprocess) -> tuple[int, int]:
    """Returns the (height, width) that the rule gives to all pictures.

    Raises:
        ShiftViTError: it gives different sizes to different pictures.
    """
    shape = rule.fixed_shape
    if shape is None or rule.resize is None:
        side = rule.resize or 64
        raise ShiftViTError(
            f"preprocess.resize={rule.resize} with preprocess.crop={rule.crop} leaves pictures of different shapes; "
            f"set both, as in --set preprocess.resize={side} --set preprocess.crop={side}"
        )
    return shape


def read_pictures(
    paths: Sequence[str],
    rule: Preprocess,
    *,
    whole: bool = False,
    budget: int = BUDGET,
    on_picture: Callable[[], None] | None = None,
) -> tuple[NDArray[np.uint8] | Pictures, NDArray[np.int64], list[str]]:
    """Decodes every file once, to find those that cannot be used.

    Args:
        paths: N files.
        rule: gives all pictures one size.
        whole: boxes will be cut from the pictures, so these stay in their files, at their own size.
        budget: the most bytes that the pictures may take in memory.
        on_picture: called after each file.

    Returns:
        the pictures that can be used, as an array, as `Pictures` if they take more than the budget, or as `Originals`
        if they stay whole; their indices in `paths`, int64 (M,); and a line for each file that cannot be used.

    Raises:
        ShiftViTError: the rule gives different sizes to different pictures.
    """
    shape = (len(paths), *find_size(rule), 3)
    sizes = np.zeros((len(paths), 2), np.int64)
    in_memory = np.empty(shape, np.uint8) if not whole and int(np.prod(shape)) <= budget else None

    def read(index: int) -> str | None:
        """Decodes a file, and returns what is wrong with it, if anything."""
        try:
            if whole:
                sizes[index] = decode(paths[index], srgb=rule.srgb).shape[:2]
            else:
                pixels = read_picture(paths[index], rule)
                if in_memory is not None:
                    in_memory[index] = pixels
        except ShiftViTError as error:
            return str(error)
        return None

    indices, faults = list[int](), list[str]()
    for index, fault in enumerate(map_in_threads(read, range(len(paths)))):
        if fault is None:
            indices.append(index)
        else:
            faults.append(fault)
        if on_picture is not None:
            on_picture()
    usable = np.array(indices, np.int64)
    if in_memory is not None:
        return (in_memory[usable] if faults else in_memory), usable, faults
    kept = [paths[index] for index in indices]
    return (Originals(kept, rule, sizes[usable]) if whole else Pictures(kept, rule)), usable, faults
