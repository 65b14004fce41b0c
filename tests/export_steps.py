"""Does the steps of many exports in one process, as `shiftvit.exports.build` and `.gate` do each in their own.

    KERAS_BACKEND=tensorflow python tests/export_steps.py

On each line of standard input it expects a step and a job, `build /tmp/job.json`, and answers with a line of JSON:
`said`, what the step printed, or `fault`, the traceback. What libraries print goes to standard error.
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
