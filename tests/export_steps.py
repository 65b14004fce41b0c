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
import traceback
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np

import shared
from shiftvit.exports import build, gate

STEPS = {"build": build.main, "gate": gate.main}


def share(kind: str, make: Callable[[Path], None], *inputs: Any) -> Path:
    """Returns a folder that `make` has filled, once in a test run for each kind and inputs."""
    return shared.make_once(f"{kind}-{hashlib.sha256(repr(inputs).encode()).hexdigest()}", make)


def describe(bundle: Any, metadata: Any, *arrays: Any) -> tuple[Any, ...]:
    """Returns everything that the answers of a model depend on, with digests in place of its weights and the arrays."""
    digests = [hashlib.sha256(np.ascontiguousarray(array)).hexdigest() for array in (*arrays, *bundle.weights.values())]
    return (bundle.config.model_dump_json(), metadata.input_shape, metadata.preprocess, bundle.temperature, *digests)


def share_parts() -> None:
    """Makes the exports of a model share what is the same in several: the model's own answers and the plain graphs."""
    compute, write_onnx, write_saved_model = build.compute_reference, build._write_onnx, build._write_saved_model

    def find_or_compute(bundle: Any, metadata: Any, images: Any) -> Any:
        def make(place: Path) -> None:
            np.save(place / "answers.npy", compute(bundle, metadata, images))

        return np.load(share("answers", make, *describe(bundle, metadata, images)) / "answers.npy")

    def find_or_write_onnx(network: Any, bundle: Any, metadata: Any, path: Path, *, with_map: bool = False) -> None:
        def make(place: Path) -> None:
            write_onnx(network, bundle, metadata, place / "plain.onnx", with_map=with_map)

        inputs = (type(network).__name__, with_map, *describe(bundle, metadata))
        shutil.copyfile(share("onnx", make, *inputs) / "plain.onnx", path)

    def find_or_write_saved_model(bundle: Any, metadata: Any, path: Path) -> None:
        def make(place: Path) -> None:
            write_saved_model(bundle, metadata, place / "saved_model")

        inputs = (build._choose_policy(metadata), *describe(bundle, metadata))
        shutil.copytree(share("saved_model", make, *inputs) / "saved_model", path)

    build.compute_reference = find_or_compute
    build._write_onnx, build._write_saved_model = find_or_write_onnx, find_or_write_saved_model


def main() -> None:
    share_parts()
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
