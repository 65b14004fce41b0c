"""Recognises that an export failed because a disk is full."""

from __future__ import annotations

import contextlib
import os
import re
import shutil
from collections.abc import Iterator
from pathlib import Path

from shiftvit.errors import ShiftViTError

# How systems say it.
_SIGN = re.compile(r"No space left on device|Disk quota exceeded|not enough space on the disk|\[Errno (28|122)\]")
# Bytes. With less, a disk is full, whatever a library says.
_LITTLE = 2**20


@contextlib.contextmanager
def explain_full(temporary: Path, out: Path | None) -> Iterator[None]:
    """Replaces an error in the block by one that names the full folder, if a full disk is its cause.

    Args:
        temporary: the temporary folder of the work, which must still hold its files.
        out: the folder to make; None: it is temporary too.
    """
    try:
        yield
    except (OSError, ShiftViTError) as error:
        mends = {temporary.parent: "set TMPDIR to another folder"}
        if out is not None:
            mends.setdefault(out if out.is_dir() else out.absolute().parent, "choose another folder with --out")
        free = {place: shutil.disk_usage(place).free for place in mends}
        place = min(mends, key=lambda place: free[place])
        said = os.linesep.join([str(error), *getattr(error, "__notes__", [])])
        if free[place] >= _LITTLE and not _SIGN.search(said):
            raise
        raise ShiftViTError(f"the disk of {str(place)!r} is full; free space there, or {mends[place]}") from error
