"""One process of a training, for tests/test_processes.py: `process_worker.py SETTINGS.json`.

It trains as `shiftvit train` does, and records for the tests every image that it computed, its last weights, and every
file of the run that it opened for writing.

`process_worker.py serve` imports torch or jax once and then forks the processes of one training after the other. Each
line of JSON on standard input is a training. It answers with a line of the statuses of its processes.
"""

from __future__ import annotations

import atexit
import contextlib
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
        seen = [
            hashlib.sha256(image.tobytes() + label.tobytes()).hexdigest()
            for image, label in zip(images, labels, strict=True)
        ]
        record["images"][f"{self.epoch_number} {number}"] = seen
        return images, labels

    def cause_fault(self: Any, batch: int, logs: Any = None) -> None:
        at = settings.get("at")
        if at and at["rank"] == rank and [self.progress.epoch, self.first_step + batch] == at["step"]:
            (Path(settings["record"]) / "fault").touch()
            if at["what"] == "wait":  # until the test has changed the network
                marker = Path(settings["record"]) / "waiting"
                marker.touch()
                while marker.exists():
                    time.sleep(0.05)
            elif at["what"] == "memory":
                settings["at"] = None
                raise MemoryError
            elif at["what"] == "nan":
                self.losses.append((batch, float("nan")))
            else:
                os.kill(os.getpid(), int(at["what"]))
        begin(self, batch, logs)

    def save_weights(run: Path, recipe: Any, dataset: Any, model: Any, *others: Any) -> Any:
        weights = {variable.path: np.asarray(variable) for variable in model.variables}
        np.savez(Path(settings["record"]) / f"weights{rank}.npz", **weights)
        return finish(run, recipe, dataset, model, *others)

    original = EpochBatches.__init__

    def note_epoch(self: Any, *arguments: Any, **named: Any) -> None:
        self.epoch_number = named["epoch"]
        original(self, *arguments, **named)

    EpochBatches.__init__, EpochBatches._prepare = note_epoch, record_batch
    Watch.on_train_batch_begin, fit.finish_run = cause_fault, save_weights
    sys.argv = ["shiftvit", "train", *settings["arguments"]]
    try:
        command()
    finally:
        (Path(settings["record"]) / f"record{rank}.json").write_text(json.dumps(record))


def start(job: dict[str, Any], rank: int) -> int:
    """Forks a process of a training and returns its number."""
    child = os.fork()
    if child:
        return child
    status = 1
    try:
        said = os.open(job["said"][rank], os.O_WRONLY | os.O_CREAT | os.O_TRUNC)
        os.dup2(said, 1)
        os.dup2(said, 2)
        os.environ.update(job["environment"], RANK=str(rank), LOCAL_RANK=str(rank))
        try:
            main(json.loads(Path(job["settings"]).read_text()))
        except SystemExit as stop:
            status = int(stop.code or 0)
        sys.stdout.flush()
        atexit._run_exitfuncs()  # which a forked process would leave out
    except BaseException:
        traceback.print_exc()
        sys.stderr.flush()
    finally:
        os._exit(status)


def serve() -> None:
    import shiftvit.cli.main
    import shiftvit.training.fit  # noqa: F401

    with contextlib.suppress(ImportError):
        import tensorflow  # noqa: F401  (Keras looks into it where it is installed, which takes seconds)

    for line in sys.stdin:
        job = json.loads(line)
        left = {start(job, rank): rank for rank in range(len(job["said"]))}
        status: list[int | None] = [None] * len(left)
        end = time.monotonic() + job["within"]
        while left:
            for child in [*left]:
                found, how = os.waitpid(child, os.WNOHANG)
                if found:
                    status[left.pop(child)] = os.waitstatus_to_exitcode(how)
                elif time.monotonic() > end:
                    os.kill(child, signal.SIGKILL)
            time.sleep(0.02)
        print(json.dumps(status), flush=True)


if __name__ == "__main__":
    if sys.argv[1] == "serve":
        serve()
        sys.exit()
    main(json.loads(Path(sys.argv[1]).read_text()))
