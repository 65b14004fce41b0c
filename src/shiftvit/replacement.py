"""Replaces the files of a folder, all or none. Other files in it stay.

A system cannot rename several files in one step. So the writer first writes the new files to a folder inside. One
rename declares that folder valid. Then the writer moves the new files to their places and deletes the old ones. A
reader that calls `find_current` gets all of the old files or all of the new ones, wherever the writer was killed; the
next writer finishes the work. If the folder holds nothing else and the system can exchange two folders in one step, the
writer does that, and no program sees a mixture.
"""

from __future__ import annotations

import contextlib
import ctypes
import json
import os
import shutil
import sys
from collections.abc import Callable, Collection
from pathlib import Path
from typing import Any

from shiftvit.errors import ShiftViTError
from shiftvit.files import explain_unwritable, make_temporary_folder, sync_folder

# The folder with the new files, in `new/`, and a list of the names to delete, in `old`.
_ARRIVING = ".shiftvit-arriving"
# renameat2's numbers in Linux' fcntl.h and fs.h: paths are relative to the working folder; exchange.
_HERE, _EXCHANGE = -100, 2


def write_folder(path: Path, write: Callable[[Path], Any], ours: Collection[str], keep: Collection[str] = ()) -> None:
    """Calls `write` with an empty folder, then replaces the files in `path` by those that it wrote.

    Args:
        path: the folder; created if it does not exist. If it is a link to a folder, the link stays.
        write: fills a folder.
        ours: the names at the top of `path` that may be replaced. Those that `write` does not make are deleted.
        keep: names in `ours` that belong to someone else in this folder, and must stay.

    Raises:
        ShiftViTError: the disk is full, the folder is missing or not writable, or a new file has the name of someone
            else's.
    """
    real = path.resolve()
    try:
        real.parent.mkdir(parents=True, exist_ok=True)
        _finish(real, ours)
        exists = real.is_dir()
        with make_temporary_folder(real if exists else real.parent, real.name) as work:
            new = work / "arriving" / "new"
            new.mkdir(parents=True)
            write(new)
            for file in new.rglob("*"):
                if file.is_file():
                    with file.open("rb") as handle:
                        os.fsync(handle.fileno())
            if exists:
                _replace(real, work, ours, {*ours} - {*keep}, path)
            else:
                new.replace(real)
        sync_folder(real.parent)
    except OSError as error:
        raise explain_unwritable(path, error) from error


def check_free(path: Path, names: Collection[str]) -> None:
    """Raises ShiftViTError if a folder has files of these names, which are someone else's. Call it before long work."""
    for name in sorted(names):
        if os.path.lexists(path / name):
            raise _refuse(path / name)


def find_current(path: Path) -> Path:
    """Returns where the current content of a file at `path` is, even if `write_folder` was stopped halfway."""
    arriving = path.parent / _ARRIVING
    place = arriving / "new" / path.name
    linked = arriving.is_symlink() or place.parent.is_symlink()
    return place if os.path.lexists(place) and not linked else path


def _replace(path: Path, work: Path, ours: Collection[str], replaced: set[str], shown: Path) -> None:
    """Replaces the files with the names `replaced` in an existing folder by those in `work/arriving/new`."""
    arriving = work / "arriving"
    new = arriving / "new"
    coming = {entry.name: entry.is_dir() for entry in new.iterdir()}
    there = {entry.name: entry.is_dir() and not entry.is_symlink() for entry in path.iterdir() if entry != work}
    for name in sorted(coming.keys() & there.keys()):
        if name not in replaced or coming[name] != there[name]:
            raise _refuse(shown / name)
    if there.keys() <= replaced and _exchange(new, path):
        return
    (arriving / "old").write_text(json.dumps(sorted((there.keys() & replaced) - coming.keys())), "utf-8")
    for folder in (new, arriving):
        sync_folder(folder)
    arriving.rename(path / _ARRIVING)
    try:
        sync_folder(path)
        _finish(path, ours)
    except KeyboardInterrupt:
        _finish(path, ours)
        raise


def _refuse(path: Path) -> ShiftViTError:
    return ShiftViTError(
        f"{str(path)!r} exists and is not shiftvit's, so it is not replaced; move it away, or choose another place"
    )


def _finish(path: Path, ours: Collection[str]) -> None:
    """Moves the files that have arrived in a folder to their places, and deletes the old ones."""
    arriving = path / _ARRIVING
    new = arriving / "new"
    if arriving.is_symlink():
        arriving.unlink()
    if new.is_symlink() or not arriving.is_dir():
        return
    for entry in sorted(new.iterdir()) if new.is_dir() else ():
        target = path / entry.name
        if entry.name not in ours:
            continue
        if target.is_dir() and not target.is_symlink():
            shutil.rmtree(target)
        entry.replace(target)
    with contextlib.suppress(FileNotFoundError, ValueError):  # `old` may already be deleted with its folder
        for name in {*json.loads((arriving / "old").read_text("utf-8"))} & {*ours}:
            if (path / name).is_dir() and not (path / name).is_symlink():
                shutil.rmtree(path / name)
            else:
                (path / name).unlink(missing_ok=True)
    sync_folder(path)
    shutil.rmtree(arriving)


def _exchange(new: Path, path: Path) -> bool:
    """Exchanges two folders in one step and deletes the old one. Returns False, with nothing changed, if it cannot."""
    if not sys.platform.startswith("linux"):
        return False
    renameat2 = getattr(ctypes.CDLL(None), "renameat2", None)
    if renameat2 is None:  # musl
        return False
    try:
        if Path.cwd().is_relative_to(path):  # then the shell is in this folder too, and would lose it
            return False
        with make_temporary_folder(path.parent, path.name) as beside:
            shutil.copymode(path, new)
            moved = new.rename(beside / "new")  # a folder cannot be exchanged with one that it holds
            exchanged: bool = renameat2(_HERE, os.fsencode(moved), _HERE, os.fsencode(path), _EXCHANGE) == 0
            if not exchanged:
                moved.rename(new)
            return exchanged
    except OSError:  # another disk is mounted there, or nothing can be written beside it
        return False
