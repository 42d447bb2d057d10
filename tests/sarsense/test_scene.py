import numpy as np
import pytest

from sarsense.config import BuildConfig
from sarsense.errors import SceneError
from sarsense.measure import measure_scene
from sarsense.scene import Scene, describe_scene, valid_power
from tests.conftest import speckled_power, write_raster

CONFIG = BuildConfig(tile_size=64)
POWER = speckled_power((100, 120), 4.0, seed=0)
DB = 10 * np.log10(POWER)


def describe(path, config=CONFIG):
    return describe_scene(str(path), path.name, config)


@pytest.mark.parametrize(
    ("name", "values", "settings", "unit", "quantity"),
    [
        ("plain.tif", DB, {}, "db", "backscatter"),
        ("x_amp.tif", np.sqrt(POWER), {}, "amplitude", "backscatter"),
        ("x_power.tif", POWER, {}, "power", "backscatter"),
        ("x.tif", POWER, {"units": ["power"]}, "power", "backscatter"),
        ("x.tif", (300 * np.sqrt(POWER)).astype(np.uint16), {}, "amplitude", "uncalibrated"),
        ("x.tif", np.clip(300 * np.sqrt(POWER), 0, 255).astype(np.uint8), {}, "amplitude", "display"),
        ("x.tif", np.sqrt(POWER) * np.complex64(1j), {}, "complex", "uncalibrated"),
        ("C11.tif", POWER, {}, "power", "backscatter"),
    ],
)
def test_unit_is_read_from_product_name_dtype_or_values(tmp_path, name, values, settings, unit, quantity):
    band = describe(write_raster(tmp_path / name, values, **settings)).bands[0]
    assert (band.unit, band.quantity) == (unit, quantity), band.evidence


def test_power_and_amplitude_without_evidence_are_refused_with_the_option(tmp_path):
    for values in (POWER, np.sqrt(POWER)):
        with pytest.raises(SceneError, match=r"power or amplitude\?.*--unit"):
            describe(write_raster(tmp_path / "x.tif", values))
    band = describe(write_raster(tmp_path / "x.tif", POWER), BuildConfig(tile_size=64, unit="power")).bands[0]
    assert band.unit == "power" and band.confidence == 1.0


def test_a_name_that_its_values_contradict_is_refused(tmp_path):
    with pytest.raises(SceneError, match="do not look like it"):
        describe(write_raster(tmp_path / "x_db.tif", POWER))
    with pytest.raises(SceneError, match="do not look like it"):
        describe(write_raster(tmp_path / "x_power.tif", DB))


@pytest.mark.parametrize(
    ("values", "settings", "reason"),
    [
        (np.full((100, 100), -99, np.float32), {"nodata": -99}, "no valid pixel"),
        (np.full((100, 100), np.nan, np.float32), {}, "no valid pixel"),
        (np.zeros((100, 100), np.uint16), {}, "no valid pixel"),
        (np.full((100, 100), 7, np.uint16), {}, "constant"),
        (np.random.default_rng(0).integers(0, 9, (100, 100)).astype(np.uint8), {}, "class map"),
        (np.random.default_rng(0).normal(0, 0.01, (100, 100)).astype(np.float32), {}, "signed values"),
        (DB[:60, :50], {}, "smaller than a tile: 60 x 50"),
        (DB, {"crs": None}, "no georeferencing"),
        (DB.astype(np.int16), {}, "negative"),
    ],
)
def test_what_cannot_be_used_is_refused_with_the_reason(tmp_path, values, settings, reason):
    with pytest.raises(SceneError, match=reason):
        describe(write_raster(tmp_path / "x.tif", values, **settings))


@pytest.mark.parametrize("name", ["x_mask.tif", "LabelHand_labels.tif", "slope.tif", "incidence_angle.tif"])
def test_names_of_other_quantities_are_refused(tmp_path, name):
    with pytest.raises(SceneError, match="not backscatter"):
        describe(write_raster(tmp_path / name, DB))


def test_folder_of_masks_is_refused_but_not_a_folder_whose_long_name_holds_the_word(tmp_path):
    path = write_raster(tmp_path / "x.tif", DB)
    with pytest.raises(SceneError, match="mask"):
        describe_scene(str(path), "MASK/x.tif", CONFIG)
    assert describe_scene(str(path), "flood-mask-study/x.tif", CONFIG).bands


def test_bands_that_are_no_backscatter_are_left_out_and_noted(tmp_path):
    path = write_raster(tmp_path / "x.tif", [DB, DB - 5, DB], descriptions=("HH", "HH_DSPK", "SLOPE"))
    scene = describe(path)
    assert [band.polarisation for band in scene.bands] == ["HH"]
    assert len(scene.notes) == 2 and "despeckled" in scene.notes[0] and "slope" in scene.notes[1]


def test_polarisation_comes_from_description_then_name(tmp_path):
    both = describe(write_raster(tmp_path / "x.tif", [DB, DB - 5], descriptions=("VV", "VH")))
    assert [band.polarisation for band in both.bands] == ["VV", "VH"]
    assert describe(write_raster(tmp_path / "a_hv_1.tif", DB)).bands[0].polarisation == "HV"
    assert describe(write_raster(tmp_path / "a.tif", DB)).bands[0].polarisation == "b1"
    with pytest.raises(SceneError, match="polarisation VV, VH is not among HH"):
        describe(tmp_path / "x.tif", BuildConfig(tile_size=64, polarisations=("HH",)))


def test_text_file_and_truncated_file_get_one_clear_reason(tmp_path):
    (tmp_path / "text.tif").write_text("hello")
    with pytest.raises(SceneError, match="not a raster that GDAL knows"):
        describe(tmp_path / "text.tif")
    whole = write_raster(tmp_path / "whole.tif", DB).read_bytes()
    (tmp_path / "cut.tif").write_bytes(whole[: len(whole) // 2])
    with pytest.raises(SceneError, match="truncated or damaged"):
        describe(tmp_path / "cut.tif")


def test_scene_survives_json(tmp_path):
    scene = describe(write_raster(tmp_path / "x.tif", [DB, DB - 5], descriptions=("VV", "VH")))
    assert Scene.from_json(scene.to_json()) == scene


def test_masks_of_valid_power(tmp_path):
    values = DB.copy()
    values[0, :4] = [np.nan, -99.0, 0.0, -12.0]
    band = describe(write_raster(tmp_path / "x.tif", values, nodata=-99)).bands[0]
    power = valid_power(values, band)
    assert np.isnan(power[0, :3]).all() and power[0, 3] == pytest.approx(10**-1.2)
    dark = np.clip(300 * np.sqrt(POWER), 0, 255).astype(np.uint8)
    dark[0, 0] = 0
    band = describe(write_raster(tmp_path / "picture.tif", dark)).bands[0]
    assert valid_power(dark, band)[0, 0] == 0.25  # half a grey level, squared: dark, not missing


def test_names_of_real_products(real_data):
    found = {}
    for pattern in ("s1-rtc-db/*.tif", "equi7-almost-empty/*.tif", "gaofen3-quadpol/testA/3_HV.tiff"):
        path = next(real_data.glob(pattern))
        scene = describe_scene(str(path), path.name, BuildConfig(tile_size=128, allow_unplaced=True))
        band = scene.bands[0]
        found[pattern.split("/")[0]] = (scene.sensor, band.polarisation, band.unit, band.scale_factor)
    assert found == {
        "s1-rtc-db": ("S1", "VV", "db", 1.0),
        "equi7-almost-empty": ("S1", "VV", "db", 100.0),
        "gaofen3-quadpol": ("unknown", "HV", "amplitude", 1.0),
    }


def _masked_scene(path, how):
    """Speckle of which the left half is no data, says a mask or an alpha band; its values look like others."""
    import rasterio

    profile = {"driver": "GTiff", "height": 100, "width": 120, "dtype": "float32", "crs": "EPSG:32633"}
    profile["transform"] = rasterio.Affine(10, 0, 500_000, 0, -10, 5_000_000)
    inside = np.full((100, 120), 255, np.uint8)
    inside[:, :60] = 0
    with (
        rasterio.Env(GDAL_TIFF_INTERNAL_MASK=True),
        rasterio.open(path, "w", count=2 if how == "alpha" else 1, **profile) as dataset,
    ):
        dataset.write(DB.astype(np.float32), 1)
        if how == "alpha":
            dataset.write(inside.astype(np.float32), 2)
            dataset.colorinterp = (rasterio.enums.ColorInterp.gray, rasterio.enums.ColorInterp.alpha)
        else:
            dataset.write_mask(inside)
    return path


@pytest.mark.parametrize("how", ["mask", "alpha"])
def test_mask_and_alpha_bands_say_what_is_no_data(tmp_path, how):
    scene = describe(_masked_scene(tmp_path / "x_VV.tif", how))
    assert [band.index for band in scene.bands] == [1]
    measured = measure_scene(scene)
    assert measured.bands[0].valid_fraction == 0.5
    assert measured.bands[0].mean_db == pytest.approx(10 * np.log10(POWER[:, 60:].mean()), abs=1e-3)


def test_zero_fringes_that_nobody_declared_are_no_data(tmp_path):
    """Power of a terrain-corrected scene with untagged zeros around it (microsoft/PlanetaryComputer#307)."""
    power = POWER.copy()
    power[:, :30] = 0
    path = write_raster(tmp_path / "iw-vv.rtc.tiff", power)
    measured = measure_scene(describe(path))
    assert measured.bands[0].valid_fraction == 0.75
    assert measured.bands[0].mean_db == pytest.approx(10 * np.log10(POWER[:, 30:].mean()), abs=1e-3)
