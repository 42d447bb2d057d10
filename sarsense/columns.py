"""Columns of Arrow tables to and from numpy, by their buffers. Arrow's own ways load pandas where it is installed,
which takes a third of a second: as long as it takes to count half a million rows.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import pyarrow as pa


def values(column: pa.ChunkedArray) -> tuple[np.ndarray, np.ndarray | None]:
    """Numbers as they lie in memory, and which of them are known (bool, (n,)); None: all."""
    kind = np.dtype(column.type.to_pandas_dtype())
    parts, known = [np.zeros(0, kind)], [np.zeros(0, bool)]
    for chunk in column.chunks:
        inside = slice(chunk.offset, chunk.offset + len(chunk))
        valid, data = chunk.buffers()
        parts.append(np.zeros(len(chunk), kind) if data is None else np.frombuffer(data, kind)[inside])
        if chunk.null_count:
            known.append(np.unpackbits(np.frombuffer(valid, np.uint8), bitorder="little")[inside].astype(bool))
        else:
            known.append(np.ones(len(chunk), bool))
    return np.concatenate(parts), np.concatenate(known) if column.null_count else None


def floats(column: pa.ChunkedArray) -> np.ndarray:
    """float64 (n,), NaN where nothing is known."""
    if pa.types.is_null(column.type):
        return np.full(len(column), np.nan)
    found, known = values(column)
    found = found.astype(np.float64)
    return found if known is None else np.where(known, found, np.nan)


def texts(names: Sequence[str | None], which: np.ndarray) -> pa.Array:
    """names[which] as an Arrow array of texts; which: int, (n,), all within the names."""
    known = np.array([name is not None for name in names], bool)
    raw = [b"" if name is None else name.encode("utf-8", "replace") for name in names]
    starts = np.concatenate([[0], np.cumsum([len(one) for one in raw], dtype=np.int64)]).astype(np.int32)
    valid = pa.py_buffer(np.packbits(known, bitorder="little"))
    dictionary = pa.Array.from_buffers(
        pa.string(), len(raw), [valid, pa.py_buffer(starts), pa.py_buffer(b"".join(raw))], int((~known).sum())
    )
    index = np.ascontiguousarray(which, np.int32)
    return dictionary.take(pa.Array.from_buffers(pa.int32(), len(index), [None, pa.py_buffer(index)]))
