"""`shiftvit push` and `shiftvit pull`."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from shiftvit.cli.tables import examples


def add_to(app: typer.Typer) -> None:
    app.command(epilog=examples("hf auth login", "shiftvit push runs/mine me/pets --private"))(push)
    app.command(epilog=examples("shiftvit pull me/pets", "shiftvit pull me/pets --revision v1 --out models/pets"))(pull)


def push(
    model: Annotated[str, typer.Argument(help="Run folder, bundle or model name.")],
    repository: Annotated[str, typer.Argument(metavar="OWNER/NAME", help="Target repository; created if missing.")],
    private: Annotated[bool, typer.Option("--private", help="Make the repository private.")] = False,
    message: Annotated[str, typer.Option(help="Commit message.")] = "Upload a ShiftViT model",
) -> None:
    """Upload a model and its card to the Hugging Face Hub."""
    from shiftvit.bundle import hub

    print(f"pushed: {hub.push(model, repository, private=private, message=message)}")


def pull(
    repository: Annotated[str, typer.Argument(metavar="OWNER/NAME", help="Source repository.")],
    revision: Annotated[str | None, typer.Option(help="Branch, tag or commit (default: the newest on main).")] = None,
    out: Annotated[
        Path | None, typer.Option(metavar="DIR", help="Folder or .zip file to create (default: NAME).")
    ] = None,
) -> None:
    """Download a model from the Hugging Face Hub and verify it."""
    from shiftvit.bundle import hub

    print(f"bundle: {hub.pull(repository, revision=revision, out=out)}")
