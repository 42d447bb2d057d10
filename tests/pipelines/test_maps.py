"""Maps are whole, on the grid of their scene, and say what their values mean."""

from __future__ import annotations

import json
import resource
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pytest
import rasterio
from hypothesis import given
from hypothesis import strategies as st
from rasterio.errors import NotGeoreferencedWarning
from rasterio.io import MemoryFile

from dic3l.errors import Dic3lError
from pipelines.maps import BLOCK, COLOURS, Legend, MapWriter, class_colours, class_map, probability_map

LEGEND = Legend(("water", "reef", "road"), (3, 7, 200), 255)


@dataclass(frozen=True)
class Place:
    crs: str | None = "EPSG:32633"
    transform: tuple[float, ...] | None = (10.0, 0.5, 500_000.0, 0.5, -10.0, 5_000_000.0)
    gcps: tuple[tuple[float, ...], ...] = ()


def values_of(shape: tuple[int, ...], seed: int = 0) -> np.ndarray:
    return np.random.default_rng(seed).choice(np.array(LEGEND.values, np.uint8), shape)


def write(path: Path, values: np.ndarray, overviews: bool = False, place: Place | None = None) -> Path:
    with class_map(path, place or Place(), values.shape, LEGEND, {"SCENE": "a.tif"}, overviews) as writer:
        for row in range(0, len(values), 100):
            writer.put(row, 0, values[None, row : row + 100])
    return path


@given(st.integers(1, 900), st.integers(1, 300), st.lists(st.integers(1, 400), min_size=1, max_size=8), st.booleans())
def test_strips_of_any_height_become_whole_rows_of_blocks(height: int, width: int, heights: list[int], halves: bool):
    values = np.random.default_rng(height).integers(0, 255, (2, height, width), np.uint8)
    profile = {"driver": "GTiff", "height": height, "width": width, "count": 2, "dtype": "uint8", "crs": "EPSG:32633"}
    profile |= {"transform": rasterio.Affine(1, 0, 5, 0, -1, 5)}
    with MemoryFile() as memory, memory.open(**profile) as dataset:
        writer = MapWriter(dataset, 255)
        row = 0
        while row < height:
            rows = heights[row % len(heights)]
            strip = values[:, row : row + rows]
            half = width // 2 if halves else width
            writer.put(row, half, strip[:, :, half:])  # from the right: columns come in any order
            writer.put(row, 0, strip[:, :, :half])
            row += rows
        writer.finish()
        assert all(top % BLOCK == 0 for top, _, _ in writer.written)
        assert sum(rows for _, rows, _ in writer.written) == height
        assert (dataset.read() == values).all()


def test_a_map_of_classes_says_where_it_lies_and_what_it_means(tmp_path: Path):
    values = values_of((700, 530))
    with rasterio.open(write(tmp_path / "new" / "a.tif", values)) as dataset:
        assert (dataset.read(1) == values).all()
        assert dataset.crs == rasterio.CRS.from_epsg(32633) and tuple(dataset.transform)[:6] == Place().transform
        assert dataset.profile["compress"] == "deflate" and dataset.block_shapes == [(BLOCK, BLOCK)]
        assert dataset.nodata == 255 and dataset.dtypes == ("uint8",)
        assert json.loads(dataset.tags()["CLASSES"]) == {"3": "water", "7": "reef", "200": "road"}
        assert dataset.tags()["SCENE"] == "a.tif"
        colours = dataset.colormap(1)
        assert colours[3][:3] == COLOURS["water"] and colours[200][:3] == COLOURS["road"] and colours[255][3] == 0
        assert len({colours[value] for value in LEGEND.values}) == 3
        assert dataset.overviews(1) == []
    assert [path.name for path in (tmp_path / "new").iterdir()] == ["a.tif"]  # no .aux.xml, nothing temporary


def test_a_map_of_probabilities_has_a_band_a_class_with_its_scale(tmp_path: Path):
    values = np.random.default_rng(0).integers(0, 256, (3, 300, 200), np.uint8)
    with probability_map(tmp_path / "p.tif", Place(), (300, 200), LEGEND, {}, True) as writer:
        writer.put(0, 0, values)
    with rasterio.open(tmp_path / "p.tif") as dataset:
        assert (dataset.read() == values).all() and dataset.descriptions == LEGEND.names
        assert dataset.scales == pytest.approx((1 / 254,) * 3) and dataset.nodata == 255


def test_overviews_are_inside_and_are_of_classes_that_are_there(tmp_path: Path):
    values = np.repeat(np.repeat(values_of((18, 30)), 64, axis=0), 64, axis=1)
    with rasterio.open(write(tmp_path / "a.tif", values, overviews=True)) as dataset:
        assert dataset.overviews(1) == [2, 4] and (dataset.read(1) == values).all()
        assert (dataset.read(1, out_shape=(values.shape[0] // 4, values.shape[1] // 4)) == values[::4, ::4]).all()
    assert [path.name for path in tmp_path.iterdir()] == ["a.tif"]


def test_ground_control_points_are_kept_and_no_place_is_no_place(tmp_path: Path):
    points = ((0.0, 0.0, 11.0, 50.0), (0.0, 99.0, 12.0, 50.1), (99.0, 0.0, 11.1, 49.0), (99.0, 99.0, 12.1, 49.1))
    with rasterio.open(
        write(tmp_path / "a.tif", values_of((100, 100)), False, Place("EPSG:4326", None, points))
    ) as one:
        found, crs = one.gcps
        assert tuple((p.row, p.col, p.x, p.y) for p in found) == points and crs.to_epsg() == 4326
    path = write(tmp_path / "b.tif", values_of((100, 100)), False, Place(None, None))
    with pytest.warns(NotGeoreferencedWarning), rasterio.open(path) as other:
        assert other.crs is None and other.transform.is_identity


@contextmanager
def largest_file(size: int) -> Iterator[None]:
    """No file may grow beyond `size` bytes: as a full disk looks to a program."""
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (size, before[1]))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)


def test_a_disk_that_is_full_at_any_byte_is_told_and_leaves_what_was_there(tmp_path: Path, capfd):
    values = values_of((600, 500))
    path = write(tmp_path / "a.tif", values)
    size = path.stat().st_size
    path.write_text("an older map")
    for missing in (1, 10, 100, 1000, size // 2, size - 10):
        with largest_file(size - missing), pytest.raises(Dic3lError, match=r"a\.tif: cannot be written whole"):
            write(path, values)
        assert path.read_text() == "an older map" and len(list(tmp_path.iterdir())) == 1
    assert "rasterio" not in "".join(capfd.readouterr())
    assert write(path, values).stat().st_size == size  # and once there is room, it is written


def test_an_error_half_way_leaves_nothing(tmp_path: Path):
    with (
        pytest.raises(ZeroDivisionError),
        class_map(tmp_path / "a.tif", Place(), (600, 500), LEGEND, {}, True) as writer,
    ):
        writer.put(0, 0, values_of((1, 300, 500)))
        writer.put(300, 0, values_of((1, 100, 500)))
        raise ZeroDivisionError
    assert list(tmp_path.iterdir()) == []


def test_classes_have_colours_of_their_own():
    names = ["water", "other", "flood", *(f"class {number}" for number in range(20))]
    colours = class_colours(names)
    assert len(set(colours)) == len(names) and all(0 <= part <= 255 for colour in colours for part in colour)
    assert class_colours(["FLOOD"]) == [COLOURS["flood"]]
    names = ["water", "trees", "flooded vegetation", "crops", "built", "bare", "snow", "clouds", "rangeland"]
    colours = np.array(class_colours(names))
    for name, colour in zip(names, colours, strict=True):  # trees were as blue as water
        if name not in COLOURS:
            others = colours[[other in COLOURS for other in names]]
            assert np.abs(others - colour).sum(axis=1).min() > 140
    assert len(class_colours([*COLOURS, *(f"class {n}" for n in range(200))])) == len(COLOURS) + 200
