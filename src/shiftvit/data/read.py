"""Reads the files of a data set: decodes each once, and reports and leaves out those that cannot be decoded."""

from __future__ import annotations

from dataclasses import replace

from shiftvit.console import Bar
from shiftvit.data.batches.pictures import read_pictures
from shiftvit.data.decode.rows import unpack
from shiftvit.data.find.dataset import Dataset, Split
from shiftvit.errors import ShiftViTError, pluralize, report_skipped
from shiftvit.preprocess import Preprocess, make_pair


def read_dataset(data: Dataset, preprocess: Preprocess, *, boxes: bool = False, training: bool = True) -> Dataset:
    """Decodes every file of a data set once. Arrays stay as they are.

    Training pictures are resized and cropped to one shape; random crops are taken from the result. All others get the
    whole of `preprocess`, as at inference. A split whose pictures need too much memory decodes them again at each use.

    Args:
        data: splits of paths, or of arrays.
        preprocess: its `resize` must be set unless the images are arrays.
        boxes: random resized crops will be cut from the training pictures, so these stay whole, in their files.
        training: whether a model is trained on the split "train". False: it is only evaluated, like all others.

    Returns:
        the same splits with `images` and the remaining `preprocess`. Files that cannot be decoded are reported in a
        notice and left out.

    Raises:
        ShiftViTError: no size is set, or no file of a split can be decoded.
    """
    if all(split.images is not None for split in data.splits.values()):
        return replace(
            data, splits={name: replace(split, preprocess=preprocess) for name, split in data.splits.items()}
        )
    side = preprocess.resize
    # Training pictures are cropped to what is resized, so that they have one shape and a margin for random crops.
    least = make_pair(preprocess.crop or 1)
    square = (max(side, least[0]), max(side, least[1])) if isinstance(side, int) else side
    margin = preprocess.model_copy(update={"crop": square})
    rest = preprocess.rest
    left = {"train": rest.model_copy(update={"crop": preprocess.crop})} if training else {}
    unpack(data.list_paths())
    splits, faults = {}, []
    with Bar("decoding", sum(map(len, data.splits.values()))) as bar:
        for name, split in data.splits.items():
            paths, changed = split.paths or [], training and name == "train"
            whole, rule = changed and boxes, margin if changed and not boxes else preprocess
            images, usable, broken = read_pictures(paths, rule, whole=whole, on_picture=bar.advance)
            if not len(usable):
                raise ShiftViTError(f"none of the {pluralize(len(paths), f'{name} image')} can be decoded; {broken[0]}")
            splits[name] = Split(split.labels[usable], [paths[index] for index in usable], images, left.get(name, rest))
            faults += broken
    report_skipped(faults, "; `shiftvit data check --json` lists them all")
    return replace(data, splits=splits)
