"""Duplicates through whole builds: planted copies go, by the test that can tell them, and all else stays."""

from __future__ import annotations

import json
import shutil
from collections import Counter
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import rasterio
from rasterio import Affine

from benchmarks.duplicates import (
    Planted,
    Row,
    Set,
    gaofen_crops,
    measured,
    passes,
    real_images,
    real_scenes,
    simulated_images,
    without_packings,
    write,
)
from pipelines.build import build
from pipelines.companions import CompanionFiles
from sarsense.codes import encode
from sarsense.config import DEDUP_TESTS, BuildConfig
from sarsense.corpus import Corpus, open_corpus
from sarsense.radiometry import to_db
from sarsense.shards import TileReader
from sarsense.simulate import draw_truth, speckled
from sarsense.verify import verify_corpus
from tests.conftest import speckled_power
from tests.pipelines.small import content

SIDE = 128
CONFIG = BuildConfig(tile_size=SIDE, val_share=0.0, allow_unplaced=True)
pytestmark = pytest.mark.filterwarnings("ignore::rasterio.errors.NotGeoreferencedWarning")


@pytest.fixture(scope="module")
def scenes() -> list[Planted]:
    """A place on two dates (3 x 3 tiles), with copies of the first and one of the second."""
    truth, place = draw_truth(11, 1, 480), Affine(10, 0, 4e5, 0, -10, 5e6)
    found = []
    for date in (0, 1):
        whole = speckled(truth, 11 + 1000 * date, 1, "VV", 4.4)
        found += passes("g0", date, whole, whole[:384, :384], "EPSG:32633", place, 4.4, slices=True)
    return found


def corpus_of(planted: list[Planted], kind: Set, root: Path, config: BuildConfig = CONFIG) -> Corpus:
    if not (root / "in").exists():
        root.mkdir(exist_ok=True)
        write(planted, kind, root / "in")
    build([str(root / "in" / "scenes.csv")], root / "corpus", config, workers=0)
    return open_corpus(root / "corpus")


def kinds(corpus: Corpus) -> Counter[str]:
    return Counter(corpus.duplicates["kind"].to_pylist())


def told(rows: dict[str, Row]) -> set[str]:
    return {kind for row in rows.values() for kind, count in row.told.items() if count}


def check(rows: dict[str, Row], recall: float, nothing_in: tuple[str, ...] = ()) -> None:
    """Of all kinds together, as one bar for the build; `nothing_in`: kinds of which no tile may go."""
    total = Row()
    for row in rows.values():
        total.add(row)
    missed = {kind: (row.tiles, row.found, row.false) for kind, row in rows.items() if row.found < row.tiles}
    assert total.tiles > 20 and total.recall >= recall, missed
    assert total.precision >= 0.98
    for kind in nothing_in:
        assert rows[kind].cut > 0 and not rows[kind].told.total(), kind


# ------------------------------------------------------------------------------------------------ each kind, planted


def test_copies_of_dated_scenes_are_found_and_the_next_pass_stays(scenes: list[Planted]):
    rows, _ = measured(scenes, "dated", SIDE)
    check(rows, 0.98, ("original", "repeat pass"))
    assert told(rows) == {"exact scene", "geographic"}
    assert rows["byte order"].told == {"exact scene": 9}


def test_copies_of_undated_scenes_are_found_by_their_speckle_and_the_next_pass_stays(scenes: list[Planted]):
    rows, _ = measured(without_packings(scenes), "undated", SIDE)
    check(rows, 0.98, ("original", "repeat pass"))
    assert told(rows) == {"speckle"}


def test_copies_of_display_images_are_found_and_neighbours_stay():
    rows, _ = measured(simulated_images(1, 256), "unplaced", 256)
    check(rows, 0.9, ("neighbours",))
    assert told(rows) == {"speckle", "perceptual"}


@pytest.mark.parametrize("kind", ["dated", "undated"])
def test_copies_of_real_scenes_are_found_and_a_real_repeat_pass_stays(real_data: Path, kind: Set):
    planted = real_scenes(real_data)
    rows, _ = measured(planted if kind == "dated" else without_packings(planted), kind, 112)
    check(rows, 0.98, ("original", "repeat pass"))


def test_copies_of_real_display_images_are_found_and_nothing_else(real_data: Path):
    rows, _ = measured(real_images(real_data, 96), "unplaced", 216)
    check(rows, 0.9, ("neighbours",))


# ------------------------------------------------------------------------------------------------- known real cases


def test_gaofen_crops_of_one_acquisition_are_told_tile_by_tile(real_data: Path, tmp_path: Path):
    build([str(real_data / "gaofen3-quadpol")], tmp_path / "corpus", CONFIG, workers=0)
    rows = open_corpus(tmp_path / "corpus").duplicates.to_pylist()
    scene = [(row["dropped"], row["kept"]) for row in rows if row["kind"] == "exact scene"]
    assert scene == [("testB/2_VH.tiff", "testA/2_VH.tiff")]
    # scene 3 begins 409 columns right of scene 2, scene 4 170 right of scene 3: 0.80 and 0.67 of a tile
    expected = {
        (f"{new}_{pol}", row, col, f"{old}_{pol}", row, col + right)
        for pol in ("HH", "HV", "VH", "VV")
        for row in (0, 128, 256, 384)
        for new, old, cols, right in ((3, 2, (0,), 384), (4, 3, (0, 128, 256), 128))
        for col in cols
    }
    found = {(*_parts(row["dropped"]), *_parts(row["kept"])) for row in rows if row["kind"] == "speckle"}
    assert found == expected and len(rows) == len(expected) + 1
    check(measured(gaofen_crops(real_data), "unplaced", SIDE)[0], 0.98)


def _parts(key: str) -> tuple[str, int, int]:
    """Name of the scene, row and column out of the key of a tile."""
    scene, _, row, col = key.rsplit("-", 3)
    return scene.rsplit("-", 1)[0], int(row), int(col)


def test_a_real_scene_delivered_twice_is_cut_once(real_data: Path, tmp_path: Path):
    folder = real_data / "decimated-csk-tsx-rs2-s1" / "20191215T060906_S1_IW_GRD"
    config = BuildConfig(tile_size=32, min_valid=0.3, val_share=0.0)
    build([str(folder)], tmp_path / "corpus", config, workers=0)
    corpus = open_corpus(tmp_path / "corpus")
    polarisations = Counter(corpus.tiles()["polarisation"].to_pylist())
    assert polarisations["VH"] == 44
    assert kinds(corpus) == {"geographic": 44}  # another encoding: not the same values, but the same pass by its name


def test_a_real_repeat_pass_stays_whole_and_shares_its_places(real_data: Path, tmp_path: Path):
    build([str(real_data / "s1-repeat-pass")], tmp_path / "corpus", CONFIG, workers=0)
    corpus = open_corpus(tmp_path / "corpus")
    assert not kinds(corpus)
    seen = Counter(corpus.tiles()["place"].to_pylist())
    assert len(seen) > 5 and set(seen.values()) == {2}
    capped = replace(CONFIG, max_repeats=1)
    build([str(real_data / "s1-repeat-pass")], tmp_path / "capped", capped, workers=0)
    once = open_corpus(tmp_path / "capped")
    assert Counter(once.tiles()["place"].to_pylist()) == dict.fromkeys(seen, 1)
    assert kinds(once) == {"repeat": len(seen)}
    assert verify_corpus(once) == []


# ------------------------------------------------------------------------------------------------------- settings


def test_open_sea_is_left_out_above_its_share(tmp_path: Path, scenes: list[Planted]):
    sea = [replace(scenes[0], acquisition="sea", image=speckled_power((512, 512), 4.4, 1, -20.0))]
    far = Affine(10, 0, 6e5, 0, -10, 5e6)
    planted = [scenes[0], replace(sea[0], place=far)]
    whole = corpus_of(planted, "dated", tmp_path)
    flat = [row["key"] for row in whole.tiles().to_pylist() if row["flat"]]
    assert len(whole.tiles()) == 9 + 16 and len(flat) >= 16
    shutil.rmtree(tmp_path / "corpus")
    capped = corpus_of(planted, "dated", tmp_path, replace(CONFIG, max_flat=0.2))
    rows = capped.duplicates.to_pylist()
    assert {row["kind"] for row in rows} == {"flat"} and {row["dropped"] for row in rows} <= set(flat)
    left = len(flat) - len(rows)
    assert left == (25 - len(flat)) // 4  # a fifth of those that stay


@pytest.mark.parametrize("what", ["drop", "mark"])
def test_ground_near_an_evaluation_set_is_left_out_or_marked(tmp_path: Path, scenes: list[Planted], what: str):
    whole = corpus_of(scenes[:1], "dated", tmp_path).tiles().to_pylist()
    corner = min(whole, key=lambda row: (row["row"], row["col"]))
    chips = tmp_path / "chips.geojson"
    point = {"type": "Point", "coordinates": [corner["lon"], corner["lat"]]}
    chips.write_text(json.dumps({"type": "Feature", "id": "chip-7", "properties": {}, "geometry": point}))
    # tiles of 1.28 km: from the middle of the first to the others there are 0.64 km and more
    config = replace(CONFIG, distance_km=0.5, near_evaluation=what)
    files = CompanionFiles(exclude_near=chips)
    build([str(tmp_path / "in" / "scenes.csv")], tmp_path / "near", config, workers=0, companions=files)
    corpus = open_corpus(tmp_path / "near")
    marked = [row["key"] for row in corpus.tiles().to_pylist() if row["near_evaluation"]]
    if what == "mark":
        assert marked == [corner["key"]] and not kinds(corpus)
    else:
        (row,) = corpus.duplicates.to_pylist()
        assert (row["kind"], row["dropped"], row["distance"]) == ("leakage", corner["key"], 0.0)
        assert "chip-7" in row["kept"] and not marked and len(corpus.tiles()) == len(whole) - 1


def test_a_test_that_is_switched_off_leaves_its_duplicates_in(tmp_path: Path):
    far = [Affine(10, 0, 4e5 + 1e4 * k, 0, -10, 5e6) for k in range(3)]

    def pair(name: str, number: int, image: np.ndarray, left: int, moment: str) -> list[Planted]:
        first = Planted(name, "original", image, place=far[number], moment=moment, looks=4.4)
        cut = np.ascontiguousarray(image[left:, left:])
        return [first, replace(first, kind="copy", image=cut, to_ground=Affine.translation(left, left))]

    grounds = [speckled(draw_truth(5, k, 384), 5, k, "VV", 4.4) for k in range(3)]
    dated = pair("dated", 0, grounds[0], 17, "2024-03-10T05:17:30Z")
    planted = [
        *dated,
        *pair("undated", 1, grounds[1], 17, ""),
        # on the grid of its original: the same codes where no looks measured of each move them
        replace(dated[0], acquisition="exact", image=grounds[2], place=far[2], moment="2024-05-10T05:17:30Z"),
        replace(
            dated[0], acquisition="exact", image=np.ascontiguousarray(grounds[2][SIDE:]), place=far[2],
            to_ground=Affine.translation(0, SIDE), moment="2024-06-10T05:17:30Z",
        ),
    ]  # fmt: skip
    write(planted, "dated", tmp_path / "in")

    def dropped(*tests: str) -> Counter[str]:
        out = tmp_path / ("-".join(tests) or "none")
        build(
            [str(tmp_path / "in" / "scenes.csv")], out, replace(CONFIG, dedup=tests, normalization="fixed"), workers=0
        )
        return kinds(open_corpus(out))

    everything = dropped(*DEDUP_TESTS)
    assert everything == {"exact tile": 6, "geographic": 4, "speckle": 4}
    assert dropped() == {}
    for kind, test in (("exact tile", "exact"), ("geographic", "geographic"), ("speckle", "speckle")):
        without = dropped(*(other for other in DEDUP_TESTS if other != test))
        assert without == Counter({name: count for name, count in everything.items() if name != kind}), test


def test_the_perceptual_test_switched_off_leaves_copies_in(tmp_path: Path):
    images = [one for one in simulated_images(1, 256) if one.acquisition == "h0"][-2:]
    config = replace(CONFIG, tile_size=256)
    assert kinds(corpus_of(images, "unplaced", tmp_path, config)) == {"perceptual": 4}
    shutil.rmtree(tmp_path / "corpus")
    without = replace(config, dedup=("exact", "geographic", "speckle"))
    assert not kinds(corpus_of(images, "unplaced", tmp_path, without))


def test_what_is_dropped_does_not_depend_on_order_folders_or_workers(scenes: list[Planted], tmp_path: Path):
    chosen = ("original", "renamed", "next slice", "shift by 17 px", "repeat pass")
    first, config = [one for one in scenes if one.kind in chosen], replace(CONFIG, unit="power")
    write(first, "undated", tmp_path / "in")
    (tmp_path / "in" / "scenes.csv").unlink()
    shutil.copytree(tmp_path / "in", tmp_path / "other" / "name")
    files = sorted(str(path) for path in (tmp_path / "other" / "name").iterdir())
    reference = tmp_path / "reference"
    build([str(tmp_path / "in")], reference, config, workers=0)
    assert {"exact scene", "speckle"} <= set(kinds(open_corpus(reference)))
    build(files[::-1], tmp_path / "reversed", config, workers=0)
    build([str(tmp_path / "in")], tmp_path / "workers", config, workers=1)
    assert content(tmp_path / "reversed") == content(tmp_path / "workers") == content(reference)


# ----------------------------------------------------------------------------------------------------- provenance


def test_a_tile_cut_again_from_its_source_by_its_row_has_the_stored_codes(
    real_data: Path, scenes: list[Planted], tmp_path: Path
):
    simulated = corpus_of(scenes, "dated", tmp_path)
    build([str(real_data / "s1-repeat-pass")], tmp_path / "real", CONFIG, workers=0)
    sources = ((simulated, tmp_path / "in", 1), (open_corpus(tmp_path / "real"), real_data / "s1-repeat-pass", 2))
    for corpus, folder, exponent in sources:
        reader, rows = TileReader(corpus), {row["key"]: row for row in corpus.tiles().to_pylist()}
        for index in np.random.default_rng(0).choice(len(reader), 8, replace=False):
            row = rows[reader.keys[index]]
            with rasterio.open(folder / row["source"]) as dataset:
                window = rasterio.windows.Window(row["col"], row["row"], SIDE, SIDE)  # type: ignore[reportCallIssue]
                power = dataset.read(row["band"], window=window) ** exponent  # power, and amplitude
            db = to_db(power) - np.float32(row["enl_bias_db"])
            stored = reader.read(np.array([index]))[0, 0].astype(int)
            again = encode(db, row["lo_db"], row["hi_db"]).astype(int)
            # to the code, but for what float32 rounds on the very edge between two
            assert np.abs(again - stored).max() <= 1 and (again != stored).mean() < 1e-3, row["key"]
