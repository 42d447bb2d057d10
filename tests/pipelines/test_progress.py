"""Progress where there is no terminal: lines, at moments and with numbers that can be reckoned by hand."""

from __future__ import annotations

import pytest

from pipelines.progress import ProgressLines, duration


class Clock:
    now = 1000.0

    def __call__(self) -> float:
        return self.now


@pytest.fixture
def clock() -> Clock:
    return Clock()


@pytest.fixture
def lines() -> list[str]:
    return []


def test_a_line_at_the_start_one_each_half_minute_and_one_at_the_end(clock: Clock, lines: list[str]):
    """100 scenes of 50 Mpx in 100 s: 50 Mpx/s, one a second."""
    with ProgressLines(lines.append, clock) as progress:
        progress.stage("measure", 100, cost=100 * 50e6)
        for _ in range(100):
            clock.now += 1
            progress.advance(50e6)
    assert lines == [
        "measure: 100 scenes",
        "measure: 30/100 scenes, 50 Mpx/s, 1 scenes/s, 1 min left",
        "measure: 60/100 scenes, 50 Mpx/s, 1 scenes/s, 40 s left",
        "measure: 90/100 scenes, 50 Mpx/s, 1 scenes/s, 10 s left",
        "measure: 100/100 scenes, 50 Mpx/s, 1 scenes/s, in 2 min",
    ]


def test_a_stage_of_another_name_says_what_its_items_are(clock: Clock, lines: list[str]):
    with ProgressLines(lines.append, clock) as progress:
        progress.stage("scene.tif", 2, things="windows")
        for _ in range(2):
            progress.advance()
    assert lines == ["scene.tif: 2 windows", "scene.tif: 2/2 windows, in 0 s"]


def test_time_left_is_reckoned_from_pixels_not_from_items(clock: Clock, lines: list[str]):
    """Half of the pixels lie in the last of eleven scenes."""
    progress = ProgressLines(lines.append, clock)
    progress.stage("cut", 11, cost=2e9)
    clock.now += 40
    for _ in range(10):
        progress.advance(1e8)
    assert lines[1] == "cut: 1/11 scenes, 2.5 Mpx/s, 0.025 scenes/s, 13 min left"
    clock.now += 30
    progress.advance(0.0)
    assert lines[-1].startswith("cut: 11/11 scenes, 14 Mpx/s")


def test_what_an_earlier_run_did_counts_as_done_and_not_as_pace(clock: Clock, lines: list[str]):
    progress = ProgressLines(lines.append, clock)
    progress.stage("measure", 1589, cost=400e6, there=1489)
    clock.now += 30
    progress.advance(40e6)
    assert lines == [
        "measure: 1,589 scenes, 1,489 of them done before",
        "measure: 1,490/1,589 scenes, 1.3 Mpx/s, 0.033 scenes/s, 4 min left",
    ]


def test_a_stage_without_costs_tells_items(clock: Clock, lines: list[str]):
    progress = ProgressLines(lines.append, clock)
    progress.stage("shard", 4)
    clock.now += 60
    progress.advance()
    assert lines[-1] == "shard: 1/4 shards, 0.017 shards/s, 3 min left"


def test_stages_of_nothing_and_of_a_moment_divide_by_nothing(clock: Clock, lines: list[str]):
    progress = ProgressLines(lines.append, clock)
    progress.stage("scan", 0)
    progress.stage("seal", 1)
    progress.advance()
    assert lines == ["scan: 0 files", "seal: 1 corpus", "seal: 1/1 corpus, in 0 s"]


@pytest.mark.parametrize(
    ("seconds", "told"), [(0.4, "0 s"), (59.4, "59 s"), (59.9, "60 s"), (185, "3 min"), (7500, "2 h 05 min")]
)
def test_durations(seconds: float, told: str):
    assert duration(seconds) == told
