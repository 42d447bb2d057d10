"""Views made by matrix products for a whole batch, against OpenCV's one by one, and against torch's own sampling."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from hypothesis import given, settings
from hypothesis import strategies as st

from dic3l import device_views
from dic3l.config import SpeckleConfig, ViewConfig
from dic3l.device_views import pixel_words, render_views, speckle_numbers, speckle_tiles, view_numbers
from dic3l.draws import philox, tile_uniforms
from dic3l.draws import pixel_words as pixel_words_of_the_host
from dic3l.speckle import DRAWS_PER_VIEW as SPECKLE_DRAWS
from dic3l.speckle import draw_speckle, speckle_table, speckle_view
from dic3l.views import DRAWS_PER_VIEW, ViewParams, blur_radius, draw_view, render
from sarsense.shards import TileSpeckle

PLAIN = ViewConfig(jitter_probability=0, blur_probability=0)


def uniforms(count: int, draws: int, seed: int = 0) -> np.ndarray:
    return tile_uniforms(seed, np.zeros(count, np.int64), np.arange(count, dtype=np.uint64), draws)


def drawn(count: int, tile_hw: tuple[int, int], config: ViewConfig, seed: int = 0) -> ViewParams:
    return draw_view(uniforms(count, DRAWS_PER_VIEW, seed), tile_hw, config)


def on_device(tiles: np.ndarray, params: ViewParams, crop: int, blur: int = 6) -> np.ndarray:
    numbers = torch.from_numpy(view_numbers(params, (tiles.shape[1], tiles.shape[2]), crop))
    return render_views(torch.from_numpy(tiles), numbers, crop, blur)[:, 0].numpy()


def smooth(count: int, height: int, width: int) -> np.ndarray:
    """Waves that differ by a few codes from pixel to pixel."""
    y, x = np.mgrid[:height, :width].astype(float)
    phase = np.arange(count)[:, None, None]
    return (128 + 60 * np.sin(x / 17 + phase) + 60 * np.cos(y / 23 + phase)).astype(np.uint8)


def speckled(count: int, height: int, width: int) -> np.ndarray:
    return np.random.default_rng(0).gamma(4, 30, (count, height, width)).clip(1, 255).astype(np.uint8)


@pytest.mark.parametrize(
    ("tile_hw", "crop"), [((512, 512), 448), ((512, 512), 96), ((300, 500), 128), ((128, 128), 200)]
)
@pytest.mark.parametrize("area", [(0.2, 1.0), (0.9, 1.0)])
def test_crop_resize_and_flips_are_those_of_the_host(tile_hw, crop, area):
    config = replace(PLAIN, area=area, vertical_flip_probability=0.5)
    params = drawn(24, tile_hw, config)
    assert {*params.flip, *params.flip_vertical} == {True, False}
    for tiles, most, mean in ((smooth(24, *tile_hw), 2, 0.5), (speckled(24, *tile_hw), 12, 1.0)):
        ours, host = on_device(tiles, params, crop), render(tiles[:, None], params, crop)[:, 0]
        difference = np.abs(ours.astype(int) - host)
        # OpenCV places a pixel of a reduced view to 1/32 of one, and rounds means of blocks before
        assert difference.max() <= most and difference.mean() <= mean


@settings(deadline=None, max_examples=40)
@given(
    x=st.integers(0, 60), y=st.integers(0, 60), w=st.integers(10, 67), h=st.integers(10, 67),
    flip=st.booleans(), upside=st.booleans(), crop=st.sampled_from([70, 96, 161]),
)  # fmt: skip
def test_where_nothing_is_averaged_it_is_bilinear_interpolation(x, y, w, h, flip, upside, crop):
    params = replace(
        drawn(1, (128, 128), PLAIN),
        rect=np.array([[x, y, x + w, y + h]], float),
        flip=np.array([flip]),
        flip_vertical=np.array([upside]),
    )
    tile = speckled(1, 128, 128)
    part = torch.from_numpy(tile[:, None, y : y + h, x : x + w].astype(np.float64))
    exact = F.interpolate(part, (crop, crop), mode="bilinear", align_corners=False)[:, 0].numpy()
    exact = exact[:, :: -1 if upside else 1, :: -1 if flip else 1]
    assert np.abs(on_device(tile, params, crop) - exact).max() <= 0.51


def test_blocks_are_averaged_as_by_the_plain_loop():
    params = replace(
        drawn(1, (130, 97), PLAIN),
        rect=np.array([[0, 1, 96, 129.0]]),
        flip=np.array([False]),
        flip_vertical=np.array([True]),
    )
    tile = speckled(1, 130, 97)
    blocks = tile[0, 1:129, :96].reshape(32, 4, 32, 3).mean(axis=(1, 3))
    assert np.abs(on_device(tile, params, 32)[0] - blocks[::-1]).max() <= 0.5 + 1e-4


@pytest.mark.parametrize("change", [{"jitter_probability": 1.0}, {"blur_probability": 1.0}, {}])
def test_level_contrast_and_blur_are_those_of_the_host(change):
    config = replace(ViewConfig(), area=(0.5, 1.0), **{"jitter_probability": 0.0, "blur_probability": 0.0, **change})
    if not change:
        config = ViewConfig()
    params = drawn(32, (160, 160), config, seed=5)
    tiles = smooth(32, 160, 160)
    difference = np.abs(on_device(tiles, params, 128).astype(int) - render(tiles[:, None], params, 128)[:, 0])
    assert difference.max() <= 4 and difference.mean() <= 0.5


@pytest.mark.parametrize("sigma", [0.1, 0.3, 1.0, 1.9, 2.0, 3.7])
def test_a_blurred_point_is_a_gaussian(sigma):
    params = drawn(2, (64, 64), PLAIN)
    params = replace(
        params,
        rect=np.array([[0, 0, 64, 64.0]] * 2),
        flip=np.zeros(2, bool),
        blur_sigma=np.array([sigma, 0.0]),
    )
    tile = np.zeros((2, 64, 64), np.uint8)
    tile[:, 30, 34] = 255
    found = on_device(tile, params, 64, blur=blur_radius(3.7))
    y, x = np.mgrid[:64, :64]
    expected = np.exp(-((y - 30) ** 2 + (x - 34) ** 2) / (2 * sigma**2))
    np.testing.assert_allclose(found[0], 255 * expected / expected.sum(), atol=2)
    np.testing.assert_array_equal(found[1], tile[1])


def test_half_precision_moves_no_pixel_by_more_than_a_code(monkeypatch):
    params, tiles = drawn(8, (512, 512), PLAIN), speckled(8, 512, 512)
    exact = on_device(tiles, params, 448)
    monkeypatch.setitem(device_views.PRODUCTS, "cpu", torch.float16)
    half = on_device(tiles, params, 448)
    difference = np.abs(half.astype(int) - exact)
    # a weight is off by 2**-12 at most, and sums up to 255 are kept to an eighth
    assert difference.max() <= 1 and difference.mean() < 0.12


@given(seed=st.integers(0, 2**64 - 1), count=st.integers(1, 100))
@settings(deadline=None, max_examples=40)
def test_words_of_pixels_are_those_of_philox_on_host_and_device(seed, count):
    host = pixel_words_of_the_host(seed, count)
    low, high = seed & 0xFFFFFFFF, seed >> 32
    device = pixel_words(torch.tensor([low]), torch.tensor([high]), count)
    np.testing.assert_array_equal(device[0].numpy(), host)
    zero = np.zeros(1, np.uint64)
    words = philox((np.arange(-(-count // 8), dtype=np.uint64), zero, zero, zero), (low, high)).astype(np.uint32)
    np.testing.assert_array_equal(words.view(np.uint16).reshape(-1)[:count], host)


def test_speckle_is_that_of_the_host():
    config = SpeckleConfig(
        mix_probability=0.3, respeckle_probability=0.3, fewer_looks_probability=0.2, gain_db=3.0, looks=(1.0, 12.0)
    )
    count = 64
    rng = np.random.default_rng(1)
    known = TileSpeckle(
        step_db=rng.uniform(0.1, 0.3, count),
        enl=np.where(rng.random(count) < 0.2, np.nan, rng.uniform(1, 20, count)),
        bias_db=rng.uniform(-2.5, 0, count),
        filtered=rng.random(count) < 0.8,
    )
    numbers = rng.permutation(count)
    params = draw_speckle(uniforms(count, SPECKLE_DRAWS), config)
    tiles = np.stack((speckled(count, 48, 40), smooth(count, 48, 40)), axis=1)
    tiles[:, :, :5] = 0
    tiles[::3, 0, 9] = 0
    told = speckle_numbers(params, known, numbers, 2)
    assert min(told.counts) > 5
    ours = speckle_tiles(torch.from_numpy(tiles), told, torch.from_numpy(speckle_table(config)).float()).numpy()
    host = np.empty((48, 40), np.uint8)
    for row, number in enumerate(numbers):
        speckle_view(tiles[row], known, int(number), params, row, host)
        difference = np.abs(ours[row].astype(int) - host)
        # of single precision, at values that lie half-way between two codes
        assert difference.max() <= 1 and (difference > 0).mean() < 0.02
        assert np.array_equal(ours[row] == 0, host == 0)
