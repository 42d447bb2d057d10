"""The exported encoder is the trained one, in torchvision's own words."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
import torch
from torchvision import models

from dic3l.checkpoint import find, load
from dic3l.errors import CheckpointError, ConfigError, Dic3lError
from dic3l.evaluate.backbone import load_backbone
from dic3l.export import export
from dic3l.groups import division
from dic3l.method import DIC3L
from tests.dic3l.test_trainer import CORPUS, run_tiny, tiny


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("export") / "run"
    run_tiny(folder, train__steps=3)
    return folder


def load_into_torchvision(path: Path) -> models.ResNet:
    if path.suffix == ".safetensors":
        from safetensors.torch import load_file

        state = load_file(path)
    else:
        state = torch.load(path, weights_only=True)
    network = models.resnet18(weights=None)
    missing = network.load_state_dict(state, strict=False)
    assert sorted(missing.missing_keys) == ["fc.bias", "fc.weight"] and not missing.unexpected_keys
    return network.eval()


@pytest.mark.parametrize("name", ["encoder.pt", "encoder.pth", "encoder.safetensors"])
def test_torchvision_loads_it_and_sees_what_the_trained_encoder_sees(run, tmp_path, name):
    export(run, tmp_path / name)
    network = load_into_torchvision(tmp_path / name)
    method = DIC3L(tiny().method, 5, division(tiny()))
    method.load_state_dict(load(find(run)).method)
    encoder = method.query.encoder.eval()
    codes = torch.from_numpy(np.random.default_rng(0).integers(0, 256, (2, 1, 64, 64), dtype=np.uint8))
    network.fc = torch.nn.Identity()  # type: ignore[assignment]
    with torch.no_grad():
        # the published input, written out: three copies of the channel, ImageNet's statistics
        mean, std = torch.tensor([0.485, 0.456, 0.406]), torch.tensor([0.229, 0.224, 0.225])
        x = (codes.float().expand(-1, 3, -1, -1) / 255 - mean.view(3, 1, 1)) / std.view(3, 1, 1)
        torch.testing.assert_close(network(x), encoder(codes)[4].mean((2, 3)), rtol=1e-4, atol=1e-5)


def test_it_is_what_evaluation_and_another_run_begin_from(run, tmp_path):
    path = tmp_path / "encoder.pt"
    export(run, path)
    load_backbone(path, "resnet18")
    run_tiny(tmp_path / "next", train__steps=1, method__weights=str(path))


def test_the_note_says_what_it_is(run, tmp_path):
    description = export(run, tmp_path / "encoder.pt")
    note = json.loads((tmp_path / "encoder.json").read_text())
    assert note == json.loads(json.dumps(description))
    assert (note["arch"], note["steps"], note["tiles_seen"]) == ("resnet18", 3, 24)
    assert note["corpus"]["digest"] == CORPUS.digest and note["mean"] == [0.485, 0.456, 0.406]
    assert note["trained_with"]["torch"] == torch.__version__


def test_a_checkpoint_file_is_exported_as_a_run_is(run, tmp_path):
    export(run, tmp_path / "a.pt")
    export(find(run), tmp_path / "b.pt")
    one, two = (torch.load(tmp_path / name, weights_only=True) for name in ("a.pt", "b.pt"))
    assert all(value.equal(two[name]) and value.is_contiguous() for name, value in one.items())


def test_what_cannot_be_exported_is_refused(run, tmp_path):
    with pytest.raises(ConfigError, match=r"expected a file name that ends in \.pt, \.pth, \.safetensors"):
        export(run, tmp_path / "encoder.onnx")
    with pytest.raises(CheckpointError, match="holds no checkpoint"):
        export(tmp_path, tmp_path / "encoder.pt")
    with pytest.raises(CheckpointError, match="no such file or folder"):
        export(tmp_path / "absent", tmp_path / "encoder.pt")
    (tmp_path / "file").write_text("")
    with pytest.raises(Dic3lError, match="cannot be written"):
        export(run, tmp_path / "file" / "encoder.pt")
