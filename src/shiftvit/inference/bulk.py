"""The bulk engine: predictions or features of any number of files on a Ray cluster, a block of them at a time.

Ray Data hands the blocks to actors, each with a model of its own, and gives the block of an actor that died to
another. An actor writes a block's rows as one file, which arrives whole or not at all. So a run loses and doubles
nothing, and one that is started again does what is missing.
"""

from __future__ import annotations

import json
import logging
import os
import socket
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from shiftvit.errors import ShiftViTError, check_at_least, install_hint, nearest
from shiftvit.inference.blocks import Entry, Inputs, count_images
from shiftvit.inference.storage import Folder
from shiftvit.inference.worker import FORMATS, MANIFEST, Held, Task, Worker, count_errors, name_part, pack, read_model

_STORE = 128 * 2**20  # bytes of the object store of a cluster that is started here, beside twice the model
_REACH = 10.0  # seconds to reach a cluster's address


@dataclass
class Summary:
    """What a run did.

    Attributes:
        total: images that this start has to do.
        images: those that it did.
        failures: those of them that could not be read.
        before: images that were done before.
        seconds: from the start of Ray on.
        actors: how many there may be.
        features: how many an image has, of `embed`.
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
    """Runs a command over images on Ray, or does what an earlier start of the same run left to do.

    Args:
        task: what is done; of its attributes, those that a default follows are filled in here.
        names: image files, Parquet files, folders of either, patterns; paths that every node has, or URIs.
        recursive, all_files: as in `list_images`.
        address: of the cluster, as `ray.init` takes it; None: what `RAY_ADDRESS` says, or a cluster that is started on
            this machine for this run.
        workers: actors; None: as many as the cluster has cores for.
        block: images of a block; None: by their number.
        recount: also count the failures in the files that were there before.
        report: is called after each block with what was done so far.

    Raises:
        ShiftViTError: Ray is missing, there is no cluster at the address, the model or the input does not exist, the
            folder holds another run or cannot be written, or a node fails.
    """
    for name in ("top_k", "threads", "batch_size", "max_pixels"):
        check_at_least(name, getattr(task, name), 1)
    check_at_least("workers", workers, 1)
    check_at_least("block", block, 1)
    kinds = FORMATS[task.command]
    kind = task.kind or kinds[0]
    if kind not in kinds:
        raise ShiftViTError(f"{task.command} on Ray writes no {kind!r}; {nearest(kind, kinds)}")
    ray = import_ray()
    held = read_model(task.command, task.model, task.runtime)
    inputs = Inputs(names, recursive=recursive, all_files=all_files)
    folder = Folder(task.out)
    task = replace(
        task,
        kind=kind,
        out=folder.place,
        runtime=held.runtime,
        features=held.features,
        storages=tuple(inputs.storages),
        roots=tuple(sorted(inputs.roots)),
    )
    manifest = _describe(task, held, inputs) | {"block": block or inputs.block_size()}
    folder.check()
    begun = _find_run(folder, manifest, block is not None)
    if begun is not None:
        manifest["block"] = begun["block"]
    blocks = list(inputs.blocks(manifest["block"]))
    there = {*folder.names()}
    files = {number: name_part(number, kind) for number in range(len(blocks))}
    todo = {number: blocks[number] for number, file in files.items() if file not in there}
    images = {number: sum(map(count_images, entries)) for number, entries in todo.items()}
    summary = Summary(total=sum(images.values()), features=held.features)
    summary.before = inputs.count - summary.total
    if recount:
        summary.failures = sum(count_errors(folder.read(files[number]), kind) for number in files.keys() - todo.keys())
    if not todo:
        return summary
    began = time.perf_counter()
    with _connect(ray, address, _STORE + 2 * sum(map(len, held.files.values()))):
        if begun is None:
            folder.make()
            folder.write(MANIFEST, (json.dumps(manifest, indent=2) + "\n").encode())
        else:
            folder.sweep()
        cores = int(ray.cluster_resources().get("CPU", 1))
        summary.actors = min(workers or max(1, cores // task.threads), len(todo))
        for number, failures in _run_blocks(ray, task, held, todo, summary.actors):
            summary.images += images[number]
            summary.failures += failures
            summary.seconds = time.perf_counter() - began
            if report is not None:
                report(summary)
    return summary


def _describe(task: Task, held: Held, inputs: Inputs) -> dict[str, Any]:
    """Returns what the rows depend on, for the manifest."""
    described = {
        "format": 1,
        "command": task.command,
        "model": task.model,
        "model_sha256": held.digest(),
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


def _find_run(folder: Folder, manifest: dict[str, Any], sized: bool) -> dict[str, Any] | None:
    """Returns the manifest of the run that a folder holds, or None if it is empty or not there.

    Args:
        folder: of the results.
        manifest: of the run that is to go on there, or to begin.
        sized: whether that has blocks of a chosen size; else those of the earlier start go on.

    Raises:
        ShiftViTError: it holds another run, or other files.
    """
    there = folder.names()
    if not there:
        return None
    if MANIFEST not in there:
        raise ShiftViTError(f"{str(folder)!r} holds {there[0]!r} and no such run; name a new or an empty folder")
    try:
        found = dict(json.loads(folder.read(MANIFEST)))
        wanted = manifest | ({} if sized else {"block": int(found["block"])})
    except (ShiftViTError, ValueError, TypeError, LookupError) as error:
        raise ShiftViTError(f"{MANIFEST!r} in {str(folder)!r} cannot be read; name a new folder") from error
    other = next((name for name in wanted if name != "model" and found.get(name) != wanted[name]), None)
    if other is None:
        return found
    what = {
        "model_sha256": f"of another model ({found.get('model')!r}, and this is {manifest['model']!r})",
        "images_sha256": "of other images",
        "images": f"of {found.get('images')} images, and there are {manifest['images']} now",
    }.get(other, f"with {other} = {found.get(other)}, and this is {other} = {wanted[other]}")
    raise ShiftViTError(f"{str(folder)!r} holds a run {what}; name a new folder, or start that run as it was")


def _run_blocks(
    ray: Any, task: Task, held: Held, todo: dict[int, list[Entry]], actors: int
) -> Iterator[tuple[int, int]]:
    """Yields the number of each block when it is written, once, and how many of its images failed.

    Raises:
        ShiftViTError: a node failed.
    """
    from ray import data

    context = data.DataContext.get_current()
    context.enable_progress_bars = False
    context.print_on_execution_start = False
    rows = [{"block": number, "entries": pack(entries)} for number, entries in todo.items()]
    results = data.from_items(rows, override_num_blocks=len(rows)).map_batches(
        Worker,
        fn_constructor_args=(task, ray.put(held.files)),
        batch_size=1,
        # Below the threads that it has: an actor for each core must leave something to what feeds it.
        num_cpus=task.threads - 0.1,
        compute=data.ActorPoolStrategy(min_size=1, max_size=actors, initial_size=actors),
    )
    left = {*todo}
    again = "start the command again, which continues"
    try:
        for row in results.iter_rows():
            if row["fault"]:
                raise ShiftViTError(f"{row['fault']}; mend it, and {again}")
            if row["block"] in left:
                left.discard(row["block"])
                yield row["block"], row["failures"]
    except ray.exceptions.RayError as error:
        reason = [line.strip() for line in str(error).splitlines() if line.strip()][-1]
        raise ShiftViTError(
            f"Ray could not go on ({reason[:200]}); all nodes need this shiftvit; then {again}"
        ) from error
    if left:
        raise ShiftViTError(f"{len(left):,} blocks were not written; {again}")


def import_ray() -> Any:
    """Imports Ray, without its usage statistics unless the user set them, and returns it.

    Raises:
        ShiftViTError: it is not installed.
    """
    settings = Path(os.environ.get("RAY_USAGE_STATS_CONFIG_PATH", "~/.ray/config.json")).expanduser()
    if not settings.exists():
        os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")
    try:
        import ray
        import ray.data
    except ImportError as error:
        raise ShiftViTError(f"the engine 'ray' is not installed; {install_hint('ray[data]')}") from error
    logging.getLogger("ray.data").setLevel(logging.ERROR)
    return ray


@contextmanager
def _connect(ray: Any, address: str | None, store: int) -> Iterator[None]:
    """Connects to a cluster, or starts one, and leaves it at the end.

    Raises:
        ShiftViTError: there is none at the address, or it runs another Python or Ray.
    """
    if ray.is_initialized():  # by the program that calls this
        yield
        return
    address = address or os.environ.get("RAY_ADDRESS") or "local"
    started: dict[str, Any] = {}
    if address == "local":
        started = {"include_dashboard": False, "object_store_memory": store}
    elif address != "auto" and "://" not in address:
        _reach(address)
    try:
        ray.init(address, log_to_driver=False, logging_level="ERROR", **started)
    except (ConnectionError, RuntimeError, ValueError, TimeoutError) as error:
        reason = " ".join(str(error).split())[:300]
        mend = "install the same on both" if "mismatch" in reason else "start one with: ray start --head"
        raise ShiftViTError(f"no Ray cluster can be used at {address!r}: {reason}; {mend}") from error
    try:
        yield
    finally:
        ray.shutdown()


def _reach(address: str) -> None:
    host, _, port = address.rpartition(":")
    try:
        socket.create_connection((host.strip("[]"), int(port)), _REACH).close()
    except (OSError, ValueError) as error:
        reason = getattr(error, "strerror", None) or error
        raise ShiftViTError(
            f"no Ray cluster answers at {address!r} ({reason}); give HOST:PORT of its head, or auto on one of its nodes"
        ) from error
