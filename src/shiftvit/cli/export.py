"""`shiftvit export` and `shiftvit pack`."""

import json
from pathlib import Path
from typing import Annotated, Any

import typer

from shiftvit import files
from shiftvit.cli.settings import prepare_backend
from shiftvit.cli.stop import catch_sigterm
from shiftvit.cli.tables import list_examples
from shiftvit.errors import pluralize

_FORMATS = "onnx, openvino, saved_model, litert or torch"


app = typer.Typer()


@app.command(
    epilog=list_examples(
        "shiftvit export cifar10 --format onnx",
        "shiftvit export cifar10 --any-size",
        "shiftvit export runs/mine --format openvino --precision int8 --out deployed",
    )
)
@catch_sigterm()
def export(
    model: Annotated[str, typer.Argument(help="Run folder, bundle or model name.")],
    kind: Annotated[str, typer.Option("--format", metavar="FORMAT", help=f"{_FORMATS}.")] = "onnx",
    precision: Annotated[str, typer.Option(help="f32, bf16 or int8, depending on the format.")] = "f32",
    out: Annotated[
        Path | None, typer.Option(metavar="DIR", help="Folder to create (default: exports/MODEL-FORMAT-PRECISION).")
    ] = None,
    data: Annotated[
        str | None,
        typer.Option(
            metavar="PATH|NAME",
            help="Images or data set to compare on (default: sample images for f32, else the run's own). f32 needs no "
            "labels.",
        ),
    ] = None,
    images: Annotated[int, typer.Option(help="Maximum number of images to compare on.")] = 10_000,
    any_size: Annotated[
        bool, typer.Option("--any-size", help="Make a graph that resizes images of any size itself (ONNX in f32).")
    ] = False,
) -> None:
    """Export a model to another format.

    The export is kept only if it matches the original on the same images.
    """
    from shiftvit.exports.export import REPORT
    from shiftvit.exports.export import export as export_model

    if out is not None:
        files.check_folder_name(out)
    folder = export_model(model, kind, precision, out=out, data=data, images=images, any_size=any_size)
    report = json.loads((folder / REPORT).read_text("utf-8"))
    print("; ".join(_summarize(report)))
    print(f"export: {folder}")


@app.command(
    epilog=list_examples(
        "shiftvit pack runs/mine mine.zip --half --onnx",
        "shiftvit pack my.pth mine --preset shiftvit_base_r2 --labels names.txt",
    )
)
@catch_sigterm()
def pack(
    model: Annotated[
        str, typer.Argument(help="Run folder, bundle, model name, or a checkpoint of the authors' code (.pth).")
    ],
    out: Annotated[Path, typer.Argument(help="Folder or .zip file to create.")],
    half: Annotated[bool, typer.Option("--half", help="Store the weights in float16, at half the size.")] = False,
    onnx: Annotated[
        bool, typer.Option("--onnx", help="Add an ONNX graph, which predicts without a framework.")
    ] = False,
    preset: Annotated[
        str | None, typer.Option(help="Architecture of a checkpoint (default: the one that its tensors fit).")
    ] = None,
    labels: Annotated[
        Path | None, typer.Option(metavar="FILE", help="Class names of a checkpoint, one per line.")
    ] = None,
    ema: Annotated[bool, typer.Option("--ema", help="Take a checkpoint's moving average of the weights.")] = False,
) -> None:
    """Pack a model as one folder or .zip file to share."""
    from shiftvit.bundle.stored.find import is_checkpoint

    if out.suffix.lower() != ".zip":
        files.check_folder_name(out)
    if is_checkpoint(model):
        prepare_backend()
    from shiftvit.exports.export import pack as pack_model

    print(f"bundle: {pack_model(model, out, half=half, onnx=onnx, preset=preset, labels=labels, ema=ema)}")


def _summarize(report: dict[str, Any]) -> list[str]:
    lines = [f"{report['bytes'] / 1e6:.1f} MB", f"largest difference {report['max_difference']:.1e}"]
    lines.append(f"same class for {report['top1_agreement']:.2%} of {pluralize(report['images'], 'image')}")
    if "top1_change" in report:
        lines.append(f"top-1 {report['top1']:.2%} ({report['top1_change']:+.2f} points)")
    if "int8_products" in report:
        lines.append(f"{report['int8_products']} int8 products, exact on every processor")
    rates = report["images_per_second"]
    lines.append("images/s " + ", ".join(f"{rate:,.0f} in batches of {size}" for size, rate in rates.items()))
    return lines
