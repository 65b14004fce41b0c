"""Folders and zip archives hold the same files, and each defect is reported in one line that names the path."""

from __future__ import annotations

import io
import json
import os
import random
import stat
import struct
import zipfile
from pathlib import Path

import numpy as np
import pytest

from attack import bounded_memory, write_liar
from shiftvit import Bundle, Preprocess, ShiftViTError
from shiftvit.bundle.stored.container import Archive, Folder, hash_content, open_container, write_container
from shiftvit.bundle.stored.manifest import CARD, GRAPH, MANIFEST, WEIGHTS
from shiftvit.config import ModelConfig
from shiftvit.exports.export import pack

CONTENTS = {"bundle.json": b'{"key": "value"}' * 40, "model.safetensors": bytes(range(256)) * 20}
SMALL = Bundle(
    ModelConfig(image_shape=(16, 16, 3), num_classes=2, embed_dim=24, depths=(1,)),
    ("a", "b"),
    Preprocess(),
    {"scale": np.ones(3, np.float32)},
    card="a card",
    graph=b"a graph",
)
METHODS = [zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED, zipfile.ZIP_BZIP2, zipfile.ZIP_LZMA]


def make_zip(method, contents=None):
    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, "w", method) as archive:
        for name, content in (contents or CONTENTS).items():
            archive.writestr(name, content)
    return buffer.getvalue()


def assert_one_line(caught, path):
    assert "\n" not in str(caught.value)
    assert str(path) in str(caught.value)


@pytest.mark.parametrize("name", ["bundle", "bundle.zip", "BUNDLE.ZIP"])
def test_write_and_read_round_trip(name, tmp_path):
    path = tmp_path / "new" / name
    for _ in range(2):  # the second write replaces the first
        write_container(path, CONTENTS)
    container = open_container(path, "bundle.json")
    assert isinstance(container, Archive if path.suffix else Folder)
    assert {name: container.read(name) for name in CONTENTS} == CONTENTS
    with pytest.raises(ShiftViTError, match=r"'model.onnx' in .* cannot be read") as caught:
        container.read("model.onnx")
    assert_one_line(caught, path)
    assert [entry.name for entry in path.parent.iterdir()] == [name]


def test_archive_is_a_reproducible_zip(tmp_path):
    write_container(tmp_path / "a.zip", CONTENTS)
    write_container(tmp_path / "b.zip", dict(CONTENTS))
    assert (tmp_path / "a.zip").read_bytes() == (tmp_path / "b.zip").read_bytes()
    with zipfile.ZipFile(tmp_path / "a.zip") as archive:
        assert archive.testzip() is None
        assert archive.namelist() == list(CONTENTS)
        for entry in archive.infolist():
            assert entry.date_time == (1980, 1, 1, 0, 0, 0)
            assert entry.compress_type == zipfile.ZIP_STORED
            assert (entry.create_system, entry.external_attr >> 16) == (3, 0o644)


@pytest.mark.parametrize("method", METHODS)
def test_reads_archives_of_other_tools(method, tmp_path):
    path = tmp_path / "other.zip"
    path.write_bytes(make_zip(method))
    container = open_container(path, "bundle.json")
    if method in (zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED):
        assert {name: container.read(name) for name in CONTENTS} == CONTENTS
    else:
        with pytest.raises(ShiftViTError, match="another method than deflate; pack it again") as caught:
            container.read("bundle.json")
        assert_one_line(caught, path)


def test_open_returns_none_where_the_file_is_missing(tmp_path):
    (tmp_path / "text.zip").write_text("no archive")
    (tmp_path / "empty.zip").write_bytes(b"")
    (tmp_path / "foreign.zip").write_bytes(make_zip(zipfile.ZIP_STORED, {"deep/bundle.json": b"{}"}))
    (tmp_path / "folder" / "bundle.json").mkdir(parents=True)
    for name in ("text.zip", "empty.zip", "foreign.zip", "folder", "nowhere"):
        assert open_container(tmp_path / name, "bundle.json") is None


def test_entries_with_paths_outside_are_ignored(tmp_path):
    path = tmp_path / "inner" / "hostile.zip"
    path.parent.mkdir()
    strange = {"../outside": b"!", "/tmp/outside": b"!", "..\\outside": b"!", "bundle.json/": b""}
    path.write_bytes(make_zip(zipfile.ZIP_STORED, CONTENTS | strange))
    container = open_container(path, "bundle.json")
    assert container.read("bundle.json") == CONTENTS["bundle.json"]
    assert sorted(entry.name for entry in tmp_path.rglob("*")) == ["hostile.zip", "inner"]


def test_zip_bomb_is_not_unpacked(tmp_path):
    path = tmp_path / "bomb.zip"
    path.write_bytes(make_zip(zipfile.ZIP_DEFLATED, {"bundle.json": bytes(2**25)}))
    with pytest.raises(ShiftViTError, match=r"would unpack to 33,554,432 bytes from \d\d,\d\d\d, too many") as caught:
        open_container(path, "bundle.json").read("bundle.json")
    assert_one_line(caught, path)
    # Small files may have any compression ratio: the labels of a thousand classes compress well.
    path.write_bytes(make_zip(zipfile.ZIP_DEFLATED, {"bundle.json": bytes(2**23)}))
    assert open_container(path, "bundle.json").read("bundle.json") == bytes(2**23)


@pytest.mark.parametrize("method", METHODS[1:])
def test_entry_larger_than_its_stated_size_fails(method, tmp_path):
    """The stated size is below every limit, and no more than that is unpacked."""
    path = tmp_path / "liar.zip"
    write_liar(path, method, "bundle.json")
    with bounded_memory(), pytest.raises(ShiftViTError, match="cannot be read") as caught:
        open_container(path, "bundle.json").read("bundle.json")
    assert_one_line(caught, path)


def test_stated_packed_size_is_not_believed(tmp_path):
    """An archive of 33 kB that states 2 GB may not unpack to 2 GB."""
    path = tmp_path / "liar.zip"
    content = bytearray(make_zip(zipfile.ZIP_DEFLATED, {"bundle.json": bytes(2**25)}))
    struct.pack_into("<I", content, content.index(b"PK\x01\x02") + 20, 2**31)
    path.write_bytes(content)
    with pytest.raises(ShiftViTError, match=r"would unpack to 33,554,432 bytes from \d\d,\d\d\d, too many"):
        open_container(path, "bundle.json").read("bundle.json")


def test_encrypted_entry_fails(tmp_path):
    content = bytearray(make_zip(zipfile.ZIP_STORED))
    for signature, offset in ((b"PK\x03\x04", 6), (b"PK\x01\x02", 8)):
        content[content.index(signature) + offset] |= 1
    path = tmp_path / "secret.zip"
    path.write_bytes(content)
    with pytest.raises(ShiftViTError, match="encrypted") as caught:
        open_container(path, "bundle.json").read("bundle.json")
    assert_one_line(caught, path)


@pytest.mark.parametrize("method", METHODS)
def test_random_damage_is_reported_in_one_line(method, tmp_path):
    """Reading returns the right content or raises one kind of error. Most damage hits the archive's structure."""
    good, path, rng = make_zip(method), tmp_path / "damaged.zip", random.Random(method)
    failures = []
    for round_ in range(300):
        content = bytearray(good)
        if round_ % 5 == 0:
            del content[rng.randrange(len(good)) :]
        else:
            for _ in range(rng.choice([1, 1, 3])):
                place = rng.choice([rng.randrange(len(good)), rng.randrange(90), -1 - rng.randrange(200)])
                content[place] = rng.randrange(256)
        path.write_bytes(content)
        try:
            container = open_container(path, "bundle.json")
            found = None if container is None else container.read("bundle.json")
        except ShiftViTError as error:
            failures.append(str(error))
        else:
            assert found in (None, CONTENTS["bundle.json"])
    assert len(failures) > 50
    assert not [line for line in failures if "\n" in line or str(path) not in line]


def test_unwritable_path_is_reported_in_one_line(tmp_path):
    (tmp_path / "file").write_text("x")
    for name in ("bundle", "bundle.zip"):
        with pytest.raises(ShiftViTError, match="cannot write") as caught:
            write_container(tmp_path / "file" / name, CONTENTS)
        assert_one_line(caught, tmp_path)
    assert [entry.name for entry in tmp_path.iterdir()] == ["file"]


def test_hash_content_is_sha256():
    # FIPS 180-2's example.
    assert hash_content(b"abc") == "ba7816bf8f01cfea414140de5dae2223b00361a396177a9cb410ff61f20015ad"
    assert hash_content(json.dumps([]).encode()) != hash_content(b"")


def replace_file(kind, place, tmp_path):
    """Replaces a file of a bundle by something that is not a regular file; links lead to the same content."""
    content = place.read_bytes()
    place.unlink()
    if kind == "folder":
        place.mkdir()
    elif kind == "pipe":
        os.mkfifo(place)
    elif kind == "device":
        place.symlink_to("/dev/zero")
    elif kind == "link within":
        (place.parent / "other").write_bytes(content)
        place.symlink_to("other")
    elif kind == "through a linked folder":
        (tmp_path / "private").mkdir()
        (tmp_path / "private" / "file").write_bytes(content)
        (place.parent / "folder").symlink_to(tmp_path / "private")
        place.symlink_to("folder/file")
    else:
        (tmp_path / "private").write_bytes(content)
        place.symlink_to(tmp_path / "private")


@pytest.mark.skipif(os.name == "nt", reason="pipes and links of folders")
@pytest.mark.parametrize("kind", ["link", "link within", "through a linked folder", "folder", "pipe", "device"])
@pytest.mark.parametrize("name", [WEIGHTS, GRAPH, MANIFEST, CARD])
def test_only_regular_files_are_read(kind, name, tmp_path):
    """A link is not read even if the content is right: it could lead to a private file. Reading a pipe would hang."""
    folder = SMALL.save(tmp_path / "model")
    card = (folder / CARD).read_text("utf-8")
    replace_file(kind, folder / name, tmp_path)
    if name == CARD:  # a model loads without its card
        assert Bundle.load(folder).card is None
    elif name == MANIFEST and kind in ("folder", "pipe", "device"):
        with pytest.raises(ShiftViTError, match="is not a bundle"):
            Bundle.load(folder)
    else:
        with pytest.raises(ShiftViTError, match=f"{name}' in .*model' cannot be read \\(it is ") as caught:
            Bundle.load(folder)
        assert_one_line(caught, folder)
    if name == CARD:  # a packed copy has a new card, without the content that the link leads to
        packed = pack(folder, tmp_path / "packed")
        assert (packed / CARD).is_file()
        assert not (packed / CARD).is_symlink()
        assert (packed / CARD).read_text("utf-8") != card


def test_linked_bundle_in_a_run_is_not_followed(tmp_path):
    Bundle.load("cifar10").save(tmp_path / "private")
    (tmp_path / "run").mkdir()
    (tmp_path / "run" / "bundle").symlink_to(tmp_path / "private")
    with pytest.raises(ShiftViTError, match=r"run/bundle' is a link, which is not followed; give the path"):
        Bundle.load(tmp_path / "run")
    assert Bundle.load(tmp_path / "run" / "bundle").labels  # a link that the user names is followed


@pytest.mark.parametrize("kind", [stat.S_IFLNK, stat.S_IFIFO, stat.S_IFDIR, stat.S_IFCHR])
def test_only_regular_archive_entries_are_read(kind, tmp_path):
    path = tmp_path / "a.zip"
    with zipfile.ZipFile(path, "w") as archive:
        entry = zipfile.ZipInfo("bundle.json")
        entry.create_system, entry.external_attr = 3, (kind | 0o777) << 16
        archive.writestr(entry, "/etc/passwd")
    with pytest.raises(ShiftViTError, match="it is not a regular file") as caught:
        open_container(path, "bundle.json").read("bundle.json")
    assert_one_line(caught, path)


def test_only_links_of_the_hub_cache_are_followed(tmp_path):
    """The folders are laid out as `huggingface_hub.snapshot_download` does."""
    folder, blobs = tmp_path / "models--me--pets" / "snapshots" / "0123", tmp_path / "models--me--pets" / "blobs"
    folder.mkdir(parents=True)
    blobs.mkdir()
    model = Bundle.load("cifar10")
    for name, content in model.files().items():
        (blobs / hash_content(content)).write_bytes(content)
        (folder / name).symlink_to(Path("..", "..", "blobs", hash_content(content)))
    assert Bundle.load(folder).files() == model.files()
    # Not followed: a blob that is a link, and a folder of blobs that is a link.
    (tmp_path / "private").write_text("private")
    card = folder / CARD
    blob = folder / card.readlink()
    blob.unlink()
    blob.symlink_to(tmp_path / "private")
    assert Bundle.load(folder).card is None
    blobs.rename(tmp_path / "elsewhere")
    blobs.symlink_to(tmp_path / "elsewhere")
    with pytest.raises(ShiftViTError, match="it is a link"):
        Bundle.load(folder)
