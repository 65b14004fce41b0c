"""The two forms of the shift on torch, forward and backward, timed in turn.

    KERAS_BACKEND=torch python benchmarks/shift.py

Maps of the recipe `quick`'s three stages at batch 250, bfloat16; medians of 31 pairs. The result goes to
benchmarks/results/shift-DATE.json.
"""

from __future__ import annotations

import statistics
import time

import torch

from record import write_record
from shiftvit.model.shift import _shift_by_convolution, _shift_by_slices

FORMS = {"slices": _shift_by_slices, "convolution": _shift_by_convolution}


def time_form(form: str, x: torch.Tensor, group: int) -> float:
    leaf = x.clone().requires_grad_()
    began = time.perf_counter()
    FORMS[form](leaf, group, 1).backward(x)
    return time.perf_counter() - began


def main() -> None:
    rows = []
    for side, channels in ((16, 64), (8, 128), (4, 256)):
        x = torch.randn(250, side, side, channels, dtype=torch.bfloat16)
        pairs = [{form: time_form(form, x, channels // 12) for form in FORMS} for _ in range(34)][3:]
        median = {form: statistics.median(pair[form] for pair in pairs) for form in FORMS}
        ratio = statistics.median(pair["slices"] / pair["convolution"] for pair in pairs)
        rows.append({"shape": list(x.shape), "seconds": median, "slices_over_convolution": round(ratio, 2)})
        print(rows[-1])
    write_record("shift", {"n": 31, "rows": rows})


if __name__ == "__main__":
    main()
