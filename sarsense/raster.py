"""Reading rasters through GDAL: everything that GDAL complains of becomes ours, with the file named.

Knows nothing of SAR. Reads whole rows, so that memory is bounded by a strip and blocks are read once.
"""

from __future__ import annotations

import logging
import warnings
from collections.abc import Iterator
from contextlib import closing, contextmanager
from typing import Any

import numpy as np
import rasterio
from rasterio.enums import ColorInterp, MaskFlags
from rasterio.errors import RasterioError
from rasterio.windows import Window

from sarsense.errors import SceneError
from sarsense.remote import is_remote
from sarsense.vsi import RemoteRaster, remote_error, remote_settings

_CACHE_BYTES, _MOST_CACHE_BYTES = 16 * 2**20, 512 * 2**20
"""of GDAL's blocks: as few as two rows of blocks, which the processor's own caches hold (with 128 MiB, reading tiles of
512 x 512 takes 1.2 in place of 0.6 ns a pixel). In bytes: to rasterio.Env a small number means bytes, not MB"""

_RASTERIO_LOG = logging.getLogger("rasterio")


class _Collector(logging.Handler):
    def __init__(self) -> None:
        super().__init__(logging.WARNING)
        self.messages: list[str] = []

    def emit(self, record: logging.LogRecord) -> None:
        self.messages.append(record.getMessage())


@contextmanager
def open_raster(path: str) -> Iterator[tuple[Any, list[str]]]:
    """Open `path` for reading: yields the rasterio dataset and a list that collects GDAL's warnings.

    Raises SceneError with GDAL's reason when it cannot be opened or when a read inside the block fails.
    """
    collector = _Collector()
    propagate = _RASTERIO_LOG.propagate
    _RASTERIO_LOG.addHandler(collector)
    _RASTERIO_LOG.propagate = False
    try:
        settings: dict[str, Any] = remote_settings(path) if is_remote(path) else {}
        with (
            warnings.catch_warnings(),
            # GDAL's helper files (.aux.xml) beside the user's data would be a change of the input
            # its way of reading a PNG at once says nothing where the file ends early, and gives what was in memory
            rasterio.Env(
                GDAL_CACHEMAX=_CACHE_BYTES, GDAL_PAM_ENABLED="NO", GDAL_PNG_WHOLE_IMAGE_OPTIM="NO", **settings
            ),
        ):
            warnings.simplefilter("ignore")  # NotGeoreferencedWarning: Scene.placed says the same
            opened = RemoteRaster(path, collector.messages) if is_remote(path) else rasterio.open(path)
            with closing(opened) as dataset, rasterio.Env(GDAL_CACHEMAX=_cache_for(dataset)):
                yield dataset, collector.messages
    except (RasterioError, ValueError) as error:
        # a plain OSError inside the block is our own writing, a full disk for one: no fault of this raster
        raise _unreadable(path, error) from error
    finally:
        _RASTERIO_LOG.removeHandler(collector)
        _RASTERIO_LOG.propagate = propagate


def _cache_for(dataset: Any) -> int:
    """Bytes of two rows of blocks of a band: rows that are read one after the other share blocks, if any, with those
    before."""
    rows = [
        height * dataset.width * stored_dtype(dataset, band).itemsize
        for band, (height, _) in enumerate(dataset.block_shapes, start=1)
    ]
    a_row = max(rows, default=0)
    return min(max(2 * a_row, _CACHE_BYTES), _MOST_CACHE_BYTES)


def _unreadable(path: str, error: BaseException) -> SceneError:
    """With GDAL's own reason, which rasterio hides in the chain of causes, and what to do about it."""
    reasons = []
    link: BaseException | None = error
    while link is not None:
        reasons.append(" ".join(str(link).split()))
        link = link.__cause__ or link.__context__
    reason = next((text for text in reversed(reasons) if text), type(error).__name__)
    if "not recognized as being in a supported file format" in reason:
        return SceneError("not a raster that GDAL knows; expected a GeoTIFF or the like, whatever the file's name says")
    if is_remote(path):
        return remote_error(path, reason)
    if "No such file or directory" in reason:
        return SceneError("no such file: it vanished, or a list names it wrongly")
    return SceneError(f"GDAL cannot read it, truncated or damaged: {reason}; fetch the file again")


def read_rows(dataset: Any, band: int, first: int, last: int, out: np.ndarray | None = None) -> np.ndarray:
    """Rows first..last (exclusive) of a band, all columns, in the stored dtype (complex_int16 as complex64); into `out`
    where given."""
    return dataset.read(band, window=pixel_window(0, first, dataset.width, last - first), out=out)


def stored_dtype(dataset: Any, band: int) -> np.dtype:
    """Of what `read_rows` returns."""
    name = dataset.dtypes[band - 1]
    return np.dtype("complex64" if name == "complex_int16" else name)


def bands_of_rows(
    dataset: Any, band: int, rows: int, pixels: int, start: int, stop: int
) -> Iterator[tuple[int, np.ndarray]]:
    """Rows start..stop (exclusive) of a band from top to bottom, in pieces of a multiple of `rows` (but for the last)
    and of some `pixels`: first row and values, rows x columns, which hold until the next piece is asked for. Reads
    whole rows of blocks, so that none is fetched or unpacked twice."""
    height = dataset.block_shapes[band - 1][0]
    a_read = max(pixels // dataset.width, 1)
    if height <= 4 * a_read:  # else a block is most of the raster: GDAL keeps it, and we take what we need
        a_read = max(a_read // height, 1) * height
    buffer = np.empty((rows + min(a_read, stop - start), dataset.width), stored_dtype(dataset, band))
    rest = 0  # rows at the start of the buffer that did not fill a piece
    for edge in range(start // a_read * a_read, stop, a_read):
        first, last = max(edge, start), min(edge + a_read, stop)
        there = rest + last - first
        read_rows(dataset, band, first, last, out=buffer[rest:there])
        whole = there if last == stop else there // rows * rows
        if whole:
            yield first - rest, buffer[:whole]
        rest = there - whole
        buffer[:rest] = buffer[whole:there].copy()


def masked_rows(dataset: Any, band: int, first: int, last: int) -> np.ndarray | None:
    """True where a mask band or an alpha band says that rows first..last hold no data; None where there is neither.

    A declared no-data value is not looked at here.
    """
    if ColorInterp.alpha in dataset.colorinterp:  # GDAL's own masks know alpha of 8 and 16 bits alone
        return read_rows(dataset, dataset.colorinterp.index(ColorInterp.alpha) + 1, first, last) == 0
    if MaskFlags.per_dataset not in dataset.mask_flag_enums[band - 1]:
        return None
    return dataset.read_masks(band, window=pixel_window(0, first, dataset.width, last - first)) == 0


def pixel_window(col: int, row: int, width: int, height: int) -> Window:
    """A part of a raster. rasterio's types do not tell the arguments of its attrs class: this is the one place."""
    return Window(col, row, width, height)  # type: ignore[call-arg]


def strips(height: int, rows: int) -> Iterator[tuple[int, int]]:
    """The row ranges that cut a raster of `height` rows into strips of at most `rows`."""
    for first in range(0, height, rows):
        yield first, min(first + rows, height)
