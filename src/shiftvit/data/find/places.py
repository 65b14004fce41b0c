"""Where the image is that a table names: as it stands there, or as another system would have written it."""

from __future__ import annotations

import contextlib
import os
from collections.abc import Sequence
from pathlib import Path

from shiftvit.data.decode.readers import IMAGE_SUFFIXES
from shiftvit.data.decode.rows import is_image, row_of
from shiftvit.data.find.words import is_litter, normal


class Finder:
    """Finds the images that a table names. It lists a folder at most once.

    Args:
        base: the folder that names are relative to.
    """

    def __init__(self, base: Path) -> None:
        self.base = base
        self._lists: dict[Path, dict[str, list[Path]]] = {}

    def find(self, name: str) -> str | None:
        """Returns the file, or the row of a Parquet file, of a name, or None where there is none.

        A name may have spaces around it, the backslashes of Windows, another form of Unicode or letters of another case
        than the file, or lack the file's ending. Of several that read the same none is taken.
        """
        stripped = name.strip()
        slashed = stripped.replace("\\", "/")
        if "\0" in name:
            return None
        for way in dict.fromkeys([name, stripped, slashed]):  # a file's name may end in a space, but mostly does not
            if is_image(str(self.base / way)):
                return str(self.base / way)
        return None if row_of(stripped) else self._find_alike(self.base / slashed)

    def _find_alike(self, path: Path) -> str | None:
        place = Path(path.anchor)
        parts = path.parts[len(place.parts) :]
        for number, part in enumerate(parts, 1):
            is_wanted = Path.is_file if number == len(parts) else Path.is_dir
            if is_wanted(place / part):
                place /= part
                continue
            alike = [found for found in self._list(place).get(normal(part).casefold(), []) if is_wanted(found)]
            if len(alike) != 1:
                return None
            place = alike[0]
        return str(place)

    def _list(self, folder: Path) -> dict[str, list[Path]]:
        """Returns what is in a folder by how it is read: by the whole name, and an image also without its ending."""
        if folder not in self._lists:
            found: dict[str, list[Path]] = {}
            with contextlib.suppress(OSError):
                for place in folder.iterdir():
                    keys = {place.name, *([place.stem] if place.suffix.lower() in IMAGE_SUFFIXES else [])}
                    for key in {normal(key).casefold() for key in keys}:
                        found.setdefault(key, []).append(place)
            self._lists[folder] = found
        return self._lists[folder]


def find_base(root: Path, first: str, names: Sequence[str]) -> Path:
    """Returns the folder that names are relative to: `root`, or if none is there the one folder in it where most are.

    Args:
        root: the table's folder.
        first: the folder in it that is taken where several have as many.
        names: some of the table's.
    """
    here = Finder(root)
    if any(map(here.find, names)):
        return root
    counts: dict[Path, int] = {}
    with contextlib.suppress(OSError), os.scandir(root) as scan:
        folders = [Path(root, entry.name) for entry in scan if entry.is_dir() and not is_litter(entry.name)]
        counts = {folder: sum(found is not None for found in map(Finder(folder).find, names)) for folder in folders}
    best = [folder for folder, count in counts.items() if count == max(counts.values()) > 0]
    return next((folder for folder in best if len(best) == 1 or folder.name == first), root)
