"""Runs the steps of many exports in one process. `shiftvit.exports.build` and `.gate` run each in its own.

    KERAS_BACKEND=tensorflow python tests/export_steps.py

Each line of standard input is a step and a job, such as `build /tmp/job.json`. It answers with a line of JSON: `said`,
the output of the step, or `fault`, the traceback. The output of libraries goes to standard error.
"""

from __future__ import annotations

import contextlib
import io
import json
import os
import sys
import traceback

from shiftvit.exports import build, gate

STEPS = {"build": build.main, "gate": gate.main}


def main() -> None:
    answers = os.fdopen(os.dup(1), "w")
    os.dup2(2, 1)
    for line in sys.stdin:
        step, job = line.rstrip("\n").split(" ", 1)
        said = io.StringIO()
        try:
            with contextlib.redirect_stdout(said):
                STEPS[step](job)
            answer = {"said": said.getvalue()}
        except Exception:
            answer = {"fault": traceback.format_exc()}
        print(json.dumps(answer), file=answers, flush=True)


if __name__ == "__main__":
    main()
