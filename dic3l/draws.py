"""Randomness without state: every draw is a pure function of what it is for.

A draw is a word of the counter-based generator Philox4x32-10 (Salmon et al., "Parallel random numbers: as easy as
1, 2, 3", SC 2011), computed here over whole batches. The seed is the key; tile, epoch and position are the
counter. So nothing has to be restored at resume, and nothing depends on which thread or process drew it, on its
order, or on the version of numpy.
"""

from __future__ import annotations

import hashlib
from typing import Any

import numba
import numpy as np

njit: Any = numba.njit(cache=True, nogil=True)
ROUNDS = 10
MULTIPLIERS = 0xD2511F53, 0xCD9E8D57
WEYL = 0x9E3779B9, 0xBB67AE85
PIXELS_A_COUNTER = 8
"""numbers of 16 bits that one counter gives"""
_MULTIPLIER_0, _MULTIPLIER_1 = map(np.uint64, MULTIPLIERS)
_WEYL_0, _WEYL_1 = map(np.uint64, WEYL)
_LOW = np.uint64(0xFFFFFFFF)
_SHIFT = np.uint64(32)
_WORDS = 4
"""32-bit words that one counter gives"""


def philox(counter: tuple[np.ndarray, np.ndarray, np.ndarray, np.ndarray], key: tuple[int, int]) -> np.ndarray:
    """Philox4x32-10 of each counter.

    counter: four uint64 arrays that broadcast to one shape S, each value below 2**32. key: two 32-bit integers.
    Returns uint64 (*S, 4), each value a 32-bit word.
    """
    parts = np.broadcast_arrays(*counter)
    words = np.empty((parts[0].size, _WORDS), np.uint64)
    _rounds(
        *(np.array(part, np.uint64).reshape(-1) for part in parts),
        np.uint64(key[0]),
        np.uint64(key[1]),
        words,
    )
    return words.reshape(*parts[0].shape, _WORDS)


@njit
def _rounds(a, b, c, d, key0, key1, words):
    """One counter after another, compiled: twenty times as fast as whole arrays in numpy."""
    low, shift = np.uint64(0xFFFFFFFF), np.uint64(32)
    for i in range(len(a)):
        w, x, y, z, k0, k1 = a[i], b[i], c[i], d[i], key0, key1
        for _ in range(ROUNDS):
            left, right = w * _MULTIPLIER_0, y * _MULTIPLIER_1  # 32 x 32 -> 64 bits: cannot overflow
            w, x, y, z = (right >> shift) ^ x ^ k0, right & low, (left >> shift) ^ z ^ k1, left & low
            k0, k1 = (k0 + _WEYL_0) & low, (k1 + _WEYL_1) & low
        words[i, 0], words[i, 1], words[i, 2], words[i, 3] = w, x, y, z


def pixel_words(seed: int, count: int) -> np.ndarray:
    """Random numbers of 16 bits for the pixels of a tile, uint16 (count,), of a seed of 64 bits alone: the words of
    counters 0, 1, 2, ..., low half first. `dic3l.device_views.pixel_words` is the same on any device."""
    words = np.empty((-(-count // PIXELS_A_COUNTER), _WORDS), np.uint32)
    _pixel_rounds(np.uint64(seed & 0xFFFFFFFF), np.uint64(seed >> 32), words)
    return words.view("<u2").reshape(-1)[:count]


@njit
def _pixel_rounds(key0, key1, words):
    """The rounds of `_rounds` for counters (i, 0, 0, 0), in 32 bits, which several counters share a register for."""
    for i in range(len(words)):
        w, x, y, z = np.uint32(i), np.uint32(0), np.uint32(0), np.uint32(0)
        k0, k1 = np.uint32(key0), np.uint32(key1)
        for _ in range(ROUNDS):
            left, right = np.uint64(w) * _MULTIPLIER_0, np.uint64(y) * _MULTIPLIER_1
            w, x, y, z = (
                np.uint32(right >> _SHIFT) ^ x ^ k0,
                np.uint32(right),
                np.uint32(left >> _SHIFT) ^ z ^ k1,
                np.uint32(left),
            )
            k0, k1 = np.uint32(k0 + np.uint32(_WEYL_0)), np.uint32(k1 + np.uint32(_WEYL_1))
        words[i, 0], words[i, 1], words[i, 2], words[i, 3] = w, x, y, z


def _key(*parts: object) -> tuple[int, int]:
    """Two 32-bit integers from anything that prints."""
    digest = hashlib.blake2b("\0".join(map(str, parts)).encode(), digest_size=8).digest()
    return int.from_bytes(digest[:4], "little"), int.from_bytes(digest[4:], "little")


def tile_uniforms(seed: int, epochs: np.ndarray, ids: np.ndarray, stop: int, start: int = 0) -> np.ndarray:
    """Uniform numbers of each tile in each epoch: float64 (N, stop - start) in [0, 1), in steps of 2**-32.

    epochs: integers (N,) below 2**32; ids: uint64 (N,), the tiles' stable identities. Row i depends on
    (seed, epochs[i], ids[i]) alone; column j is number start + j, whatever else is asked for.
    """
    ids = np.asarray(ids, np.uint64)[:, None]
    epochs = np.asarray(epochs, np.uint64)[:, None]
    first = start // _WORDS
    blocks = np.arange(first, -(-stop // _WORDS), dtype=np.uint64)[None]
    words = philox((ids & _LOW, ids >> _SHIFT, epochs, blocks), _key("tile", seed))
    return words.reshape(len(ids), -1)[:, start - first * _WORDS : stop - first * _WORDS] * 2.0**-32


def permutation(seed: int, stream: str, index: int, n: int) -> np.ndarray:
    """A permutation of 0..n-1, int64 (n,), depending on (seed, stream, index, n) alone.

    stream names the purpose ('epoch', 'shuffle', ...), index counts within it. The order is that of n words of 64
    bits; of equal words, whose chance is n**2 / 2**65, the first goes first.
    """
    positions = np.arange(n, dtype=np.uint64)
    zero = np.zeros(1, np.uint64)
    words = philox((positions & _LOW, positions >> _SHIFT, zero, zero), _key(stream, seed, index))
    return np.argsort(words[:, 0] << _SHIFT | words[:, 1], kind="stable")
