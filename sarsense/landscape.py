"""Invented land cover: rivers, lakes, woods, parcels, settlements and roads on a pixel grid.

Knows where things lie and what they are; knows nothing of radar (`simulate.py` does). Shapes come from smooth random
fields with power-law spectra, rivers from sine-generated curves (Langbein and Leopold, 1966), parcels from jittered
grids inside warped Voronoi blocks. Sizes are in pixels and suit 10 m: a parcel is 100 to 600 m, a road 10 to 30 m.
Everything is drawn from the generator that is passed in; nothing else is random.
"""

from __future__ import annotations

from dataclasses import dataclass
from enum import IntEnum

import cv2
import numpy as np
from scipy import fft
from scipy.ndimage import gaussian_filter1d


class Cover(IntEnum):
    """The code of each class in a label raster. 0 is outside the swath."""

    NO_DATA = 0
    WATER = 1
    BARE = 2
    CROPS = 3
    FOREST = 4
    MEADOW = 5
    BUILT = 6
    ROAD = 7


@dataclass(frozen=True)
class Landscape:
    """The ground of one scene; arrays are H x W."""

    cover: np.ndarray
    """uint8, values of `Cover` but 0"""
    parcel: np.ndarray
    """uint64, a hash: the same in all pixels of a parcel, a wood, a lake"""
    height: np.ndarray
    """float32, unit-variance relief, smooth"""
    street: np.ndarray
    """bool, streets inside settlements (their cover is BUILT)"""
    bridge: np.ndarray
    """bool, roads over water (their cover is ROAD)"""
    points: np.ndarray
    """float64 (n, 3): row, col, strength in dB of strong single scatterers: buildings, pylons, farms, boats"""


def random_field(rng: np.random.Generator, size: int, exponent: float, outer: float) -> np.ndarray:
    """A Gaussian field, float32 size x size, mean 0, variance 1, with a power-law spectrum.

    `exponent`: of the power spectrum (larger is smoother); `outer`: the scale in pixels above which it is flat.
    """
    side = next(side for side in range(size, 2 * size) if _has_small_factors(side))
    spectrum = np.asarray(fft.rfft2(rng.standard_normal((side, side), dtype=np.float32)))
    fy, fx = fft.fftfreq(side).astype(np.float32)[:, None], fft.rfftfreq(side).astype(np.float32)[None]
    spectrum = spectrum * (fy**2 + fx**2 + np.float32(1 / outer**2)) ** np.float32(-exponent / 4)
    spectrum[0, 0] = 0
    field = np.asarray(fft.irfft2(spectrum, s=(side, side)), np.float32)[:size, :size]
    return np.asarray((field - field.mean()) / max(float(field.std()), 1e-6), np.float32)


def _has_small_factors(n: int) -> bool:
    """Whether 2, 3 and 5 divide n down to 1: the sides on which FFTs are fast."""
    for factor in (2, 3, 5):
        while n % factor == 0:
            n //= factor
    return n == 1


def hashed_uniform(keys: np.ndarray, stream: int) -> np.ndarray:
    """A number in [0, 1) for each uint64 key, float64: the same key, the same number."""
    return (mix(keys, stream) >> np.uint64(11)).astype(np.float64) * 2.0**-53


def mix(keys: np.ndarray, salt: int | np.ndarray) -> np.ndarray:
    """SplitMix64's finaliser over `keys` (uint64) salted by `salt`."""
    with np.errstate(over="ignore"):
        z = keys + np.asarray(salt).astype(np.uint64) * np.uint64(0x9E3779B97F4A7C15) + np.uint64(0x632BE59BD9B4E019)
        z = (z ^ (z >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
        z = (z ^ (z >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
        return z ^ (z >> np.uint64(31))


def _salt(rng: np.random.Generator) -> int:
    return int(rng.integers(1 << 62))


def draw_landscape(rng: np.random.Generator, size: int) -> Landscape:
    """The ground of a scene of size x size pixels; each has its own mixture of plain, wood, water and towns."""
    wooded, lakes = rng.uniform(0.08, 0.5), rng.uniform(0.004, 0.05)
    height = random_field(rng, size, 4.4, 260)
    river_distance, river_width = _rivers(rng, size, height)
    river = river_distance < river_width / 2
    block, block_edge, parcel = _parcels(rng, size)

    cover = _farmland(rng, parcel)
    wood_field = 0.8 * random_field(rng, size, 3.2, 220) + 0.7 * height
    wood = cv2.medianBlur((wood_field > np.quantile(wood_field, 1 - wooded)).astype(np.uint8), 5) > 0
    clearing = hashed_uniform(parcel, 3) < 0.06
    spinney = hashed_uniform(parcel, 4) < 0.035
    cover[(wood & ~clearing) | (spinney & ~wood)] = Cover.FOREST
    banks = river_distance - river_width / 2
    rough = random_field(rng, size, 3.4, 40)
    cover[(banks < 26 + 16 * rough) & (cover != Cover.FOREST)] = Cover.MEADOW
    cover[banks < 2 + 6 * rough] = Cover.FOREST

    lake = _lakes(rng, size, lakes, height)
    towns = _place_towns(rng, size, lake | river)
    built, street = _settlements(rng, size, towns)
    cover[built] = Cover.BUILT
    main, lanes = _roads(rng, size, towns, block_edge, random_field(rng, size, 3.0, 120))
    cover[(lanes & (cover != Cover.FOREST) & ~built) | main] = Cover.ROAD
    bridge = _short_parts(main & river & ~lake, 12 + 4 * float(river_width.max()))
    cover[(river & ~bridge) | lake] = Cover.WATER

    water = cover == Cover.WATER
    whole = mix(np.where(wood, np.uint64(1), np.uint64(2)), block)
    parcel = np.where(cover == Cover.FOREST, whole, parcel)
    parcel = np.where(water, mix(lake.astype(np.uint64), _salt(rng)), parcel)
    street = street & (cover == Cover.BUILT)
    points = _points(rng, size, cover, lanes | main, bridge, street)
    return Landscape(cover, parcel, height, street, bridge, points)


# ------------------------------------------------------------------------------------------------------- water


def _rivers(rng: np.random.Generator, size: int, height: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Distance to the nearest watercourse and its width there, in pixels."""
    wavelength = rng.uniform(90, 200)
    angle = rng.uniform(0, 2 * np.pi)
    reach = 0.75 * size
    middle = size / 2 + rng.uniform(-0.18, 0.18, 2) * size
    ends = np.array([[np.cos(angle), np.sin(angle)], [-np.cos(angle), -np.sin(angle)]]) * reach + middle
    river = _meander(rng, ends[0], ends[1], wavelength)
    courses = [(river, wavelength / 13)]
    for _ in range(int(rng.integers(1, 3 + size // 700))):
        mouth = river[int(rng.uniform(0.2, 0.8) * len(river))]
        way = rng.uniform(0, 2 * np.pi)
        spring = mouth + reach * rng.uniform(0.4, 1.0) * np.array([np.cos(way), np.sin(way)])
        courses.append((_meander(rng, spring, mouth, rng.uniform(30, 60)), rng.uniform(1.3, 2.8)))
    distance = np.full((size, size), np.inf, np.float32)
    width = np.ones((size, size), np.float32)
    vary = 1 + 0.18 * random_field(rng, size, 3.0, 60)
    for course, wide in courses:
        canvas = np.ones((size, size), np.uint8)
        _draw(canvas, course, 0, 1)
        if canvas.all():
            continue
        from_course = cv2.distanceTransform(canvas, cv2.DIST_L2, cv2.DIST_MASK_PRECISE)
        nearer = from_course - wide / 2 < distance - width / 2
        distance, width = np.where(nearer, from_course, distance), np.where(nearer, wide * vary, width)
    return distance, width


def _meander(rng: np.random.Generator, start: np.ndarray, end: np.ndarray, wavelength: float) -> np.ndarray:
    """A sine-generated curve from near `start` to `end`: float64 (n, 2), x and y."""
    length = float(np.hypot(*(end - start)))
    n = int(4 * length)
    if n < 8:
        return np.stack([start, end])
    phase = 2 * np.pi * np.cumsum(np.exp(0.3 * _walk(rng, n, wavelength))) / wavelength
    strength = np.clip(0.75 + 0.45 * _walk(rng, n, 3 * wavelength), 0.1, 1.5)
    heading = strength * np.sin(phase) + 0.4 * _walk(rng, n, 5 * wavelength)
    z = np.cumsum(np.exp(1j * heading))
    arrived = np.flatnonzero(np.abs(z) >= length)
    z = z[: arrived[0] + 1] if arrived.size else z
    # turned as a whole (and hardly scaled), so that it ends where it should
    z = z * complex(*(end - start)) / z[-1]
    return np.stack([z.real, z.imag], axis=1) + start


def _walk(rng: np.random.Generator, n: int, scale: float) -> np.ndarray:
    """Smooth noise along a line of n points, variance 1, that varies over `scale` points."""
    noise = gaussian_filter1d(rng.standard_normal(n), scale / 2, mode="wrap")
    return noise / max(float(noise.std()), 1e-9)


def _lakes(rng: np.random.Generator, size: int, share: float, height: np.ndarray) -> np.ndarray:
    field = random_field(rng, size, 4.0, 110) - 0.5 * height
    lake = (field > np.quantile(field, 1 - share)).astype(np.uint8)
    count, labels, stats, _ = cv2.connectedComponentsWithStats(lake, connectivity=4)
    large = np.zeros(count, bool)
    large[1:] = stats[1:, cv2.CC_STAT_AREA] >= 40
    return large[np.asarray(labels, np.intp)]


# -------------------------------------------------------------------------------------------------- parcels


def _parcels(rng: np.random.Generator, size: int) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Blocks of parcels (uint64), the lines between blocks (bool), and the hash of each pixel's parcel (uint64)."""
    warp = [(6 * random_field(rng, size, 4.2, 90)).astype(np.float32) for _ in range(2)]
    y, x = np.mgrid[:size, :size].astype(np.float32)
    margin = 48
    side = size + 2 * margin
    seeds = np.ones((side, side), np.uint8)
    count = max(4, int((side / 125) ** 2))
    seeds[tuple(rng.integers(0, side, (2, count)))] = 0
    _, nearest = cv2.distanceTransformWithLabels(seeds, cv2.DIST_L2, 5, labelType=cv2.DIST_LABEL_PIXEL)
    nearest = cv2.remap(
        nearest.astype(np.float32), x + warp[0] + margin, y + warp[1] + margin, cv2.INTER_NEAREST
    ).astype(np.int32)
    block = mix(nearest.astype(np.uint64), _salt(rng))

    orient = rng.uniform(0, np.pi, count + 1)
    wide = np.exp(rng.normal(np.log(18), 0.4, count + 1)).clip(8, 45)
    long = wide * rng.uniform(1.4, 3.8, count + 1)
    theta = orient[nearest].astype(np.float32)
    curve_x, curve_y = x + 0.35 * warp[0], y + 0.35 * warp[1]
    across = curve_x * np.cos(theta) + curve_y * np.sin(theta)
    along = -curve_x * np.sin(theta) + curve_y * np.cos(theta)
    strip = _jittered_cell(across / wide[nearest], block)
    row = mix(block, strip)
    field = _jittered_cell(along / long[nearest] + hashed_uniform(row, 1), row)
    edge = (nearest != np.roll(nearest, 1, 0)) | (nearest != np.roll(nearest, 1, 1))
    edge[0], edge[:, 0] = False, False
    return block, edge, mix(row, field)


def _jittered_cell(position: np.ndarray, key: np.ndarray) -> np.ndarray:
    """The cell (uint64) of a 1-D grid of unit pitch whose borders are moved by up to 0.7, each by its own amount."""
    cell = np.floor(position)
    index = cell.astype(np.int64).view(np.uint64)
    before = position - cell < 0.7 * hashed_uniform(mix(key, index), 2)
    with np.errstate(over="ignore"):
        return index - before.astype(np.uint64)


def _farmland(rng: np.random.Generator, parcel: np.ndarray) -> np.ndarray:
    """BARE, CROPS or MEADOW for each parcel, in the shares of a season; uint8."""
    bare, meadow = rng.uniform(0.12, 0.35), rng.uniform(0.15, 0.4)
    draw = hashed_uniform(parcel, 5)
    cover = np.full(parcel.shape, Cover.CROPS, np.uint8)
    cover[draw < bare + meadow] = Cover.MEADOW
    cover[draw < bare] = Cover.BARE
    return cover


# ---------------------------------------------------------------------------------------- towns and roads


def _place_towns(rng: np.random.Generator, size: int, water: np.ndarray) -> np.ndarray:
    """x, y, radius of each settlement, the largest first: float64 (n, 3)."""
    count = max(1, int(rng.poisson(9 * (size / 1024) ** 2)))
    largest = rng.uniform(45, 110) * min(1.0, size / 700)
    towns: list[tuple[float, float, float]] = []
    for index in range(count):
        radius = largest if index == 0 else float(np.exp(rng.normal(np.log(15), 0.4)))
        for _ in range(20):
            x, y = rng.uniform(0.04, 0.96, 2) * size
            apart = all(np.hypot(x - a, y - b) > radius + r + 25 for a, b, r in towns)
            if apart and not water[int(y), int(x)]:
                towns.append((float(x), float(y), radius))
                break
    return np.array(towns).reshape(-1, 3)


def _settlements(rng: np.random.Generator, size: int, towns: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Built-up ground and the streets in it (bool)."""
    y, x = np.mgrid[:size, :size].astype(np.float32)
    ragged = 0.30 * random_field(rng, size, 3.0, 40)
    built = np.zeros((size, size), bool)
    street = np.zeros((size, size), bool)
    for town_x, town_y, radius in towns:
        stretch, turn, spacing = rng.uniform(1.0, 1.9), rng.uniform(0, np.pi), rng.uniform(7, 12)
        reach = int(3 * radius) + 8
        top, left = max(int(town_y) - reach, 0), max(int(town_x) - reach, 0)
        part = np.s_[top : int(town_y) + reach, left : int(town_x) + reach]
        u = (x[part] - town_x) * np.cos(turn) + (y[part] - town_y) * np.sin(turn)
        v = -(x[part] - town_x) * np.sin(turn) + (y[part] - town_y) * np.cos(turn)
        town = 1 - np.hypot(u / stretch, v * stretch**0.5) / radius + ragged[part] > 0.25
        built[part] |= town
        bend = 1.5 * ragged[part] * spacing
        street[part] |= town & (((u + bend) % spacing < 1.1) | ((v + bend) % (1.6 * spacing) < 1.1))
    built = cv2.medianBlur(built.astype(np.uint8), 5) > 0
    return built, street & built


def _roads(
    rng: np.random.Generator, size: int, towns: np.ndarray, block_edge: np.ndarray, field: np.ndarray
) -> tuple[np.ndarray, np.ndarray]:
    """Main roads (1 to 3 pixels wide) and country lanes (1 pixel) as bool."""
    canvas = np.zeros((size, size), np.uint8)
    gates = [_gate(size, side, rng.uniform(0.1, 0.9)) for side in range(4)]
    nodes = np.array([*towns[:, :2], *gates])
    for a, b in _spanning_tree(nodes):
        _draw(canvas, _bent(rng, nodes[a], nodes[b], 0.07), 1, int(rng.integers(1, 3)))
    # a motorway keeps away from the nodes and bends little
    side = int(rng.integers(0, 2))
    ends = [_gate(size, side + 2 * end, rng.uniform(0.15, 0.85)) for end in range(2)]
    _draw(canvas, _bent(rng, ends[0], ends[1], 0.05), 1, 3)
    return canvas > 0, block_edge & (field > 0.1)


def _short_parts(mask: np.ndarray, most: float) -> np.ndarray:
    """The connected parts of a mask that have at most this many pixels."""
    _, labels, stats, _ = cv2.connectedComponentsWithStats(mask.astype(np.uint8), connectivity=8)
    return mask & (stats[:, cv2.CC_STAT_AREA] <= most)[np.asarray(labels, np.intp)]


def _gate(size: int, side: int, share: float) -> np.ndarray:
    """A point (x, y) just outside side 0 (west), 1 (north), 2 (east) or 3 (south)."""
    at = share * size
    return np.array([(-5.0, at), (at, -5.0), (size + 5.0, at), (at, size + 5.0)][side])


def _bent(rng: np.random.Generator, start: np.ndarray, end: np.ndarray, bend: float) -> np.ndarray:
    """A gently curved line between two points: float64 (n, 2)."""
    length = float(np.hypot(*(end - start)))
    n = max(int(length / 2), 4)
    s = np.linspace(0, 1, n)
    aside = np.array([start[1] - end[1], end[0] - start[0]])
    sway = bend * (rng.normal() * np.sin(np.pi * s) + 0.5 * rng.normal() * np.sin(2 * np.pi * s))
    sway += 0.02 * _walk(rng, n, n / 6 + 2) * np.sin(np.pi * s)
    return start + s[:, None] * (end - start) + sway[:, None] * aside


def _spanning_tree(nodes: np.ndarray) -> list[tuple[int, int]]:
    """The edges of the shortest tree over points (n, 2): Prim's algorithm, n is small."""
    between = np.hypot(*(nodes[:, None] - nodes[None]).transpose(2, 0, 1))
    inside, outside, edges = [0], set(range(1, len(nodes))), []
    while outside:
        a, b = min(((a, b) for a in inside for b in sorted(outside)), key=lambda ab: between[ab])
        edges.append((a, b))
        inside.append(b)
        outside.discard(b)
    return edges


def _draw(canvas: np.ndarray, line: np.ndarray, value: int, width: int) -> None:
    shift = 4
    points = np.rint(line * 2**shift).astype(np.int32)
    cv2.polylines(canvas, [points.reshape(-1, 1, 2)], False, value, width, cv2.LINE_8, shift)


# -------------------------------------------------------------------------------------- strong scatterers


def _points(
    rng: np.random.Generator,
    size: int,
    cover: np.ndarray,
    roads: np.ndarray,
    bridge: np.ndarray,
    street: np.ndarray,
) -> np.ndarray:
    """Single scatterers, float64 (n, 3): row, col, dB of the power in their brightest pixel."""
    built = cover == Cover.BUILT
    # houses stand along streets; some quarters are dense, others industrial with few, large roofs
    houses = built & (cv2.dilate(street.astype(np.uint8), np.ones((3, 3), np.uint8)) > 0) & ~street
    dense = random_field(rng, size, 2.6, 28)
    open_water = cv2.erode((cover == Cover.WATER).astype(np.uint8), np.ones((9, 9), np.uint8)) > 0
    lists = [
        _scatter(rng, houses, 1 / 45, 1.0, 4.0),
        _scatter(rng, houses & (dense > 0.6), 1 / 16, 4.0, 4.0),
        _scatter(rng, built & (dense < -1.1), 1 / 90, 15.0, 4.0),
        _scatter(rng, houses, 1 / 1500, 16.0, 4.0),
        _scatter(rng, cv2.dilate(roads.astype(np.uint8), np.ones((7, 7), np.uint8)) > 0, 1 / 3500, 3.0, 4.0),
        _scatter(rng, open_water, 1.5e-4, 4.0, 4.0),
        _scatter(rng, bridge, 0.3, 1.0, 3.0),
    ]
    # a power line: pylons in a row, straight across the land
    start, end = _gate(size, 0, rng.uniform()), _gate(size, 2, rng.uniform())
    count = max(int(np.hypot(*(end - start)) / 34), 2)
    pylons = start + np.linspace(0, 1, count)[:, None] * (end - start)
    pylons = pylons[(pylons >= 0).all(1) & (pylons <= size - 1).all(1)]
    dry = cover[pylons[:, 1].astype(int), pylons[:, 0].astype(int)] != Cover.WATER
    lists.append(np.stack([*pylons[dry].T[::-1], rng.normal(1.0, 2.0, int(dry.sum()))], axis=1))
    return np.concatenate(lists)


def _scatter(rng: np.random.Generator, where: np.ndarray, density: float, mean_db: float, std_db: float) -> np.ndarray:
    rows, cols = np.nonzero(where)
    chosen = np.flatnonzero(rng.random(rows.size) < density)
    strength = rng.normal(mean_db, std_db, chosen.size)
    within = rng.uniform(-0.5, 0.5, (2, chosen.size))
    return np.stack([rows[chosen] + within[0], cols[chosen] + within[1], strength], axis=1)
