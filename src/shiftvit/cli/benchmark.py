"""`shiftvit benchmark`."""

from typing import Annotated, Any

import typer

from shiftvit.cli.settings import prepare_backend
from shiftvit.cli.tables import Json, list_examples, print_json, show

app = typer.Typer()


@app.command(
    epilog=list_examples(
        "shiftvit benchmark",
        "shiftvit benchmark shiftvit_cifar --train --batch-size 128",
        "shiftvit benchmark cifar10 --runtime openvino --json",
    )
)
def benchmark(
    model: Annotated[
        str, typer.Argument(help="Preset (with --train), run folder, bundle, export or model name.")
    ] = "cifar10",
    train: Annotated[bool, typer.Option("--train/--predict", help="Measure training steps or prediction.")] = False,
    batch_size: Annotated[list[int] | None, typer.Option(help="Images per step; repeatable.")] = None,
    repeats: Annotated[int, typer.Option(help="Number of measurements; the median is reported.")] = 5,
    runtime: Annotated[str, typer.Option(help="Prediction runtime; auto: the fastest one installed.")] = "auto",
    precision: Annotated[str, typer.Option(help="Training precision: auto, float32 or mixed_bfloat16.")] = "auto",
    threads: Annotated[
        int | None,
        typer.Option(help="CPU threads (default: one per core). Training and the peak obey it only on torch."),
    ] = None,
    as_json: Json = False,
) -> None:
    """Measure a model's images/s, and its share of the machine's peak."""
    prepare_backend()
    from shiftvit.benchmark import benchmark as measure

    sizes = batch_size or ([128] if train else [1, 64])
    options: dict[str, Any] = {"runtime": runtime, "precision": precision, "threads": threads}
    found = measure(model, train=train, batch_sizes=sizes, repeats=repeats, **options)
    if as_json:
        print_json(found)
        return
    rows: list[dict[str, Any]] = [
        {
            "batch_size": row["batch_size"],
            "images_per_second": f"{row['images_per_second']:,.0f}",
            "spread": f"{row['minimum']:,.0f} .. {row['maximum']:,.0f}",
        }
        | ({} if row["share_of_peak"] is None else {"share_of_peak": f"{row['share_of_peak']:.1%}"})
        for row in found["rows"]
    ]
    show(rows, f"{found['model']}: {found['mode']}, {found['runtime']}, {found['precision']}")
    if found["peak_gflops"] is None:
        print(f"no share of the peak: an export's operations are not counted; {found['environment']['processor']}")
        return
    print(
        f"this machine's peak: {found['peak_gflops']:,.0f} GFLOP/s in matrix products; "
        f"an image takes {found['gflop_per_image']:.3f} GFLOP; {found['environment']['processor']}"
    )
