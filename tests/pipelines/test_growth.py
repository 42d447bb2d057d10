"""A corpus that grows: what is there stays to the byte, what comes is what a build from scratch would make of it."""

from __future__ import annotations

import hashlib
import json
import shutil
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import rasterio

from pipelines import output
from pipelines.build import build
from pipelines.merge import merge
from pipelines.progress import Silent
from sarsense.config import BuildConfig
from sarsense.corpus import Corpus, open_corpus
from sarsense.diff import compare
from sarsense.errors import CorpusError, SarsenseError
from sarsense.shards import TileReader
from sarsense.simulate import simulate
from sarsense.verify import verify_corpus
from tests.pipelines.small import content

CONFIG = BuildConfig(tile_size=64, val_share=0.3, cell_km=3.0)
OLD = Path(__file__).resolve().parents[1] / "data" / "format-2"


@pytest.fixture(scope="module")
def days(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Path]:
    """Three scenes in one folder, a fourth in another."""
    root = tmp_path_factory.mktemp("days")
    simulate(root / "sim", scenes=4, size=256, looks=4.0, seed=7)
    first, second = root / "first", root / "second"
    for folder, names in ((first, ("000", "001", "002")), (second, ("003",))):
        folder.mkdir()
        for name in names:
            shutil.copy(root / "sim" / "scenes" / f"sim-{name}.tif", folder)
    return first, second


@pytest.fixture(scope="module")
def before(days: tuple[Path, Path], tmp_path_factory: pytest.TempPathFactory) -> Path:
    out = tmp_path_factory.mktemp("before") / "corpus"
    build([str(days[0])], out, CONFIG, workers=0)
    return out


@pytest.fixture
def corpus(before: Path, tmp_path: Path) -> Path:
    return shutil.copytree(before, tmp_path / "corpus")


def tile_bytes(corpus: Corpus) -> dict[str, str]:
    """Key -> hash of the codes as they are read from the shards."""
    reader = TileReader(corpus)
    return {
        key: hashlib.sha256(reader.read(np.array([index])).tobytes()).hexdigest()
        for index, key in enumerate(reader.keys)
    }


def shard_bytes(root: Path) -> dict[str, bytes]:
    return {path.relative_to(root).as_posix(): path.read_bytes() for path in sorted(root.glob("*/*.tar"))}


def test_what_is_there_stays_and_what_comes_has_the_bytes_of_a_build_with_the_same_ranges(days, corpus, tmp_path):
    old, old_shards = open_corpus(corpus), shard_bytes(corpus)
    summary = build([str(days[0]), str(days[1])], corpus, CONFIG, workers=0)
    grown = open_corpus(corpus)
    assert not summary.already_built and verify_corpus(grown) == []
    assert shard_bytes(corpus).items() > old_shards.items()
    assert grown.manifest["groups"] == old.manifest["groups"]
    assert [step["digest"] for step in grown.manifest["growth"]] == [old.digest]
    rows = {row["key"]: row for row in grown.tiles().to_pylist()}
    assert all(rows[row["key"]] == row for row in old.tiles().to_pylist())
    build([str(days[0]), str(days[1])], tmp_path / "scratch", CONFIG, workers=0, stats_from=corpus)
    scratch = open_corpus(tmp_path / "scratch")
    assert tile_bytes(grown) == tile_bytes(scratch) and grown.digest == scratch.digest
    assert {row["key"]: row["split"] for row in scratch.tiles().to_pylist()} == {k: r["split"] for k, r in rows.items()}
    # and made anew, the same shards
    build([str(days[0]), str(days[1])], corpus, CONFIG, workers=0, anew="shards")
    assert shard_bytes(corpus) == shard_bytes(tmp_path / "scratch")
    assert verify_corpus(open_corpus(corpus)) == [] and open_corpus(corpus).manifest["growth"] == []


def test_the_new_sources_alone_do_and_a_second_time_nothing_happens(days, corpus):
    build([str(days[1])], corpus, CONFIG, workers=0)
    once = content(corpus)
    for sources in ([str(days[1])], [str(days[0])], [str(days[0]), str(days[1])]):
        assert build(sources, corpus, CONFIG, workers=0).already_built
    assert content(corpus) == once


def test_a_growth_killed_while_it_seals_is_ended_by_the_next_command(days, corpus, monkeypatch):
    whole = shutil.copytree(corpus, corpus.parent / "undisturbed")
    build([str(days[1])], whole, CONFIG, workers=0)

    class Killed(BaseException):
        pass

    for moment in range(4):  # before any table has been moved, after the first, the second, the third
        copy = shutil.copytree(corpus, corpus.parent / f"killed-{moment}")
        moved = iter(range(100))
        replace_path = Path.replace

        def dying(self: Path, target: Path, moved=moved, moment=moment, replace_path=replace_path) -> Path:
            if self.parent.name == output._NEXT and next(moved) == moment:
                raise Killed
            return replace_path(self, target)

        with monkeypatch.context() as patch:
            patch.setattr(Path, "replace", dying)
            with pytest.raises(Killed):
                build([str(days[1])], copy, CONFIG, workers=0)
        build([str(days[1])], copy, CONFIG, workers=0)
        assert content(copy) == content(whole), moment
        assert verify_corpus(open_corpus(copy)) == []


def test_a_file_of_a_known_name_is_told_by_its_content(days, corpus, tmp_path):
    """Two folders that each hold a scene of one name, as a folder a date: never taken for one another."""
    other = tmp_path / "third"
    other.mkdir()
    shutil.copy(days[1] / "sim-003.tif", other / "sim-000.tif")
    with pytest.raises(CorpusError, match=r"has another file of the name sim-000\.tif; give the folder above"):
        build([str(other)], corpus, CONFIG, workers=0)
    copied = shutil.copytree(days[0], tmp_path / "copied")
    assert build([str(copied)], corpus, CONFIG, workers=0).already_built  # the same content elsewhere
    assert open_corpus(corpus).manifest["growth"] == []


def test_a_file_that_was_changed_since_is_refused(days, corpus, tmp_path):
    sources = shutil.copytree(days[0], tmp_path / "sources")
    build([str(sources)], tmp_path / "own", CONFIG, workers=0)
    shutil.copy(days[1] / "sim-003.tif", sources / "sim-001.tif")
    with pytest.raises(CorpusError, match=r"sim-001\.tif: .*was changed since"):
        build([str(sources)], tmp_path / "own", CONFIG, workers=0)


def test_a_group_that_is_new_gets_a_range_and_the_others_keep_theirs(days, corpus, tmp_path):
    new = tmp_path / "new"
    new.mkdir()
    shutil.copy(days[1] / "sim-003.tif", new)
    table = new / "list.csv"
    table.write_text(f"path,sensor\n{new / 'sim-003.tif'},OTHER\n")
    old = open_corpus(corpus).manifest["groups"]
    build([str(table)], corpus, CONFIG, workers=0)
    groups = open_corpus(corpus).manifest["groups"]
    assert old.items() < groups.items() and {name.split("/")[0] for name in groups.keys() - old.keys()} == {"OTHER"}


def test_refreshed_statistics_are_those_of_a_build_from_scratch(days, corpus, tmp_path):
    both = [str(days[0]), str(days[1])]
    build(both, corpus, CONFIG, workers=0, anew="stats")
    build(both, tmp_path / "scratch", CONFIG, workers=0)
    assert content(corpus) == content(tmp_path / "scratch")


def test_making_anew_without_all_sources_is_refused(days, corpus):
    with pytest.raises(SarsenseError, match=r"--reshard: .*sim-000\.tif.*give all sources"):
        build([str(days[1])], corpus, CONFIG, workers=0, anew="shards")
    assert verify_corpus(open_corpus(corpus)) == []


def test_what_a_killed_reshard_left_does_not_come_into_a_growth(days, corpus):
    stale = output.next_folder(corpus) / "train"
    stale.mkdir(parents=True)
    for shard in open_corpus(corpus).shards:  # under the names of shards that the corpus has
        (stale / Path(shard.path).name).write_bytes(b"of another plan")
    old = shard_bytes(corpus)
    build([str(days[1])], corpus, CONFIG, workers=0)
    assert verify_corpus(open_corpus(corpus)) == [] and old.items() < shard_bytes(corpus).items()


def test_making_anew_with_a_source_that_cannot_be_read_is_refused(days, before, tmp_path):
    sources = shutil.copytree(days[0], tmp_path / "sources")
    build([str(sources)], tmp_path / "own", CONFIG, workers=0)
    whole = content(tmp_path / "own")
    (sources / "sim-001.tif").write_bytes((sources / "sim-001.tif").read_bytes()[:2000])
    with pytest.raises(SarsenseError, match=r"--refresh-stats: 1 scenes .*cannot be read, as sim-001\.tif"):
        build([str(sources)], tmp_path / "own", CONFIG, workers=0, anew="stats")
    assert content(tmp_path / "own") == whole


def test_a_scene_of_the_corpus_that_cannot_be_read_now_keeps_its_row(days, corpus, tmp_path):
    shutil.rmtree(corpus / ".build")  # as of a corpus that was copied here: only content tells a file
    sources = shutil.copytree(days[0], tmp_path / "sources")
    (sources / "sim-001.tif").write_bytes(b"damaged")
    rows = open_corpus(corpus).scenes.to_pylist()
    build([str(sources), str(days[1])], corpus, CONFIG, workers=0)
    grown = {row["path"]: row for row in open_corpus(corpus).scenes.to_pylist()}
    assert all(grown[row["path"]] == row for row in rows) and grown.keys() - {row["path"] for row in rows} == {
        "sim-003.tif"
    }


def test_the_second_polarisation_completes_a_stack(tmp_path):
    simulate(tmp_path / "sim", scenes=1, size=128, looks=4.0, seed=1)
    source = next((tmp_path / "sim" / "scenes").glob("*"))
    folder = tmp_path / "in"
    folder.mkdir()
    stacked = {"bands": "stack", "polarisations": ("VV", "VH"), "unit": "power"}
    config = replace(CONFIG, tile_size=32, val_share=0.0, **stacked)
    other = shutil.copy(source, folder / "whole.tif")  # holds both, so that there is a corpus
    with rasterio.open(source) as dataset:
        east = rasterio.Affine(*dataset.transform[:2], dataset.transform.c + 40_000.0, *dataset.transform[3:6])
        moved = {**dataset.profile, "count": 1, "transform": east}
        for index, name in ((1, "VV"), (2, "VH")):
            with rasterio.open(folder / f"part_{name}.tif", "w", **moved) as target:
                target.write(dataset.read(index)[::-1], 1)  # other ground
                target.update_tags(**dataset.tags())
    build([str(other), str(folder / "part_VV.tif")], tmp_path / "corpus", config, workers=0)
    first = len(open_corpus(tmp_path / "corpus").tiles())
    build([str(folder)], tmp_path / "corpus", config, workers=0)
    assert len(open_corpus(tmp_path / "corpus").tiles()) == 2 * first


def test_records_without_pixels_are_cut_again(days, corpus):
    """A kill while a finished build tidies up may leave the record of a cut, and not its codes."""
    build([str(days[1])], corpus, CONFIG, workers=0)
    whole = shard_bytes(corpus)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("pipelines.build.clean", lambda work: None)
        build([str(days[0]), str(days[1])], corpus, CONFIG, workers=0, anew="shards")
    for codes in (corpus / ".build" / "cut").glob("*.codes"):
        codes.unlink()
    build([str(days[0]), str(days[1])], corpus, CONFIG, workers=0, anew="shards")
    assert verify_corpus(open_corpus(corpus)) == [] and whole.keys() >= shard_bytes(corpus).keys()


def test_a_corpus_of_an_older_format_reads_and_does_not_grow(days, tmp_path):
    old = shutil.copytree(OLD, tmp_path / "old")
    corpus = open_corpus(old)
    assert corpus.manifest["format"] == 2 and verify_corpus(corpus) == []
    assert len(TileReader(corpus)) == 22 and corpus.tiles()["place"].null_count == 22
    with pytest.raises(CorpusError, match=r"of format 2, .*cannot grow"):
        settings = {k: tuple(v) if isinstance(v, list) else v for k, v in corpus.manifest["config"].items()}
        build([str(days[1])], old, BuildConfig(**settings), workers=0)


# ---------------------------------------------------------------------------------------------------- differences


def test_diff_says_what_came_what_went_and_what_was_coded_otherwise(days, before, corpus, tmp_path):
    assert compare(open_corpus(before), open_corpus(corpus)).nothing
    build([str(days[1])], corpus, CONFIG, workers=0)
    grown = compare(open_corpus(before), open_corpus(corpus))
    new = {key for key in tile_bytes(open_corpus(corpus)) if key.startswith("sim-003")}
    assert set(grown.tiles_in) == new and not grown.tiles_out and not grown.renormalised and not grown.changed
    assert grown.scenes_in == ["sim-003.tif"] and not grown.same_tiles
    back = compare(open_corpus(corpus), open_corpus(before))
    assert back.tiles_out == grown.tiles_in and back.scenes_out == ["sim-003.tif"]
    build([str(days[0])], tmp_path / "other", replace(CONFIG, seed=3, version="2.0.0"), workers=0)
    other = compare(open_corpus(before), open_corpus(tmp_path / "other"))
    assert other.settings == {"seed": (0, 3), "version": ("1.0.0", "2.0.0")}
    assert other.versions == {"version": ("1.0.0", "2.0.0")}
    build([str(days[0])], tmp_path / "fixed", replace(CONFIG, normalization="scene"), workers=0)
    renormalised = compare(open_corpus(before), open_corpus(tmp_path / "fixed"))
    assert len(renormalised.renormalised) == len(open_corpus(before).tiles()) and not renormalised.tiles_in


# ------------------------------------------------------------------------------------------------------ merging


def test_a_merged_corpus_holds_the_tiles_of_both_whatever_their_order(days, before, tmp_path):
    build([str(days[1]), str(days[0] / "sim-000.tif")], tmp_path / "second", CONFIG, workers=0, stats_from=before)
    a, b = open_corpus(before), open_corpus(tmp_path / "second")
    one, left_out = merge(a.root, b.root, tmp_path / "one", None, "2.0.0", 0, Silent())
    two, _ = merge(b.root, a.root, tmp_path / "two", None, "2.0.0", 0, Silent())
    assert content(one.root) == content(two.root) and verify_corpus(one) == []
    assert tile_bytes(one) == tile_bytes(a) | tile_bytes(b)
    assert left_out["in both"] == len(tile_bytes(a).keys() & tile_bytes(b).keys()) > 0
    assert {row["digest"] for row in one.manifest["merged"]} == {a.digest, b.digest}
    paths = one.scenes["path"].to_pylist()
    assert paths == sorted(set(a.scenes["path"].to_pylist()) | set(b.scenes["path"].to_pylist()))


def test_corpora_of_the_same_tiles_merge_alike_whichever_comes_first(days, before, tmp_path):
    moved = shutil.copytree(days[0], tmp_path / "elsewhere" / "deep")
    build([str(moved.parent)], tmp_path / "same", CONFIG, workers=0)  # the same tiles from sources of other names
    assert open_corpus(tmp_path / "same").digest == open_corpus(before).digest
    one, _ = merge(before, tmp_path / "same", tmp_path / "one", None, "1", 0, Silent())
    two, _ = merge(tmp_path / "same", before, tmp_path / "two", None, "1", 0, Silent())
    assert content(one.root) == content(two.root)
    assert sum(row["tiles"] or 0 for row in one.scenes.to_pylist() if row["path"].startswith("sim")) == len(one.tiles())
    assert not set(one.duplicates["dropped"].to_pylist()) & set(one.tiles()["key"].to_pylist())


def test_corpora_of_other_settings_or_ranges_are_not_merged(days, before, tmp_path):
    build([str(days[1])], tmp_path / "ranges", CONFIG, workers=0)
    with pytest.raises(CorpusError, match=r"one dB range of SIM/simulated/V[VH]/backscatter expected"):
        merge(before, tmp_path / "ranges", tmp_path / "out", None, "1", 0, Silent())
    build([str(days[1])], tmp_path / "seed", replace(CONFIG, seed=5), workers=0, stats_from=before)
    with pytest.raises(CorpusError, match="the same settings expected, seed differ"):
        merge(before, tmp_path / "seed", tmp_path / "out", None, "1", 0, Silent())


def test_the_manifest_keeps_what_a_corpus_was_before_it_grew(days, corpus):
    before = json.loads((corpus / "corpus.json").read_text())
    build([str(days[1])], corpus, replace(CONFIG, version="1.1.0"), workers=0)
    after = json.loads((corpus / "corpus.json").read_text())
    (step,) = after["growth"]
    assert (step["version"], step["tiles"], step["shards"]) == (
        "1.0.0",
        sum(before["splits"].values()),
        1 + ("val" in before["splits"]),
    )
    assert after["version"] == "1.1.0" and after["order_digest"] != before["order_digest"] == step["order_digest"]
