"""Corpora on object storage: the objects are the files of the local corpus, whatever fails on the way to them."""

from __future__ import annotations

import hashlib
import json
import os
import signal
import subprocess
import time
from pathlib import Path

import numpy as np
import pytest

from pipelines.build import build
from sarsense import remote
from sarsense.corpus import open_corpus
from sarsense.diff import compare
from sarsense.errors import CorpusError, SarsenseError
from sarsense.places import RemotePath, place
from sarsense.shards import TileReader
from sarsense.verify import verify_corpus
from tests.commands import call
from tests.object_store import ObjectStore
from tests.pipelines.small import CONFIG, OPTIONS, SARSENSE, content


@pytest.fixture
def out(store: ObjectStore, tmp_path: Path, request: pytest.FixtureRequest) -> RemotePath:
    """s3://of-TEST/corpus, of a bucket that is empty, with a work folder."""
    bucket = f"of-{hashlib.sha256(request.node.name.encode()).hexdigest()[:12]}"
    store.put(bucket, b"")
    found = place(f"s3://{bucket}/corpus", tmp_path / "work")
    assert isinstance(found, RemotePath)
    return found


def objects(store: ObjectStore, out: RemotePath) -> dict[str, bytes]:
    """Every object of a corpus, but for those of its datasheet."""
    bucket = out.path.split("/")[2]
    keys = [key.removeprefix("corpus/") for key in store.keys(bucket) if key.startswith("corpus/")]
    return {key: store.get(f"{bucket}/corpus/{key}") for key in keys if not key.startswith(("datasheet/", "README"))}


def test_the_objects_are_the_files_of_the_local_corpus(scenes, reference, store: ObjectStore, out: RemotePath):
    """And corpus.json is sent last; no shard stays on this machine."""
    summary = build([str(scenes)], out, CONFIG, workers=0)
    assert summary.out == str(out) and summary.digest == open_corpus(reference).digest
    puts = [path.partition("?")[0].rpartition("/corpus/")[2] for method, path, *_ in store.log() if method == "PUT"]
    assert puts[-4:] == ["tiles.parquet", "scenes.parquet", "duplicates.parquet", "corpus.json"]
    assert objects(store, out) == content(reference)
    assert not [path for path in out.work.rglob("*") if path.suffix in (".tar", ".codes", ".tif")]


@pytest.mark.parametrize(("workers", "seed"), [(0, 1), pytest.param(2, 2, marks=pytest.mark.slow)])
def test_with_a_tenth_of_requests_failing_the_objects_are_the_same(
    scenes, reference, store: ObjectStore, out: RemotePath, workers: int, seed: int
):
    """Sources on the same server, too."""
    store.put_folder(scenes, f"{out.path.split('/')[2]}/scenes")
    store.behave(share=0.1, seed=seed)
    build([str(out).replace("/corpus", "/scenes")], out, CONFIG, workers=workers)
    assert sum(store.faults().values()) >= 3
    store.behave(share=0.1, seed=seed)
    assert verify_corpus(open_corpus(out)) == []
    store.behave()
    assert objects(store, out) == content(reference)


@pytest.mark.parametrize("after", [1, 3, 5])
def test_a_build_that_dies_between_uploads_goes_on(
    scenes, reference, store: ObjectStore, out: RemotePath, monkeypatch: pytest.MonkeyPatch, after: int
):
    """After a shard, all shards but one, a table: what was sent whole is not sent again."""
    sent: list[str] = []
    send = remote.send

    def dying(file: Path, path: str) -> None:
        if len(sent) == after:
            raise KeyboardInterrupt
        send(file, path)
        sent.append(path)

    with monkeypatch.context() as patched:
        patched.setattr(remote, "send", dying)
        with pytest.raises(KeyboardInterrupt):
            build([str(scenes)], out, CONFIG, workers=0)
    with pytest.raises(CorpusError, match="this build is not finished"):
        open_corpus(out)
    again: list[str] = []
    with monkeypatch.context() as patched:
        patched.setattr(remote, "send", lambda file, path: (again.append(path), send(file, path)))
        build([str(scenes)], out, CONFIG, workers=0)
    assert not set(sent) & set(again) and len(sent) + len(again) == len(content(reference))
    assert objects(store, out) == content(reference)


@pytest.mark.slow
def test_a_build_killed_for_real_goes_on(scenes, reference, store: ObjectStore, out: RemotePath):
    """kill -9 of all processes once the first shard is up."""
    command = [*SARSENSE, "build", str(scenes), "--out", str(out), "--work", str(out.work), "--workers", "2", *OPTIONS]
    process = subprocess.Popen(command, start_new_session=True, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    while process.poll() is None and not [row for row in store.log() if row[0] == "PUT" and ".tar" in row[1]]:
        time.sleep(0.02)
    if process.poll() is None:
        os.killpg(process.pid, signal.SIGKILL)
    process.wait()
    done = subprocess.run(command, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert objects(store, out) == content(reference)
    assert {"corpus/README.md", "corpus/datasheet/contact-sheet.png"} <= set(store.keys(out.path.split("/")[2]))


def test_a_remote_corpus_grows_as_a_local_one(scenes: Path, store: ObjectStore, out: RemotePath, tmp_path: Path):
    """Old shards stay as they are; the same objects as the local corpus that grew; and nothing to do after that."""
    files = sorted(str(path) for path in scenes.iterdir())
    for target in (out, tmp_path / "local"):
        build(files[:2], target, CONFIG, workers=0)
    before = {name: data for name, data in objects(store, out).items() if name.endswith(".tar")}
    for target in (out, tmp_path / "local"):
        assert build(files, target, CONFIG, workers=0).tiles_before > 0
    assert objects(store, out) == content(tmp_path / "local")
    assert before.items() <= objects(store, out).items()
    store.behave()
    assert build(files, out, CONFIG, workers=0).already_built
    assert not [row for row in store.log() if row[0] == "PUT"]


def test_growth_that_dies_while_tables_are_sent_is_ended_by_the_same_command(
    scenes: Path, store: ObjectStore, out: RemotePath, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    """Without its work folder, on another machine, the half-sent state is told."""
    files = sorted(str(path) for path in scenes.iterdir())
    for target in (out, tmp_path / "local"):
        build(files[:2], target, CONFIG, workers=0)
    send = remote.send

    def dying(file: Path, path: str) -> None:
        if path.endswith("scenes.parquet"):
            raise KeyboardInterrupt
        send(file, path)

    with monkeypatch.context() as patched:
        patched.setattr(remote, "send", dying)
        with pytest.raises(KeyboardInterrupt):
            build(files, out, CONFIG, workers=0)
    with pytest.raises(CorpusError, match=r"tiles.parquet: sha256 .* goes on with its --work"):
        build(files, place(str(out), tmp_path / "elsewhere"), CONFIG, workers=0)
    for target in (out, tmp_path / "local"):
        build(files, target, CONFIG, workers=0)
    assert objects(store, out) == content(tmp_path / "local")


def test_what_reads_a_corpus_reads_a_remote_one(scenes, reference, store: ObjectStore, out: RemotePath, tmp_path: Path):
    build([str(scenes)], out, CONFIG, workers=0)
    one, two = open_corpus(str(out)), open_corpus(reference)
    assert compare(one, two).nothing and verify_corpus(one) == []
    indices = np.array([3, 0, 5])
    np.testing.assert_array_equal(TileReader(one).read(indices), TileReader(two).read(indices))
    for command in (["shards", "ls"], ["shards", "stats"], ["shards", "verify"], ["stats"], ["export", "--stac"]):
        extra = ["--out", str(tmp_path / "described")] if command[0] == "export" else ["--json"]
        call("sarsense", *command, out, *extra)
    assert json.loads((tmp_path / "described" / "collection.json").read_text())
    assert (tmp_path / "described" / "items.parquet").is_file()
    call("sarsense", "diff", out, reference)
    for root, name in ((out, "far"), (reference, "near")):
        call("sarsense", "shards", "map", root, "--out", tmp_path / f"{name}.html", "--thumbnails", 5)
    assert (tmp_path / "far.html").stat().st_size == pytest.approx((tmp_path / "near.html").stat().st_size, rel=0.01)
    call("sarsense", "report", out, "--out", tmp_path / "report.html")
    assert one.digest in (tmp_path / "report.html").read_text()


def test_damage_to_a_remote_corpus_is_found(scenes, store: ObjectStore, out: RemotePath):
    build([str(scenes)], out, CONFIG, workers=0)
    bucket = out.path.split("/")[2]
    first, second = (shard.path for shard in open_corpus(out).shards[:2])
    data = bytearray(store.get(f"{bucket}/corpus/{first}"))
    data[len(data) // 2] ^= 1
    store.put(f"{bucket}/corpus/{first}", bytes(data))
    remote.remove((out / second).path)
    store.put(f"{bucket}/corpus/train/stray.tar", b"x")
    problems = list(map(str, verify_corpus(open_corpus(out))))
    assert any(problem.startswith(f"{first}: sha256") for problem in problems)
    assert any(problem.startswith(f"{second}: missing") for problem in problems)
    assert any(problem.startswith("train/stray.tar") for problem in problems)
    with pytest.raises(CorpusError, match=f"{second}: missing"):
        build([str(scenes)], out, CONFIG, workers=0)


def test_a_published_corpus_is_read_over_http(scenes, reference, store: ObjectStore, out: RemotePath):
    """Without credentials; it can be verified, not written."""
    build([str(scenes)], out, CONFIG, workers=0)
    address = str(out).replace("s3://", f"{store.address}/")
    store.publish(out.path.split("/")[2])
    corpus = open_corpus(address)
    assert corpus.digest == open_corpus(reference).digest and verify_corpus(corpus) == []
    with pytest.raises(SarsenseError, match="can be read, not written"):
        place(f"{store.address}/x").put(reference / "corpus.json")


@pytest.mark.parametrize(
    ("name", "anew", "told"),
    [
        ("s3://no-such-bucket-here/corpus", None, "no such bucket"),
        ("s3://{bucket}/corpus", "shards", "--reshard: of a corpus in a folder; choose another --out"),
        ("s3://{bucket}/taken", None, "not empty and not a corpus"),
    ],
)
def test_where_no_corpus_can_be_is_told(scenes, store: ObjectStore, out: RemotePath, tmp_path, name, anew, told):
    bucket = out.path.split("/")[2]
    store.put(f"{bucket}/taken/x.txt", b"x")
    with pytest.raises(SarsenseError, match=told) as caught:
        build([str(scenes)], place(name.format(bucket=bucket), tmp_path / "w"), CONFIG, workers=0, anew=anew)
    assert "\n" not in str(caught.value)


def test_an_address_that_is_no_corpus_is_told(store: ObjectStore, out: RemotePath):
    with pytest.raises(CorpusError, match=rf"{out}: no such folder"):
        open_corpus(str(out))
