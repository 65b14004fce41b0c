"""Measures a model under common corruptions, and averages the results."""

from __future__ import annotations

import itertools
from collections.abc import Iterable
from typing import Any

import numpy as np
from numpy.typing import NDArray

from shiftvit.console import Bar
from shiftvit.data.find.dataset import Split
from shiftvit.evaluation.corruptions import CORRUPTIONS, EXTRAS, corrupt
from shiftvit.evaluation.logits import predict_logits
from shiftvit.evaluation.metrics import measure
from shiftvit.preprocess import Preprocess

# The number of test images to corrupt, 85 times each. Sampling moves an accuracy by about one point.
_CORRUPTED = 1000
SEVERITIES = range(1, 6)


def measure_corrupted(model: Any, split: Split) -> list[dict[str, Any]]:
    """Measures a model on up to 1,000 images of a split, which are always the same, under each corruption.

    Returns:
        a row for the original images, of severity 0, and for each corruption and severity: "corruption", "family",
        "severity", "top1", "loss", "n".
    """
    chosen = np.sort(np.random.default_rng(0).permutation(len(split))[:_CORRUPTED])
    clean, truth, rule = split.images[chosen], split.labels[chosen], split.preprocess
    rows = [{"corruption": "none", "family": "none", "severity": 0, **_measure_images(model, clean, truth, rule)}]
    with Bar("corrupting", len(SEVERITIES) * len(CORRUPTIONS)) as bar:
        for name, family in CORRUPTIONS.items():
            for severity in SEVERITIES:
                bar.update(len(rows) - 1, what=f"corrupting: {name}, severity {severity}")
                found = _measure_images(model, corrupt(clean, name, severity), truth, rule)
                rows.append({"corruption": name, "family": family, "severity": severity, **found})
    return rows


def average_corruptions(rows: list[dict[str, Any]]) -> dict[str, Any]:
    """Averages top-1 over the 15 corruptions of the benchmark; the extra ones do not count.

    It is not the mCE of Hendrycks and Dietterich, which divides the errors by those of AlexNet.

    Args:
        rows: as `measure_corrupted` returns them.

    Returns:
        "top1", the mean over all corruptions and severities; "by_severity" and "by_family", the means of each;
        "corruptions", the number of corruptions; "n", the number of images.
    """
    found = {(row["corruption"], row["severity"]): row["top1"] for row in rows}
    benchmark = {name: family for name, family in CORRUPTIONS.items() if name not in EXTRAS}

    def average(names: Iterable[str] = benchmark, severities: Iterable[int] = SEVERITIES) -> float:
        return float(np.mean([found[cell] for cell in itertools.product(names, severities)]))

    families = {family: [name for name in benchmark if benchmark[name] == family] for family in benchmark.values()}
    return {
        "top1": average(),
        "by_severity": {str(severity): average(severities=[severity]) for severity in SEVERITIES},
        "by_family": {family: average(names) for family, names in families.items()},
        "corruptions": len(benchmark),
        "n": rows[0]["n"],
    }


def _measure_images(model: Any, images: Any, labels: NDArray[Any], rule: Preprocess) -> dict[str, Any]:
    found = measure(predict_logits(model, images, rule), labels)
    return {key: found[key] for key in ("top1", "loss", "n")}
