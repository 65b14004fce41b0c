"""The search for near duplicates against brute force, and fingerprints against their definition."""

from __future__ import annotations

import io
import itertools

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image, ImageEnhance

from pace import limit_time
from shiftvit.data.check import duplicates
from shiftvit.data.check.duplicates import Fingerprint, are_alike, find_groups, find_near_pairs, fingerprint
from shiftvit.data.decode.images import decode
from trees import SAMPLES

PICTURES = {path.stem: decode(path) for path in sorted(SAMPLES.rglob("*.png"))}


def reencode(pixels, quality):
    stream = io.BytesIO()
    Image.fromarray(pixels).save(stream, "JPEG", quality=quality)
    return decode(stream.getvalue())


def adjust_brightness(pixels, factor):
    return np.asarray(ImageEnhance.Brightness(Image.fromarray(pixels)).enhance(factor))


def enlarge(pixels):
    return np.asarray(Image.fromarray(pixels).resize((96, 96), Image.Resampling.BICUBIC))


CHANGES = {
    "jpeg 90": lambda pixels: reencode(pixels, 90),
    "jpeg 75": lambda pixels: reencode(pixels, 75),
    "brighter": lambda pixels: adjust_brightness(pixels, 1.05),
    "darker": lambda pixels: adjust_brightness(pixels, 0.95),
    "larger": enlarge,
}


def are_near(first, second):
    marks = [fingerprint(pixels) for pixels in (first, second)]
    return len(find_pairs(marks)) == 1


def find_pairs(marks):
    hashes = np.array([mark.hash for mark in marks], np.uint64)
    thumbs = np.frombuffer(b"".join(mark.thumb for mark in marks), np.uint8).reshape(len(marks), -1)
    pairs, complete = find_near_pairs(hashes, thumbs)
    assert complete
    return [tuple(pair) for pair in pairs.tolist()]


@pytest.mark.parametrize("change", CHANGES)
@pytest.mark.parametrize("name", PICTURES)
def test_changed_copies_are_near(name, change):
    assert are_near(PICTURES[name], CHANGES[change](PICTURES[name]))


def test_different_pictures_are_not_near():
    assert find_pairs([fingerprint(pixels) for pixels in PICTURES.values()]) == []


@pytest.mark.parametrize("name", PICTURES)
def test_flipped_pictures_are_not_near(name):
    assert not are_near(PICTURES[name], PICTURES[name][:, ::-1])
    assert not are_near(PICTURES[name], PICTURES[name][::-1])


def test_flat_pictures_are_not_near():
    rng = np.random.default_rng(0)
    flat = [np.full((32, 32, 3), colour, np.uint8) for colour in ((0, 0, 0), (0, 0, 9), (99, 99, 99), (100, 100, 100))]
    noisy = [np.clip(200 + rng.normal(0, 2, (32, 32, 3)), 0, 255).astype(np.uint8) for _ in range(20)]
    assert find_pairs([fingerprint(pixels) for pixels in flat + noisy]) == []


def test_difference_hash_follows_its_definition():
    """From 9 x 8 pixels: each of 64 bits is set where a pixel is darker than its right neighbour."""
    grey = np.random.default_rng(1).integers(0, 256, (8, 9), np.uint8)
    bits = "".join("1" if grey[row, column] < grey[row, column + 1] else "0" for row, column in np.ndindex(8, 8))
    assert fingerprint(np.repeat(grey[..., None], 3, axis=2)).hash == int(bits, 2)


def test_digest_depends_on_pixels_and_shape():
    pixels = next(iter(PICTURES.values()))
    marks = [pixels, pixels.copy(), pixels[:, ::-1], pixels[:, ::-1].copy(), pixels.reshape(16, 64, 3)]
    digests = [fingerprint(pixels).digest for pixels in marks]
    assert digests[0] == digests[1]
    assert digests[2] == digests[3]
    assert len(set(digests)) == 3


@settings(max_examples=50)
@given(st.integers(0, 2**32), st.integers(2, 60), st.sampled_from([64, 20, 5]))
def test_search_matches_brute_force(seed, count, bits):
    """The hashes are near each other, and many agree in a band."""
    rng = np.random.default_rng(seed)
    hashes = rng.integers(0, 2**64, 4, np.uint64)[rng.integers(0, 4, count)]
    for row in range(count):
        for bit in rng.integers(0, bits, rng.integers(0, 9)):
            hashes[row] ^= np.uint64(1) << np.uint64(bit)
    thumbs = rng.integers(0, 256, (3, 256), np.uint8)[rng.integers(0, 3, count)]
    expected = [
        (i, j)
        for i, j in itertools.combinations(range(count), 2)
        if (int(hashes[i]) ^ int(hashes[j])).bit_count() <= 6 and (thumbs[i] == thumbs[j]).all()
    ]
    pairs, complete = find_near_pairs(hashes, thumbs)
    assert complete
    assert [tuple(pair) for pair in pairs.tolist()] == expected


def test_block_size_does_not_change_the_result(monkeypatch):
    rng = np.random.default_rng(0)
    hashes = rng.integers(0, 2**6, 300, np.uint64)
    thumbs = np.repeat(rng.integers(0, 256, (1, 256), np.uint8), 300, axis=0)
    whole, _ = find_near_pairs(hashes, thumbs)
    monkeypatch.setattr(duplicates, "_BLOCK", 700)
    monkeypatch.setattr(duplicates, "_COMPARED", 10)
    np.testing.assert_array_equal(find_near_pairs(hashes, thumbs)[0], whole)
    assert len(whole) > 10_000


def test_search_stops_at_too_many_pairs(monkeypatch):
    monkeypatch.setattr(duplicates, "MOST_PAIRS", 1000)
    thumbs = np.repeat(np.random.default_rng(0).integers(0, 256, (1, 256), np.uint8), 100, axis=0)
    pairs, complete = find_near_pairs(np.zeros(100, np.uint64), thumbs)
    assert not complete
    assert len(pairs) > 1000


def test_thumbnails_are_compared_by_correlation():
    """They agree with NumPy's correlation, whatever the brightness and contrast."""
    rng = np.random.default_rng(0)
    base = rng.integers(60, 190, (400, 256))
    mixed = np.linspace(0, 1, 400)[:, None] * (base - 125) + rng.normal(0, 15, (400, 256))
    first, second = base.astype(np.uint8), np.clip(0.6 * mixed + 140, 0, 255).astype(np.uint8)
    expected = np.array([np.corrcoef(a, b)[0, 1] for a, b in zip(first, second, strict=True)])
    assert 50 < (expected >= 0.9).sum() < 350
    np.testing.assert_array_equal(are_alike(first, second), expected >= 0.9)


@pytest.mark.parametrize(("contrasts", "same"), [((2, 2), False), ((2, 4), False), ((4, 2), False), ((4, 4), True)])
def test_thumbnails_need_contrast_to_be_alike(contrasts, same):
    signs = np.sign(np.arange(256) % 7 - 3)
    first, second = ((100 + contrast * signs).astype(np.uint8)[None] for contrast in contrasts)
    assert are_alike(first, second).tolist() == [same]


def test_groups_and_their_example_pairs():
    pixels = list(PICTURES.values())
    a, b = pixels[:2]
    close = reencode(a, 90)
    marks = [fingerprint(image) for image in (a, b, a, close, b, a)]
    cat, dog, ox = range(3)
    members = [("train", 0), ("train", 1), ("train", 2), ("test", 0), ("train", 3), ("test", 1)]
    labels = [cat, dog, cat, ox, dog, cat]
    groups, complete = find_groups(members, labels, marks)
    assert complete
    found = [(group.kind, [members.index(member) for member in group.members]) for group in groups]
    assert found == [("exact", [0, 2, 5]), ("exact", [1, 4]), ("near", [0, 2, 3, 5])]
    assert groups[0].example == (members[2], members[5])  # from two splits
    assert groups[2].example == (members[0], members[3])  # from two splits and two classes
    assert groups[2].splits == {"train", "test"}
    assert groups[2].labels == {cat, ox}
    assert find_groups([], [], []) == ((), True)


def test_search_among_many_pictures_is_fast():
    rng = np.random.default_rng(0)
    count = 20_000
    # As with real pictures, some bits are set far more often than others.
    bits = np.packbits(rng.random((count, 64)) < np.linspace(0.1, 0.9, 64), axis=1)
    thumbs = rng.integers(0, 256, (count, 256), np.uint8)
    marks = [
        Fingerprint(number.to_bytes(16, "big"), int.from_bytes(row.tobytes(), "big"), thumb.tobytes())
        for number, (row, thumb) in enumerate(zip(bits, thumbs, strict=True))
    ]
    marks[-1] = Fingerprint(b"x", marks[0].hash ^ 0b111111, marks[0].thumb)
    members = [("train", number) for number in range(count)]
    with limit_time(1000):
        groups, _ = find_groups(members, [0] * count, marks)
    assert [[index for _, index in group.members] for group in groups] == [[0, count - 1]]
