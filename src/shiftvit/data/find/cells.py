"""The lines of a table of text, as spreadsheets write it: its encoding, and the sign between its cells."""

from __future__ import annotations

import csv
import io
import itertools
import re
from collections.abc import Callable
from pathlib import Path

from shiftvit.errors import ShiftViTError

SIGNS = {",": "commas", ";": "semicolons", "\t": "tabs", "|": "bars"}
# Lines by which the sign is told.
_LOOKED_AT = 50

# The number of a line and its cells.
Line = tuple[int, list[str]]


def read_lines(path: Path, is_header: Callable[[list[str]], bool]) -> tuple[list[Line], str]:
    """Returns the lines of a table that are not blank, and the sign between its cells.

    That is the one with which the first line is a header, else one with which all lines are of one width.

    Args:
        path: the table, UTF-8, or UTF-16 with its mark; Excel's first line `sep=;` is understood.
        is_header: tells whether cells are a header that is known.

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
    told = re.match(r"sep=(.)\r?\n", text)  # as Excel has it
    signs = [*SIGNS] if path.suffix.lower() != ".tsv" else sorted(SIGNS, key="\t,;|".index)
    if told and told[1] in signs:
        text, signs = text[told.end() :], [told[1]]
    faults, ways = [], []
    for sign in signs:
        reader = csv.reader(io.StringIO(text, newline=""), delimiter=sign, strict=True)
        try:
            looked_at = [cells for cells in itertools.islice(reader, _LOOKED_AT) if any(map(str.strip, cells))]
        except csv.Error as error:
            faults.append(error)
            continue
        widths = {len(cells) for cells in looked_at}
        known = bool(looked_at) and is_header(looked_at[0])
        ways.append((known, len(widths) == 1 and max(widths) > 1, max(widths, default=0) > 1, sign))
    try:
        if not ways:
            raise faults[0]
        best = max(ways, key=lambda way: way[:3])[3]  # the first of the best
        reader = csv.reader(io.StringIO(text, newline=""), delimiter=best, strict=True)
        return [(reader.line_num, cells) for cells in reader if any(map(str.strip, cells))], best
    except csv.Error as error:
        raise ShiftViTError(f"{str(path)!r} is not a readable table ({error}); save it anew as CSV") from error
