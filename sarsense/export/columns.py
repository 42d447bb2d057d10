"""What each column of tiles.parquet means, in words and units, for descriptions that other programs read.

docs/corpus.md says the same at greater length.
"""

from __future__ import annotations

TILE_COLUMNS: dict[str, str] = {
    "key": "Name of the sample in its tar: KEY.npy holds the codes, KEY.json the description",
    "shard": "Tar that holds the sample, path relative to the corpus",
    "offset": "Byte of the tar at which the raw codes begin, after the npy header",
    "bytes": "Length of the raw codes in bytes",
    "split": "train or val",
    "scene": "Scene that the tile was cut from: its name and the first digits of its digest",
    "source": "Path of the scene's file inside its source",
    "band": "Band of that file, counted from 1",
    "polarisation": "VV, VH, HH or HV, b1, b2, ... where nobody says; those of a stack joined by +",
    "content": "speckled: backscatter as it was seen; despeckled: filtered by refined Lee; both joined by +",
    "group": "sensor/mode/polarisation/quantity: whose dB range became the codes",
    "sensor": "Sensor, as S1, TSX, PALSAR; unknown where nobody says",
    "mode": "Acquisition mode, as IW; unknown where nobody says",
    "datetime": "Start of the acquisition, ISO 8601 UTC; null where nobody says",
    "orbit_direction": "ascending or descending; null where nobody says",
    "row": "First row of the tile in its scene, pixels, from 0",
    "col": "First column of the tile in its scene, pixels, from 0",
    "crs": "Coordinate reference system of transform, EPSG code or WKT; null for unplaced scenes",
    "transform": "Affine a, b, c, d, e, f from (column, row) of pixel edges to crs; null for scenes placed by GCPs",
    "lon": "Longitude of the centre, degrees east, WGS 84, from -180 to 180; null for unplaced scenes",
    "lat": "Latitude of the centre, degrees north, WGS 84; null for unplaced scenes",
    "spacing_x_m": "Metres on the ground from one column to the next, at the centre",
    "spacing_y_m": "Metres on the ground from one row to the next, at the centre",
    "valid_fraction": "Share of pixels that are data, 0 to 1; of a stack, of its emptiest channel",
    "mean_db": "10 log10 of the mean linear power of the first channel, dB",
    "std_db": "Standard deviation of the first channel's decibels, dB",
    "enl": "Equivalent number of looks, estimated on the scene's band; null where it could not be",
    "enl_bias_db": "Bias of the log of speckle, taken off before coding, to be added after decoding, dB",
    "lo_db": "dB that code 1 stands for",
    "hi_db": "dB that the highest code (255 of 8 bits, 65535 of 16) stands for",
    "channels": "Of each channel in order: polarisation, content, source, range, level and looks",
    "content_hash": "First 128 bits of the SHA-256 of the codes, hex",
    "acquisition": "The acquisition that its scene is of: the smallest name of the scenes that are one",
    "place": "Place on the ground that repeated observations have in common",
    "near_evaluation": "Whether the tile lies near the ground of an evaluation set",
    "lonlat_transform": "Affine a, b, c, d, e, f from pixel edges of the tile to lon and lat, fitted to its ring",
    "perceptual_hash": "Hash of the tile's look: near-duplicates differ in few bits, hex",
    "structure_db": "Standard deviation of the despeckled ground beyond what speckle leaves in it, dB",
    "flat": "Whether the tile shows too little ground to be told from others",
    "label_offset": "Byte of the tar at which the raw labels (uint8, a value a pixel) begin, after the npy header",
    "label_source": "Path of the label raster inside the folder of --labels",
    "label_hash": "First 128 bits of the SHA-256 of the labels, hex",
    "label_counts": "Pixels of each class value that the tile holds; all others are ignored (255)",
    "footprint": "Polygon of the tile on the ground, WKB, longitude and latitude (OGC:CRS84)",
}
"""by name"""


def describe(column: str) -> str:
    """The description of a column; its own name, made readable, where a newer table has one that is not here."""
    return TILE_COLUMNS.get(column, column.replace("_", " "))
