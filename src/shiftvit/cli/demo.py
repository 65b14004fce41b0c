"""`shiftvit demo`."""

import shlex
from pathlib import Path
from typing import Annotated

import typer

from shiftvit import files
from shiftvit.cli.stop import catch_sigterm
from shiftvit.cli.tables import list_examples

app = typer.Typer()


@app.command(
    epilog=list_examples(
        "shiftvit demo cifar10 demo",
        "python -m http.server --directory demo",
        "shiftvit demo runs/pets demo --space",
    )
)
@catch_sigterm()
def demo(
    model: Annotated[str, typer.Argument(help="Run folder, bundle or model name.")],
    out: Annotated[Path, typer.Argument(help="Folder to create.")],
    space: Annotated[
        bool, typer.Option("--space", help="Also write the README.md of a static Hugging Face Space.")
    ] = False,
    runtime: Annotated[
        Path | None,
        typer.Option(metavar="FILE", help="The npm package onnxruntime-web (.tgz), if you already have it."),
    ] = None,
) -> None:
    """Write a web page that runs a model in the browser."""
    from shiftvit.serve.demo import write_demo

    files.check_folder_name(out)
    folder = write_demo(model, out, space=space, runtime=runtime)
    print(f"demo: {folder}")
    print(f"try it: python -m http.server --directory {shlex.quote(str(folder))}")
