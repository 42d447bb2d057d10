"""The evaluation from files to table: same codes as the corpus, same table twice, honest baselines."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import rasterio
import torch
from PIL import Image
from torchvision import models

from dic3l.errors import ConfigError, Dic3lError
from dic3l.evaluate.data import IGNORED, split_places
from pipelines.build import build
from pipelines.evaluate import evaluate, markdown
from pipelines.labelled import folder_data
from sarsense.config import BuildConfig
from sarsense.corpus import open_corpus
from sarsense.errors import SarsenseError
from sarsense.shards import TileReader
from sarsense.simulate import simulate
from tests.conftest import write_raster


@pytest.fixture(scope="module")
def simulated(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Four scenes with labels; scene 3 has a no-data rim."""
    root = tmp_path_factory.mktemp("simulated")
    simulate(root, scenes=4, size=256, looks=4.0, seed=0)
    return root


@pytest.fixture(scope="module")
def corpus_path(simulated: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A corpus of two of the scenes, all of it train."""
    out = tmp_path_factory.mktemp("corpus") / "corpus"
    sources = [str(simulated / f"scenes/sim-00{i}.tif") for i in (0, 1)]
    build(sources, out, BuildConfig(tile_size=128, val_share=0.0), workers=0)
    return out


def _quick(data: Path, out: Path, **settings: Any) -> dict[str, Any]:
    given = {"layout": "folder", "seeds": 1, "pixels": 1500, **settings}
    weights = given.pop("weights", [])
    return evaluate(weights, data, out, **given)


def _row(result: dict[str, Any], name: str) -> dict[str, Any]:
    return next(row for row in result["rows"] if row["name"] == name)


def test_labelled_scenes_have_the_codes_of_the_corpus(simulated: Path, corpus_path: Path) -> None:
    corpus = open_corpus(corpus_path)
    data = folder_data(simulated, corpus, None)
    tiles = corpus.tiles().to_pylist()
    reader = TileReader(corpus)
    place = next(place for place in data.places if place.name.startswith("sim-001@"))
    images, labels = place.read()
    with rasterio.open(simulated / "labels/sim-001.tif") as dataset:
        np.testing.assert_array_equal(labels, np.where(dataset.read(1) == 0, IGNORED, dataset.read(1) - 1))
    compared = 0
    for index, tile in enumerate(tiles):
        if tile["scene"].startswith("sim-001"):
            window = np.s_[tile["row"] : tile["row"] + 128, tile["col"] : tile["col"] + 128]
            channel = ["VV", "VH"].index(tile["polarisation"])
            np.testing.assert_array_equal(images[channel][window], reader.read(np.array([index]))[0, 0])
            compared += 1
    assert compared == 8
    assert [place.seen for place in data.places] == [True, True, False, False]


def test_what_a_mask_band_hides_is_no_data_for_the_probe_too(simulated: Path, tmp_path: Path) -> None:
    (tmp_path / "scenes").mkdir()
    (tmp_path / "labels").mkdir()
    name = "sim-000.tif"
    with rasterio.open(simulated / "scenes" / name) as source:
        power, profile, tags = source.read(), source.profile, source.tags()
    mask = np.full(power.shape[1:], 255, np.uint8)
    mask[40:90, 30:70] = 0
    with (
        rasterio.Env(GDAL_TIFF_INTERNAL_MASK=True),
        rasterio.open(tmp_path / "scenes" / name, "w", **{**profile, "nodata": None}) as target,
    ):
        target.write(power)
        target.write_mask(mask)
        target.descriptions, target.units = ("VV", "VH"), ("power", "power")
        target.update_tags(**tags)
    (tmp_path / "labels" / name).write_bytes((simulated / "labels" / name).read_bytes())
    images, _ = folder_data(tmp_path, None, None).places[0].read()
    assert not images[:, 40:90, 30:70].any() and images[:, :40].all()


def test_the_table_holds_every_contender_and_is_the_same_twice(
    simulated: Path, corpus_path: Path, tmp_path: Path
) -> None:
    torch.manual_seed(3)
    weights = tmp_path / "weights.pt"
    torch.save(models.resnet18(weights=None).state_dict(), weights)
    result = _quick(simulated, tmp_path / "a", corpus=corpus_path, weights=[weights], seeds=2, pixels=500)
    again = _quick(simulated, tmp_path / "b", corpus=corpus_path, weights=[weights], seeds=2, pixels=500)
    assert result == again == json.loads((tmp_path / "a/evaluation.json").read_text())
    names = [row["name"] for row in result["rows"]]
    assert names[0] == "majority class" and names[3:] == ["resnet18, random", f"resnet18, {weights}"]
    assert result["classes"] == ["water", "bare", "crops", "forest", "meadow", "built", "road"]
    assert result["splits"][0] == {"train": 3, "test": 1, "test_seen": 0, "folds": 3, "absent": []}
    assert _row(result, "majority class")["kappa"]["mean"] == pytest.approx(0.0)
    assert _row(result, "resnet18, random")["gain"]["values"] == [0.0, 0.0]
    assert _row(result, "resnet18, random")["features"] == 2 * (64 + 128 + 256 + 512)
    assert _row(result, "resnet18, random")["miou"]["mean"] > _row(result, "majority class")["miou"]["mean"] + 0.05
    scored = {np.sum(row["confusion"][0]) for row in result["rows"]}
    with (
        rasterio.open(simulated / "labels/sim-002.tif") as second,
        rasterio.open(simulated / "labels/sim-003.tif") as third,
    ):
        assert scored <= {np.count_nonzero(second.read(1)), np.count_nonzero(third.read(1))} and len(scored) == 1
    table = (tmp_path / "a/evaluation.md").read_text()
    assert table == markdown(result)
    assert table.count("\n| ") == 6 and "IoU road" in table and "±" in table


def test_classes_can_be_merged_and_left_out(simulated: Path, tmp_path: Path) -> None:
    result = _quick(simulated, tmp_path, classes="land=2+3+4+5,water=1")
    assert result["classes"] == ["land", "water"]
    means = _row(result, "pixel values and means (5, 9, 17)")
    assert means["accuracy"]["mean"] > 0.9
    with rasterio.open(simulated / "labels/sim-000.tif") as dataset:
        assert np.sum(means["confusion"][0]) < dataset.width * dataset.height  # built and road count nowhere


def test_pngs_are_codes_as_they_are(tmp_path: Path) -> None:
    rng = np.random.default_rng(0)
    for index in range(4):
        labels = np.zeros((64, 64), np.uint8)
        labels[:, rng.integers(16, 48) :] = 255
        image = np.where(labels > 0, 170, 90) + rng.normal(0, 10, labels.shape)
        for folder, pixels in (("images", image.clip(0, 255).astype(np.uint8)), ("masks", labels)):
            (tmp_path / folder).mkdir(exist_ok=True)
            Image.fromarray(pixels).save(tmp_path / folder / f"{index}.png")
    result = _quick(tmp_path, tmp_path / "out", test_share=0.5, classes="other=0,bright=255")
    assert result["splits"] == [{"train": 2, "test": 2, "test_seen": None, "folds": 2, "absent": []}]
    assert any("2-fold" in note for note in result["protocol"]["notes"])
    assert _row(result, "pixel values")["classes"]["bright"]["iou"]["mean"] > 0.99


def test_rows_are_means_over_the_same_classes_where_the_tested_places_lack_one(tmp_path: Path) -> None:
    """Three classes, of which the tested place has two: a row that predicts the third is not divided by three."""
    rng = np.random.default_rng(0)
    for index in range(4):
        labels = rng.integers(0, 2, (64, 64)).repeat(2, 0).astype(np.uint8)
        labels[:20] += 2 * (index > 0)  # a third and a fourth class, which place 0 lacks
        image = 60 * labels + rng.normal(0, 25, labels.shape)
        for folder, pixels in (("images", image.clip(0, 255).astype(np.uint8)), ("masks", labels)):
            (tmp_path / folder).mkdir(exist_ok=True)
            Image.fromarray(pixels).save(tmp_path / folder / f"{index}.png")
    seed = next(s for s in range(50) if split_places(folder_data(tmp_path, None, None).places, s, 0.25)[1] == [0])
    result = _quick(tmp_path, tmp_path / "out", test_share=0.25, seeds=seed + 1, pixels=500)
    assert result["splits"][seed]["absent"] == ["2", "3"]
    assert any(note.startswith(f"seed {seed}: the tested places have no 2, 3") for note in result["protocol"]["notes"])
    for row in result["rows"]:
        of_classes = [row["classes"][name]["iou"]["values"][seed] for name in result["classes"]]
        assert of_classes[2:] == [None, None]
        assert row["miou"]["values"][seed] == pytest.approx(sum(of_classes[:2]) / 2)


def test_an_output_that_cannot_be_made_is_refused_before_the_work(simulated: Path, monkeypatch) -> None:
    monkeypatch.setattr("pipelines.evaluate._prepare", lambda *_: pytest.fail("work was begun"))
    with pytest.raises(Dic3lError, match="--out /proc/scores: cannot be made"):
        _quick(simulated, Path("/proc/scores"))


def test_ombria_is_read_as_pairs(tmp_path: Path) -> None:
    rng = np.random.default_rng(0)
    for number in (1, 30, 50, 70):
        mask = np.zeros((64, 64), np.uint8)
        mask[rng.integers(8, 40) :] = 255
        before = rng.integers(80, 200, mask.shape)
        after = np.where(mask > 0, before - 70, before)
        for folder, name, pixels in (("BEFORE", "before", before), ("AFTER", "after", after), ("MASK", "mask", mask)):
            (tmp_path / folder).mkdir(exist_ok=True)
            Image.fromarray(pixels.astype(np.uint8)).save(tmp_path / folder / f"S1_{name}_{number:04d}.png")
    result = _quick(tmp_path, tmp_path / "out", layout="ombria", seeds=2)
    assert result["classes"] == ["other", "flood"]
    assert _row(result, "pixel values")["features"] == 3
    assert _row(result, "pixel values")["classes"]["flood"]["f1"]["mean"] > 0.95
    with pytest.raises(ConfigError, match="--classes"):
        _quick(tmp_path, tmp_path / "out", layout="ombria", classes="a=1,b=2")


def test_wrong_input_is_refused_by_name(simulated: Path, corpus_path: Path, tmp_path: Path) -> None:
    for settings, message in (
        ({"seeds": 0}, "--seeds"),
        ({"pixels": 1}, "--pixels"),
        ({"test_share": 1.0}, "--test-share"),
        ({"device": "tpu"}, "--device"),
        ({"arch": "vgg"}, "arch"),
        ({"weights": [tmp_path / "none.pt"]}, "none.pt"),
    ):
        with pytest.raises(Dic3lError, match=message):
            _quick(simulated, tmp_path / "out", **settings)
    assert not (tmp_path / "out").exists()

    other = tmp_path / "other"
    power = np.random.default_rng(0).gamma(4.0, 0.02, (64, 64)).astype(np.float32)
    labels = np.ones((64, 64), np.uint8)
    labels[:30] = 2
    write_raster(other / "scenes/x.tif", power, descriptions=("HH",), units=("power",))
    write_raster(other / "labels/x.tif", labels)
    with pytest.raises(ConfigError, match=r"no dB range for unknown/unknown/HH"):
        folder_data(other, open_corpus(corpus_path), None)
    with pytest.raises(Dic3lError, match="two places"):
        _quick(other, tmp_path / "out")
    write_raster(other / "labels/x.tif", labels[:60])
    with pytest.raises(Dic3lError, match=r"labels/x\.tif: its grid"):
        folder_data(other, None, None)
    write_raster(other / "scenes/x.tif", power.astype(np.uint8))
    with pytest.raises(SarsenseError, match=r"scenes/x\.tif"):
        folder_data(other, None, None)


def test_scenes_that_overlap_are_one_block(tmp_path: Path) -> None:
    for index, west in enumerate((500_000, 500_400, 520_000)):
        transform = rasterio.Affine(10, 0, west, 0, -10, 5_000_000)
        power = np.random.default_rng(index).gamma(4.0, 0.02, (64, 64)).astype(np.float32)
        labels = (np.arange(64 * 64).reshape(64, 64) % 2).astype(np.uint8)
        write_raster(tmp_path / f"scenes/{index}_VV.tif", power, units=("power",), transform=transform)
        write_raster(tmp_path / f"labels/{index}_VV.tif", labels, transform=transform)
    blocks = [place.block for place in folder_data(tmp_path, None, None).places]
    assert blocks[0] == blocks[1] != blocks[2]
