from dataclasses import replace

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays

from sarsense.codes import as_8_bit, decode, encode
from sarsense.histogram import BIN_DB, histogram_db, percentile_db, share_outside, trimmed, whole
from sarsense.normalize import (
    SPECKLE_MARGIN,
    GroupRange,
    MeasuredBand,
    enl_bias_db,
    group_ranges,
)
from sarsense.speckle import BlockStatistics, boxcar, estimate_enl, log_bias_db, log_std_db
from tests.conftest import speckled_power

finite_db = arrays(np.float32, (50,), elements=st.floats(-40, 10, width=32))


@given(db=finite_db, lo=st.floats(-60, -5), span=st.floats(3, 90), bits=st.sampled_from([8, 16]))
def test_round_trip_is_within_half_a_step_inside_the_range(db, lo, span, bits):
    inside = np.clip(db, lo, lo + span).astype(np.float32)
    back = decode(encode(inside, lo, lo + span, bits), lo, lo + span)
    assert np.abs(back - inside).max() <= 0.5 * span / {8: 254, 16: 65534}[bits] + 2e-5


any_db = arrays(np.float32, (50,), elements=st.floats(-300, 300, width=32) | st.just(float("nan")))


@given(db=any_db, lo=st.floats(-60, -5), span=st.floats(3, 90))
def test_sixteen_bits_made_coarse_are_the_eight_bits_but_for_ties(db, lo, span):
    fine, coarse = encode(db, lo, lo + span, bits=16), encode(db, lo, lo + span)
    made = as_8_bit(fine)
    assert fine.dtype == np.uint16 and made.dtype == coarse.dtype == np.uint8
    place = 1 + (np.clip(db, lo, lo + span) - lo) / span * 254
    clear = np.isnan(db) | (np.abs(place % 1 - 0.5) > 0.01)
    np.testing.assert_array_equal(made[clear], coarse[clear])
    np.testing.assert_array_equal(made == 0, np.isnan(db))
    np.testing.assert_array_equal(as_8_bit(coarse), coarse)


@given(db=any_db, bits=st.sampled_from([8, 16]))
def test_code_zero_is_no_data_and_nothing_else(db, bits):
    codes = encode(db, -30.0, 5.0, bits)
    np.testing.assert_array_equal(codes == 0, np.isnan(db))
    np.testing.assert_array_equal(np.isnan(decode(codes, -30.0, 5.0)), np.isnan(db))


@given(parts=st.lists(finite_db, min_size=1, max_size=5))
def test_histograms_of_parts_add_up_to_that_of_the_whole(parts):
    whole = histogram_db(np.concatenate(parts))
    np.testing.assert_array_equal(whole, np.sum([histogram_db(part) for part in parts], axis=0))


@given(db=finite_db, lo=st.floats(-40, -10), span=st.floats(1, 30))
def test_a_trimmed_histogram_comes_back_and_knows_what_lies_outside(db, lo, span):
    histogram = histogram_db(db)
    np.testing.assert_array_equal(whole(*trimmed(histogram)), histogram)
    below, above = share_outside(histogram, lo, lo + span)
    assert np.mean(db < lo - BIN_DB) <= below <= np.mean(db < lo + BIN_DB)
    assert np.mean(db > lo + span + BIN_DB) <= above <= np.mean(db > lo + span - BIN_DB)


def test_percentiles_agree_with_numpy_within_a_bin():
    db = np.random.default_rng(0).normal(-12, 5, 200_000).astype(np.float32)
    for percent in (0.1, 1, 50, 99, 99.9):
        assert abs(percentile_db(histogram_db(db), percent) - np.percentile(db, percent)) < 2 * BIN_DB


def _band(mean_db: float, looks: float, seed: int) -> MeasuredBand:
    db = np.random.default_rng(seed).normal(mean_db, 3, 50_000).astype(np.float32)
    return MeasuredBand(histogram_db(db), looks)


def group_range(bands: list[MeasuredBand]) -> GroupRange:
    return group_ranges({"S1/IW/VV/sigma0": bands})["S1/IW/VV/sigma0"]


@given(order=st.permutations(range(12)))
def test_ranges_do_not_depend_on_the_order_of_scenes_or_groups(order):
    bands = [_band(-8.0 - seed, 1.1 + seed, seed) for seed in range(12)]
    groups = {"A": bands, "B": bands[:3]}
    turned = {"B": [bands[i] for i in order if i < 3], "A": [bands[i] for i in order]}
    assert group_ranges(groups) == group_ranges(turned)


def test_range_is_widened_by_speckle_so_that_speckle_is_not_clipped():
    looks = 1.0
    power = speckled_power((400, 400), looks, seed=4, mean_db=-12.0)
    despeckled = np.full(power.shape, -12.0, np.float32)
    bounds = group_range([MeasuredBand(histogram_db(despeckled), looks)])
    assert abs((bounds.hi_db - bounds.lo_db) - 2 * SPECKLE_MARGIN * log_std_db(looks) - 3.0) < 0.1
    codes = encode(10 * np.log10(power) - np.float32(enl_bias_db(looks, "sigma0")), bounds.lo_db, bounds.hi_db)
    assert np.mean((codes == 1) | (codes == 255)) < 0.05


def _measured(power: np.ndarray) -> MeasuredBand:
    statistics = BlockStatistics()
    statistics.add(power)
    enl = estimate_enl(statistics)
    return MeasuredBand(histogram_db(10 * np.log10(boxcar(power))), None if enl is None else enl.looks)


def _fields(looks: float, seed: int, gain_db: float = 0.0) -> tuple[np.ndarray, np.ndarray]:
    """Five classes in fields of 64 pixels, and power as a sensor of so many looks sees them."""
    rng = np.random.default_rng(seed)
    classes = np.kron(np.random.default_rng(0).choice(5, (16, 16), p=[0.1, 0.2, 0.3, 0.3, 0.1]), np.ones((64, 64), int))
    ground = 10 ** ((np.array([-22.0, -16.0, -12.0, -8.0, -3.0])[classes] + gain_db) / 10)
    return classes, (ground * rng.gamma(looks, 1 / looks, ground.shape)).astype(np.float32)


@pytest.mark.parametrize("together", [False, True])
def test_the_same_ground_has_the_same_codes_whatever_the_looks_and_the_calibration(together):
    """Groups of 1, 4 and 16 looks, one of them with a wrong calibration constant; or one group of all looks."""
    views = {name: _fields(*view) for name, view in VIEWS.items() if not (together and view[2])}
    bands = {name: _measured(power) for name, (_, power) in views.items()}
    ranges = group_ranges({"all": bands.values()}) if together else group_ranges({n: [b] for n, b in bands.items()})
    means = []
    for name, (classes, power) in views.items():
        bounds, bias = ranges["all" if together else name], enl_bias_db(bands[name].enl, "sigma0")
        codes = encode((10 * np.log10(power) - bias).astype(np.float32), bounds.lo_db, bounds.hi_db)
        means.append([codes[classes == number].mean() for number in range(5)])
    assert np.ptp(means, axis=0).max() < 2.0


VIEWS = {"L1": (1.0, 1, 0.0), "L4": (4.0, 2, 0.0), "L16": (16.0, 3, 0.0), "L4, 3 dB off": (4.0, 4, 3.0)}


@pytest.mark.parametrize("absurd", ["sea", "targets", "bright"])
def test_one_absurd_scene_of_fifty_does_not_move_the_range(absurd):
    bands = [_band(-12.0 + np.sin(seed), 4.4, seed) for seed in range(50)]
    strange = {
        "sea": np.random.default_rng(99).normal(-31.0, 1.0, 50_000),
        "targets": np.where(np.arange(50_000) % 10, -20.0, 25.0),
        "bright": np.full(50_000, 12.0),
    }[absurd]
    before = group_range(bands)
    after = group_range([*bands, MeasuredBand(histogram_db(strange.astype(np.float32)), 1.2)])
    assert abs(after.lo_db - before.lo_db) < 0.5
    assert abs(after.hi_db - before.hi_db) < 0.5


def test_what_several_scenes_have_stays_in_the_range():
    bands = [_band(-12.0, 4.4, seed) for seed in range(45)]
    sea = [_band(-25.0, 4.4, seed) for seed in range(100, 105)]
    assert group_range([*bands, *sea]).lo_db < group_range(bands).lo_db - 8.0


def test_pictures_do_not_widen_the_range_of_measurements():
    measured, picture = [_band(-12.0, 9.0, 1)], [replace(_band(30.0, 1.0, 2), display=True)]
    alone = group_ranges({"A/IW/VV/sigma0": measured})
    beside = group_ranges({"A/IW/VV/sigma0": measured, "unknown/unknown/b1/display": picture})
    assert beside["A/IW/VV/sigma0"] == alone["A/IW/VV/sigma0"]


def test_scenes_of_unlike_looks_get_like_codes():
    means = []
    for looks in (1.0, 4.0, 16.0):
        db = 10 * np.log10(speckled_power((500, 500), looks, seed=7))
        means.append(encode(db - np.float32(enl_bias_db(looks, "sigma0")), -35.0, 10.0).mean())
    assert np.ptp(means) < 0.5  # codes; without the bias it is 2.4 dB or 13 codes


def test_bias_is_not_taken_off_pictures():
    assert enl_bias_db(1.0, "display") == 0.0
    assert enl_bias_db(None, "sigma0") == 0.0
    assert enl_bias_db(1.0, "sigma0") == round(log_bias_db(1.0), 4)
