"""How accurate is the model that the package comes with, through `Predictor` as users get it.

    python benchmarks/pretrained.py

Reads the 10,000 test images of CIFAR-10 once and writes benchmarks/results/pretrained-cifar10-DATE.json.
"""

from __future__ import annotations

import datetime
import json
from pathlib import Path

import numpy as np

from shiftvit import Bundle, Predictor
from shiftvit.bundle.bundle import PRETRAINED
from shiftvit.data import named
from shiftvit.environment import cores, processor_name, versions

RESULTS = Path(__file__).parent / "results"


def main() -> None:
    data = named.load("cifar10")
    predictor = Predictor.from_pretrained("cifar10")
    predictions = predictor(data.test.images, batch_size=100)
    predicted = np.array([predictor.labels.index(prediction.label) for prediction in predictions])
    bundle = Bundle.load("cifar10")
    result = {
        "command": "python benchmarks/pretrained.py",
        "date": datetime.date.today().isoformat(),
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
        "processor": processor_name(),
        "cores": cores(),
        "versions": versions(),
    }
    path = RESULTS / f"pretrained-cifar10-{result['date']}.json"
    path.write_text(json.dumps(result, indent=2) + "\n", "utf-8")
    print(f"top-1 {result['test_top1']:.2%} on {result['images']:,} images, wrote {path.name}")


if __name__ == "__main__":
    main()
