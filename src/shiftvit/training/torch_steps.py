"""AdamW and Muon for torch, over all variables at once. The arithmetic is Keras'.

Keras runs Muon in about a dozen calls a variable and asks the schedule for the rate each time. For a small model on
two cores that was a fifth of a training step, and two thirds of it were calls. Muon uses Adam for vectors, so
`apply_adam` is needed anyway, and AdamW uses it too: Keras' own update over all variables is slower, as it makes more
passes over them.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Sequence
from typing import Any

import torch

Tensors = Sequence[torch.Tensor]


def clip(gradients: Tensors, limit: float) -> list[torch.Tensor]:
    """Returns the gradients, all scaled alike so that their common norm is at most `limit`."""
    gradients = list(gradients)
    norm = torch.linalg.vector_norm(torch.stack(torch._foreach_norm(gradients)))
    return list(torch._foreach_mul(gradients, limit / norm.clamp(min=limit)))


def decay(parameters: Tensors, rate: Any, weight_decay: float) -> None:
    """Shrinks the parameters by `rate * weight_decay`, in place."""
    if parameters:
        torch._foreach_mul_(list(parameters), 1.0 - rate * weight_decay)


def average(averages: Tensors, parameters: Tensors, momentum: torch.Tensor) -> None:
    """Moves the averages to `momentum * average + (1 - momentum) * parameter`, in place.

    `momentum` is a tensor `()`, so that nothing has to wait for the device.
    """
    averages = list(averages)
    torch._foreach_mul_(averages, momentum)
    torch._foreach_add_(averages, torch._foreach_mul(list(parameters), 1.0 - momentum))


def apply_adam(
    parameters: Tensors,
    gradients: Tensors,
    means: Tensors,
    squares: Tensors,
    *,
    rate: Any,
    step: Any,
    beta_1: float,
    beta_2: float,
    epsilon: float,
) -> None:
    """Makes a step of Adam (Kingma and Ba, 2015) in the order of the paragraph before section 2.1, as Keras does.

    Args:
        parameters, means, squares: float32, changed in place; each has the shape of its gradient.
        gradients: one for each parameter.
        rate: learning rate, a number or a tensor `()`.
        step: the number of this step, from 1; a number or a tensor `()`.
        beta_1, beta_2: the shares that the running mean and the running square keep.
        epsilon: is added to the root of the running square before the bias is corrected.
    """
    if not parameters:
        return
    means, squares = list(means), list(squares)
    torch._foreach_lerp_(means, list(gradients), 1.0 - beta_1)
    torch._foreach_mul_(squares, beta_2)
    torch._foreach_addcmul_(squares, list(gradients), list(gradients), value=1.0 - beta_2)
    step = torch.as_tensor(step, dtype=torch.float32, device=parameters[0].device)
    corrected = rate * torch.sqrt(1.0 - beta_2**step) / (1.0 - beta_1**step)
    roots = torch._foreach_sqrt(squares)
    torch._foreach_add_(roots, epsilon)
    changes = torch._foreach_mul(means, corrected)
    torch._foreach_div_(changes, roots)
    torch._foreach_sub_(list(parameters), changes)


def apply_muon(
    parameters: Tensors,
    gradients: Tensors,
    momenta: Tensors,
    *,
    rate: Any,
    momentum: float,
    nesterov: bool,
    iterations: int,
    coefficients: tuple[float, float, float],
    scale: float | None,
    dtype: torch.dtype,
) -> None:
    """Makes a step of Muon (Jordan, 2024) in Keras' order. Matrices of one shape are orthogonalised together.

    Args:
        parameters, momenta: matrices, float32, changed in place; each has the shape of its gradient.
        gradients: one for each parameter.
        rate: learning rate, a number or a tensor `()`.
        momentum, nesterov: for the running sum that is orthogonalised.
        iterations, coefficients, dtype: for `orthogonalise`.
        scale: the update's root mean square at rate 1 (Liu et al., "Muon is Scalable", 2025, equation 4); None: the
            update is not scaled.
    """
    if not parameters:
        return
    momenta = list(momenta)
    torch._foreach_mul_(momenta, momentum)
    torch._foreach_add_(momenta, list(gradients))
    updates = torch._foreach_add(list(gradients), momenta, alpha=momentum) if nesterov else momenta
    groups: dict[tuple[int, int], list[int]] = defaultdict(list)
    for index, parameter in enumerate(parameters):
        rows, columns = parameter.shape
        groups[min(rows, columns), max(rows, columns)].append(index)
    for (rows, columns), members in groups.items():
        flat = [updates[i] if updates[i].shape[0] == rows else updates[i].T for i in members]
        stack = torch.stack([matrix.to(dtype) for matrix in flat])  # (k, rows, columns)
        turned = orthogonalise(stack, iterations, coefficients).float()
        stride = rate if scale is None else rate * scale * columns**0.5
        changes = torch.unbind(turned * stride)
        for index, change in zip(members, changes, strict=True):
            parameter = parameters[index]
            parameter.sub_(change if parameter.shape[0] == rows else change.T)


def orthogonalise(matrices: torch.Tensor, iterations: int, coefficients: tuple[float, float, float]) -> torch.Tensor:
    """Brings the singular values of each matrix near 1 by Newton-Schulz iterations. The singular vectors stay.

    Args:
        matrices: `(k, rows, columns)`, rows <= columns.
        iterations: how many times `x` becomes `a x + (b + c x x') x x' x`.
        coefficients: a, b and c.

    Returns:
        `(k, rows, columns)`, of the same type.
    """
    a, b, c = coefficients
    x = matrices / (torch.linalg.matrix_norm(matrices, keepdim=True) + 1e-7)
    for _ in range(iterations):
        square = torch.bmm(x, x.mT)
        quintic = torch.baddbmm(square, square, square, beta=b, alpha=c)
        x = torch.baddbmm(x, quintic, x, beta=a)
    return x
