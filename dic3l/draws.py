"""Randomness without state: every draw is a pure function of what it is for.

A draw is a word of the counter-based generator Philox4x32-10 (Salmon et al., "Parallel random numbers: as easy as
1, 2, 3", SC 2011), computed here in numpy over whole batches. The seed is the key; tile, epoch and position are the
counter. So nothing has to be restored at resume, and nothing depends on which thread or process drew it, on its
order, or on the version of numpy.
"""

from __future__ import annotations

import hashlib

import numpy as np

_ROUNDS = 10
_MULTIPLIERS = (np.uint64(0xD2511F53), np.uint64(0xCD9E8D57))
_WEYL = (0x9E3779B9, 0xBB67AE85)
_LOW = np.uint64(0xFFFFFFFF)
_SHIFT = np.uint64(32)
_WORDS = 4
"""32-bit words that one counter gives"""


def philox(counter: tuple[np.ndarray, np.ndarray, np.ndarray, np.ndarray], key: tuple[int, int]) -> np.ndarray:
    """Philox4x32-10 of each counter.

    counter: four uint64 arrays that broadcast to one shape S, each value below 2**32. key: two 32-bit integers.
    Returns uint64 (*S, 4), each value a 32-bit word.
    """
    a, b, c, d = np.broadcast_arrays(*counter)
    k0, k1 = key
    for _ in range(_ROUNDS):
        left, right = a * _MULTIPLIERS[0], c * _MULTIPLIERS[1]  # 32 x 32 -> 64 bits: cannot overflow
        a, b, c, d = (
            (right >> _SHIFT) ^ b ^ np.uint64(k0),
            right & _LOW,
            (left >> _SHIFT) ^ d ^ np.uint64(k1),
            left & _LOW,
        )
        k0, k1 = (k0 + _WEYL[0]) & 0xFFFFFFFF, (k1 + _WEYL[1]) & 0xFFFFFFFF
    return np.stack((a, b, c, d), axis=-1)


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
