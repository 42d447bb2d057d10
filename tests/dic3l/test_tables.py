"""Rows of scores with their spread, and the tables that are made of them."""

from __future__ import annotations

import json
import re
import shutil
import subprocess
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from dic3l.evaluate.metrics import Tally, empty_tally, map_tally, near_scores, pixel_tally, scores
from dic3l.evaluate.tables import Row, escaped, latex, markdown, spread_of, summary

CLASSES = ["other", "road_{5%}"]


def _tally(seed: int, wrong: float) -> Tally:
    rng = np.random.default_rng(seed)
    truth = rng.integers(0, 2, (6, 6)).repeat(8, 0).repeat(8, 1).astype(np.uint8)
    return map_tally(truth, np.where(rng.random(truth.shape) < wrong, 1 - truth, truth), 2)


def _result(classes: list[str] = CLASSES, fractions: tuple[float, ...] = (100.0,)) -> dict[str, Any]:
    rows = []
    for fraction in fractions:
        random = Row("resnet18, random", "unet", fraction, [_tally(0, 0.3), _tally(1, 0.25)])
        better = Row("ours | best", "unet", fraction, [_tally(0, 0.1), _tally(1, 0.15)])
        rows += [summary(row, classes, random) for row in (random, better)]
    return {
        "protocol": {"notes": ["6 places; 30 % & more"], "finetune": False},
        "classes": classes,
        "rows": rows,
    }


def _cells(table: str) -> list[list[str]]:
    return [[cell.strip() for cell in line.strip("|").split(" | ")] for line in table.splitlines() if "|" in line]


def test_a_row_holds_mean_and_spread_of_what_its_tallies_say() -> None:
    tallies, zero = [_tally(seed, 0.1) for seed in range(3)], [_tally(seed, 0.4) for seed in range(3)]
    found = summary(Row("x", "unet", 10.0, tallies, zero), CLASSES, Row("zero", "unet", 10.0, zero))
    miou = [scores(tally.confusion).miou for tally in tallies]
    assert found["miou"] == {"mean": np.mean(miou), "std": pytest.approx(np.std(miou, ddof=1)), "values": miou}
    gains = [a - scores(b.confusion).miou for a, b in zip(miou, zero, strict=True)]
    assert found["gain"]["values"] == pytest.approx(gains)
    assert found["knn_miou"]["values"] == [scores(tally.confusion).miou for tally in zero]
    road = found["classes"]["road_{5%}"]
    assert road["boundary"]["f1"]["values"] == [near_scores(tally.boundary).f1[1] for tally in tallies]
    assert road["relaxed"]["recall"]["values"] == [near_scores(tally.relaxed).recall[1] for tally in tallies]
    assert found["confusion"] == [tally.confusion.tolist() for tally in tallies]
    assert json.loads(json.dumps(found, allow_nan=False)) == found


def test_spread_leaves_out_what_is_no_number() -> None:
    assert spread_of([0.25, float("nan"), 0.75])["mean"] == 0.5
    assert spread_of([0.25])["std"] is None
    assert spread_of([]) == {"mean": None, "std": None, "values": []}


def test_markdown_shows_the_numbers_in_per_cent_and_every_note() -> None:
    result = _result()
    text = markdown(result)
    heads, _, random, ours = _cells(text)[:4]
    assert heads[:5] == ["features", "mIoU", "over random", "OA", "kappa"]
    assert random[2] == "0.00 ± 0.00"
    ours_miou = result["rows"][1]["miou"]
    assert ours[1] == f"{100 * ours_miou['mean']:.2f} ± {100 * ours_miou['std']:.2f}"
    assert text.count("ours \\| best") == 3 and "**IoU by class**" in text and "- 6 places; 30 % & more" in text
    assert "within 3 px" in text


def test_a_bar_in_the_name_of_a_class_makes_no_column() -> None:
    table = markdown(_result(["wet|dry", "road"])).split("**IoU by class**")[1].splitlines()
    assert table[2] == "| features | IoU wet\\|dry | IoU road |"


def test_columns_that_nobody_has_are_left_out_and_those_that_differ_are_shown() -> None:
    text = markdown(_result(["other", "Road"], (1.0, 100.0)))
    heads, _, first, *_ = _cells(text)
    assert heads[:2] == ["features", "labels"] and first[1] == "1 %" and heads[-1] == "relaxed F1 Road"
    assert "kNN" not in text and "boundary F1" in heads and "ρ = 3 px" in text
    tiles = Row("t", "linear", 100.0, [pixel_tally(np.array([0, 1, 1]), np.array([0, 1, 0]), 2)])
    flat = {"protocol": {"notes": []}, "classes": ["a", "road"], "rows": [summary(tiles, ["a", "road"], None)]}
    assert "boundary" not in markdown(flat) and "relaxed" not in markdown(flat)
    assert _cells(markdown(flat))[2][2] == "-"  # over random: there is none


def test_latex_is_escaped_and_its_rows_are_as_wide_as_its_columns() -> None:
    text = latex(_result())
    assert "road\\_\\{5\\%\\}" in text and "30 \\% \\& more" in text and "$\\pm$" in text and "±" not in text
    for columns, body in re.findall(r"\\begin\{tabular\}\{([lr]+)\}(.*?)\\end\{tabular\}", text, re.DOTALL):
        rows = [line for line in body.splitlines() if line.endswith("\\\\")]
        assert len(rows) == 3
        assert {len(re.findall(r"(?<!\\)&", row)) + 1 for row in rows} == {len(columns)}
    assert escaped("[a]*") == "{[}a]{*}"  # `\\\\` takes a star and what is in brackets after it, on the next line too
    assert escaped("a\\b~^") == "a\\textbackslash{}b\\textasciitilde{}\\textasciicircum{}"


@pytest.mark.skipif(shutil.which("pdflatex") is None, reason="pdflatex is not here")
def test_latex_compiles(tmp_path: Path) -> None:
    head = "\\documentclass{article}\\usepackage[utf8]{inputenc}\\usepackage{booktabs}\\begin{document}"
    (tmp_path / "x.tex").write_text(f"{head}\n{latex(_result())}\n\\end{{document}}\n")
    subprocess.run(["pdflatex", "-halt-on-error", "x.tex"], cwd=tmp_path, check=True, capture_output=True)


def test_a_tally_of_nothing_is_no_score() -> None:
    found = summary(Row("x", "knn", 100.0, [empty_tally(2)]), CLASSES, None)
    assert found["miou"]["mean"] is None and found["boundary_f1"]["mean"] is None and found["gain"]["mean"] is None
