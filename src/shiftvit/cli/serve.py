"""`shiftvit serve`."""

import importlib.util
import os
import shlex
from pathlib import Path
from typing import Annotated

import typer

from shiftvit.cli.tables import list_examples
from shiftvit.errors import ShiftViTError, describe_error, join_words, notice, suggest, suggest_install
from shiftvit.serve.limits import Limits

_LOGS = ("text", "json")
_PACKAGES = ("fastapi", "starlette", "uvicorn", "prometheus-client", "ijson")
_SHORTEST_KEY = 16


app = typer.Typer()


@app.command(
    epilog=list_examples(
        "shiftvit serve",
        "shiftvit serve runs/pets --port 8080",
        "shiftvit serve cifar10 pets=runs/3 --host 0.0.0.0 --api-key-file keys.txt",
        "curl --data-binary @cat.jpg http://127.0.0.1:8000/v1/classify",
    )
)
def serve(
    models: Annotated[
        list[str] | None,
        typer.Argument(
            metavar="[MODEL|NAME=MODEL]...",
            help="Run folders, bundles, exports or model names; the first is the default (default: cifar10).",
        ),
    ] = None,
    host: Annotated[
        str, typer.Option(help="Address to listen on; if other machines can reach it, --api-key-file is needed.")
    ] = "127.0.0.1",
    port: Annotated[int, typer.Option(help="Port; 0 picks a free one.", min=0, max=65535)] = 8000,
    api_key_file: Annotated[
        Path | None, typer.Option(metavar="FILE", help="File of API keys, one per line; clients must send one.")
    ] = None,
    allow_origin: Annotated[
        list[str] | None,
        typer.Option(metavar="ORIGIN", help="Web origin whose pages may use the server, or * for any; repeatable."),
    ] = None,
    allow_host: Annotated[
        list[str] | None, typer.Option(metavar="NAME", help="Host name that clients use for this server; repeatable.")
    ] = None,
    runtime: Annotated[
        str, typer.Option(help="Runtime, as for `shiftvit predict`; auto: the fastest installed.")
    ] = "auto",
    threads: Annotated[int | None, typer.Option(help="CPU threads (default: one per core).", min=1)] = None,
    max_batch: Annotated[
        int | None,
        typer.Option(help="Maximum images per batch (default: 64 small ones, 5 of 224 pixels).", min=1),
    ] = None,
    queue: Annotated[
        int, typer.Option(help="Maximum number of waiting images; more get status 503.", min=1)
    ] = Limits.queue,
    max_bytes: Annotated[int, typer.Option(help="Largest request body, in bytes.", min=1)] = Limits.max_bytes,
    max_pixels: Annotated[
        int, typer.Option(help="Largest picture, in pixels (height * width).", min=1)
    ] = Limits.max_pixels,
    timeout: Annotated[
        float, typer.Option(help="Seconds for a body to arrive, for an answer, and for the shutdown.", min=0.1)
    ] = Limits.timeout,
    header_timeout: Annotated[
        float, typer.Option(help="Seconds for a request's headers to arrive.", min=0.1)
    ] = Limits.header_timeout,
    max_connections: Annotated[
        int, typer.Option(help="Maximum number of connections; more get status 503.", min=1)
    ] = Limits.max_connections,
    log_format: Annotated[str, typer.Option(help="Format of the log, one line per request: text or json.")] = "text",
) -> None:
    """Serve models over HTTP, with a page to try them."""
    if log_format not in _LOGS:
        raise ShiftViTError(f"there is no log format {log_format!r}; {suggest(log_format, _LOGS)}")
    missing = [name for name in _PACKAGES if importlib.util.find_spec(name.replace("-", "_")) is None]
    if missing:
        raise ShiftViTError(f"`shiftvit serve` needs {join_words(missing)}; {suggest_install(*missing)}")
    from shiftvit.serve.guard import Access, is_loopback, parse_hosts, parse_origins
    from shiftvit.serve.log import log_requests

    keys = _read_keys(api_key_file) if api_key_file else ()
    if not keys and not is_loopback(host):
        raise ShiftViTError(
            f"--host {host} can be reached by other machines, and there are no keys; give a file of API keys: "
            "--api-key-file keys.txt"
        )
    try:
        origins = parse_origins(allow_origin or ())
    except ValueError as error:
        raise ShiftViTError(
            f"--allow-origin {error} is not a web origin; write it as browsers do: https://example.org"
        ) from error
    try:
        hosts = parse_hosts(allow_host or ())
    except ValueError as error:
        raise ShiftViTError(f"--allow-host {error} is not a host name; write it as in example.org") from error
    from shiftvit.serve import server  # only now, so that mistakes in the options are reported at once

    log_requests(log_format)
    status = server.serve(
        models or ["cifar10"],
        host,
        port,
        limits=Limits(
            max_batch=max_batch,
            queue=queue,
            max_bytes=max_bytes,
            max_pixels=max_pixels,
            timeout=timeout,
            header_timeout=header_timeout,
            max_connections=max_connections,
        ),
        access=Access(keys, origins, hosts),
        runtime=runtime,
        threads=threads,
        announce=lambda address, names: notice(f"serving {join_words(names)} at {address}; stop with Ctrl-C"),
    )
    raise typer.Exit(status)


def _read_keys(path: Path) -> tuple[str, ...]:
    """Returns the keys in a file, one per line; lines that begin with # are comments."""
    try:
        lines = path.read_text("utf-8").splitlines()
        shared = path.stat().st_mode & 0o044 if os.name == "posix" else 0
    except (OSError, UnicodeDecodeError) as error:
        reason = describe_error(error) if isinstance(error, OSError) else "it is not valid UTF-8"
        raise ShiftViTError(f"the API keys in {str(path)!r} cannot be read: {reason}; name another file") from error
    keys = tuple(line.strip() for line in lines if line.strip() and not line.startswith("#"))
    if not keys:
        raise ShiftViTError(
            f"{str(path)!r} holds no API key; write one per line, such as the output of: openssl rand -hex 32"
        )
    if any(len(key) < _SHORTEST_KEY or not key.isascii() or not key.isprintable() or " " in key for key in keys):
        raise ShiftViTError(
            f"{str(path)!r} holds a key of fewer than {_SHORTEST_KEY} characters, or with characters other than "
            "ASCII letters, digits and signs; make one with: openssl rand -hex 32"
        )
    if shared:
        place = shlex.quote(str(path))
        notice(f"other users can read the keys in {str(path)!r}; to prevent that, run: chmod 600 {place}")
    return keys
