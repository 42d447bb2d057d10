"""The frozen backbone is torchvision's, weights are checked by name, BatchNorm takes the data's statistics."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.torch import save_file
from torchvision import models
from torchvision.models.feature_extraction import create_feature_extractor

from dic3l.errors import CheckpointError, Dic3lError
from dic3l.evaluate.backbone import STRIDES, Backbone, estimate_batch_statistics, load_backbone, random_backbone


def _codes(n: int, side: int, seed: int = 0) -> torch.Tensor:
    return torch.from_numpy(np.random.default_rng(seed).integers(0, 256, (n, side, side), dtype=np.uint8))


def test_stages_are_those_of_torchvision() -> None:
    torch.manual_seed(0)
    reference = models.resnet18(weights=None).eval()
    backbone = Backbone("resnet18")
    backbone.network.load_state_dict({k: v for k, v in reference.state_dict().items() if not k.startswith("fc.")})
    codes = _codes(2, 64)
    x = codes[:, None].float().div(255).repeat(1, 3, 1, 1)
    x = (x - torch.tensor([0.485, 0.456, 0.406]).view(3, 1, 1)) / torch.tensor([0.229, 0.224, 0.225]).view(3, 1, 1)
    with torch.no_grad():
        expected = create_feature_extractor(reference, [f"layer{i}" for i in range(1, 5)])(x)
    for found, wanted, stride in zip(backbone(codes), expected.values(), STRIDES, strict=True):
        torch.testing.assert_close(found, wanted, rtol=1e-4, atol=1e-5)
        assert found.shape[2] == 64 // stride


@pytest.mark.parametrize("suffix", [".pt", ".safetensors"])
@pytest.mark.parametrize("with_fc", [True, False])
def test_weights_come_back_from_a_file(tmp_path: Path, suffix: str, with_fc: bool) -> None:
    torch.manual_seed(1)
    state = models.resnet18(weights=None).state_dict()
    if not with_fc:
        state = {name: value for name, value in state.items() if not name.startswith("fc.")}
    path = tmp_path / f"weights{suffix}"
    save_file(state, path) if suffix == ".safetensors" else torch.save(state, path)
    loaded = load_backbone(path, "resnet18").network.state_dict()
    assert all(torch.equal(loaded[name], state[name]) for name in loaded)


def test_wrong_files_are_refused_by_name(tmp_path: Path) -> None:
    path = tmp_path / "weights.pt"
    torch.save(models.resnet18(weights=None).state_dict(), path)
    with pytest.raises(Dic3lError, match=r"resnet34: \d+ missing \(layer1\.2"):
        load_backbone(path, "resnet34")
    with pytest.raises(Dic3lError, match="resnet50"):
        load_backbone(path, "vgg16")
    torch.save({"state_dict": {}}, path)
    with pytest.raises(Dic3lError, match="state dict"):
        load_backbone(path, "resnet18")
    path.write_bytes(b"not a file of torch")
    with pytest.raises(Dic3lError, match=r"expected a state dict \("):
        load_backbone(path, "resnet18")
    with pytest.raises(CheckpointError, match="holds no checkpoint"):
        load_backbone(tmp_path, "resnet18")
    with pytest.raises(Dic3lError, match="found no such file"):
        load_backbone(tmp_path / "none.pt", "resnet18")


def test_random_weights_are_a_function_of_the_seed_and_leave_the_global_generator_alone() -> None:
    torch.manual_seed(5)
    expected = torch.rand(1)
    torch.manual_seed(5)
    first, again, other = (random_backbone("resnet18", seed).network.conv1.weight for seed in (0, 0, 1))
    assert torch.equal(torch.rand(1), expected)
    assert torch.equal(first, again) and not torch.equal(first, other)


def test_batch_statistics_are_the_means_over_batches() -> None:
    backbone = random_backbone("resnet18", 0)
    batches = [_codes(4, 32, seed=1), _codes(4, 32, seed=2)]
    inputs: list[torch.Tensor] = []
    hook = backbone.network.bn1.register_forward_hook(lambda module, args, output: inputs.append(args[0]))
    assert estimate_batch_statistics(backbone, batches) == 8
    hook.remove()
    mean = torch.stack([x.mean(dim=(0, 2, 3)) for x in inputs]).mean(dim=0)
    var = torch.stack([x.var(dim=(0, 2, 3), unbiased=True) for x in inputs]).mean(dim=0)
    torch.testing.assert_close(backbone.network.bn1.running_mean, mean)
    torch.testing.assert_close(backbone.network.bn1.running_var, var)
    assert not any(module.training for module in backbone.modules())


def test_step_i_of_a_stage_looks_at_pixel_stride_times_i() -> None:
    """The claim behind `interpolation`: where the gradient of a step is centred in the input."""
    backbone = random_backbone("resnet18", 0)
    for parameter in backbone.parameters():
        parameter.data.abs_()  # all positive: no cancellation, every path open
    middle = {}
    network = backbone.network
    x = torch.full((1, 3, 512, 512), 1.0, requires_grad=True)
    y = network.relu(network.bn1(network.conv1(x)))
    y = torch.nn.functional.avg_pool2d(y, 3, 2, 1)  # a max pool of a constant picks an arbitrary corner
    for stride, layer in zip(STRIDES, (network.layer1, network.layer2, network.layer3, network.layer4), strict=True):
        y = layer(y)
        step = y.shape[2] // 2
        (gradient,) = torch.autograd.grad(y[0, :, step, step].sum(), x, retain_graph=True)
        weight = gradient[0].sum(dim=(0, 2))
        middle[stride] = float((weight * torch.arange(512)).sum() / weight.sum()) - stride * step
    # against stride * i + (stride - 1) / 2, the middle of the cell: 1.5, 3.5, 7.5 and 15.5 off
    assert all(abs(offset) < 0.35 * (stride - 1) / 2 + 0.2 for stride, offset in middle.items()), middle
