"""`shiftvit embed`."""

from __future__ import annotations

import time
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from shiftvit.cli.predict import find_sources
from shiftvit.cli.tables import examples
from shiftvit.console import Bar
from shiftvit.errors import ShiftViTError, count_of, notice

if TYPE_CHECKING:
    from shiftvit.inference.embed import Embedding
    from shiftvit.inference.predict import Failure

# Faults that are named one by one; the rest is counted.
_NAMED = 5


def add_to(app: typer.Typer) -> None:
    app.command(
        epilog=examples(
            "shiftvit embed photos/ --recursive --out features.npz",
            "shiftvit embed photos/ --model runs/mine --out features.parquet",
        )
    )(embed)


def embed(
    out: Annotated[Path, typer.Option(metavar="FILE", help="File to write: .npz or .parquet.")],
    paths: Annotated[
        list[str] | None,
        typer.Argument(
            metavar="[PATH|DIR|GLOB|-]...",
            help="Image files, folders or patterns; - reads a list of paths from standard input (default: the sample "
            "images that come with shiftvit).",
        ),
    ] = None,
    model: Annotated[str, typer.Option(help="Run folder, bundle, ONNX export or model name.")] = "cifar10",
    runtime: Annotated[
        str, typer.Option(help="onnxruntime, keras; auto: onnxruntime if the model has a graph.")
    ] = "auto",
    recursive: Annotated[bool, typer.Option("--recursive", "-r", help="Include subfolders.")] = False,
    threads: Annotated[int | None, typer.Option(help="Processor threads (default: one per core).")] = None,
    batch_size: Annotated[int, typer.Option(help="Images per batch.")] = 64,
    all_files: Annotated[
        bool, typer.Option("--all-files", help="Include every file in folders, not only images.")
    ] = False,
    strict: Annotated[bool, typer.Option("--strict", help="Exit with status 3 if an image cannot be read.")] = False,
    max_pixels: Annotated[int | None, typer.Option(help="Reject images with more pixels than this.")] = None,
) -> None:
    """Turn images into features for search and clustering.

    Writes the paths and the pooled features (float32, a row for each image) that the model's last layer takes.
    """
    from shiftvit.data.decode.images import MAX_PIXELS
    from shiftvit.inference.embed import Embedder, check_table, write_table

    check_table(out)
    sources = find_sources(paths, recursive, all_files)
    embedder = Embedder.from_pretrained(model, runtime=runtime, threads=threads)
    limit = MAX_PIXELS if max_pixels is None else max_pixels
    results = embedder.stream(sources, batch_size=batch_size, threads=threads, max_pixels=limit)
    faults: list[str] = []
    began = time.perf_counter()
    with Bar("embed", len(sources)) as bar:
        count = write_table(out, _usable(results, bar, faults), embedder.size)
    seconds = time.perf_counter() - began
    for fault in faults[:_NAMED]:
        notice(f"skipped: {fault}")
    if len(faults) > _NAMED:
        notice(f"skipped {len(faults) - _NAMED:,} more")
    rate = f"{count / seconds:,.0f} images/s ({embedder.runtime})"
    print(f"{out}: {embedder.size} features of {count_of(count, 'image')} in {seconds:.2f} s, {rate}")
    if faults and strict:
        raise typer.Exit(3)


def _usable(results: Iterator[Embedding | Failure], bar: Bar, faults: list[str]) -> Iterator[Any]:
    """Yields the embeddings, and keeps what is wrong with the other images.

    Raises:
        ShiftViTError: none can be read.
    """
    from shiftvit.inference.predict import Failure

    began, count = time.perf_counter(), 0
    for number, result in enumerate(results, start=1):
        if isinstance(result, Failure):
            faults.append(result.error)
        else:
            count += 1
            yield result
        if number % 10 == 0:
            bar.update(number, f"{number / (time.perf_counter() - began):,.0f} images/s")
    if not count:
        raise ShiftViTError(f"none of {count_of(len(faults), 'image')} can be read; {faults[0]}")
