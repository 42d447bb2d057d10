"""Products of providers, written here after their published specification (names, metadata, formula), then read back.

Each test puts a known backscatter into digital numbers by the provider's formula, turned round, and expects it back.
"""

import json
import warnings
from pathlib import Path

import numpy as np
import pytest
import rasterio

from sarsense.config import BuildConfig
from sarsense.errors import SceneError
from sarsense.geometry import to_lonlat
from sarsense.measure import measure_scene
from sarsense.power import valid_power
from sarsense.prepare import prepare_scene
from sarsense.scene import describe_scene
from tests.conftest import speckled_power, write_raster

SIGMA0 = speckled_power((96, 128), 8.0, seed=1, mean_db=-9.0)
CONFIG = BuildConfig(tile_size=64)


def dn16(amplitude: np.ndarray) -> np.ndarray:
    return np.clip(np.rint(amplitude), 1, 65535).astype(np.uint16)


def read(path: Path, stored: np.ndarray, config: BuildConfig = CONFIG):
    """The described scene, and the backscatter that the stored values become."""
    scene = describe_scene(str(path), path.name, config)
    return scene, valid_power(stored, scene.bands[0])


def assert_backscatter(found: np.ndarray, expected: np.ndarray = SIGMA0) -> None:
    """The mean to 0.02 dB, and every pixel to the rounding of the digital numbers."""
    assert 10 * np.log10(found.mean() / expected.mean()) == pytest.approx(0, abs=0.02)
    bright = expected > 0.02
    assert np.abs(10 * np.log10(found[bright] / expected[bright])).max() < 0.2


def capella_metadata(factor: float, radiometry: str = "sigma_nought") -> str:
    return json.dumps({"collect": {"image": {"scale_factor": factor, "radiometry": radiometry, "calibration": "full"}}})


CAPELLA = "CAPELLA_C05_SP_GEO_HH_20210119083045_20210119083048"


@pytest.mark.parametrize("beside", [True, False])
def test_capella_scale_factor_is_one_of_amplitude(tmp_path, beside):
    """(scale_factor DN)^2: the square root that SNAP's first reader took would be ~4.5 dB off here."""
    factor = 3.4e-4
    dn = dn16(np.sqrt(SIGMA0) / factor)
    tags = {} if beside else {"TIFFTAG_IMAGEDESCRIPTION": capella_metadata(factor)}
    path = write_raster(tmp_path / f"{CAPELLA}.tif", dn, tags=tags)
    if beside:
        (tmp_path / f"{CAPELLA}_extended.json").write_text(capella_metadata(factor))
    scene, power = read(path, dn)
    assert_backscatter(power)
    assert scene.bands[0].quantity == "sigma0" and scene.bands[0].polarisation == "HH"
    assert scene.datetime == "2021-01-19T08:30:45Z" and "scale_factor" in scene.bands[0].evidence


def test_capella_says_its_convention_and_without_factor_is_uncalibrated(tmp_path):
    dn = dn16(np.sqrt(SIGMA0) / 1e-3)
    tags = {"TIFFTAG_IMAGEDESCRIPTION": capella_metadata(1e-3, "gamma_nought")}
    scene, _ = read(write_raster(tmp_path / f"{CAPELLA}.tif", dn, tags=tags), dn)
    assert scene.bands[0].quantity == "gamma0"
    bare, _ = read(write_raster(tmp_path / "bare" / f"{CAPELLA}.tif", dn), dn)
    assert bare.bands[0].quantity == "uncalibrated" and bare.bands[0].calibration is None


def test_umbra_is_never_sigma_nought(tmp_path):
    name = "2023-10-03-02-10-49_UMBRA-05_GEC"
    dn = np.clip(200 * np.sqrt(SIGMA0), 1, 255).astype(np.uint8)
    (tmp_path / "2023-10-03-02-10-49_UMBRA-05_METADATA.json").write_text('{"collects": [{"polarizations": ["VV"]}]}')
    scene, _ = read(write_raster(tmp_path / f"{name}.tif", dn), dn)
    band = scene.bands[0]
    assert (band.quantity, band.unit, band.polarisation) == ("uncalibrated", "amplitude", "VV")
    assert scene.sensor == "Umbra" and scene.datetime == "2023-10-03T02:10:49Z"
    measure_scene(scene)  # +40 dB of digital numbers is no absurd sigma nought


@pytest.mark.parametrize("where", ["tag", "xml", "json"])
def test_iceye_factor_is_one_of_power(tmp_path, where):
    """sigma0 = calibration_factor x DN^2."""
    factor, stem = 5.04e-7, "ICEYE_X7_GRD_SM_61121_20210929T151052"
    dn = dn16(np.sqrt(SIGMA0 / factor))
    path = write_raster(
        tmp_path / f"{stem}.tif", dn, tags={"CALIBRATION_FACTOR": str(factor)} if where == "tag" else {}
    )
    if where == "xml":
        (tmp_path / f"{stem}.xml").write_text(f"<ICEYE><calibration_factor>{factor}</calibration_factor></ICEYE>")
    if where == "json":
        (tmp_path / f"{stem}.json").write_text(json.dumps({"properties": {"iceye:calibration_factor": factor}}))
    scene, power = read(path, dn)
    assert_backscatter(power)
    assert scene.bands[0].quantity == "sigma0" and scene.mode == "SM"


def test_iceye_scan_mode_is_uncalibrated(tmp_path):
    stem = "ICEYE_X7_GRD_SC_61121_20210929T151052"
    dn = dn16(1000 * np.sqrt(SIGMA0))
    scene, _ = read(write_raster(tmp_path / f"{stem}.tif", dn, tags={"CALIBRATION_FACTOR": "5e-7"}), dn)
    assert scene.bands[0].quantity == "uncalibrated"


TERRASAR = """<level1Product><generalHeader/><productInfo><productVariantInfo><productVariant>GEC</productVariant>
</productVariantInfo><acquisitionInfo><imagingMode>SM</imagingMode></acquisitionInfo><sceneInfo>
<start><timeUTC>2020-06-05T04:22:03.123456Z</timeUTC></start>
<sceneCenterCoord><refRow>48</refRow><refColumn>64</refColumn><incidenceAngle>35.0</incidenceAngle></sceneCenterCoord>
<sceneCornerCoord><refRow>0</refRow><refColumn>0</refColumn><incidenceAngle>33.0</incidenceAngle></sceneCornerCoord>
<sceneCornerCoord><refRow>0</refRow><refColumn>128</refColumn><incidenceAngle>37.0</incidenceAngle></sceneCornerCoord>
<sceneCornerCoord><refRow>96</refRow><refColumn>0</refColumn><incidenceAngle>33.0</incidenceAngle></sceneCornerCoord>
<sceneCornerCoord><refRow>96</refRow><refColumn>128</refColumn><incidenceAngle>37.0</incidenceAngle></sceneCornerCoord>
</sceneInfo></productInfo><calibration><calibrationConstant layerIndex="1"><polLayer>HH</polLayer>
<calFactor>1.05e-05</calFactor></calibrationConstant></calibration></level1Product>"""


@pytest.mark.parametrize("convention", ["sigma0", "beta0"])
def test_terrasar_calfactor_and_incidence(tmp_path, convention):
    angle = np.radians(33.0 + 4.0 * np.arange(128) / 128)
    beta0 = SIGMA0 / np.sin(angle) if convention == "sigma0" else SIGMA0
    dn = dn16(np.sqrt(beta0 / 1.05e-5))
    folder = tmp_path / "TSX1_SAR__GEC"
    path = write_raster(folder / "IMAGEDATA" / "IMAGE_HH_SRA_stripNear_006.tif", dn)
    (folder / "TSX1_SAR__GEC.xml").write_text(TERRASAR)
    scene, power = read(path, dn, BuildConfig(tile_size=64, calibrate=convention))
    assert_backscatter(power)
    assert scene.bands[0].quantity == convention and (scene.sensor, scene.product) == ("TSX", "TerraSAR-X GEC")
    assert scene.datetime == "2020-06-05T04:22:03Z"


RADARSAT2 = """<product xmlns="http://www.rsi.ca/rs2/prod/xml/schemas"><sourceAttributes><beamModeMnemonic>S3</beamModeMnemonic>
<rawDataStartTime>2016-02-28T11:24:18.000000Z</rawDataStartTime></sourceAttributes><imageGenerationParameters>
<generalProcessingInformation><productType>{kind}</productType></generalProcessingInformation>
</imageGenerationParameters></product>"""


def test_radarsat2_detected_has_a_gain_for_each_column_and_an_offset(tmp_path):
    gains, offset = np.linspace(4e6, 5e6, 128), 3000.0
    dn = dn16(np.sqrt(np.maximum(SIGMA0 * gains - offset, 1)))
    path = write_raster(tmp_path / "imagery_HH.tif", dn)
    (tmp_path / "product.xml").write_text(RADARSAT2.format(kind="SGF"))
    lut = f"<lut><offset>{offset}</offset><gains>{' '.join(map(str, gains))}</gains></lut>"
    (tmp_path / "lutSigma.xml").write_text(lut)
    scene, power = read(path, dn)
    assert_backscatter(power)
    assert (scene.sensor, scene.mode, scene.bands[0].polarisation) == ("RS2", "S3", "HH")


def test_radarsat2_complex_divides_by_the_square_of_the_gain(tmp_path):
    gain = 900.0
    phase = np.exp(1j * np.random.default_rng(0).uniform(0, 6.28, SIGMA0.shape))
    z = (np.sqrt(SIGMA0) * gain * phase).astype(np.complex64)
    path = write_raster(tmp_path / "imagery_VV.tif", z)
    (tmp_path / "product.xml").write_text(RADARSAT2.format(kind="SLC"))
    (tmp_path / "lutSigma.xml").write_text(f"<lut><offset>0</offset><gains>{' '.join(['900'] * 128)}</gains></lut>")
    _, power = read(path, z)
    assert_backscatter(power)


@pytest.mark.parametrize("step", [8, -8])
def test_rcm_gains_are_sparse_and_may_run_backwards(tmp_path, step):
    columns = np.arange(0, 129, 8) if step > 0 else np.arange(128, -1, -8)
    gains = 4e6 + 1e4 * columns
    dn = dn16(np.sqrt(SIGMA0 * (4e6 + 1e4 * np.arange(128))))
    name = "RCM1_OK1050603_PK1050605_1_SC50MB_20200214_115905_HH_HV_GRD"
    path = write_raster(tmp_path / name / "imagery" / f"{name}_HH.tif", dn)
    lut = (
        f'<lut xmlns="rcmGsProductSchema"><pixelFirstLutValue>{columns[0]}</pixelFirstLutValue>'
        f"<stepSize>{step}</stepSize>"
        f"<numberOfValues>17</numberOfValues><offset>0.0</offset><gains>{' '.join(map(str, gains))}</gains></lut>"
    )
    (tmp_path / name / "calibration").mkdir()
    (tmp_path / name / "calibration" / "lutSigma_HH.xml").write_text(lut)
    scene, power = read(path, dn)
    assert_backscatter(power)
    assert scene.bands[0].quantity == "sigma0" and scene.sensor == "RCM"


@pytest.mark.parametrize(
    ("name", "quantity"),
    [("N35E139_20_sl_HH_F02DAR.tif", "gamma0"), ("IMG-HH-ALOS2014410740-140829-UBSR2.1GUA.tif", "sigma0")],
)
def test_alos_squares_the_digital_number(tmp_path, name, quantity):
    """10 log10(DN^2) - 83: without the square the backscatter of -9 dB would read as -46 dB."""
    dn = dn16(np.sqrt(SIGMA0 * 10**8.3))
    scene, power = read(write_raster(tmp_path / name, dn), dn)
    assert_backscatter(power)
    assert scene.bands[0].quantity == quantity and scene.bands[0].polarisation == "HH"


GAOFEN = """<product><imageinfo><QualifyValue><HH>{q}</HH><HV>NULL</HV></QualifyValue></imageinfo><processinfo>
<CalibrationConst><HH>{k}</HH><HV>NULL</HV></CalibrationConst></processinfo></product>"""
GAOFEN_NAME = "GF3_MYN_FSII_006104_E113.6_N22.3_20171008_L{level}_{pol}_L20002661111"


def test_gaofen3_level2_divides_by_65535_and_is_not_6_db_off(tmp_path):
    q, k = 1.37, -3.5
    dn = dn16(np.sqrt(SIGMA0 * 10 ** (k / 10)) * 65535 / q)
    path = write_raster(tmp_path / f"{GAOFEN_NAME.format(level=2, pol='HH')}.tiff", dn)
    (tmp_path / "GF3_MYN_L20002661111.meta.xml").write_text(GAOFEN.format(q=q, k=k))
    scene, power = read(path, dn)
    assert_backscatter(power)
    assert scene.bands[0].quantity == "sigma0" and "65535" in scene.bands[0].evidence
    other = write_raster(tmp_path / f"{GAOFEN_NAME.format(level=2, pol='HV')}.tiff", dn)
    assert read(other, dn)[0].bands[0].quantity == "uncalibrated"  # NULL: not acquired


RPC = {
    "HEIGHT_OFF": "30", "HEIGHT_SCALE": "500", "LAT_OFF": "22.3", "LAT_SCALE": "0.2", "LONG_OFF": "113.6",
    "LONG_SCALE": "0.2", "LINE_OFF": "40", "LINE_SCALE": "40", "SAMP_OFF": "40", "SAMP_SCALE": "40",
    "LINE_NUM_COEFF": "0 0 -1 0.01" + " 0" * 16, "LINE_DEN_COEFF": "1" + " 0" * 19,
    "SAMP_NUM_COEFF": "0 1 0 0.02" + " 0" * 16, "SAMP_DEN_COEFF": "1" + " 0" * 19,
}  # fmt: skip
"""coefficients of 1, L, P, H, ...: line falls with latitude, sample grows with longitude, both shift with height"""


def test_gaofen3_level1a_joins_i_and_q_divides_by_32767_and_is_placed_by_its_rpc(tmp_path):
    q, k = 40.0, 12.0
    rng = np.random.default_rng(0)
    amplitude = np.sqrt(SIGMA0 * 10 ** (k / 10)) * 32767 / q
    phase = rng.uniform(0, 2 * np.pi, amplitude.shape)
    iq = np.rint(np.stack([amplitude * np.cos(phase), amplitude * np.sin(phase)])).astype(np.int16)
    path = write_raster(tmp_path / f"{GAOFEN_NAME.format(level='1A', pol='HH')}.tiff", iq, crs=None)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        with rasterio.open(path, "r+") as dataset:
            dataset.update_tags(ns="RPC", **RPC)
    (tmp_path / "GF3_MYN_L20002661111.meta.xml").write_text(GAOFEN.format(q=q, k=k))
    scene = describe_scene(str(path), path.name, CONFIG)
    assert len(scene.bands) == 1 and "32767" in scene.bands[0].evidence
    assert any("RPC at a height of 30 m, without a terrain model" in note for note in scene.notes)
    prepared = prepare_scene(scene, tmp_path / "prepared.tif")
    with rasterio.open(prepared.path) as dataset:
        power = dataset.read(1)
    assert_backscatter(power)
    assert prepared.bands[0].quantity == "sigma0"
    # at the height offset the height terms vanish: sample 40 + 40 (lon - 113.6) / 0.2, line 40 - 40 (lat - 22.3) / 0.2
    lon, lat = to_lonlat(prepared, np.array([0.0, 40, 80]), np.array([0.0, 40, 60]))
    np.testing.assert_allclose(lon, 113.6 + 0.2 * (np.array([0, 40, 80]) - 40) / 40, atol=0.2 / 40)
    np.testing.assert_allclose(lat, 22.3 - 0.2 * (np.array([0, 40, 60]) - 40) / 40, atol=0.2 / 40)
    alone = write_raster(tmp_path / "one" / path.name, iq[0], crs=None)
    with pytest.raises(SceneError, match="Gaofen-3 L1A: I and Q in two bands expected, 1 found"):
        describe_scene(str(alone), alone.name, CONFIG)
    with pytest.raises(SceneError, match="I and Q in two bands, --unit amplitude"):
        describe_scene(str(path), path.name, BuildConfig(tile_size=64, unit="amplitude"))


HYP3 = "S1A_IW_20180716T004042_DVP_RTC30_G_{letters}_FD5B_{layer}.tif"


@pytest.mark.parametrize(
    ("letters", "stored", "unit", "quantity"),
    [
        ("gpuned", SIGMA0, "power", "gamma0"),
        ("sauned", np.sqrt(SIGMA0), "amplitude", "sigma0"),
        ("gduned", 10 * np.log10(SIGMA0), "db", "gamma0"),
    ],
)
def test_hyp3_letters_say_scale_and_convention(tmp_path, letters, stored, unit, quantity):
    """Power read as amplitude, or dB taken twice, would not come back to the backscatter put in."""
    stored = stored.astype(np.float32)
    path = write_raster(tmp_path / HYP3.format(letters=letters, layer="VV"), stored)
    scene, power = read(path, stored)
    assert_backscatter(power)
    assert (scene.bands[0].unit, scene.bands[0].quantity) == (unit, quantity)
    assert scene.datetime == "2018-07-16T00:40:42Z" and scene.product == "HyP3 RTC"


@pytest.mark.parametrize(
    "name",
    [
        "OPERA_L2_RTC-S1_T064-135520-IW1_20231002T020303Z_20231003T004512Z_S1A_30_v1.0_VH.tif",
        "s1a-iw-vh.rtc.tiff",
    ],
)
def test_opera_and_planetary_computer_are_gamma_nought_power(tmp_path, name):
    scene, power = read(write_raster(tmp_path / name, SIGMA0), SIGMA0)
    assert_backscatter(power)
    band = scene.bands[0]
    assert (band.unit, band.quantity, band.polarisation) == ("power", "gamma0", "VH")


@pytest.mark.parametrize("layer", ["ls_map", "inc_map", "dem", "area", "rgb"])
def test_other_layers_of_an_rtc_product_are_refused(tmp_path, layer):
    path = write_raster(tmp_path / HYP3.format(letters="gpuned", layer=layer), SIGMA0)
    with pytest.raises(SceneError, match="not backscatter"):
        describe_scene(str(path), path.name, CONFIG)


def test_an_explicit_unit_takes_the_calibration_off(tmp_path):
    """--unit power on digital numbers of amplitude: no factor of the product fits, so it is not sigma nought."""
    dn = dn16(np.sqrt(SIGMA0 * 10**8.3))
    path = write_raster(tmp_path / "N35E139_20_sl_HH_F02DAR.tif", dn)
    scene, power = read(path, dn, BuildConfig(tile_size=64, unit="power"))
    assert scene.bands[0].quantity == "uncalibrated" and scene.bands[0].calibration is None
    assert np.array_equal(power, dn.astype(np.float32))


def test_damaged_metadata_is_named(tmp_path):
    folder = tmp_path / "TSX1_SAR__GEC"
    path = write_raster(folder / "IMAGEDATA" / "IMAGE_HH_SRA_stripNear_006.tif", dn16(1000 * np.sqrt(SIGMA0)))
    (folder / "TSX1_SAR__GEC.xml").write_text(TERRASAR.replace("1.05e-05", "soon"))
    with pytest.raises(SceneError, match=r"TSX1_SAR__GEC.xml: a number expected in <calFactor>, 'soon' found"):
        describe_scene(str(path), path.name, CONFIG)
    (folder / "TSX1_SAR__GEC.xml").write_text(TERRASAR[:300])
    with pytest.raises(SceneError, match=r"TSX1_SAR__GEC.xml cannot be read: .*fetch the product again"):
        describe_scene(str(path), path.name, CONFIG)


def test_a_folder_of_metadata_that_cannot_be_listed_is_the_scenes_own_fault(tmp_path, monkeypatch):
    """And not that of our disk, which would stop the whole build."""
    path = write_raster(tmp_path / f"{CAPELLA}.tif", dn16(1000 * np.sqrt(SIGMA0)))

    def denied(self: Path) -> None:
        raise PermissionError(13, "Permission denied", str(self))

    monkeypatch.setattr(Path, "iterdir", denied)
    with pytest.raises(SceneError, match=r"metadata beside it cannot be listed: .*Permission denied"):
        describe_scene(str(path), path.name, CONFIG)
