"""`shiftvit push` and `shiftvit pull`."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer


def add_to(app: typer.Typer) -> None:
    app.command(
        epilog="Examples: shiftvit push runs/mine me/pets --private | shiftvit push cifar10 me/cifar10   "
        "(a token is needed: hf auth login)"
    )(push)
    app.command(epilog="Examples: shiftvit pull me/pets | shiftvit pull me/pets --revision v1 --out models/pets")(pull)


def push(
    model: Annotated[str, typer.Argument(help="Run folder, bundle, or the name of a model.")],
    repository: Annotated[str, typer.Argument(metavar="OWNER/NAME", help="Where to; made if it is not there.")],
    private: Annotated[bool, typer.Option("--private", help="Only the owner may see it.")] = False,
    message: Annotated[str, typer.Option(help="Message of the commit.")] = "Upload a ShiftViT model",
) -> None:
    """Upload a model with its card to the Hugging Face Hub."""
    from shiftvit.bundle import hub

    print(f"pushed: {hub.push(model, repository, private=private, message=message)}")


def pull(
    repository: Annotated[str, typer.Argument(metavar="OWNER/NAME", help="Where from.")],
    revision: Annotated[
        str | None, typer.Option(help="Branch, tag or commit; default the newest of the main branch.")
    ] = None,
    out: Annotated[
        Path | None, typer.Option(metavar="DIR", help="Folder to make, or a file that ends in .zip; default NAME.")
    ] = None,
) -> None:
    """Download a model from the Hugging Face Hub; it is checked before it is kept."""
    from shiftvit.bundle import hub

    print(f"bundle: {hub.pull(repository, revision=revision, out=out)}")
