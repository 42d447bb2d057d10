"""What each part of DIC3L, and each change of preset `sarsense`, brings at small scale.

    python -m benchmarks.ablation OUT            an hour on two idle cores: three tables, 3 seeds
    python -m benchmarks.ablation OUT --quick    eight minutes on two cores: one seed, a few steps

ResNet-18 from random weights. Every run of a data set sees the same tiles in the same number of steps; a seed sets the
weights, the order, the views and the split of the probe. The first two tables, of simulated and of real tiles, compare
the parts of the method, and preset `sarsense`; the third, of simulated tiles, adds one change of the preset after the
other to the published settings. Interrupted, the same command goes on: runs
that are finished are not run again. Tables: OUT/ablation.md. The simulated scenes of the probe are those of the
pre-training (their labels are not); real: OMBRIA, places of the probe split in blocks, 8-bit pictures of unknown looks,
on which the views that know speckle do nothing.
"""

from __future__ import annotations

import argparse
import json
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from dic3l.config import PRESETS, resolve
from dic3l.evaluate.tables import cell
from pipelines.build import build
from pipelines.evaluate import evaluate
from pipelines.pretrain import pretrain
from pipelines.tasks import BuildConfig
from sarsense.simulate import simulate

REAL = Path(__file__).resolve().parents[2] / "shared" / "data" / "ombria-flood"
SCALE: dict[str, Any] = {
    # what small views and short runs need, the same for all rows (docs/state.md: published views teach nothing so soon)
    "method.arch": "resnet18",
    "method.weights": "random",
    "method.hidden_dim": 512,
    "method.bn_groups": 4,
    "views.crop_size": 96,
    "views.area": (0.4, 1.0),
    "views.brightness": 0.2,
    "views.contrast": 0.2,
    "boxes.min_side": 24.0,
    "optim.lr": 0.06,
    "train.batch_size": 64,
    "train.log_every": 25,
    "train.checkpoint_every": 1000,
    "train.probe_tiles": 0,
}
OURS = {name: value for name, value in PRESETS["sarsense"].items() if name not in PRESETS["paper"]}
STEPS: list[tuple[str, tuple[str, ...]]] = [
    ("+ single stem", ("method.stem",)),
    ("+ views that know speckle", tuple(name for name in OURS if name.startswith("speckle."))),
    ("+ vertical flip", ("views.vertical_flip_probability",)),
    ("+ shorter queue, faster keys", ("method.queue_share", "method.momentum_span")),
    ("+ contours on edges", ("method.contour", "method.contour_stage")),
    ("+ averaged key norm", ("method.key_norm",)),
    ("+ no decay of vectors", ("optim.decay_vectors",)),
    ("+ warm-up (= sarsense)", ("optim.warmup_steps",)),
]
_LARS = {"optim.optimiser": "lars", "optim.lr": 4.0}


@dataclass(frozen=True)
class DataSet:
    name: str
    corpus: Path
    labels: Path
    layout: str
    rows: dict[str, dict[str, Any]]


def all_rows() -> dict[str, dict[str, Any]]:
    """Row -> what it changes in the published settings."""
    rows: dict[str, dict[str, Any]] = {
        "paper": {},
        "without DI": {"method.weight_instances": 0.0},
        "without CC": {"method.weight_contour": 0.0},
        "without both (MoCo v2)": {"method.weight_instances": 0.0, "method.weight_contour": 0.0},
    }
    changes: dict[str, Any] = {}
    for name, settings in STEPS:
        changes = changes | {setting: OURS[setting] for setting in settings}
        rows[name] = changes
    missing = OURS.keys() - changes.keys()
    if missing:
        raise SystemExit(f"no row for {', '.join(sorted(missing))}: add one to STEPS")
    return rows | {"sarsense, with LARS": changes | _LARS}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n\n")[0])
    parser.add_argument("out", type=Path)
    parser.add_argument("--quick", action="store_true")
    parser.add_argument("--steps", type=int, default=40)
    parser.add_argument("--seeds", type=int, default=3)
    chosen = parser.parse_args()
    steps, seeds = (4, 1) if chosen.quick else (chosen.steps, chosen.seeds)
    tables = []
    for data in data_sets(chosen.out, chosen.quick):
        weights = {}
        for name, changes in data.rows.items():
            slug = "".join(letter if letter.isalnum() else "-" for letter in name).strip("-")
            runs = str(data.corpus.parent / f"{slug}-{{seed}}")
            weights[runs] = name
            for seed in range(seeds):
                run = Path(runs.replace("{seed}", str(seed)))
                config = resolve("paper", options=SCALE | changes | {"train.steps": steps, "train.seed": seed})
                print(f"{data.name}: {name}, seed {seed}", flush=True)
                pretrain(data.corpus, run, config)
        result = evaluate(
            list(weights), data.labels, data.corpus.parent / f"scores-{len(data.rows)}", data.layout, "resnet18", seeds,
            corpus=data.corpus if data.layout == "folder" else None, pixels=5_000, progress=print,
        )  # fmt: skip
        tables.append(table(data, result, weights, steps, seeds))
        (chosen.out / "ablation.md").write_text("\n\n".join(tables) + "\n")
    print("\n\n".join(tables))


def data_sets(out: Path, quick: bool) -> list[DataSet]:
    """Corpora, built where they are not there yet."""
    rows = all_rows()
    parts = [*list(rows)[:4], STEPS[-1][0]]
    made = out / "simulated"
    if not (made / "truth.json").is_file():
        simulate(made, scenes=4 if quick else 14, size=1024, looks=4.0, seed=5)
    simulated = DataSet("simulated", made / "corpus", made, "folder", {name: rows[name] for name in parts})
    found = [simulated]
    build([str(made / "scenes")], simulated.corpus, BuildConfig(tile_size=128, content="both"), workers=0)
    if REAL.is_dir():
        real = out / "ombria" / "corpus"
        sources = [str(REAL / "**" / part) for part in ("BEFORE", "AFTER")]
        build(sources, real, BuildConfig(tile_size=256, val_share=0.0, allow_unplaced=True, content="both"), workers=0)
        found.append(DataSet("OMBRIA (real)", real, REAL, "ombria", simulated.rows))
    else:
        print(f"no real tiles: {REAL} is not there")
    changes = {name: value for name, value in rows.items() if name not in parts[1:4]}
    return [*found, replace(simulated, name="simulated, each change", rows=changes)]


def table(data: DataSet, result: dict[str, Any], weights: dict[str, str], steps: int, seeds: int) -> str:
    """Markdown: probes, and signs of health of the last line of each run."""
    lines = [
        f"### {data.name}: {steps} steps of 64 tiles, {seeds} seeds",
        "",
        "| row | linear probe mIoU | over random | kNN mIoU | feature_std | effective rank |",
        "| --- | ---: | ---: | ---: | ---: | ---: |",
    ]
    for row in result["rows"]:
        template = row["name"].partition(", ")[2]
        name = weights.get(template, "random weights" if template == "random" else row["name"])
        health = ["-", "-"]
        if template in weights:
            last = [last_line(Path(template.replace("{seed}", str(seed)))) for seed in range(seeds)]
            health = [f"{sum(line[key] for line in last) / seeds:.3g}" for key in ("feature_std", "effective_rank")]
        cells = [cell(row["miou"]), cell(row["gain"]), cell(row["knn_miou"]), *health]
        lines.append(f"| {name} | " + " | ".join(cells) + " |")
    return "\n".join(lines)


def last_line(run: Path) -> dict[str, Any]:
    return json.loads((run / "metrics.jsonl").read_text().splitlines()[-1])


if __name__ == "__main__":
    main()
