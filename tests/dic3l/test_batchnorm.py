"""Grouped BatchNorm is nn.BatchNorm on each group, masked rows or not."""

from __future__ import annotations

import pytest
import torch
from torch import nn
from torchvision.models import resnet18

from dic3l.batchnorm import GroupedBatchNorm1d, GroupedBatchNorm2d, convert, follow, set_groups
from dic3l.errors import ConfigError

LATER = 1000
"""a step at which running statistics follow as torch's"""


def grouped_1d(channels: int, *sizes: int) -> GroupedBatchNorm1d:
    norm = GroupedBatchNorm1d(channels)
    norm.group_sizes = sizes
    return norm


def like(reference: nn.Module, grouped: nn.Module) -> None:
    """Give both the same random weights."""
    for parameter in reference.parameters():
        nn.init.normal_(parameter)
    grouped.load_state_dict(reference.state_dict())


@pytest.mark.parametrize("groups", [1, 2, 4])
def test_each_group_is_normalised_as_by_a_process_of_its_own(groups):
    torch.manual_seed(0)
    alone = [nn.BatchNorm2d(3).double() for _ in range(groups)]
    grouped = GroupedBatchNorm2d(3).double()
    grouped.group_sizes = (8 // groups,) * groups
    like(alone[0], grouped)
    for norm in alone[1:]:
        norm.load_state_dict(alone[0].state_dict())
    weights = torch.randn(8, 3, 4, 5).double()
    for _ in range(3):
        x = torch.randn(8, 3, 4, 5, dtype=torch.float64, requires_grad=True)
        twin = x.detach().clone().requires_grad_()
        out = grouped(x)
        expected = torch.cat([norm(part) for norm, part in zip(alone, twin.chunk(groups), strict=True)])
        torch.testing.assert_close(out, expected, rtol=0, atol=1e-13)
        (out * weights).sum().backward()
        (expected * weights).sum().backward()
        follow(grouped, LATER)
        torch.testing.assert_close(x.grad, twin.grad, rtol=0, atol=1e-12)
    total = torch.stack([norm.weight.grad for norm in alone if norm.weight.grad is not None]).sum(0)
    torch.testing.assert_close(grouped.weight.grad, total, rtol=1e-12, atol=1e-12)
    for name in ("running_mean", "running_var"):
        mean = torch.stack([getattr(norm, name) for norm in alone]).mean(0)
        torch.testing.assert_close(getattr(grouped, name), mean, rtol=0, atol=1e-13)
    assert int(grouped.num_batches_tracked) == 3


def test_evaluation_uses_the_running_statistics():
    reference, grouped = nn.BatchNorm2d(3), GroupedBatchNorm2d(3)
    reference(torch.randn(4, 3, 5, 5) * 3 + 1)
    like(reference, grouped)
    x = torch.randn(3, 3, 2, 2)
    torch.testing.assert_close(grouped.eval()(x), reference.eval()(x))


def test_masked_rows_are_as_if_they_were_not_there():
    torch.manual_seed(1)
    grouped = grouped_1d(4, 6, 6).double()
    alone = [nn.BatchNorm1d(4).double() for _ in range(2)]
    like(alone[0], grouped)
    alone[1].load_state_dict(alone[0].state_dict())
    x = torch.randn(12, 4, dtype=torch.float64, requires_grad=True)
    twin = x.detach().clone().requires_grad_()
    mask = torch.tensor([1, 0, 1, 1, 0, 1, 1, 1, 0, 0, 0, 1]).bool()
    out = grouped(x, mask)
    expected = torch.cat([norm(half[m]) for norm, half, m in zip(alone, twin.chunk(2), mask.chunk(2), strict=True)])
    torch.testing.assert_close(out[mask], expected, rtol=0, atol=1e-13)
    out[mask].pow(3).sum().backward()
    expected.pow(3).sum().backward()
    follow(grouped, LATER)
    torch.testing.assert_close(x.grad, twin.grad, rtol=0, atol=1e-12)
    for name in ("running_mean", "running_var"):
        mean = torch.stack([getattr(norm, name) for norm in alone]).mean(0)
        torch.testing.assert_close(getattr(grouped, name), mean, rtol=0, atol=1e-13)


def test_without_a_mask_all_rows_count():
    x = torch.randn(6, 4)
    torch.testing.assert_close(
        grouped_1d(4, 3, 3)(x), torch.cat([nn.BatchNorm1d(4)(half) for half in x.chunk(2)]), rtol=1e-5, atol=1e-5
    )


@pytest.mark.parametrize("valid", [0, 1])
def test_a_group_with_no_or_one_valid_row_stays_finite_and_leaves_the_statistics(valid):
    norm = GroupedBatchNorm1d(3)
    nn.init.normal_(norm.bias)
    mask = torch.zeros(5, dtype=torch.bool)
    mask[:valid] = True
    x = torch.randn(5, 3, requires_grad=True)
    out = norm(x, mask)
    torch.testing.assert_close(out[mask], norm.bias.detach().expand(valid, 3))
    (out * mask[:, None]).sum().backward()
    assert x.grad is not None and x.grad.isfinite().all()
    follow(norm, 0)
    assert norm.running_mean.eq(0).all() and norm.running_var.eq(1).all()


def test_the_masked_form_computes_in_float32_under_autocast_and_returns_the_dtype_it_got():
    norm, x = GroupedBatchNorm1d(3), torch.randn(64, 3)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        out = norm(x.bfloat16())
    assert out.dtype == torch.bfloat16
    torch.testing.assert_close(out, nn.BatchNorm1d(3)(x.bfloat16().float()).bfloat16())


def test_a_converted_network_has_the_same_state_dict_and_the_same_output():
    torch.manual_seed(0)
    network, twin = resnet18(), resnet18()
    twin.load_state_dict(network.state_dict())
    assert convert(twin) is twin
    assert not any(isinstance(module, nn.BatchNorm2d) for module in twin.modules())
    assert list(twin.state_dict()) == list(network.state_dict())
    x = torch.randn(4, 3, 64, 64)
    torch.testing.assert_close(twin(x), network(x))
    follow(twin, LATER)
    torch.testing.assert_close(twin.state_dict(), network.state_dict())


@pytest.mark.parametrize("groups", [1, 2])
def test_channels_last_stays_channels_last(groups):
    x = torch.randn(4, 3, 5, 5).contiguous(memory_format=torch.channels_last)
    norm = GroupedBatchNorm2d(3)
    norm.group_sizes = (4 // groups,) * groups
    assert norm(x).is_contiguous(memory_format=torch.channels_last)


def test_groups_may_be_of_unequal_size_and_rows_several_to_an_image():
    torch.manual_seed(0)
    images, rows = torch.randn(5, 3, 4, 4), torch.randn(10, 3)
    maps, vectors = GroupedBatchNorm2d(3), GroupedBatchNorm1d(3)
    network = nn.ModuleList([maps, vectors])
    set_groups(network, (3, 2))
    expected = torch.cat([nn.BatchNorm2d(3)(part) for part in images.split([3, 2])])
    torch.testing.assert_close(maps(images), expected, rtol=1e-5, atol=1e-5)
    expected = torch.cat([nn.BatchNorm1d(3)(part) for part in rows.split([6, 4])])
    torch.testing.assert_close(vectors(rows), expected, rtol=1e-5, atol=1e-5)


def test_running_statistics_move_once_a_step_by_all_its_parts():
    """Two halves of a batch, one after the other, leave what the whole leaves; the first step leaves its own."""
    x = torch.randn(8, 3, 4, 4).double()
    whole, halves = GroupedBatchNorm2d(3).double(), GroupedBatchNorm2d(3).double()
    for step in (0, 1, 50):
        set_groups(whole, (4, 4))
        set_groups(halves, (4,))
        whole(x + step)
        for half in x.chunk(2):
            halves(half + step)
        follow(whole, step)
        follow(halves, step)
        torch.testing.assert_close(halves.state_dict(), whole.state_dict(), rtol=0, atol=1e-14)
        if step == 0:
            means = torch.stack([half.mean((0, 2, 3)) for half in x.chunk(2)]).mean(0)
            torch.testing.assert_close(whole.running_mean, means)
    assert int(whole.num_batches_tracked) == 3


def test_a_batch_other_than_the_one_divided_is_refused_with_the_numbers():
    norm = GroupedBatchNorm2d(3)
    set_groups(norm, (2, 2))
    with pytest.raises(ConfigError, match=r"expected the 4 images that were divided in groups, found 5 rows"):
        norm(torch.randn(5, 3, 4, 4))
