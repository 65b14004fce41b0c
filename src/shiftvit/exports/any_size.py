"""Puts the preprocessing into an ONNX graph, so that it takes uint8 images of any size.

In ONNX Runtime, ONNX's own `Resize` with antialiasing differs from Pillow's by several levels (docs/export.md), and
other runtimes may differ again. Resizing is linear in the pixels, so the graph does it as two matrix products. Their
matrices follow Pillow's definition: a filter stretched to the ratio of the sizes, whose weights are divided by their
sum. They have rows only for the pixels that the crop keeps, and `Metadata.check_sides` bounds their columns.
"""

from __future__ import annotations

import re
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from shiftvit.bundle.metadata import KEY, Metadata
from shiftvit.preprocess import Preprocess, make_pair

# The heights and widths of images for the gate: to enlarge, to shrink, odd, elongated, and the size of the model.
_SIZES = (
    (1, 1), (2, 3), (7, 9), (16, 16), (31, 33), (32, 32), (33, 47), (48, 48), (50, 20), (64, 65), (80, 127), (96, 96),
    (100, 300), (127, 80), (150, 150), (199, 211), (223, 225), (224, 224), (225, 223), (240, 320), (256, 256),
    (257, 300), (300, 257), (320, 240), (333, 500), (500, 333), (511, 512), (120, 720), (640, 480), (768, 1024),
)  # fmt: skip
_OPSET = 20
_NUMBERS = {
    "zero": 0.0, "half": 0.5, "one": 1.0, "one_and_a_half": 1.5, "two": 2.0, "two_and_a_half": 2.5, "four": 4.0
}  # fmt: skip
_FILTERS = {
    "nearest": """
  chosen = Floor(centres)
  own = Floor(places)
  same = Equal(own, chosen)
  weights = Cast<to=11>(same)
""",
    "bilinear": """
  rest = Sub(one, x)
  weights = Max(rest, zero)
""",
    # Keys' cubic convolution with a = -0.5: 1.5 x^3 - 2.5 x^2 + 1 up to 1, -0.5 x^3 + 2.5 x^2 - 4 x + 2 up to 2
    "bicubic": """
  x2 = Mul(x, x)
  n1 = Mul(x, one_and_a_half)
  n2 = Sub(n1, two_and_a_half)
  n3 = Mul(n2, x2)
  near = Add(n3, one)
  f1 = Mul(x, half)
  f2 = Sub(two_and_a_half, f1)
  f3 = Mul(f2, x)
  f4 = Sub(f3, four)
  f5 = Mul(f4, x)
  far = Add(f5, two)
  is_near = Less(x, one)
  is_far = Less(x, two)
  outer = Where(is_far, far, zero)
  weights = Where(is_near, near, outer)
""",
}


def accept_any_size(path: Path, rule: Preprocess, metadata: Metadata) -> None:
    """Rewrites a finished graph of one input size so that it takes images of any size, uint8 (N, H, W, 3).

    Args:
        path: the graph.
        rule: its preprocessing; mean and std are in the graph already.
        metadata: the metadata to store in the graph.
    """
    import onnx
    import onnx.compose
    import onnx.inliner

    model = onnx.load(path)
    front = onnx.parser.parse_model(_write_front(rule, model.ir_version))
    front.functions.append(onnx.parser.parse_function(_write_weights(rule.interpolation)))
    front = onnx.inliner.inline_local_functions(front)
    # The prefixes keep its names apart from the model's.
    front = onnx.compose.add_prefix(front, "front.", rename_inputs=False, rename_outputs=False)
    labels = {entry.key: entry.value for entry in model.metadata_props}
    del model.metadata_props[:]
    inner = onnx.compose.add_prefix(model, "model.", rename_nodes=False, rename_outputs=False)
    merged = onnx.compose.merge_models(front, inner, io_map=[("pixels", "model.images")])
    onnx.helper.set_model_props(merged, {**labels, KEY: metadata.dump()})
    merged.producer_name = model.producer_name
    merged.graph.name = model.graph.name
    onnx.checker.check_model(merged, full_check=True)
    onnx.save(merged, path)


def make_images(images: NDArray[np.uint8]) -> list[NDArray[np.uint8]]:
    """Returns an image of each size that the gate compares, made from images (N, h, w, 3)."""
    from PIL import Image

    return [
        np.asarray(Image.fromarray(images[index % len(images)]).resize((width, height), Image.Resampling.BICUBIC))
        for index, (height, width) in enumerate(_SIZES)
    ]


def _write_front(rule: Preprocess, ir_version: int) -> str:
    """Returns the graph from images of any size to the model's input, in ONNX's text format."""
    assert rule.crop is not None or isinstance(rule.resize, tuple)  # `fitted` ensures it
    height, width = crop = make_pair(rule.crop or rule.resize or 1)
    if isinstance(rule.resize, tuple):
        target = f"target = Constant<value_ints=[{rule.resize[0]}, {rule.resize[1]}]>()"
    else:  # the shorter side; fractions of a pixel are cut off
        target = f"""side = ReduceMin<keepdims=1>(shape)
  shorter = Constant<value_ints=[{rule.resize}]>()
  scaled = Mul(shape, shorter)
  proportional = Div(scaled, side)
  longer = Constant<value_int={crop.index(max(crop))}>()
  least = Constant<value_int={max(crop)}>()
  reached = Gather(proportional, longer)
  is_short = Less(reached, least)
  own = Gather(shape, longer)
  enlarged = Mul(shape, least)
  covering = Div(enlarged, own)
  target = Where(is_short, covering, proportional)"""  # `covering` has the longer side of the crop
    # A constant that no node uses makes ONNX Runtime warn.
    start = (
        "two = Constant<value_ints=[2]>()\n  start = Div(margin, two)"
        if rule.crop_position == "center"
        else "start = Sub(margin, margin)"
    )
    return f"""<ir_version: {ir_version}, opset_import: ["" : {_OPSET}, "shiftvit" : 1]>
front (uint8[batch, height, width, 3] images) => (uint8[batch, {height}, {width}, 3] pixels) {{
  floats = Cast<to=1>(images)
  planes = Transpose<perm=[0, 3, 1, 2]>(floats)
  shape = Shape<start=1, end=3>(images)
  {target}
  first = Constant<value_int=0>()
  second = Constant<value_int=1>()
  old_height = Gather(shape, first)
  old_width = Gather(shape, second)
  new_height = Gather(target, first)
  new_width = Gather(target, second)
  crop = Constant<value_ints=[{height}, {width}]>()
  margin = Sub(target, crop)
  {start}
  top = Gather(start, first)
  left = Gather(start, second)
  rows = Gather(crop, first)
  columns = Gather(crop, second)
  down = shiftvit.weights(old_height, new_height, top, rows)
  along = shiftvit.weights(old_width, new_width, left, columns)
  across = Transpose<perm=[1, 0]>(along)
  narrowed = MatMul(planes, across)
  cropped = MatMul(down, narrowed)
  rounded = Round(cropped)
  black = Constant<value_float=0.0>()
  white = Constant<value_float=255.0>()
  clipped = Clip(rounded, black, white)
  narrow = Cast<to=2>(clipped)
  pixels = Transpose<perm=[0, 2, 3, 1]>(narrow)
}}"""


def _write_weights(interpolation: str) -> str:
    """Returns a function that makes the matrix (count, old length) to resize and crop, in ONNX's text format.

    It computes in float64, as Pillow does; lower precision could round a pixel differently.
    """
    needed = {"half", "one", *re.findall(r"\w+", _FILTERS[interpolation])}
    constants = "\n  ".join(
        f"{name} = Constant<value = double {{{value}}}>()" for name, value in _NUMBERS.items() if name in needed
    )
    return f"""<domain: "shiftvit", opset_import: ["" : {_OPSET}]>
weights (old_length, new_length, start, count) => (matrix)
{{
  {constants}
  old = Cast<to=11>(old_length)
  new = Cast<to=11>(new_length)
  ratio = Div(old, new)
  stretch = Max(ratio, one)
  first_row = Cast<to=11>(start)
  row_count = Cast<to=11>(count)
  begin = Add(first_row, half)
  end = Add(begin, row_count)
  rows = Range(begin, end, one)
  rows_of_old = Mul(rows, old)
  row_centres = Div(rows_of_old, new)
  last = Constant<value_ints=[1]>()
  centres = Unsqueeze(row_centres, last)
  places = Range(half, old, one)
  apart = Sub(places, centres)
  distance = Abs(apart)
  x = Div(distance, stretch)
  {_FILTERS[interpolation]}
  total = ReduceSum<keepdims=1>(weights, last)
  shares = Div(weights, total)
  matrix = Cast<to=1>(shares)
}}"""


def remove_size(metadata: Metadata) -> Metadata:
    """Returns the metadata of a graph that does all preprocessing itself."""
    rule = metadata.preprocess.model_copy(update={"resize": None, "crop": None})
    return metadata.model_copy(update={"preprocess": rule, "input_shape": (None, None, 3)})
