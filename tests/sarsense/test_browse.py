"""`shards browse`: what is asked is answered, whatever a corpus says; who may not ask is not; flags are kept."""

from __future__ import annotations

import csv
import http.client
import io
import json
import os
import shutil
import signal
import socket
import subprocess
import threading
import time
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from PIL import Image

from pipelines.build import build
from sarsense.browse.answers import LONGEST_BODY, LONGEST_QUERY, Answer, Desk, Request, answer
from sarsense.browse.flags import FlagFile
from sarsense.browse.server import BrowseServer
from sarsense.browse.table import TileTable
from sarsense.corpus import open_corpus
from sarsense.errors import CorpusError, SettingError
from sarsense.exclusion import read_exclusion
from sarsense.inspection.source import open_source
from sarsense.inspection.tile import NEEDED, read_tile
from sarsense.places import place
from tests.conftest import write_tar
from tests.object_store import ObjectStore
from tests.pipelines.small import CONFIG, SARSENSE

HOSTILE = "../../../etc/passwd\x1b[31m<img src=x onerror=alert(1)>\u202e\n"


@pytest.fixture(scope="module")
def both(scenes: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A corpus of two channels, speckled and despeckled."""
    out = tmp_path_factory.mktemp("both") / "corpus"
    build([str(scenes)], out, replace(CONFIG, content="both", val_share=0.1), 0)
    return out


@pytest.fixture
def desk(both: Path, tmp_path: Path) -> Iterator[Desk]:
    yield from _desk(both, tmp_path)


def _desk(named: Path | str, tmp_path: Path, seconds: float = 10.0) -> Iterator[Desk]:
    table = TileTable(open_source(str(named)), seconds)
    yield Desk(table, FlagFile(tmp_path / "flags.csv"))
    table.close()


def _get(desk: Desk, path: str, **query: Any) -> Answer:
    return answer(desk, Request("GET", path, {name: str(value) for name, value in query.items()}))


def _json(desk: Desk, path: str, **query: Any) -> Any:
    found = _get(desk, path, **query)
    assert found.status == 200, found.body
    return json.loads(found.body)


def _post(desk: Desk, path: str, **value: Any) -> Any:
    found = answer(desk, Request("POST", path, {}, json.dumps(value).encode()))
    return json.loads(found.body) if found.status == 200 else found


def _error(found: Answer, status: int = 422) -> str:
    assert found.status == status, found.body
    return json.loads(found.body)["error"]


# --------------------------------------------------------------------------------------------------------- tiles


def test_pages_follow_one_another_and_hold_every_tile_once(desk: Desk, both: Path):
    table = open_corpus(both).tiles(columns=["key"])["key"].to_pylist()
    assert _json(desk, "/api/start")["total"] == len(table)
    for query, expected in (({}, table), ({"sort": "key"}, sorted(table)), ({"sort": "-key"}, sorted(table)[::-1])):
        found: list[str] = []
        while len(found) < len(table):
            page = _json(desk, "/api/tiles", offset=len(found), limit=37, **query)
            assert page["count"] == len(table) and len(page["rows"]) <= 37
            found += [row["key"] for row in page["rows"]]
        assert found == expected


def test_conditions_facets_and_one_tile_a_scene_narrow_together(desk: Desk, both: Path):
    rows = open_corpus(both).tiles().to_pylist()
    query = {"where": "mean_db < -12", "facets": json.dumps({"polarisation": ["VH"], "split": ["train", None]})}
    mine = [r for r in rows if r["mean_db"] < -12 and r["polarisation"] == "VH" and r["split"] == "train"]
    page = _json(desk, "/api/tiles", limit=240, **query)
    assert [row["key"] for row in page["rows"]] == [row["key"] for row in mine] and mine
    facets = _json(desk, "/api/facets", **query)
    assert dict(facets["split"])["train"] == len(mine)
    assert dict(facets["polarisation"])["VV"] == sum(
        r["mean_db"] < -12 and r["polarisation"] == "VV" and r["split"] == "train" for r in rows
    )
    first = {row["scene"]: row["key"] for row in reversed(mine)}
    single = _json(desk, "/api/tiles", per_scene=1, **query)
    assert single["count"] == len(first) and {row["key"] for row in single["rows"]} == set(first.values())


@pytest.mark.parametrize(
    ("where", "told"),
    [
        ("enl <", "ends where more of it is expected"),
        ("nope = 1", "columns: key, shard"),
        ("1=1); DROP VIEW tiles; SELECT (1", "found more statements"),
        ("key IN (SELECT content FROM read_text('/etc/passwd'))", "disabled"),
        ("1=0) UNION ALL (SELECT key FROM tiles", "other rows"),
        ("'", "unterminated"),
        ("\x00\x1b", "rror"),
    ],
)
def test_sql_that_says_nothing_is_told_in_its_sentence(desk: Desk, where: str, told: str):
    sentence = _error(_get(desk, "/api/tiles", where=where))
    assert told in sentence and "\n" not in sentence and "\x1b" not in sentence
    assert _json(desk, "/api/tiles")["rows"]  # and the next is answered


def test_a_condition_that_takes_too_long_is_given_up(both: Path, tmp_path: Path):
    (desk,) = _desk(both, tmp_path, seconds=0.5)  # closed by now: open another
    for desk in _desk(both, tmp_path, seconds=0.5):
        started = time.monotonic()
        slow = "(SELECT count(*) FROM range(1000000000000) WHERE range % 7 = 3) > 0"
        assert "takes longer than 0.5 s" in _error(_get(desk, "/api/tiles", where=slow))
        assert time.monotonic() - started < 5
        assert _json(desk, "/api/tiles")["rows"]


def test_a_thumbnail_is_a_small_png_of_the_channel(desk: Desk):
    n = _json(desk, "/api/tiles")["rows"][0]["n"]
    pictures = [_get(desk, "/api/thumb", n=n, channel=channel, own=own) for channel in (0, 1) for own in (0, 1)]
    assert len({picture.body for picture in pictures}) == 4
    for picture in pictures:
        assert picture.kind == "image/png" and picture.lasting
        with Image.open(io.BytesIO(picture.body)) as image:
            assert image.size == (64, 64)


def test_values_are_the_decibels_of_the_tile(desk: Desk, both: Path):
    row = _json(desk, "/api/tiles", sort="-std_db")["rows"][0]
    tile = _json(desk, "/api/tile", n=row["n"])
    assert [plane["name"] for plane in tile["planes"]] == [
        f"{row['polarisation']} {c}" for c in ("speckled", "despeckled")
    ]
    whole = desk.table.row(row["n"])
    db = read_tile(desk.source, {name: whole.get(name) for name in NEEDED}).db()
    assert db is not None
    for number, plane in enumerate(tile["planes"]):
        raw = _get(desk, "/api/values", n=row["n"], plane=number)
        values = np.frombuffer(raw.body, "<f4").reshape(plane["height"], plane["width"])
        assert np.array_equal(values, db[number], equal_nan=True)
        told = plane["histogram"]
        assert sum(told["counts"]) == np.isfinite(db[number]).sum()
        assert told["low"] == pytest.approx(np.nanmin(db[number])) and told["edges"][0] < told["low"]
        assert told["mean"] == pytest.approx(10 * np.log10(np.nanmean(10 ** (db[number].astype(float) / 10))))
    assert {name: value for name, value, _ in tile["row"]}["key"] == row["key"]
    assert {name: value for name, value, _ in tile["scene_row"]}["scene"] == row["scene"]
    assert len(tile["ring"]) > 4
    assert "no plane 9" in _error(_get(desk, "/api/values", n=row["n"], plane=9))


def test_of_a_corpus_without_filtered_channel_the_page_filters(reference: Path, tmp_path: Path):
    for desk in _desk(reference, tmp_path):
        planes = _json(desk, "/api/tile", n=0)["planes"]
        assert [plane["name"] for plane in planes] == ["VV speckled", "despeckled here"] or len(planes) == 2
        spread = [plane["histogram"]["std"] for plane in planes]
        assert spread[1] < spread[0] and "refined Lee" in planes[1]["note"]


def test_near_duplicates_are_rows_of_the_table_and_neighbours_by_look(both: Path, tmp_path: Path):
    copy = shutil.copytree(both, tmp_path / "corpus")
    tiles = pq.read_table(copy / "tiles.parquet")
    keys, scene = tiles["key"].to_pylist(), tiles["scene"][0].as_py()
    hashes = ["00000000000000ff", "00000000000000fe", "ffffffffffffffff", None, "nonsense", HOSTILE]
    hashes += ["5555aaaa5555aaaa"] * (len(keys) - len(hashes))
    column = tiles.schema.get_field_index("perceptual_hash")
    pq.write_table(tiles.set_column(column, "perceptual_hash", pa.array(hashes)), copy / "tiles.parquet")
    rows = [
        {"kind": "speckle", "dropped": "gone-VV-0-0", "kept": keys[0], "distance": 0.1},
        {"kind": "repeat", "dropped": keys[0], "kept": keys[2], "distance": None},
        {"kind": "exact scene", "dropped": HOSTILE, "kept": tiles["source"][0].as_py(), "distance": None},
        {"kind": "flat", "dropped": "other", "kept": None, "distance": None},
    ]
    schema = pq.read_schema(copy / "duplicates.parquet")
    pq.write_table(pa.Table.from_pylist(rows, schema), copy / "duplicates.parquet")
    for desk in _desk(copy, tmp_path):
        near = _json(desk, "/api/near", n=0)
        assert [(one["number"], one["distance"]) for one in near["look_alikes"]] == [(1, 1)]
        told = {(one["kind"], one["of"], one["role"], one["number"]) for one in near["left_out"]}
        assert told == {
            ("speckle", "tile", "left out for it", None),
            ("repeat", "tile", "kept in its stead", 2),
            ("exact scene", "scene", "left out for it", None),
        }
        assert scene and not _json(desk, "/api/near", n=3)["hashed"]
        assert _json(desk, "/api/near", n=4)["look_alikes"] == _json(desk, "/api/near", n=5)["look_alikes"] == []


@pytest.mark.parametrize("damage", ["missing", "short", "flipped"])
def test_a_damaged_shard_is_a_message_at_its_tile(both: Path, tmp_path: Path, damage: str):
    copy = shutil.copytree(both, tmp_path / "corpus")
    row = open_corpus(copy).tiles().to_pylist()[0]
    shard = copy / row["shard"]
    if damage == "missing":
        shard.unlink()
    elif damage == "short":
        os.truncate(shard, row["offset"] + 100)
    else:
        with shard.open("r+b") as file:
            file.seek(row["offset"] + 7)
            byte = file.read(1)
            file.seek(row["offset"] + 7)
            file.write(bytes([byte[0] ^ 1]))
    for desk in _desk(copy, tmp_path):
        assert shard.name in _error(_get(desk, "/api/thumb", n=0))
        tile = _json(desk, "/api/tile", n=0)
        assert shard.name in tile["broken"] and tile["planes"] == [] and tile["scene_row"]
        assert len(_json(desk, "/api/tiles")["rows"]) == 60


def test_what_is_no_request_is_told(desk: Desk):
    assert _error(_get(desk, "/nothing"), 404)
    for path in ("/../corpus.json", "/page.css/../../pyproject.toml", "//etc/passwd", "/corpus.json", ""):
        assert _get(desk, path).status == 404
    assert _error(_get(desk, "/api/flag"), 405) and _error(answer(desk, Request("POST", "/")), 405)
    for n in ("", "x", "-1", "1e3", "٣", "9" * 13, "99999999"):
        assert _error(_get(desk, "/api/tile", n=n))
    for facets in ("[]", '{"key":["x"]}', '{"sensor":"S1"}', '{"sensor":[{}]}', "[" * 5000, "{"):
        assert _error(_get(desk, "/api/tiles", facets=facets))


# ----------------------------------------------------------------------------------------------- hostile content


@pytest.fixture
def hostile(both: Path, tmp_path: Path) -> Path:
    """A corpus whose every text is bad."""
    copy = shutil.copytree(both, tmp_path / "hostile")
    tiles = pq.read_table(copy / "tiles.parquet")
    long = "<script>alert(1)</script>" * 50_000
    for name, value in (
        ("scene", HOSTILE),
        ("source", HOSTILE),
        ("sensor", long),
        ("crs", long),
        ("datetime", HOSTILE),
    ):
        column = tiles.schema.get_field_index(name)
        tiles = tiles.set_column(column, name, pa.array([value] * len(tiles)))
    keys = [f"{HOSTILE}{number}" for number in range(len(tiles))]
    tiles = tiles.set_column(0, "key", pa.array(keys))
    column = tiles.schema.get_field_index("lon")
    tiles = tiles.set_column(column, "lon", pa.array([float("nan")] * len(tiles)))
    column = tiles.schema.get_field_index("footprint")
    tiles = tiles.set_column(column, "footprint", pa.array([b"\x01nonsense"] * len(tiles)))
    pq.write_table(tiles, copy / "tiles.parquet")
    scenes = pq.read_table(copy / "scenes.parquet")
    column = scenes.schema.get_field_index("scene")
    scenes = scenes.set_column(column, "scene", pa.array([HOSTILE] * len(scenes)))
    pq.write_table(scenes, copy / "scenes.parquet")
    return copy


def _texts(value: Any) -> Iterator[str]:
    if isinstance(value, str):
        yield value
    elif isinstance(value, dict | list):
        for one in [*value, *value.values()] if isinstance(value, dict) else value:
            yield from _texts(one)


def test_hostile_texts_are_short_lines_of_json(hostile: Path, tmp_path: Path):
    for desk in _desk(hostile, tmp_path):
        for path in ("/api/start", "/api/tiles", "/api/facets", "/api/tile", "/api/near"):
            found = _get(desk, path, n=0)
            assert found.status == 200 and found.kind.startswith("application/json") and len(found.body) < 100_000
            assert all(word.isprintable() and len(word) <= 2000 for word in _texts(json.loads(found.body)))
        assert _json(desk, "/api/tile", n=0)["ring"] == []
        assert _json(desk, "/api/tile", n=0)["lon"] is None
        assert "fits into a line" in _error(_post(desk, "/api/flag", n=0, reason="", whole=False))
        assert not desk.flags.path.exists()
        listed = json.dumps({"sensor": ["<script>"]})
        assert _json(desk, "/api/tiles", facets=listed)["rows"] == []


def test_tars_of_another_program_are_shown_saying_what_is_not_known(tmp_path: Path):
    array, picture = io.BytesIO(), io.BytesIO()
    np.save(array, np.linspace(0, 1, 300 * 500, dtype=np.float32).reshape(300, 500))
    Image.fromarray(np.arange(3 * 40 * 30, dtype=np.uint8).reshape(40, 30, 3)).save(picture, "PNG")
    members = {
        "a.npy": array.getvalue(),
        "a.json": json.dumps({"lon": 1e400, "sensor": HOSTILE, "bytes": -5, "x": "y" * 10**6}).encode(),
        "b.png": picture.getvalue(),
        "../../c.png": b"no picture",
        "d.txt": b"nothing to show",
        f"e{'x' * 3000}.npy": array.getvalue()[:100],
    }
    path = write_tar(tmp_path / "other.tar", members)
    for desk in _desk(path, tmp_path):
        start = _json(desk, "/api/start")
        assert not start["corpus"] and start["total"] == 5 and "split" in start["unknown"]
        assert _json(desk, "/api/tiles", sort="key")["count"] == 5
        rows = _json(desk, "/api/tiles")["rows"]
        planes = [len(_json(desk, "/api/tile", n=row["n"])["planes"]) for row in rows]
        assert planes == [1, 3, 0, 0, 0]
        told = [_json(desk, "/api/tile", n=row["n"])["broken"] for row in rows]
        assert told[0] is told[1] is None and "cannot be read" in told[2] and "no member" in told[3]
        first = _json(desk, "/api/tile", n=0)
        assert first["planes"][0]["unit"] == "value" and first["scene_row"] is None
        with Image.open(io.BytesIO(_get(desk, "/api/thumb", n=0).body)) as image:
            assert max(image.size) <= 160
        near = _json(desk, "/api/near", n=0)
        assert not near["duplicates"] and near["look_alikes"] == []
        assert _post(desk, "/api/flag", n=1, reason="odd", whole=False)["flag"]["what"] == "tile"
        assert "no name" in _error(_post(desk, "/api/flag", n=1, reason="", whole=True))


# --------------------------------------------------------------------------------------------------------- flags


def test_flags_go_round_and_a_build_takes_them(desk: Desk, scenes: Path, both: Path, tmp_path: Path):
    from pipelines.companions import CompanionFiles

    rows = _json(desk, "/api/tiles")["rows"]
    assert _post(desk, "/api/flag", n=rows[0]["n"], reason='stripes, "bad"\n\x1b', whole=False)["flag"] == {
        "what": "tile",
        "reason": 'stripes, "bad"',
    }
    _post(desk, "/api/flag", n=rows[1]["n"], reason="", whole=True)
    first, second = (desk.table.row(row["n"])["source"] for row in rows[:2])
    with desk.flags.path.open(newline="") as file:
        assert list(csv.DictReader(file)) == [
            {"key": rows[0]["key"], "scene": rows[0]["scene"], "source": first, "reason": 'stripes, "bad"'},
            {"key": "", "scene": rows[1]["scene"], "source": second, "reason": ""},
        ]
    flagged = _json(desk, "/api/tiles", flagged=1, limit=240)["rows"]
    assert {row["key"] for row in flagged if row["flag"]["what"] == "tile"} == {rows[0]["key"]}
    assert {row["scene"] for row in flagged if row["flag"]["what"] == "scene"} == {rows[1]["scene"]}
    assert [one["key"] for one in _json(desk, "/api/flags")["flags"]] == [rows[0]["key"], ""]

    assert read_exclusion(desk.flags.path).names == (rows[0]["key"], rows[1]["scene"])
    config = replace(CONFIG, content="both", val_share=0.1)
    files = CompanionFiles(exclude=desk.flags.path)
    summary = build([str(scenes)], tmp_path / "without", config, 0, companions=files)
    left = open_corpus(tmp_path / "without").tiles(columns=["key", "scene"]).to_pylist()
    assert summary.unmatched == [] and summary.scenes_excluded == 1
    assert rows[0]["key"] not in [row["key"] for row in left] and rows[1]["scene"] not in [r["scene"] for r in left]

    assert _post(desk, "/api/unflag", n=rows[0]["n"], whole=False)["flag"] is None
    assert _post(desk, "/api/unflag", n=rows[1]["n"], whole=True)["flag"] is None
    assert _json(desk, "/api/flags")["flags"] == [] and _json(desk, "/api/tiles", flagged=1)["count"] == 0


def test_a_flag_that_is_set_again_gets_the_new_reason(desk: Desk):
    for reason in ("a", "b"):
        _post(desk, "/api/flag", n=3, reason=reason, whole=False)
    assert [flag.reason for flag in desk.flags.read()] == ["b"]


def test_tabs_and_editors_lose_nothing_of_one_another(tmp_path: Path):
    """Four files of the same path, as servers have them, eight threads each; and rows that a person wrote."""
    path = tmp_path / "flags.csv"
    path.write_text("who,key,reason\nAda,mine-VV-0-0,seam\n")
    files = [FlagFile(path) for _ in range(4)]

    def flag(number: int) -> None:
        files[number % 4].add({"key": f"k{number}", "scene": "s", "source": "p"}, f"r{number}", False)

    threads = [threading.Thread(target=flag, args=(number,)) for number in range(32)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    rows = list(csv.DictReader(io.StringIO(path.read_text())))
    assert rows[0] == {"who": "Ada", "key": "mine-VV-0-0", "reason": "seam", "scene": "", "source": ""}
    assert {row["key"] for row in rows[1:]} == {f"k{number}" for number in range(32)}
    assert [one.name for one in tmp_path.iterdir()] == ["flags.csv"]


@pytest.mark.parametrize("name", ["=HYPERLINK(1)", "+1", "-1", "@SUM(1)"])
def test_what_a_spreadsheet_would_compute_is_in_no_list(tmp_path: Path, name: str):
    flags = FlagFile(tmp_path / "flags.csv")
    for row, whole in (({"key": name, "scene": "s"}, False), ({"key": "k", "scene": name}, True)):
        with pytest.raises(SettingError, match="spreadsheet"):
            flags.add(row, "", whole)
    flags.add({"key": "k", "scene": name, "source": name}, "", False)
    assert (tmp_path / "flags.csv").read_text() == "key,scene,source,reason\nk,,,\n"


@pytest.mark.parametrize(
    "text", ["just a list\nof lines\n", 'key,reason\n"open', "key,key\na,b\n", "key\na,b,c\n", "\xff"]
)
def test_a_file_that_is_no_list_of_flags_is_refused_and_stays(tmp_path: Path, text: str):
    path = tmp_path / "flags.csv"
    path.write_bytes(text.encode("latin-1"))
    with pytest.raises(SettingError, match="flags"):
        FlagFile(path)
    assert path.read_bytes() == text.encode("latin-1")


@pytest.mark.parametrize(
    "value",
    [[], {}, {"n": 0}, {"n": "0", "reason": "", "whole": False}, {"n": True, "reason": "", "whole": False},
     {"n": 0, "reason": 1, "whole": False}, {"n": 0, "reason": "", "whole": False, "path": "/etc/x"},
     {"n": 10**9, "reason": "", "whole": False}],
)  # fmt: skip
def test_what_is_posted_is_checked(desk: Desk, value: Any):
    assert _error(answer(desk, Request("POST", "/api/flag", {}, json.dumps(value).encode())))
    assert not desk.flags.path.exists()


def test_flags_that_cannot_be_written_are_told(desk: Desk, tmp_path: Path):
    desk.flags.path = tmp_path / "file" / "flags.csv"
    (tmp_path / "file").write_text("in the way")
    assert "file" in _error(_post(desk, "/api/flag", n=0, reason="", whole=False))


# -------------------------------------------------------------------------------------------------- other corpora


def test_a_shard_of_a_corpus_shows_its_tiles_with_all_that_the_corpus_says(both: Path, tmp_path: Path):
    shard = open_corpus(both).shards[-1]
    for desk in _desk(both / shard.path, tmp_path):
        rows = _json(desk, "/api/tiles", limit=240)["rows"]
        assert _json(desk, "/api/start")["total"] == shard.tiles >= len(rows)
        last = _json(desk, "/api/tile", n=rows[-1]["n"])
        assert last["key"] == rows[-1]["key"] and len(last["planes"]) == 2 and last["scene_row"]
        assert _json(desk, "/api/start")["corpus"] and _get(desk, "/api/thumb", n=rows[0]["n"]).status == 200


def test_a_corpus_of_an_older_format_is_shown(tmp_path: Path):
    for desk in _desk(Path(__file__).parents[1] / "data" / "format-2", tmp_path):
        row = _json(desk, "/api/tiles")["rows"][0]
        assert _json(desk, "/api/tile", n=row["n"])["key"] == row["key"]
        assert _json(desk, "/api/near", n=row["n"])["look_alikes"] == []
        assert "polarisation" in _json(desk, "/api/facets") and "flat" not in _json(desk, "/api/facets")


def test_a_remote_corpus_is_shown_reading_what_is_seen(scenes: Path, store: ObjectStore, tmp_path: Path):
    store.put("of-browse", b"")
    build([str(scenes)], place("s3://of-browse/corpus", tmp_path / "work"), CONFIG, 0)
    for desk in _desk("s3://of-browse/corpus", tmp_path):
        row = _json(desk, "/api/tiles")["rows"][0]
        assert _get(desk, "/api/thumb", n=row["n"]).kind == "image/png"
        assert _json(desk, "/api/tile", n=row["n"])["planes"]


# -------------------------------------------------------------------------------------------------------- server


@pytest.fixture
def server(desk: Desk) -> Iterator[BrowseServer]:
    with BrowseServer(desk) as server:
        thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.02})
        thread.start()
        try:
            yield server
        finally:
            server.shutdown()
            thread.join()


def _asked(server: BrowseServer, path: str, method: str = "GET", body: bytes | None = None, **headers: str | None):
    """Status, headers and body; the cookie and a right Host and Origin are there unless said otherwise."""
    given: dict[str, str | None] = {"Host": f"127.0.0.1:{server.port}", "Cookie": f"{server.cookie}={server.token}"}
    if method == "POST":
        given |= {"Origin": f"http://127.0.0.1:{server.port}", "Content-Type": "application/json"}
    given |= {name.replace("_", "-"): value for name, value in headers.items()}
    connection = http.client.HTTPConnection("127.0.0.1", server.port, timeout=10)
    connection.putrequest(method, path, skip_host=True, skip_accept_encoding=True)
    for name, value in given.items():
        if value is not None:
            connection.putheader(name, value)
    if body is not None and "Content-Length" not in given:
        connection.putheader("Content-Length", str(len(body)))
    connection.endheaders(body)
    found = connection.getresponse()
    content = found.read()
    connection.close()
    return found.status, found.headers, content


def test_the_address_with_the_token_opens_the_page_and_sets_a_cookie(server: BrowseServer):
    path = server.url.split(str(server.port), 1)[1]
    status, headers, page = _asked(server, path, Cookie=None)
    assert status == 200 and b"<!doctype html>" in page
    assert headers["Set-Cookie"] == f"{server.cookie}={server.token}; Path=/; HttpOnly; SameSite=Strict"
    status, headers, _ = _asked(server, "/")
    assert status == 200 and headers["Set-Cookie"] is None
    policy = headers["Content-Security-Policy"]
    assert "default-src 'self'" in policy and "unsafe" not in policy and "frame-ancestors 'none'" in policy
    assert headers["X-Content-Type-Options"] == "nosniff" and headers["Referrer-Policy"] == "no-referrer"
    assert headers["Cache-Control"] == "no-store" and "Access-Control-Allow-Origin" not in headers
    assert BrowseServer(server.desk).token != server.token and len(server.token) >= 32


def test_pages_hold_no_script_style_or_address_from_elsewhere(server: BrowseServer):
    for path in ("/", "/page.js", "/view.js", "/map.js", "/page.css"):
        text = _asked(server, path)[2].decode()
        assert "https:" not in text and "http:" not in text.replace("http://www.w3.org/2000/svg", "")
        for word in ("innerHTML", "outerHTML", "insertAdjacentHTML", "document.write", "eval(", "<style", "onclick="):
            assert word not in text, (path, word)
    assert '<script type="module" src="/page.js"></script>' in _asked(server, "/")[2].decode()


@pytest.mark.parametrize("path", ["/", "/page.js", "/api/start", "/api/tiles", "/api/thumb?n=0", "/nothing"])
@pytest.mark.parametrize("cookie", [None, "", "x=y", "sarsense-1=abc", "{name}=wrong", "{name}=", "{name}"])
def test_without_the_token_nothing_is_answered(server: BrowseServer, path: str, cookie: str | None):
    given = None if cookie is None else cookie.format(name=server.cookie)
    for more in ("", "?token=", "?token=wrong"):
        status, headers, body = _asked(
            server, path.split("?")[0] + (more or path[len(path.split("?")[0]) :]), Cookie=given
        )
        assert status == 403 and b"terminal printed" in body and server.token.encode() not in body
        assert headers["Set-Cookie"] is None
    assert _asked(server, f"/api/start?token={server.token}", Cookie=given)[0] == 403  # only of the page itself


@pytest.mark.parametrize(
    "host",
    ["evil.example", "evil.example:{port}", "127.0.0.1", "127.0.0.1:1", "127.0.0.1:{port}@evil", "a@127.0.0.1:{port}",
     "127.0.0.2:{port}", "127.0.0.1:{port}/x", "", None, "[::1", "localhost.evil.example:{port}", "127.0.0.1:x"],
)  # fmt: skip
def test_a_name_that_was_led_here_is_not_answered(server: BrowseServer, host: str | None):
    given = None if host is None else host.format(port=server.port)
    assert _asked(server, "/", Host=given)[0] == 421
    assert _asked(server, "/", Host=f"localhost:{server.port}")[0] == 200


@pytest.mark.parametrize(
    "origin", [None, "null", "http://evil.example", "https://127.0.0.1:{port}", "http://127.0.0.1:1"]
)
def test_only_the_page_itself_may_change_anything(server: BrowseServer, origin: str | None):
    body = json.dumps({"n": 0, "reason": "", "whole": False}).encode()
    given = None if origin is None else origin.format(port=server.port)
    assert _asked(server, "/api/flag", "POST", body, Origin=given)[0] == 403
    assert _asked(server, "/api/flag", "POST", body, Cookie=None)[0] == 403
    assert _asked(server, "/api/flag", "POST", body, Content_Type="text/plain")[0] == 415
    assert _asked(server, "/api/flag?n=0")[0] == 405
    assert not server.desk.flags.path.exists()
    assert _asked(server, "/api/flag", "POST", body)[0] == 200
    assert server.desk.flags.path.exists()


@pytest.mark.parametrize("other", ["word", 'a={"json": "yes"}', "a b=c", '"', "=;=", "x=1"])
def test_cookies_of_other_servers_of_this_machine_do_no_harm(server: BrowseServer, other: str):
    mine = f"{server.cookie}={server.token}"
    for cookie in (f"{other}; {mine}", f"{mine}; {other}", f"{other};{mine};{other}"):
        assert _asked(server, "/api/start", Cookie=cookie)[0] == 200
    assert _asked(server, "/api/start", Cookie=other)[0] == 403


def test_requests_have_sizes(server: BrowseServer):
    assert _asked(server, "/api/flag", "POST", b"x" * (LONGEST_BODY + 1))[0] == 413
    assert _asked(server, "/api/flag", "POST", b"", Content_Length="9" * 30)[0] == 413
    assert _asked(server, "/api/flag", "POST", b"", Content_Length="0" * 12 + "9" * 9)[0] == 413
    assert _asked(server, "/api/flag", "POST", b"", Content_Length="-1")[0] == 400
    assert _asked(server, "/api/flag", "POST", None, Transfer_Encoding="chunked")[0] == 411
    assert _asked(server, f"/api/tiles?where={'a' * LONGEST_QUERY}")[0] == 414
    assert _asked(server, "/api/tiles?" + "&".join(f"a{n}=1" for n in range(100)))[0] == 400
    assert _asked(server, "/" + "a" * 70_000)[0] == 414
    assert _asked(server, "/", **{f"X-{number}": "y" for number in range(200)})[0] == 431
    assert _asked(server, "/", "PUT")[0] == _asked(server, "/", "DELETE")[0] == 501
    assert _asked(server, "/api/start")[0] == 200


@pytest.mark.parametrize(
    "path",
    ["/../corpus.json", "/%2e%2e/corpus.json", "/..%2f..%2fetc%2fpasswd", "/page.js/../server.py", "/server.py",
     "/train/", "//127.0.0.1/", "/\\..\\x", "/api/thumb/../../x", "/page.js%00.png"],
)  # fmt: skip
def test_no_path_leads_out(server: BrowseServer, path: str):
    status, _, body = _asked(server, path)
    assert status in (400, 404) and len(body) < 200


@pytest.mark.parametrize(
    "raw",
    [b"\r\n\r\n", b"GET\r\n\r\n", b"GET / HTTP/9.9\r\n\r\n", b"\x16\x03\x01\x02\x00\x01\x00" * 20 + b"\r\n\r\n",
     b"GET <script>alert(1)</script> HTTP/1.1\r\n\r\n", b"GET http://evil/ HTTP/1.1\r\nHost: evil\r\n\r\n",
     b"POST /api/flag HTTP/1.1\r\nHost: x\r\nContent-Length: 5\r\n\r\nab", b"GET / HTTP/1.1\r\n\xff\xfe: x\r\n\r\n"],
)  # fmt: skip
def test_noise_ends_a_connection_and_no_server(server: BrowseServer, raw: bytes):
    with socket.create_connection(("127.0.0.1", server.port), timeout=5) as connection:
        connection.sendall(raw)
        connection.shutdown(socket.SHUT_WR)
        found = b""
        while part := connection.recv(65536):
            found += part
    assert b"<script>" not in found and b" 200 " not in found[:20] and server.token.encode() not in found
    assert _asked(server, "/api/start")[0] == 200


def test_it_listens_on_loopback_alone(server: BrowseServer):
    assert server.loopback and server.server_address[0] == "127.0.0.1"
    with BrowseServer(server.desk, "0.0.0.0") as everywhere:
        assert not everywhere.loopback and everywhere.meant(f"10.1.2.3:{everywhere.port}")
        assert not everywhere.meant(f"evil.example:{everywhere.port}")
    with pytest.raises(SettingError, match="cannot be had"):
        BrowseServer(server.desk, "127.0.0.1", server.port)
    with pytest.raises(SettingError, match="cannot be had"):
        BrowseServer(server.desk, "no.such.host.invalid")


def test_many_at_once_are_answered(server: BrowseServer):
    found: list[int] = []

    def ask(number: int) -> None:
        found.append(_asked(server, f"/api/thumb?n={number}")[0])
        found.append(_asked(server, f"/api/tiles?where=enl>{number}")[0])

    threads = [threading.Thread(target=ask, args=(number,)) for number in range(24)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert found == [200] * 48


# ------------------------------------------------------------------------------------------------------- command


def _command(*arguments: str, cwd: Path) -> subprocess.Popen[str]:
    command = [*SARSENSE, "shards", "browse", *arguments, "--no-open", "--json"]
    environment = {**os.environ, "PYTHONPATH": str(Path(__file__).parents[2])}
    return subprocess.Popen(
        command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, cwd=cwd, env=environment,
        preexec_fn=lambda: signal.signal(signal.SIGINT, signal.SIG_DFL),
    )  # fmt: skip


@pytest.mark.parametrize(("number", "code"), [(signal.SIGINT, 130), (signal.SIGTERM, 143)])
def test_ctrl_c_ends_it_at_once_also_while_sql_runs(both: Path, tmp_path: Path, number: signal.Signals, code: int):
    process = _command(str(both), cwd=tmp_path)
    assert process.stdout is not None
    lines: list[str] = []
    while not lines or lines[-1] != "}\n":
        lines.append(process.stdout.readline())
        assert lines[-1]
    told = json.loads("".join(lines))
    assert told["flags"] == str(tmp_path / "flags.csv") and told["url"].startswith("http://127.0.0.1:")
    port, token = int(told["url"].split(":")[2].split("/")[0]), told["url"].split("token=")[1]
    slow = "GET /api/tiles?where=(SELECT%20count(*)FROM%20range(1000000000000)WHERE%20range%257=3)%3E0 HTTP/1.1\r\n"
    with socket.create_connection(("127.0.0.1", port), timeout=5) as connection:
        connection.sendall(f"{slow}Host: 127.0.0.1:{port}\r\nCookie: sarsense-{port}={token}\r\n\r\n".encode())
        time.sleep(0.5)
        process.send_signal(number)
        _, errors = process.communicate(timeout=8)
    assert (process.returncode, errors) == (code, "")


def test_wrong_usage_is_one_line(both: Path, tmp_path: Path):
    (tmp_path / "notes.csv").write_text("a,b\n1,2\n")
    for arguments, code in (([str(tmp_path / "none")], 1), ([str(both), "--flags", "notes.csv"], 2)):
        process = _command(*arguments, cwd=tmp_path)
        _, errors = process.communicate(timeout=60)
        assert process.returncode == code and len(errors.splitlines()) == 1, errors
    with pytest.raises(CorpusError):
        open_source(str(tmp_path / "none"))
