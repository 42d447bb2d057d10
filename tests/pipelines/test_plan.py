"""What a build will need, told before it: upper bounds that hold, and nothing written."""

from __future__ import annotations

import json
from collections import namedtuple
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from pipelines import needs
from pipelines.build import build
from pipelines.companions import CompanionFiles
from pipelines.entries import list_entries
from pipelines.messages import plan_lines
from pipelines.needs import Needs, needs_of, size_of
from pipelines.plan import Plan, plan
from pipelines.progress import Silent
from pipelines.runner import InlineRunner
from pipelines.speed import Speed
from pipelines.stages import scan_all
from sarsense.config import BuildConfig
from sarsense.errors import SarsenseError
from sarsense.simulate import simulate
from tests.conftest import speckled_power, write_raster
from tests.pipelines.chaos import CONFIG


@pytest.fixture(scope="module")
def scenes(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Three scenes of two polarisations, and a file that is no raster."""
    root = tmp_path_factory.mktemp("scenes")
    simulate(root, scenes=3, size=320, looks=4.0, seed=1)
    (root / "scenes" / "text_VV.tif").write_text("no raster at all\n")
    return root / "scenes"


def planned(sources: Path, out: Path, config: BuildConfig, workers: int = 0) -> Plan:
    return plan([str(sources)], out, config, workers, Silent(), None, CompanionFiles(), False)


def needed(sources: Path, config: BuildConfig, scratch: Path) -> Needs:
    """The part of the plan that measures no speed."""
    entries = list_entries([str(sources)], None)
    scan_all(entries, config, scratch, InlineRunner(), Silent())
    return needs_of(entries, config)


def size(folder: Path) -> int:
    return sum(path.stat().st_size for path in folder.rglob("*") if path.is_file())


class Largest(Silent):
    """The bytes under `.build` when each stage begins, at most."""

    def __init__(self, work: Path) -> None:
        self._work, self.bytes = work, 0

    def stage(self, name: str, *_: object) -> None:
        self.bytes = max(self.bytes, size(self._work))


@pytest.mark.parametrize(
    "changes",
    [
        {},
        {"stride": 32},
        {"bits": 16},
        {"content": "both"},
        {"bands": "stack", "polarisations": ("VV", "VH")},
        {"spacing": 15.0},
    ],
)
def test_a_build_needs_no_more_than_its_plan_says(scenes: Path, tmp_path: Path, changes: dict):
    config, out = replace(CONFIG, **changes), tmp_path / "corpus"
    told = needed(scenes, config, tmp_path / "scratch")
    largest = Largest(out / ".build")
    summary = build([str(scenes)], out, config, workers=0, progress=largest)
    side = 320 if config.spacing is None else 320 * 10 // 15
    along = (side - 64) // config.step + 1
    assert told.tiles == 3 * along**2 * (1 if config.bands == "stack" else 2)
    assert (told.files, told.usable, told.refused) == (4, 3, {"not a raster that GDAL knows": 1})
    assert told.pixels == pytest.approx(3 * 2 * side**2, rel=0.03)
    assert (told.prepared_pixels > 0) == (config.spacing is not None)
    cut = sum(summary.tiles.values()) + sum(summary.tiles_left_out.values())
    assert cut <= told.tiles and summary.shards <= told.shards
    made = size(out) - size(out / ".build") - size(out / "datasheet")
    small = 64 * 2**10  # tables and corpus.json have a size of their own, which counts for small corpora alone
    assert made <= told.corpus_bytes + small and largest.bytes <= told.temporary_bytes + 3 * small


def test_of_a_corpus_that_grows_the_new_files_alone_count(scenes: Path, tmp_path: Path):
    out = tmp_path / "corpus"
    build([str(scenes)], out, CONFIG, workers=0)
    more = tmp_path / "more"
    simulate(more, scenes=1, size=128, looks=4.0, seed=9)
    (more / "scenes" / "sim-000.tif").rename(scenes / "later.tif")
    try:
        before = {path: path.stat().st_mtime_ns for path in out.rglob("*")}
        found = planned(scenes, out, CONFIG)
        assert {path: path.stat().st_mtime_ns for path in out.rglob("*")} == before
    finally:
        (scenes / "later.tif").unlink()
    assert (found.files, found.known, found.needs.files, found.needs.tiles) == (5, 4, 1, 2 * 4)
    nothing = planned(scenes, out, CONFIG)
    assert nothing.needs.files == 0 and list(plan_lines(nothing))[-1] == "  nothing to build"


def test_the_plan_is_plain_values_and_says_what_was_measured(scenes: Path, tmp_path: Path):
    found = planned(scenes, tmp_path / "deep" / "corpus", CONFIG)
    assert not (tmp_path / "deep").exists()
    assert json.loads(json.dumps(found.to_json()))["needs"]["tiles"] == found.needs.tiles
    assert 1.0 < found.speed.measure_ns < 1e5 and 1.0 < found.speed.cut_ns < 1e5 and found.seconds > found.scan_seconds
    text = "\n".join(plan_lines(found))
    for words in ("150 tiles", "free on /", "time: about", "measured here:", "assumed:", "1 refused: not a raster"):
        assert words in text, text


def test_little_room_is_a_warning_and_too_little_an_error(scenes: Path, tmp_path: Path, monkeypatch):
    """Half of the upper bound is the limit; what an unfinished run has written is there already."""
    out = tmp_path / "corpus"
    most = needed(scenes, CONFIG, tmp_path / "scratch").disk_bytes
    monkeypatch.setattr("pipelines.plan.measure_speed", lambda config, out: Speed(1.0, 1.0, 1.0, None, None))
    usage = namedtuple("usage", "free")

    def with_room_for(share: float) -> Plan:
        monkeypatch.setattr(needs, "disk_usage", lambda path: usage(int(share * most)))
        return planned(scenes, out, CONFIG)

    assert (with_room_for(1.01).warning, with_room_for(1.01).refusal) == (None, None)
    assert "it may do" in (with_room_for(0.9).warning or "") and with_room_for(0.9).refusal is None
    assert "not enough for half of it; free the disk" in (with_room_for(0.4).refusal or "")
    with pytest.raises(SarsenseError, match="not enough for half of it"):
        build([str(scenes)], out, CONFIG, workers=0)
    (out / ".build" / "cut").mkdir()
    (out / ".build" / "cut" / "x.codes").write_bytes(bytes(int(0.2 * most)))
    assert with_room_for(0.4).refusal is None


def test_wide_scenes_make_large_workers(tmp_path: Path):
    """Strips are as wide as a scene."""
    for width in (1000, 30_000):
        db = 10 * np.log10(speckled_power((520, width), 4.0, 0))
        write_raster(tmp_path / str(width) / "a_VV.tif", db.astype(np.float32))
    narrow, wide = (needed(tmp_path / str(w), BuildConfig(), tmp_path).worker_bytes for w in (1000, 30_000))
    assert narrow < 5e8 and wide > narrow + 3e8


def test_sizes_are_told_in_two_digits():
    told = {121: "121 B", 5.46e10: "55 GB", 1234: "1.2 kB", 999.6: "1 kB", 9.96e6: "10 MB", 3e15: "3000 TB"}
    assert {count: size_of(count) for count in told} == told
