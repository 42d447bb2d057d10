"""Tallies of several seeds -> rows of scores with their spread; rows -> Markdown and LaTeX.

A result is plain JSON values: what is read from evaluation.json makes the same tables. Scores are in 0..1 there and in
per cent in tables.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from dic3l.evaluate.metrics import BOUNDARY_TOLERANCE, RELAXATION, NearScores, Scores, Tally, mean, near_scores, scores

LINES = ("road", "roads")
"""classes of thin lines: tables show their relaxed F1"""
_CAPTION = (
    "Per cent, mean ± standard deviation over seeds. Seeds differ in their split, so scores of one seed hang together: "
    "judge features by 'over random', the difference in mIoU to the random network, seed by seed."
)
_OFFICIAL_CAPTION = (
    "Per cent, mean ± standard deviation over seeds, which share the data's own split. 'Over random': the difference "
    "in mIoU to the random network, seed by seed."
)


@dataclass
class Row:
    """What came of one contender, probe and fraction."""

    name: str
    probe: str
    fraction: float
    """per cent of the train places whose labels are used"""
    tallies: list[Tally] = field(default_factory=list)
    """by seed"""
    knn: list[Tally] = field(default_factory=list)
    """of kNN on the same features, by seed; empty: not asked"""
    penalties: list[float] = field(default_factory=list)
    losses: list[float] = field(default_factory=list)
    features: int | None = None


def summary(row: Row, classes: Sequence[str], random: Row | None) -> dict[str, Any]:
    """A row of a result; `gain` is its mIoU less that of `random`, seed by seed."""
    of_seeds = [scores(tally.confusion) for tally in row.tallies]
    boundary = [near_scores(tally.boundary) for tally in row.tallies]
    relaxed = [near_scores(tally.relaxed) for tally in row.tallies]
    of_random = [] if random is None else [scores(tally.confusion).miou for tally in random.tallies]
    gains = [one.miou - other for one, other in zip(of_seeds, of_random, strict=True)] if of_random else []

    def spread(value: Callable[[Scores], float]) -> dict[str, Any]:
        return spread_of([value(one) for one in of_seeds])

    def near(found: list[NearScores], index: int) -> dict[str, Any]:
        return {
            key: spread_of([float(getattr(one, key)[index]) for one in found]) for key in ("precision", "recall", "f1")
        }

    return finite(
        {
            "name": row.name,
            "probe": row.probe,
            "fraction": row.fraction,
            "features": row.features,
            "miou": spread(lambda s: s.miou),
            "gain": spread_of(gains),
            "knn_miou": spread_of([scores(tally.confusion).miou for tally in row.knn]),
            "accuracy": spread(lambda s: s.accuracy),
            "kappa": spread(lambda s: s.kappa),
            "mean_f1": spread(lambda s: s.mean_f1),
            "boundary_f1": spread_of([mean(one.f1) for one in boundary]),
            "classes": {
                name: {
                    "iou": spread(lambda s, i=index: s.iou[i]),
                    "f1": spread(lambda s, i=index: s.f1[i]),
                    "precision": spread(lambda s, i=index: s.precision[i]),
                    "recall": spread(lambda s, i=index: s.recall[i]),
                    "boundary": near(boundary, index),
                    "relaxed": near(relaxed, index),
                }
                for index, name in enumerate(classes)
            },
            "penalties": row.penalties,
            "losses": row.losses,
            "confusion": [tally.confusion.tolist() for tally in row.tallies],
            "boundary": [tally.boundary.tolist() for tally in row.tallies],
            "relaxed": [tally.relaxed.tolist() for tally in row.tallies],
        }
    )


def spread_of(values: Sequence[float]) -> dict[str, Any]:
    """Mean and standard deviation (over n - 1) of the values that are numbers; None where there are too few."""
    known = np.array([value for value in values if math.isfinite(value)])
    return {
        "mean": float(known.mean()) if known.size else None,
        "std": float(known.std(ddof=1)) if known.size > 1 else None,
        "values": list(values),
    }


def finite(value: Any) -> Any:
    """NaN as null: JSON has no NaN."""
    if isinstance(value, dict):
        return {key: finite(item) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [finite(item) for item in value]
    return None if isinstance(value, float) and not math.isfinite(value) else value


# --------------------------------------------------------------------------------------------------- the tables


@dataclass(frozen=True)
class _Table:
    title: str
    heads: list[str]
    cells: list[list[str]]
    words: int
    """columns at the left that hold words, not numbers"""


def markdown(result: dict[str, Any]) -> str:
    """The tables of a result, best read by eye."""
    lines: list[str] = []
    for table in _tables(result):
        rule = "|" + " --- |" * table.words + " ---: |" * (len(table.heads) - table.words)
        lines += [
            *([f"**{table.title}**", ""] if table.title else []),
            _md_row(table.heads),
            rule,
            *(_md_row(cells) for cells in table.cells),
            "",
        ]
    notes = [f"- {text}" for text in _notes(result)]
    return "\n".join([*lines, _caption(result), "", *notes, ""])


def latex(result: dict[str, Any]) -> str:
    """The same for a paper: tabulars with the rules of booktabs, notes below. In: `\\input{evaluation.tex}`."""
    lines = ["% made by dic3l evaluate; needs \\usepackage{booktabs}"]
    for table in _tables(result):
        columns = "l" * table.words + "r" * (len(table.heads) - table.words)
        caption = escaped(f"{table.title or 'Scores'}. {_caption(result)}")
        lines += [f"\\begin{{table}}\n\\centering\n\\caption{{{caption}}}"]
        lines += [f"\\begin{{tabular}}{{{columns}}}\n\\toprule", _tex_row(table.heads), "\\midrule"]
        lines += [_tex_row(cells) for cells in table.cells]
        lines += ["\\bottomrule\n\\end{tabular}\n\\end{table}"]
    notes = [f"\\item {escaped(text)}" for text in _notes(result)]
    return "\n".join([*lines, "\\begin{itemize}\\footnotesize", *notes, "\\end{itemize}", ""])


_ESCAPES = {
    "\\": "\\textbackslash{}",
    "~": "\\textasciitilde{}",
    "^": "\\textasciicircum{}",
    "±": "$\\pm$",
    "ρ": "$\\rho$",
}
_ESCAPES |= {sign: f"\\{sign}" for sign in "&%$#_{}"} | {"<": "$<$", ">": "$>$", "|": "$|$"}
_ESCAPES |= {sign: f"{{{sign}}}" for sign in "[*"}  # at the beginning of a row or note they would be LaTeX's own


def escaped(text: str) -> str:
    """Text as LaTeX would print it."""
    return "".join(_ESCAPES.get(letter, letter) for letter in text)


def _md_row(cells: Sequence[str]) -> str:
    return "| " + " | ".join(cell.replace("|", "\\|") for cell in cells) + " |"


def _tex_row(cells: Sequence[str]) -> str:
    return " & ".join(escaped(cell) for cell in cells) + " \\\\"


def _tables(result: dict[str, Any]) -> list[_Table]:
    rows, classes = result["rows"], result["classes"]
    words = {"features": lambda row: row["name"]}
    if len({row["probe"] for row in rows}) > 2 or result["protocol"].get("finetune"):
        words["probe"] = lambda row: row["probe"]
    if len({row["fraction"] for row in rows}) > 1:
        words["labels"] = lambda row: f"{row['fraction']:g} %"
    named = [[word(row) for word in words.values()] for row in rows]

    means = {"miou": "mIoU", "gain": "over random", "knn_miou": "kNN mIoU", "accuracy": "OA", "kappa": "kappa"}
    means |= {"mean_f1": "mean F1", "boundary_f1": "boundary F1"}
    for key in ("knn_miou", "boundary_f1"):
        if all(row[key]["mean"] is None for row in rows):
            del means[key]
    heads, cells = list(means.values()), [[cell(row[key]) for key in means] for row in rows]
    for line in [name for name in classes if name.lower() in LINES]:
        if any(row["classes"][line]["relaxed"]["f1"]["mean"] is not None for row in rows):
            heads.append(f"relaxed F1 {line}")
            cells = [[*of, cell(row["classes"][line]["relaxed"]["f1"])] for of, row in zip(cells, rows, strict=True)]

    def table(title: str, heads: list[str], cells: list[list[str]]) -> _Table:
        return _Table(title, [*words, *heads], [a + b for a, b in zip(named, cells, strict=True)], len(words))

    tables = [table("", heads, cells)]
    for key, title in (("iou", "IoU"), ("f1", "F1")):
        by_class = [[cell(row["classes"][name][key]) for name in classes] for row in rows]
        tables.append(table(f"{title} by class", [f"{title} {name}" for name in classes], by_class))
    return tables


def cell(value: Mapping[str, Any]) -> str:
    """A spread in per cent: mean ± standard deviation."""
    if value["mean"] is None:
        return "-"
    return f"{100 * value['mean']:.2f}" + ("" if value["std"] is None else f" ± {100 * value['std']:.2f}")


def _caption(result: dict[str, Any]) -> str:
    return _OFFICIAL_CAPTION if result["protocol"].get("official_split") else _CAPTION


def _notes(result: dict[str, Any]) -> list[str]:
    notes = list(result["protocol"]["notes"])
    if any(row["boundary_f1"]["mean"] is not None for row in result["rows"]):
        notes.append(
            f"boundary F1 (Csurka et al., 2013): a pixel with one of four neighbours of another class is found where "
            f"the other map has one of its class within {BOUNDARY_TOLERANCE:g} px; counts pooled over the test set, "
            "then by class, mean over classes as above; the frame of an image and ignored pixels make no boundary"
        )
        if any(name.lower() in LINES for name in result["classes"]):
            notes.append(
                f"relaxed F1 (Mnih, 2013): precision and recall of pixels within ρ = {RELAXATION:g} px, counts pooled"
            )
    return notes
