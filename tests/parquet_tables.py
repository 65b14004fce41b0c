"""Writes Parquet files of real images in the format of the Hugging Face Hub."""

from __future__ import annotations

import io
import json

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from PIL import Image

from sample import load_sample

SAMPLE = load_sample()
NAMES = SAMPLE.class_names
IMAGE = pa.struct([("bytes", pa.binary()), ("path", pa.string())])
# The columns' `Features` of the `datasets` library.
CIFAR = {"img": {"_type": "Image"}, "label": {"names": [*NAMES], "_type": "ClassLabel"}}


def encode(pixels, form="PNG"):
    stream = io.BytesIO()
    Image.fromarray(pixels).save(stream, form)
    return stream.getvalue()


CHOSEN = np.sort(np.concatenate([np.flatnonzero(SAMPLE.train.labels == label)[:6] for label in range(10)]))
BLOBS = [encode(SAMPLE.train.images[index], ("PNG", "JPEG")[number % 2]) for number, index in enumerate(CHOSEN)]
LABELS = SAMPLE.train.labels[CHOSEN].tolist()


def write_parquet(path, features=None, rows=10, **columns):
    """Writes a table with the columns' features as JSON in its metadata, and returns its path."""
    metadata = {"huggingface": json.dumps({"info": {"features": features}})} if features is not None else None
    path.parent.mkdir(parents=True, exist_ok=True)
    pq.write_table(pa.table(columns).replace_schema_metadata(metadata), path, row_group_size=rows)
    return path


def make_structs(blobs):
    return pa.array(
        [None if blob is None else {"bytes": blob, "path": f"{n}.png"} for n, blob in enumerate(blobs)], IMAGE
    )


def write_cifar(path, chosen=slice(None), labels=None):
    return write_parquet(
        path, CIFAR, img=make_structs(BLOBS[chosen]), label=LABELS[chosen] if labels is None else labels
    )
