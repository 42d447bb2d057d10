"""Bins found by bits, and the histogram of despeckled levels, against numpy and the boxcar filter."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from sarsense import measure
from sarsense.config import BuildConfig
from sarsense.histogram import BIN_DB, BINS, LEVELS, LOWEST_DB, bins_between, count
from sarsense.scene import describe_scene
from sarsense.speckle import STRIP, LevelHistogram, boxcar
from sarsense.speckle.levels import EVERY
from tests.conftest import speckled_power, write_raster

EDGES = 10.0 ** ((LOWEST_DB + BIN_DB * np.arange(BINS + 1)) / 10.0)


def counted(power: np.ndarray, pieces: list[int]) -> np.ndarray:
    """Counts of a scene that is handed over in `pieces` of so many rows."""
    histogram, first = LevelHistogram(max(pieces), power.shape[1]), 0
    for rows in pieces:
        part = power[first : first + rows]
        histogram.room(rows)[:] = part
        histogram.add(rows, masked=bool(np.isnan(part).any()))
        first += rows
    assert first == len(power)
    return histogram.counts()


@given(st.lists(st.floats(0, width=32, exclude_min=True, allow_infinity=False), min_size=1, max_size=50))
def test_a_bin_is_found_as_by_comparing_with_all_edges(values):
    found = np.zeros(BINS, np.int64)
    count(np.array(values, np.float32), LEVELS, found)
    expected = np.clip(np.searchsorted(EDGES, np.array(values, np.float64), side="right") - 1, 0, BINS - 1)
    np.testing.assert_array_equal(found, np.bincount(expected, minlength=BINS))


def test_the_numbers_beside_an_edge_fall_on_its_two_sides():
    edges = np.geomspace(1e-6, 50.0, 2401)
    bins, found = bins_between(edges), np.zeros(2400, np.int64)
    at = edges.astype(np.float32)
    above = np.where(at >= edges, at, np.nextafter(at, np.float32(np.inf)))  # the first float32 of each bin
    below = np.nextafter(above, np.float32(0))
    count(above[1:-1], bins, found)
    np.testing.assert_array_equal(found, [0] + [1] * 2399)
    count(below[1:-1], bins, found)
    np.testing.assert_array_equal(found, [1] + [2] * 2398 + [1])


@settings(deadline=None, max_examples=25)
@given(st.data())
def test_levels_are_those_of_the_boxcar_however_a_scene_is_read(data):
    height, width = data.draw(st.integers(8, 130)), data.draw(st.integers(8, 90))
    power = speckled_power((height, width), 2.0, seed=data.draw(st.integers(0, 99)))
    if data.draw(st.booleans()):
        power[np.random.default_rng(0).random(power.shape) < 0.1] = np.nan
        power[: height // 3, : width // 2] = np.nan
    pieces = [STRIP] * (height // STRIP) + ([height % STRIP] if height % STRIP else [])
    smaller = [14] * (height // 14) + ([height % 14] if height % 14 else [])
    found = counted(power, pieces)
    np.testing.assert_array_equal(found, counted(power, smaller))
    np.testing.assert_array_equal(found, counted(power, [height]))
    levels = boxcar(power)[::EVERY]
    expected = np.histogram(levels[np.isfinite(levels)].astype(np.float64), EDGES)[0]
    assert found.sum() == expected.sum() == np.isfinite(power[::EVERY]).sum()
    # float32 sums may put a level that lies at an edge on its other side
    assert np.abs(np.cumsum(found) - np.cumsum(expected)).max() <= 1 + found.sum() // 2000


@pytest.mark.parametrize("missing", [(slice(60, 70), slice(None)), (slice(None), slice(0, 3))])
def test_masked_rows_leave_the_levels_beyond_their_windows_alone(missing):
    power = speckled_power((126, 84), 4.0, seed=3)
    power[missing] = np.nan
    levels = boxcar(power)[::EVERY]
    assert counted(power, [STRIP] * 3).sum() == np.isfinite(levels).sum()


@pytest.mark.parametrize("dtype", ["uint16", "float32"])
@pytest.mark.parametrize("height", [300, 43 + 84, 84])
def test_a_scene_measured_in_parts_is_the_scene_measured_whole(tmp_path, monkeypatch, dtype, height):
    power = speckled_power((height, 150), 3.0, seed=height, mean_db=20.0)
    power[100:110, 20:60] = 0
    bands = [np.sqrt(power).astype(dtype), np.sqrt(power[::-1]).astype(dtype)]
    write_raster(tmp_path / "a.tif", bands, descriptions=["VV amplitude", "VH amplitude"])
    scene = describe_scene(str(tmp_path / "a.tif"), "a.tif", BuildConfig(tile_size=32))
    whole = measure.measure_scene(scene)
    assert measure.parts_of(scene) == [(0, height)]
    monkeypatch.setattr(measure, "PART_PIXELS", 84 * 150)
    parts = measure.parts_of(scene)
    assert len(parts) == max(height // 84, 1) + (height % 84 >= STRIP)
    assert [first for first, _ in parts[1:]] == [last for _, last in parts[:-1]] and parts[-1][1] == height
    found = [measure.measure_part(scene, *part) for part in parts]
    kept = [[measure.BandPart.from_json(band.to_json()) for band in bands] for bands in found]
    assert measure.joined(scene, measure.content_hash(scene), kept) == whole == measure.measure_scene(scene)
