"""A build: the same bytes however it runs, every file accounted for, bad input told and survived."""

from __future__ import annotations

import errno
import json
import os
import re
import shutil
import signal
import socket
import subprocess
import time
from collections import Counter
from collections.abc import Callable
from contextlib import contextmanager, nullcontext
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import rasterio

from pipelines.build import build, scan
from sarsense.codes import decode
from sarsense.config import BuildConfig
from sarsense.corpus import open_corpus
from sarsense.errors import CorpusError, SarsenseError
from sarsense.normalize import GroupRange
from sarsense.shards import TileReader
from sarsense.verify import verify_corpus
from tests.conftest import speckled_power, write_raster
from tests.pipelines.small import CONFIG, SARSENSE, content

# ------------------------------------------------------------------------------------------------- determinism


@pytest.mark.parametrize("workers", [1, 2])
def test_the_bytes_do_not_depend_on_workers(scenes: Path, reference: Path, tmp_path: Path, workers: int):
    environment = dict(os.environ)
    build([str(scenes)], tmp_path / "corpus", CONFIG, workers=workers)
    assert os.environ == environment  # Dask would leave OMP_NUM_THREADS=1 to whatever runs in this process next
    assert content(tmp_path / "corpus") == content(reference)


@pytest.mark.parametrize("workers", [0, 2])
def test_the_bytes_do_not_depend_on_the_parts_that_scenes_are_worked_on_in(
    scenes: Path, reference: Path, tmp_path: Path, monkeypatch, workers: int
):
    """Parts are decided here, and made by the workers."""
    for module in ("sarsense.measure", "sarsense.cut"):
        monkeypatch.setattr(f"{module}.PART_PIXELS", 100 * 320)
    build([str(scenes)], tmp_path / "corpus", CONFIG, workers=workers)
    assert content(tmp_path / "corpus") == content(reference)
    records = len(list((tmp_path / "corpus" / ".build" / "measure").glob("*.json")))
    assert records == 4 * (1 + 4)  # of each scene its hash, and 320 rows in parts of 84


def test_the_bytes_do_not_depend_on_where_the_sources_lie_or_their_order(scenes: Path, reference: Path, tmp_path: Path):
    moved = tmp_path / "elsewhere"
    moved.mkdir()
    for path in sorted(scenes.iterdir(), reverse=True):
        (moved / path.name).write_bytes(path.read_bytes())
    files = sorted((str(path) for path in moved.iterdir()), reverse=True)
    build(files, tmp_path / "corpus", CONFIG, workers=0)
    assert content(tmp_path / "corpus") == content(reference)


@pytest.mark.parametrize(
    "stages",
    [("cut",), pytest.param(("scan", "measure", "cut", "shard"), marks=pytest.mark.slow)],
    ids=["once", "always"],
)
def test_a_build_killed_at_any_moment_goes_on_to_the_same_bytes(
    scenes: Path, reference: Path, tmp_path: Path, stages: tuple[str, ...]
):
    """kill -9 of the whole process group as soon as each stage has left its first record."""
    out = tmp_path / "corpus"
    command = [*SARSENSE, "build", str(scenes), "--out", str(out), "--workers", "2", "--tile-size", "64"]
    command += ["--shard-mib", "1", "--val-share", "0.3", "--cell-km", "3"]
    killed = 0
    for stage in stages:
        process = subprocess.Popen(
            command, start_new_session=True, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL
        )
        while process.poll() is None and not list((out / ".build" / stage).glob("*.json")):
            time.sleep(0.01)
        if process.poll() is None:
            os.killpg(process.pid, signal.SIGKILL)
            killed += 1
        process.wait()
        if (out / "corpus.json").is_file():
            break
        with pytest.raises(CorpusError, match="this build is not finished"):
            open_corpus(out)
    assert killed >= max(len(stages) - 1, 1)
    done = subprocess.run(command, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert content(out) == content(reference)


@pytest.mark.slow
def test_ctrl_c_says_one_line_and_the_same_command_goes_on(scenes: Path, reference: Path, tmp_path: Path):
    """SIGINT to all processes, as a terminal sends it: no worker answers with a traceback."""
    out = tmp_path / "corpus"
    command = [*SARSENSE, "build", str(scenes), "--out", str(out), "--workers", "2", "--tile-size", "64"]
    command += ["--shard-mib", "1", "--val-share", "0.3", "--cell-km", "3"]
    process = subprocess.Popen(
        command,
        start_new_session=True,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        # a shell starts background jobs, and with them this suite, with SIGINT ignored
        preexec_fn=lambda: signal.signal(signal.SIGINT, signal.SIG_DFL),
    )
    while process.poll() is None and not list((out / ".build" / "scan").glob("*.json")):
        time.sleep(0.01)
    os.killpg(process.pid, signal.SIGINT)
    printed, told = process.communicate(timeout=60)
    assert process.returncode == 130 and printed == ""
    lines = [line for line in told.splitlines() if not re.match(r"dashboard: |\w+: [\d,/]+ (files|scenes)", line)]
    assert lines == ["stopped by SIGINT; the same command goes on from here"]
    assert subprocess.run(command, capture_output=True).returncode == 0
    assert content(out) == content(reference)


def test_a_full_disk_is_no_fault_of_a_scene(scenes: Path, reference: Path, tmp_path: Path, monkeypatch):
    """The codes of the second scene do not fit: an error, nothing remembered; with room, the usual bytes."""
    from sarsense import cut

    written = cut.atomic_write
    calls = iter(range(100))

    class Full:
        def write(self, data: bytes) -> int:
            raise OSError(errno.ENOSPC, "No space left on device")

    @contextmanager
    def sometimes_full(path: Path, **settings):
        with written(path, **settings) as file:
            yield Full() if next(calls) == 1 else file

    out = tmp_path / "corpus"
    with monkeypatch.context() as patch:
        patch.setattr(cut, "atomic_write", sometimes_full)
        with pytest.raises(SarsenseError, match=r"No space left on device.*run the same command again"):
            build([str(scenes)], out, CONFIG, workers=0)
    assert not (out / "corpus.json").exists()
    build([str(scenes)], out, CONFIG, workers=0)
    assert content(out) == content(reference)


def test_another_seed_or_setting_gives_other_bytes(scenes: Path, reference: Path, tmp_path: Path):
    other = BuildConfig(tile_size=64, shard_mib=1, val_share=0.3, cell_km=3.0, seed=1)
    build([str(scenes)], tmp_path / "corpus", other, workers=0)
    assert content(tmp_path / "corpus") != content(reference)


def test_a_finished_build_is_not_done_again_and_another_one_is_refused(scenes: Path, reference: Path):
    before = content(reference)
    assert build([str(scenes)], reference, CONFIG, workers=0).already_built
    with pytest.raises(CorpusError, match=r"made with other settings \(--tile-size, .*choose another --out"):
        build([str(scenes)], reference, BuildConfig(tile_size=32), workers=0)
    assert build([str(next(scenes.glob("*.tif")))], reference, CONFIG, workers=0).already_built  # it holds that one
    assert content(reference) == before


def test_a_finished_corpus_that_lost_a_shard_is_not_called_built(scenes: Path, reference: Path, tmp_path: Path):
    for damage in ("missing", "bytes, expected"):
        copy = tmp_path / damage.partition(" ")[0]
        shutil.copytree(reference, copy)
        shard = copy / open_corpus(copy).shards[0].path
        if damage == "missing":
            shard.unlink()
        else:
            os.truncate(shard, 1000)
        with pytest.raises(CorpusError, match=rf"{damage}.*restore it, or --reshard"):
            build([str(scenes)], copy, CONFIG, workers=0)
        build([str(scenes)], copy, CONFIG, workers=0, anew="shards")
        assert verify_corpus(open_corpus(copy)) == [] and content(copy) == content(reference)


def test_verify_sees_every_file_that_was_changed_removed_or_added(reference: Path, tmp_path: Path):
    def change(name: str, column: str, value: float) -> Callable[[Path], None]:
        def edit(corpus: Path) -> None:
            table = pq.read_table(corpus / name)
            values = pa.array([value] * len(table), table.schema.field(column).type)
            pq.write_table(table.set_column(table.schema.get_field_index(column), column, values), corpus / name)

        return edit

    edits: dict[str, Callable[[Path], object]] = {
        "tiles.parquet: sha256": change("tiles.parquet", "lat", 1.0),
        "tiles.parquet: sha256 ": change("tiles.parquet", "enl_bias_db", 1.0),
        "scenes.parquet: missing": lambda corpus: (corpus / "scenes.parquet").unlink(),
        "duplicates.parquet: missing": lambda corpus: (corpus / "duplicates.parquet").unlink(),
        "tiles.parquet: missing": lambda corpus: (corpus / "tiles.parquet").unlink(),
        "no tile could be checked": lambda corpus: (corpus / "tiles.parquet").write_bytes(b"PAR1"),
        "train/extra.tar: a file that corpus.json does not name": lambda corpus: (corpus / "train/extra.tar").touch(),
    }
    for number, (told, edit) in enumerate(edits.items()):
        copy = tmp_path / str(number)
        shutil.copytree(reference, copy)
        edit(copy)
        assert any(told.strip() in str(problem) for problem in verify_corpus(open_corpus(copy))), told
    for name in ("1", "4"):  # a changed table still opens; a missing one is told in a line
        with nullcontext() if name == "1" else pytest.raises(CorpusError, match=r"tiles\.parquet: missing"):
            open_corpus(tmp_path / name).tiles()


# ------------------------------------------------------------------------------------------------ what is inside


def test_every_pixel_traces_back_to_its_scene_and_its_decibel(scenes: Path, reference: Path):
    """Decoded codes against the source raster, read here by rasterio at the window that the table names."""
    corpus = open_corpus(reference)
    assert verify_corpus(corpus) == []
    table = corpus.tiles()
    reader = TileReader(corpus, split="train")
    rows = {row["key"]: row for row in table.to_pylist()}
    for index in range(0, len(reader), 17):
        row = rows[reader.keys[index]]
        bounds = GroupRange(**corpus.manifest["groups"][row["group"]])
        codes = reader.read(np.array([index]))[0, 0]
        with rasterio.open(scenes / row["source"]) as dataset:
            window = rasterio.windows.Window(row["col"], row["row"], 64, 64)  # type: ignore[reportCallIssue]
            db = 10 * np.log10(dataset.read(row["band"], window=window).astype(float))  # simulated: linear power
        inside = (codes > 1) & (codes < 255)
        step = (bounds.hi_db - bounds.lo_db) / 254
        error = np.abs(decode(codes, bounds.lo_db, bounds.hi_db) + row["enl_bias_db"] - db)[inside]
        assert inside.mean() > 0.9 and error.max() <= step / 2 * 1.001


def test_no_train_tile_overlaps_a_val_tile(reference: Path):
    import shapely

    table = open_corpus(reference).tiles()
    shapes = {
        split: shapely.from_wkb(table.filter(np.array(table["split"]) == split)["footprint"].to_pylist())
        for split in ("train", "val")
    }
    assert len(shapes["train"]) and len(shapes["val"])
    tree = shapely.STRtree(shapes["train"])
    pairs = tree.query(shapes["val"], predicate="intersects")
    areas = shapely.area(shapely.intersection(shapes["val"][pairs[0]], shapes["train"][pairs[1]]))
    assert areas.size == 0 or areas.max() < 1e-12


def test_footprints_open_in_other_tools(reference: Path):
    """GeoParquet: its metadata, and that footprints lie where rasterio says the scene does."""
    table = pq.read_table(reference / "tiles.parquet")
    geo = json.loads(table.schema.metadata[b"geo"])
    assert geo["primary_column"] == "footprint" and geo["columns"]["footprint"]["encoding"] == "WKB"


# --------------------------------------------------------------------------------------------------- bad input


@pytest.fixture
def bad_scenes(tmp_path: Path) -> Path:
    """Bad files of each kind among good ones."""
    root = tmp_path / "in"
    for seed in range(2):
        db = 10 * np.log10(speckled_power((128, 128), 4, seed)).astype(np.float32)
        write_raster(root / f"good{seed}_VV.tif", db)
    (root / "same_VV.tif").write_bytes((root / "good0_VV.tif").read_bytes())
    (root / "text_VV.tif").write_text("no raster at all\n")
    big = 10 * np.log10(speckled_power((512, 512), 4, 9)).astype(np.float32)
    whole = write_raster(root / "cut_VV.tif", big)
    whole.write_bytes(whole.read_bytes()[: whole.stat().st_size // 2])
    write_raster(root / "empty_VV.tif", np.full((128, 128), np.nan, np.float32), nodata=np.nan)
    write_raster(root / "unplaced_VV.tif", db[:, ::-1].copy(), crs=None)
    write_raster(root / "small_VV.tif", db[:40, :40].copy())
    (root / "zero_VV.tif").touch()
    (root / "README.txt").write_text("about")
    return root


def test_bad_scenes_among_good_ones_are_recorded_and_the_build_goes_on(bad_scenes: Path, tmp_path: Path):
    summary = build([str(bad_scenes)], tmp_path / "corpus", CONFIG, workers=0)
    rows = {row["path"]: row for row in open_corpus(tmp_path / "corpus").scenes.to_pylist()}
    assert rows.keys() == {path.name for path in bad_scenes.iterdir()}
    assert Counter(row["status"] for row in rows.values()) == {"used": 2, "duplicate": 1, "refused": 6, "sidecar": 1}
    assert (summary.scenes_used, summary.scenes_duplicate, summary.scenes_refused, summary.sidecars) == (2, 1, 6, 1)
    reasons = {name.split("_")[0]: row["reason"] for name, row in rows.items() if row["status"] == "refused"}
    expected = {
        "text": "not a raster that GDAL knows",
        "cut": "truncated",
        "empty": "no valid pixel",
        "unplaced": "--allow-unplaced",
        "small": "smaller than a tile",
        "zero": "not a raster that GDAL knows",
    }
    for name, words in expected.items():
        assert words in reasons[name] and "\n" not in reasons[name], reasons[name]
    assert rows["same_VV.tif"]["reason"] == "the same values as good0_VV.tif"


def test_unplaced_scenes_are_taken_when_asked_and_have_no_footprint(bad_scenes: Path, tmp_path: Path):
    config = BuildConfig(tile_size=64, allow_unplaced=True, val_share=0.0)
    build([str(bad_scenes / "unplaced_VV.tif")], tmp_path / "corpus", config, workers=0)
    table = open_corpus(tmp_path / "corpus").tiles()
    assert len(table) == 4 and set(table["footprint"].to_pylist()) == {None} and set(table["lon"].to_pylist()) == {None}


def test_nothing_usable_is_an_error_that_says_why(bad_scenes: Path, tmp_path: Path):
    with pytest.raises(SarsenseError, match=r"no usable scene in .*empty_VV.tif: .*no valid pixel"):
        build([str(bad_scenes / "empty_VV.tif")], tmp_path / "corpus", CONFIG, workers=0)


def test_scan_says_the_same_as_build_and_writes_nothing(bad_scenes: Path, tmp_path: Path):
    before = {path: path.stat().st_mtime_ns for path in tmp_path.rglob("*")}
    rows = {row["path"]: row for row in scan([str(bad_scenes)], CONFIG)}
    assert {path: path.stat().st_mtime_ns for path in tmp_path.rglob("*")} == before
    assert {rows[name]["status"] for name in ("text_VV.tif", "unplaced_VV.tif", "small_VV.tif")} == {"refused"}
    assert rows["good0_VV.tif"]["status"] == "usable" and rows["README.txt"]["status"] == "sidecar"


def test_another_dask_on_the_default_port_is_no_matter():
    """Its HTTP server holds port 8787, or this one does; a warning would be an error here."""
    from distributed import LocalCluster

    from pipelines.cluster import open_runner

    with (
        LocalCluster(n_workers=0, processes=False, dashboard_address="127.0.0.1:8787")
        if not _taken(8787)
        else nullcontext(),
        open_runner(1, None) as runner,
    ):
        outcomes: list[object] = []
        runner.run(abs, [(-3,)], lambda index, outcome: outcomes.append(outcome))
    assert outcomes == [3]


def _taken(port: int) -> bool:
    with socket.socket() as probe:
        return probe.connect_ex(("127.0.0.1", port)) == 0


@pytest.mark.slow
def test_a_worker_that_dies_costs_one_scene_not_the_build():
    """Two tasks kill their processes: they alone are given up, not those that waited behind them."""
    from pipelines.cluster import open_runner
    from tests.pipelines.deadly import deadly

    outcomes: dict[int, object] = {}
    with open_runner(2, None) as runner:
        runner.run(deadly, [(value,) for value in range(12)], lambda index, outcome: outcomes.update({index: outcome}))
    assert {index for index, outcome in outcomes.items() if isinstance(outcome, Exception)} == {3, 4}
    assert {index: outcomes[index] for index in range(12) if index not in (3, 4)} == {
        index: index**2 for index in range(12) if index not in (3, 4)
    }


# --------------------------------------------------------------------------------------------------- real data


@pytest.mark.slow
def test_every_real_file_is_accounted_for(real_data: Path, tmp_path: Path):
    """Everything under shared/data, by the command line: exit 0, a row a file, no warning of anyone's."""
    out = tmp_path / "corpus"
    command = [*SARSENSE, "build", str(real_data), "--out", str(out), "--tile-size", "128", "--allow-unplaced"]
    done = subprocess.run([*command, "--workers", "2", "--json"], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    for word in ("Traceback", "Warning", "ERROR", "distributed"):
        assert word not in done.stderr and word not in done.stdout
    files = [path for path in real_data.rglob("*") if path.is_file()]
    rows = open_corpus(out).scenes.to_pylist()
    assert Counter(row["path"] for row in rows) == Counter(path.relative_to(real_data).as_posix() for path in files)
    summary = json.loads(done.stdout)
    assert (
        summary["files"]
        == len(files)
        == sum(summary[name] for name in ("scenes_used", "scenes_duplicate", "scenes_refused", "sidecars"))
    )
    assert all(row["reason"] for row in rows if row["status"] != "used")
    assert verify_corpus(open_corpus(out)) == []
