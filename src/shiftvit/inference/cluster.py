"""Imports Ray, and connects to a cluster or starts one on this machine."""

from __future__ import annotations

import logging
import os
import signal
import socket
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from shiftvit.errors import ShiftViTError, describe_error, suggest_install

_REACH = 10.0  # seconds to connect to a cluster's address


def import_ray() -> Any:
    """Imports Ray and returns it. Its usage statistics are disabled unless the user configured them.

    Raises:
        ShiftViTError: it is not installed.
    """
    settings = Path(os.environ.get("RAY_USAGE_STATS_CONFIG_PATH", "~/.ray/config.json")).expanduser()
    if not settings.exists():
        os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")
    try:
        import ray
        import ray.data
    except ImportError as error:
        raise ShiftViTError(f"the engine 'ray' is not installed; {suggest_install('ray[data]')}") from error
    logging.getLogger("ray.data").setLevel(logging.CRITICAL)  # its errors reach the caller as exceptions
    return ray


@contextmanager
def connect(ray: Any, address: str | None, store: int) -> Iterator[None]:
    """Connects to a cluster, or starts one, and disconnects at the end."""
    if ray.is_initialized():  # by the calling program
        yield
        return
    address = address or os.environ.get("RAY_ADDRESS") or "local"
    started: dict[str, Any] = {}
    if address == "local":
        started = {"include_dashboard": False, "object_store_memory": store}
    elif address != "auto" and "://" not in address:
        _check_reachable(address)
    before = signal.getsignal(signal.SIGTERM)
    try:
        ray.init(address, log_to_driver=False, logging_level="ERROR", **started)
        if threading.current_thread() is threading.main_thread():  # where Ray replaced it
            signal.signal(signal.SIGTERM, before)
    except (ConnectionError, RuntimeError, ValueError, TimeoutError) as error:
        reason = describe_error(error)
        mend = "install the same versions on both" if "mismatch" in reason else "start a cluster with: ray start --head"
        raise ShiftViTError(f"the Ray cluster at {address!r} cannot be used: {reason}; {mend}") from error
    try:
        yield
    finally:
        ray.shutdown()


def _check_reachable(address: str) -> None:
    host, _, port = address.rpartition(":")
    try:
        socket.create_connection((host.strip("[]"), int(port)), _REACH).close()
    except (OSError, ValueError) as error:
        raise ShiftViTError(
            f"no Ray cluster answers at {address!r} ({describe_error(error)}); give HOST:PORT of its head, or auto on "
            "one of its nodes"
        ) from error
