"""Near pairs of hashes against the comparison of all with all."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from sarsense.dedup.hamming import MAX_RADIUS, block_bits, near_pairs, near_pairs_between
from sarsense.errors import SettingError


def _bits_apart(a: np.ndarray, b: np.ndarray) -> np.ndarray:
    """int64 (len(a), len(b))."""
    differing = a[:, None] ^ b[None]
    return np.unpackbits(differing[..., None].view(np.uint8), axis=-1).sum(axis=-1, dtype=np.int64)


def _pairs(chunks: object) -> list[tuple[int, int]]:
    return [pair for i, j in chunks for pair in zip(i.tolist(), j.tolist(), strict=True)]  # type: ignore[attr-defined]


def _related(rng: np.random.Generator, n: int, centres: int, flips: int) -> np.ndarray:
    """Hashes that lie up to `flips` bits from one of some centres, so that many are near and some are equal."""
    hashes = rng.integers(0, 2**64, centres, dtype=np.uint64)[rng.integers(0, centres, n)]
    for _ in range(flips):
        hashes = hashes ^ (np.uint64(1) << rng.integers(0, 64, n).astype(np.uint64))
    return hashes


related = st.builds(
    lambda seed, n, centres, flips: _related(np.random.default_rng(seed), n, centres, flips),
    st.integers(0, 2**32),
    st.integers(0, 120),
    st.integers(1, 40),
    st.integers(0, 5),
)


@given(related, st.integers(0, MAX_RADIUS), st.sampled_from([64, 48, 33]), st.integers(1, 50))
def test_near_pairs_are_those_of_brute_force_each_once(hashes: np.ndarray, radius: int, bits: int, chunk: int) -> None:
    counted = hashes & np.uint64(2**bits - 1)
    i, j = np.nonzero(np.triu(_bits_apart(counted, counted) <= radius, 1))
    found = _pairs(near_pairs(hashes, radius, bits, chunk=chunk))
    assert sorted(found) == sorted(zip(i.tolist(), j.tolist(), strict=True))


@given(related, related, st.integers(0, MAX_RADIUS), st.integers(1, 50))
def test_near_pairs_between_two_sets_are_those_of_brute_force(
    a: np.ndarray, b: np.ndarray, radius: int, chunk: int
) -> None:
    b = np.concatenate([b, a[::2]])
    i, j = np.nonzero(_bits_apart(a, b) <= radius)
    found = _pairs(near_pairs_between(a, b, radius, chunk=chunk))
    assert sorted(found) == sorted(zip(i.tolist(), j.tolist(), strict=True))


def test_of_many_planted_pairs_among_random_hashes_all_are_found_and_no_other() -> None:
    rng = np.random.default_rng(0)
    hashes = rng.integers(0, 2**64, 200_000, dtype=np.uint64)
    planted = rng.choice(len(hashes) // 2, 5_000, replace=False)
    copies = hashes[planted]
    for _ in range(3):
        copies = copies ^ (np.uint64(1) << rng.integers(0, 64, len(copies)).astype(np.uint64))
    hashes[100_000:105_000] = copies
    # chance: 2e10 pairs of which 2.4e-15 each are within 3 bits
    assert sorted(_pairs(near_pairs(hashes, 3))) == sorted(
        zip(planted.tolist(), range(100_000, 105_000), strict=True), key=lambda pair: pair
    )


def test_a_crowd_of_equal_hashes_is_joined_to_its_first_alone() -> None:
    crowd, other, near = np.uint64(12345), np.uint64(2**40 + 7), np.uint64(12345 ^ 1)
    hashes = np.array([other, crowd, near, *[crowd] * 3000], np.uint64)
    found = _pairs(near_pairs(hashes, 3, most=100))
    assert sorted(found) == [(1, 2), *((1, k) for k in range(3, 3003))]
    small = hashes[:53]
    assert len(_pairs(near_pairs(small, 3, most=100))) == len(_pairs(near_pairs(small, 3)))


def test_chunks_are_bounded_however_many_pairs_there_are() -> None:
    hashes = np.zeros(3000, np.uint64)
    sizes = [len(i) for i, _ in near_pairs(hashes, 0, chunk=10_000)]
    assert max(sizes) <= 10_000
    assert sum(sizes) == 3000 * 2999 // 2


@pytest.mark.parametrize("blocks", range(1, 9))
def test_blocks_cover_all_bits_once(blocks: int) -> None:
    covered = [bit for low, width in block_bits(blocks) for bit in range(low, low + width)]
    assert covered == list(range(64))


def test_hashes_and_radii_that_it_does_not_know_are_refused() -> None:
    with pytest.raises(SettingError, match="uint64"):
        next(near_pairs(np.zeros(3, np.int64), 3))
    with pytest.raises(SettingError, match="radius"):
        next(near_pairs(np.zeros(3, np.uint64), MAX_RADIUS + 1))
    with pytest.raises(SettingError, match="radius"):
        next(near_pairs_between(np.zeros(3, np.uint64), np.zeros(3, np.uint64), 3, bits=65))
