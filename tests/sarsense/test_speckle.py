import numpy as np
import pytest

from sarsense.simulate import draw_truth, speckled
from sarsense.speckle import (
    STRIP,
    BlockStatistics,
    amplitude_cv,
    estimate_enl,
    log_bias_db,
    log_std_db,
)
from sarsense.speckle.enl import draw_flanks
from sarsense.speckle.flanks import FLANKS_OF_CV, FLANKS_OF_LOG
from tests.conftest import speckled_power

# SAR.md section 2.1: looks -> standard deviation and bias of log speckle in dB, variation of the amplitude
TABLE = {
    1: (5.570, -2.507, 0.5227),
    2: (3.488, -1.174, 0.3630),
    4: (2.314, -0.565, 0.2536),
    4.4: (2.193, -0.512, 0.2415),
    9: (1.489, -0.246, 0.1678),
    16: (1.103, -0.137, 0.1255),
    100: (0.435, -0.022, 0.0500),
}


@pytest.mark.parametrize("looks", TABLE)
def test_log_speckle_follows_the_table(looks):
    assert log_std_db(looks) == pytest.approx(TABLE[looks][0], abs=6e-4)
    assert log_bias_db(looks) == pytest.approx(TABLE[looks][1], abs=6e-4)
    assert amplitude_cv(looks) == pytest.approx(TABLE[looks][2], abs=6e-5)


@pytest.mark.parametrize("looks", [1.0, 4.0, 16.0])
def test_log_speckle_follows_drawn_speckle(looks):
    db = 10 * np.log10(speckled_power((1000, 1000), looks, seed=1, mean_db=0.0))
    assert db.mean() == pytest.approx(log_bias_db(looks), abs=0.02)
    assert db.std() == pytest.approx(log_std_db(looks), abs=0.02)


def _textured_scene(looks: float, seed: int) -> np.ndarray:
    """Three homogeneous fields beside one of strongly textured ground."""
    rng = np.random.default_rng(seed)
    ground = np.repeat(np.repeat(rng.choice([0.01, 0.05, 0.2], (8, 8)), 84, 0), 84, 1)
    texture = rng.gamma(2.0, 0.5, ground.shape)
    ground = np.where(np.arange(ground.shape[1]) < 200, ground * texture, ground)
    return (ground * rng.gamma(looks, 1 / looks, ground.shape)).astype(np.float32)


@pytest.mark.parametrize("looks", [1.0, 3.0, 4.4, 10.0, 50.0])
def test_enl_is_found_beside_texture_and_edges(looks):
    statistics = BlockStatistics()
    statistics.add(_textured_scene(looks, seed=3))
    enl = estimate_enl(statistics)
    assert enl is not None
    assert enl.looks == pytest.approx(looks, rel=0.1)
    assert enl.by_cv == pytest.approx(looks, rel=0.15)
    assert enl.by_log_variance == pytest.approx(looks, rel=0.15)
    assert enl.disagreement < 0.2
    assert enl.confidence > 0.7


def test_smooth_slopes_of_the_ground_do_not_count_as_speckle():
    slope = 10 ** (np.linspace(-2.0, 2.0, 700) / 10)[:, None] * 10 ** (np.sin(np.arange(700) / 20) / 10)
    statistics = BlockStatistics()
    statistics.add((speckled_power((700, 700), 40.0, seed=6) * slope).astype(np.float32))
    enl = estimate_enl(statistics)
    assert enl is not None
    assert enl.looks == pytest.approx(40.0, rel=0.1)


def test_looks_that_the_two_estimators_do_not_agree_on_are_not_trusted():
    clipped = np.minimum(speckled_power((700, 700), 1.0, seed=6, mean_db=0.0), 0.7)
    statistics = BlockStatistics()
    statistics.add(clipped)
    enl = estimate_enl(statistics)
    assert enl is not None
    assert enl.disagreement > 0.3
    assert enl.confidence < 0.4


def test_oversampled_speckle_does_not_read_as_more_looks():
    rng = np.random.default_rng(9)
    field = rng.standard_normal((2, 4, 350, 350))
    # four looks, each of complex Gaussian speckle, brought to twice the pixels by its spectrum
    spectrum = np.fft.fftshift(np.fft.fft2(field[0] + 1j * field[1]), axes=(1, 2))
    fine = np.fft.ifft2(np.fft.ifftshift(np.pad(spectrum, ((0, 0), (175, 175), (175, 175))), axes=(1, 2)))
    statistics = BlockStatistics()
    statistics.add((np.abs(fine) ** 2).mean(axis=0).astype(np.float32))
    enl = estimate_enl(statistics)
    assert enl is not None
    assert enl.looks == pytest.approx(4.0, rel=0.2)


@pytest.mark.parametrize(("looks", "within"), [(1.0, 0.1), (3.0, 0.1), (4.4, 0.1), (10.0, 0.15), (50.0, 0.2)])
def test_ground_that_is_nowhere_flat_is_not_taken_for_correlated_speckle(looks, within):
    power = speckled(draw_truth(3, 0, 1024), 3, 0, "VV", looks)
    statistics = BlockStatistics()
    statistics.add(np.where(power > 0, power, np.nan).astype(np.float32))
    enl = estimate_enl(statistics)
    assert enl is not None
    assert enl.looks == pytest.approx(looks, rel=within)


def test_block_statistics_add_up_over_strips_exactly():
    scene = _textured_scene(4.0, seed=5)
    whole, parts = BlockStatistics(), BlockStatistics()
    whole.add(scene)
    for first in range(0, len(scene), STRIP):
        parts.add(scene[first : first + STRIP])
    np.testing.assert_array_equal(whole.cv2, parts.cv2)
    np.testing.assert_array_equal(whole.log_variance, parts.log_variance)
    assert len(whole.apart) == len(parts.apart) == 2
    for one, other in zip(whole.apart, parts.apart, strict=True):
        np.testing.assert_array_equal(one.cv2, other.cv2)
        np.testing.assert_array_equal(one.log_variance, other.log_variance)


@pytest.mark.parametrize("spacing", [1, 2, 3])
def test_block_statistics_are_those_of_the_rest_of_a_fitted_plane(spacing):
    power = speckled_power((84, 126), 3.0, seed=2)
    power[5, 40] = np.nan
    statistics = BlockStatistics()
    statistics.add(power)
    plane = np.stack([np.ones(49), *np.indices((7, 7)).reshape(2, 49)], axis=1)

    def variance(values: np.ndarray) -> float:
        rest = values - plane @ np.linalg.lstsq(plane, values, rcond=None)[0]
        return float(rest @ rest) / (49 - 3)

    found = []
    for row in range(spacing):
        for col in range(spacing):
            lattice = power[row::spacing, col::spacing].astype(np.float64)
            for top in range(0, 84 // spacing - 6, 7):
                for left in range(0, 126 // spacing - 6, 7):
                    block = lattice[top : top + 7, left : left + 7].ravel()
                    if np.isfinite(block).all():
                        found.append((variance(block) / block.mean() ** 2, variance(np.log(block))))
    counted = [statistics, *statistics.apart][spacing - 1]
    for values, counts in zip(np.array(found).T, (counted.cv2, counted.log_variance), strict=True):
        assert counts.sum() == len(found)
        bins = np.geomspace(1e-6, 50.0, 2401)
        # a value at the edge of a bin may fall on either side
        assert np.abs(np.cumsum(counts) - np.cumsum(np.histogram(values, bins)[0])).max() <= 1


def test_too_few_blocks_give_no_enl():
    statistics = BlockStatistics()
    statistics.add(speckled_power((35, 35), 4.0, seed=0))
    assert estimate_enl(statistics) is None


def test_the_flanks_that_are_kept_are_those_that_are_drawn():
    for kept, drawn in zip((FLANKS_OF_CV, FLANKS_OF_LOG), draw_flanks(), strict=True):
        np.testing.assert_allclose(kept, drawn, atol=1e-5)
