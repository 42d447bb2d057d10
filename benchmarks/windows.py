"""Memory that `dic3l predict` takes for a window of its default size, over that of the imports.

    python -m benchmarks.windows

Random weights; a process each.
"""

from __future__ import annotations

import subprocess
import sys

ROWS = (
    ("segment-linear", "resnet18", 2, 1056),
    ("unet", "resnet18", 1, 1536),
    ("unet", "resnet18", 2, 1248),
    ("unet", "resnet50", 2, 1248),
    ("fcn", "resnet18", 2, 1056),
    ("pspnet", "resnet18", 2, 512),
    ("danet", "resnet18", 2, 512),
    ("upernet", "resnet18", 2, 512),
)
"""probe, network, images of a place, and the side of the window that is the default then (docs/predict.md)"""
PROGRAM = """
import sys
from pathlib import Path
import numpy as np, torch
from dic3l.evaluate.backbone import random_backbone
from dic3l.evaluate.segmenter import make_segmenter, segment
def peak():
    lines = Path("/proc/self/status").read_text().splitlines()
    return next(int(line.split()[1]) for line in lines if line.startswith("VmHWM")) / 2**20
kind, arch, images, side = sys.argv[1], sys.argv[2], int(sys.argv[3]), int(sys.argv[4])
segmenter = make_segmenter(kind, random_backbone(arch, 0), images, "concat", 5, 0)
before = peak()
with torch.inference_mode():
    segment(segmenter, np.ones((images, side, side), np.uint8), torch.device("cpu"))
print(peak() - before)
"""


def main() -> None:
    print("| segmenter | images | window | GiB |\n| --- | ---: | ---: | ---: |")
    for kind, arch, images, side in ROWS:
        command = [sys.executable, "-c", PROGRAM, kind, arch, str(images), str(side)]
        found = subprocess.run(command, check=True, capture_output=True, text=True).stdout
        print(f"| {kind}, {arch} | {images} | {side} | {float(found):.2f} |", flush=True)


if __name__ == "__main__":
    main()
