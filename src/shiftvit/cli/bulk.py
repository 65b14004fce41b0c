"""Runs `predict` and `embed` with `--engine ray`."""

from __future__ import annotations

import os
from typing import Any

import typer

from shiftvit.cli.inputs import find_sources
from shiftvit.cli.stop import Terminated, catch_sigterm
from shiftvit.console import Bar
from shiftvit.errors import ShiftViTError, notice, pluralize, suggest

_ENGINES = ("local", "ray")


def wants_ray(engine: str, address: str | None, workers: int | None, paths: list[str] | None, out: str | None) -> bool:
    """Returns whether the engine is Ray.

    Raises:
        ShiftViTError: there is no such engine, or an option or a path needs the other engine.
    """
    if engine not in _ENGINES:
        raise ShiftViTError(f"there is no engine {engine!r}; {suggest(engine, _ENGINES)}")
    for name, value in (("address", address), ("workers", workers)):
        if value is not None and engine != "ray":
            raise ShiftViTError(f"--{name} needs --engine ray; add it, or leave out --{name}")
    if engine == "ray":
        return True
    for name in [*(paths or ()), *filter(None, [out])]:
        if "://" in name and not os.path.lexists(name):
            raise ShiftViTError(f"{name!r} is a URI, which needs --engine ray; add it, or name a path")
    return False


def run_on_ray(
    command: str,
    paths: list[str] | None,
    out: str | None,
    strict: bool,
    listing: dict[str, Any],
    **options: Any,
) -> None:
    """Runs a command on Ray and prints a summary.

    Args:
        command: "predict" or "embed".
        paths, out, strict: the options of that name.
        listing: arguments of `run_bulk`.
        options: attributes of `Task`; None: its default.

    Raises:
        ShiftViTError: as `run_bulk`; or there is no folder to write.
        typer.Exit: with status 3 if an image cannot be read and `strict` is set, 130 after Ctrl-C, 143 after SIGTERM.
    """
    from shiftvit.inference.bulk import Summary, run_bulk
    from shiftvit.inference.worker import Task

    if out is None:
        raise ShiftViTError("--engine ray writes a folder of files; name it with --out DIR")
    names: list[Any] = [] if paths else find_sources(None, False, False)
    for path in paths or []:
        names += find_sources(["-"], False, False) if path == "-" else [path]
    if not all(isinstance(name, str) for name in names):
        raise ShiftViTError(
            "--engine ray takes a list of paths on standard input, but not an image; save the image to a file and "
            "name that file"
        )
    done = Summary()
    task = Task(command, out, **{name: value for name, value in options.items() if value is not None})
    with Bar(command, 0) as bar, catch_sigterm():

        def report(summary: Summary) -> None:
            nonlocal done
            done = summary
            bar.update(summary.images, f"{summary.images / summary.seconds:,.0f} images/s", total=summary.total)

        try:
            done = run_bulk(task, names, report=report, recount=strict, **listing)
        except KeyboardInterrupt as stop:
            notice(f"stopped after {pluralize(done.images, 'image')}; run the same command again to continue")
            raise typer.Exit(143 if isinstance(stop, Terminated) else 130) from None
    notice(_summarize(out, done))
    if done.failures and strict:
        raise typer.Exit(3)


def _summarize(out: str, done: Any) -> str:
    parts = []
    if done.before:
        parts.append(f"{pluralize(done.before, 'image')} were done before")
    if done.images:
        rate = f"{done.images / done.seconds:,.0f} images/s"
        parts.append(
            f"{pluralize(done.images, 'image')} in {done.seconds:.1f} s, {rate} ({pluralize(done.actors, 'actor')})"
        )
    if done.failures:
        parts.append(f"{done.failures:,} could not be read")
    return f"{out}: {'; '.join(parts)}"
