"""Processes under `jax.distributed`."""

from __future__ import annotations

import atexit
import contextlib
import ctypes
import os
import signal
import sys
import threading
import time
from collections.abc import Iterator
from typing import Any

import numpy as np
from numpy.typing import NDArray

from shiftvit.errors import ShiftViTError, complain, take_first_line
from shiftvit.training.place import JOIN, LOST, Place, find_own_address
from shiftvit.training.processes import Group

_NOT_JOINED = f"the processes did not find each other within {JOIN} s; are all started, and is the port open?"
_LOST = (
    "another process has ended or is cut off, so jax ends this one; to continue, start all processes again with "
    "--resume RUN"
)
# Seconds for which an abort waits while this process reports an error of its own.
_GRACE = 10


class JaxGroup(Group):
    """Processes under `jax.distributed`. Each holds its slice of a batch, which jax treats as one array.

    The compiled step averages the gradients. Its wait for another process cannot be interrupted; jax watches the others
    and aborts the process when one of them is lost.
    """

    compiled = True
    words = ("gloo", "Gloo", "NCCL", "onnection", "oordination", "eartbeat")

    def __init__(self, place: Place | None) -> None:
        import jax
        from jax.experimental import multihost_utils

        self._jax, self._gather = jax, multihost_utils.process_allgather
        jax.config.update("jax_cpu_collectives_implementation", "gloo")
        with contextlib.suppress(AttributeError):  # an option that another jax may lack
            # It would ignore SIGTERM until the training catches it.
            jax.config.update("jax_enable_preemption_service", False)
        named: dict[str, Any] = {}
        if place is not None:
            # torchrun itself listens at MASTER_PORT.
            port = place.port + (os.environ.get("TORCHELASTIC_USE_AGENT_STORE") == "True")
            named = {
                "coordinator_address": f"{place.address}:{port}",
                "num_processes": place.count,
                "process_id": place.rank,
                "local_device_ids": [place.local_rank],
            }
        self._abort = Abort(_NOT_JOINED)
        try:
            jax.distributed.initialize(**named, initialization_timeout=JOIN, heartbeat_timeout_seconds=LOST)
        except (RuntimeError, ValueError) as error:
            self._abort.restore()
            raise ShiftViTError(
                f"jax did not connect the processes ({take_first_line(error)}); are all started, and is the port open?"
            ) from error
        self._abort.message = _LOST
        import keras  # only now: jax must be initialized before anything is computed with it

        with _take_own_address():
            self.rank, self.count = jax.process_index(), jax.process_count()
        devices = [f"{device.platform}:{device.id}" for device in jax.devices()]
        keras.distribution.set_distribution(keras.distribution.DataParallel(devices=devices, auto_shard_dataset=False))
        self._predict: dict[int, Any] = {}

    def gather(self, values: NDArray[Any], into: NDArray[Any]) -> None:
        # As bytes, because jax would round 64-bit values to 32 bits.
        found = np.asarray(self._gather(values.reshape(-1).view(np.uint8)))
        into[:] = np.frombuffer(found.tobytes(), values.dtype).reshape(into.shape)

    def local(self, model: Any) -> Any:
        if id(model) not in self._predict:
            self._predict[id(model)] = self._jax.jit(
                lambda trainable, fixed, images: model.stateless_call(trainable, fixed, images, training=False)[0]
            )
        return _LocalModel(model, self._predict[id(model)], self._jax.device_put)

    def leave(self, *, agreed: bool) -> None:
        if agreed:
            self._jax.distributed.shutdown()
            self._abort.restore()
        else:
            self._abort.expect_report()
            # When Python ends, jax would wait minutes for the others, which wait for this process.
            atexit.register(_end_at_once)


@contextlib.contextmanager
def _take_own_address() -> Iterator[None]:
    """Lets gloo listen at the address of this machine that process 0 sees, while jax starts.

    Otherwise it takes the address of the host's name, which is 127.0.1.1 on a default Debian. jax has no public option
    for it; where its internals are others than those of 0.10, nothing is changed.
    """
    try:
        from jax._src.distributed import global_state
        from jax._src.lib import _jax

        make, address = _jax.make_gloo_tcp_collectives, global_state.coordinator_address
    except (ImportError, AttributeError):
        yield
        return
    own = find_own_address(address.rsplit(":", 1)[0])
    _jax.make_gloo_tcp_collectives = lambda **named: make(**named, hostname=own)
    try:
        yield
    finally:
        _jax.make_gloo_tcp_collectives = make


def _end_at_once() -> None:
    for stream in (sys.stdout, sys.stderr):
        with contextlib.suppress(OSError, AttributeError):  # no such stream
            stream.flush()
    os._exit(1)


class Abort:
    """Turns an abort of this process into a line for the user and exit status 1.

    jax aborts, from a thread of its own, when another process is lost. Python's signal handlers do not run then, so
    this installs a C function. (jax 0.10 has a callback for a lost process, but cannot call a Python function.)

    Attributes:
        message: the line.
    """

    def __init__(self, message: str) -> None:
        self.message = message
        self._reported = threading.Lock()  # held, for ever, by what reports the end of this process
        self._before: Any = None
        if sys.platform == "win32":  # where jax does not connect processors
            return
        self._handler = ctypes.CFUNCTYPE(None, ctypes.c_int)(self._end)
        self._set: Any = ctypes.CDLL(None).signal
        self._set.restype, self._set.argtypes = ctypes.c_void_p, [ctypes.c_int, ctypes.c_void_p]
        self._before = self._set(signal.SIGABRT, ctypes.cast(self._handler, ctypes.c_void_p))

    def restore(self) -> None:
        """Lets an abort do again what it did before."""
        if sys.platform != "win32":
            self._set(signal.SIGABRT, self._before)

    def expect_report(self) -> None:
        """Leaves the line to the caller, who reports an error and ends this process."""
        self._reported.acquire()

    def _end(self, number: int) -> None:  # noqa: ARG002
        if self._reported.acquire(blocking=False):
            complain(self.message)
        else:
            time.sleep(_GRACE)
        os._exit(1)


class _LocalModel:
    """Predicts in this process alone, with the weights of a model that is spread over all of them."""

    def __init__(self, model: Any, predict: Any, put: Any) -> None:
        self.output_shape, self._predict = model.output_shape, predict
        weights = (model.trainable_variables, model.non_trainable_variables)
        self._weights = [[put(np.asarray(variable.value)) for variable in group] for group in weights]

    def predict_on_batch(self, images: NDArray[np.float32]) -> NDArray[np.float32]:
        return np.asarray(self._predict(*self._weights, images), np.float32)
