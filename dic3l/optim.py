"""The optimiser and its learning rate: a pure function of the step."""

from __future__ import annotations

import math
from typing import Any

import torch
from torch import nn

from dic3l.config import Config, OptimConfig
from dic3l.lars import LARS

REFERENCE_BATCH = 256
"""batch size at which `optim.lr` is meant"""
_LONGEST_WARMUP = 0.1
"""of the run"""
_LEAST_MOMENTUM = 0.99
"""of a key network that is made faster for a short run: with one that is faster still, queries tell their key from
older ones by its drift, and learn that (docs/state.md)"""


def total_steps(config: Config, tiles: int) -> int:
    """Optimiser steps of a run over `tiles` tiles: `train.steps`, else those that show every tile `train.epochs` times.

    The last batch may begin another epoch: epochs follow one another without a gap.
    """
    return config.train.steps or max(1, math.ceil(config.train.epochs * tiles / config.train.batch_size))


def peak_rate(config: Config) -> float:
    """The highest learning rate: `optim.lr`, scaled linearly with the batch size."""
    return config.optim.lr * config.train.batch_size / REFERENCE_BATCH


def learning_rate(step: int, total: int, peak: float, warmup: int = 0) -> float:
    """Rate of step 0 <= step < total: a linear rise over `warmup` steps, then a cosine from `peak` to 0 at `total`.

    The rise takes at most a tenth of the run.
    """
    warmup = min(warmup, int(_LONGEST_WARMUP * total))
    if step < warmup:
        return peak * (step + 1) / warmup
    progress = (step - warmup) / max(1, total - warmup)
    return peak * 0.5 * (1 + math.cos(math.pi * progress))


def key_momentum(config: Config, total: int) -> float:
    """Momentum of the key network: `method.momentum`, or less, where that would average over too much of the run.

    Not below 0.99 for that reason.
    """
    span = config.method.momentum_span * total
    return config.method.momentum if span <= 0 else min(config.method.momentum, max(_LEAST_MOMENTUM, 1 - 1 / span))


def queue_length(config: Config, tiles: int) -> int:
    """K: `method.queue_size`, or less, where that is more than `method.queue_share` of the train tiles."""
    return max(1, min(config.method.queue_size, int(config.method.queue_share * tiles)))


def make_optimiser(network: nn.Module, config: OptimConfig) -> torch.optim.Optimizer:
    """SGD or LARS over the weights that learn, in two groups: matrices and kernels; vectors (biases, BatchNorm).

    The learning rate is set at each step by whoever steps. SGD's fused kernel exists on CPU and CUDA.
    """
    learned = [value for value in network.parameters() if value.requires_grad]
    groups: list[dict[str, Any]] = [
        {"params": [value for value in learned if value.ndim > 1], "weight_decay": config.weight_decay},
        {
            "params": [value for value in learned if value.ndim <= 1],
            "weight_decay": config.weight_decay if config.decay_vectors else 0.0,
        },
    ]
    if config.optimiser == "lars":
        groups[1]["adaptive"] = False  # a bias near 0 could not leave it
        return LARS(groups, momentum=config.sgd_momentum)
    return torch.optim.SGD(groups, lr=0.0, momentum=config.sgd_momentum, fused=True)
