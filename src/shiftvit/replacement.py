"""Replaces the files of a folder, all or none, and leaves what others put there.

Files cannot be renamed as a set. So the new ones are first written to a folder of their own within, which one rename
then declares valid, and only after that moved to their places, the old ones last. A reader that asks `current` finds
all of the old or all of the new ones, wherever the writer was killed; the next writer finishes its work. Where a folder
holds nothing else and the system can exchange two folders in one step, it does that, and other programs see no mixture
either.
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

# The folder with the new files, in `new/`, and a list of the names that go away, in `old`.
_ARRIVING = ".shiftvit-arriving"
# renameat2's numbers in Linux' fcntl.h and fs.h: paths are relative to the working folder; exchange.
_HERE, _EXCHANGE = -100, 2


def write_folder(path: Path, write: Callable[[Path], Any], ours: Collection[str], keep: Collection[str] = ()) -> None:
    """Calls `write` with a new empty folder, and puts what it holds then in the place of the old files in `path`.

    Args:
        path: the folder; made if it does not exist. A link to a folder stays one.
        write: fills a folder.
        ours: the names at the top of `path` that may be replaced. Those that are not made anew are deleted.
        keep: those of them that are someone else's in this folder.

    Raises:
        ShiftViTError: the disk is full, the folder is missing or not writable, or a file of others has the name of a
            new one.
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


def find_current(path: Path) -> Path:
    """Returns where the content of a file is that `write_folder` wrote: elsewhere, if that was stopped too early."""
    arriving = path.parent / _ARRIVING
    place = arriving / "new" / path.name
    linked = arriving.is_symlink() or place.parent.is_symlink()
    return place if os.path.lexists(place) and not linked else path


def _replace(path: Path, work: Path, ours: Collection[str], replaced: set[str], shown: Path) -> None:
    """Puts the files of `work/arriving/new` into a folder that exists, in place of those in `replaced`."""
    arriving = work / "arriving"
    new = arriving / "new"
    coming = {entry.name: entry.is_dir() for entry in new.iterdir()}
    there = {entry.name: entry.is_dir() and not entry.is_symlink() for entry in path.iterdir() if entry != work}
    for name in sorted(coming.keys() & there.keys()):
        if name not in replaced or coming[name] != there[name]:
            raise ShiftViTError(
                f"{str(shown / name)!r} exists and is not shiftvit's, so it is not replaced; move it away, or choose "
                "another place"
            )
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


def _finish(path: Path, ours: Collection[str]) -> None:
    """Moves the files to their places that have arrived in a folder, and deletes the old ones."""
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
    with contextlib.suppress(FileNotFoundError, ValueError):  # it goes first when the folder is deleted
        for name in {*json.loads((arriving / "old").read_text("utf-8"))} & {*ours}:
            if (path / name).is_dir() and not (path / name).is_symlink():
                shutil.rmtree(path / name)
            else:
                (path / name).unlink(missing_ok=True)
    sync_folder(path)
    shutil.rmtree(arriving)


def _exchange(new: Path, path: Path) -> bool:
    """Exchanges two folders in one step and deletes the old one. Returns whether the system can."""
    if not sys.platform.startswith("linux"):
        return False
    renameat2 = getattr(ctypes.CDLL(None), "renameat2", None)  # musl has none
    try:
        if Path.cwd().is_relative_to(path):  # so the shell that began this is in it, and would lose its folder
            return False
        with make_temporary_folder(path.parent, path.name) as beside:
            shutil.copymode(path, new)
            moved = new.rename(beside / "new")  # a folder cannot be exchanged with one that it holds
            places = os.fsencode(moved), os.fsencode(path)
            if renameat2 is not None and renameat2(_HERE, places[0], _HERE, places[1], _EXCHANGE) == 0:
                return True
            moved.rename(new)
    except OSError:  # another disk is mounted there, or nothing can be written beside it
        pass
    return False
