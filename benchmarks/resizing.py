"""Compares graphs that resize images, and ONNX's own `Resize`, with the package's preprocessing.

    python benchmarks/resizing.py

Random images of several sizes are resized to a shorter side of 32 and 256 and cropped: by the operations that
`shiftvit export --any-size` puts before a graph, and by `Resize` with antialiasing, both in ONNX Runtime. Then the
packaged model is exported with `--any-size`, and the figures of its gate are added. The result goes to
benchmarks/results/resizing-DATE.json.
"""

from __future__ import annotations

import json
import tempfile
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import onnxruntime

from record import write_record
from shiftvit.bundle.metadata import Metadata
from shiftvit.exports.any_size import accept_any_size, remove_size
from shiftvit.exports.export import REPORT, export
from shiftvit.preprocess import Preprocess

SIZES = ((7, 9), (33, 47), (224, 224), (256, 256), (256, 300), (375, 500), (100, 900), (1200, 800))
MODES = {"bilinear": 'mode="linear"', "bicubic": 'mode="cubic", cubic_coeff_a=-0.5'}


def make_front_session(rule: Preprocess, folder: Path) -> Any:
    """Returns a session with the package's front before a graph that does nothing."""
    height, width = rule.output_shape(64, 64)
    shape = f"uint8[batch, {height}, {width}, 3]"
    inner = onnx.parser.parse_model(
        f'<ir_version: 10, opset_import: ["" : 20]> inner ({shape} images) => ({shape} probabilities) '
        "{ probabilities = Identity(images) }"
    )
    onnx.save(inner, folder / "graph.onnx")
    metadata = Metadata(labels=("a",), preprocess=rule, input_shape=(height, width, 3))
    accept_any_size(folder / "graph.onnx", rule, remove_size(metadata))
    return onnxruntime.InferenceSession(folder / "graph.onnx")


def make_resize_session(interpolation: str) -> Any:
    """Returns a session with ONNX's operation alone, to a given size."""
    return onnxruntime.InferenceSession(
        onnx.parser.parse_model(
            f"""<ir_version: 10, opset_import: ["" : 20]>
            resize (float[batch, 3, height, width] images, int64[4] sizes) => (float[batch, 3, h, w] resized) {{
              resized = Resize<{MODES[interpolation]}, antialias=1, coordinate_transformation_mode="half_pixel">
                (images, , , sizes)
            }}"""
        ).SerializeToString()
    )


def compare(rule: Preprocess, folder: Path) -> list[dict[str, Any]]:
    rng = np.random.default_rng(0)
    products, resize = make_front_session(rule, folder), make_resize_session(rule.interpolation)
    rows = []
    for height, width in SIZES:
        images = rng.integers(0, 256, (1, height, width, 3), dtype=np.uint8)
        expected = rule.pixels(images).astype(int)
        sizes = np.array([1, 3, *rule.resized_shape(height, width)], np.int64)
        planes = resize.run(None, {"images": images.transpose(0, 3, 1, 2).astype(np.float32), "sizes": sizes})[0]
        alone = rule.rounded(rule.cropped(planes.transpose(0, 2, 3, 1))).astype(int)
        found = products.run(None, {"images": images})[0].astype(int)
        exact = np.clip(rule.cropped(rule.resized(images)), 0, 255)
        rows.append(
            {
                "interpolation": rule.interpolation,
                "shorter_side": rule.resize,
                "image": [height, width],
                "levels_by_products": int(np.abs(found - expected).max()),
                "from_the_exact_value": round(float(np.abs(found - exact).max()), 6),
                "levels_by_resize": int(np.abs(alone - expected).max()),
            }
        )
    return rows


def main() -> None:
    rows = []
    with tempfile.TemporaryDirectory() as place:
        for interpolation in MODES:
            for side, crop in ((32, 32), (256, 224)):
                rule = Preprocess(resize=side, crop=crop, crop_position="center", interpolation=interpolation)
                rows += compare(rule, Path(place))
        report = json.loads((export("cifar10", "onnx", any_size=True, out=Path(place) / "any") / REPORT).read_text())
    result = {
        "largest_difference": {
            "levels_by_products": max(row["levels_by_products"] for row in rows),
            "levels_by_resize": max(row["levels_by_resize"] for row in rows),
        },
        "packaged_model": {name: report[name] for name in ("images", "max_difference", "top1_agreement")},
        "rows": rows,
    }
    print(json.dumps({name: value for name, value in result.items() if name != "rows"}))
    write_record("resizing", result)


if __name__ == "__main__":
    main()
