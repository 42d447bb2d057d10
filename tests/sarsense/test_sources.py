"""Which files a source names, also inside zips and when files vanish."""

import zipfile
from pathlib import Path

import numpy as np
import pytest

from pipelines import build as builder
from pipelines.build import build
from sarsense.config import BuildConfig
from sarsense.corpus import open_corpus
from sarsense.errors import SarsenseError
from sarsense.sources import list_sources
from tests.conftest import speckled_power, write_raster

CONFIG = BuildConfig(tile_size=64, val_share=0.0)


def scene(path: Path, seed: int) -> Path:
    return write_raster(path, (10 * np.log10(speckled_power((64, 128), 4.0, seed))).astype(np.float32))


def test_the_members_of_a_zip_are_files(tmp_path: Path):
    """The tiles of a zipped folder are those of the folder, to the bit; the zip itself is no file of its own."""
    plain = scene(tmp_path / "in" / "folder" / "a_VV.tif", 0)
    (plain.parent / "notes.txt").write_text("x")
    archive = tmp_path / "zipped" / "folder.ZIP"
    archive.parent.mkdir()
    with zipfile.ZipFile(archive, "w", zipfile.ZIP_DEFLATED) as opened:
        for path in plain.parent.iterdir():
            opened.write(path, path.name)
    archive.rename(archive.with_suffix(".zip"))
    build([str(tmp_path / "in")], tmp_path / "c1", CONFIG, workers=0)
    build([str(tmp_path / "zipped")], tmp_path / "c2", CONFIG, workers=0)
    one, two = open_corpus(tmp_path / "c1"), open_corpus(tmp_path / "c2")
    assert {row["path"]: row["status"] for row in two.scenes.to_pylist()} == {
        "folder.zip/a_VV.tif": "used",
        "folder.zip/notes.txt": "sidecar",
    }
    assert one.tiles()["content_hash"].to_pylist() == two.tiles()["content_hash"].to_pylist()
    assert one.tiles()["key"].to_pylist() == two.tiles()["key"].to_pylist()


def test_a_damaged_zip_is_recorded_with_a_reason(tmp_path: Path):
    scene(tmp_path / "in" / "a_VV.tif", 0)
    (tmp_path / "in" / "b.zip").write_bytes(b"PK\x03\x04 nothing more")
    build([str(tmp_path / "in")], tmp_path / "corpus", CONFIG, workers=0)
    rows = {row["path"]: row for row in open_corpus(tmp_path / "corpus").scenes.to_pylist()}
    assert rows["b.zip"]["status"] == "refused" and rows["b.zip"]["reason"]


def test_a_file_that_vanishes_after_it_was_listed_is_recorded(tmp_path: Path, monkeypatch):
    gone = scene(tmp_path / "in" / "a_VV.tif", 0)
    scene(tmp_path / "in" / "b_VV.tif", 1)
    listed = builder.list_entries

    def and_remove(*arguments):
        entries = listed(*arguments)
        gone.unlink(missing_ok=True)
        return entries

    monkeypatch.setattr(builder, "list_entries", and_remove)
    build([str(tmp_path / "in")], tmp_path / "corpus", CONFIG, workers=0)
    rows = {row["path"]: row for row in open_corpus(tmp_path / "corpus").scenes.to_pylist()}
    assert rows["a_VV.tif"]["status"] == "refused" and "vanished" in rows["a_VV.tif"]["reason"]
    assert rows["b_VV.tif"]["status"] == "used"


def test_no_raster_at_all_is_an_error(tmp_path: Path):
    (tmp_path / "x.txt").write_text("x")
    with pytest.raises(SarsenseError, match="no raster among 1 files"):
        list_sources([str(tmp_path)])


def test_files_of_one_name_in_two_sources_keep_apart(tmp_path: Path):
    """scenes.parquet and duplicates.parquet name each of them; a longer path is used where the short ones clash."""
    for folder, name, seed in (
        ("x/a", "s_VV.tif", 0),
        ("x/b", "s_VV.tif", 0),
        ("y/b", "s_VV.tif", 1),
        ("y", "t.tif", 2),
    ):
        scene(tmp_path / folder / name, seed)
    sources = [str(tmp_path / folder) for folder in ("x/a", "x/b", "y/b", "y/t.tif")]
    files = list_sources(sources)
    assert [file.relative for file in files] == ["t.tif", "x/a/s_VV.tif", "x/b/s_VV.tif", "y/b/s_VV.tif"]
    assert list_sources(sources[::-1]) == files
    build(sources, tmp_path / "corpus", CONFIG, workers=0)
    corpus = open_corpus(tmp_path / "corpus")
    assert [(row["dropped"], row["kept"]) for row in corpus.duplicates.to_pylist()] == [
        ("x/b/s_VV.tif", "x/a/s_VV.tif")
    ]
    assert len(set(corpus.scenes["path"].to_pylist())) == 4


def test_a_vsizip_path_is_a_source(tmp_path: Path):
    """The zip, a folder in it, or a file in it: the files that the zip itself gives under the same names."""
    for name in ("a/one_VV.tif", "a/two_VV.tif", "b/three_VV.tif"):
        scene(tmp_path / "in" / name, len(name))
    archive = tmp_path / "x.zip"
    with zipfile.ZipFile(archive, "w") as opened:
        for path in sorted((tmp_path / "in").rglob("*.tif")):
            opened.write(path, path.relative_to(tmp_path / "in"))
    whole = list_sources([str(archive)])
    assert list_sources([f"/vsizip/{archive}"]) == list_sources([f"/vsizip/{archive}/"]) == whole
    assert list_sources([f"/vsizip/{archive}/a"]) == whole[:2]
    assert list_sources([f"/vsizip/{archive}/b/three_VV.tif"]) == whole[2:]
    for wrong in (f"/vsizip/{archive}/c", f"/vsizip/{tmp_path}/none.zip", f"/vsizip/{archive}/a/on"):
        with pytest.raises(SarsenseError, match="no such file or folder in a zip"):
            list_sources([wrong])


@pytest.mark.parametrize("stage", ["measure_all", "cut_all"])
def test_a_file_that_changes_during_a_build_is_refused_and_taken_by_the_next(tmp_path: Path, monkeypatch, stage: str):
    """Rewritten between stages: its tiles would have the values of one state and the statistics of another."""
    path = scene(tmp_path / "in" / "a_VV.tif", 0)
    scene(tmp_path / "in" / "b_VV.tif", 1)
    before = getattr(builder, stage)

    def rewrite(*arguments):
        scene(path, 2)
        before(*arguments)

    with monkeypatch.context() as patched:
        patched.setattr(builder, stage, rewrite)
        assert build([str(tmp_path / "in")], tmp_path / "corpus", CONFIG, workers=0).scenes_for_later == 1
    rows = {row["path"]: row for row in open_corpus(tmp_path / "corpus").scenes.to_pylist()}
    assert rows["a_VV.tif"]["reason"] == "changed while it was read: still being written?"
    assert rows["b_VV.tif"]["status"] == "used"
    (tmp_path / "corpus" / "corpus.json").unlink()  # as if it had not been finished
    build([str(tmp_path / "in")], tmp_path / "corpus", CONFIG, workers=0)
    build([str(tmp_path / "in")], tmp_path / "fresh", CONFIG, workers=0)
    assert open_corpus(tmp_path / "corpus").digest == open_corpus(tmp_path / "fresh").digest
