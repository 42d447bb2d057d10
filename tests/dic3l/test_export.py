"""The exported encoder is the trained one, in other programs' own words."""

from __future__ import annotations

import json
import re
import shutil
from pathlib import Path

import numpy as np
import pytest
import torch
import yaml
from torch import Tensor
from torchvision import models

from dic3l.checkpoint import find, load
from dic3l.errors import CheckpointError, ConfigError, Dic3lError
from dic3l.evaluate.backbone import load_backbone
from dic3l.evaluate.metrics import Tally
from dic3l.evaluate.tables import Row, summary
from dic3l.export import CodesEncoder, arch_of, encoder_state, export, network_of, read_encoder, state_digest
from dic3l.groups import division
from dic3l.method import DIC3L
from dic3l.model_card import _input
from tests.dic3l.test_trainer import CORPUS, run_tiny, tiny

ROOT = Path(__file__).resolve().parents[2]
ARCHS = ("resnet18", "resnet34", "resnet50", "resnet101")
BLOCKS = re.findall(r"^## (.+?)\n.*?```python\n(.+?)```", (ROOT / "docs/weights.md").read_text("utf-8"), re.S | re.M)


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("export") / "run"
    run_tiny(folder, train__steps=3)
    return folder


@pytest.fixture(scope="module")
def single(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run whose first convolution has one channel."""
    folder = tmp_path_factory.mktemp("single") / "run"
    run_tiny(folder, train__steps=2, method__stem="single")
    return folder


@pytest.fixture(scope="module", params=["copies", "single"])
def exported(request, run: Path, single: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder of all kinds of files of a run, and a tile."""
    folder = tmp_path_factory.mktemp("exported")
    of = run if request.param == "copies" else single
    for suffix in ("onnx", "safetensors", "pth", "pt"):
        export(of, folder / f"encoder.{suffix}")
    np.save(folder / "tile.npy", np.random.default_rng(1).integers(0, 256, (75, 96), dtype=np.uint8))
    shutil.copy(ROOT / "hubconf.py", folder)
    expected = trained_features(of, torch.from_numpy(np.load(folder / "tile.npy"))[None, None])
    torch.save(expected, folder / "expected.pt")
    return folder


def trained(run: Path) -> torch.nn.Module:
    """The query encoder of the method, with its own words for layers and input."""
    checkpoint = load(find(run))
    config = tiny(method__stem="single" if encoder_state(checkpoint)["conv1.weight"].shape[1] == 1 else "copies")
    method = DIC3L(config.method, 5, division(config))
    method.load_state_dict(checkpoint.method)
    return method.query.encoder.eval()


@torch.no_grad()
def trained_features(run: Path, codes: Tensor) -> list[Tensor]:
    """Pooled features, and the maps of stages 1 to 4."""
    maps = trained(run)(codes)
    return [maps[4].mean((2, 3)), *(maps[stage] for stage in (1, 2, 3, 4))]


def assert_near(found: Tensor, expected: Tensor) -> None:
    """To 1e-5 of the largest value."""
    assert found.shape == expected.shape
    assert (found - expected).abs().max() <= 1e-5 * expected.abs().max()


def noise(*shape: int, seed: int = 0) -> Tensor:
    return torch.from_numpy(np.random.default_rng(seed).integers(0, 256, shape, dtype=np.uint8))


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
    codes = noise(2, 1, 64, 64)
    network.fc = torch.nn.Identity()  # type: ignore[assignment]
    with torch.no_grad():
        # the published input, written out: three copies of the channel, ImageNet's statistics
        mean, std = torch.tensor([0.485, 0.456, 0.406]), torch.tensor([0.229, 0.224, 0.225])
        x = (codes.float().expand(-1, 3, -1, -1) / 255 - mean.view(3, 1, 1)) / std.view(3, 1, 1)
        torch.testing.assert_close(network(x), trained_features(run, codes)[0], rtol=1e-4, atol=1e-5)


def test_the_documented_programs_load_it_and_see_what_the_trained_encoder_sees(exported, monkeypatch):
    assert [title for title, _ in BLOCKS] == [
        *("Input", "torchvision", "safetensors", "timm", "segmentation_models.pytorch", "torch.hub", "ONNX Runtime"),
        "An entry for torchgeo",
    ]
    expected = torch.load(exported / "expected.pt")[0]
    monkeypatch.chdir(exported)
    monkeypatch.setattr(torch.hub, "_hub_dir", str(exported / "hub"))
    for title, block in BLOCKS[1:]:
        assert "dic3l" not in re.findall(r"^(?:from|import) (\w+)", BLOCKS[0][1] + block, re.M), title
        names: dict[str, object] = {}
        with torch.no_grad():
            exec(BLOCKS[0][1] + block, names)
        found = names["features"]
        assert isinstance(found, Tensor)
        assert_near(found, expected)


def test_timm_gives_the_maps_of_the_stages_from_the_same_file(exported):
    timm = pytest.importorskip("timm")
    state = torch.load(exported / "encoder.pt", weights_only=True)
    channels = state["conv1.weight"].shape[1]
    network = timm.create_model("resnet18", features_only=True, in_chans=channels).eval()
    network.load_state_dict(state)
    codes = torch.from_numpy(np.load(exported / "tile.npy"))[None, None]
    mean, std = (0.449, 0.226) if channels == 1 else (torch.tensor(v).view(3, 1, 1) for v in (MEAN, STD))
    with torch.no_grad():
        maps = network((codes.float() / 255 - mean) / std)
    for found, expected in zip(maps[1:], torch.load(exported / "expected.pt")[1:], strict=True):
        assert_near(found, expected)


MEAN, STD = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)


@pytest.mark.parametrize("arch", ARCHS)
def test_names_and_shapes_are_those_of_timm(arch):
    timm = pytest.importorskip("timm")
    with torch.device("meta"):
        ours, theirs = models.get_model(arch, weights=None), timm.create_model(arch, num_classes=0)
    state = {name: value.shape for name, value in ours.state_dict().items() if not name.startswith("fc.")}
    assert state == {name: value.shape for name, value in theirs.state_dict().items()}


@pytest.mark.parametrize("shape", [(1, 1, 32, 32), (3, 1, 75, 131), (2, 1, 5, 4)])
def test_onnx_takes_codes_of_any_batch_and_size(exported, run, single, shape):
    onnxruntime = pytest.importorskip("onnxruntime")
    session = onnxruntime.InferenceSession(exported / "encoder.onnx", providers=["CPUExecutionProvider"])
    assert [(one.name, one.type, one.shape[1]) for one in session.get_inputs()] == [("codes", "tensor(uint8)", 1)]
    assert [one.name for one in session.get_outputs()] == ["pooled", "stage1", "stage2", "stage3", "stage4"]
    codes = noise(*shape, seed=7)
    channels = torch.load(exported / "encoder.pt", weights_only=True)["conv1.weight"].shape[1]
    expected = trained_features(single if channels == 1 else run, codes)
    for found, value in zip(session.run(None, {"codes": codes.numpy()}), expected, strict=True):
        assert_near(torch.from_numpy(found), value)


def test_onnx_is_valid_and_names_its_weights_and_no_file_of_the_machine(exported):
    onnx = pytest.importorskip("onnx")
    model = onnx.load(exported / "encoder.onnx")
    onnx.checker.check_model(model)
    note = json.loads((exported / "encoder.json").read_text())
    assert {one.key: one.value for one in model.metadata_props} == {"arch": "resnet18", "digest": note["digest"]}
    for one in model.graph.initializer:  # random numbers may spell anything
        one.ClearField("raw_data")
    graph = model.SerializeToString()
    assert b"layer4.1" in graph and str(ROOT).encode() not in graph and b".py" not in graph


@pytest.mark.parametrize("exported", ["copies"], indirect=True)
def test_onnx_has_the_same_bytes_each_time(exported, run, tmp_path):
    note = export(run, tmp_path / "encoder.onnx")
    assert (tmp_path / "encoder.onnx").read_bytes() == (exported / "encoder.onnx").read_bytes()
    assert note["weights"].startswith("ONNX") and "makes its input itself" in note["weights"]
    assert "takes codes as they are" in (tmp_path / "encoder.md").read_text(encoding="utf-8")


@pytest.mark.parametrize("arch", ARCHS)
def test_the_network_is_told_by_its_weights_and_no_other_takes_them(arch, tmp_path):
    with torch.random.fork_rng():
        state = models.get_model(arch, weights=None).state_dict()
    assert arch_of(state, "a file") == arch
    torch.save(state, tmp_path / "whole.pt")  # as torchvision publishes them, classifier and all
    state = read_encoder(tmp_path / "whole.pt")
    codes = noise(1, 1, 32, 32)
    whole = models.get_model(arch, weights=None)
    whole.load_state_dict(torch.load(tmp_path / "whole.pt"))
    whole.fc = torch.nn.Identity()
    mean, std = (torch.tensor(v).view(3, 1, 1) for v in (MEAN, STD))
    with torch.no_grad():
        pooled = CodesEncoder(network_of(state, arch, "a file"))(codes)[0]
        assert_near(pooled, whole.eval()((codes.float() / 255 - mean) / std))
    for other in set(ARCHS) - {arch}:
        with pytest.raises(Dic3lError, match=f"a file: not the weights of a torchvision {other}"):
            network_of(state, other, "a file")
    hub = torch.hub.load(str(ROOT), "encoder", source="local", path=tmp_path / "whole.pt", arch=arch)
    with torch.no_grad():
        assert_near(hub((codes.float() / 255 - mean) / std), pooled)
    with pytest.raises(ValueError, match=f"those of {arch} found"):
        other = next(one for one in ARCHS if one != arch)
        torch.hub.load(str(ROOT), "encoder", source="local", path=tmp_path / "whole.pt", arch=other)


def test_weights_of_another_kind_are_refused(tmp_path):
    with torch.device("meta"):
        wide = models.wide_resnet50_2(weights=None).state_dict()
    with pytest.raises(Dic3lError, match="not the weights of a torchvision resnet50: size mismatch"):
        network_of({k: v for k, v in wide.items() if k[:3] != "fc."}, arch_of(wide, "wide.pt"), "wide.pt")
    with pytest.raises(Dic3lError, match=r"vgg\.pt: weights of a torchvision resnet18, .* expected, others found"):
        arch_of({"features.0.weight": torch.zeros(1)}, "vgg.pt")
    torch.save({"layer3.0.x": torch.zeros(1)}, tmp_path / "odd.pt")
    with pytest.raises(ValueError, match="weights of a ResNet of dic3l expected"):
        torch.hub.load(str(ROOT), "encoder", source="local", path=tmp_path / "odd.pt")


def test_the_digest_is_of_the_weights_and_not_of_their_file(exported):
    digests = {state_digest(read_encoder(exported / f"encoder.{kind}")) for kind in ("pt", "pth", "safetensors")}
    assert digests == {json.loads((exported / "encoder.json").read_text())["digest"]}
    state = read_encoder(exported / "encoder.pt")
    state["bn1.bias"][3] += 1e-6
    assert state_digest(state) not in digests


def test_it_is_what_evaluation_and_another_run_begin_from(run, tmp_path):
    path = tmp_path / "encoder.pt"
    export(run, path)
    load_backbone(path, "resnet18")
    run_tiny(tmp_path / "next", train__steps=1, method__weights=str(path))


def test_the_note_says_what_it_is(run, tmp_path):
    description = export(run, tmp_path / "encoder.pt")
    note = json.loads((tmp_path / "encoder.json").read_text())
    assert note == json.loads(json.dumps(description))
    assert (note["method"], note["arch"], note["features"]) == ("dic3l", "resnet18", 512)
    assert (note["steps"], note["tiles_seen"]) == (3, 24)
    assert note["corpus"]["digest"] == CORPUS.digest and note["mean"] == [0.485, 0.456, 0.406]
    assert note["trained_with"]["torch"] == torch.__version__


# ------------------------------------------------------------------------------------------------------------ card


def card(path: Path) -> tuple[dict, str]:
    """Front matter, text."""
    head, text = path.read_text(encoding="utf-8").removeprefix("---\n").split("\n---\n", 1)
    return yaml.safe_load(head), text


def evaluation(path: Path, *names: str) -> Path:
    """As `dic3l evaluate` writes it, of these rows: two seeds, of which the second has 4, 6, ... errors."""
    path.parent.mkdir(parents=True, exist_ok=True)
    rows = []
    for number, name in enumerate(names):
        row = Row(name, "unet", 10.0)
        for errors in (0, 4 + 2 * number):
            matrix = np.array([[50 - errors, errors], [0, 50]])
            row.tallies.append(Tally(matrix, np.zeros((2, 4), np.int64), np.zeros((2, 4), np.int64)))
        rows.append(summary(row, ["land", "water"], None))
    notes = ["4 places in 2 blocks"]
    path.write_text(json.dumps({"rows": rows, "classes": ["land", "water"], "protocol": {"notes": notes}}))
    return path


def test_the_card_says_what_the_note_and_the_settings_say(run, tmp_path):
    note = export(run, tmp_path / "encoder.safetensors")
    head, text = card(tmp_path / "encoder.md")
    assert head["license"] == "other" and head["corpus"]["digest"] == CORPUS.digest
    assert {"sar", "resnet18", "dic3l", "safetensors"} <= set(head["tags"]) and "model-index" not in head
    for fact in (note["digest"], CORPUS.digest, CORPUS.name, note["input"], "Apache-2.0", "see the corpus"):
        assert fact in text
    assert "11,176,512 parameters" in text  # of torchvision's resnet18, 11,689,512, less 513,000 of its classifier
    assert load(find(run)).config.strip() in text and "None were given" in text


def test_the_card_takes_its_scores_from_the_evaluation_of_this_run(run, tmp_path):
    scores = evaluation(tmp_path / "evaluation.json", "resnet18, random", f"resnet18, {run}")
    export(run, tmp_path / "encoder.pt", scores)
    head, text = card(tmp_path / "encoder.md")
    (result,) = head["model-index"][0]["results"]
    found = {one["name"]: one["value"] for one in result["metrics"]}
    iou = (1 + (44 / 50 + 50 / 56) / 2) / 2  # of seeds with 0 and 6 errors
    assert found["mIoU"] == pytest.approx(iou) and found["OA"] == pytest.approx(0.97)
    assert result["task"]["name"] == "unet, 10 % of the labels" and "evaluation.json, SHA-256" in text
    assert re.search(rf"\| resnet18, {re.escape(str(run))} \| {100 * iou:.2f} ± ", text)
    assert "resnet18, random" in text and "- 4 places in 2 blocks" in text
    for name in (f"resnet18, {tmp_path / 'encoder.safetensors'}", f"resnet18, {run.parent}/{{seed}}"):
        named = run if "{seed}" not in name else shutil.copytree(run, run.parent / "7", dirs_exist_ok=True)
        export(named, tmp_path / "encoder.pt", evaluation(scores, name))
        assert ("of which this is one" in card(tmp_path / "encoder.md")[1]) == ("{seed}" in name)


def test_the_card_takes_its_scores_from_a_comparison_that_this_run_is_of(run, tmp_path, monkeypatch):
    named = shutil.copytree(run, tmp_path / "cmp" / "runs" / "dic3l-0")
    scores = evaluation(tmp_path / "cmp" / "scores" / "land" / "evaluation.json", "pixel values", "byol", "dic3l")
    export(named, tmp_path / "encoder.pt", scores)
    head, text = card(tmp_path / "encoder.md")
    (result,) = head["model-index"][0]["results"]
    assert result["metrics"][1]["value"] == pytest.approx(0.96)  # of seeds with 0 and 8 errors: that of dic3l
    assert "This encoder: dic3l, the mean over runs of several seeds, of which this is one." in text
    monkeypatch.chdir(named)
    export(Path(), tmp_path / "encoder.pt", Path("../../scores/land/evaluation.json"))
    for other in (run, shutil.copytree(run, tmp_path / "runs" / "dic3l-0")):
        with pytest.raises(Dic3lError, match="rows of pixel values; byol; dic3l found"):
            export(other, tmp_path / "encoder.pt", scores)
    scores = scores.rename(tmp_path / "evaluation.json")  # nothing tells whose runs these are
    with pytest.raises(Dic3lError, match="rows of pixel values; byol; dic3l found"):
        export(named, tmp_path / "encoder.pt", scores)


def test_a_row_without_weights_is_of_no_run_also_inside_of_one(run, tmp_path, monkeypatch):
    scores = evaluation(tmp_path / "evaluation.json", "pixel values")
    monkeypatch.chdir(run)
    with pytest.raises(Dic3lError, match="rows of pixel values found"):
        export(Path(), tmp_path / "encoder.pt", scores)


INPUT = {"input": "codes", "mean": [0.4], "std": [0.2], "crop_size": 64, "weights": "a state dict"}


def test_the_card_says_where_scenes_have_ranges_of_their_own():
    """As corpus.json has them of --normalization scene."""
    text = _input({**INPUT, "corpus": {"groups": {"S1/IW/VV/sigma0": {"lo_db": None, "hi_db": None, "pixels": 9}}}})
    assert "Each scene of the corpus has a dB range of its own" in text and "|" not in text


def test_the_card_says_where_decibels_are_of_pixel_values():
    ranges = {"lo_db": 20.0, "hi_db": 50.0}
    for group, told in (("S1/IW/VV/sigma0", False), ("S1/IW/VV/uncalibrated", True), ("S1/unknown/b1/display", True)):
        text = _input({**INPUT, "corpus": {"groups": {group: ranges}}})
        assert f"| {group} | 20.00 | 50.00 |" in text and ("those of pixel values" in text) == told


def test_scores_of_another_network_or_of_no_evaluation_are_refused_before_anything_is_written(run, tmp_path):
    scores = evaluation(tmp_path / "evaluation.json", "pixel values", "resnet18, another/run")
    with pytest.raises(Dic3lError, match=r"a row of .*run expected, rows of pixel values; resnet18, another/run found"):
        export(run, tmp_path / "encoder.pt", scores)
    scores.write_text('{"rows": [{}]}')
    with pytest.raises(Dic3lError, match=r"evaluation\.json of `dic3l evaluate` expected"):
        export(run, tmp_path / "encoder.pt", scores)
    with pytest.raises(Dic3lError, match=r"absent\.json: cannot be read"):
        export(run, tmp_path / "encoder.pt", tmp_path / "absent.json")
    assert [path.name for path in tmp_path.iterdir()] == ["evaluation.json"]


# ---------------------------------------------------------------------------------------------------------- places


def test_a_checkpoint_file_is_exported_as_a_run_is(run, tmp_path):
    export(run, tmp_path / "a.pt")
    export(find(run), tmp_path / "b.pt")
    one, two = (torch.load(tmp_path / name, weights_only=True) for name in ("a.pt", "b.pt"))
    assert all(value.equal(two[name]) and value.is_contiguous() for name, value in one.items())


def test_what_cannot_be_exported_is_refused(run, tmp_path, monkeypatch):
    with pytest.raises(ConfigError, match=r"expected a file name that ends in \.pt, \.pth, \.safetensors, \.onnx"):
        export(run, tmp_path / "encoder.bin")
    with pytest.raises(CheckpointError, match="holds no checkpoint"):
        export(tmp_path, tmp_path / "encoder.pt")
    with pytest.raises(CheckpointError, match="no such file or folder"):
        export(tmp_path / "absent", tmp_path / "encoder.pt")
    (tmp_path / "file").write_text("")
    with pytest.raises(Dic3lError, match="cannot be written"):
        export(run, tmp_path / "file" / "encoder.pt")
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None)
    with pytest.raises(ConfigError, match="needs onnx and onnxscript, not found here: pip install onnx onnxscript"):
        export(run, tmp_path / "encoder.onnx")
