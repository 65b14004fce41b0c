"""Describes models, without a framework."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from shiftvit.bundle.bundle import Bundle
from shiftvit.bundle.card import describe_figures, describe_origin, describe_preprocessing
from shiftvit.bundle.stored.digests import check_export, read_report
from shiftvit.bundle.stored.find import REPORT, find_bundle, is_model, is_name, list_pretrained
from shiftvit.bundle.stored.published import PUBLISHED
from shiftvit.config import ModelConfig
from shiftvit.errors import ShiftViTError, list_some, suggest
from shiftvit.presets import PRESETS
from shiftvit.stages import Rows, list_stages


def describe(name: str) -> dict[str, Any]:
    """Describes a preset, a run folder, a bundle, or an export, which it verifies.

    As everywhere, a model in the working folder wins over a name.

    Returns:
        `{"title", "stages": rows of `list_stages` and a total, "notes": texts by name}`. An export has no stages.

    Raises:
        ShiftViTError: `name` is neither a preset nor a model, or a file of an export has changed.
    """
    if name in PRESETS and (is_name(name) or not is_model(name)):
        preset = PRESETS[name]
        notes = {"description": preset.description}
        if preset.published is not None:
            top1, where = preset.published
            notes["published"] = f"top-1 {top1}% ({where})"
        if name in PUBLISHED:
            pulled = is_name(name)
            notes["weights"] = f"in {PUBLISHED[name].place}" if pulled else f"not on this machine; shiftvit pull {name}"
        return _describe(f"Preset {name}", ModelConfig(**preset.arguments), notes)
    if (Path(name) / REPORT).is_file() and not is_model(name):
        return _describe_export(Path(name))
    if not Path(name).exists() and name not in list_pretrained():
        valid = [*PRESETS, *list_pretrained()]
        raise ShiftViTError(f"{name!r} is neither a name nor a path; {suggest(name, valid)} Or give a run folder.")
    bundle = Bundle.load(name)
    notes = {
        "classes": list_some(bundle.labels, 12),
        "preprocessing": describe_preprocessing(bundle.preprocess),
    }
    if bundle.provenance is not None:
        notes["weights"] = describe_origin(bundle.provenance)
    for split, title in (("val", "validation"), ("test", "test")):
        if figures := describe_figures(bundle.metrics, split, len(bundle.labels)):
            notes[title] = figures
    return _describe(f"Model in {find_bundle(name).where}", bundle.config, notes)


def list_presets() -> Rows:
    """Returns a row for each preset: name, input size, depths, parameters, multiply-adds, published top-1 (%)."""
    rows = []
    for name, preset in PRESETS.items():
        config = ModelConfig(**preset.arguments)
        total = _sum_rows(list_stages(config))
        rows.append(
            {
                "preset": name,
                "image": f"{config.image_shape[0]}x{config.image_shape[1]}",
                "depths": "-".join(map(str, config.depths)),
                "parameters": total["parameters"],
                "multiply_adds": total["multiply_adds"],
                "top1": None if preset.published is None else preset.published[0],
            }
        )
    return rows


def _sum_rows(rows: Rows) -> dict[str, Any]:
    products = [row["multiply_adds"] for row in rows]
    return {
        "part": "total",
        "resolution": "",
        "channels": "",
        "blocks": sum(row["blocks"] for row in rows),
        "parameters": sum(row["parameters"] for row in rows),
        "multiply_adds": None if None in products else sum(products),
    }


def _describe_export(folder: Path) -> dict[str, Any]:
    count = check_export(folder)
    report = read_report(folder)
    state = f"{count} as recorded" if count else "no SHA-256 recorded; export it again to have them checked"
    notes = {name: str(report[name]) for name in ("format", "precision", "bytes") if name in report} | {"files": state}
    return {"title": f"Export in {folder}", "stages": [], "notes": notes}


def _describe(title: str, config: ModelConfig, notes: dict[str, str]) -> dict[str, Any]:
    rows = list_stages(config)
    return {"title": title, "stages": [*rows, _sum_rows(rows)], "notes": notes}
