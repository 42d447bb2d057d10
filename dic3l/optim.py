"""SGD and its learning rate: a pure function of the step."""

from __future__ import annotations

import math

import torch
from torch import nn

from dic3l.config import Config, OptimConfig

REFERENCE_BATCH = 256
"""batch size at which `optim.lr` is meant"""


def total_steps(config: Config, tiles: int) -> int:
    """Optimiser steps of a run over `tiles` tiles: `train.steps`, else those that show every tile `train.epochs` times.

    The last batch may begin another epoch: epochs follow one another without a gap.
    """
    return config.train.steps or max(1, math.ceil(config.train.epochs * tiles / config.train.batch_size))


def peak_rate(config: Config) -> float:
    """The highest learning rate: `optim.lr`, scaled linearly with the batch size."""
    return config.optim.lr * config.train.batch_size / REFERENCE_BATCH


def learning_rate(step: int, total: int, peak: float, warmup: int = 0) -> float:
    """Rate of step 0 <= step < total: a linear rise over `warmup` steps, then a cosine from `peak` to 0 at `total`."""
    if step < warmup:
        return peak * (step + 1) / warmup
    progress = (step - warmup) / max(1, total - warmup)
    return peak * 0.5 * (1 + math.cos(math.pi * progress))


def make_optimiser(network: nn.Module, config: OptimConfig) -> torch.optim.SGD:
    """SGD over the weights that learn, in two groups: matrices and kernels; vectors (biases, BatchNorm).

    The learning rate is set at each step by whoever steps. The fused kernel exists on CPU and CUDA.
    """
    learned = [value for value in network.parameters() if value.requires_grad]
    groups = [
        {"params": [value for value in learned if value.ndim > 1], "weight_decay": config.weight_decay},
        {
            "params": [value for value in learned if value.ndim <= 1],
            "weight_decay": config.weight_decay if config.decay_vectors else 0.0,
        },
    ]
    return torch.optim.SGD(groups, lr=0.0, momentum=config.sgd_momentum, fused=True)
