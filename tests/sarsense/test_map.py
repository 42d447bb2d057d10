"""Where `shards map` and `report` put tiles, and what hostile names do in a page: nothing."""

from __future__ import annotations

import base64
import json
import re
import shutil
import subprocess
import tarfile
import zlib
from functools import partial
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

import geopandas
import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pyproj
import pytest
import shapely
from hypothesis import given, settings
from hypothesis import strategies as st

from benchmarks.big_table import make
from pipelines.commands import shards
from sarsense.corpus import footprint_wkb
from sarsense.errors import CorpusError, SettingError
from sarsense.inspection.ground import around_pole, corners, for_gis
from sarsense.inspection.map import write_map
from sarsense.inspection.mapped import CORNER_ERROR, quantised
from sarsense.inspection.query import select
from sarsense.inspection.source import open_source
from sarsense.report.document import write_report
from tests import commands

HOSTILE = [
    "</script><script>document.body.dataset.owned=1</script>",
    '"><img src=x onerror="document.body.dataset.owned=1">',
    "a\x1b[31m\x00\u202e\u2028\n| x | ![p](http://example.com/p.png) `code",
    "n" * 1_000_000,
    "<!-- <script>",
    "[link](javascript:alert(1)) &lt;b&gt; $\\frac{1}{2}$",
]


@pytest.fixture(scope="module")
def root(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make(tmp_path_factory.mktemp("map") / "corpus", 4_000)


@pytest.fixture(scope="module")
def hostile(root: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The same, of names that somebody chose with care."""
    folder = tmp_path_factory.mktemp("hostile") / "corpus"
    shutil.copytree(root, folder)
    for name in ("tiles", "scenes"):
        table = pq.read_table(folder / f"{name}.parquet").slice(0, 60)
        bad = {"key", "scene", "source", "sensor", "mode", "datetime", "path", "reason", "product"}
        for index, field in enumerate(table.schema):
            if field.name in bad:
                texts = [
                    HOSTILE[row % len(HOSTILE)] + (f" {row}" if field.name == "key" else "")
                    for row in range(len(table))
                ]
                table = table.set_column(index, field, pa.array(texts))
        pq.write_table(table, folder / f"{name}.parquet")
    manifest = json.loads((folder / "corpus.json").read_text())
    manifest |= {"name": HOSTILE[0] + HOSTILE[1], "version": HOSTILE[2]}
    (folder / "corpus.json").write_text(json.dumps(manifest))
    return folder


class _Page(HTMLParser):
    """What a browser finds: tags, and the text of each script."""

    def __init__(self, text: str) -> None:
        super().__init__(convert_charrefs=True)
        self.tags: list[tuple[str, dict[str, str | None]]] = []
        self.blocks: dict[str, str] = {}
        self._inside: str | None = None
        self.feed(text)
        self.close()

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append((tag, dict(attrs)))
        self._inside = (dict(attrs).get("id") or "script") if tag == "script" else None

    def handle_endtag(self, tag: str) -> None:
        self._inside = None

    def handle_data(self, data: str) -> None:
        if self._inside:
            self.blocks[self._inside] = self.blocks.get(self._inside, "") + data

    def arrays(self) -> dict[str, np.ndarray]:
        """As the script of the page unpacks them."""
        found = {}
        for key, one in json.loads(self.blocks["tiles-index"]).items():
            planes = zlib.decompress(base64.b64decode(self.blocks[f"tiles-{one['number']}"]))
            parts = np.dtype(one["type"]).itemsize * one["width"]
            raw = b"".join(planes[row :: len(planes) // parts] for row in range(len(planes) // parts))
            found[key] = np.frombuffer(raw, one["type"])
        return found

    def check(self) -> None:
        """Nothing is asked of any network, nobody else's tag or handler is there."""
        policy = [attrs["content"] for tag, attrs in self.tags if attrs.get("http-equiv") == "Content-Security-Policy"]
        assert policy and "default-src 'none'" in str(policy[0])
        for tag, attrs in self.tags:
            assert tag not in ("iframe", "object", "embed", "link", "base", "form", "b>")
            assert not [name for name in attrs if name.startswith("on")], attrs
            for name in ("src", "href"):
                value = attrs.get(name)
                assert value is None or value.startswith(("data:image/", "#")), value
            assert tag != "a" or str(attrs["href"]).startswith("#")


# ------------------------------------------------------------------------------------------------------ places


@settings(max_examples=300, deadline=None)
@given(
    lon=st.floats(-180, 180),
    lat=st.floats(-89, 89),
    size=st.floats(1e-6, 20),
    turn=st.floats(0, 360),
    tall=st.floats(0.2, 5),
)
def test_a_corner_is_drawn_within_the_stated_error(
    lon: float, lat: float, size: float, turn: float, tall: float
) -> None:
    angle = np.radians(turn + np.array([0.0, 80.0, 180.0, 260.0]))
    quad = np.stack([lon + size * np.cos(angle), np.clip(lat + tall * size * np.sin(angle) / 5, -90, 90)], axis=1)
    places = quantised(quad[None])
    drawn = places.corners()[0]
    reach = (np.ptp(quad, axis=0) / 2).max()
    away = np.abs((drawn - quad + np.array([180.0, 0.0])) % np.array([360.0, 1e9]) - np.array([180.0, 0.0]))
    away = np.minimum(away, np.abs(drawn - quad))
    turns = np.round((drawn - quad)[:, 0] / 360.0)
    assert (turns == turns[0]).all()  # all corners are beside each other
    assert (
        away[:, 0].max() <= CORNER_ERROR * reach + 1e-7
        and np.abs(drawn - quad)[:, 1].max() <= CORNER_ERROR * reach + 1e-7
    )
    assert places.middle.dtype == np.uint32 and places.corner.dtype == np.int16


def test_corners_are_those_of_shapely(root: Path) -> None:
    table = pq.read_table(root / "tiles.parquet", columns=["footprint", "lon"])
    column = table["footprint"].combine_chunks()
    found = corners(column)
    for wkb, quad in zip(column.to_pylist(), found, strict=True):
        if wkb is None:
            assert np.isnan(quad).all()
            continue
        ring = shapely.get_coordinates(shapely.from_wkb(wkb))
        expected = ring[[0, 5, 10, 15]]
        assert quad[:, 1].tolist() == expected[:, 1].tolist()
        assert np.abs((quad[:, 0] - expected[:, 0] + 180) % 360 - 180).max() < 1e-9
    part = column.slice(7, 50)
    np.testing.assert_array_equal(corners(part), found[7:57])
    np.testing.assert_array_equal(corners(column.cast(pa.large_binary())), found)


def test_polygons_of_all_kinds_and_bytes_that_are_none() -> None:
    box, triangle = shapely.box(1, 2, 3, 5), shapely.Polygon([(0, 0), (4, 0), (0, 3)])
    two = shapely.MultiPolygon([shapely.box(0, 0, 1, 1), shapely.box(3, 0, 4, 1)])
    usual = footprint_wkb(np.linspace(0, 1, 40).reshape(1, 20, 2))[0]
    infinite = shapely.to_wkb(shapely.Polygon([(0, 0), (np.inf, 0), (1, 1)]))
    content = [*map(shapely.to_wkb, (box, triangle, two)), None, b"", b"\x01\x03", usual[:-1] + b"\xff", infinite]
    quads = corners(pa.array(content, pa.binary()))
    for quad, whole in zip(quads, (box, triangle, two), strict=False):
        assert shapely.Polygon(quad).buffer(1e-9).contains(whole)
    assert shapely.Polygon(quads[0]).equals(box)
    assert np.isnan(quads[3:6]).all() and np.isnan(quads[7]).all()


@pytest.mark.parametrize("pole", [90, -90])
def test_a_ring_around_a_pole_becomes_a_cap(pole: int) -> None:
    lon = np.array([10.0, 100.0, 190.0, 280.0])
    quad = np.stack([lon, np.full(4, pole * 0.995)], axis=1)
    assert around_pole(quad[None]).all()
    cap = for_gis(shapely.Polygon(quad))
    assert cap.is_valid and cap.bounds[0] == -180 and cap.bounds[2] == 180 and pole in (cap.bounds[1], cap.bounds[3])
    assert cap.contains(shapely.Point(33.0, pole * 0.999)) and not cap.contains(shapely.Point(33.0, pole * 0.9))


def test_a_footprint_across_180_degrees_is_cut_there() -> None:
    for west in (179.0, -181.0, 539.0):
        whole = shapely.box(west, 10, west + 3, 12)
        cut = for_gis(whole)
        assert cut.geom_type == "MultiPolygon" and cut.is_valid and len(cut.geoms) == 2
        assert cut.bounds[0] == -180 and cut.bounds[2] == 180
        assert cut.area == pytest.approx(whole.area)
        assert all(part.exterior.is_ccw for part in cut.geoms)
    assert for_gis(shapely.box(185, 0, 186, 1)).equals(shapely.box(-175, 0, -174, 1))


# --------------------------------------------------------------------------------------------------------- page


def test_the_page_holds_every_tile_at_its_place(root: Path, tmp_path: Path) -> None:
    source = open_source(str(root))
    drawn = write_map(source, tmp_path / "map.html", "mean_db", None, 30, "corpus")
    parsed = _Page((tmp_path / "map.html").read_text())
    parsed.check()
    about, arrays = json.loads(parsed.blocks["about"]), parsed.arrays()
    table = pq.read_table(root / "tiles.parquet").to_pylist()
    placed = [row for row in table if row["footprint"]]
    assert (
        about["tiles"] == len(table) == drawn.tiles and about["unplaced"] == len(table) - len(placed) == drawn.unplaced
    )
    assert about["color"] == "mean_db" and about["keys"] is None and about["address"] == "corpus"
    assert drawn.thumbnails == len(about["pictures"]) == 30 and drawn.unreadable == 0
    scene, polarisation = (about["columns"][name] for name in ("scene", "polarisation"))
    parts = (arrays[f"column {name}"].tolist() for name in ("scene", "polarisation", "row", "col"))
    keys = [f"{scene[s - 1]}-{polarisation[p - 1]}-{r:05d}-{c:05d}" for s, p, r, c in zip(*parts, strict=True)]
    assert sorted(keys) == sorted(row["key"] for row in placed)
    by_key = {row["key"]: row for row in placed}
    middle = arrays["middle"].reshape(-1, 2) * np.array([360, 180]) / 2**32 - np.array([180, 90])
    corner = middle[:, None] + arrays["corner"].reshape(-1, 4, 2) * arrays["step"][:, None, None].astype(float)
    for key, quad, level in zip(keys, corner, arrays["column mean_db"], strict=True):
        row = by_key[key]
        ring = shapely.get_coordinates(shapely.from_wkb(row["footprint"]))[[0, 5, 10, 15]]
        reach = np.ptp(ring, axis=0).max() / 2
        away = np.abs(quad - ring)
        away[:, 0] = np.abs((away[:, 0] + 180) % 360 - 180)
        assert away.max() <= CORNER_ERROR * reach + 1e-7
        assert level == np.float32(row["mean_db"])
    for picture in about["pictures"]:
        lat = np.reshape(picture["corners"], (3, 2))[1:, 1].mean()
        assert abs(lat - by_key[keys[picture["tile"]]]["lat"]) < 0.05
        assert picture["url"].startswith("data:image/jpeg;base64,")


def test_a_condition_narrows_page_and_files(root: Path, tmp_path: Path) -> None:
    source, where = open_source(str(root)), "sensor = 'S1' and lat is not null"
    expected = select(source, ["key"], where)["key"].to_pylist()
    for name in ("a.html", "a.geojson", "a.parquet"):
        assert write_map(source, tmp_path / name, None, where, 5).tiles == len(expected) > 0
    about = json.loads(_Page((tmp_path / "a.html").read_text()).blocks["about"])
    assert about["columns"]["split"] and about["where"] == where and about["unplaced"] == 0
    assert sorted(geopandas.read_file(tmp_path / "a.geojson")["key"]) == sorted(expected)
    assert write_map(source, tmp_path / "none.html", None, "enl < 0").tiles == 0
    assert write_map(source, tmp_path / "none.parquet", None, "enl < 0").tiles == 0
    assert len(geopandas.read_parquet(tmp_path / "none.parquet")) == 0
    # the last is found wrong where it is read, not where it is planned
    for wrong in ("sensr = 1", "1=1) UNION SELECT (1", "cast(key as int) > 3"):
        with pytest.raises(SettingError) as error:
            write_map(source, tmp_path / "wrong.geojson", None, wrong)
        assert "\n" not in str(error.value) and not (tmp_path / "wrong.geojson").exists()
    for color, words in (("sensr", "no column sensr"), ("channels", "is a list")):
        with pytest.raises(SettingError, match=words):
            write_map(source, tmp_path / "wrong.html", color)
    with pytest.raises(SettingError, match="ends in"):
        write_map(source, tmp_path / "wrong.shp")


@pytest.mark.parametrize("color", ["month", "year", "season", "region", "spacing", "flat", "band", "datetime"])
def test_any_column_colours(root: Path, tmp_path: Path, color: str) -> None:
    write_map(open_source(str(root)), tmp_path / "map.html", color, None, 0)
    about = json.loads(_Page((tmp_path / "map.html").read_text()).blocks["about"])
    assert about["color"] == color and color in about["columns"] and about["pictures"] == []


def test_files_for_a_gis_are_valid_and_within_the_world(root: Path, tmp_path: Path) -> None:
    source = open_source(str(root))
    for name in ("tiles.geojson", "tiles.parquet"):
        write_map(source, tmp_path / name)
    lines, table = geopandas.read_file(tmp_path / "tiles.geojson"), geopandas.read_parquet(tmp_path / "tiles.parquet")
    rows = pq.read_table(root / "tiles.parquet")
    assert table["key"].tolist() == rows["key"].to_pylist() == lines["key"].tolist()
    missing = rows["footprint"].is_null().to_pylist()
    geod = pyproj.Geod(ellps="WGS84")
    for frame in (lines, table):
        assert frame.crs.to_epsg() == 4326 or "CRS84" in str(frame.crs)
        assert frame.geometry.isna().tolist() == missing
        there = frame.geometry[~frame.geometry.isna()]
        assert there.is_valid.all() and (there.geom_type == "MultiPolygon").any()
        assert (there.bounds[["minx", "maxx"]].abs() <= 180).all(axis=None) and (there.bounds["maxy"] <= 90).all()
    for wkb, shape in zip(rows["footprint"].to_pylist(), table.geometry, strict=True):
        if wkb is not None and abs(shapely.from_wkb(wkb).centroid.y) < 80:
            whole = abs(geod.geometry_area_perimeter(shapely.from_wkb(wkb))[0])
            assert abs(geod.geometry_area_perimeter(shape)[0]) == pytest.approx(whole, rel=1e-6)
    assert lines["mean_db"].tolist() == rows["mean_db"].to_pylist()


def test_tars_of_others_are_points_or_nothing(tmp_path: Path) -> None:
    with tarfile.open(tmp_path / "other.tar", "w") as tar:
        for number, said in enumerate(({"lon": 179.9, "lat": 5}, {"lon": 1e9, "lat": 5}, {}, {"lon": 190, "lat": 5})):
            np.save(tmp_path / "x.npy", np.full((8, 8), number, np.uint8))
            (tmp_path / "x.json").write_text(json.dumps(said))
            tar.add(tmp_path / "x.npy", f"{number}.npy")
            tar.add(tmp_path / "x.json", f"{number}.json")
    source = open_source(str(tmp_path / "other.tar"))
    assert write_map(source, tmp_path / "map.html").unplaced == 2
    about = json.loads(_Page((tmp_path / "map.html").read_text()).blocks["about"])
    assert about["points"] and about["keys"] == ["0", "3"] and "sensor" in about["unknown"]
    assert len(about["pictures"]) == 2
    assert write_map(source, tmp_path / "map.parquet").unplaced == 2
    points = geopandas.read_parquet(tmp_path / "map.parquet").geometry
    assert points[0].equals(shapely.Point(179.9, 5)) and points[3].equals(shapely.Point(-170, 5))
    write_report(source, tmp_path / "report.html")
    text = (tmp_path / "report.html").read_text()
    assert "These tars are no corpus" in text and "<code>split</code>" in text


@pytest.mark.parametrize("affine", [[1.0], [None] * 6, [float("nan")] * 6])
def test_a_picture_whose_affine_map_is_none_stands_nowhere(tmp_path: Path, affine: list[float | None]) -> None:
    np.save(tmp_path / "x.npy", np.full((8, 8), 3, np.uint8))
    (tmp_path / "x.json").write_text(json.dumps({"lon": 7, "lat": 5, "lonlat_transform": affine}))
    with tarfile.open(tmp_path / "other.tar", "w") as tar:
        for name in ("x.npy", "x.json"):
            tar.add(tmp_path / name, name)
    write_map(open_source(str(tmp_path / "other.tar")), tmp_path / "map.html")
    about = json.loads(_Page((tmp_path / "map.html").read_text()).blocks["about"])
    assert len(about["pictures"]) == 1 and "corners" not in about["pictures"][0]


def test_a_page_does_not_tell_the_signature_of_an_address(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    told: list[str] = []

    def write(*given: object) -> None:
        told.append(str(given[-1]))
        raise SettingError("that is all")

    monkeypatch.setattr("sarsense.inspection.source.open_source", lambda named: None)
    monkeypatch.setattr("sarsense.inspection.map.write_map", write)
    for address in ("https://host/a.tar?signature=1", "corpus/train/*.tar"):
        with pytest.raises(SettingError, match="that is all"):
            shards.map_(address, tmp_path / "map.html")
    assert told == ["https://host/a.tar", "corpus/train/*.tar"]


def test_tiles_whose_shard_is_gone_are_mapped_without_a_picture(root: Path, tmp_path: Path) -> None:
    shutil.copytree(root, tmp_path / "corpus", ignore=shutil.ignore_patterns("*.tar"))
    drawn = write_map(open_source(str(tmp_path / "corpus")), tmp_path / "map.html", None, None, 20)
    assert (drawn.thumbnails, drawn.unreadable) == (0, 20)


# ------------------------------------------------------------------------------------------------------ hostile


def test_hostile_names_are_text(hostile: Path, tmp_path: Path) -> None:
    source = open_source(str(hostile))
    write_map(source, tmp_path / "map.html", "sensor", None, 10, HOSTILE[1])
    text = (tmp_path / "map.html").read_text()
    assert len(text) < 1_500_000  # a megabyte name is shortened
    parsed = _Page(text)
    parsed.check()
    assert [tag for tag, _ in parsed.tags].count("img") == 0
    scripts = [attrs.get("id") for tag, attrs in parsed.tags if tag == "script"]
    assert scripts[:3] == ["about", "coastline", "tiles-index"] and scripts[-1] is None and scripts.count(None) == 1
    about = json.loads(parsed.blocks["about"])
    assert HOSTILE[0] in about["columns"]["scene"] and about["name"].startswith("</script>")
    assert all(len(key) <= 300 and "\x1b" not in key for key in about["keys"])
    assert not re.search("[\u2028\u2029]", text)
    for name in ("map.geojson", "map.parquet"):
        write_map(source, tmp_path / name)
    assert sorted(geopandas.read_parquet(tmp_path / "map.parquet")["scene"].unique()) == sorted(set(HOSTILE))
    assert len(json.loads((tmp_path / "map.geojson").read_text())["features"]) == 60


def test_a_hostile_report_is_text(hostile: Path, tmp_path: Path) -> None:
    write_report(open_source(str(hostile)), tmp_path / "report.html")
    parsed = _Page((tmp_path / "report.html").read_text())
    parsed.check()
    assert "script" not in [tag for tag, _ in parsed.tags]
    assert all(str(attrs["src"]).startswith("data:image/png;") for tag, attrs in parsed.tags if tag == "img")


def test_the_report_has_what_a_data_section_needs(root: Path, tmp_path: Path) -> None:
    source = open_source(str(root))
    assert source.corpus is not None
    write_report(source, tmp_path / "report.html")
    text = (tmp_path / "report.html").read_text()
    parsed = _Page(text)
    parsed.check()
    headings = re.findall(r'<h2 id="[a-z-]+">([^<]+)</h2>', text)
    assert headings == [
        "At a glance",
        "Composition",
        "Decibels",
        "Sources",
        "How it was made",
        "Loading",
        "Licence",
        "Citation",
    ]
    assert len(re.findall("<figure>", text)) == 5 and "@misc{world100," in text and source.corpus.digest in text
    tiles = {row["sensor"]: row["tiles"] for row in _sensors(source)}
    for sensor, count in tiles.items():
        assert re.search(rf"<td[^>]*>{sensor}</td>.*?<td[^>]*>{count:,}</td>", text, re.DOTALL)
    empty = open_source(str(_emptied(root, tmp_path / "empty")))
    with pytest.raises(CorpusError, match="no tiles"):
        write_report(empty, tmp_path / "none.html")
    write_report(open_source(str(root / "val" / "*.tar")), tmp_path / "part.html")
    assert "name the corpus for its report" in (tmp_path / "part.html").read_text()


def _sensors(source: Any) -> list[dict[str, Any]]:
    counts = select(source, ["sensor"])["sensor"].value_counts().to_pylist()
    return [{"sensor": row["values"], "tiles": row["counts"]} for row in counts]


def _emptied(root: Path, folder: Path) -> Path:
    shutil.copytree(root, folder)
    pq.write_table(pq.read_table(folder / "tiles.parquet").slice(0, 0), folder / "tiles.parquet")
    return folder


CHROMIUM = shutil.which("chromium") or shutil.which("chromium-browser") or shutil.which("google-chrome")


@pytest.mark.skipif(CHROMIUM is None, reason="chromium is not here")
@pytest.mark.parametrize(
    "anchor", ["", "#view=north", "#view=south&color=enl", "#tile=7", "#at=179.9,-16.6,900&tile=3"]
)
def test_the_page_draws_in_a_browser(root: Path, hostile: Path, tmp_path: Path, anchor: str) -> None:
    for number, folder in enumerate((root, hostile)):
        drawn = write_map(open_source(str(folder)), tmp_path / f"{number}.html", "sensor", None, 10)
        command = [str(CHROMIUM), "--headless", "--no-sandbox", "--disable-gpu", f"--user-data-dir={tmp_path}/profile"]
        command += ["--virtual-time-budget=8000", "--dump-dom", f"file://{tmp_path}/{number}.html{anchor}"]
        shown = subprocess.run(command, capture_output=True, text=True, timeout=120, errors="replace").stdout
        body = re.search(r"<body[^>]*>", shown)
        assert body is not None and f'data-ready="{drawn.tiles - drawn.unplaced}"' in body[0], shown[:500]
        assert "data-owned" not in body[0]
        if "tile=" in anchor:
            assert "sarsense shards get CORPUS" in shown or folder == hostile


def test_commands_say_what_they_wrote(root: Path, tmp_path: Path) -> None:
    call = partial(commands.call, "sarsense")
    told = json.loads(call("shards", "map", root, "-o", tmp_path / "m.html", "--thumbnails", 3, "--json"))
    assert (told["tiles"], told["thumbnails"]) == (4_000, 3) and told["bytes"] == (tmp_path / "m.html").stat().st_size
    assert "tiles" in call("shards", "map", root, "-o", tmp_path / "m.geojson", "--where", "enl < 1")
    assert "ends in .html, .geojson" in call("shards", "map", root, "-o", tmp_path / "m.png", code=2)
    assert json.loads(call("report", root, "-o", tmp_path / "r.html", "--json"))["digest"]
    assert "ends in .html" in call("report", root, "-o", tmp_path / "r.pdf", code=2)
    told = json.loads(call("shards", "stats", root, "--by", "sensor,year", "--json"))
    assert sum(row["tiles"] for row in told["by"]["sensor,year"]) == 4_000
    assert "repeats  exact" in call("shards", "stats", root)
