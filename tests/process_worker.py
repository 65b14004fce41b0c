"""Runs the processes of trainings, for tests/test_processes.py.

It imports torch or jax once and then forks the processes of one training after the other. Each line of JSON on standard
input describes a training. The answer is a line with the exit statuses of its processes.

A process trains as `shiftvit train` does. For the tests it records the images of each batch, the final weights, and
every file of the run that it changed.
"""

from __future__ import annotations

import atexit
import contextlib
import ctypes
import hashlib
import json
import os
import signal
import sys
import time
import traceback
from pathlib import Path
from typing import Any

import numpy as np


def main(settings: dict[str, Any]) -> None:
    rank = int(os.environ.get("RANK", "0"))
    record: dict[str, Any] = {"images": {}, "written": []}
    run = str(Path(settings["run"]).resolve())

    def record_write(event: str, arguments: tuple[Any, ...]) -> None:
        writes = event in ("os.rename", "os.mkdir", "os.remove")
        writes |= event == "open" and bool((arguments[2] or 0) & (os.O_WRONLY | os.O_RDWR))
        if writes and f"{arguments[0]}/".startswith(f"{run}/"):
            record["written"].append(Path(str(arguments[0])).name)

    (Path(settings["record"]) / f"pid{rank}").write_text(str(os.getpid()))
    sys.addaudithook(record_write)
    from matplotlib.figure import Figure
    from PIL import Image

    from shiftvit.cli.main import main as command
    from shiftvit.data.batches.host import EpochBatches
    from shiftvit.training import fit
    from shiftvit.training.callbacks import Watch

    Figure.savefig = lambda _, path, **__: Image.new("RGB", (1, 1)).save(path, "PNG")
    prepare, begin, finish = EpochBatches._prepare, Watch.on_train_batch_begin, fit.finish_run

    def record_batch(self: Any, number: int) -> Any:
        images, labels = prepare(self, number)
        hashes = [
            hashlib.sha256(image.tobytes() + label.tobytes()).hexdigest()
            for image, label in zip(images, labels, strict=True)
        ]
        record["images"][f"{self.epoch_number} {number}"] = hashes
        return images, labels

    def cause_fault(self: Any, batch: int, logs: Any = None) -> None:
        fault = settings.get("fault")
        if fault and fault["rank"] == rank and [self.progress.epoch, self.first_step + batch] == fault["step"]:
            (Path(settings["record"]) / "fault").touch()
            if fault["kind"] == "wait":  # until the test has changed the network
                marker = Path(settings["record"]) / "waiting"
                marker.touch()
                while marker.exists():
                    time.sleep(0.05)
            elif fault["kind"] == "memory":
                settings["fault"] = None
                raise MemoryError
            elif fault["kind"] == "nan":
                self.losses.append((batch, float("nan")))
            else:
                os.kill(os.getpid(), fault["signal"])
        begin(self, batch, logs)

    def save_weights(run: Path, recipe: Any, dataset: Any, model: Any, *others: Any) -> Any:
        weights = {variable.path: np.asarray(variable) for variable in model.variables}
        np.savez(Path(settings["record"]) / f"weights{rank}.npz", **weights)
        return finish(run, recipe, dataset, model, *others)

    original = EpochBatches.__init__

    def record_epoch(self: Any, *arguments: Any, **named: Any) -> None:
        self.epoch_number = named["epoch"]
        original(self, *arguments, **named)

    EpochBatches.__init__, EpochBatches._prepare = record_epoch, record_batch
    Watch.on_train_batch_begin, fit.finish_run = cause_fault, save_weights
    sys.argv = ["shiftvit", "train", *settings["arguments"]]
    try:
        command()
    finally:
        record["tensorflow"] = "tensorflow" in sys.modules
        (Path(settings["record"]) / f"record{rank}.json").write_text(json.dumps(record))


def let_all_write_to_cache() -> None:
    """Lets every process of jax write compiled programs to the cache. By default only process 0 does."""
    from jax._src import compiler, distributed

    write, state = compiler._cache_write, distributed.global_state

    def write_always(*arguments: Any) -> None:
        rank, state.process_id = state.process_id, 0
        try:
            write(*arguments)
        finally:
            state.process_id = rank

    compiler._cache_write = write_always


def enter_network(name: str) -> None:
    """Moves this thread, and those that it starts, into a network namespace, as `ip netns exec` does."""
    with Path("/run/netns", name).open() as file:
        if ctypes.CDLL(None, use_errno=True).setns(file.fileno(), 0x40000000):  # CLONE_NEWNET
            raise OSError(ctypes.get_errno(), f"cannot enter the network {name}")


def fork_process(job: dict[str, Any], rank: int) -> int:
    """Forks a process of a training and returns its process ID."""
    child = os.fork()
    if child:
        return child
    status = 1
    try:
        output = os.open(job["outputs"][rank], os.O_WRONLY | os.O_CREAT | os.O_TRUNC)
        os.dup2(output, 1)
        os.dup2(output, 2)
        if job["networks"]:
            enter_network(job["networks"][rank])
        os.environ.update(job["environment"], RANK=str(rank), LOCAL_RANK=str(rank))
        try:
            main(json.loads(Path(job["settings"]).read_text()))
        except SystemExit as stop:
            status = int(stop.code or 0)
        sys.stdout.flush()
        atexit._run_exitfuncs()  # os._exit would leave them out
    except BaseException:
        traceback.print_exc()
        sys.stderr.flush()
    finally:
        os._exit(status)


def serve() -> None:
    import shiftvit.cli.main
    import shiftvit.training.fit  # noqa: F401

    if os.environ["KERAS_BACKEND"] == "jax":
        with contextlib.suppress(ImportError, AttributeError):  # another version of jax
            let_all_write_to_cache()
    for line in sys.stdin:
        job = json.loads(line)
        running = {fork_process(job, rank): rank for rank in range(len(job["outputs"]))}
        stopped: set[int] = set()  # by SIGSTOP
        status: list[int | None] = [None] * len(running)
        deadline = time.monotonic() + job["timeout"]
        while running:
            for child in [*running]:
                found, wait_status = os.waitpid(child, os.WNOHANG | os.WUNTRACED)
                if found and os.WIFSTOPPED(wait_status):
                    stopped.add(child)
                elif found:
                    status[running.pop(child)] = os.waitstatus_to_exitcode(wait_status)
                elif time.monotonic() > deadline or stopped.issuperset(running):
                    os.kill(child, signal.SIGKILL)
            time.sleep(0.02)
        print(json.dumps(status), flush=True)


if __name__ == "__main__":
    serve()
