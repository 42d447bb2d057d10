"""Training on a corpus in a store: the run of the same corpus in a folder, on a disk that holds a part of it."""

from __future__ import annotations

import hashlib
import json
import shutil
from pathlib import Path

import pytest

from dic3l.errors import ConfigError
from pipelines.pretrain import pretrain
from pipelines.shard_source import ShardSource, open_tiles
from sarsense.corpus import open_corpus
from sarsense.errors import BadShardError
from sarsense.places import RemotePath, place
from tests.object_store import ObjectStore
from tests.pipelines.test_pretrain import assert_quiet, call, command, tiny

SETTINGS = {"train__steps": 40, "train__log_every": 4, "train__checkpoint_every": 20}  # 320 tiles of 272: over an epoch


def losses(run: Path) -> list[dict[str, float]]:
    rows = [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]
    return [{name: value for name, value in row.items() if name != "time"} for row in rows]


@pytest.fixture
def far(many_shards: Path, store: ObjectStore, request: pytest.FixtureRequest, tmp_path: Path) -> RemotePath:
    bucket = f"train-{hashlib.sha256(request.node.name.encode()).hexdigest()[:12]}"
    store.put_folder(many_shards, f"{bucket}/corpus")
    found = place(f"s3://{bucket}/corpus", tmp_path / "work")
    assert isinstance(found, RemotePath)
    return found


@pytest.mark.parametrize("window", [pytest.param(0, marks=pytest.mark.slow), 1])
def test_a_run_on_a_store_is_the_run_on_the_folder(many_shards, far, store: ObjectStore, tmp_path, window):
    """Also where one request of ten fails, and where the disk holds two shards of six."""
    config = tiny(**SETTINGS, train__window=window)
    sizes = [shard.bytes for shard in open_corpus(many_shards).shards]
    limit = 2 * max(sizes) + 100 if window else sum(sizes)
    pretrain(many_shards, tmp_path / "near", config)
    store.behave(share=0.1, seed=1, kinds=["busy", "reset", "reset_body"], latency=0.02)
    pretrain(far, tmp_path / "far", config, source=ShardSource(tmp_path / "cache", limit))
    assert losses(tmp_path / "near") == losses(tmp_path / "far")
    assert sum(path.stat().st_size for path in (tmp_path / "cache").glob("*.tar")) <= limit


def test_a_disk_that_holds_too_little_is_refused_with_what_would_do(far, tmp_path):
    with pytest.raises(ConfigError, match=r"--cache-gib: .* all 6 shards.* train.window=1"):
        pretrain(far, tmp_path / "run", tiny(), source=ShardSource(tmp_path / "cache", 2_500_000))
    with pytest.raises(ConfigError, match=r"two windows of 2 shards"):
        pretrain(far, tmp_path / "run", tiny(train__window=2), source=ShardSource(tmp_path / "cache", 2_500_000))


def damage(far: RemotePath, store: ObjectStore, number: int) -> str:
    """Flip a bit in a shard of the store; its name."""
    shard = open_corpus(far).shards[number].path
    key = f"{str(far).removeprefix('s3://')}/{shard}"
    content = bytearray(store.get(key))
    content[9000] ^= 4
    store.put(key, bytes(content))
    return shard


def test_a_bad_shard_is_an_error_that_names_it(far, store, tmp_path, monkeypatch):
    monkeypatch.setenv("GDAL_HTTP_MAX_RETRY", "0")
    shard = damage(far, store, 1)
    with pytest.raises(BadShardError, match=f"{shard}: .* --skip-bad-shards"):
        pretrain(far, tmp_path / "run", tiny(), source=ShardSource(tmp_path / "cache"))
    assert not (tmp_path / "run" / "bad-shards").exists()


@pytest.mark.slow
@pytest.mark.parametrize("nproc", [1, 2])
def test_a_bad_shard_is_left_out_by_choice_and_counted(far, store, tmp_path, nproc):
    shard = damage(far, store, 1)
    run = tmp_path / "run"
    options = ["--skip-bad-shards", "--cache", str(tmp_path / "cache"), "--set", "train.steps=24"]
    if nproc > 1:
        options += ["--nproc", str(nproc)]
    done = call(*command(far, run, *options), GDAL_HTTP_MAX_RETRY="0", timeout=240)  # type: ignore[arg-type]
    assert done.returncode == 0, done.stderr
    assert f"{shard}: " in done.stderr and "1 bad shard of 6 is left out" in done.stderr
    assert losses(run)[-1]["step"] == 24
    (noted,) = (run / "bad-shards").glob("*.json")
    assert json.loads(noted.read_text())["shard"] == shard
    if nproc == 1:
        assert_quiet(done.stderr)


def test_a_missing_shard_of_a_folder_is_left_out_by_choice(many_shards, tmp_path):
    copy = tmp_path / "corpus"
    shutil.copytree(many_shards, copy)
    gone = open_corpus(copy).shards[2]
    (copy / gone.path).unlink()
    with open_tiles(copy, tmp_path / "run", tiny(), ShardSource(skip_bad=True)) as opened:
        assert len(opened.tiles) == 272 - gone.tiles
        assert opened.notes[1] == f"  {gone.path}: missing" and f"with {gone.tiles} tiles" in opened.notes[0]
        assert opened.facts.digest != open_corpus(copy).digest
