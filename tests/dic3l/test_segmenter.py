"""Decoders are those of the libraries and papers, logits lie where they should, and the reach is kept."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.ndimage import map_coordinates
from torch import Tensor
from torchvision import models

from dic3l.errors import ConfigError, Dic3lError
from dic3l.evaluate.backbone import Backbone, random_backbone
from dic3l.evaluate.decoders import KINDS, ChannelAttention, ForegroundScene, PositionAttention
from dic3l.evaluate.probe import Fuse, Probe, backbone_features
from dic3l.evaluate.segmenter import (
    linear_segmenter,
    load_segmenter,
    make_segmenter,
    save_segmenter,
    segment,
    to_pixels,
)

CPU = torch.device("cpu")
LOCAL = ("segment-linear", "fcn", "unet")
"""kinds whose logits hang on pixels nearby only"""


@pytest.fixture(autouse=True, scope="module")
def _one_thread() -> Iterator[None]:
    """Small convolutions are as quick on one thread, and many times quicker where other processes use the cores."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)


@pytest.fixture(scope="module")
def backbone() -> Backbone:
    return random_backbone("resnet18", 0)


def _codes(*shape: int, seed: int = 0) -> np.ndarray:
    return np.random.default_rng(seed).integers(0, 256, shape, dtype=np.uint8)


def _wake(module: torch.nn.Module) -> None:
    """Parameters that start at zero, so that a branch does nothing, are set to something."""
    for parameter in module.parameters():
        if not parameter.any():
            torch.nn.init.constant_(parameter, 0.1)


@pytest.mark.parametrize("kind", KINDS)
def test_every_kind_gives_logits_of_the_image_s_size_and_finite_gradients(kind: str, backbone: Backbone) -> None:
    segmenter = make_segmenter(kind, backbone, 1, "concat", 3, 0)
    segmenter.backbone.set_trainable(True)
    logits = segmenter.train()(torch.from_numpy(_codes(2, 1, 50, 33)))
    assert logits.shape == (2, 3, 50, 33) and logits.dtype == torch.float32
    logits.square().mean().backward()
    assert all(p.grad is not None and torch.isfinite(p.grad).all() for p in segmenter.parameters())
    assert segment(segmenter, _codes(1, 20, 65), CPU).shape == (20, 65)


@pytest.mark.parametrize("kind", ["segment-linear", "fcn", "unet"])
def test_networks_of_timm_take_decoders_too(kind: str) -> None:
    pytest.importorskip("timm")
    segmenter = make_segmenter(kind, random_backbone("convnext_atto", 0), 1, "concat", 2, 0)
    assert segment(segmenter, _codes(1, 70, 50), CPU).shape == (70, 50)


# --------------------------------------------------------------------------------- against libraries and twins


def test_unet_and_upernet_are_those_of_the_library() -> None:
    smp = pytest.importorskip("segmentation_models_pytorch")
    backbone = random_backbone("resnet18", 3)
    x = backbone.normalise(torch.from_numpy(_codes(1, 64, 96)))
    for kind, make in (("unet", smp.Unet), ("upernet", smp.UPerNet)):
        segmenter = make_segmenter(kind, backbone, 1, "concat", 4, 0)
        whole = make("resnet18", encoder_weights=None, classes=4).eval()
        whole.encoder.load_state_dict(segmenter.backbone.network.state_dict(), strict=False)
        whole.decoder.load_state_dict(segmenter.decoder.decoder.state_dict())
        whole.segmentation_head[0].load_state_dict(segmenter.decoder.head.state_dict())
        with torch.no_grad():
            expected = whole.segmentation_head[0](whole.decoder(whole.encoder(x)))
            (found,) = segmenter.cells(x)
        torch.testing.assert_close(found, expected, rtol=1e-4, atol=1e-4)


def test_fcn_is_torchvision_s() -> None:
    segmenter = make_segmenter("fcn", random_backbone("resnet50", 0), 1, "concat", 4, 0)
    whole = models.segmentation.fcn_resnet50(weights=None, weights_backbone=None, num_classes=4).eval()
    whole.backbone.load_state_dict(segmenter.backbone.network.state_dict())
    whole.classifier.load_state_dict(segmenter.decoder.head.state_dict())
    x = segmenter.backbone.normalise(torch.from_numpy(_codes(1, 64, 64)))
    with torch.no_grad():
        expected = whole.classifier(whole.backbone(x)["out"])
        (found,) = segmenter.cells(x)
    torch.testing.assert_close(found, expected, rtol=1e-3, atol=1e-4)


def test_position_attention_is_the_paper_s_sum_over_all_places() -> None:
    torch.manual_seed(0)
    attention = PositionAttention(16).double()
    _wake(attention)
    a = torch.randn(2, 16, 3, 5, dtype=torch.float64)
    found = attention(a)
    for n in range(2):
        flat = a[n].flatten(1)
        b, c, d = (
            conv.weight[:, :, 0, 0] @ flat + conv.bias[:, None]
            for conv in (attention.query, attention.key, attention.value)
        )
        for j in range(flat.shape[1]):
            shares = torch.exp(torch.stack([b[:, j] @ c[:, i] for i in range(flat.shape[1])]))
            expected = attention.gamma * sum(s * d[:, i] for i, s in enumerate(shares / shares.sum())) + flat[:, j]
            torch.testing.assert_close(found[n].flatten(1)[:, j], expected)


def test_channel_attention_is_the_published_sum_over_all_channels() -> None:
    torch.manual_seed(0)
    attention = ChannelAttention().double()
    _wake(attention)
    a = 0.3 * torch.randn(2, 6, 3, 4, dtype=torch.float64)
    found = attention(a)
    for n in range(2):
        flat = a[n].flatten(1)
        for j in range(6):
            energy = torch.stack([flat[j] @ flat[i] for i in range(6)])
            shares = torch.exp(energy.max() - energy)
            expected = attention.beta * sum(s * flat[i] for i, s in enumerate(shares / shares.sum())) + flat[j]
            torch.testing.assert_close(found[n, j].flatten(), expected)


def test_foreground_scene_relation_is_a_sigmoid_of_a_scalar_product_place_by_place() -> None:
    torch.manual_seed(0)
    relation = ForegroundScene(8, 4, 2).double().eval()
    scene = torch.randn(1, 8, 1, 1, dtype=torch.float64)
    maps = [torch.randn(1, 4, size, size, dtype=torch.float64) for size in (4, 2)]
    found = relation(scene, maps)
    for level, v in enumerate(maps):
        u = relation.scene[level](scene).flatten()
        psi, kappa = relation.content[level](v), relation.again[level](v)
        for y in range(v.shape[2]):
            for x in range(v.shape[3]):
                expected = kappa[0, :, y, x] / (1 + torch.exp(-(u @ psi[0, :, y, x])))
                torch.testing.assert_close(found[level][0, :, y, x], expected)


@given(
    cells=st.integers(1, 12),
    stride=st.sampled_from([1, 4, 8, 32]),
    centre=st.sampled_from([0.0, 1.5, 15.5]),
    pixels=st.integers(1, 300),
)
@settings(max_examples=30)
def test_cells_are_interpolated_at_pixels(cells: int, stride: int, centre: float, pixels: int) -> None:
    if stride == 1:
        centre, cells = 0.0, max(cells, pixels)
    values = np.random.default_rng(cells).normal(size=(cells, 5)).astype(np.float32)
    found = to_pixels(torch.from_numpy(values)[None, None], stride, centre, pixels, 5)[0, 0].numpy()
    places = [(np.arange(length) - centre) / stride for length in (pixels, 5)]
    expected = map_coordinates(values, np.meshgrid(*places, indexing="ij"), order=1, mode="nearest")
    np.testing.assert_allclose(found, expected, atol=1e-5)


# ------------------------------------------------------------------------------------------------- linear probe


@pytest.mark.parametrize(("fuse", "images"), [("concat", 1), ("concat", 2), ("change", 2)])
def test_a_linear_probe_as_a_segmenter_says_the_same_classes(fuse: Fuse, images: int, backbone: Backbone) -> None:
    times = 3 if fuse == "change" else images
    rng = np.random.default_rng(0)
    weight = torch.from_numpy(rng.normal(size=(4, times * sum(backbone.channels))).astype(np.float32))
    probe = Probe(weight, torch.from_numpy(rng.normal(size=4).astype(np.float32)), 0.0)
    segmenter = linear_segmenter(backbone, fuse, probe)
    place = _codes(images, 70, 101)
    expected = probe.predict(backbone_features(backbone, fuse, CPU)(place), 70, 101)
    assert (segment(segmenter, place, CPU) == expected).mean() > 0.999  # ties by rounding
    assert len(np.unique(expected)) > 1


def test_a_probe_of_other_features_is_refused(backbone: Backbone) -> None:
    with pytest.raises(ConfigError, match="of 961 found"):
        linear_segmenter(backbone, "concat", Probe(torch.zeros(2, 961), torch.zeros(2), 0.0))


# -------------------------------------------------------------------------------------------------------- reach


def test_reach_is_the_receptive_field_of_the_network(backbone: Backbone) -> None:
    """ResNet-18: 435 pixels at stage 4 (7, stride 2; pool 3, stride 2; 16 convolutions of 3): 217 beside the centre,
    and up to 31 more between two cells; measured with blocks of 32 pixels, up to 31 pixels more."""
    reach = make_segmenter("segment-linear", backbone, 1, "concat", 2, 0).reach
    assert reach is not None and 217 + 31 <= reach <= 217 + 31 + 31


@pytest.mark.parametrize("kind", ["deeplabv3plus", "farseg", "danet", "upernet"])
def test_kinds_that_pool_or_attend_have_no_reach(kind: str, backbone: Backbone) -> None:
    assert make_segmenter(kind, backbone, 1, "concat", 2, 0).reach is None


@pytest.mark.parametrize("kind", LOCAL)
def test_no_pixel_beyond_the_reach_moves_a_logit_and_windows_agree_with_the_whole(kind: str) -> None:
    segmenter = make_segmenter(kind, random_backbone("resnet18", 1), 1, "concat", 2, 0)
    reach = segmenter.reach
    assert reach is not None
    whole = _codes(1, 1, 32, 1024)
    moved = whole.copy()
    changed = 700
    moved[..., changed:] = 255 - moved[..., changed:]
    with torch.no_grad():
        before, after = (segmenter(torch.from_numpy(one)) for one in (whole, moved))
        start, stop = 3 * segmenter.stride, 3 * segmenter.stride + 777
        window = segmenter(torch.from_numpy(whole[..., start:stop]))
    differs = (before - after).abs().amax(dim=(0, 1, 2)) > 1e-5
    assert not differs[: changed - reach].any()
    assert differs[: changed - 8].any() and differs[changed:].all()
    inside = slice(reach, stop - start - reach)
    torch.testing.assert_close(window[..., inside], before[..., start:stop][..., inside], rtol=1e-3, atol=1e-4)


def test_a_kind_without_a_reach_sees_the_whole_image(backbone: Backbone) -> None:
    segmenter = make_segmenter("pspnet", backbone, 1, "concat", 2, 0)
    assert segmenter.reach is None and not segmenter.training
    images = _codes(1, 1, 32, 1024)
    moved = images.copy()
    moved[..., 512:] = 255
    with torch.no_grad():
        differs = (segmenter(torch.from_numpy(images)) - segmenter(torch.from_numpy(moved))).abs()
    assert float(differs[..., :8].max()) > 1e-4


# ----------------------------------------------------------------------------------------------- making, saving


def test_a_segmenter_is_a_function_of_the_seed_and_owns_its_backbone(backbone: Backbone) -> None:
    torch.manual_seed(5)
    expected = torch.rand(1)
    torch.manual_seed(5)
    first, again, other = (make_segmenter("pspnet", backbone, 1, "concat", 2, seed) for seed in (0, 0, 1))
    assert torch.equal(torch.rand(1), expected)

    def equal(a: dict[str, Tensor], b: dict[str, Tensor]) -> bool:
        return all(torch.equal(a[name], b[name]) for name in a)

    assert equal(first.state_dict(), again.state_dict())
    assert not equal(first.decoder.state_dict(), other.decoder.state_dict())
    weights = backbone.network.state_dict()
    assert equal(weights, first.backbone.network.state_dict())
    next(first.backbone.parameters()).data.zero_()
    assert next(backbone.parameters()).any()


@pytest.mark.parametrize("kind", ["segment-linear", "deeplabv3plus", "danet"])
def test_a_saved_segmenter_gives_equal_logits(kind: str, tmp_path: Path) -> None:
    backbone = Backbone("resnet18", "single")
    segmenter = make_segmenter(kind, backbone, 2, "change", 3, 4)
    _wake(segmenter.decoder)
    facts = {"classes": ["other", "flood"], "values": [0, 1], "scores": {"miou": 0.5}}
    save_segmenter(tmp_path / "a" / "flood.pt", segmenter, facts)
    loaded, told = load_segmenter(tmp_path / "a" / "flood.pt")
    codes = torch.from_numpy(_codes(1, 2, 40, 50))
    with torch.no_grad():
        assert torch.equal(loaded(codes), segmenter(codes))
    assert told == facts and loaded.fuse == "change" and loaded.images == 2 and not loaded.training


def test_files_and_settings_that_are_no_segmenter_are_refused(tmp_path: Path, backbone: Backbone) -> None:
    path = tmp_path / "file.pt"
    with pytest.raises(Dic3lError, match="no such file"):
        load_segmenter(path)
    path.write_bytes(b"text")
    with pytest.raises(Dic3lError, match="damaged or no segmenter"):
        load_segmenter(path)
    torch.save(backbone.network.state_dict(), path)
    with pytest.raises(Dic3lError, match="no segmenter; expected a file of"):
        load_segmenter(path)
    save_segmenter(path, make_segmenter("segment-linear", backbone, 1, "concat", 2, 0), {})
    content = torch.load(path, weights_only=True)
    del content["state"]["decoder.projections.0.bias"]
    torch.save(content, path)
    with pytest.raises(Dic3lError, match="not those of segment-linear on resnet18"):
        load_segmenter(path)
    with pytest.raises(ConfigError, match="probe: one of segment-linear, fcn"):
        make_segmenter("segnet", backbone, 1, "concat", 2, 0)
    with pytest.raises(ConfigError, match="a pair of images"):
        make_segmenter("fcn", backbone, 3, "change", 2, 0)
    with pytest.raises(ConfigError, match=r"\(N, 2, H, W\), expected"):
        make_segmenter("segment-linear", backbone, 2, "concat", 2, 0)(torch.zeros(1, 3, 32, 32, dtype=torch.uint8))
