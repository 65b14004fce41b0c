"""`shiftvit predict`."""

from __future__ import annotations

import contextlib
import dataclasses
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import IO, TYPE_CHECKING, Annotated, Any

import typer

from shiftvit.cli.tables import examples
from shiftvit.console import Bar
from shiftvit.errors import ShiftViTError, count_of, nearest, notice

if TYPE_CHECKING:
    from shiftvit.cli.rows import Format
    from shiftvit.inference.predict import Failure, Prediction, Predictor

_FORMATS = "table, json, jsonl or csv"
# Images in a grid; more would be hard to read.
_SHOWN = 60
# Fewer images need no bar.
_MANY = 200


def add_to(app: typer.Typer) -> None:
    app.command(
        epilog=examples(
            "shiftvit predict",
            "shiftvit predict photos/ --recursive --grid grid.png",
            "shiftvit predict --model runs/mine '*.jpg' --format csv --out labels.csv",
            "find . -name '*.png' | shiftvit predict - --format jsonl",
        )
    )(predict)


def predict(
    paths: Annotated[
        list[str] | None,
        typer.Argument(
            metavar="[PATH|DIR|GLOB|-]...",
            help="Image files, folders or patterns; - reads an image or a list of paths from standard input "
            "(default: the sample images that come with shiftvit).",
        ),
    ] = None,
    model: Annotated[str, typer.Option(help="Run folder, bundle, export or model name.")] = "cifar10",
    runtime: Annotated[
        str,
        typer.Option(help="onnxruntime, openvino, litert, tensorflow, torch, keras; auto: the fastest installed."),
    ] = "auto",
    top_k: Annotated[int | None, typer.Option(help="Classes per image (default: 3; JSON 5, CSV 1).")] = None,
    kind: Annotated[
        str | None,
        typer.Option(
            "--format", metavar="FORMAT", help=f"Output format: {_FORMATS} (default: by the ending of --out, or table)."
        ),
    ] = None,
    out: Annotated[
        Path | None, typer.Option(metavar="FILE", help="Write the output to this file: .txt, .csv, .json or .jsonl.")
    ] = None,
    grid: Annotated[
        Path | None,
        typer.Option(
            metavar="FILE", help=f"Also draw the first {_SHOWN} images with their labels (.png, .jpg or .webp)."
        ),
    ] = None,
    recursive: Annotated[bool, typer.Option("--recursive", "-r", help="Include subfolders.")] = False,
    threads: Annotated[int | None, typer.Option(help="Processor threads (default: one per core).")] = None,
    batch_size: Annotated[int, typer.Option(help="Images per batch.")] = 64,
    all_files: Annotated[
        bool, typer.Option("--all-files", help="Include every file in folders, not only images.")
    ] = False,
    strict: Annotated[bool, typer.Option("--strict", help="Exit with status 3 if an image cannot be read.")] = False,
    max_pixels: Annotated[int | None, typer.Option(help="Reject images with more pixels than this.")] = None,
) -> None:
    """Classify images."""
    from shiftvit import files
    from shiftvit.cli.rows import DEFAULT_TOP_K
    from shiftvit.data.decode.images import MAX_PIXELS
    from shiftvit.figures.grid import GRID_ENDINGS
    from shiftvit.inference.predict import Predictor

    form = _choose_format(kind, out)
    sources = find_sources(paths, recursive, all_files)
    if not paths:
        grid = grid or Path("predictions.png")
    named = [source for source in sources if isinstance(source, str)]
    if out is not None:
        _check_rows_file(out, named)
    if grid is not None:
        files.check_file(grid, GRID_ENDINGS, named)
    top_k = DEFAULT_TOP_K[form] if top_k is None else top_k
    limit = MAX_PIXELS if max_pixels is None else max_pixels
    predictor = Predictor.from_pretrained(model, runtime=runtime, threads=threads)
    results = predictor.stream(sources, top_k=top_k, batch_size=batch_size, threads=threads, max_pixels=limit)
    with _opened(out) as stream:
        status, shown = _write(results, predictor, sources, stream, form, top_k, _SHOWN if grid else 0)
    if grid and shown:
        _draw(grid, shown, predictor, limit)
    if status == 3 and not strict:
        status = 0
    if status:
        raise typer.Exit(status)


def _write(
    results: Iterator[Prediction | Failure],
    predictor: Predictor,
    sources: list[Any],
    stream: IO[str],
    form: Format,
    top_k: int,
    keep: int,
) -> tuple[int, list[tuple[Any, Prediction]]]:
    """Writes rows as they arrive; returns the status (0, 3 after failures, 130 if stopped) and the grid's images."""
    from shiftvit.cli.rows import Writer
    from shiftvit.inference.predict import Failure

    names = ["-" if isinstance(source, bytes) else source for source in sources]
    widths = min(max(map(len, names)), 48), max(map(len, predictor.labels))
    failures = done = hits = known = 0
    shown: list[tuple[Any, Prediction]] = []
    began = time.perf_counter()
    # On one terminal the rows themselves show the progress.
    apart = stream is not sys.stdout or not sys.stdout.isatty()
    with (
        Writer(stream, form, top_k, widths, lambda name: _truth(name, predictor.labels)) as writer,
        Bar("predict", len(names), shown=apart and len(names) >= _MANY) as bar,
    ):
        try:
            for name, source, result in zip(names, sources, results, strict=True):
                if name == "-":
                    result = dataclasses.replace(result, path=name)
                    if isinstance(result, Failure):
                        result = Failure(name, result.error.replace("'image 1'", "standard input"))
                writer.write(result)
                done += 1
                if done % 100 == 0:
                    bar.update(done, f"{done / (time.perf_counter() - began):,.0f} images/s")
                if isinstance(result, Failure):
                    failures += 1
                    continue
                truth = _truth(name, predictor.labels)
                known += truth is not None
                hits += truth == result.label
                if len(shown) < keep:
                    shown.append((source, result))
        except KeyboardInterrupt:
            notice(f"stopped after {done:,} of {count_of(len(names), 'image')}")
            return 130, []
    seconds = time.perf_counter() - began
    said = [f"{count_of(done, 'image')} in {seconds:.2f} s, {done / seconds:,.0f} images/s ({predictor.runtime})"]
    if known:
        said.append(f"{hits:,} of {known:,} match their folder's name ({hits / known:.1%})")
    if failures:
        said.append(f"{failures:,} could not be read")
    notice("; ".join(said))
    return 3 if failures else 0, shown


def find_sources(paths: list[str] | None, recursive: bool, all_files: bool) -> list[Any]:
    """Returns paths, or the bytes of an image on standard input."""
    from shiftvit.bundle.stored.find import PRETRAINED
    from shiftvit.data.find.listing import is_companion, list_images

    if not paths:
        return list_images([str(PRETRAINED / "samples")], recursive=True)
    sources: list[Any] = []
    for path in paths:
        sources += _standard_input() if path == "-" else list_images([path], recursive=recursive, all_files=all_files)
    # A shell's pattern names the videos and notes of live photos, too.
    files = {source for source in sources if isinstance(source, str)}
    return [source for source in sources if isinstance(source, bytes) or not is_companion(source, files)]


def _standard_input() -> list[Any]:
    from shiftvit.data.decode.formats import find_kind
    from shiftvit.data.decode.images import MAX_BYTES
    from shiftvit.data.find.listing import split_list

    # No picture and no list is larger, and a device may have no end.
    content = b"" if sys.stdin is None else sys.stdin.buffer.read(MAX_BYTES + 1)
    if not content.strip():
        raise ShiftViTError("standard input is empty; pipe in an image, or a list of paths, one per line")
    names = split_list(content)
    # A list may begin as a picture does (`GIF89a/cat.gif`), and a picture may be text (PPM).
    if find_kind(content) is not None and (names is None or _is_picture(content)):
        return [content]
    if names is None:
        raise ShiftViTError(
            "standard input is neither an image of a supported format nor a list of files that exist, one per line: it "
            f"begins with {content[:40]!r}"
        )
    return names


def _is_picture(content: bytes) -> bool:
    from shiftvit.data.decode.images import decode

    try:
        decode(content)
    except ShiftViTError:
        return False
    return True


def _choose_format(kind: str | None, out: Path | None) -> Format:
    """Returns the format that the option or the ending of the file names; both may do so if they agree."""
    from shiftvit.cli.rows import ENDINGS, Format

    if kind is not None and kind not in list(Format):
        raise ShiftViTError(f"there is no format {kind!r}; {nearest(kind, list(Format))}")
    meant = Format.table if out is None else ENDINGS.get(out.suffix.lower())
    if kind is None:
        return meant or Format.table
    if meant not in (None, Format.table, kind):
        raise ShiftViTError(f"--format {kind} and the ending of {str(out)!r} contradict each other; change one of them")
    return Format(kind)


def _check_rows_file(out: Path, inputs: list[str]) -> None:
    from shiftvit import files
    from shiftvit.cli.rows import ENDINGS
    from shiftvit.data.decode.formats import find_kind

    files.check_file(out, tuple(ENDINGS), inputs)
    if out.is_file():
        with contextlib.suppress(OSError), out.open("rb") as file:
            if find_kind(file.read(300)) is not None:
                raise ShiftViTError(f"{str(out)!r} is a picture, and would be overwritten by text; name another file")


def _truth(name: str, labels: tuple[str, ...]) -> str | None:
    """Returns the name of the file's folder if it is a class."""
    folder = Path(name).parent.name
    return folder if folder in labels else None


@contextlib.contextmanager
def _opened(out: Path | None) -> Iterator[IO[str]]:
    if out is None:
        if sys.stdout is None:
            raise ShiftViTError("standard output is closed; name a file with --out")
        yield sys.stdout
        return
    from shiftvit import files

    try:
        with out.open("w", encoding="utf-8", errors="backslashreplace", newline="") as stream:
            yield stream
    except OSError as error:
        if error.filename not in (None, str(out)):
            raise
        raise files.unwritable(out, error) from error


def _draw(path: Path, shown: list[tuple[Any, Prediction]], predictor: Predictor, max_pixels: int) -> None:
    from shiftvit.data.decode.images import decode
    from shiftvit.figures.grid import Tile, prediction_grid

    tiles = []
    for source, result in shown:
        try:
            image = decode(source, max_pixels=max_pixels)
        except ShiftViTError as error:  # it was readable before
            notice(f"left out of the grid: {error}")
            continue
        tiles.append(Tile(image, result.label, result.confidence, _truth(result.path, predictor.labels)))
    if not tiles:
        return
    known = [tile for tile in tiles if tile.right is not None]
    hits = f": {sum(bool(tile.right) for tile in known)} of {len(known)} correct" if known else ""
    prediction_grid(tiles, path, f"Predictions for {count_of(len(tiles), 'image')}{hits}")
    notice(f"grid: {path}")
