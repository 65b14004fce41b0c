"""The device loop: makes training steps without Python between them, on images that are on the device.

Keras' `fit` fetches each batch from the host and runs Python code for each step. That suits a processor. An accelerator
takes only a millisecond for a step of a small model, and would wait. Here one call makes dozens of steps: on jax a
compiled `lax.scan` with donated state, on CUDA replays of one captured graph. Random draws, arithmetic, callbacks and
checkpoints are those of `fit`; `tests/test_device.py` compares the two.
"""

from __future__ import annotations

import functools
from typing import Any

import keras
import numpy as np
from keras import ops

from shiftvit.data.batches.device import ResidentImages, Tensors, check_changes
from shiftvit.data.find.dataset import Dataset
from shiftvit.errors import ShiftViTError, notice, pluralize, take_first_line
from shiftvit.recipes.recipe import Recipe
from shiftvit.training.loss import find_hits
from shiftvit.training.memory import free_memory, is_out_of_memory
from shiftvit.training.optimizer import compute_learning_rates
from shiftvit.training.parts import apply_jax_gradients, compute_jax_gradients, compute_torch_gradients

# The most steps between two checks of the clock, the loss and the signals.
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
        self.at_once = choose_chunk_length(steps)
        self.images = ResidentImages(
            dataset.train.images,
            dataset.train.labels,
            dataset.train.preprocess,
            recipe.augment,
            len(dataset.class_names),
        )
        self.rates = ops.convert_to_tensor(compute_learning_rates(model, steps * settings.epochs))
        # Of the steps since `begin`: the sums of their losses and top-1, and their number.
        self.sums = ops.zeros(2, "float32")
        self.done = 0

    def begin(self, epoch: int) -> None:
        """Draws the order and augmentation of an epoch."""
        raise NotImplementedError

    def run(self, first: int, count: int) -> None:
        """Makes the steps `first` to `first + count - 1` of the epoch and updates the model's variables."""
        raise NotImplementedError

    def read_figures(self) -> dict[str, float]:
        """Returns the mean loss and top-1 of the steps since `begin`."""
        loss, top1 = (ops.convert_to_numpy(self.sums) / max(self.done, 1)).tolist()
        return {"loss": loss, "top1": top1}


def choose_chunk_length(steps: int) -> int:
    """Returns how many steps to make per call: the number from 32 to 64 with the smallest remainder in an epoch.

    On jax a remainder needs a second compiled program.
    """
    return min(steps, min(range(_LONGEST, _LONGEST // 2 - 1, -1), key=lambda length: steps % length))


def check_loop(recipe: Recipe, dataset: Dataset) -> None:
    """Raises ShiftViTError if a resolved recipe requires the device loop and it cannot run."""
    if recipe.train.loop != "device":
        return
    if not isinstance(dataset.train.images, np.ndarray):
        raise ShiftViTError(
            f'train.loop="device" needs all images in memory, but those of {dataset.name} stay in their files; use fit'
        )
    if keras.config.backend() == "tensorflow":
        raise ShiftViTError('train.loop="device" needs KERAS_BACKEND=jax or torch, not tensorflow; use "fit"')
    if not recipe.train.drop_remainder and len(dataset.train) % recipe.train.batch_size:
        raise ShiftViTError(
            f'train.loop="device" needs batches of equal size, but {pluralize(len(dataset.train), "image")} cannot be '
            f"divided by train.batch_size={recipe.train.batch_size}; set train.drop_remainder=true, or train.loop=fit"
        )
    if recipe.train.initial_scale < 1:
        raise ShiftViTError(
            'train.loop="device" keeps images of one size, so train.initial_scale cannot be below 1; set it to 1, or '
            "set train.loop=fit"
        )
    check_changes(recipe.augment)


def make_loop(model: Any, recipe: Recipe, dataset: Dataset, steps: int) -> DeviceLoop | None:
    """Returns the loop of a resolved recipe's `train.loop`; None for Keras' `fit`.

    It also returns None if the images do not fit on the device and the recipe allows a fallback (`train.auto_batch`);
    smaller parts of a batch would not help.
    """
    if recipe.train.loop != "device":
        return None
    loop = JaxLoop if keras.config.backend() == "jax" else TorchLoop
    try:
        return loop(model, recipe, dataset, steps)
    except Exception as error:
        if not (is_out_of_memory(error) and recipe.train.auto_batch):
            raise
    free_memory()  # not in the handler, whose traceback still refers to the arrays
    notice(f"out of memory for {pluralize(len(dataset.train), 'image')} on the device; continuing with train.loop=fit")
    return None


class JaxLoop(DeviceLoop):
    """The steps as one compiled `lax.scan` with donated state."""

    def __init__(self, model: Any, recipe: Recipe, dataset: Dataset, steps: int) -> None:
        import jax

        super().__init__(model, recipe, dataset, steps)
        self.compiled = jax.jit(self._make_steps, static_argnames="count", donate_argnums=0)

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

    def _make_steps(self, state: Any, constants: Tensors, drawn: Tensors, first: Any, count: int) -> Any:
        import jax

        def step(state: Any, number: Any) -> tuple[Any, None]:
            (trainable, fixed, optimizer), sums = state
            places = number * self.batch_size + ops.arange(self.batch_size, dtype="int32")
            images, labels = self.images.make_batch(constants, drawn, places)
            found, fixed = compute_jax_gradients(self.model, trainable, fixed, images, labels, self.parts)
            loss, logits, gradients = found
            trainable, optimizer = apply_jax_gradients(self.model, trainable, fixed, optimizer, gradients)
            state = tuple(list(part) for part in (trainable, fixed, optimizer))
            return (state, sums + ops.stack([loss, ops.mean(find_hits(labels, logits))])), None

        return jax.lax.scan(step, state, first + ops.arange(count, dtype="int32"))[0]


class TorchLoop(DeviceLoop):
    """Captures the step as a CUDA graph and replays it. Without CUDA, or if that fails, it makes ordinary calls.

    Everything that a step reads and changes keeps its address, even the number of the step, so a replay needs no
    arguments.
    """

    def __init__(self, model: Any, recipe: Recipe, dataset: Dataset, steps: int) -> None:
        import torch

        super().__init__(model, recipe, dataset, steps)
        self.variables = model.trainable_variables
        device = self.variables[0].value.device
        self.drawn = {name: value.clone() for name, value in self.images.draw(self.seed, 0).items()}
        self.number = torch.zeros((), dtype=torch.int64, device=device)
        self.places = torch.arange(self.batch_size, device=device)
        self.capturing = device.type == "cuda"
        self.jit_compile = recipe.train.jit_compile
        self.gradients: Any = functools.partial(compute_torch_gradients, model, parts=self.parts)
        self.graph: Any = None

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

    def _cut_batch(self) -> tuple[Any, Any]:
        places = self.number * self.batch_size + self.places
        return self.images.make_batch(self.images.constants, self.drawn, places)

    def _step(self) -> None:
        import torch

        optimizer = self.model.optimizer
        images, labels = self._cut_batch()
        loss, logits, gradients = self.gradients(images, labels)
        with torch.no_grad():
            # From a table: Keras' schedule creates tensors from Python numbers, which a graph cannot capture.
            rate = self.rates.index_select(0, optimizer.iterations.value.reshape(1).long())[0]
            optimizer.step(gradients, self.variables, rate)
            self.sums += torch.stack([loss, find_hits(labels, logits).mean()])
            self.number += 1

    def _capture(self) -> None:
        """Makes a few steps on a side stream, as CUDA requires, each from the same state, and then captures one."""
        import torch

        changed = [variable.value for variable in [*self.model.variables, *self.model.optimizer.variables]]
        changed += [self.number, self.sums]
        before, random_state = [tensor.detach().clone() for tensor in changed], torch.cuda.get_rng_state()

        def restore() -> None:
            with torch.no_grad():
                for tensor, value in zip(changed, before, strict=True):
                    tensor.copy_(value)

        if self.jit_compile:
            self.gradients = _compile(self.gradients, self._cut_batch())
            restore()  # recording ran the step once, and a batch norm updated its statistics
        side = torch.cuda.Stream()
        side.wait_stream(torch.cuda.current_stream())
        with torch.cuda.stream(side):
            for _ in range(3):
                self._step()
                restore()  # otherwise the next step could read past the end of a short epoch, or of the learning rates
        torch.cuda.current_stream().wait_stream(side)
        graph = torch.cuda.CUDAGraph()
        try:
            with torch.cuda.graph(graph):
                self._step()
            self.graph = graph
        except RuntimeError as error:
            if is_out_of_memory(error):
                raise
            notice(f"this step cannot be captured as a CUDA graph ({take_first_line(error)}); continuing without one")
            self.capturing = False
        restore()
        torch.cuda.set_rng_state(random_state)


def _compile(function: Any, example: Any) -> Any:
    """Returns a function of tensors with its kernels fused by torch's Inductor.

    The operations are first recorded, forward and backward in one graph, because `torch.compile` alone would have to
    trace the Python code of Keras' layers.
    """
    import torch
    from torch.fx.experimental.proxy_tensor import make_fx

    return torch.compile(make_fx(function)(*example), dynamic=False)
