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
import sys
import traceback
from typing import Any

import numpy as np

from shiftvit.exports import build, gate

STEPS = {"build": build.main, "gate": gate.main}


def share_references() -> None:
    """Makes all exports of a model on the same images share the model's own answers, which take seconds."""
    compute, known = build.compute_reference, {}

    def find_or_compute(bundle: Any, metadata: Any, images: Any) -> Any:
        arrays = [images, *bundle.weights.values()]
        digests = [hashlib.sha256(np.ascontiguousarray(array)).digest() for array in arrays]
        key = (bundle.config.model_dump_json(), metadata.preprocess, bundle.temperature, *digests)
        if key not in known:
            known[key] = compute(bundle, metadata, images)
        return known[key]

    build.compute_reference = find_or_compute


def main() -> None:
    share_references()
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
