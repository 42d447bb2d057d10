"""The same views as `dic3l.views` and `dic3l.speckle` make, for a whole batch at once, on the device of the networks.

A tile is a quarter of a megabyte, its two views as the networks see them are twenty times that: so what travels to a
GPU are tiles and the numbers of their views (`TileBatch`), and pixels are made there. Crop, resize and flips are
separable: a view is `rows @ tile @ columns`, two matrix products with the bilinear weights of each axis, exact on every
device and with nothing to be chosen at borders. Numbers are those of the host, each of its own tile; both ways agree
within what interpolation on 8 bits leaves open (tests/dic3l/test_device_views.py).
"""

from __future__ import annotations

from dataclasses import dataclass, fields, replace

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from dic3l.base import StepBatch
from dic3l.draws import MULTIPLIERS, PIXELS_A_COUNTER, ROUNDS, WEYL
from dic3l.speckle import FEWER_LOOKS, MIXED, QUANTILES, RESPECKLED, SpeckleParams, kinds_of, mixed_bias_db
from dic3l.views import ViewParams, sampling
from sarsense.shards import TileSpeckle

_LOW = 0xFFFFFFFF
PRODUCTS = {"cuda": torch.float16}
"""dtype of the products that make views, by device; float32 elsewhere"""

# ------------------------------------------------------------------------------------- numbers, made by the host

_OF_AN_AXIS = 5


def view_numbers(params: ViewParams, tile_hw: tuple[int, int], crop_size: int) -> np.ndarray:
    """What `render_views` needs to know of N views, float32 (N, 14): of y and of x, what `Sampling` holds, in its
    order; brightness, contrast, whether contrast comes first, sigma of the blur."""
    lies = sampling(params, tile_hw, crop_size)
    axes = np.stack([getattr(lies, field.name)[:, ::-1] for field in fields(lies)], axis=2)
    levels = np.stack((params.brightness, params.contrast, params.contrast_first, params.blur_sigma), axis=1)
    return np.concatenate((axes.reshape(len(params), -1), levels), axis=1).astype(np.float32)


@dataclass(frozen=True)
class SpeckleNumbers:
    """What happens to the speckle of N tiles, as `speckle_tiles` needs it. Rows are sorted by kind: as seen, mixed,
    new speckle."""

    order: Tensor
    """int64 (N,): tile of each row; the first `counts[0]` are as seen, then `counts[1]` mixed, then new speckle"""
    counts: tuple[int, int, int]
    codes: Tensor
    """uint8 (N, 256): of tiles as seen, what becomes of each code"""
    powers: Tensor
    """float32 (mixed, 2, 256): power of each code of the speckled and of the filtered channel, weighted"""
    scale: Tensor
    """float32 (mixed, 2): codes from the logarithm of power: factor and constant"""
    noise: Tensor
    """float32 (new, 2): dB a code, and gain in dB"""
    chosen: Tensor
    """int64 (new, 4): channel that is multiplied, row of the table of looks, both words of the seed"""


def speckle_numbers(params: SpeckleParams, known: TileSpeckle, numbers: np.ndarray, channels: int) -> SpeckleNumbers:
    """Of N tiles, `numbers` (N,) their rows in `known`, of so many channels."""
    kinds = kinds_of(params, known, numbers)
    step, gain = known.step_db[numbers], params.gain_db
    new = np.flatnonzero(np.isin(kinds, (RESPECKLED, FEWER_LOOKS)))
    mixed = np.flatnonzero(kinds == MIXED)
    seen = np.flatnonzero(~np.isin(kinds, (MIXED, RESPECKLED, FEWER_LOOKS)))
    codes = np.clip(np.rint(np.arange(256) + (gain / step)[seen, None]), 1, 255).astype(np.uint8)
    codes[:, 0] = 0
    level = step[mixed, None] * (np.arange(256) - 1.0)
    share, looks = params.share[mixed], known.enl[numbers][mixed]
    powers = np.stack(
        (
            (1.0 - share)[:, None] * 10.0 ** ((level + known.bias_db[numbers][mixed, None]) / 10.0),
            share[:, None] * 10.0 ** (level / 10.0),
        ),
        axis=1,
    )
    bias = np.array([mixed_bias_db(float(a), float(b)) for a, b in zip(looks, share, strict=True)])
    scale = np.stack((10.0 / np.log(10.0) / step[mixed], 1.0 + (gain[mixed] - bias) / step[mixed]), axis=1)
    words = params.seed[new]
    chosen = np.stack(
        (
            np.where(kinds[new] == RESPECKLED, channels - 1, 0),
            params.looks_step[new],
            (words & np.uint64(_LOW)).astype(np.int64),
            (words >> np.uint64(32)).astype(np.int64),
        ),
        axis=1,
    )
    return SpeckleNumbers(
        order=torch.from_numpy(np.concatenate((seen, mixed, new))),
        counts=(len(seen), len(mixed), len(new)),
        codes=torch.from_numpy(codes),
        powers=torch.from_numpy(powers.astype(np.float32).reshape(-1, 2, 256)),
        scale=torch.from_numpy(scale.astype(np.float32).reshape(-1, 2)),
        noise=torch.from_numpy(np.stack((step[new], gain[new]), axis=1).astype(np.float32)),
        chosen=torch.from_numpy(chosen.astype(np.int64).reshape(-1, 4)),
    )


@dataclass(frozen=True)
class TileBatch:
    """One rank's part of a batch as it travels: M tiles, each once, and the numbers of their views."""

    tiles: Tensor
    """uint8 (M, C, H, W)"""
    rows: Tensor
    """int64 (2, n): tiles of the first views of the query network, and of the second views of the key network"""
    views: Tensor
    """float32 (2, M, 14): `view_numbers` of both views"""
    speckle: tuple[SpeckleNumbers, ...]
    """of both views; empty where speckle is left alone"""
    rest: StepBatch
    """without views"""

    def rendered(self, crop_size: int, blur: int, table: Tensor | None) -> StepBatch:
        """The batch with views, on the device of the tiles. blur, table: of `render_views`, `speckle_tiles`."""
        made = []
        for side, rows in enumerate(self.rows):
            if self.speckle and table is not None:
                tiles = speckle_tiles(self.tiles, self.speckle[side], table)[rows]
            else:
                tiles = self.tiles[rows, 0]
            made.append(render_views(tiles, self.views[side, rows], crop_size, blur))
        return replace(self.rest, query_views=made[0], key_views=made[1])


# ----------------------------------------------------------------------------------------- pixels, on the device


def render_views(tiles: Tensor, numbers: Tensor, crop_size: int, blur: int) -> Tensor:
    """uint8 (N, H, W) -> uint8 (N, 1, crop, crop).

    numbers: float32 (N, 14), of `view_numbers`; blur: radius in pixels of the widest blur that there may be. Half
    precision on CUDA: it holds codes exactly, and its weights lose less than an eighth of a code.
    """
    kind = PRODUCTS.get(tiles.device.type, torch.float32)
    height, width = tiles.shape[1:]
    of_y, of_x, levels = numbers.split((_OF_AN_AXIS, _OF_AN_AXIS, numbers.shape[1] - 2 * _OF_AN_AXIS), dim=1)
    along_y = axis_weights(of_y, height, crop_size).to(kind)
    along_x = axis_weights(of_x, width, crop_size).to(kind)
    view = along_y @ tiles.to(kind) @ along_x.transpose(1, 2)
    brightness, contrast, first, sigma = levels[:, :, None, None].unbind(1)
    view = _jitter(_codes(view.float()), brightness, contrast, first > 0)
    return _blur(view, sigma.flatten(), blur)[:, None].to(torch.uint8)


def axis_weights(axis: Tensor, size: int, crop_size: int) -> Tensor:
    """Weights (N, crop, size) with which the pixels of an axis make those of the view: bilinear between means of
    blocks. axis: float32 (N, 5), as in `view_numbers`."""
    start, step, first, block, blocks = axis[:, :, None, None].unbind(1)
    view = torch.arange(crop_size, device=axis.device, dtype=axis.dtype)[None, :, None]
    pixel = torch.arange(size, device=axis.device, dtype=axis.dtype)[None, None]
    place = torch.minimum((start + view * step).clamp(min=0), blocks - 1)
    own = torch.floor((pixel - first) / block)
    return (1 - (place - own).abs()).clamp(min=0) / block * ((own >= 0) & (own < blocks))


def _codes(values: Tensor) -> Tensor:
    """Rounded and clipped as uint8 would be."""
    return values.round().clamp(0, 255)


def _jitter(view: Tensor, brightness: Tensor, contrast: Tensor, contrast_first: Tensor) -> Tensor:
    """(N, h, w) of whole codes -> the same."""

    def contrasted(x: Tensor) -> Tensor:
        mean = x.mean((1, 2), keepdim=True)
        return torch.where(contrast == 1, x, _codes(mean + (x - mean) * contrast))

    view = torch.where(contrast_first, contrasted(view), _codes(view * brightness))
    return torch.where(contrast_first, _codes(view * brightness), contrasted(view))


def _blur(view: Tensor, sigma: Tensor, most: int) -> Tensor:
    """(N, h, w) of whole codes, Gaussian of `sigma` (N,) pixels, 0 = none -> the same. Borders are mirrored about their
    last pixel; kernels end where OpenCV's do, and none reaches farther than `most`."""
    offset = torch.arange(-most, most + 1, device=view.device, dtype=view.dtype)
    kernel = torch.exp(-0.5 * (offset / sigma.clamp(min=1e-3)[:, None]) ** 2)
    kernel = kernel * (offset.abs() <= torch.div((6 * sigma + 1).round(), 2, rounding_mode="floor")[:, None])
    kernel = torch.where(sigma[:, None] > 0, kernel, (offset == 0).to(kernel.dtype))
    kernel = kernel / kernel.sum(1, keepdim=True)
    padded = F.pad(view[None], (most, most, most, most), mode="reflect")  # (1, N, h + 2 most, w + 2 most)
    across = F.conv2d(padded, kernel[:, None, None, :], groups=len(view))
    return _codes(F.conv2d(across, kernel[:, None, :, None], groups=len(view))[0])


def speckle_tiles(tiles: Tensor, numbers: SpeckleNumbers, table: Tensor) -> Tensor:
    """What views see of tiles, before they are cut: codes uint8 (N, C, H, W) -> uint8 (N, H, W).

    table: float32 (looks, QUANTILES), of `dic3l.speckle.speckle_table`, on the same device.
    """
    seen, mixed, new = numbers.order.split(numbers.counts)
    found = torch.empty_like(tiles[:, 0])
    found[seen] = _looked_up(numbers.codes, tiles[seen, 0])
    both = torch.stack((tiles[mixed, 0], tiles[mixed, -1]), dim=1)  # a list of indices would wait for the host
    power = _looked_up(numbers.powers[:, 0], both[:, 0]) + _looked_up(numbers.powers[:, 1], both[:, 1])
    factor, constant = numbers.scale[:, :, None, None].unbind(1)
    found[mixed] = _where_data(torch.log(power) * factor + constant, both.amin(1))
    channel, looks, low, high = numbers.chosen.unbind(1)
    plane = tiles[new, channel]
    quantile = pixel_words(low, high, plane[0].numel() if len(plane) else 0) & (QUANTILES - 1)
    step, gain = numbers.noise.unbind(1)
    noise = (_looked_up(table[looks], quantile.view(plane.shape)) + gain[:, None, None]) / step[:, None, None]
    found[new] = _where_data(noise.round() + plane, plane)
    return found


def _looked_up(tables: Tensor, index: Tensor) -> Tensor:
    """tables (N, K), index of whole numbers (N, H, W) -> (N, H, W) of the tables' dtype."""
    return tables.gather(1, index.flatten(1).long()).view(index.shape)


def _where_data(codes: Tensor, data: Tensor) -> Tensor:
    """Codes of any dtype, rounded and clipped to 1..255, as uint8; 0 where `data` is 0."""
    return torch.where(data == 0, 0, codes.round().clamp(1, 255)).to(torch.uint8)


def pixel_words(low: Tensor, high: Tensor, count: int) -> Tensor:
    """`dic3l.draws.pixel_words` of N seeds, whose words are low and high: int64 (N, count) of 16 bits each."""
    counters = torch.arange(-(-count // PIXELS_A_COUNTER), device=low.device)[None]
    a, b, c, d = (counters, *[torch.zeros_like(counters)] * 3)
    key0, key1 = low[:, None], high[:, None]
    for _ in range(ROUNDS):
        left, right = a * MULTIPLIERS[0], c * MULTIPLIERS[1]  # may pass 2**63: the bits are those of unsigned numbers
        a, b, c, d = (right >> 32) & _LOW ^ b ^ key0, right & _LOW, (left >> 32) & _LOW ^ d ^ key1, left & _LOW
        key0, key1 = (key0 + WEYL[0]) & _LOW, (key1 + WEYL[1]) & _LOW
    words = torch.stack((a, b, c, d), dim=-1)  # of 32 bits
    halves = torch.stack((words & 0xFFFF, words >> 16), dim=-1)
    return halves.flatten(1)[:, :count]
