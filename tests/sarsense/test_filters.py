import shutil

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from scipy.ndimage import uniform_filter
from scipy.stats import gamma as gamma_distribution

from sarsense.errors import SettingError
from sarsense.speckle import (
    boxcar,
    frost,
    gamma_map,
    kuan,
    lee,
    lee_sigma,
    nonlocal_means,
    refined_lee,
    sigma_range,
    wavelet,
)
from tests.conftest import speckled_power
from tests.oracles import otb_despeckle

LOOKS = 4.0
FILTERS = {
    "boxcar": boxcar,
    "lee": lambda power: lee(power, LOOKS),
    "kuan": lambda power: kuan(power, LOOKS),
    "gamma_map": lambda power: gamma_map(power, LOOKS),
    "frost": frost,
    "refined_lee": lambda power: refined_lee(power, LOOKS),
    "lee_sigma": lambda power: lee_sigma(power, LOOKS, bright=1e9),
    "nonlocal_means": lambda power: nonlocal_means(power, LOOKS),
    "wavelet": lambda power: wavelet(power, LOOKS),
}
LOCAL = [name for name in FILTERS if name not in ("nonlocal_means", "wavelet")]
INNER = np.s_[3:-3, 3:-3]
OTB = {
    "lee": FILTERS["lee"],
    "kuan": FILTERS["kuan"],
    "gamma_map": FILTERS["gamma_map"],
    "frost": lambda power: frost(power, damping=otb_despeckle.DAMPING),
}


def edged_power(shape: tuple[int, int] = (70, 90), seed: int = 5) -> np.ndarray:
    """Speckle of four looks over two fields and a patch of texture."""
    rng = np.random.default_rng(seed)
    ground = np.full(shape, 0.02)
    ground[:, shape[1] // 2 :] = 0.3
    ground[: shape[0] // 2, : shape[1] // 3] *= rng.gamma(2, 0.5, (shape[0] // 2, shape[1] // 3))
    return (ground * rng.gamma(LOOKS, 1 / LOOKS, shape)).astype(np.float32)


# ------------------------------------------------------------------------------------------------- oracles


@pytest.mark.parametrize("name", OTB)
def test_filters_equal_orfeo_toolbox(name):
    frozen = np.load(otb_despeckle.FROZEN)
    np.testing.assert_allclose(OTB[name](frozen["power"])[INNER], frozen[name][INNER], rtol=1e-6)


@pytest.mark.parametrize("name", OTB)
@pytest.mark.skipif(shutil.which("otbcli_Despeckle") is None, reason="Orfeo ToolBox (otb-bin) is not installed")
def test_filters_equal_orfeo_toolbox_on_another_image_live(name):
    power = edged_power(seed=77)
    expected = otb_despeckle.run_otb(power, name)
    np.testing.assert_allclose(OTB[name](power)[INNER], expected[INNER], rtol=1e-5)


def test_boxcar_is_scipys_uniform_filter():
    power = speckled_power((60, 70), 1.0, seed=2)
    expected = uniform_filter(power.astype(np.float64), 7, mode="reflect")
    np.testing.assert_allclose(boxcar(power), expected, rtol=1e-6)


def _refined_lee_twin(power: np.ndarray, looks: float) -> np.ndarray:
    """Word by word, pixel by pixel, from the docstring; interior pixels only."""
    out = np.full(power.shape, np.nan)
    dy, dx = np.mgrid[-3:4, -3:4]
    halves = [dx <= 0, dx >= 0, dy <= 0, dy >= 0, dx + dy <= 0, dx + dy >= 0, dx - dy >= 0, dx - dy <= 0]
    for row in range(3, power.shape[0] - 3):
        for col in range(3, power.shape[1] - 3):
            window = power[row - 3 : row + 4, col - 3 : col + 4].astype(np.float64)
            x = window[3, 3]
            if np.isnan(x):
                continue
            parts = [[window[i : i + 3, j : j + 3] for j in (0, 2, 4)] for i in (0, 2, 4)]
            middle = np.nanmean(parts[1][1])
            means = [[np.nanmean(part) if np.isfinite(part).any() else middle for part in row] for row in parts]
            values = window[np.isfinite(window)]
            if values.var(ddof=1) <= values.mean() ** 2 / looks:
                out[row, col] = values.mean()
                continue
            (a, b, c), (d, e, f), (g, h, i) = means
            edges = [
                (abs(c + f + i - a - d - g), 0, d, f),
                (abs(a + b + c - g - h - i), 2, b, h),
                (abs(a + b + d - f - h - i), 4, a, i),
                (abs(b + c + f - d - g - h), 6, c, g),
            ]
            _, first, near, far = max(edges, key=lambda edge: edge[0])
            half = halves[first if abs(near - e) <= abs(far - e) else first + 1]
            values = window[half & np.isfinite(window)]
            m, v = values.mean(), values.var(ddof=1)
            weight = max(0.0, (1 - m * m / looks / v) / (1 + 1 / looks)) if v > 0 else 0.0
            out[row, col] = m + weight * (x - m)
    return out


@pytest.mark.parametrize("holes", [False, True])
def test_refined_lee_equals_its_literal_twin(holes):
    power = edged_power((40, 52))
    if holes:
        power[10:13, 20:40] = np.nan
        power[np.random.default_rng(0).random(power.shape) < 0.02] = np.nan
    expected = _refined_lee_twin(power, LOOKS)
    found = refined_lee(power, LOOKS)
    inner = np.isfinite(expected)
    np.testing.assert_allclose(found[inner], expected[inner], rtol=1e-5)


def test_lee_sigma_equals_its_literal_twin():
    power = edged_power((30, 36))
    low, high, spread = sigma_range(LOOKS, 0.9)
    prior = kuan(power, LOOKS, 3)
    found = lee_sigma(power, LOOKS, bright=1e9)
    for row in range(4, 26):
        for col in range(4, 32):
            values = power[row - 4 : row + 5, col - 4 : col + 5].astype(np.float64).ravel()
            values = values[(values >= low * prior[row, col]) & (values <= high * prior[row, col])]
            m, v = values.mean(), values.var(ddof=1)
            weight = max(0.0, (1 - m * m * spread**2 / v) / (1 + spread**2))
            assert found[row, col] == pytest.approx(m + weight * (power[row, col] - m), rel=1e-5)


@pytest.mark.parametrize(("looks", "sigma"), [(1.0, 0.5), (1.0, 0.9), (3.0, 0.8), (4.4, 0.9), (30.0, 0.95)])
def test_sigma_range_holds_its_share_with_unit_mean(looks, sigma):
    low, high, spread = sigma_range(looks, sigma)
    value = np.linspace(low, high, 200_001)
    density = gamma_distribution.pdf(value, looks, scale=1 / looks)
    assert np.trapezoid(density, value) == pytest.approx(sigma, abs=1e-6)
    assert np.trapezoid(density * value, value) / sigma == pytest.approx(1.0, abs=1e-6)
    assert np.sqrt(np.trapezoid(density * (value - 1) ** 2, value) / sigma) == pytest.approx(spread, abs=1e-5)


def test_sigma_range_is_near_the_published_one():
    # Lee et al. (2009), table for intensity of one look
    for sigma, published in ((0.5, (0.436, 1.920, 0.4057)), (0.9, (0.084, 3.941, 0.8191))):
        np.testing.assert_allclose(sigma_range(1.0, sigma), published, rtol=4e-3)


# ----------------------------------------------------------------------------------------------- properties


@pytest.mark.parametrize("name", FILTERS)
def test_masked_pixels_stay_masked_and_do_not_bleed(name):
    power = np.full((64, 64), 2.0, np.float32)
    power[10:20, 15:30] = np.nan
    power[40, 40] = np.inf
    filtered = FILTERS[name](power)
    np.testing.assert_array_equal(np.isnan(filtered), ~np.isfinite(power))
    np.testing.assert_allclose(filtered[np.isfinite(filtered)], 2.0, rtol=2e-3 if name not in LOCAL else 1e-6)


@pytest.mark.parametrize("name", LOCAL)
def test_what_is_masked_does_not_matter(name):
    power = edged_power()
    holes = np.random.default_rng(1).random(power.shape) < 0.1
    first = FILTERS[name](np.where(holes, np.nan, power).astype(np.float32))
    second = FILTERS[name](np.where(holes, np.inf, power).astype(np.float32))
    np.testing.assert_array_equal(first, second)
    assert np.isfinite(first[~holes]).all()


@pytest.mark.parametrize("name", LOCAL)
def test_filtering_in_strips_equals_filtering_whole_to_the_bit(name):
    power = edged_power((90, 1100))
    power[30:50, 500:530] = np.nan
    whole, halo = FILTERS[name](power), 5
    for first, last in ((0, 37), (37, 90)):
        top, bottom = max(0, first - halo), min(90, last + halo)
        part = FILTERS[name](power[top:bottom])[first - top : last - top]
        np.testing.assert_array_equal(part, whole[first:last])
    left = FILTERS[name](power[:, : 505 + halo])[:, :505]
    np.testing.assert_array_equal(left, whole[:, :505])


@pytest.mark.parametrize("name", LOCAL)
@given(turns=st.integers(1, 3), mirror=st.booleans(), seed=st.integers(0, 1000))
def test_a_turned_image_is_filtered_alike(name, turns, mirror, seed):
    power = edged_power((33, 41), seed)

    def turned(image: np.ndarray) -> np.ndarray:
        return np.ascontiguousarray(np.rot90(image[:, ::-1] if mirror else image, turns))

    np.testing.assert_allclose(FILTERS[name](turned(power)), turned(FILTERS[name](power)), rtol=1e-5)


@pytest.mark.parametrize("name", FILTERS)
def test_the_level_of_flat_ground_is_kept_and_its_looks_grow(name):
    power = speckled_power((256, 256), LOOKS, seed=3, mean_db=-10.0)
    filtered = FILTERS[name](power)
    # Gamma-MAP gives the mode, which lies below the mean
    assert filtered.mean() / power.mean() == pytest.approx(1.0, abs=0.02 if name == "gamma_map" else 0.01)
    assert filtered.mean() ** 2 / filtered.var() > 8 * LOOKS


def test_point_targets_pass_the_sigma_filter():
    power = speckled_power((64, 64), LOOKS, seed=8)
    power[30:33, 40:43] = power.max() * 50
    assert np.array_equal(lee_sigma(power, LOOKS)[30:33, 40:43], power[30:33, 40:43])


@pytest.mark.parametrize("values", [{"power": np.ones((4, 4, 4), np.float32)}, {"power": np.ones((9, 9), np.uint8)}])
def test_what_is_no_image_of_power_is_refused(values):
    with pytest.raises(SettingError, match="real power H x W expected"):
        lee(**values, looks=LOOKS)


@pytest.mark.parametrize("looks", [0.0, -1.0, np.nan, np.inf])
def test_impossible_looks_are_refused(looks):
    with pytest.raises(SettingError, match="number of looks above 0"):
        refined_lee(np.ones((9, 9), np.float32), looks)


@pytest.mark.parametrize("size", [1, 4, 35])
def test_impossible_windows_are_refused(size):
    with pytest.raises(SettingError, match="odd side of the window"):
        lee(np.ones((9, 9), np.float32), LOOKS, size)
