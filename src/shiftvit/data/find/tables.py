"""Reads tables of images, .csv and .tsv: their lines and columns, and the files that they name."""

from __future__ import annotations

import codecs
import contextlib
import csv
import io
import itertools
import os
import re
from collections import Counter
from collections.abc import Iterator, Sequence
from pathlib import Path

from shiftvit.data.decode.parquet import LABEL_NAMES
from shiftvit.data.decode.readers import IMAGE_SUFFIXES
from shiftvit.data.decode.rows import find_row, is_image
from shiftvit.data.find.dataset import Listing, Row
from shiftvit.data.find.words import is_litter, name_splits, normalise_name
from shiftvit.errors import ShiftViTError, join_words

# The names of each column, as small letters only. If a table has several of them, the first one here is used.
_COLUMNS = {
    "path": (
        *("path", "file", "filename", "image", "filepath", "imagepath", "imgpath", "imagefile", "imagefilename"),
        *("imagename", "imgname", "img", "imageid", "imgid", "fileid", "id"),
    ),
    "label": tuple(re.sub(r"[^a-z]", "", name) for name in LABEL_NAMES),
    "split": ("split",),
}
# A column of one of these names holds splits if every value in it is one; of several, the first one here is used.
_MAYBE_SPLIT = ("subset", "partition", "set", "usage", "phase")
_NEEDED = "path|file|filename|image and label|class|category|target"
_SEPARATORS = {",": "commas", ";": "semicolons", "\t": "tabs", "|": "bars"}
# The first rows, which decide on the separator and on the folder of the images.
_LOOKED_AT = 50

# The number of a line, and its cells.
_Line = tuple[int, list[str]]


def read_table(path: Path) -> Listing:
    """Reads a .csv or .tsv with a header that names the columns, or with two columns, path and label, and no header.

    Args:
        path: the table, in UTF-8, or in UTF-16 with a byte order mark. Commas, semicolons, tabs or bars separate its
            cells. Its paths are relative to its folder, or to one folder in it.

    Returns:
        each image once, with the split "train" if the table has no splits, and notes about anything that was left out
        or guessed.

    Raises:
        ShiftViTError: it is not such a table; a row has too few cells or too many; the first row is a header of
            unknown names; half of the files or more do not exist; an image has two labels or splits.
    """
    lines, separator = _read_lines(path)
    if not lines:
        raise ShiftViTError(f"{str(path)!r} is empty; give a line of path and label for each image")
    head = lines[0][1]
    way = f"read with {_SEPARATORS[separator]} between cells"
    where, unused = _find_columns(f"{str(path)!r} ({way})", lines)
    has_header = bool(where)
    if has_header:
        lines = lines[1:]
        columns = join_words([f"{column} in {head[at].strip()!r}" for column, at in where.items()])
        form = f"{str(path)!r} ({way} and {columns})"
    elif len(head) == 2:
        where = {"path": 0, "label": 1}
        form = f"{str(path)!r} ({way} and no header)"
    else:
        raise ShiftViTError(
            f"{str(path)!r} ({way}) has the columns {', '.join(head)[:200]}; rename two of them to {_NEEDED}"
        )
    rows = [_read_row(form, number, cells, where, len(head)) for number, cells in lines]
    splits = name_splits({split for split, _, _ in rows})
    for (number, _), (split, _, _) in zip(lines, rows, strict=True):
        if split not in splits:
            raise ShiftViTError(f"line {number} of {form} has the split {split!r}; use train, validation or test")
    finder = _make_finder(path, [image for _, image, _ in rows[:_LOOKED_AT]])
    missing, places = list[str](), list[Row]()
    for split, image, label in rows:
        place = finder.find(image)
        if place is None:
            place = str(finder.base / image.strip())
            missing.append(place)
        places.append((splits[split], place, label))
    if not has_header and missing == [places[0][1]] and len(places) > 1:
        raise ShiftViTError(
            f"{str(path)!r} begins with {missing[0]!r}, which is not a file, while all others are; if it is a "
            "header, name its columns path and label"
        )
    named = join_words([*map(repr, missing[:3])])
    if 2 * len(missing) >= len(places) > 0:
        raise ShiftViTError(
            f"{len(missing):,} of the {len(places):,} files that {form} names do not exist, such as {named}; give "
            f"paths relative to {str(path.parent)!r}"
        )
    once: dict[str, Row] = {}
    for row in places:
        split, image, label = once.setdefault(os.path.abspath(row[1]), row)  # noqa: PTH100 - does not ask the disk
        for what, one, other in (("labels", label, row[2]), ("splits", split, row[0])):
            if one != other:
                raise ShiftViTError(
                    f"{str(path)!r} lists {image!r} with the {what} {one!r} and {other!r}; keep one of the rows"
                )
    base = finder.base.relative_to(path.parent).as_posix()
    notes = [f"columns that are not used: {', '.join(unused)}"] if unused else []
    notes += [f"paths are relative to {base}/"] if base != "." else []
    notes += [f"files that do not exist: {len(missing):,}, such as {named}"] if missing else []
    notes += [f"rows that repeat an image: {len(places) - len(once):,}"] if len(once) < len(places) else []
    return Listing(f"{path.suffix[1:].upper()} of {join_words([*where])}", [*once.values()], notes)


def _read_lines(path: Path) -> tuple[list[_Line], str]:
    """Returns the lines of a table that are not blank, and the separator of its cells.

    The separator is preferably one that makes the first line a header, or one that gives all lines the same number of
    cells. If Excel wrote a first line such as `sep=;`, that decides.
    """
    try:
        content = path.read_bytes()
        has_mark = content[:2] in (codecs.BOM_UTF16_LE, codecs.BOM_UTF16_BE)
        text = content.decode("utf-16" if has_mark else "utf-8-sig")
        separators = [*_SEPARATORS] if path.suffix.lower() != ".tsv" else sorted(_SEPARATORS, key="\t,;|".index)
        first = re.match(r"sep=(.)\r?\n", text)
        if first and first[1] in separators:
            text, separators = text[first.end() :], [first[1]]
        best = max(separators, key=lambda separator: _rate_separator(text, separator))  # the first of equals
        return [*_parse(text, best)], best
    except UnicodeDecodeError as error:
        raise ShiftViTError(f"{str(path)!r} is not UTF-8 ({error.reason}); save it as UTF-8") from error
    except (OSError, csv.Error) as error:
        raise ShiftViTError(f"{str(path)!r} is not a readable table ({error}); save it again as CSV") from error


def _parse(text: str, separator: str) -> Iterator[_Line]:
    """Yields the lines of a table that are not blank."""
    reader = csv.reader(io.StringIO(text, newline=""), delimiter=separator, strict=True)
    return ((reader.line_num, cells) for cells in reader if any(map(str.strip, cells)))


def _rate_separator(text: str, separator: str) -> tuple[bool, ...]:
    """Returns how well a separator fits the first lines, as a key to sort by."""
    try:
        lines = [cells for _, cells in itertools.islice(_parse(text, separator), _LOOKED_AT)]
    except csv.Error:
        return ()
    widths = {len(cells) for cells in lines}
    is_header = bool(lines) and {"path", "label"} <= _name_columns(lines[0]).keys()
    return is_header, len(widths) == 1 and max(widths) > 1, max(widths, default=0) > 1


def _name_columns(head: list[str]) -> dict[str, list[int]]:
    """Returns the places of each column in a header, the best first."""
    cells = [re.sub(r"[\W_]+", "", cell.casefold()) for cell in head]
    found = {column: [cells.index(name) for name in names if name in cells] for column, names in _COLUMNS.items()}
    return {column: places for column, places in found.items() if places}


def _find_columns(form: str, lines: list[_Line]) -> tuple[dict[str, int], list[str]]:
    """Returns the places of the columns, and the columns that could have been used instead; nothing if no header."""
    head = [cell.strip() for cell in lines[0][1]]
    known = _name_columns(head)
    if not {"path", "label"} <= known.keys():
        if known and len(head) == 2:
            raise ShiftViTError(f"{form} has the columns {', '.join(head)[:200]}; rename two of them to {_NEEDED}")
        return {}, []
    twice = [name for name, count in Counter(map(str.casefold, head)).items() if count > 1 and name]
    for column, places in known.items():
        if head[places[0]].casefold() in twice:
            raise ShiftViTError(f"{form} has two columns {head[places[0]]!r}; rename the one that is not {column}")
    for name in _MAYBE_SPLIT:
        for at in (place for place, cell in enumerate(head) if cell.casefold() == name):
            values = {cells[at].strip() for _, cells in lines[1:] if at < len(cells)}
            if values and values == name_splits(values).keys():
                known.setdefault("split", []).append(at)
    return {column: places[0] for column, places in known.items()}, [
        head[place] for places in known.values() for place in places[1:]
    ]


def _read_row(form: str, number: int, cells: list[str], where: dict[str, int], width: int) -> Row:
    """Returns the split, the path and the label as they are in the table."""
    if any(cell.strip() for cell in cells[width:]):
        raise ShiftViTError(
            f"line {number} of {form} has {len(cells)} cells and the first line {width}: "
            f"{' | '.join(cells)[:200]!r}; quote a cell that contains the separator"
        )
    values = {column: cells[at] if at < len(cells) else "" for column, at in where.items()}
    blank = next((column for column, value in values.items() if not value.strip()), None)
    if blank:
        raise ShiftViTError(f"line {number} of {form} has no {blank}; give one, or remove the line")
    return values.get("split", "train").strip(), values["path"], normalise_name(values["label"])


class _Finder:
    """Finds the images that a table names, even if another system spells their names differently.

    It lists each folder at most once.

    Args:
        base: the folder to which the names are relative.
    """

    def __init__(self, base: Path) -> None:
        self.base = base
        self._lists: dict[Path, dict[str, list[Path]]] = {}

    def find(self, name: str) -> str | None:
        """Returns the path of a file, or of a row of a Parquet file, by its name; None if there is none.

        The name may have spaces around it, the backslashes of Windows, another form of Unicode or other cases than the
        file's own name, or lack its suffix. If several files match, it returns None.
        """
        stripped = name.strip()
        slashed = stripped.replace("\\", "/")
        if "\0" in name:
            return None
        for way in dict.fromkeys([name, stripped, slashed]):  # rarely, the name of a file ends in a space
            if is_image(str(self.base / way)):
                return str(self.base / way)
        if find_row(stripped):
            return None
        path = self.base / slashed
        place = Path(path.anchor)
        parts = path.parts[len(place.parts) :]
        for number, part in enumerate(parts, 1):
            is_wanted = Path.is_file if number == len(parts) else Path.is_dir
            alike = [place / part]
            if not is_wanted(alike[0]):
                alike = [
                    found for found in self._list(place).get(normalise_name(part).casefold(), []) if is_wanted(found)
                ]
            if len(alike) != 1:
                return None
            place = alike[0]
        return str(place)

    def _list(self, folder: Path) -> dict[str, list[Path]]:
        """Returns the content of a folder by normalised name; images also by their name without the suffix."""
        if folder not in self._lists:
            found: dict[str, list[Path]] = {}
            with contextlib.suppress(OSError):
                for place in folder.iterdir():
                    keys = {place.name, *([place.stem] if place.suffix.lower() in IMAGE_SUFFIXES else [])}
                    for key in {normalise_name(key).casefold() for key in keys}:
                        found.setdefault(key, []).append(place)
            self._lists[folder] = found
        return self._lists[folder]


def _make_finder(table: Path, names: Sequence[str]) -> _Finder:
    """Returns a finder for the images of a table, given some of their names.

    The names are relative to the table's folder. If none of them is there, they are relative to the folder in it that
    has most of them; if several have as many, to the one with the name of the table.
    """
    root = _Finder(table.parent)
    if any(map(root.find, names)):
        return root
    counts: dict[_Finder, int] = {}
    with contextlib.suppress(OSError), os.scandir(root.base) as scan:
        finders = [_Finder(root.base / entry.name) for entry in scan if entry.is_dir() and not is_litter(entry.name)]
        counts = {finder: sum(finder.find(name) is not None for name in names) for finder in finders}
    best = [finder for finder, count in counts.items() if count == max(counts.values()) > 0]
    return next((finder for finder in best if len(best) == 1 or finder.base.name == table.stem), root)
