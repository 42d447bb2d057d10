"""Faults planted in a corpus: each is named, with its file, tile and byte, and nothing that is whole is blamed."""

from __future__ import annotations

import io
import json
import shutil
import tarfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from pipelines.build import build
from pipelines.companions import CompanionFiles
from sarsense.config import BuildConfig
from sarsense.corpus import open_corpus
from sarsense.simulate import simulate
from sarsense.verify import Problem, verify_corpus
from sarsense.verify.rows import contradictions

BLOCK = 512


@pytest.fixture(scope="module")
def whole(tmp_path_factory: pytest.TempPathFactory) -> Path:
    root = tmp_path_factory.mktemp("verify")
    simulate(root / "sim", scenes=2, size=128, looks=4.0, seed=2)
    config = BuildConfig(tile_size=32, val_share=0.0, content="both", shard_mib=1, allow_unplaced=True)
    build([str(root / "sim" / "scenes")], root / "corpus", config, workers=0)
    corpus = open_corpus(root / "corpus")
    assert verify_corpus(corpus) == [] and verify_corpus(corpus, quick=True) == []
    return root / "corpus"


@pytest.fixture
def copy(whole: Path, tmp_path: Path) -> Path:
    return shutil.copytree(whole, tmp_path / "corpus")


def _shard(corpus: Path) -> Path:
    return corpus / open_corpus(corpus).shards[0].path


def _members(path: Path) -> dict[str, tuple[int, int, int]]:
    """Name -> byte of the header, of the content, and size, as Python's tarfile tells them."""
    with tarfile.open(path) as tar:
        return {info.name: (info.offset, info.offset_data, info.size) for info in tar}


def _keys(corpus: Path) -> list[str]:
    return open_corpus(corpus).tiles(columns=["key"])["key"].to_pylist()


def _flip(path: Path, byte: int, bit: int = 2) -> None:
    data = bytearray(path.read_bytes())
    data[byte] ^= 1 << bit
    path.write_bytes(data)


def _found(corpus: Path, quick: bool = False) -> list[Problem]:
    """But for those that say that a file as a whole is another one."""
    problems = verify_corpus(open_corpus(corpus), quick)
    return [one for one in problems if not one.what.startswith("sha256 ")]


@pytest.mark.parametrize("bit", [0, 7])
@pytest.mark.parametrize("number", [0, 5, -1])
def test_a_bit_of_an_array_names_its_tile_and_where_it_lies(copy: Path, number: int, bit: int):
    key, path = _keys(copy)[number], _shard(copy)
    _, data, size = _members(path)[f"{key}.npy"]
    _flip(path, data + size - 40, bit)
    [problem] = _found(copy)
    assert problem.key == key and problem.file == open_corpus(copy).shards[0].path
    assert (
        problem.byte == data + 128
        and f"up to byte {data + size - 1}" in problem.what
        and "pixels differ" in problem.what
    )


def test_a_bit_of_the_header_of_an_array_is_named_to_the_byte(copy: Path):
    key, path = _keys(copy)[3], _shard(copy)
    _, data, _ = _members(path)[f"{key}.npy"]
    _flip(path, data + 21)
    [problem] = _found(copy)
    assert (problem.key, problem.byte) == (key, data + 21) and "not a uint8 array of shape (2, 32, 32)" in problem.what


@pytest.mark.parametrize("at", [0, 30, 99, 105, 124, 130, 148, 156, 200, 257, 263, 400, 511])
@pytest.mark.parametrize("kind", ["npy", "json"])
def test_a_bit_of_a_tars_header_is_named_to_the_byte_and_what_lies_behind_is_judged(copy: Path, at: int, kind: str):
    keys, path = _keys(copy), _shard(copy)
    head, *_ = _members(path)[f"{keys[4]}.{kind}"]
    _, later, _ = _members(path)[f"{keys[9]}.npy"]
    _flip(path, head + at)
    _flip(path, later + 500)
    first, second = _found(copy)
    assert (first.key, first.byte) == (keys[4], head + at) and f"header of {keys[4]}.{kind} is damaged" in first.what
    assert second.key == keys[9]


def test_a_bit_of_json_is_named_to_the_byte(copy: Path):
    keys, path = _keys(copy), _shard(copy)
    members = _members(path)
    raw = path.read_bytes()
    brace = members[f"{keys[2]}.json"][1]  # no JSON any more
    number = raw.index(b'"lat":', members[f"{keys[6]}.json"][1]) + 6  # another number
    _flip(path, brace)
    _flip(path, number, 0)
    one, two = _found(copy)
    assert (one.key, one.byte) == (keys[2], brace) and "does not parse" in one.what
    assert (two.key, two.byte) == (keys[6], number) and "its JSON says lat " in two.what and ", the table " in two.what


def test_a_bit_of_what_fills_up_is_named_to_the_byte(copy: Path):
    key, path = _keys(copy)[0], _shard(copy)
    _, data, size = _members(path)[f"{key}.json"]
    _flip(path, data + size + 3)
    _flip(path, path.stat().st_size - 1)
    assert [(one.key, one.byte) for one in _found(copy)] == [(key, data + size + 3), (None, path.stat().st_size - 1)]


@pytest.mark.parametrize("where", ["header", "pixels", "padding", "json"])
def test_a_truncated_shard_says_where_it_ends_and_which_tiles_it_lost(copy: Path, where: str):
    keys, path = _keys(copy), _shard(copy)
    members = _members(path)
    head, data, size = members[f"{keys[7]}.npy"]
    _, text, _ = members[f"{keys[7]}.json"]
    end = {"header": head + 100, "pixels": data + 300, "padding": data + size + 5, "json": text + 10}[where]
    path.write_bytes(path.read_bytes()[:end])
    corpus = open_corpus(copy)
    problems = [one for one in verify_corpus(corpus) if one.file == corpus.shards[0].path]
    assert f"{end} bytes, expected {corpus.shards[0].bytes}" in problems[0].what and "sha256" in problems[1].what
    [cut] = problems[2:]
    mine = [key for key in keys if f"{key}.npy" in members]
    assert cut.key == keys[7] and f"ends at byte {end}" in cut.what and f"{len(mine) - 7} tiles" in cut.what


def test_swapped_members_are_both_named_and_no_other_is(copy: Path):
    keys, path = _keys(copy), _shard(copy)
    members, raw = _members(path), bytearray(path.read_bytes())
    a, b = members[f"{keys[1]}.npy"], members[f"{keys[5]}.npy"]
    length = BLOCK + a[2] + -a[2] % BLOCK
    raw[a[0] : a[0] + length], raw[b[0] : b[0] + length] = raw[b[0] : b[0] + length], raw[a[0] : a[0] + length]
    path.write_bytes(raw)
    problems = _found(copy)
    order = [one for one in problems if "is expected" in one.what]
    assert [(one.key, one.byte) for one in order] == [(keys[5], a[0]), (keys[1], b[0])]
    [offsets] = [one for one in problems if one not in order]
    assert "2 arrays are not where readers look for them" in offsets.what and offsets.key in (keys[1], keys[5])


def test_swapped_pixels_under_right_names_are_told_as_whose_they_are(copy: Path):
    keys, path = _keys(copy), _shard(copy)
    members, raw = _members(path), bytearray(path.read_bytes())
    (_, a, size), (_, b, _) = members[f"{keys[1]}.npy"], members[f"{keys[5]}.npy"]
    raw[a : a + size], raw[b : b + size] = raw[b : b + size], raw[a : a + size]
    path.write_bytes(raw)
    assert [(one.key, one.what) for one in _found(copy)] == [
        (keys[1], f"pixels are those of tile {keys[5]}"),
        (keys[5], f"pixels are those of tile {keys[1]}"),
    ]


def test_missing_and_unnamed_shards_are_told(copy: Path):
    path = _shard(copy)
    path.unlink()
    (copy / "val").mkdir(exist_ok=True)
    (copy / "val" / "mine.tar").write_bytes(b"")
    for quick in (False, True):
        stray, missing = _found(copy, quick)
        assert stray.file == "val/mine.tar" and "does not name" in stray.what
        assert missing.file == open_corpus(copy).shards[0].path and missing.what.startswith("missing; ")


def _insert(path: Path, at: int, name: str, content: bytes) -> None:
    info = tarfile.TarInfo(name)
    info.size, info.mode = len(content), 0o644
    raw = path.read_bytes()
    member = info.tobuf(tarfile.USTAR_FORMAT) + content + b"\0" * (-len(content) % BLOCK)
    path.write_bytes(raw[:at] + member + raw[at:])


def test_an_extra_member_is_named_and_what_it_moved_is_whole(copy: Path):
    keys, path = _keys(copy), _shard(copy)
    head, *_ = _members(path)[f"{keys[3]}.npy"]
    _insert(path, head, "notes.txt", b"hello")
    problems = [one for one in _found(copy) if "bytes, expected" not in one.what]
    moved, extra = problems
    assert "holds notes.txt, which no tile of the table names" in extra.what and extra.byte == head
    assert moved.key == keys[3] and "by +1024 bytes off" in moved.what


@pytest.mark.parametrize("kind", ["file", "folder", "link", "pax"])
def test_a_member_that_tar_appended_is_named_and_the_shard_was_not_written_anew(copy: Path, kind: str):
    path = _shard(copy)
    before = path.read_bytes()
    form = tarfile.PAX_FORMAT if kind == "pax" else tarfile.GNU_FORMAT
    with tarfile.open(path, "a", format=form) as tar:
        info = tarfile.TarInfo("n\u00f6tes" if kind == "pax" else "notes")
        info.mtime, info.uname = 1.7e9, "somebody"
        info.type = {"folder": tarfile.DIRTYPE, "link": tarfile.SYMTYPE}.get(kind, tarfile.REGTYPE)
        info.linkname = "/etc/passwd" if kind == "link" else ""
        tar.addfile(info)
    [extra] = [one for one in _found(copy) if "bytes, expected" not in one.what]
    assert f"holds {info.name}, which no tile of the table names" in extra.what
    assert extra.byte is not None and before[extra.byte :].strip(b"\0") == b""  # behind the last of ours


def test_a_header_that_became_zeros_is_named_and_what_lies_behind_it_is_whole(copy: Path):
    keys, path = _keys(copy), _shard(copy)
    head, *_ = _members(path)[f"{keys[4]}.npy"]
    raw = bytearray(path.read_bytes())
    raw[head : head + BLOCK] = bytes(BLOCK)
    path.write_bytes(raw)
    [problem] = _found(copy)
    assert (problem.key, problem.byte) == (keys[4], head) and f"header of {keys[4]}.npy is damaged" in problem.what


def test_a_size_below_nothing_ends_the_shard_and_not_the_patience(copy: Path):
    keys, path = _keys(copy), _shard(copy)
    head, *_ = _members(path)[f"{keys[4]}.npy"]
    raw = bytearray(path.read_bytes())
    raw[head + 124 : head + 136] = b"-0000002000\0"
    raw[head + 148 : head + 156] = b" " * 8
    raw[head + 148 : head + 156] = b"%06o\0 " % sum(raw[head : head + BLOCK])
    path.write_bytes(raw)
    assert any("says a size of -1024 bytes" in one.what and one.byte == head for one in _found(copy))


def test_json_that_nests_for_ever_does_not_parse(copy: Path):
    keys, path = _keys(copy), _shard(copy)
    head, *_ = _members(path)[f"{keys[4]}.json"]
    _insert(path, head, f"{keys[4]}.json", b"[" * 100_000)
    assert any(one.key == keys[4] and "does not parse" in one.what for one in _found(copy))


def test_a_member_that_is_gone_is_named(copy: Path):
    keys, path = _keys(copy), _shard(copy)
    head, data, size = _members(path)[f"{keys[3]}.json"]
    raw = path.read_bytes()
    end = data + size + -size % BLOCK
    path.write_bytes(raw[:head] + raw[end:] + b"\0" * (end - head))
    moved, gone = _found(copy)
    assert gone.key == keys[3] and gone.what == f"{keys[3]}.json is missing"
    assert moved.key == keys[4]


def _edit_row(number: int, column: str, value: object) -> Callable[[pa.Table], pa.Table]:
    def edit(table: pa.Table) -> pa.Table:
        values = table[column].to_pylist()
        values[number] = value
        return table.set_column(
            table.schema.get_field_index(column),
            table.schema.field(column),
            pa.array(values, table.schema.field(column).type),
        )

    return edit


@pytest.mark.parametrize(
    ("column", "value"),
    [
        ("lon", float("inf")),
        ("lat", 12.5), ("scene", "other"), ("offset", 77), ("content_hash", "0" * 32), ("crs", "EPSG:3857"), ("row", 3),
        ("bytes", 5), ("acquisition", "other"), ("source", "other"), ("sensor", "S9"), ("orbit_direction", "ascending"),
        ("mean_db", -3.0), ("std_db", 0.5), ("enl", 99.0), ("enl_bias_db", 0.25), ("lo_db", -31.5), ("hi_db", 2.5),
        ("polarisation", "HH"), ("group", "other"), ("perceptual_hash", "0" * 16), ("structure_db", 9.5),
        ("lonlat_transform", [0.0] * 6), ("footprint", b""),
    ],
)  # fmt: skip
def test_a_wrong_row_of_the_table_is_named_and_its_shard_is_not_blamed(copy: Path, column: str, value: object):
    keys = _keys(copy)
    path = copy / "tiles.parquet"
    pq.write_table(_edit_row(4, column, value)(pq.read_table(path)), path)
    problems = verify_corpus(open_corpus(copy))
    assert {one.file for one in problems} == {"tiles.parquet"}
    rows = [one for one in problems if one.key is not None]
    assert [one.key for one in rows] == [keys[4]] and column in rows[0].what


@pytest.mark.parametrize("column", ["key", "shard", "offset", "content_hash", "split", "channels", "hi_db"])
def test_an_empty_cell_names_its_row_and_ends_nothing(copy: Path, column: str):
    keys, path = _keys(copy), copy / "tiles.parquet"
    pq.write_table(_edit_row(4, column, None)(pq.read_table(path)), path)
    for quick in (False, True):
        problems = verify_corpus(open_corpus(copy), quick)
        assert {one.file for one in problems} == {"tiles.parquet"}
        mine = {keys[4], "", None} if column == "key" else {keys[4], None}
        assert {one.key for one in problems} <= mine
        assert (quick and column == "hi_db") or any(column in one.what and one.key != "" for one in problems)


@pytest.mark.parametrize("value", ["x" * 500, "a/../b", "\x1b[31m\0"])
def test_a_wrong_key_is_a_row_and_no_fault_of_its_shard(copy: Path, value: str):
    keys, path = _keys(copy), copy / "tiles.parquet"
    pq.write_table(_edit_row(4, "key", value)(pq.read_table(path)), path)
    problems = verify_corpus(open_corpus(copy))
    assert {one.file for one in problems} == {"tiles.parquet"}
    assert {one.key for one in problems} == {None, value, keys[4]}


@pytest.mark.parametrize("value", ["train/none.tar", "../other.tar", "/dev/zero"])
def test_a_row_that_names_no_shard_is_named(copy: Path, value: str):
    keys, path = _keys(copy), copy / "tiles.parquet"
    pq.write_table(_edit_row(4, "shard", value)(pq.read_table(path)), path)
    problems = verify_corpus(open_corpus(copy))
    assert {one.file for one in problems} == {"tiles.parquet"}
    assert {one.key for one in problems} == {None, keys[4]}


def test_a_row_that_names_another_shard_is_named_and_neither_shard_is_blamed(tmp_path: Path):
    simulate(tmp_path / "sim", scenes=2, size=256, looks=4.0, seed=2)
    config = BuildConfig(tile_size=32, val_share=0.0, content="both", shard_mib=1)
    build([str(tmp_path / "sim" / "scenes")], tmp_path / "corpus", config, workers=0)
    corpus, path = open_corpus(tmp_path / "corpus"), tmp_path / "corpus" / "tiles.parquet"
    table = pq.read_table(path)
    other = next(one.path for one in corpus.shards if one.path != table["shard"][4].as_py())
    pq.write_table(_edit_row(4, "shard", other)(table), path)
    problems = verify_corpus(corpus)
    assert {one.file for one in problems} == {"tiles.parquet"}
    assert {one.key for one in problems} == {None, table["key"][4].as_py()}


def test_rows_in_another_order_are_named_and_their_shard_is_not(copy: Path):
    keys, path = _keys(copy), copy / "tiles.parquet"
    table = pq.read_table(path)
    order = list(range(len(table)))
    order[2], order[5] = 5, 2
    pq.write_table(table.take(order), path)
    problems = verify_corpus(open_corpus(copy))
    assert {one.file for one in problems} == {"tiles.parquet"}
    assert {one.key for one in problems} == {None, keys[2], keys[5]}


def test_a_table_that_another_program_wrote_is_judged_by_what_it_says(copy: Path):
    """Texts with offsets of 64 bits, as polars and pandas 3 have them; a column of another kind is one problem."""
    path = copy / "tiles.parquet"
    table = pq.read_table(path)
    wide = {pa.string(): pa.large_string(), pa.binary(): pa.large_binary()}
    table = table.cast(pa.schema([field.with_type(wide.get(field.type, field.type)) for field in table.schema]))
    pq.write_table(table, path)
    assert [one.what[:6] for one in verify_corpus(open_corpus(copy))] == ["sha256"]
    number = table.schema.get_field_index("offset")
    pq.write_table(table.set_column(number, "offset", pa.array(["here"] * len(table))), path)
    told = [one.what for one in verify_corpus(open_corpus(copy))]
    assert "offset is a column of string, expected int64" in told and "offset is empty in all rows" in told


@pytest.mark.parametrize(
    "settings",
    [{"content": "both", "bits": 16}, {"bands": "stack", "polarisations": ("VV", "VH")}, {"spacing": 8.0}, {}],
    ids=["both", "stack", "spacing", "labels"],
)
def test_rows_that_are_as_they_were_contradict_nothing(tmp_path: Path, settings: dict[str, Any]):
    simulate(tmp_path, scenes=2, size=256, looks=4.0, seed=4)
    config = BuildConfig(tile_size=64, stride=48, val_share=0.0, **settings)
    beside = CompanionFiles(labels=None if settings else tmp_path / "labels")
    build([str(tmp_path / "scenes")], tmp_path / "corpus", config, workers=0, companions=beside)
    corpus = open_corpus(tmp_path / "corpus")
    assert len(corpus.tiles()) > 10 and contradictions(corpus) == []
    path = tmp_path / "corpus" / "tiles.parquet"
    table = pq.read_table(path)
    pq.write_table(table.slice(0, len(table) - 1), path)  # another file, of true rows
    assert contradictions(open_corpus(tmp_path / "corpus")) == []


def test_an_offset_that_counts_from_the_end_is_wrong(copy: Path):
    path = copy / "tiles.parquet"
    offset = pq.read_table(path)["offset"][4].as_py() - _shard(copy).stat().st_size
    pq.write_table(_edit_row(4, "offset", offset)(pq.read_table(path)), path)
    assert any(one.key == _keys(copy)[4] and "offset" in one.what for one in _found(copy))


def test_a_row_that_is_gone_or_there_twice_is_told(copy: Path):
    keys, path = _keys(copy), copy / "tiles.parquet"
    table = pq.read_table(path)
    pq.write_table(pa.concat_tables([table.slice(0, 2), table.slice(3)]), path)
    told = [str(one) for one in verify_corpus(open_corpus(copy))]
    assert any(f"holds {keys[2]}.npy, which no tile of the table names" in line for line in told)
    assert any("tiles in" in line and "corpus.json says" in line for line in told)
    assert not any(f"tile {key}:" in line for line in told for key in keys if key != keys[2])


@pytest.mark.parametrize("form", [tarfile.PAX_FORMAT, tarfile.GNU_FORMAT, tarfile.USTAR_FORMAT])
def test_a_shard_that_another_tool_wrote_anew_is_one_problem_and_no_tile_is_blamed(copy: Path, form: int):
    path = _shard(copy)
    buffer = io.BytesIO()
    with tarfile.open(path) as old, tarfile.open(fileobj=buffer, mode="w", format=form) as new:
        for info in old:
            content = old.extractfile(info)
            info.mtime, info.uname = 1.7e9 + 0.25, "somebody"
            new.addfile(info, content)
    path.write_bytes(buffer.getvalue())
    [problem] = [one for one in _found(copy) if "bytes, expected" not in one.what]
    assert "written anew by another program" in problem.what and problem.key is None


def test_quick_reads_no_pixels_and_sees_sizes_tables_and_both_ends(copy: Path):
    keys, path = _keys(copy), _shard(copy)
    _flip(path, _members(path)[f"{keys[5]}.npy"][1] + 400)
    assert _found(copy, quick=True) == []  # nobody looked
    _flip(path, _members(path)[f"{keys[0]}.npy"][1] + 3)
    [problem] = _found(copy, quick=True)
    assert problem.key == keys[0]
    path.write_bytes(path.read_bytes() + b"\0")
    assert any("bytes, expected" in one.what for one in _found(copy, quick=True))


def test_any_flipped_byte_is_found_and_blames_one_tile_at_most(copy: Path):
    path, rng = _shard(copy), np.random.default_rng(3)
    raw = path.read_bytes()
    for byte in rng.integers(0, len(raw), 60).tolist():
        changed = bytearray(raw)
        changed[byte] ^= 1 << int(rng.integers(8))
        path.write_bytes(changed)
        found = _found(copy)
        assert len(found) == 1, (byte, list(map(str, found)))
        assert found[0].byte is not None and found[0].byte <= byte


def test_problems_are_json(copy: Path):
    path = _shard(copy)
    _flip(path, 600)
    assert json.loads(json.dumps([vars(one) for one in verify_corpus(open_corpus(copy))]))[0]["file"].endswith(".tar")
