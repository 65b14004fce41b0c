"""Divides the input of a bulk run into blocks, the same ones at every start. Each block becomes one output file."""

from __future__ import annotations

import hashlib
import json
import os
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from functools import partial
from itertools import chain, islice
from pathlib import Path
from typing import Any, NoReturn

from shiftvit.data.decode.parquet import Columns, find_columns, open_parquet, read_groups
from shiftvit.data.decode.readers import IMAGE_SUFFIXES
from shiftvit.data.decode.rows import NO_IMAGE
from shiftvit.data.find.listing import is_companion, list_images
from shiftvit.data.find.words import is_litter
from shiftvit.errors import ShiftViTError, list_some
from shiftvit.inference.batches import BATCH_SIZE
from shiftvit.inference.sources import Named
from shiftvit.inference.storage import Storage, is_uri, open_storage, report_unreachable

# A file: (storage, path). A row group of a Parquet file: (storage, path, group, first row, number of rows).
Entry = tuple[int, str] | tuple[int, str, int, int, int]
# The fewest and the most images in a block, and the number of blocks to aim for, so that several actors have work.
_LEAST, _MOST, _WANTED = 16, 1024, 64
TRIES = 3  # attempts to read a block or a row group if the file system fails
_READERS = 16  # threads that read the footers of Parquet files


class Inputs:
    """Images in a stable order.

    Attributes:
        storages: where they are; the first item of an entry is an index into this list.
        entries: the files and row groups.
        count: the number of images.
        roots: the folders on this machine that contain them.
    """

    def __init__(
        self, names: Sequence[str], *, recursive: bool = False, all_files: bool = False, without: str | None = None
    ) -> None:
        """Lists the images.

        Args:
            names: image files, Parquet files and folders of either, by path or URI, and patterns of paths.
            recursive, all_files: as in `list_images`. From a folder without image files, Parquet files are read.
            without: the beginning of the identities of files to leave out, as those of the results.

        Raises:
            ShiftViTError: a name matches nothing or cannot be reached, or no name has an image.
        """
        self.storages: list[Storage] = []
        self.entries: list[Entry] = []
        self.roots: set[str] = set()
        for name in names:
            storage, paths = _list(name, recursive, all_files)
            if without is not None:
                paths = [path for path in paths if not storage.identify(path).startswith(without)]
            if storage not in self.storages:
                self.storages.append(storage)
            self._add(self.storages.index(storage), paths)
            if storage.filesystem is None:
                parents = {os.path.dirname(storage.locate(path)) for path in paths}  # noqa: PTH120  (there may be millions)
                self.roots.update(parent for parent in parents if Path(parent).is_dir())
        # A pattern that the shell expands gives the companions of pictures as names of their own.
        others = [{entry[1] for entry in self.entries if entry[0] == at} for at in range(len(self.storages))]
        self.entries = [entry for entry in self.entries if not is_companion(entry[1], others[entry[0]])]
        self.count = sum(map(count_images, self.entries))
        if not self.count:
            where = list_some(map(repr, names)) or "an empty list"
            raise ShiftViTError(f"there are no images in {where}; name image files, or Parquet files with rows")

    def _add(self, at: int, paths: list[str]) -> None:
        storage = self.storages[at]
        shards = [path for path in paths if _is_parquet(path)]
        with ThreadPoolExecutor(_READERS) as pool:
            sizes = dict(zip(shards, pool.map(partial(_read_group_sizes, storage), shards), strict=True))
        for path in paths:
            if path not in sizes:
                self.entries.append((at, path))
                continue
            first = 0
            for group, rows in enumerate(sizes[path]):
                if rows:
                    self.entries.append((at, path, group, first, rows))
                first += rows

    def digest(self) -> str:
        """Returns a SHA-256 of the images' places and their order, in hexadecimal."""
        found = hashlib.sha256()
        for at, path, *rows in self.entries:
            found.update(json.dumps([self.storages[at].identify(path), *rows]).encode() + b"\n")
        return found.hexdigest()

    def choose_block_size(self) -> int:
        """Returns the default number of images in a block; it depends only on `count`."""
        size = max(_LEAST, -(-self.count // _WANTED))
        return size if size <= BATCH_SIZE else min(_MOST, -(-size // BATCH_SIZE) * BATCH_SIZE)

    def split(self, size: int) -> Iterator[list[Entry]]:
        """Yields the entries of each block, which together have at least `size` images."""
        block: list[Entry] = []
        images = 0
        for entry in self.entries:
            block.append(entry)
            images += count_images(entry)
            if images >= size:
                yield block
                block, images = [], 0
        if block:
            yield block


def count_images(entry: Entry) -> int:
    """Returns how many images an entry has."""
    return entry[4] if len(entry) == 5 else 1


def read_entries(entries: Sequence[Entry], storages: Sequence[Storage]) -> Iterator[Named]:
    """Yields the images of a block. Files are read when they are decoded, Parquet files a few rows at a time."""
    for at, path, *rows in entries:
        storage = storages[at]
        if rows:
            yield from _read_rows(storage, path, *rows)
        else:
            yield Named(storage.name(path), storage.get_content(path))


def _read_rows(storage: Storage, path: str, group: int, first: int, count: int) -> Iterator[Named]:
    row, file_name = first, storage.name(path)
    fault = f"{file_name!r} has fewer rows than before; start again in a new folder"
    for _ in range(TRIES):
        try:
            with _open_shard(storage, path) as (file, columns):
                images = chain.from_iterable(read_groups(file, columns, [group]))
                for image in islice(images, row - first, count):
                    name = f"{file_name}#{row}"
                    yield Named(name, partial(_check_image, name, image.as_buffer()))
                    row += 1
            break
        except ShiftViTError as error:
            fault = str(error)
            # pyarrow reports a damaged file like one that it could not read once.
            if not isinstance(error.__cause__, OSError):
                break
    for left in range(row, first + count):
        yield Named(f"{file_name}#{left}", partial(_fail, fault))


def _check_image(name: str, buffer: Any) -> bytes:
    if not buffer:
        _fail(f"{name!r} {NO_IMAGE}")
    return bytes(buffer)


def _fail(message: str) -> NoReturn:
    raise ShiftViTError(message)


@contextmanager
def _open_shard(storage: Storage, path: str) -> Iterator[tuple[Any, Columns]]:
    """Opens a Parquet file of images.

    Raises:
        ShiftViTError: it is damaged, or has no images.
        OSError: the file system or the network failed.
    """
    name = storage.name(path)
    try:
        with open_parquet(name, partial(storage.open, path)) as file:
            yield file, find_columns(name, file)
    except ShiftViTError as error:
        if isinstance(error.__cause__, OSError):
            storage.check(path, error.__cause__)
        raise


def _read_group_sizes(storage: Storage, path: str) -> list[int]:
    """Returns the number of rows in each row group of a Parquet file of images."""
    with report_unreachable(storage.name(path)), _open_shard(storage, path) as (file, _):
        return [file.metadata.row_group(group).num_rows for group in range(file.metadata.num_row_groups)]


def _is_parquet(path: str) -> bool:
    return path.lower().endswith(".parquet")


def _list(name: str, recursive: bool, all_files: bool) -> tuple[Storage, list[str]]:
    """Returns the files that a name matches, image files or Parquet files."""
    if is_uri(name):
        storage, path = open_storage(name)
        with report_unreachable(name):
            return storage, _list_uri(name, storage, path, recursive, all_files)
    local = Storage(root=str(Path.cwd()))
    try:
        found = list_images([name], recursive=recursive, all_files=all_files)
    except ShiftViTError:
        shards = _find_shards(name, recursive) if Path(name).is_dir() else []
        if not shards:
            raise
        return local, shards
    return local, found


def _find_shards(folder: str, recursive: bool) -> list[str]:
    """Returns the Parquet files in a folder; [] if it has no files."""
    try:
        return [path for path in list_images([folder], recursive=recursive, all_files=True) if _is_parquet(path)]
    except ShiftViTError:
        return []


def _list_uri(name: str, storage: Storage, path: str, recursive: bool, all_files: bool) -> list[str]:
    from pyarrow import fs  # type: ignore[import-untyped]

    info = storage.filesystem.get_file_info(path)
    if info.type == fs.FileType.NotFound:
        raise ShiftViTError(f"{name!r} does not exist; check the URI (patterns work only for paths on this machine)")
    if info.is_file:
        return [path]
    start = len(path.rstrip("/")) + 1
    found = []
    for info in storage.filesystem.get_file_info(fs.FileSelector(path, recursive=recursive)):
        parts = tuple(info.path[start:].split("/"))
        if info.is_file and not any(map(is_litter, parts if not all_files else parts[:-1])):
            found.append((parts, info.path))
    whole = [path for _, path in sorted(found)]
    pictures = [path for path in whole if os.path.splitext(path)[1].lower() in IMAGE_SUFFIXES]  # noqa: PTH122
    chosen = pictures or [path for path in whole if _is_parquet(path)]
    if all_files:
        others = {*whole}
        chosen = [path for path in whole if not is_companion(path, others)]
    if not chosen:
        mend = "" if recursive else "; use --recursive to search its subfolders"
        raise ShiftViTError(f"{name!r} holds no image files{mend}")
    return chosen
