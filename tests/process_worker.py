"""One process of a training, for tests/test_processes.py: `process_worker.py SETTINGS.json`.

It trains as `shiftvit train` does and records, in a file of its own, what the tests look at: every image that it
computed, the weights that it ended with, and every file of the run that it opened for writing.
"""

from __future__ import annotations

import hashlib
import json
import os
import sys
from pathlib import Path
from typing import Any

import numpy as np


def main(settings: dict[str, Any]) -> None:
    rank = int(os.environ.get("RANK", "0"))
    record: dict[str, Any] = {"images": {}, "written": []}
    run = str(Path(settings["run"]).resolve())

    def look(event: str, arguments: tuple[Any, ...]) -> None:
        writes = event in ("os.rename", "os.mkdir", "os.remove")
        writes |= event == "open" and bool((arguments[2] or 0) & (os.O_WRONLY | os.O_RDWR))
        if writes and str(arguments[0]).startswith(run):
            record["written"].append(Path(str(arguments[0])).name)

    sys.addaudithook(look)
    from matplotlib.figure import Figure
    from PIL import Image

    from shiftvit.backend import ensure_backend

    ensure_backend()
    from shiftvit.cli.main import main as command
    from shiftvit.data.batches.host import EpochBatches
    from shiftvit.training import fit
    from shiftvit.training.callbacks import Watch

    Figure.savefig = lambda _, path, **__: Image.new("RGB", (1, 1)).save(path, "PNG")
    prepare, begin, finish = EpochBatches._prepare, Watch.on_train_batch_begin, fit.finish_run

    def recorded(self: Any, number: int) -> Any:
        images, labels = prepare(self, number)
        seen = [
            hashlib.sha256(image.tobytes() + label.tobytes()).hexdigest()
            for image, label in zip(images, labels, strict=True)
        ]
        record["images"][f"{self.epoch_number} {number}"] = seen
        return images, labels

    def fault(self: Any, batch: int, logs: Any = None) -> None:
        at = settings.get("at")
        if at and at["rank"] == rank and [self.progress.epoch, self.first_step + batch] == at["step"]:
            if at["what"] == "memory":
                settings["at"] = None
                raise MemoryError
            if at["what"] == "nan":
                self.losses.append((batch, float("nan")))
            else:
                os.kill(os.getpid(), int(at["what"]))
        begin(self, batch, logs)

    def ended(run: Path, recipe: Any, dataset: Any, model: Any, *others: Any) -> Any:
        weights = {variable.path: np.asarray(variable) for variable in model.variables}
        np.savez(Path(settings["record"]) / f"weights{rank}.npz", **weights)
        return finish(run, recipe, dataset, model, *others)

    original = EpochBatches.__init__

    def begun(self: Any, *arguments: Any, **named: Any) -> None:
        self.epoch_number = named["epoch"]
        original(self, *arguments, **named)

    EpochBatches.__init__, EpochBatches._prepare = begun, recorded
    Watch.on_train_batch_begin, fit.finish_run = fault, ended
    sys.argv = ["shiftvit", "train", *settings["arguments"]]
    try:
        command()
    finally:
        (Path(settings["record"]) / f"record{rank}.json").write_text(json.dumps(record))


if __name__ == "__main__":
    main(json.loads(Path(sys.argv[1]).read_text()))
