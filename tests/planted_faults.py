"""Faults for the graph of an exported model. Each function changes an `onnx.ModelProto` in place."""

from __future__ import annotations

import json

import numpy as np
import onnx

from shiftvit.bundle.metadata import KEY


def sort_weights(graph):
    """Returns the initializers, the largest first."""
    return sorted(graph.initializer, key=lambda tensor: -np.prod(tensor.dims))


def replace_input(graph, old, new, keep=()):
    """Renames an input of all nodes except those in `keep`."""
    for node in graph.node:
        if node.name not in keep:
            node.input[:] = [new if name == old else name for name in node.input]


def insert_node(graph, node, place=0):
    nodes = [*graph.node[:place], node, *graph.node[place:]]
    del graph.node[:]
    graph.node.extend(nodes)


def add_constant(graph, name, value):
    graph.initializer.append(onnx.numpy_helper.from_array(np.array(value), name))


def rewrite_metadata(model):
    """Writes the same metadata with another layout. This is not a fault: the gate must accept it."""
    for entry in model.metadata_props:
        if entry.key == KEY:
            entry.value = json.dumps(dict(reversed(json.loads(entry.value).items())), indent=1)


def scale_weights(model):
    tensor = sort_weights(model.graph)[0]
    values = onnx.numpy_helper.to_array(tensor) * np.array(1.05, np.float16)
    tensor.CopyFrom(onnx.numpy_helper.from_array(values, tensor.name))


def insert_nan(model):
    tensor = sort_weights(model.graph)[0]
    values = onnx.numpy_helper.to_array(tensor).copy()
    values.flat[0] = np.nan
    tensor.CopyFrom(onnx.numpy_helper.from_array(values, tensor.name))


def swap_colours(model):
    add_constant(model.graph, "order", [2, 1, 0])
    replace_input(model.graph, "images", "turned")
    insert_node(model.graph, onnx.helper.make_node("Gather", ["images", "order"], ["turned"], name="turn", axis=3))


def undo_normalisation(model):
    """Undoes the normalisation after the first cast, so that the model sees raw pixels."""
    graph, make = model.graph, onnx.helper.make_node
    metadata = next(json.loads(entry.value) for entry in model.metadata_props if entry.key == KEY)
    for name in ("mean", "std"):
        add_constant(graph, f"own_{name}", np.array(metadata["preprocess"][name], np.float32)[:, None, None])
    reader = next(node for node in graph.node if "images" in node.input)
    place, cast = next((at, node) for at, node in enumerate(graph.node) if reader.output[0] in node.input)
    replace_input(graph, cast.output[0], "raw", keep=(cast.name,))
    insert_node(graph, make("Add", ["spread", "own_mean"], ["raw"], name="move"), place + 1)
    insert_node(graph, make("Mul", [cast.output[0], "own_std"], ["spread"], name="spread"), place + 1)


def halve_in_large_batches(model):
    """Halves the answers in batches of more than 100 images."""
    graph, make = model.graph, onnx.helper.make_node
    for node in graph.node:
        node.output[:] = ["right" if name == "probabilities" else name for name in node.output]
    add_constant(graph, "hundred", [100])
    add_constant(graph, "half", np.float32(0.5))
    add_constant(graph, "whole", np.float32(1))
    graph.node.extend(
        [
            make("Shape", ["images"], ["count"], start=0, end=1),
            make("Greater", ["count", "hundred"], ["many"]),
            make("Where", ["many", "half", "whole"], ["factor"]),
            make("Mul", ["right", "factor"], ["probabilities"]),
        ]
    )


def reverse_labels(model):
    for entry in model.metadata_props:
        if entry.key == KEY:
            tree = json.loads(entry.value)
            entry.value = json.dumps(tree | {"labels": tree["labels"][::-1]})
