"""Expands the paths, folders and patterns that a user names to a list of files, in a stable order."""

from __future__ import annotations

import codecs
import glob
import os
import re
from collections.abc import Collection, Iterable, Iterator
from pathlib import Path

from shiftvit.data.decode.readers import IMAGE_SUFFIXES
from shiftvit.data.decode.rows import find_row
from shiftvit.data.find.words import is_litter
from shiftvit.errors import ShiftViTError, describe_error

# Suffixes of files that cameras and phones write beside a picture of the same name.
_COMPANIONS = {".mov", ".mp4", ".aae", ".xmp", ".thm"}
_PICTURES = {ending for low in IMAGE_SUFFIXES for ending in (low, low.upper())}
# Characters that are unusual in paths: control characters, and bytes that are not UTF-8 (escaped).
_ODD = re.compile("[\0-\x08\x0a-\x1f\x7f\udc80-\udcff]")
# `**` as a whole part of a pattern.
_SEPARATOR = f"[{re.escape(os.sep + (os.altsep or ''))}]"
_RECURSIVE = re.compile(rf"(?:\A|(?<={_SEPARATOR}))\*\*(?:{_SEPARATOR}|\Z)")


def list_images(names: Iterable[str], *, recursive: bool = False, all_files: bool = False) -> list[str]:
    """Returns the files that `names` match, name by name; those of a folder are sorted.

    Companions of pictures among them are left out: a pattern that the shell expands also matches those.

    Args:
        names: files; rows of Parquet files, `FILE.parquet#7`; folders, which stand for the files in them that have the
            suffix of an image, except hidden ones and folders of the system; patterns with `*`, `?`, `[...]` and
            `**`. A name that exists is never a pattern.
        recursive: include subfolders, but do not follow links to folders.
        all_files: include every regular file of a folder, whatever its suffix.

    Raises:
        ShiftViTError: a name matches nothing.
    """
    found: list[str] = []
    for name in names:
        part = list(_expand(name, recursive, all_files))
        if not part:
            raise ShiftViTError(f"{name!r} {_explain_nothing(name, recursive, all_files)}")
        found += part
    others = {*found}
    return [path for path in found if not is_companion(path, others)]


def list_folder(folder: str | Path) -> list[os.DirEntry[str]]:
    """Returns the entries of a folder, sorted by name.

    Raises:
        ShiftViTError: the folder cannot be read.
    """
    try:
        with os.scandir(folder) as scan:
            return sorted(scan, key=lambda entry: entry.name)
    except OSError as error:
        raise ShiftViTError(
            f"the folder {str(folder)!r} cannot be read: {describe_error(error)}; check its permissions"
        ) from error


def is_companion(name: str, others: Collection[str]) -> bool:
    """Returns whether a file belongs to a picture of the same name: a live photo's video, or notes on its edits.

    Args:
        name: the name or the path of the file.
        others: the names or paths of the files in the same folder.
    """
    stem, suffix = os.path.splitext(name)  # noqa: PTH122 - a Path would not keep the name as it is
    return suffix.lower() in _COMPANIONS and any(stem + ending in others for ending in _PICTURES)


def split_list(content: bytes) -> list[str] | None:
    """Returns the paths in a list, one on each line, or each ended by a null character; None if it is no such list.

    A list is text in UTF-8, or in UTF-16 with a byte order mark, and one of its paths must exist. If some paths have
    control characters or are not UTF-8, one of these must exist, so that a picture of an unknown format is not taken
    for a list.
    """
    if content.startswith((codecs.BOM_UTF16_LE, codecs.BOM_UTF16_BE)):
        content = content.decode("utf-16", "replace").encode()
    content = content.removeprefix(codecs.BOM_UTF8)
    if b"\0" in content:
        lines = content.removesuffix(b"\0").split(b"\0")
        if not all(lines):
            return None
    else:
        lines = [line.rstrip(b"\r") for line in content.split(b"\n")]
    names = [line.decode("utf-8", "surrogateescape") for line in lines if line]
    odd = [name for name in names if _ODD.search(name)]
    exists = any(os.path.lexists(name) or find_row(name) is not None for name in odd or names)
    return names if exists else None


def _expand(name: str, recursive: bool, all_files: bool) -> Iterator[str]:
    if Path(name).is_dir():
        yield from _walk(name, recursive, all_files)
    elif os.path.lexists(name) or find_row(name):
        yield name
    elif glob.has_magic(name):
        yield from (match for match in sorted({*_match(name)}) if not Path(match).is_dir())


def _match(pattern: str) -> Iterator[str]:
    """Yields what `glob.glob` with `recursive=True` finds, except by links that lead back to a folder on the way.

    By these, `glob` finds an image again some 40 times, and with two of them it does not end.
    """
    stars = _RECURSIVE.search(pattern)
    if stars is None:
        # Not with pathlib, which cannot glob from an absolute path or from above this folder.
        yield from glob.glob(pattern)  # noqa: PTH207
        return
    head, tail = pattern[: stars.start()], "*" if stars[0] == "**" else pattern[stars.end() :]
    for top in glob.glob(head) if head else [""]:  # noqa: PTH207
        for folder in _descend(top):
            yield from _match(glob.escape(folder) + tail)


def _descend(folder: str, above: frozenset[tuple[int, int]] = frozenset()) -> Iterator[str]:
    """Yields a folder, "" or with a separator at its end, and those in it that are not hidden, but none in itself."""
    try:
        status = Path(folder).stat()
        with os.scandir(folder or os.curdir) as scan:
            inner = [entry.name for entry in scan if not entry.name.startswith(".") and entry.is_dir()]
    except OSError:  # as for a pattern without a match
        return
    here = status.st_dev, status.st_ino
    if here not in above:
        yield folder
        for name in inner:
            yield from _descend(f"{folder}{name}{os.sep}", above | {here})


def _walk(folder: str, recursive: bool, all_files: bool) -> Iterator[str]:
    for entry in list_folder(folder):
        if is_litter(entry.name) and not (all_files and entry.is_file()):
            continue
        if entry.is_dir(follow_symlinks=False):
            if recursive:
                yield from _walk(entry.path, recursive, all_files)
        elif entry.is_file() if all_files else Path(entry.name).suffix.lower() in IMAGE_SUFFIXES:
            yield entry.path


def _explain_nothing(name: str, recursive: bool, all_files: bool) -> str:
    if not Path(name).is_dir():
        return "matches no file; check the pattern" if glob.has_magic(name) else "does not exist; check the path"
    kind = "files" if all_files else "image files"
    mends = [] if recursive else ["use --recursive to search its subfolders"]
    mends += [] if all_files else ["use --all-files to read every file"]
    return f"holds no {kind}" + (f"; {' or '.join(mends)}" if mends else "")
