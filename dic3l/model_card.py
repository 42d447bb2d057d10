"""The card of exported weights: Markdown with the front matter that the Hugging Face hub reads.

Written from the note of the export, the settings of the run and, where given, the scores that `dic3l evaluate` wrote:
no number in it was typed by a hand. What nobody knows here, as the licence of the data, is asked for, not invented.
"""

from __future__ import annotations

import hashlib
import json
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from dic3l.errors import Dic3lError
from dic3l.evaluate.tables import markdown

_METRICS = {"miou": "mIoU", "accuracy": "OA", "kappa": "kappa", "mean_f1": "mean F1"}
"""of a row of evaluation.json, mean and deviation over seeds -> their names in the front matter"""

_OF_PIXEL_VALUES = ("/uncalibrated", "/display")
"""quantities of groups of a corpus that are no backscatter"""


@dataclass(frozen=True)
class ScoreTable:
    """What an evaluation found."""

    source: str
    """name of the file, and the first digits of its SHA-256"""
    text: str
    """tables and protocol of all rows, Markdown"""
    own: tuple[dict[str, Any], ...]
    """rows of the exported encoder: a probe and a share of the labels each"""


def read_scores(path: Path, evaluated: Sequence[Path]) -> ScoreTable:
    """Scores of evaluation.json, of `dic3l evaluate` or of a task of `dic3l compare`. `evaluated`: under which of these
    places the encoder may be a row of it.

    Dic3lError where the file is none, or has no row of the encoder: a card must not show the scores of another.
    """
    try:
        content = path.read_bytes()
        result = json.loads(content)
        text = markdown(result)
        names = [str(row["name"]) for row in result["rows"]]
        own = tuple(row for row in result["rows"] if _is_of(row["name"], path, evaluated))
    except OSError as error:
        raise Dic3lError(f"--scores {path}: cannot be read: {error.strerror or error}") from error
    except (ValueError, KeyError, TypeError, IndexError) as error:
        raise Dic3lError(
            f"--scores {path}: evaluation.json of `dic3l evaluate` expected, something else found ({error!r})"
        ) from error
    if not own:
        raise Dic3lError(
            f"--scores {path}: a row of {evaluated[0].resolve()} expected, rows of {'; '.join(dict.fromkeys(names))} "
            "found; evaluate this run or its exported file"
        )
    return ScoreTable(f"{path.name}, SHA-256 {hashlib.sha256(content).hexdigest()[:12]}", text.strip(), own)


def _is_of(name: str, scores: Path, evaluated: Sequence[Path]) -> bool:
    """Whether a row is of one of these places: 'arch, weights', or a method of `dic3l compare`, whose OUT/scores/TASK
    has the scores of OUT/runs/METHOD-SEED. '{seed}' stands for a number."""
    _, comma, weights = name.partition(", ")
    tasks = scores.resolve().parent.parent
    if not comma and tasks.name != "scores":
        return False
    place = Path(weights).resolve() if comma else tasks.parent / "runs" / f"{name}-{{seed}}"
    pattern = re.escape(str(place)).replace(re.escape("{seed}"), r"\d+")
    return any(re.fullmatch(pattern, str(one.resolve())) for one in evaluated)


def _of_several(name: str) -> bool:
    """Whether a row of the encoder, as `_is_of` found it, is of runs of several seeds."""
    return "{seed}" in name or ", " not in name


def model_card(note: Mapping[str, Any], file: str, parameters: int, settings: str, scores: ScoreTable | None) -> str:
    """The Markdown of a card.

    note: of `dic3l.export`; file: name of the weights; parameters: how many numbers they learned; settings: of the run,
    as TOML.
    """
    sections = [
        _head(note, file, scores),
        _what(note, file, parameters),
        _input(note),
        _training(note, settings),
        _scores(scores),
        _licence(),
    ]
    return "\n\n".join(sections) + "\n"


# ---------------------------------------------------------------------------------------------------------- sections


def _head(note: Mapping[str, Any], file: str, scores: ScoreTable | None) -> str:
    """YAML between lines of dashes. Values are JSON, which is YAML, so that no text is read as anything else."""
    corpus = note["corpus"]
    tags = ["sar", "remote-sensing", "self-supervised-learning", note["method"], note["arch"]]
    fields: dict[str, Any] = {
        "license": "other",
        "license_name": "apache-2.0-code-data-see-corpus",
        "pipeline_tag": "image-feature-extraction",
        "tags": [*tags, Path(file).suffix.removeprefix(".")],
        "corpus": {name: corpus[name] for name in ("name", "version", "digest")},
    }
    if scores is not None:
        fields["model-index"] = [
            {"name": Path(file).stem, "results": [_result(row, scores.source) for row in scores.own]}
        ]
    return "\n".join(
        ["---", *(f"{name}: {json.dumps(value, ensure_ascii=False)}" for name, value in fields.items()), "---"]
    )


def _result(row: Mapping[str, Any], source: str) -> dict[str, Any]:
    metrics = [
        {"type": key, "name": name, "value": row[key]["mean"]}
        for key, name in _METRICS.items()
        if row[key]["mean"] is not None
    ]
    return {
        "task": {"type": "image-segmentation", "name": f"{row['probe']}, {row['fraction']:g} % of the labels"},
        "dataset": {"type": "evaluation", "name": source},
        "metrics": metrics,
    }


def _what(note: Mapping[str, Any], file: str, parameters: int) -> str:
    corpus = note["corpus"]
    facts = [
        ("network", f"torchvision {note['arch']} without its classifier, {parameters:,} parameters"),
        ("file", f"`{file}`: {note['weights']}"),
        ("channels of the first convolution", note["channels"]),
        ("pooled features", note["features"]),
        ("digest of the weights", f"`{note['digest']}`"),
        ("corpus", f"{corpus['name']} {corpus['version']}"),
        ("digest of the corpus", f"`{corpus['digest']}`"),
        ("steps", f"{note['steps']:,}"),
        ("tiles seen", f"{note['tiles_seen']:,}"),
        ("began from", note["initial_weights"]),
    ]
    rows = "\n".join(f"| {name} | {value} |" for name, value in facts)
    return (
        f"# {note['arch']}, pre-trained on {corpus['name']}\n\n"
        f"An encoder of synthetic-aperture radar images, pre-trained without labels by `dic3l pretrain --method "
        f"{note['method']}` with the settings below.\n\n"
        f"| | |\n| --- | --- |\n{rows}\n\n"
        "How to load it in torchvision, timm, segmentation_models.pytorch, torch.hub, ONNX Runtime: docs/weights.md of "
        f"the code. The same facts for machines: `{Path(file).with_suffix('.json').name}`."
    )


def _input(note: Mapping[str, Any]) -> str:
    groups = note["corpus"]["groups"]
    lines = [
        "## Input",
        "",
        f"Backscatter in decibels as codes: 0 is no data, 1 to 255 are equal steps. The network gets {note['input']}; "
        f"mean {note['mean']}, std {note['std']}. It was trained on crops of {note['crop_size']} pixels a side, "
        "resampled.",
    ]
    if note["weights"].startswith("ONNX"):
        lines += ["", "This file takes codes as they are, one channel, and does that itself."]
    if ranges := {name: bounds for name, bounds in groups.items() if bounds.get("lo_db") is not None}:
        lines += [
            "",
            "dB of codes 1 and 255 by sensor, mode, polarisation and quantity, speckle's bias taken off (left in of "
            "fixed ranges, -30 to 5 and, cross-polarised, -35 to 0):",
            "",
            "| group | lowest dB | highest dB |",
            "| --- | ---: | ---: |",
            *(f"| {name} | {bounds['lo_db']:.2f} | {bounds['hi_db']:.2f} |" for name, bounds in sorted(ranges.items())),
        ]
    elif groups:
        lines += ["", "Each scene of the corpus has a dB range of its own, measured on it."]
    if any(name.endswith(_OF_PIXEL_VALUES) for name in groups):
        lines += ["", "Of `uncalibrated` and `display` (8-bit pictures), dB are those of pixel values, 20 log10."]
    return "\n".join(lines)


def _training(note: Mapping[str, Any], settings: str) -> str:
    def told(versions: Mapping[str, str]) -> str:
        return ", ".join(f"{name} {version}" for name, version in sorted(versions.items()))

    return (
        "## Training\n\n"
        f"Trained with {told(note['trained_with'])}; exported with {told(note['exported_with'])}. All settings:\n\n"
        f"```toml\n{settings.strip()}\n```"
    )


def _scores(scores: ScoreTable | None) -> str:
    if scores is None:
        return (
            "## Scores\n\nNone were given to the export. `dic3l evaluate` measures them, `dic3l export --scores` puts "
            "them here."
        )
    names = list(dict.fromkeys(row["name"] for row in scores.own))
    several = ", the mean over runs of several seeds, of which this is one" if any(map(_of_several, names)) else ""
    return f"## Scores\n\nOf {scores.source}. This encoder: {', '.join(names)}{several}.\n\n{scores.text}"


def _licence() -> str:
    return (
        "## Licence\n\n"
        "The code that made these weights: Apache-2.0. Of the data: see the corpus; whoever publishes the weights says "
        "whose scenes they are made of and on which terms."
    )
