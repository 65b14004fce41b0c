"""Which stage of the network a layer or a weight belongs to: what is frozen and what learns more slowly go by it."""

from __future__ import annotations

import re


def stage_of(path: str) -> int | None:
    """Returns the stage, from 1, of a layer's name or a weight's path; None for the last norm and the head.

    The patch embedding belongs to the first stage. A merge is named for the stage that it ends, but its weights are on
    the way to the next one and belong there.
    """
    layer = path.split("/", 1)[0]
    if layer == "patch_embed":
        return 1
    found = re.fullmatch(r"stage(\d+)_(block\d+|merge)", layer)
    if found is None:
        return None
    return int(found[1]) + (found[2] == "merge")
