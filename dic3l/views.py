"""Views of a tile: which part of it, mirrored or not, how bright, how sharp; and the pixels that follow.

Parameters are drawn for a whole batch at once (`draw_view`), say exactly where on the tile each pixel of the view
lies (`view_matrix`), and are carried out by OpenCV one image at a time (`render_one`, which releases the GIL), or by
`dic3l.device_views` for a batch.
The distribution is that of torchvision's RandomResizedCrop, ColorJitter (brightness and contrast, in random order),
GaussianBlur and RandomHorizontalFlip. Rectangles are of whole pixels, there as here; nothing else is rounded.

Coordinates are of edges, not of centres: a tile spans [0, W] x [0, H], its first pixel has its centre at (0.5, 0.5).
"""

from __future__ import annotations

from dataclasses import dataclass

import cv2
import numpy as np

from dic3l.config import ViewConfig
from dic3l.draws import njit
from dic3l.errors import ConfigError

_ATTEMPTS = 10
"""crops tried before the fallback, as in torchvision"""
DRAWS_PER_VIEW = 2 * _ATTEMPTS + 2 + 2 + 4 + 2
"""uniform numbers that a view needs: attempts (area, aspect), position, flips, jitter, blur"""
_FLIPS = {(True, False): 1, (False, True): 0, (True, True): -1}
"""left-right, top-bottom -> what OpenCV calls it"""


@dataclass(frozen=True)
class ViewParams:
    """The views of N tiles."""

    rect: np.ndarray
    """float64 (N, 4): x0, y0, x1, y1 on the tile, in its pixels (edges): whole numbers"""
    flip: np.ndarray
    """bool (N,): mirrored left to right"""
    flip_vertical: np.ndarray
    """bool (N,): mirrored top to bottom"""
    brightness: np.ndarray
    """float64 (N,): factor; 1 = none"""
    contrast: np.ndarray
    """float64 (N,): factor about the mean of the view; 1 = none"""
    contrast_first: np.ndarray
    """bool (N,): contrast is applied before brightness"""
    blur_sigma: np.ndarray
    """float64 (N,): in pixels of the view; 0 = none"""

    def __len__(self) -> int:
        return len(self.rect)

    def __getitem__(self, index: np.ndarray | slice) -> ViewParams:
        """The views of some of the tiles."""
        return ViewParams(
            self.rect[index],
            self.flip[index],
            self.flip_vertical[index],
            self.brightness[index],
            self.contrast[index],
            self.contrast_first[index],
            self.blur_sigma[index],
        )


def _crop(u: np.ndarray, tile_hw: tuple[int, int], config: ViewConfig) -> np.ndarray:
    """Rectangles float64 (N, 4) from uniforms (N, 2 * _ATTEMPTS + 2): the first attempt that fits the tile."""
    height, width = tile_hw
    area = height * width * (config.area[0] + (config.area[1] - config.area[0]) * u[:, 0 : 2 * _ATTEMPTS : 2])
    low, high = np.log(config.aspect[0]), np.log(config.aspect[1])
    aspect = np.exp(low + (high - low) * u[:, 1 : 2 * _ATTEMPTS : 2])
    widths, heights = np.rint(np.sqrt(area * aspect)), np.rint(np.sqrt(area / aspect))
    fits = (widths >= 1) & (widths <= width) & (heights >= 1) & (heights <= height)
    first = np.argmax(fits, axis=1)
    rows = np.arange(len(u))
    # the fallback of torchvision: the largest central crop whose aspect is in range
    nearest = min(max(width / height, config.aspect[0]), config.aspect[1])
    fallback_w, fallback_h = round(min(width, height * nearest)), round(min(height, width / nearest))
    found = fits.any(axis=1)
    w = np.where(found, widths[rows, first], fallback_w)
    h = np.where(found, heights[rows, first], fallback_h)
    x0 = np.where(found, np.floor((width - w + 1) * u[:, -2]), (width - w) // 2)
    y0 = np.where(found, np.floor((height - h + 1) * u[:, -1]), (height - h) // 2)
    return np.stack((x0, y0, x0 + w, y0 + h), axis=1)


def _factor(u: np.ndarray, strength: float) -> np.ndarray:
    low = max(0.0, 1.0 - strength)
    return low + (1.0 + strength - low) * u


def draw_view(u: np.ndarray, tile_hw: tuple[int, int], config: ViewConfig) -> ViewParams:
    """Views of N tiles of `tile_hw` (height, width) pixels from uniforms u (N, DRAWS_PER_VIEW) in [0, 1)."""
    position = 2 * _ATTEMPTS + 2
    rect = _crop(u[:, :position], tile_hw, config)
    flip, vertical, jitter, brightness, contrast, order, blur, sigma = u[:, position:].T
    jittered = jitter < config.jitter_probability
    low, high = config.blur_sigma
    return ViewParams(
        rect=rect,
        flip=flip < config.flip_probability,
        flip_vertical=vertical < config.vertical_flip_probability,
        brightness=np.where(jittered, _factor(brightness, config.brightness), 1.0),
        contrast=np.where(jittered, _factor(contrast, config.contrast), 1.0),
        contrast_first=order < 0.5,
        blur_sigma=np.where(blur < config.blur_probability, low + (high - low) * sigma, 0.0),
    )


def frames(params: ViewParams) -> np.ndarray:
    """Where views lie: float64 (N, 4), tile coordinates of a view's own left, top, right and bottom edges."""
    left, top, right, bottom = params.rect.T
    across = np.where(params.flip, (right, left), (left, right))
    down = np.where(params.flip_vertical, (bottom, top), (top, bottom))
    return np.stack((across[0], down[0], across[1], down[1]), axis=1)


def view_matrix(params: ViewParams, crop_size: int) -> np.ndarray:
    """float64 (N, 2, 3): maps (x, y, 1) in tile pixels to (x, y) in view pixels, both of edges. Crop, resize, flips."""
    x0, y0, x1, y1 = params.rect.T
    scale_x, scale_y = crop_size / (x1 - x0), crop_size / (y1 - y0)
    matrix = np.zeros((len(params), 2, 3))
    matrix[:, 0, 0] = np.where(params.flip, -scale_x, scale_x)
    matrix[:, 0, 2] = np.where(params.flip, scale_x * x1, -scale_x * x0)
    matrix[:, 1, 1] = np.where(params.flip_vertical, -scale_y, scale_y)
    matrix[:, 1, 2] = np.where(params.flip_vertical, scale_y * y1, -scale_y * y0)
    return matrix


@dataclass(frozen=True)
class Sampling:
    """Where the pixels of N views lie among those of their tiles, float64 (N, 2) each, along x and y.

    Strong reductions average blocks first. Without that, a view much smaller than its crop would keep the full speckle
    of single pixels, which no smaller picture of the ground has.
    """

    start: np.ndarray
    """of the view's first pixel, among blocks: index of centres"""
    step: np.ndarray
    """from one pixel of the view to the next, in blocks; negative where the view is mirrored"""
    first: np.ndarray
    """pixel of the tile that blocks begin with"""
    block: np.ndarray
    """pixels a side, less than two of the view's; 1 where nothing is averaged"""
    blocks: np.ndarray
    """how many; a block that the tile has not all of is left out"""


def sampling(params: ViewParams, tile_hw: tuple[int, int], crop_size: int) -> Sampling:
    """Of views of `crop_size` pixels of tiles of `tile_hw` (height, width)."""
    low, high = params.rect[:, :2], params.rect[:, 2:]
    pixels = np.array(tile_hw[::-1], np.float64)
    block = np.maximum(1.0, np.floor((high - low) / crop_size))
    blocks = np.minimum(np.ceil((high - low) / block), pixels // block)
    first = np.minimum(low, pixels - blocks * block)
    flips = np.stack((params.flip, params.flip_vertical), axis=1)
    step = (high - low) / block / crop_size * np.where(flips, -1.0, 1.0)
    # of edges; both centres lie half a pixel after the index
    start = (np.where(flips, high, low) - first) / block + 0.5 * step - 0.5
    return Sampling(start, step, first, block, blocks)


def _resample(plane: np.ndarray, lies: Sampling, index: int, flips: tuple[bool, bool], out: np.ndarray) -> None:
    """uint8 (H, W) -> `out` uint8 (crop, crop). Bilinear at exact centres, of the pixels of the rectangle alone."""
    (left, top), (columns, rows) = map(int, lies.first[index]), map(int, lies.blocks[index])
    block_x, block_y = map(int, lies.block[index])
    plane = plane[top : top + rows * block_y, left : left + columns * block_x]
    if block_x == block_y == 1:
        cv2.resize(plane, out.shape, dst=out, interpolation=cv2.INTER_LINEAR)  # four times as fast as warpAffine
        if any(flips):
            cv2.flip(out, _FLIPS[flips], dst=out)
        return
    plane = cv2.resize(plane, (columns, rows), interpolation=cv2.INTER_AREA)
    (start_x, start_y), (step_x, step_y) = lies.start[index], lies.step[index]
    to_source = np.array([[step_x, 0, start_x], [0, step_y, start_y]])
    flags = cv2.INTER_LINEAR | cv2.WARP_INVERSE_MAP
    cv2.warpAffine(plane, to_source, out.shape, dst=out, flags=flags, borderMode=cv2.BORDER_REPLICATE)


def blur_radius(sigma: float) -> int:
    """Pixels on each side that OpenCV's Gaussian kernel of this standard deviation reaches, on 8 bits."""
    return round(6 * sigma + 1) // 2


@njit
def _scale(codes, factor, offset):
    """uint8 (n,), in place: times `factor`, plus `offset`, rounded and clipped."""
    factor, offset = np.float32(factor), np.float32(offset)
    for i in range(codes.size):
        value = np.rint(np.float32(codes[i]) * factor + offset)
        codes[i] = np.uint8(min(max(value, np.float32(0)), np.float32(255)))


@njit
def _jitter(codes, brightness, contrast, contrast_first):
    """uint8 (n,), of all channels of a view, in place. Contrast is about their mean at that moment."""
    for step in range(2):
        if contrast_first == (step == 0):
            if contrast != 1.0:
                total = 0
                for i in range(codes.size):
                    total += codes[i]
                _scale(codes, contrast, total / codes.size * (1.0 - contrast))
        elif brightness != 1.0:
            _scale(codes, brightness, 0.0)


def _blur(plane: np.ndarray, sigma: float) -> None:
    """uint8 (h, w), in place: the bytes of `cv2.GaussianBlur`, in half of its time."""
    kernel = cv2.getGaussianKernel(2 * blur_radius(sigma) + 1, sigma, cv2.CV_32F)
    cv2.sepFilter2D(plane, -1, kernel, kernel, dst=plane)


def render_one(tile: np.ndarray, params: ViewParams, lies: Sampling, index: int, view: np.ndarray) -> None:
    """View `index` of `params`, sampled as `lies` says: tile uint8 (C, H, W) -> `view` uint8 (C, crop, crop).

    Code 0 (no data) is interpolated, jittered and blurred like any other value: next to it, a view fades to black.
    Safe to call from many threads; a thread pool wants `cv2.setNumThreads(1)`.
    """
    flips = bool(params.flip[index]), bool(params.flip_vertical[index])
    for plane, out in zip(tile, view, strict=True):
        _resample(plane, lies, index, flips, out)
    contrast_first = bool(params.contrast_first[index])
    _jitter(view.reshape(-1), float(params.brightness[index]), float(params.contrast[index]), contrast_first)
    if (sigma := float(params.blur_sigma[index])) > 0:
        for plane in view:
            _blur(plane, sigma)


def render(tiles: np.ndarray, params: ViewParams, crop_size: int, out: np.ndarray | None = None) -> np.ndarray:
    """Views of N tiles, one each: uint8 (N, C, H, W) -> uint8 (N, C, crop_size, crop_size), into `out` if given."""
    if tiles.ndim != 4 or tiles.dtype != np.uint8:
        raise ConfigError(f"tiles to render: expected uint8 (N, C, H, W), found {tiles.dtype} {tiles.shape}")
    if out is None:
        out = np.empty((len(tiles), tiles.shape[1], crop_size, crop_size), np.uint8)
    lies = sampling(params, (tiles.shape[2], tiles.shape[3]), crop_size)
    for index, tile in enumerate(tiles):
        render_one(tile, params, lies, index, out[index])
    return out
