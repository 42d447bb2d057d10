"""The whole path through the command lines, and what they say and return when the input is bad."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
import torchvision

from tests.commands import call
from tests.conftest import speckled_power, write_raster


def start(program: str, *arguments: object) -> str:
    """The same as a user does, in a process of its own; its standard output."""
    command = {
        "sarsense": ["-c", "from cli import run_sarsense; run_sarsense()"],
        "dic3l": ["-m", "dic3l"],
    }[program]
    variables = {name: value for name, value in os.environ.items() if name != "WORLD_SIZE"}
    done = subprocess.run(
        [sys.executable, *command, *map(str, arguments)], env=variables, capture_output=True, text=True, timeout=300
    )
    assert done.returncode == 0, done.stderr
    for word in ("Traceback", "Warning"):
        assert word not in done.stderr and word not in done.stdout, done.stderr
    return done.stdout


def test_from_scenes_to_a_probed_encoder(tmp_path: Path):
    sim, corpus, run, encoder = (tmp_path / name for name in ("sim", "corpus", "run", "encoder.pt"))
    call("sarsense", "simulate", sim, "--scenes", 4, "--size", 256, "--looks", 4, "--seed", 3)
    made = json.loads(
        start("sarsense", "build", sim / "scenes", "--out", corpus, "--tile-size", 64, "--val-share", 0, "--json")
    )
    assert made["scenes_used"] == 4 and made["scenes_refused"] == 0
    assert str(sum(made["tiles"].values())) in call("sarsense", "shards", "stats", corpus)
    assert "all as written" in call("sarsense", "shards", "verify", corpus)
    assert len(json.loads(call("sarsense", "shards", "ls", corpus, "--limit", 0, "--json"))) == sum(
        made["tiles"].values()
    )
    call("sarsense", "shards", "show", corpus, "--out", tmp_path / "sheet.png", "--footprints", tmp_path / "map.png")
    assert (tmp_path / "sheet.png").stat().st_size > 10_000 and (tmp_path / "map.png").stat().st_size > 1_000

    train = ["dic3l", "pretrain", corpus, "--out", run, "--preset", "smoke", "--crop-size", 48, "--batch-size", 16]
    train += ["--queue-size", 32, "--precision", "fp32", "--set", "method.hidden_dim=32"]
    call(*train, "--steps", 3)
    assert "3 steps in" in call(*train, "--steps", 6)
    call("dic3l", "export", run, "--out", encoder)
    faults = torchvision.models.resnet18().load_state_dict(torch.load(encoder), strict=False)
    assert set(faults.missing_keys) == {"fc.weight", "fc.bias"} and not faults.unexpected_keys

    scores = tmp_path / "scores"
    call("dic3l", "evaluate", encoder, run, "--data", sim, "--out", scores, "--seeds", 1, "--pixels", 500)
    rows = json.loads((scores / "evaluation.json").read_text())
    assert str(run) in json.dumps(rows) and "random" in (scores / "evaluation.md").read_text()


def test_a_corpus_grows_is_compared_merged_and_described(tmp_path: Path):
    sim, corpus, before = (tmp_path / name for name in ("sim", "corpus", "before"))
    call("sarsense", "simulate", sim, "--scenes", 3, "--size", 128, "--seed", 3, "--polarisations", "VV")
    first, second, third = sorted((sim / "scenes").glob("*"))
    build = ["sarsense", "build", "--workers", 0, "--tile-size", 32, "--val-share", 0]
    call(*build, first, second, "--out", corpus)
    shutil.copytree(corpus, before)
    assert "all older shards are as they were" in call(*build, first, second, third, "--out", corpus)
    assert "the same: tiles, order" in call("sarsense", "diff", corpus, corpus)
    assert f"1 scenes in: {third.name}" in call("sarsense", "diff", before, corpus, code=1)
    assert "| scenes | 3 |" in (corpus / "README.md").read_text()
    call(*build, third, "--out", tmp_path / "other", "--stats-from", before)
    merged = call("sarsense", "merge", before, tmp_path / "other", "--out", tmp_path / "merged")
    assert json.loads((tmp_path / "merged" / "corpus.json").read_text())["digest"] in merged
    assert "all as written" in call("sarsense", "shards", "verify", tmp_path / "merged")
    written = call("sarsense", "export", corpus, "--croissant", "--stac", "--out", tmp_path / "described").splitlines()
    assert [Path(line).name for line in written] == ["croissant.json", "collection.json", "items.parquet"]
    assert "--croissant, --stac or both expected" in call("sarsense", "export", corpus, code=2)
    assert "tests among exact" in call(*build, first, "--out", tmp_path / "x", "--dedup", "exact,nothing", code=2)
    assert "try 2km or 500m" in call(*build, first, "--out", tmp_path / "x", "--distance", "far", code=2)


def test_an_output_that_is_no_corpus_or_cannot_be_written_is_refused_in_a_line(tmp_path: Path):
    scene = write_raster(tmp_path / "in" / "a_VV.tif", 10 * np.log10(speckled_power((128, 128), 4, 0)))
    other = tmp_path / "other"
    other.mkdir()
    (other / "thesis.txt").touch()
    cases = {
        "not empty and not a corpus": ("build", scene, "--out", other),
        "is a file": ("build", scene, "--out", other / "thesis.txt"),
        "no raster among 1 files": ("build", other, "--out", tmp_path / "new"),
        "no such file or folder": ("build", tmp_path / "nowhere", "--out", tmp_path / "new"),
        "cannot be written": ("build", scene, "--out", "/proc/corpus"),
        "not a corpus": ("shards", "verify", other),
        "/proc/sim: ": ("simulate", "/proc/sim", "--scenes", 1, "--size", 128),
        "not empty and not of a simulation": ("simulate", other, "--scenes", 1, "--size", 128),
        "tcp://host:port, or the file": ("build", scene, "--out", tmp_path / "new", "--scheduler", "nonsense"),
    }
    for words, arguments in cases.items():
        told = call("sarsense", *arguments, code=1)
        assert words in told and told.startswith("sarsense: error: ") and told.count("\n") == 1, told
    assert "--tile-size" in call("sarsense", "build", scene, "--out", tmp_path / "new", "--tile-size", 1, code=2)


def test_pictures_that_cannot_be_written_and_a_missing_table_are_told_in_a_line(tmp_path: Path):
    scene, corpus = tmp_path / "a_VV.tif", tmp_path / "corpus"
    write_raster(scene, 10 * np.log10(speckled_power((128, 128), 4, 0)))
    call("sarsense", "build", scene, "--out", corpus, "--tile-size", 64, "--workers", 0, "--val-share", 0)
    for arguments, words, code in (
        (("show", corpus, "--out", "/proc/sheet.png"), "/proc/sheet.png: ", 1),
        (("show", corpus, "--out", tmp_path / "sheet.jpg"), "ends in .png", 2),
        (("show", corpus, "--out", tmp_path / "sheet.png", "--count", 100_000), "--count from 1 to", 2),
        (("stats", corpus, "--plot", "/proc/plot.png"), "/proc/plot.png: ", 1),
        (("ls", corpus, "--where", "splitt = 'val'"), "--where or --sort: Binder Error", 2),
        (("get", corpus, "nothing", "-o", tmp_path / "x.png"), "no tile has the key 'nothing'", 2),
    ):
        assert words in call("sarsense", "shards", *arguments, code=code)
    assert not (tmp_path / "sheet.jpg").exists()
    (corpus / "tiles.parquet").write_bytes(b"PAR1")
    for name in ("ls", "stats", "show"):
        told = call("sarsense", "shards", name, corpus, code=1)
        assert told.startswith("sarsense: error: ") and "tiles.parquet: cannot be read" in told, told
    told = call("dic3l", "pretrain", corpus, "--out", tmp_path / "run", code=1)
    assert "tiles.parquet: cannot be read" in told


def test_strict_ends_with_3_and_the_corpus_is_there_all_the_same(tmp_path: Path):
    write_raster(tmp_path / "in" / "a_VV.tif", 10 * np.log10(speckled_power((128, 128), 4, 0)))
    (tmp_path / "in" / "b_VV.tif").write_text("no raster")
    arguments = ["build", tmp_path / "in", "--out", tmp_path / "corpus", "--tile-size", 64, "--workers", 0]
    call("sarsense", *arguments, "--strict", code=3)
    assert (tmp_path / "corpus" / "corpus.json").is_file()


@pytest.mark.parametrize("program", ["sarsense", "dic3l"])
def test_help_and_version_import_nothing_heavy(program: str):
    heavy = {"torch", "torchvision", "dask", "distributed", "rasterio", "webdataset", "numpy", "pyarrow"}
    for arguments in (["--help"], ["--version"]):
        code = (
            f"import sys, cli; sys.argv = ['{program}', *{arguments}]\n"
            f"try: cli.run_{program}()\n"
            f"except SystemExit as end: assert not end.code\n"
            f"print('IMPORTED', sorted({heavy} & set(sys.modules)))"
        )
        assert b"IMPORTED []" in subprocess.check_output([sys.executable, "-c", code])
