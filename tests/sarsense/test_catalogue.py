"""Lists of scenes as a source: STAC, CSV, Parquet."""

import json
import threading
from collections.abc import Iterator
from functools import partial
from http.server import SimpleHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from pipelines.build import build, scan
from sarsense.catalogue import gdal_path, read_catalogue
from sarsense.config import BuildConfig
from sarsense.corpus import open_corpus
from sarsense.errors import SarsenseError
from tests.conftest import speckled_power, write_raster

CONFIG = BuildConfig(tile_size=64, val_share=0.0)
POWER = speckled_power((64, 128), 4.0, 0)


def item(**assets) -> dict:
    return {
        "type": "Feature",
        "stac_version": "1.0.0",
        "id": "scene-1",
        "geometry": None,
        "properties": {
            "datetime": "2021-06-01T05:00:00Z",
            "platform": "sentinel-1a",
            "sar:instrument_mode": "IW",
            "sar:polarizations": ["VV", "VH"],
            "sar:looks_equivalent_number": 4.4,
            "sat:orbit_state": "descending",
        },
        "assets": assets,
    }


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    db = (10 * np.log10(POWER)).astype(np.float32)
    write_raster(tmp_path / "in" / "one.tif", db)
    write_raster(tmp_path / "in" / "two.tif", db - 6)
    return tmp_path / "in"


def test_a_stac_item_gives_its_rasters_and_what_it_says_of_them(folder: Path, tmp_path: Path):
    unit = [{"unit": "dB"}]
    found = item(
        vv={"href": "./one.tif", "roles": ["data"], "raster:bands": unit},
        vh={"href": "two.tif", "roles": ["data"], "raster:bands": unit},
        thumbnail={"href": "preview.tif", "roles": ["thumbnail"]},
        metadata={"href": "x.xml"},
    )
    (folder / "item.json").write_text(json.dumps(found))
    build([str(folder / "item.json")], tmp_path / "corpus", CONFIG, workers=0)
    corpus = open_corpus(tmp_path / "corpus")
    rows = {row["path"]: row for row in corpus.scenes.to_pylist()}
    assert set(rows) == {"scene-1/one.tif", "scene-1/two.tif"}
    one = rows["scene-1/one.tif"]
    assert (one["sensor"], one["mode"], one["polarisations"], one["orbit_direction"]) == (
        "S1", "IW", ["VV"], "descending",
    )  # fmt: skip
    assert one["datetime"] == "2021-06-01T05:00:00Z" and one["units"] == ["db"]
    assert rows["scene-1/two.tif"]["polarisations"] == ["VH"]
    assert set(corpus.tiles()["orbit_direction"].to_pylist()) == {"descending"}


def test_a_collection_of_items_and_stac_geoparquet_say_the_same(folder: Path):
    found = item(vv={"href": "one.tif"}, vh={"href": "two.tif"})
    (folder / "all.json").write_text(json.dumps({"type": "FeatureCollection", "features": [found]}))
    flat = {"id": found["id"], "assets": found["assets"], **found["properties"]}
    pq.write_table(pa.Table.from_pylist([flat]), folder / "all.parquet")
    assert read_catalogue(folder / "all.json") == read_catalogue(folder / "all.parquet")
    assert len(read_catalogue(folder / "all.json")) == 2


@pytest.mark.parametrize("kind", ["csv", "parquet"])
def test_a_table_is_the_users_word_and_beats_the_rest(folder: Path, kind: str):
    """Linear power, which would be refused without a unit; and a polarisation that no name says."""
    write_raster(folder / "power.tif", POWER)
    rows = [{"path": "power.tif", "unit": "power", "polarisation": "HH", "sensor": "X1", "looks": "4"}]
    rows.append({"path": "one.tif", "unit": "", "polarisation": "VV", "sensor": "", "looks": ""})
    table = folder / f"list.{kind}"
    if kind == "csv":
        lines = [",".join(rows[0])] + [",".join(row.values()) for row in rows]
        table.write_text("\n".join(lines) + "\n")
    else:
        pq.write_table(pa.Table.from_pylist(rows), table)
    found = {row["path"]: row for row in scan([str(table)], CONFIG)}
    assert found["power.tif"]["units"] == ["power"] and found["power.tif"]["polarisations"] == ["HH"]
    assert found["power.tif"]["sensor"] == "X1" and found["one.tif"]["units"] == ["db"]


def test_what_a_list_names_and_is_not_there_is_recorded(folder: Path, tmp_path: Path):
    (folder / "list.csv").write_text("path\none.tif\nabsent.tif\n")
    build([str(folder / "list.csv")], tmp_path / "corpus", CONFIG, workers=0)
    rows = {row["path"]: row for row in open_corpus(tmp_path / "corpus").scenes.to_pylist()}
    assert rows["one.tif"]["status"] == "used"
    assert rows["absent.tif"]["status"] == "refused" and "no such file" in rows["absent.tif"]["reason"]


@pytest.mark.parametrize(
    ("name", "content", "reason"),
    [
        ("x.json", "{", "cannot be read as a list of scenes"),
        ("x.json", "[]", "a STAC item or item collection expected"),
        ("x.json", '{"type": "Catalog"}', "type 'Catalog' found"),
        ("x.json", '{"type": "Feature", "id": "a"}', "item 'a' has no assets"),
        ("x.csv", "file,unit\na.tif,power\n", "row 1 has no 'path'"),
        ("x.csv", "path,unit\na.tif,watt\n", "row 1: unit 'watt'; expected power, amplitude or db"),
        ("x.csv", "path,looks\na.tif,many\n", "row 1: looks 'many'; expected a number"),
        ("x.parquet", "no parquet", "cannot be read as a list of scenes"),
    ],
)
def test_a_bad_list_is_one_clear_error(tmp_path: Path, name, content, reason):
    (tmp_path / name).write_text(content)
    with pytest.raises(SarsenseError, match=reason) as caught:
        read_catalogue(tmp_path / name)
    assert str(tmp_path / name) in str(caught.value) and "\n" not in str(caught.value)


@pytest.mark.parametrize(
    ("href", "path"),
    [
        ("s3://bucket/a/b.tif", "/vsis3/bucket/a/b.tif"),
        ("https://host/b.tif?token=1", "/vsicurl/https://host/b.tif?token=1"),
        ("gs://bucket/b.tif", "/vsigs/bucket/b.tif"),
        ("/data/b.tif", "/data/b.tif"),
        ("../b.tif", "/lists/b.tif"),
        ("/vsizip//data/a.zip/b.tif", "/vsizip//data/a.zip/b.tif"),
    ],
)
def test_what_gdal_opens_for_an_href(href, path):
    assert gdal_path(href, Path("/lists/here")) == path


class Ranges(SimpleHTTPRequestHandler):
    """Serves files with byte ranges, as stores of COGs do; only with the right signature."""

    def do_GET(self) -> None:
        file = Path(self.directory) / self.path.partition("?")[0].lstrip("/")
        if not self.path.endswith("?sig=a.b") or not file.is_file():
            self.send_error(404)
            return
        content = file.read_bytes()
        first, last = 0, len(content) - 1
        if asked := self.headers.get("Range"):
            low, _, high = asked.removeprefix("bytes=").partition("-")
            first, last = int(low), min(int(high or last), last)
        self.send_response(206 if asked else 200)
        self.send_header("Content-Range", f"bytes {first}-{last}/{len(content)}")
        self.send_header("Content-Length", str(last - first + 1))
        self.send_header("Accept-Ranges", "bytes")
        self.end_headers()
        if self.command == "GET":
            self.wfile.write(content[first : last + 1])

    do_HEAD = do_GET  # noqa: N815

    def log_message(self, *_: object) -> None: ...


@pytest.fixture
def address(folder: Path) -> Iterator[str]:
    server = ThreadingHTTPServer(("127.0.0.1", 0), partial(Ranges, directory=str(folder)))
    thread = threading.Thread(target=server.serve_forever)
    thread.start()
    yield f"http://127.0.0.1:{server.server_port}"
    server.shutdown()
    thread.join()
    server.server_close()


def test_what_could_not_be_fetched_is_tried_again_by_the_next_build(folder: Path, address: str, tmp_path: Path):
    """No corpus without a scene because the network was down for a minute; a file that is no raster stays refused."""
    (folder / "bad.tif").write_text("no raster")
    listed = tmp_path / "list.csv"
    listed.write_text("path\n" + "".join(f"{address}/{name}?sig=a.b\n" for name in ("one.tif", "two.tif", "bad.tif")))
    (folder / "two.tif").rename(folder / "hidden")
    build([str(listed)], tmp_path / "corpus", CONFIG, workers=1)
    rows = {Path(row["path"]).name: row for row in open_corpus(tmp_path / "corpus").scenes.to_pylist()}
    assert rows["two.tif"]["reason"].startswith("could not be fetched: ")
    assert rows["bad.tif"]["reason"].startswith("not a raster")
    (folder / "hidden").rename(folder / "two.tif")
    (tmp_path / "corpus" / "corpus.json").unlink()  # as if it had not been finished
    build([str(listed)], tmp_path / "corpus", CONFIG, workers=1)
    rows = {Path(row["path"]).name: row for row in open_corpus(tmp_path / "corpus").scenes.to_pylist()}
    assert rows["two.tif"]["status"] == "used" and rows["bad.tif"]["status"] == "refused"


def test_rasters_behind_signed_urls_are_read_as_those_on_disk(folder: Path, address: str, tmp_path: Path):
    """Over HTTP with byte ranges, in a worker process; no name holds the signature; what is not there is recorded."""
    (folder / "two.tif").rename(folder / "iw-vv.rtc.tiff")
    write_raster(folder / "iw-vv.rtc.tiff", POWER / 2)
    names = ["one.tif", "iw-vv.rtc.tiff", "absent.tif"]
    remote, local = tmp_path / "remote.csv", tmp_path / "local.csv"
    remote.write_text("path\n" + "".join(f"{address}/{name}?sig=a.b\n" for name in names))
    local.write_text("path\n" + "".join(f"{folder / name}\n" for name in names))
    for listed, workers in ((remote, 1), (local, 0)):
        build([str(listed)], tmp_path / listed.stem, CONFIG, workers=workers)
    one, two = open_corpus(tmp_path / "remote"), open_corpus(tmp_path / "local")
    rows = {Path(row["path"]).name: row for row in one.scenes.to_pylist()}
    assert {name: row["status"] for name, row in rows.items()} == {
        "one.tif": "used",
        "iw-vv.rtc.tiff": "used",
        "absent.tif": "refused",
    }
    assert rows["absent.tif"]["reason"] and rows["iw-vv.rtc.tiff"]["product"] == "Planetary Computer RTC"
    hashes = [sorted(corpus.tiles()["content_hash"].to_pylist()) for corpus in (one, two)]
    assert hashes[0] == hashes[1] and len(hashes[0]) == 4
    assert not any("sig=" in str(value) for value in one.tiles().drop_columns(["footprint"]).to_pylist())
