"""Predictions as text: a table, JSON, JSON lines or CSV, each row written as soon as it is known."""

from __future__ import annotations

import codecs
import json
from enum import StrEnum
from typing import IO, Any

from shiftvit import files
from shiftvit.cli.tables import escape_unprintable
from shiftvit.inference.predict import Failure, Result, to_row


class Format(StrEnum):
    table = "table"
    json = "json"
    jsonl = "jsonl"
    csv = "csv"


# The format of a file by its suffix.
ENDINGS = {".txt": Format.table, "": Format.table, ".csv": Format.csv, ".json": Format.json, ".jsonl": Format.jsonl}
# The default number of classes in a row: a line on a screen has room for few, a spreadsheet for one per column.
DEFAULT_TOP_K = {Format.table: 3, Format.json: 5, Format.jsonl: 5, Format.csv: 1}


class Writer:
    """Writes rows to a stream; as a context manager it also writes the header and the end.

    Args:
        stream: the output.
        kind: the format.
        top_k: number of classes in a row.
        widths: widths of a table's columns for path and label, in characters.
    """

    def __init__(
        self,
        stream: IO[str],
        kind: Format,
        top_k: int,
        widths: tuple[int, int],
    ) -> None:
        self._stream, self._kind, self._top_k, self._widths = stream, kind, top_k, widths
        # Encodings other than UTF-8 may lack characters, so JSON escapes all but ASCII for them.
        self._ascii = codecs.lookup(getattr(stream, "encoding", None) or "ascii").name != "utf-8"
        self._csv = files.make_csv_writer(stream)
        self._count = 0

    def __enter__(self) -> Writer:
        if self._kind is Format.csv:
            numbered = [f"{name}_{rank}" for rank in range(2, self._top_k + 1) for name in ("label", "confidence")]
            self._csv.writerow(["path", "label", "confidence", *numbered, "error"])
        elif self._kind is Format.table:
            self._write_line(self._align_columns("image", "label", "confidence", "then" if self._top_k > 1 else ""))
        return self

    def __exit__(self, *error: object) -> None:
        if self._kind is Format.json:
            self._stream.write("\n]\n" if self._count else "[]\n")
        self._stream.flush()

    def write(self, result: Result, truth: str | None) -> None:
        """Writes one row; a table marks it if `truth`, the true class, is known and differs from the prediction."""
        if self._kind is Format.table:
            self._write_line(self._make_table_row(result, truth))
        elif self._kind is Format.csv:
            self._csv.writerow(self._make_csv_row(result))
        else:
            text = json.dumps(to_row(result), ensure_ascii=self._ascii, allow_nan=False)
            start = ",\n " if self._count else "[\n "
            self._stream.write(start + text if self._kind is Format.json else text + "\n")
        self._count += 1

    def _make_csv_row(self, result: Result) -> list[Any]:
        if isinstance(result, Failure):
            return [result.path, *[""] * (2 * self._top_k), result.error]
        # Missing classes leave cells empty, so that the error stays in its column.
        cells = [cell for label, share in result.top for cell in (label, f"{share:.6f}")]
        return [result.path, *cells, *[""] * (2 * self._top_k - len(cells)), ""]

    def _make_table_row(self, result: Result, truth: str | None) -> str:
        if isinstance(result, Failure):
            return f"{self._shorten_path(result.path):{self._widths[0]}}  error: {escape_unprintable(result.error)}"
        label, *others = [escape_unprintable(label) for label, _ in result.top]
        rest = ", ".join(f"{other} {share:.1%}" for other, (_, share) in zip(others, result.top[1:], strict=True))
        if truth is not None and truth != result.label:
            rest += f"   (is {escape_unprintable(truth)})"
        return self._align_columns(self._shorten_path(result.path), label, f"{result.confidence:.1%}", rest)

    def _shorten_path(self, path: str) -> str:
        """Returns a path that fits its column; a long one is cut at the beginning."""
        text = escape_unprintable(path)
        return text if len(text) <= self._widths[0] else "…" + text[1 - self._widths[0] :]

    def _align_columns(self, path: str, label: str, confidence: str, others: str) -> str:
        return f"{path:{self._widths[0]}}  {label:{self._widths[1]}}  {confidence:>10}   {others}"

    def _write_line(self, text: str) -> None:
        self._stream.write(text.rstrip() + "\n")
