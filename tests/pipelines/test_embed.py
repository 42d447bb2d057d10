"""Embeddings are what a plain forward pass of torchvision gives, of each tile, in order, with its place."""

from __future__ import annotations

from pathlib import Path

import duckdb
import geopandas
import numpy as np
import pyarrow.parquet as pq
import pytest
import rasterio
import torch
from torchvision import models
from typer.testing import CliRunner

from cli import dic3l_app
from dic3l.errors import ConfigError, Dic3lError
from dic3l.export import read_encoder, state_digest
from pipelines import embed as module
from pipelines.build import build
from pipelines.embed import embed
from pipelines.embeddings import open_embeddings
from pipelines.shard_source import ShardSource
from sarsense.config import BuildConfig
from sarsense.corpus import open_corpus
from sarsense.errors import SarsenseError
from sarsense.shards import TileReader
from tests.conftest import speckled_power, write_raster
from tests.pipelines.small import CONFIG

PLACES = ["key", "scene", "split", "polarisation", "row", "col", "lon", "lat", "footprint"]


@pytest.fixture(scope="session")
def weights(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A random torchvision network, as torchvision would save it."""
    path = tmp_path_factory.mktemp("weights") / "resnet18.pt"
    with torch.random.fork_rng():
        torch.manual_seed(3)
        torch.save(models.resnet18(weights=None).state_dict(), path)
    return path


@torch.no_grad()
def plain_forward(weights: Path, codes: np.ndarray) -> np.ndarray:
    """uint8 (n, H, W) -> (n, D), a tile after the other, in torchvision's words."""
    network = models.resnet18(weights=None)
    network.load_state_dict(torch.load(weights))
    network.fc = torch.nn.Identity()  # type: ignore[assignment]
    mean, std = torch.tensor([0.485, 0.456, 0.406]), torch.tensor([0.229, 0.224, 0.225])
    x = (torch.from_numpy(codes).float()[:, None].expand(-1, 3, -1, -1) / 255 - mean.view(3, 1, 1)) / std.view(3, 1, 1)
    return np.concatenate([network.eval()(one[None]).numpy() for one in x])


def matrix(path: Path) -> np.ndarray:
    return np.array(pq.read_table(path)["embedding"].to_pylist(), np.float32)


def facts(path: Path) -> dict:
    return open_embeddings(path)[1]


@pytest.fixture(scope="module")
def embedded(reference: Path, weights: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    out = tmp_path_factory.mktemp("embedded") / "embeddings.parquet"
    done = embed(weights, [reference], out, device="cpu")
    assert (done.rows, done.dim, done.scenes) == (len(open_corpus(reference).tiles()), 512, 4)
    return out


def test_of_each_tile_it_is_a_plain_forward_pass(reference, weights, embedded):
    some = np.arange(0, len(matrix(embedded)), 7)
    codes = TileReader(open_corpus(reference)).read(some)[:, 0]
    np.testing.assert_allclose(matrix(embedded)[some], plain_forward(weights, codes), rtol=1e-4, atol=1e-5)


def test_rows_and_footprints_are_those_of_the_corpus(reference, embedded):
    tiles = pq.read_table(reference / "tiles.parquet")
    found = pq.read_table(embedded)
    assert found.column_names == [*PLACES, "embedding"]
    assert found.select(PLACES).equals(tiles.select(PLACES))
    assert found.schema.metadata[b"geo"] == tiles.schema.metadata[b"geo"]
    one, other = geopandas.read_parquet(embedded), geopandas.read_parquet(reference / "tiles.parquet")
    assert one.crs == other.crs and one.geometry.geom_equals(other.geometry).all()
    told = duckdb.sql(f"select count(*), len(any_value(embedding)) from '{embedded}'").fetchall()
    assert told == [(len(tiles), 512)]


def test_the_metadata_say_of_what_they_are(reference, weights, embedded):
    told = facts(embedded)
    assert told["corpus"]["digest"] == open_corpus(reference).digest and told["corpus"]["path"] == str(reference)
    assert told["weights"]["digest"] == state_digest(read_encoder(weights)) and told["weights"]["arch"] == "resnet18"


def test_the_same_bytes_each_time_and_row_groups_bound_what_is_held(
    reference, weights, embedded, tmp_path, monkeypatch
):
    embed(weights, [reference], tmp_path / "a.parquet", device="cpu")
    assert (tmp_path / "a.parquet").read_bytes() == embedded.read_bytes()
    written = []
    monkeypatch.setattr(module, "_GROUP_ROWS", 32)
    monkeypatch.setattr(module, "_BATCH_TILES", 16)
    embed(weights, [reference], tmp_path / "b.parquet", device="cpu", progress=written.append)
    file = pq.ParquetFile(tmp_path / "b.parquet")
    groups = [file.metadata.row_group(i).num_rows for i in range(file.num_row_groups)]
    assert set(groups[:-1]) == {32} and written == np.cumsum(groups).tolist()
    np.testing.assert_allclose(matrix(tmp_path / "b.parquet"), matrix(embedded), rtol=1e-4, atol=1e-5)
    assert file.read(columns=PLACES).equals(pq.read_table(embedded, columns=PLACES))  # of many batches, too


def test_of_unit_length_where_asked_for(reference, weights, embedded, tmp_path):
    embed(weights, [reference], tmp_path / "a.parquet", unit_length=True, device="cpu")
    plain = matrix(embedded).astype(np.float64)
    expected = plain / np.linalg.norm(plain, axis=1, keepdims=True)
    np.testing.assert_allclose(matrix(tmp_path / "a.parquet"), expected, atol=1e-7)


def test_rasters_are_coded_and_placed_as_in_the_corpus_that_was_built_of_them(
    scenes, reference, weights, embedded, tmp_path
):
    """Windows of the grid of the build are its tiles, whatever dB range the corpus has."""
    out = tmp_path / "rasters.parquet"
    rasters = sorted(scenes.glob("*.tif"))
    done = embed(weights, rasters, out, corpus=reference, device="cpu")
    assert facts(out)["coding_corpus"] == open_corpus(reference).digest and "corpus" not in facts(out)
    of_tiles = {place_of(row): row for row in pq.read_table(embedded).to_pylist()}
    of_windows = {place_of(row): row for row in pq.read_table(out).to_pylist()}
    valid = 0
    for path in rasters:
        with rasterio.open(path) as dataset:
            seen = dataset.read_masks().reshape(2, 5, 64, 5, 64) > 0
        valid += int((seen.mean((2, 4)) >= CONFIG.min_valid).sum())
    assert of_tiles.keys() <= of_windows.keys() and len(of_windows) == done.rows == valid > len(of_tiles)
    for name, tile in of_tiles.items():
        window = of_windows[name]
        np.testing.assert_allclose(window["embedding"], tile["embedding"], rtol=1e-4, atol=1e-5)
        assert [window[key] for key in ("lon", "lat", "footprint")] == [
            tile[key] for key in ("lon", "lat", "footprint")
        ]
        assert window["split"] is None


def place_of(row: dict) -> tuple:
    """Scene by its file, polarisation, first pixel. Keys of a corpus end a scene's name with digits of its digest."""
    name = row["scene"].rsplit("-", 1)[0] if len(row["scene"].rsplit("-", 1)[-1]) == 12 else row["scene"]
    return name, row["polarisation"], row["row"], row["col"]


def test_windows_without_data_and_rasters_without_place(weights, tmp_path):
    power = speckled_power((96, 160), 4.0, 0)
    power[:48, :64] = np.nan
    path = write_raster(tmp_path / "a_VV.tif", 10 * np.log10(power), crs=None, nodata=np.nan)
    done = embed(weights, [path], tmp_path / "e.parquet", tile_size=48, device="cpu")
    rows = pq.read_table(tmp_path / "e.parquet").drop_columns("embedding").to_pylist()
    assert done.rows == 4 and [(row["row"], row["col"]) for row in rows] == [(0, 96), (48, 0), (48, 48), (48, 96)]
    assert {(row["lon"], row["footprint"], row["key"][:7]) for row in rows} == {(None, None, "a_VV-VV")}
    assert facts(tmp_path / "e.parquet")["coding"]["normalization"] == "group"


def test_stacks_have_the_features_of_each_polarisation_and_both_contents_those_of_the_speckled_one(
    scenes, weights, tmp_path
):
    one = str(sorted(scenes.glob("*.tif"))[0])
    settings = {"tile_size": 64, "val_share": 0.0, "polarisations": ("VV", "VH"), "bands": "stack", "content": "both"}
    build([one], tmp_path / "corpus", BuildConfig(**settings), workers=0)
    done = embed(weights, [tmp_path / "corpus"], tmp_path / "e.parquet", device="cpu")
    assert done.dim == 1024
    codes = TileReader(open_corpus(tmp_path / "corpus")).read(np.arange(3))  # VV, VH, and both despeckled
    assert codes.shape[1] == 4
    expected = np.hstack([plain_forward(weights, codes[:, channel]) for channel in (0, 1)])
    np.testing.assert_allclose(matrix(tmp_path / "e.parquet")[:3], expected, rtol=1e-4, atol=1e-5)


def test_of_a_corpus_in_a_store(reference, weights, embedded, tmp_path, store):
    store.put_folder(reference, "embedded/corpus")
    source = ShardSource(tmp_path / "cache")
    embed(weights, ["s3://embedded/corpus"], tmp_path / "e.parquet", device="cpu", source=source)
    assert np.array_equal(matrix(tmp_path / "e.parquet"), matrix(embedded))
    assert facts(tmp_path / "e.parquet")["corpus"]["path"] == "s3://embedded/corpus"


def test_what_cannot_be_embedded_is_refused_by_name(reference, weights, tmp_path, scenes):
    raster = sorted(scenes.glob("*.tif"))[0]
    (tmp_path / "folder").mkdir()
    (tmp_path / "text.tif").write_text("no raster")
    twin = write_raster(tmp_path / "twin" / raster.name, 10 * np.log10(speckled_power((96, 96), 4.0, 0)))
    out = tmp_path / "e.parquet"
    cases = [
        ([reference], out.with_suffix(".csv"), {}, ConfigError, "ends in .parquet"),
        ([reference, raster], out, {}, ConfigError, "a corpus among other sources"),
        ([reference], out, {"tile_size": 64}, ConfigError, "--corpus and --tile-size are for rasters"),
        ([tmp_path / "folder"], out, {}, ConfigError, "a folder that is no corpus"),
        ([tmp_path / "none.tif"], out, {}, ConfigError, "no such file"),
        ([tmp_path / "text.tif"], out, {}, SarsenseError, "text.tif"),
        ([raster, twin], out, {}, ConfigError, "keys of tiles begin with it"),
        ([raster], out, {"tile_size": 8}, ConfigError, "32 pixels or more"),
        ([raster], out, {"tile_size": 512}, Dic3lError, "no tile to embed"),
        ([reference], out, {"device": "tpu"}, ConfigError, "--device"),
        ([reference], tmp_path / "text.tif" / "e.parquet", {}, OSError, "text.tif"),
    ]
    for sources, to, settings, kind, words in cases:
        with pytest.raises(kind, match=words):
            embed(weights, sources, to, **settings)
    broken = tmp_path / "broken.pt"
    torch.save({name: value * float("nan") for name, value in torch.load(weights).items()}, broken)
    with pytest.raises(Dic3lError, match="features that are no numbers; the weights are damaged"):
        embed(broken, [reference], out, device="cpu")
    with pytest.raises(Dic3lError, match="expected a state dict"):
        embed(raster, [reference], out)
    assert not list(tmp_path.glob("*.parquet")) and not list(tmp_path.glob(".*"))


def test_the_command_writes_them_and_says_what(reference, weights, tmp_path):
    out = tmp_path / "e.parquet"
    done = CliRunner().invoke(dic3l_app, ["embed", str(weights), str(reference), "-o", str(out), "--l2"])
    assert done.exit_code == 0, done.output
    rows = len(open_corpus(reference).tiles())
    assert done.output.splitlines()[0] == (
        f"{rows} tiles of 4 scenes, 512 numbers each, by resnet18 {facts(out)['weights']['digest'][:12]}"
    )
    assert np.allclose(np.linalg.norm(matrix(out), axis=1), 1)
