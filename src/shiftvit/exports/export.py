"""Exports a model: builds it in one process, verifies it in another, and keeps it if it passes. Packs bundles."""

from __future__ import annotations

import json
import os
import re
import subprocess
import sys
import tempfile
from dataclasses import replace
from fnmatch import fnmatchcase
from pathlib import Path
from typing import Any

from shiftvit import environment
from shiftvit.bundle.bundle import Bundle, check_place
from shiftvit.bundle.metadata import Metadata, make_metadata
from shiftvit.bundle.official import convert_checkpoint
from shiftvit.bundle.stored.digests import DIGESTS, hash_files
from shiftvit.bundle.stored.find import REPORT as REPORT
from shiftvit.bundle.stored.find import choose_name, find_bundle, is_checkpoint
from shiftvit.errors import ShiftViTError, check_at_least, check_path, notice, pluralize
from shiftvit.exports.any_size import remove_size
from shiftvit.exports.arrays import save_arrays
from shiftvit.exports.formats import FORMATS, find_format
from shiftvit.exports.gate import MIN_IMAGES, find_shortage
from shiftvit.exports.images import Images, choose_images, vary_sizes
from shiftvit.exports.space import explain_full
from shiftvit.files import check_folder, write_json
from shiftvit.replacement import write_folder

# The largest number of images for the gate.
IMAGES = 10_000


def export(
    model: str | Path,
    format: str,
    precision: str = "f32",
    *,
    out: str | Path | None = None,
    data: str | None = None,
    images: int = IMAGES,
    any_size: bool = False,
) -> Path:
    """Exports a model to another format, if the result passes the parity gate.

    Args:
        model: a run folder, a bundle, or the name of a model that was pulled or comes with the package.
        format: a key of `shiftvit.exports.formats.FORMATS`.
        precision: "f32", "bf16" or "int8", if the format has it.
        out: the folder to create; None: `exports/NAME-FORMAT-PRECISION`, with `-any-size` at the end if that is set. An
            earlier export there is replaced.
        data: the images for the gate and for calibration: the name of a data set, or the path of your own images. None:
            for f32 the sample images that come with the package; otherwise the images of the run, or a data set with
            the model's classes. Test and validation images are for the gate, training images for the calibration.
        images: the largest number of images for the gate.
        any_size: make a graph that takes images of any size and preprocesses them itself; only ONNX in f32.

    Returns:
        The folder, with the artifact and `report.json`: the gate's result, the size and the images/s.

    Raises:
        ShiftViTError: the model, format or data does not exist, a package is not installed, or the gate found a
            fault; then the folder is not written.
    """
    find_format(format, precision)
    check_at_least("images", images, 1, optional=False)
    if any_size and (format, precision) != ("onnx", "f32"):
        raise ShiftViTError(f"{format} in {precision} cannot take images of any size; choose onnx in f32")
    bundle = Bundle.load(model)
    metadata = make_metadata(bundle, precision)  # type: ignore[arg-type]
    if any_size and metadata.preprocess.resize is None:
        raise ShiftViTError(
            "--any-size needs a model that resizes its images (preprocess.resize), and this one only crops them; leave "
            "out --any-size"
        )
    name = f"{choose_name(model)}-{format}-{precision}" + "-any-size" * any_size
    if out is not None:
        check_path("out", out)
    folder = Path("exports") / name if out is None else Path(out)
    if folder.exists() and not _is_replaceable(folder):
        raise ShiftViTError(
            f"{str(folder)!r} exists and is not an export, so it is not replaced; choose another folder with --out"
        )
    check_folder(folder)
    chosen = choose_images(model, bundle, metadata, data, images)
    if shortage := find_shortage(chosen.arrays.get("labels"), precision, chosen.enough):
        raise ShiftViTError(f"{shortage}; name a larger data set with --data, or allow more with --images")
    if any_size:
        chosen = vary_sizes(chosen, metadata.preprocess)

    def write(temporary: Path) -> None:
        report = _build_and_verify(model, format, metadata, chosen, temporary, any_size=any_size, out=folder)
        write_json(temporary / REPORT, {"format": format, "precision": precision, **chosen.origin, **report})

    write_folder(folder, write, {REPORT, *(name for row in FORMATS.values() for name in row.top)})
    return folder


def pack(
    model: str | Path,
    out: str | Path,
    *,
    half: bool = False,
    onnx: bool = False,
    preset: str | None = None,
    labels: str | Path | None = None,
    ema: bool = False,
) -> Path:
    """Writes a bundle to share: a folder, or one file if `out` ends in ".zip".

    Args:
        model: a run folder, a bundle, the name of a model, or a checkpoint of the authors' code.
        out: the folder or file to write.
        half: store the weights in float16.
        onnx: add the ONNX graph, which predicts without a framework, if it passes the parity gate.
        preset: the paper's model that a checkpoint holds. This and the following arguments are only for checkpoints.
        labels: a text file with the class names, one on each line.
        ema: use the moving average of the weights.

    Raises:
        ShiftViTError: as `export`; a checkpoint cannot be read or does not fit.
    """
    check_path("model", model)
    check_path("out", out)
    check_place(Path(out))
    if is_checkpoint(model):
        bundle = convert_checkpoint(model, preset, labels=labels, ema=ema)
    else:
        for option, value in (("--preset", preset), ("--labels", labels), ("--ema", ema or None)):
            if value is not None:
                raise ShiftViTError(
                    f"{option} is only for checkpoints of the authors' code, and {str(model)!r} is not one"
                )
        bundle = Bundle.load(model)
    bundle = bundle.halved() if half else bundle
    return (add_graph(bundle) if onnx else bundle).save(out)


def add_graph(bundle: Bundle) -> Bundle:
    """Returns the bundle with its ONNX graph, if that passes the parity gate.

    Raises:
        ShiftViTError: a package is not installed, or the gate found a fault.
    """
    row, metadata = find_format("onnx", "f32"), make_metadata(bundle)
    chosen = choose_images("", bundle, metadata, None, IMAGES)
    with tempfile.TemporaryDirectory() as temporary:
        folder = Path(temporary)
        plain = replace(bundle, graph=None).save(folder / "bundle")
        _build_and_verify(plain, "onnx", metadata, chosen, folder, timed=False)
        return replace(bundle, graph=(folder / row.artifact).read_bytes())


def _build_and_verify(
    model: str | Path,
    format: str,
    metadata: Metadata,
    chosen: Images,
    folder: Path,
    *,
    any_size: bool = False,
    timed: bool = True,
    out: Path | None = None,
) -> dict[str, Any]:
    """Returns the report. It empties `chosen.arrays` as soon as they are saved, because they may fill the memory.

    `out` is the folder of the result, for messages; None: a temporary one.
    """
    count = len(chosen.arrays["images"])
    row, threads = FORMATS[format], environment.count_cores()
    with tempfile.TemporaryDirectory() as temporary, explain_full(Path(temporary), out):
        place = Path(temporary)
        save_arrays(place / "images", chosen.arrays)
        chosen.arrays.clear()
        job = {
            "bundle": str(find_bundle(model).where),
            "format": format,
            "precision": metadata.precision,
            "metadata": (remove_size(metadata) if any_size else metadata).dump(),
            "any_size": any_size,
            "runtime": row.runtime,
            "artifact": str(folder / row.artifact),
            "images": str(place / "images"),
            "reference": str(place / "reference.npz"),
            "threads": threads,
            **({} if timed else {"seconds": 0.0}),
            "enough": chosen.enough,
        }
        (place / "job.json").write_text(json.dumps(job), "utf-8")
        notice(f"building {format} in {metadata.precision}")
        _run_step("build", place / "job.json", row.backend)
        notice(f"comparing it with the model on {pluralize(count, 'image')}")
        report: dict[str, Any] = json.loads(_run_step("gate", place / "job.json", row.backend).splitlines()[-1])
    if report["faults"]:
        raise ShiftViTError(
            f"the export to {format} failed the parity gate and is not kept: {'; '.join(report['faults'])}"
        )
    del report["faults"]
    if metadata.precision != "f32" and report["images"] < MIN_IMAGES:
        notice(
            f"note: with {pluralize(report['images'], 'image')}, the change of top-1 is known to within "
            f"{report['top1_change_error']:.1f} points; {MIN_IMAGES:,} or more images measure it better"
        )
    return {
        **report,
        "bytes": sum(part.stat().st_size for part in folder.rglob("*") if part.is_file()),
        DIGESTS: hash_files(folder),
        "threads": threads,
        "processor": environment.find_processor_name(),
        "instructions": environment.list_instructions(),
        "versions": environment.list_versions(),
    }


def _run_step(step: str, job: Path, backend: str) -> str:
    """Runs `shiftvit.exports.STEP` in a fresh process and returns its output; reports an error there in one line."""
    child = subprocess.run(
        [sys.executable, "-P", "-m", f"shiftvit.exports.{step}", str(job)],  # -P: no module of the current folder
        env={
            **os.environ,
            "KERAS_BACKEND": backend,
            "TF_CPP_MIN_LOG_LEVEL": "3",
            # So that the files of a step that is killed are removed too.
            **dict.fromkeys(("TMPDIR", "TEMP", "TMP"), str(job.parent)),
            # Graphs are built and verified on the processor, even if there is a GPU.
            "CUDA_VISIBLE_DEVICES": "-1",
            "PYTHONUTF8": "1",
        },
        capture_output=True,
        encoding="utf-8",
        errors="replace",  # libraries may write anything
        check=False,
    )
    if child.returncode:
        fault = _find_fault(child.stderr, child.returncode)
        error = ShiftViTError(f"the step {step!r} of the export failed: {fault} (--debug shows its full output)")
        error.add_note(child.stderr)
        raise error
    return child.stdout


def _find_fault(output: str, status: int) -> str:
    if status < 0:
        return f"signal {-status} ended it"
    lines = output.strip().splitlines()
    # The line with the exception's name; its message may continue over many more.
    named = [line for line in lines if re.match(r"[\w.]+(Error|Exception): ", line)]
    return (named or lines or [f"it ended with status {status}"])[-1].removeprefix("shiftvit.errors.ShiftViTError: ")


def _is_replaceable(folder: Path) -> bool:
    """Returns whether a folder is empty or holds an export and nothing else."""
    if not folder.is_dir():
        return False
    if not any(folder.iterdir()):
        return True
    paths = [path for path in folder.rglob("*") if path.is_symlink() or not path.is_dir()]
    names = {path.relative_to(folder).as_posix() for path in paths}
    try:
        report = json.loads((folder / REPORT).read_text("utf-8"))
    except (OSError, ValueError, RecursionError):  # an export with a damaged report may be replaced
        report = {}
    ours = REPORT in names and isinstance(report, dict) and (not report or "precision" in report)
    others = names - {REPORT}
    matched = any(
        all(any(fnmatchcase(name, kind) for kind in row.files) for name in others) for row in FORMATS.values()
    )
    return ours and matched
