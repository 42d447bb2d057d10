"""Values of Arrow tables in numpy, against Arrow's own way."""

from typing import Any

import pyarrow as pa
from hypothesis import given
from hypothesis import strategies as st

from sarsense.columns import values

KINDS: dict[str, tuple[pa.DataType, Any]] = {
    "count": (pa.int64(), st.integers(-(2**63), 2**63 - 1)),
    "band": (pa.int32(), st.integers(-(2**31), 2**31 - 1)),
    "code": (pa.uint8(), st.integers(0, 255)),
    "lon": (pa.float64(), st.floats(allow_nan=False)),
    "level": (pa.float32(), st.floats(allow_nan=False, width=32)),
}


@st.composite
def tables(draw: st.DrawFn) -> pa.Table:
    rows = draw(st.integers(0, 6))
    columns = {
        name: pa.array(draw(st.lists(st.none() | some, min_size=rows, max_size=rows)), kind)
        for name, (kind, some) in KINDS.items()
    }
    table = pa.table(columns)
    start, stop = sorted((draw(st.integers(0, rows)), draw(st.integers(0, rows))))
    return pa.concat_tables([table.slice(start, stop - start), table.slice(0, draw(st.integers(0, rows)))])


@given(tables())
def test_values_are_those_of_arrow(table: pa.Table) -> None:
    for name in ("count", "band", "code", "lon", "level"):
        found, known = values(table[name])
        there = [True] * len(found) if known is None else known.tolist()
        assert [one if told else None for one, told in zip(found.tolist(), there, strict=True)] == table[
            name
        ].to_pylist()
