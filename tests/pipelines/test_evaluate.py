"""The evaluation from files to table: same codes as the corpus, same table twice, honest baselines."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import rasterio
import torch
import typer
from PIL import Image
from torchvision import models

from cli import dic3l_app
from dic3l.errors import ConfigError, Dic3lError
from dic3l.evaluate.backbone import random_backbone
from dic3l.evaluate.data import IGNORED
from dic3l.evaluate.fit import FitConfig
from dic3l.evaluate.metrics import confusion
from dic3l.evaluate.segmenter import load_segmenter, segment
from dic3l.evaluate.tables import latex, markdown
from pipelines.build import build
from pipelines.companions import CompanionFiles
from pipelines.contenders import contenders, identity, ready_backbone
from pipelines.evaluate import evaluate
from pipelines.labelled import LAYOUTS, folder_data, labelled_data
from pipelines.parts import file_names
from pipelines.pictures import legend_of, read_map
from pipelines.probes import KINDS
from sarsense.config import BuildConfig
from sarsense.corpus import open_corpus
from sarsense.errors import SarsenseError
from sarsense.raster import open_raster
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
    given = {"layout": "folder", "seeds": 1, "pixels": 200, **settings}
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


def test_a_labelled_corpus_of_other_ranges_than_the_encoders_is_refused(
    simulated: Path, corpus_path: Path, tmp_path: Path
) -> None:
    """Else the encoder would be given codes that mean other dB than those it was trained on."""
    encoder, config = open_corpus(corpus_path), BuildConfig(tile_size=128, val_share=0.0)
    files = [str(simulated / f"scenes/sim-00{i}.tif") for i in (1, 2)]
    labels = CompanionFiles(labels=simulated / "labels")
    build(files, tmp_path / "own", config, workers=0, companions=labels)
    with pytest.raises(ConfigError, match=r"mean other dB than those of --corpus.*--stats-from"):
        labelled_data(tmp_path / "own", "shards", encoder, None)
    assert labelled_data(tmp_path / "own", "shards", None, None).places[0].seen is None
    build(files, tmp_path / "same", config, workers=0, companions=labels, stats_from=encoder.root)
    assert labelled_data(tmp_path / "same", "shards", encoder, None).places[0].seen is not None


def test_the_table_holds_every_contender(simulated: Path, corpus_path: Path, tmp_path: Path) -> None:
    torch.manual_seed(3)
    weights = tmp_path / "weights.pt"
    torch.save(models.resnet18(weights=None).state_dict(), weights)
    result = _quick(simulated, tmp_path / "a", corpus=corpus_path, weights=[weights], pixels=500)
    assert result == json.loads((tmp_path / "a/evaluation.json").read_text())
    names = [row["name"] for row in result["rows"]]
    assert names[0] == "majority class" and names[3:] == ["resnet18, random", f"resnet18, {weights}"]
    assert result["classes"] == ["water", "bare", "crops", "forest", "meadow", "built", "road"]
    split = {"train": 3, "test": 1, "test_seen": 0, "absent": []}
    assert result["splits"][0] == split | {"fitted": {"100": 3}, "folds": {"100": 3}, "unfitted": {"100": []}}
    assert _row(result, "majority class")["kappa"]["mean"] == pytest.approx(0.0)
    assert _row(result, "resnet18, random")["gain"]["values"] == [0.0]
    assert _row(result, "resnet18, random")["features"] == 2 * (64 + 128 + 256 + 512)
    assert _row(result, "resnet18, random")["miou"]["mean"] > _row(result, "majority class")["miou"]["mean"] + 0.05
    scored = {np.sum(row["confusion"][0]) for row in result["rows"]}
    labels = [simulated / f"labels/sim-00{number}.tif" for number in (2, 3)]  # the ground that the corpus lacks
    assert len(scored) == 1 and scored <= {np.count_nonzero(rasterio.open(path).read(1)) for path in labels}
    table = (tmp_path / "a/evaluation.md").read_text()
    assert table == markdown(result) and (tmp_path / "a/evaluation.tex").read_text() == latex(result)
    assert table.count("\n| ") == 3 * 6 + 2 and "IoU road" in table and "relaxed F1 road" in table
    for said in ("classes (first label value of each): water (1)", "index 255", "averaging:", "within 3 px"):
        assert said in table


def test_classes_can_be_merged_and_left_out(simulated: Path, tmp_path: Path) -> None:
    result = _quick(simulated, tmp_path, classes="land=2+3+4+5,water=1")
    assert result["classes"] == ["land", "water"]
    means = _row(result, "pixel values and means (5, 9, 17)")
    assert means["accuracy"]["mean"] > 0.9
    with rasterio.open(simulated / "labels/sim-000.tif") as dataset:
        assert np.sum(means["confusion"][0]) < dataset.width * dataset.height  # built and road count nowhere


def _pictures(root: Path, count: int, side: int = 64, seed: int = 0, shuffled: bool = False) -> Path:
    """Noisy pictures, dark on the left and bright on the right, and masks that say so, or where shuffled, nothing."""
    rng = np.random.default_rng(seed)
    for index in range(count):
        labels = np.zeros((side, side), np.uint8)
        labels[:, rng.integers(side // 4, 3 * side // 4) :] = 255
        image = np.where(labels > 0, 170, 90) + rng.normal(0, 10, labels.shape)
        if shuffled:
            labels = 255 * rng.permutation(np.arange(side**2) % 2).reshape(labels.shape).astype(np.uint8)
        for folder, pixels in (("images", image.clip(0, 255).astype(np.uint8)), ("masks", labels)):
            (root / folder).mkdir(parents=True, exist_ok=True)
            Image.fromarray(pixels).save(root / folder / f"{index}.png")
    return root


def test_pngs_are_codes_as_they_are(tmp_path: Path) -> None:
    _pictures(tmp_path, 4)
    result = _quick(tmp_path, tmp_path / "out", test_share=0.5, classes="other=0,bright=255")
    assert (result["splits"][0]["test_seen"], result["splits"][0]["folds"]) == (None, {"100": 2})
    assert any("2-fold" in note for note in result["protocol"]["notes"])
    assert _row(result, "pixel values")["classes"]["bright"]["iou"]["mean"] > 0.99


def test_rows_are_means_over_the_same_classes_where_the_tested_places_lack_one(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Three classes, of which the tested place has two: a row that predicts the third is not divided by three."""
    rng = np.random.default_rng(0)
    for index in range(4):
        labels = rng.integers(0, 2, (64, 64)).repeat(2, 0).astype(np.uint8)
        labels[:20] += 2 * (index > 0)  # a third and a fourth class, which place 0 lacks
        image = 60 * labels + rng.normal(0, 25, labels.shape)
        for folder, pixels in (("images", image.clip(0, 255).astype(np.uint8)), ("masks", labels)):
            (tmp_path / folder).mkdir(exist_ok=True)
            Image.fromarray(pixels).save(tmp_path / folder / f"{index}.png")
    monkeypatch.setattr("pipelines.evaluate.split_places", lambda *_: ([1, 2, 3], [0]))
    result = _quick(tmp_path, tmp_path / "out", pixels=500)
    assert result["splits"][0]["absent"] == ["2", "3"]
    assert any(note.startswith("seed 0: the tested places have no 2, 3") for note in result["protocol"]["notes"])
    for row in result["rows"]:
        of_classes = [row["classes"][name]["iou"]["values"][0] for name in result["classes"]]
        assert of_classes[2:] == [None, None]
        assert row["miou"]["values"][0] == pytest.approx(sum(of_classes[:2]) / 2)


def test_an_output_that_cannot_be_made_is_refused_before_the_work(simulated: Path, monkeypatch) -> None:
    monkeypatch.setattr("pipelines.evaluate.draw_tested", lambda *_: pytest.fail("work was begun"))
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
    result = _quick(tmp_path, tmp_path / "out", layout="ombria")
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
        ({"weights": [("pixel values", tmp_path / "none.pt")]}, "a name for each row"),
        ({"probes": ["unet++"]}, "--probe"),
        ({"probes": ["linear"]}, "--probe linear: the data are maps"),
        ({"probes": ["knn"], "finetune": True}, "--finetune"),
        ({"fractions": [0.0]}, "--fractions"),
        ({"fractions": [10.0, 10.0]}, "--fractions"),
        ({"probes": ["knn"], "maps": tmp_path / "out"}, "--maps"),
        ({"probes": ["knn"], "save_models": tmp_path / "out"}, "--save-models"),
        ({"official": True}, "own split"),
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


# ------------------------------------------------------------------------------------------------ going on, keeping


def _count(monkeypatch: pytest.MonkeyPatch, stop_after: int | None = None) -> list[tuple[str, str]]:
    """The fits that are computed from here on, by probe and contender; after `stop_after` of them comes a Ctrl-C."""
    from pipelines.probes import run_probe

    done: list[tuple[str, str]] = []

    def counted(kind: Any, contender: Any, *rest: Any) -> Any:
        if len(done) == stop_after:
            raise KeyboardInterrupt
        done.append((kind, contender.name))
        return run_probe(kind, contender, *rest)

    monkeypatch.setattr("pipelines.fits.run_probe", counted)
    return done


def test_tables_are_the_same_twice_and_what_was_computed_is_not_computed_again(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    data, out = _pictures(tmp_path / "data", 6), tmp_path / "out"
    undisturbed = _quick(data, tmp_path / "other", seeds=2)
    _count(monkeypatch, stop_after=2)
    with pytest.raises(KeyboardInterrupt):
        _quick(data, out, seeds=2)
    assert not (out / "evaluation.json").exists() and len(list((out / "parts").iterdir())) == 2
    done = _count(monkeypatch)
    assert _quick(data, out, seeds=2) == undisturbed and len(done) == 2 * 3 - 2
    done.clear()
    assert _quick(data, out, seeds=2) == undisturbed and not done
    next((out / "parts").iterdir()).write_text('{"of": ')  # a disk that was full, by another program
    assert _quick(data, out, seeds=2) == undisturbed and len(done) == 1


def test_what_changed_is_computed_again(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    data, out, weights = _pictures(tmp_path / "data", 6), tmp_path / "out", tmp_path / "w.pt"
    torch.manual_seed(0)
    torch.save(models.resnet18(weights=None).state_dict(), weights)
    first = _quick(data, out, weights=[("ours", weights)])
    done = _count(monkeypatch)
    _quick(data, out, weights=[("named otherwise", weights)])
    assert not done
    torch.save(models.resnet18(weights=None).state_dict(), weights)
    _quick(data, out, weights=[("ours", weights)])
    assert done == [("segment-linear", "ours")]
    done.clear()
    _quick(data, out, balanced=True)
    assert len(done) == 3
    done.clear()
    picture = data / "images/0.png"
    Image.fromarray(255 - np.asarray(Image.open(picture))).save(picture)
    assert _quick(data, out)["rows"] != first["rows"] and len(done) == 3


def test_maps_lie_where_the_image_lies_and_are_what_was_scored(simulated: Path, tmp_path: Path) -> None:
    maps = tmp_path / "maps"
    result = _quick(simulated, tmp_path / "out", maps=maps, seeds=2, pixels=500)
    names = {"pixel values": "pixel-values", "resnet18, random": "resnet18-random"}
    for name, short in names.items():
        folder = maps / "segment-linear-100" / short
        (path,) = folder.glob("*.tif")
        scene = simulated / "scenes" / f"{path.stem[:7]}.tif"
        with rasterio.open(path) as found, rasterio.open(scene) as image:
            assert (found.crs, found.transform, found.shape) == (image.crs, image.transform, image.shape)
            assert json.loads(found.tags()["CLASSES"])["7"] == "road"
            predicted = found.read(1)
        with rasterio.open(simulated / "labels" / f"{path.stem[:7]}.tif") as dataset:
            truth = dataset.read(1)
        counted = confusion(np.where(truth == 0, 255, truth - 1), predicted - 1, 7)
        assert counted.tolist() == _row(result, name)["confusion"][0]
    (picture,) = (maps / "segment-linear-100").glob("*.png")
    with Image.open(picture) as image:
        assert image.width > 6 * 256 and image.height > 256  # two bands, truth, three contenders


def test_maps_and_models_that_are_missing_or_of_another_result_are_made(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    data, out = _pictures(tmp_path / "data", 4), tmp_path / "out"
    kept: dict[str, Any] = {"maps": tmp_path / "maps", "save_models": tmp_path / "models"}
    _quick(data, out)
    done = _count(monkeypatch)
    _quick(data, out, **kept)
    assert len(done) == 3  # the results were there, but no maps
    done.clear()
    _quick(data, out, **kept)
    assert not done
    next((tmp_path / "models").iterdir()).unlink()
    _quick(data, out, **kept)
    assert done == [("segment-linear", "resnet18, random")]
    _quick(data, out, balanced=True, **kept)
    done.clear()
    _quick(data, out, **kept)
    assert len(done) == 3  # those that are there are of the balanced fit
    folder = tmp_path / "maps/segment-linear-100/pixel-values"
    assert len(list(folder.glob("*.tif"))) == 1
    _quick(data, out, test_share=0.5, **kept)
    assert len(list(folder.glob("*.tif"))) == 2 == len(json.loads((folder / "made.json").read_text())["maps"])


def test_a_picture_that_ends_early_is_no_picture(tmp_path: Path) -> None:
    picture = _pictures(tmp_path, 4) / "images/1.png"
    picture.write_bytes(picture.read_bytes()[:1500])
    with pytest.raises(SarsenseError, match=r"1\.png: .*truncated or damaged"):
        _quick(tmp_path, tmp_path / "out")


def test_a_seed_that_tests_nothing_is_told(tmp_path: Path) -> None:
    for mask in sorted((_pictures(tmp_path, 4) / "masks").iterdir())[1:]:
        Image.fromarray(np.full((64, 64), 9, np.uint8)).save(mask)
    with pytest.raises(Dic3lError, match="no labelled pixel in the"):
        _quick(tmp_path, tmp_path / "out", classes="a=0,b=255", seeds=4)


def test_maps_and_models_follow_what_classes_are_called(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    data, out = _pictures(tmp_path / "data", 4), tmp_path / "out"
    kept: dict[str, Any] = {"maps": tmp_path / "maps", "save_models": tmp_path / "models"}
    _quick(data, out, classes="a=0,b=255", **kept)
    done = _count(monkeypatch)
    _quick(data, out, classes="low=0,high=255+7", **kept)
    assert len(done) == 3
    (path,) = (tmp_path / "models").iterdir()
    assert load_segmenter(path)[1]["classes"] == ["low", "high"]
    (found,) = (tmp_path / "maps/segment-linear-100/pixel-values").glob("*.tif")
    with open_raster(str(found)) as (dataset, _):
        assert json.loads(dataset.tags()["CLASSES"]) == {"0": "low", "255": "high"}
    done.clear()
    found.unlink()
    _quick(data, out, classes="low=0,high=255+7", **kept)
    assert done == [("segment-linear", "pixel values")] and found.is_file()


def test_maps_that_were_made_anew_in_part_are_of_no_result(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    data, out, maps = _pictures(tmp_path / "data", 6), tmp_path / "out", tmp_path / "maps"
    result = _quick(data, out, maps=maps)
    made = [path.read_bytes() for path in sorted(maps.rglob("*.tif"))]

    def stopped(path: Path, *rest: Any) -> None:
        path.write_bytes(b"of the other fit")
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr("pipelines.fits.write_map", stopped)
        with pytest.raises(KeyboardInterrupt):
            _quick(data, out, maps=maps, balanced=True)
    assert _quick(data, out, maps=maps) == result
    assert [path.read_bytes() for path in sorted(maps.rglob("*.tif"))] == made


def test_a_picture_shows_maps_of_this_evaluation_alone(tmp_path: Path) -> None:
    data, maps = _pictures(tmp_path / "data", 4), tmp_path / "maps"
    _quick(data, tmp_path / "out", maps=maps)
    (picture,) = (maps / "segment-linear-100").glob("*.png")
    before = Image.open(picture).width  # image, truth, three contenders
    fit = FitConfig(steps=1, batch_size=2, crop=32)
    _quick(data, tmp_path / "out", maps=maps, finetune=True, fit=fit)  # which pixel values have no part in
    assert Image.open(picture).width == before * 3 // 5 + 3


def test_files_of_several_names_are_several_files() -> None:
    assert file_names(["p-2", "p", "p", "p@2"]) == ["p-2", "p", "p-6", "p-2-3"]


def test_networks_of_timm_whose_weights_have_the_same_names_are_told_apart(tmp_path: Path) -> None:
    torch.save(models.resnet18(weights=None).state_dict(), tmp_path / "w.pt")
    of = [contenders([("w", tmp_path / "w.pt")], arch)[-1] for arch in ("resnet18", "resnet18.tv_in1k")]
    one, other = (contender.backbone(0) for contender in of if contender.backbone is not None)
    assert one.network.state_dict().keys() == other.network.state_dict().keys() and one.multiple != other.multiple
    assert identity(of[0], 0) != identity(of[1], 0)


def test_a_lone_chip_of_one_cell_does_not_end_the_fit(tmp_path: Path) -> None:
    """The corner of a scene of 544 pixels is a window of 32, of which BatchNorm can take no variance."""
    chips = [np.random.default_rng(n).integers(0, 256, (1, 32, 32), np.uint8) for n in range(17)]
    device = torch.device("cpu")
    some = ready_backbone(lambda seed: random_backbone("resnet18", seed), chips, 0, device)
    assert torch.isfinite(some(torch.from_numpy(chips[0]))[-1]).all()
    with pytest.raises(Dic3lError, match="too little for BatchNorm statistics"):
        ready_backbone(lambda seed: random_backbone("resnet18", seed), chips[:1], 0, device)


@pytest.mark.parametrize("kind", ["segment-linear", "fcn"])
def test_a_saved_segmenter_makes_the_map_again_and_says_what_it_is(kind: str, tmp_path: Path) -> None:
    data = _pictures(tmp_path / "data", 4)
    result = _quick(
        data, tmp_path / "out", probes=[kind], maps=tmp_path / "maps", save_models=tmp_path / "models",
        fit=FitConfig(steps=4, batch_size=2, crop=64), classes="other=0,bright=255",
    )  # fmt: skip
    (path,) = (tmp_path / "models").iterdir()
    assert path.name == f"resnet18-random.{kind}-100.seed0.pt"
    segmenter, facts = load_segmenter(path)
    assert (facts["classes"], facts["values"], facts["kind"]) == (["other", "bright"], [0, 255], kind)
    assert (facts["arch"], facts["coding"]["normalization"]) == ("resnet18", "none")
    assert facts["scores"]["miou"] == _row(result, "resnet18, random")["miou"]["values"][0]
    (found,) = (tmp_path / f"maps/{kind}-100/resnet18-random").glob("*.tif")
    predicted = read_map(found, legend_of(["other", "bright"], [0, 255]))
    image = np.array(Image.open(data / "images" / f"{found.stem}.png"))
    assert (segment(segmenter, image[None], torch.device("cpu")) == predicted).mean() > 0.999


# ----------------------------------------------------------------------------------------------- probes, fractions


def test_decoders_and_fractions_are_rows_beside_a_random_network_of_their_own(tmp_path: Path) -> None:
    data = _pictures(tmp_path / "data", 8)
    result = _quick(
        data, tmp_path / "out", probes=["fcn", "knn"], fractions=[20.0, 100.0],
        fit=FitConfig(steps=30, batch_size=4, crop=64, lr=1e-2), classes="other=0,bright=255",
    )  # fmt: skip
    found = {(row["name"], row["probe"], row["fraction"]): row for row in result["rows"]}
    assert ("pixel values", "fcn", 100.0) not in found and ("pixel values", "knn", 100.0) in found
    decoder = found["resnet18, random", "fcn", 100.0]
    assert decoder["gain"]["values"] == [0.0] and len(decoder["losses"]) == 1 and decoder["penalties"] == []
    assert decoder["miou"]["mean"] > found["majority class", "-", 100.0]["miou"]["mean"] + 0.2
    assert result["splits"][0]["fitted"] == {"20": 1, "100": 6}
    table = (tmp_path / "out/evaluation.md").read_text()
    assert "| features | probe | labels |" in table and "| 20 % |" in table and "20 %: 1" in table


def test_finetuned_and_frozen_are_different_fits(tmp_path: Path) -> None:
    data, fit = _pictures(tmp_path / "data", 4), FitConfig(steps=6, batch_size=2, crop=64, lr=1e-3)
    found = [
        _quick(data, tmp_path / "out", probes=["segment-linear"], finetune=finetune, fit=fit)
        for finetune in (False, True)
    ]
    frozen, tuned = (_row(result, "resnet18, random") for result in found)
    assert frozen["penalties"] and not tuned["penalties"] and tuned["losses"]
    assert any("fine-tuned" in note for note in found[1]["protocol"]["notes"])


def test_weights_have_labels_and_a_file_for_each_seed(tmp_path: Path) -> None:
    data = _pictures(tmp_path / "data", 4)
    for seed in (0, 1):
        torch.manual_seed(seed)
        torch.save(models.resnet18(weights=None).state_dict(), tmp_path / f"w-{seed}.pt")
    result = _quick(data, tmp_path / "out", seeds=2, weights=[("ours", tmp_path / "w-{seed}.pt")])
    assert [row["name"] for row in result["rows"]][-1] == "ours"
    with pytest.raises(Dic3lError, match=r"w-2\.pt"):
        _quick(data, tmp_path / "other", seeds=3, weights=[("ours", tmp_path / "w-{seed}.pt")])
    assert not (tmp_path / "other").exists()


@pytest.mark.slow
def test_weights_of_a_corpus_of_other_ranges_are_told(simulated: Path, corpus_path: Path, tmp_path: Path) -> None:
    """`dic3l export` writes beside weights what corpus they were trained on."""
    corpus = open_corpus(corpus_path)
    torch.save(models.resnet18(weights=None).state_dict(), tmp_path / "w.pt")
    facts = {"name": "mine", "digest": corpus.digest, "groups": corpus.manifest["groups"]}
    (tmp_path / "w.json").write_text(json.dumps({"corpus": facts}))
    ours: dict[str, Any] = {"weights": [("ours", tmp_path / "w.pt")]}
    told: list[str] = []
    result = _quick(simulated, tmp_path / "out", **ours, progress=told.append)
    note = f"ours: trained on corpus mine ({corpus.digest[:12]}), whose dB ranges are not those of the input here"
    assert any(note in line for line in told) and any(note in line for line in result["protocol"]["notes"])
    same = _quick(simulated, tmp_path / "out", **ours, corpus=corpus_path)
    assert not any("trained on corpus" in line for line in same["protocol"]["notes"])
    pictures = _quick(_pictures(tmp_path / "data", 4), tmp_path / "out", **ours)  # 8 bits, whose dB nobody knows
    assert not any("trained on corpus" in line for line in pictures["protocol"]["notes"])
    facts["groups"] = {"unknown/unknown/b1/display": next(iter(facts["groups"].values()))}
    (tmp_path / "w.json").write_text(json.dumps({"corpus": facts}))
    pictures = _quick(tmp_path / "data", tmp_path / "out", **ours)  # as they are, and were coded for the encoder
    assert any("trained on corpus" in line for line in pictures["protocol"]["notes"])


def test_the_datas_own_split_is_used_where_it_is_asked_for(tmp_path: Path) -> None:
    data = _pictures(tmp_path / "data", 5)
    (data / "split.csv").write_text("name,split\n0,train\n1,train\n2,val\n3,test\n4,train\n")
    result = _quick(data, tmp_path / "out", official=True, seeds=2)
    assert [(split["train"], split["test"]) for split in result["splits"]] == [(3, 1)] * 2
    assert result["protocol"]["official_split"] and "own split" in (tmp_path / "out/evaluation.md").read_text()


# -------------------------------------------------------------------------------------------------- tiles, leaks


def _tiles(root: Path, count: int, shuffled: bool = False, seed: int = 0) -> Path:
    """Folders of three classes of tiles: fine, coarse and bright grain; where shuffled, of any."""
    rng = np.random.default_rng(seed)
    for number in range(3 * count):
        label = number % 3
        grain = rng.normal(0, 40, (32, 32)) if label == 1 else rng.normal(0, 40, (64, 64))
        image = (np.kron(grain, np.ones((2, 2))) if label == 1 else grain) + (200 if label == 2 else 110)
        folder = root / ("fine", "coarse", "bright")[int(rng.integers(3)) if shuffled else label]
        folder.mkdir(parents=True, exist_ok=True)
        Image.fromarray(image.clip(0, 255).astype(np.uint8)).save(folder / f"{_letters(number)}.png")
    return root


def _letters(number: int) -> str:
    """Names without numbers: each tile is a block of its own."""
    return "".join("abcdefghij"[int(digit)] for digit in f"{number:04d}")


def test_tiles_of_one_class_are_told_by_both_probes(tmp_path: Path) -> None:
    data = _tiles(tmp_path / "data", 20)
    result = _quick(data, tmp_path / "out", layout="classes", probes=["knn", "linear"])
    assert sorted(result["classes"]) == ["bright", "coarse", "fine"] and result["protocol"]["task"] == "classification"
    found = {(row["name"], row["probe"]): row for row in result["rows"]}
    for kind in ("knn", "linear"):
        assert found["pixel values", kind]["accuracy"]["mean"] < 0.9  # fine and coarse have the same histogram
        assert found["pixel values and means (5, 9, 17)", kind]["accuracy"]["mean"] > 0.95
        assert found["resnet18, random", kind]["accuracy"]["mean"] > 0.7  # 512 features of 42 tiles
        assert found["resnet18, random", kind]["features"] == 512
    assert np.sum(found["resnet18, random", "knn"]["confusion"][0]) == result["splits"][0]["test"]
    table = (tmp_path / "out/evaluation.md").read_text()
    assert "boundary" not in table and "test tiles" in table
    with pytest.raises(ConfigError, match="--probe unet: the data are tiles"):
        _quick(data, tmp_path / "out", layout="classes", probes=["unet"])


def test_shuffled_labels_of_tiles_score_at_chance(tmp_path: Path) -> None:
    data = _tiles(tmp_path / "data", 40, shuffled=True)
    result = _quick(data, tmp_path / "out", layout="classes", probes=["knn", "linear"], test_share=0.5)
    assert result["splits"][0]["test"] == 60
    for row in result["rows"]:  # kappa of 60 guesses among three: a standard deviation of 0.09
        assert abs(row["kappa"]["mean"]) < 0.3, row["name"]


def test_shuffled_labels_of_pixels_score_at_chance_and_a_leak_would_be_seen(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Labels that say nothing of the picture: a probe that does better than a guess has seen those of the test."""
    data = _pictures(tmp_path / "data", 6, side=40, shuffled=True)
    probes, fit = ["knn", "segment-linear", "fcn"], FitConfig(steps=20, batch_size=4, crop=40, lr=1e-2)
    result = _quick(data, tmp_path / "out", probes=probes, fit=fit, test_share=0.5, pixels=2_000)
    for row in result["rows"]:  # of 4,800 test pixels: a standard deviation of 0.014
        assert abs(row["kappa"]["mean"]) < 0.05, (row["name"], row["probe"])
    monkeypatch.setattr("pipelines.evaluate.split_places", lambda places, *_: ([3, 4, 5], [3, 4, 5]))
    leaky = _quick(data, tmp_path / "leaky", probes=["knn"], pixels=4_800)
    assert max(row["kappa"]["mean"] for row in leaky["rows"]) > 0.15


def test_help_names_every_layout_and_probe() -> None:
    options = {option.name: option.help for option in typer.main.get_command(dic3l_app).commands["evaluate"].params}  # type: ignore[attr-defined]
    assert not [name for name in LAYOUTS if name not in options["layout"]]
    assert not [kind for kind in KINDS if kind not in options["probe"]]
