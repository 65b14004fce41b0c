"""Measures the conversion of embedded colour profiles to sRGB: decodes a JPEG of 12 megapixels with it and without it.

    python benchmarks/profiles.py

The result goes to benchmarks/results/profiles-DATE.json.
"""

from __future__ import annotations

import io
import sys
import time
from pathlib import Path

import numpy as np
from PIL import Image

from record import write_record
from shiftvit.data.decode.images import decode

sys.path.append(str(Path(__file__).parents[1] / "tests"))
from image_matrix import DISPLAY_P3, make_icc

TIMES = 9


def main() -> None:
    noise = np.random.default_rng(0).integers(0, 256, (300, 400, 3), np.uint8)
    picture = Image.fromarray(noise).resize((4000, 3000), Image.Resampling.BICUBIC)
    rows = {}
    for name, profile in (("no profile", b""), ("Display P3", make_icc(DISPLAY_P3))):
        stream = io.BytesIO()
        picture.save(stream, "JPEG", quality=90, icc_profile=profile)
        for size, at_least in (("whole", None), ("for 224 pixels", (512, 512))):
            for srgb in (False, True):
                times = []
                for _ in range(TIMES):
                    began = time.perf_counter()
                    decode(stream.getvalue(), at_least=at_least, srgb=srgb)
                    times.append(time.perf_counter() - began)
                rows[f"{name}, {size}, srgb={str(srgb).lower()}"] = round(1000 * min(times), 1)
    print("\n".join(f"{name}: {value} ms" for name, value in rows.items()))
    write_record("profiles", {"n": TIMES, "milliseconds": rows})


if __name__ == "__main__":
    main()
