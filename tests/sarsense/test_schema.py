"""docs/corpus.schema.json describes the corpus.json that a build writes, and refuses what none writes."""

from __future__ import annotations

import copy
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from pipelines.build import build
from sarsense.config import BuildConfig
from sarsense.simulate import simulate

jsonschema = pytest.importorskip("jsonschema", reason="the schema is checked by jsonschema (extra dev)")
SCHEMA = json.loads((Path(__file__).parents[2] / "docs" / "corpus.schema.json").read_text())


@pytest.fixture(scope="module")
def manifests(tmp_path_factory: pytest.TempPathFactory) -> list[dict[str, Any]]:
    """corpus.json of a usual build, and of one that is as unlike it as settings allow."""
    root = tmp_path_factory.mktemp("schema")
    simulate(root / "in", scenes=2, size=128, seed=0)
    configs = [
        BuildConfig(tile_size=64, val_share=0.3),
        BuildConfig(
            tile_size=32,
            bands="stack",
            polarisations=("VV", "VH"),
            content="both",
            bits=16,
            normalization="scene",
            stride=32,
            unit="power",
            name="other",
        ),
    ]
    for number, config in enumerate(configs):
        build([str(root / "in")], root / str(number), config, workers=0)
    build([str(root / "in")], root / "2", configs[0], workers=0, stats_from=root / "0")
    return [json.loads((root / str(number) / "corpus.json").read_text()) for number in range(3)]


def _errors(manifest: dict[str, Any]) -> list[str]:
    return [error.message for error in jsonschema.Draft202012Validator(SCHEMA).iter_errors(manifest)]


def test_the_schema_is_one() -> None:
    jsonschema.Draft202012Validator.check_schema(SCHEMA)


def test_every_property_says_what_it_is() -> None:
    def undescribed(node: Any, path: str) -> list[str]:
        if not isinstance(node, dict):
            return []
        here = [f"{path}/{name}" for name, one in node.get("properties", {}).items() if not one.get("description")]
        return here + [found for key, one in node.items() for found in undescribed(one, f"{path}/{key}")]

    assert undescribed(SCHEMA, "") == []


def test_built_corpora_are_valid(manifests: list[dict[str, Any]]) -> None:
    for manifest in manifests:
        assert _errors(manifest) == []


def test_a_grown_and_a_merged_corpus_are_valid(manifests: list[dict[str, Any]]) -> None:
    manifest = copy.deepcopy(manifests[0])
    state = {"digest": manifest["digest"], "order_digest": manifest["digest"], "version": "1"}
    manifest["growth"] = [{**state, "tiles": 8, "shards": 2, "sarsense": "0.6.0"}]
    manifest["merged"] = [{"name": "one", "version": "1", "digest": manifest["digest"]}]
    manifest["companions"] = {"exclude_near": {"name": "eval.geojson", "sha256": manifest["digest"]}}
    manifest["config"] |= {"guard_km": 1.5, "dedup": ["exact", "perceptual"], "max_repeats": 3, "val_sensors": ["TSX"]}
    assert _errors(manifest) == []


@pytest.mark.parametrize(
    "change",
    [
        lambda m: m.pop("digest"),
        lambda m: m.pop("order_digest"),
        lambda m: m.update(digest="abc"),
        lambda m: m.update(format=2),
        lambda m: m.update(surprise=1),
        lambda m: m["shards"][0].update(path="train/../x.tar/y"),
        lambda m: m["shards"][0].pop("sha256"),
        lambda m: m["tables"].pop("tiles.parquet"),
        lambda m: m["config"].update(val_share=1.0),
        lambda m: m["config"].pop("tile_size"),
        lambda m: m["config"].update(of_another_version=1),
        lambda m: m.update(companions={"val_region": {"name": "x"}}),
        lambda m: m["groups"].update(bad={}),
        lambda m: m["splits"].update(test=3),
        lambda m: m.update(growth=[{"tiles": 1}]),
    ],
)
def test_what_no_build_writes_is_refused(
    manifests: list[dict[str, Any]], change: Callable[[dict[str, Any]], object]
) -> None:
    manifest = copy.deepcopy(manifests[0])
    change(manifest)
    assert _errors(manifest)
