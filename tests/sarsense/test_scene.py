import numpy as np
import pytest
import rasterio
import rasterio.shutil

from sarsense.config import BuildConfig
from sarsense.errors import SceneError
from sarsense.measure import measure_scene
from sarsense.power import valid_power
from sarsense.scene import Scene, describe_scene
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
        ("Sigma0_VV.tif", POWER, {}, "power", "sigma0"),
        ("x.tif", POWER, {"descriptions": ["Gamma0_VH"]}, "power", "gamma0"),
        ("Sigma0_VV.tif", DB, {}, "db", "sigma0"),
        ("Sigma0_IW1_VV_db.tif", DB, {}, "db", "sigma0"),
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


def test_a_stated_real_unit_does_not_drop_the_imaginary_part_of_complex_samples(tmp_path):
    path = write_raster(tmp_path / "x.tif", np.sqrt(POWER) * np.complex64(0.6 + 0.8j))
    for unit in ("power", "amplitude", "db"):
        with pytest.raises(SceneError, match=r"complex samples .* leave --unit out"):
            describe(path, BuildConfig(tile_size=64, unit=unit))


def test_pictures_and_optical_bands_are_refused_and_named_polarisations_are_not(tmp_path):
    grey = np.clip(300 * np.sqrt(POWER), 0, 255).astype(np.uint8)
    picture = write_raster(tmp_path / "photo.tif", [grey, grey, grey], photometric="RGB")
    for unit in (None, "amplitude"):
        with pytest.raises(SceneError, match="a colour picture"):
            describe(picture, BuildConfig(tile_size=64, unit=unit))
    named = write_raster(tmp_path / "x.tif", [grey, grey, grey], photometric="RGB", descriptions=["HH", "HV", "VV"])
    assert [band.polarisation for band in describe(named).bands] == ["HH", "HV", "VV"]
    for name in ("T33UUP_20200101T100000_B04.tif", "LC08_L1TP_193024_20200101_B4.tif", "scene_NDVI.tif"):
        with pytest.raises(SceneError, match="an optical product or a picture"):
            describe(write_raster(tmp_path / name, (300 * np.sqrt(POWER)).astype(np.uint16)))


def test_bands_without_a_name_are_those_that_the_file_name_lists(tmp_path):
    scene = describe(write_raster(tmp_path / "two_VV_VH.tif", [DB, DB]))
    assert [band.polarisation for band in scene.bands] == ["VV", "VH"]
    assert scene.notes == ("no band is named: VV, VH taken in the order of the file name",)
    assert [b.polarisation for b in describe(write_raster(tmp_path / "VV_VH_VV.tif", [DB, DB])).bands] == ["b1", "b2"]
    assert [b.polarisation for b in describe(write_raster(tmp_path / "VV_x.tif", [DB, DB])).bands] == ["VV", "VV"]


def test_sensor_mode_and_time_are_read_from_the_words_of_a_name(tmp_path):
    scene = describe(write_raster(tmp_path / "20191215T060906_S1_IW_GRD_VV__193d0d2.tif", DB))
    assert (scene.sensor, scene.mode, scene.datetime) == ("S1", "IW", "2019-12-15T06:09:06Z")
    scene = describe(write_raster(tmp_path / "20200605T042203_TSX_SM_MGD_HH.tif", DB))
    assert (scene.sensor, scene.mode, scene.datetime) == ("TSX", "unknown", "2020-06-05T04:22:03Z")
    assert describe(write_raster(tmp_path / "s1hand_tsxlike.tif", DB)).sensor == "unknown"


def test_an_undeclared_fill_value_is_told_with_the_way_to_declare_it(tmp_path):
    holed = DB.copy()
    holed[:20] = -9999
    path = write_raster(tmp_path / "x.tif", holed.astype(np.float32))
    with pytest.raises(SceneError, match=r"holds -9999 .*-a_nodata -9999"):
        describe(path)
    scene = describe(path, BuildConfig(tile_size=64, unit="db"))
    power = valid_power(holed, scene.bands[0])
    assert np.isnan(power[:20]).all() and np.isfinite(power[20:]).all()


def test_digital_numbers_are_uncalibrated_amplitude_or_complex(tmp_path):
    config = BuildConfig(tile_size=64, unit="dn")
    for values, unit in ((np.sqrt(POWER), "amplitude"), (np.sqrt(POWER) * np.complex64(1j), "complex")):
        band = describe(write_raster(tmp_path / "Sigma0_VV.tif", values), config).bands[0]
        assert (band.unit, band.quantity, band.evidence) == (unit, "uncalibrated", "--unit dn: digital numbers")


@pytest.mark.parametrize(
    "layout",
    [
        {"ENDIANNESS": "BIG"},
        {"BIGTIFF": "YES"},
        {"blockysize": 1},
        {"tiled": True, "blockxsize": 16, "blockysize": 16, "compress": "zstd", "predictor": 3},
        {"compress": "lerc", "MAX_Z_ERROR": 0},
        {"driver": "COG", "blocksize": 128},
    ],
)
def test_the_layout_of_a_file_changes_nothing(tmp_path, layout):
    plain = describe(write_raster(tmp_path / "plain_VV.tif", DB))
    path = tmp_path / "laid_VV.tif"
    if layout.get("driver") == "COG":
        rasterio.shutil.copy(plain.path, path, **layout)
    else:
        write_raster(path, DB, **layout)
    assert measure_scene(describe(path)) == measure_scene(plain)


def test_a_sparse_file_has_no_data_where_it_has_no_blocks(tmp_path):
    path = tmp_path / "x_VV.tif"
    profile = {"driver": "GTiff", "height": 256, "width": 256, "count": 1, "dtype": "float32", "crs": "EPSG:32633"}
    transform = rasterio.Affine(10, 0, 5e5, 0, -10, 5e6)
    blocks = {"tiled": True, "blockxsize": 128, "blockysize": 128, "SPARSE_OK": True}
    with rasterio.open(path, "w", transform=transform, **profile, **blocks) as dataset:
        db = (10 * np.log10(speckled_power((128, 128), 4.0, 0))).astype(np.float32)
        dataset.write(db, 1, window=rasterio.windows.Window(128, 0, 128, 128))
    assert measure_scene(describe(path)).bands[0].valid_fraction == pytest.approx(0.25)


def test_a_stated_unit_that_the_signs_of_the_values_deny_is_refused(tmp_path):
    path = write_raster(tmp_path / "x.tif", DB)
    for unit in ("amplitude", "power", "dn"):
        with pytest.raises(SceneError, match=rf"--unit {unit}, but \d+% of its values are negative, as those of dB"):
            describe(path, BuildConfig(tile_size=64, unit=unit))
    positive = describe(write_raster(tmp_path / "y.tif", POWER), BuildConfig(tile_size=64, unit="db"))
    assert "though none of its values is negative" in positive.bands[0].evidence


def test_a_negative_amplitude_is_no_data(tmp_path):
    amplitude = np.sqrt(POWER)
    amplitude[:10] = -9999
    path = write_raster(tmp_path / "x.tif", amplitude)
    band = describe(path, BuildConfig(tile_size=64, unit="amplitude")).bands[0]
    power = valid_power(amplitude, band)
    assert np.isnan(power[:10]).all() and np.allclose(power[10:], POWER[10:], rtol=1e-5)


def test_complex_integers_of_16_bits_are_read_as_complex_power(tmp_path):
    """As Sentinel-1 SLC has them: numpy knows no such type."""
    path = tmp_path / "s1_slc_VV.tif"
    rng = np.random.default_rng(0)
    values = (rng.normal(0, 200, (300, 320)) + 1j * rng.normal(0, 200, (300, 320))).astype(np.complex64)
    profile = {"driver": "GTiff", "width": 320, "height": 300, "count": 1, "dtype": "complex_int16"}
    profile |= {"crs": "EPSG:32633", "transform": rasterio.Affine(10, 0, 5e5, 0, -10, 5e6)}
    with rasterio.open(path, "w", **profile) as dataset:
        dataset.write(values, 1)
    with rasterio.open(path) as dataset:
        assert dataset.dtypes == ("complex_int16",)
    scene = describe(path)
    assert scene.bands[0].unit == "complex"
    assert measure_scene(scene).bands[0].mean_db == pytest.approx(10 * np.log10(2 * 200**2), abs=0.1)
