"""AdamW and Muon, built from settings; decides which weights decay."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import keras
import numpy as np
from keras import ops

from shiftvit.config import TrainConfig
from shiftvit.model.primitives import TORCH
from shiftvit.model.weights import find_stage
from shiftvit.training.schedule import SCHEDULES

if TORCH:
    import torch

    from shiftvit.training import torch_steps


class _Rule(keras.optimizers.Optimizer):
    """The differences between our optimizers and Keras'.

    - The trained weights stay in the model when `fit` ends. Keras overwrites them with their moving average after each
      call of `fit`. A run here calls it once an epoch, and `use_averaged_weights` puts the average in only to evaluate.
    - The moving average covers the statistics of a batch norm too, as in timm's `ModelEma`.
    - On torch all variables are updated at once (`torch_steps`).
    - The rate of each stage is `stage_decay` times that of the next one, as in ULMFiT's discriminative fine-tuning
      (Howard and Ruder, 2018, section 3.2). The last stage, the last norm and the head have the full rate.
    - In the first `head_steps` steps the rate of everything but the head is 0: a new head would at first move the
      trained weights at random. Moments are gathered meanwhile.
    """

    def __init__(self, *, stage_decay: float = 1.0, head_steps: int = 0, **kwargs: Any) -> None:
        super().__init__(**kwargs)
        self.stage_decay, self.head_steps = stage_decay, head_steps
        self.reduce_gradients: Callable[[Any], Any] = lambda gradients: gradients  # over several processes
        # Returns the `find_statistics` to average. A function, as Keras would take a list of variables for its own.
        self.list_statistics: Callable[[], list[Any]] = list
        # Of each variable: its rate as a share of the optimizer's, and whether it waits for the head.
        self._shares: list[tuple[float, bool]] = []

    def build(self, variables: Any) -> None:
        stages = [find_stage(variable.path) for variable in variables]
        last = max((stage for stage in stages if stage is not None), default=1)
        parts = [1.0 if stage is None else self.stage_decay ** (last - stage) for stage in stages]
        waits = [self.head_steps > 0 and not variable.path.startswith("head/") for variable in variables]
        self._shares = list(zip(parts, waits, strict=True))
        super().build(variables)
        if self.use_ema:
            self._model_variables_moving_average.extend(self.add_optimizer_variables(self.list_statistics(), "average"))

    def get_config(self) -> dict[str, Any]:
        waiting = {"head_steps": self.head_steps} if self.head_steps else {}  # older versions know no such thing
        return {**super().get_config(), "stage_decay": self.stage_decay, **waiting}

    def apply(self, grads: Any, trainable_variables: Any = None) -> None:
        super().apply(self.reduce_gradients(grads), trainable_variables)

    def finalize_variable_values(self, var_list: Any) -> None:
        pass

    def step(self, gradients: Any, variables: Any, rate: Any) -> None:
        """Makes a whole step on torch at a given rate, `()`, in a way that a CUDA graph can capture."""
        gradients = self._clip_gradients(gradients)
        self._decay_all(variables, rate)
        self._update_by_share(gradients, variables, rate)
        self._update_model_variables_moving_average(variables)
        self.iterations.value.add_(1)

    def _backend_update_step(self, grads: Any, trainable_variables: Any, learning_rate: Any) -> None:
        if not TORCH:
            super()._backend_update_step(grads, trainable_variables, learning_rate)
            return
        with torch.no_grad():
            self._update_by_share(grads, trainable_variables, learning_rate)

    def update_step(self, gradient: Any, variable: Any, learning_rate: Any) -> None:
        super().update_step(gradient, variable, self._find_rate(self._get_share(variable), learning_rate))

    def _clip_gradients(self, grads: Any) -> Any:
        if not TORCH or not self.global_clipnorm:
            return super()._clip_gradients(grads)
        return torch_steps.clip(grads, self.global_clipnorm)

    def _apply_weight_decay(self, variables: Any) -> None:
        if TORCH:
            with torch.no_grad():
                self._decay_all(variables, self.learning_rate)
        elif self._is_even:
            super()._apply_weight_decay(variables)
        else:
            for (amount, share), group in self._group_by_decay(variables).items():
                rate = amount * self._find_rate(share, self.learning_rate)
                for variable in group:
                    variable.assign(variable - variable * ops.cast(rate, variable.dtype))

    def _decay_all(self, variables: Any, rate: Any) -> None:
        for (amount, (part, waits)), group in self._group_by_decay(variables).items():
            values = [variable.value for variable in group]
            torch_steps.decay(values, self._find_rate((1.0, waits), rate), amount * part)

    def _update_model_variables_moving_average(self, trainable_variables: Any) -> None:
        variables = [*trainable_variables, *self.list_statistics()]
        if not TORCH or not self.use_ema:
            super()._update_model_variables_moving_average(variables)
            return
        pairs = zip(self._model_variables_moving_average, variables, strict=True)
        kept = [(average.value, variable.value) for average, variable in pairs if average is not None]
        with torch.no_grad():
            # The average begins with the weights after the first step, as the initial ones are noise.
            momentum = self.ema_momentum * (self.iterations.value != 0)
            torch_steps.average([one for one, _ in kept], [value for _, value in kept], momentum)

    @property
    def _is_even(self) -> bool:
        """Whether all variables have the same rate at all times."""
        return self.stage_decay == 1 and not self.head_steps

    def _get_share(self, variable: Any) -> tuple[float, bool]:
        return self._shares[int(self._get_variable_index(variable))]

    def _find_rate(self, share: tuple[float, bool], rate: Any) -> Any:
        """Returns the rate at this step of the variables with a share of the optimizer's rate."""
        part, waits = share
        if waits:
            # Not Keras' comparison: it makes a tensor of the Python number, which a CUDA graph cannot capture.
            rate = rate * ops.cast(self.iterations.value >= self.head_steps, "float32")
        return rate if part == 1 else rate * part

    def _group_by_decay(self, variables: Any) -> dict[tuple[float, tuple[float, bool]], list[Any]]:
        """Returns the variables by how much they decay, times their rate, and by their share of the rate."""
        groups: dict[tuple[float, tuple[float, bool]], list[Any]] = {}
        for variable in variables:
            if self._use_weight_decay(variable) and (amount := self._find_weight_decay(variable)):
                groups.setdefault((amount, self._get_share(variable)), []).append(variable)
        return groups

    def _find_weight_decay(self, variable: Any) -> float | None:  # noqa: ARG002  (Muon has two)
        amount: float | None = self.weight_decay
        return amount

    def _update_by_share(self, gradients: Any, variables: Any, rate: Any) -> None:
        if self._is_even:
            self._update_all(gradients, variables, rate)
            return
        groups: dict[tuple[float, bool], tuple[list[Any], list[Any]]] = {}
        for gradient, variable in zip(gradients, variables, strict=True):
            own, theirs = groups.setdefault(self._get_share(variable), ([], []))
            own.append(gradient)
            theirs.append(variable)
        for share, group in groups.items():
            self._update_all(*group, self._find_rate(share, rate))

    def _update_all(self, gradients: Any, variables: Any, rate: Any) -> None:
        raise NotImplementedError


class AdamW(_Rule, keras.optimizers.AdamW):
    """`keras.optimizers.AdamW`."""

    def _update_all(self, gradients: Any, variables: Any, rate: Any) -> None:
        indices = [self._get_variable_index(variable) for variable in variables]
        torch_steps.apply_adam(
            [variable.value for variable in variables],
            gradients,
            [self._momentums[index].value for index in indices],
            [self._velocities[index].value for index in indices],
            rate=rate,
            step=self.iterations.value + 1,
            beta_1=self.beta_1,
            beta_2=self.beta_2,
            epsilon=self.epsilon,
        )


class Muon(_Rule, keras.optimizers.Muon):
    """`keras.optimizers.Muon`, which orthogonalises in `orthogonal_dtype`.

    The singular values only have to come near 1. For that bfloat16 is enough, as in Jordan's original.
    """

    def __init__(self, *, orthogonal_dtype: str = "float32", **kwargs: Any) -> None:
        super().__init__(**kwargs)
        self.orthogonal_dtype = orthogonal_dtype

    def zeropower_via_newtonschulz5(self, x: Any, steps: int) -> Any:
        narrow = super().zeropower_via_newtonschulz5(ops.cast(x, self.orthogonal_dtype), steps)
        return ops.cast(narrow, x.dtype)

    def _find_weight_decay(self, variable: Any) -> float | None:
        amount: float | None = self.adam_weight_decay if self._should_use_adamw(variable) else self.weight_decay
        return amount

    def _update_all(self, gradients: Any, variables: Any, rate: Any) -> None:
        by_adam: list[list[Any]] = [[], [], [], []]  # only these have a second moment
        by_muon: list[list[Any]] = [[], [], []]
        for gradient, variable in zip(gradients, variables, strict=True):
            index = self._get_variable_index(variable)
            state = [variable.value, gradient, self.momentums[index].value]
            square = self.adam_velocities[index]
            columns = by_muon if square is None else by_adam
            for column, value in zip(columns, state if square is None else [*state, square.value], strict=True):
                column.append(value)
        torch_steps.apply_adam(
            *by_adam,
            rate=rate * self.adam_lr_ratio,
            step=self.iterations.value + 1,
            beta_1=self.adam_beta_1,
            beta_2=self.adam_beta_2,
            epsilon=self.epsilon,
        )
        torch_steps.apply_muon(
            *by_muon,
            rate=rate,
            momentum=self.momentum,
            nesterov=self.nesterov,
            iterations=self.ns_steps,
            coefficients=(self.muon_a, self.muon_b, self.muon_c),
            scale=self.rms_rate,
            dtype=getattr(torch, self.orthogonal_dtype),
        )

    def get_config(self) -> dict[str, Any]:
        return {**super().get_config(), "orthogonal_dtype": self.orthogonal_dtype}


def build_optimizer(config: TrainConfig, total_steps: int, *, bfloat16: bool = False, head_steps: int = 0) -> Any:
    """Returns the Keras optimizer of a recipe, with its schedule over `total_steps`; see `_Rule` for `head_steps`.

    Muon updates the matrices of blocks and merging, and computes its products in bfloat16 if asked. AdamW updates the
    patch embedding, the head and all vectors, at its own rate. Both rates are multiplied by `compute_batch_scale`.
    """
    rule, plan = config.optimizer, config.schedule
    peak = rule.learning_rate * compute_batch_scale(config)
    rate = SCHEDULES[plan.shape](
        lr_start=plan.start * peak,
        lr_max=peak,
        warmup_steps=int(total_steps * plan.warmup),
        total_steps=total_steps,
        lr_end=plan.end * peak,
    )
    shared: dict[str, Any] = {
        "learning_rate": rate,
        "epsilon": rule.epsilon,
        "weight_decay": rule.weight_decay,
        "global_clipnorm": rule.clipnorm,
        "use_ema": config.ema is not None,
        "ema_momentum": config.ema if config.ema is not None else 0.99,
        "stage_decay": rule.stage_decay,
        "head_steps": head_steps,
    }
    if rule.name == "adamw":
        optimizer = AdamW(beta_1=rule.beta_1, beta_2=rule.beta_2, **shared)
    else:
        optimizer = Muon(
            adam_beta_1=rule.beta_1,
            adam_beta_2=rule.beta_2,
            adam_lr_ratio=rule.adam_learning_rate / rule.learning_rate,
            adam_weight_decay=rule.adam_weight_decay,
            momentum=rule.momentum,
            ns_steps=rule.newton_schulz_steps,
            exclude_layers=["^patch_embed/", "^head/"],
            orthogonal_dtype="bfloat16" if bfloat16 else "float32",
            **shared,
        )
    if not rule.decay_vectors:
        optimizer.exclude_from_weight_decay(var_names=["bias", "gamma", "beta"])
    return optimizer


def compute_batch_scale(config: TrainConfig) -> float:
    """Returns the factor for the recipe's rates: the batch size over `base_batch_size` (Goyal et al., 2017)."""
    base = config.optimizer.base_batch_size
    return 1.0 if base is None else config.batch_size / base


def compute_learning_rates(model: Any, total_steps: int) -> np.ndarray[Any, np.dtype[np.float32]]:
    """Returns the scheduled rate at each step from 0 to `total_steps`, float32 `(total_steps + 1,)`."""
    steps = ops.arange(total_steps + 1, dtype="float32")
    return np.asarray(ops.convert_to_numpy(model.optimizer._learning_rate(steps)))
