"""Views: torchvision's distribution, exact geometry, and pixels where the geometry says."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy import stats
from torchvision.transforms import RandomResizedCrop
from torchvision.transforms.v2 import functional as tvf

from dic3l.config import ViewConfig
from dic3l.draws import tile_uniforms
from dic3l.errors import ConfigError
from dic3l.views import DRAWS_PER_VIEW, ViewParams, draw_view, render, view_matrix

PLAIN = ViewConfig(jitter_probability=0, blur_probability=0, flip_probability=0)


def drawn(count: int, tile_hw: tuple[int, int], config: ViewConfig, seed: int = 0) -> ViewParams:
    ids = np.arange(count, dtype=np.uint64)
    return draw_view(tile_uniforms(seed, np.zeros(count, int), ids, DRAWS_PER_VIEW), tile_hw, config)


def one_view(rect: tuple[float, ...], flip: bool = False, upside: bool = False, **changes: float) -> ViewParams:
    plain = {"brightness": 1.0, "contrast": 1.0, "contrast_first": False, "blur_sigma": 0.0, **changes}
    plain = {name: np.array([value]) for name, value in plain.items()}
    return ViewParams(np.array([rect], float), np.array([flip]), np.array([upside]), **plain)


def speckle(shape: tuple[int, ...], seed: int = 0) -> np.ndarray:
    return np.random.default_rng(seed).gamma(4, 30, shape).clip(1, 255).astype(np.uint8)


@pytest.mark.parametrize(("tile_hw", "area"), [((512, 512), (0.2, 1.0)), ((300, 500), (0.8, 1.0))])
def test_crops_have_the_distribution_of_random_resized_crop(tile_hw, area):
    config = ViewConfig(area=area)
    ours = drawn(4000, tile_hw, config).rect
    blank = torch.zeros(1, *tile_hw)
    with torch.random.fork_rng():
        torch.manual_seed(0)
        theirs = np.array(
            [RandomResizedCrop.get_params(blank, list(area), list(config.aspect)) for _ in range(4000)], float
        )  # top, left, height, width
    columns = [(ours[:, 0], theirs[:, 1]), (ours[:, 1], theirs[:, 0])]
    columns += [(ours[:, 2] - ours[:, 0], theirs[:, 3]), (ours[:, 3] - ours[:, 1], theirs[:, 2])]
    for mine, published in columns:
        assert stats.ks_2samp(mine, published).pvalue > 1e-3


def test_crops_stay_on_the_tile_and_keep_the_configured_area_and_aspect():
    rect = drawn(5000, (512, 512), ViewConfig()).rect
    width, height = rect[:, 2] - rect[:, 0], rect[:, 3] - rect[:, 1]
    assert rect.min() >= 0 and rect.max() <= 512
    share, aspect = width * height / 512**2, width / height
    # sides are whole pixels, of 200 or more
    assert share.min() >= 0.2 * 0.995 and share.max() <= 1
    assert aspect.min() >= 0.75 * 0.995 and aspect.max() <= 4 / 3 * 1.005
    assert np.array_equal(rect, np.rint(rect))


def test_a_tile_that_no_crop_fits_gets_the_largest_central_one():
    rect = drawn(5, (100, 400), ViewConfig(area=(1.0, 1.0))).rect
    np.testing.assert_allclose(rect, np.tile([133, 0, 266, 100], (5, 1)))


def test_shares_of_jitter_blur_and_flip_are_the_configured_ones():
    config = ViewConfig()
    params = drawn(20000, (512, 512), config)
    assert params.flip.mean() == pytest.approx(0.5, abs=0.02) and not params.flip_vertical.any()
    both = drawn(20000, (512, 512), replace(config, vertical_flip_probability=0.3))
    assert both.flip_vertical.mean() == pytest.approx(0.3, abs=0.02)
    assert (both.flip & both.flip_vertical).mean() == pytest.approx(0.15, abs=0.02)
    assert (params.blur_sigma > 0).mean() == pytest.approx(0.5, abs=0.02)
    assert (params.brightness != 1).mean() == pytest.approx(0.8, abs=0.02)
    assert params.contrast_first.mean() == pytest.approx(0.5, abs=0.02)
    for factor in (params.brightness, params.contrast):
        assert stats.kstest(factor[params.brightness != 1], stats.uniform(0.6, 0.8).cdf).pvalue > 1e-3
    assert stats.kstest(params.blur_sigma[params.blur_sigma > 0], stats.uniform(0.1, 1.9).cdf).pvalue > 1e-3
    with_none = drawn(100, (512, 512), PLAIN)
    assert not with_none.flip.any() and not with_none.blur_sigma.any()
    assert (with_none.brightness == 1).all() and (with_none.contrast == 1).all()


def test_the_matrix_maps_the_corners_of_the_crop_to_the_corners_of_the_view():
    plain, flipped = (
        view_matrix(one_view((10.5, 20.25, 110.5, 60.25)), 50),
        view_matrix(one_view((2, 3, 7, 8), True), 50),
    )
    np.testing.assert_allclose(plain[0] @ [10.5, 20.25, 1], [0, 0], atol=1e-12)
    np.testing.assert_allclose(plain[0] @ [110.5, 60.25, 1], [50, 50])
    np.testing.assert_allclose(flipped[0] @ [2, 3, 1], [50, 0], atol=1e-12)
    np.testing.assert_allclose(flipped[0] @ [7, 8, 1], [0, 50], atol=1e-12)
    upside = view_matrix(one_view((2, 3, 7, 8), True, True), 50)
    np.testing.assert_allclose(upside[0] @ [2, 3, 1], [50, 50], atol=1e-12)
    np.testing.assert_allclose(upside[0] @ [7, 8, 1], [0, 0], atol=1e-12)


@settings(deadline=None, max_examples=60)
@given(
    x=st.integers(0, 100), y=st.integers(0, 100), w=st.integers(20, 155), h=st.integers(20, 155),
    flip=st.booleans(), upside=st.booleans(), size=st.sampled_from([32, 96, 160, 224]),
)  # fmt: skip
def test_a_pixel_shows_the_ground_that_the_matrix_gives_it(x, y, w, h, flip, upside, size):
    params = one_view((x, y, x + w, y + h), flip, upside)
    ramp_x = np.arange(256, dtype=np.uint8)[None].repeat(256, 0)
    tile = np.stack((ramp_x, ramp_x.T))  # the value of a pixel is the index of its column, of its row
    view = render(tile[None], params, size)[0].astype(float)
    inverse = np.linalg.inv(np.vstack((view_matrix(params, size)[0], [0, 0, 1])))
    centres = np.arange(size) + 0.5
    grid = np.stack((*np.meshgrid(centres, centres), np.ones((size, size))))
    source = np.einsum("ij,jhw->ihw", inverse, grid)[:2] - 0.5  # index = edge coordinate - half a pixel
    # half a grey value from rounding each time; blocks averaged at the rim may be cut off by the edge of the tile
    inside = (source > 6).all(0) & (source < 249).all(0)
    assert np.abs(view - source)[:, inside].max(initial=0) <= 1.01


@pytest.mark.parametrize("upside", [False, True])
@pytest.mark.parametrize("flip", [False, True])
def test_pixels_are_those_of_torchvision_away_from_the_rim(flip, upside):
    tile = speckle((1, 200, 200))
    view = render(tile[None], one_view((30, 20, 150, 120), flip, upside), 160)[0]
    theirs = tvf.resized_crop(torch.from_numpy(tile), 20, 30, 100, 120, [160, 160], antialias=False)
    theirs = tvf.horizontal_flip(theirs) if flip else theirs
    theirs = tvf.vertical_flip(theirs) if upside else theirs
    difference = np.abs(view.astype(int) - theirs.numpy())[:, 2:-2, 2:-2]
    assert difference.max() <= 1


def test_a_strong_reduction_averages_the_pixels_under_a_view_pixel_as_multilooking_does():
    tile = speckle((1, 512, 512))
    view = render(tile[None], one_view((0, 0, 512, 512)), 64)[0]
    mean = tile.reshape(1, 64, 8, 64, 8).mean((2, 4))
    assert np.abs(view - mean).max() <= 0.51
    # anywhere, and at any ratio: the speckle of n pixels has about 1/sqrt(n) of the spread of one
    free = render(tile[None], one_view((20, 7, 481, 500)), 100)[0]
    assert tile.std() / 8 < free.std() < tile.std() / 3.5


@pytest.mark.parametrize("contrast_first", [False, True])
def test_jitter_is_that_of_torchvision(contrast_first):
    tile = speckle((1, 64, 64))
    params = one_view((0, 0, 64, 64), brightness=1.3, contrast=0.7, contrast_first=contrast_first)
    view = render(tile[None], params, 64)[0]
    expected = torch.from_numpy(tile)
    for name in ("contrast", "brightness") if contrast_first else ("brightness", "contrast"):
        expected = tvf.adjust_brightness(expected, 1.3) if name == "brightness" else tvf.adjust_contrast(expected, 0.7)
    # torchvision cuts decimals off after each of the two, here they are rounded
    assert np.abs(view.astype(int) - expected.numpy()).max() <= 2


@pytest.mark.parametrize("sigma", [0.1, 0.7, 2.0])
def test_blur_is_a_gaussian_of_the_given_width(sigma):
    tile = speckle((1, 64, 64))
    view = render(tile[None], one_view((0, 0, 64, 64), blur_sigma=sigma), 64)[0]
    expected = tvf.gaussian_blur(torch.from_numpy(tile), [15, 15], [sigma, sigma]).numpy()
    assert np.abs(view.astype(int) - expected).max() <= 2


def test_a_view_of_a_batch_is_the_view_alone_and_fills_the_array_given():
    tiles, params = speckle((6, 2, 128, 128)), drawn(6, (128, 128), ViewConfig(), seed=3)
    out = np.zeros((6, 2, 96, 96), np.uint8)
    assert render(tiles, params, 96, out) is out
    for index in range(6):
        alone = render(tiles[index : index + 1], params[index : index + 1], 96)
        np.testing.assert_array_equal(alone[0], out[index])


def test_the_tile_is_left_as_it_is():
    tile = speckle((1, 64, 64))
    before = tile.copy()
    render(tile[None], replace(one_view((0, 0, 64, 64), blur_sigma=2.0), brightness=np.array([1.4])), 64)
    np.testing.assert_array_equal(tile, before)


def test_anything_but_uint8_tiles_is_refused():
    with pytest.raises(ConfigError, match="expected uint8"):
        render(np.zeros((1, 1, 8, 8), np.float32), one_view((0, 0, 8, 8)), 8)
