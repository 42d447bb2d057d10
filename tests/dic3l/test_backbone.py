"""The backbone is torchvision's or timm's, weights are checked by name, BatchNorm takes the data's statistics."""

from __future__ import annotations

import io
import sys
import types
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors.torch import save_file
from torch import Tensor, nn
from torchvision import models
from torchvision.models.feature_extraction import create_feature_extractor

from dic3l.errors import CheckpointError, ConfigError, Dic3lError
from dic3l.evaluate.backbone import Backbone, estimate_batch_statistics, load_backbone, random_backbone
from dic3l.evaluate.pyramid import STRIDES


@pytest.fixture(autouse=True, scope="module")
def _one_thread() -> Iterator[None]:
    """Small convolutions are as quick on one thread, and many times quicker where other processes use the cores."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)


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
        load_backbone(path, "no_such_network")
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


# ------------------------------------------------------------------------------------------------- weights of others


def _resnet_state(seed: int) -> dict[str, Tensor]:
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        return dict(models.resnet18(weights=None).state_dict())


def _under(prefix: str, state: dict[str, Tensor]) -> dict[str, Tensor]:
    return {prefix + name: value for name, value in state.items()}


def _moco(state: dict[str, Tensor]) -> dict[str, Any]:
    """A checkpoint of MoCo's published code: query and momentum encoder, queue, optimiser."""
    query = _under("module.encoder_q.", state)
    key = _under("module.encoder_k.", _resnet_state(9))
    queue = {"module.queue": torch.zeros(128, 16), "module.queue_ptr": torch.zeros(1, dtype=torch.long)}
    moments = {"state": {0: {"momentum_buffer": torch.zeros(64, 3, 7, 7)}}, "param_groups": [{"lr": 0.03}]}
    return {"epoch": 200, "arch": "resnet18", "state_dict": {**query, **key, **queue}, "optimizer": moments}


def _seco(state: dict[str, Tensor]) -> dict[str, Any]:
    """One of SeCo's: nn.Sequential of the children but the last, heads beside."""
    network = models.resnet18(weights=None)
    network.load_state_dict(state)
    numbered = nn.Sequential(*list(network.children())[:-1], nn.Flatten()).state_dict()
    other = {name: value + 1 for name, value in numbered.items()}
    heads = _under("heads_q.0.", nn.Linear(4, 4).state_dict())
    return {"state_dict": {**_under("encoder_q.", numbered), **_under("encoder_k.", other), **heads}, "global_step": 7}


@pytest.mark.parametrize(
    "wrap",
    [
        lambda state: {"state_dict": state},
        lambda state: {"model": state, "epoch": 3},
        lambda state: {"teacher": _under("module.backbone.", state), "student": _under("module.", _resnet_state(8))},
        lambda state: _under("module.", state),
        lambda state: {"state_dict": _under("backbone.", state) | {"decode_head.conv.weight": torch.zeros(2, 2, 1, 1)}},
        lambda state: _under("encoder.", {k: v for k, v in state.items() if not k.startswith("fc.")}),
        _moco,
        _seco,
    ],
    ids="state_dict model teacher module backbone encoder moco seco".split(),
)
def test_wrapped_and_prefixed_weights_are_found(wrap: Callable[[dict[str, Tensor]], Any], tmp_path: Path) -> None:
    state = _resnet_state(1)
    torch.save(wrap(state), tmp_path / "weights.pth")
    loaded = load_backbone(tmp_path / "weights.pth", "resnet18").network.state_dict()
    assert all(torch.equal(loaded[name], state[name]) for name in loaded)
    assert len(loaded) == len(state) - 2  # all but fc


def test_a_prefix_that_hides_a_fault_is_not_stripped(tmp_path: Path) -> None:
    path = tmp_path / "weights.pt"
    short = _resnet_state(1)
    del short["layer3.0.conv2.weight"]
    torch.save({"state_dict": _under("backbone.", short)}, path)
    with pytest.raises(Dic3lError, match=r"1 missing \(layer3\.0\.conv2\.weight\) below state_dict\.backbone\."):
        load_backbone(path, "resnet18")
    torch.save(_under("backbone.", {**_resnet_state(1), "projector.0.weight": torch.zeros(4, 4)}), path)
    with pytest.raises(Dic3lError, match=r"1 unexpected \(projector\.0\.weight\) below backbone\."):
        load_backbone(path, "resnet18")
    torch.save(_under("a.", _resnet_state(1)) | _under("b.", _resnet_state(2)), path)
    with pytest.raises(Dic3lError, match=r"holds 2 networks that are a torchvision resnet18 \(a\., b\.\)"):
        load_backbone(path, "resnet18")


def test_objects_of_other_programs_in_a_file_are_neither_imported_nor_run(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A Lightning checkpoint holds settings and callbacks of classes that are not installed here."""

    class Settings(dict):  # type: ignore[type-arg]
        def __reduce__(self) -> tuple[object, ...]:
            return evil, ("ran",), {"a": 1}, iter([1]), iter([("k", 2)])

    def evil(text: str) -> list[str]:
        raise AssertionError("code of a weights file was run")

    module = types.ModuleType("foreign_program")
    module.evil = evil  # type: ignore[attr-defined]
    evil.__module__, evil.__qualname__ = "foreign_program", "evil"
    monkeypatch.setitem(sys.modules, "foreign_program", module)
    state = _resnet_state(1)
    for zipped in (True, False):
        torch.save(
            {"state_dict": state, "hyper_parameters": Settings()},
            tmp_path / "last.ckpt",
            _use_new_zipfile_serialization=zipped,
        )
        loaded = load_backbone(tmp_path / "last.ckpt", "resnet18").network.state_dict()
        assert all(torch.equal(loaded[name], state[name]) for name in loaded)


def test_a_single_channel_stem_is_told_by_the_file(tmp_path: Path) -> None:
    state = _resnet_state(1)
    grey = {**state, "conv1.weight": state["conv1.weight"].sum(1, keepdim=True)}
    torch.save({"model": _under("module.", grey)}, tmp_path / "grey.pt")
    backbone = load_backbone(tmp_path / "grey.pt", "resnet18")
    assert backbone.stem == "single" and torch.equal(backbone.network.conv1.weight, grey["conv1.weight"])
    two = {**state, "conv1.weight": state["conv1.weight"][:, :2]}
    torch.save(two, tmp_path / "two.pt")
    with pytest.raises(Dic3lError, match=r"1 of another shape \(conv1\.weight\)"):
        load_backbone(tmp_path / "two.pt", "resnet18")


# ------------------------------------------------------------------------------------------------ networks of timm


def _inputs(codes: Tensor) -> Tensor:
    mean, std = (torch.tensor(v).view(1, 3, 1, 1) for v in ([0.485, 0.456, 0.406], [0.229, 0.224, 0.225]))
    return (codes[:, None].float().div(255) - mean) / std


@pytest.mark.parametrize("arch", ["convnext_atto", "regnetx_002", "resnet10t"])
def test_stages_of_a_network_of_timm_are_its_features(arch: str, tmp_path: Path) -> None:
    timm = pytest.importorskip("timm")
    torch.manual_seed(0)
    published = timm.create_model(arch, pretrained=False)
    torch.save({"model": _under("module.", published.state_dict())}, tmp_path / "weights.pth")
    backbone = load_backbone(tmp_path / "weights.pth", arch)
    codes = _codes(2, 64)
    expected: list[Tensor] = []
    modules = dict(published.named_modules())
    for entry in published.feature_info[-4:]:  # outputs of the named modules, in a plain forward pass
        modules[entry["module"]].register_forward_hook(lambda module, args, output: expected.append(output))
    with torch.no_grad():
        published.eval()(_inputs(codes))
        found = backbone(codes)
    for one, wanted, stride, channels in zip(found, expected, backbone.strides, backbone.channels, strict=True):
        torch.testing.assert_close(one, wanted, rtol=1e-4, atol=1e-5)
        assert one.shape == (2, channels, 64 // stride, 64 // stride)
    assert backbone.strides == STRIDES


def test_metas_names_of_a_convnext_are_understood(tmp_path: Path) -> None:
    """As SMLFR's and other weights have them: stages.0.0.dwconv, downsample_layers.1.0, gamma, norm, head."""
    timm = pytest.importorskip("timm")
    torch.manual_seed(0)
    published = timm.create_model("convnext_atto", pretrained=False, conv_mlp=False).state_dict()
    ours = random_backbone("convnext_atto", 1).network.state_dict()
    meta = {}
    for name, value in published.items():
        parts = name.split(".")
        if parts[0] == "stem":
            parts[:1] = ["downsample_layers", "0"]
        elif parts[0] == "stages" and parts[2] == "downsample":
            parts[:3] = ["downsample_layers", parts[1]]
        elif parts[0] == "stages":
            parts.pop(2)
            parts = ["dwconv" if one == "conv_dw" else one for one in parts]
            if "mlp" in parts:
                at = parts.index("mlp")
                parts[at : at + 2] = ["pwconv" + parts[at + 1][-1]]
        elif parts[:2] in (["head", "norm"], ["head", "fc"]):
            parts = parts[1:] if parts[1] == "norm" else ["head", parts[2]]
        meta[".".join(parts)] = value
    assert {"downsample_layers.0.0.weight", "stages.0.0.dwconv.weight", "stages.0.0.pwconv1.weight"} <= meta.keys()
    torch.save({"model": meta}, tmp_path / "convnext.pth")
    loaded = load_backbone(tmp_path / "convnext.pth", "convnext_atto").network.state_dict()
    assert loaded.keys() == ours.keys()
    assert all(torch.equal(loaded[name].flatten(), published[name].flatten()) for name in loaded)


def test_networks_without_a_pyramid_are_refused() -> None:
    pytest.importorskip("timm")
    with pytest.raises(ConfigError, match=r"features of strides 4, 8, 16 and 32 expected, 16 found"):
        Backbone("vit_tiny_patch16_224")
    with pytest.raises(ConfigError, match="images of any size expected"):
        Backbone("swin_tiny_patch4_window7_224")
    with pytest.raises(ConfigError, match="output stride of 8"):
        Backbone("pvt_v2_b0", output_stride=8)


@pytest.mark.parametrize("arch", ["convnext_atto", "pvt_v2_b0", "regnetx_002"])
def test_cells_are_centred_where_the_backbone_says(arch: str) -> None:
    """Where the squared gradient of a cell is centred in the input, over random inputs."""
    pytest.importorskip("timm")
    backbone = random_backbone(arch, 0)
    torch.manual_seed(0)
    x = torch.randn(1, 3, 192, 192, requires_grad=True)
    for stage, (stride, centre) in enumerate(zip(backbone.strides[:3], backbone.centres[:3], strict=True), start=1):
        maps = backbone.pyramid(x)[stage]
        cell = maps.shape[2] // 2
        (gradient,) = torch.autograd.grad((maps[:, :, cell, cell] * torch.randn(maps.shape[1])).sum(), x)
        energy = gradient.square().sum(dim=(0, 1))
        found = [float((energy.sum(dim=axis) * torch.arange(192)).sum() / energy.sum()) for axis in (0, 1)]
        assert abs(np.mean(found) - (centre + stride * cell)) < 0.3 * stride, (stride, found)


# ------------------------------------------------------------------------------------- dilation and fine-tuning


@pytest.mark.parametrize("arch", ["resnet18", "resnet50"])
@pytest.mark.parametrize("output_stride", [8, 16])
def test_dilated_stages_are_the_strided_ones_at_more_places(arch: str, output_stride: int) -> None:
    backbone = random_backbone(arch, 0)
    dense = backbone.with_output_stride(output_stride)
    assert dense.strides == tuple(min(stride, output_stride) for stride in STRIDES)
    codes = _codes(1, 64)
    for one, other, stride, dense_stride in zip(
        backbone(codes), dense(codes), backbone.strides, dense.strides, strict=True
    ):
        step = stride // dense_stride
        assert other.shape[2] == 64 // dense_stride
        torch.testing.assert_close(other[..., ::step, ::step], one, rtol=1e-3, atol=1e-4)


def test_dilation_is_that_of_torchvision() -> None:
    dense = random_backbone("resnet50", 0).with_output_stride(8)
    reference = models.resnet50(weights=None, replace_stride_with_dilation=[False, True, True]).eval()
    reference.load_state_dict(dense.network.state_dict(), strict=False)
    codes = _codes(1, 64)
    with torch.no_grad():
        expected = create_feature_extractor(reference, ["layer3", "layer4"])(_inputs(codes))
        found = dense(codes)[2:]
    for one, wanted in zip(found, expected.values(), strict=True):
        torch.testing.assert_close(one, wanted, rtol=1e-3, atol=1e-4)


def test_a_frozen_backbone_stays_as_it_is_and_a_trainable_one_learns() -> None:
    frozen, tuned = random_backbone("resnet18", 0), Backbone("resnet18", trainable=True)
    assert not any(module.training for module in frozen.train().modules())
    assert not any(parameter.requires_grad for parameter in frozen.parameters())
    assert all(module.training for module in tuned.train().modules())
    frozen.set_trainable(True)
    frozen.train()
    buffer = io.BytesIO()
    torch.save(frozen.network.state_dict(), buffer)
    sum(stage.mean() for stage in frozen(_codes(2, 64))).backward()  # type: ignore[union-attr]
    assert all(p.grad is not None and torch.isfinite(p.grad).all() for p in frozen.parameters())
    assert not torch.equal(frozen.network.bn1.running_mean, torch.zeros(64))


def test_estimated_statistics_leave_the_momentum_of_fine_tuning() -> None:
    backbone = random_backbone("resnet18", 0)
    estimate_batch_statistics(backbone, [_codes(2, 32)])
    assert backbone.network.bn1.momentum == 0.1
