"""Labelled corpora: the labels of a tile are those of its window, through every stage and whatever happens on the way;
what cannot be labelled is refused; and a corpus without labels knows nothing of any."""

from __future__ import annotations

import io
import json
import os
import shutil
import signal
import tarfile
import time
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import rasterio
import shapely
from rasterio.windows import Window
from typer.testing import CliRunner

from cli import sarsense_app
from dic3l.errors import ConfigError
from dic3l.evaluate.data import IGNORED as IGNORED_IN_EVALUATION
from dic3l.evaluate.data import map_labels
from pipelines.build import build
from pipelines.coding import coding_of
from pipelines.companions import CompanionFiles
from pipelines.evaluate import evaluate
from pipelines.labelled import labelled_data
from pipelines.labelled_corpus import corpus_places
from pipelines.merge import merge
from pipelines.plan import plan
from pipelines.progress import Silent
from sarsense.codes import encode
from sarsense.config import BuildConfig
from sarsense.corpus import LABEL_SCHEMA, SCENE_SCHEMA, TILE_SCHEMA, Corpus, open_corpus
from sarsense.diff import compare
from sarsense.errors import CorpusError, SarsenseError, SettingError
from sarsense.export.write import export
from sarsense.labels import IGNORED
from sarsense.places import place as place_of
from sarsense.raster import open_raster
from sarsense.report.datasheet import datasheet
from sarsense.shards import TileReader, tile_hash
from sarsense.verify import verify_corpus
from tests.conftest import speckled_power, write_raster
from tests.object_store import ObjectStore
from tests.pipelines.chaos import Build
from tests.pipelines.small import CONFIG, content

STACK = replace(CONFIG, bands="stack", polarisations=("VV", "VH"), content="both")
OVERLAPPING = replace(CONFIG, stride=40, dedup=(), bits=16)


def labels_beside(scene: Path, path: Path, seed: int, dtype: str = "uint8", **settings: Any) -> Path:
    """Labels 0 to 8 on the grid of a scene, drawn by pixel, so that no shift is overlooked; 8 is no data."""
    with open_raster(str(scene)) as (dataset, _):
        grid = {"crs": dataset.crs, "transform": dataset.transform} if dataset.crs else {"crs": None}
        values = np.random.default_rng(seed).integers(0, 9, dataset.shape).astype(dtype)
    return write_raster(path, values, **{**grid, "nodata": 8, **settings})


@pytest.fixture(scope="module")
def labels(scenes: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("labels")
    for seed, scene in enumerate(sorted(scenes.glob("*.tif"))):
        labels_beside(scene, folder / scene.name, seed)
    return folder


@pytest.fixture(scope="module")
def labelled(scenes: Path, labels: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The corpus of `scenes` and `labels`, built undisturbed in this process."""
    return built(scenes, labels, tmp_path_factory.mktemp("labelled") / "corpus")


def built(scenes: Path, labels: Path | None, out: Path, config: BuildConfig = CONFIG, workers: int = 0) -> Path:
    build([str(scenes)], out, config, workers, companions=CompanionFiles(labels=labels))
    return out


def reasons(corpus: Path) -> dict[str, str]:
    rows = open_corpus(corpus).scenes.to_pylist()
    return {row["path"]: row["reason"] for row in rows if row["status"] == "refused"}


def window_of(folder: Path, row: dict[str, Any], name: str, size: int, band: int = 1) -> np.ndarray:
    with rasterio.open(folder / name) as dataset:
        return dataset.read(band, window=Window(row["col"], row["row"], size, size))  # type: ignore[call-arg]


# --------------------------------------------------------------------------------------------------------- windows


@pytest.mark.parametrize("config", [CONFIG, STACK, OVERLAPPING], ids=["single", "stack-both", "overlapping-16-bit"])
def test_labels_and_codes_of_a_tile_are_those_of_its_window(
    scenes: Path, labels: Path, tmp_path: Path, config: BuildConfig
):
    corpus = open_corpus(built(scenes, labels, tmp_path / "corpus", config))
    assert verify_corpus(corpus) == []
    reader, rows = TileReader(corpus), corpus.tiles().to_pylist()
    codes, found = reader.read(np.arange(len(rows))), reader.labels(np.arange(len(rows)))
    assert found.shape == (len(rows), 64, 64) and found.dtype == np.uint8 and len(rows) > 40
    assert {row["split"] for row in rows} == {"train", "val"}
    if config.stride:
        assert any(row["col"] % 64 for row in rows)
    for row, tile, mine in zip(rows, codes, found, strict=True):
        values = window_of(labels, row, row["label_source"], 64)
        np.testing.assert_array_equal(mine, np.where(values == 8, IGNORED, values))
        assert row["label_source"] == row["source"] and row["label_hash"] == tile_hash(mine.tobytes())
        present, counts = np.unique(mine[mine != IGNORED], return_counts=True)
        assert [(one["value"], one["pixels"]) for one in row["label_counts"]] == list(
            zip(present.tolist(), counts.tolist(), strict=True)
        )
        for channel, plane in zip(row["channels"], tile, strict=True):
            if channel["content"] == "speckled":
                power = window_of(scenes, row, channel["source"], 64, channel["band"])
                with np.errstate(divide="ignore"):
                    db = np.where(power > 0, 10 * np.log10(power), np.nan).astype(np.float32)
                db -= np.float32(channel["enl_bias_db"])
                expected = encode(db, channel["lo_db"], channel["hi_db"], config.bits).astype(np.int64)
                np.testing.assert_array_equal(plane == 0, expected == 0)
                assert np.abs(plane - expected).max() <= 1  # at the border of two codes, the last digit of a logarithm
                assert (plane == expected).mean() > (0.9995 if config.bits == 8 else 0.9)


def test_labels_can_be_asked_for_in_any_order_and_of_a_split(labelled: Path):
    corpus = open_corpus(labelled)
    every, rows = TileReader(corpus), corpus.tiles().to_pylist()
    val = TileReader(corpus, "val")
    where = [index for index, row in enumerate(rows) if row["split"] == "val"]
    asked = np.array([3, 0, 3, len(val) - 1])
    np.testing.assert_array_equal(val.labels(asked), every.labels(np.array(where)[asked]))
    np.testing.assert_array_equal(val.read(asked), every.read(np.array(where)[asked]))


def test_plain_webdataset_and_tarfile_read_them(labelled: Path):
    corpus = open_corpus(labelled)
    reader = TileReader(corpus)
    where = {key: index for index, key in enumerate(reader.keys)}
    for shard in corpus.shards:
        with tarfile.open(labelled / shard.path) as tar:
            arrays = [member for member in tar.getmembers() if member.name.endswith(".labels.npy")]
            assert len(arrays) == shard.tiles and all(member.offset_data % 512 == 0 for member in arrays)
            first = np.load(io.BytesIO(tar.extractfile(arrays[0]).read()))  # type: ignore[union-attr]
        np.testing.assert_array_equal(first, reader.labels(np.array([where[arrays[0].name.split(".")[0]]]))[0])
    webdataset = pytest.importorskip("webdataset", reason="extra of training")
    urls = [str(labelled / shard.path) for shard in corpus.shards]
    seen = 0
    for sample in webdataset.WebDataset(urls, shardshuffle=False).decode():
        index = np.array([where[sample["__key__"]]])
        np.testing.assert_array_equal(sample["labels.npy"], reader.labels(index)[0])
        np.testing.assert_array_equal(sample["npy"], reader.read(index)[0, 0])
        assert sample["json"]["labels"] == {"source": sample["json"]["source"], "ignored": 255}
        seen += 1
    assert seen == len(reader)


def test_the_ignored_value_is_that_of_the_evaluation():
    assert IGNORED == IGNORED_IN_EVALUATION


# ------------------------------------------------------------------------------------------------------------ names


def test_classes_have_the_names_of_the_tag_else_their_values(scenes: Path, labelled: Path, tmp_path: Path):
    assert open_corpus(labelled).classes == {value: str(value) for value in range(8)}
    assert open_corpus(labelled).manifest["labels"]["ignored"] == 255
    simulated = open_corpus(built(scenes, scenes.parent / "labels", tmp_path / "corpus"))
    names = ["water", "bare", "crops", "forest", "meadow", "built", "road"]
    assert simulated.classes == dict(enumerate(names, 1))
    assert "| crops | 3 |" in datasheet(simulated)


def test_names_that_contradict_each_other_refuse_the_later_scene(scenes: Path, tmp_path: Path):
    for number, name in enumerate(["water", "water", "flood", ""]):
        tags = {"CLASSES": json.dumps({"1": name})} if name else None
        scene = f"sim-{number:03d}.tif"
        labels_beside(scenes / scene, tmp_path / "labels" / scene, number, tags=tags)
    out = built(scenes, tmp_path / "labels", tmp_path / "corpus")
    assert list(reasons(out)) == ["sim-002.tif"]
    assert "1 is 'flood' in its CLASSES tag, 'water' in others" in reasons(out)["sim-002.tif"]
    classes = open_corpus(out).classes
    assert classes is not None and classes[1] == "water" and classes[2] == "2"


# --------------------------------------------------------------------------------------------------------- refusals


def test_scenes_whose_labels_do_not_fit_are_refused_and_the_others_built(scenes: Path, labels: Path, tmp_path: Path):
    names = sorted(path.name for path in scenes.glob("*.tif"))
    folder = shutil.copytree(labels, tmp_path / "labels")
    (folder / names[0]).unlink()
    with rasterio.open(folder / names[1], "r+") as dataset:
        dataset.transform = dataset.transform @ rasterio.Affine.translation(1, 0)
    wrong = np.full((320, 320), 7, np.uint16)
    wrong[-1, -1] = 300  # in no window
    with rasterio.open(scenes / names[2]) as dataset:
        write_raster(folder / names[2], wrong, crs=dataset.crs, transform=dataset.transform)
    out = built(scenes, folder, tmp_path / "corpus")
    told = reasons(out)
    assert list(told) == names[:3]
    assert told[names[0]].startswith(
        "--labels has no raster of this scene: sim-000 (.tif, .tiff, .png) expected; add it"
    )
    assert told[names[1]].startswith("--labels raster is on another grid: sim-001.tif")
    assert (
        told[names[2]].startswith("--labels raster holds other values: sim-002.tif") and "300 found" in told[names[2]]
    )
    corpus = open_corpus(out)
    assert set(corpus.tiles()["source"].to_pylist()) == {names[3]} and verify_corpus(corpus) == []
    (folder / names[0]).write_bytes(b"nothing")
    moved = shutil.copytree(folder, tmp_path / "elsewhere")
    one, two = (built(scenes, labels, labels.parent / f"{labels.name} out") for labels in (folder, moved))
    assert content(one) == content(two) and "cannot be read: sim-000.tif: not a raster" in reasons(one)[names[0]]


def test_a_build_of_resampled_scenes_has_nothing_to_build(scenes: Path, labels: Path, tmp_path: Path):
    with pytest.raises(SarsenseError, match=r"--labels cannot follow this scene.*leave --spacing out"):
        built(scenes, labels, tmp_path / "corpus", replace(CONFIG, tile_size=32, spacing=20.0))


def test_labels_among_the_sources_are_no_scenes(scenes: Path, tmp_path: Path):
    out = built(scenes.parent, scenes.parent / "labels", tmp_path / "corpus")
    rows = open_corpus(out).scenes.to_pylist()
    assert {row["reason"] for row in rows if row["path"].startswith("labels/")} == {"in the folder of --labels"}
    assert open_corpus(out).manifest["scenes"] == {"sidecar": 5, "used": 4}
    with pytest.raises(SarsenseError, match="holds all rasters of the sources"):
        built(scenes.parent / "labels", scenes.parent / "labels", tmp_path / "other")
    with pytest.raises(SettingError, match="a folder of label rasters expected"):
        built(scenes, scenes / "sim-000.tif", tmp_path / "other")


def files_of_polarisations(folder: Path) -> None:
    for number, name in enumerate(["VV", "VH"]):
        db = 10 * np.log10(speckled_power((128, 192), 4.0, number, -8 - 7 * number))
        write_raster(folder / f"a_{name}_1.tif", db.astype(np.float32))


def test_the_files_of_a_stack_share_labels_or_are_refused(tmp_path: Path):
    scenes, config = tmp_path / "in", replace(STACK, content="speckled", val_share=0.0)
    files_of_polarisations(scenes)
    one = labels_beside(scenes / "a_VV_1.tif", tmp_path / "labels" / "a-1.tif", 0)
    corpus = open_corpus(built(scenes, one.parent, tmp_path / "shared", config))
    rows, found = corpus.tiles().to_pylist(), TileReader(corpus).labels(np.arange(6))
    for row, mine in zip(rows, found, strict=True):
        values = window_of(one.parent, row, "a-1.tif", 64)
        np.testing.assert_array_equal(mine, np.where(values == 8, IGNORED, values))
    for name, seed in (("VV", 1), ("VH", 1)):
        labels_beside(scenes / "a_VV_1.tif", one.parent / f"a_{name}_1.tif", seed)
    assert open_corpus(built(scenes, one.parent, tmp_path / "equal", config)).digest != corpus.digest
    labels_beside(scenes / "a_VV_1.tif", one.parent / "a_VH_1.tif", 2)
    with pytest.raises(SarsenseError, match="--labels of the files of a stack differ"):
        built(scenes, one.parent, tmp_path / "unlike", config)
    (one.parent / "a-1.tif").unlink()
    (one.parent / "a_VH_1.tif").unlink()
    with pytest.raises(SarsenseError, match=r"a_VH_1\.tif.*--labels has no raster|partner a_VH_1\.tif is left out"):
        built(scenes, one.parent, tmp_path / "half", config)


def test_one_scene_twice_is_a_duplicate_and_with_other_labels_a_contradiction(
    scenes: Path, labels: Path, tmp_path: Path
):
    source, folder = shutil.copytree(scenes, tmp_path / "in"), shutil.copytree(labels, tmp_path / "labels")
    for name in ("again", "other"):
        shutil.copy(scenes / "sim-001.tif", source / f"z-{name}.tif")
    shutil.copy(labels / "sim-001.tif", folder / "z-again.tif")
    labels_beside(scenes / "sim-001.tif", folder / "z-other.tif", 77)
    out = built(source, folder, tmp_path / "corpus")
    rows = {row["path"]: row for row in open_corpus(out).scenes.to_pylist()}
    assert rows["z-again.tif"]["status"] == "duplicate" and rows["sim-001.tif"]["status"] == "used"
    assert reasons(out) == {
        "z-other.tif": "--labels contradict each other: the same values as sim-001.tif, with other labels; remove one"
    }


# --------------------------------------------------------------------------------------------------------- identity


def test_a_corpus_without_labels_knows_of_none_and_one_with_labels_has_its_tiles(
    scenes: Path, labels: Path, labelled: Path, reference: Path, tmp_path: Path
):
    plain, known = open_corpus(reference), open_corpus(labelled)
    assert plain.tiles().column_names == TILE_SCHEMA.names and plain.scenes.column_names == SCENE_SCHEMA.names
    assert "labels" not in plain.manifest and plain.manifest["companions"] == {}
    assert known.tiles().column_names == [*TILE_SCHEMA.names, *LABEL_SCHEMA.names]
    assert known.manifest["format"] == plain.manifest["format"] and known.manifest["config"] == plain.manifest["config"]
    same = ["key", "split", "content_hash", "place", "acquisition"]
    rows = [{row["key"]: row for row in c.tiles(columns=same).to_pylist()} for c in (plain, known)]
    assert rows[0] == rows[1] and plain.digest != known.digest
    with pytest.raises(CorpusError, match="built without --labels"):
        TileReader(plain).labels(np.array([0]))
    with pytest.raises(CorpusError, match="built without --labels"):
        corpus_places(plain)
    folder = shutil.copytree(labels, tmp_path / "labels")
    with rasterio.open(folder / "sim-001.tif", "r+") as dataset:
        values = dataset.read(1)
        values[100, 100] = (values[100, 100] + 1) % 8
        dataset.write(values, 1)
    other = open_corpus(built(scenes, folder, tmp_path / "corpus"))
    found = compare(known, other)
    assert other.digest != known.digest and not found.changed and not found.tiles_in and not found.settings
    changed = [row for row in known.tiles().to_pylist() if row["key"] in found.relabelled]
    assert len(changed) == 2 and all(
        row["source"] == "sim-001.tif" and row["row"] <= 100 < row["row"] + 64 and row["col"] <= 100 < row["col"] + 64
        for row in changed
    )
    assert compare(plain, known).settings.keys() == {"labels", "classes"}


def test_the_folders_may_lie_anywhere_and_workers_may_be_many(
    scenes: Path, labels: Path, labelled: Path, tmp_path: Path
):
    moved = shutil.copytree(labels, tmp_path / "elsewhere" / "l")
    assert content(built(scenes, moved, tmp_path / "corpus", workers=2)) == content(labelled)


def test_on_object_storage_they_are_the_same_and_read_by_offset(
    scenes: Path, labels: Path, labelled: Path, store: ObjectStore, tmp_path: Path
):
    store.put("of-labels", b"")
    out = place_of("s3://of-labels/corpus", tmp_path / "work")
    build([str(scenes)], out, CONFIG, 0, companions=CompanionFiles(labels=labels))
    near, far = open_corpus(labelled), open_corpus(out)
    assert far.digest == near.digest and far.manifest["shards"] == near.manifest["shards"]
    indices = np.array([4, 0, 11])
    reader = TileReader(far)
    np.testing.assert_array_equal(reader.labels(indices), TileReader(near).labels(indices))
    row = far.tiles().to_pylist()[4]
    name = f"of-labels/corpus/{row['shard']}"
    changed = bytearray(store.get(name))
    changed[row["label_offset"] + 9] ^= 1
    store.put(name, bytes(changed))
    with pytest.raises(CorpusError, match=f"tile {row['key']} is not what the corpus says"):
        reader.labels(indices)


class At:
    """Progress that does something when a stage begins."""

    def __init__(self, stage: str, act: Callable[[], object]) -> None:
        self._stage, self._act = stage, act

    def stage(self, name: str, total: int, cost: float = 0.0, there: int = 0) -> None:
        if name == self._stage:
            self._act()

    def advance(self, cost: float = 0.0) -> None: ...
    def say(self, line: str) -> None: ...


@pytest.mark.parametrize("stage", ["labels", "measure", "cut", "shard", "seal"])
def test_a_build_that_ends_early_goes_on_to_the_same_bytes(
    scenes: Path, labels: Path, labelled: Path, tmp_path: Path, stage: str
):
    class Killed(BaseException):
        pass

    def kill() -> None:
        raise Killed

    out, files = tmp_path / "corpus", CompanionFiles(labels=labels)
    with pytest.raises(Killed):
        build([str(scenes)], out, CONFIG, 0, progress=At(stage, kill), companions=files)
    build([str(scenes)], out, CONFIG, 0, companions=files)
    assert content(out) == content(labelled)


@pytest.mark.slow
@pytest.mark.parametrize("stage", ["labels", "cut"])
def test_a_build_that_is_killed_goes_on_to_the_same_bytes(
    scenes: Path, labels: Path, labelled: Path, tmp_path: Path, stage: str
):
    """By SIGKILL, with two workers, once the stage has its first result."""
    run = Build(scenes, tmp_path / "corpus", tmp_path / "tmp")
    process = run.start("--labels", str(labels))
    deadline = time.monotonic() + 120
    while not any(run.records(stage)) and process.poll() is None and time.monotonic() < deadline:
        time.sleep(0.005)
    os.killpg(process.pid, signal.SIGKILL)
    process.communicate()
    assert any(run.records(stage)) and not (tmp_path / "corpus" / "corpus.json").exists()
    done = run.run_raw("--labels", str(labels))
    assert done.returncode == 0, done.stderr
    assert content(tmp_path / "corpus") == content(labelled)


def test_labels_that_change_while_an_unfinished_build_rests_are_read_anew(
    scenes: Path, labels: Path, labelled: Path, tmp_path: Path
):
    class Killed(BaseException):
        pass

    def kill() -> None:
        raise Killed

    out, folder = tmp_path / "corpus", shutil.copytree(labels, tmp_path / "labels")
    labels_beside(scenes / "sim-002.tif", folder / "sim-002.tif", 99)
    files = CompanionFiles(labels=folder)
    with pytest.raises(Killed):
        build([str(scenes)], out, CONFIG, 0, progress=At("seal", kill), companions=files)
    shutil.copy(labels / "sim-002.tif", folder / "sim-002.tif")
    build([str(scenes)], out, CONFIG, 0, companions=files)
    assert content(out) == content(labelled)


def test_labels_that_change_while_they_are_read_are_told(scenes: Path, labels: Path, tmp_path: Path):
    folder = shutil.copytree(labels, tmp_path / "labels")
    touched = At("cut", lambda: os.utime(folder / "sim-002.tif", (1, 1)))
    build([str(scenes)], tmp_path / "corpus", CONFIG, 0, progress=touched, companions=CompanionFiles(labels=folder))
    assert list(reasons(tmp_path / "corpus")) == ["sim-002.tif"]
    assert "changed while it was read" in reasons(tmp_path / "corpus")["sim-002.tif"]


# ----------------------------------------------------------------------------------------- growth, reshard, merge


@pytest.fixture
def days(scenes: Path, labels: Path, tmp_path: Path) -> tuple[Path, Path, Path]:
    """Two scenes in one folder, two in another; a copy of the labels."""
    for folder, numbers in (("first", (0, 1)), ("second", (2, 3))):
        (tmp_path / folder).mkdir()
        for number in numbers:
            shutil.copy2(scenes / f"sim-{number:03d}.tif", tmp_path / folder)
    return tmp_path / "first", tmp_path / "second", shutil.copytree(labels, tmp_path / "labels")


def labels_by_key(corpus: Corpus) -> dict[str, bytes]:
    reader = TileReader(corpus)
    return {key: mine.tobytes() for key, mine in zip(reader.keys, reader.labels(np.arange(len(reader))), strict=True)}


def test_a_labelled_corpus_grows_and_is_made_anew(days: tuple[Path, Path, Path], tmp_path: Path):
    first, _, labels = days
    out, files, both = tmp_path / "corpus", CompanionFiles(labels=labels), [str(days[0]), str(days[1])]
    before = open_corpus(built(first, labels, out))
    kept = {shard.path: (out / shard.path).read_bytes() for shard in before.shards}
    assert not build(both, out, CONFIG, 0, companions=files).already_built
    grown = open_corpus(out)
    assert verify_corpus(grown) == [] and grown.digest != before.digest
    assert all((out / name).read_bytes() == data for name, data in kept.items())
    build(both, tmp_path / "scratch", CONFIG, 0, stats_from=out, companions=files)
    scratch = open_corpus(tmp_path / "scratch")
    assert labels_by_key(grown) == labels_by_key(scratch) and grown.digest == scratch.digest
    assert grown.manifest["labels"] == scratch.manifest["labels"]
    once = content(out)
    assert build(both, out, CONFIG, 0, companions=files).already_built and content(out) == once
    build(both, out, CONFIG, 0, anew="shards", companions=files)
    assert labels_by_key(open_corpus(out)) == labels_by_key(scratch) and verify_corpus(open_corpus(out)) == []


def test_other_labels_of_what_a_corpus_has_are_an_error_and_copies_of_the_same_are_none(
    days: tuple[Path, Path, Path], tmp_path: Path
):
    first, second, labels = days
    out = built(first, labels, tmp_path / "corpus")
    once = content(out)
    moved = shutil.copytree(labels, tmp_path / "moved")  # by other paths and times
    for path in moved.iterdir():
        os.utime(path, (1, 1))
    assert build([str(first)], out, CONFIG, 0, companions=CompanionFiles(labels=moved)).already_built
    assert content(out) == once
    labels_beside(first / "sim-001.tif", moved / "sim-001.tif", 55)
    with pytest.raises(CorpusError, match=r"other labels than .* has of sim-001\.tif.*--reshard"):
        built(first, moved, out)
    labels_beside(first / "sim-001.tif", moved / "sim-001.tif", 1, transform=rasterio.Affine(10, 0, 0, 0, -10, 0))
    with pytest.raises(CorpusError, match=r"other labels than .* has of sim-001\.tif"):
        built(first, moved, out)
    with pytest.raises(CorpusError, match=r"made with other settings .*--labels"):
        built(first, None, out)
    assert content(out) == once
    # labels of what is new alone are enough: nothing contradicts those that the corpus has
    (moved / "sim-000.tif").unlink()
    (moved / "sim-001.tif").unlink()
    assert not build([str(first), str(second)], out, CONFIG, 0, companions=CompanionFiles(labels=moved)).already_built
    assert open_corpus(out).manifest["scenes"] == {"used": 4}


def test_an_unlabelled_corpus_takes_no_labels_but_anew(days: tuple[Path, Path, Path], tmp_path: Path):
    first, _, labels = days
    out = built(first, None, tmp_path / "corpus")
    with pytest.raises(CorpusError, match=r"made with other settings .*--labels"):
        built(first, labels, out)
    build([str(first)], out, CONFIG, 0, anew="shards", companions=CompanionFiles(labels=labels))
    assert open_corpus(out).labelled and verify_corpus(open_corpus(out)) == []


def test_a_scene_that_lacked_labels_comes_with_them(days: tuple[Path, Path, Path], tmp_path: Path):
    first, _, labels = days
    late = (labels / "sim-001.tif").rename(tmp_path / "late.tif")
    out = built(first, labels, tmp_path / "corpus")
    assert list(reasons(out)) == ["sim-001.tif"]
    late.rename(labels / "sim-001.tif")
    built(first, labels, out)
    assert reasons(out) == {} and verify_corpus(open_corpus(out)) == []
    assert set(open_corpus(out).tiles()["source"].to_pylist()) == {"sim-000.tif", "sim-001.tif"}


def test_merged_corpora_keep_their_labels(days: tuple[Path, Path, Path], scenes: Path, tmp_path: Path):
    first, second, labels = days
    files = CompanionFiles(labels=labels)
    a = built(first, labels, tmp_path / "a")
    build([str(first)], tmp_path / "c", CONFIG, 0, stats_from=a, companions=files)
    build([str(second)], tmp_path / "e", CONFIG, 0, stats_from=a, companions=files)
    with pytest.raises(CorpusError, match="the same settings expected, labels differ"):
        merge(a, built(second, None, tmp_path / "plain"), tmp_path / "no", None, "1", 0, Silent())
    merged, left_out = merge(tmp_path / "c", tmp_path / "e", tmp_path / "m", None, "1", 0, Silent())
    assert verify_corpus(merged) == [] and merged.classes == open_corpus(a).classes
    expected = labels_by_key(open_corpus(tmp_path / "c")) | labels_by_key(open_corpus(tmp_path / "e"))
    found = labels_by_key(merged)
    assert found.items() <= expected.items() and len(found) == len(expected) - sum(left_out.values())
    again, _ = merge(tmp_path / "e", tmp_path / "c", tmp_path / "n", None, "1", 0, Silent())
    assert content(again.root) == content(merged.root)  # type: ignore[arg-type]
    labels_beside(second / "sim-002.tif", labels / "sim-002.tif", 66)
    build([str(second)], tmp_path / "f", CONFIG, 0, stats_from=a, companions=files)
    with pytest.raises(CorpusError, match="is in both with other codes, labels or splits"):
        merge(tmp_path / "e", tmp_path / "f", tmp_path / "o", None, "1", 0, Silent())


# ------------------------------------------------------------------------------------------------ verify, describe


def test_verify_finds_a_label_that_changed_and_names_its_tile(labelled: Path, tmp_path: Path):
    out = shutil.copytree(labelled, tmp_path / "corpus")
    row = open_corpus(out).tiles().to_pylist()[5]
    with (out / row["shard"]).open("r+b") as file:
        file.seek(row["label_offset"] + 17)
        value = file.read(1)[0]
        file.seek(row["label_offset"] + 17)
        file.write(bytes([value ^ 1]))
    told = list(map(str, verify_corpus(open_corpus(out))))
    assert any(f"tile {row['key']}: labels differ from the table's hash" in line for line in told)
    assert not any("pixels differ" in line for line in told)


def test_the_manifest_is_of_the_schema_and_other_programs_read_the_description(
    labelled: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    jsonschema = pytest.importorskip("jsonschema", reason="the schema is checked by jsonschema (extra dev)")
    schema = json.loads((Path(__file__).parents[2] / "docs" / "corpus.schema.json").read_text())
    manifest = json.loads((labelled / "corpus.json").read_text())
    checker = jsonschema.Draft202012Validator(schema)
    assert not list(checker.iter_errors(manifest))
    for wrong in ({"classes": {"255": "x"}, "ignored": 255}, {"classes": {}, "ignored": 0}, {"classes": {"1": ""}}):
        assert list(checker.iter_errors({**manifest, "labels": wrong}))
    mlc = pytest.importorskip("mlcroissant", reason="Croissant is validated by mlcroissant (extra dev)")
    monkeypatch.setenv("CROISSANT_CACHE", str(tmp_path / "cache"))
    corpus = open_corpus(labelled)
    export(corpus, tmp_path / "out", croissant_json=True, stac_collection=False)
    dataset = mlc.Dataset(jsonld=str(tmp_path / "out" / "croissant.json"))
    assert not dataset.metadata.ctx.issues.errors
    rows = {row["key"]: row for row in corpus.tiles().to_pylist()}
    for name, column in (("labels", "label_hash"), ("samples", "content_hash")):
        found = {one[f"{name}/key"].decode(): one[f"{name}/npy"] for one in dataset.records(name)}
        assert found.keys() == rows.keys()
        for key in list(rows)[::9]:
            assert tile_hash(np.load(io.BytesIO(found[key])).tobytes()) == rows[key][column]


def test_the_command_line_takes_the_folder(scenes: Path, labels: Path, labelled: Path, tmp_path: Path):
    words = f"build {scenes} --out {tmp_path / 'corpus'} --labels {labels} --workers 0 --json".split()
    options = "--tile-size 64 --shard-mib 1 --val-share 0.3 --cell-km 3".split()
    done = CliRunner().invoke(sarsense_app, [*words, *options])
    assert done.exit_code == 0, done.stderr
    assert json.loads(done.stdout)["digest"] == open_corpus(labelled).digest
    told = json.loads((tmp_path / "corpus" / "corpus.json").read_text())
    assert told["labels"]["classes"] == {str(value): str(value) for value in range(8)}


def test_a_plan_counts_labels_and_tells_what_would_be_refused(scenes: Path, labels: Path, tmp_path: Path):
    folder = shutil.copytree(labels, tmp_path / "labels")
    (folder / "sim-003.tif").unlink()
    found = plan([str(scenes)], tmp_path / "corpus", CONFIG, 0, Silent(), None, CompanionFiles(labels=folder), False)
    assert (found.needs.usable, found.needs.refused) == (3, {"--labels has no raster of this scene": 1})
    assert found.needs.tiles == 3 * 2 * 25
    assert found.needs.corpus_bytes == found.needs.tiles * (2 * 64 * 64 + 4096 + 1536)
    assert not (tmp_path / "corpus").exists()


# --------------------------------------------------------------------------------------------------------- a probe


def test_tiles_are_places_for_a_probe_and_no_ground_is_in_two_blocks(scenes: Path, labels: Path, tmp_path: Path):
    corpus = open_corpus(built(scenes, labels, tmp_path / "corpus", replace(OVERLAPPING, cell_km=1.0, guard_km=0.05)))
    places, classes = corpus_places(corpus, pretrained=corpus)
    assert list(classes) == [str(value) for value in range(8)]
    rows, reader = corpus.tiles().to_pylist(), TileReader(corpus, eight_bit=True)
    assert [place.name for place in places] == [row["key"] for row in rows]
    assert [place.split for place in places] == [row["split"] for row in rows]
    assert all(place.seen for place in places if place.split == "train")
    assert places[0].georeference == (rows[0]["crs"], tuple(rows[0]["transform"]))
    for index in (0, 7, len(rows) - 1):
        images, values = places[index].read()
        np.testing.assert_array_equal(images, reader.read(np.array([index]))[0])
        np.testing.assert_array_equal(values, map_labels(reader.labels(np.array([index]))[0], classes))
        assert places[index].classes() == set(values[values != IGNORED].tolist())
    shapes = shapely.from_wkb([row["footprint"] for row in rows])
    for i, shape in enumerate(shapes):  # by brute force
        shared = shapely.area(shapely.intersection(shape, shapes)) > 1e-2 * shape.area
        assert {places[j].block for j in np.flatnonzero(shared)} == {places[i].block}
    assert len({place.block for place in places}) >= 4
    sides = {place.block: set() for place in places}
    for place in places:
        sides[place.block].add(place.split)
    assert all(len(found) == 1 for found in sides.values())


def test_places_beside_each_other_on_the_ground_may_be_in_two_blocks(scenes: Path, labels: Path, tmp_path: Path):
    """Tiles that touch share no ground; polarisations of a window, and unplaced scenes, are one block each."""
    corpus = open_corpus(built(scenes, labels, tmp_path / "corpus", replace(CONFIG, cell_km=1.0, guard_km=0.0)))
    places, _ = corpus_places(corpus)
    windows: dict[tuple[Any, ...], set[str]] = {}
    for place, row in zip(places, corpus.tiles().to_pylist(), strict=True):
        windows.setdefault((row["scene"], row["row"], row["col"]), set()).add(place.block)
    assert all(len(blocks) == 1 for blocks in windows.values())
    assert len({block for blocks in windows.values() for block in blocks}) > 8
    chips = tmp_path / "chips"
    for name, seed in (("a_VV", 0), ("a_VH", 1), ("b_VV", 2)):
        write_raster(chips / f"{name}.tif", 10 * np.log10(speckled_power((64, 128), 4.0, seed)), crs=None)
    for seed, name in enumerate("ab"):
        labels_beside(chips / f"{name}_VV.tif", tmp_path / "masks" / f"{name}.png", seed, driver="PNG", nodata=None)
    config = replace(CONFIG, allow_unplaced=True, val_share=0.0)
    places, _ = corpus_places(open_corpus(built(chips, tmp_path / "masks", tmp_path / "unplaced", config)))
    assert (
        sorted((place.name.split("-")[0][:1], place.block) for place in places) == [("a", "a")] * 4 + [("b", "b")] * 2
    )
    assert places[0].georeference == (None, None)


# --------------------------------------------------------------------------------------------------------- real data


def test_real_scenes_with_maps_of_land_cover(real_data: Path, tmp_path: Path):
    """Sentinel-1 RTC of three places; map 1 of 3 is filed under another stem, map 3 shifted (derived)."""
    source, masks = real_data / "terramind-rtc" / "S1RTC", tmp_path / "masks"
    masks.mkdir()
    names = sorted(path.name for path in source.glob("*.tif"))
    for name in names:
        shutil.copy(real_data / "terramind-rtc" / "LULC" / name, masks)
    config = BuildConfig(tile_size=64, val_share=0.0, bands="stack", polarisations=("b1", "b2"), unit="db")
    corpus = open_corpus(built(source, masks, tmp_path / "corpus", config))
    assert corpus.manifest["scenes"] == {"used": 3} and verify_corpus(corpus) == []
    assert corpus.classes is not None and set(corpus.classes) <= set(range(1, 10))
    rows, reader = corpus.tiles().to_pylist(), TileReader(corpus)
    assert len(rows) >= 20
    for row, mine in zip(rows, reader.labels(np.arange(len(rows))), strict=True):
        np.testing.assert_array_equal(mine, window_of(masks, row, row["source"], 64))
    (masks / names[0]).rename(masks / f"map of {names[0]}")
    with rasterio.open(masks / names[2], "r+") as dataset:
        dataset.transform = dataset.transform @ rasterio.Affine.translation(0.5, 0)
    told = reasons(built(source, masks, tmp_path / "refused", config))
    assert told[names[0]].startswith("--labels has no raster") and "another grid" in told[names[2]]
    assert set(told) == {names[0], names[2]}


def test_a_labelled_corpus_is_a_layout_of_evaluations(labelled, tmp_path):
    """`dic3l evaluate --layout shards`: the places of `corpus_places`, in its classes, coded already."""
    found = labelled_data(labelled, "shards", None, None)
    places, classes = corpus_places(open_corpus(labelled))
    assert found.classes == list(classes) and [place.name for place in found.places] == [one.name for one in places]
    np.testing.assert_array_equal(found.places[0].read()[1], places[0].read()[1])
    assert found.coding == coding_of(open_corpus(labelled))
    with pytest.raises(ConfigError, match="names its classes"):
        labelled_data(labelled, "shards", None, {"a": (1,)})
    result = evaluate([], labelled, tmp_path, "shards", seeds=1, pixels=500)
    assert result["classes"] == found.classes and len(result["splits"]) == 1
