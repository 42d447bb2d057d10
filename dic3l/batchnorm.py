"""BatchNorm over groups of the batch: what W processes do, on any number of processes.

Momentum contrast needs keys that are normalised with other images than their queries (He et al., 2020, section 3.3),
which many processes get from local statistics and a shuffled batch. Here the group is a setting of its own: a batch
is normalised in G contiguous groups (`dic3l.groups`), be they on one process or on G. Synchronised BatchNorm is no
substitute: it lets every query see the statistics of its own key.

Names of weights are those of `nn.BatchNorm2d`. Forward passes only gather statistics; `follow` moves the running ones,
once a step, by the mean over the groups of all processes and parts: so they are the same on every process, and as one
process would have them.
"""

from __future__ import annotations

from typing import Any, cast

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from dic3l import distributed
from dic3l.errors import ConfigError
from dic3l.precision import full_precision, without_autocast

_FOLLOW = 0.1
"""share of a step's statistics in the running ones, as torch's; more in the first steps, which have no past"""


class _GroupedBatchNorm(nn.Module):
    """Weights and running statistics, named and initialised as in `nn.BatchNorm2d`."""

    running_mean: Tensor
    running_var: Tensor
    num_batches_tracked: Tensor
    gathered: Tensor

    def __init__(self, channels: int, eps: float = 1e-5) -> None:
        super().__init__()
        self.eps = eps
        self.group_sizes: tuple[int, ...] | None = None
        """images of each group; None: one group"""
        self.weight = nn.Parameter(torch.ones(channels))
        self.bias = nn.Parameter(torch.zeros(channels))
        self.register_buffer("running_mean", torch.zeros(channels))
        self.register_buffer("running_var", torch.ones(channels))
        self.register_buffer("num_batches_tracked", torch.tensor(0, dtype=torch.long))
        # sums over groups since the last `follow`: means, variances, and how many groups
        self.register_buffer("gathered", torch.zeros(2 * channels + 1), persistent=False)

    def extra_repr(self) -> str:
        return f"{len(self.weight)}, group_sizes={self.group_sizes}, eps={self.eps}"

    def _evaluate(self, x: Tensor) -> Tensor:
        return F.batch_norm(x, self.running_mean, self.running_var, self.weight, self.bias, eps=self.eps)

    def _sizes(self, rows: int) -> list[int]:
        """Rows of each group, where an image has one row or the same number of rows each."""
        if self.group_sizes is None:
            return [rows]
        images = sum(self.group_sizes)
        if rows % images:
            raise ConfigError(f"batch: expected the {images} images that were divided in groups, found {rows} rows")
        return [size * (rows // images) for size in self.group_sizes]

    @torch.no_grad()
    def _gather(self, means: Tensor, variances: Tensor) -> None:
        """Note the statistics of groups, (G, C) each."""
        count = means.new_full((1,), len(means))  # `new_tensor` would make the device wait for the host
        self.gathered += torch.cat((means.sum(0), variances.sum(0), count)).to(self.gathered.dtype)


class _InPlace(torch.autograd.Function):
    """Groups normalised into one tensor: joining them by `torch.cat` is a tenth of a training step."""

    @staticmethod
    def forward(
        ctx: Any,
        x: Tensor,
        weight: Tensor,
        bias: Tensor,
        sizes: list[int],
        means: Tensor,
        variances: Tensor,
        eps: float,
    ) -> Tensor:
        out = torch.empty_like(x)
        saved = []
        for part, target, mean, variance in zip(x.split(sizes), out.split(sizes), means, variances, strict=True):
            known = [mean.new_empty(len(mean)), mean.new_empty(len(mean))]  # mean, and 1 / standard deviation
            torch.ops.aten.native_batch_norm.out(
                part, weight, bias, mean, variance, True, 1.0, eps, out=target, save_mean=known[0], save_invstd=known[1]
            )
            saved += known
        ctx.save_for_backward(x, weight, *saved)
        ctx.sizes, ctx.eps = sizes, eps
        return out

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor | None, ...]:
        x, weight, *saved = ctx.saved_tensors
        found = torch.empty_like(x)
        of_weight, of_bias = torch.zeros_like(weight), torch.zeros_like(weight)
        parts = zip(gradients[0].split(ctx.sizes), x.split(ctx.sizes), found.split(ctx.sizes), strict=True)
        for (gradient, part, target), mean, inverse in zip(parts, saved[::2], saved[1::2], strict=True):
            own, here, there = torch.ops.aten.native_batch_norm_backward(
                gradient, part, weight, None, None, mean, inverse, True, ctx.eps, [True, True, True]
            )
            target.copy_(own)
            of_weight += here
            of_bias += there
        return found, of_weight, of_bias, None, None, None, None


class GroupedBatchNorm2d(_GroupedBatchNorm):
    """`nn.BatchNorm2d` whose training statistics are those of each of the contiguous groups of the batch."""

    def forward(self, x: Tensor) -> Tensor:
        """(N, C, H, W) -> the same shape and dtype."""
        if not self.training:
            return self._evaluate(x)
        sizes = self._sizes(len(x))
        # with momentum 1 batch_norm leaves the batch's own mean and unbiased variance in the buffers it is given
        means, variances = self.running_mean.new_zeros(2, len(sizes), len(self.running_mean)).unbind()
        if len(sizes) == 1 or torch.compiler.is_compiling():  # a compiler fuses what it joins
            parts = [
                F.batch_norm(part, mean, variance, self.weight, self.bias, training=True, momentum=1.0, eps=self.eps)
                for part, mean, variance in zip(x.split(sizes), means, variances, strict=True)
            ]
            out = parts[0] if len(parts) == 1 else torch.cat(parts)
        else:
            out = cast(Tensor, _InPlace.apply(x, self.weight, self.bias, sizes, means, variances, self.eps))
        self._gather(means, variances)
        return out


class GroupedBatchNorm1d(_GroupedBatchNorm):
    """Grouped BatchNorm of rows, some of which may be masked: they enter no statistics.

    A group without two valid rows has no variance: a lone row becomes the bias, and the running statistics count
    that group as unchanged.
    """

    def forward(self, x: Tensor, mask: Tensor | None = None) -> Tensor:
        """Rows (R, C), those of a group contiguous; mask: bool (R,), True = valid -> (R, C) in the dtype of x."""
        if not self.training:
            return self._evaluate(x)
        sizes = self._sizes(len(x))
        with without_autocast(x):
            rows = full_precision(x)
            valid = rows.new_ones(len(x), 1) if mask is None else mask.to(rows.dtype)[:, None]
            # groups of one size at once: a step of a small network waits for the number of its operations
            at_once = len(sizes) if len(set(sizes)) == 1 else 1
            outputs = []
            for start in range(0, len(sizes), at_once):
                size = sizes[start]
                first = sum(sizes[:start])
                part = rows[first : first + at_once * size].view(at_once, size, -1)
                here = valid[first : first + at_once * size].view(at_once, size, 1)
                count = here.sum(1)
                mean = (part * here).sum(1) / count.clamp(min=1)
                centred = part - mean[:, None]
                squares = (centred.square() * here).sum(1)
                scale = torch.rsqrt(squares / count.clamp(min=1) + self.eps)
                outputs.append((centred * scale[:, None] * self.weight + self.bias).flatten(0, 1))
                unbiased = squares / (count - 1).clamp(min=1)
                self._gather(
                    torch.where(count > 1, mean, self.running_mean),
                    torch.where(count > 1, unbiased, self.running_var),
                )
        return torch.cat(outputs).to(x.dtype)


def convert(module: nn.Module) -> nn.Module:
    """Swap every `nn.BatchNorm2d` inside `module`, in place, for a grouped one with the same weights. Returns it."""
    for name, child in module.named_children():
        if isinstance(child, nn.BatchNorm2d):
            grouped = GroupedBatchNorm2d(child.num_features, child.eps)
            grouped.load_state_dict(child.state_dict())
            setattr(module, name, grouped)
        else:
            convert(child)
    return module


def set_groups(module: nn.Module, sizes: tuple[int, ...]) -> None:
    """Images of each group of the next forward pass."""
    for norm in _norms(module):
        norm.group_sizes = sizes


@torch.no_grad()
def follow(module: nn.Module, step: int) -> None:
    """Move the running statistics towards those gathered since the last call, by all processes: one all-reduce.

    To be called by every rank, once a step. step: steps before this one.
    """
    norms = [norm for norm in _norms(module) if norm.training]
    if not norms:
        return
    sums = distributed.all_reduce(torch.cat([norm.gathered for norm in norms]))
    share = max(_FOLLOW, 1 / (step + 1))
    for norm, part in zip(norms, sums.split([len(norm.gathered) for norm in norms]), strict=True):
        means, variances = (part[:-1] / part[-1]).chunk(2)
        norm.running_mean.lerp_(means, share)
        norm.running_var.lerp_(variances, share)
        norm.num_batches_tracked += 1
        norm.gathered.zero_()


def _norms(module: nn.Module) -> list[_GroupedBatchNorm]:
    return [child for child in module.modules() if isinstance(child, _GroupedBatchNorm)]
