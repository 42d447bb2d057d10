"""Weights and tiles -> a table of embeddings: GeoParquet, a row a tile, in the order of the tiles.

Tiles are those of a corpus, or windows of rasters, coded as a corpus codes them. They are read, encoded and written
batch after batch: memory is that of a batch, of a row group, and of the table of tiles without their pixels.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import closing, contextmanager, nullcontext
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import torch

import dic3l
from dic3l.errors import ConfigError, Dic3lError
from dic3l.export import CodesEncoder, arch_of, feature_count, network_of, read_encoder, state_digest
from pipelines.coding import SMALLEST, CodedScene, coded_scenes, coding_of
from pipelines.embeddings import COLUMNS, embedding_schema, embedding_writer
from pipelines.shard_source import ShardSource
from sarsense.config import BuildConfig
from sarsense.corpus import TILE_SCHEMA, Corpus, footprint_wkb, open_corpus
from sarsense.errors import SceneError
from sarsense.files import atomic_write
from sarsense.places import Place, place
from sarsense.raster import pixel_window
from sarsense.scene import Scene, describe_scene
from sarsense.shard_cache import ShardCache
from sarsense.shards import TileReader
from sarsense.tiling import grid, place_tiles

_BATCH_PIXELS, _BATCH_TILES = 2**22, 256
"""of a batch, at most: it depends on the size of tiles alone, so that equal runs round alike"""
_GROUP_ROWS = 4096
"""of a row group: what is held before it is written"""


@dataclass(frozen=True)
class Embedded:
    """What was written."""

    rows: int
    dim: int
    """numbers a tile"""
    scenes: int
    facts: dict[str, Any]
    """the metadata"""


@dataclass(frozen=True)
class _Tiles:
    """Tiles on their way to the encoder."""

    parts: Iterator[tuple[pa.Table, np.ndarray]]
    """rows of `COLUMNS` and their codes, uint8 (n, K, H, W), n at most a batch"""
    images: int
    """K: channels that are encoded, each by itself, their features side by side"""
    facts: dict[str, Any]
    """corpus or rasters, for the metadata"""


def embed(
    weights: Path,
    sources: Sequence[str | Place],
    out: Path,
    corpus: Place | None = None,
    tile_size: int | None = None,
    unit_length: bool = False,
    device: str = "auto",
    source: ShardSource | None = None,
    progress: Callable[[int], None] = lambda rows: None,
) -> Embedded:
    """Write the embedding of each tile of a corpus, or of each window of rasters, to the Parquet file `out`.

    `weights`: a file of `dic3l export`, or the folder of a run. `sources`: one corpus, or rasters. `corpus`: whose
    ranges turn rasters into codes; default: ranges measured on them, as a build of them would. `tile_size`: of windows
    of rasters, pixels; default: that of the corpus, else of a build. unit_length: embeddings of Euclidean length 1.
    source: how shards of a remote corpus are read. progress: called with the rows written so far. Raises ConfigError,
    Dic3lError, SarsenseError.
    """
    if out.suffix != ".parquet":
        raise ConfigError(f"--out {out}: expected a file name that ends in .parquet")
    on = _device(device)
    state = read_encoder(weights)
    arch = arch_of(state, str(weights))
    network = network_of(state, arch, str(weights))
    encoder = CodesEncoder(network).to(on)
    with _tiles_of(sources, corpus, tile_size, source or ShardSource()) as tiles:
        dim = tiles.images * feature_count(network)
        facts = {
            "weights": {"path": str(weights.absolute()), "arch": arch, "digest": state_digest(state)},
            "features": "mean of stage 4",
            "unit_length": unit_length,
            **tiles.facts,
            "dic3l": dic3l.__version__,
        }
        schema = embedding_schema(dim, facts)
        rows, scenes = 0, set[str]()
        with atomic_write(out) as file, embedding_writer(file, schema) as writer:
            for table in _groups(tiles.parts, encoder, unit_length, schema, on):
                writer.write_table(table)
                rows += len(table)
                scenes.update(table["scene"].unique().to_pylist())
                progress(rows)
            if not rows:
                raise Dic3lError(
                    f"{', '.join(map(str, sources))}: no tile to embed; rasters need a window of --tile-size pixels of "
                    "which enough are valid"
                )
    return Embedded(rows, dim, len(scenes), facts)


def _groups(
    parts: Iterator[tuple[pa.Table, np.ndarray]],
    encoder: CodesEncoder,
    unit_length: bool,
    schema: pa.Schema,
    device: torch.device,
) -> Iterator[pa.Table]:
    """Row groups, with the embeddings of their tiles."""
    held: list[pa.Table] = []
    for rows, codes in parts:
        embedding = embeddings(encoder, codes, unit_length, device)
        if not np.isfinite(embedding).all():
            raise Dic3lError(
                f"tile {rows['key'][0].as_py()} or one after it: features that are no numbers; the weights are damaged"
            )
        column = pa.FixedSizeListArray.from_arrays(pa.array(embedding.ravel()), embedding.shape[1])
        held.append(pa.table([*rows.select(COLUMNS).columns, column], schema=schema))
        if sum(map(len, held)) >= _GROUP_ROWS:
            yield pa.concat_tables(held).combine_chunks()
            held = []
    if held:
        yield pa.concat_tables(held).combine_chunks()


@torch.no_grad()
def embeddings(encoder: CodesEncoder, codes: np.ndarray, unit_length: bool, device: torch.device) -> np.ndarray:
    """Codes uint8 (n, K, H, W) -> float32 (n, K * D): pooled features of each channel by itself, side by side."""
    images = torch.from_numpy(codes).flatten(0, 1).unsqueeze(1).to(device)
    # no search for the fastest algorithm, which depends on the hour; products of float32 as such
    with torch.backends.cudnn.flags(enabled=True, benchmark=False, deterministic=True, allow_tf32=False):
        pooled = encoder(images)[0].reshape(len(codes), -1).double()
    if unit_length:
        pooled = torch.nn.functional.normalize(pooled, dim=1)
    return pooled.float().cpu().numpy()


def _device(name: str) -> torch.device:
    if name not in ("auto", "cpu", "cuda"):
        raise ConfigError(f"--device: auto, cpu or cuda expected, '{name}' found")
    if name == "cuda" and not torch.cuda.is_available():
        raise ConfigError("--device cuda: torch finds no CUDA device here; leave it out or say cpu")
    return torch.device(name if name != "auto" else "cuda" if torch.cuda.is_available() else "cpu")


@contextmanager
def _tiles_of(
    sources: Sequence[str | Place], corpus: Place | None, tile_size: int | None, shards: ShardSource
) -> Iterator[_Tiles]:
    places = [place(source) for source in sources]
    corpora = [one for one in places if (one / "corpus.json").is_file()]
    if not corpora:
        coded_by = None if corpus is None else open_corpus(corpus)
        yield _raster_tiles([_raster(one) for one in places], coded_by, tile_size)
        return
    if len(places) > 1:
        raise ConfigError(f"{corpora[0]}: a corpus among other sources; one corpus, or rasters, expected")
    if corpus is not None or tile_size is not None:
        raise ConfigError(f"{corpora[0]}: a corpus has its tiles and codes; --corpus and --tile-size are for rasters")
    opened = open_corpus(corpora[0])
    remote = None if isinstance(opened.root, Path) else opened.root
    cache = None if remote is None else ShardCache(remote, shards.cache.expanduser(), shards.limit)
    with nullcontext() if cache is None else closing(cache):
        yield _corpus_tiles(opened, TileReader(opened, eight_bit=True, cache=cache))


def batch_tiles(images: int, side: int) -> int:
    """Tiles a batch."""
    return max(1, min(_BATCH_TILES, _BATCH_PIXELS // (images * side * side)))


# ------------------------------------------------------------------------------------------------------ a corpus


def _corpus_tiles(corpus: Corpus, reader: TileReader) -> _Tiles:
    """All tiles, in the order of tiles.parquet. Of `both` contents, what a network meets in the field: the speckled."""
    images = corpus.tile_shape[0] // len(corpus.contents)
    table = corpus.tiles(columns=COLUMNS).select(COLUMNS)
    step = batch_tiles(images, max(corpus.tile_shape[1:]))

    def parts() -> Iterator[tuple[pa.Table, np.ndarray]]:
        for start in range(0, len(table), step):
            rows = np.arange(start, min(start + step, len(table)))
            if start == 0 or reader.shard_of[start] != reader.shard_of[start - 1]:
                reader.expect(np.arange(reader.shard_of[start], min(reader.shard_of[start] + 2, len(reader.shards))))
            yield table.slice(start, len(rows)), np.ascontiguousarray(reader.read(rows)[:, :images])

    told = {"name": corpus.name, "version": str(corpus.manifest["version"]), "digest": corpus.digest}
    where = str(corpus.root.absolute() if isinstance(corpus.root, Path) else corpus.root)
    return _Tiles(parts(), images, {"corpus": {**told, "path": where}})


# ------------------------------------------------------------------------------------------------------- rasters


def _raster(source: Place) -> Path:
    if not isinstance(source, Path) or source.is_dir():
        what = "a folder that is no corpus" if isinstance(source, Path) else "a remote address that is no corpus"
        raise ConfigError(f"{source}: {what}; a finished corpus, or files of rasters, expected")
    if not source.is_file():
        raise ConfigError(f"{source}: no such file or folder; a finished corpus, or files of rasters, expected")
    return source


def _raster_tiles(paths: Sequence[Path], corpus: Corpus | None, tile_size: int | None) -> _Tiles:
    """Windows of rasters on the grid of a build; a tile a polarisation, as of --bands single."""
    side = tile_size or (BuildConfig().tile_size if corpus is None else corpus.tile_shape[1])
    if side < SMALLEST:
        raise ConfigError(f"--tile-size: {SMALLEST} pixels or more expected, {side} found")
    placed = [_described(path) for path in paths]
    first: dict[str, Scene] = {}
    for scene in placed:
        if (other := first.setdefault(scene.name, scene)) is not scene:
            raise ConfigError(
                f"{scene.path}: named {scene.name} as {other.path} is, and keys of tiles begin with it; rename one"
            )
    coding, coded = coded_scenes(paths, None if corpus is None else coding_of(corpus))
    min_valid = BuildConfig().min_valid if corpus is None else corpus.manifest["config"]["min_valid"]
    facts = {"rasters": [str(path.absolute()) for path in paths], "tile_size": side, "coding": coding.to_json()}
    if corpus is not None:
        facts["coding_corpus"] = corpus.digest
    return _Tiles(_windows(list(zip(placed, coded, strict=True)), side, min_valid), 1, facts)


def _described(path: Path) -> Scene:
    """The name and place of a scene, as `coded_scenes` takes it."""
    try:
        return describe_scene(str(path), path.name, BuildConfig(tile_size=SMALLEST, allow_unplaced=True))
    except SceneError as error:
        raise SceneError(f"{path}: {error}") from error


def _windows(
    scenes: Sequence[tuple[Scene, CodedScene]], side: int, min_valid: float
) -> Iterator[tuple[pa.Table, np.ndarray]]:
    """Batches, which end with a scene; windows of which less than `min_valid` is valid are left out, as in a build."""
    step = batch_tiles(1, side)
    for scene, coded in scenes:
        held: list[tuple[str, int, int, np.ndarray]] = []
        for top in grid(coded.shape[1], side, side).tolist():
            for left in grid(coded.shape[2], side, side).tolist():
                codes = coded.read(pixel_window(left, top, side, side))
                for polarisation, channel in zip(coded.polarisations, codes, strict=True):
                    if np.count_nonzero(channel) >= min_valid * side**2:
                        held.append((polarisation, top, left, channel))
                while len(held) >= step:
                    yield _batch(scene, held[:step], side)
                    held = held[step:]
        if held:
            yield _batch(scene, held, side)


def _batch(scene: Scene, windows: Sequence[tuple[str, int, int, np.ndarray]], side: int) -> tuple[pa.Table, np.ndarray]:
    polarisations, rows, cols, codes = zip(*windows, strict=True)
    columns: dict[str, Any] = {
        "key": [f"{scene.name}-{pol}-{row:05d}-{col:05d}" for pol, row, col, _ in windows],
        "scene": [scene.name] * len(windows),
        "polarisation": polarisations,
        "row": rows,
        "col": cols,
    }
    if (placed := place_tiles(scene, np.array(cols), np.array(rows), side)) is not None:
        columns["lon"] = np.round((placed.centres[:, 0] + 180.0) % 360.0 - 180.0, 7)
        columns["lat"] = np.round(placed.centres[:, 1], 7)
        columns["footprint"] = footprint_wkb(placed.footprints)
    types = {name: TILE_SCHEMA.field(name).type for name in COLUMNS}
    unknown = [None] * len(windows)
    table = pa.table({name: pa.array(columns.get(name, unknown), types[name]) for name in COLUMNS})
    return table, np.stack(codes)[:, None]
