"""Joined, multilooked and resampled scenes against simulated truth, closed forms and other libraries."""

from __future__ import annotations

import shutil
from pathlib import Path

import numpy as np
import pytest
import rasterio
from hypothesis import given
from hypothesis import strategies as st
from rasterio.warp import transform as warp_points

from pipelines.build import build
from sarsense.calibration import calibrate
from sarsense.config import BuildConfig
from sarsense.corpus import open_corpus
from sarsense.errors import SceneError, SettingError
from sarsense.geometry import Geometry, Preparation, to_lonlat
from sarsense.prepare import multilooked_rows, prepare_scene
from sarsense.raster import open_raster
from sarsense.scene import Scene, describe_scene
from tests.conftest import speckled_power, write_raster

ROWS_A_BURST = 1507
OFFSETS = [0, 1342, 2684, 4027, 5368, 6709, 8051, 9393, 10735]
"""first rows of the nine bursts in the joined image: their azimuth times over the time of a row, from the annotation"""


def single_look(shape: tuple[int, int], seed: int, mean: float = 1.0) -> np.ndarray:
    """Circular complex Gaussian of mean power `mean`, complex64."""
    rng = np.random.default_rng(seed)
    parts = rng.normal(0, np.sqrt(mean / 2), (2, *shape))
    return (parts[0] + 1j * parts[1]).astype(np.complex64)


def plain(shape: tuple[int, int], segments: tuple[tuple[int, int], ...], azimuth: int, range_: int) -> Preparation:
    height = sum(last - first for first, last in segments)
    return Preparation(Geometry(height // azimuth, shape[1] // range_), segments, azimuth, range_)


# ----------------------------------------------------------------------------------------------------- multilook


def test_looks_make_gamma_statistics_of_as_many_looks(tmp_path: Path):
    """Mean kept, ENL azimuth x range: speckle of independent single looks."""
    path = write_raster(tmp_path / "slc_VV.tif", single_look((512, 1536), 0, mean=0.1))
    scene = describe_scene(str(path), path.name, BuildConfig(tile_size=64, multilook="2x4"))
    assert (scene.height, scene.width) == (256, 384) and any("2 x 4" in note for note in scene.notes)
    prepared = prepare_scene(scene, tmp_path / "out.tif")
    with rasterio.open(prepared.path) as dataset:
        power = dataset.read(1)
        assert dataset.transform == rasterio.Affine(40, 0, 500_000, 0, -20, 5_000_000)
    assert power.mean() == pytest.approx(0.1, rel=0.01)
    assert power.mean() ** 2 / power.var() == pytest.approx(8, rel=0.03)


@given(st.data())
def test_rows_are_those_of_a_brute_force_twin_for_any_bursts_and_strips(tmp_path_factory, data):
    """Every part of the joined image, cell by cell, in float64; a cell of which most is missing is NaN."""
    azimuth, range_ = data.draw(st.integers(1, 4)), data.draw(st.integers(1, 5))
    edges = sorted(data.draw(st.sets(st.integers(0, 40), min_size=2, max_size=6)))
    segments = tuple(zip(edges[::2], edges[1::2], strict=False))
    joined = [row for first, last in segments for row in range(first, last)]
    if len(joined) < azimuth:
        return
    values = single_look((40, 23), data.draw(st.integers(0, 99)))
    values[np.random.default_rng(1).random(values.shape) < 0.4] = 0
    path = write_raster(tmp_path_factory.mktemp("slc") / "slc_VV.tif", values)
    scene = describe_scene(str(path), path.name, BuildConfig(tile_size=8))
    plan = plain(values.shape, segments, azimuth, range_)
    first = data.draw(st.integers(0, plan.native.height - 1))
    last = data.draw(st.integers(first + 1, plan.native.height))
    with open_raster(str(path)) as (dataset, _):
        found = multilooked_rows(dataset, scene.bands[0], plan, first, last)
    path.unlink()
    power = np.abs(values[joined].astype(np.complex128)) ** 2
    assert found.shape == (last - first, plan.native.width)
    for row in range(first, last):
        for col in range(plan.native.width):
            cell = power[row * azimuth : (row + 1) * azimuth, col * range_ : (col + 1) * range_]
            good = cell[cell > 0]
            if 2 * good.size < cell.size:
                assert np.isnan(found[row - first, col])
            else:
                assert found[row - first, col] == pytest.approx(good.mean(), rel=1e-5)


def test_a_power_scene_is_not_multilooked_and_nonsense_is_refused(tmp_path: Path):
    path = write_raster(tmp_path / "x_power_VV.tif", speckled_power((80, 80), 4, 0))
    assert describe_scene(str(path), path.name, BuildConfig(tile_size=64, multilook="2x2")).preparation is None
    for text in ("4", "0x4", "2x", "x", "2x2x2", "-1x2"):
        with pytest.raises(SettingError, match="--multilook"):
            BuildConfig(multilook=text)
    slc = write_raster(tmp_path / "slc_VV.tif", single_look((80, 80), 0))
    with pytest.raises(SceneError, match="smaller than a tile: 40 x 20"):
        describe_scene(str(slc), slc.name, BuildConfig(tile_size=64, multilook="2x4"))


# ------------------------------------------------------------------------------------------- Sentinel-1 bursts


@pytest.fixture(scope="module")
def slc(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The real annotation of an IW1 SLC, with 300 columns of our own as measurement: in each burst, the joined image's
    row number is the amplitude, so that a row that is taken from a wrong burst or place shows."""
    data = Path(__file__).resolve().parents[3] / "shared" / "data" / "s1-slc-safe"
    if not data.is_dir():
        pytest.skip(f"real SAR data is not at {data.parent}")
    safe = next(data.glob("*.SAFE"))
    copy = tmp_path_factory.mktemp("slc") / safe.name
    shutil.copytree(safe / "annotation", copy / "annotation")
    (measurement,) = (safe / "measurement").glob("*.tiff")
    lines = np.concatenate([offset + np.arange(ROWS_A_BURST) for offset in OFFSETS])
    values = np.repeat((lines + 500)[:, None], 300, 1).astype(np.complex64)
    values *= np.exp(1j * np.random.default_rng(0).uniform(0, 6.28, values.shape)).astype(np.complex64)
    for burst in range(9):  # what the IPF leaves invalid at the ends of each burst
        values[burst * ROWS_A_BURST : burst * ROWS_A_BURST + 20] = 0
        values[(burst + 1) * ROWS_A_BURST - 18 : (burst + 1) * ROWS_A_BURST] = 0
    write_raster(copy / "measurement" / measurement.name, values, crs=None)
    return copy / "measurement" / measurement.name


def describe(path: Path, **settings: object) -> Scene:
    return describe_scene(str(path), path.name, BuildConfig(**{"tile_size": 64, **settings}))  # type: ignore[arg-type]


def test_bursts_are_joined_without_a_seam_and_in_their_places(slc: Path, tmp_path: Path):
    scene = describe(slc, calibrate="none", multilook="1x1")
    assert scene.height == 10735 + 1487 - 21 and any("9 bursts joined" in note for note in scene.notes)
    with rasterio.open(prepare_scene(scene, tmp_path / "out.tif").path) as dataset:
        amplitude = np.sqrt(dataset.read(1))
    assert np.isfinite(amplitude).all()
    np.testing.assert_allclose(amplitude, np.arange(21, 21 + scene.height)[:, None] + 500 + np.zeros(300), rtol=1e-4)


def test_the_joined_image_lies_where_the_geolocation_grid_says(slc: Path):
    """The grid's points have times: those of the joined rows. In between, the spline bends no more than the grid."""
    scene = describe(slc, calibrate="none", multilook="1x3")
    # the second row of points: line 1507, 1341.87 rows after the first one by time; longitude, latitude from the XML
    row = (1342 - 21) / 1
    lon, lat = to_lonlat(scene, np.array([0.0]), np.array([row]))
    assert (lon[0], lat[0]) == (pytest.approx(-7.904887413, abs=1e-5), pytest.approx(31.56671391, abs=1e-5))
    # steps of lat along azimuth are even across the burst borders: a burst taken 165 rows off would show as 2 km
    rows = np.arange(0, scene.height, 50.0)
    _, lat = to_lonlat(scene, np.full_like(rows, 50), rows)
    steps = np.diff(lat)
    assert np.abs(steps / np.median(steps) - 1).max() < 0.05


def test_calibration_takes_the_line_of_the_burst_and_looks_square_the_pixels(slc: Path, tmp_path: Path):
    scene = describe(slc)
    assert scene.preparation is not None and (scene.preparation.azimuth, scene.preparation.range) == (1, 3)
    calibration = scene.bands[0].calibration
    assert scene.bands[0].quantity == "sigma0" and calibration is not None
    with rasterio.open(prepare_scene(scene, tmp_path / "out.tif").path) as dataset:
        sigma0 = dataset.read(1)
    for burst, joined_row in ((0, 600), (1, 2000), (8, 12000)):
        line = burst * ROWS_A_BURST + joined_row - OFFSETS[burst]
        power = np.full((1, 300), np.float32(joined_row + 500) ** 2)
        signal, floor = calibrate(power, calibration, line)
        assert floor is not None
        expected = np.maximum(signal, floor)[0].reshape(100, 3).mean(axis=1)
        np.testing.assert_allclose(sigma0[joined_row - 21], expected, rtol=2e-3)


def test_noise_is_taken_off_before_the_mean_so_that_dark_water_keeps_its_level(slc: Path, tmp_path: Path):
    """Sigma nought of a tenth of the noise: a floor under single looks would be several dB too bright."""
    scene = describe(slc, multilook="8x10", tile_size=8)
    calibration = scene.bands[0].calibration
    assert calibration is not None
    shape = (9 * ROWS_A_BURST, 300)
    rows = [calibrate(np.zeros((1, shape[1]), np.float32), calibration, line)[0][0] for line in range(0, shape[0], 100)]
    minus_noise = np.median(np.stack(rows))  # noise-equivalent sigma nought, negative
    gain = float(np.median(calibrate(np.ones((1, 300), np.float32), calibration, 5000)[0] - rows[50][None]))
    dark = single_look(shape, 3, mean=(0.5 * -minus_noise - minus_noise) / gain)
    copy = tmp_path / slc.parent.parent.name
    shutil.copytree(slc.parent.parent / "annotation", copy / "annotation")
    path = write_raster(copy / "measurement" / slc.name, dark, crs=None)
    with rasterio.open(
        prepare_scene(describe(path, multilook="8x10", tile_size=8), tmp_path / "out.tif").path
    ) as dataset:
        mean = np.nanmean(dataset.read(1)[400:800])
    assert 10 * np.log10(mean / (0.5 * -minus_noise)) == pytest.approx(0, abs=1.0)


def test_an_slc_without_its_annotation_is_refused(slc: Path, tmp_path: Path):
    path = tmp_path / slc.parent.parent.name / "measurement" / slc.name
    path.parent.mkdir(parents=True)
    path.write_bytes(slc.read_bytes())
    with pytest.raises(SceneError, match="its bursts cannot be joined without it; give the whole"):
        describe(path)


def test_a_build_of_a_complex_scene_is_the_same_after_a_kill_and_keeps_no_pixels(tmp_path: Path):
    write_raster(tmp_path / "in" / "slc_VV.tif", single_look((256, 512), 0, mean=0.1))
    config = BuildConfig(tile_size=64, val_share=0, multilook="1x2")
    build([str(tmp_path / "in")], tmp_path / "a", config, workers=0)
    build([str(tmp_path / "in")], tmp_path / "b", config, workers=2)
    one, two = open_corpus(tmp_path / "a"), open_corpus(tmp_path / "b")
    assert one.digest == two.digest and not (tmp_path / "a" / ".build" / "prepare").exists()
    rows = one.tiles().to_pylist()
    assert len(rows) == 16 and {row["source"] for row in rows} == {"slc_VV.tif"}
    assert rows[0]["spacing_x_m"] == pytest.approx(20, rel=1e-2) and rows[0]["enl"] == pytest.approx(2, rel=0.15)


# ------------------------------------------------------------------------------------------------------ spacing


def test_resampling_is_on_power_and_keeps_the_mean(tmp_path: Path):
    """dB that are resampled as dB come out 2.5 dB too dark for one look; the mean of power is that of the scene."""
    power = speckled_power((400, 600), 1.0, seed=1)
    path = write_raster(tmp_path / "x_VV.tif", (10 * np.log10(power)).astype(np.float32))
    scene = describe(path, spacing=40.0)
    assert scene.transform is not None and scene.transform[0] == 40 and scene.transform[2] % 40 == 0
    with rasterio.open(prepare_scene(scene, tmp_path / "out.tif").path) as dataset:
        coarse = dataset.read(1)
    assert (scene.height, scene.width) == coarse.shape == (100, 150)
    np.testing.assert_allclose(coarse, power.reshape(100, 4, 150, 4).mean(axis=(1, 3)), rtol=1e-4)
    fine = describe(path, spacing=5.0)
    with rasterio.open(prepare_scene(fine, tmp_path / "fine.tif").path) as dataset:
        assert dataset.shape == (800, 1200) and np.nanmean(dataset.read(1)) == pytest.approx(power.mean(), rel=0.01)


@pytest.mark.parametrize("lat", [0.5, 45.0, -33.0, 71.0, 86.0])
def test_resampled_scenes_lie_where_they_lay(tmp_path: Path, lat: float):
    """Degrees to metres: a bright spot is found again where PROJ puts it, in UTM or UPS."""
    db = np.full((300, 300), -10, np.float32) + np.random.default_rng(0).normal(0, 0.5, (300, 300)).astype(np.float32)
    db[100:104, 200:204] = 20
    transform = rasterio.Affine(0.0005, 0, 179.9, 0, -0.0005, lat)
    path = write_raster(tmp_path / "x_VV.tif", db, crs="EPSG:4326", transform=transform)
    scene = describe(path, spacing=30.0, tile_size=8)
    assert scene.crs is not None and scene.crs.startswith(("EPSG:326", "EPSG:327"))
    with rasterio.open(prepare_scene(scene, tmp_path / "out.tif").path) as dataset:
        power = dataset.read(1)
        rows, cols = np.nonzero(power > 1)
        x, y = rasterio.transform.xy(dataset.transform, rows.mean(), cols.mean())
    (east,), (north,) = warp_points("EPSG:4326", scene.crs, [179.9 + 202 * 0.0005], [lat - 102 * 0.0005])[:2]
    assert np.hypot(x - east, y - north) < 20


def test_a_scene_of_gcps_is_resampled_by_the_spline(tmp_path: Path):
    rows, cols = np.meshgrid(np.linspace(0, 200, 5), np.linspace(0, 300, 5), indexing="ij")
    place = [
        rasterio.control.GroundControlPoint(row=r, col=c, x=12 + 1e-4 * c + 1e-9 * r * c, y=45 - 1e-4 * r)
        for r, c in zip(rows.ravel(), cols.ravel(), strict=True)
    ]
    db = np.full((200, 300), -10, np.float32) + np.random.default_rng(0).normal(0, 0.5, (200, 300)).astype(np.float32)
    db[90:94, 140:144] = 20
    path = write_raster(tmp_path / "x_VV.tif", db, gcps=(place, rasterio.CRS.from_epsg(4326)))
    scene = describe(path, spacing=10.0)
    with rasterio.open(prepare_scene(scene, tmp_path / "out.tif").path) as dataset:
        rows, cols = np.nonzero(dataset.read(1) > 1)
        x, y = rasterio.transform.xy(dataset.transform, rows.mean(), cols.mean())
    source = describe(path)
    lon, lat = to_lonlat(source, np.array([142.0]), np.array([92.0]))
    (east,), (north,) = warp_points("EPSG:4326", scene.crs, lon, lat)[:2]
    assert np.hypot(x - east, y - north) < 10


def test_an_unplaced_scene_cannot_be_resampled(tmp_path: Path):
    path = write_raster(
        tmp_path / "x_VV.tif", (10 * np.log10(speckled_power((80, 80), 4, 0))).astype(np.float32), crs=None
    )
    with pytest.raises(SceneError, match="--spacing needs georeferencing"):
        describe(path, spacing=10.0, allow_unplaced=True)


def test_a_spacing_that_makes_a_giant_is_refused(tmp_path: Path):
    path = write_raster(tmp_path / "x_VV.tif", (10 * np.log10(speckled_power((2000, 2000), 4, 0))).astype(np.float32))
    with pytest.raises(SceneError, match=r"would be 400000 x 400000 pixels at --spacing 0\.05.*a larger --spacing"):
        describe(path, spacing=0.05)
