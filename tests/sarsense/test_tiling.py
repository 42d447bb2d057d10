from dataclasses import replace

import numpy as np
import pyproj
import pytest
import rasterio
import shapely
from hypothesis import example, given, settings
from hypothesis import strategies as st
from rasterio.control import GroundControlPoint

from sarsense.config import BuildConfig
from sarsense.geometry import to_lonlat
from sarsense.products import recognise
from sarsense.scene import Scene, describe_scene
from sarsense.tiling import grid, place_tiles
from tests.conftest import speckled_power, write_raster

SCENE = Scene(
    path="", relative="a.tif", product="generic", sensor="S1", mode="IW", datetime=None, looks=None, width=1000,
    height=800, dtype="float32", crs="EPSG:32633", transform=(10.0, 0.0, 500_000.0, 0.0, -10.0, 5_000_000.0),
    gcps=(), bands=(), notes=(),
)  # fmt: skip


@given(length=st.integers(1, 500), tile=st.integers(1, 100), stride=st.integers(1, 120))
def test_grid_is_every_window_that_fits(length, tile, stride):
    expected = [first for first in range(0, length, stride) if first + tile <= length]
    assert grid(length, tile, stride).tolist() == expected


@settings(max_examples=50)
@given(
    zone=st.integers(1, 60),
    northing=st.floats(100_000, 9_000_000),
    angle=st.floats(-180, 180),
    spacing=st.floats(1, 40),
)
def test_footprint_holds_the_projected_pixels_of_the_tile_and_no_more(zone, northing, angle, spacing):
    """Against a brute-force projection of many points, rotated grids and scenes across 180 degrees included."""
    cos, sin = spacing * np.cos(np.radians(angle)), spacing * np.sin(np.radians(angle))
    transform = (cos, sin, 200_000.0, sin, -cos, northing)
    scene = replace(SCENE, crs=f"EPSG:{32600 + zone}", transform=transform)
    placed = place_tiles(scene, np.array([128]), np.array([256]), 256)
    ring = placed.footprints[0]
    cols, rows = np.meshgrid(np.linspace(128, 384, 17), np.linspace(256, 512, 17))
    a, b, c, d, e, f = transform
    project = pyproj.Transformer.from_crs(scene.crs, 4326, always_xy=True)
    lon, lat = project.transform(a * cols + b * rows + c, d * cols + e * rows + f)
    lon = lon + 360 * np.round((ring[:, 0].mean() - lon) / 360)
    polygon = shapely.Polygon(ring)
    size = np.hypot(np.ptp(ring[:, 0]), np.ptp(ring[:, 1]))
    distance = shapely.distance(polygon, shapely.points(lon.ravel(), lat.ravel()))
    assert distance.max() < 1e-3 * size
    hull = shapely.convex_hull(shapely.multipoints(np.stack([lon.ravel(), lat.ravel()], -1)))
    assert polygon.area == pytest.approx(hull.area, rel=2e-3)
    assert np.ptp(ring[:, 0]) < 180


def test_area_and_spacing_agree_with_geodesy():
    placed = place_tiles(SCENE, np.array([0, 300]), np.array([0, 200]), 256)
    geod = pyproj.Geod(ellps="WGS84")
    for ring, spacing in zip(placed.footprints, placed.spacing, strict=True):
        area, _ = geod.polygon_area_perimeter(*ring.T)
        assert abs(area) == pytest.approx((256 * spacing.prod() ** 0.5) ** 2, rel=1e-3)
    np.testing.assert_allclose(placed.spacing, 10.0, rtol=1e-3)  # UTM: scale 0.9996 near the meridian


def test_unplaced_scene_has_no_placement():
    assert place_tiles(replace(SCENE, crs=None, transform=None), np.array([0]), np.array([0]), 64) is None


def _bent(row, col):
    """A smooth, bent geometry as of a GCP scene (degrees), over 1200 x 1200 pixels."""
    return 10 + 4e-4 * col + 1e-4 * row + 2e-8 * row * col, 50 - 1e-4 * col + 3e-4 * row + 1e-8 * col**2


def test_gcp_scenes_are_placed_by_their_gcps_not_by_one_affine(tmp_path):
    gcps = [
        GroundControlPoint(row=row, col=col, x=_bent(row, col)[0], y=_bent(row, col)[1])
        for row in range(0, 1201, 100)
        for col in range(0, 1201, 100)
    ]
    path = write_raster(
        tmp_path / "gcp_VV.tif", 10 * np.log10(speckled_power((1200, 1200), 4, 0)), gcps=(gcps, "EPSG:4326")
    )
    scene = describe_scene(str(path), path.name, BuildConfig(tile_size=256))
    assert scene.crs == "EPSG:4326" and scene.transform is None and len(scene.gcps) == len(gcps)
    cols, rows = np.meshgrid(np.linspace(10, 1190, 9), np.linspace(10, 1190, 9))
    lon, lat = to_lonlat(scene, cols, rows)
    expected = _bent(rows, cols)
    pixel = 3e-4  # degrees
    error = np.abs(np.stack([lon, lat]) - np.stack(expected))
    assert error[:, 1:-1, 1:-1].max() < 0.05 * pixel
    assert error.max() < 0.25 * pixel  # a thin-plate spline is loosest in the corners
    a, b, c, d, e, f, *_ = rasterio.transform.from_gcps(gcps)
    off = np.abs(np.stack([a * cols + b * rows + c, d * cols + e * rows + f]) - np.stack(expected)).max()
    assert off > 3 * pixel  # what one affine would have done


def test_real_gcp_scene_lies_in_south_india(real_data):
    name = "S1A_IW_GRDH_1SDV_20180716T004042_20180716T004107_022812_02792A_FD5B"
    path = next((real_data / "s1-grd-gcp" / name / "measurement").glob("iw-vv.tiff"))
    scene = describe_scene(str(path), f"{name}/measurement/{path.name}", BuildConfig(tile_size=256))
    placed = place_tiles(scene, np.array([0, 1024]), np.array([0, 512]), 256)
    assert (placed.centres > [75, 8]).all() and (placed.centres < [82, 16]).all()
    np.testing.assert_allclose(placed.spacing, 200, rtol=0.15)  # README: decimated to about 200 m


def _swath(lon_0, lat_0, heading=-12.0, size=2000, every=200, spacing=40.0):
    """GCPs (row, col, lon, lat) of a swath of `size` pixels around a place, by geodesics from its centre."""
    geod = pyproj.Geod(ellps="WGS84")
    rows, cols = np.meshgrid(np.arange(0, size + 1, every), np.arange(0, size + 1, every), indexing="ij")
    east, south = (cols - size / 2) * spacing, (rows - size / 2) * spacing
    azimuth, distance = np.degrees(np.arctan2(east, -south)) + heading, np.hypot(east, south)
    lon, lat, _ = geod.fwd(np.full(rows.shape, lon_0), np.full(rows.shape, lat_0), azimuth, distance)
    return tuple(zip(*(v.ravel().astype(float).tolist() for v in (rows, cols, lon, lat)), strict=True))


@settings(max_examples=25, deadline=None)
@given(lon_0=st.sampled_from([179.9, -179.95, 180.0, 10.0]), lat_0=st.floats(-85, 85))
@example(lon_0=179.9, lat_0=76.0)
@example(lon_0=10.0, lat_0=69.9)
def test_gcp_scenes_across_180_degrees_and_near_the_poles(lon_0, lat_0):
    """Points half-way between GCPs lie where the geodesic from the centre says: longitudes of +179.9 and -179.9 are
    not averaged to 0, and degrees that run together near a pole do not bend the scene."""
    scene = replace(SCENE, crs="EPSG:4326", transform=None, gcps=_swath(lon_0, lat_0), width=2000, height=2000)
    rows, cols = np.meshgrid(np.arange(100, 2000, 200), np.arange(100, 2000, 200), indexing="ij")
    east, south = (cols - 1000) * 40.0, (rows - 1000) * 40.0
    geod = pyproj.Geod(ellps="WGS84")
    azimuth = np.degrees(np.arctan2(east, -south)) - 12.0
    start = np.full(rows.shape, lon_0), np.full(rows.shape, lat_0)
    lon, lat, _ = geod.fwd(*start, azimuth, np.hypot(east, south))
    found_lon, found_lat = to_lonlat(scene, cols.astype(float), rows.astype(float))
    _, _, metres = geod.inv(lon, lat, found_lon, found_lat)
    assert np.max(metres) < 40.0  # a pixel, in the corners, where a spline is loosest
    elsewhere = replace(scene, gcps=_swath(10.0, lat_0))
    other_lon, other_lat = to_lonlat(elsewhere, cols.astype(float), rows.astype(float))
    _, _, metres = geod.inv(other_lon - 10.0 + lon_0, other_lat, found_lon, found_lat)
    assert np.max(metres) < 0.01  # the Earth turns under the scene: nothing else happens at 180 degrees
    placed = place_tiles(scene, np.array([0, 900]), np.array([0, 900]), 256)
    assert np.ptp(placed.footprints[..., 0], axis=1).max() < 90
    for ring, spacing, close in zip(placed.footprints, placed.spacing, (5e-3, 1e-3), strict=True):  # corner, middle
        area, _ = geod.polygon_area_perimeter(*ring.T)
        assert abs(area) == pytest.approx((256 * 40.0) ** 2, rel=close)
        np.testing.assert_allclose(spacing, 40.0, rtol=close)


def test_gcps_of_a_real_grid_go_where_gdals_own_spline_puts_them(real_data):
    """The geolocation grid of a Sentinel-1 scene: GDAL's thin-plate spline against ours, to 0.1 pixel of 10 m."""
    from rasterio.transform import GCPTransformer

    safe = next((real_data / "s1-grd-safe").glob("*.SAFE"))
    facts = recognise(str(next((safe / "measurement").glob("*.tiff"))), {})
    scene = replace(SCENE, crs="EPSG:4326", transform=None, gcps=facts.gcps, width=26102, height=16705)
    rng = np.random.default_rng(0)
    rows, cols = rng.uniform(0, 16704, 400), rng.uniform(0, 26101, 400)
    points = [GroundControlPoint(row=r, col=c, x=x, y=y) for r, c, x, y in facts.gcps]
    with GCPTransformer(points, tps=True) as transformer:
        lon, lat = transformer.xy(rows, cols, offset="ul")
    found = to_lonlat(scene, cols, rows)
    _, _, metres = pyproj.Geod(ellps="WGS84").inv(lon, lat, *found)
    assert np.max(metres) < 1.0
