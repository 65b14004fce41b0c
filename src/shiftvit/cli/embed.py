"""`shiftvit embed`."""

import time
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from shiftvit.cli import inputs
from shiftvit.cli.bulk import run_on_ray, wants_ray
from shiftvit.cli.tables import list_examples
from shiftvit.console import Bar
from shiftvit.errors import ShiftViTError, pluralize, report_skipped

if TYPE_CHECKING:
    from shiftvit.inference.embed import Embedding
    from shiftvit.inference.predict import Failure


app = typer.Typer()


@app.command(
    epilog=list_examples(
        "shiftvit embed photos/ --recursive --out features.npz",
        "shiftvit embed photos/ --model runs/mine --out features.parquet",
        "shiftvit embed s3://bucket/photos --engine ray --out s3://bucket/features",
    )
)
def embed(
    out: Annotated[str, typer.Option(metavar="FILE|DIR", help="File to write: .npz or .parquet.")],
    paths: inputs.Paths = None,
    model: Annotated[str, typer.Option(help="Run folder, bundle, ONNX export or model name.")] = "cifar10",
    runtime: Annotated[
        str, typer.Option(help="onnxruntime, keras; auto: onnxruntime if the model has a graph.")
    ] = "auto",
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
    """Turn images into features for search and clustering.

    Writes the paths and the pooled features (float32, a row for each image) that are the input of the model's last
    layer.
    """
    from shiftvit.data.decode.images import MAX_PIXELS
    from shiftvit.inference.embed import Embedder, check_table, write_table

    if wants_ray(engine, address, workers, paths, out):
        options = {"model": model, "runtime": runtime, "threads": threads, "batch_size": batch_size}
        listing = {"recursive": recursive, "all_files": all_files, "address": address, "workers": workers}
        run_on_ray("embed", paths, out, strict, listing, max_pixels=max_pixels, **options)
        return
    place = Path(out)
    check_table(place)
    sources = inputs.find_sources(paths, recursive, all_files)
    check_table(place, inputs.list_files(sources))
    embedder = Embedder.from_pretrained(model, runtime=runtime, threads=threads)
    limit = MAX_PIXELS if max_pixels is None else max_pixels
    found = embedder.stream(sources, batch_size=batch_size, threads=threads, max_pixels=limit)
    results = inputs.name_stdin(sources, found)
    faults: list[str] = []
    began = time.perf_counter()
    with Bar("embed", len(sources)) as bar:
        write_table(place, _yield_usable(results, bar, faults), embedder.size)
    seconds = time.perf_counter() - began
    count = len(sources) - len(faults)
    report_skipped(faults)
    rate = f"{count / seconds:,.0f} images/s ({embedder.runtime})"
    print(f"{out}: {embedder.size} features of {pluralize(count, 'image')} in {seconds:.2f} s, {rate}")
    if faults and strict:
        raise typer.Exit(3)


def _yield_usable(results: "Iterator[Embedding | Failure]", bar: Bar, faults: list[str]) -> Iterator[Any]:
    """Yields the embeddings, and appends the faults of the other images to `faults`.

    Raises:
        ShiftViTError: no image can be read.
    """
    from shiftvit.inference.predict import Failure

    began, number = time.perf_counter(), 0
    for number, result in enumerate(results, start=1):
        if isinstance(result, Failure):
            faults.append(result.error)
        else:
            yield result
        if number % 10 == 0:
            bar.update(number, f"{number / (time.perf_counter() - began):,.0f} images/s")
    if len(faults) == number:
        raise ShiftViTError(f"none of {pluralize(number, 'image')} can be read; {faults[0]}")
