"""`shiftvit predict`."""

import contextlib
import os
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import IO, TYPE_CHECKING, Annotated, Any

import typer

from shiftvit.cli import inputs
from shiftvit.cli.bulk import run_on_ray, wants_ray
from shiftvit.cli.tables import escape_unprintable, list_examples
from shiftvit.console import Bar
from shiftvit.errors import ShiftViTError, notice, pluralize, suggest

if TYPE_CHECKING:
    from shiftvit.cli.rows import Format
    from shiftvit.inference.predict import Failure, Prediction, Predictor

_FORMATS = "table, json, jsonl or csv"
# The most images in a grid; more would be hard to read.
_SHOWN = 60
# The fewest images for which a bar is shown.
_MANY = 200


app = typer.Typer()


@app.command(
    epilog=list_examples(
        "shiftvit predict",
        "shiftvit predict photos/ --recursive --grid grid.png",
        "shiftvit predict --model runs/mine '*.jpg' --format csv --out labels.csv",
        "find . -name '*.png' | shiftvit predict - --format jsonl",
        "shiftvit predict s3://bucket/photos --engine ray --out s3://bucket/labels",
    )
)
def predict(
    paths: inputs.Paths = None,
    model: Annotated[str, typer.Option(help="Run folder, bundle, export or model name.")] = "cifar10",
    runtime: Annotated[
        str,
        typer.Option(help="onnxruntime, openvino, litert, tensorflow, torch, keras; auto: the fastest installed."),
    ] = "auto",
    top_k: Annotated[int | None, typer.Option(help="Classes per image (default: 3; in JSON 5, in CSV 1).")] = None,
    kind: Annotated[
        str | None,
        typer.Option(
            "--format",
            metavar="FORMAT",
            help=f"Output format: {_FORMATS} (default: by the suffix of --out, else table).",
        ),
    ] = None,
    out: Annotated[
        str | None,
        typer.Option(metavar="FILE|DIR", help="Write the output to this file: .txt, .csv, .json or .jsonl."),
    ] = None,
    grid: Annotated[
        Path | None,
        typer.Option(
            metavar="FILE",
            help=f"Also draw the first {_SHOWN} images with their labels: .png, .jpg or .webp "
            "(default without PATH: predictions.png).",
        ),
    ] = None,
    recursive: inputs.Recursive = False,
    threads: inputs.Threads = None,
    batch_size: inputs.BatchSize = 64,
    all_files: inputs.AllFiles = False,
    strict: inputs.Strict = False,
    max_pixels: inputs.MaxPixels = None,
    engine: inputs.Engine = "local",
    address: inputs.Address = None,
    workers: inputs.Workers = None,
) -> None:
    """Classify images."""
    from shiftvit import files
    from shiftvit.cli.rows import DEFAULT_TOP_K
    from shiftvit.data.decode.images import MAX_PIXELS
    from shiftvit.inference.predict import Predictor

    if wants_ray(engine, address, workers, paths, out):
        if grid is not None:
            raise ShiftViTError("--grid does not work with --engine ray; leave out one of the two")
        options = {"model": model, "runtime": runtime, "threads": threads, "batch_size": batch_size}
        options |= {"kind": kind, "top_k": top_k, "max_pixels": max_pixels}
        listing = {"recursive": recursive, "all_files": all_files, "address": address, "workers": workers}
        run_on_ray("predict", paths, out, strict, listing, **options)
        return
    place = None if out is None else Path(out)
    form = _choose_format(kind, place)
    sources = inputs.find_sources(paths, recursive, all_files)
    if not paths:
        grid = grid or Path("predictions.png")
    named = inputs.list_files(sources)
    if place is not None:
        _check_rows_file(place, named, reads_list="-" in (paths or ()))
    if grid is not None:
        from shiftvit.figures.grid import GRID_ENDINGS

        files.check_file(grid, GRID_ENDINGS, named)
    top_k = DEFAULT_TOP_K[form] if top_k is None else top_k
    limit = MAX_PIXELS if max_pixels is None else max_pixels
    predictor = Predictor.from_pretrained(model, runtime=runtime, threads=threads)
    results = predictor.stream(sources, top_k=top_k, batch_size=batch_size, threads=threads, max_pixels=limit)
    with _open_output(place) as stream:
        failures, shown = _write(results, predictor, sources, stream, form, top_k, _SHOWN if grid else 0)
    if grid and shown:
        _draw(grid, shown, limit)
    if failures and strict:
        raise typer.Exit(3)


def _write(
    results: "Iterator[Prediction | Failure]",
    predictor: "Predictor",
    sources: list[Any],
    stream: IO[str],
    form: "Format",
    top_k: int,
    keep: int,
) -> tuple[int, list[tuple[Any, "Prediction", str | None]]]:
    """Writes rows as they arrive. Returns the number of failures and the images for the grid.

    Raises:
        typer.Exit: with status 130 after Ctrl-C.
    """
    from shiftvit.cli.rows import Writer
    from shiftvit.inference.predict import Failure

    names = ["-" if isinstance(source, bytes) else source for source in sources]
    widths = min(max(map(len, names)), 48), max(len(escape_unprintable(label)) for label in predictor.labels)
    classes = _index_classes(predictor.labels)
    failures = done = hits = known = 0
    shown: list[tuple[Any, Prediction, str | None]] = []
    began = time.perf_counter()
    # On a terminal, the rows themselves show the progress.
    show_bar = len(names) >= _MANY and (stream is not sys.stdout or not sys.stdout.isatty())
    with (
        Writer(stream, form, top_k, widths) as writer,
        Bar("predict", len(names), shown=show_bar) as bar,
    ):
        try:
            for name, source, result in zip(names, sources, inputs.name_stdin(sources, results), strict=True):
                truth = _find_truth(name, classes)
                writer.write(result, truth)
                done += 1
                if done % 100 == 0:
                    bar.update(done, f"{done / (time.perf_counter() - began):,.0f} images/s")
                if isinstance(result, Failure):
                    failures += 1
                    continue
                known += truth is not None
                hits += truth == result.label
                if len(shown) < keep:
                    shown.append((source, result, truth))
        except KeyboardInterrupt:
            notice(f"stopped after {done:,} of {pluralize(len(names), 'image')}")
            raise typer.Exit(130) from None
    seconds = time.perf_counter() - began
    parts = [f"{pluralize(done, 'image')} in {seconds:.2f} s, {done / seconds:,.0f} images/s ({predictor.runtime})"]
    if known:
        parts.append(f"{hits:,} of {known:,} match their folder's name ({hits / known:.1%})")
    if failures:
        parts.append(f"{failures:,} could not be read")
    notice("; ".join(parts))
    return failures, shown


def _choose_format(kind: str | None, out: Path | None) -> "Format":
    """Returns the format that the option or the file's suffix names; if both do, they must agree."""
    from shiftvit.cli.rows import ENDINGS, Format

    if kind is not None and kind not in list(Format):
        raise ShiftViTError(f"there is no format {kind!r}; {suggest(kind, list(Format))}")
    meant = Format.table if out is None else ENDINGS.get(out.suffix.lower())
    if kind is None:
        return meant or Format.table
    if meant not in (None, Format.table, kind):
        raise ShiftViTError(f"--format {kind} and the suffix of {str(out)!r} contradict each other; change one of them")
    return Format(kind)


def _check_rows_file(out: Path, named: list[str], reads_list: bool) -> None:
    from shiftvit import files
    from shiftvit.cli.rows import ENDINGS
    from shiftvit.data.decode.formats import find_kind

    files.check_file(out, tuple(ENDINGS), named, in_place=True)
    if out.is_file():
        if reads_list and _is_standard_input(out):
            raise ShiftViTError(f"{str(out)!r} is also read here, and would be overwritten; name another file")
        with contextlib.suppress(OSError), out.open("rb") as file:
            if find_kind(file.read(300)) is not None:
                raise ShiftViTError(f"{str(out)!r} is a picture, and would be overwritten by text; name another file")


def _is_standard_input(path: Path) -> bool:
    try:
        return os.path.samestat(os.fstat(sys.stdin.fileno()), path.stat())
    except (AttributeError, OSError, ValueError):  # it is closed, or no file
        return False


def _index_classes(labels: tuple[str, ...]) -> dict[str, str]:
    """Returns the labels by the form in which names are compared."""
    from shiftvit.data.find.words import normalise_name

    return {normalise_name(label): label for label in labels}


def _find_truth(name: str, classes: dict[str, str]) -> str | None:
    """Returns the class that the file's folder is named after; `classes` is from `_index_classes`."""
    from shiftvit.data.find.words import normalise_name

    return classes.get(normalise_name(Path(name).parent.name))


@contextlib.contextmanager
def _open_output(out: Path | None) -> Iterator[IO[str]]:
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
        raise files.explain_unwritable(out, error) from error


def _draw(path: Path, shown: list[tuple[Any, "Prediction", str | None]], max_pixels: int) -> None:
    import numpy as np

    from shiftvit.data.decode.images import decode
    from shiftvit.figures.grid import Tile, draw_predictions, scale_image

    tiles = []
    for source, result, truth in shown:
        try:
            image = decode(source, max_pixels=max_pixels)
        except ShiftViTError as error:  # it was readable before
            notice(f"left out of the grid: {error}")
            continue
        small = np.asarray(scale_image(image))  # at once: all the photographs could take gigabytes
        tiles.append(Tile(small, result.label, result.confidence, truth))
    if not tiles:
        return
    known = [tile for tile in tiles if tile.right is not None]
    hits = f": {sum(bool(tile.right) for tile in known)} of {len(known)} correct" if known else ""
    draw_predictions(tiles, path, f"Predictions for {pluralize(len(tiles), 'image')}{hits}")
    notice(f"grid: {path}")
