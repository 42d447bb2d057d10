import io
import json
import subprocess
import sys
import tarfile
from pathlib import Path

import numpy as np
import pytest
import webdataset
from hypothesis import given
from hypothesis import strategies as st

from sarsense.corpus import Corpus
from sarsense.errors import ShardError
from sarsense.files import read_parts
from sarsense.shards import TileReader, member_header, tile_hash, tile_ids, write_shard
from sarsense.verify import verify_shard

SHAPE = (48, 40)
TILES = np.random.default_rng(0).integers(1, 256, (5, *SHAPE), dtype=np.uint8)


def _samples():
    for index, tile in enumerate(TILES):
        yield f"scene-abc-VV-{index:05d}", tile, {"key": f"scene-abc-VV-{index:05d}", "lon": 0.1 * index}


@pytest.fixture
def written(tmp_path: Path):
    shard, offsets = write_shard(tmp_path, "train/c-train-000000.tar", "train", _samples())
    rows = [
        {"key": key, "offset": offset, "content_hash": tile_hash(tile.tobytes())}
        for (key, tile, _), offset in zip(_samples(), offsets, strict=True)
    ]
    return tmp_path, shard, offsets, rows


def test_plain_tarfile_and_numpy_read_every_sample(written):
    root, shard, _, _ = written
    with tarfile.open(root / shard.path) as tar:
        members = tar.getmembers()
        assert [m.name for m in members] == [f"scene-abc-VV-{i:05d}.{e}" for i in range(5) for e in ("npy", "json")]
        assert {(m.mtime, m.uid, m.gid, m.uname, m.mode) for m in members} == {(0, 0, 0, "", 0o644)}
        for index, tile in enumerate(TILES):
            np.testing.assert_array_equal(np.load(io.BytesIO(tar.extractfile(members[2 * index]).read())), tile)
            assert json.load(tar.extractfile(members[2 * index + 1]))["lon"] == 0.1 * index


def test_plain_webdataset_reads_every_sample(written):
    root, shard, _, _ = written
    samples = list(webdataset.WebDataset(str(root / shard.path), shardshuffle=False).decode())
    assert [sample["__key__"] for sample in samples] == [key for key, _, _ in _samples()]
    np.testing.assert_array_equal(np.stack([sample["npy"] for sample in samples]), TILES)
    assert samples[3]["json"]["lon"] == pytest.approx(0.3)


def test_offsets_point_at_the_raw_pixels(written):
    root, shard, offsets, _ = written
    raw = (root / shard.path).read_bytes()
    assert len(raw) == shard.bytes
    for tile, offset in zip(TILES, offsets, strict=True):
        assert raw[offset : offset + tile.nbytes] == tile.tobytes()
        assert offset % 64 == 0


def test_same_samples_same_bytes(written, tmp_path_factory):
    _, shard, _, _ = written
    again, _ = write_shard(tmp_path_factory.mktemp("b"), shard.path, "train", _samples())
    assert again == shard


@given(st.text("aé/.-漢", max_size=60) | st.text("ab/", min_size=90, max_size=110), st.integers(0, 8**12))
def test_headers_are_those_of_tarfile(name: str, size: int):
    info = tarfile.TarInfo(name)
    info.size, info.mode = size, 0o644
    try:
        expected = info.tobuf(tarfile.USTAR_FORMAT)
    except ValueError as refused:  # a name that does not fit, 8 GiB
        with pytest.raises(ValueError, match=str(refused)):
            member_header(name, size)
        return
    assert member_header(name, size) == expected


def test_an_interrupted_write_leaves_no_shard(tmp_path):
    def breaks():
        yield next(iter(_samples()))
        raise RuntimeError("power cut")

    with pytest.raises(RuntimeError):
        write_shard(tmp_path, "train/x.tar", "train", breaks())
    assert not list((tmp_path / "train").iterdir())


def _reader(root, shard, offsets, rows, dtype="uint8", eight_bit=False) -> TileReader:
    import pyarrow as pa

    class Table(Corpus):
        def tiles(self, split=None, columns=None):
            return pa.table(
                {"key": [r["key"] for r in rows], "shard": [shard.path] * len(rows), "offset": list(offsets)}
            )

    manifest = {"name": "c", "digest": "0", "tile_shape": [1, *SHAPE], "dtype": dtype, "shards": [vars(shard)]}
    manifest["config"] = {"content": "speckled"}
    return TileReader(Table(root, manifest), "train", eight_bit)


def test_reader_gives_any_tiles_in_any_order(written):
    reader = _reader(*written)
    assert len(reader) == 5
    np.testing.assert_array_equal(reader.read(np.array([4, 0, 4])), TILES[[4, 0, 4]][:, None])
    out = np.empty((2, 1, *SHAPE), np.uint8)
    assert reader.read(np.array([1, 2]), out) is out
    np.testing.assert_array_equal(out[:, 0], TILES[1:3])


def test_sixteen_bits_are_read_as_they_are_or_as_eight(tmp_path):
    tiles = np.random.default_rng(0).integers(0, 2**16, (3, *SHAPE)).astype("<u2")
    tiles[0, 0, :3] = 0, 1, 65535
    samples = [(f"scene-{i}", tile, {"key": f"scene-{i}"}) for i, tile in enumerate(tiles)]
    shard, offsets = write_shard(tmp_path, "train/c.tar", "train", samples)
    with tarfile.open(tmp_path / shard.path) as tar:
        member = tar.extractfile("scene-1.npy")
        assert member is not None
        np.testing.assert_array_equal(np.load(io.BytesIO(member.read())), tiles[1])
    rows = [
        {"key": key, "offset": offset, "content_hash": tile_hash(tile.tobytes())}
        for (key, tile, _), offset in zip(samples, offsets, strict=True)
    ]
    assert verify_shard(tmp_path, shard, rows, SHAPE, tiles.dtype) == []
    assert "not a uint8 array" in str(verify_shard(tmp_path, shard, rows, SHAPE, np.dtype(np.uint8))[0])
    native = _reader(tmp_path, shard, offsets, rows, dtype="uint16")
    np.testing.assert_array_equal(native.read(np.array([2, 0])), tiles[[2, 0]][:, None])
    coarse = _reader(tmp_path, shard, offsets, rows, dtype="uint16", eight_bit=True).read(np.arange(3))
    expected = np.where(tiles == 0, 0, 1 + np.round((tiles - 1.0) / 65534 * 254)).astype(np.uint8)
    assert coarse.dtype == np.uint8 and coarse[0, 0, 0, :3].tolist() == [0, 1, 255]
    np.testing.assert_array_equal(coarse[:, 0], expected)


def test_truncated_or_missing_shard_is_an_error_that_names_it(written):
    root, shard, offsets, rows = written
    path = root / shard.path
    path.write_bytes(path.read_bytes()[:-700])
    with pytest.raises(ShardError, match=r"c-train-000000\.tar.*truncated"):
        _reader(root, shard, offsets, rows)
    path.unlink()
    with pytest.raises(ShardError, match=r"c-train-000000\.tar"):
        _reader(root, shard, offsets, rows)


def test_verify_finds_a_flipped_bit_anywhere(written):
    root, shard, offsets, rows = written
    path = root / shard.path
    whole = path.read_bytes()
    assert verify_shard(root, shard, rows, SHAPE, TILES.dtype) == []
    rng = np.random.default_rng(1)
    for position in [0, offsets[2] + 7, len(whole) - 1, *rng.integers(0, len(whole), 20)]:
        changed = bytearray(whole)
        changed[position] ^= 1 << rng.integers(8)
        path.write_bytes(changed)
        assert verify_shard(root, shard, rows, SHAPE, TILES.dtype), f"bit at byte {position} not found"


def test_verify_names_the_tile_that_changed(written):
    root, shard, offsets, rows = written
    path = root / shard.path
    changed = bytearray(path.read_bytes())
    changed[offsets[3] + 11] ^= 4
    path.write_bytes(changed)
    assert any("scene-abc-VV-00003" in str(problem) for problem in verify_shard(root, shard, rows, SHAPE, TILES.dtype))


def test_verify_says_missing_and_short(written):
    root, shard, _, rows = written
    path = root / shard.path
    path.write_bytes(path.read_bytes()[:5000])
    problems = " ".join(map(str, verify_shard(root, shard, rows, SHAPE, TILES.dtype)))
    assert "5000 bytes" in problems
    path.unlink()
    [missing] = verify_shard(root, shard, rows, SHAPE, TILES.dtype)
    assert str(missing).startswith("train/c-train-000000.tar: missing")


def test_ids_depend_on_keys_alone():
    ids = tile_ids(["a", "b", "a"])
    assert ids.dtype == np.uint64 and ids[0] == ids[2] != ids[1]


def test_reading_a_corpus_needs_no_filters():
    code = "import sys, sarsense.shards; print([n for n in ('numba', 'scipy', 'cv2', 'rasterio') if n in sys.modules])"
    told = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert told.stdout.strip() == "[]"


def test_parts_of_many_files_are_read_in_any_order(tmp_path: Path):
    rng = np.random.default_rng(0)
    files = {str(tmp_path / f"{n}.bin"): rng.bytes(5000 + n) for n in range(80)}  # more than are open at once
    for path, content in files.items():
        Path(path).write_bytes(content)
    names = [list(files)[n] for n in rng.integers(0, 80, 300)]
    parts = [(name, int(rng.integers(0, 4000)), int(rng.integers(0, 1000))) for name in names]
    found = [bytes(part) for part in read_parts(parts)]
    assert found == [files[name][start : start + size] for name, start, size in parts]
    with pytest.raises(OSError, match="ends before byte 6000"):
        list(read_parts([(names[0], 5000, 1000)]))
