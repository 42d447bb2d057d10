"""Commands that look into a corpus of 460,532 tiles: seconds and peak memory of each, as a user runs it.

    python -m benchmarks.inspection [FOLDER]      # of a corpus that `benchmarks.big_table` made; default: made anew

Each command is a process of its own, files in the page cache; the best of three, interleaved, so that a busy moment
hits all alike. Memory is the largest resident set of the three.
"""

from __future__ import annotations

import json
import os
import platform
import subprocess
import sys
from importlib.metadata import version
from pathlib import Path
from tempfile import TemporaryDirectory

from benchmarks.big_table import make
from sarsense.corpus import open_corpus

REPETITIONS = 3
BARS = {"ls --where": (3.0, 500), "stats": (3.0, 500), "map": (3.0, 500), "show": (2.0, None)}
"""seconds, MiB: what the command may take, of those that have a bar"""


def commands(corpus: Path, scratch: Path) -> dict[str, list[str]]:
    where = ["--where", "sensor = 'S1' and enl < 4"]
    key = open_corpus(corpus).tiles(columns=["key"])["key"][460].as_py()
    return {
        "ls --where": ["ls", str(corpus), *where],
        "ls --sort": ["ls", str(corpus), "--sort", "-std_db"],
        "get": ["get", str(corpus), key, "-o", str(scratch / "tile.tif")],
        "stats": ["stats", str(corpus)],
        "stats --by": ["stats", str(corpus), "--by", "sensor,month", *where],
        "show": ["show", str(corpus), "--count", "64", "--columns", "8", "-o", str(scratch / "sheet.png")],
        "map": ["map", str(corpus), "-o", str(scratch / "map.html")],
        "map --where": ["map", str(corpus), "-o", str(scratch / "part.html"), "--color", "enl", *where],
    }


_RUN = """
import json, resource, subprocess, sys, time
start = time.perf_counter()
done = subprocess.run(sys.argv[1:], stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, text=True)
wall, used = time.perf_counter() - start, resource.getrusage(resource.RUSAGE_CHILDREN)
print(json.dumps([done.returncode, done.stderr, wall, used.ru_utime + used.ru_stime, used.ru_maxrss / 2**10]))
"""
"""a small process between: what a child of a large one has at its start counts into its peak"""


def measure(command: list[str]) -> tuple[float, float, float]:
    """Wall seconds, seconds of the processor and MiB of one run; CalledProcessError where it fails."""
    whole = [sys.executable, "-m", "sarsense", "shards", *command]
    told = subprocess.run([sys.executable, "-c", _RUN, *whole], check=True, stdout=subprocess.PIPE, text=True).stdout
    code, error, *measured = json.loads(told)
    if code:
        raise subprocess.CalledProcessError(code, whole, stderr=error)
    return tuple(measured)


def main(arguments: list[str]) -> None:
    with TemporaryDirectory() as folder:
        scratch = Path(folder)
        corpus = Path(arguments[0]) if arguments else make(scratch / "corpus")
        ways = commands(corpus, scratch)
        found: dict[str, list[tuple[float, float, float]]] = {name: [] for name in ways}
        for _ in range(REPETITIONS):
            for name, command in ways.items():
                found[name].append(measure(command))
        tiles = sum(open_corpus(corpus).manifest["splits"].values())
        page = (scratch / "map.html").stat().st_size / 2**20
        versions = ", ".join(f"{name} {version(name)}" for name in ("duckdb", "pyarrow", "numpy"))
        load = os.getloadavg()[0]
        print(
            f"\n# benchmarks.inspection: {os.cpu_count()} cores, load {load:.1f}, Python {platform.python_version()}, ",
            end="",
        )
        print(f"{versions}; {tiles:,} tiles\n")
        print("| sarsense shards | s | CPU s | peak, MiB | bar |\n| --- | ---: | ---: | ---: | --- |")
        for name, runs in found.items():
            wall, processor, memory = (
                min(run[0] for run in runs),
                min(run[1] for run in runs),
                max(run[2] for run in runs),
            )
            bar = ""
            if name in BARS:
                seconds, mebibytes = BARS[name]
                met = wall < seconds and (mebibytes is None or memory < mebibytes)
                limit = "" if mebibytes is None else f", {mebibytes} MiB"
                bar = f"{seconds:g} s{limit}: {'met' if met else 'MISSED'}"
            print(f"| {name} | {wall:.2f} | {processor:.2f} | {memory:.0f} | {bar} |")
        print(f"\nthe page of `map`: {page:.1f} MiB")


if __name__ == "__main__":
    main(sys.argv[1:])
