"""The command line: thin commands over the Python API. A command imports heavy modules when it needs them.

Modules with commands have no `from __future__ import annotations`: typer would evaluate each annotation four times,
which takes 15 ms at every start.
"""

import errno
import io
import os
import sys
from typing import Annotated, Any

import typer

from shiftvit import files
from shiftvit.cli import benchmark, data, demo, embed, explain, export, hub, predict, rates, serve, show, train
from shiftvit.errors import (
    Elsewhere,
    Interrupted,
    ShiftViTError,
    complain,
    describe_error,
    notice,
    suggest,
    to_one_line,
)

app = typer.Typer(
    name="shiftvit",
    help="Trains, evaluates, explains, exports and serves ShiftViT, a vision transformer without attention.",
    epilog="Start with: shiftvit predict, or: shiftvit train --recipe quick",
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
    rich_markup_mode=None,
    context_settings={"help_option_names": ["-h", "--help"]},
)
for part in (predict, embed, train, rates, explain, export, serve, demo, hub, show, benchmark, data):
    app.add_typer(part.app)

_FULL = {errno.ENOSPC, errno.EDQUOT, errno.EFBIG, errno.EIO}
DEBUG_HELP = "Show the traceback of an error."


@app.callback(invoke_without_command=True)
def options(
    version: Annotated[bool, typer.Option("--version", help="Print the version and exit.")] = False,
    debug: Annotated[bool, typer.Option("--debug", help=DEBUG_HELP)] = False,  # noqa: ARG001  (read in `main`)
) -> None:
    if version:
        from shiftvit import __version__

        print(f"shiftvit {__version__}")
        raise typer.Exit


def main() -> None:
    """Runs a command; turns an error into one line and an exit status."""
    # File and class names may contain characters that the terminal's encoding lacks.
    if isinstance(sys.stdout, io.TextIOWrapper):
        sys.stdout.reconfigure(errors="backslashreplace")
    status = _run(sys.argv[1:])
    fault = _flush()
    if fault:
        status = _fail(fault, 2, False)
    try:
        if sys.stderr is not None:
            sys.stderr.flush()
    except OSError:
        _discard(sys.stderr)
    raise SystemExit(status)


def _flush() -> str | None:
    """Flushes standard output, and returns a message if that fails.

    A closed pipe, as in `shiftvit recipes | head -1`, is not an error.
    """
    try:
        if sys.stdout is not None:
            sys.stdout.flush()
    except OSError as error:
        _discard(sys.stdout)
        if not isinstance(error, BrokenPipeError):
            return _explain_unwritten(error)
    return None


def _discard(stream: Any) -> None:
    """Discards what a stream could not write. Otherwise Python would try again at exit, and end with status 120."""
    os.dup2(os.open(os.devnull, os.O_WRONLY), stream.fileno())


def _explain_unwritten(error: OSError) -> str:
    mend = files.suggest_place(error, "redirect it elsewhere")
    return f"standard output cannot be written: {describe_error(error)}; {mend}"


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
    except SystemExit as stop:
        if isinstance(stop.__context__, BrokenPipeError):  # for which the parser would exit with status 1
            return 0
        raise
    except (KeyboardInterrupt, typer.Abort):
        return _fail("interrupted", 130, debug)
    except Interrupted as stop:
        return _fail(str(stop), stop.status, debug)
    except ShiftViTError as error:
        return _fail(str(error), 2, debug)
    except MemoryError as error:
        reason = str(error) or "out of memory"
        return _fail(f"{reason}; close other programs, or use a machine with more memory", 2, debug)
    except Exception as error:
        if isinstance(error.__cause__, KeyboardInterrupt):  # during the import of a compiled module
            return _fail("interrupted", 130, debug)
        if type(error).__name__ == "NoArgsIsHelpError":
            print(error.format_message())  # type: ignore[attr-defined]
            return 2
        if hasattr(error, "format_message"):  # from the parser: an unknown option, a missing argument
            return _fail(_explain_usage(error), 2, debug)
        # Errors with files name them (`files.explain_unwritable`), so this is standard output.
        if isinstance(error, OSError) and error.filename is None and error.errno in _FULL:
            _flush()
            return _fail(_explain_unwritten(error), 2, debug)
        if isinstance(error, OSError) and error.filename is not None:
            return _fail(f"{error.filename}: {describe_error(error)}", 2, debug)
        return _fail(f"{type(error).__name__}: {error} (a bug in shiftvit; --debug shows where)", 1, debug)


def _fail(message: str, status: int, debug: bool) -> int:
    if debug and sys.exc_info()[0] not in (None, KeyboardInterrupt):
        import traceback

        traceback.print_exc()
    # Of several processes that train together, only one prints an error that all of them have.
    say = notice if isinstance(sys.exc_info()[1], Interrupted | Elsewhere) else complain
    say(to_one_line(message))
    return status


def _explain_usage(error: Any) -> str:
    message = str(error.format_message())
    context = getattr(error, "ctx", None)
    command = getattr(context, "command", None)
    word = getattr(error, "option_name", None)
    if word is None and message.startswith("No such command"):
        word = message.split("'")[1]
        return f"there is no command {word!r}; {suggest(word, command.commands)}"  # type: ignore[union-attr]
    if word is not None and command is not None and message.startswith("No such option"):
        options = [name for parameter in command.params for name in parameter.opts if name.startswith("--")]
        return f"there is no option {word!r}; {suggest(word, options)}"
    # A value of the wrong type or out of range: the parser leaves it out of its message.
    if (cause := error.__cause__) is not None and hasattr(cause, "errors"):
        value = cause.errors(include_url=False)[0]["input"]
        return message.replace("Invalid value for", f"invalid value {str(value)!r} for", 1)
    return message


if __name__ == "__main__":
    main()
