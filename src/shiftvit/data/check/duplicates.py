"""Finds pictures that are the same, or nearly, by their fingerprints."""

from __future__ import annotations

import hashlib
import itertools
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray
from PIL import Image

# Chosen on the 60,000 images of CIFAR-10. 507 pairs are within these limits. None has two classes, and nearly all that
# were looked at show one picture twice. At a correlation of 0.85 to 0.9 some show different cars, ships and planes.
HASH_BITS = 6  # the most bits in which the difference hashes of a pair differ
CORRELATION = 0.9  # the least correlation of the thumbnails of a pair
FLAT = 3.0  # levels of 255; a thumbnail with a smaller standard deviation shows nothing
MOST_PAIRS = 1_000_000
_THUMB = 16
_BANDS = HASH_BITS + 1
_BLOCK = 2**18  # hashes that are compared at a time: 2 MB, which a cache holds
_COMPARED = 2**15  # thumbnails that are compared at a time: 32 MB as float32

# An image of a data set: the name of its split, and its index in that split.
Member = tuple[str, int]


@dataclass(frozen=True)
class Group:
    """Images that are the same, pixel by pixel (`kind` "exact"), or nearly ("near").

    Attributes:
        kind: "exact" or "near".
        members: the images.
        labels: the classes of the members.
        example: two members that were compared with each other, of different splits or classes if possible.
    """

    kind: str
    members: tuple[Member, ...]
    labels: frozenset[int]
    example: tuple[Member, Member]

    @property
    def splits(self) -> set[str]:
        """The names of the members' splits."""
        return {split for split, _ in self.members}


class Fingerprint(NamedTuple):
    """The data by which pictures are compared.

    Attributes:
        digest: 16 bytes, equal only for the same pixels and size.
        hash: the 64 bits of the difference hash.
        thumb: 256 bytes, the picture in 16 x 16 levels of grey.
    """

    digest: bytes
    hash: int
    thumb: bytes


def fingerprint(pixels: NDArray[np.uint8]) -> Fingerprint:
    """Returns the fingerprint of a picture, uint8 (H, W, 3).

    The difference hash is that of Krawetz, "Kind of Like That" (2013): the picture is shrunk to 9 x 8 levels of grey,
    and a bit says whether a level is darker than its right neighbour.
    """
    pixels = np.ascontiguousarray(pixels)
    digest = hashlib.blake2b(repr(pixels.shape).encode(), digest_size=16)
    digest.update(pixels.data)
    grey = Image.fromarray(pixels).convert("L")
    small = np.asarray(grey.resize((9, 8), Image.Resampling.BOX))
    bits = np.packbits(small[:, :-1] < small[:, 1:])
    thumb = grey.resize((_THUMB, _THUMB), Image.Resampling.BOX)
    return Fingerprint(digest.digest(), int.from_bytes(bits.tobytes(), "big"), thumb.tobytes())


def find_near_pairs(hashes: NDArray[np.uint64], thumbs: NDArray[np.uint8]) -> tuple[NDArray[np.int64], bool]:
    """Finds all pairs of pictures that are nearly the same.

    Two hashes that differ by at most 6 bits agree in at least one of 7 bands of bits. So it compares only pictures that
    share a band, and misses no such pair. `are_alike` is the second test.

    Args:
        hashes: the `Fingerprint.hash` of each, (N,).
        thumbs: the `Fingerprint.thumb` of each, (N, 256).

    Returns:
        the pairs, (P, 2), each (i, j) with i < j, sorted; and whether these are all: the search stops when it has
        found more than a million.
    """
    found: list[NDArray[np.int64]] = [np.empty((0, 2), np.int64)]
    total = 0
    for pairs in _find_candidates(hashes):
        for start in range(0, len(pairs), _COMPARED):
            part = pairs[start : start + _COMPARED]
            part = part[are_alike(thumbs[part[:, 0]], thumbs[part[:, 1]])]
            found.append(part)
            total += len(part)
            if total > MOST_PAIRS:
                return _sort_pairs(found), False
    return _sort_pairs(found), True


def _sort_pairs(parts: list[NDArray[np.int64]]) -> NDArray[np.int64]:
    pairs = np.sort(np.concatenate(parts), axis=1)
    return pairs[np.lexsort((pairs[:, 1], pairs[:, 0]))]


def _find_candidates(hashes: NDArray[np.uint64]) -> Iterator[NDArray[np.int64]]:
    """Yields blocks of pairs (P, 2) whose hashes are near, each pair once, by the first band that it shares."""
    edges = [64 * band // _BANDS for band in range(_BANDS + 1)]
    masks = [np.uint64((1 << high) - (1 << low)) for low, high in itertools.pairwise(edges)]
    for number, mask in enumerate(masks):
        order = np.argsort(hashes & mask, kind="stable")
        starts = np.flatnonzero(np.diff(hashes[order] & mask)) + 1
        for bucket in np.split(order, starts):
            step = max(1, _BLOCK // max(1, len(bucket)))
            for top in range(0, len(bucket) - 1, step):
                rows, columns = bucket[top : top + step], bucket[top:]
                differ = hashes[rows, None] ^ hashes[None, columns]
                near = np.triu(np.bitwise_count(differ) <= HASH_BITS, 1)
                for earlier in masks[:number]:
                    near &= (differ & earlier) != 0
                row, column = np.nonzero(near)
                if len(row):
                    yield np.stack([rows[row], columns[column]], axis=1)


def are_alike(first: NDArray[np.uint8], second: NDArray[np.uint8]) -> NDArray[np.bool_]:
    """Returns whether thumbnails, uint8 (P, 256), correlate pair by pair, bool (P,).

    Brightness and contrast do not matter. Pictures that are nearly flat are never alike, because their hashes are
    random.
    """
    a, b = first.astype(np.float32), second.astype(np.float32)
    a -= a.mean(axis=1, keepdims=True)
    b -= b.mean(axis=1, keepdims=True)
    strength, other = np.square(a).mean(axis=1), np.square(b).mean(axis=1)
    shared = (a * b).mean(axis=1)
    result: NDArray[np.bool_] = (shared >= CORRELATION * np.sqrt(strength * other)) & (
        np.minimum(strength, other) >= FLAT**2
    )
    return result


def find_groups(
    members: Sequence[Member], labels: Sequence[int], marks: Sequence[Fingerprint]
) -> tuple[tuple[Group, ...], bool]:
    """Groups N images by their fingerprints.

    Args:
        members, labels, marks: the images, their classes and their fingerprints.

    Returns:
        the groups of the same pixels, then those of nearly the same, in the order of `members`; and whether the search
        for the latter was complete.
    """

    def make_group(kind: str, numbers: list[int], pairs: Iterable[tuple[int, int]]) -> Group:
        # The most telling pair is the example: one of two splits, else of two classes, else the first.
        def rank(pair: tuple[int, int]) -> tuple[bool, bool, int, int]:
            first, second = pair
            return members[first][0] == members[second][0], labels[first] == labels[second], first, second

        first, second = min(pairs, key=rank)
        return Group(
            kind,
            tuple(members[number] for number in numbers),
            frozenset(labels[number] for number in numbers),
            (members[first], members[second]),
        )

    by_digest: dict[bytes, list[int]] = {}
    for number, mark in enumerate(marks):
        by_digest.setdefault(mark.digest, []).append(number)
    copies = list(by_digest.values())  # the numbers of the images that are the same, for each picture
    exact = [make_group("exact", numbers, itertools.pairwise(numbers)) for numbers in copies if len(numbers) > 1]

    # Of equal images, only the first is compared with others.
    hashes = np.array([marks[numbers[0]].hash for numbers in copies], np.uint64)
    thumbs = np.frombuffer(b"".join(marks[numbers[0]].thumb for numbers in copies), np.uint8)
    pairs, complete = find_near_pairs(hashes, thumbs.reshape(-1, _THUMB**2))
    # Of the copies of a picture, one of each split and class is enough to find the best example.
    kinds = [list({(members[n][0], labels[n]): n for n in reversed(numbers)}.values()) for numbers in copies]
    near = []
    for component in _connect(pairs, len(copies)):
        numbers = sorted(number for picture in np.unique(component) for number in copies[picture])
        edges = (edge for one, other in component.tolist() for edge in itertools.product(kinds[one], kinds[other]))
        near.append(make_group("near", numbers, edges))
    return (*exact, *near), complete


def _connect(pairs: NDArray[np.int64], count: int) -> list[NDArray[np.int64]]:
    """Returns the sorted pairs (P, 2) of the numbers 0..count-1 in the groups that they connect, each group sorted."""
    from scipy.sparse import coo_array
    from scipy.sparse.csgraph import connected_components

    if not len(pairs):
        return []
    graph = coo_array((np.ones(len(pairs), bool), (pairs[:, 0], pairs[:, 1])), shape=(count, count))
    _, names = connected_components(graph, directed=False)
    by_name: dict[int, list[int]] = {}
    for place, name in enumerate(names[pairs[:, 0]].tolist()):
        by_name.setdefault(name, []).append(place)
    return [pairs[places] for places in by_name.values()]
