"""Training steps without Python between them, on images that lie on the device.

Keras' `fit` fetches each batch from the host and calls Python for each step: right for a processor, and far slower
than an accelerator that needs a millisecond for a small model's step. Here some dozens of steps are one call: on jax a
compiled `lax.scan` whose state is donated, on CUDA one captured graph that is replayed. Draws, arithmetic, callbacks
and checkpoints are those of `fit`; `tests/test_device.py` holds the two together.
"""

from __future__ import annotations

import functools
from typing import Any

import keras
import numpy as np
from keras import ops

from shiftvit.data.batches.device import ResidentImages, Tensors, check_changes
from shiftvit.data.find.dataset import Dataset
from shiftvit.errors import ShiftViTError, count_of, notice
from shiftvit.recipes.recipe import Recipe
from shiftvit.training.loss import hits
from shiftvit.training.memory import free_memory, is_out_of_memory
from shiftvit.training.optimizer import learning_rates
from shiftvit.training.parts import jax_gradients, torch_gradients

# Steps between two looks at the clock, the loss and the signals.
_LONGEST = 64


class DeviceLoop:
    """Runs an epoch's steps on the device.

    Args:
        model: compiled; trained in place.
        recipe: resolved.
        dataset: its training images go to the device.
        steps: in an epoch.
    """

    def __init__(self, model: Any, recipe: Recipe, dataset: Dataset, steps: int) -> None:
        settings = recipe.train
        self.model, self.steps, self.seed, self.parts = model, steps, settings.seed, settings.accumulate
        self.batch_size = min(settings.batch_size, len(dataset.train))
        self.at_once = chunk_length(steps)
        self.images = ResidentImages(
            dataset.train.images,
            dataset.train.labels,
            dataset.train.preprocess,
            recipe.augment,
            len(dataset.class_names),
        )
        self.rates = ops.convert_to_tensor(learning_rates(model, steps * settings.epochs))

    def begin(self, epoch: int) -> None:
        """Draws an epoch."""
        raise NotImplementedError

    def run(self, first: int, count: int) -> None:
        """Takes steps `first` to `first + count` of the epoch; afterwards the model's variables hold the result."""
        raise NotImplementedError

    def figures(self) -> dict[str, float]:
        """Returns the mean loss and top-1 of the steps since `begin`."""
        raise NotImplementedError


def chunk_length(steps: int) -> int:
    """Returns how many steps to take at once: of 32 to 64 the number that leaves least over; a rest compiles anew."""
    return min(steps, min(range(_LONGEST, _LONGEST // 2 - 1, -1), key=lambda length: steps % length))


def check_loop(recipe: Recipe, dataset: Dataset) -> None:
    """Raises ShiftViTError if a resolved recipe asks for the device loop where that cannot run."""
    if recipe.train.loop != "device":
        return
    if not isinstance(dataset.train.images, np.ndarray):
        raise ShiftViTError(
            f'train.loop="device" needs all images in memory and those of {dataset.name} stay in their files; use "fit"'
        )
    if keras.config.backend() == "tensorflow":
        raise ShiftViTError('train.loop="device" needs KERAS_BACKEND=jax or torch and this is tensorflow; use "fit"')
    if not recipe.train.drop_remainder and len(dataset.train) % recipe.train.batch_size:
        raise ShiftViTError(
            f'train.loop="device" needs batches of one size, and {count_of(len(dataset.train), "image")} cannot be '
            f"divided by train.batch_size={recipe.train.batch_size}; set train.drop_remainder=true, or train.loop=fit"
        )
    check_changes(recipe.augment)


def make_loop(model: Any, recipe: Recipe, dataset: Dataset, steps: int) -> DeviceLoop | None:
    """Returns the loop of a resolved recipe's `train.loop`; None for Keras' `fit`.

    Smaller parts of a batch make no room for the images themselves. Where these do not fit on the device, it is `fit`
    too if the recipe allows another way when memory runs out (`train.auto_batch`).
    """
    if recipe.train.loop != "device":
        return None
    loop = JaxLoop if keras.config.backend() == "jax" else TorchLoop
    try:
        return loop(model, recipe, dataset, steps)
    except Exception as error:
        if not (is_out_of_memory(error) and recipe.train.auto_batch):
            raise
    free_memory()  # only here, as the handler's traceback holds what there was room for
    notice(f"out of memory for {count_of(len(dataset.train), 'image')} on the device; going on with train.loop=fit")
    return None


class JaxLoop(DeviceLoop):
    """The steps as one compiled `lax.scan`, the state donated."""

    def __init__(self, model: Any, recipe: Recipe, dataset: Dataset, steps: int) -> None:
        import jax

        super().__init__(model, recipe, dataset, steps)
        self.compiled = jax.jit(self._steps, static_argnames="count", donate_argnums=0)

    def begin(self, epoch: int) -> None:
        self.drawn = self.images.draw(self.seed, epoch)
        self.sums = ops.zeros(2, "float32")
        self.done = 0

    def run(self, first: int, count: int) -> None:
        model = self.model
        groups = (model.trainable_variables, model.non_trainable_variables, model.optimizer.variables)
        state = (tuple([variable.value for variable in group] for group in groups), self.sums)
        (values, self.sums) = self.compiled(state, self.images.constants, self.drawn, np.int32(first), count=count)
        for group, new in zip(groups, values, strict=True):
            for variable, value in zip(group, new, strict=True):
                variable.assign(value)
        self.done += count

    def figures(self) -> dict[str, float]:
        loss, top1 = np.asarray(self.sums) / max(self.done, 1)
        return {"loss": float(loss), "top1": float(top1)}

    def _steps(self, state: Any, constants: Tensors, drawn: Tensors, first: Any, count: int) -> Any:
        import jax

        def step(state: Any, number: Any) -> tuple[Any, None]:
            (trainable, fixed, optimizer), sums = state
            places = number * self.batch_size + ops.arange(self.batch_size, dtype="int32")
            images, labels = self.images.batch(constants, drawn, places)
            found, fixed = jax_gradients(self.model, trainable, fixed, images, labels, self.parts)
            loss, logits, gradients = found
            trainable, optimizer = self.model.optimizer.stateless_apply(optimizer, gradients, trainable)
            state = tuple(list(part) for part in (trainable, fixed, optimizer))
            return (state, sums + ops.stack([loss, ops.mean(hits(labels, logits))])), None

        return jax.lax.scan(step, state, first + ops.arange(count, dtype="int32"))[0]


class TorchLoop(DeviceLoop):
    """The step as a CUDA graph, replayed; where that cannot be captured and off CUDA, as ordinary calls.

    What a step reads and changes stays at one place in memory, its own number included, so that a replay needs no
    argument.
    """

    def __init__(self, model: Any, recipe: Recipe, dataset: Dataset, steps: int) -> None:
        import torch

        super().__init__(model, recipe, dataset, steps)
        self.variables = model.trainable_variables
        device = self.variables[0].value.device
        self.drawn = {name: value.clone() for name, value in self.images.draw(self.seed, 0).items()}
        self.number = torch.zeros((), dtype=torch.int64, device=device)
        self.sums = torch.zeros(2, device=device)
        self.places = torch.arange(self.batch_size, device=device)
        self.capturing = device.type == "cuda"
        self.jit_compile = recipe.train.jit_compile
        self.gradients: Any = functools.partial(torch_gradients, model, parts=self.parts)
        self.graph: Any = None
        self.done = 0

    def begin(self, epoch: int) -> None:
        for name, value in self.images.draw(self.seed, epoch).items():
            self.drawn[name].copy_(value)
        self.sums.zero_()
        self.done = 0

    def run(self, first: int, count: int) -> None:
        if self.capturing and self.graph is None:
            self._capture()
        self.number.fill_(first)
        for _ in range(count):
            if self.graph is None:
                self._step()
            else:
                self.graph.replay()
        self.done += count

    def figures(self) -> dict[str, float]:
        loss, top1 = (self.sums / max(self.done, 1)).tolist()
        return {"loss": loss, "top1": top1}

    def _batch(self) -> tuple[Any, Any]:
        places = self.number * self.batch_size + self.places
        return self.images.batch(self.images.constants, self.drawn, places)

    def _step(self) -> None:
        import torch

        optimizer = self.model.optimizer
        images, labels = self._batch()
        loss, logits, gradients = self.gradients(images, labels)
        with torch.no_grad():
            # Read from a table: Keras' schedule makes tensors of numbers, which a graph cannot capture.
            rate = self.rates.index_select(0, optimizer.iterations.value.reshape(1).long())[0]
            optimizer.step(gradients, self.variables, rate)
            self.sums += torch.stack([loss, hits(labels, logits).mean()])
            self.number += 1

    def _capture(self) -> None:
        """Takes a few steps aside, as CUDA asks for, each from the same state, and captures one."""
        import torch

        changed = [variable.value for variable in [*self.model.variables, *self.model.optimizer.variables]]
        changed += [self.number, self.sums]
        before, chance = [tensor.detach().clone() for tensor in changed], torch.cuda.get_rng_state()

        def put_back() -> None:
            with torch.no_grad():
                for tensor, value in zip(changed, before, strict=True):
                    tensor.copy_(value)

        if self.jit_compile:
            self.gradients = _compile(self.gradients, self._batch())
            put_back()  # a batch norm has counted the batch
        aside = torch.cuda.Stream()
        aside.wait_stream(torch.cuda.current_stream())
        with torch.cuda.stream(aside):
            for _ in range(3):
                self._step()
                put_back()  # the next would look beyond a short epoch's images, or the last epoch's rates
        torch.cuda.current_stream().wait_stream(aside)
        graph = torch.cuda.CUDAGraph()
        try:
            with torch.cuda.graph(graph):
                self._step()
            self.graph = graph
        except RuntimeError as error:
            if is_out_of_memory(error):
                raise
            notice(f"this step cannot be captured as a CUDA graph ({str(error).splitlines()[0]}); going on without")
            self.capturing = False
        put_back()
        torch.cuda.set_rng_state(chance)


def _compile(function: Any, example: Any) -> Any:
    """Returns a function of tensors as fused kernels, which torch's Inductor makes.

    The operations are recorded first, forward and backward in one graph: `torch.compile` by itself would have to follow
    the Python code of Keras' layers.
    """
    import torch
    from torch.fx.experimental.proxy_tensor import make_fx

    return torch.compile(make_fx(function)(*example), dynamic=False)
