"""The encoder is a torchvision ResNet, in its names, its numbers and its files."""

from __future__ import annotations

from typing import Any, cast
from urllib.error import URLError

import pytest
import torch
from safetensors.torch import save_file
from torch import nn
from torchvision.models import ResNet, WeightsEnum, get_model, resnet18
from torchvision.models.feature_extraction import create_feature_extractor
from torchvision.transforms.v2 import functional as tvf

from dic3l.encoder import PIXEL_MEAN, PIXEL_STD, BoxHead, Encoder
from dic3l.errors import ConfigError, Dic3lError


def codes(count: int, size: int = 64) -> torch.Tensor:
    return torch.randint(0, 256, (count, 1, size, size), dtype=torch.uint8)


def exported(encoder: Encoder) -> dict[str, torch.Tensor]:
    return {name.removeprefix("backbone."): value for name, value in encoder.state_dict().items()}


def test_without_its_prefix_the_state_loads_into_torchvision_and_computes_the_same():
    torch.manual_seed(0)
    encoder, network = Encoder("resnet18").eval(), resnet18()
    keys = network.load_state_dict(exported(encoder), strict=False)
    assert sorted(keys.missing_keys) == ["fc.bias", "fc.weight"] and not keys.unexpected_keys
    layers = create_feature_extractor(network.eval(), {f"layer{stage}": f"{stage}" for stage in (1, 2, 3, 4)})
    views = codes(2)
    x = tvf.normalize(views.float().expand(-1, 3, -1, -1) / 255, list(PIXEL_MEAN), list(PIXEL_STD))
    with torch.no_grad():
        stages, expected = encoder(views), layers(x)
    for stage, features in stages.items():
        torch.testing.assert_close(features, expected[str(stage)], rtol=1e-5, atol=1e-5)
        assert features.shape[1] == encoder.channels[stage]


@pytest.mark.parametrize("weights", ["random", "file"])
def test_a_single_channel_stem_makes_what_three_copies_make(tmp_path, weights):
    """Up to the pixel statistics, which are one mean instead of three: given the same input, the same output."""
    if weights == "file":
        torch.manual_seed(5)
        torch.save(resnet18().state_dict(), tmp_path / "w.pt")
    encoders = []
    for stem in ("copies", "single"):
        torch.manual_seed(3)
        before = Encoder("resnet18", str(tmp_path / "w.pt") if weights == "file" else "random", stem)
        encoders.append(before.eval())
        drawn_after = torch.rand(1)
    copies, single = encoders
    assert single.state_dict()["backbone.conv1.weight"].shape == (64, 1, 7, 7) and drawn_after >= 0
    for encoder in encoders:
        encoder.pixel_mean.fill_(0.45)
        encoder.pixel_std.fill_(0.22)
    views = codes(2)
    with torch.no_grad():
        for one, other in zip(copies(views).values(), single(views).values(), strict=True):
            torch.testing.assert_close(one, other, rtol=1e-4, atol=1e-4)


def test_a_file_of_a_single_channel_stem_begins_either_stem(tmp_path):
    torch.manual_seed(0)
    first = Encoder("resnet18", stem="single")
    torch.save(exported(first), tmp_path / "single.pt")
    again = Encoder("resnet18", str(tmp_path / "single.pt"), "single")
    torch.testing.assert_close(again.state_dict(), first.state_dict())
    copies = exported(Encoder("resnet18", str(tmp_path / "single.pt")))["conv1.weight"]
    torch.testing.assert_close(copies.sum(1, keepdim=True), exported(first)["conv1.weight"])


@pytest.mark.parametrize(
    ("arch", "channels"), [("resnet34", [64, 128, 256, 512]), ("resnet101", [256, 512, 1024, 2048])]
)
def test_every_arch_knows_its_channels(arch, channels, monkeypatch):
    monkeypatch.setattr(nn.init, "kaiming_normal_", lambda tensor, **_: tensor)  # its numbers are not looked at
    assert list(Encoder(arch).channels.values()) == channels


@pytest.mark.parametrize("suffix", [".pt", ".safetensors"])
@pytest.mark.parametrize("classifier", [True, False])
def test_weights_come_from_a_torchvision_file_with_or_without_a_classifier(tmp_path, suffix, classifier):
    torch.manual_seed(1)
    network = cast(ResNet, get_model("resnet18", num_classes=7))
    state = {name: value for name, value in network.state_dict().items() if classifier or not name.startswith("fc.")}
    path = tmp_path / f"weights{suffix}"
    save_file(state, path) if suffix == ".safetensors" else torch.save(state, path)
    torch.manual_seed(2)
    encoder = Encoder("resnet18", str(path))
    for name, value in exported(encoder).items():
        torch.testing.assert_close(value, state[name], rtol=0, atol=0)


def test_weights_of_another_arch_are_refused_with_the_names(tmp_path):
    torch.save(resnet18().state_dict(), tmp_path / "r18.pt")
    with pytest.raises(
        Dic3lError, match=r"not the weights of a torchvision resnet50: .*missing \(layer1.*another shape"
    ):
        Encoder("resnet50", str(tmp_path / "r18.pt"))


@pytest.mark.parametrize(
    ("content", "told"),
    [(None, "no such file"), (b"not a file of weights", "expected a state dict"), ({"step": 3}, "dic3l export")],
)
def test_a_file_that_holds_no_weights_is_refused_in_a_sentence(tmp_path, content: Any, told):
    path = tmp_path / "weights.pt"
    if isinstance(content, bytes):
        path.write_bytes(content)
    elif content is not None:
        torch.save(content, path)
    with pytest.raises(Dic3lError, match=told) as caught:
        Encoder("resnet18", str(path))
    assert "\n" not in str(caught.value)


def test_a_failed_download_says_what_to_do(monkeypatch):
    def refuse(*_: object, **__: object) -> None:
        raise URLError("no network here")

    monkeypatch.setattr(WeightsEnum, "get_state_dict", refuse)
    with pytest.raises(Dic3lError, match=r"no network here.*give the path of the file"):
        Encoder("resnet18", "imagenet")


@pytest.mark.parametrize("views", [torch.zeros(2, 2, 64, 64, dtype=torch.uint8), torch.zeros(2, 1, 64, 64)])
def test_anything_but_one_channel_of_codes_is_refused(views):
    with pytest.raises(ConfigError, match="uint8 codes of one channel"):
        Encoder("resnet18")(views)


def test_an_unknown_arch_is_refused():
    with pytest.raises(ConfigError, match=r"arch: expected one of resnet18.*found 'vgg'"):
        Encoder("vgg")  # type: ignore[arg-type]


def test_a_masked_box_changes_nothing_for_the_others():
    head = BoxHead(6, 8, 4)
    boxes, mask = torch.randn(4, 3, 6), torch.rand(4, 3) < 0.7
    other = torch.where(mask[..., None], boxes, torch.randn(4, 3, 6) * 100)
    torch.testing.assert_close(head(boxes, mask)[mask], head(other, mask)[mask])
