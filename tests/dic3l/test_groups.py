"""How batches are divided: whole, in order, as equal as can be, and the same groups for any number of processes."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from dic3l.errors import ConfigError
from dic3l.groups import Division


@st.composite
def divisions(draw: st.DrawFn) -> Division:
    ranks, parts = draw(st.integers(1, 5)), draw(st.integers(1, 4))
    groups = draw(st.integers(ranks * parts, 40))
    return Division(draw(st.integers(2 * groups, 300)), groups, ranks, parts)


@given(divisions())
def test_ranks_and_parts_hold_every_image_once_in_the_groups_of_one_process(division):
    rows, sizes = [], []
    for rank in range(division.ranks):
        whole = division.rows(rank)
        for part in range(division.parts):
            here = division.part_rows(rank, part)
            rows += range(whole.start + here.start, whole.start + here.stop)
            sizes += division.group_sizes(rank, part)
            assert sum(division.group_sizes(rank, part)) == here.stop - here.start > 0
        assert division.counts()[rank] == whole.stop - whole.start
    assert rows == list(range(division.images))
    assert tuple(sizes) == Division(division.images, division.groups).group_sizes(0, 0)
    assert max(sizes) - min(sizes) <= 1 and min(sizes) >= 2


@pytest.mark.parametrize(
    ("ranks", "parts", "told"),
    [(5, 1, "at least one for each of the 5 processes, found 4"), (2, 3, "each of which takes 3 parts")],
)
def test_more_processes_or_parts_than_groups_are_refused(ranks, parts, told):
    with pytest.raises(ConfigError, match=told):
        Division(64, 4, ranks, parts)
