"""Processes under `jax.distributed`."""

from __future__ import annotations

import os
from collections.abc import Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from shiftvit.errors import ShiftViTError
from shiftvit.training.place import JOIN, LOST, Place, take_first_line


class JaxGroup:
    """Processes under `jax.distributed`. Each holds its slice of a batch, which jax treats as one array.

    The compiled step averages the gradients. jax itself ends a process when another one is lost.
    """

    compiled = True
    words = ("gloo", "Gloo", "NCCL", "onnection", "oordination", "eartbeat")

    def __init__(self, place: Place | None) -> None:
        import jax
        from jax.experimental import multihost_utils

        self._jax, self._gather = jax, multihost_utils.process_allgather
        jax.config.update("jax_cpu_collectives_implementation", "gloo")
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
        try:
            jax.distributed.initialize(**named, initialization_timeout=JOIN, heartbeat_timeout_seconds=LOST)
        except (RuntimeError, ValueError) as error:
            raise ShiftViTError(
                f"jax did not connect the processes ({take_first_line(error)}); are all started, and is the port open?"
            ) from error
        import keras  # only now: jax must be initialized before anything is computed with it

        self.rank, self.count = jax.process_index(), jax.process_count()
        devices = [f"{device.platform}:{device.id}" for device in jax.devices()]
        keras.distribution.set_distribution(keras.distribution.DataParallel(devices=devices, auto_shard_dataset=False))
        self._predict: dict[int, Any] = {}

    def gather(self, values: NDArray[Any]) -> NDArray[Any]:
        values = np.ascontiguousarray(values)
        # As bytes, because jax would round 64-bit values to 32 bits.
        found = np.asarray(self._gather(values.reshape(-1).view(np.uint8)))
        return np.frombuffer(found.tobytes(), values.dtype).reshape(self.count, *values.shape)

    def average(self, gradients: Sequence[Any]) -> list[Any]:
        return list(gradients)

    def local(self, model: Any) -> Any:
        if id(model) not in self._predict:
            self._predict[id(model)] = self._jax.jit(
                lambda trainable, fixed, images: model.stateless_call(trainable, fixed, images, training=False)[0]
            )
        return _LocalModel(model, self._predict[id(model)], self._jax.device_put)

    def stop_watching(self) -> None:
        pass

    def leave(self) -> None:
        self._jax.distributed.shutdown()


class _LocalModel:
    """Predicts in this process alone, with the weights of a model that is spread over all of them."""

    def __init__(self, model: Any, predict: Any, put: Any) -> None:
        self.output_shape, self._predict = model.output_shape, predict
        weights = (model.trainable_variables, model.non_trainable_variables)
        self._weights = [[put(np.asarray(variable.value)) for variable in group] for group in weights]

    def predict_on_batch(self, images: NDArray[np.float32]) -> NDArray[np.float32]:
        return np.asarray(self._predict(*self._weights, images), np.float32)
