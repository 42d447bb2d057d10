"""LARS, for batches of thousands: torch has none.

You, Gitman and Ginsburg, "Large batch training of convolutional networks", 2017, algorithm 1: each weight tensor w with
gradient g and decay c steps by

    v = m v + lr * t * (g + c w),    w = w - v,    t = eta |w| / (|g| + c |w|)

so that a layer moves by a share of its own length, whatever the scale of its gradient.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from typing import Any

import torch
from torch import Tensor
from torch.optim import Optimizer

_ETA = 0.001
"""trust coefficient of the paper"""
_EPSILON = 1e-9


class LARS(Optimizer):
    """Group settings: lr, weight_decay, and adaptive: whether steps are scaled (else: SGD with the same momentum)."""

    def __init__(self, params: Iterable[Any], lr: float = 0.0, momentum: float = 0.9) -> None:
        super().__init__(params, {"lr": lr, "momentum": momentum, "weight_decay": 0.0, "adaptive": True})

    @torch.no_grad()
    def step(self, closure: Callable[[], float] | None = None) -> float | None:  # pyright: ignore
        """One step. Does not wait for the device."""
        loss = None
        if closure is not None:
            with torch.enable_grad():
                loss = closure()
        for group in self.param_groups:
            weights: list[Tensor] = [value for value in group["params"] if value.grad is not None]
            if not weights:
                continue
            grads: list[Tensor] = [value.grad for value in weights]  # type: ignore[misc]
            decay, lr = group["weight_decay"], group["lr"]
            steps = torch._foreach_add(grads, weights, alpha=decay)  # pyright: ignore[reportPrivateImportUsage]
            scales = torch.full((len(weights),), lr, dtype=weights[0].dtype, device=weights[0].device)
            if group["adaptive"]:
                length = torch.stack(torch._foreach_norm(weights))  # pyright: ignore[reportPrivateImportUsage]
                slope = torch.stack(torch._foreach_norm(grads))  # pyright: ignore[reportPrivateImportUsage]
                trust = _ETA * length / (slope + decay * length + _EPSILON)
                scales = scales * torch.where((length > 0) & (slope > 0), trust, torch.ones_like(trust))
            torch._foreach_mul_(steps, list(scales))  # pyright: ignore[reportPrivateImportUsage]
            for value, step in zip(weights, steps, strict=True):
                state = self.state[value]
                if "momentum_buffer" not in state:
                    state["momentum_buffer"] = torch.zeros_like(value)
                state["momentum_buffer"].mul_(group["momentum"]).add_(step)
                value.sub_(state["momentum_buffer"])
        return loss
