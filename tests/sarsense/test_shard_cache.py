"""Shards of a store on this machine's disk: right or not there, within the limit, fetched once."""

from __future__ import annotations

import errno
import fcntl
import hashlib
import os
import shutil
import subprocess
import sys
import threading
from pathlib import Path

import numpy as np
import pytest

from sarsense import remote
from sarsense.corpus import Corpus, open_corpus
from sarsense.errors import BadShardError, RemoteError, ShardError
from sarsense.places import RemotePath
from sarsense.shard_cache import ShardCache
from sarsense.shards import TileReader
from tests.object_store import ObjectStore


@pytest.fixture
def local(many_shards: Path) -> Path:
    return many_shards


@pytest.fixture
def far(local: Path, store: ObjectStore, request: pytest.FixtureRequest) -> Corpus:
    bucket = f"cache-{hashlib.sha256(request.node.name.encode()).hexdigest()[:12]}"
    store.put_folder(local, f"{bucket}/corpus")
    return open_corpus(f"s3://{bucket}/corpus")


def cache_of(corpus: Corpus, folder: Path, limit: int = 2**30) -> ShardCache:
    assert isinstance(corpus.root, RemotePath)
    return ShardCache(corpus.root, folder, limit)


def gets(store: ObjectStore) -> list[str]:
    return [path for method, path, *_ in store.log() if method == "GET" and ".tar" in path]


def test_tiles_are_those_of_the_local_corpus_and_a_shard_is_fetched_once(local, far, store, tmp_path):
    near = TileReader(open_corpus(local), "train")
    indices = np.random.default_rng(0).permutation(len(near))
    store.behave()
    for _ in range(2):  # the second one finds them on the disk
        reader = TileReader(far, "train", cache=cache_of(far, tmp_path))
        np.testing.assert_array_equal(reader.read(indices), near.read(indices))
    assert len(set(gets(store))) == len(reader.shards)
    whole = [path for path in tmp_path.iterdir() if path.suffix == ".tar"]
    assert sorted(path.stem for path in whole) == sorted(shard.sha256 for shard in reader.shards)


def test_threads_and_processes_that_need_a_shard_at_once_fetch_it_once(far, store, tmp_path, monkeypatch):
    fetched = []
    fetch = remote.fetch
    monkeypatch.setattr(remote, "fetch", lambda path, file: (fetched.append(path), fetch(path, file)))
    cache, shard = cache_of(far, tmp_path), far.shards[0]
    threads = [threading.Thread(target=cache.bytes_of, args=(shard,)) for _ in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(fetched) == 1
    code = (
        "import sys; from pathlib import Path; from sarsense.corpus import open_corpus\n"
        "from sarsense.shard_cache import ShardCache\n"
        "corpus = open_corpus(sys.argv[1])\n"
        "ShardCache(corpus.root, Path(sys.argv[2]), 2**30).fetch(corpus.shards[0])\n"
    )
    folder = tmp_path / "shared"
    store.behave(latency=0.05)
    command = [sys.executable, "-c", code, str(far.root), str(folder)]
    processes = [subprocess.Popen(command, env=os.environ) for _ in range(3)]
    assert [process.wait() for process in processes] == [0, 0, 0]
    store_gets = gets(store)
    assert len([path for path in folder.iterdir() if path.suffix == ".tar"]) == 1
    assert len(store_gets) == len(set(store_gets))


def test_what_was_not_used_for_longest_makes_room(far, tmp_path):
    shard = far.shards[0]
    old, older = tmp_path / f"{'a' * 64}.tar", tmp_path / f"{'b' * 64}.tar"
    others = [tmp_path / name for name in ("somebody-else.tar", "train-000000.tar", "download.part")]
    for age, path in ((100, old), (200, older), *((300, path) for path in others)):
        path.write_bytes(b"\0" * shard.bytes)
        os.utime(path, (1e9 - age, 1e9 - age))
    cache = cache_of(far, tmp_path, limit=2 * shard.bytes + 10)
    cache.fetch(shard)
    assert old.exists() and not older.exists()
    assert all(path.exists() for path in others)  # not ours, not counted
    assert old.stat().st_size + cache.fetch(shard).stat().st_size <= cache.limit


def test_a_shard_that_is_evicted_while_it_is_read_stays_readable_and_comes_back(far, local, tmp_path):
    cache, shard = cache_of(far, tmp_path), far.shards[0]
    bytes_ = cache.bytes_of(shard)
    (tmp_path / f"{shard.sha256}.tar").unlink()  # another rank made room
    assert bytes(bytes_) == (local / shard.path).read_bytes()
    assert cache.fetch(shard).is_file()


def test_a_shard_that_fails_for_a_while_is_right_in_the_end(far, local, store, tmp_path):
    store.behave(share=0.5, seed=3, kinds=["busy", "reset", "reset_body"], at_most=3)
    path = cache_of(far, tmp_path).fetch(far.shards[0])
    assert path.read_bytes() == (local / far.shards[0].path).read_bytes()


@pytest.mark.parametrize("damage", ["flipped", "shorter", "gone"])
def test_a_shard_that_stays_bad_is_named_and_leaves_nothing(far, local, store, tmp_path, damage, monkeypatch):
    monkeypatch.setenv("GDAL_HTTP_MAX_RETRY", "1")
    shard = far.shards[0]
    content = bytearray((local / shard.path).read_bytes())
    key = f"{str(far.root).removeprefix('s3://')}/{shard.path}"
    if damage == "gone":
        remote.remove((far.root / shard.path).path)  # type: ignore[union-attr]
    else:
        content[5000] ^= 1
        store.put(key, bytes(content[: -512 if damage == "shorter" else None]))
    cache = cache_of(far, tmp_path)
    cache.expect([shard])  # ahead, it says nothing
    cache.close()
    with pytest.raises(BadShardError, match=f"{shard.path}: .*restore it") as error:
        cache.fetch(shard)
    assert error.value.shard == shard.path
    assert not list(tmp_path.glob("*.part")) and not list(tmp_path.glob("*.tar"))


def test_a_store_that_does_not_answer_is_no_bad_shard(far, store, tmp_path, monkeypatch):
    monkeypatch.setenv("GDAL_HTTP_MAX_RETRY", "1")
    cache = cache_of(far, tmp_path)
    store.behave(share=1.0, kinds=["busy"])
    with pytest.raises(RemoteError) as error:
        cache.fetch(far.shards[0])
    assert not isinstance(error.value, BadShardError)


def test_a_file_where_the_cache_is_to_be(far, tmp_path):
    (tmp_path / "file").write_text("")
    with pytest.raises(ShardError, match="choose another --cache"):
        cache_of(far, tmp_path / "file")


def test_part_of_a_killed_process_is_removed(far, tmp_path):
    shard = far.shards[0]
    tmp_path.joinpath(f"{shard.sha256}.{shard.bytes}.part").write_bytes(b"half")
    cache = cache_of(far, tmp_path)
    assert not list(tmp_path.glob("*.part"))
    tmp_path.joinpath(f"{shard.sha256}.{shard.bytes}.part").write_bytes(b"half")
    cache.fetch(shard)
    assert not list(tmp_path.glob("*.part"))


def test_part_of_a_process_that_lives_stays(far, tmp_path):
    shard = far.shards[0]
    part = tmp_path / f"{shard.sha256}.{shard.bytes}.part"
    part.write_bytes(b"half")
    with (tmp_path / f".{shard.sha256}.lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)  # as who fetches it has
        cache_of(far, tmp_path)
        assert part.exists()


def test_a_bad_shard_is_fetched_in_vain_once_and_told_once(far, store, tmp_path, monkeypatch):
    monkeypatch.setenv("GDAL_HTTP_MAX_RETRY", "1")
    shard = far.shards[0]
    remote.remove((far.root / shard.path).path)
    told: list[BadShardError] = []
    cache = ShardCache(far.root, tmp_path, 2**30, told.append)
    for _ in range(3):
        with pytest.raises(BadShardError):
            cache.fetch(shard)
    assert [error.shard for error in told] == [shard.path]


def test_a_folder_that_goes_while_it_is_used_is_no_bad_shard(far, tmp_path):
    folder = tmp_path / "cache"
    cache = cache_of(far, folder)
    cache.fetch(far.shards[0])
    shutil.rmtree(folder)
    with pytest.raises(ShardError, match="was removed while it was in use") as error:
        cache.bytes_of(far.shards[0])
    assert not isinstance(error.value, BadShardError)


def test_maps_of_what_was_removed_are_let_go(far, tmp_path):
    """Two shards fit: with a third one, the first is on the disk neither by name nor by a map."""
    first, second, third = far.shards[:3]
    cache = cache_of(far, tmp_path, limit=max(shard.bytes for shard in far.shards) * 2 + 10)
    cache.bytes_of(first)
    cache.fetch(second)
    cache.fetch(third)
    held = Path("/proc/self/maps").read_text()
    assert first.sha256 not in held


def test_a_file_that_lost_its_end_is_fetched_again(far, local, tmp_path):
    """As of a machine that lost its power between the name and the bytes."""
    shard = far.shards[0]
    tmp_path.joinpath(f"{shard.sha256}.tar").write_bytes(b"\0" * 100)
    assert bytes(cache_of(far, tmp_path).bytes_of(shard)) == (local / shard.path).read_bytes()


def test_what_others_are_fetching_counts_as_there(far, tmp_path):
    shard = far.shards[0]
    other = tmp_path / f"{'1' * 64}.tar"
    other.write_bytes(b"\0" * 10)
    cache = cache_of(far, tmp_path, limit=2 * shard.bytes + 5)
    part = tmp_path / f"{'0' * 64}.{shard.bytes}.part"
    part.touch()
    cache.fetch(shard)
    assert not other.exists() and part.exists()


def test_a_full_disk_is_no_fault_of_the_store(far, tmp_path, monkeypatch):
    def full(path: str, file: Path) -> None:
        raise OSError(errno.ENOSPC, "No space left on device", str(file))

    monkeypatch.setattr(remote, "fetch", full)
    with pytest.raises(ShardError, match=r"No space left on device .* --cache-gib"):
        cache_of(far, tmp_path).fetch(far.shards[0])
    assert not list(tmp_path.glob("*.part"))
