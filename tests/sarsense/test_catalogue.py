"""Lists of scenes as a source: STAC, CSV, Parquet."""

import json
import shutil
import threading
from collections.abc import Iterator
from functools import partial
from http.server import SimpleHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import fsspec
import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from pipelines.build import build, scan
from sarsense import remote
from sarsense.catalogue import gdal_path, read_catalogue
from sarsense.config import BuildConfig
from sarsense.corpus import open_corpus
from sarsense.errors import RemoteError, SarsenseError, SceneError
from sarsense.sidecars import find_beside, read_xml
from sarsense.sources import list_sources
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
        ("x.csv", "path,unit\na.tif,watt\n", "row 1: unit 'watt'; expected power, amplitude, db or dn"),
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


def test_a_safe_behind_signed_urls_is_calibrated_as_the_one_on_disk(
    real_data: Path, folder: Path, address: str, tmp_path: Path
):
    """Annotation, calibration and noise are asked for by name beside the measurement, with its signature."""
    safe = next((real_data / "s1-grd-safe").glob("*.SAFE"))
    (measurement,) = (safe / "measurement").glob("*.tiff")
    copy = folder / safe.name
    shutil.copytree(safe / "annotation", copy / "annotation")
    dn = np.sqrt(speckled_power((64, 128), 4.0, 0, mean_db=55.0)).astype(np.uint16)
    path = write_raster(copy / "measurement" / measurement.name, dn, crs=None)
    listed = tmp_path / "list.csv"
    listed.write_text(f"path\n{address}/{path.relative_to(folder).as_posix()}?sig=a.b\n")
    build([str(listed)], tmp_path / "remote", CONFIG, workers=1)
    build([str(copy)], tmp_path / "local", CONFIG, workers=0)
    one, two = open_corpus(tmp_path / "remote"), open_corpus(tmp_path / "local")
    (scene,) = one.scenes.to_pylist()
    assert scene["quantities"] == ["sigma0"] and "thermal noise taken off" in scene["evidence"][0]
    columns = ["content_hash", "lon", "lat", "mean_db"]
    assert one.tiles().select(columns).to_pylist() == two.tiles().select(columns).to_pylist()


def test_paths_beside_remote_rasters():
    url = "/vsicurl/https://host/a/x.SAFE/measurement/m.tiff?sig=1/2"
    assert remote.beside(url, "../annotation", "m.xml") == "/vsicurl/https://host/a/x.SAFE/annotation/m.xml?sig=1/2"
    assert remote.beside("/vsis3/bucket/x.SAFE/measurement/m.tiff", "..", "n") == "/vsis3/bucket/x.SAFE/n"
    with pytest.raises(RemoteError, match=r"could not be fetched: http://127.0.0.1:9/x"):
        remote.read("/vsicurl/http://127.0.0.1:9/x?sig=secret")


def test_a_bucket_is_listed_and_read_through_fsspec(tmp_path: Path, monkeypatch):
    """A store in memory stands for S3: what find_beside and read_xml need of it."""
    store = fsspec.filesystem("memory")
    store.pipe("/bucket/x.SAFE/annotation/m.xml", b"<a/>")
    monkeypatch.setattr(remote, "_store", lambda path: (store, path.removeprefix("/vsis3")))
    path = "/vsis3/bucket/x.SAFE/measurement/m.tiff"
    assert find_beside(path, "../annotation", "M.*") == "/vsis3/bucket/x.SAFE/annotation/m.xml"
    assert find_beside(path, "../annotation", "other.xml") is None and find_beside(path, "../none", "*") is None
    assert read_xml("/vsis3/bucket/x.SAFE/annotation/m.xml").tag == "a"
    with pytest.raises(SceneError, match="cannot be read"):
        read_xml("/vsis3/bucket/x.SAFE/annotation/gone.xml")


def test_a_bucket_and_a_url_are_sources(folder: Path, address: str, tmp_path: Path, monkeypatch):
    store = fsspec.filesystem("memory")
    for name in ("p/x.SAFE/measurement/m.tiff", "p/x.SAFE/annotation/m.xml", "p/y_VV.tif", "q/z_VV.tif"):
        store.pipe(f"/shelf/{name}", b"")
    monkeypatch.setattr(remote, "_store", lambda path: (store, path.removeprefix("/vsis3")))
    files = list_sources(["s3://shelf/p/"])
    assert [(file.relative, file.is_raster) for file in files] == [
        ("x.SAFE/annotation/m.xml", False),
        ("x.SAFE/measurement/m.tiff", True),
        ("y_VV.tif", True),
    ]
    assert files[2].path == "/vsis3/shelf/p/y_VV.tif"
    assert [file.relative for file in list_sources(["s3://shelf/q/z_VV.tif"])] == ["z_VV.tif"]
    with pytest.raises(SarsenseError, match="s3://shelf/none: nothing of this name in the store"):
        list_sources(["s3://shelf/none"])
    build([f"{address}/one.tif?sig=a.b"], tmp_path / "corpus", CONFIG, workers=1)
    assert open_corpus(tmp_path / "corpus").scenes["path"].to_pylist() == ["one.tif"]
