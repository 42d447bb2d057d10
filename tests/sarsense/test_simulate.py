"""Simulated scenes are what truth.json says they are."""

from __future__ import annotations

import hashlib
import json
from pathlib import Path

import numpy as np
import pytest
import rasterio
from pyproj import Transformer
from rasterio.crs import CRS
from scipy import stats
from scipy.ndimage import binary_erosion

from sarsense.errors import SarsenseError, SettingError
from sarsense.landscape import Cover, random_field
from sarsense.simulate import RIM_EVERY, SIGNATURES, draw_truth, simulate, speckled


def _digests(folder: Path) -> dict[str, str]:
    return {
        path.relative_to(folder).as_posix(): hashlib.sha256(path.read_bytes()).hexdigest()
        for path in sorted(folder.rglob("*"))
        if path.is_file()
    }


@pytest.mark.parametrize("looks", [1.0, 4.0, 16.0])
def test_ratio_to_the_truth_is_gamma_speckle_of_the_given_looks(looks: float) -> None:
    truth = draw_truth(seed=3, index=0, size=512)
    for pol in ("VV", "VH"):
        image = speckled(truth, 3, 0, pol, looks).astype(np.float64)
        ratio = (image - truth.points[pol]) / truth.clutter[pol]
        # where a point outshines the clutter, subtracting it leaves float32 rounding
        ratio = ratio[truth.points[pol] < 10 * truth.clutter[pol]]
        assert ratio.mean() == pytest.approx(1.0, abs=0.01)
        assert ratio.mean() ** 2 / ratio.var() == pytest.approx(looks, rel=0.02)
        sample = ratio[:: ratio.size // 5000]
        assert stats.kstest(sample, stats.gamma(looks, scale=1 / looks).cdf).pvalue > 1e-3


def test_speckle_is_independent_between_polarisations_and_pixels() -> None:
    truth = draw_truth(seed=3, index=0, size=256)
    ratios = [
        np.log((speckled(truth, 3, 0, p, 4.0) - truth.points[p]).clip(1e-9) / truth.clutter[p]) for p in ("VV", "VH")
    ]
    assert abs(np.corrcoef(ratios[0].ravel(), ratios[1].ravel())[0, 1]) < 0.02
    assert abs(np.corrcoef(ratios[0][:, 1:].ravel(), ratios[0][:, :-1].ravel())[0, 1]) < 0.02


def test_class_means_are_those_of_the_table() -> None:
    truths = [draw_truth(seed=0, index=index, size=512) for index in range(8)]
    for cover in (Cover.WATER, Cover.BARE, Cover.CROPS, Cover.FOREST, Cover.MEADOW):
        inside = [np.asarray(binary_erosion(truth.cover == cover, iterations=2), bool) for truth in truths]
        for column, pol in enumerate(("VV", "VH")):
            power = np.concatenate([truth.clutter[pol][where] for truth, where in zip(truths, inside, strict=True)])
            assert np.median(10 * np.log10(power)) == pytest.approx(SIGNATURES[cover].mean_db[column], abs=1.2), cover


def test_every_class_occurs_and_none_rules() -> None:
    share = np.mean(
        [np.bincount(draw_truth(0, i, 768).cover.ravel(), minlength=len(Cover)) for i in (0, 1, 2, 4)], axis=0
    )
    share = share / share.sum()
    assert share[Cover.NO_DATA] == 0
    assert (share[1:] > 0.004).all()
    assert share.max() < 0.6


def test_a_random_field_has_the_spectrum_asked_for() -> None:
    field = random_field(np.random.default_rng(0), 512, exponent=3.0, outer=1e6)
    power = np.abs(np.fft.fft2(field)) ** 2
    frequency = np.fft.fftfreq(512)
    radius = np.hypot(frequency[:, None], frequency)
    inside = (radius > 0.02) & (radius < 0.4)
    slope = np.polyfit(np.log(radius[inside]), np.log(power[inside]), 1)[0]
    assert slope == pytest.approx(-3.0, abs=0.05)


def test_files_hold_what_truth_json_says(tmp_path: Path) -> None:
    truth = simulate(tmp_path, scenes=RIM_EVERY, size=192, looks=4.0, seed=1)
    assert json.loads((tmp_path / "truth.json").read_text()) == json.loads(json.dumps(truth))
    assert list(truth["classes"]) == [c.name.lower() for c in Cover if c]
    for index, row in enumerate(truth["scenes"]):
        with rasterio.open(tmp_path / row["scene"]) as scene, rasterio.open(tmp_path / row["labels"]) as labels:
            assert scene.shape == labels.shape == (192, 192)
            assert scene.crs == labels.crs == CRS.from_string(row["crs"])
            assert scene.transform == labels.transform == rasterio.Affine(*row["transform"])
            assert scene.descriptions == ("VV", "VH") and scene.units == ("power", "power")
            assert (scene.nodata, labels.nodata, scene.dtypes, labels.dtypes) == (0, 0, ("float32",) * 2, ("uint8",))
            tags = scene.tags()
            assert (tags["SENSOR"], tags["LOOKS"], tags["ACQUISITION_DATETIME"]) == ("SIM", "4", row["datetime"])
            image, cover = scene.read(), labels.read(1)
            assert labels.colormap(1)[int(Cover.WATER)][:3] == SIGNATURES[Cover.WATER].colour
        assert ((image > 0).all(axis=0) == (cover > 0)).all()
        assert row["rim"] == bool((cover == 0).any()) == (index % RIM_EVERY == RIM_EVERY - 1)
        assert row["pixels"] == {c.name.lower(): int((cover == c).sum()) for c in Cover}
        water = image[0][cover == Cover.WATER]
        if water.size:
            assert row["mean_db"]["VV"]["water"] == pytest.approx(10 * np.log10(water.mean(dtype=float)), abs=1e-3)


def test_same_arguments_same_bytes_and_a_part_is_a_part(tmp_path: Path) -> None:
    simulate(tmp_path / "a", scenes=3, size=128, seed=5)
    simulate(tmp_path / "b", scenes=3, size=128, seed=5)
    assert _digests(tmp_path / "a") == _digests(tmp_path / "b")
    simulate(tmp_path / "fewer", scenes=2, size=128, seed=5)
    whole, part = _digests(tmp_path / "a"), _digests(tmp_path / "fewer")
    assert all(whole[name] == digest for name, digest in part.items() if name.endswith(".tif"))
    simulate(tmp_path / "vh", scenes=1, size=128, seed=5, polarisations=("VH",))
    with (
        rasterio.open(tmp_path / "a/scenes/sim-000.tif") as both,
        rasterio.open(tmp_path / "vh/scenes/sim-000.tif") as one,
    ):
        np.testing.assert_array_equal(both.read(2), one.read(1))
    simulate(tmp_path / "other", scenes=1, size=128, seed=6)
    assert _digests(tmp_path / "other")["scenes/sim-000.tif"] != whole["scenes/sim-000.tif"]


def test_scenes_lie_thirty_kilometres_apart() -> None:
    from sarsense.simulate import _place

    size, spacing = 1024, 10.0
    extent = size * spacing
    centres = []
    for index in range(60):
        crs, transform = _place(7, index, size, spacing)
        to_globe = Transformer.from_crs(crs, "EPSG:4978", always_xy=True)  # metres from the Earth's centre
        centres.append(to_globe.transform(transform.c + extent / 2, transform.f - extent / 2, 0.0))
    centres = np.array(centres)
    between = np.linalg.norm(centres[:, None] - centres[None], axis=2)
    # a scene reaches at most half a diagonal from its centre
    assert between[~np.eye(60, dtype=bool)].min() - np.sqrt(2) * extent > 30_000


@pytest.mark.parametrize(
    ("settings", "option"),
    [
        ({"scenes": 0}, "--scenes"),
        ({"scenes": 10_000}, "--scenes"),
        ({"size": 10}, "--size"),
        ({"looks": 0.0}, "--looks"),
        ({"seed": -1}, "--seed"),
        ({"polarisations": ("VV", "HH")}, "--polarisations"),
        ({"polarisations": ()}, "--polarisations"),
    ],
)
def test_a_setting_out_of_range_is_named(tmp_path: Path, settings: dict, option: str) -> None:
    with pytest.raises(SettingError, match=option):
        simulate(tmp_path, **settings)


def test_scenes_of_something_else_are_not_mixed_in(tmp_path: Path) -> None:
    simulate(tmp_path, scenes=2, size=64)
    simulate(tmp_path, scenes=2, size=64)  # writes the same files again
    with pytest.raises(SarsenseError, match=r"sim-001\.tif"):
        simulate(tmp_path, scenes=1, size=64)
