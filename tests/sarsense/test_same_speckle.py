"""One acquisition twice, or two looks at one place: told by speckle, on scenes of known truth and on real ones."""

from __future__ import annotations

import time
from functools import lru_cache
from pathlib import Path

import cv2
import numpy as np
import pytest
import rasterio

from sarsense.codes import encode
from sarsense.dedup.speckle import SpeckleTest, same_speckle
from sarsense.simulate import draw_truth, speckled
from sarsense.speckle import lee

LO, HI = -35.0, 15.0
STEP = (HI - LO) / 254
IDENTITY = np.array([[1.0, 0, 0], [0, 1, 0]])
SIDE = 320


def codes(power: np.ndarray, bits: int = 8) -> np.ndarray:
    db = 10 * np.log10(np.where(power > 0, power, np.nan))
    return encode(db.astype(np.float32), LO, HI, bits)


def judge(
    a: np.ndarray, b: np.ndarray, looks: tuple[float | None, float | None], to_b: np.ndarray = IDENTITY
) -> SpeckleTest:
    return same_speckle(codes(a), codes(b), (STEP, STEP), looks, to_b)


@lru_cache(maxsize=8)
def truth(index: int):
    return draw_truth(3, index, SIDE)


def acquisition(index: int, looks: float, number: int = 0) -> np.ndarray:
    """Pass `number` over scene `index`: the same ground, its own speckle."""
    return speckled(truth(index), 1000 + number, index, "VV", looks)


def water(looks: float, seed: int, side: int = SIDE) -> np.ndarray:
    return np.random.default_rng(seed).gamma(looks, 0.01 / looks, (side, side)).astype(np.float32)


def off(to_b: np.ndarray, x: float, y: float) -> np.ndarray:
    """A map that is wrong by so many pixels of B."""
    return to_b + np.array([[0, 0, x], [0, 0, y]])


def warped(
    power: np.ndarray, spacing: float, degrees: float, interpolation: int = cv2.INTER_LINEAR
) -> tuple[np.ndarray, np.ndarray]:
    """A copy at `spacing` times the pixel, turned, in a smooth factor of +-3 dB as of terrain flattening; its map."""
    size = tuple(int(side / spacing) for side in power.shape[::-1])
    turn = cv2.getRotationMatrix2D((0, 0), degrees, 1 / spacing)[:, :2]
    middle = np.array(size) / 2 + (0.3, 0.7) - turn @ (np.array(power.shape[::-1]) / 2)
    to_b = np.column_stack([turn, middle])
    centres = off(to_b, *(turn @ (0.5, 0.5) - 0.5))
    source = power if spacing <= 1 else cv2.GaussianBlur(power, (0, 0), np.sqrt((spacing**2 - 1) / 12))
    copy = cv2.warpAffine(source, centres, size, flags=interpolation)
    whole = cv2.warpAffine((power > 0).astype(np.float32), centres, size) > 0.999
    y, x = np.mgrid[: size[1], : size[0]] / max(size)
    return np.where(whole, np.maximum(copy, 1e-3) * 10 ** (0.3 * np.sin(5 * x + 3 * y)), 0), to_b


def stretched(power: np.ndarray) -> np.ndarray:
    """Moved by terrain: up to 3 pixels, 3 per cent of stretch."""
    y, x = np.mgrid[: power.shape[0], : power.shape[1]].astype(np.float32)
    return cv2.remap(power, x + 3 * np.sin(x / 100 + y / 140).astype(np.float32), y, cv2.INTER_LINEAR)


def copies(power: np.ndarray, looks: float):
    """(kind, A, B, looks of B, map) of planted copies of one acquisition."""
    h, w = power.shape
    y, x = h // 20, w // 20
    yield "gain", power, 2 * power, looks, off(IDENTITY, 3, -4)
    yield "crop", power, power[y:-y, x:-x], looks, off(IDENTITY, -x + 2, -y - 5)
    yield "shift", power[40:, :-40], power[17 : h - 23, 37:], looks, off(IDENTITY, -37 + 1, 23 + 4)
    yield "average", power, cv2.resize(power, (w // 2, h // 2), interpolation=cv2.INTER_AREA), 4 * looks, IDENTITY / 2
    yield "stretch", power, stretched(power), looks, off(IDENTITY, 2, -2)
    for spacing, degrees in ((1.0, 0.0), (1.0, 3.0), (1.0, 15.0), (1.3, 7.0), (2.0, 7.0), (0.7, 7.0), (0.5, 7.0)):
        copy, to_b = warped(power, spacing, degrees)
        yield f"warp {spacing:g}", power, copy, looks * max(spacing, 1) ** 2, off(to_b, -3 / spacing, 4 / spacing)
    copy, to_b = warped(power, 1, 4, cv2.INTER_CUBIC)
    yield "cubic", power, copy, looks, off(to_b, 4, 4)


def repeats(first: np.ndarray, second: np.ndarray, looks: float):
    """(A, B, looks of B, map) of two passes, delivered alike and otherwise."""
    yield first, second, looks, off(IDENTITY, 2, -3)
    for spacing in (1.0, 2.0):
        copy, to_b = warped(second, spacing, 5)
        yield first, copy, looks * spacing**2, off(to_b, -2, 3)
    one, to_one = warped(first, 1, -3)
    other, to_other = warped(second, 1, 4)
    to_b = (np.vstack([to_other, (0, 0, 1)]) @ np.linalg.inv(np.vstack([to_one, (0, 0, 1)])))[:2]
    yield one, other, looks, to_b


def test_planted_copies_are_found_and_repeat_passes_never_taken_for_copies():
    found, planted, taken, missed = 0, 0, 0, []
    for looks in (1.0, 3.0, 4.4, 16.0):
        for index in (0, 1, 2):
            first = acquisition(index, looks)
            for kind, a, b, looks_b, to_b in copies(first, looks):
                verdict = judge(a, b, (looks, looks_b), to_b)
                planted, found = planted + 1, found + (verdict.same is True)
                missed += [] if verdict.same else [(kind, looks, index, verdict)]
            for a, b, looks_b, to_b in repeats(first, acquisition(index, looks, 1), looks):
                taken += judge(a, b, (looks, looks_b), to_b).same is True
    assert planted > 150
    assert found >= 0.98 * planted, missed
    assert taken == 0


def read(path: Path) -> np.ndarray:
    with rasterio.open(path) as dataset:
        return dataset.read(1)


def test_copies_of_real_acquisitions_are_found(real_data: Path):
    rtc = [10 ** (read(path) / 10) for path in sorted((real_data / "terramind-rtc/S1RTC").glob("*.tif"))]
    flood = 10 ** (read(next((real_data / "sen1floods11/sample/S1").glob("*.tif"))) / 10)
    slc = (np.load(real_data / "slc-complex-crop/test_image_data.npy").astype(np.float64) ** 2).sum(-1)
    desert = read(real_data / "s1-repeat-pass/amp_prm_vv.tif")[20:404, 100:484] ** 2
    tiles = [*((tile, 4.4) for tile in (*rtc, flood[:SIDE, :SIDE], desert)), (slc / slc.mean() / 10, 1.0)]
    verdicts = [
        (kind, judge(a, b, (looks, looks_b), to_b))
        for tile, looks in tiles
        for kind, a, b, looks_b, to_b in copies(np.nan_to_num(tile).astype(np.float32), looks)
    ]
    missed = [verdict for verdict in verdicts if verdict[1].same is not True]
    assert len(missed) <= 0.02 * len(verdicts), missed


@pytest.mark.parametrize("looks", [4.4, 8.8, None])
def test_a_real_repeat_pass_is_never_a_copy(real_data: Path, looks: float | None):
    first, second = (read(real_data / f"s1-repeat-pass/amp_{name}_vv.tif") ** 2 for name in ("prm", "sec"))
    compared = 0
    for top in range(0, 552 - 191, 120):
        for left in range(0, 673 - 191, 120):
            a, b = first[top : top + 192, left : left + 192], second[top : top + 192, left : left + 192]
            for one, other, looks_b, to_b in repeats(a, b, 1.0):
                verdict = judge(one, other, (looks, looks and looks * looks_b), to_b)
                assert verdict.same is not True, (top, left, verdict)
                compared += verdict.same is False
    assert compared > 30


@pytest.mark.filterwarnings("ignore::rasterio.errors.NotGeoreferencedWarning")
def test_real_crops_of_one_acquisition_are_one_and_the_shift_is_found(real_data: Path):
    one, other = (
        codes((read(real_data / f"gaofen3-quadpol/testA/{scene}_HH.tiff").astype(np.float32) / 1000) ** 2)
        for scene in (3, 4)
    )
    maps = {(x, y): off(IDENTITY, x, y) for x, y in ((-170, 0), (170, 0), (0, -170), (0, 170))}
    verdicts = {
        where: same_speckle(one, other, (STEP, STEP), (1.5, 1.5), off(to_b, 3, -5)) for where, to_b in maps.items()
    }
    same = [verdict for verdict in verdicts.values() if verdict.same]
    assert len(same) == 1
    assert same[0].correlation > 0.99
    assert same[0].shift == pytest.approx((-3, 5), abs=0.05)
    assert [verdict.same for verdict in verdicts.values()].count(False) == 3


@pytest.mark.parametrize("looks", [1.0, 4.4, 16.0])
def test_flat_water_is_told_by_speckle_alone(looks: float):
    first = water(looks, 1)
    copy, to_b = warped(first, 1, 5)
    assert judge(first, copy, (looks, looks), to_b).same is True
    verdict = judge(first, water(looks, 2), (looks, looks))
    assert verdict.same is False
    assert verdict.correlation < 0.3


def test_other_ground_is_another_acquisition():
    assert judge(acquisition(0, 4.4), acquisition(2, 4.4), (4.4, 4.4)).same is False


def test_texture_everywhere_is_not_taken_for_speckle():
    rng = np.random.default_rng(4)
    ground = rng.gamma(1.5, 0.1, (SIDE, SIDE)) + 1e-3
    first, second = (ground * rng.gamma(16, 1 / 16, ground.shape) for _ in range(2))
    verdict = judge(first, second, (16, 16))
    assert verdict.correlation > 0.8
    assert verdict.expected > verdict.correlation - 0.1
    assert verdict.same is not True


def test_swapping_the_images_changes_neither_verdict_nor_correlation():
    first = acquisition(1, 4.4)
    for second, to_b in (warped(first, 1, 7), warped(first, 2, 7), (acquisition(1, 4.4, 1), IDENTITY)):
        there = judge(first, second, (4.4, 5), off(to_b, 1, 2))
        back = judge(second, first, (5, 4.4), cv2.invertAffineTransform(off(to_b, 1, 2)))
        assert there.same is back.same
        assert there.correlation == pytest.approx(back.correlation, abs=1e-3)
        assert there == judge(first, second, (4.4, 5), off(to_b, 1, 2))


def test_shift_is_in_pixels_of_b_whichever_is_coarser():
    first = acquisition(1, 4.4)
    for spacing in (0.5, 1.0, 2.0):
        copy, to_b = warped(first, spacing, 7)
        verdict = judge(first, copy, (4.4, 4.4), off(to_b, 3 / spacing, -2 / spacing))
        assert verdict.shift == pytest.approx((-3 / spacing, 2 / spacing), abs=0.15)


def test_without_looks_a_copy_on_the_same_grid_is_told_and_a_repeat_is_not_taken_for_one():
    first = acquisition(1, 4.4)
    assert judge(first, first[16:, 16:], (None, None), off(IDENTITY, -14, -18)).same is True
    assert judge(first, acquisition(1, 4.4, 1), (None, None)).same is not True


def test_no_data_is_left_out():
    first = acquisition(3, 4.4)
    holes = first.copy()
    holes[::37, ::41] = 0
    holes[:100, :120] = 0
    verdict = judge(first, holes, (4.4, 4.4))
    assert verdict.same is True
    assert np.isfinite([verdict.correlation, verdict.expected, *verdict.shift]).all()
    assert judge(holes, acquisition(3, 4.4, 1), (4.4, 4.4)).same is False


def test_what_cannot_be_told_is_not_said():
    first = acquisition(1, 4.4)
    empty, coarse = np.zeros_like(first), codes(water(16.0, 1)) // 32 + 1
    untold = {
        "nothing valid": judge(first, empty, (4.4, 4.4)),
        "no overlap": judge(first, first, (4.4, 4.4), off(IDENTITY, 1000, 0)),
        "small": judge(first[:40, :40], first[:40, :40], (4.4, 4.4)),
        "constant": judge(first, np.full_like(first, 0.1), (4.4, 4.4)),
        "filtered": judge(water(4.4, 1), lee(water(4.4, 1), 4.4, 7), (4.4, 4.4)),
        "coarse": same_speckle(coarse, coarse, (32 * STEP, 32 * STEP), (16.0, 16.0), IDENTITY),
    }
    for why, verdict in untold.items():
        assert verdict.same is None, (why, verdict)
        assert np.isfinite([verdict.correlation, verdict.expected, *verdict.shift]).all()


def test_8_and_16_bits_of_one_acquisition_are_one():
    first = acquisition(1, 4.4)
    fine_step = (HI - LO) / 65534
    assert same_speckle(codes(first), codes(first, 16), (STEP, fine_step), (4.4, 4.4), IDENTITY).same is True


def test_what_is_no_pair_of_images_is_refused():
    tile = codes(water(4.4, 1, 64))
    for a, step, to_b in (
        (tile.astype(np.float32), STEP, IDENTITY),
        (tile[0], STEP, IDENTITY),
        (tile, 0.0, IDENTITY),
        (tile, STEP, 0 * IDENTITY),
    ):
        with pytest.raises(ValueError, match="speckle:"):
            same_speckle(a, tile, (step, step), (4.4, 4.4), to_b)


def test_a_pair_of_tiles_takes_no_longer_than_a_blink():
    tile = codes(water(4.4, 1, 512))
    same_speckle(tile, tile, (STEP, STEP), (4.4, 4.4), IDENTITY)
    start = time.thread_time()
    for _ in range(3):
        same_speckle(tile, tile, (STEP, STEP), (4.4, 4.4), IDENTITY)
    # 0.05 s on an idle core
    assert (time.thread_time() - start) / 3 < 0.2
