"""Damaged GeoTIFFs, by hypothesis: each becomes a scene or a SceneError that says why; never another exception, never
a reading of more memory than the bound."""

import resource
import struct
from pathlib import Path

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from sarsense.config import BuildConfig
from sarsense.errors import SceneError
from sarsense.measure import measure_scene
from sarsense.scene import describe_scene
from tests.conftest import speckled_power, write_raster

CONFIG = BuildConfig(tile_size=32)
fuzz = settings(max_examples=150, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])


def describe_and_measure(path: Path) -> str:
    """The reason why it is refused; empty where it is not."""
    try:
        measure_scene(describe_scene(str(path), path.name, CONFIG))
    except SceneError as error:
        assert "\n" not in str(error)
        return str(error)
    return ""


@pytest.fixture(scope="module")
def files(tmp_path_factory) -> dict[str, bytes]:
    folder = tmp_path_factory.mktemp("whole")
    db = (10 * np.log10(speckled_power((64, 96), 4.0, 0))).astype(np.float32)
    layouts = {
        "strips": {},
        "tiles": {"tiled": True, "blockxsize": 32, "blockysize": 32, "compress": "deflate"},
        "lzw": {"compress": "lzw", "predictor": 3},
        "big": {"BIGTIFF": "YES"},
    }
    return {name: write_raster(folder / f"{name}.tif", db, **how).read_bytes() for name, how in layouts.items()}


@fuzz
@given(data=st.data())
def test_a_file_truncated_at_any_byte(files, tmp_path, data):
    whole = files[data.draw(st.sampled_from(sorted(files)))]
    path = tmp_path / "x.tif"
    path.write_bytes(whole[: data.draw(st.integers(0, len(whole) - 1))])
    describe_and_measure(path)


@fuzz
@given(data=st.data())
def test_a_file_with_flipped_bytes(files, tmp_path, data):
    """Mostly in the header and the directory, where a byte changes what the file is."""
    whole = bytearray(files[data.draw(st.sampled_from(sorted(files)))])
    for _ in range(data.draw(st.integers(1, 6))):
        place = data.draw(st.one_of(st.integers(0, 600), st.integers(0, len(whole) - 1)))
        whole[min(place, len(whole) - 1)] ^= data.draw(st.integers(1, 255))
    path = tmp_path / "x.tif"
    path.write_bytes(bytes(whole))
    describe_and_measure(path)


@pytest.mark.parametrize(
    ("width", "height"), [(2**31 - 1, 64), (96, 2**31 - 1), (2**31 - 1, 2**31 - 1), (10**7, 10**7)]
)
def test_absurd_sizes_stay_within_memory(files, tmp_path, width, height):
    """A header that claims a raster of terabytes."""
    whole = bytearray(files["strips"])
    (at,) = struct.unpack("<I", whole[4:8])
    (count,) = struct.unpack("<H", whole[at : at + 2])
    for index in range(count):
        entry = at + 2 + 12 * index
        (tag,) = struct.unpack("<H", whole[entry : entry + 2])
        if tag in (256, 257):
            whole[entry + 2 : entry + 12] = struct.pack("<HII", 4, 1, width if tag == 256 else height)
    path = tmp_path / "x.tif"
    path.write_bytes(bytes(whole))
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    assert describe_and_measure(path)
    assert resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before < 2**20  # KiB: 1 GiB
