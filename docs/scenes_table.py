"""A table of what a build made of each folder of its sources: `python docs/scenes_table.py CORPUS` (Markdown)."""

import sys
from collections import defaultdict
from collections.abc import Iterable
from pathlib import PurePosixPath

from sarsense.corpus import open_corpus


def main(corpus: str) -> None:
    folders = defaultdict(list)
    for row in open_corpus(corpus).scenes.to_pylist():
        if row["status"] != "sidecar":
            what = tuple(row["quantities"] or ()), row["product"], row["status"]
            key = (
                PurePosixPath(row["path"]).parts[0],
                row["reason"].partition(":")[0] if row["status"] == "refused" else what,
            )
            folders[key].append(row)
    print("| folder | files | product | unit | quantity | mean dB | looks | geometry |")
    print("| --- | ---: | --- | --- | --- | ---: | ---: | --- |")
    for (folder, _), rows in sorted(folders.items(), key=lambda item: (item[0][0], str(item[0][1]))):
        first = rows[0]
        if first["status"] == "refused":
            name = PurePosixPath(first["path"]).name
            print(f"| {folder} | {len(rows)} | refused, as {name}: {first['reason']} | | | | | |")
            continue
        by_pol = defaultdict(list)
        for row in rows:
            for pol, mean, enl in zip(row["polarisations"], row["mean_db"] or (), row["enl"] or (), strict=False):
                by_pol[pol].append((mean, enl))
        means = ", ".join(f"{p} {_range(v[0] for v in values)}" for p, values in sorted(by_pol.items()))
        looks = ", ".join(_range(v[1] for v in values if v[1]) or "-" for _, values in sorted(by_pol.items()))
        units = ", ".join(sorted({unit for row in rows for unit in row["units"]}))
        quantities = ", ".join(sorted({q for row in rows for q in row["quantities"]}))
        status = "" if first["status"] == "used" else f" ({first['status']})"
        print(
            f"| {folder} | {len(rows)} | {first['product']}{status} | {units} | {quantities} | {means} | {looks} "
            f"| {first['geometry']} |"
        )


def _range(values: Iterable[float]) -> str:
    found = sorted(values)
    if not found:
        return ""
    low, high = f"{found[0]:.1f}", f"{found[-1]:.1f}"
    return low if low == high else f"{low} to {high}"


main(sys.argv[1])
