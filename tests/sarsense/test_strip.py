"""Codes and statistics of windows: looked up or computed, they are those of the plain formulas."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from sarsense.codes import encode
from sarsense.config import BuildConfig
from sarsense.power import power_table, valid_power
from sarsense.radiometry import to_db
from sarsense.raster import bands_of_rows, open_raster
from sarsense.scene import Band, describe_scene
from sarsense.strip import Channel, StripReader
from tests.conftest import speckled_power, write_raster


def plainly_valid(values: np.ndarray, band: Band) -> np.ndarray:
    """Power of what is valid, rule by rule, in float64."""
    stored = values.astype(np.float64)
    valid = np.isfinite(stored)
    if band.nodata is not None:
        valid &= values != np.asarray(band.nodata, values.dtype)
    if values.dtype.kind == "f":
        valid &= stored != 0
    if band.unit == "amplitude":
        valid &= stored >= 0
    with np.errstate(all="ignore"):
        power = {"power": stored, "amplitude": stored**2, "db": 10 ** (stored / 10)}[band.unit]
        valid &= (power.astype(np.float32) > 0) & np.isfinite(power.astype(np.float32))  # as it is kept
    return np.where(valid, power, np.nan)


def a_band(**changes: object) -> Band:
    fixed = Band(1, "VV", "amplitude", "uncalibrated", 1.0, None, "a test", 1.0)
    return replace(fixed, **changes)


@given(
    st.lists(st.floats(width=32) | st.sampled_from([0.0, -9999.0, 0.1, 1e30]), min_size=1, max_size=40),
    st.sampled_from(["power", "amplitude", "db"]),
    st.sampled_from([None, -9999.0, 0.1, float("nan")]),
)
def test_floats_are_valid_by_the_rules(values, unit, nodata):
    stored = np.array([values], np.float32)
    band = a_band(unit=unit, nodata=nodata)
    found, expected = valid_power(stored, band), plainly_valid(stored, band)
    assert found.dtype == np.float32
    np.testing.assert_array_equal(np.isnan(found), np.isnan(expected))
    known = ~np.isnan(expected) & (expected > 1e-30)  # smaller ones lose digits
    np.testing.assert_allclose(found[known], expected[known], rtol=3e-5)


@pytest.mark.parametrize("dtype", ["uint8", "uint16", "int16"])
@pytest.mark.parametrize("nodata", [None, 7.0])
def test_a_table_says_of_every_value_what_the_rules_say(dtype, nodata):
    band = a_band(nodata=nodata)
    every = np.arange(1 << (8 * np.dtype(dtype).itemsize), dtype=f"uint{8 * np.dtype(dtype).itemsize}").view(dtype)
    table = power_table(band, np.dtype(dtype))
    assert table is not None
    np.testing.assert_allclose(table, plainly_valid(every[None], band)[0].astype(np.float32), rtol=1e-6)
    assert power_table(band, np.dtype("float32")) is None


@settings(deadline=None, max_examples=20)
@given(st.sampled_from(["uint16", "int16", "float32"]), st.sampled_from([8, 16]), st.integers(0, 99))
def test_windows_are_what_numpy_says_of_them(tmp_path_factory, dtype, bits, seed):
    folder: Path = tmp_path_factory.mktemp("strips")
    values = (200 * np.sqrt(speckled_power((96, 130), 3.0, seed=seed))).astype(dtype)
    values[20:40, 90:110] = 0
    values[5, 5] = np.iinfo(np.int16).max if dtype != "float32" else 1e6
    write_raster(folder / "a_VV.tif", values)
    scene = describe_scene(str(folder / "a_VV.tif"), "a_VV.tif", BuildConfig(tile_size=32, unit="amplitude"))
    channel = Channel(scene, scene.bands[0], 3.0, 30.0, 60.0, -0.7)
    with open_raster(scene.path) as (dataset, _):
        (strip,) = StripReader([(dataset, channel)], bits).read(16, 80)
        assert (strip.values is None) == (dtype == "float32")
        db = to_db(valid_power(values[16:80], scene.bands[0]))
        np.testing.assert_array_equal(strip.codes, encode(db + np.float32(0.7), 30.0, 60.0, bits))
        for col in (0, 61, 66):
            window = np.s_[:, col : col + 64]
            seen, known = strip.look_at(col, 64), db[window][np.isfinite(db[window])].astype(np.float64)
            assert (seen.valid, seen.varied) == (len(known), True)
            assert seen.mean_db == pytest.approx(known.mean(), abs=1e-4)
            assert seen.variance_db == pytest.approx(known.var(), rel=1e-4)
            assert 10 * np.log10(seen.mean_power) == pytest.approx(10 * np.log10((10 ** (known / 10)).mean()), abs=1e-3)
        assert strip.look_at(90, 20).valid == 64 * 20 - 20 * 20


@pytest.mark.parametrize("dtype", ["uint16", "float32"])
def test_a_window_of_one_value_or_of_none_is_told(tmp_path, dtype):
    values = np.full((64, 64), 100, dtype)
    values[:, 32:] = 0
    values[0, 40:] = np.arange(1, 25)  # something else than one value in the scene
    write_raster(tmp_path / "a_VV.tif", values)
    scene = describe_scene(str(tmp_path / "a_VV.tif"), "a_VV.tif", BuildConfig(tile_size=32, unit="amplitude"))
    with open_raster(scene.path) as (dataset, _):
        reader = StripReader([(dataset, Channel(scene, scene.bands[0], 3.0, 0.0, 60.0, 0.0))], 8)
        (strip,) = reader.read(32, 64)
        assert strip.look_at(0, 32)[:2] == (32 * 32, False)
        assert strip.look_at(32, 32)[:2] == (0, False)
        (strip,) = reader.read(0, 32)
        assert strip.look_at(32, 32)[:2] == (24, True)  # nothing is left of what was counted before


@settings(deadline=None, max_examples=30)
@given(st.data())
def test_pieces_of_rows_are_the_raster_whatever_its_blocks(tmp_path_factory, data):
    height, width = data.draw(st.integers(1, 150)), data.draw(st.integers(1, 70))
    values = np.arange(height * width, dtype=np.uint16).reshape(height, width)
    tiled = data.draw(st.booleans())
    blocks = {"blockxsize": 16, "blockysize": 32} if tiled else {"blockysize": data.draw(st.integers(1, 200))}
    path = write_raster(tmp_path_factory.mktemp("blocks") / "a.tif", values, tiled=tiled, **blocks)
    rows, pixels = data.draw(st.integers(1, 50)), data.draw(st.integers(1, 9000))
    start = data.draw(st.integers(0, height - 1))
    stop = data.draw(st.integers(start + 1, height))
    pieces = []
    with open_raster(str(path)) as (dataset, _):
        for first, piece in bands_of_rows(dataset, 1, rows, pixels, start, stop):
            assert first == start + sum(map(len, pieces)) and (len(piece) % rows == 0 or first + len(piece) == stop)
            pieces.append(piece.copy())
    np.testing.assert_array_equal(np.concatenate(pieces), values[start:stop])
