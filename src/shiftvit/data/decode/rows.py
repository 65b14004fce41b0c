"""Single images of Parquet files, in any order: unpacked once into one flat file each, and read from there.

A Parquet file is read a row group at a time, of hundreds of images; training asks for one here and one there.
An image is named by its file and its row, from 0: `train-00000-of-00001.parquet#7`.
"""

from __future__ import annotations

import contextlib
import hashlib
import os
import re
import shutil
import struct
import threading
from collections.abc import Callable, Iterable, Iterator
from functools import lru_cache
from pathlib import Path
from typing import NamedTuple

import numpy as np

from shiftvit import files
from shiftvit.data.decode.formats import Fault
from shiftvit.data.decode.parquet import find_columns, image_bytes, open_parquet, size_of
from shiftvit.errors import ShiftViTError, notice

_NAME = re.compile(r"(.+\.parquet)#(0|[1-9][0-9]{0,17})", re.IGNORECASE | re.DOTALL)

# A flat file: _MAGIC, the number of rows N, N + 1 places where the images begin and end, and the images; int64, little.
_MAGIC = b"SVIMAGE1"
_HEADER = struct.Struct("<8sq")
_PAIR = struct.Struct("<2q")
_SUFFIX = ".images"

_Key = tuple[str, int, int]  # of a Parquet file: path, bytes, time in ns; with another of these it is another file
Told = Callable[[int], None]


class _Store(NamedTuple):
    """A flat file, and how many rows it has."""

    place: Path
    rows: int


_stores: dict[_Key, _Store] = {}
_faults: dict[_Key, str] = {}  # so that what failed for one image is not tried anew for each
_lock = threading.RLock()


def row_of(name: str | os.PathLike[str]) -> tuple[str, int] | None:
    """Returns the Parquet file and the row that a name stands for; None: it is an ordinary path.

    A file that has such a name is what the name stands for.
    """
    match = _NAME.fullmatch(os.fspath(name))
    return None if match is None or os.path.lexists(name) else (match[1], int(match[2]))


def is_image(name: str) -> bool:
    """Tells whether a name stands for a file, or for a row of a Parquet file that has so many.

    Raises:
        ShiftViTError: the Parquet file cannot be read.
    """
    place = row_of(name)
    if place is None:
        return Path(name).is_file()
    return Path(place[0]).is_file() and place[1] < _rows(_key(place[0]))


def read_row(path: str, row: int, check: Callable[[int], None]) -> bytes:
    """Returns the bytes of an image; the first call for a file unpacks it. Any number of threads may call this.

    Args:
        path, row: what `row_of` returned.
        check: is called with the number of bytes before they are read, to refuse too many.

    Raises:
        Fault: the row has no image, or there is no such row.
        OSError: there is no such file.
        ShiftViTError: the file is no Parquet with images, or there is no room to unpack it.
    """
    key = _key(path)
    try:
        return _read(_store(key), row, check)
    except FileNotFoundError:  # the cache was emptied
        _stores.pop(key, None)
        return _read(_store(key), row, check)


def unpack(names: Iterable[str]) -> None:
    """Unpacks the Parquet files that images are in, those that are not yet, ahead of the first use of an image.

    It says so, and on a terminal a bar shows the progress. One after another is unpacked, in threads or processes too.

    Args:
        names: of images; what is an ordinary path is passed over.

    Raises:
        ShiftViTError: a file is missing, is no Parquet with images, or there is no room for it.
    """
    from rich.console import Console
    from rich.progress import BarColumn, Progress, TextColumn, TimeRemainingColumn

    places = {match[1]: name for name in names if (match := _NAME.fullmatch(name))}
    paths = [path for path, name in places.items() if row_of(name)]
    try:
        keys = [_key(path) for path in paths]
    except OSError as error:
        raise ShiftViTError(f"{error.filename!r} cannot be read: {error.strerror}; check the path") from error
    for key in keys:
        _faults.pop(key, None)
    new = [key for key in keys if _found(key) is None]
    if not new:
        return
    what = f"{new[0][0]}" if len(new) == 1 else f"{len(new):,} Parquet files"
    notice(f"unpacking {what} ({_megabytes(sum(map(_images_size, new)))} of images) into {cache_folder()}, once")
    console = Console(stderr=True)
    columns = (TextColumn("unpacking"), BarColumn(), TimeRemainingColumn(compact=True))
    with Progress(*columns, console=console, transient=True, disable=not console.is_terminal) as bar:
        task = bar.add_task("unpacking", total=sum(map(_rows, new)))
        for key in new:
            _store(key, lambda rows: bar.advance(task, rows))


def cache_folder() -> Path:
    """Returns where the flat files lie: below `$SHIFTVIT_CACHE`, or the user's cache folder."""
    chosen = os.environ.get("SHIFTVIT_CACHE")
    if chosen:
        return Path(chosen).expanduser() / "parquet"
    from platformdirs import user_cache_path

    return user_cache_path("shiftvit") / "parquet"


def _key(path: str) -> _Key:
    status = os.stat(path)  # noqa: PTH116 - for each image; a Path would take several times as long
    return path, status.st_size, status.st_mtime_ns


@lru_cache(4096)
def _rows(key: _Key) -> int:
    with open_parquet(key[0]) as file:
        return int(file.metadata.num_rows)


@lru_cache(4096)
def _images_size(key: _Key) -> int:
    with open_parquet(key[0]) as file:
        return size_of(file)


def _read(store: _Store, row: int, check: Callable[[int], None]) -> bytes:
    if row >= store.rows:
        raise Fault(f"is no row of its file, which has {store.rows:,}; rows are counted from 0")
    with store.place.open("rb", buffering=0) as stream:
        stream.seek(_HEADER.size + 8 * row)
        start, end = _PAIR.unpack(stream.read(_PAIR.size))
        if start == end:
            raise Fault("has no image: the row has no bytes; fill them in, or remove the row")
        check(end - start)
        stream.seek(start)
        data = stream.read(end - start)
    if len(data) < end - start:
        raise Fault(f"cannot be read: {str(store.place)!r} ends too early; delete that file, it is made anew")
    return data


def _store(key: _Key, told: Told | None = None) -> _Store:
    """Returns the flat file of a Parquet file, which is made where there is none."""
    found = _stores.get(key)
    if found is not None:
        return found
    with _lock:
        if key in _faults:
            raise ShiftViTError(_faults[key])
        try:
            found = _found(key) or _made(key, told)
        except ShiftViTError as error:
            _faults[key] = str(error)
            raise
        _stores[key] = found
        return found


def _found(key: _Key) -> _Store | None:
    place = _place(key)
    try:
        with place.open("rb") as stream:
            magic, count = _HEADER.unpack(stream.read(_HEADER.size))
            stream.seek(_HEADER.size + 8 * count)
            (end,) = struct.unpack("<q", stream.read(8))
            whole = magic == _MAGIC and os.fstat(stream.fileno()).st_size == end
    except (OSError, ValueError, struct.error):
        return None
    return _Store(place, count) if whole else None


def _place(key: _Key) -> Path:
    """Returns where the flat file lies: the name has the Parquet file's path, and its size, time and footer."""
    path, size, time = key
    try:
        with Path(path).open("rb") as stream:
            stream.seek(max(0, size - 8))
            length, magic = struct.unpack("<I4s", stream.read(8))
            if magic != b"PAR1" or length > size - 8:
                raise ValueError("it ends too early")
            stream.seek(size - 8 - length)
            footer = stream.read(length)
    except (struct.error, ValueError) as error:
        raise ShiftViTError(f"{path!r} is no whole Parquet file: it ends too early; get the file again") from error
    place = hashlib.sha256(os.fsencode(Path(path).resolve())).hexdigest()[:16]
    content = hashlib.sha256(f"{size} {time} ".encode() + footer).hexdigest()[:24]
    return cache_folder() / f"{place}-{content}{_SUFFIX}"


def _made(key: _Key, told: Told | None) -> _Store:
    path, place = key[0], _place(key)
    with _alone(place.parent):
        if found := _found(key):  # another process made it meanwhile
            return found
        with open_parquet(path) as file:
            columns = find_columns(path, file)
        count, size = _rows(key), _images_size(key)
        if told is None:
            notice(f"unpacking {path} ({_megabytes(size)} of images) into {place.parent}, once")
        free = shutil.disk_usage(place.parent).free
        if size > free:
            raise ShiftViTError(
                f"the images of {path!r} take up to {_megabytes(size)} and {str(place.parent)!r} has room for "
                f"{_megabytes(free)}; free space, or set SHIFTVIT_CACHE to a folder with more"
            )
        parts = image_bytes(path, columns)
        try:
            files.write_file(place, lambda temporary: _write(temporary, parts, count, told))
        except ShiftViTError as error:
            if getattr(error.__cause__, "errno", None) is None:  # the reading failed, not the writing
                raise
            raise _no_room(place.parent, error.__cause__) from error
        for old in place.parent.glob(f"{place.name.split('-')[0]}-*"):  # of an earlier file in this one's place
            if old != place:
                with contextlib.suppress(OSError):
                    old.unlink()
    return _Store(place, count)


def _write(temporary: Path, parts: Iterator[list[bytes | None]], count: int, told: Told | None) -> None:
    places = np.full(count + 1, _HEADER.size + 8 * (count + 1), "<i8")
    row = 0
    with temporary.open("wb") as stream:
        stream.seek(int(places[0]))
        for part in parts:
            held = [image or b"" for image in part]
            places[row + 1 : row + 1 + len(held)] = places[row] + np.cumsum([len(image) for image in held])
            row += len(held)
            stream.writelines(held)
            if told is not None:
                told(len(held))
        if row != count:
            raise ShiftViTError(f"the Parquet file has {row:,} of {count:,} rows; get the file again")
        stream.seek(0)
        stream.write(_HEADER.pack(_MAGIC, count))
        stream.write(places.tobytes())


@contextlib.contextmanager
def _alone(folder: Path) -> Iterator[None]:
    """Lets one process at a time unpack; what killed ones left is deleted."""
    try:
        folder.mkdir(parents=True, exist_ok=True)
        lock = (folder / ".lock").open("a")
    except OSError as error:
        raise _no_room(folder, error) from error
    with lock:
        alone = files.lock(lock, wait=False)
        if alone is False:
            notice("another process is unpacking; waiting for it")
            alone = files.lock(lock, wait=True)
        for left in folder.glob(".*.tmp*") if alone else ():
            with contextlib.suppress(OSError):
                left.unlink()
        yield


def _megabytes(size: int) -> str:
    return f"{size / 1e6:,.1f} MB"


def _no_room(folder: Path, error: BaseException | None) -> ShiftViTError:
    reason = getattr(error, "strerror", None) or error
    return ShiftViTError(
        f"images cannot be unpacked into {str(folder)!r}: {reason}; free space, or set SHIFTVIT_CACHE to a folder with "
        "room"
    )
