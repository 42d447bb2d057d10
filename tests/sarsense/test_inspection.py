"""Looking into shards: what was named is opened, asked, read, shown and written, of corpora and of tars of others."""

from __future__ import annotations

import base64
import io
import json
import re
import shutil
import tarfile
import threading
from collections import Counter
from contextlib import suppress
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pyproj
import pytest
import rasterio
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image
from rasterio.errors import NotGeoreferencedWarning

from cli import run_sarsense
from pipelines.build import build
from sarsense.config import BuildConfig
from sarsense.corpus import open_corpus
from sarsense.errors import CorpusError, SarsenseError, SettingError, ShardError
from sarsense.inspection.choice import near, outliers, spread
from sarsense.inspection.get import get
from sarsense.inspection.listing import heads, listing
from sarsense.inspection.map import write_map
from sarsense.inspection.query import columns_of, count, select
from sarsense.inspection.sheet import terminal_picture
from sarsense.inspection.show import show
from sarsense.inspection.source import Source, open_source
from sarsense.inspection.statistics import statistics
from sarsense.inspection.text import plain
from sarsense.inspection.tile import read_tile
from sarsense.report.datasheet import sections
from sarsense.report.footprints import footprint_map
from sarsense.report.histograms import code_histograms
from sarsense.simulate import simulate
from tests.conftest import speckled_power, write_raster, write_tar

KEPT = 64


@pytest.fixture(scope="module")
def root(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Four simulated scenes, both polarisations and contents, in several shards."""
    root = tmp_path_factory.mktemp("inspection")
    simulate(root / "sim", scenes=4, size=256, looks=4.0, seed=0)
    config = BuildConfig(tile_size=64, val_share=0.3, content="both", shard_mib=1, name="look")
    build([str(root / "sim" / "scenes")], root / "corpus", config, workers=0)
    return root


@pytest.fixture(scope="module")
def source(root: Path) -> Source:
    return open_source(str(root / "corpus"))


def _npy(array: np.ndarray) -> bytes:
    buffer = io.BytesIO()
    np.save(buffer, array, allow_pickle=True)
    return buffer.getvalue()


def _picture(array: np.ndarray, kind: str) -> bytes:
    buffer = io.BytesIO()
    Image.fromarray(array).save(buffer, kind)
    return buffer.getvalue()


# ------------------------------------------------------------------------------------------------------------ open


def test_a_corpus_its_shards_and_globs_of_them_are_that_corpus(root: Path, source: Source):
    corpus = root / "corpus"
    whole = open_corpus(corpus)
    assert len(whole.shards) > 2 and count(source) == len(whole.tiles())
    first = open_source(str(corpus / whole.shards[0].path))
    assert first.corpus is not None and count(first) == whole.shards[0].tiles
    train = open_source(str(corpus / "train" / "*.tar"))
    assert count(train) == len(whole.tiles("train")) and "shards" in train.name
    both = open_source(str(corpus / "**" / "*.tar"))
    assert both.corpus is None or count(both) == len(whole.tiles())


def test_what_is_not_there_is_told(root: Path, tmp_path: Path):
    with pytest.raises(SettingError, match=r"found none; in a shell, put it in quotes"):
        open_source(str(tmp_path / "*.tar"))
    for name in ("nothing", "nothing.tar"):
        with pytest.raises(CorpusError, match="no such"):
            open_source(str(tmp_path / name))
    (tmp_path / "text.tar").write_text("no tar " * 200)
    with pytest.raises(ShardError, match=r"text\.tar: expected a whole, uncompressed tar"):
        open_source(str(tmp_path / "text.tar"))
    whole = (root / "corpus" / open_corpus(root / "corpus").shards[0].path).read_bytes()
    (tmp_path / "cut.tar").write_bytes(whole[: len(whole) // 2 + 100])
    with pytest.raises(ShardError, match=r"cut\.tar"):
        open_source(str(tmp_path / "cut.tar"))


@pytest.mark.parametrize(
    "edit", [{"path": "../a.tar"}, {"path": "/dev/zero"}, {"path": "train/../../a.tar"}, {"path": "a.tar"},
             {"sha256": "../../a"}, {"sha256": 5}],
)  # fmt: skip
def test_a_shard_outside_the_corpus_is_none(root: Path, tmp_path: Path, edit: dict[str, object]):
    manifest = json.loads((root / "corpus" / "corpus.json").read_text())
    manifest["shards"][0] |= edit
    (tmp_path / "corpus.json").write_text(json.dumps(manifest))
    with pytest.raises(CorpusError, match="not a corpus manifest"):
        open_source(str(tmp_path))


def test_a_row_reads_no_file_but_shards(root: Path, source: Source, tmp_path: Path):
    row = select(source, limit=1).to_pylist()[0]
    assert source.corpus is not None
    shutil.copy(source.corpus.root / row["shard"], tmp_path / "outside.tar")
    with pytest.raises(ShardError, match=r"tiles\.parquet: a shard of corpus\.json"):
        read_tile(source, {**row, "shard": str(tmp_path / "outside.tar")})


@pytest.mark.parametrize(
    "edit",
    [{"format": "three"}, {"format": None}, {"tile_shape": None}, {"dtype": "words"}, {"shards": [{}]}, {"shards": 5},
     {"config": []}, {"labels": 1}, {"name": ...}, {"digest": ...}, {"config": ...}, {"shards": ...}],
)  # fmt: skip
def test_a_manifest_that_is_none_is_told_in_a_line(root: Path, tmp_path: Path, edit: dict[str, object]):
    manifest = {**json.loads((root / "corpus" / "corpus.json").read_text()), **edit}
    kept = {name: value for name, value in manifest.items() if value is not ...}
    (tmp_path / "corpus.json").write_text(json.dumps(kept))
    with pytest.raises(CorpusError, match=r"corpus\.json: not a corpus manifest \(.+\); build"):
        open_source(str(tmp_path))


def test_a_folder_whose_name_looks_like_a_glob_is_that_folder(root: Path, source: Source, tmp_path: Path):
    folder = tmp_path / "run [v2]*"
    shutil.copytree(root / "corpus", folder / "corpus")
    named = open_source(str(folder / "corpus"))
    assert named.corpus is not None and count(named) == count(source)
    assert open_source(str(folder / "corpus" / named.corpus.shards[0].path)).shards == (named.corpus.shards[0].path,)


def test_a_shard_named_from_within_its_folder_is_of_its_corpus(
    root: Path, source: Source, monkeypatch: pytest.MonkeyPatch
):
    assert source.corpus is not None
    shard = source.corpus.shards[0].path
    monkeypatch.chdir((root / "corpus" / shard).parent)
    for name in (Path(shard).name, f"./{Path(shard).name}", f"../{shard}"):
        assert open_source(name).shards == (shard,)


def test_a_signed_address_is_no_glob_and_a_packed_tar_is_no_folder(
    tmp_path: Path, root: Path, monkeypatch: pytest.MonkeyPatch
):
    from sarsense import remote

    asked: list[str] = []
    monkeypatch.setattr(remote, "exists", lambda path: asked.append(path) or False)
    with pytest.raises(CorpusError, match=r"https://host/a\.tar: no such file"):
        open_source("https://host/a.tar?signature=1")
    assert asked == ["/vsicurl/https://host/a.tar?signature=1"]
    (tmp_path / "a.tar.gz").write_bytes(b"\x1f\x8b")
    with pytest.raises(CorpusError, match="not compressed"):
        open_source(str(tmp_path / "a.tar.gz"))


# ----------------------------------------------------------------------------------------------------------- query


def test_conditions_and_orders_are_those_of_a_plain_filter(source: Source):
    assert source.corpus is not None
    rows = source.corpus.tiles().to_pylist()
    wanted = [row["key"] for row in rows if row["polarisation"] == "VH" and row["mean_db"] < -14]
    assert select(source, ["key"], "polarisation = 'VH' and mean_db < -14")["key"].to_pylist() == wanted
    down = sorted(rows, key=lambda row: (-row["mean_db"], row["key"]))
    assert select(source, ["key"], sort="-mean_db", limit=9)["key"].to_pylist() == [row["key"] for row in down[:9]]
    by_sql = select(source, ["key"], sort="mean_db desc, key", limit=5, offset=4)["key"].to_pylist()
    assert by_sql == [row["key"] for row in down[4:9]]
    assert select(source, ["key"])["key"].to_pylist() == [row["key"] for row in rows]
    used = "scene in (select scene from scenes where status = 'used')"
    assert count(source, used) == len(rows) and count(source, "true -- and then") == len(rows)


@pytest.mark.parametrize(
    ("where", "told"),
    [
        ("sensr = 'S1'", "sensr"),
        ("enl <", "syntax error"),
        ("true) ; DROP VIEW tiles; SELECT (true", "more statements"),
        ("key in (select content from read_text('/etc/passwd'))", "disabled by configuration"),
        ("key in (select key from '/etc/hosts')", "/etc/hosts"),
        ("mean_db > 'much'", "much"),
    ],
)
def test_a_condition_that_is_none_or_wants_out_is_refused_in_a_line(source: Source, where: str, told: str):
    with pytest.raises(SettingError, match=re.escape(told)) as error:
        count(source, where)
    assert "\n" not in str(error.value)


@settings(max_examples=60, deadline=None)
@given(st.text(max_size=30))
def test_no_condition_is_more_than_an_error(source: Source, where: str):
    try:
        count(source, where)
    except SettingError as error:
        assert "\n" not in str(error)


def test_listing_has_the_columns_that_were_asked_for(source: Source):
    names, rows, of = listing(source, None, None, "key, enl", 3)
    assert names == ["key", "enl"] and len(rows) == 3 and of == count(source)
    names, rows, of = listing(source, "split = 'val'", "key", None, 0)
    assert of == len(rows) == count(source, "split = 'val'") and "footprint" not in names
    with pytest.raises(SettingError, match="no column colour; there are key, "):
        listing(source, None, None, "colour", 1)
    with pytest.raises(SettingError, match="--columns: names"):
        listing(source, None, None, " , ", 1)
    assert listing(source, None, None, "key,key", 1)[0] == ["key"]
    assert [row["key"] for row in heads(source, 2)] == select(source, ["key"], limit=2)["key"].to_pylist()


# ------------------------------------------------------------------------------------------------------------- get


def test_a_geotiff_is_the_scene_at_its_place_to_half_a_code(root: Path, source: Source, tmp_path: Path):
    """Against the scene itself: the same pixel, by the coordinates that rasterio tells of both."""
    assert source.corpus is not None
    rows = source.corpus.tiles().to_pylist()
    scenes = {path.name: path for path in (root / "sim" / "scenes").rglob("*.tif")}
    for row in rows[:: len(rows) // 6]:
        told = get(source, row["key"], tmp_path / "x.tif")
        assert told == f"dB, {row['crs']}"
        with rasterio.open(tmp_path / "x.tif") as tile, rasterio.open(scenes[row["source"]]) as scene:
            assert tile.crs == scene.crs and np.isnan(tile.nodata) and tile.count == 2
            corner = ~scene.transform @ (tile.transform @ (0, 0))
            far = ~scene.transform @ (tile.transform @ (tile.width, tile.height))
            np.testing.assert_allclose(corner, (row["col"], row["row"]), atol=0.01)
            np.testing.assert_allclose(far, (row["col"] + 64, row["row"] + 64), atol=0.01)
            window = ((row["row"], row["row"] + 64), (row["col"], row["col"] + 64))
            power = scene.read(row["band"], window=window).astype(np.float64)
            with np.errstate(divide="ignore", invalid="ignore"):
                expected = 10 * np.log10(power)
            found = tile.read(1)
            bias = row["enl_bias_db"]
            inside = (expected > row["lo_db"] + bias) & (expected < row["hi_db"] + bias) & np.isfinite(found)
            assert inside.mean() > 0.9
            half = (row["hi_db"] - row["lo_db"]) / 254 / 2
            assert np.abs(found - expected)[inside].max() <= half * 1.001 + 1e-4
            assert tile.tags()["key"] == row["key"] and tile.descriptions[0].endswith("speckled, dB")


def test_npy_is_what_lies_in_the_shard_and_png_is_its_grey(source: Source, tmp_path: Path):
    row = select(source, limit=1).to_pylist()[0]
    get(source, row["key"], tmp_path / "x.npy")
    assert source.corpus is not None
    with tarfile.open(source.corpus.root / row["shard"]) as tar:
        member = tar.extractfile(f"{row['key']}.npy")
        assert member is not None
        expected = np.load(io.BytesIO(member.read()))
    np.testing.assert_array_equal(np.load(tmp_path / "x.npy"), expected)
    get(source, row["key"], tmp_path / "x.png")
    with Image.open(tmp_path / "x.png") as picture:
        shown = np.asarray(picture.convert("RGB"))
    side_by_side = np.concatenate(list(expected), axis=1)
    valid = side_by_side > 0
    np.testing.assert_array_equal(shown[valid], np.repeat(side_by_side[valid][:, None], 3, axis=1))
    assert (shown[~valid] == (40, 70, 130)).all()


def test_a_key_that_is_none_and_a_damaged_tile_are_told(root: Path, source: Source, tmp_path: Path):
    key = select(source, ["key"], limit=1)["key"][0].as_py()
    with pytest.raises(SettingError, match=re.escape(f"no tile has the key '{key[:-3]}'; there are {key[:-3]}")):
        get(source, key[:-3], tmp_path / "x.png")
    with pytest.raises(SettingError, match='no tile has the key "it\'s"'):
        get(source, "it's", tmp_path / "x.png")
    with pytest.raises(SettingError, match=r"ends in \.png"):
        get(source, key, tmp_path / "x.jpg")
    copy = shutil.copytree(root / "corpus", tmp_path / "corpus")
    row = select(source, limit=1).to_pylist()[0]
    with (copy / row["shard"]).open("r+b") as file:
        file.seek(row["offset"] + 5)
        file.write(b"\xff\x00\xff\x00")
    with pytest.raises(ShardError, match="is not what the corpus says"):
        get(open_source(str(copy)), key, tmp_path / "x.npy")
    shown = show(open_source(str(copy)), tmp_path / "sheet.png", 400, 20)  # a word in red, no end of the sheet
    assert shown.path is not None and shown.path.is_file()


def test_a_scene_in_slant_range_is_placed_by_its_nearest_affine(tmp_path: Path):
    from sarsense.inspection.get import _placed

    lonlat = [1e-4, 2e-5, 7.0, 1e-5, -9e-5, 53.0]
    place, told = _placed({"crs": None, "transform": None, "lonlat_transform": lonlat})
    assert place["crs"] == "EPSG:4326" and tuple(place["transform"])[:6] == tuple(lonlat) and "nearest" in told
    assert _placed({})[0] == {}


@pytest.mark.parametrize("crs", ["http://127.0.0.1:9/crs", "FILE", "WGS 84 / \x1b[31mUTM", "EPSG:999999", "+init=FILE"])
def test_a_crs_that_is_none_is_told_and_opens_no_file_and_no_address(tmp_path: Path, crs: str):
    (tmp_path / "a.wkt").write_text(rasterio.crs.CRS.from_epsg(32633).to_wkt())
    said = {"crs": crs.replace("FILE", str(tmp_path / "a.wkt")), "transform": [10.0, 0, 5e5, 0, -10, 5e6]}
    write_tar(tmp_path / "a.tar", {"one.npy": _npy(np.ones((8, 8))), "one.json": json.dumps(said).encode()})
    told = get(open_source(str(tmp_path / "a.tar")), "one", tmp_path / "x.tif")
    assert "without a place: its crs is no code" in told and told.isprintable()


@pytest.mark.parametrize("form", [tuple, "affine", "short", "none"])
def test_a_transform_of_another_program_is_taken_where_it_is_one(tmp_path: Path, form: str):
    transform = [10.0, 0.0, 5e5, 0.0, -10.0, 5e6]
    other = {"affine": [*transform, 0, 0, 1], "short": transform[:4], "none": [None] * 6}.get(form, transform)
    said = json.dumps({"crs": "EPSG:32633", "transform": other}).encode()
    write_tar(tmp_path / "a.tar", {"one.npy": _npy(np.ones((8, 8))), "one.json": said})
    told = get(open_source(str(tmp_path / "a.tar")), "one", tmp_path / "x.tif")
    if len(other) < 6 or None in other:
        assert "without a place" in told
        return
    with rasterio.open(tmp_path / "x.tif") as dataset:
        assert tuple(dataset.transform)[:6] == tuple(transform) and dataset.crs.to_epsg() == 32633


def test_numbers_that_geotiff_has_not_are_written_as_such_that_it_has(tmp_path: Path):
    values = np.linspace(-3, 3, 64).reshape(8, 8)
    members = {f"{kind}.npy": _npy(values.astype(kind)) for kind in ("float16", "longdouble", ">f4", "complex64")}
    write_tar(tmp_path / "a.tar", members)
    source = open_source(str(tmp_path / "a.tar"))
    for name in members:
        kind = name.removesuffix(".npy")
        get(source, kind, tmp_path / "x.tif")
        with pytest.warns(NotGeoreferencedWarning), rasterio.open(tmp_path / "x.tif") as dataset:
            expected = np.abs(values) if kind == "complex64" else values
            np.testing.assert_allclose(dataset.read(1), expected, atol=2e-3)


# ------------------------------------------------------------------------------------------------------------ show


def test_a_sheet_is_spread_over_what_there_is_and_drawn_by_its_seed(source: Source):
    chosen = spread(source, 13, seed=0)
    rows = chosen.rows
    keys = [row["key"] for row in rows]
    assert len(set(keys)) == 13 and chosen.of == count(source)
    groups = Counter(row["group"] for row in rows)
    assert max(groups.values()) - min(groups.values()) <= 1
    for group in groups:  # a scene more often than another by one tile at most
        scenes = Counter(row["scene"] for row in rows if row["group"] == group)
        assert max(scenes.values()) - min(scenes.values()) <= 1
    assert keys == [row["key"] for row in spread(source, 13, seed=0).rows]
    assert keys != [row["key"] for row in spread(source, 13, seed=1).rows]
    assert len(spread(source, 400).rows) == min(400, count(source))
    apart = spread(source, 8, by="split")
    assert apart.heads == sorted(apart.heads) and set(apart.heads) == {"train", "val"}
    with pytest.raises(SettingError, match="--by: no column colour"):
        spread(source, 8, by="colour")


def test_the_nearest_tiles_are_those_of_the_ellipsoid(source: Source):
    assert source.corpus is not None
    rows = source.corpus.tiles(columns=["key", "lon", "lat"]).to_pylist()
    lon, lat = rows[7]["lon"] + 0.003, rows[7]["lat"] - 0.002
    metres = pyproj.Geod(ellps="WGS84").inv(
        [lon] * len(rows), [lat] * len(rows), [row["lon"] for row in rows], [row["lat"] for row in rows]
    )[2]
    chosen = near(source, 5, lon, lat)
    for row, note in zip(chosen.rows, chosen.notes, strict=True):
        number = next(i for i, one in enumerate(rows) if one["key"] == row["key"])
        assert float(note.split()[0].replace(",", "")) == pytest.approx(metres[number] / 1000, rel=0.006, abs=0.06)
    assert max(row["km"] for row in chosen.rows) <= np.sort(metres)[4] / 1000 * 1.006
    with pytest.raises(SettingError, match="longitude -180 to 180"):
        near(source, 5, 200, 0)


def test_the_strangest_tiles_come_first_and_say_why(tmp_path: Path):
    """A scene with one dark corner: its tile is the first, by its level."""
    power = speckled_power((512, 512), 8.0, 0)
    power[128:192, 320:384] /= 300
    write_raster(tmp_path / "in" / "a_VV.tif", 10 * np.log10(power))
    build([str(tmp_path / "in")], tmp_path / "corpus", BuildConfig(tile_size=64, val_share=0.0), 0)
    source = open_source(str(tmp_path / "corpus"))
    assert source.corpus is not None
    rows = source.corpus.tiles().to_pylist()
    chosen = outliers(source, 4)
    assert (chosen.rows[0]["key"], chosen.of) == (
        next(r["key"] for r in rows if (r["row"], r["col"]) == (128, 320)),
        len(rows),
    )
    assert re.fullmatch(r"(level|structure) -?\+?[\d.]+ deviations", chosen.notes[0])
    levels = np.array([row["mean_db"] for row in rows])
    mad = np.median(np.abs(levels - np.median(levels)))
    z = (levels.min() - np.median(levels)) / max(1.4826 * mad, 0.1)
    assert chosen.rows[0]["z_level"] == pytest.approx(z, rel=1e-6)


def test_a_sheet_shows_the_codes_and_is_the_same_twice(source: Source, tmp_path: Path):
    for name, seed in (("a", 1), ("b", 1), ("c", 2)):
        show(source, tmp_path / f"{name}.png", 7, 3, seed)
    assert (tmp_path / "a.png").read_bytes() == (tmp_path / "b.png").read_bytes() != (tmp_path / "c.png").read_bytes()
    row = show(source, tmp_path / "one.png", 1, 1).choice.rows[0]
    tile = read_tile(source, select(source, where=f"key = '{row['key']}'").to_pylist()[0])
    with Image.open(tmp_path / "one.png") as picture:
        pixels = np.asarray(picture)
    # 64 pixels repeated to 184: the grey of each is there
    drawn = pixels[58 : 58 + 184, 14 : 14 + 184, 0]
    centres = ((np.arange(64) + 0.5) * 184 / 64).astype(int)
    np.testing.assert_array_equal(drawn[np.ix_(centres, centres)], np.where(tile.pixels[0] == 0, 40, tile.pixels[0]))


def test_wrong_sheets_are_refused(source: Source, tmp_path: Path):
    for arguments, told in (
        ({"count": 0}, "--count"),
        ({"count": 401}, "--count"),
        ({"out": tmp_path / "x.jpg"}, r"ends in \.png"),
        ({"by": "split", "strangest": True}, "one of them"),
        ({"place": "here"}, "LON,LAT"),
        ({"where": "false"}, "no tile for which false"),
    ):
        with pytest.raises(SarsenseError, match=told):
            show(source, **{"out": tmp_path / "x.png", **arguments})
    assert not list(tmp_path.iterdir())


def test_terminals_that_show_pictures_get_the_png_itself():
    png = bytes(range(256)) * 40
    kitty = terminal_picture(png, {"TERM": "xterm-kitty", "KITTY_WINDOW_ID": "1"})
    assert kitty is not None
    chunks = re.findall(r"\x1b_G([^;]*);([^\x1b]*)\x1b\\", kitty)
    assert base64.b64decode("".join(data for _, data in chunks)) == png
    assert chunks[0][0] == "a=T,f=100,m=1" and chunks[-1][0] == "m=0" and max(len(data) for _, data in chunks) <= 4096
    iterm = terminal_picture(png, {"TERM_PROGRAM": "iTerm.app"})
    assert iterm is not None and base64.b64decode(iterm[iterm.index(":") + 1 : iterm.index("\a")]) == png
    for environment in (
        {"TERM": "xterm"},
        {"TERM": "screen", "KITTY_WINDOW_ID": "1"},
        {"TMUX": "x", "TERM_PROGRAM": "WezTerm"},
    ):
        assert terminal_picture(png, environment) is None


@pytest.mark.parametrize(
    "column", ["key", "shard", "offset", "content_hash", "split", "group", "channels", "footprint"]
)
def test_an_empty_cell_of_a_changed_table_is_a_word_or_an_error_in_a_line(root: Path, tmp_path: Path, column: str):
    corpus = shutil.copytree(root / "corpus", tmp_path / "corpus")
    table = pq.read_table(corpus / "tiles.parquet")
    number, field = table.schema.get_field_index(column), table.schema.field(column)
    values = table[column].to_pylist()
    key, values[4] = table["key"][4].as_py(), None
    pq.write_table(table.set_column(number, field, pa.array(values, field.type)), corpus / "tiles.parquet")
    source = open_source(str(corpus))
    show(source, tmp_path / "sheet.png", 400, 20)
    outliers(source, 3)
    write_map(source, tmp_path / "map.html")
    for command in (
        lambda: statistics(source), lambda: code_histograms(open_corpus(corpus)),
        lambda: get(source, key, tmp_path / "x.tif"), lambda: footprint_map(open_corpus(corpus), tmp_path / "f.png"),
        lambda: sections(open_corpus(corpus)),
    ):  # fmt: skip
        with suppress(SarsenseError):
            command()


# ------------------------------------------------------------------------------------------------- tars of others


def test_tars_of_other_programs_are_listed_shown_and_say_what_they_do_not_know(tmp_path: Path):
    rng = np.random.default_rng(0)
    grey, colour = rng.integers(0, 256, (40, 50), np.uint8), rng.integers(0, 256, (40, 50, 3), np.uint8)
    floats = rng.normal(size=(2, 40, 50)).astype(np.float32)
    write_tar(
        tmp_path / "a.tar",
        {
            "one.png": _picture(grey, "PNG"),
            "one.cls": b"3",
            "two.jpg": _picture(colour, "JPEG"),
            "dir/three.npy": _npy(floats),
            "dir/three.json": json.dumps({"sensor": "S1", "lat": "north", "lon": 7.5, "mean_db": -3}).encode(),
            "four.txt": b"words",
            "five.npy": _npy(np.array([object()])),
            "six.json": b"{" * 5000,
        },
    )
    source = open_source(str(tmp_path / "a.tar"))
    table = select(source).to_pylist()
    assert [row["key"] for row in table] == ["one", "two", "dir/three", "four", "five", "six"]
    assert [row["members"] for row in table[:3]] == [["png", "cls"], ["jpg"], ["npy", "json"]]
    assert table[2]["sensor"] == "S1" and table[2]["lon"] == 7.5 and table[2]["mean_db"] == -3.0
    assert "lat" in source.unknown and "enl" in source.unknown and "lat" not in columns_of(source)
    np.testing.assert_array_equal(read_tile(source, table[0]).pixels, grey[None])
    np.testing.assert_array_equal(read_tile(source, table[2]).pixels, floats)
    for row, told in ((table[3], "no member that can be shown"), (table[4], "cannot be read")):
        with pytest.raises(ShardError, match=told):
            read_tile(source, row)
    assert show(source, tmp_path / "sheet.png", 6).path is not None
    assert get(source, "dir/three", tmp_path / "x.tif").endswith("without a place: the tile has none")
    with pytest.warns(NotGeoreferencedWarning), rasterio.open(tmp_path / "x.tif") as dataset:
        np.testing.assert_array_equal(dataset.read(), floats)
    with pytest.raises(SettingError, match="name a corpus"):
        outliers(source, 3)
    with pytest.raises(SettingError, match="of these tars nothing says"):
        count(source, "enl < 5")


def test_members_behind_another_ending_are_shown_where_there_is_no_plain_one(tmp_path: Path):
    """`000.vv.npy`: webdataset takes all behind the first dot for the ending, and decodes by the last part of it."""
    ones = np.ones((8, 8), np.float32)
    write_tar(
        tmp_path / "a.tar",
        {
            "a.b/one.vv.npy": _npy(ones), "a.b/one.vh.npy": _npy(2 * ones), "a.b/one.json": b"{}",
            "two.labels.npy": _npy(3 * ones), "two.png": _picture(np.full((8, 8), 7, np.uint8), "PNG"),
        },
    )  # fmt: skip
    source = open_source(str(tmp_path / "a.tar"))
    rows = select(source).to_pylist()
    assert [(row["key"], row["pixels"]) for row in rows] == [("a.b/one", "vv.npy"), ("two", "png")]
    assert [float(read_tile(source, row).pixels.max()) for row in rows] == [1.0, 7.0]


def test_names_of_another_encoding_stay_names(tmp_path: Path):
    info = tarfile.TarInfo("gr\udcfcn.png")  # Latin-1, as tarfile reads it
    picture = _picture(np.ones((8, 8), np.uint8), "PNG")
    with tarfile.open(tmp_path / "a.tar", "w", format=tarfile.USTAR_FORMAT) as tar:
        for name in ("gr\udcfcn", "gr\udce4n"):
            info.name, info.size = f"{name}.png", len(picture)
            tar.addfile(info, io.BytesIO(picture))
    source = open_source(str(tmp_path / "a.tar"))
    assert select(source, ["key"])["key"].to_pylist() == ["gr\\xfcn", "gr\\xe4n"]
    assert len(show(source, tmp_path / "sheet.png").choice.rows) == 2
    get(source, "gr\\xe4n", tmp_path / "x.png")


def _tiff(width: int, height: int, **more: object) -> bytes:
    """Of zeros, none of them written: a few bytes, whatever its size."""
    from rasterio.io import MemoryFile

    with pytest.warns(NotGeoreferencedWarning), MemoryFile() as file:
        with file.open(driver="GTiff", dtype="uint8", count=1, width=width, height=height, sparse_ok=True, **more):
            pass
        return file.read()


def test_pixels_that_are_none_or_too_many_are_a_word_on_the_sheet(tmp_path: Path):
    members = {
        "none.npy": _npy(np.zeros((0, 5))),
        "thin.npy": _npy(np.zeros((9, 0, 3))),
        "large.tif": _tiff(60_000, 60_000, tiled=True, blockxsize=4096, blockysize=4096),
    }
    write_tar(tmp_path / "a.tar", {**members, "right.tif": _tiff(30, 20)})
    source = open_source(str(tmp_path / "a.tar"))
    *wrong, right = select(source).to_pylist()
    for row, told in zip(wrong, ("pixels expected", "pixels expected", "too large"), strict=True):
        with pytest.raises(ShardError, match=told):
            read_tile(source, row)
    assert read_tile(source, right).pixels.shape == (1, 20, 30)
    show(source, tmp_path / "sheet.png")


def test_a_member_of_less_than_nothing_ends_the_tar(tmp_path: Path):
    raw = bytearray(write_tar(tmp_path / "a.tar", {"one.png": b"x" * 600, "two.png": b"y"}).read_bytes())
    raw[1536 + 124 : 1536 + 136] = b"-0000003000\0"
    raw[1536 + 148 : 1536 + 156] = b" " * 8
    raw[1536 + 148 : 1536 + 156] = b"%06o\0 " % sum(raw[1536:2048])
    (tmp_path / "a.tar").write_bytes(raw)
    with pytest.raises(ShardError, match=r"a\.tar: expected a whole"):
        open_source(str(tmp_path / "a.tar"))


def test_a_tar_behind_a_signed_address_is_listed_and_read_with_the_signature(tmp_path: Path):
    picture = _picture(np.full((8, 8), 7, np.uint8), "PNG")
    tar = write_tar(tmp_path / "a.tar", {"one.png": picture}).read_bytes()

    class Signed(BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            first, _, last = self.headers.get("Range", "bytes=0-").removeprefix("bytes=").partition("-")
            part = tar[int(first) : int(last or len(tar)) + 1] if self.path == "/a.tar?signature=1" else b""
            self.send_response((206 if "Range" in self.headers else 200) if part else 403)
            self.send_header("Content-Length", str(len(part)))
            self.send_header("Content-Range", f"bytes {first}-{last}/{len(tar)}")
            self.end_headers()
            self.wfile.write(part)

        def log_message(self, format: str, *args: object) -> None: ...

    server = ThreadingHTTPServer(("127.0.0.1", 0), Signed)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    try:
        source = open_source(f"http://127.0.0.1:{server.server_port}/a.tar?signature=1")
        assert "signature" not in str(select(source).to_pylist())
        get(source, "one", tmp_path / "x.npy")
    finally:
        server.shutdown()
        server.server_close()
    assert (np.load(tmp_path / "x.npy") == 7).all()


def test_a_shard_away_from_its_corpus_still_says_what_its_json_says(root: Path, source: Source, tmp_path: Path):
    assert source.corpus is not None
    shard = source.corpus.shards[0]
    (tmp_path / "alone.tar").write_bytes((root / "corpus" / shard.path).read_bytes())
    alone = open_source(str(tmp_path / "alone.tar"))
    assert alone.corpus is None and count(alone) == shard.tiles
    row = select(alone, limit=1).to_pylist()[0]
    get(alone, row["key"], tmp_path / "a.tif")
    get(source, row["key"], tmp_path / "b.tif")
    with rasterio.open(tmp_path / "a.tif") as one, rasterio.open(tmp_path / "b.tif") as other:
        np.testing.assert_array_equal(one.read(), other.read())
        assert one.transform == other.transform and one.crs == other.crs


HOSTILE = [
    "../../etc/passwd",
    "<script>alert(1)</script>",
    "a\x1b[31mred\x07",
    "[bold]x[/bold]",
    "line\nbreak",
    "\u202etxt",
    "x" * 90,
]


def test_hostile_names_harm_neither_files_nor_terminals(tmp_path: Path, capsys: pytest.CaptureFixture[str]):
    grey = np.zeros((8, 8), np.uint8)
    said = json.dumps({"scene": "\x1b]0;title\x07", "sensor": "S" * 100_000, "datetime": "\n\n"}).encode()
    members = {
        f"{name.replace('.', '_')}.{kind}": data
        for name in HOSTILE
        for kind, data in (("png", _picture(grey, "PNG")), ("json", said))
    }
    write_tar(tmp_path / "in.tar", members)
    source = open_source(str(tmp_path / "in.tar"))
    keys = select(source, ["key"])["key"].to_pylist()
    assert len(keys) == len(HOSTILE)
    for key in keys:
        get(source, key, tmp_path / "x.png")
    show(source, tmp_path / "sheet.png", 9)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["in.tar", "sheet.png", "x.png"]
    from pipelines.commands.terminal import print_table

    print_table(["key"], [[key] for key in keys])
    out = capsys.readouterr().out
    assert (
        "\x1b" not in out and "\x07" not in out and "[bold]x[/bold]" in out and len(out.splitlines()) == 1 + len(keys)
    )


COMMANDS = "\x1b]0;title\x07\x9b31m\u202etxt\x7f"


def test_words_of_others_command_no_terminal_wherever_they_stand(
    root: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
):
    """Names of corpora, kinds of repeats, names of columns, keys that an error repeats, JSON."""
    corpus = shutil.copytree(root / "corpus", tmp_path / "corpus")
    manifest = json.loads((corpus / "corpus.json").read_text())
    (corpus / "corpus.json").write_text(json.dumps({**manifest, "name": COMMANDS, "version": COMMANDS}))
    twice = pa.table({"kind": [COMMANDS], "dropped": ["a"], "kept": ["b"], "distance": [0.0]})
    pq.write_table(twice, corpus / "duplicates.parquet")
    tiles = pq.read_table(corpus / "tiles.parquet")
    pq.write_table(tiles.append_column("[/x]" + COMMANDS, pa.nulls(len(tiles))), corpus / "tiles.parquet")
    other = write_tar(tmp_path / "in.tar", {f"key{COMMANDS}.png": b"", f"key{COMMANDS}.json": b'{"enl": NaN}'})
    for arguments in (
        ("stats", corpus), ("ls", corpus, "--columns", "all"), ("ls", corpus, "--json", "--columns", "all"),
        ("get", other, "key", "-o", tmp_path / "x.png"), ("show", other, "--outliers"), ("ls", other, "--json"),
        ("diff", root / "corpus", corpus), ("verify", corpus),
    ):  # fmt: skip
        monkeypatch.setattr("sys.argv", ["sarsense", "shards", *map(str, arguments)])
        with suppress(SystemExit):
            run_sarsense()
        told = capsys.readouterr()
        for text in (told.out, told.err):
            assert text.replace("\n", "").isprintable(), (arguments, text)
    monkeypatch.setattr("sys.argv", ["sarsense", "shards", "ls", str(other), "--json"])
    with suppress(SystemExit):
        run_sarsense()
    [row] = json.loads(capsys.readouterr().out, parse_constant=lambda name: pytest.fail(f"{name} is no JSON"))
    assert row["key"] == f"key{COMMANDS}" and row["enl"] is None


@given(st.text())
def test_plain_text_is_one_printable_line_of_bounded_length(text: str):
    told = plain(text, 60)
    assert told.isprintable() and len(told) <= 60 * 10
    assert told == text or not text.isprintable() or len(text) > 60
