"""Whole scenes through a segmenter: the map is what the network says of the whole image, and lies where it does."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import textwrap
import time
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import rasterio
import torch
from rasterio.windows import Window
from torch import Tensor, nn
from typer.testing import CliRunner

from cli import dic3l_app
from dic3l.errors import ConfigError, Dic3lError
from dic3l.evaluate.backbone import random_backbone
from dic3l.evaluate.segmenter import make_segmenter, save_segmenter
from dic3l.evaluate.windows import plan_windows, segment_windows
from pipelines import predict as module
from pipelines.coding import AS_THEY_ARE, Coding, coded_scene
from pipelines.predict import PredictConfig, Prediction, choose_bands, predict, result_paths
from pipelines.progress import Silent
from sarsense.catalogue import Stated
from sarsense.geometry import Geometry, Preparation
from sarsense.scene import Scene, describe_scene
from tests.conftest import speckled_power, write_raster
from tests.dic3l.test_windows import Small, codes_of

VALUES = (7, 3, 200)
FACTS: dict[str, Any] = {
    "classes": ["water", "reef", "road"],
    "values": list(VALUES),
    "kind": "small",
    "arch": "none",
    "coding": AS_THEY_ARE.to_json(),
    "polarisations": ["VV", "VH"],
}
FIXED = Coding("fixed")


class Stub(Small):
    """`Small` as a segmenter: with the stride of its backbone."""

    def __init__(self, images: int = 2) -> None:
        super().__init__(images)
        self.backbone: Any = nn.Identity()
        self.backbone.strides = (4, 8)
        self.windows = 0

    def forward(self, codes: Tensor) -> Tensor:
        assert codes.dtype == torch.uint8 and not self.training
        self.windows += len(codes)
        return super().forward(codes)


@pytest.fixture(autouse=True)
def _one_thread() -> Iterator[None]:
    """Of torch: images are small, and other tests run beside."""
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


@pytest.fixture
def stub(monkeypatch: pytest.MonkeyPatch) -> Stub:
    """What load_segmenter gives, with FACTS."""
    made = Stub()
    monkeypatch.setattr(module, "load_segmenter", lambda path: (made, dict(FACTS)))
    return made


class Lines(Silent):
    def __init__(self) -> None:
        self.lines: list[str] = []
        self.done = 0.0

    def say(self, line: str) -> None:
        self.lines.append(line)

    def advance(self, cost: float = 0.0) -> None:
        self.done += cost


def picture(path: Path, shape: tuple[int, int] = (150, 210), seed: int = 0, **settings: Any) -> Path:
    """Two bands of codes with a rim of no data, and a wedge where one band has none."""
    codes = codes_of((2, *shape), seed)
    codes[:, : shape[0] // 5, : shape[1] // 3] = 0
    codes[0, -20:, -30:] = 0
    return write_raster(path, codes, descriptions=("VV", "VH"), **settings)


def one(scene: Path, out: Path, model: Path = Path("model.pt"), **settings: Any) -> Prediction:
    made, failed = predict(model, [scene], out, PredictConfig(device="cpu", **settings), Silent())
    assert not failed, failed
    return made[0]


def read(path: Path | None) -> np.ndarray:
    assert path is not None
    with rasterio.open(path) as dataset:
        return dataset.read()


@torch.no_grad()
def logits_of(network: Callable[[Tensor], Tensor], codes: np.ndarray) -> np.ndarray:
    """Of the whole image at once."""
    return network(torch.from_numpy(codes)[None])[0].numpy()


def labels_of(logits: np.ndarray, codes: np.ndarray, nodata: int = 255) -> np.ndarray:
    return np.where((codes > 0).any(axis=0), np.array(VALUES)[logits.argmax(axis=0)], nodata)


def test_a_map_is_what_the_network_says_of_the_whole_scene_on_its_grid(stub: Stub, tmp_path: Path):
    transform = rasterio.Affine(10, 1, 400_000, -1, -10, 5_500_000)
    scene = picture(tmp_path / "in" / "a.tif", crs="EPSG:32632", transform=transform)
    made = one(scene, tmp_path / "maps", window=64)
    assert made.result == tmp_path / "maps" / "a.tif" and made.probabilities is None
    assert stub.windows == made.windows > 9 and 0 < made.overhead < 1
    with rasterio.open(made.result) as dataset:
        assert dataset.crs.to_epsg() == 32632 and dataset.transform == transform and dataset.nodata == 255
        assert json.loads(dataset.tags()["CLASSES"]) == {"7": "water", "3": "reef", "200": "road"}
        labels = dataset.read(1)
    codes = read(scene)
    logits = logits_of(stub, codes)
    expected = labels_of(logits, codes)
    assert (labels == 255).sum() == 30 * 70 and (labels == expected).mean() == 1
    assert len(np.unique(labels)) == 4  # all classes and no data


def test_scenes_of_backscatter_are_coded_as_the_training_data_were(stub: Stub, tmp_path: Path, monkeypatch):
    monkeypatch.setitem(FACTS, "coding", FIXED.to_json())
    power = np.stack([speckled_power((130, 170), 4, seed) for seed in (0, 1)])
    power[:, :40, :50] = 0
    scene = write_raster(tmp_path / "s1.tif", power, descriptions=("VV", "VH"), nodata=0)
    made = one(scene, tmp_path / "maps", window=64, unit="power")
    codes = coded_scene(scene, FIXED, Stated(unit="power", explicit=True)).read(Window(0, 0, 170, 130))  # type: ignore[call-arg]
    assert (codes[:, :40, :50] == 0).all() and len(np.unique(codes)) > 50
    assert (read(made.result)[0] == labels_of(logits_of(stub, codes), codes)).all()


def test_probabilities_are_a_softmax_in_steps_and_no_data_is_none(stub: Stub, tmp_path: Path):
    scene = picture(tmp_path / "a.tif")
    made = one(scene, tmp_path / "maps", window=64, probabilities=True)
    assert made.probabilities == tmp_path / "maps" / "a.probabilities.tif"
    shares, codes = read(made.probabilities), read(scene)
    exponentials = np.exp(logits_of(stub, codes).astype(np.float64))
    expected = 254 * exponentials / exponentials.sum(axis=0)
    valid = (codes > 0).any(axis=0)
    assert np.abs(shares - expected)[:, valid].max() < 0.51 and (shares[:, ~valid] == 255).all()
    assert np.abs(shares.sum(axis=0, dtype=int)[valid] - 254).max() <= 1


def test_the_same_call_gives_the_same_bytes_and_another_window_the_same_labels(stub: Stub, tmp_path: Path):
    scene = picture(tmp_path / "a.tif", (300, 410))
    first = one(scene, tmp_path / "1", window=64, probabilities=True, overviews=True)
    again = one(scene, tmp_path / "2", window=64, probabilities=True, overviews=True)
    for name in ("result", "probabilities"):
        assert getattr(first, name).read_bytes() == getattr(again, name).read_bytes()
    for window in (72, 160, None):
        assert (read(one(scene, tmp_path / "3", window=window).result) == read(first.result)).all()


def test_no_data_has_the_value_that_was_asked_for_unless_a_class_has_it(stub: Stub, tmp_path: Path):
    scene = picture(tmp_path / "a.tif")
    made = one(scene, tmp_path / "maps", window=64, nodata=0)
    codes = read(scene)
    assert (read(made.result)[0] == labels_of(logits_of(stub, codes), codes, 0)).all()
    with pytest.raises(ConfigError, match=r"--nodata 200: the value of class 'road' .* 255 is free"):
        one(scene, tmp_path / "maps", nodata=200)
    with pytest.raises(ConfigError, match="from 0 to 255 expected"):
        one(scene, tmp_path / "maps", nodata=-1)


def test_windows_without_data_cost_nothing(stub: Stub, tmp_path: Path):
    codes = np.zeros((2, 300, 300), np.uint8)
    codes[:, 110:200, 90:200] = codes_of((2, 90, 110), 0)
    codes[0, 150:] = 0
    scene = write_raster(tmp_path / "a.tif", codes, descriptions=("VV", "VH"))
    made = one(scene, tmp_path / "maps", window=64)
    plan = plan_windows(300, 300, 2, 8, stub.reach, 64)
    cores = [codes[:, r.first : r.last, c.first : c.last] for r in plan.rows for c in plan.columns]
    assert stub.windows == made.windows == sum(bool(core.any()) for core in cores) < plan.windows / 4
    assert (read(made.result)[0] == labels_of(logits_of(stub, codes), codes)).all()


def test_a_scene_that_a_build_would_multilook_is_refused(stub: Stub, tmp_path: Path, monkeypatch):
    """A map lies on the grid of its scene, and there are no labels here."""
    monkeypatch.setitem(FACTS, "coding", FIXED.to_json())
    power = speckled_power((64, 64), 4, 0)
    scene = write_raster(tmp_path / "slc.tif", np.stack([power, power]), descriptions=("VV", "VH"))

    def described(*arguments: Any) -> Scene:
        found = describe_scene(*arguments)
        native = Geometry(found.height, found.width, found.crs, found.transform, found.gcps)
        return replace(found, preparation=Preparation(native, ((0, 64),), 2, 8))

    monkeypatch.setattr("pipelines.coding.describe_scene", described)
    config = PredictConfig(unit="power", device="cpu")
    made, failed = predict(Path("m.pt"), [scene], tmp_path / "maps", config, Silent())
    assert not made and "slc.tif: complex pixels or bursts" in failed[scene] and "maps lie on the grid" in failed[scene]


def test_bands_are_found_by_their_polarisation(stub: Stub, tmp_path: Path):
    codes = codes_of((2, 100, 120), 0)
    there = write_raster(tmp_path / "a.tif", codes, descriptions=("VV", "VH"))
    turned = write_raster(tmp_path / "b.tif", codes[::-1].copy(), descriptions=("VH", "VV"))
    unnamed = write_raster(tmp_path / "c.tif", codes)
    results = [read(one(scene, tmp_path / "maps", window=64).result) for scene in (there, turned, unnamed)]
    assert (results[0] == results[1]).all() and (results[0] == results[2]).all()


def test_which_bands_a_model_takes():
    scene = Path("a.tif")
    assert choose_bands(scene, ("VV", "VH"), ("VV", "VH")) == [0, 1]
    assert choose_bands(scene, ("HH", "VH", "VV"), ("VV", "VH")) == [2, 1]
    assert choose_bands(scene, ("b1", "b2"), ("VV", "VH")) == [0, 1]
    assert choose_bands(scene, ("VV", "VH"), ("b1", "b2")) == [0, 1]
    assert choose_bands(scene, ("VV", "VV"), ("VV", "VV")) == [0, 1]  # before and after
    for found, wanted in ((("VV",), ("VV", "VH")), (("HH", "HV"), ("VV", "VH")), (("b1", "b2", "b3"), ("VV", "VH"))):
        with pytest.raises(Dic3lError, match=r"a\.tif: bands .* the model takes VV, VH"):
            choose_bands(scene, found, wanted)


def test_one_bad_scene_is_one_line_and_the_others_go_on(stub: Stub, tmp_path: Path):
    good = [picture(tmp_path / "in" / f"{name}.tif") for name in "ac"]
    bad = tmp_path / "in" / "b.tif"
    bad.write_text("no raster")
    progress = Lines()
    scenes = [good[0], bad, tmp_path / "in" / "none.tif", good[1]]
    made, failed = predict(Path("m.pt"), scenes, tmp_path / "maps", PredictConfig(device="cpu", window=64), progress)
    assert [one.scene for one in made] == good and list(failed) == scenes[1:3]
    assert len(progress.lines) == 2 and progress.done == pytest.approx(2 * 150 * 210)
    for scene, line in zip(scenes[1:3], progress.lines, strict=True):
        assert line.startswith("dic3l: error: ") and str(scene) in line and "\n" not in line
    assert sorted(path.name for path in (tmp_path / "maps").iterdir()) == ["a.tif", "c.tif"]


def test_a_network_that_fails_half_way_leaves_the_map_that_was_there(stub: Stub, tmp_path: Path, monkeypatch):
    scene = picture(tmp_path / "a.tif")
    before = one(scene, tmp_path / "maps", window=64).result.read_bytes()

    def fails(codes: Tensor) -> Tensor:
        if stub.windows > 4:
            raise torch.cuda.OutOfMemoryError
        return Stub.forward(stub, codes)

    stub.windows = 0
    monkeypatch.setattr(stub, "forward", fails)
    monkeypatch.setattr("dic3l.evaluate.windows.BATCH_PIXELS", 64 * 64)
    config = PredictConfig(device="cpu", window=64, probabilities=True)
    made, failed = predict(Path("m.pt"), [scene], tmp_path / "maps", config, Silent())
    assert not made and "no memory for 1 windows of" in failed[scene] and "--window" in failed[scene]
    assert [path.name for path in (tmp_path / "maps").iterdir()] == ["a.tif"]
    assert (tmp_path / "maps" / "a.tif").read_bytes() == before


def test_where_results_go(tmp_path: Path):
    a, b, other = tmp_path / "a.tif", tmp_path / "b.tif", tmp_path / "deep" / "a.tif"
    assert result_paths([a, b], tmp_path / "maps") == [tmp_path / "maps" / "a.tif", tmp_path / "maps" / "b.tif"]
    assert result_paths([a], tmp_path / "map.tif") == [tmp_path / "map.tif"]
    a.touch()
    for scenes, out, words in (
        ([a, b], tmp_path / "map.tif", "a folder expected for 2 scenes"),
        ([a, other], tmp_path / "maps", "both would become"),
        ([a, b], tmp_path, "would replace a scene"),
        ([a], a, "would replace a scene"),
        ([b], tmp_path / "deep" / ".." / "b.tif", "would replace a scene"),
    ):
        with pytest.raises(ConfigError, match=words):
            result_paths(scenes, out)
    likely = tmp_path / "a.probabilities.tif"
    assert result_paths([likely], tmp_path / "a.tif") == [tmp_path / "a.tif"]
    with pytest.raises(ConfigError, match=r"a\.probabilities\.tif of .* would replace a scene"):
        result_paths([likely], tmp_path / "a.tif", with_probabilities=True)
    with pytest.raises(ConfigError, match="both would become"):
        result_paths([a, likely], tmp_path / "maps", with_probabilities=True)
    (tmp_path / "file").touch()
    with pytest.raises(ConfigError, match="another file found"):
        result_paths([b], tmp_path / "file")


@pytest.mark.parametrize(
    ("facts", "words"),
    [
        ({"values": [1, 2, 256]}, "from 0 to 255"),
        ({"values": [1, 1, 2]}, "of its own"),
        ({"values": [1, 2]}, "of its own"),
        ({"values": None}, "of its values"),
        ({"coding": {"normalization": "none", "content": "speckled", "unheard": 1}}, "coding"),
    ],
)
def test_a_model_that_makes_no_map_is_refused(
    facts: dict[str, Any], words: str, stub: Stub, tmp_path: Path, monkeypatch
):
    monkeypatch.setattr(module, "load_segmenter", lambda path: (stub, FACTS | facts))
    with pytest.raises(Dic3lError, match=words):
        one(picture(tmp_path / "a.tif"), tmp_path / "maps")
    assert not (tmp_path / "maps").exists()


# ------------------------------------------------------------------------------------------------ real networks


def saved(path: Path, kind: str = "unet", seed: int = 0, images: int = 2) -> Any:
    """A segmenter on a random ResNet-18, in a file; and itself."""
    segmenter = make_segmenter(kind, random_backbone("resnet18", seed), images, "concat", len(VALUES), seed).eval()
    save_segmenter(path, segmenter, FACTS | {"polarisations": ["VV", "VH"][:images]})
    return segmenter


@pytest.mark.parametrize(
    ("kind", "shape"), [("unet", (1, 840, 900)), ("segment-linear", (1, 801, 350)), ("fcn", (1, 799, 90))]
)
def test_windows_of_a_real_network_are_the_whole_image(kind: str, shape: tuple[int, int, int], tmp_path: Path):
    segmenter = saved(tmp_path / "model.pt", kind, images=shape[0])
    codes = codes_of(shape, 0)
    codes[:, 300:420, :300] = codes[:, 300:420, :300] // 4 + 1
    expected = logits_of(segmenter, codes)
    assert expected.std() > 0.01
    plan = plan_windows(*shape[1:], shape[0], 32, segmenter.reach, 2 * (segmenter.reach // 32 + 1) * 32 + 192)
    assert plan.windows > 1 and not plan.blended
    found = np.full_like(expected, np.nan)
    for block in segment_windows(segmenter, plan, lambda first, last: codes[:, first:last], torch.device("cpu")):
        assert block.logits is not None
        height, width = block.valid.shape
        found[:, block.row : block.row + height, block.column : block.column + width] = block.logits
    assert np.abs(found - expected).max() < 1e-3

    scene = write_raster(tmp_path / "a.tif", codes)
    labels = read(one(scene, tmp_path / "maps", model=tmp_path / "model.pt").result)[0]
    first, second = np.sort(expected, axis=0)[[-1, -2]]
    sure = first - second > 2e-3  # elsewhere two classes are equal within rounding
    assert (labels == labels_of(expected, codes))[sure].all() and sure.mean() > 0.9


def test_a_network_that_looks_at_the_whole_image_is_blended(tmp_path: Path):
    segmenter = saved(tmp_path / "model.pt", "pspnet", images=1)
    assert segmenter.reach is None
    codes = codes_of((1, 130, 200), 0)
    scene = write_raster(tmp_path / "a.tif", codes)
    whole = one(scene, tmp_path / "maps", model=tmp_path / "model.pt")
    assert (
        whole.windows == 1 and (read(whole.result)[0] == labels_of(logits_of(segmenter, codes), codes)).mean() > 0.999
    )
    parts = one(scene, tmp_path / "maps", model=tmp_path / "model.pt", window=128)
    assert parts.windows > 3 and set(np.unique(read(parts.result))) <= set(VALUES)


DIC3L = [sys.executable, "-m", "dic3l"]
ONE_THREAD = {**os.environ, "OMP_NUM_THREADS": "1"}


def call(*arguments: object) -> subprocess.CompletedProcess[str]:
    return subprocess.run(list(map(str, arguments)), env=ONE_THREAD, capture_output=True, text=True)


def test_the_command_line(tmp_path: Path):
    saved(tmp_path / "model.pt")
    scene, bad = picture(tmp_path / "in" / "a.tif"), tmp_path / "in" / "b.tif"
    bad.write_text("no raster")
    command = [*DIC3L, "predict", tmp_path / "model.pt", scene]
    done = call(*command, "-o", tmp_path / "one.tif")
    assert done.returncode == 0, done.stderr
    assert "a.tif: 1 windows\n" in done.stderr
    assert "a.tif: 150 x 210 pixels" in done.stdout and "Mpx/s" in done.stdout and "margin" in done.stdout
    assert read(tmp_path / "one.tif").shape == (1, 150, 210) and "Traceback" not in done.stderr
    command += [bad, "-o", tmp_path / "maps", "--probabilities", "--overviews", "--json"]
    done = call(*command)
    assert done.returncode == 1 and sum("error" in line for line in done.stderr.splitlines()) == 1, done.stderr
    told = json.loads(done.stdout)
    assert [row["scene"] for row in told["made"]] == [str(scene)] and list(told["failed"]) == [str(bad)]
    assert sorted(path.name for path in (tmp_path / "maps").iterdir()) == ["a.probabilities.tif", "a.tif"]


@pytest.mark.parametrize(
    ("option", "words"), [(("--device", "tpu"), "cuda expected"), (("--unit", "dB"), "or dn expected")]
)
def test_wrong_usage_is_told_before_anything_is_read(option: tuple[str, str], words: str, tmp_path: Path):
    arguments = ["predict", str(tmp_path / "none.pt"), str(tmp_path / "none.tif"), "-o", str(tmp_path), *option]
    done = CliRunner().invoke(dic3l_app, arguments)
    assert done.exit_code == 2 and words in " ".join(done.output.split())


@pytest.mark.slow
def test_killed_half_way_leaves_no_half_map(tmp_path: Path):
    saved(tmp_path / "model.pt")
    scene = write_raster(tmp_path / "a.tif", codes_of((2, 1500, 1500), 0), descriptions=("VV", "VH"))
    outs = {number: tmp_path / number.name for number in (signal.SIGTERM, signal.SIGKILL)}
    running: dict[signal.Signals, subprocess.Popen[str]] = {}
    for number, out in outs.items():
        command = [*DIC3L, "predict", tmp_path / "model.pt", scene, "-o", out]
        running[number] = subprocess.Popen(list(map(str, command)), env=ONE_THREAD, stderr=subprocess.PIPE, text=True)
    told: dict[signal.Signals, str] = {}
    for number, process in running.items():
        until = time.monotonic() + 120
        while not list(outs[number].glob(".*")) and time.monotonic() < until and process.poll() is None:
            time.sleep(0.02)
        assert process.poll() is None, process.communicate()
        process.send_signal(number)
        told[number] = process.communicate(timeout=120)[1]
        assert not (outs[number] / "a.tif").exists() and "Traceback" not in told[number]
        assert process.returncode == (-number if number == signal.SIGKILL else 128 + number)
    assert "stopped by SIGTERM" in told[signal.SIGTERM] and list(outs[signal.SIGTERM].iterdir()) == []


@pytest.mark.slow
def test_a_scene_of_ten_thousand_squared_takes_the_memory_of_its_windows(tmp_path: Path):
    """Of its windows few have data: memory is that of a window and of rows of the scene, however many are computed."""
    saved(tmp_path / "model.pt", images=2)
    side, scene = 10_000, tmp_path / "large.tif"
    profile = {"driver": "GTiff", "height": side, "width": side, "count": 2, "dtype": "uint8", "nodata": 0}
    profile |= {"crs": "EPSG:32633", "transform": rasterio.Affine(10, 0, 500_000, 0, -10, 5_000_000), "tiled": True}
    with rasterio.open(scene, "w", compress="deflate", **profile) as dataset:
        dataset.descriptions = ("VV", "VH")
        for row, column in ((0, 0), (4000, 6000), (9000, 9000)):
            at = Window(column, row, 1000, 1000)  # type: ignore[call-arg]
            dataset.write(codes_of((2, 1000, 1000), row), window=at)
    program = textwrap.dedent(
        """
        import sys
        from pathlib import Path
        def memory(name):
            lines = Path("/proc/self/status").read_text().splitlines()
            return next(int(line.split()[1]) for line in lines if line.startswith(name)) / 2**20
        from pipelines.predict import PredictConfig, predict
        from pipelines.progress import Silent
        imported = memory("VmHWM")
        made, failed = predict(Path(sys.argv[1]), [Path(sys.argv[2])], Path(sys.argv[3]), PredictConfig(device="cpu"),
                               Silent())
        assert not failed, failed
        print(memory("VmHWM") - imported, made[0].windows)
        """
    )
    arguments = [sys.executable, "-c", program, *map(str, (tmp_path / "model.pt", scene, tmp_path / "large-map.tif"))]
    done = call(*arguments)
    assert done.returncode == 0, done.stderr
    gibibytes, windows = map(float, done.stdout.split())
    assert windows >= 8 and gibibytes < 1.5, done.stdout
    with rasterio.open(tmp_path / "large-map.tif") as found, rasterio.open(scene) as given:
        assert (found.crs, found.transform, found.shape) == (given.crs, given.transform, given.shape)
        for at in (Window(0, 0, 1500, 1500), Window(5500, 3500, 2000, 2000)):  # type: ignore[call-arg]
            assert ((found.read(1, window=at) == 255) == (given.read(window=at) == 0).all(axis=0)).all()
