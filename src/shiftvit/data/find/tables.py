"""A table of images (.csv, .tsv): which columns and rows it has."""

from __future__ import annotations

import os
import re
from collections import Counter
from dataclasses import dataclass, replace
from pathlib import Path

from shiftvit.data.decode.parquet import LABEL_NAMES
from shiftvit.data.find.cells import SIGNS, Line, read_lines
from shiftvit.data.find.dataset import Row
from shiftvit.data.find.places import Finder, find_base
from shiftvit.data.find.words import name_splits, normal
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
# These are a split only if all that is in them is.
_MAYBE_SPLIT = ("subset", "partition", "set", "usage", "phase")
_SHOWN = ("path|file|filename|image", "label|class|category|target")
# Rows by which the folder of the images is told.
_LOOKED_AT = 50


@dataclass(frozen=True)
class Table:
    """What a table says.

    Attributes:
        rows: (split, path, label) of each image, "train" where the table has no split.
        columns: which it has: path, label, split.
        missing: those of the paths where no file is.
        notes: how it was understood where that is not plain, a phrase each.
        form: the table and how it was read, for messages.
    """

    rows: list[Row]
    columns: list[str]
    missing: list[str]
    notes: list[str]
    form: str


def read_table(path: Path, root: Path | None) -> Table:
    """Reads a .csv or .tsv: a header that names the columns, or none and two columns, path and label.

    Args:
        path: the table, UTF-8, or UTF-16 with its mark. Its cells are apart by commas, semicolons, tabs or bars.
        root: what its paths are relative to. None: they are places in an archive, and no file is looked for.

    Raises:
        ShiftViTError: it is not such a table; a row has too few cells or too many; the first row is a header of
            unknown names.
    """
    lines, sign = read_lines(path, lambda head: {"path", "label"} <= _known(head).keys())
    if not lines:
        raise ShiftViTError(f"{str(path)!r} is empty; give a line of path and label for each image")
    head = lines[0][1]
    form = f"{str(path)!r} (read with {SIGNS[sign]} between cells"
    where, unused = _find_columns(f"{form})", lines)
    headed = bool(where)
    if headed:
        lines = lines[1:]
    elif len(head) == 2:
        where = {"path": 0, "label": 1}
    else:
        raise ShiftViTError(f"{form}) has the columns {', '.join(head)[:200]}; name two of them {' and '.join(_SHOWN)}")
    if headed:
        form += f" and {join_words([f'{column} in {head[at].strip()!r}' for column, at in where.items()])})"
    else:
        form += " and no header)"
    rows = [_read_row(form, number, cells, where, len(head)) for number, cells in lines]
    splits = name_splits({split for split, _, _ in rows})
    for (number, _), (split, _, _) in zip(lines, rows, strict=True):
        if split not in splits:
            raise ShiftViTError(f"line {number} of {form} has the split {split!r}; use train, validation or test")
    notes = [f"columns that are not used: {', '.join(unused)}"] if unused else []
    base = root
    if root is not None:
        base = find_base(root, path.stem, [image for _, image, _ in rows[:_LOOKED_AT]])
        notes += [f"paths are relative to {base.relative_to(root).as_posix()}/"] if base != root else []
    missing: list[str] = []
    finder = None if base is None else Finder(base)
    for place, (split, image, label) in enumerate(rows):
        found = image.strip() if finder is None else finder.find(image)
        if finder is not None and found is None:
            found = str(finder.base / image.strip())
            missing.append(found)
        rows[place] = (splits[split], str(found), label)
    if not headed and missing == [rows[0][1]] and len(rows) > 1:
        raise ShiftViTError(
            f"{str(path)!r} begins with {missing[0]!r}, which is not a file, while all others are; if it is a "
            "header, name its columns path and label"
        )
    return Table(rows, list(where), missing, notes, form)


def read_listed(path: Path) -> Table:
    """Reads a user's table as `read_table` does: an image that is listed twice is one image, and files must be there.

    Raises:
        ShiftViTError: as `read_table`; half of the files or more do not exist; an image has two labels or splits.
    """
    table = read_table(path, path.parent)
    missing, rows = table.missing, dict[str, Row]()
    if 2 * len(missing) >= len(table.rows) > 0:
        raise ShiftViTError(
            f"{table.form} names {len(missing):,} of {len(table.rows):,} files that do not exist, the first "
            f"{join_words([*map(repr, missing[:3])])}; give paths relative to {str(path.parent)!r}"
        )
    for row in table.rows:
        split, image, label = rows.setdefault(os.path.normpath(row[1]), row)
        for what, one, other in (("labels", label, row[2]), ("splits", split, row[0])):
            if one != other:
                raise ShiftViTError(
                    f"{str(path)!r} lists {image!r} with the {what} {one!r} and {other!r}; keep one of the rows"
                )
    notes = [*table.notes]
    if missing:
        notes.append(f"files that do not exist: {len(missing):,}, such as {join_words([*map(repr, missing[:3])])}")
    if len(rows) < len(table.rows):
        notes.append(f"rows that repeat an image: {len(table.rows) - len(rows):,}")
    return replace(table, rows=[*rows.values()], notes=notes)


def _known(head: list[str]) -> dict[str, list[int]]:
    """Returns where a header has each column, the best first."""
    cells = [re.sub(r"[\W_]+", "", cell.casefold()) for cell in head]
    found = {column: [cells.index(name) for name in names if name in cells] for column, names in _COLUMNS.items()}
    return {column: places for column, places in found.items() if places}


def _find_columns(form: str, lines: list[Line]) -> tuple[dict[str, int], list[str]]:
    """Returns where the columns are, and those that could have been used instead; nothing without a header."""
    head = [cell.strip() for cell in lines[0][1]]
    known = _known(head)
    if not {"path", "label"} <= known.keys():
        if known and len(head) == 2:
            raise ShiftViTError(
                f"{form} has the columns {', '.join(head)[:200]}; name two of them {' and '.join(_SHOWN)}"
            )
        return {}, []
    twice = [name for name, count in Counter(map(str.casefold, head)).items() if count > 1 and name]
    for column, places in known.items():
        if head[places[0]].casefold() in twice:
            raise ShiftViTError(f"{form} has two columns {head[places[0]]!r}; rename that which is not {column}")
    for name in _MAYBE_SPLIT if "split" not in known else ():
        at = next((place for place, cell in enumerate(head) if cell.casefold() == name), None)
        values = {cells[at].strip() for _, cells in lines[1:] if at is not None and at < len(cells)}
        if at is not None and values and values == name_splits(values).keys():
            known["split"] = [at]
    return {column: places[0] for column, places in known.items()}, [
        head[place] for places in known.values() for place in places[1:]
    ]


def _read_row(form: str, number: int, cells: list[str], where: dict[str, int], width: int) -> Row:
    """Returns the split, the path and the label as they stand there, or a word for what is not there."""
    if any(cell.strip() for cell in cells[width:]):
        raise ShiftViTError(
            f"line {number} of {form} has {len(cells)} cells and the first line {width}: "
            f"{' | '.join(cells)[:200]!r}; put a cell that holds the sign between cells in quotes"
        )
    values = {column: cells[at] if at < len(cells) else "" for column, at in where.items()}
    bare = next((column for column, value in values.items() if not value.strip()), None)
    if bare:
        raise ShiftViTError(f"line {number} of {form} has no {bare}; give one, or remove the line")
    return values.get("split", "train").strip(), values["path"], normal(values["label"])
