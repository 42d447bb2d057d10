"""BatchNorm over groups of the batch: what W processes do, on any number of processes.

Momentum contrast needs keys that are normalised with other images than their queries (He et al., 2020, section 3.3),
which many processes get from local statistics and a shuffled batch. Here the group is a setting of its own: a batch
of B images is normalised in G contiguous groups of B/G, be they on one process or on G. Synchronised BatchNorm is no
substitute: it lets every query see the statistics of its own key.

Names of weights are those of `nn.BatchNorm2d`. Running statistics follow the mean over groups, so that the mean over
processes (`distributed.average_running_stats`) is what one process would hold.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from dic3l.errors import ConfigError
from dic3l.precision import full_precision, without_autocast


def _group_size(rows: int, groups: int) -> int:
    if rows % groups:
        raise ConfigError(
            f"bn_groups: {rows} images of a process cannot be split in {groups} equal groups; "
            "make the batch size a multiple of bn_groups"
        )
    return rows // groups


class _GroupedBatchNorm(nn.Module):
    """Weights and running statistics, named and initialised as in `nn.BatchNorm2d`."""

    running_mean: Tensor
    running_var: Tensor
    num_batches_tracked: Tensor

    def __init__(self, channels: int, groups: int, eps: float = 1e-5, momentum: float = 0.1) -> None:
        super().__init__()
        self.groups, self.eps, self.momentum = groups, eps, momentum
        self.weight = nn.Parameter(torch.ones(channels))
        self.bias = nn.Parameter(torch.zeros(channels))
        self.register_buffer("running_mean", torch.zeros(channels))
        self.register_buffer("running_var", torch.ones(channels))
        self.register_buffer("num_batches_tracked", torch.tensor(0, dtype=torch.long))

    def extra_repr(self) -> str:
        return f"{len(self.weight)}, groups={self.groups}, eps={self.eps}, momentum={self.momentum}"

    def _evaluate(self, x: Tensor) -> Tensor:
        return F.batch_norm(x, self.running_mean, self.running_var, self.weight, self.bias, eps=self.eps)

    @torch.no_grad()
    def _follow(self, mean: Tensor, variance: Tensor) -> None:
        """Move the running statistics towards these, (C,) each."""
        self.running_mean.lerp_(mean, self.momentum)
        self.running_var.lerp_(variance, self.momentum)
        self.num_batches_tracked += 1


class GroupedBatchNorm2d(_GroupedBatchNorm):
    """`nn.BatchNorm2d` whose training statistics are those of each of `groups` contiguous parts of the batch."""

    def forward(self, x: Tensor) -> Tensor:
        """(N, C, H, W) -> the same shape and dtype."""
        if not self.training:
            return self._evaluate(x)
        size = _group_size(len(x), self.groups)
        # with momentum 1 batch_norm leaves the batch's own mean and unbiased variance in the buffers it is given
        means = torch.zeros_like(self.running_mean).repeat(self.groups, 1)
        variances = torch.zeros_like(self.running_var).repeat(self.groups, 1)
        parts = [
            F.batch_norm(part, mean, variance, self.weight, self.bias, training=True, momentum=1.0, eps=self.eps)
            for part, mean, variance in zip(x.split(size), means, variances, strict=True)
        ]
        self._follow(means.mean(0), variances.mean(0))
        return parts[0] if self.groups == 1 else torch.cat(parts)


class GroupedBatchNorm1d(_GroupedBatchNorm):
    """Grouped BatchNorm of rows, some of which may be masked: they enter no statistics.

    A group without two valid rows has no variance: a lone row becomes the bias, and the running statistics count
    that group as unchanged.
    """

    def forward(self, x: Tensor, mask: Tensor | None = None) -> Tensor:
        """Rows (R, C), those of a group contiguous; mask: bool (R,), True = valid -> (R, C) in the dtype of x."""
        if not self.training:
            return self._evaluate(x)
        size = _group_size(len(x), self.groups)
        with without_autocast(x):
            rows = full_precision(x).view(self.groups, size, -1)
            valid = rows.new_ones(self.groups, size, 1)
            if mask is not None:
                valid = mask.to(rows.dtype).view(self.groups, size, 1)
            count = valid.sum(1)
            mean = (rows * valid).sum(1) / count.clamp(min=1)
            centred = rows - mean[:, None]
            squares = (centred.square() * valid).sum(1)
            scale = torch.rsqrt(squares / count.clamp(min=1) + self.eps) * self.weight
            output = centred * scale[:, None] + self.bias
            known = count > 1
            unbiased = squares.detach() / (count - 1).clamp(min=1)
            self._follow(
                torch.where(known, mean.detach(), self.running_mean).mean(0),
                torch.where(known, unbiased, self.running_var).mean(0),
            )
        return output.view(len(x), -1).to(x.dtype)


def convert(module: nn.Module, groups: int) -> nn.Module:
    """Swap every `nn.BatchNorm2d` inside `module`, in place, for a grouped one with the same weights. Returns it."""
    for name, child in module.named_children():
        if isinstance(child, nn.BatchNorm2d):
            momentum = 0.1 if child.momentum is None else child.momentum
            grouped = GroupedBatchNorm2d(child.num_features, groups, child.eps, momentum)
            grouped.load_state_dict(child.state_dict())
            setattr(module, name, grouped)
        else:
            convert(child, groups)
    return module
