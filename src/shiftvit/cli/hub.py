"""`shiftvit push` and `shiftvit pull`: the Hugging Face Hub, and the authors' published weights."""

import tempfile
from pathlib import Path
from typing import Annotated, Any

import typer

from shiftvit import files
from shiftvit.cli.settings import prepare_backend
from shiftvit.cli.stop import catch_sigterm
from shiftvit.cli.tables import list_examples
from shiftvit.errors import ShiftViTError

app = typer.Typer()


@app.command(
    epilog=list_examples(
        "hf auth login",
        "shiftvit push runs/mine me/pets --private",
        "shiftvit push runs/mine me/pets --space",
    )
)
@catch_sigterm()
def push(
    model: Annotated[
        str, typer.Argument(help="Run folder, bundle or model name; with --space also a folder of `shiftvit demo`.")
    ],
    repository: Annotated[str, typer.Argument(metavar="OWNER/NAME", help="Target repository; created if missing.")],
    space: Annotated[
        bool, typer.Option("--space", help="Upload the demo of a model, which runs in the browser, as a static Space.")
    ] = False,
    private: Annotated[bool, typer.Option("--private", help="Make the repository private.")] = False,
    message: Annotated[
        str | None, typer.Option(help="Commit message.", show_default="Upload a ShiftViT model, or demo")
    ] = None,
) -> None:
    """Upload a model, with its card or demo, to the Hugging Face Hub."""
    from shiftvit.bundle import hub

    options: dict[str, Any] = {"private": private} | ({} if message is None else {"message": message})
    if not space:
        print(f"pushed: {hub.push(model, repository, **options)}")
        return
    from shiftvit.serve.demo import is_demo, read_space_files, write_demo

    hub.check_target(repository)  # before a demo is made, which takes a while
    with tempfile.TemporaryDirectory() as temporary:
        folder = Path(model)
        if not is_demo(folder):
            folder = write_demo(model, Path(temporary) / "demo", space=True)
        print(f"pushed: {hub.push_space(read_space_files(folder), repository, **options)}")


@app.command(
    epilog=list_examples(
        "shiftvit pull shiftvit_tiny_r2",
        "shiftvit pull me/pets",
        "shiftvit pull me/pets --revision v1 --out models/pets",
    )
)
@catch_sigterm()
def pull(
    source: Annotated[
        str, typer.Argument(metavar="NAME|OWNER/NAME", help="Published weights, or a repository on the Hub.")
    ],
    revision: Annotated[
        str | None, typer.Option(help="With OWNER/NAME: branch, tag or commit (default: the newest on main).")
    ] = None,
    out: Annotated[
        Path | None,
        typer.Option(
            metavar="DIR", help="With OWNER/NAME: folder or .zip file to create (default: the repository's name)."
        ),
    ] = None,
    file: Annotated[
        Path | None,
        typer.Option("--from", metavar="FILE", help="With NAME: the .pth file, if you have already downloaded it."),
    ] = None,
) -> None:
    """Download a model and verify it.

    NAME is one of the ImageNet models of the paper's authors. It is kept in the user's data folder, and its name then
    works wherever a command takes a model. OWNER/NAME is a repository on the Hugging Face Hub.
    """
    if "/" not in source:
        prepare_backend()
        from shiftvit.exports.pull import pull_published

        for option, value in (("--revision", revision), ("--out", out)):
            if value is not None:
                raise ShiftViTError(
                    f"{option} is for repositories, OWNER/NAME; `shiftvit pack {source} DIR` makes a copy"
                )
        print(f"bundle: {pull_published(source, file)}")
        print(f"try it: shiftvit predict photo.jpg --model {source}")
        return
    from shiftvit.bundle import hub

    if file is not None:
        raise ShiftViTError(f"--from is for published weights, and {source!r} is a repository; leave out --from")
    if out is not None and out.suffix.lower() != ".zip":
        files.check_folder_name(out)
    print(f"bundle: {hub.pull(source, revision=revision, out=out)}")
