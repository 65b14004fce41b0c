"""Tables of a user's own, .csv and .tsv: their lines and columns, and where the images are that they name."""

from __future__ import annotations

import contextlib
import csv
import io
import itertools
import os
import re
from collections import Counter
from collections.abc import Sequence
from pathlib import Path

from shiftvit.data.decode.parquet import LABEL_NAMES
from shiftvit.data.decode.readers import IMAGE_SUFFIXES
from shiftvit.data.decode.rows import find_row, is_image
from shiftvit.data.find.dataset import Row
from shiftvit.data.find.words import is_litter, name_splits, normalise_name
from shiftvit.errors import ShiftViTError, join_words

# The names of columns, in small letters alone; of several the first is used.
_COLUMNS = {
    "path": (
        *("path", "file", "filename", "image", "filepath", "imagepath", "imgpath", "imagefile", "imagefilename"),
        *("imagename", "imgname", "img", "imageid", "imgid", "fileid", "id"),
    ),
    "label": tuple(re.sub(r"[^a-z]", "", name) for name in LABEL_NAMES),
    "split": ("split",),
}
# A column of one of these names holds splits only if every value in it is one.
_MAYBE_SPLIT = ("subset", "partition", "set", "usage", "phase")
_NEEDED = "path|file|filename|image and label|class|category|target"
_SEPARATORS = {",": "commas", ";": "semicolons", "\t": "tabs", "|": "bars"}
# Rows from which the separator, and the folder of the images, are told.
_LOOKED_AT = 50

# The number of a line and its cells.
_Line = tuple[int, list[str]]


def read_table(path: Path) -> tuple[str, list[Row], list[str]]:
    """Reads a .csv or .tsv: a header that names the columns, or none and two columns, path and label.

    Args:
        path: the table, UTF-8, or UTF-16 with its mark. Its cells are apart by commas, semicolons, tabs or bars. Its
            paths are relative to its folder, or to one in it.

    Returns:
        the layout in words; the rows, each image once, "train" where the table has no split; and a note for each thing
        that is left out or was not plain.

    Raises:
        ShiftViTError: it is not such a table; a row has too few cells or too many; the first row is a header of
            unknown names; half of the files or more do not exist; an image has two labels or splits.
    """
    lines, separator = _read_lines(path)
    if not lines:
        raise ShiftViTError(f"{str(path)!r} is empty; give a line of path and label for each image")
    head = lines[0][1]
    form = f"{str(path)!r} (read with {_SEPARATORS[separator]} between cells"
    where, unused = _find_columns(f"{form})", lines)
    headed = bool(where)
    if headed:
        lines = lines[1:]
        form += f" and {join_words([f'{column} in {head[at].strip()!r}' for column, at in where.items()])})"
    elif len(head) == 2:
        where = {"path": 0, "label": 1}
        form += " and no header)"
    else:
        raise ShiftViTError(f"{form}) has the columns {', '.join(head)[:200]}; name two of them {_NEEDED}")
    rows = [_read_row(form, number, cells, where, len(head)) for number, cells in lines]
    splits = name_splits({split for split, _, _ in rows})
    for (number, _), (split, _, _) in zip(lines, rows, strict=True):
        if split not in splits:
            raise ShiftViTError(f"line {number} of {form} has the split {split!r}; use train, validation or test")
    finder, missing, places = _make_finder(path, [image for _, image, _ in rows[:_LOOKED_AT]]), list[str](), list[Row]()
    for split, image, label in rows:
        place = finder.find(image)
        if place is None:
            place = str(finder.base / image.strip())
            missing.append(place)
        places.append((splits[split], place, label))
    if not headed and missing == [places[0][1]] and len(places) > 1:
        raise ShiftViTError(
            f"{str(path)!r} begins with {missing[0]!r}, which is not a file, while all others are; if it is a "
            "header, name its columns path and label"
        )
    named = join_words([*map(repr, missing[:3])]) if missing else ""
    if 2 * len(missing) >= len(places) > 0:
        raise ShiftViTError(
            f"{form} names {len(missing):,} of {len(places):,} files that do not exist, the first {named}; give paths "
            f"relative to {str(path.parent)!r}"
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
    return f"{path.suffix[1:].upper()} of {join_words([*where])}", [*once.values()], notes


def _read_lines(path: Path) -> tuple[list[_Line], str]:
    """Returns the lines of a table that are not blank, and the separator of its cells.

    That is the one with which the first line is a header, else one with which all lines are of one width. Excel's first
    line `sep=;` is understood.

    Raises:
        ShiftViTError: a file that cannot be read, is in another encoding, or has an open quote.
    """
    try:
        content = path.read_bytes()
        marked = content[:2] in (b"\xff\xfe", b"\xfe\xff")
        text = content.decode("utf-16" if marked else "utf-8-sig")
    except UnicodeDecodeError as error:
        raise ShiftViTError(f"{str(path)!r} is not UTF-8 ({error.reason}); save it as UTF-8") from error
    except OSError as error:
        raise ShiftViTError(f"{str(path)!r} is not a readable table ({error}); save it anew as CSV") from error
    told = re.match(r"sep=(.)\r?\n", text)
    separators = [*_SEPARATORS] if path.suffix.lower() != ".tsv" else sorted(_SEPARATORS, key="\t,;|".index)
    if told and told[1] in separators:
        text, separators = text[told.end() :], [told[1]]
    faults, ways = [], []
    for separator in separators:
        reader = csv.reader(io.StringIO(text, newline=""), delimiter=separator, strict=True)
        try:
            looked_at = [cells for cells in itertools.islice(reader, _LOOKED_AT) if any(map(str.strip, cells))]
        except csv.Error as error:
            faults.append(error)
            continue
        widths = {len(cells) for cells in looked_at}
        is_header = bool(looked_at) and {"path", "label"} <= _name_columns(looked_at[0]).keys()
        ways.append((is_header, len(widths) == 1 and max(widths) > 1, max(widths, default=0) > 1, separator))
    try:
        if not ways:
            raise faults[0]
        best = max(ways, key=lambda way: way[:3])[3]  # the first of the best
        reader = csv.reader(io.StringIO(text, newline=""), delimiter=best, strict=True)
        return [(reader.line_num, cells) for cells in reader if any(map(str.strip, cells))], best
    except csv.Error as error:
        raise ShiftViTError(f"{str(path)!r} is not a readable table ({error}); save it anew as CSV") from error


def _name_columns(head: list[str]) -> dict[str, list[int]]:
    """Returns where a header has each column, the best first."""
    cells = [re.sub(r"[\W_]+", "", cell.casefold()) for cell in head]
    found = {column: [cells.index(name) for name in names if name in cells] for column, names in _COLUMNS.items()}
    return {column: places for column, places in found.items() if places}


def _find_columns(form: str, lines: list[_Line]) -> tuple[dict[str, int], list[str]]:
    """Returns where the columns are, and those that could have been used instead; nothing without a header."""
    head = [cell.strip() for cell in lines[0][1]]
    known = _name_columns(head)
    if not {"path", "label"} <= known.keys():
        if known and len(head) == 2:
            raise ShiftViTError(f"{form} has the columns {', '.join(head)[:200]}; name two of them {_NEEDED}")
        return {}, []
    twice = [name for name, count in Counter(map(str.casefold, head)).items() if count > 1 and name]
    for column, places in known.items():
        if head[places[0]].casefold() in twice:
            raise ShiftViTError(f"{form} has two columns {head[places[0]]!r}; rename the one that is not {column}")
    for name in _MAYBE_SPLIT if "split" not in known else ():
        at = next((place for place, cell in enumerate(head) if cell.casefold() == name), None)
        values = {cells[at].strip() for _, cells in lines[1:] if at is not None and at < len(cells)}
        if at is not None and values and values == name_splits(values).keys():
            known["split"] = [at]
    return {column: places[0] for column, places in known.items()}, [
        head[place] for places in known.values() for place in places[1:]
    ]


def _read_row(form: str, number: int, cells: list[str], where: dict[str, int], width: int) -> Row:
    """Returns the split, the path and the label as the table has them.

    Raises:
        ShiftViTError: the row has a cell too many, or one of the three is blank.
    """
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
    """Finds the images that a table names, as it stands there or as another system would have written it.

    It lists a folder at most once.

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
        """Returns what is in a folder by how it is read: by the whole name, and an image also without its ending."""
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
    """Returns what finds the images of a table, given some of their names.

    These are relative to the table's folder, or if none is there to the one folder in it where most are, and of several
    with as many to the one that is called like the table.
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
