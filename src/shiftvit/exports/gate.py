"""The parity gate: runs an artifact in a fresh process and compares it with the model that it came from.

    python -m shiftvit.exports.gate JOB.json

The job names the artifact, its format and precision, the metadata that it must carry, a folder with the images and
their labels if known, and an .npz with the model's own answers. Optional are `enough`, the number of labelled images
needed for a narrow precision, and `seconds`, the least time for a measurement of speed, where 0 means none. It prints
the result as JSON; `faults` is empty if the artifact passes.
"""

from __future__ import annotations

import json
import sys
import warnings
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from shiftvit.bundle.metadata import Metadata, fit_batch
from shiftvit.environment import measure_rates
from shiftvit.errors import ShiftViTError, pluralize
from shiftvit.exports.arrays import open_arrays
from shiftvit.exports.saturation import find_saturation, read_products
from shiftvit.inference.runtimes import Graph, load_graph

# The largest difference of a probability in float32.
MAX_DIFFERENCE = 1e-4
# The same for a graph that resizes, which may round a pixel differently. The class must be the same.
MAX_DIFFERENCE_OF_SIZES = 2e-3
# The largest distance of the sum of an image's probabilities from 1.
MAX_EXCESS = 1e-3
# The image of another size whose speed is measured, 240 x 320 pixels.
_SHOWN_SIZE = 19
# Points of top-1 and top-5 that a narrower precision may lose, and the images needed to measure that.
MAX_LOSS, MIN_IMAGES = 0.5, 2000
_BATCH = 64
# The largest batch that is tried, if `fit_batch` allows it.
_LARGEST_BATCH = 257
_REPEATS, _SECONDS = 5, 0.3


def main(job_file: str) -> None:
    """Runs the job."""
    warnings.simplefilter("ignore")
    job = json.loads(Path(job_file).read_text("utf-8"))
    saved = open_arrays(job["images"])
    images, labels = saved["images"], saved.get("labels")
    sized = [array for name, array in saved.items() if name.startswith("sized")]
    with np.load(job["reference"]) as arrays:
        expected = arrays["probabilities"]
    graph = load_graph(job["artifact"], job["runtime"], job["threads"])
    if sized:
        found, limit = np.concatenate([graph.run(image[None]) for image in sized]), MAX_DIFFERENCE_OF_SIZES
        sample, answers = sized[_SHOWN_SIZE][None], found[_SHOWN_SIZE : _SHOWN_SIZE + 1]
    else:
        found = np.concatenate([graph.run(images[first : first + _BATCH]) for first in range(0, len(images), _BATCH)])
        limit, sample, answers = MAX_DIFFERENCE, images, found
    report = compare(found, expected, labels, job["precision"], job.get("enough", MIN_IMAGES), limit)
    if graph.metadata != Metadata.parse(job["metadata"], "the job"):
        report["faults"].append("its metadata are not the model's")
    report["faults"] += _check_sizes(graph, sample, answers, job["precision"])
    if job["precision"] == "int8":
        report["int8_products"], faults = _check_products(Path(job["artifact"]), job["format"])
        report["faults"] += faults
    report["runtime"] = graph.runtime
    if not report["faults"] and (seconds := job.get("seconds", _SECONDS)):
        report["images_per_second"] = {str(size): _measure_rate(graph, sample, size, seconds) for size in (1, _BATCH)}
    print(json.dumps(report))


def compare(
    found: NDArray[np.float32],
    expected: NDArray[np.float32],
    labels: NDArray[Any] | None,
    precision: str,
    enough: int = MIN_IMAGES,
    limit: float = MAX_DIFFERENCE,
) -> dict[str, Any]:
    """Compares probabilities (N, C) with the model's own.

    Args:
        found, expected: the artifact's answers and the model's.
        labels: whole numbers (N,), or None.
        precision: of the artifact.
        enough: the number of labelled images needed for a narrow precision. It may be below `MIN_IMAGES` if there are
            no more. With fewer than 200 images one more wrong answer is allowed, because less cannot be measured.
        limit: the largest difference of a probability in float32. Above the usual limit the classes must be equal.

    Returns:
        `images`, `max_difference`, `top1_agreement`, with labels also `top1`, `top1_model`, `top1_change` and
        `top1_change_error` (half of its 95% interval, both in points), with labels of more than five classes also
        `top5` and `top5_model`, and `faults`, a line for each broken rule.
    """
    if found.shape != expected.shape:
        fault = f"it returns an array of shape {found.shape}, but the model {expected.shape}"
        return {"images": len(expected), "faults": [fault]}
    for who, answers in (("it", found), ("the model itself", expected)):
        if not np.isfinite(answers).all():
            return {"images": len(expected), "faults": [f"{who} returns numbers that are not finite"]}
    difference = float(np.abs(found.astype(np.float64) - expected).max())
    predicted, own = found.argmax(axis=1), expected.argmax(axis=1)
    report: dict[str, Any] = {
        "images": len(expected),
        "max_difference": difference,
        "top1_agreement": float((predicted == own).mean()),
    }
    faults, lost, lost5 = [], 0, 0
    sums = found.sum(axis=1, dtype=np.float64)
    worst = float(sums[np.abs(sums - 1).argmax()])
    if abs(worst - 1) > MAX_EXCESS:
        faults.append(f"the probabilities of an image add up to {worst:.4f}; it must be 1 within {MAX_EXCESS:.0e}")
    if labels is not None:
        lost = int((own == labels).sum() - (predicted == labels).sum())
        top1, top1_model = float((predicted == labels).mean()), float((own == labels).mean())
        change = 100 * (top1 - top1_model)
        # Only images that exactly one of the two gets right count. If there are none, the rule of three allows for 3.
        moved = int(((predicted == labels) != (own == labels)).sum())
        error = 100 * max(1.96 * moved**0.5, 3) / max(len(labels), 1)
        report |= {"top1": top1, "top1_model": top1_model}
        report |= {"top1_change": round(change, 4), "top1_change_error": round(error, 4)}
        if found.shape[1] > 5:
            hits, hits_model = _find_top5(found, labels), _find_top5(expected, labels)
            lost5 = int(hits_model.sum() - hits.sum())
            report |= {"top5": float(hits.mean()), "top5_model": float(hits_model.mean())}
    if precision == "f32":
        if difference > limit:
            faults.append(f"a probability differs by {difference:.1e}; in float32 at most {limit:.0e} is allowed")
        if limit > MAX_DIFFERENCE and not (predicted == own).all():
            faults.append(f"{pluralize(int((predicted != own).sum()), 'image')} of another size get another class")
    elif shortage := find_shortage(labels, precision, enough):
        faults.append(shortage)
    elif 100 * lost > max(MAX_LOSS * len(found), 100):
        faults.append(f"top-1 falls by {-report['top1_change']:.2f} points; {precision} may cost at most {MAX_LOSS}")
    elif 100 * lost5 > max(MAX_LOSS * len(found), 100):
        faults.append(f"top-5 falls by {100 * lost5 / len(found):.2f} points; {precision} may cost at most {MAX_LOSS}")
    return report | {"faults": faults}


def _find_top5(probabilities: NDArray[np.float32], labels: NDArray[Any]) -> NDArray[np.bool_]:
    """Returns for each image whether its class is surely among the first five; equal probabilities count against it."""
    own = np.take_along_axis(probabilities, labels[:, None].astype(np.intp), axis=1)
    return np.asarray((probabilities >= own).sum(axis=1) <= 5)


def find_shortage(labels: NDArray[Any] | None, precision: str, enough: int) -> str | None:
    """Returns a fault if there are fewer labelled images than a narrow precision needs."""
    have = 0 if labels is None else len(labels)
    if precision == "f32" or have >= enough:
        return None
    return f"{pluralize(have, 'labelled image')} cannot measure what {precision} costs; at least {enough} are needed"


def _check_products(artifact: Path, format: str) -> tuple[int, list[str]]:
    """Returns how many int8 products an artifact has, and a fault if one can saturate."""
    try:
        products = read_products(artifact, format)
    except ShiftViTError as error:
        return 0, [str(error)]
    fault = find_saturation(products)
    return len(products), [fault] if fault else []


def _check_sizes(graph: Graph, images: NDArray[np.uint8], found: NDArray[np.float32], precision: str) -> list[str]:
    """Returns the faults of batch sizes other than the one that was compared."""
    faults = []
    # In low precision, another batch size can change a rounding, so the limit is wide.
    limit = MAX_DIFFERENCE if precision == "f32" else 0.1
    for size in (1, min(_LARGEST_BATCH, max(fit_batch(*images.shape[1:3]), 2) | 1)):
        batch = np.resize(images[:size], (size, *images.shape[1:]))
        difference = np.abs(graph.run(batch) - np.resize(found[:size], (size, found.shape[1]))).max()
        if not difference <= limit:
            faults.append(
                f"in a batch of {size} a probability differs by {difference:.1e} from that in a batch of {_BATCH}"
            )
    return faults


def _measure_rate(graph: Graph, images: NDArray[np.uint8], size: int, least: float) -> float:
    """Returns images/s in batches of `size`: the median of 5 repeats of at least `least` seconds."""
    batch = np.resize(images[:size], (size, *images.shape[1:]))
    return round(float(np.median(measure_rates(lambda: graph.run(batch), size, _REPEATS, least))), 1)


if __name__ == "__main__":
    main(sys.argv[1])
