"""Measures the accuracy of the packaged model through `Predictor`, as users get it.

    python benchmarks/pretrained.py

Reads the 10,000 test images of CIFAR-10 once and writes benchmarks/results/pretrained-cifar10-DATE.json.
"""

from __future__ import annotations

import numpy as np

from record import write_record
from shiftvit import Bundle, Predictor
from shiftvit.bundle.stored.find import PRETRAINED
from shiftvit.data import named


def main() -> None:
    data = named.load("cifar10")
    predictor = Predictor.from_pretrained("cifar10")
    predictions = predictor(data.test.images, batch_size=100)
    predicted = np.array([predictor.labels.index(prediction.label) for prediction in predictions])
    bundle = Bundle.load("cifar10")
    result = {
        "n": 1,
        "images": len(predicted),
        "test_top1": float((predicted == data.test.labels).mean()),
        "per_class": {
            name: float((predicted[data.test.labels == index] == index).mean())
            for index, name in enumerate(data.class_names)
        },
        "parameters": sum(value.size for value in bundle.weights.values()),
        "bytes": {path.name: path.stat().st_size for path in sorted((PRETRAINED / "cifar10").iterdir())},
        "runtime": predictor.runtime,
        "training": bundle.metrics,
    }
    print(f"top-1 {result['test_top1']:.2%} on {result['images']:,} images")
    write_record("pretrained-cifar10", result)


if __name__ == "__main__":
    main()
