"""Tiles without metadata that show the same ground: found by hashes of their windows, proved by their thumbnails.

Two tiles are candidates where a window about an anchor of one has nearly the hash of one of the other (which also says
by how much they are shifted), or where the hashes of the whole tiles are near. They are duplicates where their
thumbnails correlate over the ground that both show: as they are, and again without their broad features, because any
two shores correlate in these. Only other speckle, gain, offset, compression and shift are looked through. What two
dates of one place share is looked through as well: for imagery that says where and when, footprints are the test.

Flat tiles are not compared: speckle alone decides their hashes. `cap_flat` limits their share instead. What is kept
does not depend on the order of tiles, on workers or on arrival: the smaller key is kept.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from hashlib import blake2b

import cv2
import numpy as np

from sarsense.dedup.fingerprint import ANCHOR_BITS, ANCHORS, Fingerprint, njit, vertex
from sarsense.dedup.hamming import near_pairs
from sarsense.errors import SettingError

RADIUS = 3
"""bits in which the hashes of two windows, or of two whole tiles, may differ to make a candidate. Of 12 common
anchors of two tiles under new speckle (shifts of 3 to 40 pixels of 512), 7 do at one look, 10 at four"""
MIN_CORRELATION = 0.85
"""of two thumbnails over the ground that both show. Copies under new speckle that the hashes find reach 0.94"""
MIN_DETAIL = 0.85
"""of the same without features broader than _BROAD and with strong ones cut. Copies reach 0.87 (most 0.93 and more);
different places, at whichever shift suits them best, 0.37 (simulated farmland) and 0.62 (Sentinel-1); chips of one kind
of vehicle, where blocks of 4 pixels leave the target alone to see, 0.86"""
MIN_OVERLAP = 0.5
"""share of the tile that both show"""

_BROAD = 4.0
"""standard deviation of the Gaussian mean that is subtracted for the second test, thumbnail pixels"""
_STRONG = 2.0
"""times the median of a thumbnail's details, to which larger ones are cut"""
_MOST = 64
"""equal hashes of windows that are compared each with each; of more, the first with each other"""
_MOVES = 3
"""steps of one thumbnail pixel in which the best shift is looked for from that of the anchors"""


@dataclass(frozen=True)
class Fingerprints:
    """The fingerprints of n tiles of one size, by attribute: 210 bytes a tile beside the thumbnails."""

    perceptual_hash: np.ndarray
    """uint64 (n,)"""
    structure: np.ndarray
    """float32 (n,), dB"""
    flat: np.ndarray
    """bool (n,)"""
    anchors: np.ndarray
    """uint64 (n, ANCHORS)"""
    positions: np.ndarray
    """int16 (n, ANCHORS, 2), pixels of the tile; -1 where there is none"""
    thumbnails: np.ndarray
    """uint8 (n, h, w); a memory map will do, of which two rows a candidate are read"""
    block: int
    """pixels of a tile along one of its thumbnail (`block_side` of the tile's shape)"""

    @classmethod
    def of(cls, prints: Sequence[Fingerprint], block: int) -> Fingerprints:
        """Those of tiles in this order. All of one size."""
        shapes = {one.thumbnail.shape for one in prints}
        if len(shapes) > 1:
            raise SettingError(f"fingerprints: tiles of one size expected, thumbnails of {sorted(shapes)} found")
        side = next(iter(shapes), (0, 0))
        return cls(
            np.array([one.perceptual_hash for one in prints], np.uint64),
            np.array([one.structure for one in prints], np.float32),
            np.array([one.flat for one in prints], bool),
            np.array([one.anchors for one in prints], np.uint64).reshape(-1, ANCHORS),
            np.array([one.positions for one in prints], np.int16).reshape(-1, ANCHORS, 2),
            np.array([one.thumbnail for one in prints], np.uint8).reshape(-1, *side),
            block,
        )

    def __len__(self) -> int:
        return len(self.perceptual_hash)


@dataclass(frozen=True)
class Pairs:
    """Perceptual duplicates among n tiles; arrays of one length, by first and second."""

    first: np.ndarray
    """int64, index of a tile"""
    second: np.ndarray
    """int64, index of another, above `first`"""
    correlation: np.ndarray
    """float32, the smaller of the two correlations over the ground that both show"""
    shift: np.ndarray
    """float32 (m, 2): what lies at (row, column) in the first lies at (row, column) - shift in the second, pixels;
    to about half a block"""

    def __len__(self) -> int:
        return len(self.first)


def perceptual_pairs(prints: Fingerprints) -> Pairs:
    """All pairs of tiles that are perceptual duplicates; flat ones are in none.

    Where more than 64 windows have one equal hash, each is compared to the first of them alone (by index: with settled
    tiles first and keys in order, that is the one `resolve` keeps). Memory beside the prints: 40 bytes an anchor, 30
    bytes for each way in which a duplicate was found.
    """
    found = [_verified(prints, *chunk) for chunk in _candidates(prints)]
    table = np.concatenate([np.empty(0, _FOUND), *found])
    table = table[np.lexsort((table["dx"], table["dy"], -table["correlation"], table["second"], table["first"]))]
    pairs = np.stack([table["first"], table["second"]])
    best = table[np.concatenate([[True], (pairs[:, 1:] != pairs[:, :-1]).any(axis=0)])] if len(table) else table
    shift = np.stack([best["dy"], best["dx"]], axis=1) * np.float32(prints.block)
    return Pairs(best["first"].astype(np.int64), best["second"].astype(np.int64), best["correlation"], shift)


def correlations(
    first: np.ndarray, second: np.ndarray, shift: tuple[int, int]
) -> tuple[float, float, tuple[float, float]]:
    """Of two thumbnails, uint8 (h, w), at the best shift near `shift`: correlation, that of their details, the shift.

    Shifts are in thumbnail pixels, the best one to a part of them: what lies at p in the first lies at p - shift in the
    second. Correlations are -1 where both show less than MIN_OVERLAP of a tile.
    """
    a, b = _detail(first), _detail(second)
    dy, dx = shift
    around = np.full((3, 3), -1.0)
    part = np.zeros(2)
    for _ in range(_MOVES):
        for move in np.ndindex(3, 3):
            around[move] = _correlation(a, b, first, second, dy + move[0] - 1, dx + move[1] - 1, MIN_OVERLAP)
        row, column = divmod(int(np.argmax(around)), 3)
        dy, dx = dy + row - 1, dx + column - 1
        if row == 1 and column == 1:
            part[:] = vertex(*around[:, 1]), vertex(*around[1])
            break
    images = first.astype(np.float32), second.astype(np.float32)
    whole = _correlation(*images, first, second, dy, dx, MIN_OVERLAP)
    return whole, float(around.max()), (dy + float(part[0]), dx + float(part[1]))


def resolve(pairs: Pairs, keys: Sequence[str], settled: np.ndarray | None = None) -> np.ndarray:
    """int64 (n,): for each tile, the index of the kept tile for which it is dropped, or -1 where it is kept itself.

    Tiles are taken by key, settled ones (bool (n,): those of a corpus that is there) before all others; each is kept
    unless it is a duplicate of one kept before: of several, of that with the smallest key. Settled ones are always
    kept. So no two kept tiles are duplicates, but for settled ones. The rule knows no order but that of the keys.
    """
    n = len(keys)
    fixed = np.zeros(n, bool) if settled is None else settled
    partners: dict[int, list[int]] = {}
    for i, j in zip(pairs.first.tolist(), pairs.second.tolist(), strict=True):
        partners.setdefault(i, []).append(j)
        partners.setdefault(j, []).append(i)
    kept_for = np.full(n, -1, np.int64)
    rank = {tile: (not fixed[tile], keys[tile]) for tile in partners}
    for tile in sorted(partners, key=rank.__getitem__):
        if fixed[tile]:
            continue
        before = [other for other in partners[tile] if rank[other] < rank[tile] and kept_for[other] < 0]
        if before:
            kept_for[tile] = min(before, key=rank.__getitem__)
    return kept_for


def cap_flat(
    keys: Sequence[str], flat: np.ndarray, share: float, seed: int = 0, settled: np.ndarray | None = None
) -> np.ndarray:
    """bool (n,): the flat tiles to drop so that flat ones are at most `share` of what stays.

    keys, flat: of all tiles that stay otherwise. A hash of seed and key says which go, so that the same ones go
    whatever the order, and a larger corpus keeps all that a smaller one with as many others kept. Settled tiles stay,
    also where they alone are more than the share. Raises SettingError.
    """
    if not 0.0 <= share <= 1.0:
        raise SettingError(f"--max-flat: a share from 0 to 1 expected, {share:g} found")
    dropped = np.zeros(len(keys), bool)
    if share == 1.0:
        return dropped
    fixed = np.zeros(len(keys), bool) if settled is None else settled
    others = int((~flat).sum())
    # not floor(share * others / (1 - share)): 19 others and 0.05 are one flat tile, whatever the rounding
    allowed = math.floor(share * others / (1.0 - share) + 1e-9)
    loose = np.flatnonzero(flat & ~fixed).tolist()
    room = max(allowed - int((flat & fixed).sum()), 0)
    loose.sort(key=lambda tile: (_draw(keys[tile], seed), keys[tile]))
    dropped[loose[room:]] = True
    return dropped


def _draw(key: str, seed: int) -> bytes:
    return blake2b(f"{seed}:{key}".encode(), digest_size=8).digest()


# ---------------------------------------------------------------------------------------------- candidates


def _candidates(prints: Fingerprints) -> Iterator[tuple[np.ndarray, np.ndarray, np.ndarray]]:
    """Chunks of i, j (int64) and shift (int64 (m, 2), thumbnail pixels)."""
    structured = np.flatnonzero(~prints.flat)
    for a, b in near_pairs(prints.perceptual_hash[structured], RADIUS, most=_MOST):
        yield structured[a], structured[b], np.zeros((len(a), 2), np.int64)
    # rows of the flattened anchors: 16 times as many as tiles, so that bytes count
    there = np.flatnonzero((prints.positions[:, :, 0] >= 0) & ~prints.flat[:, None])
    positions = prints.positions.reshape(-1, 2)
    height, width = prints.thumbnails.shape[1:]
    for a, b in near_pairs(prints.anchors.reshape(-1)[there], RADIUS, ANCHOR_BITS, _MOST):
        a, b = there[a], there[b]
        i, j = a // ANCHORS, b // ANCHORS
        moved = positions[a].astype(np.float64) - positions[b]
        shift = np.rint(moved / prints.block).astype(np.int64)
        overlap = (1 - np.abs(shift[:, 0]) / height) * (1 - np.abs(shift[:, 1]) / width)
        wanted = (i != j) & (overlap >= MIN_OVERLAP)
        yield i[wanted], j[wanted], shift[wanted]


# -------------------------------------------------------------------------------------------- verification


_FOUND = np.dtype([("first", "u4"), ("second", "u4"), ("correlation", "f4"), ("dy", "f4"), ("dx", "f4")])


def _verified(prints: Fingerprints, i: np.ndarray, j: np.ndarray, shift: np.ndarray) -> np.ndarray:
    """_FOUND (m,): the candidates of a chunk whose thumbnails correlate. Of equal ones, one is looked at."""
    i, j, shift = np.minimum(i, j), np.maximum(i, j), np.where((i < j)[:, None], shift, -shift)
    found = []
    for first, second, dy, dx in np.unique(np.column_stack([i, j, shift]), axis=0).tolist():
        whole, detail, best = correlations(
            np.asarray(prints.thumbnails[first]), np.asarray(prints.thumbnails[second]), (dy, dx)
        )
        if whole >= MIN_CORRELATION and detail >= MIN_DETAIL:
            found.append((first, second, min(whole, detail), *best))
    return np.array(found, _FOUND)


def _detail(thumbnail: np.ndarray) -> np.ndarray:
    """float32: a thumbnail without its broad features, and its strong ones cut to _STRONG times the middling.

    Else one target decided: chips of different vehicles on grass correlate up to 0.98 with one another.
    """
    image, valid = thumbnail.astype(np.float32), thumbnail > 0
    broad = np.asarray(cv2.GaussianBlur(image, (0, 0), _BROAD, borderType=cv2.BORDER_REFLECT))
    if not valid.all():
        weight = cv2.GaussianBlur(valid.astype(np.float32), (0, 0), _BROAD, borderType=cv2.BORDER_REFLECT)
        broad /= np.maximum(np.asarray(weight), np.float32(1e-3))
    detail = (image - broad) * valid
    size = np.abs(detail[valid])
    middling = float(np.partition(size, len(size) // 2)[len(size) // 2]) if len(size) else 0.0
    return np.clip(detail, -_STRONG * middling, _STRONG * middling)


@njit
def _correlation(
    a: np.ndarray, b: np.ndarray, a_valid: np.ndarray, b_valid: np.ndarray, dy: int, dx: int, least: float
) -> float:
    """Of a[p] and b[p - (dy, dx)] where both are valid (not 0); -1 where these are less than `least` of the image."""
    height, width = a.shape
    n, sa, sb, saa, sbb, sab = 0, 0.0, 0.0, 0.0, 0.0, 0.0
    for y in range(max(0, dy), min(height, height + dy)):
        for x in range(max(0, dx), min(width, width + dx)):
            if a_valid[y, x] != 0 and b_valid[y - dy, x - dx] != 0:
                p, q = np.float64(a[y, x]), np.float64(b[y - dy, x - dx])
                n += 1
                sa += p
                sb += q
                saa += p * p
                sbb += q * q
                sab += p * q
    if n < least * height * width:
        return -1.0
    va, vb = saa - sa * sa / n, sbb - sb * sb / n
    return (sab - sa * sb / n) / math.sqrt(va * vb) if va > 0 and vb > 0 else -1.0
