"""The bulk engine: predictions or features of any number of images on a Ray cluster, one block at a time.

Ray Data gives the blocks to actors, each with its own model. If an actor dies, another one gets its block. An actor
writes the rows of a block to one file, atomically. So no row is lost or written twice, and a run that is started again
computes only the missing blocks.
"""

from __future__ import annotations

import json
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from typing import Any

from shiftvit.errors import ShiftViTError, check_at_least, suggest
from shiftvit.inference.blocks import Entry, Inputs, count_images
from shiftvit.inference.cluster import connect, import_ray
from shiftvit.inference.folder import OutputFolder
from shiftvit.inference.worker import (
    FORMATS,
    RUN_FILE,
    SPARE_CORES,
    ModelFiles,
    Task,
    Worker,
    count_actors,
    count_digits,
    count_errors,
    digest_run,
    name_part,
    pack,
    read_model,
)

_STORE = 128 * 2**20  # bytes of the object store of a local cluster, in addition to twice the model


@dataclass
class Summary:
    """The progress of a run.

    Attributes:
        total: number of images to process since the command was started.
        images: number of them that are processed.
        failures: number of images that could not be read.
        before: number of images that an earlier start processed.
        seconds: time since Ray was started.
        actors: the largest number of actors.
        features: number of features of an image, for `embed`.
    """

    total: int = 0
    images: int = 0
    failures: int = 0
    before: int = 0
    seconds: float = 0.0
    actors: int = 0
    features: int | None = None


def run_bulk(
    task: Task,
    names: Sequence[str],
    *,
    recursive: bool = False,
    all_files: bool = False,
    address: str | None = None,
    workers: int | None = None,
    block: int | None = None,
    recount: bool = False,
    report: Callable[[Summary], None] | None = None,
) -> Summary:
    """Runs a command over images on Ray, or completes a run that was started before.

    Args:
        task: the command and its settings; the attributes from `features` on are filled in here.
        names: image files, Parquet files, folders of either, and patterns; as paths that every node can read, or URIs.
        recursive, all_files: as in `list_images`.
        address: the cluster, as for `ray.init`; None: the value of `RAY_ADDRESS`, or a new cluster on this machine.
        workers: number of actors; None: as many as the cluster has cores for.
        block: number of images in a block; None: chosen from the number of images.
        recount: also count the failures in the files that an earlier start wrote.
        report: called after each block with the progress.

    Raises:
        ShiftViTError: Ray is missing, there is no cluster at the address, the model or the input does not exist, no
            node has as many cores as `threads`, the folder holds another run or is not writable, or a node fails.
    """
    for name in ("top_k", "threads", "batch_size", "max_pixels"):
        check_at_least(name, getattr(task, name), 1)
    check_at_least("workers", workers, 1)
    check_at_least("block", block, 1)
    kinds = FORMATS[task.command]
    kind = task.kind or kinds[0]
    if kind not in kinds:
        raise ShiftViTError(f"{task.command} on Ray cannot write {kind!r}; {suggest(kind, kinds)}")
    ray = import_ray()
    model = read_model(task.command, task.model, task.runtime)
    folder = OutputFolder(task.out)
    results = folder.identify() if folder.has(RUN_FILE) else None  # they may lie among the images
    inputs = Inputs(names, recursive=recursive, all_files=all_files, without=results)
    task = replace(
        task,
        kind=kind,
        out=folder.place,
        runtime=model.runtime,
        features=model.features,
        storages=tuple(inputs.storages),
        roots=tuple(sorted(inputs.roots)),
    )
    manifest = _describe(task, model, inputs) | {"block": block or inputs.choose_block_size()}
    folder.check()
    begun = _find_run(folder, manifest, block is not None)
    if begun is not None:
        manifest["block"] = begun["block"]
        folder.sweep()
    task = replace(task, run=digest_run(manifest))
    blocks = list(inputs.split(manifest["block"]))
    task = replace(task, digits=count_digits(len(blocks)))
    there = {*folder.list_names()}
    files = {number: name_part(number, kind, task.digits) for number in range(len(blocks))}
    todo = {number: blocks[number] for number, file in files.items() if file not in there}
    images = {number: sum(map(count_images, entries)) for number, entries in todo.items()}
    summary = Summary(total=sum(images.values()), features=model.features)
    summary.before = inputs.count - summary.total
    if recount:
        summary.failures = sum(count_errors(folder.read(files[number]), kind) for number in files.keys() - todo.keys())
    if not todo:
        return summary
    began = time.perf_counter()
    with connect(ray, address, _STORE + 2 * sum(map(len, model.files.values()))):
        most = count_actors(ray.nodes(), task.threads)
        folder.make()
        with folder.hold():
            # Again, as another run may have taken the folder while Ray started.
            if _find_run(folder, manifest, True) is None:
                folder.write(RUN_FILE, (json.dumps(manifest, indent=2) + "\n").encode())
        summary.actors = min(workers or most, len(todo))
        for number, failures in _run_blocks(ray, task, model, todo, summary.actors):
            summary.images += images[number]
            summary.failures += failures
            summary.seconds = time.perf_counter() - began
            if report is not None:
                report(summary)
    folder.sweep()  # a worker that was killed after a rename left its temporary folder
    return summary


def _describe(task: Task, model: ModelFiles, inputs: Inputs) -> dict[str, Any]:
    """Returns everything that the rows depend on, for the manifest."""
    described = {
        "format": 1,
        "command": task.command,
        "model": task.model,
        "model_sha256": model.digest(),
        "runtime": task.runtime,
        "kind": task.kind,
        "top_k": task.top_k,
        "max_pixels": task.max_pixels,
        "images": inputs.count,
        "images_sha256": inputs.digest(),
    }
    if task.command == "embed":
        del described["top_k"]
    return described


def _find_run(folder: OutputFolder, manifest: dict[str, Any], sized: bool) -> dict[str, Any] | None:
    """Returns the manifest of the run in a folder, or None if the folder is empty or does not exist.

    Args:
        folder: the folder of the results.
        manifest: the manifest of the run to start or continue.
        sized: whether the user chose the block size; otherwise a continued run keeps its own.
    """
    there = folder.list_names()
    if not there:
        return None
    if RUN_FILE not in there:
        raise ShiftViTError(f"{str(folder)!r} holds {there[0]!r} but no run; choose a new or empty folder")
    try:
        found = dict(json.loads(folder.read(RUN_FILE)))
        wanted = manifest | ({} if sized else {"block": int(found["block"])})
    except (ShiftViTError, ValueError, TypeError, LookupError) as error:
        raise ShiftViTError(f"{RUN_FILE!r} in {str(folder)!r} cannot be read; choose a new folder") from error
    other = next((name for name in wanted if name != "model" and found.get(name) != wanted[name]), None)
    if other is None:
        return found
    what = {
        "model_sha256": f"of a different model ({found.get('model')!r}, not {manifest['model']!r})",
        "images_sha256": "of different images",
        "images": f"of {found.get('images')} images, but there are now {manifest['images']}",
    }.get(other, f"with {other} = {found.get(other)}, not {wanted[other]}")
    raise ShiftViTError(
        f"{str(folder)!r} holds a run {what}; choose a new folder, or start that run with its own settings"
    )


def _run_blocks(
    ray: Any, task: Task, model: ModelFiles, todo: dict[int, list[Entry]], actors: int
) -> Iterator[tuple[int, int]]:
    """Yields the number of each block once it is written, and how many of its images failed."""
    from ray import data

    context = data.DataContext.get_current()
    context.enable_progress_bars = False
    context.print_on_execution_start = False
    rows = [{"block": number, "entries": pack(entries)} for number, entries in todo.items()]
    results = data.from_items(rows, override_num_blocks=len(rows)).map_batches(
        Worker,
        fn_constructor_args=(task, ray.put(model.files)),
        batch_size=1,
        num_cpus=task.threads - SPARE_CORES,
        compute=data.ActorPoolStrategy(min_size=1, max_size=actors, initial_size=actors),
    )
    left = {*todo}
    again = "start the command again to continue"
    try:
        for row in results.iter_rows():
            if row["fault"]:
                raise ShiftViTError(f"{row['fault']}; fix it, then {again}")
            if row["block"] in left:
                left.discard(row["block"])
                yield row["block"], row["failures"]
    except ray.exceptions.RayError as error:
        reason = [line.strip() for line in str(error).splitlines() if line.strip()][-1]
        raise ShiftViTError(
            f"Ray failed ({reason[:200]}); install the same shiftvit on all nodes, then {again}"
        ) from error
    if left:
        raise ShiftViTError(f"{len(left):,} blocks were not written; {again}")
