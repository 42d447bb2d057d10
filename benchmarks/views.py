"""Two views of a tile, against PIL and torchvision as published, and against copying the pixels.

    python -m benchmarks.views

On one core; and on a GPU where there is one, from tiles that are there already.
"""

from __future__ import annotations

import random

import cv2
import numpy as np
import torch
from PIL import Image, ImageFilter
from torchvision.transforms import v2

from benchmarks.timing import best_seconds, print_rates
from dic3l.config import ViewConfig
from dic3l.device_views import render_views, view_numbers
from dic3l.draws import tile_uniforms
from dic3l.views import DRAWS_PER_VIEW, blur_radius, draw_view, render

TILE, CROP, VIEWED, SLOWLY = 512, 448, 256, 32
CONFIG = ViewConfig(crop_size=CROP)


def _blurred(image: Image.Image) -> Image.Image:
    return image.filter(ImageFilter.GaussianBlur(random.uniform(0.1, 2)))


def published_transform(crop: int) -> v2.Compose:
    """Of the published code, which is that of MoCo v2: on three copies of the channel."""
    return v2.Compose(
        [
            v2.RandomResizedCrop(crop, (0.2, 1.0)),
            v2.RandomApply([v2.ColorJitter(0.4, 0.4, 0.4, 0.1)], 0.8),
            v2.RandomGrayscale(0.2),
            v2.RandomApply([v2.Lambda(_blurred)], 0.5),
            v2.RandomHorizontalFlip(),
            v2.PILToTensor(),
            v2.ToDtype(torch.float32, scale=True),
            v2.Normalize([0.485, 0.456, 0.406], [0.229, 0.224, 0.225]),
        ]
    )


def grey_transform(crop: int) -> v2.Compose:
    """What of it changes one channel."""
    kept = (v2.RandomResizedCrop, v2.RandomHorizontalFlip, v2.PILToTensor)
    jitter = v2.RandomApply([v2.ColorJitter(0.4, 0.4)], 0.8)
    blur = v2.RandomApply(
        [v2.Lambda(lambda image: image.filter(ImageFilter.GaussianBlur(random.uniform(0.1, 2))))], 0.5
    )
    crop_first, *rest = [step for step in published_transform(crop).transforms if isinstance(step, kept)]
    return v2.Compose([crop_first, jitter, blur, *rest])


def as_picture(tile: np.ndarray) -> Image.Image:
    return Image.merge("RGB", [Image.fromarray(tile)] * 3)


def main() -> None:
    cv2.setNumThreads(1)
    torch.set_num_threads(1)
    tiles = np.random.default_rng(0).gamma(4, 30, (VIEWED, 1, TILE, TILE)).clip(1, 255).astype(np.uint8)
    out = np.empty((VIEWED, 1, CROP, CROP), np.uint8)
    transform = published_transform(CROP)
    ids = np.arange(VIEWED, dtype=np.uint64)

    def drawn(epoch: int) -> list:
        uniforms = tile_uniforms(0, np.full(VIEWED, epoch), ids, 2 * DRAWS_PER_VIEW)
        return [draw_view(part, (TILE, TILE), CONFIG) for part in np.split(uniforms, 2, axis=1)]

    def ours() -> None:
        for params in drawn(0):
            render(tiles, params, CROP, out)

    def by_pil() -> None:
        for tile in tiles[:SLOWLY, 0]:
            picture = as_picture(tile)
            transform(picture), transform(picture)

    grey = grey_transform(CROP)

    def by_grey() -> None:
        for tile in tiles[:SLOWLY, 0]:
            picture = Image.fromarray(tile)
            grey(picture), grey(picture)

    def limit() -> None:
        for _ in range(2):
            out[...] = tiles[:, :, :CROP, :CROP]

    ours()
    name = "PIL and torchvision on three copies, as published"
    lean = "the same of one channel, to uint8, without what does nothing to it"
    ways = {"dic3l.views (OpenCV)": ours, name: by_pil, lean: by_grey, "limit: copy two crops in memory": limit}
    seconds = best_seconds(ways, 5)
    for slow in (name, lean):
        seconds[slow] *= VIEWED / SLOWLY
    print_rates(f"Two views of {CROP} x {CROP} of tiles of {TILE} x {TILE}, one core", "tiles/s", VIEWED, seconds)
    times, leaner = (seconds[slow] / seconds["dic3l.views (OpenCV)"] for slow in (name, lean))
    print(f"\n{times:.1f} times the published way, {leaner:.1f} times that on one channel.")
    if torch.cuda.is_available():
        on_gpu(tiles, drawn(0))


def on_gpu(tiles: np.ndarray, views: list) -> None:
    there = torch.from_numpy(tiles[:, 0]).cuda()
    numbers = [torch.from_numpy(view_numbers(params, (TILE, TILE), CROP)).cuda() for params in views]
    blur = blur_radius(CONFIG.blur_sigma[1])

    def ours() -> None:
        for part in numbers:
            for first in range(0, VIEWED, 64):
                render_views(there[first : first + 64], part[first : first + 64], CROP, blur)
        torch.cuda.synchronize()

    def limit() -> None:
        for _ in numbers:
            there[:, :CROP, :CROP].contiguous()
        torch.cuda.synchronize()

    ours()
    seconds = best_seconds({"dic3l.device_views": ours, "limit: copy two crops in device memory": limit}, 5)
    print_rates(f"The same on {torch.cuda.get_device_name()}", "tiles/s", VIEWED, seconds)


if __name__ == "__main__":
    main()
