"""Runs the steps of many exports in one process. `shiftvit export` starts a new process for each step.

    KERAS_BACKEND=tensorflow python tests/export_steps.py

Each line of standard input is a step and a job, such as `build /tmp/job.json`. The answer is a line of JSON: either
`said`, the output of the step, or `fault`, the traceback. What libraries print goes to standard error.
"""

from __future__ import annotations

import contextlib
import hashlib
import io
import json
import os
import shutil
import sys
import tempfile
import traceback
from pathlib import Path
from typing import Any

import numpy as np

import shared
from shiftvit.exports import build, gate

STEPS = {"build": build.main, "gate": gate.main}


def describe(bundle: Any, metadata: Any, *arrays: Any) -> tuple[Any, ...]:
    """Returns a key for everything that the answers of a model depend on, and for further arrays."""
    digests = [hashlib.sha256(np.ascontiguousarray(array)).digest() for array in (*arrays, *bundle.weights.values())]
    return (bundle.config.model_dump_json(), metadata.input_shape, metadata.preprocess, bundle.temperature, *digests)


def share_references() -> None:
    """Makes all exports of a model on the same images share the model's own answers, which take seconds."""
    compute, known = build.compute_reference, {}

    def find_or_compute(bundle: Any, metadata: Any, images: Any) -> Any:
        key = describe(bundle, metadata, images)
        if key not in known:
            known[key] = compute(bundle, metadata, images)
        return known[key]

    build.compute_reference = find_or_compute


def share_plain_graphs() -> None:
    """Makes exports of a model share the plain graph that they begin with, as tracing takes most of the time."""
    write, known = build._write_onnx, {}

    def find_or_write(network: Any, bundle: Any, metadata: Any, path: Path, *, with_map: bool = False) -> None:
        key = (type(network), with_map, *describe(bundle, metadata))
        if key not in known:
            write(network, bundle, metadata, path, with_map=with_map)
            known[key] = path.read_bytes()
        path.write_bytes(known[key])

    build._write_onnx = find_or_write


def share_saved_models() -> None:
    """Makes the SavedModel and the LiteRT exports of a model share the SavedModel that they begin with."""
    write, known = build._write_saved_model, {}

    def find_or_write(bundle: Any, metadata: Any, path: Path) -> None:
        key = (build._choose_policy(metadata), *describe(bundle, metadata))
        if key not in known:
            place = Path(tempfile.mkdtemp(dir=shared.find_folder())) / "saved_model"
            write(bundle, metadata, place)
            known[key] = place
        shutil.copytree(known[key], path)

    build._write_saved_model = find_or_write


def main() -> None:
    share_references()
    share_plain_graphs()
    share_saved_models()
    gate._REPEATS = 1  # the speed is measured as usual, but briefly
    answers = os.fdopen(os.dup(1), "w")
    os.dup2(2, 1)
    for line in sys.stdin:
        step, job = line.rstrip("\n").split(" ", 1)
        output = io.StringIO()
        try:
            with contextlib.redirect_stdout(output):
                STEPS[step](job)
            answer = {"said": output.getvalue()}
        except Exception:
            answer = {"fault": traceback.format_exc()}
        print(json.dumps(answer), file=answers, flush=True)


if __name__ == "__main__":
    main()
