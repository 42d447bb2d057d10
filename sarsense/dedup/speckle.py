"""One acquisition or two? The test that only radar has: speckle is the fingerprint of an acquisition.

Two passes over one place share the ground and not the speckle; two products of one pass share both, whatever became of
grid, gain or terrain in between. So the fine grain of both images is registered and correlated where the ground is
calmest. Of independent speckle nothing is left there but what texture still correlates,

    rho = var(ln R) / (var(ln R) + psi1(L))                                       (R: ground, L: looks)

and 1 - r, the share that both do not have in common, is what speckle alone adds: 1 - rho. One acquisition leaves a
small part of that, which interpolation has spoilt. `CORRELATED` bounds r, `UNSHARED` that part, and each catches what
the other lets through. Measured on 682 pairs of 192 to 512 pixels at true or nominal looks, 8 bits, maps 5 px wrong:

    one acquisition                                             least r   greatest (1 - r) / (1 - expected)
      other gain; cropped; shifted                                1.00      0.01
      warped by 0 to 15 degrees, both warped; bi-, cubic, dB      0.90      0.11
      warped by nearest neighbour                                 0.90      0.16
      1.3, 2, 3 x the spacing; 2 x 2 averages                     0.90      0.37
      0.5 and 0.7 x the spacing                                   0.97      0.15
      locally stretched, by 2 to 7 per cent                       0.89      0.24
    two                                                        greatest r   least of those with r > 0.85
      simulated passes, L = 1 to 50, warped, 2 x the spacing      0.98      0.75
      Sentinel-1, 12 days apart, desert hills, the same           0.90      0.67     (0.29 where r <= 0.83)
      texture alone, gamma of 1.5 to 10, L = 1 to 16              0.95      1.07

Knows arrays alone: no scenes, no catalogue. Knows not: other polarisations of one pass (partly correlated); passes so
coherent that they keep most of their speckle (a tandem); copies that were thinned out without averaging, of which it
finds those with texture or many looks only; looks overstated by 2 cost copies at 3 x the spacing, understated by 2 (or
estimated on a tile that has no calm ground) repeat passes over rough ground may pass for one.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from functools import lru_cache

import cv2
import numpy as np
from scipy.special import polygamma

from sarsense.speckle.statistics import DB

CORRELATED = 0.88
"""least correlation of the grain of one acquisition: repeat passes of a desert, which keep part of their speckle, have
less; copies that were resampled with any care have more"""
UNSHARED = 0.4
"""most that one acquisition leaves of the share (1 - expected) by which independent speckle differs"""
MANY_LOOKS = 100.0
"""assumed where looks are not known: no common product has more, and more looks let texture explain more"""
WORKING_SIDE = 512
"""pixels of the coarser grid, from the middle of the overlap, that are looked at: more add cost and no certainty"""

_INNER, _OUTER = 0.7, 2.0
"""sigma in pixels of the coarser grid: finer grain than the inner does not outlive interpolation, coarser
than the outer is ground rather than speckle"""
_FIRST, _AGAIN = 64, ((32, 2), (24, 2))
"""side in pixels of the blocks that are registered first; sides of those after, and how far each may still move"""
_OUTLIER = 3.0
"""pixels from the median of its neighbours at which a block's shift is not believed"""
_CELL = 16
"""side of the cells in which ground is calm or not"""
_CALM, _FEWEST = 0.25, 12
"""share of the cells, calmest first, in which speckle is compared; the fewest that will do"""
_FILTERED = 0.1
"""of the variance that speckle of the stated looks would have: with less, speckle was filtered away"""
_QUANTISED = 0.25
"""most that steps between codes may hold of the variance"""
_ATTAINABLE = 0.05
"""1 - r of careful copies: where independent speckle would leave no more than this, nothing can be told"""


@dataclass(frozen=True)
class SpeckleTest:
    """What was found; `correlation` is 0 and `expected` 1 where nothing could be compared."""

    correlation: float
    """of the log-speckle of both at the registered place, -1 to 1"""
    expected: float
    """what texture and the search for the best place allow independent speckle there, 0 to 1"""
    shift: tuple[float, float]
    """(x, y) found beyond the map, in pixels of B: the median of all blocks"""
    pixels: int
    """of the coarser grid that were compared"""
    same: bool | None
    """one acquisition; None: cannot be told, as too few pixels are valid, the speckle was filtered, the codes are too
    coarse, or texture alone would explain the correlation"""


@dataclass(frozen=True)
class _Image:
    """Grain of one image and what speckle and codes would make of it."""

    log: np.ndarray
    """float32 H x W, ln of power, smoothed to the grain of the coarser grid; NaN where hardly a pixel is valid"""
    speckle: float
    """variance that speckle of its looks leaves in the grain"""
    steps: float
    """variance that the steps between codes leave there"""


def same_speckle(
    a: np.ndarray,
    b: np.ndarray,
    step_db: tuple[float, float],
    looks: tuple[float | None, float | None],
    to_b: np.ndarray,
    search: int = 8,
) -> SpeckleTest:
    """Whether two images of a place hold one speckle, that is: are one acquisition.

    a, b: uint8 or uint16 codes, H x W each, 0 no data, others equal steps of `step_db` dB; gain and offset do not
    matter. The lowest and the highest code are taken for clipped and left out. looks: equivalent number of looks of
    each; None where unknown: then little more than copies on one grid are told. Too many looks are the safe error.
    to_b: float (2, 3), (x, y) in pixels of A (0 at the edge of the first) to those of B, right within `search` pixels
    of the coarser grid everywhere. Swapping a and b (and inverting to_b) gives the same verdict. Raises ValueError
    where an argument has another shape or type.

    1. Both are smoothed in power to the grain of the coarser grid, and what is local is taken off the logarithm.
    2. Blocks are registered, each for itself as terrain moves them, coarse first; their shifts, cleared of outliers,
       make a field, and the finer image is sampled once through map and field.
    3. In the calmest quarter of the cells r is compared with what the variance beyond speckle allows.
    """
    to_b = np.asarray(to_b, np.float64)
    _check(a, b, step_db, looks, to_b, search)
    finer = float(np.sqrt(abs(np.linalg.det(to_b[:, :2]))))
    # A is the coarser one from here on; between equals the one that sorts first, so that a swap changes nothing
    swapped = finer < 1 if abs(finer - 1) > 1e-6 else (b.shape, b.tobytes()) < (a.shape, a.tobytes())
    if swapped:
        a, b, step_db, looks = b, a, (step_db[1], step_db[0]), (looks[1], looks[0])
    scale = max(finer, 1 / finer)
    to_fine = _between_centres(cv2.invertAffineTransform(to_b) if swapped else to_b)
    parts = _parts_to_compare(a.shape, b.shape, to_fine, search)
    if parts is None:
        return _untold(0)
    coarse_part, fine_part = parts
    start = [part.start for part in (*coarse_part[::-1], *fine_part[::-1])]
    to_fine[:, 2] += to_fine[:, :2] @ start[:2] - start[2:]

    sigma = float(np.sqrt((_INNER * scale) ** 2 + (scale**2 - 1) / 12))  # of a pixel of the coarser grid, and _INNER
    coarse = _image(a[coarse_part], step_db[0], looks[0], _INNER, _OUTER)
    fine = _image(b[fine_part], step_db[1], looks[1], sigma, _OUTER * scale)
    grain, sampled, valid, moved = _register(coarse, fine, to_fine, search)
    verdict = _compare(grain, sampled, valid, coarse, fine, search)
    # what lies at x of the coarser grid was found at x + moved: seen from the finer one, the map is off the other way
    shift = -moved if swapped else to_fine[:, :2] @ moved
    return replace(verdict, shift=(float(shift[0]), float(shift[1])))


# ----------------------------------------------------------------------------------------------- from codes to grain


def _image(codes: np.ndarray, step_db: float, looks: float | None, inner: float, outer: float) -> _Image:
    """inner, outer: standard deviations in pixels of this grid, between which the grain lies."""
    step = step_db / DB
    valid = ((codes > 1) & (codes < np.iinfo(codes.dtype).max)).astype(np.float32)
    log = codes.astype(np.float32) * np.float32(step)
    middle = float(log[valid > 0].mean()) if valid.any() else 0.0
    # averages of power, as processors form them; the middle keeps exp in range
    power = np.exp(np.clip(log - middle, -40, 40)) * valid
    weight = cv2.GaussianBlur(valid, (0, 0), inner, borderType=cv2.BORDER_REFLECT_101)
    power = cv2.GaussianBlur(power, (0, 0), inner, borderType=cv2.BORDER_REFLECT_101)
    # single pixels that are missing, clipped ones above all, are made up for by their neighbours
    known = weight >= 0.5
    averaged, kept = _gains(inner, outer)
    return _Image(
        log=np.where(known, np.log(np.maximum(power, 1e-12) / np.where(known, weight, 1)), np.float32(np.nan)),
        speckle=kept * float(polygamma(1, (looks or MANY_LOOKS) / averaged)),
        steps=kept * averaged * step**2 / 12,
    )


@lru_cache(maxsize=64)
def _gains(inner: float, outer: float) -> tuple[float, float]:
    """Variance of white noise that averaging with sigma `inner` leaves, and the share of it that taking off the mean
    with sigma `outer` leaves."""
    averaged, local = _kernels(inner, outer)
    return float((averaged**2).sum()), float((local**2).sum() / (averaged**2).sum())


@lru_cache(maxsize=1)
def _independent_share() -> float:
    """Independent samples in a pixel of white noise's grain: 1 / sum of its squared autocorrelation (by Parseval)."""
    power = np.abs(np.fft.fft2(_kernels(_INNER, _OUTER)[1])) ** 2
    return float(power.mean() ** 2 / (power**2).mean())


def _kernels(inner: float, outer: float) -> tuple[np.ndarray, np.ndarray]:
    reach = int(np.ceil(5 * (inner + outer)))
    impulse = np.zeros((2 * reach + 1, 2 * reach + 1))
    impulse[reach, reach] = 1
    averaged = cv2.GaussianBlur(impulse, (0, 0), inner, borderType=cv2.BORDER_CONSTANT)
    return averaged, averaged - cv2.GaussianBlur(averaged, (0, 0), outer, borderType=cv2.BORDER_CONSTANT)


def _grain(log: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """What a smoothed logarithm (NaN: not known) holds that is local, float32, 0 where not known; and 1 where known."""
    known = np.isfinite(log)
    valid = known.astype(np.float32)
    filled = log if known.all() else np.where(known, log, np.float32(0))
    mean = cv2.GaussianBlur(filled, (0, 0), _OUTER, borderType=cv2.BORDER_REFLECT_101)
    if filled is not log:
        weight = cv2.GaussianBlur(valid, (0, 0), _OUTER, borderType=cv2.BORDER_REFLECT_101)
        mean /= np.maximum(weight, np.float32(1e-6))
    return (filled - mean) * valid, valid


# ------------------------------------------------------------------------------------------------------ registration


def _register(
    coarse: _Image, fine: _Image, to_fine: np.ndarray, search: int
) -> tuple[np.ndarray, np.ndarray, np.ndarray, np.ndarray]:
    """Grain of the coarser image, grain of the finer one at the same places, where both are valid (bool), and the
    median shift (x, y) beyond the map, pixels of the coarser grid."""
    shape = coarse.log.shape
    grain, valid = _grain(coarse.log)
    x, y = np.meshgrid(np.arange(shape[1], dtype=np.float32), np.arange(shape[0], dtype=np.float32))
    sampled, sampled_valid = _grain(_sample(fine.log, to_fine, x, y))
    moved = np.zeros(2)
    for block, reach in ((_FIRST, search), *_AGAIN):
        field = _without_outliers(*_block_shifts(grain, valid, sampled, sampled_valid, block, reach))
        moved += np.median(field.reshape(-1, 2), axis=0)
        shift = _spread(field, block, shape)
        x, y = x + shift[..., 0], y + shift[..., 1]
        sampled, sampled_valid = _grain(_sample(fine.log, to_fine, x, y))
    return grain, sampled, (valid > 0) & (sampled_valid > 0), moved


def _sample(log: np.ndarray, to_fine: np.ndarray, x: np.ndarray, y: np.ndarray) -> np.ndarray:
    """The finer image at places (float32 x, y) of the coarser grid, cubic; NaN where one of the 16 pixels is."""
    at_x, at_y = (np.float32(m[0]) * x + np.float32(m[1]) * y + np.float32(m[2]) for m in to_fine)
    return cv2.remap(log, at_x, at_y, cv2.INTER_CUBIC, borderMode=cv2.BORDER_CONSTANT, borderValue=(np.nan,) * 4)


def _block_shifts(
    grain: np.ndarray, valid: np.ndarray, sampled: np.ndarray, sampled_valid: np.ndarray, block: int, reach: int
) -> tuple[np.ndarray, np.ndarray]:
    """Where each block of the grain is found in the other: float32 (rows, columns, 2) shifts (x, y) in pixels, and
    bool (rows, columns): whether it was looked for, as half of it is valid in both."""
    rows, columns = (max(side // block, 1) for side in grain.shape)
    shared = cv2.resize((valid * sampled_valid)[: rows * block, : columns * block], (columns, rows), interpolation=3)
    padded = cv2.copyMakeBorder(sampled, reach, reach, reach, reach, cv2.BORDER_CONSTANT)
    shifts, known = np.zeros((rows, columns, 2), np.float32), np.zeros((rows, columns), bool)
    for row, column in np.argwhere(shared >= 0.5):
        top, left = row * block, column * block
        template = grain[top : top + block, left : left + block]
        place = padded[top : top + block + 2 * reach, left : left + block + 2 * reach]
        shifts[row, column] = _peak(cv2.matchTemplate(place, template, cv2.TM_CCORR_NORMED))
        known[row, column] = True
    return shifts, known


def _peak(surface: np.ndarray) -> tuple[float, float]:
    """(x, y) of the highest place from the middle, to parts of a pixel by a parabola along each axis."""
    _, highest, _, (x, y) = cv2.minMaxLoc(surface)
    height, width = surface.shape
    return (
        x - width // 2 + (_vertex(surface[y, x - 1], highest, surface[y, x + 1]) if 0 < x < width - 1 else 0.0),
        y - height // 2 + (_vertex(surface[y - 1, x], highest, surface[y + 1, x]) if 0 < y < height - 1 else 0.0),
    )


def _vertex(before: float, middle: float, after: float) -> float:
    curvature = before - 2 * middle + after
    return float(np.clip((before - after) / (2 * curvature), -0.5, 0.5)) if curvature < 0 else 0.0


def _without_outliers(shifts: np.ndarray, known: np.ndarray) -> np.ndarray:
    """Shifts, with those more than _OUTLIER off the median of their neighbours, or not known, replaced by it."""
    if not known.any():
        return np.zeros_like(shifts)
    values = np.where(known[..., None], shifts, np.nan)
    rows, columns = known.shape
    padded = np.pad(values, ((1, 1), (1, 1), (0, 0)), constant_values=np.nan)
    near = np.stack([padded[i : i + rows, j : j + columns] for i in range(3) for j in range(3)])
    near.sort(axis=0)  # NaN last
    count = np.isfinite(near).sum(axis=0)
    low, high = (np.take_along_axis(near, np.maximum(n, 0)[None] // 2, 0)[0] for n in (count - 1, count))
    median = np.where(count > 0, (low + np.where(count > 0, high, low)) / 2, np.median(shifts[known], axis=0))
    far = ~(np.abs(values - median).max(axis=-1, keepdims=True) <= _OUTLIER)
    return np.where(far, median, values).astype(np.float32)


def _spread(field: np.ndarray, block: int, shape: tuple[int, ...]) -> np.ndarray:
    """Shifts of blocks -> of pixels, float32 H x W x 2, linear between the middles of blocks."""
    rows, columns = (((np.arange(side) + 0.5) / block - 0.5).astype(np.float32) for side in shape)
    x, y = np.meshgrid(columns, rows)
    return cv2.remap(field, x, y, cv2.INTER_LINEAR, borderMode=cv2.BORDER_REPLICATE)


# -------------------------------------------------------------------------------------------------------- comparison


def _compare(
    grain: np.ndarray, sampled: np.ndarray, valid: np.ndarray, coarse: _Image, fine: _Image, search: int
) -> SpeckleTest:
    one, other, both, count = _cell_sums(grain, sampled, valid)
    if len(count) < _FEWEST:
        return _untold(int(count.sum()))
    # the calmest by both, not by their product: texture that one image lost must not pass for calm
    rank = np.maximum(np.argsort(np.argsort(one / count)), np.argsort(np.argsort(other / count)))
    calm = np.argsort(rank, kind="stable")[: max(int(_CALM * len(count)), _FEWEST)]
    pixels = int(count[calm].sum())
    variances = np.array([one[calm].sum(), other[calm].sum()]) / pixels
    speckle, steps = np.array([coarse.speckle, fine.speckle]), np.array([coarse.steps, fine.steps])
    if (variances * _QUANTISED <= steps).any() or (variances < _FILTERED * speckle).any():
        return _untold(pixels)
    correlation = float(both[calm].sum() / pixels / np.sqrt(variances.prod()))
    # ground is the same in both, so that which holds more beyond speckle says how much may correlate
    texture = max(0.0, 1.0 - float((speckle / variances).min()))
    positions = (2 * max(search, 1) + 1) ** 2
    luck = min(0.5, float(np.sqrt(2 * np.log(positions) / (_FIRST**2 * _independent_share()))))
    expected = texture + (1 - texture) * luck
    return SpeckleTest(correlation, expected, (0.0, 0.0), pixels, _verdict(correlation, expected))


def _verdict(correlation: float, expected: float) -> bool | None:
    if correlation < CORRELATED:
        return False
    if 1 - correlation <= UNSHARED * (1 - expected):
        return True
    return None if UNSHARED * (1 - expected) < _ATTAINABLE else False


def _cell_sums(grain: np.ndarray, sampled: np.ndarray, valid: np.ndarray) -> tuple[np.ndarray, ...]:
    """Of the cells that are valid to nine tenths: sums of the squares of one and the other, of their product, and the
    number of pixels; float64 each."""
    rows, columns = (side // _CELL for side in grain.shape)

    def sums(values: np.ndarray) -> np.ndarray:
        cells = (values * valid)[: rows * _CELL, : columns * _CELL].reshape(rows, _CELL, columns, _CELL)
        return cells.sum(axis=(1, 3), dtype=np.float64).ravel()

    count = sums(np.ones(grain.shape, np.float32))
    whole = count >= 0.9 * _CELL**2
    return (*(sums(product)[whole] for product in (grain * grain, sampled * sampled, grain * sampled)), count[whole])


def _untold(pixels: int) -> SpeckleTest:
    return SpeckleTest(0.0, 1.0, (0.0, 0.0), pixels, None)


# ------------------------------------------------------------------------------------------------------------- grids


def _between_centres(to_b: np.ndarray) -> np.ndarray:
    """The map for coordinates that are 0 in the middle of the first pixel, as cv2 counts."""
    to_b = to_b.copy()
    to_b[:, 2] += to_b[:, :2] @ (0.5, 0.5) - 0.5
    return to_b


def _parts_to_compare(
    coarse: tuple[int, ...], fine: tuple[int, ...], to_fine: np.ndarray, search: int
) -> tuple[tuple[slice, slice], tuple[slice, slice]] | None:
    """(rows, columns) of either grid: up to WORKING_SIDE pixels in the middle of the overlap, and what they need of the
    finer image. None where there is no overlap."""
    from_fine = cv2.invertAffineTransform(to_fine)
    coarse_part = _bounds(from_fine, (slice(0, fine[0]), slice(0, fine[1])), coarse, 0)
    if coarse_part is None:
        return None
    middle = [slice(*_middle(part)) for part in coarse_part]
    scale = np.sqrt(abs(np.linalg.det(to_fine[:, :2])))
    fine_part = _bounds(to_fine, (middle[0], middle[1]), fine, int(np.ceil((search + 8) * scale)))
    return None if fine_part is None else ((middle[0], middle[1]), fine_part)


def _middle(part: slice) -> tuple[int, int]:
    start = part.start + max(part.stop - part.start - WORKING_SIDE, 0) // 2
    return start, min(part.stop, start + WORKING_SIDE)


def _bounds(
    transform: np.ndarray, part: tuple[slice, slice], shape: tuple[int, ...], margin: int
) -> tuple[slice, slice] | None:
    """(rows, columns) of a grid of this shape that the corners of a part of another one span; None where none."""
    rows, columns = part
    corners = np.array([(x, y, 1) for x in (columns.start, columns.stop) for y in (rows.start, rows.stop)], float)
    x, y = transform @ corners.T
    found = []
    for values, side in ((y, shape[0]), (x, shape[1])):
        first, last = max(int(values.min()) - margin, 0), min(int(np.ceil(values.max())) + margin, side)
        if last - first < _CELL:
            return None
        found.append(slice(first, last))
    return found[0], found[1]


def _check(
    a: np.ndarray,
    b: np.ndarray,
    step_db: tuple[float, float],
    looks: tuple[float | None, float | None],
    to_b: np.ndarray,
    search: int,
) -> None:
    for codes in (a, b):
        if codes.ndim != 2 or codes.dtype not in (np.uint8, np.uint16):
            raise ValueError(f"speckle: codes H x W, uint8 or uint16, expected, {codes.dtype} {codes.shape} found")
    if min(step_db) <= 0 or any(given is not None and not given > 0 for given in looks):
        raise ValueError(f"speckle: steps and looks above 0 expected, {step_db} and {looks} found")
    if to_b.shape != (2, 3) or not np.isfinite(to_b).all() or abs(np.linalg.det(to_b[:, :2])) < 1e-6:
        raise ValueError(f"speckle: an affine map (2, 3) that can be inverted expected, {to_b.tolist()} found")
    if search < 0:
        raise ValueError(f"speckle: a search of 0 pixels or more expected, {search} found")
