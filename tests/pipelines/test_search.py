"""The nearest tiles are those that comparing each with each would find."""

from __future__ import annotations

import json
import shutil
import subprocess
import sys
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

import duckdb
import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pyproj
import pytest
import shapely
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image
from typer.testing import CliRunner

from cli import dic3l_app
from dic3l.errors import ConfigError, Dic3lError
from pipelines.embed import embed
from pipelines.embeddings import embedding_schema
from pipelines.search import Found, Hit, Query, _caption, _largest, draw, parse_place, search
from sarsense.corpus import open_corpus
from sarsense.errors import CorpusError, SettingError
from sarsense.shards import TileReader
from tests.pipelines.test_embed import weights  # noqa: F401  a fixture


@pytest.fixture(scope="module")
def embedded(reference: Path, weights: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:  # noqa: F811
    out = tmp_path_factory.mktemp("searched") / "embeddings.parquet"
    embed(weights, [reference], out, device="cpu")
    return out


def made_up(path: Path, vectors: np.ndarray, places: Sequence[tuple[float, float] | None] = (), rows: int = 3) -> Path:
    """Embeddings of squares of 0.02 degrees about `places`, in row groups of `rows`."""
    count = len(vectors)
    places = list(places) or [None] * count
    columns = {
        "key": [f"tile-{i}" for i in range(count)],
        "scene": ["scene"] * count,
        "split": ["train"] * count,
        "polarisation": ["VV"] * count,
        "row": list(range(count)),
        "col": [0] * count,
        "lon": [None if p is None else (p[0] + 180) % 360 - 180 for p in places],
        "lat": [None if p is None else p[1] for p in places],
        "footprint": [
            None if p is None else shapely.box(p[0] - 0.01, p[1] - 0.01, p[0] + 0.01, p[1] + 0.01).wkb for p in places
        ],
        "embedding": vectors.astype(np.float32).tolist(),
    }
    schema = embedding_schema(vectors.shape[1], {"weights": {"digest": "ab"}, "rasters": []})
    pq.write_table(pa.table(columns, schema=schema), path, row_group_size=rows)
    return path


def brute_force(vectors: np.ndarray, own: int) -> list[tuple[float, int]]:
    """(cosine, row) of all others, the greatest first, each by itself."""
    one = vectors[own].astype(np.float64)
    found = []
    for row, other in enumerate(vectors.astype(np.float64)):
        if row != own:
            found.append((float(one @ other / np.sqrt(one @ one) / np.sqrt(other @ other)), row))
    return sorted(found, key=lambda pair: (-pair[0], pair[1]))


def test_nearest_are_those_of_brute_force(embedded, reference):
    vectors = np.array(pq.read_table(embedded)["embedding"].to_pylist())
    keys = pq.read_table(embedded)["key"].to_pylist()
    for own in (0, 17, len(keys) - 1):
        found = search(embedded, Query(key=keys[own]), count=len(keys))
        expected = brute_force(vectors, own)
        assert [hit.row for hit in found.hits] == [row for _, row in expected]
        np.testing.assert_allclose([hit.cosine for hit in found.hits], [cosine for cosine, _ in expected], atol=1e-12)
        assert found == search(embedded, Query(row=own), count=len(keys))
        assert [hit.rank for hit in found.hits] == list(range(1, len(keys))) and found.query.cosine == pytest.approx(1)
    tile = open_corpus(reference).tiles().to_pylist()[found.hits[0].row]
    hit = found.hits[0].to_json()
    assert {name: hit[name] for name in ("key", "scene", "split", "lon", "lat")} == {
        name: tile[name] for name in ("key", "scene", "split", "lon", "lat")
    }


@given(st.lists(st.integers(-3, 3), min_size=1, max_size=40), st.integers(0, 45))
def test_the_largest_are_the_first_of_a_stable_sort(values, count):
    expected = sorted(range(len(values)), key=lambda row: -values[row])[: min(count, len(values))]
    assert _largest(np.array(values, float), min(count, len(values))).tolist() == expected


def test_equal_tiles_come_in_the_order_of_the_file_and_lengths_do_not_matter(tmp_path):
    vectors = np.array([[1, 0], [0, 5], [3, 3], [100, 100], [0, 0], [-2, 0], [0.5, 0]])
    path = made_up(tmp_path / "e.parquet", vectors)
    found = search(path, Query(row=0))
    assert [hit.row for hit in found.hits] == [6, 2, 3, 1, 4, 5]
    np.testing.assert_allclose([hit.cosine for hit in found.hits], [1, 0.5**0.5, 0.5**0.5, 0, 0, -1], atol=1e-12)
    assert [hit.row for hit in search(path, Query(row=3), count=1).hits] == [2]
    with pytest.raises(Dic3lError, match="tile tile-4: its embedding is zero"):
        search(path, Query(row=4))


def test_elsewhere_leaves_out_what_is_near_on_the_ground_and_what_nobody_knows_where(tmp_path):
    rng = np.random.default_rng(0)
    places = [(16 + dx, 48 + dy) for dx, dy in rng.uniform(-1, 1, (60, 2))]
    path = made_up(tmp_path / "e.parquet", rng.normal(size=(61, 8)), [*places, None], rows=7)
    geod = pyproj.Geod(ellps="WGS84")
    away = [geod.inv(*places[5], *other)[2] / 1000 for other in places]
    found = search(path, Query(row=5), count=100, elsewhere_km=40)
    expected = [row for _, row in brute_force(np.array(pq.read_table(path)["embedding"].to_pylist()), 5)]
    assert [hit.row for hit in found.hits] == [row for row in expected if row < 60 and away[row] >= 40]
    assert 0 < len(found.hits) < 59
    assert [hit.distance_km for hit in found.hits] == pytest.approx([away[hit.row] for hit in found.hits])
    everywhere = search(path, Query(row=5), count=100)
    assert len(everywhere.hits) == 60 and {hit.row: hit for hit in everywhere.hits}[60].distance_km is None
    with pytest.raises(ConfigError, match="tile-60 lies nowhere"):
        search(path, Query(row=60), elsewhere_km=1)


def test_a_place_is_the_tile_that_covers_it_and_of_several_the_nearest_also_across_180_degrees(tmp_path):
    places = [(10.0, 50.0), (10.012, 50.0), (179.999, 0.0), (-30.0, 10.0), None]
    path = made_up(tmp_path / "e.parquet", np.eye(5) + 0.1, places)
    for place, row in (((10.004, 50.0), 0), ((10.007, 50.001), 1), ((10.02, 49.995), 1), ((-179.995, 0.005), 2)):
        assert search(path, Query(place=place)).query.row == row
    with pytest.raises(Dic3lError, match=r"no tile covers -30,11; the nearest is tile-3, 110\.6 km away"):
        search(path, Query(place=(-30.0, 11.0)))
    with pytest.raises(Dic3lError, match="none of its tiles has a place"):
        search(made_up(tmp_path / "f.parquet", np.eye(3)), Query(place=(0.0, 0.0)))


def test_a_place_finds_the_tile_of_a_corpus(embedded, reference):
    rows = open_corpus(reference).tiles().to_pylist()
    found = search(embedded, Query(place=(rows[9]["lon"], rows[9]["lat"])))
    assert shapely.from_wkb(rows[found.query.row]["footprint"]).covers(shapely.Point(rows[9]["lon"], rows[9]["lat"]))
    assert (found.query.lon, found.query.lat) == (rows[9]["lon"], rows[9]["lat"])


def test_what_cannot_be_found_is_said(tmp_path, embedded, reference):
    pq.write_table(pa.table({"a": [1]}), tmp_path / "other.parquet")
    (tmp_path / "text.parquet").write_text("no table")
    for path, words in (
        (tmp_path / "none.parquet", "`dic3l embed WEIGHTS CORPUS -o"),
        (tmp_path / "other.parquet", "another Parquet file found"),
        (tmp_path / "text.parquet", "cannot be read"),
    ):
        with pytest.raises(Dic3lError, match=words):
            search(path, Query(row=0))
    with pytest.raises(Dic3lError, match="no tile nothing among"):
        search(embedded, Query(key="nothing"))
    for query, settings, words in (
        (Query(row=10**6), {}, "--tile: from 0 to"),
        (Query(row=0), {"count": 0}, "-k: 1 or more"),
        (Query(row=0), {"elsewhere_km": float("nan")}, "--elsewhere"),
    ):
        with pytest.raises(ConfigError, match=words):
            search(embedded, query, **settings)
    for text in ("1", "a,b", "200,0", "0,91", "1,2,3"):
        with pytest.raises(ConfigError, match="--place"):
            parse_place(text)
    assert parse_place(" 13.4, -52.5 ") == (13.4, -52.5)


def test_the_documented_query_of_duckdb_finds_the_same(embedded):
    text = (Path(__file__).resolve().parents[2] / "docs/weights.md").read_text(encoding="utf-8")
    query = text.split("```sql\n")[1].split("```")[0]
    key = pq.read_table(embedded)["key"][5].as_py()
    rows = duckdb.sql(query.replace("embeddings.parquet", str(embedded)).replace("KEY", key)).fetchall()
    found = search(embedded, Query(key=key), count=11)
    assert len(rows) == 12 and {name for name, _ in rows} == {key, *(hit.key for hit in found.hits)}
    np.testing.assert_allclose([cosine for _, cosine in rows[1:]], [hit.cosine for hit in found.hits], atol=1e-5)


# --------------------------------------------------------------------------------------------------------- picture


def test_the_picture_shows_the_tiles_themselves(embedded, reference, tmp_path, monkeypatch):
    found = search(embedded, Query(row=3), count=6)
    shown: list[np.ndarray] = []
    monkeypatch.setattr("matplotlib.axes.Axes.imshow", lambda self, image, **_: shown.append(image))
    draw(found, tmp_path / "near.png")
    expected = TileReader(open_corpus(reference)).read(np.array([3, *(hit.row for hit in found.hits)]))[:, 0]
    assert len(shown) == 7 and all((a[..., 0] == b).all() for a, b in zip(shown, expected, strict=True))
    # a corpus that was put into other shards has its tiles in other rows
    draw(
        Found(replace(found.query, row=0), [replace(hit, row=0) for hit in found.hits], found.facts), tmp_path / "a.png"
    )
    assert all((a == b).all() for a, b in zip(shown[:7], shown[7:], strict=True))
    monkeypatch.undo()
    draw(found, tmp_path / "near.png")
    with Image.open(tmp_path / "near.png") as picture:
        assert picture.width > 1000 and len(np.unique(np.asarray(picture))) > 50


def test_a_corpus_that_moved_is_named_and_another_one_is_refused(embedded, reference, tmp_path):
    found = search(embedded, Query(row=0), count=2)
    moved = Found(found.query, found.hits, {**found.facts, "corpus": {**found.facts["corpus"], "path": "/nowhere"}})
    with pytest.raises(CorpusError, match="/nowhere: no such folder"):
        draw(moved, tmp_path / "a.png")
    draw(moved, tmp_path / "a.png", shutil.copytree(reference, tmp_path / "moved"))
    other = shutil.copytree(reference, tmp_path / "other")
    manifest = json.loads((other / "corpus.json").read_text())
    (other / "corpus.json").write_text(json.dumps({**manifest, "digest": "cd" * 32}))
    with pytest.raises(Dic3lError, match=r"was embedded, corpus .* found; give --corpus"):
        draw(found, tmp_path / "b.png", other)
    made = search(made_up(tmp_path / "e.parquet", np.eye(3)), Query(row=0))
    with pytest.raises(ConfigError, match="embeddings of rasters"):
        draw(made, tmp_path / "b.png")
    assert (tmp_path / "a.png").is_file() and not (tmp_path / "b.png").exists()


def test_the_command_prints_a_table_or_json_and_draws(embedded, tmp_path):
    key, picture = pq.read_table(embedded)["key"][5].as_py(), tmp_path / "near.png"
    told = command("--key", key, "-k", 3, "--picture", picture, of=embedded)
    found = json.loads(command("--tile", 5, "-k", 3, "--json", of=embedded))
    assert [hit["rank"] for hit in found["hits"]] == [1, 2, 3] and found["query"]["key"] == key
    assert all(hit["key"] in told and f"{hit['cosine']:.4f}" in told for hit in found["hits"])
    assert str(picture) in told and picture.stat().st_size > 10_000
    assert "one of --key, --place and --tile" in command("--tile", 1, "--key", key, of=embedded, code=2)
    with pytest.raises(SettingError, match=r"ends in \.png"):
        command("--tile", 1, "--picture", tmp_path / "a.jpg", of=embedded)
    at = found["query"]
    there = json.loads(command(f"--place={at['lon']},{at['lat']}", "--elsewhere", 1, "--json", of=embedded))
    assert there["hits"] and all(hit["distance_km"] >= 1 for hit in there["hits"])


def command(*options: object, of: Path, code: int = 0) -> str:
    """What `dic3l search` prints, in this process."""
    done = CliRunner().invoke(dic3l_app, ["search", str(of), *map(str, options)], terminal_width=200)
    if done.exception and not isinstance(done.exception, SystemExit):
        raise done.exception
    assert done.exit_code == code, done.output
    return done.output


def test_search_needs_no_torch():
    code = "import sys, pipelines.search; print('torch' in sys.modules)"
    assert subprocess.check_output([sys.executable, "-c", code], text=True).strip() == "False"


def test_a_place_under_a_picture_is_one_that_can_be_asked_for():
    told = _caption(Hit(1, 0.5, 3, "key", "scene", "train", "VV", -48.1, 25.25, 7.0))
    assert told[2] == "-48.1000,25.2500; 7.0 km" and parse_place(told[2].split(";")[0]) == (-48.1, 25.25)
    assert _caption(Hit(1, 0.5, 3, "key", "scene", None, None, None, None, None))[2] == "no place"
