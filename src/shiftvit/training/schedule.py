"""The learning rate at each step: a linear warm-up, then a cosine or linear decay.

Keras' `CosineDecay` cannot replace this: it has no linear decay, rejects a run that is all warm-up, takes only one
step at a time, and on torch its `cond` waits for the device at each step.
"""

from __future__ import annotations

import math
from numbers import Real
from typing import Any

import keras
from keras import ops

from shiftvit.errors import ShiftViTError, check_at_least


class _WarmUp(keras.optimizers.schedules.LearningRateSchedule):
    """A linear rise from `lr_start` at step 0 to `lr_max` at `warmup_steps`, then a decay to `lr_end`, which stays."""

    def __init__(
        self, lr_start: float, lr_max: float, warmup_steps: int, total_steps: int, lr_end: float = 0.0
    ) -> None:
        super().__init__()
        check_at_least("warmup_steps", warmup_steps, 0, optional=False)
        check_at_least("total_steps", total_steps, 0, optional=False)
        rates: dict[str, Any] = {"lr_start": lr_start, "lr_max": lr_max}
        for name, value in rates.items():
            if not (isinstance(value, Real) and 0 <= float(value) < math.inf):
                raise ShiftViTError(f"{name}={value!r} must be a finite number of at least 0")
        if total_steps < warmup_steps:
            raise ShiftViTError(
                f"total_steps={total_steps} must be at least warmup_steps={warmup_steps}; "
                "train for longer or warm up for less"
            )
        if warmup_steps > 0 and lr_max < lr_start:
            raise ShiftViTError(
                f"lr_start={lr_start} must be at most lr_max={lr_max}, to which the rate rises; lower lr_start"
            )
        if not 0 <= lr_end <= lr_max:
            raise ShiftViTError(
                f"lr_end={lr_end} must be from 0 to lr_max={lr_max}, as the rate falls to it; lower lr_end"
            )
        self.lr_start = lr_start
        self.lr_max = lr_max
        self.warmup_steps = warmup_steps
        self.total_steps = total_steps
        self.lr_end = lr_end

    def __call__(self, step: Any) -> Any:
        step = ops.cast(step, "float32")
        rising = self.lr_start + (self.lr_max - self.lr_start) * step / max(self.warmup_steps, 1)
        # In a run that is all warm-up, the last step has `lr_max`.
        progress = (step - self.warmup_steps) / max(self.total_steps - self.warmup_steps, 1)
        falling = self.lr_end + (self.lr_max - self.lr_end) * self._fall(ops.clip(progress, 0.0, 1.0))
        rate = ops.where(step < self.warmup_steps, rising, falling)
        return ops.where(step > self.total_steps, self.lr_end, rate)

    def _fall(self, progress: Any) -> Any:
        raise NotImplementedError

    def get_config(self) -> dict[str, Any]:
        return {
            "lr_start": self.lr_start,
            "lr_max": self.lr_max,
            "warmup_steps": self.warmup_steps,
            "total_steps": self.total_steps,
            "lr_end": self.lr_end,
        }


@keras.saving.register_keras_serializable(package="shiftvit")
class WarmUpCosine(_WarmUp):
    """A linear warm-up, then half a cosine: `lr_end + (lr_max - lr_end) / 2 * (1 + cos(pi * t))`, t from 0 to 1.

    Afterwards the rate stays at `lr_end`. With `lr_end=0` this is the schedule of the Keras example, which raises the
    first two of the errors below as well.

    Args:
        lr_start: rate at step 0.
        lr_max: rate at `warmup_steps`.
        warmup_steps: length of the warm-up; with 0 the first rate is `lr_max`.
        total_steps: the step at which the rate reaches `lr_end`.
        lr_end: rate from `total_steps` on, from 0 to `lr_max`.

    Raises:
        ShiftViTError: `total_steps < warmup_steps`, or the rate would fall in the warm-up (`lr_max < lr_start`), or
            `lr_end` is negative or above `lr_max`, or another rate is negative or not finite, or a number of steps is
            not a whole number of at least 0.
    """

    def _fall(self, progress: Any) -> Any:
        return 0.5 * (1.0 + ops.cos(math.pi * progress))


@keras.saving.register_keras_serializable(package="shiftvit")
class WarmUpLinear(_WarmUp):
    """A linear warm-up, then a linear decay to `lr_end`. Arguments and errors are those of `WarmUpCosine`."""

    def _fall(self, progress: Any) -> Any:
        return 1.0 - progress


SCHEDULES = {"cosine": WarmUpCosine, "linear": WarmUpLinear}
