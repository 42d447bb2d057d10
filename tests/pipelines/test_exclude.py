"""`build --exclude`: what it names is left out, counted, and stands in nobody's way; the list is a setting."""

from __future__ import annotations

import json
import shutil
from dataclasses import replace
from pathlib import Path

import pyarrow.compute as pc
import pytest

from pipelines.build import build
from pipelines.companions import CompanionFiles
from pipelines.entries import BuildSummary
from pipelines.messages import build_lines
from sarsense.corpus import Corpus, open_corpus
from sarsense.errors import CorpusError, SarsenseError, SettingError
from sarsense.exclusion import read_exclusion
from sarsense.verify import verify_corpus
from tests.pipelines.small import CONFIG, content


def _build(scenes: Path, out: Path, listed: Path | None, **more) -> BuildSummary:
    return build([str(scenes)], out, CONFIG, 0, companions=CompanionFiles(exclude=listed), **more)


def _list(folder: Path, *lines: str, name: str = "flags.csv") -> Path:
    path = folder / name
    path.write_text("".join(f"{line}\n" for line in lines))
    return path


def _keys(corpus: Corpus) -> list[str]:
    return corpus.tiles(columns=["key"])["key"].to_pylist()


def test_listed_tiles_are_left_out_and_counted(scenes: Path, reference: Path, tmp_path: Path):
    before = open_corpus(reference)
    bad = _keys(before)[:3]
    listed = _list(tmp_path, "key,scene,source,reason", *(f'{key},,,"stripes, seams"' for key in bad))
    summary = _build(scenes, tmp_path / "corpus", listed)
    corpus = open_corpus(tmp_path / "corpus")
    assert set(_keys(before)) - set(_keys(corpus)) == set(bad)
    assert summary.tiles_left_out["excluded"] == corpus.manifest["tiles_left_out"]["excluded"] == 3
    assert sum(filter(None, corpus.scenes["tiles_excluded"].to_pylist())) == 3
    rows = {row["path"]: row for row in corpus.scenes.to_pylist()}
    for row in before.scenes.filter(pc.field("status") == "used").to_pylist():
        assert rows[row["path"]]["tiles"] + rows[row["path"]]["tiles_excluded"] == row["tiles"]
    assert verify_corpus(corpus) == []
    assert not summary.unmatched
    assert "3 excluded" in "\n".join(build_lines(summary))
    jsonschema = pytest.importorskip("jsonschema")
    jsonschema.validate(
        corpus.manifest, json.loads((Path(__file__).parents[2] / "docs/corpus.schema.json").read_text())
    )


def test_a_plain_list_excludes_the_same(scenes: Path, reference: Path, tmp_path: Path):
    bad = _keys(open_corpus(reference))[:3]
    as_csv = _list(tmp_path, "scene,KEY,reason", *(f",{key},x" for key in bad))
    plain = _list(tmp_path, "# seen by eye", bad[0], "", f"{bad[1]}  # seams", bad[2], bad[2], name="plain.txt")
    assert read_exclusion(plain).names == read_exclusion(as_csv).names == tuple(bad)


@pytest.mark.parametrize("by", ["scene", "source", "row"])
def test_a_scene_or_source_excludes_the_whole_scene(scenes: Path, reference: Path, tmp_path: Path, by: str):
    before = open_corpus(reference)
    first = before.scenes.filter(pc.field("status") == "used").to_pylist()[0]
    lines = {
        "scene": [first["scene"]],
        "source": [first["path"]],
        "row": ["key,scene,source,reason", f",{first['scene']},{first['path']},wrong place"],
    }
    summary = _build(scenes, tmp_path / "corpus", _list(tmp_path, *lines[by]))
    corpus = open_corpus(tmp_path / "corpus")
    row = next(row for row in corpus.scenes.to_pylist() if row["path"] == first["path"])
    assert (row["status"], row["reason"]) == ("excluded", "excluded: listed in flags.csv")
    assert first["scene"] not in corpus.tiles(columns=["scene"])["scene"].to_pylist()
    assert summary.scenes_excluded == corpus.manifest["scenes"]["excluded"] == 1
    assert summary.scenes_used == 3 and not summary.unmatched and summary.scenes_refused == 0


def test_a_corpus_without_a_scene_is_that_of_sources_without_it(scenes: Path, reference: Path, tmp_path: Path):
    """Ranges, splits and duplicates are as if it had never been there: only scenes.parquet and corpus.json say so."""
    gone = open_corpus(reference).scenes["path"].to_pylist()[0]
    fewer = shutil.copytree(scenes, tmp_path / "fewer")
    (fewer / gone).unlink()
    _build(scenes, tmp_path / "a", _list(tmp_path, gone))
    _build(fewer, tmp_path / "b", None)
    a, b = content(tmp_path / "a"), content(tmp_path / "b")
    assert a.keys() == b.keys()
    assert {name for name in a if a[name] != b[name]} == {"corpus.json", "scenes.parquet"}


@pytest.mark.parametrize("anew", ["shards", "stats"])
def test_another_list_is_another_setting_and_made_anew_gives_what_a_fresh_build_gives(
    scenes: Path, reference: Path, tmp_path: Path, anew: str
):
    keys = _keys(open_corpus(reference))
    scene = open_corpus(reference).scenes["path"].to_pylist()[0]
    listed = _list(tmp_path, *keys[:3])
    out = tmp_path / "corpus"
    _build(scenes, out, listed)
    first = content(out)
    assert _build(scenes, out, listed).already_built
    # with new ranges a scene may go too; with those that the corpus has, a fresh build has them where scenes stay
    _list(tmp_path, *keys[1:6], *([scene] if anew == "stats" else []))
    for other in (listed, None):
        with pytest.raises(CorpusError, match=r"other settings \(--exclude\).*--reshard"):
            _build(scenes, out, other)
    assert content(out) == first
    _build(scenes, out, listed, anew=anew)
    _build(scenes, tmp_path / "fresh", listed)
    assert content(out) == content(tmp_path / "fresh") != first
    _build(scenes, out, None, anew=anew)
    assert content(out) == content(reference)


def test_the_bytes_do_not_depend_on_workers_or_an_unfinished_build_with_another_list(
    scenes: Path, reference: Path, tmp_path: Path, monkeypatch
):
    keys = _keys(open_corpus(reference))
    out, listed = tmp_path / "corpus", _list(tmp_path, *keys[:3])
    with monkeypatch.context() as patched:
        patched.setattr("pipelines.build.seal", lambda *_: (_ for _ in ()).throw(SarsenseError("killed")))
        with pytest.raises(SarsenseError, match="killed"):
            _build(scenes, out, listed)
    _list(tmp_path, *keys[2:9])
    build([str(scenes)], out, CONFIG, 2, companions=CompanionFiles(exclude=listed))
    _build(scenes, tmp_path / "fresh", listed)
    assert content(out) == content(tmp_path / "fresh")


def test_a_corpus_grows_with_its_list(scenes: Path, reference: Path, tmp_path: Path):
    before = open_corpus(reference)
    paths = before.scenes.filter(pc.field("status") == "used")["path"].to_pylist()
    of = {row["key"]: row["source"] for row in before.tiles(columns=["key", "source"]).to_pylist()}
    old = next(key for key, source in of.items() if source == paths[0])
    new = next(key for key, source in of.items() if source == paths[3])
    listed = _list(tmp_path, old, new)
    part = tmp_path / "part"
    part.mkdir()
    for path in paths[:2]:
        shutil.copy(scenes / path, part / path)
    assert _build(part, tmp_path / "corpus", listed).unmatched == [new]
    summary = _build(scenes, tmp_path / "corpus", listed)
    corpus = open_corpus(tmp_path / "corpus")
    assert summary.unmatched == [] and corpus.manifest["tiles_left_out"]["excluded"] == 2
    assert not {old, new} & set(_keys(corpus)) and verify_corpus(corpus) == []


def test_names_that_match_nothing_are_told_in_a_line(scenes: Path, tmp_path: Path):
    listed = _list(tmp_path, "no-such-VV-0-0", "\x1b[31mred", *(f"missing-{number}" for number in range(10)))
    summary = _build(scenes, tmp_path / "corpus", listed)
    (line,) = (line for line in build_lines(summary) if "warning" in line)
    assert "12 names of --exclude that match no tile, scene or source: 'no-such-VV-0-0', " in line
    assert "and 7 more" in line and "\x1b" not in line
    assert len(json.loads(json.dumps(vars(summary)))["unmatched"]) == 12


def test_of_a_stack_all_files_go(tmp_path: Path):
    from sarsense.simulate import simulate

    simulate(tmp_path / "sim", scenes=2, size=128, looks=4.0, seed=3)
    config = replace(CONFIG, bands="stack", polarisations=("VV", "VH"), val_share=0.0)
    sources = [str(tmp_path / "sim" / "scenes")]
    build(sources, tmp_path / "all", config, 0)
    path = open_corpus(tmp_path / "all").scenes["path"].to_pylist()[0]
    listed = _list(tmp_path, path)
    summary = build(sources, tmp_path / "corpus", config, 0, companions=CompanionFiles(exclude=listed))
    assert summary.scenes_excluded >= 1 and summary.scenes_refused == 0
    assert path not in open_corpus(tmp_path / "corpus").tiles(columns=["source"])["source"].to_pylist()


def test_nothing_left_says_why(scenes: Path, reference: Path, tmp_path: Path):
    listed = _list(tmp_path, *open_corpus(reference).scenes["path"].to_pylist())
    with pytest.raises(SarsenseError, match=r"no tile left.*4 scenes excluded"):
        _build(scenes, tmp_path / "corpus", listed)


@pytest.mark.parametrize(
    "text", [b"", b"\n# only a comment\n", b"\xff\xfe\x00", b'key,reason\n"a,b', b"key\n" + b"a" * 2**21]
)
def test_a_list_that_is_none_is_wrong_usage(tmp_path: Path, text: bytes):
    path = tmp_path / "list"
    path.write_bytes(text)
    with pytest.raises(SettingError, match="expected"):
        read_exclusion(path)
    with pytest.raises(SettingError, match="expected"):
        read_exclusion(tmp_path / "missing")


def test_an_empty_list_of_flags_excludes_nothing(tmp_path: Path):
    assert read_exclusion(_list(tmp_path, "key,scene,source,reason")).names == ()
    assert read_exclusion(_list(tmp_path, "key,scene,source,reason", ",,,said nothing")).names == ()


def test_a_csv_without_commas_is_told_and_a_list_of_enormous_lines_is_a_list(tmp_path: Path):
    for between in (";", "\t"):
        with pytest.raises(SettingError, match="commas between the cells"):
            read_exclusion(_list(tmp_path, "key,scene,source,reason".replace(",", between), f"a{between * 3}"))
    names = ('"' + "x" * 200_000, "b\0", "key;scenery")
    assert read_exclusion(_list(tmp_path, *names)).names == names
