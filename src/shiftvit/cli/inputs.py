"""The options that `predict`, `embed` and `explain` share, and the search for the images that they name."""

from __future__ import annotations

import dataclasses
import re
import sys
from collections.abc import Iterable, Iterator, Sequence
from typing import Annotated, Any

import typer

from shiftvit.errors import ShiftViTError

Paths = Annotated[
    list[str] | None,
    typer.Argument(
        metavar="[PATH|DIR|GLOB|-]...",
        help="Image files, folders or patterns; - reads an image or a list of paths from standard input "
        "(default: the sample images that come with shiftvit).",
    ),
]
Recursive = Annotated[bool, typer.Option("--recursive", "-r", help="Include subfolders.")]
Threads = Annotated[int | None, typer.Option(help="CPU threads (default: one per core; with Ray 1 per actor).")]
BatchSize = Annotated[int, typer.Option(help="Images per batch.")]
AllFiles = Annotated[bool, typer.Option("--all-files", help="Include every file in folders, not only images.")]
Strict = Annotated[bool, typer.Option("--strict", help="Exit with status 3 if an image cannot be read.")]
MaxPixels = Annotated[int | None, typer.Option(help="Reject images with more pixels than this.")]
# The most bytes of a list of paths on standard input, which may be endless.
_LONGEST_LIST = 2**30
Engine = Annotated[
    str,
    typer.Option(
        help="Where to run: local, or ray, a cluster for tens of thousands of files or more; Ray takes 11 s and 1.4 GB "
        "to start (docs/scaling.md). With ray, PATH and --out may be URIs (s3://, gs://, file://), PATH may be "
        "Parquet, --out is a folder, and the same command continues a stopped run."
    ),
]
Address = Annotated[
    str | None,
    typer.Option(
        metavar="ADDRESS",
        help="With --engine ray: the address of the cluster, HOST:PORT; on one of its nodes, auto is enough "
        "(default: RAY_ADDRESS, else a new cluster on this machine).",
    ),
]
Workers = Annotated[
    int | None,
    typer.Option(help="With --engine ray: number of actors, each with its own model (default: one per core)."),
]


def find_sources(paths: list[str] | None, recursive: bool, all_files: bool) -> list[Any]:
    """Returns the paths of the images, or the bytes of an image on standard input."""
    from shiftvit.bundle.stored.find import PRETRAINED
    from shiftvit.data.find.listing import is_companion, list_images

    if not paths:
        return list_images([str(PRETRAINED / "samples")], recursive=True)
    sources: list[Any] = []
    for path in paths:
        sources += _read_stdin() if path == "-" else list_images([path], recursive=recursive, all_files=all_files)
    # A pattern that the shell expands also matches the videos and notes of live photos.
    files = {source for source in sources if isinstance(source, str)}
    return [source for source in sources if isinstance(source, bytes) or not is_companion(source, files)]


def list_files(sources: Iterable[Any]) -> list[str]:
    """Returns the files that hold the images, each once; a row of a Parquet file is in that file."""
    from shiftvit.data.decode.rows import find_row

    return [*dict.fromkeys((find_row(source) or (source,))[0] for source in sources if isinstance(source, str))]


def name_stdin(sources: Sequence[Any], results: Iterable[Any]) -> Iterator[Any]:
    """Yields results, `Failure` or others with a `path`, with the path "-" for an image on standard input.

    A stream calls it by its number among the sources; in the reason of a failure it is "standard input".
    """
    from shiftvit.inference.sources import Failure

    for number, (source, result) in enumerate(zip(sources, results, strict=True), start=1):
        if not isinstance(source, bytes):
            yield result
        elif isinstance(result, Failure):
            yield Failure("-", re.sub(f"^'?image {number}'?", "standard input", result.error))
        else:
            yield dataclasses.replace(result, path="-")


def _read_stdin() -> list[Any]:
    from shiftvit.data.decode.formats import find_kind
    from shiftvit.data.decode.images import MAX_BYTES
    from shiftvit.data.find.listing import split_list

    # A device may never end; pictures and lists are smaller than this limit.
    content = b"" if sys.stdin is None else sys.stdin.buffer.read(MAX_BYTES + 1)
    if not content.strip():
        raise ShiftViTError("standard input is empty; pipe in an image, or a list of paths, one per line")
    names = split_list(content)
    if names is not None and len(content) > MAX_BYTES:
        content += sys.stdin.buffer.read(_LONGEST_LIST - MAX_BYTES)
        if len(content) > _LONGEST_LIST:
            raise ShiftViTError(
                f"the list on standard input has more than {_LONGEST_LIST:,} bytes; name folders or patterns instead"
            )
        names = split_list(content)
    # A list may begin like a picture (`GIF89a/cat.gif`), and a picture may be text (PPM).
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
