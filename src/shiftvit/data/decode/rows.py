"""Single images of Parquet files, in any order.

A Parquet file can only be read in row groups of hundreds of images, and training needs single ones. So the images of
each file are written once into an Arrow file in the cache, which is then mapped into memory. Its pages count as memory
of the process, but the system can take them back. The package `datasets` would do the same, but requires pandas, dill
and fsspec. An image is named by its file and its row, counted from 0: `train-00000-of-00001.parquet#7`.
"""

from __future__ import annotations

import contextlib
import hashlib
import os
import re
import shutil
import threading
from collections.abc import Callable, Iterable, Iterator
from functools import lru_cache
from pathlib import Path
from typing import Any

from shiftvit import files
from shiftvit.console import Bar
from shiftvit.data.decode.faults import Fault
from shiftvit.data.decode.parquet import count_bytes, find_columns, import_pyarrow, open_parquet, read_images
from shiftvit.errors import ShiftViTError, describe_error, notice

_NAME = re.compile(r"(.+\.parquet)#(0|[1-9][0-9]{0,17})", re.IGNORECASE | re.DOTALL)
_TAIL = 2**16  # bytes at the end of a Parquet file, which say where its pages are and what is in them

# What is wrong with a row that has no bytes.
NO_IMAGE = "has no image: the row has no bytes; fill them in, or remove the row"

# Identifies the content of a Parquet file: path, bytes, time in ns. If one of them differs, it is another file.
_Key = tuple[str, int, int]
_Images = Any  # a pyarrow.ChunkedArray of large_binary, one element for each row
Report = Callable[[int], None]

_unpacked: dict[_Key, _Images] = {}
_faults: dict[_Key, str] = {}  # so that a file that cannot be unpacked is not tried again for each image
_lock = threading.RLock()


def find_row(name: str | os.PathLike[str]) -> tuple[str, int] | None:
    """Returns the Parquet file and the row that a name stands for, or None if it is an ordinary path.

    If a file of this very name exists, the name is an ordinary path.
    """
    match = _NAME.fullmatch(os.fspath(name))
    return None if match is None or os.path.lexists(name) else (match[1], int(match[2]))


def is_image(name: str) -> bool:
    """Returns whether a name stands for a file that exists, or for a row that its Parquet file has.

    Raises:
        ShiftViTError: the Parquet file cannot be read.
    """
    place = find_row(name)
    if place is None:
        return Path(name).is_file()
    return Path(place[0]).is_file() and place[1] < _count_rows(_identify(place[0]))[0]


def read_row(path: str, row: int, check: Callable[[int], None]) -> bytes:
    """Returns the bytes of an image. The first call for a file unpacks it. Any number of threads may call this.

    Args:
        path, row: what `find_row` returned.
        check: called with the number of bytes before they are read; it may raise to refuse them.

    Raises:
        Fault: the row has no image, or there is no such row.
        OSError: there is no such file.
        ShiftViTError: the file is not Parquet with images, or there is no room to unpack it.
    """
    images = _get_images(_identify(path))
    if row >= len(images):
        raise Fault(f"is not a row of its file, which has {len(images):,}; rows are counted from 0")
    image = images[row].as_buffer()
    if not image:
        raise Fault(NO_IMAGE)
    check(len(image))
    return bytes(image)


def unpack(names: Iterable[str]) -> None:
    """Unpacks the Parquet files of these images that are not unpacked yet.

    It prints a notice and, on a terminal, shows the progress. Threads and processes take turns.

    Args:
        names: the images; ordinary paths are skipped.

    Raises:
        ShiftViTError: a file is missing or is not Parquet with images, or there is no room to unpack it.
    """
    places = {match[1]: name for name in names if (match := _NAME.fullmatch(name))}
    paths = [path for path, name in places.items() if find_row(name)]
    try:
        keys = [_identify(path) for path in paths]
    except OSError as error:
        raise ShiftViTError(f"{error.filename!r} cannot be read: {describe_error(error)}; check the path") from error
    for key in keys:
        _faults.pop(key, None)
    new = [key for key in keys if _open_unpacked(key) is None]
    if not new:
        return
    rows, sizes = zip(*map(_count_rows, new), strict=True)
    what = f"{new[0][0]}" if len(new) == 1 else f"{len(new):,} Parquet files"
    notice(f"unpacking {what} ({_format_size(sum(sizes))} of images) into {files.find_cache_folder('parquet')}, once")
    with Bar("unpacking", sum(rows)) as bar:
        for key in new:
            _get_images(key, bar.advance)


def _identify(path: str) -> _Key:
    status = os.stat(path)  # noqa: PTH116 - for each image; a Path would take several times as long
    return path, status.st_size, status.st_mtime_ns


@lru_cache(4096)
def _count_rows(key: _Key) -> tuple[int, int]:
    """Returns the number of rows, and the most bytes that the images can have."""
    with open_parquet(key[0]) as file:
        return int(file.metadata.num_rows), count_bytes(file)


def _get_images(key: _Key, report: Report | None = None) -> _Images:
    """Returns the images of a Parquet file. Unpacks it first if that was not done yet."""
    images = _unpacked.get(key)
    if images is not None:
        return images
    with _lock:
        if key in _faults:
            raise ShiftViTError(_faults[key])
        try:
            images = _open_unpacked(key)
            if images is None:
                images = _unpack(key, report)
        except ShiftViTError as error:
            _faults[key] = str(error)
            raise
        _unpacked[key] = images
        return images


def _open_unpacked(key: _Key) -> _Images | None:
    """Returns the images of a Parquet file from the cache, or None if they are not there or are damaged."""
    pa = import_pyarrow(key[0])
    try:
        with pa.memory_map(os.fspath(_find_place(key))) as file:  # the mapping outlives the file
            images = pa.ipc.open_file(file).read_all().column("image")
        images.validate(full=True)
    except pa.ArrowMemoryError:
        raise
    except (OSError, LookupError, pa.ArrowException):
        return None
    return images if images.type == pa.large_binary() else None


def _find_place(key: _Key) -> Path:
    """Returns the path of the Arrow file. Its name depends on the Parquet file's path, size, time and last bytes."""
    path, size, time = key
    with Path(path).open("rb") as stream:
        stream.seek(max(0, size - _TAIL))
        tail = stream.read()
    place = hashlib.sha256(os.fsencode(Path(path).resolve())).hexdigest()[:16]
    content = hashlib.sha256(f"{size} {time} ".encode() + tail).hexdigest()[:24]
    return files.find_cache_folder("parquet") / f"{place}-{content}.arrow"


def _unpack(key: _Key, report: Report | None) -> _Images:
    path, place = key[0], _find_place(key)
    with contextlib.ExitStack() as stack:
        try:
            stack.enter_context(files.take_turn(place.parent, "unpacking"))
        except OSError as error:
            raise _explain_unwritable(place.parent, error) from error
        images = _open_unpacked(key)
        if images is not None:  # another process unpacked them meanwhile
            return images
        with open_parquet(path) as file:
            columns = find_columns(path, file)
        count, size = _count_rows(key)
        if report is None:
            notice(f"unpacking {path} ({_format_size(size)} of images) into {place.parent}, once")
        free = shutil.disk_usage(place.parent).free
        if size > free:
            raise ShiftViTError(
                f"the images of {path!r} take up to {_format_size(size)} and {str(place.parent)!r} has room for "
                f"{_format_size(free)}; free space, or set SHIFTVIT_CACHE to a folder with more"
            )
        parts = read_images(path, columns)
        try:
            files.write_file(place, lambda temporary: _write(temporary, parts, count, report))
        except ShiftViTError as error:
            cause = error.__cause__
            if not isinstance(cause, OSError) or cause.errno is None:  # the reading failed, not the writing
                raise
            raise _explain_unwritable(place.parent, cause) from error
        # Delete what was unpacked from an earlier version of the file, or by an earlier release.
        for old in place.parent.glob(f"{place.name.split('-')[0]}-*"):
            if old != place:
                with contextlib.suppress(OSError):
                    old.unlink()
        images = _open_unpacked(key)
    if images is None:
        raise ShiftViTError(
            f"{str(place)!r} cannot be read back; check the disk, or set SHIFTVIT_CACHE to another folder"
        )
    return images


def _write(temporary: Path, parts: Iterator[Any], count: int, report: Report | None) -> None:
    import pyarrow as pa  # type: ignore[import-untyped]

    schema = pa.schema([("image", pa.large_binary())])
    rows = 0
    with temporary.open("wb") as file, pa.ipc.new_file(file, schema) as writer:
        for part in parts:
            writer.write_batch(pa.record_batch([part], schema=schema))
            rows += len(part)
            if report is not None:
                report(len(part))
        if rows != count:
            raise ShiftViTError(f"the Parquet file has {rows:,} of {count:,} rows; get the file again")


def _format_size(size: int) -> str:
    return f"{size / 1e6:,.1f} MB"


def _explain_unwritable(folder: Path, error: OSError) -> ShiftViTError:
    mend = files.suggest_place(error, "set SHIFTVIT_CACHE to a writable folder with room")
    return ShiftViTError(f"images cannot be unpacked into {str(folder)!r}: {describe_error(error)}; {mend}")
