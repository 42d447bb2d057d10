"""A corpus whose tables are those of half a million tiles, and whose shards are a few that go by many names.

    python -m benchmarks.big_table FOLDER [TILES]      # 460,532

Five instruments look at sites all over the land (sarsense/report/coastline.json), each on several dates; some sites lie
on 180 degrees and around the poles, one tile in 200 has no place. Keys, dates, levels, looks and footprints are of the
kind that a build writes. Four shards of simulated ground are real; every other one is a link to one of them, and a row
names a tile that is there: what shows pixels works, and `verify` would rightly find that keys are others.
"""

from __future__ import annotations

import json
import math
import os
import sys
from dataclasses import asdict
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import shapely

from benchmarks.footprints import rings
from sarsense import __version__
from sarsense.codes import encode
from sarsense.config import BuildConfig
from sarsense.corpus import (
    CHANNEL_TYPE,
    TABLES,
    duplicate_table,
    file_digest,
    footprint_wkb,
    identity,
    scene_table,
    tile_table,
    with_columns,
    with_missing_columns,
    write_manifest,
    write_tables,
)
from sarsense.corpus import TILE_SCHEMA as _SCHEMA
from sarsense.normalize import enl_bias_db
from sarsense.shards import Shard, tile_hash, write_shard
from sarsense.simulate import draw_truth, speckled

COUNT = 460_532
SIDE = 128
_REAL, _IN_SHARD = 4, 256
_PER_SHARD = 4_000
_COASTLINE = Path(__file__).parent.parent / "sarsense" / "report" / "coastline.json"
_INSTRUMENTS: tuple[tuple[str, str, tuple[str, ...], float, float, tuple[int, int], str, float], ...] = (
    # sensor, mode, polarisations, metres a pixel, looks, columns and rows of tiles, quantity, share of the sites
    ("S1", "IW", ("VV", "VH"), 10.0, 4.4, (24, 17), "sigma0", 0.45),
    ("TSX", "SM", ("HH",), 3.0, 1.8, (20, 24), "sigma0", 0.2),
    ("CSK", "HIMAGE", ("HH",), 2.5, 1.2, (20, 20), "sigma0", 0.15),
    ("ICEYE", "SL", ("VV",), 0.5, 1.0, (14, 14), "sigma0", 0.12),
    ("ALOS2", "SM3", ("HH", "HV"), 8.0, 3.1, (22, 20), "gamma0", 0.08),
)
_LEVEL = {"VV": -10.0, "HH": -9.5, "VH": -17.0, "HV": -16.0}


def make(root: Path, count: int = COUNT, seed: int = 0) -> Path:
    """The corpus in the folder `root`, which is new: the same bytes for the same count and seed."""
    rng = np.random.default_rng(seed)
    parts, facts = _looks(rng, count)
    tiles = pa.concat_tables(parts).slice(0, count)
    order = rng.permutation(count)
    tiles = tiles.take(pa.array(order))
    shards, tiles = _shards(root, tiles, seed)
    scenes = scene_table([_scene(one) for one in facts], False)
    keys = tiles["key"].slice(0, 3_000).to_pylist()
    kinds = ("exact", "geographic", "speckle", "perceptual")
    duplicates = [
        {"kind": kinds[i % 4], "dropped": f"{key}-again", "kept": key, "distance": (i % 4) * 0.01}
        for i, key in enumerate(keys)
    ]
    write_tables(root, tiles, scenes, duplicate_table(duplicates))
    groups, statistics = _groups(tiles)
    manifest = {
        **{name: {} for name in ("companions",)},
        **{name: [] for name in ("growth", "merged")},
        "name": "world",
        "version": "1.0.0",
        "sarsense": __version__,
        "tile_shape": [1, SIDE, SIDE],
        "dtype": "uint8",
        "config": json.loads(json.dumps(asdict(BuildConfig(tile_size=SIDE, name="world")))),
        "groups": groups,
        "statistics": statistics,
        "stats_from": None,
        "scenes": {"used": len(facts)},
        "tiles_left_out": {"duplicate": len(duplicates), "flat": 812, "guard": 2_711, "no_data": 31_902},
        "tables": {name: file_digest(root / name) for name in TABLES},
        **identity(tiles),
    }
    write_manifest(root, manifest, shards)
    return root


def _looks(rng: np.random.Generator, count: int) -> tuple[list[pa.Table], list[dict[str, Any]]]:
    """Tiles scene by scene, at least `count`, and what is known of each scene."""
    sites = _sites(rng)
    parts: list[pa.Table] = []
    facts: list[dict[str, Any]] = []
    shares = np.array([one[-1] for one in _INSTRUMENTS])
    done = 0
    while done < count:
        instrument = _INSTRUMENTS[rng.choice(len(_INSTRUMENTS), p=shares / shares.sum())]
        lon, lat = next(sites)
        turn = rng.uniform(-0.25, 0.25)
        val = rng.random() < 0.1
        for _ in range(int(rng.integers(1, 5))):
            part, fact = _scene_tiles(rng, instrument, lon, lat, turn, val, len(facts))
            parts.append(part)
            facts.extend(fact)
            done += len(part)
    return parts, facts


def _sites(rng: np.random.Generator) -> Any:
    """Places on land, evenly over its area; first those that are hard to draw."""
    yield from [(179.98, -16.6), (-179.99, 66.2), (30.0, 89.98), (0.0, -89.97), (-120.0, 83.6)]
    content = json.loads(_COASTLINE.read_text())
    outlines = [content["unit"] * np.cumsum(np.reshape(ring, (-1, 2)), axis=0) for ring in content["rings"]]
    land = shapely.union_all(shapely.make_valid([shapely.Polygon(outline) for outline in outlines]))
    shapely.prepare(land)
    while True:
        lon, lat = rng.uniform(-180, 180), math.degrees(math.asin(rng.uniform(-0.97, 0.99)))
        if shapely.contains_xy(land, lon, lat) and lat > -72:
            yield lon, lat


def _scene_tiles(
    rng: np.random.Generator, instrument: Any, lon: float, lat: float, turn: float, val: bool, number: int
) -> tuple[pa.Table, list[dict[str, Any]]]:
    sensor, mode, polarisations, spacing, looks, (cols, rows), quantity, _ = instrument
    side = spacing * SIDE / 1000
    where = rings(lon, lat, -side * cols / 2, -side * rows / 2, cols, rows, side, turn)
    where[..., 0] = where[:, :1, 0] + (where[..., 0] - where[:, :1, 0] + 180.0) % 360.0 - 180.0
    first = (where[:, :1, 0] + 180.0) % 360.0 - 180.0
    where[..., 0] += first - where[:, :1, 0]
    n, wkb = len(where), footprint_wkb(where)
    corner, right, down = where[:, 0], where[:, 5] - where[:, 0], where[:, 15] - where[:, 0]
    affine = np.stack(
        [right[:, 0], down[:, 0], SIDE * corner[:, 0], right[:, 1], down[:, 1], SIDE * corner[:, 1]], axis=1
    )
    middle = where.mean(axis=1)
    year, month, day = 2016 + int(rng.integers(9)), 1 + int(rng.integers(12)), 1 + int(rng.integers(28))
    moment = f"{year}-{month:02d}-{day:02d}T{int(rng.integers(24)):02d}:{int(rng.integers(60)):02d}:11Z"
    orbit = "ascending" if rng.random() < 0.5 else "descending"
    placed = rng.random() > 0.005
    ground = rng.normal(0, 2.0, n)
    tables, facts = [], []
    for band, polarisation in enumerate(polarisations, 1):
        name = f"{sensor}_{mode}_{moment[:10].replace('-', '')}_{number:05d}"
        identity_ = f"{name}-{rng.integers(2**48):012x}"
        group = f"{sensor}/{mode}/{polarisation}/{quantity}"
        enl = round(looks * float(rng.lognormal(0, 0.08)), 4)
        top, left = (SIDE * np.repeat(np.arange(rows), cols), SIDE * np.tile(np.arange(cols), rows))
        level = np.round(_LEVEL[polarisation] + ground + rng.normal(0, 1, n), 3)
        lo, hi = _LEVEL[polarisation] - 21.0, _LEVEL[polarisation] + 17.0
        key = [f"{identity_}-{polarisation}-{t:05d}-{c:05d}" for t, c in zip(top.tolist(), left.tolist(), strict=True)]
        bias = round(enl_bias_db(enl, quantity), 4)
        columns: dict[str, Any] = {
            "key": key,
            "scene": [identity_] * n,
            "acquisition": [identity_] * n,
            "place": key if placed else [None] * n,
            "source": [f"{sensor}/{year}/{name}.tif"] * n,
            "band": [band] * n,
            "polarisation": [polarisation] * n,
            "content": ["speckled"] * n,
            "group": [group] * n,
            "sensor": [sensor] * n,
            "mode": [mode] * n,
            "datetime": [moment] * n,
            "orbit_direction": [orbit] * n,
            "row": top,
            "col": left,
            "valid_fraction": np.round(1 - rng.exponential(0.004, n).clip(0, 0.1), 4),
            "mean_db": level,
            "std_db": np.round(5.57 / math.sqrt(enl) + rng.exponential(0.7, n), 3),
            "enl": [enl] * n,
            "enl_bias_db": [bias] * n,
            "lo_db": [lo] * n,
            "hi_db": [hi] * n,
            "structure_db": np.round(rng.gamma(2.0, 1.2, n), 3),
            "flat": rng.random(n) < 0.02,
            "near_evaluation": [False] * n,
            "split": ["val" if val else "train"] * n,
        }
        if placed:
            columns |= {
                "lonlat_transform": list(affine / SIDE),
                "lon": np.round((middle[:, 0] + 180.0) % 360.0 - 180.0, 7),
                "lat": np.round(middle[:, 1], 7),
                "spacing_x_m": np.full(n, spacing),
                "spacing_y_m": np.full(n, spacing),
                "footprint": wkb,
            }
        names = [field.name for field in CHANNEL_TYPE if field.name != "filtered"]
        channel = {
            **{one: pa.array(columns[one], CHANNEL_TYPE.field(one).type) for one in names},
            "filtered": pa.array([False] * n),
        }
        struct = pa.StructArray.from_arrays([channel[f.name] for f in CHANNEL_TYPE], fields=list(CHANNEL_TYPE))
        columns["channels"] = pa.ListArray.from_arrays(np.arange(n + 1, dtype=np.int32), struct)
        typed = {one: pa.array(value, _SCHEMA.field(one).type) for one, value in columns.items()}
        tables.append(with_missing_columns(pa.table(typed), _SCHEMA))
        facts.append(
            {
                **{one: columns[one][0] for one in ("scene", "sensor", "mode", "datetime", "orbit_direction")},
                "path": columns["source"][0],
                "polarisation": polarisation,
                "quantity": quantity,
                "enl": enl,
                "level": float(level.mean()),
                "tiles": n,
            }
        )
    return pa.concat_tables(tables), facts


def _scene(fact: dict[str, Any]) -> dict[str, Any]:
    return {
        **{one: fact[one] for one in ("path", "scene", "sensor", "mode", "datetime", "orbit_direction", "tiles")},
        "status": "used",
        "product": "generic",
        "bytes": 10**8,
        "polarisations": [fact["polarisation"]],
        "quantities": [fact["quantity"]],
        "enl": [fact["enl"]],
        "mean_db": [fact["level"]],
        "geometry": "affine",
        "notes": [],
    }


def _shards(root: Path, tiles: pa.Table, seed: int) -> tuple[list[Shard], pa.Table]:
    """A few shards with pixels, links to them under other names, and the table with where each row's tile lies: train
    first, as a build has it."""
    real, hashes = [], []
    truths = [draw_truth(seed, index, SIDE * 8) for index in range(_REAL)]
    for number in range(_REAL):
        polarisation = ("VV", "VH")[number % 2]
        power = speckled(truths[number], seed, number, polarisation, 4.0)
        db = 10 * np.log10(np.where(power > 0, power, np.nan))
        codes = encode(db.astype(np.float32), *((-31.0, 7.0) if polarisation == "VV" else (-38.0, 0.0)))
        cut = [codes[r : r + SIDE, c : c + SIDE] for r in range(0, 8 * SIDE, SIDE) for c in range(0, 8 * SIDE, SIDE)]
        cut = [np.ascontiguousarray(cut[i % len(cut)]) for i in range(_IN_SHARD)]
        samples = [(f"tile-{number}-{i:05d}", tile, {"key": f"tile-{number}-{i:05d}"}) for i, tile in enumerate(cut)]
        real.append(write_shard(root, f"real-{number}.tar", "train", samples))
        hashes.append([tile_hash(tile.tobytes()) for tile in cut])
    split = tiles["split"].to_numpy(zero_copy_only=False)
    tiles = tiles.take(pa.array(np.argsort(split, kind="stable")))
    split = np.sort(split)
    shards, names, offsets, contents = [], [], [], []
    for part in ("train", "val"):
        (root / part).mkdir()
        members = int((split == part).sum())
        for number, start in enumerate(range(0, members, _PER_SHARD)):
            inside = min(_PER_SHARD, members - start)
            shard, where = real[number % _REAL]
            path = f"{part}/world-{part}-{number:06d}.tar"
            os.link(root / shard.path, root / path)
            shards.append(Shard(path, part, inside, shard.bytes, shard.sha256))
            which = np.arange(inside) % _IN_SHARD
            names += [path] * inside
            offsets.append(np.array(where)[which])
            contents.append(np.array(hashes[number % _REAL])[which])
    for shard, _ in real:
        (root / shard.path).unlink()
    values: dict[str, Any] = {
        "shard": names,
        "offset": np.concatenate(offsets),
        "bytes": np.full(len(tiles), SIDE * SIDE),
        "content_hash": np.concatenate(contents),
    }
    return shards, tile_table(with_columns(tiles, values))


def _groups(tiles: pa.Table) -> tuple[dict[str, Any], dict[str, Any]]:
    groups, statistics = {}, {}
    for name in sorted(tiles["group"].unique().to_pylist()):
        level = _LEVEL[name.split("/")[2]]
        enl = next(one[4] for one in _INSTRUMENTS if one[0] == name.split("/")[0])
        groups[name] = {"lo_db": level - 21.0, "hi_db": level + 17.0, "pixels": 10**8, "speckle_std_db": 2.0}
        levels = np.arange(level - 20, level + 16, 0.05)
        counts = np.round(1e5 * np.exp(-(((levels - level) / 4) ** 2) / 2)).astype(int) + 1
        statistics[name] = {
            "bin_db": 0.05,
            "first_db": round(float(levels[0]), 2),
            "counts": counts.tolist(),
            "scenes": 100,
            "pixels": int(counts.sum()),
            "enl": [enl * 0.9, enl, enl * 1.1],
        }
    return groups, statistics


if __name__ == "__main__":
    print(make(Path(sys.argv[1]), int(sys.argv[2]) if len(sys.argv) > 2 else COUNT))
