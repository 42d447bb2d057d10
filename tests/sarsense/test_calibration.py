"""Calibration of Sentinel-1 against xarray-sentinel, and of a whole build against backscatter put in."""

import shutil
import zipfile
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from pipelines import stages
from pipelines.build import build
from sarsense.calibration import NOISE_FLOOR, Lut, border_noise, calibrate
from sarsense.config import BuildConfig
from sarsense.corpus import open_corpus
from sarsense.errors import CorpusError, SceneError
from sarsense.power import valid_power
from sarsense.products import recognise
from sarsense.raster import open_raster
from sarsense.scene import describe_scene
from tests.conftest import speckled_power, write_raster

NAME = "s1b-iw-grd-vv-20211223t051122-20211223t051147-030148-039993-001"


@pytest.fixture
def safe(real_data: Path) -> Path:
    return next((real_data / "s1-grd-safe").glob("*.SAFE"))


@pytest.fixture
def filled(safe: Path, tmp_path: Path) -> tuple[Path, np.ndarray]:
    """The SAFE with a smaller measurement of our own, whose sigma nought is known: the top left 640 x 900 pixels."""
    copy = tmp_path / "in" / safe.name
    shutil.copytree(safe / "annotation", copy / "annotation")
    sigma0 = speckled_power((640, 900), 4.4, seed=3, mean_db=-8.0)
    facts = recognise(str(safe / "measurement" / f"{NAME}.tiff"), {})
    assert facts.calibration is not None
    minus_noise, _ = calibrate(np.zeros_like(sigma0), facts.calibration)
    one, _ = calibrate(np.full_like(sigma0, 1e6), facts.calibration)
    gain = (one - minus_noise) / 1e6
    noise = -minus_noise / gain
    dn = np.rint(np.sqrt(sigma0 / gain + noise)).astype(np.uint16)
    dn[:, :40] = 0
    write_raster(copy / "measurement" / f"{NAME}.tiff", dn, crs=None)
    return copy, sigma0


@pytest.mark.parametrize(
    ("quantity", "table"), [("sigma0", "sigmaNought"), ("beta0", "betaNought"), ("gamma0", "gamma")]
)
def test_calibration_agrees_with_xarray_sentinel(safe: Path, quantity, table):
    """Digital numbers of 300 over rows all over the scene, without noise: 0.01 dB everywhere."""
    xr = pytest.importorskip("xarray")
    sentinel1 = pytest.importorskip("xarray_sentinel.sentinel1")
    facts = recognise(str(safe / "measurement" / f"{NAME}.tiff"), {}, quantity)
    assert facts.quantity == quantity and facts.calibration is not None
    calibration = facts.calibration
    alone = type(calibration)(tables="sentinel1", files=calibration.files[:1], variant=calibration.variant)
    luts = sentinel1.open_calibration_dataset(calibration.files[0])
    pixels = np.arange(26102)
    for row in (0, 1, 333, 668, 5000, 10023, 16037, 16704):
        dn = xr.DataArray(np.full((1, 26102), 300.0), dims=("line", "pixel"), coords={"line": [row], "pixel": pixels})
        # 0 tolerance: it takes the mean of a table that is nearly constant
        theirs = sentinel1.calibrate_intensity(dn, luts[table], rtol=0, atol=0).to_numpy()
        ours, _ = calibrate(np.full((1, 26102), 300.0**2, np.float32), alone, row)
        assert np.abs(10 * np.log10(ours / theirs)).max() < 0.01


def test_thermal_noise_agrees_with_xarray_sentinel(safe: Path):
    """Range noise everywhere; with its azimuth factors in the first sub-swath (xarray-sentinel knows no other)."""
    sentinel1 = pytest.importorskip("xarray_sentinel.sentinel1")
    facts = recognise(str(safe / "measurement" / f"{NAME}.tiff"), {})
    assert facts.calibration is not None
    path = facts.calibration.files[1]
    in_range = sentinel1.open_noise_range_dataset(path).noiseRangeLut
    in_azimuth = sentinel1.open_noise_azimuth_dataset(path).noiseAzimuthLut
    luts = sentinel1.open_calibration_dataset(facts.calibration.files[0]).sigmaNought
    pixels = np.arange(8000)
    for row in (0, 700, 8000, 16704):
        noise = in_range.interp(line=row, pixel=pixels).to_numpy() * float(in_azimuth.interp(line=row))
        gain = luts.interp(line=row, pixel=pixels).to_numpy() ** -2
        dn2 = np.full((1, 26102), 200.0**2, np.float32)
        signal, floor = (part[0, :8000] for part in calibrate(dn2, facts.calibration, row) if part is not None)
        assert np.abs(10 * np.log10(signal / ((200.0**2 - noise) * gain))).max() < 0.01
        assert np.abs(10 * np.log10(floor / (NOISE_FLOOR * noise * gain))).max() < 0.01


def test_rows_and_columns_of_a_window_are_those_of_the_whole(safe: Path):
    facts = recognise(str(safe / "measurement" / f"{NAME}.tiff"), {})
    assert facts.calibration is not None
    whole, _ = calibrate(np.full((60, 300), 9e4, np.float32), facts.calibration, row=650)
    part, _ = calibrate(np.full((10, 50), 9e4, np.float32), facts.calibration, row=670, col=120)
    assert np.array_equal(part, whole[20:30, 120:170])


def test_lut_is_bilinear_with_its_own_pixels_on_each_line():
    lut = Lut(
        np.array([0.0, 10.0]),
        (np.array([0.0, 4.0]), np.array([0.0, 2.0, 4.0])),
        (np.array([1.0, 5.0]), np.array([11.0, 13.0, 15.0])),
    )
    rows = lut.rows(0, 13, 6)
    assert rows[0].tolist() == [1, 2, 3, 4, 5, 5] and rows[10].tolist() == [11, 12, 13, 14, 15, 15]
    assert np.allclose(rows[5], (rows[0] + rows[10]) / 2) and np.array_equal(rows[12], rows[10])


def test_a_safe_is_built_to_the_sigma_nought_put_in(filled, tmp_path: Path):
    """GCP geometry from the annotation (the raster has none), sigma nought within the rounding of the numbers."""
    safe, sigma0 = filled
    config = BuildConfig(tile_size=128, val_share=0.0)
    build([str(safe)], tmp_path / "corpus", config, workers=0)
    corpus = open_corpus(tmp_path / "corpus")
    (scene,) = [row for row in corpus.scenes.to_pylist() if row["status"] == "used"]
    assert scene["quantities"] == ["sigma0"] and scene["geometry"] == "gcps" and scene["polarisations"] == ["VV"]
    assert "sigmaNought" in scene["evidence"][0] and "noise" in scene["evidence"][0]
    tiles = corpus.tiles().to_pylist()
    assert len(tiles) == 5 * 6  # the first column of tiles holds the empty border, under min_valid
    for tile in tiles:
        window = sigma0[tile["row"] : tile["row"] + 128, tile["col"] : tile["col"] + 128]
        assert tile["mean_db"] == pytest.approx(10 * np.log10(window.mean()), abs=0.05)
        assert 14.5 < tile["lon"] < 15.4 and 42.2 < tile["lat"] < 42.7


def test_a_zipped_safe_is_the_same_to_the_product_module(filled, tmp_path: Path):
    safe, _ = filled
    archive = tmp_path / f"{safe.stem}.zip"
    with zipfile.ZipFile(archive, "w") as opened:
        for path in safe.rglob("*"):
            opened.write(path, path.relative_to(safe.parent))
    inner = f"{safe.name}/measurement/{NAME}.tiff"
    scene = describe_scene(f"/vsizip/{archive}/{inner}", inner, BuildConfig(tile_size=128))
    plain = describe_scene(str(safe / "measurement" / f"{NAME}.tiff"), inner, BuildConfig(tile_size=128))
    assert scene.gcps == plain.gcps and scene.bands[0].quantity == "sigma0"
    power = np.full((5, 900), 1e5, np.float32)
    ours, theirs = scene.bands[0].calibration, plain.bands[0].calibration
    assert ours and theirs and np.array_equal(calibrate(power, ours, 3)[0], calibrate(power, theirs, 3)[0])


def test_calibrate_none_and_a_missing_table_leave_digital_numbers(filled):
    safe, _ = filled
    path = str(safe / "measurement" / f"{NAME}.tiff")
    raw = describe_scene(path, "x.tiff", BuildConfig(tile_size=128, calibrate="none")).bands[0]
    assert raw.quantity == "uncalibrated" and raw.calibration is None
    shutil.rmtree(safe / "annotation" / "calibration")
    bare = describe_scene(path, "x.tiff", BuildConfig(tile_size=128)).bands[0]
    assert bare.quantity == "uncalibrated" and "no annotation/calibration" in bare.evidence


def test_a_damaged_table_is_named(filled):
    safe, _ = filled
    (table,) = (safe / "annotation" / "calibration").glob("calibration-*.xml")
    table.write_text(table.read_text()[:5000])
    path = safe / "measurement" / f"{NAME}.tiff"
    scene = describe_scene(str(path), "x.tiff", BuildConfig(tile_size=128))
    calibration = scene.bands[0].calibration
    assert calibration is not None
    with pytest.raises(SceneError, match=r"calibration-s1b.*\.xml cannot be read"):
        calibrate(np.ones((1, 10), np.float32), calibration)


@given(st.integers(0, 120), st.integers(0, 120), st.integers(0, 9))
def test_the_rim_of_old_products_goes_and_dark_water_beside_it_stays(left: int, right: int, seed: int):
    """Where something was imaged there is thermal noise at least: water without any echo, 4.4 looks."""
    rng = np.random.default_rng(seed)
    noise = np.full((30, 500), 700, np.float32) * np.linspace(1.3, 0.8, 500, dtype=np.float32)
    power = noise * rng.gamma(4.4, 1 / 4.4, noise.shape).astype(np.float32)
    rim = np.zeros(noise.shape, bool)
    rim[:, :left] = rim[:, 500 - right :] = True
    rim[:4] = True  # and whole rows, as at the first and last azimuth lines
    power[rim] = rng.integers(0, 12, rim.sum()).astype(np.float32) ** 2
    found = border_noise(power, noise)
    assert found[rim].all()
    lost = (found & ~rim).sum(axis=1)
    assert lost.max() <= 2 * 20  # a little more on a side that has a rim
    if not left and not right:
        assert np.count_nonzero(lost) <= 8  # where there is none, an end pixel is dark by chance in 6 per cent


def test_a_safe_of_an_old_ipf_loses_its_rim(filled, tmp_path: Path):
    """Its noise annotation has one list of vectors: written here from the real one."""
    safe, _ = filled
    (path,) = (safe / "annotation" / "calibration").glob("noise-*.xml")
    text = path.read_text()
    text = text[: text.index("<noiseAzimuthVectorList")] + text[text.index("</noiseAzimuthVectorList>") + 25 :]
    for new, old in (("noiseRangeVectorList", "noiseVectorList"), ("noiseRangeVector", "noiseVector")):
        text = text.replace(f"<{new}", f"<{old}").replace(f"</{new}>", f"</{old}>")
    path.write_text(text.replace("noiseRangeLut", "noiseLut"))
    measurement = safe / "measurement" / f"{NAME}.tiff"
    with open_raster(str(measurement)) as (dataset, _):
        dn = dataset.read(1)
    dn[:, :60] = np.random.default_rng(0).integers(0, 8, (640, 60))
    write_raster(measurement, dn, crs=None)
    scene = describe_scene(str(measurement), "x.tiff", BuildConfig(tile_size=128))
    power = valid_power(dn, scene.bands[0])
    assert np.isnan(power[:, :60]).all() and np.isfinite(power[:, 120:]).all()


def test_changed_metadata_are_seen_by_the_next_build_and_a_new_scene_costs_one(filled, tmp_path: Path, monkeypatch):
    """A calibration table edited in place: a finished corpus is not taken for current, an unfinished one reads it."""
    safe, _ = filled
    scanned: list[str] = []
    scan_task = stages.scan_task

    def counted(path: str, *rest: object) -> None:
        scanned.append(Path(path).name)
        scan_task(path, *rest)  # type: ignore[arg-type]

    monkeypatch.setattr(stages, "scan_task", counted)
    config, out = BuildConfig(tile_size=128, val_share=0.0), tmp_path / "corpus"
    build([str(safe.parent)], out, config, workers=0)
    level = open_corpus(out).tiles()["mean_db"].to_pylist()
    (table,) = (safe / "annotation" / "calibration").glob("calibration-*.xml")
    text = table.read_text()
    table.write_text(text.replace("e+02", "e+01"))  # the same size; every gain a hundredfold
    with pytest.raises(CorpusError, match=r"or the metadata beside it, was changed since"):
        build([str(safe.parent)], out, config, workers=0)
    (out / "corpus.json").unlink()  # as if it had not been finished
    build([str(safe.parent)], out, config, workers=0)
    np.testing.assert_allclose(open_corpus(out).tiles()["mean_db"].to_pylist(), np.array(level) + 20, atol=0.01)
    assert scanned == [f"{NAME}.tiff"] * 2

    (out / "corpus.json").unlink()
    write_raster(safe.parent / "other_VV.tif", np.log10(speckled_power((128, 128), 4, 0)) * 10)
    build([str(safe.parent)], out, config, workers=0)
    assert scanned[2:] == ["other_VV.tif"]
