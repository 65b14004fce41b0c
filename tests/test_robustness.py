"""The means over corruptions, against the benchmark's families, and the widths that docs/training.md states."""

from __future__ import annotations

import re
from pathlib import Path

import numpy as np
import pytest
from scipy.stats import binomtest

from shiftvit.evaluation.robustness import average_corruptions

# As in figure 1 of Hendrycks and Dietterich (2019).
FAMILIES = {
    "noise": ("gaussian_noise", "shot_noise", "impulse_noise"),
    "blur": ("defocus_blur", "glass_blur", "motion_blur", "zoom_blur"),
    "weather": ("snow", "frost", "fog", "brightness"),
    "digital": ("contrast", "elastic_transform", "pixelate", "jpeg_compression"),
}
EXTRAS = ("speckle_noise", "gaussian_blur")


def make_rows(shares, extra):
    names = [name for family in FAMILIES.values() for name in family]
    cells = dict(zip(names, shares, strict=True)) | dict.fromkeys(EXTRAS, [extra] * 5)
    rows = [
        {"corruption": name, "severity": 1 + at, "top1": top1}
        for name, row in cells.items()
        for at, top1 in enumerate(row)
    ]
    return [{"corruption": "none", "severity": 0, "top1": 0.9, "n": 250}, *rows]


def test_means_are_those_of_the_benchmark():
    shares = np.random.default_rng(0).random((15, 5))
    found = average_corruptions(make_rows(shares, 0.0))
    assert found["top1"] == pytest.approx(shares.mean())
    assert (found["corruptions"], found["n"]) == (15, 250)
    assert found["by_severity"] == pytest.approx(dict(zip("12345", shares.mean(axis=0), strict=True)))
    parts = np.split(shares, [3, 7, 11])
    assert found["by_family"] == pytest.approx({name: part.mean() for name, part in zip(FAMILIES, parts, strict=True)})
    assert average_corruptions(make_rows(shares, 1.0)) == found


def test_a_mean_over_fewer_corruptions_is_not_given():
    rows = [row for row in make_rows(np.ones((15, 5)), 1.0) if row["corruption"] != "fog"]
    with pytest.raises(KeyError, match="fog"):
        average_corruptions(rows)


def test_documented_widths_are_wilsons():
    text = " ".join((Path(__file__).parents[1] / "docs" / "training.md").read_text("utf-8").split())
    found = re.search(
        r"is ([\d.]+) points for 1,000 images at 50% top-1 and ([\d.]+) points at 90%; "
        r"for 100 images it is ([\d.]+) and ([\d.]+) points",
        text,
    )
    assert found
    for stated, (count, share) in zip(found.groups(), ((1000, 0.5), (1000, 0.9), (100, 0.5), (100, 0.9)), strict=True):
        interval = binomtest(round(count * share), count).proportion_ci(0.95, "wilson")
        assert f"{50 * (interval.high - interval.low):.1f}" == stated
