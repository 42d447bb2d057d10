"""Sources on object storage: what a server that fails now and then sends is what lies on the disk, to the bit."""

from __future__ import annotations

import shutil
from pathlib import Path

import numpy as np
import pytest
import rasterio

from pipelines import build as builder
from pipelines.build import build, scan
from sarsense import remote, stores
from sarsense.config import BuildConfig
from sarsense.corpus import open_corpus
from sarsense.errors import RemoteError, SarsenseError
from sarsense.raster import masked_rows, open_raster, read_rows
from sarsense.sources import list_sources
from tests.conftest import speckled_power, write_raster
from tests.object_store import ObjectStore
from tests.pipelines.small import CONFIG, content


@pytest.fixture
def shelf(store: ObjectStore, scenes: Path) -> ObjectStore:
    """The store, with the scenes under s3://shelf/scenes/."""
    store.put_folder(scenes, "shelf/scenes")
    store.put("shelf/scenes-of-others/x_VV.tif", b"not these")
    return store


# ------------------------------------------------------------------------------------------------ the same bytes


def test_a_build_from_a_bucket_is_the_build_from_the_folder(shelf: ObjectStore, reference: Path, tmp_path: Path):
    """Every file of the corpus, sizes of the sources in scenes.parquet too. A raster is fetched thrice at most: by the
    scan, which looks at some rows, which are almost all of so small a one, by the measurement and by the cut."""
    shelf.behave()
    build(["s3://shelf/scenes"], tmp_path / "corpus", CONFIG, workers=0)
    assert content(tmp_path / "corpus") == content(reference)
    sizes = {row["path"]: row["bytes"] for row in open_corpus(reference).scenes.to_pylist()}
    sent: dict[str, int] = dict.fromkeys(sizes, 0)
    for method, path, _, length, _ in shelf.log():
        if method == "GET" and path.endswith(".tif"):
            sent[path.removeprefix("/shelf/scenes/")] += length
    times = {name: (sent[name] - 3 * 2**14) / size for name, size in sizes.items() if name.endswith(".tif")}
    assert max(times.values()) <= 3.0, times


@pytest.mark.parametrize(("share", "workers", "seed"), [(0.1, 0, 1), (0.1, 2, 2), (0.3, 0, 3)])
def test_with_requests_failing_the_bytes_are_the_same(
    shelf: ObjectStore, reference: Path, tmp_path: Path, monkeypatch, share: float, workers: int, seed: int
):
    """A tenth of them, as in a bad hour; a third, with more patience."""
    monkeypatch.setenv("GDAL_HTTP_MAX_RETRY", "4" if share == 0.1 else "9")
    shelf.behave(share=share, seed=seed)
    summary = build(["s3://shelf/scenes"], tmp_path / "corpus", CONFIG, workers=workers)
    assert sum(shelf.faults().values()) >= (2 if share == 0.1 else 9)
    assert summary.scenes_refused == 0 and content(tmp_path / "corpus") == content(reference)


@pytest.mark.parametrize("kind", ["busy", "reset", "reset_body", pytest.param("stall", marks=pytest.mark.slow)])
def test_a_raster_is_read_whole_through_each_kind_of_fault(
    store: ObjectStore, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, kind: str
):
    """A third of all requests fail; a mask beside the raster is not forgotten, nor its place on the ground."""
    monkeypatch.setenv("GDAL_HTTP_LOW_SPEED_TIME", "1")
    monkeypatch.setenv("GDAL_HTTP_MAX_RETRY", "8")
    monkeypatch.setenv("GDAL_HTTP_RETRY_DELAY", "0.01")
    power = speckled_power((256, 300), 4.0, 3)
    path = write_raster(tmp_path / "m_VV.tif", power, tiled=True, blockxsize=64, blockysize=64)
    with rasterio.Env(GDAL_TIFF_INTERNAL_MASK="NO"), rasterio.open(path, "r+") as dataset:
        dataset.write_mask(np.repeat([[False, True]], 256, 0).repeat(150, 1))
    assert path.with_name("m_VV.tif.msk").is_file()
    store.put_folder(tmp_path, f"{kind.replace('_', '-')}-shelf/in")
    store.behave(share=0.33, kinds=[kind], seed=5, stall_seconds=0.2)
    with open_raster(str(path)) as (dataset, _):
        expected = (dataset.crs, dataset.transform, masked_rows(dataset, 1, 0, 256))
    assert expected[2] is not None and expected[2].sum() == 256 * 150
    with open_raster(f"/vsis3/{kind.replace('_', '-')}-shelf/in/m_VV.tif") as (dataset, messages):
        found = np.concatenate([read_rows(dataset, 1, first, first + 64) for first in range(0, 256, 64)])
        np.testing.assert_array_equal(found, power)
        np.testing.assert_array_equal(masked_rows(dataset, 1, 0, 256), expected[2])
        assert (dataset.crs, dataset.transform) == expected[:2] and not messages
    assert store.faults()[kind] >= 2


def test_a_body_that_stands_still_is_given_up(store: ObjectStore, tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    """For much longer than the limit: the connection is not waited for."""
    monkeypatch.setenv("GDAL_HTTP_LOW_SPEED_TIME", "1")
    db = (10 * np.log10(speckled_power((256, 300), 4.0, 3))).astype(np.float32)
    store.put("still/a_VV.tif", write_raster(tmp_path / "a_VV.tif", db).read_bytes())
    store.behave(share=1.0, kinds=["stall"], at_most=3, stall_seconds=100.0)
    with open_raster("/vsis3/still/a_VV.tif") as (dataset, _):
        np.testing.assert_array_equal(read_rows(dataset, 1, 0, 256), db)


# --------------------------------------------------------------------------------------------- refusals, and later


@pytest.mark.parametrize("stage", ["measure_all", "cut_all"])
def test_credentials_that_expire_midway_end_a_build_and_the_same_command_ends_it_well(
    shelf: ObjectStore, reference: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, stage: str
):
    """A corpus of the scenes that were read until then would be another one."""
    out, command = tmp_path / "corpus", (["s3://shelf/scenes"], tmp_path / "corpus", CONFIG, 0)
    before = getattr(builder, stage)

    def expire(*arguments):
        shelf.behave(expires_after=8)
        before(*arguments)

    with monkeypatch.context() as patched:
        patched.setattr(builder, stage, expire)
        told = "credentials expired, wrong or missing: renew them, then run the same command again .*expired"
        with pytest.raises(SarsenseError, match=f"(?i){told}"):
            build(*command)
    assert not (out / "corpus.json").exists()
    shelf.behave()
    build(*command)
    assert content(out) == content(reference)


def test_credentials_that_expire_before_the_build_is_sealed_leave_no_trace(
    shelf: ObjectStore, reference: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    """All are refused for now, so there is no corpus yet; the same command makes the local one."""
    before = builder.measure_all

    def expire(*arguments):
        shelf.behave(expired=True)
        before(*arguments)

    with monkeypatch.context() as patched:
        patched.setattr(builder, "measure_all", expire)
        with pytest.raises(SarsenseError, match="credentials expired"):
            build(["s3://shelf/scenes"], tmp_path / "corpus", CONFIG, 0)
    shelf.behave()
    assert build(["s3://shelf/scenes"], tmp_path / "corpus", CONFIG, 0).digest == open_corpus(reference).digest
    assert content(tmp_path / "corpus") == content(reference)


@pytest.mark.parametrize(
    ("source", "environment", "told"),
    [
        ("s3://no-such-shelf/scenes", {}, "no such bucket or prefix"),
        ("s3://shelf/empty", {}, "s3://shelf/empty: nothing of this name in the store"),
        ("s3://shelf/scenes", {"AWS_ACCESS_KEY_ID": "wrong"}, "credentials expired, wrong or missing"),
        ("s3://shelf/scenes", {"AWS_ENDPOINT_URL": "http://127.0.0.1:9"}, "could not be fetched"),
    ],
)
def test_what_cannot_be_listed_is_one_clear_line(
    shelf: ObjectStore, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, source: str, environment, told: str
):
    for name, value in environment.items():
        monkeypatch.setenv(name, value)
    with pytest.raises(SarsenseError, match=told) as caught:
        build([source], tmp_path / "corpus", CONFIG, 0)
    assert "\n" not in str(caught.value) and source.rpartition("/")[0] in str(caught.value)
    assert not (tmp_path / "corpus").exists()


def test_a_scene_that_is_no_raster_is_refused_for_good_and_one_that_is_gone_for_now(
    shelf: ObjectStore, scenes: Path, tmp_path: Path
):
    shelf.put("mixed/bad_VV.tif", b"no raster at all")
    shelf.put("mixed/good_VV.tif", next(scenes.glob("*.tif")).read_bytes())
    (tmp_path / "list.csv").write_text("path\ns3://mixed/bad_VV.tif\ns3://mixed/gone_VV.tif\ns3://mixed/good_VV.tif\n")
    rows = {Path(row["path"]).name: row for row in scan([str(tmp_path / "list.csv")], CONFIG)}
    assert rows["good_VV.tif"]["status"] == "usable"
    assert rows["bad_VV.tif"]["reason"].startswith("not a raster that GDAL knows")
    assert rows["gone_VV.tif"]["reason"].startswith("could not be fetched: ")


# ------------------------------------------------------------------------------------------------------- changes


def test_an_object_that_changes_during_a_build_is_refused_and_taken_by_the_next(
    store: ObjectStore, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    """Of the same size: only its ETag tells."""
    for seed, name in enumerate("abc"):
        db = (10 * np.log10(speckled_power((64, 128), 4.0, seed))).astype(np.float32)
        store.put(f"moving/in/{name}_VV.tif", write_raster(tmp_path / "in" / f"{name}_VV.tif", db).read_bytes())
    shutil.copy(tmp_path / "in" / "c_VV.tif", tmp_path / "in" / "a_VV.tif")
    before = builder.measure_all

    def replace(*arguments):
        store.put("moving/in/a_VV.tif", (tmp_path / "in" / "a_VV.tif").read_bytes())
        before(*arguments)

    config = BuildConfig(tile_size=64, val_share=0.0)
    with monkeypatch.context() as patched:
        patched.setattr(builder, "measure_all", replace)
        summary = build(["s3://moving/in"], tmp_path / "corpus", config, workers=0)
    assert summary.scenes_for_later == 1
    rows = {row["path"]: row["reason"] for row in open_corpus(tmp_path / "corpus").scenes.to_pylist()}
    assert rows["a_VV.tif"] == "changed while it was read: still being written?"
    (tmp_path / "corpus" / "corpus.json").unlink()  # as if it had not been finished
    build(["s3://moving/in"], tmp_path / "corpus", config, workers=0)
    build([str(tmp_path / "in")], tmp_path / "fresh", config, workers=0)
    assert open_corpus(tmp_path / "corpus").digest == open_corpus(tmp_path / "fresh").digest


def test_a_finished_corpus_knows_its_objects_and_tells_one_that_was_changed(shelf: ObjectStore, scenes, tmp_path: Path):
    build(["s3://shelf/scenes"], tmp_path / "corpus", CONFIG, workers=0)
    shelf.behave()
    assert build(["s3://shelf/scenes"], tmp_path / "corpus", CONFIG, workers=0).already_built
    assert not [row for row in shelf.log() if row[1].endswith(".tif")]  # a list told all that had to be known
    name = next(scenes.glob("*.tif")).name
    shelf.put(f"shelf/scenes/{name}", (scenes / name).read_bytes() + b"\0")
    try:
        with pytest.raises(SarsenseError, match=f"{name}: it, or the metadata beside it, was changed"):
            build(["s3://shelf/scenes"], tmp_path / "corpus", CONFIG, workers=0)
    finally:
        shelf.put(f"shelf/scenes/{name}", (scenes / name).read_bytes())


def test_one_list_tells_the_stamps_of_all(shelf: ObjectStore, scenes: Path):
    shelf.behave()
    files = list_sources(["s3://shelf/scenes/"])
    assert [file.stamp()[0] for file in files] == [(scenes / file.relative).stat().st_size for file in files]
    assert len(shelf.log()) == 1 and all(file.relative in {path.name for path in scenes.iterdir()} for file in files)
    assert [remote.stamp(file.path) for file in files] == [file.stamp() for file in files]


# --------------------------------------------------------------------------------------------------- environments


@pytest.mark.parametrize(
    ("environment", "gdal"),
    [
        ({}, {}),
        (
            {"AWS_ENDPOINT_URL": "http://minio:9000/"},
            {"AWS_S3_ENDPOINT": "minio:9000", "AWS_HTTPS": "NO", "AWS_VIRTUAL_HOSTING": "FALSE"},
        ),
        (
            {"AWS_ENDPOINT_URL": "http://other", "AWS_ENDPOINT_URL_S3": "https://ceph.org"},
            {"AWS_S3_ENDPOINT": "ceph.org", "AWS_HTTPS": "YES", "AWS_VIRTUAL_HOSTING": "FALSE"},
        ),
        ({"AWS_ENDPOINT_URL": "http://minio:9000", "AWS_S3_ENDPOINT": "mine"}, {}),
    ],
)
def test_gdal_is_told_of_the_endpoint_that_others_are_told_of(environment, gdal):
    settings = stores.gdal_settings(environment)
    assert {name: value for name, value in settings.items() if name.startswith("AWS")} == gdal
    assert stores.gdal_settings({"GDAL_HTTP_MAX_RETRY": "9"}).get("GDAL_HTTP_MAX_RETRY") is None


@pytest.mark.parametrize(
    ("scheme", "environment", "told"),
    [
        ("s3", {"AWS_S3_ENDPOINT": "minio:9000", "AWS_HTTPS": "NO"}, {"endpoint_url": "http://minio:9000"}),
        ("s3", {"AWS_REQUEST_PAYER": "requester"}, {"requester_pays": True}),
        ("s3", {"AWS_NO_SIGN_REQUEST": "YES"}, {"anon": True}),
        ("gs", {"GS_NO_SIGN_REQUEST": "YES"}, {"token": "anon"}),
        ("az", {"AWS_NO_SIGN_REQUEST": "YES"}, {}),
    ],
)
def test_fsspec_is_told_what_gdal_reads_in_the_environment(scheme, environment, told):
    settings = stores.fsspec_settings(scheme, environment)
    assert settings.pop("use_listings_cache") is False  # no list of yesterday
    assert {name: value for name, value in settings.items() if name != "config_kwargs"} == told


@pytest.mark.parametrize(
    ("path", "url"),
    [
        ("/vsis3/bucket/a/b.tif", "s3://bucket/a/b.tif"),
        ("/vsigs/bucket/b.tif", "gs://bucket/b.tif"),
        ("/vsiaz/container/b.tif", "az://container/b.tif"),
        ("/vsicurl/https://host/b.tif?sig=secret", "https://host/b.tif"),
    ],
)
def test_addresses_are_shown_as_people_write_them(path, url):
    assert remote.is_remote(path) and remote.address(path) == url


@pytest.mark.parametrize(
    ("reason", "refused"),
    [
        ("The provided token has expired.", True),
        ("AWS_SECRET_ACCESS_KEY and AWS_NO_SIGN_REQUEST configuration options not defined", True),
        ("expired_VV.tif, band 1: IReadBlock failed at X offset 0, Y offset 22: TIFFReadEncodedStrip() failed.", False),
        (PermissionError("Forbidden"), True),
        (OSError("Please reduce your request rate"), False),
    ],
)
def test_a_refusal_is_told_from_a_failure_whatever_the_file_is_called(reason, refused):
    assert stores.is_refused(reason, "s3://bucket/signature/expired_VV.tif") == refused


def test_a_server_that_stays_down_is_asked_as_often_as_the_environment_says(store: ObjectStore, monkeypatch):
    monkeypatch.setenv("GDAL_HTTP_MAX_RETRY", "2")
    store.behave(share=1.0, kinds=["busy"])
    with pytest.raises(RemoteError, match=f"could not be fetched: {store.address}/x: HTTP Error 503"):
        remote.read(f"/vsicurl/{store.address}/x?sig=secret")
    assert len(store.log()) == 3
